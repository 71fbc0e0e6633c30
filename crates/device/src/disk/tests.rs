//! Lent space: limits, ends, damage, clocks that jump. Against a model, with crashes at any step, in `model`.

use super::*;
use common::chunk::disk::Disk;
use common::error::{Reason, Result};
use common::model::EntryName;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use testkit::disk::SimDisk;

mod model;

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

#[test]
fn place_ids_and_object_ids_are_read_strictly() {
    assert!("zz".parse::<PlaceId>().is_err() && "../../etc".parse::<ObjectId>().is_err());
    assert!("A".repeat(64).parse::<ObjectId>().is_err());
    for bad in ["", ".", "..", "a/b", "a\0b", "x\u{202e}y"] {
        assert!(EntryName::new(bad).is_err(), "{bad:?}");
    }
}
