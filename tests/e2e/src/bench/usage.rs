//! CPU time and memory of processes, from /proc.

use super::Sample;
use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Clock ticks of /proc per second; 100 on every Linux that Rust supports.
const TICKS: f64 = 100.0;

/// Measures from its start to its stop.
#[derive(Debug)]
pub struct Meter {
    server: Vec<u32>,
    begin: Instant,
    server_ticks: u64,
    client_ticks: u64,
    stop: Arc<AtomicBool>,
    server_peak: Arc<AtomicU64>,
    client_peak: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Meter {
    /// Starts; these are the server's processes, everything else that we start meanwhile is the client's.
    pub fn start(server: Vec<u32>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (server_peak, client_peak) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let own: HashSet<u32> = children(&[std::process::id()]).into_iter().collect();
        let thread = std::thread::spawn({
            let (stop, server_peak, client_peak, server) =
                (stop.clone(), server_peak.clone(), client_peak.clone(), server.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let tree = children(&server);
                    server_peak.fetch_max(tree.iter().map(|p| resident(*p)).sum(), Ordering::Relaxed);
                    let clients: Vec<u32> = children(&[std::process::id()])
                        .into_iter()
                        .filter(|p| *p != std::process::id() && !own.contains(p) && !tree.contains(p))
                        .collect();
                    client_peak.fetch_max(clients.iter().map(|p| resident(*p)).sum(), Ordering::Relaxed);
                    std::thread::park_timeout(Duration::from_millis(25));
                }
            }
        });
        Self {
            server_ticks: ticks_of(&server),
            client_ticks: reaped_ticks(),
            server,
            stop,
            server_peak,
            client_peak,
            thread: Some(thread),
            begin: Instant::now(),
        }
    }

    /// Stops.
    pub fn stop(mut self) -> Sample {
        let seconds = self.begin.elapsed().as_secs_f64();
        let server = ticks_of(&self.server).saturating_sub(self.server_ticks);
        let client = reaped_ticks().saturating_sub(self.client_ticks);
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        Sample {
            seconds,
            server_cpu_seconds: server as f64 / TICKS,
            client_cpu_seconds: client as f64 / TICKS,
            server_peak_bytes: self.server_peak.load(Ordering::Relaxed),
            client_peak_bytes: self.client_peak.load(Ordering::Relaxed),
        }
    }
}

/// Fields of /proc/PID/stat after the program's name: index 0 is the state.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.rsplit_once(')')?.1;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn number(fields: &[String], index: usize) -> u64 {
    fields.get(index).and_then(|f| f.parse().ok()).unwrap_or(0)
}

/// CPU ticks of processes and their trees, ended children included.
fn ticks_of(pids: &[u32]) -> u64 {
    children(pids).into_iter().filter_map(stat).map(|f| (11..=14).map(|i| number(&f, i)).sum::<u64>()).sum()
}

/// CPU ticks of our own ended children.
fn reaped_ticks() -> u64 {
    stat(std::process::id()).map_or(0, |f| number(&f, 13) + number(&f, 14))
}

/// These processes and all below them.
fn children(pids: &[u32]) -> Vec<u32> {
    let mut pairs = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if let Some(fields) = stat(pid) {
            pairs.push((pid, number(&fields, 1) as u32));
        }
    }
    let mut out: Vec<u32> = pids.to_vec();
    let mut at = 0;
    while at < out.len() {
        let parent = out[at];
        out.extend(pairs.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// Resident bytes now.
pub fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}
