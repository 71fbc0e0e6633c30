//! Writing generations, checking by challenge, and letting old ones go.

use super::key::{MirrorKey, Part, damaged};
use super::manifest::{FileEntry, Manifest, Root};
use super::place::{MirrorPlace, ObjectId};
use super::proof::{PROVE, Proof, sample};
use super::reader::{read_manifest, read_root};
use bytes::Bytes;
use common::chunk::Chunker;
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Ids that are asked for at a time.
const ASK: usize = 1024;
/// Sealed bytes that are sent at a time.
const SEND_BYTES: usize = 8 << 20;

/// Where the files of a share come from. Methods block and are called on blocking threads.
pub trait Source: Send + Sync + 'static {
    /// The files, in any order.
    ///
    /// # Errors
    /// As it must.
    fn files(&self) -> Result<Vec<FileEntry>>;
    /// The chunk of a file that begins at `offset`. What is given is compared with the digest.
    ///
    /// # Errors
    /// As it must; the file is then left out of the snapshot.
    fn read(&self, file: &FileEntry, offset: u64, chunk: &ChunkRef) -> Result<Bytes>;
}

/// What writing a generation has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Its number. To be remembered: a mirror that later has no such generation, nor a later one, is not whole.
    pub generation: u64,
    /// Files in it.
    pub files: usize,
    /// Files that could not be read or were changed meanwhile, with why; they are not in it.
    pub left_out: Vec<(String, String)>,
    /// Objects that were sent, and their sealed bytes.
    pub sent: usize,
    /// See above.
    pub sent_bytes: u64,
    /// Objects that were there already.
    pub present: usize,
}

/// Writes to a mirror. One at a time for a mirror; a second one is refused when it commits.
pub struct MirrorWriter {
    key: Arc<MirrorKey>,
    place: Arc<dyn MirrorPlace>,
}

/// A chunk to be sent, and where its content is.
struct Wanted {
    part: Part,
    chunk: ChunkRef,
    file: usize,
    offset: u64,
}

#[derive(Default)]
struct Sent {
    objects: usize,
    bytes: u64,
    present: usize,
    /// Files that turned out not to be what they were, with why.
    bad: HashMap<usize, String>,
}

/// Gives the content of a wanted chunk.
type Content = Arc<dyn Fn(&Wanted) -> Result<Bytes> + Send + Sync>;

impl MirrorWriter {
    /// For a mirror with this key.
    pub fn new(key: Arc<MirrorKey>, place: Arc<dyn MirrorPlace>) -> Self {
        Self { key, place }
    }

    /// Writes a generation: what is missing is sent, then the snapshot, then its root. If it is broken off at any moment, the
    /// mirror has the generations of before, and the next attempt goes on with what is missing.
    ///
    /// # Errors
    /// Those of the source's list and of the place; `VERSION_STALE` if somebody else wrote a generation meanwhile.
    pub async fn snapshot(&self, source: Arc<dyn Source>, label: &str, now_ms: u64) -> Result<Report> {
        let listed = {
            let source = source.clone();
            blocking(move || source.files()).await?
        };
        let files = Arc::new(Manifest::new(listed)?.files);
        let wanted = wanted_of(&files);
        let content: Content = {
            let (source, files) = (source.clone(), files.clone());
            Arc::new(move |wanted| {
                let file = files.get(wanted.file).ok_or_else(damaged)?;
                let data = source.read(file, wanted.offset, &wanted.chunk)?;
                if ChunkId::of(&data) != wanted.chunk.id {
                    return Err(Error::new(Reason::LocalFileChanged, "the file was changed while it was read"));
                }
                Ok(data)
            })
        };
        let mut sent = Sent::default();
        self.send(wanted, &content, &mut sent).await?;
        let (files, left_out) = without_bad(&files, &sent.bad);
        let count = files.len();
        let manifest = Manifest { files };
        let (body, pieces) = blocking(move || {
            let body = Bytes::from(manifest.encode()?);
            let pieces: Vec<ChunkRef> = Chunker::new(&body[..]).map(|p| Ok(p?.chunk)).collect::<Result<_>>()?;
            Ok((body, pieces))
        })
        .await?;
        self.send_snapshot(&body, &pieces, &mut sent).await?;
        let generation = self.commit(&body, pieces, label, now_ms).await?;
        let (sent_objects, sent_bytes, present) = (sent.objects, sent.bytes, sent.present);
        Ok(Report { generation, files: count, left_out, sent: sent_objects, sent_bytes, present })
    }

    async fn send_snapshot(&self, body: &Bytes, pieces: &[ChunkRef], sent: &mut Sent) -> Result<()> {
        let mut offset = 0;
        let mut wanted = Vec::new();
        let mut seen = HashSet::new();
        for chunk in pieces {
            if seen.insert(chunk.id) {
                wanted.push(Wanted { part: Part::Snapshot, chunk: *chunk, file: usize::MAX, offset });
            }
            offset += u64::from(chunk.len);
        }
        let of = body.clone();
        let content: Content = Arc::new(move |wanted| {
            let from = wanted.offset as usize;
            Ok(of.slice(from..from + wanted.chunk.len as usize))
        });
        self.send(wanted, &content, sent).await?;
        self.prove_snapshot(pieces, body, sent).await?;
        match sent.bad.remove(&usize::MAX) {
            Some(why) => Err(Error::internal(format!("a snapshot could not be sealed: {why}"))),
            None => Ok(()),
        }
    }

    /// Sends those pieces of a snapshot again that are there and cannot be proven: without them nothing can be read.
    async fn prove_snapshot(&self, pieces: &[ChunkRef], body: &Bytes, sent: &mut Sent) -> Result<()> {
        let mut offset = 0;
        for group in pieces.chunks(PROVE) {
            let (key, group, body) = (self.key.clone(), group.to_vec(), body.slice(offset..));
            offset += group.iter().map(|c| c.len as usize).sum::<usize>();
            let sealed = blocking(move || {
                let mut at = 0;
                let one = |chunk: &ChunkRef| {
                    let from = at;
                    at += chunk.len as usize;
                    key.seal(Part::Snapshot, chunk, &body[from..at])
                };
                group.iter().map(one).collect::<Result<Vec<_>>>()
            })
            .await?;
            sent.objects += self.put_unproven(sealed).await?;
        }
        Ok(())
    }

    /// Lets objects be proven, and sends those that are not; how many that were.
    async fn put_unproven(&self, sealed: Vec<(ObjectId, Bytes)>) -> Result<usize> {
        let nonce: [u8; 32] = common::identity::random_bytes();
        let answers = self.place.prove(nonce, sealed.iter().map(|(id, _)| *id).collect()).await?;
        let wrong = |n: usize, data: &Bytes| {
            answers.get(n).copied().flatten() != Some(*blake3::keyed_hash(&nonce, data).as_bytes())
        };
        let send: Vec<_> =
            sealed.into_iter().enumerate().filter(|(n, (_, data))| wrong(*n, data)).map(|(_, o)| o).collect();
        let count = send.len();
        let mut rest = send.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while let Some(next) = rest.next_if(|(_, data)| batch.is_empty() || bytes + data.len() <= SEND_BYTES) {
                bytes += next.1.len();
                batch.push(next);
            }
            self.place.put(batch).await?;
        }
        Ok(count)
    }

    async fn commit(&self, body: &Bytes, chunks: Vec<ChunkRef>, label: &str, now_ms: u64) -> Result<u64> {
        let newest = self.place.generations().await?.last().copied();
        let previous = match newest {
            Some(generation) => match self.place.get(ObjectId::root(generation)).await {
                Ok(root) => *blake3::hash(&root).as_bytes(),
                // Nobody knows any more what it was.
                Err(e) if e.is(Reason::ChunkDamaged) => [0; 32],
                Err(e) => return Err(e),
            },
            None => [0; 32],
        };
        let mut generation = newest.unwrap_or(0) + 1;
        // Numbers of generations that have gone are not given again; the place says which is the next.
        for _ in 0..2 {
            let root = Root {
                generation,
                created_ms: now_ms,
                previous,
                label: label.to_owned(),
                size: body.len() as u64,
                digest: *blake3::hash(body).as_bytes(),
                chunks: chunks.clone(),
            };
            let sealed = self.key.seal_root(generation, &root.encode())?;
            match self.place.commit(generation, sealed).await {
                Ok(()) => return Ok(generation),
                Err(e) if e.is(Reason::VersionStale) => {
                    let next = e.detail("next").and_then(|n| n.parse::<u64>().ok()).filter(|n| *n > generation);
                    let now = self.place.generations().await?.last().copied();
                    match next {
                        Some(next) if now == newest => generation = next,
                        _ => return Err(e),
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Err(Error::new(Reason::VersionStale, "the mirror was written to by somebody else meanwhile"))
    }

    /// Sends those that are missing.
    async fn send(&self, wanted: Vec<Wanted>, content: &Content, sent: &mut Sent) -> Result<()> {
        let mut rest = wanted.into_iter().peekable();
        while rest.peek().is_some() {
            let group: Vec<Wanted> = rest.by_ref().take(ASK).collect();
            let ids = group.iter().map(|w| self.key.id(w.part, &w.chunk.id)).collect();
            let missing: HashSet<ObjectId> = self.place.missing(ids).await?.into_iter().collect();
            let before = group.len();
            let group: Vec<Wanted> =
                group.into_iter().filter(|w| missing.contains(&self.key.id(w.part, &w.chunk.id))).collect();
            sent.present += before - group.len();
            self.send_group(group, content, sent).await?;
        }
        Ok(())
    }

    async fn send_group(&self, group: Vec<Wanted>, content: &Content, sent: &mut Sent) -> Result<()> {
        let mut group = group.into_iter().peekable();
        while group.peek().is_some() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while let Some(next) = group.next_if(|w| batch.is_empty() || bytes + w.chunk.len as usize <= SEND_BYTES) {
                bytes += next.chunk.len as usize;
                batch.push(next);
            }
            let (key, content) = (self.key.clone(), content.clone());
            let (sealed, bad) = blocking(move || {
                let (mut sealed, mut bad) = (Vec::new(), Vec::new());
                for wanted in batch {
                    match content(&wanted) {
                        Ok(data) => sealed.push(key.seal(wanted.part, &wanted.chunk, &data)?),
                        Err(error) => bad.push((wanted.file, error.to_string())),
                    }
                }
                Ok((sealed, bad))
            })
            .await?;
            sent.bad.extend(bad);
            if !sealed.is_empty() {
                sent.objects += sealed.len();
                sent.bytes += sealed.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
                self.place.put(sealed).await?;
            }
        }
        Ok(())
    }

    /// Asks the place to prove that it has chunks of files that are here: those of a round ([`sample`]). Nothing is
    /// transferred but the list of files. Only chunks of the newest generation are asked for, which must be `at_least` the
    /// one that is remembered; files that have changed since are passed over.
    ///
    /// # Errors
    /// Those of the place; `ENTRY_UNKNOWN` if there is no generation, `CHUNK_DAMAGED` if it is not what was written.
    pub async fn challenge(&self, source: Arc<dyn Source>, round: u64, at_least: u64) -> Result<Proof> {
        let root = read_root(&self.key, &*self.place, None, at_least).await?;
        let manifest = read_manifest(&self.key, &*self.place, &root).await?;
        let nonce: [u8; 32] = common::identity::random_bytes();
        let key = self.key.clone();
        let (parts, expected) =
            blocking(move || Ok(expected_answers(&key, &*source, &manifest, &nonce, round))).await?;
        let answers = self.place.prove(nonce, expected.iter().map(|e| e.0).collect()).await?;
        let wrong = expected.iter().enumerate().filter(|(n, e)| answers.get(*n).copied().flatten() != Some(e.1));
        let wrong = wrong.map(|(_, e)| e.2.clone()).collect::<BTreeSet<_>>();
        Ok(Proof { asked: expected.len(), parts, wrong: wrong.into_iter().collect() })
    }

    /// Lets the place prove each chunk of the newest generation (which must be `at_least` this one) that is still in the
    /// source's files, and sends again what it has not or has damaged; how many objects that were. If it cannot be read
    /// what the generation is made of, that is all that the source has now. Hashes everything on both sides, and transfers
    /// only what is needed.
    ///
    /// # Errors
    /// Those of the source's list and of the place; `MIRROR_APPEND_ONLY` if the place insists on other bytes.
    pub async fn repair(&self, source: Arc<dyn Source>, at_least: u64) -> Result<usize> {
        let known = async {
            let root = read_root(&self.key, &*self.place, None, at_least).await?;
            read_manifest(&self.key, &*self.place, &root).await
        };
        let listed = match known.await {
            Ok(manifest) => manifest.files,
            Err(e) if e.is(Reason::ChunkDamaged) || e.is(Reason::EntryUnknown) => {
                let source = source.clone();
                blocking(move || source.files()).await?
            }
            Err(e) => return Err(e),
        };
        let files = Arc::new(Manifest::new(listed)?.files);
        let mut again = 0;
        let mut rest = wanted_of(&files).into_iter().peekable();
        while rest.peek().is_some() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while let Some(w) = rest.next_if(|w| batch.is_empty() || bytes + w.chunk.len as usize <= SEND_BYTES) {
                bytes += w.chunk.len as usize;
                batch.push(w);
                if batch.len() == PROVE {
                    break;
                }
            }
            let (key, source, files) = (self.key.clone(), source.clone(), files.clone());
            let sealed = blocking(move || {
                let one = |w: &Wanted| {
                    let data = source.read(files.get(w.file)?, w.offset, &w.chunk).ok()?;
                    (ChunkId::of(&data) == w.chunk.id).then(|| key.seal(w.part, &w.chunk, &data))
                };
                batch.iter().filter_map(one).collect::<Result<Vec<_>>>()
            })
            .await?;
            again += self.put_unproven(sealed).await?;
        }
        Ok(again)
    }

    /// Lets all go that the newest `keep` generations do not need, roots too; how many objects will. They stay for the
    /// place's retention time.
    ///
    /// # Errors
    /// Those of the place; if one of the kept generations cannot be read, nothing is let go.
    pub async fn prune(&self, keep: usize) -> Result<usize> {
        let generations = self.place.generations().await?;
        let kept = &generations[generations.len().saturating_sub(keep.max(1))..];
        let mut needed: HashSet<ObjectId> = kept.iter().map(|g| ObjectId::root(*g)).collect();
        for generation in kept {
            let root = read_root(&self.key, &*self.place, Some(*generation), 0).await?;
            needed.extend(root.chunks.iter().map(|c| self.key.id(Part::Snapshot, &c.id)));
            let manifest = read_manifest(&self.key, &*self.place, &root).await?;
            let chunks = manifest.files.iter().flat_map(|f| &f.chunks);
            needed.extend(chunks.map(|c| self.key.id(Part::Data, &c.id)));
        }
        let (mut after, mut retired) = (None, 0);
        loop {
            let page = self.place.list(after, ASK).await?;
            let Some((last, _)) = page.last() else { return Ok(retired) };
            after = Some(*last);
            let gone: Vec<ObjectId> = page.iter().map(|(id, _)| *id).filter(|id| !needed.contains(id)).collect();
            if !gone.is_empty() {
                retired += self.place.retire(gone).await?;
            }
        }
    }
}

/// Each chunk once, with a place where it is.
fn wanted_of(files: &[FileEntry]) -> Vec<Wanted> {
    let (mut wanted, mut seen) = (Vec::new(), HashSet::new());
    for (file, entry) in files.iter().enumerate() {
        let mut offset = 0;
        for chunk in &entry.chunks {
            if seen.insert(chunk.id) {
                wanted.push(Wanted { part: Part::Data, chunk: *chunk, file, offset });
            }
            offset += u64::from(chunk.len);
        }
    }
    wanted
}

/// The files without those whose chunks could not all be sent: those that failed, and those that share a chunk with one.
fn without_bad(files: &[FileEntry], bad: &HashMap<usize, String>) -> (Vec<FileEntry>, Vec<(String, String)>) {
    if bad.is_empty() {
        return (files.to_vec(), Vec::new());
    }
    let of_bad = bad.keys().filter_map(|n| files.get(*n)).flat_map(|f| &f.chunks);
    let doubtful: HashSet<ChunkId> = of_bad.map(|c| c.id).collect();
    let (mut good, mut left_out) = (Vec::new(), Vec::new());
    for (n, file) in files.iter().enumerate() {
        match bad.get(&n) {
            Some(why) => left_out.push((file.path.clone(), why.clone())),
            None if file.chunks.iter().any(|c| doubtful.contains(&c.id)) => {
                left_out.push((file.path.clone(), "a file with the same content could not be read".to_owned()));
            }
            None => good.push(file.clone()),
        }
    }
    (good, left_out)
}

/// Object, expected answer, path.
type Expected = (ObjectId, [u8; 32], String);

fn expected_answers(
    key: &MirrorKey,
    source: &dyn Source,
    manifest: &Manifest,
    nonce: &[u8; 32],
    round: u64,
) -> (usize, Vec<Expected>) {
    let wanted = wanted_of(&manifest.files);
    let one = |w: &Wanted| {
        let file = manifest.files.get(w.file)?;
        let data = source.read(file, w.offset, &w.chunk).ok().filter(|data| ChunkId::of(data) == w.chunk.id)?;
        let (id, sealed) = key.seal(w.part, &w.chunk, &data).ok()?;
        Some((id, *blake3::keyed_hash(nonce, &sealed).as_bytes(), file.path.clone()))
    };
    let expected = sample(wanted.len(), round).filter_map(|n| one(wanted.get(n)?)).collect();
    (wanted.len(), expected)
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("work on a mirror was broken off").caused_by(e)))
}
