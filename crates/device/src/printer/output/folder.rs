//! A folder as a printer: each document becomes a file. It is what the demonstration and the tests print to, and an archive.
//!
//! A file's name follows from the job alone (number, universal name, place of the document), and appears by a rename from a
//! hidden temporary name after its content is on disk: printing again what was printed changes nothing, so a crash at any
//! point neither loses nor doubles a file.
//!
//! It can pretend to be slow, and to be out of paper, jammed, or off: by [`Folder::set_fault`], or by a file `.fault` in the
//! folder with the words `empty`, `offline` or `jam N` (after N more sides).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Order, Output, Progress};
use crate::ipp::client::Piece;
use crate::printer::fault::Faults;
use crate::printer::queue::{Condition, Outcome};

/// Jobs that are written at the same time if the folder does not pretend to be slow; their syncs are shared by the disk.
const LANES: usize = 4;
/// How often the fault file is looked at while the printer stands still.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes that are copied at a time.
const PART: u64 = 1 << 20;

/// What the simulated printer suffers from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// No paper: it takes no job.
    Empty,
    /// Switched off.
    Offline,
    /// Stops after so many more sides.
    Jam(u32),
}

impl Fault {
    /// The keyword of `printer-state-reasons`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Empty => "media-empty-error",
            Self::Offline => "shutdown",
            Self::Jam(_) => "media-jam-error",
        }
    }

    fn of(text: &str) -> Self {
        let mut words = text.split_whitespace();
        match words.next() {
            Some("empty") => Self::Empty,
            Some("offline") => Self::Offline,
            Some("jam") => Self::Jam(words.next().and_then(|w| w.parse().ok()).unwrap_or(0)),
            _ => Self::None,
        }
    }
}

/// The folder.
pub struct Folder {
    path: PathBuf,
    pages_per_minute: Option<u32>,
    faults: Faults,
    fault: watch::Sender<Fault>,
}

impl Folder {
    /// A printer that writes into this folder, which is made when it is missing.
    pub fn new(path: &Path, pages_per_minute: Option<u32>, faults: Faults) -> Self {
        Self { path: path.to_owned(), pages_per_minute, faults, fault: watch::Sender::new(Fault::None) }
    }

    /// Makes it suffer, or mends it.
    pub fn set_fault(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// What it suffers from now.
    pub fn fault(&self) -> Fault {
        match *self.fault.borrow() {
            Fault::None => std::fs::read_to_string(self.path.join(".fault")).map_or(Fault::None, |t| Fault::of(&t)),
            fault => fault,
        }
    }

    /// The names under which a job's documents appear.
    pub fn names(job: &crate::printer::model::Job) -> Vec<String> {
        let several = job.printed().count() > 1;
        let uuid = job.uuid.simple().to_string();
        let name = |n: usize, format: &str| {
            let number = if several { format!("-{}", n + 1) } else { String::new() };
            format!("{:06}-{}{number}.{}", job.id.0, &uuid[..12], extension(format))
        };
        job.printed().map(|(n, document)| name(n, &document.format)).collect()
    }

    /// Waits until it may print the next side, or is told to let the job go.
    async fn turn(&self, order: &Order, done: u32) -> bool {
        let mut changes = self.fault.subscribe();
        let mut stalled = false;
        loop {
            let fault = self.fault();
            let stops = match fault {
                Fault::None => false,
                Fault::Jam(after) => after <= done,
                Fault::Empty | Fault::Offline => true,
            };
            if !stops {
                if stalled {
                    (order.report)(Progress::Going(done));
                }
                return true;
            }
            if !stalled {
                (order.report)(Progress::Stalled(fault.reason().to_owned(), done));
                stalled = true;
            }
            tokio::select! {
                () = order.withdraw.cancelled() => return false,
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn run(&self, order: Order) -> Outcome {
        let names = Self::names(&order.job);
        let last = names.last().map(|n| self.path.join(n));
        if order.repeat && last.is_some_and(|path| path.exists()) {
            // It may have been renamed and not be durable yet.
            let path = self.path.clone();
            return match tokio::task::spawn_blocking(move || crate::printer::journal::sync_dir(&path)).await {
                Ok(Ok(())) => Outcome::Done { impressions: order.job.impressions },
                _ => Outcome::Lost { reason: "other".into() },
            };
        }
        if let fault @ (Fault::Empty | Fault::Offline) = self.fault() {
            return Outcome::Refused { reason: fault.reason().to_owned() };
        }
        let sides = order.job.impressions.unwrap_or(1);
        for side in 0..sides.min(if self.pages_per_minute.is_some() { u32::MAX } else { 1 }) {
            if let Some(rate) = self.pages_per_minute {
                let wait = Duration::from_secs(60) / rate.max(1);
                tokio::select! {
                    () = tokio::time::sleep(wait) => (order.report)(Progress::Going(side)),
                    () = order.withdraw.cancelled() => return Outcome::Withdrawn { impressions: side },
                }
            }
            if !self.turn(&order, side).await {
                return Outcome::Withdrawn { impressions: side };
            }
        }
        if order.withdraw.is_cancelled() {
            return Outcome::Withdrawn { impressions: 0 };
        }
        // A jam further on in a job of a fast folder.
        if let Fault::Jam(after) = self.fault()
            && after < sides
            && !self.turn(&order, after).await
        {
            return Outcome::Withdrawn { impressions: after };
        }
        let (path, faults) = (self.path.clone(), self.faults.clone());
        let pieces: Vec<_> =
            names.into_iter().zip(order.documents).map(|(name, (_, _, piece))| (name, piece)).collect();
        let written = tokio::task::spawn_blocking(move || write_all(&path, &pieces, &faults)).await;
        match written.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Ok(()) => Outcome::Done { impressions: order.job.impressions },
            Err(error) => {
                tracing::warn!(%error, "a folder that is shared as a printer cannot be written");
                Outcome::Refused { reason: "media-full-error".into() }
            }
        }
    }
}

fn write_all(folder: &Path, pieces: &[(String, Piece)], faults: &Faults) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (name, piece) in pieces {
        let temporary = folder.join(format!(".{name}.part"));
        faults.at("folder-write")?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        let mut done = 0;
        while done < piece.length {
            let mut part = vec![0; (piece.length - done).min(PART) as usize];
            piece.file.read_exact_at(&mut part, piece.offset + done)?;
            file.write_all(&part)?;
            done += part.len() as u64;
        }
        faults.at("folder-sync")?;
        file.sync_all()?;
        faults.at("folder-rename")?;
        std::fs::rename(&temporary, folder.join(name))?;
        faults.at("folder-renamed")?;
    }
    File::open(folder)?.sync_all()
}

fn extension(format: &str) -> &'static str {
    match format {
        "application/pdf" => "pdf",
        "image/jpeg" => "jpg",
        "image/pwg-raster" => "pwg",
        "image/urf" => "urf",
        "image/png" => "png",
        "application/postscript" => "ps",
        "text/plain" => "txt",
        _ => "bin",
    }
}

impl Output for Folder {
    fn print(&self, order: Order) -> BoxFuture<'_, Outcome> {
        self.run(order).boxed()
    }

    fn probe(&self) -> BoxFuture<'_, Condition> {
        let condition = match self.fault() {
            Fault::None | Fault::Jam(1..) => Condition::READY,
            fault => Condition::unready(fault.reason()),
        };
        futures_util::future::ready(condition).boxed()
    }

    fn lanes(&self) -> usize {
        if self.pages_per_minute.is_some() { 1 } else { LANES }
    }

    fn folder(&self) -> Option<&Folder> {
        Some(self)
    }
}
