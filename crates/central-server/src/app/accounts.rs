//! People's accounts.
//!
//! A name is given once: the record of a deleted user stays, without password, sessions and groups. Each user has a
//! private directory, made in the same transaction. `k/` lists the enabled administrators, so that the last one is
//! known without reading all users.

use super::App;
use super::answers::{Answer, Once};
use super::audit;
use super::caller::Caller;
use super::identity::{self, check_name, check_text, require_admin};
use super::page::{self, PageToken};
use super::records::{self, View, admin_key, home_key, name_key, usage_key, user_key};
use super::sessions::{self, Password};
use super::{directories, groups};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::Role;
use common::store::{Txn, prefix_end};
use proto::record::v1 as record;
use uuid::Uuid;

/// Records that one page of a list reads at most; with many deleted users pages may be short.
const MAX_SCAN: usize = 10_000;

/// A person's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Account name.
    pub name: String,
    /// Stable id.
    pub uid: Uuid,
    /// For people.
    pub display_name: String,
    /// Role in the office.
    pub role: Role,
    /// Limit of the private directory; 0 means none.
    pub quota_bytes: u64,
    /// No sign-in while set.
    pub disabled: bool,
    /// Milliseconds since 1970.
    pub create_ms: u64,
    /// Milliseconds since 1970.
    pub update_ms: u64,
    /// Changes with every change of the fields above.
    pub etag: String,
    /// Names of the user's groups, sorted.
    pub groups: Vec<String>,
    /// Bytes charged to the private directory.
    pub used_bytes: u64,
}

/// A user to be made.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// Account name.
    pub name: String,
    /// For people.
    pub display_name: String,
    /// Role in the office.
    pub role: Role,
    /// Limit of the private directory; 0 means the server's default.
    pub quota_bytes: u64,
    /// First password; empty for none.
    pub password: Password,
}

/// Changes of a user; `None` leaves as it is.
#[derive(Clone, Debug, Default)]
pub struct UserChange {
    /// For people.
    pub display_name: Option<String>,
    /// Role in the office.
    pub role: Option<Role>,
    /// Limit of the private directory; 0 means none.
    pub quota_bytes: Option<u64>,
    /// No sign-in while set; setting it ends all sessions.
    pub disabled: Option<bool>,
    /// A new password; setting it ends all sessions but the caller's.
    pub password: Option<Password>,
    /// The state that the change was decided on.
    pub etag: Option<String>,
}

/// A page of users.
#[derive(Clone, Debug)]
pub struct UserPage {
    /// In order of names.
    pub users: Vec<User>,
    /// Empty at the end.
    pub next_page_token: String,
}

/// The error for a user that is not there.
pub(crate) fn unknown(name: &str) -> Error {
    let shown: String = name.chars().take(64).collect();
    Error::new(Reason::UserUnknown, format!("there is no user {shown:?}"))
}

/// A role out of a record.
pub(crate) fn role(number: u32) -> Result<Role> {
    let role = i32::try_from(number).ok().and_then(Role::from_number);
    role.ok_or_else(|| Error::new(Reason::StoreCorrupt, "a stored role is damaged"))
}

fn is_admin(user: &record::User) -> bool {
    !user.deleted && !user.disabled && user.role == Role::Admin as u32
}

/// A user who was not deleted.
pub(crate) fn load(view: &impl View, name: &str) -> Result<record::User> {
    if !identity::is_name(name) {
        return Err(unknown(name));
    }
    let user: Option<record::User> = records::load(view, &user_key(name))?;
    user.filter(|u| !u.deleted).ok_or_else(|| unknown(name))
}

/// A user's record with what belongs to it.
pub(crate) fn view(view: &impl View, user: record::User) -> Result<User> {
    let uid = records::uuid(&user.uid)?;
    let root: record::Root = records::load(view, &home_key(&user.name))?.unwrap_or_default();
    let usage: record::Usage = records::load(view, &usage_key(&root.uid))?.unwrap_or_default();
    Ok(User {
        uid,
        role: role(user.role)?,
        quota_bytes: root.quota_bytes,
        disabled: user.disabled,
        create_ms: user.create_ms,
        update_ms: user.update_ms,
        etag: format!("{:x}", user.revision),
        groups: groups::names_of(view, uid)?,
        used_bytes: usage.used_bytes,
        name: user.name,
        display_name: user.display_name,
    })
}

/// The id of a user by name, for grants.
///
/// # Errors
/// `USER_UNKNOWN`.
pub fn uid_of(view: &impl View, name: &str) -> Result<Uuid> {
    records::uuid(&load(view, name)?.uid)
}

/// A user or group behind an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A user; also one that was deleted.
    User(String),
    /// A group.
    Group(String),
}

/// The name behind the id of a user or group, for showing grants; `None` for a group that was deleted.
///
/// # Errors
/// `STORE_CORRUPT`.
pub fn name_of(view: &impl View, uid: Uuid) -> Result<Option<Named>> {
    let Some(text) = view.get(&name_key(uid))? else { return Ok(None) };
    let text = std::str::from_utf8(&text).ok().and_then(|t| t.split_at_checked(1));
    match text {
        Some(("u", name)) => Ok(Some(Named::User(name.to_owned()))),
        Some(("g", name)) => Ok(Some(Named::Group(name.to_owned()))),
        _ => Err(Error::new(Reason::StoreCorrupt, "a stored name is damaged")),
    }
}

/// Guests know nobody but themselves.
pub(crate) fn require_sight(caller: &Caller, name: &str) -> Result<()> {
    if caller.local_admin {
        return Ok(());
    }
    let user = caller.require_user()?;
    if user.role > Role::Guest || (!name.is_empty() && &*user.name == name) {
        return Ok(());
    }
    Err(Error::new(Reason::AccessDenied, "guests see only their own account"))
}

/// Quota and use are shown to the user and to those who manage or audit.
fn hide(caller: &Caller, user: User) -> User {
    let own = caller.user.as_ref().is_some_and(|u| u.uid == user.uid);
    if own || sessions::may_audit(caller) { user } else { User { quota_bytes: 0, used_bytes: 0, ..user } }
}

/// One user.
///
/// # Errors
/// `CREDENTIALS_MISSING`, `ACCESS_DENIED`, `USER_UNKNOWN`.
pub fn get(app: &App, caller: &Caller, name: &str) -> Result<User> {
    require_sight(caller, name)?;
    Ok(hide(caller, view(&app.store, load(&app.store, name)?)?))
}

/// Users in order of their names.
///
/// # Errors
/// `CREDENTIALS_MISSING`, `ACCESS_DENIED`, `PAGE_TOKEN_INVALID`.
pub fn list(app: &App, caller: &Caller, page_size: u32, page_token: &str) -> Result<UserPage> {
    require_sight(caller, "")?;
    let list = page::fingerprint("users", &[]);
    let mut from = b"u/".to_vec();
    if let Some(token) = PageToken::read(page_token, list)? {
        from = [&user_key(token.text()?)[..], b"\0"].concat();
    }
    let (size, to) = (page::size(page_size), prefix_end(b"u/"));
    let mut page = UserPage { users: Vec::new(), next_page_token: String::new() };
    let mut scanned = 0;
    loop {
        let batch = app.store.range(&from, &to, size + 1)?;
        let ended = batch.len() <= size;
        for (key, value) in batch {
            if page.users.len() == size || scanned == MAX_SCAN {
                // `from` stands behind the last one that was looked at.
                page.next_page_token = PageToken::at(list, &from[2..from.len() - 1]);
                return Ok(page);
            }
            scanned += 1;
            from = [&key[..], b"\0"].concat();
            let user: record::User = records::decode(value)?;
            if !user.deleted {
                page.users.push(hide(caller, view(&app.store, user)?));
            }
        }
        if ended {
            return Ok(page);
        }
    }
}

/// Makes a user with a private directory.
///
/// # Errors
/// `ADMIN_REQUIRED`, `FIELD_INVALID`, `PASSWORD_TOO_WEAK`, `USER_EXISTS` (also for a name that was deleted),
/// `REQUEST_ID_REUSED`, `OVERLOADED`, `AUDIT_FAILED`.
pub async fn create(app: &App, caller: &Caller, new: NewUser, once: Once<User>) -> Result<Answer<User>> {
    require_admin(app, caller, "user.create", &subject(&new.name)).await?;
    check_name(&new.name, "user.name")?;
    check_text(&new.display_name, "user.display_name")?;
    let mut phc = String::new();
    if !new.password.is_empty() {
        new.password.check_new()?;
        phc = app.identity.login.hasher.hash(&new.password).await?;
    }
    let uid = Uuid::now_v7();
    let quota_bytes = if new.quota_bytes == 0 { app.settings.files.home_quota.0 } else { new.quota_bytes };
    let (actor, now_ms) = (caller.actor(), app.clock.now_ms());
    let made = app.store.transact(move |txn| {
        once.run(txn, now_ms, |txn| {
            let name = &new.name;
            if txn.get(&user_key(name))?.is_some() {
                return Err(Error::new(Reason::UserExists, format!("the name {name:?} is taken")));
            }
            let home = directories::create_home(txn, name, uid, quota_bytes, now_ms)?;
            let user = record::User {
                uid: Bytes::copy_from_slice(uid.as_bytes()),
                name: name.clone(),
                display_name: new.display_name.clone(),
                role: new.role as u32,
                disabled: false,
                deleted: false,
                password_phc: phc.clone(),
                create_ms: now_ms,
                update_ms: now_ms,
                revision: txn.revision(),
                home: Bytes::copy_from_slice(home.0.as_bytes()),
            };
            store(txn, None, &user)?;
            txn.put(name_key(uid), format!("u{name}").into_bytes())?;
            let password = if phc.is_empty() { ", without password" } else { "" };
            let detail = format!("role {}, quota {quota_bytes}{password}", new.role.word());
            audit::record(txn, now_ms, &actor, "user.create", &subject(name), true, &detail)?;
            view(txn, user)
        })
    });
    Ok(made.await?.value)
}

/// Writes a user's record and its place among the administrators.
fn store(txn: &mut Txn<'_>, before: Option<&record::User>, user: &record::User) -> Result<()> {
    match (before.is_some_and(is_admin), is_admin(user)) {
        (false, true) => txn.put(admin_key(&user.name), Bytes::new())?,
        (true, false) => {
            txn.delete(admin_key(&user.name))?;
            if records::under(txn, b"k/", 1)?.is_empty() {
                return Err(Error::new(Reason::LastAdmin, format!("{:?} is the last administrator", user.name)));
            }
        }
        _ => {}
    }
    records::save(txn, &user_key(&user.name), user)
}

fn subject(name: &str) -> String {
    format!("user:{name}")
}

/// Changes a user.
///
/// # Errors
/// `ADMIN_REQUIRED`, `USER_UNKNOWN`, `ETAG_STALE`, `LAST_ADMIN`, `FIELD_INVALID`, `PASSWORD_TOO_WEAK`,
/// `REQUEST_ID_REUSED`, `OVERLOADED`, `AUDIT_FAILED`.
pub async fn update(
    app: &App,
    caller: &Caller,
    name: &str,
    change: UserChange,
    once: Once<User>,
) -> Result<Answer<User>> {
    require_admin(app, caller, "user.update", &subject(name)).await?;
    if let Some(text) = &change.display_name {
        check_text(text, "user.display_name")?;
    }
    let mut phc = None;
    if let Some(password) = &change.password {
        password.check_new()?;
        // A user that is not there is not worth a hash.
        load(&app.store, name)?;
        phc = Some(app.identity.login.hasher.hash(password).await?);
    }
    let (actor, now_ms, name) = (caller.actor(), app.clock.now_ms(), name.to_owned());
    let own_session = caller.user.as_ref().map(|u| u.session);
    let changed = app.store.transact(move |txn| {
        once.run(txn, now_ms, |txn| {
            let before = load(txn, &name)?;
            let etag = format!("{:x}", before.revision);
            if change.etag.as_ref().is_some_and(|wanted| *wanted != etag) {
                return Err(Error::new(Reason::EtagStale, format!("user {name:?} has changed since")));
            }
            let mut user = record::User { update_ms: now_ms, revision: txn.revision(), ..before.clone() };
            let mut told = Vec::new();
            if let Some(text) = &change.display_name {
                user.display_name.clone_from(text);
                told.push("display name".to_owned());
            }
            if let Some(new) = change.role {
                user.role = new as u32;
                told.push(format!("role {} to {}", role(before.role)?.word(), new.word()));
            }
            if let Some(disabled) = change.disabled {
                user.disabled = disabled;
                told.push(if disabled { "disabled" } else { "enabled" }.to_owned());
            }
            if let Some(quota_bytes) = change.quota_bytes {
                directories::set_home_quota(txn, &name, quota_bytes)?;
                told.push(format!("quota {quota_bytes}"));
            }
            if let Some(phc) = &phc {
                user.password_phc.clone_from(phc);
                told.push("password".to_owned());
            }
            store(txn, Some(&before), &user)?;
            let uid = records::uuid(&user.uid)?;
            if user.disabled {
                sessions::end_all(txn, uid, None)?;
            } else if phc.is_some() {
                sessions::end_all(txn, uid, own_session)?;
            }
            audit::record(txn, now_ms, &actor, "user.update", &subject(&name), true, &told.join(", "))?;
            view(txn, user)
        })
    });
    let changed = changed.await?.value;
    app.identity.announce();
    Ok(changed)
}

/// Disables a user for good: sessions and memberships end; the name stays taken and the private directory stays.
///
/// # Errors
/// `ADMIN_REQUIRED`, `USER_UNKNOWN` (also for one deleted before), `LAST_ADMIN`, `AUDIT_FAILED`.
pub async fn delete(app: &App, caller: &Caller, name: &str) -> Result<()> {
    require_admin(app, caller, "user.delete", &subject(name)).await?;
    let (actor, now_ms, name) = (caller.actor(), app.clock.now_ms(), name.to_owned());
    app.store
        .transact(move |txn| {
            let before = load(txn, &name)?;
            let uid = records::uuid(&before.uid)?;
            let user = record::User {
                deleted: true,
                disabled: true,
                password_phc: String::new(),
                update_ms: now_ms,
                revision: txn.revision(),
                ..before.clone()
            };
            store(txn, Some(&before), &user)?;
            sessions::end_all(txn, uid, None)?;
            groups::leave_all(txn, uid, &name, now_ms)?;
            audit::record(txn, now_ms, &actor, "user.delete", &subject(&name), true, "")
        })
        .await?;
    app.identity.announce();
    Ok(())
}
