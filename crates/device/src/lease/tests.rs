//! Leases step by step.

use super::*;
use crate::audit::{self, Audit, Outcome};
use common::clock::ManualClock;
use common::error::{Reason, Result};
use common::store::Store;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Instant;

struct Turned(Mutex<Instant>);

impl Turned {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Instant::now())))
    }
    fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl Monotonic for Turned {
    fn now(&self) -> Instant {
        *self.0.lock()
    }
}

fn who(name: &str) -> Caller {
    Caller { person: name.to_owned(), machine: format!("{name}-pc"), device: format!("{name}-device") }
}

fn granted(standing: Standing) -> Grant {
    match standing {
        Standing::Granted(grant) => grant,
        waiting @ Standing::Waiting { .. } => panic!("{waiting:?}"),
    }
}

const DVD: &str = "drives/dvd";

async fn leases(clock: &Arc<Turned>, tokens: &MemoryTokens) -> Leases {
    let leases = Leases::new(Arc::new(tokens.clone()), clock.clone(), Rules::default(), None);
    leases.open(DVD).await.unwrap();
    leases
}

fn refused<T: std::fmt::Debug>(result: Result<T>, reason: Reason) {
    let error = result.unwrap_err();
    assert!(error.is(reason), "{error:?}");
}

#[tokio::test]
async fn one_alone_or_many_together() {
    let (clock, tokens) = (Turned::new(), MemoryTokens::default());
    let leases = leases(&clock, &tokens).await;
    let ask = Ask::new(Mode::Shared, false, "reads");
    let a = granted(leases.ask(DVD, &who("anna"), ask.clone()).await.unwrap());
    let again = granted(leases.ask(DVD, &who("anna"), ask.clone()).await.unwrap());
    assert_eq!(a.token, again.token, "asking again after a lost answer gives the same");
    refused(leases.ask(DVD, &who("eve"), ask).await, Reason::FieldInvalid);
    let b = granted(leases.ask(DVD, &who("bert"), Ask::new(Mode::Shared, false, "")).await.unwrap());
    assert!(b.token > a.token);
    let error = leases.ask(DVD, &who("carl"), Ask::new(Mode::Exclusive, false, "rip")).await.unwrap_err();
    assert!(error.is(Reason::ResourceBusy) && error.detail("holder") == Some("anna"), "{error:?}");
    let rip = Ask::new(Mode::Exclusive, true, "rip");
    let waiting = leases.ask(DVD, &who("carl"), rip.clone()).await.unwrap();
    assert!(matches!(waiting, Standing::Waiting { place: 1, .. }), "{waiting:?}");
    // Nobody overtakes who waits to be alone.
    refused(leases.ask(DVD, &who("dora"), Ask::new(Mode::Shared, false, "")).await, Reason::ResourceBusy);
    refused(leases.check(DVD, &who("anna"), a.token, Mode::Exclusive), Reason::ResourceBusy);
    leases.check(DVD, &who("anna"), a.token, Mode::Shared).unwrap();
    assert!(leases.release(DVD, &who("anna"), a.id).unwrap());
    assert!(!leases.release(DVD, &who("anna"), a.id).unwrap(), "a repeat is harmless");
    assert!(!leases.release(DVD, &who("eve"), b.id).unwrap(), "nobody gives back what is another's");
    assert!(leases.release(DVD, &who("bert"), b.id).unwrap());
    let c = granted(leases.renew(DVD, &who("carl"), rip.id).unwrap());
    leases.check(DVD, &who("carl"), c.token, Mode::Exclusive).unwrap();
    refused(leases.check(DVD, &who("eve"), c.token, Mode::Exclusive), Reason::LeaseLost);
    refused(leases.check(DVD, &who("anna"), a.token, Mode::Shared), Reason::LeaseLost);
    refused(leases.check(DVD, &who("carl"), Token(c.token.0 + 1), Mode::Shared), Reason::LeaseUnknown);
    refused(leases.check(DVD, &who("carl"), Token(0), Mode::Shared), Reason::LeaseUnknown);
    refused(leases.check("drives/other", &who("carl"), c.token, Mode::Shared), Reason::ResourceUnknown);
}

#[tokio::test]
async fn silence_ends_a_lease_and_a_frozen_holder_is_refused() {
    let (clock, tokens) = (Turned::new(), MemoryTokens::default());
    let leases = leases(&clock, &tokens).await;
    let sent = clock.now();
    let a = granted(leases.ask(DVD, &who("anna"), Ask::new(Mode::Exclusive, false, "")).await.unwrap());
    let held = Held::new(a.clone(), sent);
    let wish = Ask::new(Mode::Exclusive, true, "");
    leases.ask(DVD, &who("bert"), wish.clone()).await.unwrap();
    clock.advance(Duration::from_secs(28));
    assert!(!held.is_usable(clock.now()), "the holder stops by itself before the owner gives the device away");
    leases.check(DVD, &who("anna"), a.token, Mode::Exclusive).unwrap();
    assert!(matches!(leases.renew(DVD, &who("bert"), wish.id), Ok(Standing::Waiting { .. })));
    clock.advance(Duration::from_secs(2));
    refused(leases.check(DVD, &who("anna"), a.token, Mode::Exclusive), Reason::LeaseLost);
    let b = granted(leases.renew(DVD, &who("bert"), wish.id).unwrap());
    assert!(b.token > a.token);
    let error = leases.renew(DVD, &who("anna"), a.id).unwrap_err();
    assert!(error.is(Reason::LeaseLost) && error.why().contains("nothing was heard"), "{error:?} {}", error.why());
    // Who waits and says nothing loses the place too.
    let silent = Ask::new(Mode::Exclusive, true, "");
    leases.ask(DVD, &who("carl"), silent.clone()).await.unwrap();
    clock.advance(Duration::from_secs(20));
    leases.renew(DVD, &who("bert"), b.id).unwrap();
    clock.advance(Duration::from_secs(10));
    leases.tick().await;
    assert_eq!(leases.overview(DVD).unwrap().queue, []);
    refused(leases.renew(DVD, &who("carl"), silent.id), Reason::LeaseLost);
}

#[tokio::test]
async fn a_restart_of_the_owner_refuses_all_old_tokens_and_goes_on_counting() {
    let (clock, tokens) = (Turned::new(), MemoryTokens::default());
    let before = leases(&clock, &tokens).await;
    let a = granted(before.ask(DVD, &who("anna"), Ask::new(Mode::Exclusive, false, "")).await.unwrap());
    drop(before);
    let after = leases(&clock, &tokens).await;
    refused(after.check(DVD, &who("anna"), a.token, Mode::Exclusive), Reason::LeaseLost);
    refused(after.renew(DVD, &who("anna"), a.id), Reason::LeaseLost);
    let b = granted(after.ask(DVD, &who("bert"), Ask::new(Mode::Exclusive, false, "")).await.unwrap());
    assert!(b.token > a.token);
    refused(after.check(DVD, &who("anna"), a.token, Mode::Exclusive), Reason::LeaseLost);
}

#[tokio::test]
async fn tokens_are_counted_in_the_store_by_device() {
    let store = Store::memory();
    let tokens = || StoreTokens::new(store.clone(), b"d/t/");
    assert_eq!(tokens().reserve("a", 10).await.unwrap(), (1, 10));
    assert_eq!(tokens().reserve("a", 0).await.unwrap(), (11, 11));
    assert_eq!(tokens().reserve("b", 2).await.unwrap(), (1, 2));
    assert_eq!(tokens().reserve("a", 5).await.unwrap(), (12, 16));
    store.transact(|txn| txn.put(b"d/t/a".to_vec(), b"xx".to_vec())).await.unwrap();
    refused(tokens().reserve("a", 1).await, Reason::StoreCorrupt);
    store.transact(|txn| txn.put(b"d/t/a".to_vec(), u64::MAX.to_le_bytes().to_vec())).await.unwrap();
    refused(tokens().reserve("a", 1).await, Reason::Internal);
}

#[tokio::test]
async fn thousands_of_leases_never_wait_for_tokens_that_did_not_come() {
    let (clock, tokens) = (Turned::new(), MemoryTokens::default());
    let leases = leases(&clock, &tokens).await;
    let mut last = Token(0);
    for _ in 0..1_000 {
        let grant = granted(leases.ask(DVD, &who("anna"), Ask::new(Mode::Exclusive, false, "")).await.unwrap());
        assert!(grant.token > last);
        last = grant.token;
        leases.release(DVD, &who("anna"), grant.id).unwrap();
    }
}

#[tokio::test]
async fn a_running_operation_holds_the_next_one_off() {
    let (clock, tokens) = (Turned::new(), MemoryTokens::default());
    let leases = leases(&clock, &tokens).await;
    let a = granted(leases.ask(DVD, &who("anna"), Ask::new(Mode::Exclusive, false, "")).await.unwrap());
    let operation = leases.begin(DVD, &who("anna"), a.token, Mode::Exclusive).unwrap();
    let wish = Ask::new(Mode::Exclusive, true, "");
    leases.ask(DVD, &who("bert"), wish.clone()).await.unwrap();
    assert_eq!(leases.take_back(DVD, &who("olaf"), Some(a.id), "needed\nnow").unwrap(), 1);
    refused(leases.begin(DVD, &who("anna"), a.token, Mode::Exclusive).map(drop), Reason::LeaseLost);
    assert!(matches!(leases.renew(DVD, &who("bert"), wish.id).unwrap(), Standing::Waiting { place: 1, .. }));
    assert!(leases.overview(DVD).unwrap().held[0].finishing);
    let error = leases.renew(DVD, &who("anna"), a.id).unwrap_err();
    assert_eq!(error.why(), "olaf has taken it back: needed\u{FFFD}now");
    drop(operation);
    granted(leases.renew(DVD, &who("bert"), wish.id).unwrap());
    refused(leases.take_back(DVD, &who("olaf"), Some(a.id), ""), Reason::LeaseUnknown);
    // A place in the queue as well, and that one only.
    let (first, second) = (Ask::new(Mode::Exclusive, true, ""), Ask::new(Mode::Exclusive, true, ""));
    leases.ask(DVD, &who("carl"), first.clone()).await.unwrap();
    leases.ask(DVD, &who("dora"), second.clone()).await.unwrap();
    assert_eq!(leases.take_back(DVD, &who("olaf"), Some(first.id), "not now").unwrap(), 1);
    assert_eq!(leases.renew(DVD, &who("carl"), first.id).unwrap_err().why(), "olaf has taken it back: not now");
    assert!(matches!(leases.renew(DVD, &who("dora"), second.id).unwrap(), Standing::Waiting { place: 1, .. }));
    assert!(leases.release(DVD, &who("dora"), second.id).unwrap());
    // A device that is closed in the middle of an operation comes back only after it.
    let operation = {
        let held = leases.overview(DVD).unwrap().held[0].clone();
        let grant = granted(leases.renew(DVD, &who("bert"), held.id).unwrap());
        leases.begin(DVD, &who("bert"), grant.token, Mode::Exclusive).unwrap()
    };
    leases.close(DVD);
    refused(leases.ask(DVD, &who("anna"), Ask::new(Mode::Shared, true, "")).await, Reason::ResourceUnknown);
    refused(leases.open(DVD).await, Reason::ResourceBusy);
    drop(operation);
    leases.open(DVD).await.unwrap();
    granted(leases.ask(DVD, &who("anna"), Ask::new(Mode::Exclusive, false, "")).await.unwrap());
}

#[tokio::test]
async fn who_waits_is_woken_and_who_goes_leaves_no_trace() {
    let (clock, tokens) = (Turned::new(), MemoryTokens::default());
    let leases = leases(&clock, &tokens).await;
    let a = granted(leases.ask(DVD, &who("anna"), Ask::new(Mode::Exclusive, false, "")).await.unwrap());
    let long = Duration::from_secs(3600);
    let theirs = leases.clone();
    let bert =
        tokio::spawn(async move { theirs.acquire(DVD, &who("bert"), Ask::new(Mode::Exclusive, true, ""), long).await });
    let mut changed = leases.watch(DVD).unwrap();
    while leases.overview(DVD).unwrap().queue.is_empty() {
        changed.changed().await.unwrap();
    }
    {
        let (carl, ask) = (who("carl"), Ask::new(Mode::Exclusive, true, ""));
        let gone = leases.acquire(DVD, &carl, ask, long);
        tokio::pin!(gone);
        assert!(futures_util::FutureExt::now_or_never(gone.as_mut()).is_none());
        assert_eq!(leases.overview(DVD).unwrap().queue.len(), 2);
    }
    assert_eq!(leases.overview(DVD).unwrap().queue.len(), 1, "a dropped wish leaves the queue");
    let error =
        leases.acquire(DVD, &who("dora"), Ask::new(Mode::Exclusive, true, ""), Duration::ZERO).await.unwrap_err();
    assert!(error.is(Reason::ResourceBusy), "{error:?}");
    leases.release(DVD, &who("anna"), a.id).unwrap();
    let grant = bert.await.unwrap().unwrap();
    leases.check(DVD, &who("bert"), grant.token, Mode::Exclusive).unwrap();
    assert_eq!(leases.overview(DVD).unwrap().queue, []);
}

#[tokio::test]
async fn notes_reach_the_holder_bounded_and_end_with_the_lease() {
    let (clock, tokens) = (Turned::new(), MemoryTokens::default());
    let leases = leases(&clock, &tokens).await;
    assert_eq!(leases.request(DVD, &who("bert"), "may I?").unwrap(), 0, "it is free: just use it");
    let a = granted(leases.ask(DVD, &who("anna"), Ask::new(Mode::Exclusive, false, "")).await.unwrap());
    assert_eq!(leases.request(DVD, &who("bert"), &"may I?\u{7}".repeat(1_000)).unwrap(), 1);
    refused(leases.request(DVD, &who("bert"), "now?"), Reason::Overloaded);
    let notes = leases.overview(DVD).unwrap().notes;
    assert!(notes[0].text.len() <= Rules::default().text_bytes && notes[0].text.ends_with('…'));
    assert!(!notes[0].text.chars().any(char::is_control));
    clock.advance(Duration::from_secs(10));
    assert_eq!(leases.request(DVD, &who("bert"), "now?").unwrap(), 1);
    assert_eq!(leases.overview(DVD).unwrap().notes.len(), 1, "the new one is in place of the old");
    for n in 0..100 {
        leases.request(DVD, &who(&format!("p{n}")), "me too").unwrap();
    }
    assert_eq!(leases.overview(DVD).unwrap().notes.len(), Rules::default().notes);
    leases.release(DVD, &who("anna"), a.id).unwrap();
    assert_eq!(leases.overview(DVD).unwrap().notes, []);
}

#[tokio::test]
async fn the_queue_is_bounded_and_a_turn_ends() {
    let (clock, tokens) = (Turned::new(), MemoryTokens::default());
    let leases = leases(&clock, &tokens).await;
    let a = granted(leases.ask(DVD, &who("anna"), Ask::new(Mode::Exclusive, false, "")).await.unwrap());
    let rules = Rules::default();
    for n in 0..rules.per_machine {
        let asked = leases.ask(DVD, &who("eve"), Ask::new(Mode::Exclusive, true, format!("{n}"))).await;
        assert!(matches!(asked, Ok(Standing::Waiting { .. })));
    }
    refused(leases.ask(DVD, &who("eve"), Ask::new(Mode::Exclusive, true, "")).await, Reason::LeaseQueueFull);
    for n in rules.per_machine..rules.waiters {
        leases.ask(DVD, &who(&format!("p{n}")), Ask::new(Mode::Exclusive, true, "")).await.unwrap();
    }
    refused(leases.ask(DVD, &who("late"), Ask::new(Mode::Exclusive, true, "")).await, Reason::LeaseQueueFull);
    // The holder renews for ever; its turn ends all the same, because others wait.
    let first = leases.overview(DVD).unwrap().queue[0].id;
    let rounds = rules.turn.as_secs() / 10;
    for _ in 0..rounds {
        assert!(granted(leases.renew(DVD, &who("anna"), a.id).unwrap()).wanted);
        leases.renew(DVD, &who("eve"), first).unwrap();
        clock.advance(Duration::from_secs(10));
    }
    assert!(granted(leases.renew(DVD, &who("anna"), a.id).unwrap()).ttl <= Duration::from_secs(20));
    for _ in 0..2 {
        leases.renew(DVD, &who("eve"), first).unwrap();
        clock.advance(Duration::from_secs(10));
    }
    granted(leases.renew(DVD, &who("eve"), first).unwrap());
    refused(leases.renew(DVD, &who("anna"), a.id), Reason::LeaseLost);
}

#[tokio::test]
async fn grants_and_refusals_are_in_the_audit() {
    let (clock, tokens) = (Turned::new(), MemoryTokens::default());
    let time = Arc::new(ManualClock::new(1_000));
    let audit = Audit::open(Store::memory(), b"d/a/", time, audit::Settings::default()).unwrap();
    let leases = Leases::new(Arc::new(tokens), clock.clone(), Rules::default(), Some(audit.clone()));
    leases.open(DVD).await.unwrap();
    let a = granted(leases.ask(DVD, &who("anna"), Ask::new(Mode::Exclusive, false, "rip")).await.unwrap());
    leases.ask(DVD, &who("bert"), Ask::new(Mode::Exclusive, false, "")).await.unwrap_err();
    leases.take_back(DVD, &who("olaf"), None, "needed").unwrap();
    leases.check(DVD, &who("anna"), a.token, Mode::Exclusive).unwrap_err();
    audit.flush().await.unwrap();
    let page = audit.list(&audit::Query::default()).unwrap();
    let lines: Vec<_> =
        page.records.iter().map(|r| (r.who.person.as_str(), r.verb.as_str(), r.outcome, r.reason.as_str())).collect();
    assert_eq!(
        lines,
        [
            ("anna", "use", Outcome::Granted, ""),
            ("bert", "use", Outcome::Refused, "RESOURCE_BUSY"),
            ("anna", "use", Outcome::Ended, "taken-back"),
            ("olaf", "take-back", Outcome::Granted, ""),
            ("anna", "check", Outcome::Refused, "LEASE_LOST"),
        ]
    );
    assert_eq!(audit.verify().unwrap().first_bad, None);
}
