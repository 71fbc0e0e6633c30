//! The PIN of a print job: stated to release it.

use crate::error::{Error, Reason};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// Wrong PINs after which a job is locked.
pub const PIN_TRIES: u8 = 5;
/// How long it is locked.
pub const PIN_LOCK_MS: u64 = 5 * 60 * 1000;
/// After this time, a job that waits for its PIN is given up.
pub const PIN_LIFE_MS: u64 = 24 * 3600 * 1000;

/// A PIN that must be stated to release a job, and the guesses so far.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pin {
    /// Random.
    pub salt: [u8; 16],
    /// BLAKE3 of salt and PIN.
    pub hash: [u8; 32],
    /// Wrong ones since the last lock.
    pub wrong: u8,
    /// No guess is looked at before this time.
    pub locked_until_ms: u64,
}

/// What came of stating a PIN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guess {
    /// It is this one.
    Right,
    /// It is not; so many tries are left.
    Wrong(u8),
    /// Nothing is looked at before this time, in milliseconds since 1970.
    Locked(u64),
}

impl Pin {
    /// Keeps a PIN.
    pub fn new(pin: &str, salt: [u8; 16]) -> Self {
        Self { salt, hash: Self::digest(pin, &salt), wrong: 0, locked_until_ms: 0 }
    }

    /// True for 4 to 32 characters.
    pub fn is_good(pin: &str) -> bool {
        (4..=32).contains(&pin.chars().count())
    }

    /// True if it is this one.
    pub fn is(&self, pin: &str) -> bool {
        self.hash.ct_eq(&Self::digest(pin, &self.salt)).into()
    }

    /// Somebody states it, or nothing. A wrong one is counted here: what is kept of the job has to be written then.
    pub fn guess(&mut self, pin: Option<&str>, now_ms: u64) -> Guess {
        if now_ms < self.locked_until_ms {
            return Guess::Locked(self.locked_until_ms);
        }
        match pin {
            Some(pin) if self.is(pin) => Guess::Right,
            None => Guess::Wrong(PIN_TRIES.saturating_sub(self.wrong)),
            Some(_) => {
                self.wrong = self.wrong.saturating_add(1);
                match PIN_TRIES.saturating_sub(self.wrong) {
                    0 => {
                        (self.wrong, self.locked_until_ms) = (0, now_ms + PIN_LOCK_MS);
                        Guess::Locked(self.locked_until_ms)
                    }
                    left => Guess::Wrong(left),
                }
            }
        }
    }

    fn digest(pin: &str, salt: &[u8; 16]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("atrium 2026 print job pin");
        hasher.update(salt).update(pin.as_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// What whoever stated a wrong PIN, or none, is told.
pub fn pin_wrong(left: u8) -> Error {
    Error::new(Reason::PinWrong, format!("the PIN is wrong; {left} tries are left"))
}

/// What whoever states a PIN is told while the job is locked.
pub fn pin_locked(until_ms: u64) -> Error {
    Error::new(Reason::PinWrong, "too many PINs were wrong; the job is locked for some minutes")
        .with("locked_until_ms", until_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_known_and_not_stored() {
        let pin = Pin::new("0815", [7; 16]);
        assert!(pin.is("0815") && !pin.is("0816") && !pin.is(""));
        assert!(!serde_json::to_string(&pin).unwrap().contains("0815"));
        assert!(Pin::is_good("1234") && !Pin::is_good("123") && !Pin::is_good(&"1".repeat(33)));
    }

    #[test]
    fn five_wrong_ones_lock_it_for_a_while() {
        let mut pin = Pin::new("0815", [7; 16]);
        assert_eq!(pin.guess(None, 9), Guess::Wrong(5), "saying nothing is no guess");
        for left in (1..5).rev() {
            assert_eq!(pin.guess(Some("1111"), 10), Guess::Wrong(left));
        }
        assert_eq!(pin.guess(Some("1111"), 10), Guess::Locked(10 + PIN_LOCK_MS));
        assert_eq!(pin.guess(Some("0815"), 11), Guess::Locked(10 + PIN_LOCK_MS), "not even the right one");
        assert_eq!(pin.guess(Some("1111"), 10 + PIN_LOCK_MS), Guess::Wrong(4));
        assert_eq!(pin.guess(Some("0815"), 10 + PIN_LOCK_MS), Guess::Right);
    }
}
