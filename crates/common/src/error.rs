//! The error that layers exchange. It knows no transport.
//!
//! Every [`Reason`] is a stable word with a kind, a default *why* and a default *fix*; the table in `docs/errors.md` is
//! generated from here. An error that came from another machine keeps its words even if this build does not know them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// What sort of failure it is; maps one to one to a gRPC code (see [`crate::status`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A field is malformed.
    InvalidArgument,
    /// No or bad credentials.
    Unauthenticated,
    /// Credentials are good but not enough.
    PermissionDenied,
    /// It does not exist.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// The system is not in the state this needs.
    FailedPrecondition,
    /// Lost a race or a stale version.
    Aborted,
    /// A quota, a disk or a queue is full.
    ResourceExhausted,
    /// Away or shutting down; trying again helps.
    Unavailable,
    /// Stored bytes do not match their digest.
    DataLoss,
    /// Past the end.
    OutOfRange,
    /// Took too long.
    DeadlineExceeded,
    /// The caller gave up.
    Cancelled,
    /// Not offered by this build.
    Unimplemented,
    /// A defect of ours.
    Internal,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident $word:literal $kind:ident, $why:literal, $fix:literal;)*) => {
        /// A stable word for each way to fail.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])* #[doc = $why] $name,)* }

        impl Reason {
            /// All reasons, in the order of the catalogue.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];
            /// The UPPER_SNAKE word that clients may rely on.
            pub fn word(self) -> &'static str { match self { $(Reason::$name => $word,)* } }
            /// The sort of failure.
            pub fn kind(self) -> Kind { match self { $(Reason::$name => Kind::$kind,)* } }
            /// Why it happens, for a person.
            pub fn why(self) -> &'static str { match self { $(Reason::$name => $why,)* } }
            /// What to do about it, for a person.
            pub fn fix(self) -> &'static str { match self { $(Reason::$name => $fix,)* } }
        }
    };
}

reasons! {
    // Input.
    FieldInvalid "FIELD_INVALID" InvalidArgument, "a field of the request is malformed", "correct the field that the message names";
    NameInvalid "NAME_INVALID" InvalidArgument, "the name is empty, too long, '.' or '..', or has '/', NUL or control characters", "choose another name of 1 to 255 bytes";
    PathInvalid "PATH_INVALID" InvalidArgument, "the path is not one that Atrium understands", "write it like home:notes/a.txt or public:plans/x.pdf";
    MessageTooLarge "MESSAGE_TOO_LARGE" ResourceExhausted, "the message is larger than the server takes", "send smaller messages, 1 MiB each";
    MessageMalformed "MESSAGE_MALFORMED" InvalidArgument, "the message could not be decoded", "check that client and server use the same proto files";
    PageTokenInvalid "PAGE_TOKEN_INVALID" InvalidArgument, "the page token is not one that the server gave out for this list", "begin with an empty page token";
    RequestIdReused "REQUEST_ID_REUSED" InvalidArgument, "another request was sent under the same request id", "use a new UUID for each request";
    MethodUnknown "METHOD_UNKNOWN" Unimplemented, "this server does not offer the method", "check the method's name and the server's version";
    // Who.
    CredentialsMissing "CREDENTIALS_MISSING" Unauthenticated, "the call carries no session and no device certificate", "sign in with `atrium login`";
    SessionInvalid "SESSION_INVALID" Unauthenticated, "the session has ended, was revoked or never existed", "sign in again with `atrium login`";
    LoginFailed "LOGIN_FAILED" Unauthenticated, "name or password is wrong, or the account is disabled", "check both; an administrator can set a new password";
    LoginRateLimited "LOGIN_RATE_LIMITED" ResourceExhausted, "too many attempts to sign in", "wait for the time given, then try again";
    DeviceRevoked "DEVICE_REVOKED" Unauthenticated, "the office has cut this device off", "ask an administrator for a new invite and join again";
    DeviceRequired "DEVICE_REQUIRED" Unauthenticated, "the call needs a device certificate", "call it from a joined machine";
    AccessDenied "ACCESS_DENIED" PermissionDenied, "you do not have the right to do this", "ask who manages it; `atrium why` tells which rule decides";
    AdminRequired "ADMIN_REQUIRED" PermissionDenied, "only an administrator may do this", "ask an administrator";
    LocalOnly "LOCAL_ONLY" PermissionDenied, "this may only be done on the server machine itself", "run the command there as root";
    PasswordTooWeak "PASSWORD_TOO_WEAK" InvalidArgument, "the password is shorter than 8 characters or longer than 1,024 bytes", "choose another password";
    // Joining.
    InviteUnknown "INVITE_UNKNOWN" NotFound, "no living invite has this code: it never existed, was used, was guessed wrong once, or expired", "ask for a new code: `atrium admin invite`";
    InviteCodeWrong "INVITE_CODE_WRONG" PermissionDenied, "the code is wrong, or someone is between you and the server", "ask for a new code; this one is burned";
    OfficeProofWrong "OFFICE_PROOF_WRONG" PermissionDenied, "the server could not prove that it knows the code", "check the server's address; nothing secret was sent to it";
    ExchangeUnknown "EXCHANGE_UNKNOWN" FailedPrecondition, "the join took longer than 60 seconds or was finished already", "start again with `atrium join`";
    TooManyExchanges "TOO_MANY_EXCHANGES" ResourceExhausted, "too many machines are joining at the same moment", "try again in a minute";
    CertificateRequestInvalid "CERTIFICATE_REQUEST_INVALID" InvalidArgument, "the certificate request is malformed or signed by another key", "update the agent and join again";
    NotJoined "NOT_JOINED" FailedPrecondition, "this machine is not a member of an office yet", "join with `atrium join SERVER`";
    AlreadyJoined "ALREADY_JOINED" FailedPrecondition, "this machine is a member of an office already", "stop the agent and remove its state directory to join another office";
    NotSignedIn "NOT_SIGNED_IN" FailedPrecondition, "you are not signed in on this machine", "sign in with `atrium login NAME`";
    KeyFileExposed "KEY_FILE_EXPOSED" FailedPrecondition, "others than its owner can read the file with the private key", "run chmod 600 on it; if others may have read it, remove it and join again";
    KeyFileInvalid "KEY_FILE_INVALID" FailedPrecondition, "the file with the private key is damaged or holds another kind of key", "restore it from a backup, or remove it and join again";
    CertificateInvalid "CERTIFICATE_INVALID" FailedPrecondition, "the certificate is damaged or not one that can be used here", "restore it from a backup, or join again";
    // Offices of peers.
    MemberUnknown "MEMBER_UNKNOWN" NotFound, "there is no such person, machine or group in the office", "`atrium members` shows all";
    RecordInvalid "RECORD_INVALID" InvalidArgument, "a membership record or announcement is malformed, wrongly signed or of another office", "update the program of the machine that made it";
    OfficeFull "OFFICE_FULL" ResourceExhausted, "an office keeps 20,000 membership records, 4,096 of one device", "found a new office, or attach a central server";
    // Things.
    UserUnknown "USER_UNKNOWN" NotFound, "there is no such user", "`atrium admin users list` shows all";
    UserExists "USER_EXISTS" AlreadyExists, "a user of this name exists or existed; names are never given twice", "choose another name";
    GroupUnknown "GROUP_UNKNOWN" NotFound, "there is no such group", "`atrium admin groups list` shows all";
    GroupExists "GROUP_EXISTS" AlreadyExists, "a group of this name exists", "choose another name";
    GroupTooLarge "GROUP_TOO_LARGE" ResourceExhausted, "a group has at most 500 members", "divide it into several groups";
    TooManyGroups "TOO_MANY_GROUPS" ResourceExhausted, "a user is in at most 500 groups", "take the user out of a group that is no longer needed";
    LastAdmin "LAST_ADMIN" FailedPrecondition, "this is the last administrator", "make another administrator first";
    DeviceUnknown "DEVICE_UNKNOWN" NotFound, "there is no such device", "`atrium admin devices list` shows all";
    SessionUnknown "SESSION_UNKNOWN" NotFound, "there is no such session", "list the sessions again";
    TooManyInvites "TOO_MANY_INVITES" ResourceExhausted, "at most 100 invites may live at a time", "take some back or wait for them to expire";
    ParcelUnknown "PARCEL_UNKNOWN" NotFound, "there is no such parcel, or its beginning fits more than one", "`atrium inbox` and `atrium outbox` show all";
    ParcelInvalid "PARCEL_INVALID" InvalidArgument, "the parcel is malformed, was changed on its way, or is not from a member of this office", "ask its sender to send it again";
    ParcelTooLarge "PARCEL_TOO_LARGE" ResourceExhausted, "a parcel's list of files has at most 16 MiB, enough for about 100,000 files", "share the folder instead: `atrium share`";
    ParcelAnswered "PARCEL_ANSWERED" FailedPrecondition, "the parcel was accepted, refused or delivered already", "`atrium inbox` shows its state";
    OutboxFull "OUTBOX_FULL" ResourceExhausted, "parcels that wait for their receivers take as much room as the settings allow", "cancel one with `atrium outbox cancel`, or raise outbox.limit";
    InboxFull "INBOX_FULL" ResourceExhausted, "the receiver's list of parcels is full", "try again when the receiver has cleared it";
    KeeperFull "KEEPER_FULL" ResourceExhausted, "the node keeps as many parcels of others as its settings allow", "nothing; another keeper is asked, or the parcel waits with its sender";
    DirectoryUnknown "DIRECTORY_UNKNOWN" NotFound, "there is no such private or public directory, or you may not see it", "`atrium ls` shows all that you may see";
    DirectoryExists "DIRECTORY_EXISTS" AlreadyExists, "a public directory of this name exists", "choose another name";
    DirectoryNotEmpty "DIRECTORY_NOT_EMPTY" FailedPrecondition, "the directory has entries, versions or trash", "empty it first, or say that everything in it goes";
    EntryUnknown "ENTRY_UNKNOWN" NotFound, "there is no such file or directory", "`atrium ls` shows what is there";
    EntryExists "ENTRY_EXISTS" AlreadyExists, "something of this name is there already", "choose another name, or remove it first";
    NameClash "NAME_CLASH" AlreadyExists, "a name that differs only in letter case or in Unicode form is there already; Windows and macOS could not tell them apart", "choose another name, or make the public directory case-sensitive";
    NotADirectory "NOT_A_DIRECTORY" FailedPrecondition, "a part of the path is a file", "check the path";
    IsADirectory "IS_A_DIRECTORY" FailedPrecondition, "the path is a directory", "name a file";
    MoveIntoItself "MOVE_INTO_ITSELF" FailedPrecondition, "a directory cannot be moved or copied below itself", "choose another destination";
    RootFixed "ROOT_FIXED" FailedPrecondition, "a private or public directory itself cannot be moved, replaced or deleted like a file", "act on what is in it";
    TreeTooLarge "TREE_TOO_LARGE" FailedPrecondition, "there is too much below this directory for one step", "act on its parts, one after the other";
    EtagStale "ETAG_STALE" Aborted, "it has changed since you read it", "read it again, then decide";
    VersionStale "VERSION_STALE" Aborted, "another version is there than the one you changed", "get the present version, join both changes, put again";
    VersionUnknown "VERSION_UNKNOWN" NotFound, "there is no such version, or it was deleted by the retention rules", "`atrium versions` shows those that are kept";
    TrashUnknown "TRASH_UNKNOWN" NotFound, "this is not in the trash", "list the trash again";
    Locked "LOCKED" FailedPrecondition, "someone has checked the file out", "wait, ask that person, or ask who manages the directory to break the lock";
    LockLost "LOCK_LOST" Aborted, "your check-out has ended and someone else has had the file since", "get the present version and lock it again";
    NotLocked "NOT_LOCKED" FailedPrecondition, "the file is not checked out", "nothing needs to be done";
    FileTooLarge "FILE_TOO_LARGE" ResourceExhausted, "the file is larger than the server takes", "divide it, or ask an administrator to raise files.max_file";
    QuotaExceeded "QUOTA_EXCEEDED" ResourceExhausted, "the directory's quota would be exceeded; old versions and trash count", "empty the trash, delete something, or ask an administrator for more";
    DiskFull "DISK_FULL" ResourceExhausted, "the server's disk is nearly full", "an administrator must free or add space; nothing was lost";
    ChunksMissing "CHUNKS_MISSING" FailedPrecondition, "some chunks of the file are not on the server", "upload the missing chunks and commit again";
    ChunkDigestMismatch "CHUNK_DIGEST_MISMATCH" DataLoss, "the bytes that arrived do not match their digest", "send them again";
    ChunkDamaged "CHUNK_DAMAGED" DataLoss, "the stored bytes do not match their digest any more", "put the file again, or restore a backup; `atrium admin scrub` lists what is hit";
    RangeInvalid "RANGE_INVALID" OutOfRange, "the range lies outside of the file", "ask for the file's size first";
    CursorTooOld "CURSOR_TOO_OLD" OutOfRange, "the change log does not reach back that far", "list again, then watch from the oldest cursor";
    WatcherTooSlow "WATCHER_TOO_SLOW" Unavailable, "changes came faster than this watcher took them", "watch again from the last cursor";
    UploadInvalid "UPLOAD_INVALID" InvalidArgument, "the upload id is missing or not a UUID", "use one new UUID per upload";
    ShareUnknown "SHARE_UNKNOWN" NotFound, "there is no such share, or you may not see it", "`atrium ls` shows all that you may see";
    ShareExists "SHARE_EXISTS" AlreadyExists, "this machine has a share of that name, or shares that folder already", "choose another name, or change the share that is there";
    ShareInvalid "SHARE_INVALID" InvalidArgument, "the share's record is malformed, or not signed by its owner", "ask the owner to share the folder again";
    FolderInvalid "FOLDER_INVALID" FailedPrecondition, "the path is not a folder of this machine that can be shared", "name a folder that exists and that you can read";
    FolderChanged "FOLDER_CHANGED" FailedPrecondition, "the shared folder is missing or another one is in its place, so nothing of it was taken for deleted", "attach its disk or bring it back; if the new folder is meant, share it again";
    AddressUnknown "ADDRESS_UNKNOWN" NotFound, "nothing that you may see has this address", "`atrium ls` shows what there is";
    AddressAmbiguous "ADDRESS_AMBIGUOUS" FailedPrecondition, "more than one node or share claims this name", "write the one that is meant with '~' and the beginning of its id, as the message lists them";
    PeerMisbehaves "PEER_MISBEHAVES" DataLoss, "the other node sent something that cannot be true", "tell the person of that node; its word was not taken";
    TransferUnknown "TRANSFER_UNKNOWN" NotFound, "there is no such transfer here, or it ended more than a day ago", "`atrium transfers` shows all";
    NoSource "NO_SOURCE" Unavailable, "no machine that has the missing parts can be reached now", "switch one of them on; the transfer goes on by itself";
    // Devices.
    ResourceUnknown "RESOURCE_UNKNOWN" NotFound, "there is no such printer, drive or disk, or you may not see it", "`atrium devices` shows all that you may see";
    ResourceExists "RESOURCE_EXISTS" AlreadyExists, "this machine shares a device of that name already", "choose another name with --name, or unshare the other one";
    ResourceInvalid "RESOURCE_INVALID" InvalidArgument, "the device cannot be shared like this", "`atrium share --help` shows what each kind needs";
    ResourceBusy "RESOURCE_BUSY" FailedPrecondition, "somebody else uses the device and it cannot be shared at the same time", "wait, or ask the holder with `atrium request`";
    ResourceRemote "RESOURCE_REMOTE" FailedPrecondition, "the device belongs to another machine, which shares it already", "use it there; it is never announced twice";
    LeaseUnknown "LEASE_UNKNOWN" NotFound, "there is no such lease here", "`atrium devices` shows who holds what";
    LeaseLost "LEASE_LOST" Aborted, "the lease has expired or was taken back, and somebody else may have had the device since", "take a new lease with `atrium use` and begin again";
    LeaseQueueFull "LEASE_QUEUE_FULL" ResourceExhausted, "too many are waiting for this device", "try again later";
    DeviceAway "DEVICE_AWAY" Unavailable, "the device is switched off, unplugged or does not answer", "check the device at its machine";
    DeviceFailed "DEVICE_FAILED" Internal, "the device reported an error", "check the device at its machine; the message says what it said";
    PrinterUnready "PRINTER_UNREADY" Unavailable, "the printer is out of paper, jammed or stopped", "mend it at the printer; the queue goes on by itself";
    PrinterUntrusted "PRINTER_UNTRUSTED" FailedPrecondition, "the printer shows another certificate than the one that is trusted, or one that nobody here vouches for", "compare its fingerprint with the one that the printer itself shows; if they are the same, `atrium share printers/NAME --trust new`";
    PrintJobUnknown "PRINT_JOB_UNKNOWN" NotFound, "there is no such print job, or it is not yours", "`atrium jobs` shows yours";
    PrintJobTaken "PRINT_JOB_TAKEN" FailedPrecondition, "the printer's machine has taken the job already", "cancel it, or print it";
    PrintAttemptStale "PRINT_ATTEMPT_STALE" Aborted, "the job was given out again since, to another machine or another spool", "do not print it; look at the jobs that wait";
    PrintJobEnded "PRINT_JOB_ENDED" FailedPrecondition, "the job is completed, canceled or aborted already", "nothing needs to be done";
    PrintQuotaExceeded "PRINT_QUOTA_EXCEEDED" ResourceExhausted, "your quota of sheets or bytes for this printer is used up", "wait for the next period, or ask who manages the printer";
    PrintFormatUnknown "PRINT_FORMAT_UNKNOWN" InvalidArgument, "the printer does not take this kind of document", "print a PDF, JPEG, PWG raster or Apple raster file";
    PinWrong "PIN_WRONG" PermissionDenied, "the PIN is not the one of the job", "after five wrong ones the job is locked for five minutes";
    QueueLimit "QUEUE_LIMIT" ResourceExhausted, "the queue has as many jobs or bytes as it keeps", "wait until some are printed, or cancel some";
    TrayOpen "TRAY_OPEN" FailedPrecondition, "the drive's tray is open", "close it: `atrium disc close`";
    NoMedium "NO_MEDIUM" FailedPrecondition, "there is no disc in the drive", "put one in and try again";
    TlsRequired "TLS_REQUIRED" FailedPrecondition, "what is offered beyond this machine without TLS can be read by anybody who reaches the address, and on its way", "offer it over TLS, or say explicitly that everybody may read it";
    DiscChanged "DISC_CHANGED" Aborted, "the disc was changed or taken out since you opened it", "look at the drive again with `atrium devices`, then open what is in it now";
    SectorBad "SECTOR_BAD" DataLoss, "the disc has sectors that the drive cannot read", "clean the disc; `atrium disc rip` goes on around them and lists them";
    DiscFormatUnknown "DISC_FORMAT_UNKNOWN" FailedPrecondition, "the disc has neither an ISO 9660 nor a UDF file system that can be read", "read it as an image with `atrium disc rip`";
    SpaceUnknown "SPACE_UNKNOWN" NotFound, "there is no such borrowed space, or it is not yours", "`atrium space list` shows the space that you have borrowed";
    SpaceExpired "SPACE_EXPIRED" FailedPrecondition, "the time for which the space was borrowed is over, and it was wiped", "borrow space again";
    SpaceFull "SPACE_FULL" ResourceExhausted, "the space that was lent is used up, or its owner needs the rest of the disk", "delete something in it, or borrow from another machine; reading goes on";
    MirrorMissing "MIRROR_MISSING" FailedPrecondition, "the share has no second copy on another machine", "choose a disk for it: atrium space mirror SHARE DISK";
    MirrorAppendOnly "MIRROR_APPEND_ONLY" FailedPrecondition, "a mirror place is never overwritten and nothing in it is deleted before its time", "put the new version beside the old one";
    // State.
    ShuttingDown "SHUTTING_DOWN" Unavailable, "the server is shutting down", "try again in a few seconds";
    Starting "STARTING" Unavailable, "the server has just been started and is opening its data", "try again in a few seconds";
    ServerUnreachable "SERVER_UNREACHABLE" Unavailable, "no connection to the server", "check the network and the server's address; `atrium doctor` tests both";
    AgentUnreachable "AGENT_UNREACHABLE" Unavailable, "the agent of this machine does not answer", "start it: `systemctl start client-agent`";
    PeerNotRunning "PEER_NOT_RUNNING" Unavailable, "no peer of yours answers on this machine", "start it: `systemctl --user start peer-node`, or `peer-node` in a terminal";
    PeerUnreachable "PEER_UNREACHABLE" Unavailable, "the other machine is off, in another network, or a firewall is in between", "`atrium peers` says for every machine why it cannot be reached and what to do";
    NotAMember "NOT_A_MEMBER" PermissionDenied, "one of the two machines does not count the other as a member of its office", "join with a code; if that was done just now, try again in a few seconds";
    RelayRefused "RELAY_REFUSED" PermissionDenied, "passing connections on is switched off at this node", "switch it on in the settings of a node that both machines reach";
    TlsFailed "TLS_FAILED" Unavailable, "the other side's certificate is not one of this office, or it has expired", "check the address and the clock; join again if the office was set up anew";
    Overloaded "OVERLOADED" ResourceExhausted, "too much is going on at the moment", "try again after the time given";
    IdleTimeout "IDLE_TIMEOUT" DeadlineExceeded, "nothing moved on the stream for too long", "try again; transfers continue where they stopped";
    DeadlineExceeded "DEADLINE_EXCEEDED" DeadlineExceeded, "the call took longer than its deadline", "try again with a longer deadline";
    Cancelled "CANCELLED" Cancelled, "the call was given up", "try again if it was not meant";
    StoreFailed "STORE_FAILED" Internal, "the server's database reported an error; it takes no more changes until it is restarted", "look at the server's log; restart it";
    StoreCorrupt "STORE_CORRUPT" DataLoss, "the database is damaged", "restore the newest snapshot or backup";
    StoreTooNew "STORE_TOO_NEW" FailedPrecondition, "the data was written by a newer version", "install that version or a newer one";
    StoreBusy "STORE_BUSY" FailedPrecondition, "another process uses the same data directory", "stop the other process";
    StoreLimit "STORE_LIMIT" ResourceExhausted, "a record or a transaction is larger than the store takes", "do it in smaller steps";
    SettingsInvalid "SETTINGS_INVALID" InvalidArgument, "the settings have mistakes", "correct them; `--check-config` lists all";
    IoFailed "IO_FAILED" Internal, "reading or writing a file failed", "look at the log; check the disk";
    QueueFull "QUEUE_FULL" ResourceExhausted, "the upload queue has reached its limit", "wait until uploads have finished, or raise the limit";
    QueueItemUnknown "QUEUE_ITEM_UNKNOWN" NotFound, "there is no such upload in your queue", "list the queue again";
    LocalFileChanged "LOCAL_FILE_CHANGED" Aborted, "a file of this machine is written by another program while it is being sent", "wait until that program has finished, then try again";
    NotCached "NOT_CACHED" Unavailable, "the server is away and this file is not wholly in the cache", "try again when the server is back";
    AuditFailed "AUDIT_FAILED" Internal, "the audit log could not be written, so nothing was done", "look at the server's log";
    Internal "INTERNAL" Internal, "a defect of Atrium", "report it with the request id";
}

/// A failure: what, why and what to do.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    reason: Cow<'static, str>,
    message: String,
    why: Cow<'static, str>,
    fix: Cow<'static, str>,
    metadata: Vec<(String, String)>,
    retry_after: Option<Duration>,
    request_id: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the catalogue. `message` says what failed, to what, without secrets, local paths or addresses.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind: reason.kind(),
            reason: Cow::Borrowed(reason.word()),
            message: message.into(),
            why: Cow::Borrowed(reason.why()),
            fix: Cow::Borrowed(reason.fix()),
            metadata: Vec::new(),
            retry_after: None,
            request_id: None,
            source: None,
        }))
    }

    /// An error that another machine reported in its own words.
    pub fn remote(kind: Kind, reason: String, message: String, why: String, fix: String) -> Self {
        Self(Box::new(Inner {
            kind,
            reason: Cow::Owned(reason),
            message,
            why: Cow::Owned(why),
            fix: Cow::Owned(fix),
            metadata: Vec::new(),
            retry_after: None,
            request_id: None,
            source: None,
        }))
    }

    /// A defect of ours, with its cause for the log.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Reason::Internal, message)
    }

    /// Replaces the default *why*.
    #[must_use]
    pub fn why_is(mut self, why: impl Into<String>) -> Self {
        self.0.why = Cow::Owned(why.into());
        self
    }

    /// Replaces the default *fix*.
    #[must_use]
    pub fn fix_is(mut self, fix: impl Into<String>) -> Self {
        self.0.fix = Cow::Owned(fix.into());
        self
    }

    /// Adds a machine-readable detail (goes into `ErrorInfo.metadata`).
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.0.metadata.push((key.to_owned(), value.to_string()));
        self
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Keeps the cause, for the log only: it is never sent to a caller.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Sets the request id under which the other side logged the call.
    #[must_use]
    pub fn under_request(mut self, id: impl Into<String>) -> Self {
        self.0.request_id = Some(id.into());
        self
    }

    /// The sort of failure.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }
    /// The stable word.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }
    /// True for this reason of the catalogue.
    pub fn is(&self, reason: Reason) -> bool {
        self.0.reason == reason.word()
    }
    /// What failed.
    pub fn message(&self) -> &str {
        &self.0.message
    }
    /// Why, for a person.
    pub fn why(&self) -> &str {
        &self.0.why
    }
    /// What to do, for a person.
    pub fn fix(&self) -> &str {
        &self.0.fix
    }
    /// Machine-readable details.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.0.metadata
    }
    /// One detail.
    pub fn detail(&self, key: &str) -> Option<&str> {
        self.0.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
    /// When to try again, if known.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.0.retry_after
    }
    /// Request id, if known.
    pub fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }
    /// True if the same call may succeed later without any change.
    pub fn is_transient(&self) -> bool {
        matches!(self.0.kind, Kind::Unavailable | Kind::DeadlineExceeded)
            || self.is(Reason::Overloaded)
            || self.is(Reason::LoginRateLimited)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}): {}", self.0.reason, self.0.kind, self.0.message)?;
        let mut source = self.0.source.as_deref().map(|s| s as &dyn std::error::Error);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        let reason = if full { Reason::DiskFull } else { Reason::IoFailed };
        Error::new(reason, "a file could not be read or written").caused_by(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_is_unique_and_explains_itself() {
        let mut words = HashSet::new();
        for reason in Reason::ALL {
            assert!(words.insert(reason.word()), "{} twice", reason.word());
            assert!(reason.word().chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{}", reason.word());
            assert!(reason.why().len() > 8 && reason.fix().len() > 8, "{}", reason.word());
        }
    }
}
