//! Copying a mirror from one place to another without its key: for a lender that leaves.
//!
//! Objects go as they are; who copies learns nothing and can change nothing unnoticed. Chunks go before roots, and roots in
//! order, so the new place never shows a generation that it cannot give. It can be broken off and begun again: what is there
//! is not sent twice.

use super::place::{MirrorPlace, ObjectId, root_generation};
use common::error::{Error, Reason, Result};

const PAGE: usize = 256;
/// Bytes that are on the way at a time.
const SEND_BYTES: usize = 8 << 20;

/// What draining has done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Drained {
    /// Objects that were copied, and their bytes.
    pub copied: usize,
    /// See above.
    pub bytes: u64,
    /// Objects that were there already.
    pub present: usize,
    /// Generations that the new place has now.
    pub generations: Vec<u64>,
    /// Objects that the old place could not give, because they are damaged there. The mirror's owner has to send them.
    pub damaged: Vec<ObjectId>,
}

/// Copies all objects and then all generations. With damaged objects it goes on, and says which.
///
/// # Errors
/// Those of both places; `VERSION_STALE` if the new place is another mirror's.
pub async fn drain(from: &dyn MirrorPlace, to: &dyn MirrorPlace) -> Result<Drained> {
    let mut done = Drained::default();
    let mut after = Some(ObjectId::root(u64::MAX));
    loop {
        let page = from.list(after, PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        copy_page(from, to, page, &mut done).await?;
    }
    let there = generations_of(to).await?;
    // Those that are retired as well: they can be read until their time is over.
    for generation in generations_of(from).await? {
        let root = match from.get(ObjectId::root(generation)).await {
            Ok(root) => root,
            Err(e) if e.is(Reason::ChunkDamaged) => {
                done.damaged.push(ObjectId::root(generation));
                continue;
            }
            // Its time was over just now.
            Err(e) if e.is(Reason::EntryUnknown) => continue,
            Err(e) => return Err(e),
        };
        if there.contains(&generation) {
            if to.get(ObjectId::root(generation)).await? != root {
                return Err(Error::new(Reason::VersionStale, "the new place has another generation of that number"));
            }
        } else {
            to.commit(generation, root).await?;
        }
        done.generations.push(generation);
    }
    Ok(done)
}

/// All generations whose roots are there, the oldest first.
async fn generations_of(place: &dyn MirrorPlace) -> Result<Vec<u64>> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = place.list(after, PAGE).await?;
        found.extend(page.iter().map_while(|(id, _)| root_generation(id)));
        match page.last() {
            // Roots come first.
            Some((last, _)) if root_generation(last).is_some() => after = Some(*last),
            _ => return Ok(found),
        }
    }
}

async fn copy_page(
    from: &dyn MirrorPlace,
    to: &dyn MirrorPlace,
    page: Vec<(ObjectId, u32)>,
    done: &mut Drained,
) -> Result<()> {
    debug_assert!(page.iter().all(|(id, _)| root_generation(id).is_none()), "roots are listed first");
    let ids = page.iter().map(|(id, _)| *id).collect();
    let missing = to.missing(ids).await?;
    done.present += page.len() - missing.len();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for id in missing {
        match from.get(id).await {
            Ok(data) => {
                bytes += data.len();
                batch.push((id, data));
            }
            Err(e) if e.is(Reason::ChunkDamaged) => done.damaged.push(id),
            // It was retired long enough ago just now.
            Err(e) if e.is(Reason::EntryUnknown) => {}
            Err(e) => return Err(e),
        }
        if bytes >= SEND_BYTES {
            send(to, &mut batch, &mut bytes, done).await?;
        }
    }
    send(to, &mut batch, &mut bytes, done).await
}

async fn send(
    to: &dyn MirrorPlace,
    batch: &mut Vec<(ObjectId, bytes::Bytes)>,
    bytes: &mut usize,
    done: &mut Drained,
) -> Result<()> {
    if !batch.is_empty() {
        done.copied += batch.len();
        done.bytes += *bytes as u64;
        to.put(std::mem::take(batch)).await?;
        *bytes = 0;
    }
    Ok(())
}
