//! Sources that die, lie or are away; processes that are killed; disks that are full.

use super::node::{FullDisk, Node, Office, With, assert_done, order, random};
use common::store::Store;
use peer_node::transfer::State;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_source_dies_in_the_middle() {
    let office = Office::new();
    let (a, b, c) = (Node::start(&office, "a").await, Node::start(&office, "b").await, Node::start(&office, "c").await);
    c.test.knows(&a.test);
    c.test.knows(&b.test);
    let data = random(21, 32 << 20);
    let file = a.share("x", &data);
    b.share("x", &data);
    a.cap_upload(12_000_000).await;
    b.cap_upload(12_000_000).await;
    let id = c.begin(&[&a, &b], order(&office, &[file])).await;
    c.until(&id, |p| p.done_bytes > 8 << 20).await;
    a.test.stop().await;
    b.cap_upload(0).await;
    let done = c.until(&id, |p| p.state.is_ended()).await;
    assert_done(&c, &done, "x", &data);
    let twice = done.fetched_bytes - data.len() as u64;
    assert!(twice <= 8 << 20, "{twice} bytes came twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_named_and_banned_and_the_transfer_completes() {
    let office = Office::new();
    let (a, b, c) = (Node::start(&office, "a").await, Node::start(&office, "b").await, Node::start(&office, "c").await);
    c.test.knows(&a.test);
    c.test.knows(&b.test);
    let data = random(22, 32 << 20);
    let file = a.share("x", &data);
    b.share("x", &data);
    b.spoil("x", &random(23, 32 << 20));
    b.folder.lies.store(true, Ordering::SeqCst);
    // Slow enough for the liar to be asked again after its pauses, until it is banned.
    a.cap_upload(1_000_000).await;
    let id = c.begin(&[&a, &b], order(&office, &[file])).await;
    c.until(&id, |p| p.state.is_ended() || p.sources.iter().any(|s| s.banned)).await;
    a.cap_upload(0).await;
    let done = c.until(&id, |p| p.state.is_ended()).await;
    assert_done(&c, &done, "x", &data);
    let liar = done.sources.iter().find(|s| s.name == "node b").expect("named");
    assert!(liar.banned && liar.bad_chunk_count >= 3 && liar.received_bytes == 0, "{liar:?}");
    let honest = done.sources.iter().find(|s| s.name == "node a").unwrap();
    assert!(!honest.banned && honest.bad_chunk_count == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_alone_is_waited_for_by_name_and_nothing_wrong_is_kept() {
    let office = Office::new();
    let (a, b) = (Node::start(&office, "a").await, Node::start(&office, "b").await);
    b.test.knows(&a.test);
    let file = a.share("x", &random(24, 8 << 20));
    a.spoil("x", &random(25, 8 << 20));
    a.folder.lies.store(true, Ordering::SeqCst);
    let id = b.begin(&[&a], order(&office, &[file])).await;
    let waiting = b.until(&id, |p| p.state == State::Waiting && p.sources.iter().any(|s| s.banned)).await;
    assert_eq!(waiting.done_bytes, 0);
    let problem = waiting.problem.unwrap();
    assert!(problem.reason == "NO_SOURCE" && problem.why.contains("node a"), "{problem:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_waits_for_its_source_and_goes_on_by_itself() {
    let office = Office::new();
    let b = Node::start(&office, "b").await;
    let a = Node::start(&office, "a").await;
    let data = random(26, 4 << 20);
    let file = a.share("x", &data);
    // Nobody knows yet where that node is.
    let id = b.begin(&[&a], order(&office, &[file])).await;
    let waiting = b.until(&id, |p| p.state == State::Waiting && p.problem.is_some()).await;
    assert_eq!(waiting.problem.unwrap().reason, "NO_SOURCE");
    b.test.knows(&a.test);
    let done = b.until(&id, |p| p.state.is_ended()).await;
    assert_done(&b, &done, "x", &data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for() {
    let office = Office::new();
    let disk = Arc::new(FullDisk::default());
    let a = Node::start(&office, "a").await;
    let b = Node::start_with(&office, "b", With { disk: Some(disk.clone()), ..With::default() }).await;
    b.test.knows(&a.test);
    let data = random(27, 24 << 20);
    let file = a.share("x", &data);
    a.cap_upload(20_000_000).await;
    let id = b.begin(&[&a], order(&office, &[file])).await;
    b.until(&id, |p| p.done_bytes > 2 << 20).await;
    disk.full.store(true, Ordering::SeqCst);
    let waiting = b.until(&id, |p| p.state == State::Waiting && p.problem.is_some()).await;
    let problem = waiting.problem.unwrap();
    assert_eq!((problem.reason.as_str(), waiting.limit.word()), ("DISK_FULL", "disk"), "{problem:?}");
    assert!(problem.fix.contains("free some space"));
    disk.full.store(false, Ordering::SeqCst);
    let done = b.until(&id, |p| p.state.is_ended()).await;
    assert_done(&b, &done, "x", &data);
    assert!(done.sources[0].bad_chunk_count == 0, "nobody is blamed for a full disk");
}

/// The node ends as a killed process does: nothing of it runs any more, nothing was said or synced.
#[test]
fn a_killed_node_goes_on_from_any_holder_with_what_it_had() {
    let data = random(28, 48 << 20);
    let (office, dir, store) = (Office::new(), Arc::new(tempfile::tempdir().unwrap()), Store::memory());
    let with = With { dir: Some(dir), store: Some(store), disk: None };
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());

    let (c, file) = first.block_on(async {
        let c = Node::start(&office, "c").await;
        let file = c.share("x", &data);
        (c, file)
    });
    let (id, had) = second.block_on(async {
        let a = Node::start(&office, "a").await;
        a.share("x", &data);
        a.cap_upload(16_000_000).await;
        let b = Node::start_with(&office, "b", with.clone()).await;
        b.test.knows(&a.test);
        let id = b.begin(&[&a], order(&office, std::slice::from_ref(&file))).await;
        let had = b.until(&id, |p| p.done_bytes > 20 << 20).await.done_bytes;
        // Not told to stop: the runtime below them goes away.
        std::mem::forget((a, b));
        (id, had)
    });
    second.shutdown_timeout(Duration::from_secs(5));

    first.block_on(async {
        let b = Node::start_with(&office, "b", with.clone()).await;
        let begun = b.transfers.list();
        assert_eq!((begun.len(), begun[0].id), (1, id));
        // The first source is gone; another holder is near.
        b.test.knows(&c.test);
        b.test.network.link(c.test.device()).await.unwrap();
        let done = b.until(&id, |p| p.state.is_ended()).await;
        assert_done(&b, &done, "x", &data);
        let again = b.from(&done, &c);
        println!("killed with {had} of {} bytes; {again} fetched after that", data.len());
        assert!(again <= data.len() as u64 - had, "what was there is not fetched again");
        assert_eq!(b.leftovers(), 0);
    });
    first.shutdown_timeout(Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_and_start_loses_nothing() {
    let office = Office::new();
    let with = With { dir: Some(Arc::new(tempfile::tempdir().unwrap())), store: Some(Store::memory()), disk: None };
    let a = Node::start(&office, "a").await;
    let data = random(29, 24 << 20);
    let file = a.share("x", &data);
    a.cap_upload(16_000_000).await;
    let (id, had) = {
        let b = Node::start_with(&office, "b", with.clone()).await;
        b.test.knows(&a.test);
        let id = b.begin(&[&a], order(&office, std::slice::from_ref(&file))).await;
        let had = b.until(&id, |p| p.done_bytes > 8 << 20).await.done_bytes;
        b.transfers.close().await;
        b.test.stop().await;
        (id, had)
    };
    let b = Node::start_with(&office, "b", with).await;
    b.test.knows(&a.test);
    let done = b.until(&id, |p| p.state.is_ended()).await;
    assert_done(&b, &done, "x", &data);
    assert!(b.from(&done, &a) <= data.len() as u64 - had);
    let listed = b.transfers.list();
    assert_eq!((listed.len(), listed[0].state), (1, State::Done));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_kept() {
    let office = Office::new();
    let with = With { dir: Some(Arc::new(tempfile::tempdir().unwrap())), store: Some(Store::memory()), disk: None };
    let limits = {
        let b = Node::start_with(&office, "b", with.clone()).await;
        let mut limits = b.transfers.limits();
        limits.upload_rate = 77;
        limits.schedule = "mon-fri 08:00-18:00".into();
        b.transfers.set_limits(limits.clone()).await.unwrap();
        limits.schedule = "whenever".into();
        assert!(b.transfers.set_limits(limits).await.is_err());
        b.transfers.limits()
    };
    let b = Node::start_with(&office, "b", with).await;
    assert_eq!(b.transfers.limits(), limits);
}
