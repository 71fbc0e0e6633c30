//! What upkeep does by itself, and what it reports.

use crate::desk::{Desk, chunks_of, delete, is, path};
use crate::fixture::local;
use crate::server::TestServer;
use central_server::app::watch::Watcher;
use central_server::app::{App, change_log, devices, reclaim, sessions, trash, versions};
use common::error::Reason;
use common::model::{ChunkId, ChunkRef, RootName};
use common::settings::HumanDuration;
use proto::v1;
use proto::v1::session_service_client::SessionServiceClient;
use std::io::Write;

#[tokio::test]
async fn the_change_log_is_kept_by_age_and_by_number() {
    const DAY: u64 = 86_400;
    let desk = Desk::with(|s| {
        s.store.changes_age = HumanDuration::days(7);
        s.store.changes_min = 3;
        s.store.changes_keep = 1_000;
    })
    .await;
    let app = &desk.app;
    let watch = async |cursor| Watcher::open(app.clone(), desk.anna.clone(), Vec::new(), cursor).await;
    let first = app.store.revision();
    desk.file("home:a", b"1").await;
    let old = app.store.revision();
    desk.office.advance(5 * DAY);
    // Says nothing to watchers: it goes with the next change that does.
    sessions::logout(app, &desk.office.caller("bert").await).await.unwrap();
    desk.file("home:b", b"2").await;
    let middle = app.store.revision();
    assert!(change_log::trim(app).await.unwrap() < first, "nothing is older than seven days");
    watch(first).await.unwrap();

    desk.office.advance(3 * DAY);
    for name in ["c", "d", "e"] {
        desk.file(&format!("home:{name}"), b"3").await;
    }
    assert_eq!(change_log::trim(app).await.unwrap(), old);
    let error = watch(first).await.err().expect("the log does not reach back to it");
    assert!(error.is(Reason::CursorTooOld), "{error:?}");
    assert_eq!(error.detail("oldest_cursor"), Some(&*old.to_string()));
    // From the oldest cursor that the error names everything is there.
    let mut watcher = watch(old).await.unwrap();
    assert_eq!(watcher.next().await.unwrap().changes[0].change.path, "b");

    // All of it is old, and the newest stay.
    desk.office.advance(100 * DAY);
    assert_eq!(middle, app.store.revision() - 3);
    assert_eq!(change_log::trim(app).await.unwrap(), middle);
    assert_eq!(app.store.changes(middle, 100).unwrap().len(), 3);
    assert_eq!(change_log::trim(app).await.unwrap(), middle, "once more changes nothing");
}

#[tokio::test]
async fn a_change_log_that_grows_fast_is_kept_by_number_alone() {
    let desk = Desk::with(|s| {
        s.store.changes_keep = 10;
        s.store.changes_min = 2;
    })
    .await;
    for n in 0..20 {
        desk.file(&format!("home:{n}"), b"x").await;
    }
    let revision = desk.app.store.revision();
    assert_eq!(change_log::trim(&desk.app).await.unwrap(), revision - 10);
    is(desk.app.store.changes(revision - 11, 1).map(drop), Reason::CursorTooOld);
    assert_eq!(desk.app.store.changes(revision - 10, 100).unwrap().len(), 10);
    assert_eq!(desk.look("home:0").path, path("home:0"));
}

/// Turns a bit of a stored piece of content.
fn damage(app: &App, content: &[u8]) {
    let directory = app.settings.server.data_directory.join("chunks");
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "seg") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(content.len()).position(|w| w == content) {
            bytes[at + content.len() / 2] ^= 1;
            // In place: the store has the file open.
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(&bytes).unwrap();
            return;
        }
    }
    panic!("it is not in any segment");
}

#[tokio::test]
async fn a_damaged_list_of_chunks_stops_reclaiming_and_is_a_problem_until_it_is_mended() {
    let desk = Desk::new().await;
    let app = &desk.app;
    let big: Vec<u8> = (0..(versions::INLINE_CHUNKS as u32 + 1) * 250).flat_map(u32::to_le_bytes).collect();
    desk.dir("home:film").await;
    desk.file("home:film/big", &big).await;
    desk.file("home:a", b"not needed any more").await;
    let gone = delete(&desk, "home:a", false).await.unwrap();
    trash::purge(app, &desk.anna, RootName::OwnHome, Some(gone)).await.unwrap();
    let unneeded = ChunkId::of(b"not needed any more");
    reclaim::pass(app).await.unwrap();
    assert_eq!(app.health.problems(), []);

    let manifest: Vec<u8> = ChunkRef::encode_all(&chunks_of(&big));
    damage(app, &manifest);
    for _ in 0..3 {
        let error = reclaim::pass(app).await.expect_err("what the file needs is not known");
        assert!(error.is(Reason::ChunkDamaged) && error.message().contains("home/anna/film/big"), "{error:?}");
    }
    assert!(app.chunks.length(&unneeded).is_some(), "nothing is freed meanwhile");
    reclaim::look(app);
    let problems = app.health.problems();
    let messages: Vec<&str> = problems.iter().map(|p| &p.message[..]).collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(messages[0].contains("1 stored pieces of content are damaged"), "{messages:?}");
    assert!(messages[1].contains("no space is freed") && messages[1].contains("home/anna/film/big"), "{messages:?}");
    assert!(problems[1].fix.contains("atrium admin reclaim"));

    // Put again with the same content, it is whole again.
    desk.file("home:film/big", &big).await;
    for _ in 0..3 {
        reclaim::pass(app).await.unwrap();
    }
    assert_eq!(app.health.problems(), []);
    assert_eq!(app.chunks.length(&unneeded), None);
    assert_eq!(desk.read("home:film/big", 0), big);
    desk.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_device_was_last_seen_is_known_after_a_restart() {
    let server = TestServer::start().await;
    let device = server.join().await;
    let channel = server.device(&device);
    channel.check().await.unwrap();
    let mut sessions = SessionServiceClient::new(channel.control());
    sessions.who_am_i(v1::WhoAmIRequest {}).await.unwrap();
    let seen = |server: &TestServer| {
        let app = server.running.app().clone();
        async move { devices::list(&app, &local(), 0, "").await.unwrap().devices[0].last_seen_ms }
    };
    let before = seen(&server).await;
    assert!(before > 0);
    let directory = server.stop().await;
    let server = TestServer::in_directory(directory, |_| {}).await;
    assert_eq!(seen(&server).await, before);
    server.stop().await;
}
