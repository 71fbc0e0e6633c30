//! The audit log.

use crate::fixture::{PASSWORD, TestOffice, attempt, local, new_user};
use central_server::app::answers::Once;
use central_server::app::audit::{self, Query};
use central_server::app::{App, accounts, records, sessions};
use common::error::Reason;
use common::model::Role;
use std::collections::BTreeSet;

/// An office whose log has a few records of several kinds.
async fn office() -> TestOffice {
    let office = TestOffice::new();
    office.user("anna", Role::Member).await;
    office.user("ben", Role::Admin).await;
    office.login("anna").await;
    office.advance(5);
    office.try_login("anna", "wrong password").await.unwrap_err();
    accounts::delete(&office.app, &local(), "anna").await.unwrap();
    office
}

async fn put(app: &App, key: Vec<u8>, value: Option<Vec<u8>>) {
    let write = app.store.transact(move |txn| match &value {
        Some(value) => txn.put(key.clone(), value.clone()),
        None => txn.delete(&key),
    });
    write.await.unwrap();
}

fn first_bad(app: &App) -> Option<u64> {
    audit::verify(&app.store).unwrap().first_bad
}

#[tokio::test]
async fn changes_logins_and_refusals_are_in_it() {
    let office = office().await;
    let records = office.audit();
    let lines: Vec<(u64, &str, &str, &str, bool)> = records
        .iter()
        .map(|r| (r.sequence, r.actor.as_str(), r.action.as_str(), r.subject.as_str(), r.success))
        .collect();
    assert_eq!(
        lines,
        [
            (1, "local", "user.create", "user:anna", true),
            (2, "local", "user.create", "user:ben", true),
            (3, "user:anna", "login", "user:anna", true),
            (4, "anonymous", "login", "user:anna", false),
            (5, "local", "user.delete", "user:anna", true),
        ]
    );
    assert_eq!(records[3].time_ms, 1_700_000_005_000);
    let verified = audit::verify(&office.app.store).unwrap();
    assert_eq!((verified.record_count, verified.first_bad, verified.head), (5, None, records[4].hash));
    let text = format!("{records:?}");
    assert!(!text.contains(PASSWORD) && !text.contains("wrong password") && !text.contains("atr_"));
}

#[tokio::test]
async fn an_empty_log_is_whole() {
    let office = TestOffice::new();
    let verified = audit::verify(&office.app.store).unwrap();
    assert_eq!((verified.record_count, verified.first_bad, verified.head), (0, None, [0; 32]));
}

#[tokio::test]
async fn any_flipped_bit_shows() {
    let office = office().await;
    let app = &office.app;
    for (key, value) in records::under(&app.store, b"a/", 100).unwrap() {
        let sequence = u64::from_be_bytes(key[2..].try_into().unwrap());
        for bit in 0..value.len() * 8 {
            let mut changed = value.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            put(app, key.to_vec(), Some(changed)).await;
            assert_eq!(first_bad(app), Some(sequence), "bit {bit} of record {sequence}");
        }
        put(app, key.to_vec(), Some(value.to_vec())).await;
        assert_eq!(first_bad(app), None);
    }
    let head = app.store.get(records::AUDIT_HEAD).unwrap().unwrap();
    for bit in 0..head.len() * 8 {
        let mut changed = head.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        put(app, records::AUDIT_HEAD.to_vec(), Some(changed)).await;
        assert!(first_bad(app).is_some(), "bit {bit} of the head");
    }
}

#[tokio::test]
async fn any_missing_moved_or_added_record_shows() {
    let office = office().await;
    let app = &office.app;
    let all = records::under(&app.store, b"a/", 100).unwrap();
    for sequence in 1..=5u64 {
        let value = all[sequence as usize - 1].1.to_vec();
        put(app, records::audit_key(sequence), None).await;
        assert_eq!(first_bad(app), Some(sequence), "without record {sequence}");
        put(app, records::audit_key(sequence), Some(all[sequence as usize % 5].1.to_vec())).await;
        assert_eq!(first_bad(app), Some(sequence), "another in the place of {sequence}");
        put(app, records::audit_key(sequence), Some(value.clone())).await;
        for place in [0, 6, u64::MAX] {
            put(app, records::audit_key(place), Some(value.clone())).await;
            assert!(first_bad(app).is_some(), "a copy at {place}");
            put(app, records::audit_key(place), None).await;
        }
    }
    assert_eq!(first_bad(app), None);
    let head = app.store.get(records::AUDIT_HEAD).unwrap().unwrap();
    put(app, records::AUDIT_HEAD.to_vec(), None).await;
    assert_eq!(first_bad(app), Some(1), "without its head");
    put(app, records::AUDIT_HEAD.to_vec(), Some(head.to_vec())).await;
    // The whole tail with a head made to fit: only a head that was noted down elsewhere tells.
    let noted = audit::verify(&app.store).unwrap().head;
    put(app, records::audit_key(5), None).await;
    assert_eq!(first_bad(app), Some(5));
    assert_eq!(noted, office_head(&all[4].1));
}

fn office_head(value: &[u8]) -> [u8; 32] {
    value[value.len() - 32..].try_into().unwrap()
}

#[tokio::test]
async fn without_its_log_nothing_is_changed() {
    let office = office().await;
    let app = &office.app;
    put(app, records::AUDIT_HEAD.to_vec(), None).await;
    let made = accounts::create(app, &local(), new_user("clara", Role::Member, ""), Once::always()).await;
    assert!(made.unwrap_err().is(Reason::AuditFailed));
    assert!(accounts::get(app, &local(), "clara").unwrap_err().is(Reason::UserUnknown));
    assert!(app.store.get(&records::home_key("clara")).unwrap().is_none());
    let login = sessions::login(app, attempt("ben", PASSWORD, "192.0.2.1")).await;
    assert!(login.unwrap_err().is(Reason::AuditFailed));
    assert_eq!(records::under(&app.store, b"x/", 100).unwrap().len(), 0);
}

#[tokio::test]
async fn pages_and_filters_give_each_record_once() {
    let office = TestOffice::new();
    let app = &office.app;
    for n in 0..60 {
        let (actor, action) = (format!("user:u{}", n % 3), ["one", "two"][n % 2]);
        let write = app.store.transact(move |txn| audit::record(txn, 1, &actor, action, "s", true, ""));
        write.await.unwrap();
    }
    for (actor, action, expected) in
        [("", "", 60), ("user:u1", "", 20), ("", "two", 30), ("user:u1", "two", 10), ("x", "", 0)]
    {
        for newest_first in [false, true] {
            for page_size in [1, 3, 10, 59, 60, 61, 0] {
                let mut query = Query {
                    page_size,
                    actor: actor.to_owned(),
                    action: action.to_owned(),
                    newest_first,
                    ..Query::default()
                };
                let mut found = Vec::new();
                loop {
                    let page = audit::list(&app.store, &query).unwrap();
                    found.extend(page.records.iter().map(|r| r.sequence));
                    query.page_token = page.next_page_token;
                    if query.page_token.is_empty() {
                        break;
                    }
                }
                assert_eq!(found.len(), expected);
                assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), expected);
                assert!(found.is_sorted_by(|a, b| if newest_first { a > b } else { a < b }));
            }
        }
    }
    let token = audit::list(&app.store, &Query { page_size: 5, ..Query::default() }).unwrap().next_page_token;
    for query in
        [Query { actor: "user:u1".into(), ..Query::default() }, Query { newest_first: true, ..Query::default() }]
    {
        let error = audit::list(&app.store, &Query { page_token: token.clone(), ..query }).unwrap_err();
        assert!(error.is(Reason::PageTokenInvalid));
    }
}

#[tokio::test]
async fn a_rare_record_is_found_in_bounded_steps() {
    let office = TestOffice::new();
    let app = &office.app;
    for batch in 0..11 {
        let write = app.store.transact(move |txn| {
            (0..1000).try_for_each(|n| {
                let action = if batch == 10 && n == 500 { "rare" } else { "usual" };
                audit::record(txn, 1, "local", action, "s", true, "")
            })
        });
        write.await.unwrap();
    }
    let query = Query { action: "rare".into(), ..Query::default() };
    let page = audit::list(&app.store, &query).unwrap();
    assert!(page.records.is_empty() && !page.next_page_token.is_empty(), "10,000 were looked at");
    let page = audit::list(&app.store, &Query { page_token: page.next_page_token, ..query }).unwrap();
    assert_eq!((page.records.len(), page.next_page_token.as_str()), (1, ""));
    assert_eq!(audit::verify(&app.store).unwrap().record_count, 11_000);
}

#[tokio::test]
async fn a_flood_of_refusals_cannot_fill_the_disk() {
    let office = TestOffice::with(|s| s.sessions.address_attempts = 10_000);
    let app = &office.app;
    for n in 0..300 {
        sessions::login(app, attempt(&format!("u{n}"), "guess", "198.51.100.7")).await.unwrap_err();
    }
    assert_eq!(office.audit().len(), 20);
    office.try_login("anna", "guess").await.unwrap_err();
    assert_eq!(office.audit().len(), 21, "another source is still heard");
    audit::flush_refusals(app).await;
    assert_eq!(office.audit().len(), 21, "one summary a minute");
    office.advance(60);
    audit::flush_refusals(app).await;
    let records = office.audit();
    assert_eq!((records[21].action.as_str(), records[21].subject.as_str()), ("refusals.summary", "280 more refusals"));
    assert!(records[21].detail.contains("198.51.100.7 280"), "{}", records[21].detail);
    audit::flush_refusals(app).await;
    assert_eq!(office.audit().len(), 22);
    assert_eq!(first_bad(app), None);
}

#[tokio::test]
async fn texts_from_outside_are_cut_and_cleaned() {
    let office = TestOffice::new();
    let app = &office.app;
    let long = format!("a\n\u{1b}[31m{}", "ä".repeat(5000));
    let write = app.store.transact(move |txn| audit::record(txn, 1, &long, "x", &long, true, &long));
    write.await.unwrap();
    let line = &office.audit()[0];
    assert!(line.actor.starts_with("a\u{FFFD}\u{FFFD}[31mä") && line.actor.len() <= 260);
    assert!(line.detail.len() <= 1028 && line.detail.ends_with('…'));
    assert_eq!(first_bad(app), None);
}
