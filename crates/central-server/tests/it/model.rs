//! Random work against the server and a small reference in memory: every answer and the whole tree agree, and everything
//! that must hold of the records does.
//!
//! [`one_after_the_other`] compares each step. [`side_by_side`] runs two people at once: every answer must be the one
//! that the reference gives at some moment between the call and its return, changes in the order of their commits.

mod reference;

use crate::desk::{self, Desk, path, send};
use crate::fixture::fresh;
use central_server::app::answers::Once;
use central_server::app::caller::Caller;
use central_server::app::commits::{Expected, FileCommit};
use central_server::app::moves::{self, Move};
use central_server::app::{App, copies, entries, locks, trash, versions};
use common::error::Error;
use common::model::{EntryPath, RootName, UploadId};
use proptest::prelude::*;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use proto::record::v1 as record;
use reference::{Done, Office, Op, Outcome, Target, Token, Who, content, few_places, op, places};
use std::time::Duration;
use tokio::runtime::Runtime;
use uuid::Uuid;

/// The server of one run.
struct Sut {
    runtime: Runtime,
    desk: Desk,
}

/// What is asked of the server.
struct Hand<'a> {
    app: &'a App,
    anna: &'a Caller,
    bert: &'a Caller,
}

impl Hand<'_> {
    fn caller(&self, who: Who) -> &Caller {
        match who {
            Who::Anna => self.anna,
            Who::Bert => self.bert,
        }
    }

    /// Ids of a root's trash in the order in which it was filled.
    fn trash(&self, who: Who, root: &RootName) -> Vec<Uuid> {
        let Ok((found, next)) = trash::list(self.app, self.caller(who), root, 1_000, "") else { return Vec::new() };
        assert_eq!(next, "");
        found.into_iter().rev().map(|d| d.id).collect()
    }

    /// Does what is asked, and says what came of it and in which commit, as far as the answer tells.
    async fn run(&self, op: &Op, token: u64) -> (Outcome, Option<u64>) {
        match self.ask(op, token).await {
            Ok((done, revision)) => (Ok(done), revision),
            Err(error) => (Err(error.reason().to_owned()), None),
        }
    }

    async fn ask(&self, op: &Op, token: u64) -> Result<(Done, Option<u64>), Error> {
        let app = self.app;
        let entry = |e: entries::Entry| {
            let revision = u64::from_str_radix(e.etag.split('-').next().unwrap(), 16).ok();
            let lock = e.lock.map(|l| (l.user, l.fencing_token));
            let done = Done::Entry { version: e.version, size: e.size_bytes, directory: e.directory, lock };
            (done, revision)
        };
        match op {
            Op::Mkdir { who, at, parents } => {
                let made = entries::make_directory(app, self.caller(*who), path(at), *parents, Once::always()).await?;
                Ok(entry(fresh(made)))
            }
            Op::Put { who, at, content: number, expected, parents, .. } => {
                let (who, upload) = (self.caller(*who), UploadId::generate());
                let chunks = send(app, who, upload, &content(*number));
                let expected = match expected {
                    None => Expected::Any,
                    Some(0) => Expected::Absent,
                    Some(n) => Expected::Version(*n),
                };
                let file =
                    FileCommit { make_parents: *parents, fencing_token: token, ..desk::order(at, chunks, expected) };
                desk::commit_one(app, who, upload, file).await.map(entry).map_err(|r| r.error)
            }
            Op::Move { who, from, to, overwrite } => {
                let order =
                    Move { source: path(from), destination: path(to), overwrite: *overwrite, etag: String::new() };
                Ok(entry(fresh(moves::move_entry(app, self.caller(*who), order, Once::always()).await?)))
            }
            Op::Copy { who, from, to } => {
                let copied = copies::copy(app, self.caller(*who), path(from), path(to), Once::always()).await?;
                let copied = fresh(copied);
                Ok((Done::Count(copied.entry_count), entry(copied.entry).1))
            }
            Op::Delete { who, at, recursive } => {
                let caller = self.caller(*who);
                let id = trash::delete(app, caller, path(at), *recursive, String::new(), Once::always()).await?;
                // The second half of a trash id is the commit.
                let revision = fresh(id).as_u64_pair().1 & ((1 << 62) - 1);
                Ok((Done::Deleted, Some(revision)))
            }
            Op::Restore { who, root, index, to } => {
                let root = RootName::parse(root).unwrap();
                let ids = self.trash(*who, &root);
                let id = ids.get(index % (ids.len() + 1)).copied().unwrap_or_else(Uuid::now_v7);
                let to: Option<EntryPath> = to.as_deref().map(path);
                Ok(entry(fresh(trash::restore(app, self.caller(*who), root, id, to, Once::always()).await?)))
            }
            Op::Purge { who, root, target } => {
                let root = RootName::parse(root).unwrap();
                let id = match target {
                    Target::All => None,
                    Target::Index(index) => {
                        let ids = self.trash(*who, &root);
                        Some(ids.get(index % (ids.len() + 1)).copied().unwrap_or_else(Uuid::now_v7))
                    }
                };
                Ok((Done::Count(trash::purge(app, self.caller(*who), root, id).await?), None))
            }
            Op::RestoreVersion { who, at, version } => {
                let restored = versions::restore(app, self.caller(*who), path(at), *version, Once::always()).await?;
                Ok(entry(fresh(restored)))
            }
            Op::Lock { who, at, seconds } => {
                let (life, note) = (Duration::from_secs(*seconds), String::new());
                Ok(entry(locks::lock(app, self.caller(*who), path(at), life, note).await?))
            }
            Op::Unlock { who, at, force } => Ok(entry(locks::unlock(app, self.caller(*who), path(at), *force).await?)),
            Op::Limit { root, bytes } => {
                desk::set_quota(app, root, *bytes).await;
                Ok((Done::Nothing, None))
            }
            Op::Wait { .. } => Ok((Done::Nothing, None)),
        }
    }
}

/// The whole tree, versions and trash of the server, as the reference writes its own.
fn picture(app: &App, runtime: &Runtime, reader: &Caller) -> Vec<String> {
    let mut out = Vec::new();
    for root in reference::ROOTS {
        let name = RootName::parse(root).unwrap();
        let mut waiting = vec![EntryPath { root: name.clone(), segments: Vec::new() }];
        while let Some(directory) = waiting.pop() {
            let mut token = String::new();
            loop {
                let page = runtime.block_on(entries::list(app, reader, &directory, 3, &token)).unwrap();
                for entry in page.entries {
                    let at = directory.child(common::model::EntryName::new(entry.display_name.clone()).unwrap());
                    if entry.directory {
                        out.push(format!("{root}:{}/", at.relative()));
                        waiting.push(at);
                        continue;
                    }
                    let (found, _) = versions::list(app, reader, &at, 1_000, "").unwrap();
                    let found: Vec<_> = found.iter().map(|v| (v.version, v.size_bytes)).collect();
                    let lock = entry.lock.map(|l| (l.user, l.fencing_token));
                    out.push(format!("{root}:{} {found:?} {lock:?}", at.relative()));
                    let data = desk::read(app, reader, &at.to_string(), 0);
                    assert!((0..reference::CONTENTS).any(|n| content(n) == data));
                }
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
        }
        let (found, _) = trash::list(app, reader, &name, 1_000, "").unwrap();
        for deleted in found.iter().rev() {
            out.push(format!("{root} trash {} {}", deleted.entry.path.relative(), deleted.entry.version));
        }
    }
    out.sort();
    out
}

/// The reference, one step at a time.
struct Sequence;

impl ReferenceStateMachine for Sequence {
    type State = Office;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Office> {
        Just(Office::new()).boxed()
    }

    fn transitions(office: &Office) -> BoxedStrategy<Op> {
        op(places(office.there())).boxed()
    }

    fn apply(mut state: Office, op: &Op) -> Office {
        state.last = state.step(op);
        state
    }
}

impl StateMachineTest for Sequence {
    type SystemUnderTest = Sut;
    type Reference = Sequence;

    fn init_test(_: &Office) -> Sut {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let desk = runtime.block_on(Desk::new());
        Sut { runtime, desk }
    }

    fn apply(sut: Sut, expected: &Office, op: Op) -> Sut {
        let hand = Hand { app: &sut.desk.app, anna: &sut.desk.anna, bert: &sut.desk.bert };
        if let Op::Wait { seconds } = &op {
            sut.desk.office.advance(*seconds);
        }
        let (outcome, _) = sut.runtime.block_on(hand.run(&op, expected.token));
        assert_eq!(outcome, expected.last, "{op:?}");
        for root in reference::ROOTS {
            assert_eq!(sut.desk.used(root), expected.used(root), "{root} after {op:?}");
        }
        sut
    }

    fn check_invariants(sut: &Sut, expected: &Office) {
        assert_eq!(picture(&sut.desk.app, &sut.runtime, &sut.desk.anna), expected.picture());
        sut.desk.check();
    }
}

/// PROPTEST_CASES says how many runs; 48 if it does not.
fn config() -> Config {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 48 };
    Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() }
}

prop_state_machine! {
    #![proptest_config(config())]
    #[test]
    fn one_after_the_other(sequential 1..60 => Sequence);
}

/// An answer, and the revisions between which it was made.
struct Heard {
    op: Op,
    outcome: Outcome,
    revision: Option<u64>,
    before: u64,
    after: u64,
}

async fn work(app: App, anna: Caller, bert: Caller, ops: Vec<Op>) -> Vec<Heard> {
    let hand = Hand { app: &app, anna: &anna, bert: &bert };
    let mut heard = Vec::new();
    for op in ops {
        let before = app.store.revision();
        let (outcome, revision) = hand.run(&op, 0).await;
        let after = app.store.revision();
        heard.push(Heard { op, outcome, revision, before, after });
        tokio::task::yield_now().await;
    }
    heard
}

fn concurrent_op() -> impl Strategy<Value = Op> {
    // Only work whose answer tells its commit.
    op(few_places()).prop_filter("tells no commit", |op| {
        matches!(
            op,
            Op::Mkdir { .. }
                | Op::Move { .. }
                | Op::Copy { .. }
                | Op::Delete { .. }
                | Op::Lock { .. }
                | Op::Unlock { .. }
                | Op::RestoreVersion { .. }
        ) || matches!(op, Op::Put { token: Token::None, .. })
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn side_by_side(
        first in proptest::collection::vec(concurrent_op(), 1..40),
        second in proptest::collection::vec(concurrent_op(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let desk = runtime.block_on(Desk::new());
        let start = desk.app.store.revision();
        let heard = runtime.block_on(async {
            let (app, anna, bert) = (desk.app.clone(), desk.anna.clone(), desk.bert.clone());
            let one = tokio::spawn(work(app.clone(), anna.clone(), bert.clone(), first));
            let two = tokio::spawn(work(app, anna, bert, second));
            let mut heard = one.await.unwrap();
            heard.extend(two.await.unwrap());
            heard
        });
        linearize(&desk, start, heard)?;
        desk.check();
    }
}

/// Whether a commit with these change records can be of this work.
fn fits(op: &Op, told: &[&record::Change]) -> bool {
    let kinds = |kinds: &[u32]| told.iter().all(|c| kinds.contains(&c.kind));
    match op {
        Op::Mkdir { at, .. } => {
            kinds(&[1]) && told.iter().all(|c| c.directory && path(at).relative().starts_with(&c.path))
        }
        Op::Copy { .. } => kinds(&[1]),
        Op::Move { .. } => told.iter().any(|c| c.kind == 3),
        Op::Delete { .. } => kinds(&[4]),
        Op::Lock { .. } | Op::Unlock { .. } => kinds(&[5]),
        _ => kinds(&[1, 2]),
    }
}

/// Replays the commits in their order and finds a moment for every answer.
fn linearize(desk: &Desk, start: u64, heard: Vec<Heard>) -> Result<(), TestCaseError> {
    let end = desk.app.store.revision();
    let mut commits: Vec<Vec<&Heard>> = (start..end).map(|_| Vec::new()).collect();
    let mut others = Vec::new();
    for answer in &heard {
        match answer.revision {
            // An answer that names an older commit changed nothing.
            Some(revision) if revision > answer.before => {
                prop_assert!(revision <= answer.after, "a commit after its answer");
                commits[(revision - start - 1) as usize].push(answer);
            }
            _ => others.push(answer),
        }
    }
    let log = desk::changes(&desk.app);
    let mut states = vec![Office::new()];
    for (at, answers) in commits.iter().enumerate() {
        // Of several answers that name a commit one has made it, and the others found it done: rather one that would be
        // answered otherwise a second time.
        let told: Vec<_> = log.iter().filter(|(r, _)| *r == start + 1 + at as u64).map(|(_, c)| c).collect();
        let mut made: Option<(Office, usize)> = None;
        for (index, answer) in answers.iter().enumerate() {
            let mut next = states[at].clone();
            let right = fits(&answer.op, &told) && next.step(&answer.op) == answer.outcome;
            let again = next.clone().step(&answer.op) == answer.outcome;
            if right && (made.is_none() || !again) {
                made = Some((next, index));
            }
        }
        if let Some((_, maker)) = &made {
            others.extend(answers.iter().enumerate().filter(|(i, _)| i != maker).map(|(_, a)| *a));
        }
        let Some((made, _)) = made else {
            let all: Vec<_> = answers.iter().map(|a| (&a.op, &a.outcome, states[at].clone().step(&a.op))).collect();
            let fail = format!(
                "nobody can have made commit {}: {all:#?} in {:#?}",
                start + 1 + at as u64,
                states[at].picture()
            );
            return Err(TestCaseError::fail(fail));
        };
        states.push(made);
    }
    // The others changed nothing.
    for answer in others {
        let moments = &states[(answer.before - start) as usize..=(answer.after - start) as usize];
        let fits = moments.iter().any(|state| {
            let mut then = state.clone();
            then.step(&answer.op) == answer.outcome && then.seen() == state.seen()
        });
        prop_assert!(fits, "no moment for {:?} with {:?}", answer.op, answer.outcome);
    }
    let last = states.last().expect("there is a first state");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    prop_assert_eq!(picture(&desk.app, &runtime, &desk.anna), last.picture());
    for root in reference::ROOTS {
        prop_assert_eq!(desk.used(root), last.used(root));
    }
    Ok(())
}
