//! Lent space against a model, with crashes at any step, a full disk, and clocks that jump.

use super::mirror::MirrorPlace;
use super::mirror::place::GENERATIONS;
use super::sim::SimDisk;
use super::*;
use bytes::Bytes;
use common::chunk::disk::Disk;
use common::error::{Reason, Result};
use common::model::EntryName;
use futures_util::FutureExt;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const HOUR: u64 = 3_600_000;
const HOURS: Duration = Duration::from_secs(3600);
const WALL: u64 = 1_800_000_000_000;
const MIB: u64 = 1 << 20;

/// Clocks that a test turns.
pub(super) struct Turned(Mutex<Reading>);

impl Turned {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Reading { boot: [1; 16], since_boot_ms: HOUR, wall_ms: WALL })))
    }
    pub(super) fn advance(&self, ms: u64) {
        let mut now = self.0.lock();
        now.since_boot_ms += ms;
        now.wall_ms += ms;
    }
    fn set_wall(&self, ms: u64) {
        self.0.lock().wall_ms = ms;
    }
    fn reboot(&self) {
        let mut now = self.0.lock();
        now.boot[0] += 1;
        now.since_boot_ms = 0;
    }
}

impl Clocks for Turned {
    fn read(&self) -> Reading {
        *self.0.lock()
    }
}

pub(super) fn who(name: &str) -> Caller {
    Caller { person: name.to_owned(), machine: format!("{name}-pc"), device: format!("{name}-device") }
}

fn name(text: &str) -> EntryName {
    EntryName::new(text).unwrap()
}

fn refused<T: std::fmt::Debug>(result: Result<T>, reason: Reason) {
    let error = result.unwrap_err();
    assert!(error.is(reason), "{error:?}");
}

fn scratch(n: u128, bytes: u64, hours: u32) -> Borrow {
    let (id, time) = (PlaceId(Uuid::from_u128(n)), HOURS * hours);
    Borrow { id, kind: Kind::Scratch, bytes, time, label: "test".to_owned() }
}

fn open(disk: &SimDisk, clocks: &Arc<Turned>) -> Lender {
    let settings = Settings { per_borrower_bytes: 8 * MIB, ..Settings::new(12 * MIB, MIB) };
    Lender::on(Arc::new(disk.clone()), settings, clocks.clone()).unwrap()
}

fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut out = vec![0; size];
    blake3::Hasher::new_derive_key("test content").update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn digest(data: &[u8]) -> [u8; 32] {
    *blake3::hash(data).as_bytes()
}

fn put(lender: &Lender, who: &Caller, id: PlaceId, object: &str, data: &[u8]) -> Result<()> {
    let mut upload = lender.begin(who, id, &name(object), data.len() as u64, digest(data))?;
    while upload.offset < data.len() as u64 {
        let from = upload.offset as usize;
        let to = data.len().min(from + (300 << 10));
        let durable = lender.write(who, id, upload.number, upload.offset, &data[from..to])?;
        assert!(durable > upload.offset);
        upload.offset = durable;
    }
    lender.finish(who, id, upload.number).map(drop)
}

fn get(lender: &Lender, who: &Caller, id: PlaceId, object: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let piece = lender.read(who, id, &name(object), out.len() as u64, 100_000)?;
        if piece.is_empty() {
            return Ok(out);
        }
        out.extend_from_slice(&piece);
    }
}

/// What is charged is what lies on the disk.
fn charges_match(lender: &Lender, disk: &SimDisk, when: &str) {
    let mut sums: BTreeMap<PlaceId, u64> = BTreeMap::new();
    for (file, bytes) in disk.files() {
        let Some((letter, rest)) = file.split_once('-') else { continue };
        if !matches!(letter, "o" | "p" | "m" | "t") || file.ends_with(".tmp") {
            continue;
        }
        let place = rest.split_once('-').unwrap().0.parse().unwrap();
        *sums.entry(place).or_default() += bytes.len() as u64;
    }
    let (total, places) = lender.charges();
    assert_eq!(total, sums.values().sum::<u64>(), "{when}");
    for (id, used) in places {
        assert_eq!(used, sums.get(&id).copied().unwrap_or(0), "{when}: {id}");
    }
}

#[test]
fn scratch_space_is_borrowed_used_and_wiped_at_its_end() {
    let (disk, clocks, anna) = (SimDisk::default(), Turned::new(), who("anna"));
    let lender = open(&disk, &clocks);
    let mut events = lender.events();
    let wanted = scratch(1, 2 * MIB, 4);
    let place = lender.borrow(&anna, &wanted).unwrap();
    assert_eq!(lender.borrow(&anna, &wanted).unwrap(), place, "asking again borrows nothing new");
    assert_eq!(place.left, Some(4 * HOURS));
    let data = content(1, 1_700_000);
    put(&lender, &anna, place.id, "a", &data).unwrap();
    assert_eq!(get(&lender, &anna, place.id, "a").unwrap(), data);
    assert!(matches!(events.try_recv().unwrap(), Event::AlmostFull(view) if view.id == place.id));
    assert!(events.try_recv().is_err(), "it is warned once");
    for stranger in [who("eve"), Caller { person: String::new(), machine: String::new(), device: "anna".to_owned() }] {
        refused(lender.view(&stranger, place.id), Reason::SpaceUnknown);
        refused(get(&lender, &stranger, place.id, "a"), Reason::SpaceUnknown);
        refused(lender.delete(&stranger, place.id, &name("a")), Reason::SpaceUnknown);
        refused(lender.give_back(&stranger, place.id), Reason::SpaceUnknown);
        refused(lender.borrow(&stranger, &wanted), Reason::FieldInvalid);
    }
    let nobody = Caller { person: String::new(), machine: String::new(), device: String::new() };
    refused(lender.borrow(&nobody, &scratch(2, MIB, 1)), Reason::AccessDenied);
    // Another machine of the same person.
    let other = Caller { device: "another".to_owned(), ..anna.clone() };
    assert_eq!(get(&lender, &other, place.id, "a").unwrap(), data);
    clocks.advance(3 * HOUR);
    lender.renew(&anna, place.id, 2 * HOURS).unwrap();
    lender.renew(&anna, place.id, HOURS).unwrap();
    clocks.advance(2 * HOUR - 1);
    lender.tick().unwrap();
    assert_eq!(get(&lender, &anna, place.id, "a").unwrap(), data, "never before its end");
    clocks.advance(1);
    refused(get(&lender, &anna, place.id, "a"), Reason::SpaceExpired);
    lender.tick().unwrap();
    assert!(matches!(events.try_recv().unwrap(), Event::Wiped(id, _) if id == place.id));
    assert!(disk.files().keys().all(|file| !file.starts_with("o-")));
    refused(lender.view(&anna, place.id), Reason::SpaceExpired);
    refused(lender.borrow(&anna, &wanted), Reason::SpaceExpired);
    assert_eq!((lender.overview().unwrap().used, lender.overview().unwrap().promised), (0, 0));
    clocks.advance(8 * 24 * HOUR);
    lender.tick().unwrap();
    refused(lender.view(&anna, place.id), Reason::SpaceUnknown);
    assert_eq!(disk.files().keys().filter(|f| f.starts_with("place-")).count(), 0);
}

#[test]
fn limits_hold_and_a_full_lender_still_gives() {
    let (disk, clocks, anna) = (SimDisk::default(), Turned::new(), who("anna"));
    disk.set_capacity(Some(10 * MIB));
    let lender = open(&disk, &clocks);
    refused(lender.borrow(&anna, &scratch(1, 9 * MIB, 1)), Reason::SpaceFull);
    let place = lender.borrow(&anna, &scratch(1, 6 * MIB, 1)).unwrap();
    refused(lender.borrow(&anna, &scratch(2, 3 * MIB, 1)), Reason::SpaceFull);
    lender.borrow(&who("bert"), &scratch(3, 6 * MIB, 1)).unwrap();
    refused(lender.borrow(&who("carl"), &scratch(4, MIB, 1)), Reason::SpaceFull);
    refused(lender.borrow(&anna, &scratch(5, MIB, 1_000)), Reason::FieldInvalid);
    refused(lender.borrow(&anna, &scratch(5, 0, 1)), Reason::FieldInvalid);
    let error = put(&lender, &anna, place.id, "a", &content(1, 7 << 20)).unwrap_err();
    assert!(error.is(Reason::SpaceFull) && error.detail("left_bytes") == Some("6291456"), "{error:?}");
    put(&lender, &anna, place.id, "a", &content(1, 4 << 20)).unwrap();
    refused(put(&lender, &anna, place.id, "a", &content(2, 4 << 20)), Reason::SpaceFull);
    // The owner needs the disk: 10 MiB, 4 are lent, 1 is the reserve.
    put(&lender, &who("bert"), scratch(3, 0, 0).id, "b", &content(3, 4 << 20)).unwrap();
    let mut events = lender.events();
    let error = put(&lender, &anna, place.id, "c", &content(4, 1 << 20)).unwrap_err();
    assert!(error.is(Reason::SpaceFull) && error.why().contains("owner"), "{error:?} {}", error.why());
    assert_eq!(events.try_recv().unwrap(), Event::ReserveReached);
    charges_match(&lender, &disk, "full");
    assert_eq!(get(&lender, &anna, place.id, "a").unwrap(), content(1, 4 << 20));
    lender.delete(&anna, place.id, &name("a")).unwrap();
    put(&lender, &anna, place.id, "c", &content(4, 1 << 20)).unwrap();
    // The reserve was never touched.
    assert!(disk.free_bytes().unwrap() >= MIB);
    // The disk itself is full to the last byte: wiping still works.
    disk.set_capacity(Some(0));
    clocks.advance(2 * HOUR);
    let _ = lender.tick();
    assert!(disk.files().keys().all(|file| !file.starts_with("o-")));
    refused(lender.view(&anna, place.id), Reason::SpaceExpired);
    disk.set_capacity(None);
    let again = open(&disk.after_kill(), &clocks);
    assert_eq!(again.overview().unwrap().used, 0);
}

#[test]
fn an_object_is_put_piece_by_piece_and_replaced_in_one_step() {
    let (disk, clocks, anna) = (SimDisk::default(), Turned::new(), who("anna"));
    let lender = open(&disk, &clocks);
    let id = lender.borrow(&anna, &scratch(1, 4 * MIB, 4)).unwrap().id;
    let (old, new) = (content(1, 1000), content(2, 500_000));
    put(&lender, &anna, id, "x", &old).unwrap();
    let upload = lender.begin(&anna, id, &name("x"), 500_000, digest(&new)).unwrap();
    refused(lender.write(&anna, id, upload.number, 1, &new[1..]), Reason::RangeInvalid);
    refused(lender.write(&anna, id, upload.number, 0, &content(2, 500_001)), Reason::RangeInvalid);
    refused(lender.write(&anna, id, upload.number + 9, 0, &new), Reason::UploadInvalid);
    refused(lender.finish(&anna, id, upload.number), Reason::RangeInvalid);
    assert_eq!(lender.write(&anna, id, upload.number, 0, &new[..200_000]).unwrap(), 131_072, "whole blocks");
    assert_eq!(lender.write(&anna, id, upload.number, 0, &new[..100_000]).unwrap(), 131_072, "a repeat is harmless");
    assert_eq!(get(&lender, &anna, id, "x").unwrap(), old, "the old one is there until the new one is whole");
    // Killed; a crash has left bytes behind the last whole block.
    let file = disk.files().into_keys().find(|f| f.starts_with("p-")).unwrap();
    drop(lender);
    let disk = disk.after_kill();
    let torn = disk.open(&file).unwrap();
    torn.write_at(torn.len().unwrap(), &mut [std::io::IoSlice::new(&[7; 5000])]).unwrap();
    let lender = open(&disk, &clocks);
    charges_match(&lender, &disk, "after a kill");
    let again = lender.begin(&anna, id, &name("x"), 500_000, digest(&new)).unwrap();
    assert_eq!(again, Upload { number: upload.number, offset: 131_072 });
    charges_match(&lender, &disk, "after looking at what was left");
    assert_eq!(lender.write(&anna, id, again.number, 131_072, &new[131_072..]).unwrap(), 500_000);
    let stat = lender.finish(&anna, id, again.number).unwrap();
    assert_eq!(lender.stat(&anna, id, &name("x")).unwrap(), stat);
    assert_eq!(get(&lender, &anna, id, "x").unwrap(), new);
    assert_eq!(lender.read(&anna, id, &name("x"), 131_000, 200).unwrap()[..], new[131_000..131_200]);
    refused(lender.read(&anna, id, &name("x"), 500_001, 1), Reason::RangeInvalid);
    // Another digest than announced.
    let upload = lender.begin(&anna, id, &name("y"), 5, [9; 32]).unwrap();
    lender.write(&anna, id, upload.number, 0, b"hello").unwrap();
    refused(lender.finish(&anna, id, upload.number), Reason::ChunkDigestMismatch);
    refused(lender.stat(&anna, id, &name("y")), Reason::EntryUnknown);
    // Too many at a time, and those that were left are cleared away.
    for n in 0..16 {
        lender.begin(&anna, id, &name(&format!("n{n}")), 10, [n; 32]).unwrap();
    }
    refused(lender.begin(&anna, id, &name("more"), 10, [0; 32]), Reason::QueueFull);
    lender.renew(&anna, id, 100 * HOURS).unwrap();
    clocks.advance(25 * HOUR);
    lender.tick().unwrap();
    assert!(disk.files().keys().all(|f| !f.starts_with("p-")));
    let names: Vec<String> = lender.list(&anna, id, None, 10).unwrap().iter().map(|o| o.name.to_string()).collect();
    assert_eq!(names, ["x"]);
    assert_eq!(lender.list(&anna, id, Some(&name("x")), 10).unwrap(), []);
    charges_match(&lender, &disk, "at the end");
}

#[test]
fn what_a_disk_could_not_sync_is_not_acknowledged() {
    let (disk, clocks, anna) = (SimDisk::default(), Turned::new(), who("anna"));
    let lender = open(&disk, &clocks);
    let id = lender.borrow(&anna, &scratch(1, 4 * MIB, 4)).unwrap().id;
    let data = content(1, 300_000);
    disk.fail_syncs(true);
    refused(lender.borrow(&anna, &scratch(2, MIB, 4)), Reason::IoFailed);
    refused(lender.begin(&anna, id, &name("x"), 300_000, digest(&data)), Reason::IoFailed);
    charges_match(&lender, &disk, "after a failed beginning");
    disk.fail_syncs(false);
    let upload = lender.begin(&anna, id, &name("x"), 300_000, digest(&data)).unwrap();
    disk.fail_syncs(true);
    refused(lender.write(&anna, id, upload.number, 0, &data), Reason::IoFailed);
    refused(lender.begin(&anna, id, &name("x"), 300_000, digest(&data)), Reason::IoFailed);
    charges_match(&lender, &disk, "after a failed write");
    disk.fail_syncs(false);
    put(&lender, &anna, id, "x", &data).unwrap();
    disk.fail_syncs(true);
    refused(lender.give_back(&anna, id), Reason::IoFailed);
    disk.fail_syncs(false);
    charges_match(&lender, &disk, "after a failed wipe");
    let lender = {
        drop(lender);
        open(&disk.after_kill(), &clocks)
    };
    // Noted or not: it is wiped, or it is there whole.
    match lender.view(&anna, id) {
        Ok(_) => assert_eq!(get(&lender, &anna, id, "x").unwrap(), data),
        Err(error) => assert!(error.is(Reason::SpaceExpired), "{error:?}"),
    }
}

#[test]
fn flipped_bits_are_noticed_and_a_damaged_record_locks_its_place() {
    let (disk, clocks, anna) = (SimDisk::default(), Turned::new(), who("anna"));
    let lender = open(&disk, &clocks);
    let id = lender.borrow(&anna, &scratch(1, 4 * MIB, 4)).unwrap().id;
    let data = content(1, 300_000);
    put(&lender, &anna, id, "x", &data).unwrap();
    let file = disk.files().into_keys().find(|f| f.starts_with("o-")).unwrap();
    disk.flip(&file, 512 + 32 + 131_072 + 32 + 10);
    refused(lender.read(&anna, id, &name("x"), 131_072, 10), Reason::ChunkDamaged);
    assert_eq!(lender.read(&anna, id, &name("x"), 5, 10).unwrap()[..], data[5..15], "the other blocks are well");
    drop(lender);
    let disk = disk.after_kill();
    disk.flip(&format!("place-{id}"), 100);
    let lender = open(&disk, &clocks);
    refused(lender.view(&anna, id), Reason::StoreCorrupt);
    refused(lender.borrow(&anna, &scratch(1, MIB, 1)), Reason::StoreCorrupt);
    assert_eq!(lender.overview().unwrap().damaged, 1);
    clocks.advance(1_000 * HOUR);
    lender.tick().unwrap();
    assert!(disk.files().contains_key(&file), "what is locked is kept");
    assert_eq!(lender.overview().unwrap().used, disk.files()[&file].len() as u64);
    // Damaged time keeps things for longer, never shorter.
    drop(lender);
    let disk = disk.after_kill();
    disk.flip("time", 3);
    assert_eq!(open(&disk, &clocks).overview().unwrap().damaged, 1);
}

#[test]
fn clocks_that_jump_wipe_nothing_early() {
    let (mut disk, clocks, anna) = (SimDisk::default(), Turned::new(), who("anna"));
    let mut lender = open(&disk, &clocks);
    let id = lender.borrow(&anna, &scratch(1, MIB, 4)).unwrap().id;
    put(&lender, &anna, id, "x", b"hello").unwrap();
    for wall in [WALL + 1_000_000 * HOUR, 5, WALL + HOUR] {
        clocks.set_wall(wall);
        clocks.advance(HOUR / 2);
        lender.tick().unwrap();
        drop(lender);
        disk = disk.after_kill();
        lender = open(&disk, &clocks);
        lender.tick().unwrap();
        assert_eq!(get(&lender, &anna, id, "x").unwrap(), b"hello");
    }
    // 1.5 hours have passed. The machine is off for two hours and starts in a wrong year, which is corrected soon.
    clocks.set_wall(WALL + 10 * HOUR);
    clocks.advance(60_000);
    lender.tick().unwrap();
    drop(lender);
    clocks.reboot();
    clocks.set_wall(WALL + 900_000 * HOUR);
    let disk = disk.after_kill();
    lender = open(&disk, &clocks);
    lender.tick().unwrap();
    clocks.set_wall(WALL + 12 * HOUR);
    clocks.advance(11 * 60_000);
    lender.tick().unwrap();
    assert_eq!(get(&lender, &anna, id, "x").unwrap(), b"hello");
    let left = lender.view(&anna, id).unwrap().left.unwrap();
    assert!(left <= HOURS / 2 && left > HOURS / 4, "{left:?}");
    clocks.advance(HOUR / 2);
    lender.tick().unwrap();
    refused(lender.view(&anna, id), Reason::SpaceExpired);
}

#[test]
fn who_leaves_takes_nothing_new_and_gives_everything() {
    let (disk, clocks, anna) = (SimDisk::default(), Turned::new(), who("anna"));
    let lender = open(&disk, &clocks);
    let id = lender.borrow(&anna, &scratch(1, MIB, 4)).unwrap().id;
    put(&lender, &anna, id, "x", b"hello").unwrap();
    let mut events = lender.events();
    lender.set_leaving(true).unwrap();
    lender.set_leaving(true).unwrap();
    assert_eq!(events.try_recv().unwrap(), Event::Leaving);
    assert!(events.try_recv().is_err());
    refused(lender.borrow(&anna, &scratch(2, MIB, 4)), Reason::DeviceAway);
    refused(put(&lender, &anna, id, "y", b"more"), Reason::DeviceAway);
    refused(lender.renew(&anna, id, HOURS), Reason::DeviceAway);
    assert_eq!(get(&lender, &anna, id, "x").unwrap(), b"hello");
    // A restart, also without power, changes nothing; staying does.
    drop(lender);
    let disk = disk.after_power_cut(7);
    let lender = open(&disk, &clocks);
    assert!(lender.overview().unwrap().leaving);
    refused(put(&lender, &anna, id, "y", b"more"), Reason::DeviceAway);
    lender.set_leaving(false).unwrap();
    drop(lender);
    let disk = disk.after_power_cut(8);
    let lender = open(&disk, &clocks);
    put(&lender, &anna, id, "y", b"more").unwrap();
    disk.set_capacity(Some(0));
    lender.set_leaving(true).unwrap();
    assert!(lender.overview().unwrap().leaving, "a full disk keeps nobody from leaving");
    disk.set_capacity(None);
    lender.take_back(id).unwrap();
    refused(lender.view(&anna, id), Reason::SpaceExpired);
}

#[test]
fn a_real_directory_of_a_small_disk() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::open(&directory.path().join("lent"), 3 * MIB).unwrap();
    let settings = Settings::new(100 * MIB, MIB);
    let clocks = Turned::new();
    let lender = Lender::on(Arc::new(disk.clone()), settings.clone(), clocks.clone()).unwrap();
    refused(Lender::on(Arc::new(disk.clone()), settings, clocks).map(drop), Reason::StoreBusy);
    let anna = who("anna");
    let id = lender.borrow(&anna, &scratch(1, 10 * MIB, 4)).unwrap().id;
    put(&lender, &anna, id, "x", &content(1, 1_000_000)).unwrap();
    refused(put(&lender, &anna, id, "y", &content(2, 1_100_000)), Reason::SpaceFull);
    disk.set_others(2 * MIB);
    refused(put(&lender, &anna, id, "z", b"z"), Reason::SpaceFull);
    assert_eq!(get(&lender, &anna, id, "x").unwrap(), content(1, 1_000_000));
    let now = Reading::default();
    let system = SystemClocks::new();
    let (a, b) = (system.read(), system.read());
    assert!(a.boot == b.boot && a.boot != now.boot && a.since_boot_ms <= b.since_boot_ms && a.since_boot_ms > 0);
}

/// What the model does.
#[derive(Clone, Debug)]
enum Op {
    Borrow(u8),
    Renew(u8),
    Put(u8, u8, usize),
    PutHalf(u8, u8, usize),
    Delete(u8, u8),
    GiveBack(u8),
    Advance(u64),
    Tick,
    Restart,
    Full(bool),
    Seal(Vec<u8>),
    Commit,
    Retire(Vec<u8>),
}

const SIZES: [usize; 7] = [0, 1, 4_000, 131_071, 131_072, 131_077, 300_000];

fn op() -> impl Strategy<Value = Op> {
    let (space, object, size) = (0u8..3, 0u8..4, prop::sample::select(&SIZES[..]));
    prop_oneof![
        3 => space.clone().prop_map(Op::Borrow),
        1 => space.clone().prop_map(Op::Renew),
        6 => (space.clone(), object.clone(), size.clone()).prop_map(|(s, o, z)| Op::Put(s, o, z)),
        3 => (space.clone(), object.clone(), size).prop_map(|(s, o, z)| Op::PutHalf(s, o, z)),
        2 => (space.clone(), object).prop_map(|(s, o)| Op::Delete(s, o)),
        1 => space.prop_map(Op::GiveBack),
        1 => (0..3 * HOUR).prop_map(Op::Advance),
        2 => Just(Op::Tick),
        1 => Just(Op::Restart),
        1 => any::<bool>().prop_map(Op::Full),
        3 => prop::collection::vec(0u8..8, 1..4).prop_map(Op::Seal),
        2 => Just(Op::Commit),
        1 => prop::collection::vec(0u8..8, 1..5).prop_map(Op::Retire),
    ]
}

#[derive(Clone, Default, Debug)]
struct Space {
    ends: u64,
    objects: BTreeMap<String, Vec<u8>>,
    /// What was acknowledged of an upload.
    halves: BTreeMap<String, (Vec<u8>, u64)>,
}

/// What must be there, and what may be.
#[derive(Clone, Default, Debug)]
struct Model {
    now: u64,
    made: u128,
    spaces: BTreeMap<u8, (PlaceId, Space)>,
    sealed: BTreeMap<ObjectId, Option<u64>>,
    generations: Vec<(u64, Option<u64>)>,
    /// The space whose operation was broken off; the object's name and content that it may have, or not.
    doubt: Option<(PlaceId, String, Option<Vec<u8>>)>,
    doubt_space: Option<PlaceId>,
    doubt_mirror: bool,
}

struct Bench {
    disk: SimDisk,
    clocks: Arc<Turned>,
    lender: Option<Lender>,
    model: Model,
}

const RETENTION: u64 = 30 * 24 * HOUR;

fn mirror_id() -> PlaceId {
    PlaceId(Uuid::from_u128(999))
}

fn sealed_object(n: u8) -> (ObjectId, Bytes) {
    (ObjectId([n + 1; 32]), Bytes::from(content(u64::from(n) + 500, 2_000 + usize::from(n) * 700)))
}

fn now<T>(future: futures_util::future::BoxFuture<'_, Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

impl Bench {
    fn new() -> Self {
        let (disk, clocks) = (SimDisk::default(), Turned::new());
        let mut bench = Self { lender: None, disk, clocks, model: Model::default() };
        let lender = open(&bench.disk, &bench.clocks);
        let borrow = Borrow { id: mirror_id(), kind: Kind::Mirror, ..scratch(0, 3 * MIB, 1) };
        lender.borrow(&who("mia"), &borrow).unwrap();
        bench.lender = Some(lender);
        bench
    }

    fn lender(&self) -> &Lender {
        self.lender.as_ref().unwrap()
    }

    fn live(&self, n: u8) -> Option<PlaceId> {
        self.model.spaces.get(&n).filter(|(_, s)| s.ends > self.model.now).map(|(id, _)| *id)
    }

    /// Does it, and keeps the model in step. An error is the disk's; what it leaves in doubt is noted.
    fn run(&mut self, op: &Op) {
        let anna = who("anna");
        match op {
            Op::Borrow(n) => self.borrow(*n, &anna),
            Op::Renew(n) => {
                let Some(id) = self.live(*n) else { return };
                if self.lender().renew(&anna, id, 5 * HOURS).is_ok() {
                    let ends = self.model.now + 5 * HOUR;
                    let space = &mut self.model.spaces.get_mut(n).unwrap().1;
                    space.ends = space.ends.max(ends);
                }
            }
            Op::Put(n, object, size) => self.put(*n, *object, *size, &anna),
            Op::PutHalf(n, object, size) => self.put_half(*n, *object, *size, &anna),
            Op::Delete(n, object) => {
                let Some(id) = self.live(*n) else { return };
                let key = format!("object {object}");
                let deleted = self.lender().delete(&anna, id, &name(&key));
                let space = &mut self.model.spaces.get_mut(n).unwrap().1;
                match deleted {
                    Ok(()) => assert!(space.objects.remove(&key).is_some(), "it was there"),
                    Err(e) if e.is(Reason::EntryUnknown) => assert!(!space.objects.contains_key(&key)),
                    Err(_) => self.model.doubt = Some((id, key, None)),
                }
            }
            Op::GiveBack(n) => {
                let Some(id) = self.live(*n) else { return };
                match self.lender().give_back(&anna, id) {
                    Ok(()) => drop(self.model.spaces.remove(n)),
                    Err(_) => self.model.doubt_space = Some(id),
                }
            }
            Op::Advance(ms) => {
                self.clocks.advance(*ms);
                self.model.now += ms;
            }
            Op::Tick => {
                if self.lender().tick().is_ok() {
                    self.nothing_is_left_of_what_is_over();
                }
            }
            Op::Restart => self.reopen(self.disk.after_kill()),
            Op::Full(full) => self.disk.set_capacity(full.then_some(2 * MIB)),
            Op::Seal(which) => self.seal(which),
            Op::Commit => self.commit(),
            Op::Retire(which) => self.retire(which),
        }
    }

    fn borrow(&mut self, n: u8, anna: &Caller) {
        if self.live(n).is_some() {
            return;
        }
        self.model.made += 1;
        let wanted = scratch(u128::from(n) * 1000 + self.model.made, 600_000, 4);
        // After an error it may be there all the same, and be empty.
        if self.lender().borrow(anna, &wanted).is_ok() {
            let space = Space { ends: self.model.now + 4 * HOUR, ..Space::default() };
            self.model.spaces.insert(n, (wanted.id, space));
        }
    }

    fn put(&mut self, n: u8, object: u8, size: usize, anna: &Caller) {
        let Some(id) = self.live(n) else { return };
        let key = format!("object {object}");
        let data = content(self.model.made as u64 * 10 + u64::from(object), size);
        let done = put(self.lender(), anna, id, &key, &data);
        let space = &mut self.model.spaces.get_mut(&n).unwrap().1;
        space.halves.remove(&key);
        match done {
            Ok(()) => drop(space.objects.insert(key, data)),
            Err(e) if e.is(Reason::SpaceFull) || e.is(Reason::QueueFull) => {}
            Err(_) => self.model.doubt = Some((id, key, Some(data))),
        }
    }

    fn put_half(&mut self, n: u8, object: u8, size: usize, anna: &Caller) {
        let Some(id) = self.live(n) else { return };
        let key = format!("object {object}");
        let data = content(self.model.made as u64 * 10 + 7_000 + u64::from(object), size);
        self.model.spaces.get_mut(&n).unwrap().1.halves.remove(&key);
        let Ok(upload) = self.lender().begin(anna, id, &name(&key), size as u64, digest(&data)) else { return };
        let half = &data[upload.offset as usize..];
        let half = &half[..half.len().min(140_000)];
        let durable = self.lender().write(anna, id, upload.number, upload.offset, half).unwrap_or(upload.offset);
        self.model.spaces.get_mut(&n).unwrap().1.halves.insert(key, (data, durable));
    }

    fn place(&self) -> LocalPlace {
        LocalPlace::new(self.lender().clone(), mirror_id(), who("mia"))
    }

    fn seal(&mut self, which: &[u8]) {
        let mut which = which.to_vec();
        which.sort_unstable();
        which.dedup();
        let objects: Vec<_> = which.iter().map(|n| sealed_object(*n)).collect();
        match now(self.place().put(objects.clone())) {
            Ok(()) => self.model.sealed.extend(objects.into_iter().map(|(id, _)| (id, None))),
            // Some may be there; what was to go may stay.
            Err(_) => self.model.doubt_mirror = true,
        }
    }

    fn commit(&mut self) {
        let generation = self.model.generations.iter().map(|g| g.0).max().unwrap_or(0) + 1;
        let root = Bytes::from(content(generation, 500));
        match now(self.place().commit(generation, root)) {
            Ok(()) => self.model.generations.push((generation, None)),
            Err(_) => self.model.doubt_mirror = true,
        }
    }

    fn retire(&mut self, which: &[u8]) {
        let mut ids: Vec<ObjectId> = which.iter().map(|n| sealed_object(*n).0).collect();
        let oldest = self.model.generations.iter().find(|g| g.1.is_none()).map(|g| g.0);
        ids.extend(oldest.map(ObjectId::root));
        let due = self.model.now + RETENTION;
        match now(self.place().retire(ids.clone())) {
            Ok(_) => {
                for id in ids {
                    if let Some(retired) = self.model.sealed.get_mut(&id).filter(|r| r.is_none()) {
                        *retired = Some(due);
                    }
                }
                for generation in &mut self.model.generations {
                    if Some(generation.0) == oldest {
                        generation.1 = Some(due);
                    }
                }
            }
            Err(_) => self.model.doubt_mirror = true,
        }
    }

    fn reopen(&mut self, disk: SimDisk) {
        self.lender = None;
        self.disk = disk;
        self.lender = Some(open(&self.disk, &self.clocks));
    }

    fn nothing_is_left_of_what_is_over(&self) {
        for (id, space) in self.model.spaces.values().filter(|(_, s)| s.ends <= self.model.now) {
            let left = self.disk.files().into_keys().find(|f| f.contains(&format!("-{id}-")));
            assert_eq!(left, None, "it should have ended at {}", space.ends);
        }
    }

    /// Everything that was acknowledged is there, and nothing that was not asked for.
    fn check(&self, when: &str) {
        let anna = who("anna");
        charges_match(self.lender(), &self.disk, when);
        for (id, space) in self.model.spaces.values().filter(|(_, s)| s.ends > self.model.now) {
            if self.model.doubt_space == Some(*id) && self.lender().view(&anna, *id).is_err() {
                continue;
            }
            let mut listed = self.lender().list(&anna, *id, None, 1000).unwrap();
            for stat in &listed {
                let data = get(self.lender(), &anna, *id, stat.name.as_str()).unwrap();
                assert_eq!((data.len() as u64, digest(&data)), (stat.size, stat.digest), "{when}: half visible");
            }
            let mut expected = space.objects.clone();
            if let Some((_, key, new)) = self.model.doubt.as_ref().filter(|d| d.0 == *id) {
                let old = expected.remove(key);
                if let Some(at) = listed.iter().position(|s| s.name.as_str() == key) {
                    let there = Some(get(self.lender(), &anna, *id, key).unwrap());
                    assert!(there == old || there == *new, "{when}: neither old nor new");
                    listed.remove(at);
                } else {
                    assert!(old.is_none() || new.is_none(), "{when}: the old one was lost");
                }
            }
            let listed: Vec<&str> = listed.iter().map(|s| s.name.as_str()).collect();
            assert_eq!(listed, expected.keys().map(String::as_str).collect::<Vec<_>>(), "{when}");
            for (key, data) in &expected {
                assert!(get(self.lender(), &anna, *id, key).unwrap() == *data, "{when}: {key}");
            }
        }
        self.check_mirror(when);
    }

    fn check_mirror(&self, when: &str) {
        let place = self.place();
        let there: BTreeMap<ObjectId, u32> = now(place.list(None, 1000)).unwrap().into_iter().collect();
        for (id, retired) in &self.model.sealed {
            if retired.is_none_or(|due| due > self.model.now) {
                let data = now(place.get(*id)).unwrap();
                assert_eq!(data, sealed_object(id.0[0] - 1).1, "{when}");
            }
        }
        for (generation, retired) in &self.model.generations {
            if retired.is_none_or(|due| due > self.model.now) {
                assert!(there.contains_key(&ObjectId::root(*generation)), "{when}: a generation is gone");
            }
        }
        for id in there.keys() {
            let root = GENERATIONS.contains(id);
            let known = if root {
                self.model.generations.iter().any(|g| ObjectId::root(g.0) == *id)
            } else {
                self.model.sealed.contains_key(id)
            };
            assert!(known || self.model.doubt_mirror, "{when}: {id} was not acknowledged");
            now(place.get(*id)).unwrap();
        }
    }

    /// Uploads go on where they were acknowledged, and become whole.
    fn finish_halves(&self) {
        let anna = who("anna");
        for (id, space) in self.model.spaces.values().filter(|(_, s)| s.ends > self.model.now) {
            if self.model.doubt_space == Some(*id) {
                continue;
            }
            for (key, (data, acked)) in &space.halves {
                if self.model.doubt.as_ref().is_some_and(|(place, doubtful, _)| (place, doubtful) == (id, key)) {
                    continue;
                }
                let upload = self.lender().begin(&anna, *id, &name(key), data.len() as u64, digest(data));
                let Ok(upload) = upload else { continue };
                assert!(upload.offset >= *acked, "{} of {acked} acknowledged bytes", upload.offset);
                match put(self.lender(), &anna, *id, key, data) {
                    Ok(()) => assert!(get(self.lender(), &anna, *id, key).unwrap() == *data),
                    Err(e) => assert!(e.is(Reason::SpaceFull), "{e:?}"),
                }
            }
        }
    }
}

/// Runs operations until the disk dies at a step, then opens what a kill or a power cut leaves.
fn crash(ops: &[Op], die_at: u64, cut: Option<u64>) {
    let mut bench = Bench::new();
    bench.disk.die_at(bench.disk.steps() + die_at);
    for op in ops {
        if matches!(op, Op::Restart) {
            continue;
        }
        bench.run(op);
        if bench.disk.is_dead() {
            break;
        }
    }
    let disk = match cut {
        Some(seed) => bench.disk.after_power_cut(seed),
        None => bench.disk.after_kill(),
    };
    disk.set_capacity(None);
    bench.reopen(disk);
    bench.check("after the crash");
    bench.finish_halves();
    charges_match(bench.lender(), &bench.disk, "after going on");
    bench.clocks.advance(6 * HOUR);
    bench.model.now += 6 * HOUR;
    bench.lender().tick().unwrap();
    bench.nothing_is_left_of_what_is_over();
    bench.clocks.advance(RETENTION);
    bench.lender().tick().unwrap();
    charges_match(bench.lender(), &bench.disk, "at the end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn lent_space_agrees_with_a_model(ops in prop::collection::vec(op(), 1..40)) {
        let mut bench = Bench::new();
        for op in &ops {
            bench.run(op);
            charges_match(bench.lender(), &bench.disk, "after an operation");
            // A disk that is full fails single steps; it crashes nothing, so nothing stays in doubt but what is told.
            bench.model.doubt_space = None;
        }
        bench.disk.set_capacity(None);
        bench.check("at the end");
        bench.finish_halves();
    }

    #[test]
    fn what_was_acknowledged_survives_a_crash_at_any_step(
        ops in prop::collection::vec(op(), 1..25),
        at in 0.0f64..1.0,
        cut in prop::option::of(any::<u64>()),
    ) {
        // As many steps as these operations take, about.
        let mut bench = Bench::new();
        let before = bench.disk.steps();
        ops.iter().filter(|op| !matches!(op, Op::Restart)).for_each(|op| bench.run(op));
        let steps = bench.disk.steps() - before;
        crash(&ops, 1 + (at * steps as f64) as u64, cut);
    }
}

#[test]
fn place_ids_and_object_ids_are_read_strictly() {
    assert!("zz".parse::<PlaceId>().is_err() && "../../etc".parse::<ObjectId>().is_err());
    assert!("A".repeat(64).parse::<ObjectId>().is_err());
    assert!(now(async { Ok(()) }.boxed()).is_ok());
    for bad in ["", ".", "..", "a/b", "a\0b", "x\u{202e}y"] {
        assert!(EntryName::new(bad).is_err(), "{bad:?}");
    }
}
