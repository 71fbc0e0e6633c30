//! Against an agent that is made up: what the command line asks it, and what it makes of the answers.

use crate::process::{failure, run};
use proto::agent::v1::agent_service_server::{AgentService, AgentServiceServer};
use proto::agent::v1::*;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Empty, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// What the agent answers and what it was told.
#[derive(Clone, Default)]
struct Fake {
    status: GetStatusResponse,
    queue: Vec<list_queue_response::Item>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn note(&self, text: String) {
        self.told.lock().unwrap().push(text);
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl AgentService for Fake {
    type FetchStream = Empty<Result<FetchResponse, Status>>;
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Answer<GetStatusResponse> {
        Ok(Response::new(self.status.clone()))
    }
    async fn join(&self, request: Request<JoinRequest>) -> Answer<JoinResponse> {
        let request = request.into_inner();
        self.note(format!("join {} {} {}", request.server, request.code, request.display_name));
        Ok(Response::new(JoinResponse { office: "Acme".into(), device_id: "d1".into() }))
    }
    async fn login(&self, request: Request<LoginRequest>) -> Answer<LoginResponse> {
        let request = request.into_inner();
        self.note(format!("login {} {}", request.user, request.password));
        Ok(Response::new(LoginResponse { user: request.user, expire_time: None }))
    }
    async fn logout(&self, _: Request<LogoutRequest>) -> Answer<LogoutResponse> {
        Ok(Response::new(LogoutResponse {}))
    }
    async fn get_connection(&self, _: Request<GetConnectionRequest>) -> Answer<GetConnectionResponse> {
        Ok(Response::new(GetConnectionResponse::default()))
    }
    async fn queue_upload(&self, request: Request<Streaming<QueueUploadRequest>>) -> Answer<QueueUploadResponse> {
        let mut stream = request.into_inner();
        let mut size = 0;
        while let Some(message) = stream.next().await {
            match message?.part {
                Some(queue_upload_request::Part::Header(h)) => {
                    self.note(format!("queue {}:{} {} bytes", h.root, h.path, h.size_bytes));
                }
                Some(queue_upload_request::Part::Data(data)) => size += data.len(),
                None => {}
            }
        }
        self.note(format!("got {size} bytes"));
        Ok(Response::new(QueueUploadResponse { id: "q1".into() }))
    }
    async fn list_queue(&self, _: Request<ListQueueRequest>) -> Answer<ListQueueResponse> {
        Ok(Response::new(ListQueueResponse { items: self.queue.clone() }))
    }
    async fn cancel_upload(&self, request: Request<CancelUploadRequest>) -> Answer<CancelUploadResponse> {
        self.note(format!("cancel {}", request.into_inner().id));
        Ok(Response::new(CancelUploadResponse {}))
    }
    async fn fetch(&self, _: Request<FetchRequest>) -> Answer<Self::FetchStream> {
        Ok(Response::new(tokio_stream::empty()))
    }
    async fn clear_cache(&self, _: Request<ClearCacheRequest>) -> Answer<ClearCacheResponse> {
        Ok(Response::new(ClearCacheResponse { freed_bytes: 3 << 20 }))
    }
}

struct Running {
    home: TempDir,
    socket: PathBuf,
    told: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Running {
    fn start(fake: Fake) -> Self {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("agent.sock");
        let told = fake.told.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(async { UnixListener::bind(&socket).unwrap() });
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(AgentServiceServer::new(fake));
            server.serve_with_incoming(UnixListenerStream::new(listener)).await
        });
        Self { home, socket, told, _runtime: runtime }
    }

    fn run(&self, args: &[&str]) -> std::process::Output {
        run(self.home.path(), &[args, &["--agent", self.socket.to_str().unwrap()]].concat())
    }

    fn json(&self, args: &[&str]) -> (i32, serde_json::Value) {
        let output = self.run(&[args, &["--json"]].concat());
        let value = serde_json::from_slice(&output.stdout);
        let value = value.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap(), value)
    }
}

#[test]
fn a_machine_that_has_not_joined_is_degraded_and_told_what_to_do() {
    let status = GetStatusResponse {
        version: "0.1.0".into(),
        connection: get_status_response::Connection::NotJoined as i32,
        problems: vec![AgentProblem {
            reason: "NOT_JOINED".into(),
            message: "this machine is not a member".into(),
            why: "nobody has joined it".into(),
            fix: "atrium join SERVER".into(),
        }],
        ..Default::default()
    };
    let agent = Running::start(Fake { status, ..Fake::default() });
    let (code, status) = agent.json(&["status"]);
    assert_eq!(code, 11);
    assert_eq!(status["agent"]["connection"], "not_joined");
    assert_eq!(status["problems"].as_array().unwrap().len(), 1);
    assert_eq!(status["problems"][0]["fix"], "atrium join SERVER");
    let output = agent.run(&["ls", "--json"]);
    assert_eq!(output.status.code(), Some(10));
    assert_eq!(failure(&output)["reason"], "NOT_JOINED");
    let text = String::from_utf8(agent.run(&["doctor"]).stdout).unwrap();
    assert!(text.contains("FAIL  joined"), "{text}");
}

#[test]
fn an_unknown_connection_state_of_a_newer_agent_does_no_harm() {
    let status = GetStatusResponse { connection: 99, ..Default::default() };
    let (_, status) = Running::start(Fake { status, ..Fake::default() }).json(&["status"]);
    assert_eq!(status["agent"]["connection"], "unknown");
}

#[test]
fn codes_and_passwords_go_from_files_to_the_agent() {
    let agent = Running::start(Fake::default());
    let secret = agent.home.path().join("secret");
    std::fs::write(&secret, "7-amber-lion-canal\n").unwrap();
    let secret = secret.to_str().unwrap();
    let (code, joined) = agent.json(&["join", "files.example", "--code-file", secret, "--name", "anna-pc"]);
    assert_eq!((code, joined["subject"].as_str(), joined["result"].as_str()), (0, Some("Acme"), Some("d1")));
    let output = agent.run(&["login", "anna", "--password-file", secret]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "signed in as anna\n");
    assert!(agent.run(&["logout", "-q"]).stdout.is_empty());
    let told = agent.told.lock().unwrap().clone();
    assert_eq!(told, ["join files.example:7443 7-amber-lion-canal anna-pc", "login anna 7-amber-lion-canal"]);
}

#[test]
fn the_queue_is_listed_and_shortened() {
    let item = list_queue_response::Item {
        id: "q1".into(),
        root: "public/plans".into(),
        path: "x.pdf".into(),
        size_bytes: 5,
        held: true,
        last_error: "the quota is full\u{1b}[31m".into(),
        ..Default::default()
    };
    let agent = Running::start(Fake { queue: vec![item], ..Fake::default() });
    let (code, list) = agent.json(&["queue"]);
    assert_eq!((code, list["kind"].as_str()), (0, Some("queue_item_list")));
    assert_eq!(list["items"][0]["path"], "public:plans/x.pdf");
    let text = String::from_utf8(agent.run(&["queue", "list"]).stdout).unwrap();
    assert!(text.contains("set aside: the quota is full?[31m"), "{text}");
    assert!(agent.run(&["queue", "cancel", "q1"]).status.success());
    assert_eq!(agent.told.lock().unwrap().last().unwrap(), "cancel q1");
    let (_, done) = agent.json(&["cache", "clear"]);
    assert_eq!(done["result"], "3145728");
}

#[test]
fn a_file_is_handed_to_the_agent_whole() {
    let agent = Running::start(Fake::default());
    let file = agent.home.path().join("report.pdf");
    std::fs::write(&file, vec![7u8; 3_000_000]).unwrap();
    let (code, done) = agent.json(&["put", "--queue", file.to_str().unwrap(), "public:plans/"]);
    assert_eq!((code, done["queued_files"].as_u64()), (0, Some(1)));
    let told = agent.told.lock().unwrap().clone();
    assert_eq!(told, ["queue public/plans:report.pdf 3000000 bytes", "got 3000000 bytes"]);
}
