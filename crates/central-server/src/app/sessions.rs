//! Signing in, and what a signed-in user's token is worth.
//!
//! A token is "atr_" and 64 hex digits from 256 random bits. The store knows only its BLAKE3 hash, which is also the key
//! of the session record, so a stolen database gives no token and a lookup compares nothing secret. A session ends at
//! its time, by logout, by revocation, with its user, with the device it was opened from, and when the password
//! changes. A user has at most [`MAX_PER_USER`]; signing in once more ends the oldest.
//!
//! A login costs the same whether the user exists or not: name and password are always hashed against something, and
//! a failed attempt is noted either way. Attempts are limited per account and per address ([`LoginGuard`]).

pub mod guard;
pub mod limits;
pub mod password;

pub use guard::{LoginGuard, LoginSettings};
pub use password::Password;

use super::App;
use super::accounts::{self, User};
use super::audit::{self, Note};
use super::caller::{Caller, UserIdentity};
use super::records::{self, View, session_id_key, session_key, session_of_key, sessions_of, user_key};
use super::{devices, expiry, groups, identity};
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Role};
use common::store::Txn;
use proto::record::v1 as record;
use std::net::IpAddr;
use std::time::Duration;
use uuid::Uuid;

/// Living sessions of one user.
pub const MAX_PER_USER: usize = 100;
/// What tokens begin with, so that scanners for leaked secrets find them.
pub const TOKEN_PREFIX: &str = "atr_";
const TOKEN_LEN: usize = TOKEN_PREFIX.len() + 64;

/// An attempt to sign in.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// User name.
    pub user: String,
    /// Password.
    pub password: Password,
    /// What the session is for.
    pub purpose: String,
    /// Wished life; zero means the default.
    pub lifetime: Duration,
    /// The caller's address; none on the local socket.
    pub source: Option<IpAddr>,
    /// The device that the connection proved.
    pub device: Option<DeviceId>,
}

/// A fresh session.
#[derive(Clone, Debug)]
pub struct Login {
    /// The token; nobody can tell it later.
    pub token: String,
    /// When it ends, milliseconds since 1970.
    pub expire_ms: u64,
    /// Whose it is.
    pub user: User,
}

/// A session as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Id; says nothing about the token.
    pub id: Uuid,
    /// User name.
    pub user: String,
    /// From the login.
    pub purpose: String,
    /// When it began, milliseconds since 1970.
    pub create_ms: u64,
    /// When it ends, milliseconds since 1970.
    pub expire_ms: u64,
    /// Device it was opened from, or empty.
    pub device: String,
}

/// Signs in.
///
/// # Errors
/// `LOGIN_FAILED` (whatever the cause), `LOGIN_RATE_LIMITED` with a delay, `OVERLOADED` with a delay, `FIELD_INVALID`,
/// `AUDIT_FAILED`.
pub async fn login(app: &App, attempt: Attempt) -> Result<Login> {
    attempt.password.check_given()?;
    identity::check_text(&attempt.purpose, "purpose")?;
    let guard = &app.identity.login;
    let now_ms = app.clock.now_ms();
    let ticket = match guard.admit(&attempt.user, attempt.source, now_ms) {
        Ok(ticket) => ticket,
        Err(error) => {
            note_failure(app, &attempt, &error).await;
            return Err(error);
        }
    };
    let known = load_user(&app.store, &attempt.user)?.filter(|u| !u.disabled && !u.password_phc.is_empty());
    let stored = known.map(|u| u.password_phc);
    let checked = match guard.hasher.check(&attempt.password, stored.clone()).await {
        Ok(checked) => checked,
        // Not the caller's fault, so it does not count as an attempt.
        Err(error) => {
            guard.forgive(&ticket);
            return Err(error);
        }
    };
    let (true, Some(stored)) = (checked.right, stored) else {
        let error = login_failed();
        note_failure(app, &attempt, &error).await;
        return Err(error);
    };
    let token = new_token();
    let hash = hash_of(&token);
    let lifetime_ms = guard.lifetime_ms(attempt.lifetime);
    let (name, stronger) = (attempt.user.clone(), checked.stronger);
    let session = record::Session {
        id: Uuid::now_v7().into_bytes().to_vec().into(),
        user: name.clone(),
        purpose: attempt.purpose.clone(),
        create_ms: 0,
        expire_ms: 0,
        device: attempt.device.map(|d| d.to_string()).unwrap_or_default(),
    };
    let from = source_text(attempt.source);
    let clock = app.clock.clone();
    let opened = app
        .store
        .transact(move |txn| {
            // The user may have been disabled or got another password while this one was hashed.
            let Some(mut user) = load_user(txn, &name)?.filter(|u| !u.disabled && u.password_phc == stored) else {
                return Ok(None);
            };
            let now_ms = clock.now_ms();
            if let Some(stronger) = &stronger {
                user.password_phc.clone_from(stronger);
                records::save(txn, &user_key(&name), &user)?;
            }
            let expire_ms = now_ms.saturating_add(lifetime_ms);
            let session = record::Session { create_ms: now_ms, expire_ms, ..session.clone() };
            insert(txn, records::uuid(&user.uid)?, &hash, &session)?;
            let subject = format!("user:{name}");
            let detail = format!("session {} {from}", records::uuid(&session.id)?);
            audit::record(txn, now_ms, &subject, "login", &subject, true, detail.trim_end())?;
            Ok(Some((expire_ms, accounts::view(txn, user)?)))
        })
        .await?
        .value;
    match opened {
        Some((expire_ms, user)) => {
            guard.succeeded(&ticket);
            Ok(Login { token, expire_ms, user })
        }
        None => {
            let error = login_failed();
            note_failure(app, &attempt, &error).await;
            Err(error)
        }
    }
}

fn login_failed() -> Error {
    Error::new(Reason::LoginFailed, "signing in failed")
}

/// Where a call comes from, for the audit log.
pub(crate) fn source_text(source: Option<IpAddr>) -> String {
    source.map_or_else(|| "on this machine".to_owned(), |ip| format!("from {}", ip.to_canonical()))
}

async fn note_failure(app: &App, attempt: &Attempt, error: &Error) {
    // People type their password where the name belongs: a name is noted only if it is one.
    let exists = identity::is_name(&attempt.user) && matches!(load_user(&app.store, &attempt.user), Ok(Some(_)));
    let subject = if exists { format!("user:{}", attempt.user) } else { "user:(unknown)".to_owned() };
    let from = source_text(attempt.source);
    let note = Note {
        actor: attempt.device.map_or_else(|| "anonymous".to_owned(), |d| format!("device:{d}")),
        action: "login",
        subject,
        success: false,
        detail: format!("{} {from}", error.reason()),
    };
    audit::refused(app, &from, note).await;
}

fn new_token() -> String {
    let random: [u8; 32] = rand::random();
    let mut token = TOKEN_PREFIX.to_owned();
    random.iter().for_each(|b| token.push_str(&format!("{b:02x}")));
    token
}

fn hash_of(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}

/// A user who was not deleted. Names that cannot be are no reason to read.
fn load_user(view: &impl View, name: &str) -> Result<Option<record::User>> {
    if !identity::is_name(name) {
        return Ok(None);
    }
    Ok(records::load::<record::User>(view, &user_key(name))?.filter(|u| !u.deleted))
}

fn invalid() -> Error {
    Error::new(Reason::SessionInvalid, "the session is not valid")
}

/// First bytes of the keys of what [`living`] and [`identity_of`] read: sessions, users, memberships, devices.
pub(crate) const KINDS: &[u8] = b"xuhm";

/// Whom a token stands for. Three point reads and the user's groups, unless that is known already.
///
/// # Errors
/// `SESSION_INVALID`.
pub fn authenticate(app: &App, token: &str) -> Result<UserIdentity> {
    if token.len() != TOKEN_LEN || !token.starts_with(TOKEN_PREFIX) {
        return Err(invalid());
    }
    identity_of(app, &hash_of(token))
}

fn identity_of(app: &App, hash: &[u8]) -> Result<UserIdentity> {
    let hash: [u8; 32] = hash.try_into().map_err(|_| invalid())?;
    let known = app.identity.sessions.get(&app.store, &hash, || read_identity(app, &hash).map(Some))?;
    // Time passes without a record changing.
    known.filter(|user| user.session_expire_ms > app.clock.now_ms()).ok_or_else(invalid)
}

fn read_identity(app: &App, hash: &[u8]) -> Result<UserIdentity> {
    let (session, user) = living(app, hash)?;
    let uid = records::uuid(&user.uid)?;
    Ok(UserIdentity {
        uid,
        name: user.name.into(),
        role: accounts::role(user.role)?,
        groups: groups::ids_of(&app.store, uid)?.into(),
        session: records::uuid(&session.id)?,
        session_expire_ms: session.expire_ms,
    })
}

/// True if the session with this id has not ended.
///
/// # Errors
/// Those of the store.
pub fn is_living(app: &App, session: Uuid) -> Result<bool> {
    let Some(hash) = app.store.get(&session_id_key(session))? else { return Ok(false) };
    match living(app, &hash) {
        Ok(_) => Ok(true),
        Err(error) if error.is(Reason::SessionInvalid) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The caller of an open stream as it is now: with the present role and groups.
///
/// # Errors
/// `SESSION_INVALID`, `DEVICE_REVOKED`.
pub fn refresh(app: &App, caller: &Caller) -> Result<Caller> {
    if let Some(device) = &caller.device
        && !devices::is_allowed(app, device)?
    {
        return Err(Error::new(Reason::DeviceRevoked, "this device was cut off"));
    }
    let user = match &caller.user {
        Some(user) => {
            let hash = app.store.get(&session_id_key(user.session))?.ok_or_else(invalid)?;
            Some(identity_of(app, &hash)?)
        }
        None => None,
    };
    Ok(Caller { user, ..caller.clone() })
}

fn living(app: &App, hash: &[u8]) -> Result<(record::Session, record::User)> {
    let session: record::Session = records::load(&app.store, &session_key(hash))?.ok_or_else(invalid)?;
    if session.expire_ms <= app.clock.now_ms() {
        return Err(invalid());
    }
    let user = load_user(&app.store, &session.user)?.filter(|u| !u.disabled).ok_or_else(invalid)?;
    if !session.device.is_empty() && !devices::is_member(&app.store, &session.device)? {
        return Err(invalid());
    }
    Ok((session, user))
}

fn insert(txn: &mut Txn<'_>, uid: Uuid, hash: &[u8; 32], session: &record::Session) -> Result<()> {
    let mut present = all_of(txn, uid)?;
    present.sort_by_key(|(_, s)| (s.create_ms, s.id.clone()));
    let surplus = (present.len() + 1).saturating_sub(MAX_PER_USER);
    for (oldest, session) in present.drain(..surplus) {
        remove(txn, &oldest, &session)?;
    }
    let id = records::uuid(&session.id)?;
    let key = session_key(hash);
    records::save(txn, &key, session)?;
    txn.put(session_of_key(uid, id), hash.to_vec())?;
    txn.put(session_id_key(id), hash.to_vec())?;
    expiry::at(txn, session.expire_ms, &key)
}

/// All sessions of a user that have a record, with their hashes.
fn all_of(view: &impl View, uid: Uuid) -> Result<Vec<(Vec<u8>, record::Session)>> {
    let mut found = Vec::new();
    for (_, hash) in records::under(view, &sessions_of(uid), MAX_PER_USER + 1)? {
        if let Some(session) = records::load::<record::Session>(view, &session_key(&hash))? {
            found.push((hash.to_vec(), session));
        }
    }
    Ok(found)
}

/// Removes a session and its index entries.
///
/// # Errors
/// Those of the store.
pub(crate) fn remove(txn: &mut Txn<'_>, hash: &[u8], session: &record::Session) -> Result<()> {
    let key = session_key(hash);
    let id = records::uuid(&session.id)?;
    if let Some(user) = records::load::<record::User>(txn, &user_key(&session.user))? {
        txn.delete(session_of_key(records::uuid(&user.uid)?, id))?;
    }
    txn.delete(session_id_key(id))?;
    expiry::forget(txn, session.expire_ms, &key)?;
    txn.delete(&key)
}

/// Ends all sessions of a user but one. Gives back how many ended.
///
/// # Errors
/// Those of the store.
pub(crate) fn end_all(txn: &mut Txn<'_>, uid: Uuid, except: Option<Uuid>) -> Result<usize> {
    let mut ended = 0;
    for (hash, session) in all_of(txn, uid)? {
        if Some(records::uuid(&session.id)?) != except {
            remove(txn, &hash, &session)?;
            ended += 1;
        }
    }
    Ok(ended)
}

/// Ends the session of the call. Without one, nothing needs to end.
///
/// # Errors
/// `AUDIT_FAILED`.
pub async fn logout(app: &App, caller: &Caller) -> Result<()> {
    let Some(user) = &caller.user else { return Ok(()) };
    let (id, actor, now_ms) = (user.session, caller.actor(), app.clock.now_ms());
    app.store
        .transact(move |txn| {
            let Some((hash, session)) = by_id(txn, id)? else { return Ok(()) };
            remove(txn, &hash, &session)?;
            audit::record(txn, now_ms, &actor, "logout", &actor, true, &format!("session {id}"))
        })
        .await?;
    app.identity.announce();
    Ok(())
}

fn by_id(view: &impl View, id: Uuid) -> Result<Option<(Vec<u8>, record::Session)>> {
    let Some(hash) = view.get(&session_id_key(id))? else { return Ok(None) };
    Ok(records::load::<record::Session>(view, &session_key(&hash))?.map(|s| (hash.to_vec(), s)))
}

/// Living sessions, oldest first: the caller's own, or for an administrator a named user's.
///
/// # Errors
/// `CREDENTIALS_MISSING`, `ADMIN_REQUIRED`, `USER_UNKNOWN`.
pub async fn list(app: &App, caller: &Caller, user: &str) -> Result<Vec<Session>> {
    let own = caller.user.as_ref().filter(|own| user.is_empty() || user == &*own.name);
    let uid = match own {
        Some(own) => own.uid,
        None if user.is_empty() => caller.require_user()?.uid,
        None => {
            identity::require_admin(app, caller, "session.list", &format!("user:{user}")).await?;
            let known = load_user(&app.store, user)?.ok_or_else(|| accounts::unknown(user))?;
            records::uuid(&known.uid)?
        }
    };
    let now_ms = app.clock.now_ms();
    let mut sessions = Vec::new();
    for (_, s) in all_of(&app.store, uid)? {
        if s.expire_ms > now_ms {
            sessions.push(Session {
                id: records::uuid(&s.id)?,
                user: s.user,
                purpose: s.purpose,
                create_ms: s.create_ms,
                expire_ms: s.expire_ms,
                device: s.device,
            });
        }
    }
    sessions.sort_by_key(|s| (s.create_ms, s.id));
    Ok(sessions)
}

/// Ends a session by its id: an own one, or for an administrator anybody's.
///
/// # Errors
/// `CREDENTIALS_MISSING`, `FIELD_INVALID`, `SESSION_UNKNOWN` (also for somebody else's).
pub async fn revoke(app: &App, caller: &Caller, id: &str) -> Result<()> {
    if !caller.is_admin() {
        caller.require_user()?;
    }
    let id = Uuid::try_parse(id)
        .map_err(|_| Error::new(Reason::FieldInvalid, "the session id is not a UUID").with("field", "id"))?;
    let any = caller.is_admin();
    let own = caller.user.as_ref().map(|u| u.name.clone());
    let (actor, now_ms) = (caller.actor(), app.clock.now_ms());
    app.store
        .transact(move |txn| {
            let found = by_id(txn, id)?.filter(|(_, s)| any || own.as_deref() == Some(s.user.as_str()));
            let (hash, session) =
                found.ok_or_else(|| Error::new(Reason::SessionUnknown, format!("there is no session {id}")))?;
            remove(txn, &hash, &session)?;
            let subject = format!("user:{}", session.user);
            audit::record(txn, now_ms, &actor, "session.revoke", &subject, true, &format!("session {id}"))
        })
        .await?;
    app.identity.announce();
    Ok(())
}

/// Changes the caller's own password and ends the caller's other sessions.
///
/// # Errors
/// `PASSWORD_TOO_WEAK`, `LOGIN_FAILED` if the present password is wrong, `LOGIN_RATE_LIMITED`, `OVERLOADED`.
pub async fn change_password(
    app: &App,
    caller: &Caller,
    old: &Password,
    new: &Password,
    source: Option<IpAddr>,
) -> Result<()> {
    let user = caller.require_user()?;
    old.check_given()?;
    new.check_new()?;
    let guard = &app.identity.login;
    let ticket = guard.admit(&user.name, source, app.clock.now_ms())?;
    let stored = load_user(&app.store, &user.name)?.ok_or_else(invalid)?.password_phc;
    let checked = guard.hasher.check(old, Some(stored.clone()).filter(|p| !p.is_empty())).await;
    let checked = checked.inspect_err(|_| guard.forgive(&ticket))?;
    if !checked.right {
        let error = Error::new(Reason::LoginFailed, "the present password is wrong");
        identity::refuse(app, caller, "password.change", &caller.actor(), &error).await;
        return Err(error);
    }
    guard.succeeded(&ticket);
    let phc = guard.hasher.hash(new).await?;
    let (name, session, actor, now_ms) = (user.name.clone(), user.session, caller.actor(), app.clock.now_ms());
    app.store
        .transact(move |txn| {
            let user = load_user(txn, &name)?.filter(|u| !u.disabled).ok_or_else(invalid)?;
            if user.password_phc != stored {
                return Err(Error::new(Reason::EtagStale, "the password was changed at the same moment"));
            }
            let uid = records::uuid(&user.uid)?;
            let revision = txn.revision();
            let user = record::User { password_phc: phc.clone(), update_ms: now_ms, revision, ..user };
            records::save(txn, &user_key(&name), &user)?;
            let ended = end_all(txn, uid, Some(session))?;
            let detail = format!("{ended} other sessions ended");
            audit::record(txn, now_ms, &actor, "password.change", &actor, true, &detail)
        })
        .await?;
    app.identity.announce();
    Ok(())
}

/// True for the role that may read the audit log.
pub fn may_audit(caller: &Caller) -> bool {
    caller.is_admin() || caller.user.as_ref().is_some_and(|u| u.role >= Role::Auditor)
}
