//! A disc to an image, going on where it stopped, around what cannot be read.
//!
//! ```text
//!   NAME.iso.part     the image while it grows; sectors that were not read yet are holes
//!   NAME.iso.map      what was read and what could not be: the map format of GNU ddrescue (see [`map`])
//!   NAME.iso          the image when all passes are through; the map stays beside it if sectors are missing
//! ```
//!
//! Passes: copy everything block by block and skip blocks with a bad sector; read those around their bad sectors; read the
//! bad sectors again, as often as wished. Sectors that stay bad are zeroes in the image.
//!
//! **Crashes.** The image is synced before the map that counts on it is written, and the map replaces the one before in
//! one step. So after a crash at any moment the map names as read only what is in the image; at most the seconds since
//! the last map are read again.
//!
//! **Which disc.** A map names the disc by its size and the digest of its first readable sectors. To go on with another
//! disc is refused: an image is never put together from two.

pub mod map;

use super::drive::{BLOCK_BYTES, SECTOR_BYTES};
use crate::nbd::BlockSource;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use map::{Map, Status};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Pieces in which a run is read whose bad sector the drive cannot name.
const BLIND_PIECE: u64 = 32 * SECTOR_BYTES as u64;

/// How to rip.
#[derive(Clone)]
pub struct Options {
    /// How often bad sectors are read again at the end.
    pub retries: u32,
    /// Asked before each read: the lease may be lost meanwhile.
    pub permitted: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    /// Stops it; it can go on later.
    pub stop: CancellationToken,
    /// So often the map is written.
    pub save_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let save_every = Duration::from_secs(5);
        Self { retries: 1, permitted: Arc::new(|| Ok(())), stop: CancellationToken::new(), save_every }
    }
}

/// What it is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Copies block by block.
    Copying,
    /// Reads around bad sectors.
    Splitting,
    /// Reads bad sectors again.
    Retrying,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// What it is at.
    pub phase: Phase,
    /// Bytes that are in the image.
    pub done_bytes: u64,
    /// Bytes of the disc.
    pub size_bytes: u64,
    /// Sectors known to be bad.
    pub bad_sectors: u64,
}

/// How it ended: done, with so many bad sectors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The image.
    pub image: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// Sectors that are zeroes because they cannot be read; a caller exits non-zero if there are any.
    pub bad_sectors: u64,
    /// The map, if there are any.
    pub map: Option<PathBuf>,
    /// Bytes that were there from an earlier run.
    pub resumed_bytes: u64,
}

/// Rips a disc to `image`. `progress` is called on the way, often.
///
/// # Errors
/// RESOURCE_EXISTS if the image is there already, RESOURCE_BUSY if it is being ripped, DISC_CHANGED if what is there is of another disc or the disc changes,
/// CANCELLED, DISK_FULL, IO_FAILED, what `permitted` says, and what the drive says other than about bad sectors. What was
/// read stays, and the next call goes on from there.
pub async fn rip(
    source: Arc<dyn BlockSource>,
    image: &Path,
    options: Options,
    progress: impl FnMut(Progress) + Send,
) -> Result<Outcome> {
    let mut rip = Rip::open(source, image, options, progress).await?;
    let passes = rip.passes().await;
    // Whatever happened, what was read is kept.
    let saved = rip.save().await;
    passes.and(saved)?;
    rip.finish().await
}

struct Rip<P> {
    source: Arc<dyn BlockSource>,
    image: PathBuf,
    part: Arc<File>,
    map: Map,
    options: Options,
    progress: P,
    saved: Instant,
    resumed: u64,
}

/// The path beside another one.
fn beside(image: &Path, suffix: &str) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Runs file work on a blocking thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("a thread for files ended").caused_by(e))?
}

impl<P: FnMut(Progress) + Send> Rip<P> {
    async fn open(source: Arc<dyn BlockSource>, image: &Path, options: Options, progress: P) -> Result<Self> {
        let identity = identity(source.as_ref()).await?;
        let (image, size) = (image.to_owned(), source.size_bytes());
        if size == 0 || size % u64::from(SECTOR_BYTES) != 0 {
            return Err(Error::new(Reason::DiscFormatUnknown, "the disc is not a whole number of sectors"));
        }
        let path = image.clone();
        let (part, map) = blocking(move || open_files(&path, size, &identity)).await?;
        let (part, resumed) = (Arc::new(part), map.bytes(Status::Finished));
        Ok(Self { source, image, part, map, options, progress, saved: Instant::now(), resumed })
    }

    async fn passes(&mut self) -> Result<()> {
        while let Some(run) = self.map.first(&[Status::Untried], 0, BLOCK_BYTES.into()) {
            // Blocks are aligned, so that the drive's own cache is used well.
            let end = (run.start / u64::from(BLOCK_BYTES) + 1) * u64::from(BLOCK_BYTES);
            let run = run.start..run.end.min(end);
            match self.read(Phase::Copying, run.start, run.end - run.start).await? {
                Ok(bytes) => self.keep(run.start, bytes).await?,
                Err(_) => self.map.set(run, Status::Skipped),
            }
            self.save_in_time().await?;
        }
        while let Some(run) = self.map.first(&[Status::Skipped, Status::Partly], 0, BLOCK_BYTES.into()) {
            self.split(run.start, run.end).await?;
            self.save_in_time().await?;
        }
        for _ in 0..self.options.retries {
            self.retry().await?;
        }
        Ok(())
    }

    /// Reads what can be read of a run: up to the sector that is named as bad, and on behind it.
    async fn split(&mut self, start: u64, end: u64) -> Result<()> {
        let sector = u64::from(SECTOR_BYTES);
        match self.read(Phase::Splitting, start, end - start).await? {
            Ok(bytes) => self.keep(start, bytes).await,
            Err(_) if end - start <= sector => {
                self.map.set(start..end, Status::Bad);
                Ok(())
            }
            Err(None) => self.split_blind(start, end).await,
            Err(Some(bad)) => {
                if bad > start {
                    match self.read(Phase::Splitting, start, bad - start).await? {
                        Ok(bytes) => self.keep(start, bytes).await?,
                        Err(_) => self.map.set(start..bad, Status::Partly),
                    }
                }
                self.map.set(bad..bad + sector, Status::Bad);
                Ok(())
            }
        }
    }

    /// The drive cannot say where a run is bad: smaller pieces, and the sectors of those that fail one by one.
    async fn split_blind(&mut self, start: u64, end: u64) -> Result<()> {
        let sector = u64::from(SECTOR_BYTES);
        let mut at = start;
        while at < end {
            let to = end.min(at + BLIND_PIECE);
            if let Ok(bytes) = self.read(Phase::Splitting, at, to - at).await? {
                self.keep(at, bytes).await?;
                at = to;
                continue;
            }
            while at < to {
                match self.read(Phase::Splitting, at, sector).await? {
                    Ok(bytes) => self.keep(at, bytes).await?,
                    Err(_) => self.map.set(at..at + sector, Status::Bad),
                }
                at += sector;
                self.save_in_time().await?;
            }
        }
        Ok(())
    }

    async fn retry(&mut self) -> Result<()> {
        let mut from = 0;
        while let Some(run) = self.map.first(&[Status::Bad], from, SECTOR_BYTES.into()) {
            from = run.end;
            if let Ok(bytes) = self.read(Phase::Retrying, run.start, run.end - run.start).await? {
                self.keep(run.start, bytes).await?;
            }
            self.save_in_time().await?;
        }
        Ok(())
    }

    /// Reads; the inner error is a bad sector and where it is, if the drive says.
    async fn read(&mut self, phase: Phase, at: u64, len: u64) -> Result<Result<Bytes, Option<u64>>> {
        (self.options.permitted)()?;
        self.report(phase);
        let stopped = || Error::new(Reason::Cancelled, "ripping was stopped; it can go on later");
        if self.options.stop.is_cancelled() {
            return Err(stopped());
        }
        let read = tokio::select! {
            () = self.options.stop.cancelled() => return Err(stopped()),
            read = self.source.read(at, len as u32) => read,
        };
        match read {
            Ok(bytes) if bytes.len() as u64 == len => Ok(Ok(bytes)),
            Ok(_) => Err(Error::new(Reason::DeviceFailed, "the drive gave another number of bytes than asked for")),
            Err(error) if error.is(Reason::SectorBad) => {
                let place = error.detail("offset").and_then(|o| o.parse::<u64>().ok());
                let place = place.map(|p| p - p % u64::from(SECTOR_BYTES));
                Ok(Err(place.filter(|p| (at..at + len).contains(p))))
            }
            // A drive that gets stuck at a bad spot.
            Err(error) if error.is(Reason::DeadlineExceeded) => Ok(Err(None)),
            Err(error) => Err(error),
        }
    }

    fn report(&mut self, phase: Phase) {
        let bad_sectors = self.map.bytes(Status::Bad) / u64::from(SECTOR_BYTES);
        let (done_bytes, size_bytes) = (self.map.bytes(Status::Finished), self.map.size());
        (self.progress)(Progress { phase, done_bytes, size_bytes, bad_sectors });
    }

    async fn keep(&mut self, at: u64, bytes: Bytes) -> Result<()> {
        let part = self.part.clone();
        let end = at + bytes.len() as u64;
        blocking(move || Ok(part.write_all_at(&bytes, at)?)).await?;
        self.map.set(at..end, Status::Finished);
        Ok(())
    }

    async fn save_in_time(&mut self) -> Result<()> {
        if self.saved.elapsed() >= self.options.save_every { self.save().await } else { Ok(()) }
    }

    async fn save(&mut self) -> Result<()> {
        let (part, path, text) = (self.part.clone(), beside(&self.image, ".map"), self.map.to_string());
        blocking(move || {
            part.sync_data()?;
            write_synced(&path, &text)
        })
        .await?;
        self.saved = Instant::now();
        Ok(())
    }

    async fn finish(self) -> Result<Outcome> {
        let bad_sectors = self.map.bytes(Status::Bad) / u64::from(SECTOR_BYTES);
        let (part, image, map) = (beside(&self.image, ".part"), self.image.clone(), beside(&self.image, ".map"));
        let kept = (bad_sectors > 0).then(|| map.clone());
        blocking(move || {
            rename_new(&part, &image)?;
            if bad_sectors == 0 {
                std::fs::remove_file(&map)?;
            }
            sync_dir(&image)
        })
        .await?;
        let size_bytes = self.map.size();
        Ok(Outcome { image: self.image, size_bytes, bad_sectors, map: kept, resumed_bytes: self.resumed })
    }
}

fn open_files(image: &Path, size: u64, identity: &str) -> Result<(File, Map)> {
    if image.try_exists()? {
        return Err(Error::new(Reason::ResourceExists, "the image is there already").fix_is("choose another name"));
    }
    let part = File::options().read(true).write(true).create(true).truncate(false).open(beside(image, ".part"))?;
    let alone = rustix::fs::flock(&part, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    if alone == Err(rustix::io::Errno::AGAIN) {
        return Err(
            Error::new(Reason::ResourceBusy, "this image is being ripped already").fix_is("wait until it is done")
        );
    }
    let map = match std::fs::read_to_string(beside(image, ".map")) {
        Ok(text) => Map::parse(&text, size)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Map::new(size, identity),
        Err(e) => return Err(e.into()),
    };
    if map.identity() != identity {
        return Err(Error::new(Reason::DiscChanged, "the image that was begun is of another disc")
            .fix_is("put that disc in, or choose another name"));
    }
    // Bytes that the map calls read must be there.
    let map = if part.metadata()?.len() < map.size() { Map::new(size, identity) } else { map };
    part.set_len(size)?;
    Ok((part, map))
}

/// Names a disc: its size and the digest of what its first sectors hold, bad ones counting as such.
async fn identity(source: &dyn BlockSource) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    hash.update(&source.size_bytes().to_le_bytes());
    let sectors = (source.size_bytes() / u64::from(SECTOR_BYTES)).min(32);
    for sector in 0..sectors {
        // The sectors of descriptors, each by itself: one of them may be bad, and stays so.
        match source.read(sector * u64::from(SECTOR_BYTES), SECTOR_BYTES).await {
            Ok(bytes) => hash.update(&bytes),
            Err(error) if error.is(Reason::SectorBad) => hash.update(b"bad"),
            Err(error) => return Err(error),
        };
    }
    Ok(hash.finalize().to_hex()[..32].to_owned())
}

/// Renames, but never over a file that came meanwhile.
fn rename_new(from: &Path, to: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let exists = || Error::new(Reason::ResourceExists, "another image has come to its place").fix_is("move it away");
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => Err(exists()),
        // A file system that cannot promise it.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.try_exists()? => Err(exists()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => Ok(std::fs::rename(from, to)?),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}

fn write_synced(path: &Path, text: &str) -> Result<()> {
    let new = beside(path, ".new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    std::fs::rename(&new, path)?;
    sync_dir(path)
}

fn sync_dir(path: &Path) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(dir)?.sync_all()?)
}
