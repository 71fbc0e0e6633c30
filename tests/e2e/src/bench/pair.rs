//! From one node to another without a limit on the line: Atrium beside Syncthing.

use super::usage::Meter;
use super::{Inputs, Sample};
use crate::compare;
use crate::peers::{PeerOffice, Place};
use crate::process::{Process, poll, run};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;
use testkit::lab::{Lab, MachineId};

const PATIENCE: Duration = Duration::from_secs(600);

/// What goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// One file of 1 GiB.
    Big,
    /// 10,000 files of 4 KiB.
    Small,
}

impl Load {
    /// Both.
    pub const ALL: [Load; 2] = [Load::Big, Load::Small];

    /// For the table.
    pub fn title(self) -> &'static str {
        match self {
            Load::Big => "1 GiB, one node to another",
            Load::Small => "10,000 x 4 KiB, one node to another",
        }
    }

    /// What one node has, made below `to` from the inputs.
    fn place(self, inputs: &Inputs, to: &Path) -> Result<()> {
        match self {
            Load::Big => {
                std::fs::create_dir_all(to)?;
                std::fs::copy(&inputs.big, to.join("big.bin"))?;
            }
            Load::Small => {
                let status = Command::new("cp").arg("-r").arg(&inputs.small).arg(to).status()?;
                if !status.success() {
                    bail!("cp ended with {status}");
                }
            }
        }
        Ok(())
    }

    fn check(self, inputs: &Inputs, got: &Path) -> Result<()> {
        match self {
            Load::Big => compare::files(&inputs.big, &got.join("big.bin")).map(drop),
            Load::Small => compare::trees(&inputs.small, got).map(drop),
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or("")
}

fn lab() -> Result<Option<(Rc<Lab>, Vec<MachineId>)>> {
    Ok(Lab::with_machines(2)?.map(|lab| {
        let machines = lab.machines().collect();
        (Rc::new(lab), machines)
    }))
}

/// From `share` on one node to the end of `get` on the other.
///
/// # Errors
/// Whatever goes wrong, and content that differs.
pub fn atrium(load: Load, inputs: &Inputs, scratch: &Path) -> Result<Option<Sample>> {
    let Some((lab, machines)) = lab()? else { return Ok(None) };
    let office = PeerOffice::found(scratch, &["one", "two"], |at| Place::Machine(lab.clone(), machines[at]), "")?;
    office.wait_connected()?;
    let (one, two) = (&office.peers[0], &office.peers[1]);
    let folder = scratch.join("folder");
    load.place(inputs, &folder)?;
    let got = scratch.join("got");
    rustix::fs::sync();
    let meter = Meter::start(one.id().into_iter().chain(two.id()).collect());
    one.atrium(&["share", text(&folder), "--name", "data", "--with", "everyone"])?;
    two.atrium(&["get", "acme/one/data", text(&got)])?;
    let sample = meter.stop();
    load.check(inputs, &got)?;
    Ok(Some(sample))
}

/// From the moment when the content is in a shared folder and Syncthing was told so to the moment when the other node
/// has all of it; `None` if it is not installed.
///
/// # Errors
/// Whatever goes wrong, and content that differs.
pub fn syncthing(load: Load, inputs: &Inputs, scratch: &Path) -> Result<Option<Sample>> {
    if Command::new("syncthing").arg("--version").output().is_err() {
        return Ok(None);
    }
    let Some((lab, machines)) = lab()? else { return Ok(None) };
    let nodes: Vec<Syncthing> =
        machines.iter().map(|m| Syncthing::prepare(&lab, *m, scratch)).collect::<Result<_>>()?;
    let mut running = Vec::new();
    for node in &nodes {
        running.push(node.start(&nodes)?);
    }
    for node in &nodes {
        let connected = poll(PATIENCE, || node.ask("GET", "system/connections").contains("\"connected\": true"));
        if !connected {
            bail!("two instances of Syncthing did not find each other");
        }
    }
    let hidden = scratch.join("prepared");
    load.place(inputs, &hidden)?;
    rustix::fs::sync();
    let meter = Meter::start(running.iter().map(Process::id).collect());
    std::fs::rename(&hidden, nodes[0].folder().join("data"))?;
    nodes[0].ask("POST", "db/scan?folder=data");
    let want = match load {
        Load::Big => 1 << 30,
        Load::Small => 10_000 * 4096,
    };
    let done = poll(PATIENCE, || {
        let status: serde_json::Value =
            serde_json::from_str(&nodes[1].ask("GET", "db/status?folder=data")).unwrap_or_default();
        status["localBytes"].as_u64() >= Some(want) && status["needBytes"].as_u64() == Some(0)
    });
    let sample = meter.stop();
    if !done {
        bail!("Syncthing was not done after {PATIENCE:?}");
    }
    load.check(inputs, &nodes[1].folder().join("data"))?;
    Ok(Some(sample))
}

/// One instance with its own home.
struct Syncthing {
    lab: Rc<Lab>,
    machine: MachineId,
    home: PathBuf,
    id: String,
}

const KEY: &str = "benchmark-key";

impl Syncthing {
    fn prepare(lab: &Rc<Lab>, machine: MachineId, scratch: &Path) -> Result<Self> {
        let home = scratch.join(format!("syncthing{}", machine.0));
        std::fs::create_dir_all(home.join("folder/.stfolder"))?;
        let mut node = Self { lab: lab.clone(), machine, home, id: String::new() };
        node.finish(&["generate", "--no-default-folder"])?;
        node.id = node.finish(&["--device-id"])?.trim().to_owned();
        Ok(node)
    }

    fn folder(&self) -> PathBuf {
        self.home.join("folder")
    }

    fn command(&self) -> Command {
        let mut command = self.lab.command(self.machine, "syncthing");
        command.env("HOME", &self.home).env("STNORESTART", "1").env("STNOUPGRADE", "1");
        command
    }

    fn finish(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command();
        command.args(arguments).arg(format!("--home={}", self.home.display()));
        let done = run(&mut command, b"")?;
        if done.code != 0 {
            bail!("syncthing {arguments:?}: {}", done.stderr);
        }
        Ok(done.text())
    }

    fn start(&self, all: &[Syncthing]) -> Result<Process> {
        let mut devices = String::new();
        let mut members = String::new();
        for node in all {
            let address = node.lab.address(node.machine, 0);
            devices += &format!(
                "<device id=\"{}\" compression=\"never\"><address>tcp://{address}:22000</address></device>",
                node.id
            );
            members += &format!("<device id=\"{}\"></device>", node.id);
        }
        let folder = self.folder();
        let config = format!(
            "<configuration version=\"35\"><folder id=\"data\" path=\"{}\" type=\"sendreceive\" \
             rescanIntervalS=\"3600\" fsWatcherEnabled=\"false\">{members}</folder>{devices}\
             <gui enabled=\"true\" tls=\"false\"><address>127.0.0.1:8384</address><apikey>{KEY}</apikey></gui>\
             <options><listenAddress>tcp://0.0.0.0:22000</listenAddress>\
             <globalAnnounceEnabled>false</globalAnnounceEnabled><localAnnounceEnabled>false</localAnnounceEnabled>\
             <relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled><startBrowser>false</startBrowser>\
             <urAccepted>-1</urAccepted><crashReportingEnabled>false</crashReportingEnabled>\
             <reconnectionIntervalS>1</reconnectionIntervalS></options></configuration>",
            folder.display()
        );
        std::fs::write(self.home.join("config.xml"), config)?;
        let mut command = self.command();
        command.args(["--no-browser", &format!("--home={}", self.home.display())]);
        Ok(Process::daemon(command, "syncthing", &self.home.join("log"))?.0)
    }

    /// The answer of its REST API, from within its machine.
    fn ask(&self, method: &str, what: &str) -> String {
        let mut command = self.lab.command(self.machine, "curl");
        command.args(["-s", "-m", "60", "-X", method, "-H", &format!("X-API-Key: {KEY}")]);
        command.arg(format!("http://127.0.0.1:8384/rest/{what}"));
        run(&mut command, b"").context("curl").map_or_else(|e| e.to_string(), |f| f.text())
    }
}
