//! The program itself, as processes on loopback: settings, exit codes, the local socket, signals. And what the tests of
//! offices made of such processes need.

use common::error::Reason;
use common::rpc::{OfficeChannel, OfficeConnection};
use proto::peer::v1 as peer;
use proto::peer::v1::node_service_client::NodeServiceClient;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for something that another process does; far longer than it takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a peer keeps its things; outlives the process.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A new one, for a peer that looks for nobody and listens on loopback.
    pub fn new() -> Self {
        Self::with_seeds(&[])
    }

    /// The same, for a peer that asks these.
    pub fn with_seeds(seeds: &[String]) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let text = format!(
            "[node]\nstate_directory = {:?}\nsocket = {:?}\nlisten = ['127.0.0.1:0']\n\
             [discovery]\nmdns = false\nbeacon = false\nseeds = {seeds:?}\n[inbox]\ndirectory = {:?}\n[log]\nformat = 'text'\n",
            place.path("state"),
            place.path("peer.sock"),
            place.path("inbox"),
        );
        std::fs::write(place.path("peer-node.toml"), text).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program with this place's settings and nothing from this process's environment.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peer-node"));
        command.env_clear().env("HOME", self.dir.path()).env("PATH", "/usr/bin:/bin").env("USER", "tester");
        command.arg("--config").arg(self.path("peer-node.toml")).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A folder with these files.
    pub fn folder(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (path, content) in files {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    /// Starts a peer here and waits until it says that it is ready.
    pub fn start(&self) -> Node {
        let mut child = self.command(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let Some((socket, addresses)) =
            line.trim().strip_prefix("peer-node is ready on ").and_then(|l| l.split_once(" listening "))
        else {
            let mut log = String::new();
            child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
            panic!("the peer said {line:?}\n{log}");
        };
        let addresses = addresses.split(',').map(|a| a.parse().unwrap()).collect();
        Node { child: Some(child), socket: socket.into(), addresses, _stdout: stdout }
    }
}

/// A running peer; killed when dropped.
pub struct Node {
    child: Option<Child>,
    pub socket: PathBuf,
    pub addresses: Vec<std::net::SocketAddr>,
    _stdout: BufReader<ChildStdout>,
}

impl Node {
    /// Calls by its local socket.
    pub fn client(&self) -> NodeServiceClient<OfficeChannel> {
        let connection = OfficeConnection::unix(&self.socket, Reason::PeerNotRunning).unwrap();
        NodeServiceClient::new(connection.control())
    }

    pub fn address(&self) -> String {
        self.addresses[0].to_string()
    }

    /// SIGTERM; gives exit code and log.
    pub fn stop(mut self) -> (Option<i32>, String) {
        let mut child = self.child.take().unwrap();
        let id = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        let mut log = String::new();
        child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (child.wait().unwrap().code(), log)
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Asks again and again until the answer is there: what other processes do cannot be waited for in another way.
///
/// # Panics
/// If it does not come.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let begin = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    loop {
        pause.tick().await;
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "{what} did not come about");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn wrong_settings_are_2_and_all_named() {
    let place = Place::new();
    std::fs::write(place.path("peer-node.toml"), "[node]\nname = 'a/b'\n[log]\nlevel = 'loud'\n").unwrap();
    for arguments in [&["--check-config"][..], &[], &["health"]] {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains("node.name") && said.contains("log.level"), "{said}");
    }
    let unknown = place.command(&["--nonsense"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn settings_are_checked_and_printed_with_their_origin() {
    let place = Place::new();
    let checked = place.run(&["--check-config"]);
    assert_eq!((checked.status.code(), text(&checked.stdout).trim()), (Some(0), "the settings are valid"));
    let printed = text(&place.run(&["--print-config", "--listen", "127.0.0.1:1", "--listen", "[::1]:2"]).stdout);
    assert!(printed.contains("listen = [\"127.0.0.1:1\", \"[::1]:2\"]  # flag --listen"), "{printed}");
    assert!(printed.contains("mdns = false  # ") && printed.contains("beacon_port = 7445\n"), "{printed}");
}

#[tokio::test]
async fn it_starts_answers_and_ends() {
    let place = Place::new();
    assert_eq!(place.run(&["health"]).status.code(), Some(1), "nobody is there yet");
    let node = place.start();
    assert_eq!(node.socket, place.path("peer.sock"));
    assert_ne!(node.addresses[0].port(), 0);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&node.socket), mode(&place.path("state"))), (0o600, 0o700));
    assert_eq!(mode(&place.path("state/device.key")), 0o600);
    assert_eq!(place.run(&["health"]).status.code(), Some(0));

    let status = node.client().get_status(peer::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.device_id.len(), 64);
    assert_eq!((status.office.as_str(), status.problems.len()), ("", 0));
    let refused = node.client().list_members(peer::ListMembersRequest {}).await.unwrap_err();
    assert!(common::status::from_status(&refused).is(Reason::NotJoined), "{refused}");

    let second = place.run(&[]);
    assert_eq!(second.status.code(), Some(3), "the state directory is in use: {}", text(&second.stderr));
    let (code, log) = node.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
    assert!(!place.path("peer.sock").exists(), "the socket is gone");

    let again = place.start();
    let same = again.client().get_status(peer::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(same.device_id, status.device_id, "a device keeps its key");
    again.kill();
    assert!(place.path("peer.sock").exists());
    place.start().client().get_status(peer::GetStatusRequest {}).await.expect("a left socket is replaced");
}

#[test]
fn an_address_in_use_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let place = Place::new();
    let output = place.run(&["--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains(&address) && said.contains("fix:"), "{said}");
}

#[test]
fn another_user_is_refused_even_if_the_socket_lets_it_in() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let place = Place::new();
    let node = place.start();
    let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    open(place.dir.path(), 0o755);
    let program = place.path("peer-node");
    std::fs::copy(env!("CARGO_BIN_EXE_peer-node"), &program).unwrap();
    open(&program, 0o755);
    let ask = || {
        let mut command = Command::new(&program);
        command.env_clear().env("HOME", "/").args(["--state-dir", "/nonexistent", "--socket"]).arg(&node.socket);
        command.arg("health").uid(65_534).gid(65_534).current_dir("/").output().unwrap()
    };
    let by_mode = ask();
    assert_eq!(by_mode.status.code(), Some(1), "mode 0600: {}", text(&by_mode.stderr));
    open(&node.socket, 0o666);
    let by_credentials = ask();
    assert_eq!(by_credentials.status.code(), Some(1));
    let said = text(&by_credentials.stderr);
    assert!(said.contains("belongs to another user"), "{said}");
}
