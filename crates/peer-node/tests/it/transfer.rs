//! Transfers between real nodes on loopback, over TLS.

mod faults;
mod guard;
mod node;
mod swarm;

use node::{Node, Office, content, ms, order, random};
use peer_node::transfer::{OrderDirectory, State, Verb};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_whole_with_its_time_and_rights() {
    let office = Office::new();
    let (a, b) = (Node::start(&office, "a").await, Node::start(&office, "b").await);
    b.test.knows(&a.test);
    let data = random(1, 64 << 20);
    let file = a.share("big.bin", &data);
    let began = Instant::now();
    let done = b.fetch(&[&a], order(&office, &[file])).await;
    println!("64 MiB from one node: {} MB/s", data.len() as u64 / 1000 / ms(began));
    assert_eq!((done.state, done.done_bytes, done.fetched_bytes), (State::Done, data.len() as u64, data.len() as u64));
    let path = b.destination().join("big.bin");
    assert!(fs::read(&path).unwrap() == data);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.permissions().mode() & 0o777, meta.mtime(), meta.mtime_nsec()), (0o640, 1_600_000_000, 7));
    assert_eq!(b.leftovers(), 0);
    let settled = b.transfers.wait_settled(&done.id).await.unwrap();
    assert!(settled.settled && settled.floor_ratio >= 0.0);
    assert_eq!(done.sources.len(), 1);
    assert_eq!((done.sources[0].name.as_str(), done.sources[0].way), ("node a", "direct"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_small_files() {
    let office = Office::new();
    let (a, b) = (Node::start(&office, "a").await, Node::start(&office, "b").await);
    b.test.knows(&a.test);
    let files: Vec<_> = (0..10_000u64).map(|n| a.share(&format!("d{}/f{n}", n % 50), &random(n, 4096))).collect();
    let began = Instant::now();
    let done = b.fetch(&[&a], order(&office, &files)).await;
    println!("10,000 files of 4 KiB: {} files/s", 10_000_000 / ms(began));
    assert_eq!((done.state, done.done_file_count, done.fetched_bytes), (State::Done, 10_000, 10_000 * 4096));
    for n in [0u64, 1, 4_999, 9_999] {
        let path = b.destination().join(format!("d{}/f{n}", n % 50));
        assert_eq!(fs::read(path).unwrap(), random(n, 4096));
    }
    assert_eq!(b.leftovers(), 0);
    assert!(a.transfers.served_bytes() == 10_000 * 4096, "each one once");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_chunks_empty_files_and_directories() {
    let office = Office::new();
    let (a, b) = (Node::start(&office, "a").await, Node::start(&office, "b").await);
    b.test.knows(&a.test);
    let data = random(3, 3 << 20);
    let mut files = vec![a.share("one", &data), a.share("two/copy", &data), a.share("empty", b"")];
    files.push(a.share("three/copy", &[&data[..], &data[..]].concat()));
    let mut order = order(&office, &files);
    order.directories = vec![OrderDirectory { path: "x/y/z".into(), mode: 0o750 }];
    let done = b.fetch(&[&a], order).await;
    assert_eq!((done.state, done.done_file_count), (State::Done, 4));
    assert!(
        done.fetched_bytes < 2 * data.len() as u64 + (4 << 20),
        "{} bytes for what is there four times",
        done.fetched_bytes
    );
    assert!(fs::read(b.destination().join("two/copy")).unwrap() == data);
    assert_eq!(fs::read(b.destination().join("three/copy")).unwrap().len(), 2 * data.len());
    assert_eq!(fs::read(b.destination().join("empty")).unwrap(), b"");
    assert_eq!(fs::metadata(b.destination().join("x/y/z")).unwrap().permissions().mode() & 0o777, 0o750);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_the_disk_is_not_fetched() {
    let office = Office::new();
    let (a, b) = (Node::start(&office, "a").await, Node::start(&office, "b").await);
    b.test.knows(&a.test);
    let mut data = random(5, 16 << 20);
    let old = data.clone();
    let place = random(6, 1 << 20);
    data[5 << 20..6 << 20].copy_from_slice(&place);
    let file = a.share("plan.bin", &data);
    fs::create_dir_all(b.destination()).unwrap();
    fs::write(b.destination().join("plan.bin"), &old).unwrap();

    // Not without being asked.
    let refused = b.fetch(&[&a], order(&office, std::slice::from_ref(&file))).await;
    assert_eq!((refused.state, refused.problem.unwrap().reason.as_str()), (State::Failed, "ENTRY_EXISTS"));
    assert!(fs::read(b.destination().join("plan.bin")).unwrap() == old, "the old version is untouched");

    let mut replace = order(&office, std::slice::from_ref(&file));
    replace.overwrite = true;
    let done = b.fetch(&[&a], replace.clone()).await;
    assert_eq!(done.state, State::Done);
    assert!(fs::read(b.destination().join("plan.bin")).unwrap() == data);
    assert!(done.fetched_bytes <= 8 << 20, "{} bytes for one MiB", done.fetched_bytes);
    assert_eq!(done.local_bytes + done.fetched_bytes, data.len() as u64);

    // The same once more, and to another place, costs nothing.
    let again = b.fetch(&[&a], replace.clone()).await;
    assert_eq!((again.state, again.fetched_bytes, again.local_bytes), (State::Done, 0, data.len() as u64));
    replace.destination = b.dir.path().join("elsewhere");
    let copy = b.fetch(&[], replace).await;
    assert_eq!((copy.state, copy.fetched_bytes), (State::Done, 0));
    assert!(fs::read(b.dir.path().join("elsewhere/plan.bin")).unwrap() == data);
    assert!(copy.sources.iter().any(|s| s.way == "local disk"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_is_paused_and_cancelled() {
    let office = Office::new();
    let (a, b) = (Node::start(&office, "a").await, Node::start(&office, "b").await);
    b.test.knows(&a.test);
    let data = random(7, 24 << 20);
    let file = a.share("x", &data);
    a.cap_upload(12_000_000).await;
    let id = b.begin(&[&a], order(&office, &[file])).await;
    b.until(&id, |p| p.done_bytes > 2 << 20).await;
    b.transfers.control(&id, Verb::Pause).unwrap();
    let paused = b.until(&id, |p| p.state == State::Paused).await;
    assert!(paused.done_bytes < data.len() as u64);
    b.transfers.control(&id, Verb::Resume).unwrap();
    b.until(&id, |p| p.state == State::Running && p.done_bytes > paused.done_bytes).await;
    assert_eq!(b.leftovers(), 1);
    b.transfers.control(&id, Verb::Cancel).unwrap();
    let ended = b.transfers.wait(&id).await.unwrap();
    assert_eq!((ended.state, b.leftovers()), (State::Cancelled, 0));
    assert!(!b.destination().join("x").exists());
    assert!(b.transfers.watch(&peer_node::model::TransferId::generate()).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_cannot_lead_out_of_their_destination() {
    let office = Office::new();
    let (a, b) = (Node::start(&office, "a").await, Node::start(&office, "b").await);
    b.test.knows(&a.test);
    let file = a.share("fine", b"x");
    for bad in ["../out", "/etc/x", "a/../../b", "a\0b", "", "a//b", ".x.atrium-part", "a/\u{202e}b"] {
        let mut hostile = order(&office, std::slice::from_ref(&file));
        hostile.files[0].path = bad.into();
        assert!(b.transfers.start(b.to(&[&a], hostile)).await.is_err(), "{bad:?}");
    }
    let outside = b.dir.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(b.destination()).unwrap();
    symlink(&outside, b.destination().join("link")).unwrap();
    for path in ["link/x", "link/deeper/x"] {
        let mut hostile = order(&office, std::slice::from_ref(&file));
        hostile.files[0].path = path.into();
        let ended = b.fetch(&[&a], hostile).await;
        assert_eq!((ended.state, ended.problem.unwrap().reason.as_str()), (State::Failed, "NOT_A_DIRECTORY"));
    }
    let mut replaced = order(&office, &[file]);
    (replaced.files[0].path, replaced.overwrite) = ("link".into(), true);
    assert_eq!(b.fetch(&[&a], replaced).await.state, State::Done);
    assert_eq!(fs::read(b.destination().join("link")).unwrap(), b"x", "the link itself was replaced");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(content(b"x").size_bytes, 1);
}
