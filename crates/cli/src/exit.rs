//! Exit codes. They are a promise: scripts rely on them, new ones may be added, none changes its meaning.

use common::error::{Error, Kind, Reason};

/// What the process tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// Done.
    Ok,
    /// Failed for a reason that has no code of its own.
    Failed,
    /// The command line or a value in it is wrong.
    Usage,
    /// Some of it was done, some failed.
    Partly,
    /// What was named does not exist.
    NotFound,
    /// Not allowed.
    Denied,
    /// Server or agent not reachable or too busy; the same command may succeed later.
    Unreachable,
    /// Took longer than allowed.
    Timeout,
    /// What is there does not fit: it exists already, has changed, or is locked.
    Conflict,
    /// A quota, a limit or a disk is full.
    Full,
    /// This machine has not joined, or nobody is signed in.
    NotSignedIn,
    /// Only of status commands: something is not as it should be.
    Degraded,
    /// Stopped by Ctrl-C or SIGTERM.
    Cancelled,
    /// Of `use DEVICE -- COMMAND`: what the command ended with.
    Command(u8),
}

impl Exit {
    /// All of them with their description, for the documents.
    pub const ALL: &'static [(Exit, &'static str)] = &[
        (Exit::Ok, "done"),
        (Exit::Failed, "failed"),
        (Exit::Usage, "the command line, or a value in it, is wrong"),
        (
            Exit::Partly,
            "some of it was done, some failed; the errors say what. Of `disc rip`: done, but the disc has bad sectors",
        ),
        (Exit::NotFound, "not found"),
        (Exit::Denied, "denied"),
        (Exit::Unreachable, "server or agent not reachable or too busy; trying again later may help"),
        (Exit::Timeout, "took too long"),
        (Exit::Conflict, "conflict: it exists already, has changed meanwhile, is locked or not in the needed state"),
        (Exit::Full, "refused by a quota or limit, or a disk is full"),
        (Exit::NotSignedIn, "this machine has not joined, or nobody is signed in"),
        (Exit::Degraded, "degraded (`status`, `admin status` and `doctor` only): something is not as it should be"),
        (Exit::Cancelled, "stopped by Ctrl-C or SIGTERM"),
    ];

    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Partly => 3,
            Self::NotFound => 4,
            Self::Denied => 5,
            Self::Unreachable => 6,
            Self::Timeout => 7,
            Self::Conflict => 8,
            Self::Full => 9,
            Self::NotSignedIn => 10,
            Self::Degraded => 11,
            Self::Cancelled => 130,
            Self::Command(code) => code,
        }
    }

    /// The code for an error.
    pub fn of(error: &Error) -> Self {
        match Reason::ALL.iter().find(|r| r.word() == error.reason()) {
            Some(reason) => Self::of_reason(*reason),
            None => Self::of_kind(error.kind()),
        }
    }

    /// The code for a reason of the catalogue: that of its kind, with the exceptions named here.
    pub fn of_reason(reason: Reason) -> Self {
        match reason {
            Reason::NotJoined | Reason::NotSignedIn => Self::NotSignedIn,
            Reason::LoginFailed | Reason::DeviceRevoked => Self::Denied,
            Reason::Overloaded | Reason::LoginRateLimited | Reason::TooManyExchanges => Self::Unreachable,
            Reason::MessageTooLarge => Self::Failed,
            Reason::StoreBusy | Reason::StoreTooNew | Reason::ChunksMissing => Self::Failed,
            Reason::IsADirectory | Reason::NotADirectory => Self::Usage,
            other => Self::of_kind(other.kind()),
        }
    }

    /// The code for a sort of failure.
    pub fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::InvalidArgument => Self::Usage,
            Kind::Unauthenticated => Self::NotSignedIn,
            Kind::PermissionDenied => Self::Denied,
            Kind::NotFound => Self::NotFound,
            Kind::AlreadyExists | Kind::FailedPrecondition | Kind::Aborted => Self::Conflict,
            Kind::ResourceExhausted => Self::Full,
            Kind::Unavailable => Self::Unreachable,
            Kind::DeadlineExceeded => Self::Timeout,
            Kind::Cancelled => Self::Cancelled,
            Kind::DataLoss | Kind::OutOfRange | Kind::Unimplemented | Kind::Internal => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_a_code_of_the_table() {
        for reason in Reason::ALL {
            let exit = Exit::of(&Error::new(*reason, "x"));
            assert!(Exit::ALL.iter().any(|(e, _)| *e == exit), "{}", reason.word());
            assert_ne!(exit, Exit::Ok, "{}", reason.word());
            assert_ne!(exit, Exit::Degraded, "{} is no state of health", reason.word());
        }
    }

    #[test]
    fn the_table_is_the_promised_one() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|(e, _)| e.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 130]);
        assert_eq!(Exit::ALL.iter().map(|(_, d)| d).collect::<HashSet<_>>().len(), 13);
    }

    #[test]
    fn reasons_that_scripts_care_about() {
        let of = |r| Exit::of_reason(r);
        assert_eq!(of(Reason::EntryUnknown), Exit::NotFound);
        assert_eq!(of(Reason::AccessDenied), Exit::Denied);
        assert_eq!(of(Reason::ServerUnreachable), Exit::Unreachable);
        assert_eq!(of(Reason::AgentUnreachable), Exit::Unreachable);
        assert_eq!(of(Reason::DeadlineExceeded), Exit::Timeout);
        assert_eq!(of(Reason::EntryExists), Exit::Conflict);
        assert_eq!(of(Reason::VersionStale), Exit::Conflict);
        assert_eq!(of(Reason::Locked), Exit::Conflict);
        assert_eq!(of(Reason::QuotaExceeded), Exit::Full);
        assert_eq!(of(Reason::DiskFull), Exit::Full);
        assert_eq!(of(Reason::SessionInvalid), Exit::NotSignedIn);
        assert_eq!(of(Reason::CredentialsMissing), Exit::NotSignedIn);
        assert_eq!(of(Reason::NotJoined), Exit::NotSignedIn);
        assert_eq!(of(Reason::Cancelled), Exit::Cancelled);
        assert_eq!(of(Reason::ChunkDamaged), Exit::Failed);
        assert_eq!(of(Reason::PathInvalid), Exit::Usage);
    }

    #[test]
    fn reasons_of_newer_servers_fall_back_to_their_kind() {
        let error = Error::remote(Kind::NotFound, "SOMETHING_NEW".into(), "m".into(), "w".into(), "f".into());
        assert_eq!(Exit::of(&error), Exit::NotFound);
    }
}
