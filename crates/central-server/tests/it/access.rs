//! Every method of the contract, called for real by everyone who may not, and by those who may.

use crate::server::{TestServer, call_raw};
use central_server::grpc::access::{Access, METHODS};
use common::error::{Error, Kind};
use common::model::Role;
use common::rpc::OfficeConnection;
use prost::Message;
use std::collections::BTreeSet;

/// Paths of all methods in the contract.
fn contract() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(proto::PUBLIC_DESCRIPTORS).unwrap();
    let mut paths = BTreeSet::new();
    for file in set.file.iter().filter(|f| f.package() == "atrium.v1") {
        for service in &file.service {
            let prefix = format!("/atrium.v1.{}", service.name());
            paths.extend(service.method.iter().map(|m| format!("{prefix}/{}", m.name())));
        }
    }
    paths
}

/// What each caller gets at each level: a reason, or nothing if the door is open.
fn expected(access: Access, who: &str) -> Option<&'static str> {
    let no_user = matches!(who, "nobody" | "device");
    match access {
        Access::Public => None,
        Access::Known => (who == "nobody").then_some("CREDENTIALS_MISSING"),
        Access::Device => (who != "device").then_some("DEVICE_REQUIRED"),
        Access::User => no_user.then_some("CREDENTIALS_MISSING"),
        Access::Auditor if no_user => Some("CREDENTIALS_MISSING"),
        Access::Auditor => matches!(who, "guest" | "member").then_some("ACCESS_DENIED"),
        Access::Admin if no_user => Some("CREDENTIALS_MISSING"),
        Access::Admin => matches!(who, "guest" | "member" | "auditor").then_some("ADMIN_REQUIRED"),
        Access::Local => (who != "local").then_some("LOCAL_ONLY"),
    }
}

/// True if the door refused. A method that was entered may refuse for reasons of its own: a guest may not list users.
fn is_refusal(access: Access, error: &Error) -> bool {
    let reasons: &[&str] = match access {
        Access::Public => &["CREDENTIALS_MISSING", "ACCESS_DENIED", "ADMIN_REQUIRED", "DEVICE_REQUIRED", "LOCAL_ONLY"],
        Access::Known | Access::User => &["CREDENTIALS_MISSING", "ADMIN_REQUIRED", "DEVICE_REQUIRED", "LOCAL_ONLY"],
        Access::Device => &["CREDENTIALS_MISSING", "DEVICE_REQUIRED", "ADMIN_REQUIRED"],
        Access::Auditor | Access::Admin | Access::Local => {
            return matches!(error.kind(), Kind::Unauthenticated | Kind::PermissionDenied);
        }
    };
    reasons.contains(&error.reason())
}

/// Methods that answer an empty request with a refusal of their own: a login without name and password, a proof that
/// proves nothing.
const REFUSES_ITSELF: [&str; 2] = ["/atrium.v1.SessionService/Login", "/atrium.v1.EnrolmentService/FinishEnrolment"];

/// Methods that go on for ever if they are let in.
const ENDLESS: [&str; 2] = ["/atrium.v1.WatchService/Watch", "/atrium.v1.PrintService/WatchPrintJobs"];

#[tokio::test(flavor = "multi_thread")]
async fn every_method_lets_in_whom_it_should_and_nobody_else() {
    let server = TestServer::start().await;
    let device = server.join().await;
    // The local caller is on a server of its own: what it is let in to (a logout, say) changes things.
    let callers: Vec<(&str, OfficeConnection)> = vec![
        ("nobody", server.anonymous()),
        ("device", server.device(&device)),
        ("guest", server.user("guest", Role::Guest).await),
        ("member", server.user("member", Role::Member).await),
        ("auditor", server.user("auditor", Role::Auditor).await),
        ("admin", server.user("admin", Role::Admin).await),
        ("local", server.local()),
    ];
    let mut covered = BTreeSet::new();
    for method in METHODS.iter().filter(|m| m.path.starts_with("/atrium.")) {
        // An empty logout is a logout: it would end the session that the next methods need.
        let spares_session = method.path == "/atrium.v1.SessionService/Logout";
        for (who, connection) in &callers {
            if spares_session && !matches!(*who, "nobody" | "device" | "local") {
                continue;
            }
            let wanted = expected(method.access, who);
            if wanted.is_none() && ENDLESS.contains(&method.path) {
                // Let in: it sends a mark of progress sooner or later, and no refusal.
                let wait = std::time::Duration::from_millis(300);
                if let Ok(answer) = tokio::time::timeout(wait, call_raw(connection.control(), method.path)).await {
                    let refused = answer.as_ref().err().is_some_and(|e| is_refusal(method.access, e));
                    assert!(!refused || *who == "local", "{who} at {}: {answer:?}", method.path);
                }
                continue;
            }
            let answer = call_raw(connection.control(), method.path).await;
            match wanted {
                Some(reason) => {
                    let error = answer.expect_err(method.path);
                    assert_eq!(error.reason(), reason, "{who} at {}: {error:?}", method.path);
                    assert!(error.request_id().is_some(), "{who} at {} has no request id", method.path);
                }
                None if REFUSES_ITSELF.contains(&method.path) => {
                    assert!(answer.is_err(), "{who} at {}", method.path);
                }
                None => {
                    let refused = answer.as_ref().err().is_some_and(|e| is_refusal(method.access, e));
                    // A local administrator has no home and no name: a method of a person may say so.
                    let no_person = *who == "local" && method.access == Access::User;
                    assert!(!refused || no_person, "{who} at {}: {answer:?}", method.path);
                    let defect = answer.as_ref().err().is_some_and(|e| e.kind() == Kind::Internal);
                    assert!(!defect, "{who} at {}: {answer:?}", method.path);
                    let unknown = answer.as_ref().err().is_some_and(|e| e.kind() == Kind::Unimplemented);
                    assert!(!unknown, "{} is not served: {answer:?}", method.path);
                }
            }
        }
        covered.insert(method.path.to_owned());
    }
    assert_eq!(covered, contract(), "methods without an authorization test");
    drop(callers);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_does_not_exist_is_refused_before_anything_else() {
    let server = TestServer::start().await;
    for path in ["/atrium.v1.FileService/Format", "/atrium.v1.Nothing/Nothing", "/atrium.agent.v1.AgentService/Join"] {
        for connection in [server.anonymous(), server.local()] {
            let error = call_raw(connection.control(), path).await.expect_err(path);
            assert_eq!(error.reason(), "METHOD_UNKNOWN");
        }
    }
    server.stop().await;
}
