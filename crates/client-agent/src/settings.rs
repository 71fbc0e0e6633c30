//! Settings of the workstation agent. `deploy/config/client-agent.toml` says the same for people; a test keeps them equal.

use common::settings::{ByteSize, HumanDuration, Problems};
use common::telemetry::Log;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Checked settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where things are.
    pub agent: Agent,
    /// The connection to the central server.
    pub server: Server,
    /// Chunks that were fetched before.
    pub cache: Cache,
    /// Uploads that wait.
    pub queue: Queue,
    /// The log.
    pub log: Log,
}

/// Where things are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agent {
    /// Everything the agent keeps. Mode 0700, used by one agent at a time.
    pub state_directory: PathBuf,
    /// The local socket. Everyone may connect; each call is judged by the caller's Unix user.
    pub socket: PathBuf,
    /// How long running calls may go on after SIGTERM.
    pub drain: HumanDuration,
}

/// The connection to the central server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Time between looks whether the server is there, while it is.
    pub check_interval: HumanDuration,
    /// Longest wait between tries while it is away.
    pub retry_max: HumanDuration,
    /// The certificate is renewed after this share of its life, in percent.
    pub renew_percent: u32,
}

/// Chunks that were fetched before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Most bytes; 0 turns it off.
    pub limit: ByteSize,
    /// Newest versions of files remembered for reading while the server is away.
    pub files_max: usize,
}

/// Uploads that wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Most bytes.
    pub limit: ByteSize,
    /// Most uploads.
    pub items_max: usize,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            state_directory: PathBuf::from("/var/lib/atrium-agent"),
            socket: PathBuf::from("/run/atrium/agent.sock"),
            drain: HumanDuration::secs(5),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self { check_interval: HumanDuration::secs(15), retry_max: HumanDuration::secs(30), renew_percent: 66 }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { limit: ByteSize::gib(2), files_max: 100_000 }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { limit: ByteSize::gib(20), items_max: 10_000 }
    }
}

impl Settings {
    /// Settings for an agent of its own in this directory: for tests and demonstrations.
    pub fn in_directory(directory: &Path) -> Self {
        let mut settings = Self::default();
        settings.agent.state_directory = directory.to_owned();
        settings.agent.socket = directory.join("agent.sock");
        settings.server.check_interval = HumanDuration::secs(1);
        settings.server.retry_max = HumanDuration::secs(1);
        settings
    }
}

impl common::settings::Settings for Settings {
    fn validate(&self, problems: &mut Problems) {
        let mut within = |key: &str, value: u64, low: u64, high: u64, what: &str| {
            problems.require((low..=high).contains(&value), key, what);
        };
        within("agent.drain", self.agent.drain.as_millis(), 0, 600_000, "must be at most 10m");
        within("server.check_interval", self.server.check_interval.as_millis(), 100, 3_600_000, "must be 100ms to 1h");
        within("server.retry_max", self.server.retry_max.as_millis(), 100, 3_600_000, "must be 100ms to 1h");
        within("server.renew_percent", self.server.renew_percent.into(), 10, 90, "must be 10 to 90");
        within("cache.files_max", self.cache.files_max as u64, 1, 10_000_000, "must be 1 to 10000000");
        within("queue.items_max", self.queue.items_max as u64, 1, 1_000_000, "must be 1 to 1000000");
        problems.require(self.agent.state_directory.is_absolute(), "agent.state_directory", "must be an absolute path");
        problems.require(self.agent.socket.is_absolute(), "agent.socket", "must be an absolute path");
        // The limit of a Unix socket's name is 107 bytes on Linux.
        problems.require(self.agent.socket.as_os_str().len() <= 107, "agent.socket", "must be at most 107 bytes");
        self.log.validate(problems);
    }
}
