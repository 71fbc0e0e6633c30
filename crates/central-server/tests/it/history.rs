//! What stays of files that are changed or deleted: trash, versions, retention, reclaiming; and locks.

use crate::desk::{Desk, commit_one, copy, delete, is, order, path, refused, rename, restarted, restore, send};
use crate::fixture::fresh;
use central_server::app::answers::Once;
use central_server::app::commits::{Expected, FileCommit};
use central_server::app::moves::Move;
use central_server::app::{
    commits, directories, entries, locks, moves, reclaim, references, retention, trash, versions,
};
use common::error::Reason;
use common::model::{ChunkId, RootName, UploadId};
use common::settings::HumanDuration;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use uuid::Uuid;

#[tokio::test]
async fn trash_goes_back_where_it_was_or_elsewhere_or_for_good() {
    let desk = Desk::new().await;
    desk.dir("home:a").await;
    desk.file("home:a/b", b"first").await;
    desk.file("home:a/b", b"second").await;
    let file = delete(&desk, "home:a/b", false).await.unwrap();
    delete(&desk, "home:a", false).await.unwrap();
    is(restore(&desk, "home", file, Some("home:x/y")).await, Reason::EntryUnknown);
    is(restore(&desk, "home", file, Some("home:")).await, Reason::RootFixed);
    is(restore(&desk, "home", Uuid::now_v7(), None).await, Reason::TrashUnknown);
    is(restore(&desk, "public/plans", file, None).await, Reason::TrashUnknown);
    restore(&desk, "home", file, None).await.unwrap();
    assert_eq!((desk.read("home:a/b", 0), desk.read("home:a/b", 1)), (b"second".to_vec(), b"first".to_vec()));
    let file = delete(&desk, "home:a/b", false).await.unwrap();
    desk.file("home:a/b", b"in the way").await;
    is(restore(&desk, "home", file, None).await, Reason::EntryExists);
    is(restore(&desk, "home", file, Some("home:a/B")).await, Reason::NameClash);
    desk.check();

    let page = |token: &str| trash::list(&desk.app, &desk.anna, &RootName::OwnHome, 1, token).unwrap();
    let (first, token) = page("");
    assert_eq!(first[0].id, file, "newest first");
    let (second, end) = page(&token);
    assert_eq!((second.len(), &second[0].entry.path.to_string()[..], &end[..]), (1, "home:a", ""));

    is(trash::purge(&desk.app, &desk.anna, RootName::OwnHome, Some(Uuid::now_v7())).await, Reason::TrashUnknown);
    assert_eq!(trash::purge(&desk.app, &desk.anna, RootName::OwnHome, Some(file)).await.unwrap(), 1);
    assert_eq!(desk.used("home/anna"), (10, 3));
    assert_eq!(trash::purge(&desk.app, &desk.anna, RootName::OwnHome, None).await.unwrap(), 1);
    assert_eq!(trash::purge(&desk.app, &desk.anna, RootName::OwnHome, None).await.unwrap(), 0);
    assert_eq!(desk.used("home/anna"), (10, 2));
    desk.check();
}

#[tokio::test]
async fn a_large_purge_goes_on_in_the_background_and_survives_a_restart() {
    let desk = Desk::new().await;
    let upload = UploadId::generate();
    for part in 0..6 {
        let name = |n: usize| format!("home:d/{part}/{n}");
        let one = |n| FileCommit { make_parents: true, ..order(&name(n), vec![], Expected::Any) };
        let files: Vec<_> = (0..1_000).map(|n| Ok(one(n))).collect();
        commits::commit(&desk.app, &desk.anna, upload, files).await.unwrap();
    }
    delete(&desk, "home:d", true).await.unwrap();
    assert_eq!(trash::purge(&desk.app, &desk.anna, RootName::OwnHome, None).await.unwrap(), 1);
    let (_, left) = desk.used("home/anna");
    assert!(left > 0 && left < 6_007, "{left}");
    desk.check();
    let app = restarted(&desk);
    while retention::purge_step(&app).await.unwrap() {}
    assert_eq!(desk.used("home/anna"), (0, 0));
    desk.check();
}

#[tokio::test]
async fn old_versions_are_listed_restored_and_bounded() {
    let desk = Desk::with(|s| s.files.version_max = 3).await;
    for n in 1..=6u8 {
        desk.office.advance(60);
        desk.file("home:a", &[n; 10]).await;
    }
    let (all, _) = versions::list(&desk.app, &desk.anna, &path("home:a"), 0, "").unwrap();
    let numbers: Vec<(u64, bool)> = all.iter().map(|v| (v.version, v.current)).collect();
    assert_eq!(numbers, [(6, true), (5, false), (4, false), (3, false)]);
    assert_eq!(desk.used("home/anna"), (40, 1));
    let (two, token) = versions::list(&desk.app, &desk.anna, &path("home:a"), 2, "").unwrap();
    assert_eq!(two.iter().map(|v| v.version).collect::<Vec<_>>(), [6, 5]);
    let (rest, end) = versions::list(&desk.app, &desk.anna, &path("home:a"), 2, &token).unwrap();
    assert_eq!((rest.iter().map(|v| v.version).collect::<Vec<_>>(), &end[..]), (vec![4, 3], ""));

    let restore = |version| versions::restore(&desk.app, &desk.anna, path("home:a"), version, Once::always());
    is(restore(1).await, Reason::VersionUnknown);
    is(restore(0).await, Reason::VersionUnknown);
    let back = fresh(restore(4).await.unwrap());
    assert_eq!((back.version, desk.read("home:a", 0)), (7, vec![4; 10]));
    assert_eq!(fresh(restore(7).await.unwrap()), back, "the present one changes nothing");
    desk.check();
    desk.limit("home/anna", 45).await;
    assert_eq!(fresh(restore(5).await.unwrap()).version, 8, "the oldest makes room");
    desk.limit("home/anna", 39).await;
    desk.dir("home:d").await;
    refused(desk.put(&desk.anna, "home:b", b"1").await, Reason::QuotaExceeded);
    desk.check();
}

#[tokio::test]
async fn retention_drops_what_is_old_and_keeps_what_is_new() {
    let desk = Desk::with(|s| {
        s.files.version_keep = HumanDuration::days(30);
        s.files.trash_keep = HumanDuration::days(10);
    })
    .await;
    let day = 86_400;
    for n in 0..30u8 {
        desk.file("public:plans/a", &[n; 10]).await;
        desk.office.advance(day);
    }
    desk.file("public:plans/b", b"bb").await;
    desk.file("home:c", b"ccc").await;
    delete(&desk, "public:plans/b", false).await.unwrap();
    desk.office.advance(9 * day);
    delete(&desk, "home:c", false).await.unwrap();
    let pass = async || while retention::step(&desk.app).await.unwrap() {};
    pass().await;
    // Day 39: versions replaced on day 8 or before are older than 30 days, and beyond the newest 20.
    let (all, _) = versions::list(&desk.app, &desk.anna, &path("public:plans/a"), 0, "").unwrap();
    assert_eq!(all.last().unwrap().version, 9);
    assert_eq!(desk.used("public/plans"), (22 * 10 + 2, 2));
    desk.check();
    desk.office.advance(2 * day);
    pass().await;
    assert_eq!(trash::list(&desk.app, &desk.anna, &RootName::OwnHome, 0, "").unwrap().0.len(), 1);
    let plans = RootName::parse("public/plans").unwrap();
    assert_eq!(trash::list(&desk.app, &desk.anna, &plans, 0, "").unwrap().0.len(), 0, "eleven days old");
    desk.office.advance(1_000 * day);
    pass().await;
    let (all, _) = versions::list(&desk.app, &desk.anna, &path("public:plans/a"), 0, "").unwrap();
    assert_eq!(all.len(), retention::KEEP_NEWEST + 1);
    assert_eq!((desk.used("home/anna"), desk.used("public/plans")), ((0, 0), (210, 1)));
    desk.check();
}

#[tokio::test]
async fn a_locked_file_is_its_holders_until_the_lock_ends() {
    let desk = Desk::new().await;
    desk.file("public:plans/a", b"1").await;
    let at = || path("public:plans/a");
    let lock = |who, seconds| locks::lock(&desk.app, who, at(), Duration::from_secs(seconds), "until Friday".into());
    is(lock(&desk.gast, 60).await, Reason::DirectoryUnknown);
    is(lock(&desk.anna, 2_592_001).await, Reason::FieldInvalid);
    let held = lock(&desk.anna, 60).await.unwrap().lock.unwrap();
    assert_eq!((&held.user[..], &held.note[..], held.fencing_token), ("anna", "until Friday", 1));
    is(lock(&desk.bert, 60).await, Reason::Locked);

    // Everything that changes the file is refused to others.
    refused(desk.put(&desk.bert, "public:plans/a", b"2").await, Reason::Locked);
    let deleted = trash::delete(&desk.app, &desk.bert, at(), false, String::new(), Once::always()).await;
    is(deleted.map(drop), Reason::Locked);
    desk.put(&desk.bert, "public:plans/b", b"b").await.unwrap();
    for (from, to) in [("public:plans/a", "public:plans/c"), ("public:plans/b", "public:plans/a")] {
        let order = Move { source: path(from), destination: path(to), overwrite: true, etag: String::new() };
        is(moves::move_entry(&desk.app, &desk.bert, order, Once::always()).await.map(drop), Reason::Locked);
    }
    let restored = versions::restore(&desk.app, &desk.bert, at(), 1, Once::always()).await;
    is(restored.map(drop), Reason::Locked);
    desk.put(&desk.anna, "public:plans/a", b"22").await.unwrap();

    // Renewed by the holder under the same token; over by itself at its end, not before.
    desk.office.advance(50);
    assert_eq!(lock(&desk.anna, 60).await.unwrap().lock.unwrap().fencing_token, 1);
    desk.office.advance(59);
    refused(desk.put(&desk.bert, "public:plans/a", b"3").await, Reason::Locked);
    desk.office.advance(1);
    assert_eq!(desk.look("public:plans/a").lock, None);
    let write = async |who, data: &[u8], token| {
        let upload = UploadId::generate();
        let file = order("public:plans/a", send(&desk.app, who, upload, data), Expected::Any);
        commit_one(&desk.app, who, upload, FileCommit { fencing_token: token, ..file }).await
    };
    // Nobody has had it since: a late writer is let through.
    write(&desk.anna, b"late", 1).await.unwrap();
    assert_eq!(lock(&desk.bert, 60).await.unwrap().lock.unwrap().fencing_token, 2);
    desk.office.advance(61);
    refused(write(&desk.anna, b"too late", 1).await, Reason::LockLost);
    write(&desk.anna, b"of no lock", 0).await.unwrap();
    desk.check();
}

#[tokio::test]
async fn a_lock_is_given_back_by_its_holder_or_broken_by_a_manager() {
    let desk = Desk::new().await;
    desk.file("public:plans/a", b"1").await;
    let at = || path("public:plans/a");
    let lock = |who| locks::lock(&desk.app, who, at(), Duration::ZERO, String::new());
    let unlock = |who, force| locks::unlock(&desk.app, who, at(), force);
    is(unlock(&desk.anna, false).await, Reason::NotLocked);
    assert_eq!(lock(&desk.anna).await.unwrap().lock.unwrap().expire_ms, 1_700_000_000_000 + 28_800_000);
    assert_eq!(unlock(&desk.anna, false).await.unwrap().lock, None);
    lock(&desk.anna).await.unwrap();
    is(unlock(&desk.bert, false).await, Reason::Locked);
    let audited = desk.office.audit().len();
    unlock(&desk.bert, true).await.unwrap();
    let log = desk.office.audit();
    assert_eq!(log.len(), audited + 1);
    let line = log.last().unwrap();
    assert_eq!((&line.action[..], &line.subject[..]), ("lock.break", "public/plans:a"));
    lock(&desk.bert).await.unwrap();
    is(unlock(&desk.anna, true).await, Reason::AccessDenied);
    unlock(&desk.chef, true).await.unwrap();
    desk.dir("home:d").await;
    let on_directory = locks::lock(&desk.app, &desk.anna, path("home:d"), Duration::ZERO, String::new()).await;
    is(on_directory, Reason::IsADirectory);
    desk.check();
}

#[tokio::test]
async fn a_lock_lives_as_long_as_the_contract_allows_or_as_the_office_wants() {
    const DAY: u64 = 86_400;
    let start = 1_700_000_000_000;
    let end = async |desk: &Desk, days: u64| {
        let lifetime = Duration::from_secs(days * DAY);
        locks::lock(&desk.app, &desk.anna, path("home:a"), lifetime, String::new())
            .await
            .map(|e| (e.lock.unwrap().expire_ms - start) / 1000 / DAY)
    };
    let desk = Desk::new().await;
    desk.file("home:a", b"1").await;
    assert_eq!(end(&desk, 30).await.unwrap(), 30);
    is(end(&desk, 31).await, Reason::FieldInvalid);
    let strict = Desk::with(|s| s.files.lock_max = HumanDuration::days(2)).await;
    strict.file("home:a", b"1").await;
    assert_eq!(end(&strict, 30).await.unwrap(), 2);
}

#[tokio::test]
async fn what_is_referenced_survives_reclaiming_and_the_rest_goes() {
    let desk = Desk::new().await;
    desk.file("home:a", b"version one").await;
    desk.file("home:a", b"version two").await;
    desk.file("home:b", b"in the trash").await;
    delete(&desk, "home:b", false).await.unwrap();
    desk.file("home:c", b"purged for good").await;
    let c = delete(&desk, "home:c", false).await.unwrap();
    trash::purge(&desk.app, &desk.anna, RootName::OwnHome, Some(c)).await.unwrap();
    assert!(desk.app.chunks.length(&ChunkId::of(b"purged for good")).is_some());
    for _ in 0..4 {
        reclaim::pass(&desk.app).await.unwrap();
    }
    assert_eq!(desk.app.chunks.length(&ChunkId::of(b"purged for good")), None);
    desk.check();
    assert_eq!(desk.read("home:a", 1), b"version one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_for_references_misses_nothing_that_moves_meanwhile() {
    let desk = Desk::new().await;
    desk.dir("home:x").await;
    desk.dir("home:y").await;
    let upload = UploadId::generate();
    let mut wanted = HashSet::new();
    let mut files = Vec::new();
    for n in 0..100u32 {
        let chunks = send(&desk.app, &desk.anna, upload, format!("file {n}").as_bytes());
        wanted.extend(chunks.iter().map(|c| c.id));
        files.push(Ok(order(&format!("home:y/{n}"), chunks, Expected::Any)));
    }
    // Enough records for the search to read them in many pieces.
    files.extend((0..900).map(|n| Ok(order(&format!("home:x/filler {n}"), vec![], Expected::Any))));
    commits::commit(&desk.app, &desk.anna, upload, files).await.unwrap();
    for part in 0..4 {
        let files = (0..1_000).map(|n| Ok(order(&format!("home:y/filler {part} {n}"), vec![], Expected::Any)));
        commits::commit(&desk.app, &desk.anna, upload, files.collect()).await.unwrap();
    }

    let (app, stop) = (desk.app.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let search = std::thread::spawn(move || {
        let mut passes = 0;
        while !stopped.load(Ordering::Relaxed) || passes < 10 {
            let mut found = HashSet::new();
            references::for_each(&app, &mut |id| {
                found.insert(id);
            })
            .unwrap();
            assert!(wanted.is_subset(&found), "{} are not found in pass {passes}", wanted.difference(&found).count());
            passes += 1;
        }
        passes
    });
    // From where the search comes late to where it has been, in every way that there is, and back.
    for round in 0..4 {
        for n in 0..100 {
            let (y, x) = (format!("home:y/{n}"), format!("home:x/{n}"));
            match (round + n) % 3 {
                0 => drop(rename(&desk, &y, &x, false).await.unwrap()),
                1 => {
                    copy(&desk, &y, &x).await.unwrap();
                    let id = delete(&desk, &y, false).await.unwrap();
                    trash::purge(&desk.app, &desk.anna, RootName::OwnHome, Some(id)).await.unwrap();
                }
                _ => {
                    let id = delete(&desk, &y, false).await.unwrap();
                    restore(&desk, "home", id, Some(&x)).await.unwrap();
                }
            }
            rename(&desk, &x, &y, false).await.unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(tokio::task::spawn_blocking(|| search.join().unwrap()).await.unwrap() >= 10);
    desk.check();
}

#[tokio::test]
async fn deleting_a_public_directory_takes_everything_in_it() {
    let desk = Desk::new().await;
    let plans = || RootName::parse("public/plans").unwrap();
    desk.dir("public:plans/d/e").await;
    desk.file("public:plans/d/e/f", b"1").await;
    desk.file("public:plans/d/e/f", b"2").await;
    desk.file("public:plans/g", b"3").await;
    delete(&desk, "public:plans/g", false).await.unwrap();
    is(directories::delete(&desk.app, &desk.bert, plans(), true).await, Reason::AdminRequired);
    is(directories::delete(&desk.app, &desk.chef, plans(), false).await, Reason::DirectoryNotEmpty);
    directories::delete(&desk.app, &desk.chef, plans(), true).await.unwrap();
    is(entries::get(&desk.app, &desk.anna, &path("public:plans/d")), Reason::DirectoryUnknown);
    while retention::step(&desk.app).await.unwrap() {}
    for prefix in [b"f/", b"p/", b"v/", b"t/", b"z/"] {
        let left = desk.app.store.range(prefix, &common::store::prefix_end(prefix), 10).unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
    desk.check();
}
