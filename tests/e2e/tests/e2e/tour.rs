//! The README's five-minute tour, executed.

use anyhow::{Context, Result, ensure};
use atrium_e2e::devices;
use atrium_e2e::peers::{Peer, Place};
use atrium_e2e::process::{Process, Programs, poll};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const README: &str = include_str!("../../../../README.md");

/// The lines of the block behind a mark.
fn tour(mark: &str) -> Result<Vec<String>> {
    let begin = README.find(mark).context("the README has no tour")?;
    let block = README[begin..].split("```sh\n").nth(1).context("no block")?.split("```").next().context("no end")?;
    let lines = block.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

#[test]
fn readme_tour() -> Result<()> {
    let programs = Programs::find()?;
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path();
    fs::write(dir.join("anna.password"), "correct horse anna")?;
    fs::write(dir.join("bert.password"), "correct horse bert")?;
    fs::write(dir.join("report.txt"), "all is well\n")?;
    fs::create_dir(dir.join("photos"))?;
    fs::write(dir.join("photos/1.jpg"), atrium_e2e::sample::bytes(1, 700_000))?;
    let mut daemons: Vec<Process> = Vec::new();
    let mut address = String::new();
    let mut executed = 0;
    for line in tour("<!-- tour:")? {
        // What differs from a reader's machine: a free port, and the agent's socket in this directory.
        let line = line.replace("SERVER:7443", &address);
        executed += 1;
        if let Some(daemon) = line.strip_suffix(" &") {
            let mut words: Vec<&str> = daemon.split_whitespace().collect();
            let name = words.remove(0);
            if name == "central-server" {
                words.extend(["--listen", "127.0.0.1:0", "--web-listen", "127.0.0.1:0"]);
            }
            let mut command = Command::new(programs.path(name));
            command.current_dir(dir).args(&words);
            let (daemon, first) = Process::daemon(command, name, &dir.join(format!("{name}.log")))?;
            daemons.push(daemon);
            if name == "central-server" {
                let found = first.split_whitespace().find(|w| w.starts_with("127.0.0.1:")).context("no address")?;
                address = found.to_owned();
            }
            continue;
        }
        shell(&programs, dir, &line)?;
    }
    ensure!(executed > 15, "the tour has only {executed} lines");
    assert_eq!(fs::read(dir.join("copy-of-photos/1.jpg"))?, fs::read(dir.join("photos/1.jpg"))?);
    for daemon in daemons.into_iter().rev() {
        daemon.stop()?;
    }
    Ok(())
}

/// The tour of two peers: what stands behind "anna$" is done at her machine.
#[test]
fn readme_peers() -> Result<()> {
    let programs = Programs::find()?;
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path();
    fs::write(dir.join("report.txt"), "all is well\n")?;
    fs::write(dir.join("report.pdf"), devices::pdf(2))?;
    fs::create_dir(dir.join("photos"))?;
    fs::write(dir.join("photos/1.jpg"), atrium_e2e::sample::bytes(1, 700_000))?;
    let image = devices::iso(&dir.join("photos"), &dir.join("disc.iso"), "PHOTOS")?;
    let anna = Peer::start(&dir.join("anna"), "anna-pc", Place::Loopback, &[], "")?;
    let bert = Peer::start(&dir.join("bert"), "bert-pc", Place::Loopback, anna.addresses(), "")?;
    let address = anna.addresses().first().context("no address")?.to_string();
    let mut executed = 0;
    for line in tour("<!-- peers:")? {
        let (who, line) = line.split_once("$ ").context("a line without a machine")?;
        let peer = if who == "anna" { &anna } else { &bert };
        // Without a program that makes one there is no disc to put into the drive.
        if !image && (line.contains("dvd") || line.contains("disc")) {
            println!("skipped, neither xorriso nor genisoimage is installed: {line}");
            continue;
        }
        let line = line.replace("ANNA:7444", &address).replace("/srv/", &format!("{}/srv-", dir.display()));
        if line.contains("--folder") {
            fs::create_dir_all(dir.join("srv-lent"))?;
        }
        executed += 1;
        let mut said = String::new();
        // What one machine has just shared, the other one learns within a moment.
        let done = poll(Duration::from_secs(30), || {
            let path = format!("{}:{}", programs.directory().display(), std::env::var("PATH").unwrap_or_default());
            let mut command = peer.command(Path::new("sh"));
            command.args(["-c", &line]).current_dir(dir).env("PATH", path);
            let Ok(out) = command.output() else { return false };
            said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            out.status.success()
        });
        ensure!(done, "{who}$ {line}\n{said}");
    }
    ensure!(executed > 10, "the tour has only {executed} lines");
    assert_eq!(fs::read(dir.join("copy-of-photos/1.jpg"))?, fs::read(dir.join("photos/1.jpg"))?);
    if image {
        assert_eq!(fs::read(dir.join("copy-of-disc.iso"))?, fs::read(dir.join("disc.iso"))?);
    }
    Ok(())
}

fn shell(programs: &Programs, dir: &Path, line: &str) -> Result<String> {
    let path = format!("{}:{}", programs.directory().display(), std::env::var("PATH").unwrap_or_default());
    let out = Command::new("sh")
        .args(["-c", line])
        .current_dir(dir)
        .env("PATH", path)
        .env("XDG_STATE_HOME", dir)
        .env("ATRIUM_AGENT_SOCKET", dir.join("anna.sock"))
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(out.status.success(), "$ {line}\n{text}{}", String::from_utf8_lossy(&out.stderr));
    Ok(text)
}
