//! The program as a process: exit codes, streams, JSON errors, no traces of colour in pipes.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program with an environment of its own.
pub fn atrium(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atrium"));
    command.args(args).env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    command
}

pub fn run(home: &Path, args: &[&str]) -> Output {
    atrium(home, args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// The last line of standard error as JSON.
pub fn failure(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn help_and_version_go_to_standard_output() {
    let home = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["--version"], &["ls", "--help"], &["help", "put"]] {
        let output = run(home.path(), args);
        assert_eq!(code(&output), 0, "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
        assert!(!output.stdout.contains(&0x1b), "{args:?} has colour in a pipe");
    }
}

#[test]
fn a_wrong_command_line_is_2_in_text_and_in_json() {
    let home = tempfile::tempdir().unwrap();
    for args in [&["nonsense"][..], &["ls", "--nonsense"], &["put", "a"], &["ls", "not-a-place:"], &[]] {
        let output = run(home.path(), args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    let output = run(home.path(), &["ls", "--json", "not-a-place:"]);
    assert_eq!(code(&output), 2);
    let error = failure(&output);
    assert_eq!((error["schema"].as_u64(), error["kind"].as_str()), (Some(1), Some("error")));
    assert_eq!(error["exit_code"], 2);
    assert!(error["fix"].as_str().is_some_and(|f| !f.is_empty()));
}

#[test]
fn without_a_peer_its_verbs_say_so_with_6_and_a_fix() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let socket = home.path().join("no-peer.sock");
    let (folder, socket) = (folder.to_str().unwrap(), socket.to_str().unwrap());
    for args in [
        &["init", "acme"][..],
        &["invite"],
        &["join", "7-amber-lion-canal"],
        &["peers"],
        &["members"],
        &["members", "groups"],
        &["ls", "acme"],
        &["get", "acme/anna-pc/plans"],
        &["cat", "acme/anna-pc/plans/a"],
        &["find", "hall"],
        &["share", folder, "--with", "everyone"],
        &["unshare", "plans"],
        &["shares"],
        &["mirror", "acme/anna-pc/plans", folder],
        &["transfers"],
        &["limit"],
        &["send", folder, "anna"],
        &["inbox"],
        &["outbox"],
        &["devices"],
        &["devices", "--own"],
        &["share", "printers/laser", "--output", "cups:HP", "--with", "everyone"],
        &["unshare", "printers/laser"],
        &["use", "dvd"],
        &["release", "dvd"],
        &["request", "dvd"],
        &["print", "/proc/version", "--at", "laser"],
        &["jobs"],
        &["jobs", "cancel", "laser#1"],
        &["printer", "pause", "laser"],
        &["disc", "eject", "dvd"],
        &["disc", "rip", "dvd", "film.iso"],
        &["ls", "acme/anna-pc/drives/dvd"],
        &["get", "drives/dvd/a"],
        &["space", "list"],
        &["space", "borrow", "big", "1GiB"],
    ] {
        let output = run(home.path(), &[args, &["--peer", socket, "--json"]].concat());
        assert_eq!(code(&output), 6, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let error = failure(&output);
        assert_eq!(error["reason"], "PEER_NOT_RUNNING", "{args:?}");
        assert!(error["fix"].as_str().is_some_and(|f| f.contains("peer-node")), "{args:?}");
    }
}

#[test]
fn without_an_agent_every_verb_says_so_with_6_and_a_fix() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("no-agent.sock");
    let socket = socket.to_str().unwrap();
    for args in [
        &["ls"][..],
        &["whoami"],
        &["cat", "home:a"],
        &["mkdir", "home:a"],
        &["mv", "home:a", "home:b"],
        &["rm", "home:a"],
        &["restore", "list"],
        &["versions", "home:a"],
        &["lock", "home:a"],
        &["share", "public:plans"],
        &["why", "home:"],
        &["watch"],
        &["queue"],
        &["cache", "clear"],
        &["admin", "users", "list"],
        &["admin", "status"],
        &["logout"],
    ] {
        let output = run(home.path(), &[args, &["--agent", socket, "--json"]].concat());
        assert_eq!(code(&output), 6, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let error = failure(&output);
        assert_eq!(error["reason"], "AGENT_UNREACHABLE", "{args:?}");
        for field in ["message", "why", "fix"] {
            assert!(error[field].as_str().is_some_and(|t| !t.is_empty()), "{args:?} has no {field}");
        }
    }
}

#[test]
fn people_get_error_why_and_fix_without_colour_in_a_pipe() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["ls", "--agent", "/nonexistent/agent.sock"]);
    let text = String::from_utf8(output.stderr).unwrap();
    let starts: Vec<&str> = text.lines().map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(starts[..3], ["error:", "why:", "fix:"], "{text}");
    assert!(!text.contains('\x1b'));
    let forced = run(home.path(), &["ls", "--agent", "/nonexistent/agent.sock", "--color", "always"]);
    assert!(forced.stderr.contains(&0x1b));
}

#[test]
fn status_and_doctor_say_what_is_wrong_with_11() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["status", "--json", "--agent", "/nonexistent/agent.sock"]);
    assert_eq!(code(&output), 11);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["healthy"], false);
    assert_eq!(status["problems"][0]["reason"], "AGENT_UNREACHABLE");
    assert!(status["problems"][0]["fix"].as_str().is_some_and(|f| f.contains("client-agent")));
    let bundle = home.path().join("bundle.json");
    let args = ["doctor", "--agent", "/nonexistent/agent.sock", "--bundle", bundle.to_str().unwrap()];
    let output = run(home.path(), &args);
    assert_eq!(code(&output), 11);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("FAIL") && text.contains("fix:"), "{text}");
    let report: Value = serde_json::from_slice(&std::fs::read(bundle).unwrap()).unwrap();
    assert_eq!(report["doctor"]["kind"], "doctor");
}

#[test]
fn nothing_is_asked_where_nobody_can_answer() {
    let home = tempfile::tempdir().unwrap();
    let ca = home.path().join("ca.pem");
    std::fs::write(&ca, "not a certificate").unwrap();
    let wrong_ca = ["login", "anna", "--server", "127.0.0.1:1", "--ca", ca.to_str().unwrap(), "--json"];
    let output = run(home.path(), &wrong_ca);
    assert_eq!(failure(&output)["reason"], "CERTIFICATE_INVALID");
    let output = run(home.path(), &["restore", "purge", "home:", "--server", "unix:/nonexistent.sock", "--json"]);
    assert_eq!(code(&output), 2);
    assert!(failure(&output)["fix"].as_str().is_some_and(|f| f.contains("--yes")));
}

#[test]
fn a_missing_server_program_says_what_to_run() {
    let home = tempfile::tempdir().unwrap();
    // A copy of the program with nothing beside it.
    let program = home.path().join("atrium");
    std::fs::copy(env!("CARGO_BIN_EXE_atrium"), &program).unwrap();
    let run = |directory: &str| {
        let mut command = Command::new(&program);
        command.args(["admin", "restore", directory, "/tmp/new", "--json"]).env_clear().env("PATH", home.path());
        command.output().unwrap()
    };
    let output = run("/nonexistent");
    assert_eq!(code(&output), 4);
    let output = run(home.path().to_str().unwrap());
    assert_eq!(code(&output), 4);
    assert!(failure(&output)["fix"].as_str().is_some_and(|f| f.contains("central-server restore")));
    let server = home.path().join("central-server");
    std::fs::write(&server, "#!/bin/sh\necho \"$@\"\nexit 42\n").unwrap();
    std::fs::set_permissions(&server, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(&program);
    command.args(["-q", "admin", "restore"]).arg(home.path()).args(["/tmp/new", "--", "--config", "x"]);
    let output = command.env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
    assert_eq!(code(&output), 42, "its exit code is the server program's");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("restore {} /tmp/new --config x\n", home.path().display())
    );
}

#[test]
fn completion_works_before_anything_is_set_up() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = run(home.path(), &["completions", shell]);
        assert!(output.status.success() && output.stdout.len() > 1000, "{shell}");
    }
    let mut command = atrium(home.path(), &["--", "atrium", "ls", "pu"]);
    command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "2").env("_CLAP_COMPLETE_COMP_TYPE", "9");
    let output = command.env("_CLAP_COMPLETE_SPACE", "false").env("_CLAP_IFS", "\n").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "public:");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let home = tempfile::tempdir().unwrap();
    let mut child =
        atrium(home.path(), &["generate", "docs"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
