//! What people keep metadata in now: etcd and PostgreSQL, each one node over TLS on a free loopback port, durable as they
//! come. etcd is called by the same client library as Atrium, with 64 calls in flight on one connection; PostgreSQL by its
//! own pgbench, with prepared statements and a connection per client.

use super::peers::{Server, free_port, installed};
use crate::process::{run, words};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use common::clock::{Clock, SystemClock};
use common::rpc::{ConnectOptions, OfficeChannel, OfficeConnection};
use common::tls::{OfficeCa, ServerKey};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Bytes of a value: what a file's record has.
const VALUE: usize = 300;
/// Records that are looked up.
pub const RECORDS: u64 = 100_000;

/// One of them, running.
pub enum Peer {
    /// etcd.
    Etcd(Etcd),
    /// PostgreSQL.
    Postgres(Postgres),
}

/// All that are installed, with [`RECORDS`] records each, and the names of those that are not.
///
/// # Errors
/// One that is installed does not start.
pub async fn start_all() -> Result<(Vec<Peer>, Vec<String>)> {
    let (mut peers, mut missing) = (Vec::new(), Vec::new());
    match installed("etcd") {
        Some(program) => peers.push(Peer::Etcd(Etcd::start(&program).await?)),
        None => missing.push("etcd".to_owned()),
    }
    match (Postgres::programs(), installed("pgbench"), installed("psql")) {
        (Some(programs), Some(_), Some(_)) => peers.push(Peer::Postgres(Postgres::start(&programs)?)),
        _ => missing.push("postgresql".to_owned()),
    }
    Ok((peers, missing))
}

impl Peer {
    /// For the report.
    pub fn name(&self) -> &'static str {
        match self {
            Peer::Etcd(_) => "etcd",
            Peer::Postgres(_) => "PostgreSQL",
        }
    }

    /// Durable writes of one new record each, per second. `round` makes the records new.
    ///
    /// # Errors
    /// One fails.
    pub async fn creates(&self, clients: usize, count: u64, round: usize) -> Result<f64> {
        match self {
            Peer::Etcd(etcd) => {
                etcd.each(clients, count, move |i| Call::Put(format!("c/{clients}/{round}/{i:07}"))).await
            }
            Peer::Postgres(postgres) => postgres.bench("create.sql", clients, count).await,
        }
    }

    /// Look-ups of one record each, per second.
    ///
    /// # Errors
    /// One fails.
    pub async fn look_ups(&self, clients: usize, count: u64) -> Result<f64> {
        match self {
            Peer::Etcd(etcd) => etcd.each(clients, count, |i| Call::Get(format!("l/{:07}", i * 7919 % RECORDS))).await,
            Peer::Postgres(postgres) => postgres.bench("look-up.sql", clients, count).await,
        }
    }
}

/// A directory that another user can enter, a certificate in it, and the CA's.
struct Place {
    directory: tempfile::TempDir,
    certificate: PathBuf,
    key: PathBuf,
    ca_pem: String,
}

impl Place {
    fn make(name: &str) -> Result<Self> {
        let enter = fs::Permissions::from_mode(0o755);
        let prefix = format!("atrium-bench-{name}-");
        let directory = tempfile::Builder::new().prefix(&prefix).permissions(enter).tempdir()?;
        let now = SystemClock.now_ms();
        let words = |e: common::error::Error| anyhow::anyhow!("{e:?}");
        let ca = OfficeCa::create("bench", now).map_err(words)?;
        let secret = ServerKey::generate().map_err(words)?;
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let issued = ca.issue_server(&names, &secret, now).map_err(words)?;
        let (certificate, key) = (directory.path().join("server.pem"), directory.path().join("server.key"));
        fs::write(&certificate, issued.pem())?;
        secret.save(&key).map_err(words)?;
        Ok(Self { directory, certificate, key, ca_pem: ca.ca_pem().to_owned() })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(int64, tag = "4")]
    count: i64,
}

enum Call {
    Put(String),
    Get(String),
}

/// etcd, one node.
pub struct Etcd {
    connection: OfficeConnection,
    _server: Server,
    _place: Place,
}

impl Etcd {
    async fn start(program: &Path) -> Result<Self> {
        let place = Place::make("etcd")?;
        let (port, peer_port) = (free_port()?, free_port()?);
        let (client, peer) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
        let mut command = Command::new(program);
        command.arg("--data-dir").arg(place.path().join("data"));
        command.arg("--cert-file").arg(&place.certificate).arg("--key-file").arg(&place.key);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"]);
        let server = Server::start(&mut command, port)?;
        let options = ConnectOptions::new(format!("127.0.0.1:{port}"), place.ca_pem.clone());
        let connection = OfficeConnection::lazy(&options).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let etcd = Self { connection, _server: server, _place: place };
        etcd.each(64, RECORDS, |i| Call::Put(format!("l/{i:07}"))).await?;
        Ok(etcd)
    }

    /// Calls per second.
    async fn each(
        &self,
        clients: usize,
        count: u64,
        call: impl Fn(u64) -> Call + Send + Sync + 'static,
    ) -> Result<f64> {
        let (next, call) = (Arc::new(AtomicU64::new(0)), Arc::new(call));
        let begin = Instant::now();
        let mut tasks = Vec::new();
        for _ in 0..clients {
            let mut grpc = tonic::client::Grpc::new(self.connection.control());
            let (next, call) = (next.clone(), call.clone());
            tasks.push(tokio::spawn(async move {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count {
                        return Ok::<(), anyhow::Error>(());
                    }
                    perform(&mut grpc, call(i)).await?;
                }
            }));
        }
        for task in tasks {
            task.await??;
        }
        Ok(count as f64 / begin.elapsed().as_secs_f64())
    }
}

async fn perform(grpc: &mut tonic::client::Grpc<OfficeChannel>, call: Call) -> Result<()> {
    grpc.ready().await?;
    match call {
        Call::Put(key) => {
            let request = PutRequest { key: key.into(), value: Bytes::from_static(&[7; VALUE]) };
            let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
            let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
            grpc.unary(tonic::Request::new(request), path, codec).await?;
        }
        Call::Get(key) => {
            let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Range");
            let codec = tonic_prost::ProstCodec::<RangeRequest, RangeResponse>::default();
            let request = tonic::Request::new(RangeRequest { key: key.into() });
            let found = grpc.unary(request, path, codec).await?.into_inner();
            ensure!(found.count == 1, "etcd lost a record");
        }
    }
    Ok(())
}

/// PostgreSQL, one node.
pub struct Postgres {
    port: u16,
    _server: Server,
    place: Place,
}

impl Postgres {
    /// The directory of the server programs of the newest version.
    fn programs() -> Option<PathBuf> {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        let number = |path: &Path| path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<u32>().ok());
        let newest = versions.filter_map(|v| v.ok().map(|v| v.path())).max_by_key(|path| number(path))?;
        Some(newest.join("bin")).filter(|bin| bin.join("initdb").is_file())
    }

    fn start(programs: &Path) -> Result<Self> {
        let place = Place::make("postgresql")?;
        let data = place.path().join("data");
        fs::create_dir(&data)?;
        // It does not run as root.
        let user = if rustix::process::geteuid().is_root() { Some(account("postgres")?) } else { None };
        if let Some((uid, gid)) = user {
            [&data, &place.certificate, &place.key].iter().try_for_each(|path| chown(path, Some(uid), Some(gid)))?;
        }
        let as_user = |program: &str| {
            let mut command = Command::new(programs.join(program));
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command.current_dir("/");
            command
        };
        let mut initdb = as_user("initdb");
        check(initdb.args(["-A", "trust", "-U", "bench", "-D"]).arg(&data))?;
        let port = free_port()?;
        let mut server = as_user("postgres");
        server.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "ssl=on"] {
            server.args(["-c", setting]);
        }
        server.arg("-c").arg(format!("ssl_cert_file={}", place.certificate.display()));
        server.arg("-c").arg(format!("ssl_key_file={}", place.key.display()));
        let server = Server::start(&mut server, port)?;
        let postgres = Self { port, _server: server, place };
        let script = |name: &str, text: String| fs::write(postgres.place.path().join(name), text);
        script("create.sql", format!("INSERT INTO kv VALUES (gen_random_uuid()::text, repeat('x', {VALUE}));\n"))?;
        script("look-up.sql", format!("\\set i random(0, {})\nSELECT v FROM kv WHERE k = :i::text;\n", RECORDS - 1))?;
        let fill = format!(
            "CREATE TABLE kv (k text PRIMARY KEY, v text NOT NULL); \
             INSERT INTO kv SELECT i::text, repeat('x', {VALUE}) FROM generate_series(0, {}) AS i; VACUUM ANALYZE kv;",
            RECORDS - 1
        );
        for part in fill.split_inclusive(';').filter(|part| !part.trim().is_empty()) {
            check(postgres.client("psql").args(["-q", "-v", "ON_ERROR_STOP=1", "-c", part.trim()]))?;
        }
        Ok(postgres)
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs([
            ("PGHOST", "127.0.0.1"),
            ("PGUSER", "bench"),
            ("PGDATABASE", "postgres"),
            ("PGSSLMODE", "require"),
        ]);
        command.env("PGPORT", self.port.to_string());
        command
    }

    async fn bench(&self, script: &str, clients: usize, count: u64) -> Result<f64> {
        let mut command = self.client("pgbench");
        command.args(["-n", "-M", "prepared", "-c", &clients.to_string(), "-j", &clients.min(2).to_string()]);
        command.args(["-t", &count.div_ceil(clients as u64).to_string(), "-f"]).arg(self.place.path().join(script));
        let text = tokio::task::spawn_blocking(move || check(&mut command)).await??;
        let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")).and_then(|rest| rest.split(' ').next());
        rate.with_context(|| format!("no rate in {text:?}"))?.parse().context("rate")
    }
}

/// User and group of an account.
fn account(name: &str) -> Result<(u32, u32)> {
    let text = fs::read_to_string("/etc/passwd")?;
    let mut fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|f| f.len() > 3);
    let found = fields.find(|f| f[0] == name).with_context(|| format!("there is no account {name}"))?;
    Ok((found[2].parse()?, found[3].parse()?))
}

fn check(command: &mut Command) -> Result<String> {
    let done = run(command, b"")?;
    let program = words(&[command.get_program()]);
    ensure!(done.code == 0, "{program}: exit {}\n{}{}", done.code, done.text(), done.stderr);
    Ok(done.text())
}
