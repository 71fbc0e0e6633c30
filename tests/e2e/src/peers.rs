//! Real peer-nodes: in directories of this machine on loopback, or on machines of a network lab.

use crate::process::{Finished, Process, Programs, poll, run, words};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;
use testkit::lab::{Lab, MachineId};

/// Where a peer runs.
#[derive(Clone, Debug)]
pub enum Place {
    /// On loopback, found by seeds only.
    Loopback,
    /// On a machine of a lab, found by itself.
    Machine(Rc<Lab>, MachineId),
}

/// A peer-node in a directory of its own.
#[derive(Debug)]
pub struct Peer {
    programs: Programs,
    /// What the machine is called.
    pub name: String,
    directory: PathBuf,
    place: Place,
    seeds: Vec<SocketAddr>,
    listen: Vec<SocketAddr>,
    settings: String,
    process: Option<Process>,
}

impl Peer {
    /// Starts a peer. `settings` is more TOML for its file, for example `[relay]\nenabled = true`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(directory: &Path, name: &str, place: Place, seeds: &[SocketAddr], settings: &str) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let listen = match &place {
            Place::Loopback => vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            Place::Machine(..) => vec![SocketAddr::from(([0, 0, 0, 0], 7444))],
        };
        let mut peer = Self {
            programs: Programs::find()?,
            name: name.to_owned(),
            directory: directory.to_owned(),
            place,
            seeds: seeds.to_vec(),
            listen,
            settings: settings.to_owned(),
            process: None,
        };
        peer.restart()?;
        Ok(peer)
    }

    /// Starts it (again), on the addresses that it had.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<()> {
        let config = self.directory.join("peer-node.toml");
        std::fs::write(&config, self.config()?)?;
        let mut command = self.command(&self.programs.path("peer-node"));
        command.arg("--config").arg(&config);
        let (process, line) = Process::daemon(command, &self.name, &self.directory.join("peer-node.log"))?;
        if let Place::Loopback = self.place {
            let found = line.split(|c: char| c.is_whitespace() || c == ',').filter_map(|w| w.parse().ok());
            self.listen = found.collect();
            if self.listen.is_empty() {
                bail!("no address in {line:?}");
            }
        }
        self.process = Some(process);
        Ok(())
    }

    fn config(&self) -> Result<String> {
        let list = |of: &[SocketAddr]| of.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(", ");
        let alone = matches!(self.place, Place::Loopback);
        let mut text = String::new();
        writeln!(text, "[node]\nstate_directory = {:?}", self.directory.join("state"))?;
        writeln!(text, "socket = {:?}\nlisten = [{}]\nname = {:?}", self.socket(), list(&self.listen), self.name)?;
        writeln!(text, "[inbox]\ndirectory = {:?}\naccept = [\"everyone\"]", self.inbox())?;
        writeln!(text, "[discovery]\nseeds = [{}]", list(&self.seeds))?;
        if alone {
            writeln!(text, "mdns = false\nbeacon = false")?;
            let any = "[\"127.0.0.1:0\"]";
            writeln!(text, "[devices]\nipp_listen = {any}\nipps_listen = {any}\nannounce = false")?;
        }
        text.push_str(&self.settings);
        Ok(text)
    }

    /// A command on the machine where the peer is.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = match &self.place {
            Place::Loopback => Command::new(program),
            Place::Machine(lab, machine) => lab.command(*machine, program),
        };
        // Nothing of the person who runs this may be touched.
        command.env("HOME", &self.directory).env("ATRIUM_PEER_SOCKET", self.socket());
        command.env("XDG_STATE_HOME", self.directory.join("xdg")).env("XDG_RUNTIME_DIR", &self.directory);
        command
    }

    /// `atrium` with these arguments, ready to run.
    pub fn atrium_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.programs.path("atrium"));
        command.args(arguments);
        command
    }

    /// Runs `atrium` to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_atrium(&self, arguments: &[&str], input: &str) -> Result<Finished> {
        run(&mut self.atrium_command(arguments), input.as_bytes())
    }

    /// The same; it must succeed.
    ///
    /// # Errors
    /// It does not; what it said is in the error.
    pub fn atrium(&self, arguments: &[&str]) -> Result<Finished> {
        let finished = self.try_atrium(arguments, "")?;
        if finished.code != 0 {
            let said = format!("{}{}", finished.text(), finished.stderr);
            bail!("{}: atrium {} ended with {}:\n{said}", self.name, words(arguments), finished.code);
        }
        Ok(finished)
    }

    /// Begins `atrium`, silent.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn begin_atrium(&self, arguments: &[&str]) -> Result<Child> {
        let log = std::fs::File::options().create(true).append(true).open(self.directory.join("atrium.log"))?;
        let mut command = self.atrium_command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.spawn().context("atrium")
    }

    /// Asks until the answer contains the word.
    ///
    /// # Errors
    /// It does not within a minute; the last answer is in the error.
    pub fn wait_until(&self, arguments: &[&str], is_so: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        let found = poll(Duration::from_secs(60), || {
            last = self.try_atrium(arguments, "").map_or_else(|e| e.to_string(), |f| f.text() + &f.stderr);
            is_so(&last)
        });
        if found { Ok(last) } else { bail!("{}: atrium {} still says:\n{last}", self.name, words(arguments)) }
    }

    /// Where it listens, on loopback.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where parcels go.
    pub fn inbox(&self) -> PathBuf {
        self.directory.join("inbox")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("peer.sock")
    }

    /// The program's process id, while it runs; of a machine in a lab that of `ip netns exec`, which becomes it.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the peer does not run")?.kill()
    }

    /// SIGTERM, and a clean end.
    ///
    /// # Errors
    /// It does not run, or does not end cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().context("the peer does not run")?.stop()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.process.as_ref().map(Process::log_tail).unwrap_or_default()
    }
}

/// Peers in one office; the first has founded it.
#[derive(Debug)]
pub struct PeerOffice {
    /// In order.
    pub peers: Vec<Peer>,
    directory: PathBuf,
}

impl PeerOffice {
    /// An office "acme" with one peer for each name; the first founds it and invites the others.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn found(directory: &Path, names: &[&str], place: impl Fn(usize) -> Place, settings: &str) -> Result<Self> {
        let mut office = Self { peers: Vec::new(), directory: directory.to_owned() };
        for (at, name) in names.iter().enumerate() {
            let seeds: Vec<SocketAddr> =
                office.peers.first().map(|p: &Peer| p.reachable(&place(0))).unwrap_or_default();
            let peer = Peer::start(&directory.join(name), name, place(at), &seeds, settings)?;
            match office.peers.first() {
                None => {
                    peer.atrium(&["init", "acme", "--name", name, "--person", name])?;
                }
                Some(founder) => {
                    let code = founder.atrium(&["invite", "--for", name])?.text().trim().to_owned();
                    let address = seeds.first().context("the founder listens nowhere")?.to_string();
                    let joined = peer.try_atrium(&["join", &address, "--code-file", "-", "--name", name], &code)?;
                    if joined.code != 0 {
                        bail!("{name} could not join: {}", joined.stderr);
                    }
                }
            }
            office.peers.push(peer);
        }
        Ok(office)
    }

    /// Waits until everyone sees everyone.
    ///
    /// # Errors
    /// They do not within a minute.
    pub fn wait_connected(&self) -> Result<()> {
        for peer in &self.peers {
            peer.wait_until(&["peers", "--json"], |text| {
                let others = self.peers.iter().filter(|p| p.name != peer.name);
                others.into_iter().all(|p| text.contains(&p.name)) && !text.contains("\"none\"")
            })?;
        }
        Ok(())
    }

    /// The directory of all.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Peer {
    fn reachable(&self, place: &Place) -> Vec<SocketAddr> {
        match place {
            Place::Loopback => self.listen.clone(),
            Place::Machine(lab, machine) => vec![SocketAddr::from((lab.address(*machine, 0), 7444))],
        }
    }
}
