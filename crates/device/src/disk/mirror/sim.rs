//! A lender leaves, and everything goes wrong: both lenders and the owner are killed, lose power and come back, at any
//! step. Whatever happens, the place that the owner has written down as the copy's has all of it.

use super::place::ObjectId;
use super::tests::{noise, write};
use super::*;
use crate::disk::tests::{Turned, who};
use crate::disk::{Borrow, Kind, Lender, PlaceId, Settings};
use common::error::Reason;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;
use testkit::disk::SimDisk;

const ROUNDS: u64 = 40;
/// How often something may go wrong in one run; after that the owner's attempt succeeds.
const FAULTS: usize = 12;

/// A machine that lends, with the disk that survives it.
struct Machine {
    disk: SimDisk,
    lender: Option<Lender>,
}

/// What the owner has written down; each change of it is on disk before the next step.
#[derive(Clone, Debug)]
struct Note {
    at: usize,
    moving: bool,
    left: bool,
}

struct World {
    rng: StdRng,
    clocks: Arc<Turned>,
    machines: [Machine; 2],
    place: PlaceId,
    key: Arc<MirrorKey>,
    note: Note,
    generations: Vec<u64>,
}

fn open(disk: &SimDisk, clocks: &Arc<Turned>) -> Lender {
    Lender::on(Arc::new(disk.clone()), Settings::new(200 << 20, 0), clocks.clone()).unwrap()
}

impl World {
    async fn new(seed: u64) -> Self {
        let (clocks, key) = (Turned::new(), Arc::new(MirrorKey::generate()));
        let machine = || {
            let disk = SimDisk::default();
            let lender = Some(open(&disk, &clocks));
            Machine { disk, lender }
        };
        let (machines, place) = ([machine(), machine()], PlaceId::generate());
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            clocks: clocks.clone(),
            machines,
            place,
            key,
            note: Note { at: 0, moving: false, left: false },
            generations: Vec::new(),
        };
        world.borrow(0);
        let folder = tempfile::tempdir().unwrap();
        let writer = MirrorWriter::new(world.key.clone(), Arc::new(world.at(0).unwrap()));
        for generation in 1..=3 {
            write(folder.path(), "changes", &noise(seed + generation, 300_000));
            write(folder.path(), &format!("file {generation}"), &noise(generation, 40_000));
            let source = Arc::new(FolderSource::new(folder.path()));
            world.generations.push(writer.snapshot(source, "", 0).await.unwrap().generation);
        }
        // One generation may go after its time; until then it is moved like the others.
        writer.prune(2).await.unwrap();
        world.machines[0].lender.as_ref().unwrap().set_leaving(true).unwrap();
        world
    }

    fn borrow(&mut self, at: usize) {
        let wanted =
            Borrow { id: self.place, kind: Kind::Mirror, bytes: 50 << 20, time: Duration::ZERO, label: String::new() };
        self.machines[at].lender.as_ref().unwrap().borrow(&who("anna"), &wanted).unwrap();
    }

    fn at(&self, at: usize) -> Option<LocalPlace> {
        Some(LocalPlace::new(self.machines[at].lender.clone()?, self.place, who("anna")))
    }

    /// Something happens to a machine, now or after some more steps of its disk.
    fn disturb(&mut self) {
        let at = self.rng.random_range(0..2);
        let machine = &mut self.machines[at];
        let soon = machine.disk.steps() + self.rng.random_range(0..60);
        machine.disk.die_at(soon);
    }

    /// Machines whose disk has died are started again.
    fn restart(&mut self) {
        for machine in &mut self.machines {
            if !machine.disk.is_dead() && self.rng.random_bool(0.7) {
                continue;
            }
            machine.lender = None;
            machine.disk = match self.rng.random_bool(0.5) {
                true => machine.disk.after_kill(),
                false => machine.disk.after_power_cut(self.rng.random()),
            };
            machine.lender = Some(open(&machine.disk, &self.clocks));
        }
    }

    /// One attempt of the owner, as its node makes it; broken off after some steps, as by a kill.
    async fn attempt(&mut self) -> Result<(), common::error::Error> {
        let killed = |world: &mut Self| world.rng.random_bool(0.1);
        if self.note.at == 0 {
            if !self.note.moving {
                self.note.moving = true;
            }
            if killed(self) {
                return Ok(());
            }
            let wanted = Borrow {
                id: self.place,
                kind: Kind::Mirror,
                bytes: 50 << 20,
                time: Duration::ZERO,
                label: String::new(),
            };
            let lender = self.machines[1].lender.clone().unwrap();
            let anna = who("anna");
            tokio::task::spawn_blocking(move || lender.borrow(&anna, &wanted)).await.unwrap()?;
            let (from, to) = (self.at(0).unwrap(), self.at(1).unwrap());
            let drained = drain(&from, &to).await?;
            assert_eq!((drained.generations, drained.damaged), (self.generations.clone(), Vec::<ObjectId>::new()));
            if killed(self) {
                return Ok(());
            }
            self.note = Note { at: 1, moving: false, left: true };
        }
        if self.note.left && !killed(self) {
            let (lender, id, anna) = (self.machines[0].lender.clone().unwrap(), self.place, who("anna"));
            let given = tokio::task::spawn_blocking(move || lender.give_back(&anna, id)).await.unwrap();
            match given {
                Err(e) if !e.is(Reason::SpaceExpired) && !e.is(Reason::SpaceUnknown) => return Err(e),
                _ => self.note.left = false,
            }
        }
        Ok(())
    }

    /// The place that counts has everything, readable with the key.
    async fn check(&self, seed: u64) {
        let place = Arc::new(self.at(self.note.at).unwrap());
        for generation in &self.generations {
            let reader = MirrorReader::open(self.key.clone(), place.clone(), Some(*generation), 0).await;
            let reader = reader.unwrap_or_else(|e| panic!("seed {seed}, {:?}: {e:?}", self.note));
            assert_eq!(reader.verify().await.unwrap().hit, Vec::<String>::new(), "seed {seed}, {:?}", self.note);
        }
    }
}

#[tokio::test]
async fn wherever_the_owner_says_that_the_copy_is_all_of_it_is() {
    let mut moved_after_faults = 0;
    for seed in 0..ROUNDS {
        let mut world = World::new(seed).await;
        let mut faults = 0;
        loop {
            if faults < FAULTS {
                world.disturb();
            }
            if world.attempt().await.is_err() {
                faults += 1;
            }
            world.restart();
            world.check(seed).await;
            let leaving = world.machines[0].lender.as_ref().unwrap().overview().unwrap().leaving;
            assert!(leaving, "seed {seed}: it forgot that it leaves");
            if world.note.at == 1 && !world.note.left {
                break;
            }
        }
        moved_after_faults += usize::from(faults > 0);
        let old = world.machines[0].lender.as_ref().unwrap();
        old.tick().unwrap();
        assert_eq!(old.places(None), [], "seed {seed}");
        assert!(world.machines[0].disk.files().keys().all(|f| !f.starts_with("m-")), "seed {seed}: not wiped");
    }
    assert!(moved_after_faults > ROUNDS as usize / 2, "only {moved_after_faults} were disturbed");
}
