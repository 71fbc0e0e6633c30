//! Random operations on a store and on a sorted map must agree, on every engine.

use std::collections::BTreeMap;

use atrium_common::error::{Error, Reason, Result};
use atrium_common::store::{ChangeRecord, EngineKind, Store, Txn};
use bytes::Bytes;
use proptest::prelude::*;

use crate::store_conformance::Place;

/// What a range found.
type Found = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Clone, Debug)]
enum Op {
    Transact { writes: Vec<Step>, fails: bool, changes: Vec<u16> },
    Group(Vec<(Vec<Step>, bool)>),
    Reopen,
    Trim(u64),
    Move,
    Range { from: Vec<u8>, to: Vec<u8>, limit: usize },
}

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>, u16),
    Delete(Vec<u8>),
    Range { from: Vec<u8>, to: Vec<u8>, limit: usize, back: bool },
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Few distinct bytes, the extremes among them, so that keys meet and prefix each other.
    proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(b'a'), Just(b'b'), Just(254), Just(255)], 0..5)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (key(), 0_u16..3_000).prop_map(|(k, v)| Step::Put(k, v)),
        2 => key().prop_map(Step::Delete),
        2 => (key(), key(), 0_usize..9, any::<bool>())
            .prop_map(|(from, to, limit, back)| Step::Range { from, to, limit, back }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 0..12)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (steps(), proptest::bool::weighted(0.2), proptest::collection::vec(0_u16..9_000, 0..4))
            .prop_map(|(writes, fails, changes)| Op::Transact { writes, fails, changes }),
        3 => proptest::collection::vec((steps(), proptest::bool::weighted(0.3)), 1..6).prop_map(Op::Group),
        1 => Just(Op::Reopen),
        1 => (0_u64..60).prop_map(Op::Trim),
        1 => Just(Op::Move),
        6 => (key(), key(), 0_usize..9).prop_map(|(from, to, limit)| Op::Range { from, to, limit }),
    ]
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn model_range(model: &Model, from: &[u8], to: &[u8], limit: usize, back: bool) -> Found {
    let inside = |k: &Vec<u8>| k[..] >= *from && (to.is_empty() || k[..] < *to);
    let mut all: Vec<_> = model.iter().filter(|(k, _)| inside(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
    if back {
        all.reverse();
    }
    all.truncate(limit);
    all
}

fn plain(list: Vec<(Bytes, Bytes)>) -> Found {
    list.into_iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}

/// Runs the steps on the model, and gives back what each range must find.
fn on_model(model: &mut Model, steps: &[Step]) -> Vec<Found> {
    let mut found = Vec::new();
    for step in steps {
        match step {
            Step::Put(key, value) => drop(model.insert(key.clone(), vec![*value as u8; usize::from(*value)])),
            Step::Delete(key) => drop(model.remove(key)),
            Step::Range { from, to, limit, back } => found.push(model_range(model, from, to, *limit, *back)),
        }
    }
    found
}

fn on_store(txn: &mut Txn<'_>, steps: &[Step]) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for step in steps {
        match step {
            Step::Put(key, value) => {
                txn.put(key.clone(), vec![*value as u8; usize::from(*value)])?;
                assert_eq!(txn.get(key)?.unwrap().len(), usize::from(*value));
            }
            Step::Delete(key) => txn.delete(key)?,
            Step::Range { from, to, limit, back: false } => found.push(plain(txn.range(from, to, *limit)?)),
            Step::Range { from, to, limit, back: true } => found.push(plain(txn.range_back(from, to, *limit)?)),
        }
    }
    Ok(found)
}

fn writes_anything(steps: &[Step]) -> bool {
    steps.iter().any(|s| !matches!(s, Step::Range { .. }))
}

/// A store and what it must hold.
struct Pair {
    place: Place,
    store: Option<Store>,
    model: Model,
    log: Vec<ChangeRecord>,
    oldest: u64,
    runtime: tokio::runtime::Runtime,
}

impl Pair {
    fn new(kind: EngineKind) -> Self {
        let place = Place::new(kind);
        let store = Some(place.open());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { place, store, model: Model::new(), log: Vec::new(), oldest: 0, runtime }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn committed(&mut self, payloads: Vec<Bytes>) -> u64 {
        let revision = self.log.len() as u64 + 1;
        self.log.push(ChangeRecord { revision, payloads });
        revision
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Transact { writes, fails, changes } => {
                let payloads: Vec<_> = changes.iter().map(|&n| Bytes::from(vec![n as u8; usize::from(n)])).collect();
                let theirs = payloads.clone();
                let mut next = self.model.clone();
                let expected = on_model(&mut next, &writes);
                let wrote = writes_anything(&writes) || !changes.is_empty();
                let outcome = self.store().transact_blocking(move |txn| {
                    let found = on_store(txn, &writes)?;
                    assert_eq!(found, expected);
                    theirs.iter().for_each(|p| txn.change(p.clone()));
                    if fails { Err(Error::new(Reason::EtagStale, "as the test asked")) } else { Ok(()) }
                });
                if fails {
                    assert!(outcome.unwrap_err().is(Reason::EtagStale));
                } else {
                    let expected = if wrote { self.committed(payloads) } else { self.log.len() as u64 };
                    assert_eq!(outcome.unwrap().revision, expected);
                    self.model = next;
                }
            }
            Op::Group(members) => {
                let store = self.store().clone();
                let mut expected = Vec::new();
                let mut jobs = Vec::new();
                for (steps, fails) in members {
                    let mut next = self.model.clone();
                    let found = on_model(&mut next, &steps);
                    expected.push((found, fails));
                    if !fails {
                        self.model = next;
                        if writes_anything(&steps) {
                            self.committed(Vec::new());
                        }
                    }
                    let store = store.clone();
                    jobs.push(async move {
                        store
                            .transact(move |txn| {
                                let found = on_store(txn, &steps)?;
                                if fails { Err(Error::new(Reason::EtagStale, "as the test asked")) } else { Ok(found) }
                            })
                            .await
                    });
                }
                // Polled in order, so they stand in the queue in order.
                let outcomes = self.runtime.block_on(futures_util::future::join_all(jobs));
                for (outcome, (found, fails)) in outcomes.into_iter().zip(expected) {
                    assert_eq!(outcome.is_err(), fails);
                    if let Ok(done) = outcome {
                        assert_eq!(done.value, found);
                    }
                }
            }
            Op::Reopen if self.place.is_durable() => {
                self.store = None;
                self.store = Some(self.place.open());
            }
            Op::Reopen => {}
            Op::Trim(to) => {
                self.runtime.block_on(self.store().trim_changes(to)).unwrap();
                self.oldest = self.oldest.max(to.min(self.log.len() as u64));
            }
            Op::Move => {
                let mut copy = Vec::new();
                self.store().export(&mut copy).unwrap();
                self.store = None;
                self.place = Place::new(self.place.kind);
                self.store = Some(Store::import(&self.place.settings(), &mut &copy[..]).unwrap());
            }
            Op::Range { from, to, limit } => {
                assert_eq!(
                    plain(self.store().range(&from, &to, limit).unwrap()),
                    model_range(&self.model, &from, &to, limit, false)
                );
                assert_eq!(
                    plain(self.store().range_back(&from, &to, limit).unwrap()),
                    model_range(&self.model, &from, &to, limit, true)
                );
            }
        }
        assert_eq!(self.store().revision(), self.log.len() as u64);
    }

    fn compare(&self) {
        let store = self.store();
        assert_eq!(
            plain(store.range(b"", b"", 100_000).unwrap()),
            model_range(&self.model, b"", b"", usize::MAX, false)
        );
        assert_eq!(store.stats().records, self.model.len() as u64);
        assert_eq!(store.stats().record_bytes, self.model.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum::<u64>());
        assert_eq!(store.changes(self.oldest, 100_000).unwrap(), self.log[self.oldest as usize..]);
        assert_eq!(store.stats().oldest_cursor, self.oldest);
        assert!(store.verify().unwrap().is_sound());
    }
}

fn agrees_with_a_model(kind: EngineKind) {
    let cases = if kind == EngineKind::Memory { 96 } else { 24 };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ops in proptest::collection::vec(op(), 1..40))| {
        let mut pair = Pair::new(kind);
        for op in ops {
            pair.step(op);
        }
        pair.compare();
    });
}

#[test]
fn memory() {
    agrees_with_a_model(EngineKind::Memory);
}

#[test]
fn sled() {
    agrees_with_a_model(EngineKind::Sled);
}

#[test]
fn redb() {
    agrees_with_a_model(EngineKind::Redb);
}
