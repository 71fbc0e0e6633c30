//! Another machine's disc as a source of blocks for programs of this machine.
//!
//! It is read in blocks of 1 MiB. A block is looked for in memory, among the blocks that are kept here, at members that
//! the owner names, and at the owner. What comes is checked against the digest that the owner gave. Readers of the same
//! block wait for one call; a reader in sequence finds the next blocks on their way.
//!
//! Bounds: [`IN_MEMORY`] blocks in memory, [`AHEAD`] on their way before they are asked for, [`PATIENCE`] for a call.

use super::Devices;
use super::address::Target;
use super::kept::{BLOCK, BlockKey};
use bytes::{Bytes, BytesMut};
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::status::from_status;
use device::nbd::BlockSource;
use device::nbd::source::check_range;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use proto::peer::v1 as wire;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// Blocks in memory.
const IN_MEMORY: usize = 32;
/// Blocks that are fetched before they are asked for.
const AHEAD: u64 = 4;
/// How long a reader waits for a block: an office's drive answers within this time, or something is wrong with it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a member that has a block is waited for before the next one, or the owner, is asked.
const HOLDER_PATIENCE: Duration = Duration::from_secs(1);
/// How long members are waited for in all: the owner is asked well within [`PATIENCE`].
const HOLDERS_PATIENCE: Duration = Duration::from_secs(2);
/// Sectors of a block.
const SECTORS: usize = BLOCK as usize / device::optical::SECTOR_BYTES as usize;
/// Larger is no disc and no image of one.
const SIZE_MAX: u64 = 1 << 50;

/// A block's content, or which of its sectors are bad.
#[derive(Clone, Debug)]
struct Block {
    data: Bytes,
    bad: Arc<[u64]>,
}

#[derive(Default)]
struct Memory {
    blocks: BTreeMap<u64, Arc<OnceCell<Block>>>,
    order: VecDeque<u64>,
}

/// See the module.
pub(super) struct RemoteDisc {
    devices: Devices,
    target: Target,
    generation: u64,
    size: u64,
    gone: AtomicBool,
    memory: Mutex<Memory>,
    /// Bytes by the machine that gave them.
    sources: Mutex<BTreeMap<DeviceId, u64>>,
    /// Members that were asked for a block in vain.
    useless: Mutex<HashSet<DeviceId>>,
}

impl RemoteDisc {
    /// The disc that is in a drive now, as its owner has just described it.
    ///
    /// # Errors
    /// PEER_MISBEHAVES for a size that no disc has.
    pub fn new(devices: Devices, target: Target, detail: &wire::DriveDetail) -> Result<Arc<Self>> {
        if detail.size_bytes > SIZE_MAX {
            return Err(misbehaves("a disc is larger than any can be"));
        }
        Ok(Arc::new(Self {
            devices,
            target,
            generation: detail.generation,
            size: detail.size_bytes,
            gone: AtomicBool::new(false),
            memory: Mutex::default(),
            sources: Mutex::default(),
            useless: Mutex::default(),
        }))
    }

    /// From now on nothing is read any more: the disc is not in the drive.
    pub fn close(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Which machines gave how many bytes.
    pub fn sources(&self) -> BTreeMap<DeviceId, u64> {
        self.sources.lock().clone()
    }

    fn key(&self, block: u64) -> BlockKey {
        BlockKey { owner: self.target.node, device: self.target.local_name(), generation: self.generation, block }
    }

    fn cell(&self, index: u64) -> Arc<OnceCell<Block>> {
        let mut memory = self.memory.lock();
        if let Some(cell) = memory.blocks.get(&index) {
            return cell.clone();
        }
        while memory.blocks.len() >= IN_MEMORY {
            let Some(oldest) = memory.order.pop_front() else { break };
            memory.blocks.remove(&oldest);
        }
        memory.order.push_back(index);
        memory.blocks.entry(index).or_default().clone()
    }

    fn is_begun(&self, index: u64) -> bool {
        self.memory.lock().blocks.contains_key(&index)
    }

    async fn block(&self, index: u64) -> Result<Block> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(changed());
        }
        let cell = self.cell(index);
        let fetched = timeout(PATIENCE, cell.get_or_try_init(|| self.fetch(index))).await;
        match fetched {
            Ok(Ok(block)) => Ok(block.clone()),
            Ok(Err(error)) => {
                if error.is(Reason::DiscChanged) {
                    self.close();
                }
                Err(error)
            }
            Err(_) => Err(Error::new(Reason::DeadlineExceeded, "the drive's machine did not answer in time")),
        }
    }

    async fn fetch(&self, index: u64) -> Result<Block> {
        let part = self.ask_owner(index, false).await?;
        if part.data.is_empty() && !part.holders.is_empty() {
            let digest = part.digest.as_ref().try_into().map_err(|_| misbehaves("a digest has not 32 bytes"))?;
            let found = timeout(HOLDERS_PATIENCE, self.ask_holders(index, &digest, &part.holders)).await;
            if let Ok(Some(data)) = found {
                return Ok(Block { data, bad: Arc::default() });
            }
            return self.taken(index, self.ask_owner(index, true).await?).await;
        }
        self.taken(index, part).await
    }

    /// Checks what the owner sent, and keeps it.
    async fn taken(&self, index: u64, part: wire::ReadDiscResponse) -> Result<Block> {
        let len = BLOCK.min(self.size - index * BLOCK);
        if part.data.len() as u64 != len {
            return Err(misbehaves("a block of a disc has another length than was asked for"));
        }
        if part.bad_sectors.len() > SECTORS {
            return Err(misbehaves("a block of a disc has more bad sectors than sectors"));
        }
        *self.sources.lock().entry(self.target.node).or_default() += len;
        if part.bad_sectors.is_empty() {
            let digest: [u8; 32] =
                part.digest.as_ref().try_into().map_err(|_| misbehaves("a digest has not 32 bytes"))?;
            self.keep(index, digest, part.data.clone(), true).await?;
        }
        Ok(Block { data: part.data, bad: part.bad_sectors.into() })
    }

    async fn keep(&self, index: u64, digest: [u8; 32], data: Bytes, check: bool) -> Result<()> {
        let (kept, key) = (self.devices.0.kept.clone(), self.key(index));
        let work = move || {
            if check && *blake3::hash(&data).as_bytes() != digest {
                return Err(misbehaves("a block of a disc does not match its digest"));
            }
            kept.put(key, digest, &data);
            Ok(())
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("keeping a block").caused_by(e))?
    }

    async fn ask_owner(&self, index: u64, direct: bool) -> Result<wire::ReadDiscResponse> {
        let offset = index * BLOCK;
        let request = wire::ReadDiscRequest {
            device: self.target.local_name(),
            generation: self.generation,
            offset,
            length: BLOCK.min(self.size - offset),
            whole_blocks: true,
            direct,
        };
        let mut client = self.devices.0.remote.bulk_client(self.target.node).await?;
        let mut parts = client.read_disc(request).await.map_err(|s| from_status(&s))?.into_inner();
        let part = parts.message().await.map_err(|s| from_status(&s))?;
        part.ok_or_else(|| misbehaves("it sent nothing of a disc"))
    }

    async fn ask_holders(&self, index: u64, digest: &[u8; 32], holders: &[Bytes]) -> Option<Bytes> {
        let (kept, key, wanted) = (self.devices.0.kept.clone(), self.key(index), *digest);
        if let Ok(Some(data)) = tokio::task::spawn_blocking(move || kept.get(&key, &wanted)).await {
            return Some(data);
        }
        for holder in holders.iter().take(4) {
            let Ok(device) = <[u8; 32]>::try_from(&holder[..]).map(DeviceId) else { continue };
            if self.useless.lock().contains(&device) {
                continue;
            }
            match timeout(HOLDER_PATIENCE, self.ask_holder(device, index, digest)).await {
                Ok(Ok(Some(data))) => {
                    *self.sources.lock().entry(device).or_default() += data.len() as u64;
                    return Some(data);
                }
                // It keeps that block no more; others perhaps.
                Ok(Ok(None)) => {}
                // Nobody is waited for twice who was silent or sent something else.
                Ok(Err(_)) | Err(_) => drop(self.useless.lock().insert(device)),
            }
        }
        None
    }

    /// `None`: it does not keep it.
    async fn ask_holder(&self, holder: DeviceId, index: u64, digest: &[u8; 32]) -> Result<Option<Bytes>> {
        let key = self.key(index);
        let request = wire::ReadKeptBlockRequest {
            owner: key.owner.0.to_vec().into(),
            device: key.device,
            generation: key.generation,
            block: index,
            digest: digest.to_vec().into(),
        };
        let mut client = self.devices.0.remote.bulk_client(holder).await?;
        let data = client.read_kept_block(request).await.map_err(|s| from_status(&s))?.into_inner().data;
        if data.is_empty() {
            return Ok(None);
        }
        if data.len() as u64 != BLOCK.min(self.size - index * BLOCK) || blake3::hash(&data).as_bytes() != digest {
            return Err(misbehaves("a kept block is not the one that was asked for"));
        }
        self.keep(index, *digest, data.clone(), false).await?;
        Ok(Some(data))
    }

    async fn piece(self: &Arc<Self>, index: u64, from: u64, to: u64) -> Result<Bytes> {
        if index > 0 && self.is_begun(index - 1) {
            self.read_ahead(index + 1);
        }
        let block = self.block(index).await?;
        let sector = device::optical::SECTOR_BYTES as u64;
        let wanted = from / sector..to.div_ceil(sector);
        if let Some(bad) = block.bad.iter().find(|s| wanted.contains(s)) {
            return Err(Error::new(Reason::SectorBad, format!("sector {bad} of the disc cannot be read"))
                .with("sector", bad)
                .with("offset", bad.saturating_mul(sector)));
        }
        let start = index * BLOCK;
        Ok(block.data.slice((from - start) as usize..(to - start) as usize))
    }

    fn read_ahead(self: &Arc<Self>, from: u64) {
        let end = self.size.div_ceil(BLOCK);
        for index in (from..end.min(from + AHEAD)).filter(|i| !self.is_begun(*i)) {
            // It has its place before it is fetched, so that no second one begins.
            self.cell(index);
            let this = self.clone();
            tokio::spawn(async move { this.block(index).await.map(drop) });
        }
    }

    async fn read_range(self: Arc<Self>, offset: u64, len: u32) -> Result<Bytes> {
        let end = offset + u64::from(len);
        let index = offset / BLOCK;
        if end <= (index + 1) * BLOCK {
            return self.piece(index, offset, end).await;
        }
        let mut whole = BytesMut::with_capacity(len as usize);
        let mut at = offset;
        while at < end {
            let to = ((at / BLOCK + 1) * BLOCK).min(end);
            whole.extend_from_slice(&self.piece(at / BLOCK, at, to).await?);
            at = to;
        }
        Ok(whole.freeze())
    }
}

fn changed() -> Error {
    Error::new(Reason::DiscChanged, "the disc was changed")
}

fn misbehaves(what: &str) -> Error {
    Error::new(Reason::PeerMisbehaves, what.to_owned())
}

/// The disc, shared: what exports and rips read from.
#[derive(Clone)]
pub(super) struct Shared(pub Arc<RemoteDisc>);

impl BlockSource for Shared {
    fn size_bytes(&self) -> u64 {
        self.0.size
    }

    fn generation(&self) -> u64 {
        self.0.generation
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Bytes>> {
        let this = self.0.clone();
        Box::pin(async move {
            check_range(offset, len.into(), this.size)?;
            this.read_range(offset, len).await
        })
    }
}
