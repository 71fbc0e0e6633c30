//! Several nodes at once.

use super::node::{Node, Office, assert_done, ms, order, random};
use peer_node::transfer::State;
use std::sync::atomic::Ordering;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn three_sources_share_the_work_and_send_nothing_twice() {
    let office = Office::new();
    let (a, b, c) = (Node::start(&office, "a").await, Node::start(&office, "b").await, Node::start(&office, "c").await);
    let d = Node::start(&office, "d").await;
    let data = random(11, 64 << 20);
    let file = [&a, &b, &c].map(|n| n.share("x", &data))[0].clone();
    for node in [&a, &b, &c] {
        d.test.knows(&node.test);
        // The same for all, so that no processor decides.
        node.cap_upload(30_000_000).await;
    }
    let began = Instant::now();
    let done = d.fetch(&[&a, &b, &c], order(&office, &[file])).await;
    println!("64 MiB from three nodes: {} MB/s", data.len() as u64 / 1000 / ms(began));
    assert_done(&d, &done, "x", &data);
    for node in [&a, &b, &c] {
        let part = d.from(&done, node);
        println!("  {} bytes from one of them", part);
        assert!(part > data.len() as u64 / 10, "{part} bytes are no share of the work");
    }
    let twice = done.fetched_bytes - data.len() as u64;
    assert!(twice <= 8 << 20, "{twice} bytes came twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gives_on_what_it_is_still_getting() {
    let office = Office::new();
    let (a, b, c) = (Node::start(&office, "a").await, Node::start(&office, "b").await, Node::start(&office, "c").await);
    let data = random(12, 24 << 20);
    let file = a.share("x", &data);
    a.cap_upload(6_000_000).await;
    for (from, to) in [(&b, &a), (&c, &a), (&b, &c), (&c, &b)] {
        from.test.knows(&to.test);
    }
    // Neither is told of the other: they learn of each other at the source.
    let (first, second) = (
        b.begin(&[&a], order(&office, std::slice::from_ref(&file))).await,
        c.begin(&[&a], order(&office, &[file])).await,
    );
    let (first, second) =
        (b.until(&first, |p| p.state.is_ended()).await, c.until(&second, |p| p.state.is_ended()).await);
    assert_done(&b, &first, "x", &data);
    assert_done(&c, &second, "x", &data);
    assert!(b.from(&first, &c) > 1 << 20 && c.from(&second, &b) > 1 << 20, "each gave the other some");
    let copies = a.transfers.served_bytes() as f64 / data.len() as f64;
    println!("the source sent {copies:.2} copies to two nodes");
    assert!(copies < 1.7, "{copies}");
    assert!(first.served_bytes > 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_is_served_after_the_end_and_after_a_restart() {
    let office = Office::new();
    let (a, b, c) = (Node::start(&office, "a").await, Node::start(&office, "b").await, Node::start(&office, "c").await);
    b.test.knows(&a.test);
    c.test.knows(&b.test);
    let data = random(13, 8 << 20);
    let file = a.share("x", &data);
    let done = b.fetch(&[&a], order(&office, std::slice::from_ref(&file))).await;
    assert_done(&b, &done, "x", &data);
    let done = c.fetch(&[&b], order(&office, std::slice::from_ref(&file))).await;
    assert_done(&c, &done, "x", &data);
    assert_eq!(c.from(&done, &b), data.len() as u64);
    // The receiver changes its copy: it is not served any more, and nothing wrong is sent.
    let d = Node::start(&office, "d").await;
    d.test.knows(&c.test);
    std::fs::write(c.destination().join("x"), random(14, 8 << 20)).unwrap();
    let id = d.begin(&[&c], order(&office, &[file])).await;
    let waiting = d.until(&id, |p| p.state == State::Waiting && p.problem.is_some()).await;
    assert!(waiting.sources.iter().all(|s| s.bad_chunk_count == 0), "{waiting:?}");
    assert_eq!(waiting.done_bytes, 0);
    // Somebody else comes who has it.
    d.test.knows(&b.test);
    b.test.knows(&d.test);
    d.test.network.link(b.test.device()).await.unwrap();
    let done = d.until(&id, |p| p.state.is_ended()).await;
    assert_done(&d, &done, "x", &data);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_have_only_some_of_it_are_enough_together() {
    let office = Office::new();
    let (a, b, c) = (Node::start(&office, "a").await, Node::start(&office, "b").await, Node::start(&office, "c").await);
    c.test.knows(&a.test);
    c.test.knows(&b.test);
    let (one, two) = (random(15, 5 << 20), random(16, 5 << 20));
    let files = [a.share("one", &one), b.share("two", &two)];
    a.folder.complete.store(false, Ordering::SeqCst);
    b.folder.complete.store(false, Ordering::SeqCst);
    let done = c.fetch(&[&a, &b], order(&office, &files)).await;
    assert_done(&c, &done, "one", &one);
    assert_done(&c, &done, "two", &two);
    assert_eq!((c.from(&done, &a), c.from(&done, &b)), (5 << 20, 5 << 20));
}
