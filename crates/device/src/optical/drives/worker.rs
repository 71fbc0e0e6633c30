//! The thread of a drive.

use super::{Block, Medium, Shared, State, TrayGuard, title};
use crate::optical::drive::{BLOCK_BYTES, BLOCK_SECTORS, Condition, Drive, ReadFault, SECTOR_BYTES, Tray};
use crate::optical::generation::Generations;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Blocks that wait to be read ahead.
pub(super) const MAX_AHEAD: usize = 32;
/// Readers in sequence that are recognized at the same time.
const STREAMS: usize = 8;
/// Buffers that are kept for reuse.
const BUFFERS: usize = 32;
/// While it reads without a pause, the thread still looks at the drive this often.
const LOOK_WHILE_BUSY: Duration = Duration::from_millis(250);

/// Why a read failed, for any number of readers.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Some sector of the block is bad.
    Damaged,
    /// This sector is bad.
    Sector(u64),
    /// The disc has gone.
    Gone,
    /// The deadline passed.
    Late,
    /// The drive's words.
    Failed(String),
    /// Too many messages wait.
    Crowded,
    /// The thread has ended.
    Ended,
}

/// What to do with a tray.
#[derive(Clone, Copy, Debug)]
pub(super) enum TrayOrder {
    Eject,
    Close,
    Lock(bool),
}

/// What a drive's thread is told.
pub(super) enum Message {
    /// Look at the drive.
    Look,
    /// Somebody waits for this block.
    Load(u64),
    /// A block that was read ahead is used: read on.
    Ahead(u64),
    /// A block will be needed.
    Want(u64),
    /// Sectors of a damaged block, by themselves.
    Sectors { generation: u64, sector: u64, len: u32, deadline: Instant, reply: oneshot::Sender<Result<Bytes, Fault>> },
    /// Move or lock the tray.
    Tray { order: TrayOrder, token: Option<u64>, reply: oneshot::Sender<Result<()>> },
    /// End.
    Stop,
}

/// See the module.
pub(super) struct Worker {
    drive: Box<dyn Drive>,
    shared: Arc<Shared>,
    generations: Arc<dyn Generations>,
    guard: Arc<dyn TrayGuard>,
    changes: watch::Sender<u64>,
    /// The disc that is ready.
    disc: Option<Disc>,
    ahead: VecDeque<u64>,
    /// Last block of each reader in sequence, the newest last.
    streams: VecDeque<u64>,
    buffers: Arc<Mutex<Vec<Vec<u8>>>>,
    looked: Instant,
    /// A read has found that the disc is another one.
    look_soon: bool,
}

#[derive(Clone, Copy)]
struct Disc {
    medium: u64,
    generation: u64,
    size: u64,
}

impl Worker {
    pub(super) fn new(
        drive: Box<dyn Drive>,
        shared: Arc<Shared>,
        generations: Arc<dyn Generations>,
        guard: Arc<dyn TrayGuard>,
        changes: watch::Sender<u64>,
    ) -> Self {
        let (ahead, streams, buffers) = Default::default();
        let looked = Instant::now();
        Self {
            drive,
            shared,
            generations,
            guard,
            changes,
            disc: None,
            ahead,
            streams,
            buffers,
            looked,
            look_soon: false,
        }
    }

    /// Runs until it is told to stop. A defect in a drive's code makes that drive away, and nothing else.
    pub(super) fn run(mut self, messages: &mpsc::Receiver<Message>, queued: &AtomicUsize) {
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| self.serve(messages, queued)));
        if ended.is_err() {
            tracing::error!(drive = self.shared.name, "the thread of a drive has failed");
        }
        self.set(Medium::Away, None);
        self.shared.cache.lock().reset(u64::MAX);
        self.shared.ended.send_replace(true);
    }

    fn serve(&mut self, messages: &mpsc::Receiver<Message>, queued: &AtomicUsize) {
        self.look();
        loop {
            let next = match messages.try_recv() {
                Err(mpsc::TryRecvError::Empty) => {
                    if let Some(index) = self.ahead.pop_front() {
                        self.read_ahead(index);
                        continue;
                    }
                    let wait = self.drive.poll_every().saturating_sub(self.looked.elapsed());
                    messages.recv_timeout(if self.look_soon { Duration::ZERO } else { wait })
                }
                Ok(message) => Ok(message),
                Err(mpsc::TryRecvError::Disconnected) => return,
            };
            match next {
                Ok(message) => {
                    queued.fetch_sub(1, Ordering::Relaxed);
                    if !self.handle(message) {
                        return;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => self.look(),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            if self.look_soon || self.looked.elapsed() > LOOK_WHILE_BUSY {
                self.look();
            }
        }
    }

    /// False at the end.
    fn handle(&mut self, message: Message) -> bool {
        match message {
            Message::Look => self.look(),
            Message::Load(index) => self.load(index),
            Message::Ahead(index) => self.plan(index),
            Message::Want(index) => self.want(index),
            Message::Sectors { generation, sector, len, deadline, reply } => {
                if !reply.is_closed() {
                    let _ = reply.send(self.sectors(generation, sector, len, deadline));
                }
            }
            Message::Tray { order, token, reply } => {
                if !reply.is_closed() {
                    let _ = reply.send(self.order(order, token));
                }
            }
            Message::Stop => return false,
        }
        true
    }

    /// Asks the drive for its condition, and makes what follows from it known.
    fn look(&mut self) {
        self.looked = Instant::now();
        self.look_soon = false;
        let condition = match self.drive.condition() {
            Ok(condition) => condition,
            Err(error) => {
                tracing::debug!(drive = self.shared.name, %error, "a drive does not answer");
                return self.set(Medium::Away, None);
            }
        };
        match condition.tray {
            Tray::Empty => self.set(Medium::Empty, None),
            Tray::Open => self.set(Medium::TrayOpen, None),
            Tray::Loading => self.set(Medium::Loading, None),
            Tray::Ready if self.disc.is_some_and(|d| d.medium == condition.medium) => {}
            Tray::Ready => self.begin(condition),
        }
    }

    /// A disc has got ready.
    fn begin(&mut self, condition: Condition) {
        let begun = self.drive.size_bytes().map_err(Error::from).and_then(|size| {
            let size = size - size % u64::from(SECTOR_BYTES);
            if size == 0 {
                return Err(Error::new(Reason::NoMedium, "the disc holds no data"));
            }
            Ok((size, self.generations.next(&self.shared.name)?))
        });
        let (size, generation) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                // Tried again at each look.
                tracing::warn!(drive = self.shared.name, error = ?error, "a disc cannot be shown");
                let medium = if error.is(Reason::NoMedium) { Medium::Empty } else { Medium::Away };
                return self.set(medium, None);
            }
        };
        // Nothing of the disc before is given out from here on.
        let disc = Disc { medium: condition.medium, generation, size };
        self.disc = Some(disc);
        self.ahead.clear();
        self.streams.clear();
        self.shared.cache.lock().reset(generation);
        let title = self.title(disc).unwrap_or_default();
        if self.disc.is_some() {
            self.set(Medium::Ready { title, size_bytes: size }, Some(disc));
        }
    }

    fn title(&mut self, disc: Disc) -> Option<String> {
        let deadline = Instant::now() + self.shared.limits.read;
        match self.read_block(disc, 0, deadline) {
            Ok(block) => {
                let found = title::of(block.bytes());
                self.shared.cache.lock().finish(0, &Ok(block), false);
                found
            }
            Err(Fault::Damaged) => {
                // The descriptors may be whole although the rest is not.
                self.shared.cache.lock().finish(0, &Err(Fault::Damaged), false);
                let sectors = self.read_checked(disc, 16, 16 * SECTOR_BYTES, deadline).ok()?;
                let mut start = vec![0; 16 * SECTOR_BYTES as usize];
                start.extend_from_slice(&sectors);
                title::of(&start)
            }
            Err(_) => None,
        }
    }

    fn set(&mut self, medium: Medium, disc: Option<Disc>) {
        if disc.is_none() && self.disc.take().is_some() {
            self.ahead.clear();
            self.shared.cache.lock().reset(u64::MAX);
        }
        let changed = self.shared.state.send_if_modified(|state| {
            let generation = disc.map_or(state.generation, |d| d.generation);
            let next = State { medium, generation, locked: state.locked };
            std::mem::replace(state, next.clone()) != next
        });
        if changed {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    fn load(&mut self, index: u64) {
        if !self.shared.cache.lock().is_wanted(index) {
            return;
        }
        let deadline = Instant::now() + self.shared.limits.read;
        let result = match self.disc {
            Some(disc) => self.read_block(disc, index, deadline),
            None => Err(Fault::Gone),
        };
        self.shared.cache.lock().finish(index, &result, false);
        self.follow(index);
    }

    /// Notices readers in sequence.
    fn follow(&mut self, index: u64) {
        if let Some(at) = self.streams.iter().position(|last| last + 1 == index) {
            self.streams.remove(at);
            self.plan(index);
        } else if self.streams.len() >= STREAMS {
            self.streams.pop_front();
        }
        self.streams.push_back(index);
    }

    /// Plans to read what follows a block.
    fn plan(&mut self, index: u64) {
        if let Some(at) = self.streams.iter().position(|last| *last == index || last + 1 == index) {
            self.streams[at] = index;
        }
        for next in index + 1..=index.saturating_add(self.shared.limits.ahead) {
            self.want(next);
        }
    }

    fn want(&mut self, index: u64) {
        let inside = self.disc.is_some_and(|d| index.saturating_mul(BLOCK_BYTES.into()) < d.size);
        let known = self.ahead.contains(&index) || self.shared.cache.lock().knows(index);
        if inside && !known && self.ahead.len() < MAX_AHEAD {
            self.ahead.push_back(index);
        }
    }

    fn read_ahead(&mut self, index: u64) {
        let Some(disc) = self.disc else { return };
        if self.shared.cache.lock().knows(index) {
            return;
        }
        let deadline = Instant::now() + self.shared.limits.read;
        let result = self.read_block(disc, index, deadline);
        // A failure is found again by whoever needs the block, if somebody does not wait for it already.
        let mut cache = self.shared.cache.lock();
        if result.is_ok() || cache.is_wanted(index) {
            cache.finish(index, &result, true);
        }
    }

    /// Reads a block; a bad sector in it makes it damaged.
    fn read_block(&mut self, disc: Disc, index: u64, deadline: Instant) -> Result<Arc<Block>, Fault> {
        let start = index.saturating_mul(BLOCK_BYTES.into());
        let len = disc.size.saturating_sub(start).min(BLOCK_BYTES.into()) as u32;
        if len == 0 {
            return Err(Fault::Gone);
        }
        match self.read_checked(disc, index * BLOCK_SECTORS, len, deadline) {
            Ok(bytes) => Ok(Arc::new(Block::new(bytes))),
            Err(Fault::Sector(_)) => Err(Fault::Damaged),
            Err(fault) => Err(fault),
        }
    }

    fn sectors(&mut self, generation: u64, sector: u64, len: u32, deadline: Instant) -> Result<Bytes, Fault> {
        let disc = self.disc.filter(|d| d.generation == generation).ok_or(Fault::Gone)?;
        self.read_checked(disc, sector, len, deadline)
    }

    /// Reads, and makes sure that the bytes are those of the disc.
    fn read_checked(&mut self, disc: Disc, sector: u64, len: u32, deadline: Instant) -> Result<Bytes, Fault> {
        let mut buffer = Buffer::take(&self.buffers, len as usize);
        let result = self.drive.read(sector, &mut buffer.bytes, deadline);
        let same =
            matches!(self.drive.condition(), Ok(Condition { tray: Tray::Ready, medium }) if medium == disc.medium);
        if !same {
            // What there is now is looked at by the loop: a drive that changes its mind all the time must not nest.
            self.set(Medium::Loading, None);
            self.look_soon = true;
            return Err(Fault::Gone);
        }
        match result {
            Ok(()) => Ok(Bytes::from_owner(buffer)),
            Err(ReadFault::Sector(bad)) => Err(Fault::Sector(bad)),
            Err(ReadFault::Gone) => Err(Fault::Gone),
            Err(ReadFault::Late) => Err(Fault::Late),
            Err(ReadFault::Failed(error)) => Err(Fault::Failed(error.to_string())),
        }
    }

    fn order(&mut self, order: TrayOrder, token: Option<u64>) -> Result<()> {
        self.guard.check(&self.shared.name, token)?;
        let done = match order {
            TrayOrder::Eject => self.drive.eject(),
            TrayOrder::Close => self.drive.close_tray(),
            TrayOrder::Lock(locked) => self.drive.lock_tray(locked).map(|()| {
                let changed =
                    self.shared.state.send_if_modified(|s| std::mem::replace(&mut s.locked, locked) != locked);
                if changed {
                    self.changes.send_modify(|n| *n += 1);
                }
            }),
        };
        self.look();
        done
    }
}

/// Memory of a block, used again when its last reader has done with it.
struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffer {
    fn take(home: &Arc<Mutex<Vec<Vec<u8>>>>, len: usize) -> Self {
        let mut bytes = home.lock().pop().unwrap_or_default();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        bytes.truncate(len);
        Self { bytes, home: home.clone() }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut home = self.home.lock();
        if home.len() < BUFFERS && self.bytes.len() == BLOCK_BYTES as usize {
            home.push(std::mem::take(&mut self.bytes));
        }
    }
}
