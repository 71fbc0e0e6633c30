//! The program itself: settings, commands, exit codes, signals.

use crate::server::settings;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let text = "[grpc]\nlisten = '127.0.0.1:0'\n[web]\nlisten = '127.0.0.1:0'\n[server]\nreserve = '1MiB'\n\
            [sessions]\nhash_memory = '8KiB'\nhash_passes = 1\n[log]\nformat = 'json'\n";
        std::fs::write(place.path("server.toml"), text).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let mut file =
            std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_central-server"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ATRIUM_")) {
            command.env_remove(name);
        }
        command.arg("--config").arg(self.path("server.toml")).arg("--data-dir").arg(self.path("data")).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs and expects this exit code; gives what it said on both outputs.
    fn expect(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    fn serve(&self) -> Serving {
        let mut command = self.command(&[]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        Serving { child, line, _stdout: stdout }
    }
}

struct Serving {
    child: Child,
    line: String,
    _stdout: BufReader<ChildStdout>,
}

impl Serving {
    /// SIGTERM; gives exit code and log.
    fn stop(mut self) -> (Option<i32>, String) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn settings_are_checked_and_printed_without_touching_anything() {
    let place = Place::new();
    assert!(place.expect(0, &["--check-config"]).contains("in order"));
    let printed = place.expect(0, &["--print-config", "--listen", "127.0.0.1:1234"]);
    assert!(printed.contains("listen = \"127.0.0.1:1234\"  # flag --listen"), "{printed}");
    assert!(printed.contains("hash_passes = 1") && printed.contains("server.toml:"), "{printed}");
    let output = place.command(&["--check-config"]).env("ATRIUM_GRPC__MAX_STREMS", "7").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in ["error:", "why:", "fix:", "environment ATRIUM_GRPC__MAX_STREMS", "did you mean grpc.max_streams?"] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    place.expect(2, &["--no-such-flag"]);
    assert!(!place.path("data").exists());
}

#[test]
fn an_office_is_made_served_checked_exported_and_imported() {
    let place = Place::new();
    let password = place.secret("password", "open sesame\n");
    let password = password.to_str().unwrap();
    place.expect(2, &["verify"]);
    let made = place.expect(0, &["init", "--office", "Acme", "--admin", "root", "--password-file", password]);
    assert!(made.contains("Acme") && made.contains("administrator root"), "{made}");
    // Once more makes nothing new, and says why.
    assert!(place.expect(1, &["init", "--admin", "root", "--password-file", password]).contains("error:"));
    std::fs::set_permissions(password, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(place.expect(2, &["init", "--admin", "two", "--password-file", password]).contains("chmod 600"));

    let serving = place.serve();
    assert!(serving.line.starts_with("serving 127.0.0.1:"), "{}", serving.line);
    assert!(place.path("data/admin.sock").exists() && place.path("data/ca.pem").exists());
    place.expect(3, &["verify"]);
    place.expect(3, &[]);
    let (code, log) = serving.stop();
    assert_eq!(code, Some(0), "{log}");
    for line in log.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(!["WARN", "ERROR"].contains(&entry["level"].as_str().unwrap()), "{line}");
    }
    assert!(!place.path("data/admin.sock").exists());

    assert!(place.expect(0, &["verify"]).contains("everything is whole"));
    let file = place.path("metadata.atr");
    let file = file.to_str().unwrap();
    assert!(place.expect(0, &["export", file]).contains("exported revision"));
    assert!(place.expect(1, &["import", file]).contains("there already"));
    std::fs::rename(place.path("data/store"), place.path("old-store")).unwrap();
    let text = std::fs::read_to_string(place.path("server.toml")).unwrap();
    std::fs::write(place.path("server.toml"), format!("{text}[store]\nengine = 'redb'\n")).unwrap();
    assert!(place.expect(0, &["import", file]).contains("into redb"));
    assert!(place.expect(0, &["verify"]).contains("everything is whole"));
    let (code, log) = place.serve().stop();
    assert_eq!(code, Some(0), "{log}");
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_data_has_an_exit_code_of_its_own() {
    let place = Place::new();
    place.expect(0, &["init"]);
    let file = place.path("metadata.atr");
    place.expect(0, &["export", file.to_str().unwrap()]);
    flip(&file, std::fs::metadata(&file).unwrap().len() as usize / 2);
    std::fs::remove_dir_all(place.path("data/store")).unwrap();
    let said = place.expect(4, &["import", file.to_str().unwrap()]);
    assert!(said.contains("why:"), "{said}");
    let nothing = place.path("nothing");
    place.expect(4, &["restore", nothing.to_str().unwrap(), place.path("new").to_str().unwrap()]);
    assert!(!place.path("new").exists());
}

#[test]
fn the_settings_of_tests_are_the_programs_own() {
    let place = Place::new();
    let printed = place.expect(0, &["--print-config"]);
    let ours = settings(place.dir.path());
    assert!(printed.contains(&format!("data_directory = \"{}\"", ours.server.data_directory.display())), "{printed}");
}

/// Everything the service manager was told so far.
fn told(socket: &std::os::unix::net::UnixDatagram, until: &str) -> String {
    let mut all = String::new();
    let mut message = [0; 4096];
    while !all.contains(until) {
        let length = socket.recv(&mut message).unwrap();
        all.push_str(std::str::from_utf8(&message[..length]).unwrap());
    }
    all
}

#[test]
fn the_service_manager_is_told_what_happens() {
    let place = Place::new();
    let socket = std::os::unix::net::UnixDatagram::bind(place.path("notify")).unwrap();
    let mut command = place.command(&[]);
    command.env("NOTIFY_SOCKET", place.path("notify")).env("WATCHDOG_USEC", "3000000");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let first = told(&socket, "WATCHDOG=1");
    assert!(first.starts_with("READY=1") && first.contains("STATUS=serving"), "{first}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    told(&socket, "STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
