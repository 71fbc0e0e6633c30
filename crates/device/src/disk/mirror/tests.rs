//! Mirrors from a folder to a lender and back, and what a lender may try.

use super::place::{BATCH_MAX, root_generation};
use super::*;
use crate::disk::tests::{Turned, who};
use crate::disk::{Borrow, Kind, Lender, PlaceId, Settings};
use bytes::Bytes;
use common::chunk::disk::Disk;
use common::error::{Error, Reason, Result};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use testkit::disk::SimDisk;

const DAY: u64 = 24 * 3_600_000;
const NOW: u64 = 1_800_000_000_000;

fn lender(disk: &SimDisk, clocks: &Arc<Turned>) -> Lender {
    Lender::on(Arc::new(disk.clone()), Settings::new(200 << 20, 0), clocks.clone()).unwrap()
}

fn borrow(lender: &Lender, bytes: u64) -> LocalPlace {
    let id = PlaceId::generate();
    let wanted = Borrow { id, kind: Kind::Mirror, bytes, time: Duration::ZERO, label: String::new() };
    lender.borrow(&who("anna"), &wanted).unwrap();
    LocalPlace::new(lender.clone(), id, who("anna"))
}

pub(super) fn write(folder: &Path, path: &str, data: &[u8]) {
    let path = folder.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, data).unwrap();
}

pub(super) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut out = vec![0; size];
    blake3::Hasher::new_derive_key("test noise").update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = FolderSource::new(folder).files().unwrap();
    entries.into_iter().map(|e| (e.path.clone(), std::fs::read(folder.join(&e.path)).unwrap())).collect()
}

fn share() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.txt", b"hello");
    write(folder.path(), "empty", b"");
    write(folder.path(), "plans/big.bin", &noise(1, 6_000_000));
    write(folder.path(), "plans/deep/er/same as a.txt", b"hello");
    for n in 0..40 {
        write(folder.path(), &format!("many/{n}"), &noise(100 + n, 3_000));
    }
    folder
}

/// A place that counts and misbehaves as it is told.
struct Odd {
    inner: LocalPlace,
    puts: AtomicUsize,
    fail_puts_after: usize,
    evil: Mutex<Option<Evil>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Evil {
    Flip,
    Exchange,
    Withhold,
    OldGeneration,
}

impl Odd {
    fn new(inner: LocalPlace, fail_puts_after: usize) -> Arc<Self> {
        Arc::new(Self { inner, puts: AtomicUsize::new(0), fail_puts_after, evil: Mutex::new(None) })
    }
}

impl MirrorPlace for Odd {
    fn missing(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<ObjectId>>> {
        self.inner.missing(ids)
    }
    fn put(&self, objects: Vec<(ObjectId, Bytes)>) -> BoxFuture<'_, Result<()>> {
        let n = self.puts.fetch_add(1, Ordering::SeqCst);
        if n >= self.fail_puts_after {
            return Box::pin(async { Err(Error::new(Reason::PeerUnreachable, "the cable is out")) });
        }
        self.inner.put(objects)
    }
    fn get(&self, id: ObjectId) -> BoxFuture<'_, Result<Bytes>> {
        let evil = *self.evil.lock();
        Box::pin(async move {
            let chunk = root_generation(&id).is_none();
            match evil {
                Some(Evil::Withhold) if chunk => Err(Error::new(Reason::EntryUnknown, "never seen")),
                Some(Evil::Flip) => {
                    let mut data = self.inner.get(id).await?.to_vec();
                    let middle = data.len() / 2;
                    data[middle] ^= 1;
                    Ok(Bytes::from(data))
                }
                Some(Evil::Exchange) if chunk => {
                    let all = self.inner.list(Some(ObjectId::root(u64::MAX)), BATCH_MAX).await?;
                    let other = all.iter().find(|(other, _)| *other != id).unwrap().0;
                    self.inner.get(other).await
                }
                _ => self.inner.get(id).await,
            }
        })
    }
    fn list(&self, after: Option<ObjectId>, limit: usize) -> BoxFuture<'_, Result<Vec<(ObjectId, u32)>>> {
        self.inner.list(after, limit)
    }
    fn commit(&self, generation: u64, root: Bytes) -> BoxFuture<'_, Result<()>> {
        self.inner.commit(generation, root)
    }
    fn generations(&self) -> BoxFuture<'_, Result<Vec<u64>>> {
        Box::pin(async move {
            let mut all = self.inner.generations().await?;
            if *self.evil.lock() == Some(Evil::OldGeneration) {
                all.pop();
            }
            Ok(all)
        })
    }
    fn retire(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<usize>> {
        self.inner.retire(ids)
    }
    fn prove(&self, key: [u8; 32], ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<Option<[u8; 32]>>>> {
        self.inner.prove(key, ids)
    }
    fn space(&self) -> BoxFuture<'_, Result<Space>> {
        self.inner.space()
    }
}

fn source(folder: &tempfile::TempDir) -> Arc<FolderSource> {
    Arc::new(FolderSource::new(folder.path()))
}

#[tokio::test]
async fn a_share_goes_to_its_mirror_and_comes_back() {
    let (disk, clocks) = (SimDisk::default(), Turned::new());
    let lender = lender(&disk, &clocks);
    let place = Arc::new(borrow(&lender, 50 << 20));
    let key = Arc::new(MirrorKey::from_text(&MirrorKey::generate().to_text()).unwrap());
    let writer = MirrorWriter::new(key.clone(), place.clone());
    let folder = share();
    let first = writer.snapshot(source(&folder), "first", NOW).await.unwrap();
    assert_eq!((first.generation, first.files, first.left_out.len(), first.present), (1, 44, 0, 0));
    let again = writer.snapshot(source(&folder), "again", NOW).await.unwrap();
    assert_eq!((again.generation, again.sent), (2, 0), "what is there is not sent again");
    write(folder.path(), "plans/new", b"new");
    std::fs::remove_file(folder.path().join("a.txt")).unwrap();
    let third = writer.snapshot(source(&folder), "third", NOW).await.unwrap();
    assert_eq!((third.generation, third.sent), (3, 2), "one chunk and the snapshot");
    // The old generation with the old files, the new one with the new ones.
    for (generation, present) in [(Some(1), true), (None, false)] {
        let reader = MirrorReader::open(key.clone(), place.clone(), generation, 0).await.unwrap();
        let to = tempfile::tempdir().unwrap();
        let restored = reader.restore(to.path()).await.unwrap();
        assert_eq!((restored.files, restored.present, restored.failed.len()), (44, 0, 0));
        let there = tree(to.path());
        assert_eq!(there.contains_key("a.txt"), present);
        if !present {
            assert!(there == tree(folder.path()));
            // Begun again: nothing is written twice; what is in the way is left alone.
            std::fs::write(to.path().join("plans/new"), b"NEW").unwrap();
            let restored = reader.restore(to.path()).await.unwrap();
            assert_eq!((restored.files, restored.present), (0, 43));
            assert_eq!(restored.failed[0].0, "plans/new");
            assert_eq!(std::fs::read(to.path().join("plans/new")).unwrap(), b"NEW");
        }
        assert_eq!(reader.verify().await.unwrap().hit, Vec::<String>::new());
        let mut one = Vec::new();
        reader.read(&reader.files()[1].clone(), &mut one).await.unwrap();
    }
    // Nothing of names or contents can be seen by the lender.
    for (name, bytes) in disk.files() {
        for secret in [&b"same as"[..], b"hello", b"plans"] {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{name}");
        }
    }
    // Another key opens nothing; nobody else gets at it.
    let other = MirrorReader::open(Arc::new(MirrorKey::generate()), place.clone(), None, 0).await;
    assert!(other.err().unwrap().is(Reason::ChunkDamaged));
    let id = lender.places(None)[0].id;
    let eve = LocalPlace::new(lender.clone(), id, who("eve"));
    assert!(eve.list(None, 10).await.unwrap_err().is(Reason::SpaceUnknown));
    assert!(eve.retire(vec![ObjectId::root(1)]).await.unwrap_err().is(Reason::SpaceUnknown));
}

#[tokio::test]
async fn a_restore_follows_no_link_out_of_its_folder() {
    let (disk, clocks) = (SimDisk::default(), Turned::new());
    let place = Arc::new(borrow(&lender(&disk, &clocks), 50 << 20));
    let key = Arc::new(MirrorKey::generate());
    let folder = share();
    MirrorWriter::new(key.clone(), place.clone()).snapshot(source(&folder), "", NOW).await.unwrap();
    let (to, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(outside.path(), to.path().join("plans")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("x"), to.path().join("a.txt")).unwrap();
    let restored = MirrorReader::open(key, place, None, 0).await.unwrap().restore(to.path()).await.unwrap();
    assert_eq!(
        restored.failed.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(),
        ["a.txt", "plans/big.bin", "plans/deep/er/same as a.txt"]
    );
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_snapshot_that_was_broken_off_goes_on_with_what_is_missing() {
    let (disk, clocks) = (SimDisk::default(), Turned::new());
    let lender = lender(&disk, &clocks);
    let inner = borrow(&lender, 50 << 20);
    let key = Arc::new(MirrorKey::generate());
    let folder = share();
    write(folder.path(), "second.bin", &noise(7, 9_000_000));
    let odd = Odd::new(inner.clone(), 1);
    let broken = MirrorWriter::new(key.clone(), odd).snapshot(source(&folder), "", NOW).await;
    assert!(broken.unwrap_err().is(Reason::PeerUnreachable));
    assert_eq!(inner.generations().await.unwrap(), Vec::<u64>::new(), "nothing is half visible");
    let done =
        MirrorWriter::new(key.clone(), Arc::new(inner.clone())).snapshot(source(&folder), "", NOW).await.unwrap();
    assert!(done.present > 0 && done.sent > 0, "{done:?}");
    // A place that is full says so, and keeps what it has.
    let small = Arc::new(borrow(&lender, 1 << 20));
    let full = MirrorWriter::new(key, small.clone()).snapshot(source(&folder), "", NOW).await;
    assert!(full.unwrap_err().is(Reason::SpaceFull));
    assert!(small.space().await.unwrap().used <= 1 << 20);
}

#[tokio::test]
async fn whatever_a_lender_changes_is_noticed() {
    let (disk, clocks) = (SimDisk::default(), Turned::new());
    let inner = borrow(&lender(&disk, &clocks), 50 << 20);
    let odd = Odd::new(inner, usize::MAX);
    let key = Arc::new(MirrorKey::generate());
    let folder = share();
    let writer = MirrorWriter::new(key.clone(), odd.clone());
    writer.snapshot(source(&folder), "", NOW).await.unwrap();
    write(folder.path(), "b", b"b");
    let last = writer.snapshot(source(&folder), "", NOW).await.unwrap().generation;
    let reader = MirrorReader::open(key.clone(), odd.clone(), None, last).await.unwrap();
    for evil in [Evil::Flip, Evil::Exchange, Evil::Withhold] {
        *odd.evil.lock() = Some(evil);
        let hit = reader.verify().await.unwrap().hit;
        assert_eq!(hit.len(), 44, "all but the empty one");
        let to = tempfile::tempdir().unwrap();
        let restored = reader.restore(to.path()).await.unwrap();
        assert_eq!((restored.files, restored.failed.len()), (1, 44));
        assert_eq!(tree(to.path()).len(), 1, "nothing is left half");
        let opened = MirrorReader::open(key.clone(), odd.clone(), None, 0).await.err().unwrap();
        assert!(opened.is(Reason::ChunkDamaged) || opened.is(Reason::EntryUnknown));
    }
    *odd.evil.lock() = Some(Evil::OldGeneration);
    assert!(MirrorReader::open(key.clone(), odd.clone(), None, last).await.err().unwrap().is(Reason::ChunkDamaged));
    MirrorReader::open(key, odd, None, 0).await.unwrap();
}

#[tokio::test]
async fn a_lender_that_lost_something_cannot_prove_it_and_gets_it_again() {
    let (disk, clocks) = (SimDisk::default(), Turned::new());
    let place = Arc::new(borrow(&lender(&disk, &clocks), 50 << 20));
    let key = Arc::new(MirrorKey::generate());
    let folder = share();
    let writer = MirrorWriter::new(key.clone(), place.clone());
    writer.snapshot(source(&folder), "", NOW).await.unwrap();
    let whole = writer.challenge(source(&folder), 3, 1).await.unwrap();
    assert_eq!((whole.asked, whole.parts, whole.wrong.len()), (whole.parts, whole.parts, 0));
    assert!(whole.parts > 40, "{whole:?}");
    assert!(writer.challenge(source(&folder), 3, 2).await.unwrap_err().is(Reason::ChunkDamaged), "too old");
    let small = key.id(super::key::Part::Data, &common::model::ChunkId::of(b"hello"));
    let file = disk.files().into_keys().find(|f| f.ends_with(&small.to_string())).unwrap();
    disk.flip(&file, 200);
    let hit = writer.challenge(source(&folder), 3, 1).await.unwrap();
    assert_eq!(hit.wrong, ["a.txt"]);
    let reader = MirrorReader::open(key.clone(), place.clone(), None, 0).await.unwrap();
    assert_eq!(reader.verify().await.unwrap().hit, ["a.txt", "plans/deep/er/same as a.txt"]);
    assert_eq!(writer.repair(source(&folder), 1).await.unwrap(), 1);
    assert_eq!(writer.challenge(source(&folder), 3, 1).await.unwrap().wrong, Vec::<String>::new());
    assert_eq!(reader.verify().await.unwrap().hit, Vec::<String>::new());
    // Whole bytes are never replaced by others.
    let other = place.put(vec![(small, Bytes::from_static(b"something else"))]).await.unwrap_err();
    assert!(other.is(Reason::MirrorAppendOnly));
    // The list of files itself, and the root: the next snapshot is whole all the same.
    let chunks = reader.files().iter().flat_map(|f| &f.chunks);
    let data: Vec<String> = chunks.map(|c| key.id(super::key::Part::Data, &c.id).to_string()).collect();
    let mut harmed = 0;
    for file in disk.files().into_keys().filter(|f| f.starts_with("m-") && !data.iter().any(|d| f.ends_with(d))) {
        disk.flip(&file, 150);
        harmed += 1;
    }
    assert_eq!(harmed, 2, "the list and the root");
    assert!(writer.challenge(source(&folder), 3, 1).await.unwrap_err().is(Reason::ChunkDamaged));
    let again = writer.snapshot(source(&folder), "", NOW).await.unwrap();
    assert_eq!((again.generation, again.sent), (2, 1), "the list, which has not changed, is sent again");
    assert_eq!(writer.challenge(source(&folder), 3, 2).await.unwrap().wrong, Vec::<String>::new());
    assert_eq!(MirrorReader::open(key, place, None, 2).await.unwrap().files().len(), 44);
}

#[tokio::test]
async fn what_is_deleted_in_the_share_frees_its_space_after_the_retention_time() {
    let (disk, clocks) = (SimDisk::default(), Turned::new());
    let lender = lender(&disk, &clocks);
    let place = Arc::new(borrow(&lender, 50 << 20));
    let key = Arc::new(MirrorKey::generate());
    let folder = share();
    let writer = MirrorWriter::new(key.clone(), place.clone());
    writer.snapshot(source(&folder), "", NOW).await.unwrap();
    assert_eq!(writer.prune(1).await.unwrap(), 0, "all of it is needed");
    let full = place.space().await.unwrap().used;
    std::fs::remove_file(folder.path().join("plans/big.bin")).unwrap();
    writer.snapshot(source(&folder), "", NOW).await.unwrap();
    assert!(writer.prune(1).await.unwrap() > 0);
    assert_eq!(writer.prune(1).await.unwrap(), 0, "once is enough");
    clocks.advance(29 * DAY);
    lender.tick().unwrap();
    // Until then it can be had back, by its number.
    assert_eq!(place.generations().await.unwrap(), [2]);
    let old = MirrorReader::open(key.clone(), place.clone(), Some(1), 0).await.unwrap();
    assert_eq!((old.files().len(), old.verify().await.unwrap().hit.len()), (44, 0));
    clocks.advance(2 * DAY);
    lender.tick().unwrap();
    let freed = full - place.space().await.unwrap().used;
    assert!(freed > 6_000_000, "{freed}");
    assert!(lender.overview().unwrap().used < full - 6_000_000);
    assert!(MirrorReader::open(key.clone(), place.clone(), Some(1), 0).await.err().unwrap().is(Reason::EntryUnknown));
    let now = MirrorReader::open(key, place, None, 2).await.unwrap();
    assert_eq!((now.files().len(), now.verify().await.unwrap().hit.len()), (43, 0));
}

#[tokio::test]
async fn nothing_goes_before_the_retention_time_and_no_number_is_given_twice() {
    let (disk, clocks) = (SimDisk::default(), Turned::new());
    let mut lender_now = lender(&disk, &clocks);
    let first = borrow(&lender_now, 50 << 20);
    let id = lender_now.places(None)[0].id;
    let key = Arc::new(MirrorKey::generate());
    let folder = share();
    let writer = MirrorWriter::new(key.clone(), Arc::new(first.clone()));
    writer.snapshot(source(&folder), "", NOW).await.unwrap();
    std::fs::remove_file(folder.path().join("plans/big.bin")).unwrap();
    writer.snapshot(source(&folder), "", NOW).await.unwrap();
    // Somebody with the owner's machine asks for everything to go.
    let all: Vec<ObjectId> = first.list(None, BATCH_MAX).await.unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(first.retire(all.clone()).await.unwrap(), all.len());
    assert_eq!(first.retire(all.clone()).await.unwrap(), 0);
    clocks.advance(29 * DAY);
    lender_now.tick().unwrap();
    assert_eq!(first.list(None, BATCH_MAX).await.unwrap().len(), all.len());
    // Its owner notices, claims what it needs, and the rest goes. All this over a restart.
    drop((writer, first, lender_now));
    let disk = disk.after_kill();
    lender_now = lender(&disk, &clocks);
    let place = Arc::new(LocalPlace::new(lender_now.clone(), id, who("anna")));
    assert!(lender_now.give_back(&who("anna"), id).unwrap_err().is(Reason::MirrorAppendOnly));
    let writer = MirrorWriter::new(key.clone(), place.clone());
    let third = writer.snapshot(source(&folder), "", NOW).await.unwrap();
    assert_eq!((third.generation, third.sent), (3, 0));
    clocks.advance(2 * DAY);
    lender_now.tick().unwrap();
    assert_eq!(place.generations().await.unwrap(), [3]);
    let reader = MirrorReader::open(key.clone(), place.clone(), None, 3).await.unwrap();
    assert_eq!(reader.verify().await.unwrap().hit, Vec::<String>::new());
    assert!(place.list(None, BATCH_MAX).await.unwrap().len() < all.len());
    assert!(disk.files().keys().all(|f| !f.starts_with("r-")), "what was claimed is in no batch any more");
    // Pruning keeps what the newest generations need.
    write(folder.path(), "late", b"late");
    writer.snapshot(source(&folder), "", NOW).await.unwrap();
    assert!(writer.prune(1).await.unwrap() >= 2);
    clocks.advance(31 * DAY);
    lender_now.tick().unwrap();
    assert_eq!(place.generations().await.unwrap(), [4]);
    let reader = MirrorReader::open(key.clone(), place.clone(), None, 4).await.unwrap();
    assert_eq!((reader.files().len(), reader.verify().await.unwrap().hit.len()), (44, 0));
    // All numbers are gone; the next is new all the same.
    place.retire(vec![ObjectId::root(4)]).await.unwrap();
    clocks.advance(31 * DAY);
    lender_now.tick().unwrap();
    assert_eq!(place.generations().await.unwrap(), Vec::<u64>::new());
    assert!(place.commit(4, Bytes::from_static(b"again")).await.unwrap_err().is(Reason::VersionStale));
    assert_eq!(writer.snapshot(source(&folder), "", NOW).await.unwrap().generation, 5);
}

#[tokio::test]
async fn a_lender_that_leaves_is_drained_without_the_key() {
    let (disk, clocks, other_disk) = (SimDisk::default(), Turned::new(), SimDisk::default());
    let leaver = lender(&disk, &clocks);
    let old = borrow(&leaver, 50 << 20);
    let id = leaver.places(None)[0].id;
    let stayer = lender(&other_disk, &clocks);
    let new = Arc::new(borrow(&stayer, 50 << 20));
    let key = Arc::new(MirrorKey::generate());
    let folder = share();
    let writer = MirrorWriter::new(key.clone(), Arc::new(old.clone()));
    writer.snapshot(source(&folder), "", NOW).await.unwrap();
    write(folder.path(), "b", b"b");
    writer.snapshot(source(&folder), "", NOW).await.unwrap();
    assert_eq!(writer.prune(1).await.unwrap(), 2, "the first root and its list: they can be read all the same");
    assert!(leaver.give_back(&who("anna"), id).unwrap_err().is(Reason::MirrorAppendOnly));
    leaver.set_leaving(true).unwrap();
    assert!(old.put(vec![(ObjectId([9; 32]), Bytes::from_static(b"x"))]).await.unwrap_err().is(Reason::DeviceAway));
    let own = LocalPlace::to_drain(leaver.clone(), id);
    assert!(own.put(vec![(ObjectId([9; 32]), Bytes::from_static(b"x"))]).await.unwrap_err().is(Reason::AccessDenied));
    assert!(own.retire(vec![ObjectId::root(1)]).await.unwrap_err().is(Reason::AccessDenied));
    // Broken off once, then done.
    let odd = Odd::new((*new).clone(), 0);
    assert!(drain(&own, &*odd).await.is_err());
    assert_eq!(new.generations().await.unwrap(), Vec::<u64>::new());
    let drained = drain(&own, &*new).await.unwrap();
    assert_eq!((drained.generations, drained.damaged), (vec![1, 2], vec![]));
    let again = drain(&own, &*new).await.unwrap();
    assert_eq!((again.copied, again.present), (0, drained.copied));
    for generation in [1, 2] {
        let reader = MirrorReader::open(key.clone(), new.clone(), Some(generation), 0).await.unwrap();
        assert_eq!(reader.verify().await.unwrap().hit, Vec::<String>::new());
    }
    // Its owner gives the old one back; nothing is left of it.
    leaver.give_back(&who("anna"), id).unwrap();
    assert_eq!((leaver.places(None), leaver.overview().unwrap().used), (vec![], 0));
    // The mirror goes on at its new place.
    let writer = MirrorWriter::new(key, new);
    assert_eq!(writer.snapshot(source(&folder), "", NOW).await.unwrap().generation, 3);
}

/// Files that change or vanish between listing and reading.
struct Moving(FolderSource);

impl Source for Moving {
    fn files(&self) -> Result<Vec<FileEntry>> {
        self.0.files()
    }
    fn read(&self, file: &FileEntry, offset: u64, chunk: &common::model::ChunkRef) -> Result<Bytes> {
        let data = self.0.read(file, offset, chunk)?;
        Ok(if file.path == "many/7" { Bytes::from(vec![0; data.len()]) } else { data })
    }
}

#[tokio::test]
async fn a_file_that_changes_meanwhile_is_left_out_and_told() {
    let (disk, clocks) = (SimDisk::default(), Turned::new());
    let place = Arc::new(borrow(&lender(&disk, &clocks), 50 << 20));
    let key = Arc::new(MirrorKey::generate());
    let folder = share();
    let writer = MirrorWriter::new(key.clone(), place.clone());
    let moving = Arc::new(Moving(FolderSource::new(folder.path())));
    let report = writer.snapshot(moving, "", NOW).await.unwrap();
    assert_eq!(report.left_out.iter().map(|l| l.0.as_str()).collect::<Vec<_>>(), ["many/7"]);
    let reader = MirrorReader::open(key, place, None, 0).await.unwrap();
    assert_eq!((reader.files().len(), reader.verify().await.unwrap().hit.len()), (43, 0));
}

#[tokio::test]
async fn hostile_objects_are_refused() {
    let (disk, clocks) = (SimDisk::default(), Turned::new());
    let place = borrow(&lender(&disk, &clocks), 50 << 20);
    let one = |id: ObjectId, len: usize| vec![(id, Bytes::from(vec![1; len]))];
    assert!(place.put(one(ObjectId::root(7), 10)).await.unwrap_err().is(Reason::FieldInvalid));
    assert!(place.put(one(ObjectId([7; 32]), 0)).await.unwrap_err().is(Reason::MessageTooLarge));
    assert!(place.put(one(ObjectId([7; 32]), place::OBJECT_MAX + 1)).await.unwrap_err().is(Reason::MessageTooLarge));
    assert!(place.missing(vec![ObjectId([7; 32]); BATCH_MAX + 1]).await.unwrap_err().is(Reason::MessageTooLarge));
    assert!(place.prove([0; 32], vec![ObjectId([7; 32]); 257]).await.unwrap_err().is(Reason::MessageTooLarge));
    let twice = [one(ObjectId([7; 32]), 10), one(ObjectId([7; 32]), 10)].concat();
    assert!(place.put(twice).await.unwrap_err().is(Reason::MirrorAppendOnly));
    assert_eq!(place.space().await.unwrap().used, 0);
    assert_eq!(disk.list().unwrap().len(), 2, "only the time and the place's record");
    place.commit(u64::MAX, Bytes::from_static(b"the last")).await.unwrap();
    assert!(place.commit(u64::MAX, Bytes::from_static(b"another")).await.unwrap_err().is(Reason::MirrorAppendOnly));
}
