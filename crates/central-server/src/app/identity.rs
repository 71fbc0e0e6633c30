//! What identity and security keep in memory, and questions that all of them ask.

use super::App;
use super::audit::{self, Note, Refusals};
use super::caller::{Caller, UserIdentity};
use super::devices::LastSeen;
use super::remembered::Remembered;
use super::sessions::{LoginGuard, LoginSettings};
use super::{devices, sessions};
use common::clock::SharedClock;
use common::enrol::Exchanges;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use tokio::sync::watch;

/// State in memory. All of it may be lost at a restart: limits begin anew, and so do joins in progress.
#[derive(Debug)]
pub struct Identity {
    pub(crate) login: LoginGuard,
    pub(crate) refusals: Refusals,
    pub(crate) seen: LastSeen,
    pub(crate) exchanges: Exchanges,
    /// Whom a session stands for, by the hash of its token.
    pub(crate) sessions: Remembered<[u8; 32], UserIdentity>,
    /// Devices that are members.
    pub(crate) members: Remembered<DeviceId, ()>,
    changed: watch::Sender<u64>,
}

impl Identity {
    /// Nobody has signed in yet. Computes one password hash.
    ///
    /// # Errors
    /// `SETTINGS_INVALID`.
    pub fn new(login: &LoginSettings, clock: SharedClock) -> Result<Self> {
        Ok(Self {
            login: LoginGuard::new(login)?,
            refusals: Refusals::default(),
            seen: LastSeen::default(),
            exchanges: Exchanges::new(clock),
            sessions: Remembered::new(sessions::KINDS),
            members: Remembered::new(devices::KINDS),
            changed: watch::Sender::new(0),
        })
    }

    /// Changes whenever somebody may have lost something: a session ended, a user or group was changed, a device was cut
    /// off. Whoever holds open streams asks [`super::sessions::refresh`] then.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Wakes those who subscribed.
    pub(crate) fn announce(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// Checks that an administrator calls, and notes a refusal in the audit log.
///
/// # Errors
/// `CREDENTIALS_MISSING`, `ADMIN_REQUIRED`.
pub async fn require_admin(app: &App, caller: &Caller, action: &'static str, subject: &str) -> Result<()> {
    let Err(error) = caller.require_admin() else { return Ok(()) };
    if error.is(Reason::AdminRequired) {
        refuse(app, caller, action, subject, &error).await;
    }
    Err(error)
}

/// Notes in the audit log that a signed-in caller was refused something.
pub async fn refuse(app: &App, caller: &Caller, action: &'static str, subject: &str, error: &Error) {
    let actor = caller.actor();
    let detail = error.reason().to_owned();
    let note = Note { actor: actor.clone(), action, subject: subject.to_owned(), success: false, detail };
    audit::refused(app, &actor, note).await;
}

/// Checks a name of a user or group: lower-case letters, digits, '.', '_' and '-', 1 to 64, begins with a letter.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn check_name(name: &str, field: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(Error::new(Reason::FieldInvalid, "this name cannot be used")
        .why_is("a name has 1 to 64 lower-case letters, digits, '.', '_' and '-', and begins with a letter")
        .with("field", field))
}

/// True for a name as [`check_name`] wants it.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.as_bytes()[0].is_ascii_lowercase()
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

/// Checks a text for people: up to 128 characters, none of control.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn check_text(text: &str, field: &str) -> Result<()> {
    if text.chars().take(129).count() <= 128 && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::new(Reason::FieldInvalid, "this text cannot be used")
        .why_is("it has more than 128 characters, or control characters")
        .with("field", field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "anna", "a.b-c_9", &"x".repeat(64)] {
            assert!(check_name(good, "name").is_ok(), "{good}");
        }
        for bad in ["", "Anna", "9a", ".a", "a b", "a/b", "a\0", "ä", "a\n", &"x".repeat(65)] {
            let error = check_name(bad, "user.name").unwrap_err();
            assert_eq!(error.detail("field"), Some("user.name"), "{bad:?}");
        }
    }

    #[test]
    fn texts_are_checked() {
        assert!(check_text("", "f").is_ok() && check_text(&"ä".repeat(128), "f").is_ok());
        assert!(check_text(&"ä".repeat(129), "f").is_err() && check_text("a\u{1b}[31m", "f").is_err());
    }
}
