//! The server's table of exchanges in progress.
//!
//! Bounds: 64 exchanges in all, each for 60 seconds, at most 8 of one nameplate (the oldest gives way, so that someone
//! who only begins cannot keep the invited machine out). An exchange is taken out of the table by the first attempt to
//! finish it, whatever comes of it.

use super::proof::{Answer, Office, OfficeProof, check_request};
use super::{CONFIRMATION_BYTES, Code};
use crate::clock::SharedClock;
use crate::error::{Error, Reason, Result};
use crate::identity::{DeviceRequest, random_bytes};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// Exchanges at a time.
pub const MAX_EXCHANGES: usize = 64;
/// Time from the first to the second message.
pub const EXCHANGE_LIFETIME: Duration = Duration::from_secs(60);
/// Exchanges at a time about one code.
const MAX_FOR_ONE: usize = 8;

/// Exchanges in progress, in the order in which they began.
pub struct Exchanges {
    clock: SharedClock,
    pending: Mutex<VecDeque<Pending>>,
}

struct Pending {
    id: String,
    expires_ms: u64,
    office: Office,
}

/// What `BeginEnrolment` answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Names the exchange.
    pub exchange_id: String,
    /// The office's SPAKE2 message.
    pub spake_message: Vec<u8>,
}

/// A joiner that has proved that it knows the code and holds its key.
#[derive(Debug)]
pub struct Proven {
    /// The code's public part: this invite is used up now.
    pub nameplate: String,
    /// The device that is to get a certificate.
    pub request: DeviceRequest,
    /// The name it gave itself; checked.
    pub display_name: String,
    proof: OfficeProof,
}

impl Proven {
    /// The office's proof over its answer, for `FinishEnrolmentResponse.confirmation`.
    pub fn confirm(&self, answer: &Answer) -> [u8; CONFIRMATION_BYTES] {
        self.proof.confirm(answer)
    }

    /// The office's proof over an answer in parts; see [`super::JoinerProof::check_parts`].
    pub fn confirm_parts(&self, parts: &[&[u8]]) -> [u8; CONFIRMATION_BYTES] {
        self.proof.confirm_parts(parts)
    }
}

impl Exchanges {
    /// An empty table.
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, pending: Mutex::default() }
    }

    /// Begins an exchange about a living invite's code. `server_spki_sha256` is of the key that the joiner's connection
    /// was shown ([`crate::tls::ServerTls::spki_sha256`]).
    ///
    /// # Errors
    /// FIELD_INVALID for a message that is not a joiner's; TOO_MANY_EXCHANGES, saying when there will be room.
    pub fn begin(&self, code: &Code, joiner_message: &[u8], server_spki_sha256: [u8; 32]) -> Result<Begun> {
        let (office, spake_message) = Office::start(code, joiner_message, server_spki_sha256)?;
        let exchange_id: String = random_bytes::<16>().iter().map(|b| format!("{b:02x}")).collect();
        let now_ms = self.clock.now_ms();
        let mut pending = self.pending.lock();
        pending.retain(|p| p.is_alive(now_ms));
        let same = pending.iter().filter(|p| p.office.nameplate() == office.nameplate()).count();
        if same >= MAX_FOR_ONE
            && let Some(oldest) = pending.iter().position(|p| p.office.nameplate() == office.nameplate())
        {
            pending.remove(oldest);
        }
        if pending.len() >= MAX_EXCHANGES {
            let next_ms = pending.front().map_or(0, |p| p.expires_ms.saturating_sub(now_ms));
            return Err(Error::new(Reason::TooManyExchanges, "too many machines are joining")
                .retry_after(Duration::from_millis(next_ms + 1)));
        }
        let expires_ms = now_ms.saturating_add(EXCHANGE_LIFETIME.as_millis() as u64);
        pending.push_back(Pending { id: exchange_id.clone(), expires_ms, office });
        Ok(Begun { exchange_id, spake_message })
    }

    /// Checks the joiner's proof and request. The exchange is over in any case.
    ///
    /// # Errors
    /// EXCHANGE_UNKNOWN if there is no such exchange or its time is over. INVITE_CODE_WRONG if the proof is wrong, with
    /// the detail `nameplate`: the caller must burn that invite before it answers; all other exchanges about it are
    /// gone already. FIELD_INVALID or CERTIFICATE_REQUEST_INVALID if a joiner that knows the code asks for nonsense:
    /// the invite is not used up.
    pub fn finish(
        &self,
        exchange_id: &str,
        confirmation: &[u8],
        certificate_request: &[u8],
        display_name: &str,
    ) -> Result<Proven> {
        let office = self.take(exchange_id)?;
        let nameplate = office.nameplate().to_owned();
        let proof = office.check(confirmation, certificate_request, display_name).map_err(|error| {
            self.forget(&nameplate);
            error.with("nameplate", &nameplate)
        })?;
        let request = check_request(certificate_request, display_name)?;
        Ok(Proven { nameplate, request, display_name: display_name.to_owned(), proof })
    }

    /// Drops all exchanges about an invite, because it was used, burned or taken back.
    pub fn forget(&self, nameplate: &str) {
        self.pending.lock().retain(|p| p.office.nameplate() != nameplate);
    }

    /// Exchanges in progress.
    pub fn len(&self) -> usize {
        let now_ms = self.clock.now_ms();
        self.pending.lock().iter().filter(|p| p.is_alive(now_ms)).count()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn take(&self, exchange_id: &str) -> Result<Office> {
        let unknown = || Error::new(Reason::ExchangeUnknown, "there is no such exchange any more");
        let now_ms = self.clock.now_ms();
        let mut pending = self.pending.lock();
        pending.retain(|p| p.is_alive(now_ms));
        let at = pending.iter().position(|p| p.id == exchange_id).ok_or_else(unknown)?;
        pending.remove(at).map(|p| p.office).ok_or_else(unknown)
    }
}

impl Pending {
    /// Also false if the clock was turned back by more than a life: nothing lives longer than it should.
    fn is_alive(&self, now_ms: u64) -> bool {
        now_ms < self.expires_ms && self.expires_ms - now_ms <= EXCHANGE_LIFETIME.as_millis() as u64
    }
}

impl fmt::Debug for Exchanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchanges({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Joiner;
    use super::*;
    use crate::clock::ManualClock;
    use crate::identity::DeviceKey;
    use std::sync::Arc;

    const SPKI: [u8; 32] = [7; 32];

    fn table() -> (Exchanges, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(1_000_000));
        (Exchanges::new(clock.clone()), clock)
    }

    fn code(nameplate: u32) -> Code {
        format!("{nameplate}-amber-lion-canal").parse().unwrap()
    }

    /// A begun exchange with the joiner's finishing message.
    fn begin(table: &Exchanges, office: &Code, joiner: &Code) -> Result<(String, Vec<u8>, Vec<u8>)> {
        let (side, x) = Joiner::start(joiner);
        let begun = table.begin(office, &x, SPKI)?;
        let csr = DeviceKey::generate().certificate_request().unwrap();
        let (_, confirmation) = side.confirm(&begun.spake_message, &SPKI, &csr, "anna-pc").unwrap();
        Ok((begun.exchange_id, confirmation.to_vec(), csr))
    }

    #[test]
    fn finishing_works_once() {
        let (table, _) = table();
        let (id, confirmation, csr) = begin(&table, &code(7), &code(7)).unwrap();
        let proven = table.finish(&id, &confirmation, &csr, "anna-pc").unwrap();
        assert_eq!((proven.nameplate.as_str(), proven.display_name.as_str()), ("7", "anna-pc"));
        let again = table.finish(&id, &confirmation, &csr, "anna-pc").unwrap_err();
        assert!(again.is(Reason::ExchangeUnknown));
    }

    #[test]
    fn a_wrong_guess_ends_all_exchanges_about_that_code_and_no_other() {
        let (table, _) = table();
        let good = begin(&table, &code(7), &code(7)).unwrap();
        let other = begin(&table, &code(8), &code(8)).unwrap();
        let bad = begin(&table, &code(7), &"7-amber-lion-lion".parse().unwrap()).unwrap();
        let error = table.finish(&bad.0, &bad.1, &bad.2, "anna-pc").unwrap_err();
        assert!(error.is(Reason::InviteCodeWrong));
        assert_eq!(error.detail("nameplate"), Some("7"));
        assert!(table.finish(&good.0, &good.1, &good.2, "anna-pc").unwrap_err().is(Reason::ExchangeUnknown));
        table.finish(&other.0, &other.1, &other.2, "anna-pc").unwrap();
    }

    #[test]
    fn a_proof_for_one_exchange_is_worth_nothing_in_another() {
        let (table, _) = table();
        let first = begin(&table, &code(7), &code(7)).unwrap();
        let second = begin(&table, &code(7), &code(7)).unwrap();
        let error = table.finish(&second.0, &first.1, &first.2, "anna-pc").unwrap_err();
        assert!(error.is(Reason::InviteCodeWrong));
    }

    #[test]
    fn time_runs_out() {
        let (table, clock) = table();
        let (id, confirmation, csr) = begin(&table, &code(7), &code(7)).unwrap();
        clock.advance(EXCHANGE_LIFETIME);
        assert!(table.is_empty());
        assert!(table.finish(&id, &confirmation, &csr, "anna-pc").unwrap_err().is(Reason::ExchangeUnknown));
    }

    #[test]
    fn the_table_is_bounded_and_says_when_there_is_room() {
        let (table, clock) = table();
        for nameplate in 0..MAX_EXCHANGES as u32 {
            begin(&table, &code(nameplate), &code(nameplate)).unwrap();
        }
        let full = begin(&table, &code(1000), &code(1000)).unwrap_err();
        assert!(full.is(Reason::TooManyExchanges));
        clock.advance(full.retry_delay().unwrap());
        begin(&table, &code(1000), &code(1000)).unwrap();
    }

    #[test]
    fn beginning_again_and_again_does_not_keep_others_out() {
        let (table, _) = table();
        for _ in 0..3 * MAX_EXCHANGES {
            begin(&table, &code(7), &code(7)).unwrap();
        }
        assert_eq!(table.len(), MAX_FOR_ONE);
        let (id, confirmation, csr) = begin(&table, &code(8), &code(8)).unwrap();
        table.finish(&id, &confirmation, &csr, "anna-pc").unwrap();
    }

    #[test]
    fn a_joiner_that_knows_the_code_but_asks_for_nonsense_gets_nothing() {
        let (table, _) = table();
        let (side, x) = Joiner::start(&code(7));
        let begun = table.begin(&code(7), &x, SPKI).unwrap();
        let (_, confirmation) = side.confirm(&begun.spake_message, &SPKI, b"no request", "anna-pc").unwrap();
        let error = table.finish(&begun.exchange_id, &confirmation, b"no request", "anna-pc").unwrap_err();
        assert!(error.is(Reason::CertificateRequestInvalid));
    }
}
