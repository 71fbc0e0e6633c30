//! Invites, and how a machine becomes a member.
//!
//! An administrator makes an invite: a one-time code of a public nameplate and secret words. The machine proves that it
//! knows the code without telling it (SPAKE2, [`common::enrol`]) and hands in its key; the office proves the same and
//! signs the certificate.
//!
//! A code is good for one try. The proof is checked first, then one transaction takes the invite away and, if the proof
//! was right, writes the device's record. Transactions run one after the other, so of many tries at the same moment only
//! the first finds the invite; the others learn nothing, whether their guess was right or not. Exchanges in progress are
//! kept in memory ([`common::enrol::Exchanges`] says how many). Codes are stored as long as they live, and a minute more, so that a
//! number is not given again while an exchange about its old code may still be open.

use super::App;
use super::audit::{self, Note};
use super::caller::Caller;
use super::identity::{check_text, require_admin};
use super::records::{self, View, device_key, invite_key};
use super::sessions::source_text;
use super::{devices, expiry};
use common::enrol::{Answer, Begun, Code, EXCHANGE_LIFETIME};
use common::error::{Error, Reason, Result};
use common::store::Txn;
use proto::record::v1 as record;
use std::net::IpAddr;
use std::time::Duration;

/// Invites that live at a time.
pub const MAX_INVITES: usize = 100;
/// Longest life of an invite.
pub const MAX_LIFETIME: Duration = Duration::from_secs(86_400);
/// Nameplates are drawn from 1 to this, so they are short and, with [`MAX_INVITES`], soon free again.
const NAMEPLATES: u32 = 999;

/// A fresh invite.
#[derive(Clone, Debug)]
pub struct NewInvite {
    /// The whole code; nobody can tell it later.
    pub code: String,
    /// The public part.
    pub nameplate: String,
    /// When it dies, milliseconds since 1970.
    pub expire_ms: u64,
}

/// A living invite, without its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// The public part of the code.
    pub nameplate: String,
    /// For people.
    pub purpose: String,
    /// Who made it.
    pub creator: String,
    /// When it dies, milliseconds since 1970.
    pub expire_ms: u64,
}

/// A machine that was admitted.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// The office's proof over the answer.
    pub confirmation: [u8; 32],
    /// What the machine is told.
    pub answer: Answer,
}

/// All invites, also those that have ended and wait for the sweep.
fn all(view: &impl View) -> Result<Vec<record::Invite>> {
    let found = records::under(view, b"i/", NAMEPLATES as usize)?;
    found.into_iter().map(|(_, value)| records::decode(value)).collect()
}

fn unknown() -> Error {
    Error::new(Reason::InviteUnknown, "there is no living invite of this code")
}

fn load(view: &impl View, nameplate: &str, now_ms: u64) -> Result<record::Invite> {
    if !(1..=4).contains(&nameplate.len()) || !nameplate.bytes().all(|b| b.is_ascii_digit()) {
        return Err(unknown());
    }
    let invite: Option<record::Invite> = records::load(view, &invite_key(nameplate))?;
    invite.filter(|i| i.expire_ms > now_ms).ok_or_else(unknown)
}

/// When the record of an invite goes.
fn swept_ms(expire_ms: u64) -> u64 {
    expire_ms.saturating_add(EXCHANGE_LIFETIME.as_millis() as u64)
}

fn remove(txn: &mut Txn<'_>, invite: &record::Invite) -> Result<()> {
    let key = invite_key(&invite.nameplate);
    expiry::forget(txn, swept_ms(invite.expire_ms), &key)?;
    txn.delete(&key)
}

fn subject(nameplate: &str) -> String {
    format!("invite:{nameplate}")
}

/// Makes an invite.
///
/// # Errors
/// `ADMIN_REQUIRED`, `FIELD_INVALID`, `TOO_MANY_INVITES`, `AUDIT_FAILED`.
pub async fn invite(app: &App, caller: &Caller, lifetime: Duration, purpose: &str) -> Result<NewInvite> {
    require_admin(app, caller, "invite.create", "").await?;
    check_text(purpose, "purpose")?;
    if lifetime > MAX_LIFETIME {
        return Err(
            Error::new(Reason::FieldInvalid, "an invite lives for a day at most").with("field", "lifetime_seconds")
        );
    }
    let lifetime = if lifetime.is_zero() { app.settings.devices.invite_lifetime.get() } else { lifetime };
    let (actor, purpose, now_ms) = (caller.actor(), purpose.to_owned(), app.clock.now_ms());
    let expire_ms = now_ms.saturating_add(lifetime.as_millis() as u64);
    let made = app.store.transact(move |txn| {
        let present = all(txn)?;
        if present.iter().filter(|i| i.expire_ms > now_ms).count() >= MAX_INVITES {
            return Err(Error::new(Reason::TooManyInvites, format!("{MAX_INVITES} invites live already")));
        }
        let free = |n: &u32| !present.iter().any(|i| i.nameplate == n.to_string());
        let drawn = std::iter::repeat_with(|| rand::random_range(1..=NAMEPLATES)).take(1000).find(free);
        let number = drawn.ok_or_else(|| Error::new(Reason::TooManyInvites, "no short number is free"))?;
        let code = Code::generate(number);
        let (nameplate, code) = (code.nameplate(), code.reveal());
        let invite = record::Invite {
            nameplate: nameplate.clone(),
            code: code.clone(),
            purpose: purpose.clone(),
            creator: actor.clone(),
            expire_ms,
        };
        let key = invite_key(&nameplate);
        records::save(txn, &key, &invite)?;
        expiry::at(txn, swept_ms(expire_ms), &key)?;
        audit::record(txn, now_ms, &actor, "invite.create", &subject(&nameplate), true, &purpose)?;
        Ok(NewInvite { code, nameplate, expire_ms })
    });
    Ok(made.await?.value)
}

/// Living invites in order of their numbers.
///
/// # Errors
/// `ADMIN_REQUIRED`.
pub async fn invites(app: &App, caller: &Caller) -> Result<Vec<Invite>> {
    require_admin(app, caller, "invite.list", "").await?;
    let now_ms = app.clock.now_ms();
    let mut found = all(&app.store)?;
    found.retain(|i| i.expire_ms > now_ms);
    found.sort_by_key(|i| (i.nameplate.len(), i.nameplate.clone()));
    let shown = found.into_iter().map(|i| Invite {
        nameplate: i.nameplate,
        purpose: i.purpose,
        creator: i.creator,
        expire_ms: i.expire_ms,
    });
    Ok(shown.collect())
}

/// Takes an invite back. One that is gone already needs nothing.
///
/// # Errors
/// `ADMIN_REQUIRED`, `AUDIT_FAILED`.
pub async fn take_back(app: &App, caller: &Caller, nameplate: &str) -> Result<()> {
    let shown: String = nameplate.chars().take(16).collect();
    require_admin(app, caller, "invite.delete", &subject(&shown)).await?;
    let (actor, number, now_ms) = (caller.actor(), nameplate.to_owned(), app.clock.now_ms());
    app.store
        .transact(move |txn| match load(txn, &number, now_ms) {
            Ok(invite) => {
                remove(txn, &invite)?;
                audit::record(txn, now_ms, &actor, "invite.delete", &subject(&number), true, "")
            }
            Err(error) if error.is(Reason::InviteUnknown) => Ok(()),
            Err(error) => Err(error),
        })
        .await?;
    app.identity.exchanges.forget(nameplate);
    Ok(())
}

/// First message of an exchange.
///
/// # Errors
/// `INVITE_UNKNOWN`, `FIELD_INVALID`, `TOO_MANY_EXCHANGES` with a delay.
pub async fn begin(app: &App, nameplate: &str, spake_message: &[u8], source: Option<IpAddr>) -> Result<Begun> {
    let invite = match load(&app.store, nameplate, app.clock.now_ms()) {
        Ok(invite) => invite,
        Err(error) => {
            note_refusal(app, nameplate, source, &error).await;
            return Err(error);
        }
    };
    let damaged = |e| Error::new(Reason::StoreCorrupt, "a stored invite is damaged").caused_by(e);
    let code: Code = invite.code.parse().map_err(damaged)?;
    let begun = app.identity.exchanges.begin(&code, spake_message, app.office.tls.spki_sha256()?)?;
    // Whoever ends an invite forgets its exchanges afterwards. If it ended before this one was in the table, that shows
    // here; if later, it is forgotten with the rest.
    match load(&app.store, nameplate, app.clock.now_ms()) {
        Ok(now) if now.code == invite.code => Ok(begun),
        Ok(_) => Err(unknown()),
        Err(error) => {
            app.identity.exchanges.forget(nameplate);
            Err(error)
        }
    }
}

/// Second message: checks the proof, uses or burns the code, signs the certificate.
///
/// # Errors
/// `EXCHANGE_UNKNOWN`, `INVITE_CODE_WRONG` (the code is burned), `INVITE_UNKNOWN` if the code was used, burned or taken
/// back meanwhile, `CERTIFICATE_REQUEST_INVALID`, `FIELD_INVALID`, `DEVICE_REVOKED` for the key of a device that was cut
/// off, `AUDIT_FAILED`.
pub async fn finish(
    app: &App,
    exchange_id: &str,
    confirmation: &[u8],
    certificate_request: &[u8],
    display_name: &str,
    source: Option<IpAddr>,
) -> Result<Admitted> {
    let exchanges = &app.identity.exchanges;
    let proven = match exchanges.finish(exchange_id, confirmation, certificate_request, display_name) {
        Ok(proven) => proven,
        Err(error) => {
            if let Some(nameplate) = error.detail("nameplate").filter(|_| error.is(Reason::InviteCodeWrong)) {
                burn(app, nameplate, source).await?;
            }
            return Err(error);
        }
    };
    let now_ms = app.clock.now_ms();
    let (certificate_pem, expire_ms) = devices::issue(app, &proven.request, now_ms)?;
    let id = proven.request.device_id().to_string();
    let fresh = record::Device {
        id: id.clone(),
        display_name: proven.display_name.clone(),
        public_key: proven.request.public_key().to_vec().into(),
        create_ms: now_ms,
        certificate_expire_ms: expire_ms,
        ..record::Device::default()
    };
    let (nameplate, from) = (proven.nameplate.clone(), source_text(source));
    let admitted = app
        .store
        .transact(move |txn| {
            let invite = load(txn, &nameplate, now_ms)?;
            let key = device_key(&fresh.id);
            let mut device = fresh.clone();
            if let Some(before) = records::load::<record::Device>(txn, &key)? {
                if before.revoked {
                    return Err(Error::new(Reason::DeviceRevoked, "the office has cut this key off").fix_is(
                        "remove the state of this machine's agent, so that it makes a new key, and join again",
                    ));
                }
                (device.create_ms, device.last_seen_ms, device.address) =
                    (before.create_ms, before.last_seen_ms, before.address);
            }
            remove(txn, &invite)?;
            records::save(txn, &key, &device)?;
            let detail = format!("{:?} with {} of {} {from}", device.display_name, subject(&nameplate), invite.creator);
            let subject = format!("device:{}", device.id);
            audit::record(txn, now_ms, &subject, "device.join", &subject, true, &detail)
        })
        .await;
    if let Err(error) = admitted {
        note_refusal(app, &proven.nameplate, source, &error).await;
        return Err(error);
    }
    exchanges.forget(&proven.nameplate);
    let answer = Answer {
        office: app.office.name.clone(),
        ca_pem: app.office.ca.ca_pem().to_owned(),
        certificate_pem,
        device_id: id,
    };
    Ok(Admitted { confirmation: proven.confirm(&answer), answer })
}

/// Takes an invite away because its code was guessed wrong. If it was gone already, the guess must not be told from a
/// right one that came too late: both get `INVITE_UNKNOWN`.
async fn burn(app: &App, nameplate: &str, source: Option<IpAddr>) -> Result<()> {
    let (number, from, now_ms) = (nameplate.to_owned(), source_text(source), app.clock.now_ms());
    let burned = app
        .store
        .transact(move |txn| {
            let invite = load(txn, &number, now_ms)?;
            remove(txn, &invite)?;
            let detail = format!("guessed wrong {from}; made by {}", invite.creator);
            audit::record(txn, now_ms, "anonymous", "invite.burn", &subject(&number), false, &detail)
        })
        .await;
    if let Err(error) = burned {
        note_refusal(app, nameplate, source, &error).await;
        return Err(error);
    }
    Ok(())
}

async fn note_refusal(app: &App, nameplate: &str, source: Option<IpAddr>, error: &Error) {
    let from = source_text(source);
    // Only what can be a number is noted: someone may have sent the whole code.
    let known = !nameplate.is_empty() && nameplate.len() <= 4 && nameplate.bytes().all(|b| b.is_ascii_digit());
    let note = Note {
        actor: "anonymous".to_owned(),
        action: "device.join",
        subject: subject(if known { nameplate } else { "(unknown)" }),
        success: false,
        detail: format!("{} {from}", error.reason()),
    };
    audit::refused(app, &from, note).await;
}
