//! Passwords and their hashes (argon2id, RFC 9106).
//!
//! A hash takes tens of milliseconds and tens of megabytes, so at most [`HashSettings::parallel`] are computed at a time
//! on blocking threads, and at most [`HashSettings::queue`] callers wait; the next is told `OVERLOADED`.

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use common::error::{Error, Reason, Result};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Longest password in bytes.
pub const MAX_BYTES: usize = 1024;
/// Fewest characters of a new password.
pub const MIN_CHARS: usize = 8;

/// A password in clear text: erased when dropped, never shown.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Takes a password as it came.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks a password that someone signs in with.
    ///
    /// # Errors
    /// `FIELD_INVALID`.
    pub fn check_given(&self) -> Result<()> {
        if self.0.is_empty() || self.0.len() > MAX_BYTES {
            return Err(Error::new(Reason::FieldInvalid, "a password has 1 to 1,024 bytes").with("field", "password"));
        }
        Ok(())
    }

    /// Checks a password that is to be set.
    ///
    /// # Errors
    /// `PASSWORD_TOO_WEAK`.
    pub fn check_new(&self) -> Result<()> {
        if self.0.len() > MAX_BYTES || self.0.chars().count() < MIN_CHARS {
            return Err(Error::new(Reason::PasswordTooWeak, "this password cannot be used").with("field", "password"));
        }
        Ok(())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Cost of a hash and how many at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashSettings {
    /// Memory of one hash in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
    /// Hashes computed at a time.
    pub parallel: usize,
    /// Callers that may wait for their turn.
    pub queue: usize,
}

impl Default for HashSettings {
    /// 19 MiB, 2 passes, 1 lane, as OWASP recommends for argon2id.
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2, lanes: 1, parallel: 2, queue: 64 }
    }
}

impl HashSettings {
    fn params(&self) -> Result<Params> {
        Params::new(self.memory_kib, self.passes, self.lanes, None).map_err(|e| {
            Error::new(Reason::SettingsInvalid, "the costs of a password hash are out of range")
                .caused_by(e.to_string())
        })
    }
}

/// What checking a password showed.
#[derive(Debug)]
pub struct Checked {
    /// It is the right one.
    pub right: bool,
    /// A new hash to store, if the password is right and its hash was cheaper than the settings ask for.
    pub stronger: Option<String>,
}

/// Computes and checks hashes, a few at a time.
pub struct Hasher {
    params: Params,
    /// Hash of a password that nobody has, for accounts that do not exist.
    nobody: Arc<str>,
    turns: Arc<Semaphore>,
    inside: AtomicUsize,
    most_inside: usize,
}

impl Hasher {
    /// A hasher with these costs. Computes one hash.
    ///
    /// # Errors
    /// `SETTINGS_INVALID`.
    pub fn new(settings: &HashSettings) -> Result<Self> {
        let params = settings.params()?;
        let nobody = compute(&params, &rand::random::<[u8; 32]>())?.into();
        let parallel = settings.parallel.max(1);
        Ok(Self {
            params,
            nobody,
            turns: Arc::new(Semaphore::new(parallel)),
            inside: AtomicUsize::new(0),
            most_inside: parallel.saturating_add(settings.queue),
        })
    }

    /// The hash of a new password, as a PHC string with a salt of its own.
    ///
    /// # Errors
    /// `OVERLOADED`.
    pub async fn hash(&self, password: &Password) -> Result<String> {
        let (params, password) = (self.params.clone(), password.clone());
        self.in_turn(move || compute(&params, password.0.as_bytes())).await?
    }

    /// Checks a password against a stored hash. Without one it takes the same time and is wrong.
    ///
    /// # Errors
    /// `OVERLOADED`; `STORE_CORRUPT` if the stored hash cannot be read.
    pub async fn check(&self, password: &Password, stored: Option<String>) -> Result<Checked> {
        let (params, password, nobody) = (self.params.clone(), password.clone(), self.nobody.clone());
        self.in_turn(move || {
            let known = stored.is_some();
            let stored = stored.as_deref().unwrap_or(&nobody);
            let parsed = PasswordHash::new(stored).map_err(corrupt)?;
            if parsed.salt.is_none() || parsed.hash.is_none() {
                return Err(corrupt(argon2::password_hash::Error::PhcStringField));
            }
            let of_stored = Params::try_from(&parsed).map_err(corrupt)?;
            let fits = hasher(of_stored.clone()).verify_password(password.0.as_bytes(), &parsed).is_ok();
            let right = fits && known;
            let cheaper = of_stored.m_cost() < params.m_cost() || of_stored.t_cost() < params.t_cost();
            let stronger = if right && cheaper { Some(compute(&params, password.0.as_bytes())?) } else { None };
            Ok(Checked { right, stronger })
        })
        .await?
    }

    async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let _place = Place::take(&self.inside, self.most_inside)?;
        let turn =
            self.turns.clone().acquire_owned().await.map_err(|e| Error::internal("no more hashes").caused_by(e))?;
        // The turn ends with the work, not with the caller: a caller who goes away must not let one more in.
        let work = move || {
            let value = work();
            drop(turn);
            value
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("a password hash broke off").caused_by(e))
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("params", &self.params).finish_non_exhaustive()
    }
}

struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(inside: &'a AtomicUsize, most: usize) -> Result<Self> {
        let place = Self(inside);
        if inside.fetch_add(1, Ordering::SeqCst) >= most {
            return Err(Error::new(Reason::Overloaded, "too many people sign in at this moment")
                .retry_after(Duration::from_secs(2)));
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn hasher(params: Params) -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn compute(params: &Params, password: &[u8]) -> Result<String> {
    let failed = |e: argon2::password_hash::Error| Error::internal("a password hash failed").caused_by(e.to_string());
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(failed)?;
    Ok(hasher(params.clone()).hash_password(password, &salt).map_err(failed)?.to_string())
}

fn corrupt(error: argon2::password_hash::Error) -> Error {
    Error::new(Reason::StoreCorrupt, "a stored password hash could not be read").caused_by(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn cheap() -> HashSettings {
        HashSettings { memory_kib: 8, passes: 1, lanes: 1, parallel: 2, queue: 64 }
    }

    fn password(text: &str) -> Password {
        Password::new(text.to_owned())
    }

    #[tokio::test]
    async fn right_wrong_and_none() {
        let hasher = Hasher::new(&cheap()).unwrap();
        let stored = hasher.hash(&password("open sesame")).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{stored}");
        assert_ne!(stored, hasher.hash(&password("open sesame")).await.unwrap(), "each has a salt of its own");
        assert!(hasher.check(&password("open sesame"), Some(stored.clone())).await.unwrap().right);
        assert!(!hasher.check(&password("open sesam"), Some(stored)).await.unwrap().right);
        assert!(!hasher.check(&password("anything"), None).await.unwrap().right);
        let broken = hasher.check(&password("x"), Some("$argon2id$broken".into())).await.unwrap_err();
        assert!(broken.is(Reason::StoreCorrupt));
    }

    #[tokio::test]
    async fn raised_costs_give_a_stronger_hash_on_the_next_right_password() {
        let stored = Hasher::new(&cheap()).unwrap().hash(&password("open sesame")).await.unwrap();
        let raised = Hasher::new(&HashSettings { memory_kib: 16, passes: 2, ..cheap() }).unwrap();
        assert!(raised.check(&password("wrong"), Some(stored.clone())).await.unwrap().stronger.is_none());
        let checked = raised.check(&password("open sesame"), Some(stored)).await.unwrap();
        let stronger = checked.stronger.unwrap();
        assert!(checked.right && stronger.contains("m=16,t=2"));
        let again = raised.check(&password("open sesame"), Some(stronger)).await.unwrap();
        assert!(again.right && again.stronger.is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn few_at_a_time_few_wait_and_the_rest_is_told_when_to_come_back() {
        let hasher = Arc::new(Hasher::new(&HashSettings { queue: 10, ..cheap() }).unwrap());
        let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let gate = Arc::new(std::sync::Barrier::new(3));
        let mut tasks = Vec::new();
        // The first two hold their turns until all others have come.
        for index in 0..50 {
            let (hasher, running, peak, gate) = (hasher.clone(), running.clone(), peak.clone(), gate.clone());
            let task = async move {
                hasher
                    .in_turn(move || {
                        peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        if index < 2 {
                            gate.wait();
                        }
                        running.fetch_sub(1, Ordering::SeqCst);
                    })
                    .await
            };
            let mut task = Box::pin(task);
            // The first poll takes a place or is refused.
            match futures_util::poll!(&mut task) {
                std::task::Poll::Ready(result) => {
                    let error = result.unwrap_err();
                    assert!(error.is(Reason::Overloaded) && error.retry_delay().is_some());
                }
                std::task::Poll::Pending => tasks.push(task),
            }
        }
        assert_eq!(tasks.len(), 12, "2 at work and 10 waiting");
        gate.wait();
        futures_util::future::try_join_all(tasks).await.unwrap();
        assert!(peak.load(Ordering::SeqCst) <= 2);
        assert_eq!(hasher.inside.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn who_stops_waiting_frees_the_place() {
        let hasher = Hasher::new(&HashSettings { parallel: 1, queue: 0, ..cheap() }).unwrap();
        let turn = hasher.turns.clone().acquire_owned().await.unwrap();
        {
            let mut waits = Box::pin(hasher.in_turn(|| ()));
            assert!(futures_util::poll!(&mut waits).is_pending());
            assert!(hasher.in_turn(|| ()).await.unwrap_err().is(Reason::Overloaded));
        }
        drop(turn);
        hasher.in_turn(|| ()).await.unwrap();
    }

    #[test]
    fn lengths_are_checked_and_nothing_is_shown() {
        assert!(password("").check_given().is_err());
        assert!(password(&"x".repeat(1025)).check_given().is_err());
        assert!(password(&"x".repeat(1024)).check_given().is_ok());
        assert!(password("1234567").check_new().unwrap_err().is(Reason::PasswordTooWeak));
        assert!(password("äöüäöüä").check_new().is_err(), "characters count, not bytes");
        assert!(password("12345678").check_new().is_ok());
        assert_eq!(format!("{:?}", password("secret")), "Password(…)");
    }
}
