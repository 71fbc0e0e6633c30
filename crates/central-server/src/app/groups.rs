//! Groups of users.
//!
//! The group's record holds its members' names (names are never given twice, so they are as good as ids); `h/` holds the
//! same facts by user, which is what each call asks. Both are written together. A group has at most [`MAX_MEMBERS`]
//! members and a user is in at most [`MAX_PER_USER`] groups. A group's name may be given again; its id is new then, so
//! grants of the old one do not come back.

use super::App;
use super::accounts::{self, require_sight};
use super::answers::{Answer, Once};
use super::audit;
use super::caller::Caller;
use super::identity::{self, check_name, check_text, require_admin};
use super::page::{self, PageToken};
use super::records::{self, View, group_key, membership_key, memberships_of, name_key};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::store::{Txn, prefix_end};
use proto::record::v1 as record;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Members of one group.
pub const MAX_MEMBERS: usize = 500;
/// Groups of one user.
pub const MAX_PER_USER: usize = 500;

/// A named set of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Stable id.
    pub uid: Uuid,
    /// For people.
    pub display_name: String,
    /// User names, sorted.
    pub members: Vec<String>,
    /// Milliseconds since 1970.
    pub create_ms: u64,
    /// Milliseconds since 1970.
    pub update_ms: u64,
    /// Changes with every change.
    pub etag: String,
}

/// A group to be made.
#[derive(Clone, Debug)]
pub struct NewGroup {
    /// Name.
    pub name: String,
    /// For people.
    pub display_name: String,
    /// User names.
    pub members: Vec<String>,
}

/// A page of groups.
#[derive(Clone, Debug)]
pub struct GroupPage {
    /// In order of names.
    pub groups: Vec<Group>,
    /// Empty at the end.
    pub next_page_token: String,
}

fn unknown(name: &str) -> Error {
    let shown: String = name.chars().take(64).collect();
    Error::new(Reason::GroupUnknown, format!("there is no group {shown:?}"))
}

fn load(view: &impl View, name: &str) -> Result<record::Group> {
    if !identity::is_name(name) {
        return Err(unknown(name));
    }
    records::load(view, &group_key(name))?.ok_or_else(|| unknown(name))
}

fn view(group: record::Group) -> Result<Group> {
    Ok(Group {
        uid: records::uuid(&group.uid)?,
        etag: format!("{:x}", group.revision),
        name: group.name,
        display_name: group.display_name,
        members: group.members,
        create_ms: group.create_ms,
        update_ms: group.update_ms,
    })
}

/// The id of a group by name, for grants.
///
/// # Errors
/// `GROUP_UNKNOWN`.
pub fn uid_of(view: &impl View, name: &str) -> Result<Uuid> {
    records::uuid(&load(view, name)?.uid)
}

/// Ids of the groups that a user is in.
///
/// # Errors
/// Those of the store.
pub fn ids_of(view: &impl View, user: Uuid) -> Result<Vec<Uuid>> {
    let found = records::under(view, &memberships_of(user), MAX_PER_USER)?;
    found.iter().map(|(key, _)| records::uuid(key.get(18..).unwrap_or_default())).collect()
}

/// Names of the groups that a user is in, sorted.
///
/// # Errors
/// Those of the store.
pub fn names_of(view: &impl View, user: Uuid) -> Result<Vec<String>> {
    let found = records::under(view, &memberships_of(user), MAX_PER_USER)?;
    let mut names: Vec<String> = found.iter().map(|(_, name)| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}

/// One group.
///
/// # Errors
/// `CREDENTIALS_MISSING`, `ACCESS_DENIED` for guests, `GROUP_UNKNOWN`.
pub fn get(app: &App, caller: &Caller, name: &str) -> Result<Group> {
    require_sight(caller, "")?;
    view(load(&app.store, name)?)
}

/// Groups in order of their names.
///
/// # Errors
/// `CREDENTIALS_MISSING`, `ACCESS_DENIED` for guests, `PAGE_TOKEN_INVALID`.
pub fn list(app: &App, caller: &Caller, page_size: u32, page_token: &str) -> Result<GroupPage> {
    require_sight(caller, "")?;
    let list = page::fingerprint("groups", &[]);
    let mut from = b"g/".to_vec();
    if let Some(token) = PageToken::read(page_token, list)? {
        from = [&group_key(token.text()?)[..], b"\0"].concat();
    }
    let size = page::size(page_size);
    let mut found = app.store.range(&from, &prefix_end(b"g/"), size + 1)?;
    let mut next_page_token = String::new();
    if found.len() > size {
        found.truncate(size);
        next_page_token = found.last().map_or_else(String::new, |(key, _)| PageToken::at(list, &key[2..]));
    }
    let groups = found.into_iter().map(|(_, value)| view(records::decode(value)?)).collect::<Result<_>>()?;
    Ok(GroupPage { groups, next_page_token })
}

fn subject(name: &str) -> String {
    format!("group:{name}")
}

/// Makes a group.
///
/// # Errors
/// `ADMIN_REQUIRED`, `FIELD_INVALID`, `GROUP_EXISTS`, `GROUP_TOO_LARGE`, `TOO_MANY_GROUPS`, `USER_UNKNOWN`,
/// `REQUEST_ID_REUSED`, `AUDIT_FAILED`.
pub async fn create(app: &App, caller: &Caller, new: NewGroup, once: Once<Group>) -> Result<Answer<Group>> {
    require_admin(app, caller, "group.create", &subject(&new.name)).await?;
    check_name(&new.name, "group.name")?;
    check_text(&new.display_name, "group.display_name")?;
    check_count(&new.name, new.members.len())?;
    let uid = Uuid::now_v7();
    let (actor, now_ms) = (caller.actor(), app.clock.now_ms());
    let made = app.store.transact(move |txn| {
        once.run(txn, now_ms, |txn| {
            let name = &new.name;
            if txn.get(&group_key(name))?.is_some() {
                return Err(Error::new(Reason::GroupExists, format!("there is a group {name:?} already")));
            }
            let members: BTreeSet<String> = new.members.iter().cloned().collect();
            let group = record::Group {
                uid: Bytes::copy_from_slice(uid.as_bytes()),
                name: name.clone(),
                display_name: new.display_name.clone(),
                members: members.iter().cloned().collect(),
                create_ms: now_ms,
                update_ms: now_ms,
                revision: txn.revision(),
            };
            records::save(txn, &group_key(name), &group)?;
            txn.put(name_key(uid), format!("g{name}").into_bytes())?;
            audit::record(txn, now_ms, &actor, "group.create", &subject(name), true, "")?;
            for member in &members {
                join(txn, &group, member)?;
                audit::record(txn, now_ms, &actor, "group.add", &subject(name), true, &format!("user:{member}"))?;
            }
            view(group)
        })
    });
    let made = made.await?.value;
    app.identity.announce();
    Ok(made)
}

fn check_count(name: &str, count: usize) -> Result<()> {
    if count > MAX_MEMBERS {
        return Err(Error::new(Reason::GroupTooLarge, format!("group {name:?} would have {count} members")));
    }
    Ok(())
}

fn join(txn: &mut Txn<'_>, group: &record::Group, member: &str) -> Result<()> {
    let user = accounts::uid_of(txn, member)?;
    if records::under(txn, &memberships_of(user), MAX_PER_USER)?.len() == MAX_PER_USER {
        return Err(Error::new(Reason::TooManyGroups, format!("user {member:?} is in {MAX_PER_USER} groups already")));
    }
    txn.put(membership_key(user, records::uuid(&group.uid)?), group.name.clone().into_bytes())
}

/// Adds and removes members.
///
/// # Errors
/// `ADMIN_REQUIRED`, `GROUP_UNKNOWN`, `USER_UNKNOWN` for one to add, `FIELD_INVALID` for one both to add and to remove,
/// `GROUP_TOO_LARGE`, `TOO_MANY_GROUPS`, `AUDIT_FAILED`.
pub async fn update(app: &App, caller: &Caller, name: &str, add: Vec<String>, remove: Vec<String>) -> Result<Group> {
    require_admin(app, caller, "group.update", &subject(name)).await?;
    check_count(name, add.len())?;
    check_count(name, remove.len())?;
    if let Some(both) = add.iter().find(|a| remove.contains(a)) {
        return Err(Error::new(Reason::FieldInvalid, format!("user {both:?} is both to be added and to be removed"))
            .with("field", "remove_members"));
    }
    let (actor, now_ms, name) = (caller.actor(), app.clock.now_ms(), name.to_owned());
    let changed = app.store.transact(move |txn| {
        let mut group = load(txn, &name)?;
        let mut members: BTreeSet<String> = group.members.iter().cloned().collect();
        let mut log = Vec::new();
        for member in &remove {
            if members.remove(member) {
                let user = accounts::uid_of(txn, member)?;
                txn.delete(membership_key(user, records::uuid(&group.uid)?))?;
                log.push(("group.remove", member));
            }
        }
        for member in &add {
            if members.insert(member.clone()) {
                join(txn, &group, member)?;
                log.push(("group.add", member));
            }
        }
        check_count(&name, members.len())?;
        if !log.is_empty() {
            group.members = members.into_iter().collect();
            group.update_ms = now_ms;
            group.revision = txn.revision();
            records::save(txn, &group_key(&name), &group)?;
        }
        for (action, member) in log {
            audit::record(txn, now_ms, &actor, action, &subject(&name), true, &format!("user:{member}"))?;
        }
        view(group)
    });
    let changed = changed.await?.value;
    app.identity.announce();
    Ok(changed)
}

/// Takes a user who is being deleted out of all groups.
///
/// # Errors
/// Those of the store.
pub(crate) fn leave_all(txn: &mut Txn<'_>, user: Uuid, member: &str, now_ms: u64) -> Result<()> {
    for (key, name) in records::under(txn, &memberships_of(user), MAX_PER_USER)? {
        let name = String::from_utf8_lossy(&name);
        let mut group = load(txn, &name)?;
        group.members.retain(|m| m != member);
        group.update_ms = now_ms;
        group.revision = txn.revision();
        records::save(txn, &group_key(&name), &group)?;
        txn.delete(&key)?;
    }
    Ok(())
}

/// Removes a group. Its grants count no more.
///
/// # Errors
/// `ADMIN_REQUIRED`, `GROUP_UNKNOWN`, `AUDIT_FAILED`.
pub async fn delete(app: &App, caller: &Caller, name: &str) -> Result<()> {
    require_admin(app, caller, "group.delete", &subject(name)).await?;
    let (actor, now_ms, name) = (caller.actor(), app.clock.now_ms(), name.to_owned());
    app.store
        .transact(move |txn| {
            let group = load(txn, &name)?;
            let uid = records::uuid(&group.uid)?;
            for member in &group.members {
                let user = accounts::uid_of(txn, member)?;
                txn.delete(membership_key(user, uid))?;
            }
            txn.delete(name_key(uid))?;
            txn.delete(group_key(&name))?;
            let detail = format!("{} members", group.members.len());
            audit::record(txn, now_ms, &actor, "group.delete", &subject(&name), true, &detail)
        })
        .await?;
    app.identity.announce();
    Ok(())
}
