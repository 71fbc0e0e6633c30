//! Joining an office with a one-time code: SPAKE2, as `proto/atrium/v1/enrolment.proto` has it.
//!
//! ```text
//! joiner                                                        office
//!   nameplate, X  ------------------------------------------->    knows the code
//!   <-------------------------------------------  exchange id, Y
//!   HMAC(joiner; transcript), CSR, display name ------------->    checks; wrong: the code is burned
//!   <---------  HMAC(office; transcript + all of the answer), CA, certificate
//!   checks before it believes anything
//! ```
//!
//! The transcript is: protocol label, nameplate, X, Y, SHA-256 of the TLS key of the server *as each side saw it*, CSR,
//! display name; each part with its length before it. So:
//! * whoever sits in between with a TLS key of its own makes both proofs fail;
//! * the joiner proves itself first, and its proof is good for one transcript: a wrong guess tells nothing but that it
//!   was wrong, and burns the code ([`Exchanges`] drops all exchanges of that nameplate, the caller burns the invite);
//! * a recorded exchange is worth nothing, since X and Y are fresh.
//!
//! A code has 24 bits besides its public nameplate. That is enough because nobody can try more than one guess per code
//! and nothing that goes over the wire lets one try guesses at home.
//!
//! [`Joiner`] and [`Office`] are pure functions of messages; [`Exchanges`] is the server's bounded table of them;
//! [`join_office`] does a machine's side over the network.

mod code;
mod exchanges;
mod join;
mod proof;
mod words;

pub use code::Code;
pub use exchanges::{Begun, EXCHANGE_LIFETIME, Exchanges, MAX_EXCHANGES, Proven};
pub use join::{JoinedOffice, join_office};
pub use proof::{Answer, Joiner, JoinerProof, Office, OfficeProof};

use crate::error::{Error, Reason, Result};

/// Length of a SPAKE2 message: one byte for the side, and a point.
pub const SPAKE_MESSAGE_BYTES: usize = 33;
/// Length of a confirmation (HMAC-SHA-256).
pub const CONFIRMATION_BYTES: usize = 32;
/// Longest name that a machine may give itself, in characters.
pub const MAX_DISPLAY_NAME: usize = 64;

/// Checks the name that a machine gives itself.
///
/// # Errors
/// FIELD_INVALID if it is empty, longer than 64 characters, or has control characters or blanks around it.
pub fn check_display_name(name: &str) -> Result<()> {
    let length = name.chars().take(MAX_DISPLAY_NAME + 1).count();
    if length == 0 || length > MAX_DISPLAY_NAME || name.trim() != name || name.chars().any(char::is_control) {
        let what = "a machine's name has 1 to 64 characters, no control characters, no blanks around it";
        return Err(Error::new(Reason::FieldInvalid, what));
    }
    Ok(())
}
