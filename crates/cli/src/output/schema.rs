//! The JSON contract: every object that `--json` writes, with what each field means.
//!
//! The structures and their description come from one place, so that `docs/cli.md` cannot differ from what is written.
//! `tests/json_schema.txt` keeps the fields of the last release; fields are only ever added.

use serde::Serialize;

pub use super::convert::{kind_word, right_word, role_word, typed_path};

/// An object of the contract.
pub trait Object: Serialize {
    /// Value of the `kind` field.
    const KIND: &'static str;
}

/// How a type reads in the documents.
pub trait JsonType {
    /// "string", "integer", "array of entry" …
    fn json_type() -> String;
}

impl JsonType for String {
    fn json_type() -> String {
        "string".into()
    }
}
impl JsonType for u64 {
    fn json_type() -> String {
        "integer".into()
    }
}
impl JsonType for i64 {
    fn json_type() -> String {
        "integer".into()
    }
}
impl JsonType for bool {
    fn json_type() -> String {
        "boolean".into()
    }
}
impl JsonType for f64 {
    fn json_type() -> String {
        "number".into()
    }
}
impl<T: JsonType> JsonType for Option<T> {
    fn json_type() -> String {
        format!("{} or null", T::json_type())
    }
}
impl<T: JsonType> JsonType for Vec<T> {
    fn json_type() -> String {
        format!("array of {}", T::json_type())
    }
}

/// An object as the documents describe it.
#[derive(Debug, Clone)]
pub struct Description {
    /// Its `kind`.
    pub kind: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Name, type and meaning of each field.
    pub fields: Vec<(&'static str, String, &'static str)>,
}

macro_rules! objects {
    ($table:ident; $(#[doc = $about:literal] $name:ident $kind:literal { $(#[doc = $doc:literal] $field:ident: $ty:ty,)* })*) => {
        $(
            #[doc = $about]
            #[derive(Debug, Clone, PartialEq, Serialize)]
            pub struct $name { $(#[doc = $doc] pub $field: $ty,)* }
            impl Object for $name { const KIND: &'static str = $kind; }
            impl JsonType for $name { fn json_type() -> String { $kind.into() } }
        )*
        /// The objects that are described here.
        pub fn $table() -> Vec<Description> {
            vec![$(Description {
                kind: $kind,
                about: $about.trim(),
                fields: vec![$((stringify!($field), <$ty as JsonType>::json_type(), $doc.trim()),)*],
            },)*]
        }
    };
}

mod devices;
mod peers;
mod prints;
pub use devices::*;
pub use peers::*;
pub use prints::*;

/// All objects of the contract.
pub fn descriptions() -> Vec<Description> {
    let shared = peer_objects().into_iter().chain(device_objects());
    server_objects().into_iter().chain(shared).chain(print_objects()).collect()
}

objects! {
    server_objects;
    /// A failure, on standard error.
    Failure "error" {
        /// Stable UPPER_SNAKE word; docs/errors.md lists all.
        reason: String,
        /// What failed.
        message: String,
        /// Why.
        why: String,
        /// What to do about it.
        fix: String,
        /// Id under which the server has logged the call.
        request_id: Option<String>,
        /// When trying again makes sense.
        retry_after_ms: Option<u64>,
        /// Exit code that belongs to this failure.
        exit_code: u64,
    }
    /// Something is not as it should be.
    Problem "problem" {
        /// Stable UPPER_SNAKE word.
        reason: String,
        /// What.
        message: String,
        /// Why.
        why: String,
        /// What to do.
        fix: String,
    }
    /// A remark on standard error.
    Warning "warning" {
        /// What.
        message: String,
    }
    /// Progress of a transfer; lines on standard error, at most four a second and one at the end.
    Progress "progress" {
        /// What is being done: put, get, sync, scrub, backup, send, print, rip, mirror or restore.
        action: String,
        /// Bytes that the other side has.
        done_bytes: u64,
        /// Bytes in all, as far as known.
        total_bytes: u64,
        /// Files that are finished.
        done_files: u64,
        /// Files in all, as far as known.
        total_files: u64,
        /// Smoothed rate.
        bytes_per_second: u64,
        /// Time left at this rate; null if it cannot be told.
        seconds_left: Option<u64>,
        /// What else is worth knowing, for example how many sectors of a disc are bad; null if nothing is.
        remark: Option<String>,
        /// True in the last line.
        finished: bool,
    }
    /// Something was changed.
    Done "done" {
        /// The command: mkdir, mv, cp, rm, restore, lock, share, login, init, unshare …
        action: String,
        /// What it was done to.
        subject: String,
        /// Where it is now, if somewhere else; the trash id after rm.
        result: Option<String>,
        /// The line that people see.
        message: String,
    }
    /// A file or directory on the server.
    Entry "entry" {
        /// Where, as it is typed.
        path: String,
        /// Last part of the path.
        name: String,
        /// "file" or "directory".
        r#type: String,
        /// Size; 0 for directories.
        size_bytes: u64,
        /// Modification time as the writer gave it, RFC 3339.
        modify_time: Option<String>,
        /// When the server took the content, RFC 3339.
        update_time: Option<String>,
        /// Unix permission bits in octal; null if not given.
        mode: Option<String>,
        /// Number of the content; 0 for directories.
        version: u64,
        /// Changes with every change of the entry.
        etag: String,
        /// Stays with the entry when it is moved.
        uid: String,
        /// Equal digests mean equal content; empty for directories.
        manifest_digest: String,
        /// Who wrote the content.
        author: String,
        /// Set while checked out.
        lock: Option<EntryLock>,
    }
    /// A check-out.
    EntryLock "entry_lock" {
        /// Who holds it.
        user: String,
        /// When it ends by itself.
        expire_time: Option<String>,
        /// Rises with each lock of the entry.
        fencing_token: u64,
        /// What for.
        note: String,
    }
    /// A private or public directory.
    Directory "directory" {
        /// As it is typed, for example public:plans.
        path: String,
        /// Name in the protocol, for example public/plans.
        name: String,
        /// Stays with the directory.
        uid: String,
        /// Your right: see, read, write or manage; null if none.
        my_right: Option<String>,
        /// Limit; 0 means none.
        quota_bytes: u64,
        /// Charged bytes: files, old versions and trash.
        used_bytes: u64,
        /// Files and directories, trash included.
        entry_count: u64,
        /// Who may do what.
        grants: Vec<Grant>,
        /// Whether names that differ only in letter case may stand side by side.
        case_sensitive: bool,
        /// RFC 3339.
        create_time: Option<String>,
        /// Changes with every change.
        etag: String,
    }
    /// A right of somebody.
    Grant "grant" {
        /// user:NAME, group:NAME, device:ID or everyone.
        who: String,
        /// see, read, write or manage.
        right: String,
    }
    /// Result of put and get.
    Transfer "transfer" {
        /// put or get.
        action: String,
        /// Files that were transferred.
        files: u64,
        /// Their bytes.
        total_bytes: u64,
        /// Content that had to be moved; the rest was there already.
        moved_bytes: u64,
        /// Files passed over because they were there already, unchanged.
        unchanged_files: u64,
        /// Symbolic links and special files that were passed over.
        skipped: Vec<String>,
        /// Files that failed.
        failed: Vec<FileFailure>,
        /// Files handed to the agent, to be put later.
        queued_files: u64,
        /// Duration.
        elapsed_ms: u64,
        /// True if nothing was done because of --dry-run.
        dry_run: bool,
    }
    /// One file of many failed.
    FileFailure "file_failure" {
        /// Which.
        path: String,
        /// The failure.
        error: Failure,
    }
    /// Something in the trash.
    TrashItem "trash_item" {
        /// For `restore --id`.
        trash_id: String,
        /// Where it was.
        path: String,
        /// "file" or "directory".
        r#type: String,
        /// Size; 0 for directories.
        size_bytes: u64,
        /// When it was deleted, RFC 3339.
        delete_time: Option<String>,
        /// By whom.
        deleted_by: String,
    }
    /// A version of a file.
    Version "version" {
        /// Number.
        version: u64,
        /// Size.
        size_bytes: u64,
        /// The writer's modification time, RFC 3339.
        modify_time: Option<String>,
        /// When the server took it, RFC 3339.
        update_time: Option<String>,
        /// Who wrote it.
        author: String,
        /// Equal digests mean equal content.
        manifest_digest: String,
        /// Whether this is the present content.
        current: bool,
    }
    /// Answer of `why`.
    Why "why" {
        /// The private or public directory.
        directory: String,
        /// Whose right; null for your own.
        user: Option<String>,
        /// see, read, write or manage; null if none.
        right: Option<String>,
        /// The rule that decides.
        rule: String,
        /// All rules that apply, the deciding one first.
        considered: Vec<String>,
    }
    /// Something has changed on the server; lines of `watch`.
    Change "change" {
        /// Continue after this, with `watch --cursor`. Changes of one cursor belong together.
        cursor: u64,
        /// created, modified, moved, deleted, lock, rights or unknown.
        event: String,
        /// Where it is now, or was.
        path: String,
        /// Where it was before, for moved.
        previous_path: Option<String>,
        /// The entry's id.
        uid: String,
        /// "file" or "directory".
        r#type: String,
        /// Version after the change; 0 for directories.
        version: u64,
        /// Size after the change.
        size_bytes: u64,
        /// Who did it.
        user: String,
        /// When, RFC 3339.
        time: Option<String>,
        /// Content after the change.
        manifest_digest: String,
    }
    /// All changes up to here have been shown; lines of `watch`, the first as soon as it watches.
    WatchMark "watch_mark" {
        /// Continue after this.
        cursor: u64,
        /// True if changes before it may have been missed, because the log no longer reaches back: list again.
        gap: bool,
    }
    /// An upload that waits in the agent.
    QueueItem "queue_item" {
        /// For `queue cancel`.
        id: String,
        /// Where it goes.
        path: String,
        /// Size.
        size_bytes: u64,
        /// When it was queued, RFC 3339.
        create_time: Option<String>,
        /// Tries so far.
        attempt_count: u64,
        /// Last error; empty if none.
        last_error: String,
        /// Set aside because it cannot succeed by itself.
        held: bool,
    }
    /// Answer of `status`.
    Status "status" {
        /// True if there is no problem.
        healthy: bool,
        /// Who is signed in; empty if nobody.
        user: String,
        /// This machine's agent; null if there is none.
        agent: Option<AgentStatus>,
        /// The server; null if it could not be asked.
        server: Option<ServerInfo>,
        /// This machine's peer; null if there is none.
        peer: Option<PeerStatus>,
        /// What is wrong, why, and what to do.
        problems: Vec<Problem>,
    }
    /// How the agent is.
    AgentStatus "agent" {
        /// Program version.
        version: String,
        /// not_joined, connecting, connected, lost, revoked or unknown.
        connection: String,
        /// Office name.
        office: String,
        /// HOST:PORT.
        server: String,
        /// This device's id.
        device_id: String,
        /// End of the certificate, RFC 3339.
        certificate_expire_time: Option<String>,
        /// Uploads waiting, of all users.
        queued_count: u64,
        /// Their bytes.
        queued_bytes: u64,
        /// Bytes in the cache.
        cache_bytes: u64,
        /// Its limit.
        cache_limit_bytes: u64,
    }
    /// What the server tells everybody.
    ServerInfo "server" {
        /// Program version.
        version: String,
        /// Office name.
        office: String,
        /// The server's clock, RFC 3339.
        time: Option<String>,
        /// How long one question and its answer took.
        round_trip_ms: u64,
        /// Names of features.
        features: Vec<String>,
    }
    /// Answer of `admin status`.
    ServerStatus "server_status" {
        /// True if there is no problem.
        healthy: bool,
        /// People.
        user_count: u64,
        /// Machines that are not revoked.
        device_count: u64,
        /// Machines that are connected now.
        connected_count: u64,
        /// Files and directories.
        entry_count: u64,
        /// Bytes as people see them.
        used_bytes: u64,
        /// Bytes on disk.
        stored_bytes: u64,
        /// Free bytes of the data file system.
        disk_free_bytes: u64,
        /// Last revision of the store.
        revision: u64,
        /// Storage engine.
        engine: String,
        /// When the server began, RFC 3339.
        start_time: Option<String>,
        /// Newest automatic snapshot, RFC 3339.
        snapshot_time: Option<String>,
        /// What is wrong, why, and what to do.
        problems: Vec<Problem>,
    }
    /// A test of `doctor`.
    Check "check" {
        /// agent, joined, network, tls, certificate, clock, login, disk, transfer, peer, office, discovery, peers.
        name: String,
        /// ok, warn, fail or skip.
        result: String,
        /// What was found.
        message: String,
        /// Why; null if ok.
        why: Option<String>,
        /// What to do; null if ok.
        fix: Option<String>,
    }
    /// Answer of `doctor`.
    Doctor "doctor" {
        /// True if no test has failed.
        healthy: bool,
        /// The tests, in the order in which they were made.
        checks: Vec<Check>,
    }
    /// Answer of `whoami`.
    Whoami "whoami" {
        /// User name; null if not signed in as a user.
        user: Option<String>,
        /// Name for people.
        display_name: String,
        /// guest, member, auditor or admin; null if not signed in.
        role: Option<String>,
        /// Groups, sorted.
        groups: Vec<String>,
        /// Office name.
        office: String,
        /// Id of the machine, if it has shown its certificate.
        device_id: String,
        /// True for the server machine's own administrator on the local socket.
        local_admin: bool,
        /// When the session ends, RFC 3339.
        expire_time: Option<String>,
    }
    /// A session.
    Session "session" {
        /// For `sessions revoke`.
        id: String,
        /// User name.
        user: String,
        /// What it is for.
        purpose: String,
        /// When it began, RFC 3339.
        create_time: Option<String>,
        /// When it ends by itself, RFC 3339.
        expire_time: Option<String>,
        /// The machine, if known.
        device_id: String,
    }
    /// A person's account.
    User "user" {
        /// User name.
        name: String,
        /// Stays with the account.
        uid: String,
        /// Name for people.
        display_name: String,
        /// guest, member, auditor or admin.
        role: String,
        /// Limit of the private directory; 0 means none.
        quota_bytes: u64,
        /// Charged bytes.
        used_bytes: u64,
        /// No sign-in while set.
        disabled: bool,
        /// Groups, sorted.
        groups: Vec<String>,
        /// RFC 3339.
        create_time: Option<String>,
    }
    /// A group of people.
    Group "group" {
        /// Group name.
        name: String,
        /// Stays with the group.
        uid: String,
        /// Name for people.
        display_name: String,
        /// User names, sorted.
        members: Vec<String>,
        /// RFC 3339.
        create_time: Option<String>,
    }
    /// How much a directory may hold.
    Quota "quota" {
        /// User name, or public:NAME.
        target: String,
        /// Limit; 0 means none.
        quota_bytes: u64,
        /// Charged bytes.
        used_bytes: u64,
    }
    /// A new one-time code; shown only once.
    NewInvite "new_invite" {
        /// The whole code.
        code: String,
        /// Its public part.
        nameplate: String,
        /// When it dies, RFC 3339.
        expire_time: Option<String>,
    }
    /// A one-time code that lives.
    Invite "invite" {
        /// Its public part.
        nameplate: String,
        /// What for.
        purpose: String,
        /// When it dies, RFC 3339.
        expire_time: Option<String>,
        /// Who made it.
        creator: String,
    }
    /// A member machine.
    Device "device" {
        /// Device id.
        id: String,
        /// Its name for people.
        display_name: String,
        /// When it joined, RFC 3339.
        create_time: Option<String>,
        /// End of its certificate, RFC 3339.
        certificate_expire_time: Option<String>,
        /// Last call, RFC 3339.
        last_seen_time: Option<String>,
        /// Whether it is cut off.
        revoked: bool,
        /// Where it stands.
        address: String,
    }
    /// A line of the audit log.
    AuditRecord "audit_record" {
        /// 1, 2, 3 …
        sequence: u64,
        /// When, RFC 3339.
        time: Option<String>,
        /// Who.
        actor: String,
        /// What.
        action: String,
        /// What to.
        subject: String,
        /// Whether it was allowed and done.
        success: bool,
        /// More.
        detail: String,
        /// Hash of this record and all before it.
        hash: String,
    }
    /// Answer of `admin audit verify`.
    AuditCheck "audit_check" {
        /// Records that were checked.
        record_count: u64,
        /// True if every hash fits.
        intact: bool,
        /// First record that does not fit; 0 if all do.
        first_bad_sequence: u64,
        /// Hash of the last record: note it down elsewhere.
        head: String,
    }
    /// A finished backup.
    Backup "backup" {
        /// Where.
        directory: String,
        /// Bytes that were copied.
        copied_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
        /// Revision that the backup shows.
        revision: u64,
    }
    /// A finished scrub.
    Scrub "scrub" {
        /// Chunks that were read.
        chunk_count: u64,
        /// Bytes that were read.
        read_bytes: u64,
        /// Damaged chunks.
        damaged: Vec<String>,
        /// Files that are hit.
        damaged_files: Vec<String>,
    }
    /// A finished pass of `admin reclaim`.
    Reclaim "reclaim" {
        /// Chunks that wait for the next pass.
        candidate_count: u64,
        /// Chunks that were removed.
        removed_count: u64,
        /// Bytes given back.
        freed_bytes: u64,
    }
    /// A step of `sync`.
    SyncAction "sync_action" {
        /// upload, download, make_remote, make_local, delete_remote, delete_local, conflict_local or conflict_remote.
        action: String,
        /// Path below both directories.
        path: String,
        /// New name, for conflicts.
        new_path: Option<String>,
    }
    /// Result of `sync`.
    SyncReport "sync_report" {
        /// The directory here.
        directory: String,
        /// The directory on the server.
        remote: String,
        /// What was done, or with --dry-run would be done.
        actions: Vec<SyncAction>,
        /// Conflicts of this run that were kept.
        conflicts: Vec<Conflict>,
        /// Files that were passed over, with the reason.
        skipped: Vec<String>,
        /// Steps that failed.
        failed: Vec<FileFailure>,
        /// True if nothing was done because of --dry-run.
        dry_run: bool,
    }
    /// A conflict that syncing has kept.
    Conflict "conflict" {
        /// The directory here.
        directory: String,
        /// The directory on the server.
        remote: String,
        /// File that was changed on both sides.
        path: String,
        /// The other version.
        kept_as: String,
        /// Whose version the other one is: "mine" (from this machine) or "theirs" (from the server).
        kept_is: String,
        /// When, RFC 3339.
        time: Option<String>,
    }
}
