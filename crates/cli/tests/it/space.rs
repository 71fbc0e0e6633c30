//! Borrowed space and second copies.

use crate::fake_peer::{Running, State, code, ok, text};
use crate::process::failure;
use proto::peer::v1::SpaceObject;
use std::sync::Mutex;

#[test]
fn files_go_to_borrowed_space_and_come_back_whole() {
    let peer = Running::start(State { break_next: Mutex::new(2), ..State::default() });
    let content: Vec<u8> = (0..2_000_000u32).map(|n| (n % 249) as u8).collect();
    std::fs::write(peer.path("raw.mov"), &content).unwrap();
    // The first put breaks in the middle and goes on from there.
    let output = peer.run_there(&["space", "put", "video", "raw.mov", "--json"]);
    ok(&output);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((object["kind"].as_str(), object["partial_bytes"].as_u64()), (Some("space_object"), None));
    let told = peer.told();
    assert_eq!(told[1], "put raw.mov from 0");
    let from: u64 = told.last().unwrap().strip_prefix("put raw.mov from ").unwrap().parse().unwrap();
    assert!(from > 0, "{told:?}");
    assert!(peer.fake.0.objects.lock().unwrap()["raw.mov"].1 == content);
    let again = peer.run_there(&["space", "put", "1111", "raw.mov"]);
    assert!(text(&again.stdout).contains("was there already"));
    assert!(!peer.told().iter().any(|t| t.starts_with("put")));
    // It breaks on the way back too.
    *peer.fake.0.break_next.lock().unwrap() = 2;
    let (exit, _) = peer.json(&["space", "get", "video", "raw.mov", peer.path("back.mov").to_str().unwrap()]);
    assert_eq!(exit, 0);
    assert!(std::fs::read(peer.path("back.mov")).unwrap() == content);
    let told = peer.told();
    assert_eq!(told[1..], ["get raw.mov from 0", "get raw.mov from 2000"]);
    let here = peer.run(&["space", "get", "video", "raw.mov", peer.path("back.mov").to_str().unwrap()]);
    assert!(text(&here.stdout).contains("was here already"));
    std::fs::write(peer.path("back.mov"), "mine").unwrap();
    let kept = peer.run(&["space", "get", "video", "raw.mov", peer.path("back.mov").to_str().unwrap()]);
    assert_eq!((code(&kept), std::fs::read(peer.path("back.mov")).unwrap()), (8, b"mine".to_vec()));
}

#[test]
fn a_part_of_another_content_is_put_anew_and_damage_is_found() {
    let peer = Running::start(State::default());
    std::fs::write(peer.path("a"), "0123456789").unwrap();
    let part = SpaceObject { name: "a".into(), size_bytes: 10, partial_bytes: 4, ..Default::default() };
    peer.fake.0.objects.lock().unwrap().insert("a".into(), (part, b"zzzz".to_vec()));
    ok(&peer.run_there(&["space", "put", "video", "a"]));
    assert_eq!(peer.told()[1..], ["put a from 4", "put a from 0"]);
    peer.fake.0.objects.lock().unwrap().get_mut("a").unwrap().1[3] = b'x';
    let damaged = peer.run_there(&["space", "get", "video", "a", "b", "--json"]);
    assert_eq!(failure(&damaged)["reason"], "CHUNK_DAMAGED");
    assert!(!peer.path("b").exists());
    let (_, list) = peer.json(&["space", "ls", "video"]);
    assert_eq!((list["kind"].as_str(), list["items"][0]["name"].as_str()), (Some("space_object_list"), Some("a")));
    assert_eq!(code(&peer.run(&["space", "rm", "video", "a", "missing"])), 3);
    assert!(peer.fake.0.objects.lock().unwrap().is_empty());
}

#[test]
fn space_is_borrowed_renewed_given_back_and_mirrored() {
    let peer = Running::start(State::default());
    let (exit, space) = peer.json(&["space", "borrow", "big", "1GiB", "--for", "8h", "--label", "video"]);
    assert_eq!((exit, space["kind"].as_str(), space["type"].as_str()), (0, Some("space"), Some("scratch")));
    ok(&peer.run(&["space", "renew", "video", "--for", "1h"]));
    let unasked = peer.run(&["space", "return", "video", "--json"]);
    assert_eq!(code(&unasked), 2, "something is in it");
    ok(&peer.run(&["space", "return", "video", "--yes"]));
    ok(&peer.run(&["space", "list", "--lent"]));
    assert_eq!(
        peer.told(),
        [
            "borrow big 1073741824 28800s \"video\"",
            "borrowed lent=false",
            "renew acme/anna-pc/disks/big 3600s",
            "borrowed lent=false",
            "borrowed lent=false",
            "return acme/anna-pc/disks/big",
            "borrowed lent=true",
        ]
    );
    let (exit, copy) = peer.json(&["space", "mirror", "plans", "big", "--retention", "90d", "--next", "old"]);
    assert_eq!((exit, copy["kind"].as_str(), copy["generation"].as_u64()), (0, Some("mirror_copy"), Some(2)));
    let broken = peer.run(&["space", "restore", "plans", peer.path("again").to_str().unwrap(), "--json"]);
    assert_eq!(code(&broken), 6, "it was not done");
    let again = peer.path("again");
    assert_eq!(
        peer.told(),
        ["mirror plans to big 0 7776000s then old".to_owned(), format!("restore plans to {} 0", again.display())]
    );
}
