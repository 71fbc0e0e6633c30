//! Settings of the central server. `deploy/config/central-server.toml` says the same for people; a test keeps them equal.

use common::settings::{ByteSize, HumanDuration, Problems};
use common::store::EngineKind;
use common::telemetry::Log;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Checked settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where things are.
    pub server: Server,
    /// What the office is called.
    pub office: Office,
    /// The gRPC listener.
    pub grpc: Grpc,
    /// The administration socket of this machine.
    pub admin: Admin,
    /// Metrics and the liveness page.
    pub web: Web,
    /// Metadata.
    pub store: StoreSection,
    /// Content.
    pub chunks: Chunks,
    /// Rules about files.
    pub files: Files,
    /// Print queues.
    pub print: Print,
    /// Signing in.
    pub sessions: Sessions,
    /// Joining.
    pub devices: Devices,
    /// The log.
    pub log: Log,
}

/// What the office is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Office {
    /// The office's name; taken at the first start only.
    pub name: String,
}

/// Where things are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Everything the server keeps. Mode 0700, used by one server at a time.
    pub data_directory: PathBuf,
    /// DNS names and IP addresses for the server's certificate, besides this machine's name, localhost and loopback.
    pub names: Vec<String>,
    /// Changes are refused with DISK_FULL while the data file system has less free space than this.
    pub reserve: ByteSize,
    /// How long running calls may go on after SIGTERM.
    pub drain: HumanDuration,
    /// Threads for disk work.
    pub blocking_threads: usize,
}

/// The gRPC listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Connections at a time; more are closed at once.
    pub max_connections: usize,
    /// Connections at a time from one IPv4 address or one IPv6 network of 64 bits; more are closed at once.
    pub max_connections_from_one: usize,
    /// Age at which a connection is asked to be made anew; its running calls go on.
    pub max_connection_age: HumanDuration,
    /// TLS handshakes at a time; beyond it the oldest is given up for the newest.
    pub max_handshakes: usize,
    /// A handshake that takes longer is cut off.
    pub handshake_timeout: HumanDuration,
    /// Calls at a time on one connection; more wait in the client.
    pub max_streams: u32,
    /// Calls at a time over all connections, open streams included; more get OVERLOADED.
    pub max_calls: usize,
    /// Longest life of a call that is no stream; a shorter deadline of the caller wins.
    pub call_timeout: HumanDuration,
    /// Largest message that is not content. Commits of files, which list their chunks, may have 16 MiB in any case.
    pub max_message: ByteSize,
    /// HTTP/2 flow-control window of a stream.
    pub stream_window: ByteSize,
    /// HTTP/2 flow-control window of a connection.
    pub connection_window: ByteSize,
    /// Largest HTTP/2 frame that is received.
    pub max_frame: ByteSize,
    /// Silence after which a connection is probed.
    pub keepalive_interval: HumanDuration,
    /// A probe unanswered for so long ends the connection.
    pub keepalive_timeout: HumanDuration,
    /// Whether clients may ask for the list of services (gRPC reflection).
    pub reflection: bool,
}

/// The administration socket of this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Path of the Unix socket; empty means `admin.sock` in the data directory.
    pub socket: PathBuf,
}

/// Metrics and the liveness page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Web {
    /// Serve it at all.
    pub enabled: bool,
    /// Address and port. It has no access control: keep it on loopback or behind something that has.
    pub listen: SocketAddr,
}

/// Metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Storage engine; changing it needs `export` and `import`.
    pub engine: EngineKind,
    /// Memory for cached pages.
    pub cache: ByteSize,
    /// Automatic snapshots that are kept.
    pub snapshot_keep: usize,
    /// Time between automatic snapshots.
    pub snapshot_interval: HumanDuration,
    /// Most changes that are kept for watchers, however new they are.
    pub changes_keep: u64,
    /// Changes older than this go.
    pub changes_age: HumanDuration,
    /// The newest changes, which are kept however old they are.
    pub changes_min: u64,
}

/// Content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chunks {
    /// Size at which a segment file is closed.
    pub segment: ByteSize,
    /// Time between passes that free the space of deleted content.
    pub reclaim_interval: HumanDuration,
    /// Time between passes that read and check everything.
    pub scrub_interval: HumanDuration,
    /// Bytes per second that an automatic scrub reads at most; 0 means no limit.
    pub scrub_rate: ByteSize,
}

/// Rules about files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// How long deleted files stay restorable.
    pub trash_keep: HumanDuration,
    /// How long old versions stay restorable.
    pub version_keep: HumanDuration,
    /// Old versions of one file that are kept at most.
    pub version_max: u32,
    /// Time between passes that apply these rules.
    pub retention_interval: HumanDuration,
    /// Longest check-out of a file; a longer wish gets this, and is renewed. 30 days, the longest of the contract, at most.
    pub lock_max: HumanDuration,
    /// Limit of a new private directory; 0 means none.
    pub home_quota: ByteSize,
    /// Largest file.
    pub max_file: ByteSize,
    /// A stream of content on which nothing moves for so long is ended.
    pub transfer_idle: HumanDuration,
}

/// Print queues.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Print {
    /// Whether every member may print on a new printer. Otherwise it is for administrators until they grant it.
    pub everyone: bool,
    /// Largest document.
    pub max_job: ByteSize,
    /// All documents that wait to be printed together.
    pub spool: ByteSize,
    /// Jobs of one person that are not printed yet.
    pub jobs_per_person: usize,
    /// A job that was not printed for so long is given up.
    pub keep_waiting: HumanDuration,
    /// How long ended jobs are listed.
    pub keep_ended: HumanDuration,
}

/// Signing in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// Life of a session for which nothing else is asked.
    pub lifetime: HumanDuration,
    /// Longest life that may be asked for.
    pub lifetime_max: HumanDuration,
    /// Password hashes computed at a time.
    pub hashers: usize,
    /// Sign-ins that wait for a hash; more get OVERLOADED.
    pub hash_queue: usize,
    /// Memory of one password hash (argon2id). A higher cost is applied to a password when it is next used.
    pub hash_memory: ByteSize,
    /// Passes of one password hash over its memory.
    pub hash_passes: u32,
    /// Failed sign-ins of one account before it must wait.
    pub login_attempts: u32,
    /// Failed sign-ins from one address before it must wait.
    pub address_attempts: u32,
    /// Time in which one more attempt comes free.
    pub attempt_refill: HumanDuration,
}

/// Joining.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Devices {
    /// Life of a device's certificate; agents renew at two thirds of it.
    pub certificate_lifetime: HumanDuration,
    /// Life of an invite for which nothing else is asked.
    pub invite_lifetime: HumanDuration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            data_directory: PathBuf::from("/var/lib/atrium-central"),
            names: Vec::new(),
            reserve: ByteSize::gib(1),
            drain: HumanDuration::secs(10),
            blocking_threads: 64,
        }
    }
}

impl Default for Office {
    fn default() -> Self {
        Self { name: "office".into() }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7443)),
            max_connections: 8192,
            max_connections_from_one: 2048,
            max_connection_age: HumanDuration::hours(12),
            max_handshakes: 256,
            handshake_timeout: HumanDuration::secs(10),
            max_streams: 256,
            max_calls: 16_384,
            call_timeout: HumanDuration::minutes(5),
            max_message: ByteSize::mib(4),
            stream_window: ByteSize::mib(4),
            connection_window: ByteSize::mib(8),
            max_frame: ByteSize::kib(256),
            keepalive_interval: HumanDuration::secs(20),
            keepalive_timeout: HumanDuration::secs(10),
            reflection: true,
        }
    }
}

impl Default for Web {
    fn default() -> Self {
        Self { enabled: true, listen: SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 7480)) }
    }
}

impl Default for StoreSection {
    fn default() -> Self {
        Self {
            engine: EngineKind::Sled,
            cache: ByteSize::mib(64),
            snapshot_keep: 7,
            snapshot_interval: HumanDuration::hours(24),
            changes_keep: 1_000_000,
            changes_age: HumanDuration::days(7),
            changes_min: 10_000,
        }
    }
}

impl Default for Chunks {
    fn default() -> Self {
        Self {
            segment: ByteSize::mib(256),
            reclaim_interval: HumanDuration::hours(6),
            scrub_interval: HumanDuration::days(30),
            scrub_rate: ByteSize::mib(50),
        }
    }
}

impl Default for Files {
    fn default() -> Self {
        Self {
            trash_keep: HumanDuration::days(30),
            version_keep: HumanDuration::days(90),
            version_max: 100,
            retention_interval: HumanDuration::hours(1),
            lock_max: HumanDuration::days(30),
            home_quota: ByteSize(0),
            max_file: ByteSize::gib(1024),
            transfer_idle: HumanDuration::minutes(1),
        }
    }
}

impl Default for Print {
    fn default() -> Self {
        Self {
            everyone: false,
            max_job: ByteSize::mib(512),
            spool: ByteSize::gib(8),
            jobs_per_person: 100,
            keep_waiting: HumanDuration::days(7),
            keep_ended: HumanDuration::days(30),
        }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            lifetime: HumanDuration::days(30),
            lifetime_max: HumanDuration::days(90),
            hashers: 2,
            hash_queue: 64,
            hash_memory: ByteSize::mib(19),
            hash_passes: 2,
            login_attempts: 10,
            address_attempts: 50,
            attempt_refill: HumanDuration::secs(30),
        }
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self { certificate_lifetime: HumanDuration::days(7), invite_lifetime: HumanDuration::minutes(15) }
    }
}

impl Settings {
    /// Settings for a server of its own in this directory, on free loopback ports: for tests and demonstrations.
    pub fn in_directory(directory: &Path) -> Self {
        let free = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
        let mut settings = Self::default();
        settings.server.data_directory = directory.to_owned();
        settings.server.reserve = ByteSize::mib(64);
        settings.grpc.listen = free;
        settings.web.listen = free;
        settings
    }

    /// Path of the administration socket.
    pub fn admin_socket(&self) -> PathBuf {
        if self.admin.socket.as_os_str().is_empty() {
            self.server.data_directory.join("admin.sock")
        } else {
            self.admin.socket.clone()
        }
    }
}

impl common::settings::Settings for Settings {
    fn validate(&self, problems: &mut Problems) {
        let mut within = |key: &str, value: u64, low: u64, high: u64, what: &str| {
            problems.require((low..=high).contains(&value), key, what);
        };
        let day = HumanDuration::days(1).as_millis();
        let kib = 1 << 10;
        let mib = 1 << 20;
        let grpc = &self.grpc;
        within("server.blocking_threads", self.server.blocking_threads as u64, 4, 512, "must be 4 to 512");
        within("server.drain", self.server.drain.as_millis(), 0, 600_000, "must be at most 10m");
        within("grpc.max_connections", grpc.max_connections as u64, 1, 100_000, "must be 1 to 100000");
        within(
            "grpc.max_connections_from_one",
            grpc.max_connections_from_one as u64,
            1,
            100_000,
            "must be 1 to 100000",
        );
        within("grpc.max_connection_age", grpc.max_connection_age.as_millis(), 60_000, 30 * day, "must be 1m to 30d");
        within("grpc.max_handshakes", grpc.max_handshakes as u64, 1, 10_000, "must be 1 to 10000");
        within("grpc.handshake_timeout", grpc.handshake_timeout.as_millis(), 100, 60_000, "must be 100ms to 1m");
        within("grpc.max_streams", grpc.max_streams.into(), 1, 10_000, "must be 1 to 10000");
        within("grpc.max_calls", grpc.max_calls as u64, 1, 1_000_000, "must be 1 to 1000000");
        within("grpc.call_timeout", grpc.call_timeout.as_millis(), 1_000, day, "must be 1s to 1d");
        within("grpc.max_message", grpc.max_message.0, 64 * kib, 64 * mib, "must be 64KiB to 64MiB");
        within("grpc.stream_window", grpc.stream_window.0, 64 * kib, 1 << 30, "must be 64KiB to 1GiB");
        within("grpc.connection_window", grpc.connection_window.0, 64 * kib, 1 << 30, "must be 64KiB to 1GiB");
        within("grpc.max_frame", grpc.max_frame.0, 16 * kib, 16 * mib - 1, "must be 16KiB to less than 16MiB");
        within("grpc.keepalive_interval", grpc.keepalive_interval.as_millis(), 1_000, day, "must be 1s to 1d");
        within("grpc.keepalive_timeout", grpc.keepalive_timeout.as_millis(), 1_000, 3_600_000, "must be 1s to 1h");
        within("store.cache", self.store.cache.0, mib, 1 << 40, "must be 1MiB to 1TiB");
        within("store.snapshot_keep", self.store.snapshot_keep as u64, 1, 1000, "must be 1 to 1000");
        within(
            "store.snapshot_interval",
            self.store.snapshot_interval.as_millis(),
            60_000,
            u64::MAX,
            "must be 1m or more",
        );
        within("store.changes_keep", self.store.changes_keep, 1000, u64::MAX, "must be 1000 or more");
        within("store.changes_age", self.store.changes_age.as_millis(), 60_000, u64::MAX, "must be 1m or more");
        let keep = self.store.changes_keep;
        within("store.changes_min", self.store.changes_min, 0, keep, "must not be larger than store.changes_keep");
        within("chunks.segment", self.chunks.segment.0, 8 * mib, 1024 * mib, "must be 8MiB to 1GiB");
        within(
            "chunks.reclaim_interval",
            self.chunks.reclaim_interval.as_millis(),
            1_000,
            u64::MAX,
            "must be 1s or more",
        );
        within("chunks.scrub_interval", self.chunks.scrub_interval.as_millis(), 60_000, u64::MAX, "must be 1m or more");
        within(
            "files.retention_interval",
            self.files.retention_interval.as_millis(),
            1_000,
            u64::MAX,
            "must be 1s or more",
        );
        within("files.version_max", self.files.version_max.into(), 1, 10_000, "must be 1 to 10000");
        within("files.lock_max", self.files.lock_max.as_millis(), 60_000, 30 * day, "must be 1m to 30d");
        within("files.transfer_idle", self.files.transfer_idle.as_millis(), 1_000, day, "must be 1s to 1d");
        let print = &self.print;
        within("print.max_job", print.max_job.0, 1, 1 << 40, "must be 1B to 1TiB");
        within("print.spool", print.spool.0, print.max_job.0, u64::MAX, "must not be smaller than print.max_job");
        within("print.jobs_per_person", print.jobs_per_person as u64, 1, 10_000, "must be 1 to 10000");
        within("print.keep_waiting", print.keep_waiting.as_millis(), 60_000, u64::MAX, "must be 1m or more");
        within("print.keep_ended", print.keep_ended.as_millis(), 60_000, u64::MAX, "must be 1m or more");
        within("sessions.lifetime", self.sessions.lifetime.as_millis(), 60_000, u64::MAX, "must be 1m or more");
        within("sessions.hashers", self.sessions.hashers as u64, 1, 64, "must be 1 to 64");
        within("sessions.hash_queue", self.sessions.hash_queue as u64, 1, 10_000, "must be 1 to 10000");
        within("sessions.hash_memory", self.sessions.hash_memory.0, 8 * kib, 4096 * mib, "must be 8KiB to 4GiB");
        within("sessions.hash_passes", self.sessions.hash_passes.into(), 1, 100, "must be 1 to 100");
        within("sessions.login_attempts", self.sessions.login_attempts.into(), 1, 1000, "must be 1 to 1000");
        within("sessions.address_attempts", self.sessions.address_attempts.into(), 1, 10_000, "must be 1 to 10000");
        within("sessions.attempt_refill", self.sessions.attempt_refill.as_millis(), 100, day, "must be 100ms to 1d");
        within(
            "devices.certificate_lifetime",
            self.devices.certificate_lifetime.as_millis(),
            3_600_000,
            3650 * day,
            "must be 1h to 3650d",
        );
        within("devices.invite_lifetime", self.devices.invite_lifetime.as_millis(), 60_000, day, "must be 1m to 1d");
        let directory = &self.server.data_directory;
        problems.require(directory.is_absolute(), "server.data_directory", "must be an absolute path");
        let office = &self.office.name;
        let printable = !office.trim().is_empty() && office.len() <= 128 && !office.chars().any(char::is_control);
        problems.require(printable, "office.name", "must be 1 to 128 bytes without control characters");
        problems.require(self.server.names.len() <= 100, "server.names", "must be at most 100 names");
        for name in &self.server.names {
            let dns = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
            let good = name.parse::<std::net::IpAddr>().is_ok() || (name.len() <= 253 && name.chars().all(dns));
            problems.require(good && !name.is_empty(), "server.names", &format!("{name:?} is no DNS name or address"));
        }
        problems.require(
            grpc.connection_window >= grpc.stream_window,
            "grpc.connection_window",
            "must not be smaller than grpc.stream_window",
        );
        problems.require(
            self.sessions.lifetime_max >= self.sessions.lifetime,
            "sessions.lifetime_max",
            "must not be smaller than sessions.lifetime",
        );
        // The limit of a Unix socket's name is 107 bytes on Linux.
        problems.require(self.admin_socket().as_os_str().len() <= 107, "admin.socket", "must be at most 107 bytes");
        self.log.validate(problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::settings::Sources;

    fn example() -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/central-server.toml");
        std::fs::read_to_string(path).expect("the example file")
    }

    /// The example with its settings switched on, and their names.
    fn switched_on() -> (String, Vec<String>) {
        let mut section = String::new();
        let mut names = Vec::new();
        let mut text = String::new();
        for line in example().lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name.to_owned();
            }
            let setting = line.strip_prefix('#').filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase()));
            if let Some((name, _)) = setting.and_then(|l| l.split_once(" = ")) {
                names.push(format!("{section}.{name}"));
            }
            text.push_str(setting.unwrap_or(line));
            text.push('\n');
        }
        (text, names)
    }

    fn load(text: &str) -> common::error::Result<common::settings::Loaded<Settings>> {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("central-server.toml");
        std::fs::write(&file, text).expect("write");
        Sources { file: Some(file), ..Sources::default() }.load()
    }

    #[test]
    fn the_example_file_says_what_is_built_in() {
        assert_eq!(load(&example()).expect("loads as it is").settings, Settings::default());
        let (text, names) = switched_on();
        assert_eq!(load(&text).expect("loads switched on").settings, Settings::default());
        let printed = load("").expect("loads").print().expect("prints");
        let mut section = "";
        let mut all = Vec::new();
        for line in printed.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name;
            } else if let Some((name, _)) = line.split_once(" = ") {
                all.push(format!("{section}.{name}"));
            }
        }
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        assert_eq!(sorted(names), sorted(all));
    }

    #[test]
    fn the_example_shows_each_value_as_it_would_be_printed() {
        let (text, _) = switched_on();
        let printed = load("").expect("loads").print().expect("prints");
        for line in text.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase())) {
            assert!(printed.contains(line), "{line} is not in\n{printed}");
        }
    }

    #[test]
    fn values_out_of_range_are_all_named() {
        let text = "[server]\ndata_directory = 'here'\nnames = ['a b']\n[office]\nname = ''\n\
            [grpc]\nmax_streams = 0\nstream_window = '16MiB'\n[log]\nlevel = 'loud'\n[files]\nversion_max = 0\n";
        let error = load(text).expect_err("refused");
        let text = error.message();
        for key in [
            "server.data_directory",
            "server.names",
            "office.name",
            "grpc.max_streams",
            "grpc.connection_window",
            "log.level",
            "files.version_max",
        ] {
            assert!(text.contains(key), "{key} is missing in {text}");
        }
        assert!(text.starts_with("7 mistakes"), "{text}");
    }

    #[test]
    fn settings_for_tests_are_in_order() {
        let mut problems = Problems::default();
        common::settings::Settings::validate(&Settings::in_directory(Path::new("/tmp/x")), &mut problems);
        assert!(problems.is_empty());
    }
}
