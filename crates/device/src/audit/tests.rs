use super::chain::{head_key, record_key};
use super::*;
use common::clock::ManualClock;
use common::store::prefix_end;
use proptest::prelude::*;

const PREFIX: &[u8] = b"d/a/";

fn who(name: &str) -> Caller {
    Caller { person: name.to_owned(), machine: format!("{name}-pc"), device: format!("{name}-device") }
}

fn open(store: &Store, clock: &Arc<ManualClock>, keep: u64) -> Audit {
    let settings = Settings { records_max: keep, ..Settings::default() };
    Audit::open(store.clone(), PREFIX, clock.clone(), settings).unwrap()
}

fn grant(n: usize) -> Line {
    Line::granted(&who(&format!("p{n}")), "drives/dvd", "use").with_detail(format!("number {n}"))
}

async fn filled(count: usize, keep: u64) -> (Store, Audit) {
    let (store, clock) = (Store::memory(), Arc::new(ManualClock::new(5)));
    let audit = open(&store, &clock, keep);
    for n in 0..count {
        audit.write(grant(n)).await.unwrap();
    }
    (store, audit)
}

#[tokio::test]
async fn what_was_noted_is_listed_in_order_also_after_opening_again() {
    let (store, audit) = filled(250, 1_000).await;
    drop(audit);
    let audit = open(&store, &Arc::new(ManualClock::new(9)), 1_000);
    audit.write(Line::refused(&who("eve"), "disks/big", "borrow", &failed())).await.unwrap();
    for newest_first in [false, true] {
        let (mut query, mut seen) = (Query { page_size: 60, newest_first, ..Query::default() }, Vec::new());
        loop {
            let page = audit.list(&query).unwrap();
            assert!(page.records.len() <= 60);
            seen.extend(page.records.iter().map(|r| r.sequence));
            query.page_token = page.next_page_token;
            if query.page_token.is_empty() {
                break;
            }
        }
        if newest_first {
            seen.reverse();
        }
        assert_eq!(seen, (1..=251).collect::<Vec<u64>>());
    }
    let eves = audit.list(&Query { person: "eve".to_owned(), ..Query::default() }).unwrap();
    assert_eq!(eves.records.len(), 1);
    assert_eq!((eves.records[0].reason.as_str(), eves.records[0].time_ms), ("AUDIT_FAILED", 9));
    let big = audit.list(&Query { resource: "disks/big".to_owned(), newest_first: true, ..Query::default() });
    assert_eq!(big.unwrap().records, eves.records);
    for token in ["x", "b5", "f", "f-1", "f99999999999999999999"] {
        let bad = audit.list(&Query { page_token: token.to_owned(), ..Query::default() });
        assert!(bad.unwrap_err().is(Reason::PageTokenInvalid), "{token}");
    }
    let verified = audit.verify().unwrap();
    assert_eq!((verified.records, verified.first, verified.first_bad), (251, 1, None));
}

#[tokio::test]
async fn rotation_bounds_the_log_and_keeps_the_chain() {
    let (store, audit) = filled(500, 100).await;
    let verified = audit.verify().unwrap();
    assert_eq!(verified.first_bad, None);
    assert!((90..=112).contains(&verified.records) && verified.first > 380, "{verified:?}");
    let rotations = audit.list(&Query { page_size: 1_000, ..Query::default() }).unwrap().records;
    assert!(rotations.iter().any(|r| r.verb == "audit.rotate"));
    // Removing the beginning by hand, as a rotation would, is noticed: the chain does not tell of it.
    let oldest = store.get(&record_key(PREFIX, verified.first)).unwrap().unwrap();
    let hash = chain::decode(&oldest).unwrap().hash;
    let mut head = store.get(&head_key(PREFIX)).unwrap().unwrap().to_vec();
    head[1..9].copy_from_slice(&(verified.first + 1).to_le_bytes());
    head[9..41].copy_from_slice(&hash);
    store
        .transact(move |txn| {
            txn.delete(record_key(PREFIX, verified.first))?;
            txn.put(head_key(PREFIX), head.clone())
        })
        .await
        .unwrap();
    assert_eq!(audit.verify().unwrap().first_bad, Some(verified.first + 1));
}

#[tokio::test]
async fn a_flood_of_refusals_is_counted_and_grants_are_not_lost_in_it() {
    let (store, clock) = (Store::memory(), Arc::new(ManualClock::new(1_000)));
    let audit = open(&store, &clock, 100_000);
    for n in 0..100_000 {
        audit.note(Line::refused(&who(&format!("eve{}", n % 9_000)), "x", "use", &failed()));
    }
    assert!(audit.admit().is_ok(), "a flood of refusals keeps nobody from a grant");
    audit.write(grant(1)).await.unwrap();
    let sizes = audit.0.state.lock().flood.sizes();
    assert!(sizes.0 <= 4096 && sizes.1 <= 256, "{sizes:?}");
    let records = audit.list(&Query { page_size: 1_000, ..Query::default() }).unwrap().records;
    assert_eq!(records.len(), 201);
    clock.advance(Duration::from_secs(61));
    audit.flush().await.unwrap();
    let last = audit.list(&Query { newest_first: true, page_size: 1, ..Query::default() }).unwrap().records;
    assert_eq!((last[0].verb.as_str(), last[0].count), ("refusals.summary", 99_800));
    // Grants beyond what waits are refused before they are given.
    let mut noted = 0;
    while audit.admit().is_ok() {
        audit.note(grant(noted));
        noted += 1;
    }
    assert_eq!(noted, 3072);
    assert!(audit.admit().unwrap_err().is(Reason::Overloaded));
    audit.flush().await.unwrap();
    audit.admit().unwrap();
    assert_eq!(audit.verify().unwrap().first_bad, None);
}

#[tokio::test]
async fn many_writers_share_transactions() {
    let (store, clock) = (Store::memory(), Arc::new(ManualClock::new(1)));
    let audit = open(&store, &clock, 100_000);
    let before = store.stats().commits;
    let writers = (0..400).map(|n| {
        let audit = audit.clone();
        tokio::spawn(async move { audit.write(grant(n)).await })
    });
    for writer in futures_util::future::join_all(writers).await {
        writer.unwrap().unwrap();
    }
    assert_eq!(audit.verify().unwrap().records, 400);
    assert!(store.stats().commits - before < 100, "{}", store.stats().commits - before);
}

#[tokio::test]
async fn running_writes_what_was_noted_and_ends_with_everything_on_disk() {
    let (store, clock) = (Store::memory(), Arc::new(ManualClock::new(1)));
    let audit = open(&store, &clock, 1_000);
    let stop = CancellationToken::new();
    let running = tokio::spawn(audit.clone().run(stop.clone()));
    let mut revision = store.subscribe();
    audit.note(grant(1));
    revision.changed().await.unwrap();
    (2..50).for_each(|n| audit.note(grant(n)));
    stop.cancel();
    running.await.unwrap();
    assert_eq!(audit.verify().unwrap().records, 49);
}

#[tokio::test]
async fn a_store_that_fails_stops_grants() {
    let (store, clock) = (Store::memory(), Arc::new(ManualClock::new(1)));
    let audit = open(&store, &clock, 1_000);
    store.close().await;
    assert!(audit.write(grant(1)).await.unwrap_err().is(Reason::AuditFailed));
    assert!(audit.is_failed() && audit.admit().unwrap_err().is(Reason::AuditFailed));
}

#[test]
fn texts_from_outside_are_cut_and_cleaned() {
    assert_eq!(clean("a\nb\u{7f}", 100), "a\u{FFFD}b\u{FFFD}");
    for max in 3..40 {
        let text = clean("äöüß€日本語".repeat(9).as_str(), max);
        assert!(text.len() <= max && text.ends_with('…'), "{max}: {text}");
    }
    assert_eq!(clean("abc", 3), "abc");
}

/// What somebody with the database could do to the log.
#[derive(Clone, Debug)]
enum Harm {
    Flip(u64, prop::sample::Index),
    Remove(u64),
    Exchange(u64, u64),
    Copy(u64, u64),
    CutTail(u64),
    FlipHead(prop::sample::Index),
    RemoveHead,
    Beyond(u64),
}

fn harm() -> impl Strategy<Value = Harm> {
    let n = 1..=30u64;
    prop_oneof![
        (n.clone(), any::<prop::sample::Index>()).prop_map(|(n, at)| Harm::Flip(n, at)),
        n.clone().prop_map(Harm::Remove),
        (n.clone(), n.clone()).prop_map(|(a, b)| Harm::Exchange(a, b)),
        (n.clone(), n.clone()).prop_map(|(a, b)| Harm::Copy(a, b)),
        n.clone().prop_map(Harm::CutTail),
        any::<prop::sample::Index>().prop_map(Harm::FlipHead),
        Just(Harm::RemoveHead),
        n.prop_map(Harm::Beyond),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_is_done_to_the_log_is_found(harm in harm()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (store, audit) = filled(30, 1_000).await;
            let before: Vec<_> = store.range(PREFIX, &prefix_end(PREFIX), 1_000).unwrap();
            let get = |n| store.get(&record_key(PREFIX, n)).unwrap().unwrap().to_vec();
            let mut writes: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
            match &harm {
                Harm::Flip(n, at) => {
                    let mut stored = get(*n);
                    let at = at.index(stored.len());
                    stored[at] ^= 1;
                    writes.push((record_key(PREFIX, *n), Some(stored)));
                }
                Harm::Remove(n) => writes.push((record_key(PREFIX, *n), None)),
                Harm::Exchange(a, b) => {
                    writes.push((record_key(PREFIX, *a), Some(get(*b))));
                    writes.push((record_key(PREFIX, *b), Some(get(*a))));
                }
                Harm::Copy(a, b) => writes.push((record_key(PREFIX, *a), Some(get(*b)))),
                Harm::CutTail(n) => writes.extend((*n..=30).map(|n| (record_key(PREFIX, n), None))),
                Harm::FlipHead(at) => {
                    let mut head = store.get(&head_key(PREFIX)).unwrap().unwrap().to_vec();
                    let at = at.index(head.len());
                    head[at] ^= 1;
                    writes.push((head_key(PREFIX), Some(head)));
                }
                Harm::RemoveHead => writes.push((head_key(PREFIX), None)),
                Harm::Beyond(n) => writes.push((record_key(PREFIX, 30 + n), Some(get(*n)))),
            }
            store
                .transact(move |txn| {
                    writes.iter().try_for_each(|(key, value)| match value {
                        Some(value) => txn.put(key.clone(), value.clone()),
                        None => txn.delete(key),
                    })
                })
                .await
                .unwrap();
            let changed = store.range(PREFIX, &prefix_end(PREFIX), 1_000).unwrap() != before;
            let verified = audit.verify().unwrap();
            assert_eq!(verified.first_bad.is_some(), changed, "{harm:?} {verified:?}");
        });
    }
}
