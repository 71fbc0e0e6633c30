//! Seeded simulation of copies: people edit, rename and delete; scans, reading and work happen in any order, between pairs
//! that can reach each other, with crashes between the steps of a change. In the end all copies are equal, nothing that a
//! person saved is lost unless he did away with it himself, and what was deleted stays so.
//!
//! The decisions are those of `decide` and `vector`, the order of the work that of `want`, the steps those of `place`; the
//! disk, the index and the others' indexes are plain maps.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::conflict;
use super::decide::{Action, Policy, Save, State, decide, stubborn};
use super::want::{Class, Want, Wants};
use crate::catalogue::entry::{Entry, EntryKind, is_below, join, split};
use crate::catalogue::{Relation, VersionVector};

/// What a person can have saved: a number, which is its content, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
enum Node {
    File { content: u32, mtime: i64 },
    Directory,
}

/// An index entry and what it was read from.
#[derive(Clone, PartialEq, Debug)]
struct Indexed {
    entry: Entry,
    node: Option<Node>,
}

#[derive(Default)]
struct Machine {
    id: u64,
    disk: BTreeMap<String, Node>,
    index: BTreeMap<String, Indexed>,
    log: BTreeMap<u64, String>,
    sequence: u64,
    trash: BTreeSet<u32>,
    /// In the order of the work.
    wants: BTreeMap<(Class, i32, String, usize), Entry>,
    read: BTreeMap<usize, u64>,
}

struct World {
    seed: u64,
    rng: StdRng,
    machines: Vec<Machine>,
    contents: u32,
    now: i64,
    /// Contents that must still be somewhere.
    precious: BTreeSet<u32>,
    /// Places where a person deleted a content, and places where one put it.
    deleted: HashSet<(String, u32)>,
    placed: BTreeMap<(String, u32), u32>,
    conflicts: usize,
    crashes: usize,
}

const NAMES: [&str; 3] = ["a", "b", "c.txt"];

fn depth(path: &str) -> i32 {
    path.split('/').count() as i32
}

fn digest(content: u32) -> [u8; 32] {
    *blake3::hash(&content.to_le_bytes()).as_bytes()
}

impl Machine {
    fn put(&mut self, mut entry: Entry, node: Option<Node>) {
        if let Some(old) = self.index.get(&entry.path) {
            self.log.remove(&old.entry.sequence);
        }
        self.sequence += 1;
        entry.sequence = self.sequence;
        self.log.insert(self.sequence, entry.path.clone());
        self.index.insert(entry.path.clone(), Indexed { entry, node });
    }

    fn entry(&self, path: &str) -> Option<&Entry> {
        self.index.get(path).map(|i| &i.entry)
    }

    /// As the scanner does.
    fn scan(&mut self, path: &str) {
        let known = self.index.get(path).cloned();
        let version = known.as_ref().map_or_else(VersionVector::default, |k| k.entry.version.clone()).bumped(self.id);
        let base = Entry {
            path: path.to_owned(),
            kind: EntryKind::File,
            size_bytes: 0,
            modify_time_ns: 0,
            mode: 0o644,
            chunks: [].into(),
            chunk_count: 0,
            digest: [0; 32],
            sequence: 0,
            deleted: false,
            version,
            modified_by: self.id,
        };
        match self.disk.get(path).copied() {
            Some(Node::File { content, mtime }) => {
                let same = known.as_ref().is_some_and(|k| k.node == self.disk.get(path).copied() && k.entry.is_file());
                if !same {
                    let file = Entry { digest: digest(content), modify_time_ns: mtime, ..base };
                    self.put(file, Some(Node::File { content, mtime }));
                }
            }
            Some(Node::Directory) => {
                if !known.is_some_and(|k| k.entry.is_directory()) {
                    self.put(Entry { kind: EntryKind::Directory, ..base }, Some(Node::Directory));
                }
            }
            None => {
                if let Some(old) = known.filter(|k| !k.entry.deleted) {
                    let gone = Entry { deleted: true, digest: [0; 32], version: base.version, ..old.entry };
                    self.put(Entry { modified_by: self.id, ..gone }, None);
                }
            }
        }
    }

    fn scan_all(&mut self) {
        let paths: BTreeSet<String> = self.disk.keys().chain(self.index.keys()).cloned().collect();
        paths.iter().for_each(|path| self.scan(path));
    }

    fn state(&self, path: &str) -> State {
        let known = self.index.get(path).filter(|k| !k.entry.deleted);
        match (known, self.disk.get(path)) {
            (None, None) => State::AsIndexed,
            (Some(k), Some(Node::Directory)) if k.entry.is_directory() => State::AsIndexed,
            (Some(k), Some(node)) if k.entry.is_file() && k.node.as_ref() == Some(node) => State::AsIndexed,
            _ => State::Changed,
        }
    }

    /// All directories above are there, or can be made.
    fn has_way(&self, path: &str) -> bool {
        path.match_indices('/').all(|(at, _)| !matches!(self.disk.get(&path[..at]), Some(Node::File { .. })))
    }

    fn make_way(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.disk.entry(path[..at].to_owned()).or_insert(Node::Directory);
        }
    }

    fn inside(&self, path: &str) -> Vec<String> {
        self.disk.keys().filter(|p| *p != path && is_below(p, path)).cloned().collect()
    }

    fn key(entry: &Entry, device: usize) -> (Class, i32, String, usize) {
        let class = Class::of(entry);
        let depth = if class == Class::Deletion { -depth(&entry.path) } else { depth(&entry.path) };
        (class, depth, entry.path.clone(), device)
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(2..=5);
        let machines = (0..count).map(|i| Machine { id: i as u64 + 1, ..Machine::default() }).collect();
        Self {
            seed,
            rng,
            machines,
            contents: 0,
            now: 1_000_000_000,
            precious: BTreeSet::new(),
            deleted: HashSet::new(),
            placed: BTreeMap::new(),
            conflicts: 0,
            crashes: 0,
        }
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.rng.random_range(0..from.len())].clone())
    }

    fn path(&mut self) -> String {
        let levels = self.rng.random_range(1..=3);
        (0..levels).map(|_| NAMES[self.rng.random_range(0..NAMES.len())]).collect::<Vec<_>>().join("/")
    }

    fn files(&self, at: usize) -> Vec<String> {
        let disk = &self.machines[at].disk;
        disk.iter().filter(|(_, n)| **n != Node::Directory).map(|(p, _)| p.clone()).collect()
    }

    /// A person replaces or removes what he sees.
    fn give_up(&mut self, at: usize, path: &str) {
        if let Some(Node::File { content, .. }) = self.machines[at].disk.remove(path) {
            self.precious.remove(&content);
            self.deleted.insert((path.to_owned(), content));
        }
    }

    fn save(&mut self, at: usize, path: &str, content: u32, mtime: i64) {
        self.machines[at].make_way(path);
        self.machines[at].disk.insert(path.to_owned(), Node::File { content, mtime });
        *self.placed.entry((path.to_owned(), content)).or_default() += 1;
    }

    fn person(&mut self) {
        let at = self.rng.random_range(0..self.machines.len());
        self.now += self.rng.random_range(0..3) * 1_000_000_000;
        match self.rng.random_range(0..10) {
            0..=4 => {
                // Save a new content under a new or a known name.
                let files = self.files(at);
                let known = if self.rng.random_bool(0.5) { self.pick(&files) } else { None };
                let path = match known {
                    Some(path) => path,
                    None => self.path(),
                };
                let machine = &self.machines[at];
                if machine.disk.get(&path) == Some(&Node::Directory) || !machine.has_way(&path) {
                    return;
                }
                self.give_up(at, &path);
                self.contents += 1;
                let (content, mtime) = (self.contents, self.now);
                self.precious.insert(content);
                self.save(at, &path, content, mtime);
            }
            5..=6 => {
                let files = self.files(at);
                if let Some(path) = self.pick(&files) {
                    self.give_up(at, &path);
                }
            }
            7 => {
                // Remove something with all that is in it.
                let all: Vec<String> = self.machines[at].disk.keys().cloned().collect();
                if let Some(path) = self.pick(&all) {
                    for inside in self.machines[at].inside(&path) {
                        self.give_up(at, &inside);
                    }
                    self.give_up(at, &path);
                    self.machines[at].disk.retain(|p, _| !is_below(p, &path));
                }
            }
            8 => {
                let path = self.path();
                let machine = &mut self.machines[at];
                if !machine.disk.contains_key(&path) && machine.has_way(&path) {
                    machine.make_way(&path);
                    machine.disk.insert(path, Node::Directory);
                }
            }
            _ => self.rename(at),
        }
    }

    fn rename(&mut self, at: usize) {
        let all: Vec<String> = self.machines[at].disk.keys().cloned().collect();
        let Some(from) = self.pick(&all) else { return };
        let to = self.path();
        let machine = &self.machines[at];
        if machine.disk.contains_key(&to) || !machine.has_way(&to) || is_below(&to, &from) {
            return;
        }
        let moved: Vec<(String, Node)> =
            machine.disk.iter().filter(|(p, _)| is_below(p, &from)).map(|(p, n)| (p.clone(), *n)).collect();
        for (path, node) in moved {
            let new = format!("{to}{}", &path[from.len()..]);
            self.machines[at].disk.remove(&path);
            match node {
                Node::File { content, mtime } => {
                    self.deleted.insert((path, content));
                    self.save(at, &new, content, mtime);
                }
                Node::Directory => {
                    self.machines[at].make_way(&new);
                    self.machines[at].disk.insert(new, Node::Directory);
                }
            }
        }
    }

    /// Machine `at` reads a part of what is new at another one.
    fn read(&mut self, at: usize, from: usize, limit: usize) {
        let after = self.machines[at].read.get(&from).copied().unwrap_or(0);
        let page: Vec<Entry> = {
            let other = &self.machines[from];
            other.log.range(after + 1..).take(limit).map(|(_, path)| other.index[path].entry.clone()).collect()
        };
        let machine = &mut self.machines[at];
        for entry in page {
            machine.read.insert(from, entry.sequence);
            machine.wants.retain(|key, _| key.2 != entry.path || key.3 != from);
            let action = decide(machine.id, Policy::TwoWay, machine.entry(&entry.path), &entry, State::AsIndexed);
            if action != Action::Nothing {
                machine.wants.insert(Machine::key(&entry, from), entry);
            }
        }
    }

    fn crashes(&mut self, chance: f64) -> bool {
        let crash = chance > 0.0 && self.rng.random_bool(chance);
        self.crashes += usize::from(crash);
        crash
    }

    /// Machine `at` does a part of what it wants, in order. `chance` of a crash before each step. True if anything changed.
    fn work(&mut self, at: usize, limit: usize, chance: f64) -> bool {
        let keys: Vec<_> = self.machines[at].wants.keys().cloned().collect();
        let mut progress = false;
        for key in keys.into_iter().take(limit) {
            let Some(remote) = self.machines[at].wants.get(&key).cloned() else { continue };
            match self.act(at, &remote, key.3, chance) {
                Some(true) => {
                    self.machines[at].wants.remove(&key);
                    progress = true;
                }
                Some(false) => {}
                None => return true,
            }
        }
        progress
    }

    /// The content of a version, if any machine has it: what is fetched is named by its digest.
    fn fetch(&self, entry: &Entry) -> Option<u32> {
        let nodes = self.machines.iter().flat_map(|m| m.disk.values());
        nodes
            .filter_map(|n| match n {
                Node::File { content, .. } => Some(*content),
                Node::Directory => None,
            })
            .find(|content| digest(*content) == entry.digest)
    }

    /// `Some(true)`: done; `Some(false)`: not now; `None`: the machine crashed.
    fn act(&mut self, at: usize, remote: &Entry, from: usize, chance: f64) -> Option<bool> {
        let path = remote.path.clone();
        let me = self.machines[at].id;
        let stored = self.machines[at].index.get(&path).cloned();
        let local = stored.as_ref().map(|s| &s.entry);
        let state = self.machines[at].state(&path);
        let action = decide(me, Policy::TwoWay, local, remote, state);
        if self.crashes(chance) {
            return None;
        }
        match action {
            Action::Nothing => Some(true),
            Action::Wait => {
                if self.rng.random_bool(0.5) {
                    self.machines[at].scan(&path);
                }
                Some(false)
            }
            Action::Note(entry) => {
                let node = self.machines[at].disk.get(&path).copied();
                self.machines[at].put(*entry, node);
                Some(true)
            }
            Action::Touch(entry) => {
                let Some(Node::File { content, .. }) = self.machines[at].disk.get(&path).copied() else {
                    return Some(false);
                };
                let node = Node::File { content, mtime: entry.modify_time_ns };
                self.machines[at].disk.insert(path.clone(), node);
                if self.crashes(chance) {
                    self.cut_off(path, content);
                    return None;
                }
                self.machines[at].put(*entry, Some(node));
                Some(true)
            }
            Action::Install(entry, save) => {
                if !self.machines[at].has_way(&path) {
                    return Some(false);
                }
                let Some(content) = self.fetch(&entry) else { return Some(false) };
                self.machines[at].make_way(&path);
                self.keep(at, &path, save);
                if save == Save::Conflict {
                    // That it has won is a new event: whoever deletes it elsewhere at that time does not know of it.
                    self.cut_off(path.clone(), content);
                }
                if self.crashes(chance) {
                    return None;
                }
                self.place(at, *entry, content, chance)
            }
            Action::Remove(entry) => {
                self.keep(at, &path, Save::Trash);
                self.machines[at].disk.remove(&path);
                if self.crashes(chance) {
                    return None;
                }
                self.machines[at].put(*entry, None);
                Some(true)
            }
            Action::MakeDirectory(entry, save) => {
                if !self.machines[at].has_way(&path) {
                    return Some(false);
                }
                self.keep(at, &path, save);
                self.machines[at].disk.remove(&path);
                if self.crashes(chance) {
                    return None;
                }
                self.machines[at].make_way(&path);
                self.machines[at].disk.insert(path, Node::Directory);
                if self.crashes(chance) {
                    return None;
                }
                self.machines[at].put(*entry, Some(Node::Directory));
                Some(true)
            }
            Action::RemoveDirectory(entry) => {
                if !self.machines[at].inside(&path).is_empty() {
                    return Some(self.not_empty(at, remote, from));
                }
                self.machines[at].disk.remove(&path);
                if self.crashes(chance) {
                    return None;
                }
                self.machines[at].put(*entry, None);
                Some(true)
            }
            Action::ReplaceDirectory(entry) => {
                let Some(content) = self.fetch(&entry) else { return Some(false) };
                if !self.machines[at].inside(&path).is_empty() {
                    return Some(self.not_empty(at, remote, from));
                }
                self.machines[at].disk.remove(&path);
                if self.crashes(chance) {
                    return None;
                }
                self.place(at, *entry, content, chance)
            }
            Action::Blocked(why) => panic!("seed {}: blocked {why:?}", self.seed),
        }
    }

    fn place(&mut self, at: usize, entry: Entry, content: u32, chance: f64) -> Option<bool> {
        let node = Node::File { content, mtime: entry.modify_time_ns };
        self.machines[at].disk.insert(entry.path.clone(), node);
        if self.crashes(chance) {
            self.cut_off(entry.path, content);
            return None;
        }
        self.machines[at].put(entry, Some(node));
        Some(true)
    }

    /// What was put in place and not noted counts as saved here: if someone deletes it elsewhere at that time, it comes back.
    fn cut_off(&mut self, path: String, content: u32) {
        *self.placed.entry((path, content)).or_insert(1) += 1;
    }

    fn keep(&mut self, at: usize, path: &str, save: Save) {
        let machine = &mut self.machines[at];
        let Some(Node::File { content, mtime }) = machine.disk.get(path).copied() else { return };
        if save != Save::Conflict {
            machine.trash.insert(content);
            return;
        }
        self.conflicts += 1;
        let by = machine.entry(path).map_or(0, |e| e.modified_by);
        let (directory, name) = split(path);
        for number in 1.. {
            let kept = join(directory, &conflict::name_for(name, &format!("m{by}"), mtime, number));
            match machine.disk.get(&kept) {
                Some(Node::File { content: there, .. }) if *there == content => return,
                Some(_) => {}
                None => {
                    machine.disk.insert(kept.clone(), Node::File { content, mtime });
                    // Each machine that has the losing version makes the copy, whether another one's was deleted or not.
                    *self.placed.entry((kept, content)).or_default() += 1;
                    return;
                }
            }
        }
    }

    /// As `Copy::not_empty`.
    fn not_empty(&mut self, at: usize, remote: &Entry, from: usize) -> bool {
        let machine = &self.machines[at];
        let direct = machine.inside(&remote.path).into_iter().filter(|p| split(p).0 == remote.path);
        let mut known = None;
        for inside in direct {
            match machine.entry(&inside) {
                Some(entry) if !entry.deleted => known = Some(inside),
                _ => {
                    self.machines[at].scan(&inside);
                    return false;
                }
            }
        }
        let Some(inside) = known else { return false };
        let going = machine.wants.keys().any(|key| key.0 == Class::Deletion && key.2 == inside);
        if going || machine.read.get(&from).copied().unwrap_or(0) < self.machines[from].sequence {
            return false;
        }
        let local = machine.entry(&remote.path).expect("a directory that is to go is known");
        let stays = stubborn(machine.id, Policy::TwoWay, local, remote).expect("vectors are short here");
        self.machines[at].put(stays, Some(Node::Directory));
        true
    }

    fn step(&mut self) {
        let at = self.rng.random_range(0..self.machines.len());
        match self.rng.random_range(0..10) {
            0..=2 => self.person(),
            3..=4 => {
                let mut paths: Vec<String> =
                    self.machines[at].disk.keys().chain(self.machines[at].index.keys()).cloned().collect();
                paths.retain(|_| self.rng.random_bool(0.4));
                paths.iter().for_each(|path| self.machines[at].scan(path));
            }
            5..=7 => {
                let from = self.rng.random_range(0..self.machines.len());
                // Two halves of the network for a part of the time.
                let apart = (self.now / 20_000_000_000) % 2 == 0 && (at % 2) != (from % 2);
                if from != at && !apart {
                    let limit = self.rng.random_range(1..6);
                    self.read(at, from, limit);
                }
            }
            _ => {
                let limit = self.rng.random_range(1..8);
                self.work(at, limit, 0.05);
            }
        }
    }

    /// Everyone reaches everyone, nobody changes anything any more.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 400, "seed {}: the copies do not come to rest:\n{}", self.seed, self.show());
            let before: Vec<u64> = self.machines.iter().map(|m| m.sequence).collect();
            for at in 0..self.machines.len() {
                self.machines[at].scan_all();
                for from in (0..self.machines.len()).filter(|f| *f != at) {
                    self.read(at, from, usize::MAX);
                }
                for _ in 0..20 {
                    if !self.work(at, usize::MAX, 0.0) {
                        break;
                    }
                }
            }
            let after: Vec<u64> = self.machines.iter().map(|m| m.sequence).collect();
            if before == after && self.machines.iter().all(|m| m.wants.is_empty()) {
                return;
            }
        }
    }

    fn show(&self) -> String {
        let show = |m: &Machine| {
            let wants: Vec<String> = m
                .wants
                .iter()
                .map(|(k, e)| {
                    format!(
                        "   {k:?} {:?} here {:?} {:?}",
                        e.version,
                        m.entry(&k.2).map(|l| &l.version),
                        m.disk.get(&k.2)
                    )
                })
                .collect();
            format!("machine {}: {:?}\n{}\n", m.id, m.disk, wants.join("\n"))
        };
        self.machines.iter().map(show).collect()
    }

    fn check(&self) {
        let seed = self.seed;
        let first = &self.machines[0];
        for other in &self.machines[1..] {
            assert_eq!(first.disk, other.disk, "seed {seed}: the folders differ\n{}", self.show());
            let versions = |m: &Machine| -> BTreeMap<String, (VersionVector, bool)> {
                m.index.iter().map(|(p, i)| (p.clone(), (i.entry.version.clone(), i.entry.deleted))).collect()
            };
            assert_eq!(versions(first), versions(other), "seed {seed}: the indexes differ");
        }
        let there: BTreeSet<u32> = self
            .machines
            .iter()
            .flat_map(|m| {
                let files = m.disk.values().filter_map(|n| match n {
                    Node::File { content, .. } => Some(*content),
                    Node::Directory => None,
                });
                files.chain(m.trash.iter().copied()).collect::<Vec<_>>()
            })
            .collect();
        let lost: Vec<&u32> = self.precious.difference(&there).collect();
        assert!(lost.is_empty(), "seed {seed}: contents {lost:?} are lost\n{}", self.show());
        for (path, node) in &first.disk {
            if let Node::File { content, .. } = node {
                let key = (path.clone(), *content);
                let back = self.deleted.contains(&key) && self.placed.get(&key).copied().unwrap_or(0) <= 1;
                assert!(!back, "seed {seed}: {path} with {content} was deleted and is back\n{}", self.show());
            }
        }
    }
}

/// Runs a seed. Gives back how many conflicts and crashes there were.
fn run(seed: u64) -> (usize, usize) {
    let mut world = World::new(seed);
    let steps = world.rng.random_range(20..400);
    for _ in 0..steps {
        world.step();
    }
    world.settle();
    world.check();
    (world.conflicts, world.crashes)
}

#[test]
fn copies_become_equal_and_nothing_is_lost() {
    let (mut conflicts, mut crashes) = (0, 0);
    for seed in 0..500 {
        let (c, k) = run(seed);
        conflicts += c;
        crashes += k;
    }
    assert!(conflicts > 300 && crashes > 300, "the simulation hardly tested anything: {conflicts} {crashes}");
}

#[test]
fn who_was_away_for_long_brings_nothing_back() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..60 {
            world.step();
        }
        world.settle();
        // The last one is away while the others delete everything.
        let away = world.machines.pop().unwrap();
        let last = world.machines.len();
        for path in world.files(0) {
            world.give_up(0, &path);
        }
        world.machines[0].disk.clear();
        world.machines.iter_mut().for_each(|m| m.read.retain(|from, _| *from != last));
        if world.machines.len() > 1 {
            world.settle();
        } else {
            world.machines[0].scan_all();
        }
        world.machines.push(away);
        world.settle();
        assert!(world.machines.iter().all(|m| m.disk.is_empty()), "seed {seed}:\n{}", world.show());
    }
}

/// A relation is what it says from both sides; the tables of `decide` build on that.
#[test]
fn of_two_versions_at_most_one_side_acts_on_contents() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut entry = |kind: u8| {
        let counts = (1..=3).filter_map(|d| Some((d, rng.random_range(0..3))).filter(|c| c.1 > 0)).collect::<Vec<_>>();
        let version = VersionVector::new(if counts.is_empty() { vec![(1, 1)] } else { counts })?;
        let (deleted, directory) = (kind == 0, kind == 1);
        let content = rng.random_range(0..3);
        Some(Entry {
            path: "a".into(),
            kind: if directory { EntryKind::Directory } else { EntryKind::File },
            size_bytes: 0,
            modify_time_ns: rng.random_range(0..3),
            mode: 0o644,
            chunks: [].into(),
            chunk_count: 0,
            digest: if deleted || directory { [0; 32] } else { digest(content) },
            sequence: 1,
            deleted,
            version,
            modified_by: rng.random_range(1..4),
        })
    };
    for round in 0..20_000_u32 {
        let (a, b) = (entry((round % 4) as u8).unwrap(), entry((round / 4 % 4) as u8).unwrap());
        let moves = |me, local: &Entry, remote: &Entry| {
            let action = decide(me, Policy::TwoWay, Some(local), remote, State::AsIndexed);
            !matches!(action, Action::Nothing | Action::Note(_) | Action::Touch(_))
        };
        let (left, right) = (moves(1, &a, &b), moves(2, &b, &a));
        assert!(!(left && right), "both act:\n{a:?}\n{b:?}");
        let differ = !super::vector::same_thing(&a, &b);
        assert!(left || right || !differ, "nobody acts:\n{a:?}\n{b:?}");
        let mirrored = match a.version.relation(&b.version) {
            Relation::Newer => Relation::Older,
            Relation::Older => Relation::Newer,
            same => same,
        };
        assert_eq!(b.version.relation(&a.version), mirrored);
    }
}

/// The real order of the work is the one that the simulation has.
#[test]
fn wants_come_in_the_order_of_the_simulation() {
    let wants = Wants::new(common::store::Store::memory(), crate::model::ShareId::generate());
    let mut machine = Machine { id: 1, ..Machine::default() };
    let mut entries = Vec::new();
    for (path, deleted) in [("a", true), ("a/b", true), ("c", false), ("c/d", false), ("c/d/e", true)] {
        machine.disk.insert(path.to_owned(), Node::Directory);
        machine.scan(path);
        if deleted {
            machine.disk.remove(path);
            machine.scan(path);
        }
        entries.push(machine.index[path].entry.clone());
    }
    let simulated: BTreeMap<_, _> = entries.iter().map(|e| (Machine::key(e, 0), e.path.clone())).collect();
    let page = entries.into_iter().map(|entry| super::want::Read { entry, wanted: true, known: false }).collect();
    wants.note_page(&common::model::DeviceId([1; 32]), super::want::Position::default(), page).unwrap();
    let real: Vec<String> = wants.page(&[], 100).unwrap().into_iter().map(|w: Want| w.entry.path).collect();
    assert_eq!(real, simulated.into_values().collect::<Vec<_>>());
}
