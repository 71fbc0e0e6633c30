//! Benchmarks beside peers: the same work for Atrium and for what is installed, one after the other in the same round, so
//! that whatever else the machine does hits all of them. Ratios count; absolute times are this machine's.

pub mod atrium;
pub mod metadata_peers;
pub mod micro;
pub mod pair;
pub mod peers;
pub mod swarm;
pub mod usage;

use anyhow::Result;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// 1 GiB of content, written to a file or a store, and buffers.
const TOUCHED_BYTES: usize = 5 << 28;

/// What one system did with one work item in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Wall-clock time.
    pub seconds: f64,
    /// CPU seconds of the server's processes.
    pub server_cpu_seconds: f64,
    /// CPU seconds of the client's processes.
    pub client_cpu_seconds: f64,
    /// Largest resident size of the server's processes together.
    pub server_peak_bytes: u64,
    /// Largest resident size of the client's processes together.
    pub client_peak_bytes: u64,
}

/// A work item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Work {
    /// One file of 1 GiB in.
    PutBig,
    /// And out.
    GetBig,
    /// 16 files of 64 MiB in, 8 clients.
    PutEight,
    /// And out.
    GetEight,
    /// 10,000 files of 4 KiB in.
    PutSmall,
    /// And out.
    GetSmall,
    /// The 1 GiB file again with 1 MiB changed in its middle.
    PutChanged,
}

impl Work {
    /// All, in the order in which they depend on each other.
    pub const ALL: [Work; 7] =
        [Work::PutBig, Work::GetBig, Work::PutChanged, Work::PutEight, Work::GetEight, Work::PutSmall, Work::GetSmall];

    /// For the table.
    pub fn title(self) -> &'static str {
        match self {
            Work::PutBig => "put 1 GiB",
            Work::GetBig => "get 1 GiB",
            Work::PutEight => "put 16 x 64 MiB, 8 clients",
            Work::GetEight => "get 16 x 64 MiB, 8 clients",
            Work::PutSmall => "put 10,000 x 4 KiB",
            Work::GetSmall => "get 10,000 x 4 KiB",
            Work::PutChanged => "put 1 MiB changed in 1 GiB",
        }
    }

    /// Content bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Work::PutSmall | Work::GetSmall => 10_000 * 4096,
            _ => 1 << 30,
        }
    }

    /// A rate in the unit that fits: "702 MB/s" or "18,200 files/s".
    pub fn rate(self, seconds: f64) -> String {
        match self {
            Work::PutSmall | Work::GetSmall => format!("{:.0} files/s", 10_000.0 / seconds),
            _ => format!("{:.0} MB/s", self.bytes() as f64 / 1e6 / seconds),
        }
    }
}

/// Content that all systems move.
#[derive(Debug)]
pub struct Inputs {
    /// 1 GiB.
    pub big: std::path::PathBuf,
    /// The same with 1 MiB changed.
    pub changed: std::path::PathBuf,
    /// 16 files of 64 MiB.
    pub eight: std::path::PathBuf,
    /// 10,000 files of 4 KiB in 100 directories.
    pub small: std::path::PathBuf,
}

impl Inputs {
    /// Writes them.
    ///
    /// # Errors
    /// I/O.
    pub fn write(directory: &Path) -> Result<Self> {
        use std::os::unix::fs::FileExt;
        let inputs = Self {
            big: directory.join("big.bin"),
            changed: directory.join("changed.bin"),
            eight: directory.join("eight"),
            small: directory.join("small"),
        };
        crate::sample::file(&inputs.big, 1, 1 << 30)?;
        std::fs::copy(&inputs.big, &inputs.changed)?;
        let patch = crate::sample::bytes(2, 1 << 20);
        std::fs::File::options().write(true).open(&inputs.changed)?.write_all_at(&patch, 1 << 29)?;
        std::fs::create_dir_all(&inputs.eight)?;
        for i in 0..16u64 {
            crate::sample::file(&inputs.eight.join(format!("{i:02}.bin")), 100 + i, 64 << 20)?;
        }
        for d in 0..100u64 {
            let sub = inputs.small.join(format!("{d:02}"));
            std::fs::create_dir_all(&sub)?;
            for i in 0..100u64 {
                std::fs::write(sub.join(format!("{i:02}.bin")), crate::sample::bytes(1000 + d * 100 + i, 4096))?;
            }
        }
        Ok(inputs)
    }
}

/// A system under test.
pub trait Contender {
    /// For the table.
    fn name(&self) -> &str;
    /// Process ids of its server.
    fn server_pids(&self) -> Vec<u32>;
    /// Removes what earlier rounds left and whatever `work` needs to find absent. Not measured.
    ///
    /// # Errors
    /// It cannot.
    fn prepare(&mut self, work: Work) -> Result<()>;
    /// Does the work; `None` if this system does not offer it.
    ///
    /// # Errors
    /// The work failed.
    fn perform(&mut self, work: Work, inputs: &Inputs, scratch: &Path) -> Result<Option<()>>;
}

/// Measures one performance.
///
/// # Errors
/// The work failed.
pub fn measure(contender: &mut dyn Contender, work: Work, inputs: &Inputs, scratch: &Path) -> Result<Option<Sample>> {
    contender.prepare(work)?;
    let _ = std::fs::remove_dir_all(scratch);
    std::fs::create_dir_all(scratch)?;
    // What the round before wrote must not be written back in this one's time.
    rustix::fs::sync();
    touch_memory();
    let meter = usage::Meter::start(contender.server_pids());
    let done = contender.perform(work, inputs, scratch)?;
    let sample = meter.stop();
    if done.is_some() {
        verify(work, inputs, scratch)?;
    }
    Ok(done.map(|()| sample))
}

/// Takes and gives back as much memory as a performance needs for files and buffers. A virtual machine gets memory from its
/// host when it first touches it, which can take longer than moving the content; who comes first would pay for all others.
fn touch_memory() {
    drop(std::hint::black_box(vec![1u8; TOUCHED_BYTES]));
}

/// A get that did not bring everything does not count.
fn verify(work: Work, inputs: &Inputs, scratch: &Path) -> Result<()> {
    match work {
        Work::GetBig => crate::compare::files(&inputs.big, &scratch.join("big.bin")).map(drop),
        Work::GetEight => crate::compare::trees(&inputs.eight, &scratch.join("eight")).map(drop),
        Work::GetSmall => crate::compare::trees(&inputs.small, &scratch.join("small")).map(drop),
        _ => Ok(()),
    }
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Percentile of durations, in milliseconds.
pub fn percentile_ms(values: &mut [Duration], percent: usize) -> f64 {
    values.sort();
    let index = (values.len() * percent / 100).min(values.len().saturating_sub(1));
    values.get(index).map_or(f64::NAN, |d| d.as_secs_f64() * 1e3)
}
