//! A mirror place as its owner uses it, on whatever machine it is.

use crate::disk::{Lender, PlaceId};
use crate::model::Caller;
use bytes::Bytes;
use common::error::{Error, Result};
use futures_util::future::BoxFuture;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Largest object: a chunk with what sealing adds.
pub const OBJECT_MAX: usize = common::model::MAX_CHUNK_BYTES + (64 << 10);
/// Most objects, or ids, of one call.
pub const BATCH_MAX: usize = 4096;
/// Most bytes of one call.
pub const BATCH_BYTES_MAX: usize = 16 << 20;

/// Name of an object in a mirror. Those that begin with 24 zero bytes are roots, and end with the generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub [u8; 32]);

impl ObjectId {
    /// The id of a generation's root.
    pub const fn root(generation: u64) -> Self {
        let (mut id, number) = ([0; 32], generation.to_be_bytes());
        let mut n = 0;
        while n < 8 {
            id[24 + n] = number[n];
            n += 1;
        }
        Self(id)
    }
}

/// The ids of all roots.
pub(crate) const GENERATIONS: RangeInclusive<ObjectId> = ObjectId::root(0)..=ObjectId::root(u64::MAX);

/// The generation whose root this is, if it is one.
pub(crate) fn root_generation(id: &ObjectId) -> Option<u64> {
    let (zeros, number) = id.0.split_at(24);
    let number = <[u8; 8]>::try_from(number).ok()?;
    zeros.iter().all(|b| *b == 0).then(|| u64::from_be_bytes(number))
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for ObjectId {
    type Err = ();
    fn from_str(s: &str) -> std::result::Result<Self, ()> {
        // The same rules: 64 lower-case hexadecimal digits.
        s.parse::<common::model::DeviceId>().map(|id| Self(id.0))
    }
}

/// How full a place is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Its limit.
    pub bytes: u64,
    /// What is used of it.
    pub used: u64,
}

/// A mirror place. Each call is whole or fails; what it has acknowledged is on disk. Repeating a call is harmless.
///
/// All of them fail with `SPACE_UNKNOWN` or `ACCESS_DENIED` for others than the owner, and with `MESSAGE_TOO_LARGE` beyond
/// [`BATCH_MAX`] objects or [`BATCH_BYTES_MAX`].
pub trait MirrorPlace: Send + Sync {
    /// Which of these objects are not there. Those that are there stay: what was retired is taken back.
    fn missing(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<ObjectId>>>;
    /// Adds objects. The same again is passed over; another one under the same id is `MIRROR_APPEND_ONLY`; beyond the limit it
    /// is `SPACE_FULL`.
    fn put(&self, objects: Vec<(ObjectId, Bytes)>) -> BoxFuture<'_, Result<()>>;
    /// An object; `ENTRY_UNKNOWN` if it is not there, `CHUNK_DAMAGED` if the lender knows that it is damaged.
    fn get(&self, id: ObjectId) -> BoxFuture<'_, Result<Bytes>>;
    /// Objects with their lengths in the order of their ids, after `after`; roots come first.
    fn list(&self, after: Option<ObjectId>, limit: usize) -> BoxFuture<'_, Result<Vec<(ObjectId, u32)>>>;
    /// Makes a generation exist by its root. `VERSION_STALE` (detail `next`) if its number is not above all that ever were.
    fn commit(&self, generation: u64, root: Bytes) -> BoxFuture<'_, Result<()>>;
    /// The generations that are there and not retired, oldest first.
    fn generations(&self) -> BoxFuture<'_, Result<Vec<u64>>>;
    /// Lets objects go after the retention time; how many will.
    fn retire(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<usize>>;
    /// For each object the BLAKE3 of its content keyed by `key`; `None` if it is missing or damaged. At most 256.
    fn prove(&self, key: [u8; 32], ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<Option<[u8; 32]>>>>;
    /// How full it is.
    fn space(&self) -> BoxFuture<'_, Result<Space>>;
}

/// A mirror place of this machine's own lender: what the lender's node calls for a caller, and what it copies from when it
/// leaves.
#[derive(Clone)]
pub struct LocalPlace {
    lender: Lender,
    id: PlaceId,
    /// Nobody is the lender itself, which may only read.
    caller: Option<Caller>,
}

impl LocalPlace {
    /// For a caller, as the connection has proven it.
    pub fn new(lender: Lender, id: PlaceId, caller: Caller) -> Self {
        Self { lender, id, caller: Some(caller) }
    }

    /// For the lender itself, to copy what is sealed elsewhere before it leaves. Writing is refused.
    pub fn to_drain(lender: Lender, id: PlaceId) -> Self {
        Self { lender, id, caller: None }
    }

    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Lender, PlaceId, Option<&Caller>) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        let this = self.clone();
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&this.lender, this.id, this.caller.as_ref()));
            done.await.unwrap_or_else(|e| Err(Error::internal("work at a mirror was broken off").caused_by(e)))
        })
    }
}

fn named(caller: Option<&Caller>) -> Result<&Caller> {
    caller.ok_or_else(|| {
        Error::new(common::error::Reason::AccessDenied, "a lender does not change what it keeps for others")
    })
}

impl MirrorPlace for LocalPlace {
    fn missing(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<ObjectId>>> {
        self.blocking(move |lender, id, caller| lender.mirror_missing(named(caller)?, id, &ids))
    }
    fn put(&self, objects: Vec<(ObjectId, Bytes)>) -> BoxFuture<'_, Result<()>> {
        self.blocking(move |lender, id, caller| lender.mirror_put(named(caller)?, id, &objects))
    }
    fn get(&self, object: ObjectId) -> BoxFuture<'_, Result<Bytes>> {
        self.blocking(move |lender, id, caller| lender.mirror_get(caller, id, &object))
    }
    fn list(&self, after: Option<ObjectId>, limit: usize) -> BoxFuture<'_, Result<Vec<(ObjectId, u32)>>> {
        self.blocking(move |lender, id, caller| lender.mirror_list(caller, id, after.as_ref(), limit))
    }
    fn commit(&self, generation: u64, root: Bytes) -> BoxFuture<'_, Result<()>> {
        self.blocking(move |lender, id, caller| lender.mirror_commit(named(caller)?, id, generation, root))
    }
    fn generations(&self) -> BoxFuture<'_, Result<Vec<u64>>> {
        self.blocking(move |lender, id, caller| lender.mirror_generations(caller, id))
    }
    fn retire(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<usize>> {
        self.blocking(move |lender, id, caller| lender.mirror_retire(named(caller)?, id, &ids))
    }
    fn prove(&self, key: [u8; 32], ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<Option<[u8; 32]>>>> {
        self.blocking(move |lender, id, caller| lender.mirror_prove(named(caller)?, id, &key, &ids))
    }
    fn space(&self) -> BoxFuture<'_, Result<Space>> {
        self.blocking(move |lender, id, caller| {
            let view = match caller {
                Some(caller) => lender.view(caller, id)?,
                None => {
                    lender.places(None).into_iter().find(|v| v.id == id).ok_or_else(crate::disk::lender::unknown)?
                }
            };
            Ok(Space { bytes: view.bytes, used: view.used })
        })
    }
}
