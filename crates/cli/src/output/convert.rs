//! From the contract's messages to the objects of the JSON contract.

use super::format::{hex, rfc3339};
use super::schema::{Device, Directory, Done, Entry, EntryLock, Failure, Grant, Group, Problem, User};
use crate::args::value::Whom;
use crate::exit::Exit;
use common::error::Error;
use common::model::{EntryPath, Right, Role};
use proto::{agent, v1};

impl Failure {
    /// Of an error.
    pub fn of(error: &Error) -> Self {
        Self {
            reason: error.reason().into(),
            message: error.message().into(),
            why: error.why().into(),
            fix: error.fix().into(),
            request_id: error.request_id().map(Into::into),
            retry_after_ms: error.retry_delay().map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            exit_code: Exit::of(error).code().into(),
        }
    }
}

impl Problem {
    /// Of an error.
    pub fn of(error: &Error) -> Self {
        Self {
            reason: error.reason().into(),
            message: error.message().into(),
            why: error.why().into(),
            fix: error.fix().into(),
        }
    }
}

impl From<v1::Problem> for Problem {
    fn from(p: v1::Problem) -> Self {
        Self { reason: p.reason, message: p.message, why: p.why, fix: p.fix }
    }
}

impl From<agent::v1::AgentProblem> for Problem {
    fn from(p: agent::v1::AgentProblem) -> Self {
        Self { reason: p.reason, message: p.message, why: p.why, fix: p.fix }
    }
}

/// "file", "directory" or "unknown".
pub fn kind_word(kind: i32) -> String {
    match v1::EntryKind::try_from(kind) {
        Ok(v1::EntryKind::File) => "file",
        Ok(v1::EntryKind::Directory) => "directory",
        _ => "unknown",
    }
    .into()
}

/// A path of the contract as people type it.
pub fn typed_path(root: &str, path: &str) -> String {
    match EntryPath::new(root, path) {
        Ok(path) => path.to_string(),
        Err(_) => format!("{root}:{path}"),
    }
}

/// The word of a right; `None` if none or unknown.
pub fn right_word(right: i32) -> Option<String> {
    Right::from_number(right).map(|r| r.word().to_owned())
}

/// The word of a role; "unknown" for those of newer servers.
pub fn role_word(role: i32) -> String {
    Role::from_number(role).map_or("unknown", Role::word).to_owned()
}

impl Entry {
    /// From the contract; `at` is where it is, since lists leave the path out.
    pub fn of(entry: &v1::Entry, at: &EntryPath) -> Self {
        Self {
            path: at.to_string(),
            name: entry.display_name.clone(),
            r#type: kind_word(entry.kind),
            size_bytes: entry.size_bytes,
            modify_time: rfc3339(entry.modify_time.as_ref()),
            update_time: rfc3339(entry.update_time.as_ref()),
            mode: (entry.mode != 0).then(|| format!("{:04o}", entry.mode)),
            version: entry.version,
            etag: entry.etag.clone(),
            uid: entry.uid.clone(),
            manifest_digest: hex(&entry.manifest_digest),
            author: entry.author.clone(),
            lock: entry.lock.as_ref().map(|l| EntryLock {
                user: l.user.clone(),
                expire_time: rfc3339(l.expire_time.as_ref()),
                fencing_token: l.fencing_token,
                note: l.note.clone(),
            }),
        }
    }
}

impl From<&v1::Directory> for Directory {
    fn from(d: &v1::Directory) -> Self {
        let grants = d.grants.iter().map(|g| Grant {
            who: Whom::text_of(g.principal.as_ref()),
            right: right_word(g.right).unwrap_or_else(|| "unknown".into()),
        });
        Self {
            path: typed_path(&d.name, ""),
            name: d.name.clone(),
            uid: d.uid.clone(),
            my_right: right_word(d.my_right),
            quota_bytes: d.quota_bytes,
            used_bytes: d.used_bytes,
            entry_count: d.entry_count,
            grants: grants.collect(),
            case_sensitive: d.case_sensitive,
            create_time: rfc3339(d.create_time.as_ref()),
            etag: d.etag.clone(),
        }
    }
}

impl From<&v1::User> for User {
    fn from(u: &v1::User) -> Self {
        Self {
            name: u.name.clone(),
            uid: u.uid.clone(),
            display_name: u.display_name.clone(),
            role: role_word(u.role),
            quota_bytes: u.quota_bytes,
            used_bytes: u.used_bytes,
            disabled: u.disabled,
            groups: u.groups.clone(),
            create_time: rfc3339(u.create_time.as_ref()),
        }
    }
}

impl From<&v1::Group> for Group {
    fn from(g: &v1::Group) -> Self {
        Self {
            name: g.name.clone(),
            uid: g.uid.clone(),
            display_name: g.display_name.clone(),
            members: g.members.clone(),
            create_time: rfc3339(g.create_time.as_ref()),
        }
    }
}

impl From<&v1::Device> for Device {
    fn from(d: &v1::Device) -> Self {
        Self {
            id: d.id.clone(),
            display_name: d.display_name.clone(),
            create_time: rfc3339(d.create_time.as_ref()),
            certificate_expire_time: rfc3339(d.certificate_expire_time.as_ref()),
            last_seen_time: rfc3339(d.last_seen_time.as_ref()),
            revoked: d.revoked,
            address: d.address.clone(),
        }
    }
}

impl Done {
    /// One change.
    pub fn new(action: &str, subject: impl ToString, result: Option<String>, message: impl Into<String>) -> Self {
        Self { action: action.into(), subject: subject.to_string(), result, message: message.into() }
    }
}
