//! One file to many nodes in a network lab, for Atrium and for BitTorrent (aria2).

use crate::peers::{Peer, PeerOffice, Place};
use crate::process::{Process, poll};
use crate::{compare, sample};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use testkit::lab::{Lab, MachineId};

/// How long one distribution may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// What is distributed, to how many, over what lines.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shape {
    /// Nodes that fetch.
    pub nodes: usize,
    /// Content.
    pub bytes: u64,
    /// Each node's line, each way.
    pub mbit: u32,
}

/// What a line carries for each byte of content: of 1,514 bytes of a full frame, 1,448 are content of a TCP connection over
/// IPv4 with timestamps. The limits of the lab count whole frames.
const FRAMES: f64 = 1514.0 / 1448.0;

impl Shape {
    /// The time below which nobody can be: `max(F/u_s, F/d_min, N F/(u_s + sum u))`, in seconds (Kumar and Ross 2006), with
    /// the lines' rates for content.
    pub fn floor_seconds(&self) -> f64 {
        let (n, bits, rate) = (self.nodes as f64, self.bytes as f64 * 8.0, f64::from(self.mbit) * 1e6 / FRAMES);
        (bits / rate).max(n * bits / (rate + n * rate))
    }

    /// Copies of the content in so many bytes that left a card.
    fn copies(&self, sent: u64) -> f64 {
        sent as f64 / FRAMES / self.bytes as f64
    }
}

/// How one distribution went.
#[derive(Clone, Debug, Serialize)]
pub struct Distribution {
    /// Seconds from the common start to each node's end, ascending.
    pub seconds: Vec<f64>,
    /// Copies of the content that left the seed's card; everything else that it sent counts as if it were content.
    pub seed_copies: f64,
}

impl Distribution {
    /// The last node's time.
    pub fn last(&self) -> f64 {
        self.seconds.last().copied().unwrap_or(f64::NAN)
    }

    /// The middle node's time.
    pub fn middle(&self) -> f64 {
        self.seconds.get(self.seconds.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// A lab of this shape, the seed first; `None` where it cannot be made.
///
/// # Errors
/// A command failed.
fn lab(shape: Shape) -> Result<Option<(Rc<Lab>, Vec<MachineId>)>> {
    let Some(lab) = Lab::with_machines(shape.nodes + 1)? else { return Ok(None) };
    let machines: Vec<MachineId> = lab.machines().collect();
    for machine in &machines {
        lab.set_rate(*machine, shape.mbit)?;
    }
    Ok(Some((Rc::new(lab), machines)))
}

/// Atrium: the seed shares a folder, all others fetch it at the same time.
///
/// # Errors
/// Whatever goes wrong, and content that differs.
pub fn atrium(shape: Shape, scratch: &Path) -> Result<Option<Distribution>> {
    let Some((lab, machines)) = lab(shape)? else { return Ok(None) };
    let names: Vec<String> = (0..machines.len()).map(|i| format!("node{i:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let office = PeerOffice::found(scratch, &names, |at| Place::Machine(lab.clone(), machines[at]), "")?;
    office.wait_connected()?;
    let folder = scratch.join("content");
    std::fs::create_dir_all(&folder)?;
    let original = folder.join("content.bin");
    sample::file(&original, 7, shape.bytes)?;
    let seed = &office.peers[0];
    seed.atrium(&["share", text(&folder), "--name", "data", "--with", "everyone"])?;
    let address = "acme/node00/data/content.bin";
    for peer in &office.peers[1..] {
        peer.wait_until(&["ls", address, "--json"], |answer| answer.contains("\"manifest_digest\""))?;
    }
    let before = lab.traffic(machines[0])?.0;
    let begin = Instant::now();
    let mut running: Vec<(usize, Child)> = Vec::new();
    for (at, peer) in office.peers.iter().enumerate().skip(1) {
        running.push((at, peer.begin_atrium(&["get", address, text(&fetched(peer))])?));
    }
    let seconds = wait_all(&mut running, begin)?;
    let sent = lab.traffic(machines[0])?.0 - before;
    for peer in &office.peers[1..] {
        compare::files(&original, &fetched(peer))?;
    }
    Ok(Some(Distribution { seconds, seed_copies: shape.copies(sent) }))
}

fn fetched(peer: &Peer) -> PathBuf {
    peer.directory().join("fetched.bin")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or("")
}

/// Waits for all of them; their times in ascending order.
fn wait_all(running: &mut Vec<(usize, Child)>, begin: Instant) -> Result<Vec<f64>> {
    let mut seconds = Vec::new();
    let mut problem = None;
    let done = poll(PATIENCE, || {
        running.retain_mut(|(at, child)| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) if status.success() => {
                seconds.push(begin.elapsed().as_secs_f64());
                false
            }
            Ok(Some(status)) => {
                problem = Some(format!("node {at} ended with {status}"));
                false
            }
            Err(error) => {
                problem = Some(format!("node {at}: {error}"));
                false
            }
        });
        running.is_empty() || problem.is_some()
    });
    for (_, child) in running.iter_mut() {
        let _ = child.kill();
        let _ = child.wait();
    }
    match problem {
        Some(problem) => bail!("{problem}"),
        None if !done => bail!("not done after {PATIENCE:?}"),
        None => Ok(seconds),
    }
}

/// aria2 with BitTorrent and local peer discovery; `None` if it is not installed or there is no lab.
///
/// # Errors
/// Whatever goes wrong, and content that differs.
pub fn aria2(shape: Shape, scratch: &Path) -> Result<Option<Distribution>> {
    if Command::new("aria2c").arg("--version").output().is_err() {
        return Ok(None);
    }
    let Some((lab, machines)) = lab(shape)? else { return Ok(None) };
    let folder = scratch.join("content");
    std::fs::create_dir_all(&folder)?;
    let original = folder.join("content.bin");
    sample::file(&original, 7, shape.bytes)?;
    let torrent = scratch.join("content.torrent");
    make_torrent(&original, &torrent, &format!("http://{}:6969/announce", lab.address(machines[0], 0)))?;
    let mut tracker = lab.command(machines[0], "python3");
    tracker.args(["-u", "-c", TRACKER]);
    let (_tracker, _) = Process::daemon(tracker, "tracker", &scratch.join("tracker.log"))?;

    // Its control file stays for up to a minute; its hook tells the moment.
    let told = scratch.join("done.sh");
    std::fs::write(&told, "#!/bin/sh\ntouch \"$3.done\"\n")?;
    std::fs::set_permissions(&told, std::fs::Permissions::from_mode(0o755))?;
    let begin_one = |at: usize, directory: &Path| -> Result<Process> {
        std::fs::create_dir_all(directory)?;
        let mut command = lab.command(machines[at], "aria2c");
        command.args(["--seed-ratio=0.0", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=true"]);
        command.args(["--check-integrity=true", "--summary-interval=0", "--file-allocation=none", "--quiet=false"]);
        command.arg(format!("--on-bt-download-complete={}", told.display()));
        command.args(["--bt-tracker-interval=2", "--listen-port=6881", "--bt-max-peers=0", "--enable-rpc=false"]);
        command.arg(format!("--dir={}", directory.display())).arg(&torrent).env("HOME", scratch);
        // aria2 says nothing of use when it is ready; its first line is enough to know that it runs.
        Ok(Process::daemon(command, "aria2c", &scratch.join(format!("aria2-{at}.log")))?.0)
    };
    let _seed = begin_one(0, &folder)?;
    let before = lab.traffic(machines[0])?.0;
    let begin = Instant::now();
    let mut nodes = Vec::new();
    for at in 1..machines.len() {
        nodes.push((scratch.join(format!("node{at:02}")), begin_one(at, &scratch.join(format!("node{at:02}")))?));
    }
    let mut waiting: Vec<PathBuf> = nodes.iter().map(|(d, _)| d.clone()).collect();
    let mut seconds = Vec::new();
    poll(PATIENCE, || {
        waiting.retain(|directory| {
            let done = directory.join("content.bin.done").exists();
            if done {
                seconds.push(begin.elapsed().as_secs_f64());
            }
            !done
        });
        waiting.is_empty()
    });
    let sent = lab.traffic(machines[0])?.0 - before;
    if !waiting.is_empty() {
        bail!("aria2: {} nodes were not done after {PATIENCE:?}", waiting.len());
    }
    for (directory, _) in &nodes {
        compare::files(&original, &directory.join("content.bin"))?;
    }
    Ok(Some(Distribution { seconds, seed_copies: shape.copies(sent) }))
}

/// A single-file torrent with pieces of 256 KiB (BEP 3).
fn make_torrent(file: &Path, torrent: &Path, announce: &str) -> Result<()> {
    let mut command = Command::new("python3");
    command.args(["-c", TORRENT]).arg(file).arg(torrent).arg(announce);
    let done = command.stdin(Stdio::null()).output().context("python3")?;
    if !done.status.success() {
        bail!("the torrent was not made: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}

const TORRENT: &str = r#"
import hashlib, os, sys
path, out, announce = sys.argv[1:4]
def b(x):
    if isinstance(x, int): return b"i%de" % x
    if isinstance(x, bytes): return b"%d:%s" % (len(x), x)
    if isinstance(x, str): return b(x.encode())
    return b"d" + b"".join(b(k) + b(x[k]) for k in sorted(x)) + b"e"
step, pieces = 1 << 18, b""
with open(path, "rb") as f:
    while True:
        piece = f.read(step)
        if not piece: break
        pieces += hashlib.sha1(piece).digest()
info = {"name": os.path.basename(path), "length": os.path.getsize(path), "piece length": step, "pieces": pieces}
open(out, "wb").write(b({"announce": announce, "info": info}))
"#;

/// A tracker (BEP 3, compact answers of BEP 23) that tells everyone of everyone.
const TRACKER: &str = r#"
import http.server, socket, urllib.parse
peers = {}
class Tracker(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        q = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        me = (self.client_address[0], int(q["port"][0]))
        peers[me] = True
        others = b"".join(socket.inet_aton(a) + p.to_bytes(2, "big") for a, p in peers if (a, p) != me)
        body = b"d8:intervali2e5:peers%d:%se" % (len(others), others)
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 6969), Tracker)
print("ready"); server.serve_forever()
"#;
