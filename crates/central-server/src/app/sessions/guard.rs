//! How often someone may try to sign in.
//!
//! Each account and each address has a burst of attempts that refills with time; an attempt that succeeds is given
//! back, so only failures count. Whoever guesses at an account must not lock its owner out: an address from which the
//! account was signed in to successfully has a burst of its own for that account. All tables are bounded.

use super::limits::{Buckets, Limit};
use super::password::{HashSettings, Hasher};
use common::error::{Error, Reason, Result};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Accounts and addresses that are watched at a time.
const MAX_KEYS: usize = 10_000;

/// How people sign in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginSettings {
    /// Password hashes.
    pub hash: HashSettings,
    /// Failures per account.
    pub per_account: Limit,
    /// Failures per address (IPv6: per /64 network).
    pub per_source: Limit,
    /// Life of a session for which nothing else is asked.
    pub lifetime: Duration,
    /// Longest life that may be asked for.
    pub lifetime_max: Duration,
}

impl Default for LoginSettings {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self {
            hash: HashSettings::default(),
            per_account: Limit { burst: 10, period: Duration::from_secs(30) },
            per_source: Limit { burst: 50, period: Duration::from_secs(30) },
            lifetime: 30 * day,
            lifetime_max: 90 * day,
        }
    }
}

/// Which burst an attempt was taken from.
#[derive(Debug)]
pub struct Ticket {
    account: AccountKey,
    name: String,
    source: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct AccountKey {
    name: [u8; 32],
    /// Set if this address has signed in to the account before.
    known: Option<IpAddr>,
}

/// Limits of signing in, and the hasher.
#[derive(Debug)]
pub struct LoginGuard {
    pub(crate) hasher: Hasher,
    lifetime: Duration,
    lifetime_max: Duration,
    tables: Mutex<Tables>,
}

#[derive(Debug)]
struct Tables {
    accounts: Buckets<AccountKey>,
    sources: Buckets<IpAddr>,
    known: HashSet<(String, IpAddr)>,
}

impl LoginGuard {
    /// Nobody has tried yet. Computes one password hash.
    ///
    /// # Errors
    /// `SETTINGS_INVALID`.
    pub fn new(settings: &LoginSettings) -> Result<Self> {
        Ok(Self {
            hasher: Hasher::new(&settings.hash)?,
            lifetime: settings.lifetime,
            lifetime_max: settings.lifetime_max,
            tables: Mutex::new(Tables {
                accounts: Buckets::new(settings.per_account, MAX_KEYS),
                sources: Buckets::new(settings.per_source, MAX_KEYS),
                known: HashSet::new(),
            }),
        })
    }

    /// Takes one attempt.
    ///
    /// # Errors
    /// `LOGIN_RATE_LIMITED` with the time after which there is one again.
    pub fn admit(&self, name: &str, source: Option<IpAddr>, now_ms: u64) -> Result<Ticket> {
        let source = source.map(network);
        let mut tables = self.tables.lock();
        let known = source.filter(|s| name.len() <= 64 && tables.known.contains(&(name.to_owned(), *s)));
        let account = AccountKey { name: *blake3::hash(name.as_bytes()).as_bytes(), known };
        if let Some(source) = source {
            tables.sources.take(source, now_ms).map_err(limited)?;
        }
        if let Err(wait) = tables.accounts.take(account.clone(), now_ms) {
            if let Some(source) = &source {
                tables.sources.give_back(source);
            }
            return Err(limited(wait));
        }
        Ok(Ticket { account, name: name.to_owned(), source })
    }

    /// Gives an attempt back that was no attempt.
    pub fn forgive(&self, ticket: &Ticket) {
        let mut tables = self.tables.lock();
        tables.accounts.give_back(&ticket.account);
        if let Some(source) = &ticket.source {
            tables.sources.give_back(source);
        }
    }

    /// Gives a successful attempt back and remembers the address.
    pub fn succeeded(&self, ticket: &Ticket) {
        self.forgive(ticket);
        if let Some(source) = ticket.source {
            let mut tables = self.tables.lock();
            if tables.known.len() >= MAX_KEYS {
                // Forgetting costs little: until their next login all share the account's burst again.
                tables.known.clear();
            }
            tables.known.insert((ticket.name.clone(), source));
        }
    }

    /// The life of a session for a caller's wish, in milliseconds.
    pub fn lifetime_ms(&self, wish: Duration) -> u64 {
        let wish = if wish.is_zero() { self.lifetime } else { wish };
        u64::try_from(wish.min(self.lifetime_max).as_millis()).unwrap_or(u64::MAX)
    }
}

/// The network that one party holds: an IPv4 address, or the first 64 bits of an IPv6 address.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

fn limited(wait: Duration) -> Error {
    Error::new(Reason::LoginRateLimited, "too many attempts to sign in").retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> LoginGuard {
        LoginGuard::new(&LoginSettings {
            hash: HashSettings { memory_kib: 8, passes: 1, ..HashSettings::default() },
            per_account: Limit { burst: 3, period: Duration::from_secs(30) },
            per_source: Limit { burst: 5, period: Duration::from_secs(30) },
            ..LoginSettings::default()
        })
        .unwrap()
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn an_account_has_its_limit_over_all_addresses() {
        let guard = guard();
        for host in 1..=3 {
            guard.admit("anna", ip(&format!("192.0.2.{host}")), 0).unwrap();
        }
        let error = guard.admit("anna", ip("192.0.2.9"), 0).unwrap_err();
        assert!(error.is(Reason::LoginRateLimited));
        assert_eq!(error.retry_delay(), Some(Duration::from_secs(30)));
        guard.admit("ben", ip("192.0.2.9"), 0).unwrap();
        guard.admit("anna", ip("192.0.2.9"), 30_000).unwrap();
    }

    #[test]
    fn an_address_has_its_limit_over_all_accounts() {
        let guard = guard();
        for n in 0..5 {
            guard.admit(&format!("u{n}"), ip("2001:db8::1"), 0).unwrap();
        }
        assert!(guard.admit("u9", ip("2001:db8::ffff"), 0).is_err(), "the same /64");
        guard.admit("u9", ip("2001:db8:0:1::1"), 0).unwrap();
        guard.admit("u8", None, 0).unwrap();
    }

    #[test]
    fn an_attempt_refused_for_the_account_costs_the_address_nothing() {
        let guard = guard();
        for _ in 0..3 {
            guard.admit("anna", None, 0).unwrap();
        }
        for _ in 0..20 {
            assert!(guard.admit("anna", ip("192.0.2.1"), 0).is_err());
        }
        guard.admit("ben", ip("192.0.2.1"), 0).unwrap();
    }

    #[test]
    fn success_costs_nothing_and_guessers_cannot_lock_out_a_known_address() {
        let guard = guard();
        for _ in 0..20 {
            let ticket = guard.admit("anna", ip("192.0.2.1"), 0).unwrap();
            guard.succeeded(&ticket);
        }
        for host in 2..=4 {
            guard.admit("anna", ip(&format!("192.0.2.{host}")), 0).unwrap();
        }
        assert!(guard.admit("anna", ip("192.0.2.5"), 0).is_err());
        guard.admit("anna", ip("192.0.2.1"), 0).unwrap();
    }

    #[test]
    fn lifetimes_have_a_default_and_a_bound() {
        let guard = guard();
        let day = 24 * 3600 * 1000;
        assert_eq!(guard.lifetime_ms(Duration::ZERO), 30 * day);
        assert_eq!(guard.lifetime_ms(Duration::from_secs(60)), 60_000);
        assert_eq!(guard.lifetime_ms(Duration::MAX), 90 * day);
    }
}
