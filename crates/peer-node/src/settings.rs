//! Settings of a peer. `deploy/config/peer-node.toml` says the same for people; a test keeps them equal.
//!
//! A peer runs as the person whose files it serves, so three places depend on who starts it. They are empty in
//! [`Settings`] unless somebody named them, and filled by [`Settings::resolve`].

use crate::mailbox::{MailboxSettings, Rules};
use crate::transfer::{self, TransferSettings};
use common::error::{Error, Reason, Result};
use common::model::EntryName;
use common::settings::{ByteSize, HumanDuration, Problems};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// TCP port of a peer.
pub const DEFAULT_PORT: u16 = 7444;
/// UDP port of broadcasts.
pub const BEACON_PORT: u16 = 7445;
/// TCP port of shared printers: IPP's own, 631, is CUPS's where there is one.
pub const IPP_PORT: u16 = 8631;
/// The same over TLS.
pub const IPPS_PORT: u16 = 8632;
/// Addresses to listen on, and seeds, at most.
const ADDRESSES_MAX: usize = 32;
/// The limit of a Unix socket's name on Linux.
const SOCKET_MAX: usize = 107;

/// Checked settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where things are, and what this machine is called.
    pub node: Node,
    /// How others are found.
    pub discovery: Discovery,
    /// Passing on connections of others.
    pub relay: Relay,
    /// Bandwidth.
    pub limits: Limits,
    /// Parcels that come in.
    pub inbox: Inbox,
    /// Parcels that wait for their receivers.
    pub outbox: Outbox,
    /// Shared folders.
    pub index: Index,
    /// Printers, optical drives and disks.
    pub devices: DeviceSettings,
    /// The log.
    pub log: Log,
}

/// Where things are, and what this machine is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Everything the peer keeps. Mode 0700, used by one peer at a time. Empty until resolved.
    pub state_directory: PathBuf,
    /// The local socket, for the same user and root only. Empty until resolved.
    pub socket: PathBuf,
    /// Where other peers connect to.
    pub listen: Vec<SocketAddr>,
    /// What this machine is called when an office is founded or joined; empty means the host name.
    pub name: String,
    /// Its part of the hierarchy when it founds an office.
    pub unit: String,
    /// How long running calls and transfers may go on after SIGTERM.
    pub drain: HumanDuration,
}

/// How others are found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// Multicast DNS.
    pub mdns: bool,
    /// Broadcasts in the local network.
    pub beacon: bool,
    /// UDP port of the broadcasts.
    pub beacon_port: u16,
    /// Machines to ask besides, "host:port".
    pub seeds: Vec<String>,
}

/// Passing on connections of others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relay {
    /// Whether it is done.
    pub enabled: bool,
    /// Most bytes a second of all of them together; 0 means no limit.
    pub rate: ByteSize,
}

/// Bandwidth, until `atrium limit` says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most bytes a second to others; 0 means no limit.
    pub upload: ByteSize,
    /// Most bytes a second from others; 0 means no limit.
    pub download: ByteSize,
    /// When the two hold, such as "mon-fri 08:00-18:00"; empty means always.
    pub schedule: String,
    /// Stay out of the way of this machine's other traffic.
    pub yields: bool,
}

/// Parcels that come in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Inbox {
    /// Where they go. Empty until resolved.
    pub directory: PathBuf,
    /// People whose parcels are taken without asking; "everyone" means all of the office.
    pub accept: Vec<String>,
    /// Parcels larger than this always ask; 0 means no limit.
    pub ask_above: ByteSize,
}

/// Parcels that wait for their receivers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outbox {
    /// How long they wait.
    pub keep: HumanDuration,
    /// Most bytes.
    pub limit: ByteSize,
    /// Keep sealed parcels of others.
    pub keeper: bool,
    /// Most bytes of those.
    pub keeper_limit: ByteSize,
}

/// Shared folders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Index {
    /// How often they are looked through in whole.
    pub rescan_interval: HumanDuration,
}

/// Printers, optical drives and disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceSettings {
    /// Where programs print to (IPP), while a printer is shared with everyone. Empty: nowhere.
    pub ipp_listen: Vec<SocketAddr>,
    /// The same over TLS (IPPS).
    pub ipps_listen: Vec<SocketAddr>,
    /// Announce those printers in the local network, so that they appear in print dialogs.
    pub announce: bool,
    /// Most bytes of print jobs that wait for one printer.
    pub spool_limit: ByteSize,
    /// Most bytes of others' discs that are kept for the next reader.
    pub disc_cache: ByteSize,
    /// Between two looks whether the machines that keep second copies of this one's shares want their disks back.
    pub mirror_look: HumanDuration,
    /// Between two proofs that such a copy is whole.
    pub mirror_proof: HumanDuration,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// The journal when started by systemd, else text.
    #[default]
    Auto,
    /// Text on standard error.
    Text,
    /// One JSON object a line on standard error.
    Json,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// error, warn, info, debug, trace, or a filter such as "info,peer_node=debug".
    pub level: String,
    /// auto, text or json.
    pub format: LogFormat,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            state_directory: PathBuf::new(),
            socket: PathBuf::new(),
            listen: vec![SocketAddr::from(([0u16; 8], DEFAULT_PORT))],
            name: String::new(),
            unit: String::new(),
            drain: HumanDuration::secs(5),
        }
    }
}

impl Default for Discovery {
    fn default() -> Self {
        Self { mdns: true, beacon: true, beacon_port: BEACON_PORT, seeds: Vec::new() }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self { enabled: false, rate: ByteSize::mib(10) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { upload: ByteSize(0), download: ByteSize(0), schedule: String::new(), yields: true }
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self { keep: HumanDuration::days(30), limit: ByteSize::gib(50), keeper: true, keeper_limit: ByteSize::gib(5) }
    }
}

impl Default for Index {
    fn default() -> Self {
        Self { rescan_interval: HumanDuration::hours(1) }
    }
}

impl Default for DeviceSettings {
    fn default() -> Self {
        Self {
            ipp_listen: vec![SocketAddr::from(([0u16; 8], IPP_PORT))],
            ipps_listen: vec![SocketAddr::from(([0u16; 8], IPPS_PORT))],
            announce: true,
            spool_limit: ByteSize::gib(10),
            disc_cache: ByteSize::gib(2),
            mirror_look: HumanDuration::secs(30),
            mirror_proof: HumanDuration::days(1),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Auto }
    }
}

/// What decides where a peer keeps its things.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Started by root: one peer for the whole machine.
    pub root: bool,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// `$XDG_STATE_HOME`.
    pub state_home: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`.
    pub runtime_directory: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process. Relative paths in variables do not count, as the XDG specification has it.
    pub fn process() -> Self {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        Self {
            root: rustix::process::geteuid().is_root(),
            home: absolute("HOME"),
            state_home: absolute("XDG_STATE_HOME"),
            runtime_directory: absolute("XDG_RUNTIME_DIR"),
        }
    }
}

impl Settings {
    /// Settings for a peer of its own in this directory, reachable by loopback only and looking for nobody: for tests
    /// and demonstrations.
    pub fn in_directory(directory: &Path) -> Self {
        let mut settings = Self::default();
        settings.node.state_directory = directory.join("state");
        settings.node.socket = directory.join("peer.sock");
        settings.node.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        settings.discovery.mdns = false;
        settings.discovery.beacon = false;
        settings.inbox.directory = directory.join("inbox");
        settings.devices.ipp_listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        settings.devices.ipps_listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        settings.devices.announce = false;
        settings
    }

    /// Fills in the places that depend on who starts the peer.
    ///
    /// # Errors
    /// SETTINGS_INVALID if there is no home directory to derive them from, or the socket's name becomes too long.
    pub fn resolve(mut self, around: &Surroundings) -> Result<Self> {
        if self.node.state_directory.as_os_str().is_empty() {
            self.node.state_directory = if around.root {
                PathBuf::from("/var/lib/atrium-peer")
            } else {
                let base = around.state_home.clone().or_else(|| around.home.as_ref().map(|h| h.join(".local/state")));
                let base = base.ok_or_else(|| {
                    Error::new(Reason::SettingsInvalid, "there is no place to keep state in")
                        .why_is("neither XDG_STATE_HOME nor HOME is set")
                        .fix_is("set node.state_directory, or give --state-dir")
                })?;
                base.join("atrium-peer")
            };
        }
        if self.node.socket.as_os_str().is_empty() {
            self.node.socket = match &around.runtime_directory {
                _ if around.root => PathBuf::from("/run/atrium/peer.sock"),
                Some(runtime) => runtime.join("atrium/peer.sock"),
                None => self.node.state_directory.join("peer.sock"),
            };
        }
        if self.node.socket.as_os_str().len() > SOCKET_MAX {
            return Err(Error::new(Reason::SettingsInvalid, "the socket's name is longer than 107 bytes")
                .fix_is("set node.socket to a shorter path, or give --socket"));
        }
        if self.inbox.directory.as_os_str().is_empty() {
            self.inbox.directory = match &around.home {
                Some(home) => home.join("atrium-inbox"),
                None => self.node.state_directory.join("inbox"),
            };
        }
        Ok(self)
    }

    /// How transfers are kept and run.
    pub fn transfers(&self) -> TransferSettings {
        let limits = transfer::Limits {
            upload_rate: self.limits.upload.bytes(),
            download_rate: self.limits.download.bytes(),
            schedule: self.limits.schedule.clone(),
            yields: self.limits.yields,
        };
        TransferSettings { limits, ..TransferSettings::new(self.node.state_directory.join("transfers")) }
    }

    /// Where parcels are, how much there may be of them, and who may send without asking.
    pub fn mailbox(&self) -> MailboxSettings {
        let everyone = |name: &String| name == crate::office::EVERYONE;
        MailboxSettings {
            directory: self.node.state_directory.join("mailbox"),
            inbox: self.inbox.directory.clone(),
            keep: self.outbox.keep.get(),
            outbox_bytes: self.outbox.limit.bytes(),
            keeper: self.outbox.keeper,
            keeper_bytes: self.outbox.keeper_limit.bytes(),
            rules: Rules {
                accept: self.inbox.accept.iter().filter(|name| !everyone(name)).cloned().collect(),
                accept_all: self.inbox.accept.iter().any(everyone),
                ask_above_bytes: self.inbox.ask_above.bytes(),
                directory: self.inbox.directory.clone(),
                ..Rules::default()
            },
        }
    }

    /// What this machine is called unless somebody says otherwise: the setting, or the host name up to its first dot.
    pub fn machine_name(&self) -> String {
        if !self.node.name.is_empty() {
            return self.node.name.clone();
        }
        let uname = rustix::system::uname();
        let host = uname.nodename().to_string_lossy();
        let short = host.split('.').next().unwrap_or_default();
        if short.is_empty() { "machine".to_owned() } else { short.to_owned() }
    }
}

/// The name of the user that this process runs as, for people: from the environment, as a login sets it, else from the
/// system's list of users; "user" if neither knows.
pub fn user_name() -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|n| !n.is_empty());
    set("USER")
        .or_else(|| set("LOGNAME"))
        .or_else(|| listed(rustix::process::geteuid().as_raw()))
        .unwrap_or("user".into())
}

/// From `/etc/passwd`: NAME:PASSWORD:UID:...
fn listed(uid: u32) -> Option<String> {
    let list = std::fs::read_to_string("/etc/passwd").ok()?;
    let fields = list.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields.filter(|f| f.len() > 2 && f[2].parse() == Ok(uid)).map(|f| f[0].to_owned()).next()
}

/// Whether it is a unit: names joined by '/', or nothing.
fn is_unit(text: &str) -> bool {
    text.is_empty() || text.len() <= 255 && text.split('/').all(|s| EntryName::new(s).is_ok())
}

/// Whether it could be "host:port" or "host".
fn is_seed(text: &str) -> bool {
    common::rpc::ServerAddress::with_default_port(text, DEFAULT_PORT).is_ok()
}

impl common::settings::Settings for Settings {
    fn validate(&self, problems: &mut Problems) {
        let mut within = |key: &str, value: u64, low: u64, high: u64, what: &str| {
            problems.require((low..=high).contains(&value), key, what);
        };
        within("node.drain", self.node.drain.as_millis(), 0, 600_000, "must be at most 10m");
        within("node.listen", self.node.listen.len() as u64, 1, ADDRESSES_MAX as u64, "must name 1 to 32 addresses");
        within("discovery.beacon_port", self.discovery.beacon_port.into(), 1, 65_535, "must not be 0");
        within("discovery.seeds", self.discovery.seeds.len() as u64, 0, ADDRESSES_MAX as u64, "must name at most 32");
        within("outbox.keep", self.outbox.keep.as_millis(), 60_000, 366 * 86_400_000, "must be 1m to 366d");
        within("devices.ipp_listen", self.devices.ipp_listen.len() as u64, 0, 8, "must name at most 8 addresses");
        within("devices.ipps_listen", self.devices.ipps_listen.len() as u64, 0, 8, "must name at most 8 addresses");
        let rescan = self.index.rescan_interval.as_millis();
        within("index.rescan_interval", rescan, 1_000, 30 * 86_400_000, "must be 1s to 30d");
        let look = self.devices.mirror_look.as_millis();
        within("devices.mirror_look", look, 100, 86_400_000, "must be 100ms to 1d");
        let proof = self.devices.mirror_proof.as_millis();
        within("devices.mirror_proof", proof, 1_000, 366 * 86_400_000, "must be 1s to 366d");
        within("inbox.accept", self.inbox.accept.len() as u64, 0, 1_000, "must name at most 1000 people");
        let places = [
            ("node.state_directory", &self.node.state_directory),
            ("node.socket", &self.node.socket),
            ("inbox.directory", &self.inbox.directory),
        ];
        for (key, path) in places {
            let fits = path.as_os_str().is_empty() || path.is_absolute();
            problems.require(fits, key, "must be an absolute path, or empty");
        }
        let socket = self.node.socket.as_os_str().len();
        problems.require(socket <= SOCKET_MAX, "node.socket", "must be at most 107 bytes");
        let name_fits = self.node.name.is_empty() || EntryName::new(self.node.name.as_str()).is_ok();
        problems.require(name_fits, "node.name", "must be a name without '/', or empty");
        problems.require(is_unit(&self.node.unit), "node.unit", "must be names joined by '/', or empty");
        for seed in self.discovery.seeds.iter().filter(|s| !is_seed(s)) {
            problems.add("discovery.seeds", format!("{seed:?} is no host:port"));
        }
        let limits = transfer::Limits { schedule: self.limits.schedule.clone(), ..transfer::Limits::default() };
        if let Err(error) = limits.check() {
            problems.add("limits.schedule", error.message());
        }
        if let Err(error) = common::telemetry::check_filter(&self.log.level) {
            problems.add("log.level", error);
        }
    }
}

#[cfg(test)]
mod tests;
