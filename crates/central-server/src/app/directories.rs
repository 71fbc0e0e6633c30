//! Roots: the private directory of each user, and public directories with rights.
//!
//! A root is found by its folded name (`s/home/NAME`, `s/public/NAME`); everything else names it by its id. Who may not
//! even SEE a root gets the same answer whether it is there or not.

use super::answers::{Answer, Once};
use super::caller::Caller;
use super::edit::{self, Edit};
use super::identity::require_admin;
use super::page::{self, PageToken, fingerprint};
use super::quota::{self, Usage};
use super::records::{self, View, name_key, user_key};
use super::rights::{self, Rule, Subject};
use super::{App, audit, entries, tree};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, EntryName, Principal, Right, Role, RootId, RootName, fold};
use common::store::{Txn, prefix_end};
use proto::record::v1 as record;
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// Most grants of one directory: its record stays small, and whoever needs more needs groups.
pub const MAX_GRANTS: usize = 64;

/// First byte of the keys of roots.
pub(crate) const KINDS: &[u8] = b"s";

/// A root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its id, and that of its top directory.
    pub id: RootId,
    /// "home/anna" or "public/plans".
    pub name: String,
    /// The owner of a private directory.
    pub owner: Option<Uuid>,
    /// Rules of a public directory.
    pub grants: Vec<(Principal, Right)>,
    /// Limit in bytes; 0 means none.
    pub quota_bytes: u64,
    /// Names that differ only in letter case may stand side by side.
    pub case_sensitive: bool,
    /// When it was made.
    pub create_ms: u64,
    /// Commit of the last change of name, grants or quota.
    pub revision: u64,
}

impl Root {
    fn decode(bytes: Bytes) -> Result<Self> {
        let r: record::Root = records::decode(bytes)?;
        let grants = r.grants.iter().filter_map(|g| {
            let right = Right::from_number(i32::try_from(g.right).ok()?)?;
            Some((rights::decode(&g.principal)?, right))
        });
        Ok(Self {
            id: RootId(records::uuid(&r.uid)?),
            grants: grants.collect(),
            owner: if r.owner.is_empty() { None } else { Some(records::uuid(&r.owner)?) },
            name: r.name,
            quota_bytes: r.quota_bytes,
            case_sensitive: r.case_sensitive,
            create_ms: r.create_ms,
            revision: r.revision,
        })
    }

    fn save(&self, txn: &mut Txn<'_>) -> Result<()> {
        let record = record::Root {
            uid: Bytes::copy_from_slice(self.id.as_bytes()),
            name: self.name.clone(),
            owner: self.owner.map(|o| Bytes::copy_from_slice(o.as_bytes())).unwrap_or_default(),
            grants: self
                .grants
                .iter()
                .map(|(p, r)| record::Grant { principal: rights::encode(p), right: *r as u32 })
                .collect(),
            quota_bytes: self.quota_bytes,
            case_sensitive: self.case_sensitive,
            create_ms: self.create_ms,
            revision: self.revision,
        };
        records::save(txn, &key_of(&self.name), &record)
    }

    /// Its name as a path has it.
    pub fn root_name(&self) -> RootName {
        RootName::parse(&self.name).unwrap_or(RootName::OwnHome)
    }

    /// Changes with every change of name, grants or quota.
    pub fn etag(&self) -> String {
        format!("{:x}", self.revision)
    }
}

/// Key of a root with this name. User names are folded already.
fn key_of(name: &str) -> Vec<u8> {
    let mut key = b"s/".to_vec();
    key.extend_from_slice(fold(name).as_bytes());
    key
}

/// Reads a root of exactly this name, without looking at rights.
///
/// # Errors
/// Those of the store.
pub fn load(view: &impl View, name: &str) -> Result<Option<Root>> {
    let root = view.get(&key_of(name))?.map(Root::decode).transpose()?;
    Ok(root.filter(|r| r.name == name))
}

fn unknown(name: &RootName) -> Error {
    Error::new(Reason::DirectoryUnknown, format!("there is no directory {name}, or you may not see it"))
}

/// The root of this name, if the caller has this right to it.
///
/// # Errors
/// `CREDENTIALS_MISSING` for nobody in particular; `DIRECTORY_UNKNOWN` if it is not there or the caller may not see it;
/// `ACCESS_DENIED` if the caller may see it but has not the right.
pub fn open(view: &impl View, caller: &Caller, name: &RootName, need: Right) -> Result<Root> {
    let root = load(view, &full_name(caller, name)?)?.ok_or_else(|| unknown(name))?;
    require(&root, caller, name, need)?;
    Ok(root)
}

/// The root of this name as it is now, if the caller has this right to it. Like [`open`] on the store, but a root that has
/// not changed is not read again.
///
/// # Errors
/// As [`open`].
pub fn open_now(app: &App, caller: &Caller, name: &RootName, need: Right) -> Result<Arc<Root>> {
    let full = full_name(caller, name)?;
    let read = || Ok(load(&app.store, &full)?.map(Arc::new));
    let root = app.files.roots.get(&app.store, full.as_str(), read)?.ok_or_else(|| unknown(name))?;
    require(&root, caller, name, need)?;
    Ok(root)
}

fn full_name(caller: &Caller, name: &RootName) -> Result<String> {
    if caller.user.is_none() && caller.device.is_none() && !caller.local_admin {
        caller.require_user()?;
    }
    Ok(match name {
        RootName::OwnHome => format!("home/{}", caller.require_user()?.name),
        other => other.to_string(),
    })
}

fn require(root: &Root, caller: &Caller, name: &RootName, need: Right) -> Result<()> {
    match rights::right_of(root, caller) {
        None => Err(unknown(name)),
        Some(right) if right < need => Err(Error::new(
            Reason::AccessDenied,
            format!("{} needs the right to {}; you may {} it", root.name, need.word(), right.word()),
        )
        .with("right", right.word())
        .with("needed", need.word())),
        Some(_) => Ok(()),
    }
}

/// Makes a private directory, in the transaction that makes its user. Gives back its id.
///
/// # Errors
/// `DIRECTORY_EXISTS`.
pub fn create_home(txn: &mut Txn<'_>, user: &str, owner: Uuid, quota_bytes: u64, now_ms: u64) -> Result<RootId> {
    let root = Root {
        id: RootId::generate(),
        name: format!("home/{user}"),
        owner: Some(owner),
        grants: Vec::new(),
        quota_bytes,
        case_sensitive: false,
        create_ms: now_ms,
        revision: txn.revision(),
    };
    if View::get(&*txn, &key_of(&root.name))?.is_some() {
        return Err(Error::new(Reason::DirectoryExists, format!("{} is there already", root.name)));
    }
    root.save(txn)?;
    Ok(root.id)
}

/// Changes the limit of a private directory, in the transaction that changes its user.
///
/// # Errors
/// `DIRECTORY_UNKNOWN`.
pub fn set_home_quota(txn: &mut Txn<'_>, user: &str, quota_bytes: u64) -> Result<()> {
    let name = format!("home/{user}");
    let mut root = load(&*txn, &name)?.ok_or_else(|| unknown(&RootName::Home(user.to_owned())))?;
    root.quota_bytes = quota_bytes;
    root.revision = txn.revision();
    root.save(txn)
}

/// Whom a grant is for, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PrincipalName {
    /// A user's name.
    User(String),
    /// A group's name.
    Group(String),
    /// A device's id.
    Device(String),
    /// Every member.
    Everyone,
}

impl PrincipalName {
    pub(super) fn words(&self) -> String {
        match self {
            Self::User(name) => format!("user {name}"),
            Self::Group(name) => format!("group {name}"),
            Self::Device(id) => format!("device {id}"),
            Self::Everyone => "everyone".to_owned(),
        }
    }

    /// The stable id. A name that no longer exists may be given as the UUID that is shown in its place.
    pub(super) fn resolve(&self, view: &impl View, grants: &[(Principal, Right)]) -> Result<Principal> {
        let missing = match self {
            Self::User(name) => {
                let user: Option<record::User> = records::load(view, &user_key(name))?;
                if let Some(user) = user.filter(|u| !u.deleted) {
                    return Ok(Principal::User(records::uuid(&user.uid)?));
                }
                Error::new(Reason::UserUnknown, format!("there is no user {name:?}"))
            }
            Self::Group(name) => {
                let group: Option<record::Group> = records::load(view, &records::group_key(name))?;
                if let Some(group) = group {
                    return Ok(Principal::Group(records::uuid(&group.uid)?));
                }
                Error::new(Reason::GroupUnknown, format!("there is no group {name:?}"))
            }
            Self::Device(text) => {
                let id: Option<DeviceId> = text.parse().ok();
                if let Some(id) = id
                    && view.get(&records::device_key(text))?.is_some()
                {
                    return Ok(Principal::Device(id));
                }
                Error::new(Reason::DeviceUnknown, "there is no such device")
            }
            Self::Everyone => return Ok(Principal::Everyone),
        };
        let known = grants.iter().find(|(p, _)| name_of(view, p).is_ok_and(|n| n == *self));
        known.map(|(p, _)| p.clone()).ok_or(missing)
    }
}

/// The name of a principal; its UUID if it is gone.
pub(super) fn name_of(view: &impl View, principal: &Principal) -> Result<PrincipalName> {
    let name = |uid: &Uuid| -> Result<String> {
        let stored = view.get(&name_key(*uid))?;
        // The first byte says whether it is a user or a group.
        let name = stored.and_then(|n| n.get(1..).and_then(|n| std::str::from_utf8(n).ok().map(str::to_owned)));
        Ok(name.unwrap_or_else(|| uid.to_string()))
    };
    Ok(match principal {
        Principal::User(uid) => PrincipalName::User(name(uid)?),
        Principal::Group(uid) => PrincipalName::Group(name(uid)?),
        Principal::Device(id) => PrincipalName::Device(id.to_string()),
        Principal::Everyone => PrincipalName::Everyone,
    })
}

/// A root as a caller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The root.
    pub root: Root,
    /// Its rules by name; empty for those who may not read it.
    pub grants: Vec<(PrincipalName, Right)>,
    /// What it holds.
    pub usage: Usage,
    /// The caller's right.
    pub my_right: Right,
}

fn describe(view: &impl View, root: Root, caller: &Caller) -> Result<Directory> {
    let my_right = rights::right_of(&root, caller).ok_or_else(|| unknown(&root.root_name()))?;
    let mut grants = Vec::new();
    if my_right >= Right::Read {
        for (principal, right) in &root.grants {
            grants.push((name_of(view, principal)?, *right));
        }
    }
    let usage = quota::load(view, root.id)?;
    Ok(Directory { root, grants, usage, my_right })
}

/// One root.
///
/// # Errors
/// `DIRECTORY_UNKNOWN`.
pub fn get(app: &App, caller: &Caller, name: &RootName) -> Result<Directory> {
    let root = open(&app.store, caller, name, Right::See)?;
    describe(&app.store, root, caller)
}

/// A page of the roots that the caller may see: the own private directory first, then public ones by name.
///
/// # Errors
/// `PAGE_TOKEN_INVALID`, `CREDENTIALS_MISSING`.
pub fn list(app: &App, caller: &Caller, page_size: u32, page_token: &str) -> Result<(Vec<Directory>, String)> {
    let list = fingerprint("directories", &[&caller.actor()]);
    let size = page::size(page_size);
    let mut out = Vec::new();
    let to = prefix_end(b"s/public/");
    let mut from = match PageToken::read(page_token, list)? {
        Some(token) if token.position().starts_with(b"s/") => token.position().to_vec(),
        Some(_) => return Err(Error::new(Reason::PageTokenInvalid, "the page token does not belong to this list")),
        None => {
            match open(&app.store, caller, &RootName::OwnHome, Right::See) {
                Ok(home) => out.push(describe(&app.store, home, caller)?),
                // Machines and the local administrator have none.
                Err(_) if caller.device.is_some() || caller.local_admin => {}
                Err(e) if e.is(Reason::DirectoryUnknown) => {}
                Err(e) => return Err(e),
            }
            b"s/public/".to_vec()
        }
    };
    // After the last root that was shown: a token must not name one that the caller may not see.
    let mut shown = from.clone();
    loop {
        let page = app.store.range(&from, &to, tree::PAGE)?;
        let ended = page.len() < tree::PAGE;
        for (key, value) in page {
            from = key.to_vec();
            from.push(0);
            let root = Root::decode(value)?;
            if rights::right_of(&root, caller).is_none() {
                continue;
            }
            if out.len() == size {
                return Ok((out, PageToken::at(list, &shown)));
            }
            out.push(describe(&app.store, root, caller)?);
            shown.clone_from(&from);
        }
        if ended {
            return Ok((out, String::new()));
        }
    }
}

/// The ids and names of all roots that the caller may read. Reads every public root, on a blocking thread.
///
/// # Errors
/// Those of the store.
pub async fn readable_roots(app: &App, caller: &Caller) -> Result<HashMap<RootId, String>> {
    let (store, caller) = (app.store.clone(), caller.clone());
    entries::blocking(move || {
        let mut out = HashMap::new();
        let mut add = |root: Root| {
            if rights::right_of(&root, &caller) >= Some(Right::Read) {
                out.insert(root.id, root.name);
            }
        };
        if let Some(user) = &caller.user {
            load(&store, &format!("home/{}", user.name))?.into_iter().for_each(&mut add);
        }
        let to = prefix_end(b"s/public/");
        let mut from = b"s/public/".to_vec();
        loop {
            let page = store.range(&from, &to, tree::PAGE)?;
            let ended = page.len() < tree::PAGE;
            for (key, value) in page {
                from = key.to_vec();
                from.push(0);
                add(Root::decode(value)?);
            }
            if ended {
                return Ok(out);
            }
        }
    })
    .await
}

/// The id of a root that the caller may read.
///
/// # Errors
/// `DIRECTORY_UNKNOWN`, `ACCESS_DENIED`.
pub fn require_readable(app: &App, caller: &Caller, name: &RootName) -> Result<RootId> {
    Ok(open(&app.store, caller, name, Right::Read)?.id)
}

/// A public directory that is to be made.
#[derive(Clone, Debug)]
pub struct NewDirectory {
    /// Its name below "public/".
    pub name: EntryName,
    /// First rules.
    pub grants: Vec<(PrincipalName, Right)>,
    /// 0 means none.
    pub quota_bytes: u64,
    /// See [`Root`].
    pub case_sensitive: bool,
}

/// Makes a public directory.
///
/// # Errors
/// `ADMIN_REQUIRED`, `DIRECTORY_EXISTS`, `NAME_CLASH`, and those about principals.
pub async fn create(app: &App, caller: &Caller, new: NewDirectory, once: Once<Directory>) -> Result<Answer<Directory>> {
    require_admin(app, caller, "directory.create", &format!("public/{}", new.name)).await?;
    edit::change_once(app, caller, once, move |edit| {
        let name = format!("public/{}", new.name);
        if let Some(present) = edit.get(&key_of(&name))? {
            let present = Root::decode(present)?;
            if present.name != name {
                return Err(Error::new(Reason::NameClash, format!("{name} cannot stand beside {}", present.name)));
            }
            return Err(Error::new(Reason::DirectoryExists, format!("{name} is there already")));
        }
        let mut root = Root {
            id: RootId::generate(),
            name,
            owner: None,
            grants: Vec::new(),
            quota_bytes: new.quota_bytes,
            case_sensitive: new.case_sensitive,
            create_ms: edit.now_ms,
            revision: edit.txn.revision(),
        };
        for (principal, right) in &new.grants {
            let principal = principal.resolve(edit, &[])?;
            set_grant(&mut root.grants, principal, *right)?;
        }
        root.save(edit.txn)?;
        edit.tell_rights(root.id);
        note(edit, "directory.create", &root.name, &format!("{} grants", root.grants.len()))?;
        describe(edit, root, edit.caller)
    })
    .await
}

fn set_grant(grants: &mut Vec<(Principal, Right)>, principal: Principal, right: Right) -> Result<()> {
    if let Some(grant) = grants.iter_mut().find(|(p, _)| *p == principal) {
        grant.1 = right;
        return Ok(());
    }
    if grants.len() >= MAX_GRANTS {
        return Err(Error::new(Reason::FieldInvalid, "the directory has too many grants")
            .why_is(format!("a directory takes {MAX_GRANTS} grants"))
            .fix_is("grant to groups instead of single users")
            .with("field", "grants"));
    }
    grants.push((principal, right));
    Ok(())
}

fn note(edit: &mut Edit<'_, '_>, action: &str, subject: &str, detail: &str) -> Result<()> {
    let actor = edit.caller.actor();
    audit::record(edit.txn, edit.now_ms, &actor, action, subject, true, detail)
}

fn public_only(name: &RootName) -> Result<()> {
    match name {
        RootName::Public(_) => Ok(()),
        _ => Err(Error::new(Reason::FieldInvalid, format!("{name} is not a public directory"))
            .fix_is("private directories belong to their users: `atrium admin users`")
            .with("field", "name")),
    }
}

/// Changes the limit of a public directory. One below what is used refuses new content until there is room.
///
/// # Errors
/// `ADMIN_REQUIRED`, `FIELD_INVALID` for a private one, `DIRECTORY_UNKNOWN`.
pub async fn set_quota(app: &App, caller: &Caller, name: RootName, quota_bytes: u64) -> Result<Directory> {
    require_admin(app, caller, "directory.quota", &name.to_string()).await?;
    public_only(&name)?;
    edit::change(app, caller, move |edit| {
        let mut root = edit.root(&name, Right::See)?;
        if root.quota_bytes != quota_bytes {
            root.quota_bytes = quota_bytes;
            root.revision = edit.txn.revision();
            root.save(edit.txn)?;
            note(edit, "directory.quota", &root.name, &format!("{quota_bytes} bytes"))?;
        }
        describe(edit, root, edit.caller)
    })
    .await
}

/// Deletes a public directory, or the private one of a deleted user. Its content goes in the background.
///
/// # Errors
/// `ADMIN_REQUIRED`, `DIRECTORY_UNKNOWN`, `DIRECTORY_NOT_EMPTY` without `force`, `FIELD_INVALID` for the private directory
/// of a living user.
pub async fn delete(app: &App, caller: &Caller, name: RootName, force: bool) -> Result<()> {
    require_admin(app, caller, "directory.delete", &name.to_string()).await?;
    edit::change(app, caller, move |edit| {
        let root = edit.root(&name, Right::See)?;
        if let Some(user) = root.name.strip_prefix("home/") {
            let user: Option<record::User> = records::load(edit, &user_key(user))?;
            if user.is_some_and(|u| !u.deleted) {
                return Err(Error::new(Reason::FieldInvalid, format!("{} belongs to a living user", root.name))
                    .fix_is("delete the user first")
                    .with("field", "name"));
            }
        }
        let usage = quota::load(edit, root.id)?;
        if !force && usage != Usage::default() {
            return Err(Error::new(
                Reason::DirectoryNotEmpty,
                format!("{} holds {} entries and {} bytes", root.name, usage.entry_count, usage.used_bytes),
            ));
        }
        edit.txn.delete(key_of(&root.name))?;
        let purge = record::Purge { root: edit::bytes_of(root.id.node()) };
        records::save(edit.txn, &tree::purge_key(root.id.node()), &purge)?;
        edit.tell_rights(root.id);
        note(edit, "directory.delete", &root.name, &format!("{} entries", usage.entry_count))
    })
    .await
}

/// Adds, raises or lowers one grant.
///
/// # Errors
/// `DIRECTORY_UNKNOWN`, `ACCESS_DENIED` without MANAGE, `FIELD_INVALID` for a private directory, and those about
/// principals.
pub async fn grant(
    app: &App,
    caller: &Caller,
    name: RootName,
    principal: PrincipalName,
    right: Right,
) -> Result<Directory> {
    edit::change(app, caller, move |edit| {
        let mut root = edit.root(&name, Right::Manage)?;
        public_only(&root.root_name())?;
        let id = principal.resolve(edit, &root.grants)?;
        if !root.grants.contains(&(id.clone(), right)) {
            set_grant(&mut root.grants, id, right)?;
            root.revision = edit.txn.revision();
            root.save(edit.txn)?;
            edit.tell_rights(root.id);
            note(edit, "right.grant", &root.name, &format!("{} may {}", principal.words(), right.word()))?;
        }
        describe(edit, root, edit.caller)
    })
    .await
}

/// Takes a principal's grant away.
///
/// # Errors
/// As [`grant`].
pub async fn revoke(app: &App, caller: &Caller, name: RootName, principal: PrincipalName) -> Result<Directory> {
    edit::change(app, caller, move |edit| {
        let mut root = edit.root(&name, Right::Manage)?;
        public_only(&root.root_name())?;
        let id = principal.resolve(edit, &root.grants)?;
        let before = root.grants.len();
        root.grants.retain(|(p, _)| *p != id);
        if root.grants.len() < before {
            root.revision = edit.txn.revision();
            root.save(edit.txn)?;
            edit.tell_rights(root.id);
            note(edit, "right.revoke", &root.name, &principal.words())?;
        }
        // Who takes the own MANAGE away may no longer see the directory; the answer still shows it.
        let my_right = rights::right_of(&root, edit.caller).unwrap_or(Right::See);
        let usage = quota::load(edit, root.id)?;
        let mut grants = Vec::new();
        for (p, right) in &root.grants {
            grants.push((name_of(edit, p)?, *right));
        }
        Ok(Directory { root, grants, usage, my_right })
    })
    .await
}

/// Why somebody has a right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What results.
    pub right: Option<Right>,
    /// The deciding rule in plain words.
    pub rule: String,
    /// All that apply, the deciding one first.
    pub considered: Vec<String>,
}

/// Tells which rule decides what a user may do; without a name, what the caller may do.
///
/// # Errors
/// `DIRECTORY_UNKNOWN`, `ACCESS_DENIED` when asking about others without MANAGE, `USER_UNKNOWN`.
pub fn explain(app: &App, caller: &Caller, name: &RootName, user: &str) -> Result<Explanation> {
    let root = open(&app.store, caller, name, Right::See)?;
    let own = user.is_empty() || caller.user.as_ref().is_some_and(|u| *u.name == *user);
    let subject = if own {
        Subject::from(caller)
    } else {
        if !caller.is_admin() {
            open(&app.store, caller, name, Right::Manage)?;
        }
        subject_of(&app.store, user)?
    };
    let mut considered = Vec::new();
    for (rule, right) in rights::rules_for(&root, &subject) {
        let right = right.word();
        considered.push(match rule {
            Rule::Owner => format!("the owner has {right}"),
            Rule::AdminOfHome => format!("administrators have {right} on private directories and cannot read them"),
            Rule::Admin => format!("administrators have {right} on public directories"),
            Rule::Grant(principal) => format!("{} has {right}", name_of(&app.store, &principal)?.words()),
        });
    }
    let right = rights::rules_for(&root, &subject).first().map(|(_, right)| *right);
    let rule = considered.first().cloned().unwrap_or_else(|| match root.owner {
        Some(_) => "a private directory is its owner's alone".to_owned(),
        None if subject.role == Some(Role::Guest) => "no rule names this guest, and guests are not everyone".to_owned(),
        None => "no rule applies".to_owned(),
    });
    Ok(Explanation { right, rule, considered })
}

fn subject_of(view: &impl View, name: &str) -> Result<Subject> {
    let user: Option<record::User> = records::load(view, &user_key(name))?;
    let user = user
        .filter(|u| !u.deleted)
        .ok_or_else(|| Error::new(Reason::UserUnknown, format!("there is no user {name:?}")))?;
    let uid = records::uuid(&user.uid)?;
    let mut groups = Vec::new();
    let prefix = records::memberships_of(uid);
    for (key, _) in records::under(view, &prefix, tree::PAGE)? {
        groups.push(records::uuid(&key[prefix.len()..])?);
    }
    let role = i32::try_from(user.role).ok().and_then(Role::from_number);
    Ok(Subject { user: Some(uid), groups, role, device: None, local_admin: false })
}
