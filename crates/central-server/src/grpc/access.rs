//! Who may call what: one line per method, checked before the handler runs and before anything is looked up.
//!
//! This is the coarse door. The application decides the rest, for example whether this user may read that directory. A
//! method without a line is refused, and a test fails if the contract has a method that is not here.

use crate::app::caller::Caller;
use common::error::{Error, Reason, Result};
use common::model::Role;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Anyone who reaches the port. Credentials that do not count any more are overlooked here.
    Public,
    /// Anyone with credentials: a user, a device or the local administrator.
    Known,
    /// A machine of the office, by its certificate.
    Device,
    /// A signed-in user, or the local administrator.
    User,
    /// A user with the role AUDITOR or ADMIN, or the local administrator.
    Auditor,
    /// A user with the role ADMIN, or the local administrator.
    Admin,
    /// Only root or the server's own user on this machine, over the local socket.
    Local,
}

/// A method of the contract and who may call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its full path: "/atrium.v1.FileService/GetEntry". A constant, so it may label metrics.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// Whether either side sends a stream; such calls live as long as something moves.
    pub streaming: bool,
}

const fn call(path: &'static str, access: Access) -> Method {
    Method { path, access, streaming: false }
}

const fn stream(path: &'static str, access: Access) -> Method {
    Method { path, access, streaming: true }
}

/// The method by which a device gets a fresh certificate.
pub const RENEW: &str = "/atrium.v1.DeviceService/RenewCertificate";
/// The method under which devices count as connected.
pub const WATCH: &str = "/atrium.v1.WatchService/Watch";

/// Every method.
pub const METHODS: &[Method] = &[
    call("/atrium.v1.AdminService/GetServerInfo", Access::Public),
    call("/atrium.v1.AdminService/GetStatus", Access::Admin),
    call("/atrium.v1.AdminService/ListAudit", Access::Auditor),
    call("/atrium.v1.AdminService/VerifyAudit", Access::Auditor),
    stream("/atrium.v1.AdminService/Backup", Access::Local),
    stream("/atrium.v1.AdminService/Scrub", Access::Admin),
    call("/atrium.v1.AdminService/ReclaimSpace", Access::Admin),
    call("/atrium.v1.SessionService/Login", Access::Public),
    // A session that has ended may be ended again.
    call("/atrium.v1.SessionService/Logout", Access::Public),
    call("/atrium.v1.SessionService/WhoAmI", Access::Known),
    call("/atrium.v1.SessionService/ListSessions", Access::User),
    call("/atrium.v1.SessionService/RevokeSession", Access::User),
    call("/atrium.v1.SessionService/ChangePassword", Access::User),
    call("/atrium.v1.AccountService/GetUser", Access::User),
    call("/atrium.v1.AccountService/ListUsers", Access::User),
    call("/atrium.v1.AccountService/CreateUser", Access::Admin),
    call("/atrium.v1.AccountService/UpdateUser", Access::Admin),
    call("/atrium.v1.AccountService/DeleteUser", Access::Admin),
    call("/atrium.v1.AccountService/GetGroup", Access::User),
    call("/atrium.v1.AccountService/ListGroups", Access::User),
    call("/atrium.v1.AccountService/CreateGroup", Access::Admin),
    call("/atrium.v1.AccountService/UpdateGroup", Access::Admin),
    call("/atrium.v1.AccountService/DeleteGroup", Access::Admin),
    // The one-time code is the credential.
    call("/atrium.v1.EnrolmentService/BeginEnrolment", Access::Public),
    call("/atrium.v1.EnrolmentService/FinishEnrolment", Access::Public),
    call("/atrium.v1.DeviceService/CreateInvite", Access::Admin),
    call("/atrium.v1.DeviceService/ListInvites", Access::Admin),
    call("/atrium.v1.DeviceService/DeleteInvite", Access::Admin),
    call("/atrium.v1.DeviceService/ListDevices", Access::Admin),
    call("/atrium.v1.DeviceService/RevokeDevice", Access::Admin),
    call(RENEW, Access::Device),
    call("/atrium.v1.DirectoryService/ListDirectories", Access::User),
    call("/atrium.v1.DirectoryService/GetDirectory", Access::User),
    call("/atrium.v1.DirectoryService/CreateDirectory", Access::Admin),
    call("/atrium.v1.DirectoryService/UpdateDirectory", Access::Admin),
    call("/atrium.v1.DirectoryService/DeleteDirectory", Access::Admin),
    // Whoever has MANAGE on the directory; the application looks.
    call("/atrium.v1.DirectoryService/GrantRight", Access::User),
    call("/atrium.v1.DirectoryService/RevokeRight", Access::User),
    call("/atrium.v1.DirectoryService/ExplainRight", Access::User),
    call("/atrium.v1.FileService/GetEntry", Access::User),
    call("/atrium.v1.FileService/ListEntries", Access::User),
    call("/atrium.v1.FileService/MakeDirectory", Access::User),
    call("/atrium.v1.FileService/MoveEntry", Access::User),
    call("/atrium.v1.FileService/CopyEntry", Access::User),
    call("/atrium.v1.FileService/DeleteEntry", Access::User),
    call("/atrium.v1.FileService/ListTrash", Access::User),
    call("/atrium.v1.FileService/RestoreTrash", Access::User),
    call("/atrium.v1.FileService/PurgeTrash", Access::User),
    call("/atrium.v1.FileService/ListVersions", Access::User),
    call("/atrium.v1.FileService/RestoreVersion", Access::User),
    call("/atrium.v1.FileService/LockEntry", Access::User),
    call("/atrium.v1.FileService/UnlockEntry", Access::User),
    call("/atrium.v1.FileService/GetManifest", Access::User),
    call("/atrium.v1.FileService/FindMissingChunks", Access::User),
    call("/atrium.v1.FileService/CommitFiles", Access::User),
    call("/atrium.v1.FileService/IssueReadTicket", Access::User),
    // Whoever has WRITE on the printer, and whose job it is; the application looks.
    call("/atrium.v1.PrintService/ListPrinters", Access::User),
    stream("/atrium.v1.PrintService/Print", Access::User),
    call("/atrium.v1.PrintService/ListPrintJobs", Access::User),
    call("/atrium.v1.PrintService/GetPrintJob", Access::User),
    call("/atrium.v1.PrintService/CancelPrintJob", Access::User),
    call("/atrium.v1.PrintService/HoldPrintJob", Access::User),
    call("/atrium.v1.PrintService/ReleasePrintJob", Access::User),
    call("/atrium.v1.PrintService/SetPrintJobPriority", Access::User),
    // The machine that a printer hangs on.
    call("/atrium.v1.PrintService/RegisterPrinter", Access::Device),
    call("/atrium.v1.PrintService/WithdrawPrinter", Access::Device),
    call("/atrium.v1.PrintService/WithdrawOtherPrinters", Access::Device),
    stream("/atrium.v1.PrintService/WatchPrintJobs", Access::Device),
    call("/atrium.v1.PrintService/ClaimPrintJob", Access::Device),
    stream("/atrium.v1.PrintService/FetchPrintDocument", Access::Device),
    call("/atrium.v1.PrintService/UpdatePrintJob", Access::Device),
    call("/atrium.v1.PrintService/GrantPrinter", Access::Admin),
    call("/atrium.v1.PrintService/RevokePrinter", Access::Admin),
    call("/atrium.v1.PrintService/RemovePrinter", Access::Admin),
    call("/atrium.v1.PrintService/MovePrinter", Access::Admin),
    call("/atrium.v1.PrintService/SetPrintQuota", Access::Admin),
    call("/atrium.v1.PrintService/ListPrintQuotas", Access::Admin),
    call("/atrium.v1.PrintService/ListPrintAccounts", Access::Admin),
    stream("/atrium.v1.TransferService/UploadChunks", Access::User),
    stream("/atrium.v1.TransferService/Download", Access::User),
    stream(WATCH, Access::User),
    // What this server is and whether it works is no secret.
    call("/grpc.health.v1.Health/Check", Access::Public),
    stream("/grpc.health.v1.Health/Watch", Access::Public),
    stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Public),
    stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Access::Public),
];

/// The method of this path.
///
/// # Errors
/// `METHOD_UNKNOWN`.
pub fn method(path: &str) -> Result<&'static Method> {
    static BY_PATH: LazyLock<HashMap<&'static str, &'static Method>> =
        LazyLock::new(|| METHODS.iter().map(|m| (m.path, m)).collect());
    BY_PATH.get(path).copied().ok_or_else(|| Error::new(Reason::MethodUnknown, "there is no such method"))
}

/// Whether this caller may call a method of this access level.
///
/// # Errors
/// `CREDENTIALS_MISSING`, `DEVICE_REQUIRED`, `ACCESS_DENIED`, `ADMIN_REQUIRED` or `LOCAL_ONLY`.
pub fn check(access: Access, caller: &Caller) -> Result<()> {
    let local = caller.local_admin;
    match access {
        Access::Public => Ok(()),
        Access::Known if local || caller.user.is_some() || caller.device.is_some() => Ok(()),
        Access::Known => caller.require_user().map(|_| ()),
        Access::Device if caller.device.is_some() => Ok(()),
        Access::Device => Err(Error::new(Reason::DeviceRequired, "this needs a joined machine")),
        Access::User if local => Ok(()),
        Access::User => caller.require_user().map(|_| ()),
        Access::Auditor if local => Ok(()),
        Access::Auditor if caller.require_user()?.role >= Role::Auditor => Ok(()),
        Access::Auditor => Err(Error::new(Reason::AccessDenied, "this needs an auditor or an administrator")),
        Access::Admin => caller.require_admin(),
        Access::Local if local => Ok(()),
        Access::Local => Err(Error::new(Reason::LocalOnly, "this is only done on the server machine itself")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::caller::UserIdentity;
    use common::model::DeviceId;
    use prost::Message;
    use std::collections::BTreeMap;

    fn user(role: Role) -> Caller {
        let user = UserIdentity {
            uid: uuid::Uuid::nil(),
            name: "anna".into(),
            role,
            groups: [].into(),
            session: uuid::Uuid::nil(),
            session_expire_ms: 0,
        };
        Caller { user: Some(user), ..Caller::default() }
    }

    #[test]
    fn every_method_of_the_contract_has_its_line_and_every_line_its_method() {
        let set = prost_types::FileDescriptorSet::decode(proto::PUBLIC_DESCRIPTORS).expect("descriptors");
        let mut contract = BTreeMap::new();
        for file in set.file.iter().filter(|f| f.package() == "atrium.v1") {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    contract.insert(path, method.client_streaming() || method.server_streaming());
                }
            }
        }
        let table: BTreeMap<_, _> = METHODS
            .iter()
            .filter(|m| m.path.starts_with("/atrium.v1."))
            .map(|m| (m.path.to_owned(), m.streaming))
            .collect();
        assert_eq!(table, contract);
        assert!(contract.len() >= 55);
        assert_eq!(METHODS.iter().map(|m| m.path).collect::<std::collections::HashSet<_>>().len(), METHODS.len());
    }

    #[test]
    fn each_level_lets_in_exactly_whom_it_says() {
        let nobody = Caller::default();
        let device = Caller { device: Some(DeviceId([1; 32])), ..Caller::default() };
        let local = Caller { local_admin: true, ..Caller::default() };
        let callers = [
            &nobody,
            &device,
            &user(Role::Guest),
            &user(Role::Member),
            &user(Role::Auditor),
            &user(Role::Admin),
            &local,
        ];
        use Reason::{AccessDenied, AdminRequired, CredentialsMissing, DeviceRequired, LocalOnly};
        let expected: [(Access, [Option<Reason>; 7]); 7] = [
            (Access::Public, [None; 7]),
            (Access::Known, [Some(CredentialsMissing), None, None, None, None, None, None]),
            (
                Access::Device,
                [
                    Some(DeviceRequired),
                    None,
                    Some(DeviceRequired),
                    Some(DeviceRequired),
                    Some(DeviceRequired),
                    Some(DeviceRequired),
                    Some(DeviceRequired),
                ],
            ),
            (Access::User, [Some(CredentialsMissing), Some(CredentialsMissing), None, None, None, None, None]),
            (
                Access::Auditor,
                [
                    Some(CredentialsMissing),
                    Some(CredentialsMissing),
                    Some(AccessDenied),
                    Some(AccessDenied),
                    None,
                    None,
                    None,
                ],
            ),
            (
                Access::Admin,
                [
                    Some(CredentialsMissing),
                    Some(CredentialsMissing),
                    Some(AdminRequired),
                    Some(AdminRequired),
                    Some(AdminRequired),
                    None,
                    None,
                ],
            ),
            (
                Access::Local,
                [
                    Some(LocalOnly),
                    Some(LocalOnly),
                    Some(LocalOnly),
                    Some(LocalOnly),
                    Some(LocalOnly),
                    Some(LocalOnly),
                    None,
                ],
            ),
        ];
        for (access, outcomes) in expected {
            for (caller, outcome) in callers.iter().zip(outcomes) {
                let got = check(access, caller);
                match outcome {
                    None => assert!(got.is_ok(), "{access:?} for {}", caller.actor()),
                    Some(reason) => assert!(got.expect_err("refused").is(reason), "{access:?} for {}", caller.actor()),
                }
            }
        }
    }

    #[test]
    fn an_unknown_method_is_refused() {
        for path in ["/atrium.v1.AdminService/Nothing", "", "/", "/atrium.v1.AdminService/GetStatus/", "GetStatus"] {
            assert!(method(path).expect_err("refused").is(Reason::MethodUnknown));
        }
    }
}
