//! Lent space against a model, with crashes at any step and a full disk.

use super::*;
use crate::disk::mirror::MirrorPlace;
use crate::disk::mirror::place::GENERATIONS;
use bytes::Bytes;
use proptest::prelude::*;

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
