//! The tree: entries, directories, moves, copies, rights and request ids.

use crate::desk::{Desk, changes, copy, delete, is, order, path, read, refused, rename, restore};
use crate::fixture::{fresh, local};
use central_server::app::answers::{Answer, Once, RequestKey};
use central_server::app::caller::Caller;
use central_server::app::commits::Expected;
use central_server::app::moves::Move;
use central_server::app::{commits, copies, entries, locks, moves, reclaim, trash};
use common::error::Reason;
use common::model::{RootName, UploadId};
use std::time::Duration;
use uuid::Uuid;

#[tokio::test]
async fn directories_are_made_listed_and_deleted_with_what_is_in_them() {
    let desk = Desk::new().await;
    let make = |at: &str, parents| entries::make_directory(&desk.app, &desk.anna, path(at), parents, Once::always());
    is(make("home:a/b", false).await, Reason::EntryUnknown);
    let b = fresh(make("home:a/b", true).await.unwrap());
    assert!(b.directory && b.version == 0 && b.manifest_digest.is_none());
    is(make("home:a/b", false).await, Reason::EntryExists);
    assert_eq!(fresh(make("home:a/b", true).await.unwrap()), b);
    is(make("home:A", false).await, Reason::NameClash);
    is(make("home:A/c", true).await, Reason::NameClash);
    is(make("home:", false).await, Reason::EntryExists);
    assert_eq!(fresh(make("home:", true).await.unwrap()).display_name, "home/anna");
    desk.file("home:a/b/c", b"123").await;
    is(make("home:a/b/c/d", true).await, Reason::NotADirectory);
    is(delete(&desk, "home:a", false).await, Reason::DirectoryNotEmpty);
    is(delete(&desk, "home:", true).await, Reason::RootFixed);
    assert_eq!(desk.used("home/anna"), (3, 3));
    let id = delete(&desk, "home:a", true).await.unwrap();
    desk.gone("home:a");
    assert_eq!(desk.used("home/anna"), (3, 3), "the trash is charged");
    let (items, _) = trash::list(&desk.app, &desk.anna, &RootName::OwnHome, 0, "").unwrap();
    assert_eq!((items[0].id, &items[0].deleted_by[..], &items[0].entry.path.to_string()[..]), (id, "anna", "home:a"));
    desk.check();
    assert_eq!(restore(&desk, "home", id, None).await.unwrap().id, items[0].entry.id);
    assert_eq!(desk.read("home:a/b/c", 0), b"123");
    is(restore(&desk, "home", id, None).await, Reason::TrashUnknown);
    desk.check();
}

#[tokio::test]
async fn a_directory_is_listed_in_order_without_gaps_or_doubles() {
    let desk = Desk::new().await;
    let upload = UploadId::generate();
    let files: Vec<_> = (0..25).map(|n| Ok(order(&format!("public:cases/f{n:02}"), vec![], Expected::Any))).collect();
    commits::commit(&desk.app, &desk.anna, upload, files).await.unwrap();
    desk.file("public:cases/F00", b"").await;
    let list = async |size, token: &str| entries::list(&desk.app, &desk.anna, &path("public:cases"), size, token).await;
    let (mut token, mut names) = (String::new(), Vec::new());
    loop {
        let page = list(10, &token).await.unwrap();
        assert!(page.entries.len() <= 10);
        names.extend(page.entries.iter().map(|e| e.display_name.clone()));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
        // What goes and comes before the position disturbs nothing.
        if names.len() == 10 {
            delete(&desk, "public:cases/f03", false).await.unwrap();
            desk.file("public:cases/f0", b"").await;
        }
    }
    let mut expected: Vec<String> = (0..25).map(|n| format!("f{n:02}")).collect();
    expected.insert(0, "F00".into());
    assert_eq!(names, expected);
    let all = list(0, "").await.unwrap();
    assert_eq!((all.entries.len(), &all.next_page_token[..]), (26, ""));
    is(list(5, "zz").await, Reason::PageTokenInvalid);
    let token = list(5, "").await.unwrap().next_page_token;
    is(entries::list(&desk.app, &desk.anna, &path("home:"), 5, &token).await, Reason::PageTokenInvalid);
    is(entries::list(&desk.app, &desk.anna, &path("public:cases/f01"), 5, "").await, Reason::NotADirectory);
}

#[tokio::test]
async fn long_names_and_heavy_pages_are_listed_in_parts() {
    let desk = Desk::new().await;
    // Folding makes three characters of each of these: a long key.
    let long = "\u{FB03}".repeat(85);
    desk.file(&format!("home:{long}"), b"").await;
    desk.file("home:\u{20AC}", b"").await;
    let first = entries::list(&desk.app, &desk.anna, &path("home:"), 1, "").await.unwrap();
    assert_eq!(first.entries[0].display_name, long);
    let second = entries::list(&desk.app, &desk.anna, &path("home:"), 1, &first.next_page_token).await.unwrap();
    assert_eq!((second.entries.len(), &second.next_page_token[..]), (1, ""));
    // Notes of a kilobyte each: the page ends before the message gets too large.
    let upload = UploadId::generate();
    let files: Vec<_> = (0..2_000).map(|n| order(&format!("public:cases/{n}"), vec![], Expected::Any)).collect();
    for part in files.chunks(1_000) {
        commits::commit(&desk.app, &desk.anna, upload, part.iter().cloned().map(Ok).collect()).await.unwrap();
    }
    for n in 0..2_000 {
        let note = "\u{1F512}".repeat(locks::MAX_NOTE);
        locks::lock(&desk.app, &desk.anna, path(&format!("public:cases/{n}")), Duration::ZERO, note).await.unwrap();
    }
    let (mut token, mut found, mut pages) = (String::new(), 0, 0);
    loop {
        let page = entries::list(&desk.app, &desk.anna, &path("public:cases"), 5_000, &token).await.unwrap();
        found += page.entries.len();
        pages += 1;
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((found, pages), (2_000, 2));
}

#[tokio::test]
async fn a_move_keeps_the_entry_and_refuses_what_is_in_the_way() {
    let desk = Desk::new().await;
    let a = desk.file("home:a", b"aa").await;
    let b = desk.file("home:b", b"bbb").await;
    desk.dir("home:d").await;
    is(rename(&desk, "home:a", "home:b", false).await, Reason::EntryExists);
    is(rename(&desk, "home:a", "home:B", true).await, Reason::NameClash);
    is(rename(&desk, "home:a", "home:d", true).await, Reason::EntryExists);
    is(rename(&desk, "home:x", "home:y", true).await, Reason::EntryUnknown);
    is(rename(&desk, "home:a", "home:x/y", true).await, Reason::EntryUnknown);
    is(rename(&desk, "home:A", "home:y", true).await, Reason::EntryUnknown);
    is(rename(&desk, "home:", "home:y", true).await, Reason::RootFixed);
    is(rename(&desk, "home:a", "public:plans", true).await, Reason::RootFixed);
    assert_eq!(rename(&desk, "home:a", "home:a", false).await.unwrap(), a, "to where it is");
    let upper = rename(&desk, "home:a", "home:A", false).await.unwrap();
    assert_eq!((upper.id, upper.version, &upper.display_name[..]), (a.id, 1, "A"));
    assert_ne!(upper.etag, a.etag);
    let stale = Move { source: path("home:A"), destination: path("home:z"), overwrite: false, etag: a.etag.clone() };
    is(moves::move_entry(&desk.app, &desk.anna, stale, Once::always()).await, Reason::EtagStale);
    rename(&desk, "home:A", "home:b", true).await.unwrap();
    assert_eq!(desk.read("home:b", 0), b"aa");
    assert_eq!(desk.used("home/anna"), (5, 3));
    let (items, _) = trash::list(&desk.app, &desk.anna, &RootName::OwnHome, 0, "").unwrap();
    assert_eq!(items[0].entry.id, b.id, "what was replaced is in the trash");
    desk.check();
}

#[tokio::test]
async fn a_directory_never_gets_below_itself() {
    let desk = Desk::new().await;
    desk.dir("home:a/b/c").await;
    is(rename(&desk, "home:a", "home:a/x", false).await, Reason::MoveIntoItself);
    is(rename(&desk, "home:a", "home:a/b/c/x", false).await, Reason::MoveIntoItself);
    is(copy(&desk, "home:a", "home:a/b/x").await, Reason::MoveIntoItself);
    is(rename(&desk, "home:a", "home:a/b", false).await, Reason::MoveIntoItself);
    rename(&desk, "home:a/b", "home:b", false).await.unwrap();
    rename(&desk, "home:a", "home:b/c/a", false).await.unwrap();
    is(rename(&desk, "home:b", "home:b/c/a/b", false).await, Reason::MoveIntoItself);
    desk.check();
}

#[tokio::test]
async fn renaming_a_directory_writes_no_more_with_much_below_it() {
    let desk = Desk::new().await;
    let upload = UploadId::generate();
    desk.dir("home:full/deeper").await;
    let files: Vec<_> = (0..900).map(|n| Ok(order(&format!("home:full/deeper/{n}"), vec![], Expected::Any))).collect();
    commits::commit(&desk.app, &desk.anna, upload, files).await.unwrap();
    let before = changes(&desk.app).len();
    let records = desk.app.store.stats().records;
    rename(&desk, "home:full", "home:renamed", false).await.unwrap();
    assert_eq!(changes(&desk.app).len(), before + 1, "one change");
    assert_eq!(desk.app.store.stats().records, records);
    assert_eq!(desk.look("home:renamed/deeper/7").display_name, "7");
    desk.check();
}

#[tokio::test]
async fn a_move_to_another_root_moves_the_charge() {
    let desk = Desk::new().await;
    desk.dir("home:d/e").await;
    desk.file("home:d/e/f", b"12345").await;
    desk.file("home:d/e/f", b"123").await;
    desk.file("home:d/G", b"1").await;
    assert_eq!(desk.used("home/anna"), (9, 4));
    desk.limit("public/cases", 8).await;
    is(rename(&desk, "home:d", "public:cases/d", false).await, Reason::QuotaExceeded);
    desk.check();
    desk.limit("public/cases", 9).await;
    // Into a case-sensitive root, so names get other keys.
    rename(&desk, "home:d", "public:cases/d", false).await.unwrap();
    assert_eq!((desk.used("home/anna"), desk.used("public/cases")), ((0, 0), (9, 4)));
    assert_eq!(desk.read("public:cases/d/e/f", 1), b"12345");
    desk.check();
    desk.limit("public/cases", 0).await;
    desk.file("public:cases/d/g", b"22").await;
    is(rename(&desk, "public:cases/d", "home:d", false).await, Reason::NameClash);
    is(copy(&desk, "public:cases/d", "home:d").await, Reason::NameClash);
    desk.check();
    let id = delete(&desk, "public:cases/d/g", false).await.unwrap();
    rename(&desk, "public:cases/d", "home:D", false).await.unwrap();
    assert_eq!(desk.look("home:D/G").size_bytes, 1);
    restore(&desk, "public/cases", id, Some("home:from-there")).await.unwrap();
    assert_eq!((desk.used("home/anna"), desk.used("public/cases")), ((11, 5), (0, 0)));
    desk.check();
}

#[tokio::test]
async fn a_copy_shares_chunks_and_is_charged() {
    let desk = Desk::new().await;
    desk.dir("home:d/e").await;
    desk.file("home:d/f", b"old").await;
    let f = desk.file("home:d/f", b"12345").await;
    let chunks = desk.app.chunks.stats().chunk_count;
    let copied = copy(&desk, "home:d", "public:plans/copy").await.unwrap();
    assert_eq!(copied.entry_count, 3);
    let twin = desk.look("public:plans/copy/f");
    assert_eq!((twin.version, twin.manifest_digest), (1, f.manifest_digest));
    assert_ne!(twin.id, f.id);
    assert_eq!(desk.used("public/plans"), (5, 3), "without old versions");
    assert_eq!(desk.app.chunks.stats().chunk_count, chunks);
    is(copy(&desk, "home:d/f", "public:plans/copy/f").await, Reason::EntryExists);
    is(copy(&desk, "home:d/f", "public:plans/copy/F").await, Reason::NameClash);
    desk.limit("public/plans", 9).await;
    is(copy(&desk, "home:d", "public:plans/again").await, Reason::QuotaExceeded);
    desk.gone("public:plans/again");
    // The copy stays when the original is gone for good, whatever is reclaimed.
    let id = delete(&desk, "home:d", true).await.unwrap();
    trash::purge(&desk.app, &desk.anna, RootName::OwnHome, Some(id)).await.unwrap();
    for _ in 0..4 {
        reclaim::pass(&desk.app).await.unwrap();
    }
    assert_eq!(desk.read("public:plans/copy/f", 0), b"12345");
    desk.check();
}

#[tokio::test]
async fn a_copy_of_too_much_is_refused_as_a_whole() {
    let desk = Desk::new().await;
    desk.dir("home:d").await;
    let upload = UploadId::generate();
    for part in 0..copies::MAX_COPIED / 1_000 {
        let name = |n: usize| format!("home:d/{part}-{n}");
        let files: Vec<_> = (0..1_000).map(|n| Ok(order(&name(n), vec![], Expected::Any))).collect();
        commits::commit(&desk.app, &desk.anna, upload, files).await.unwrap();
    }
    is(copy(&desk, "home:d", "home:e").await, Reason::TreeTooLarge);
    desk.gone("home:e");
    delete(&desk, "home:d/0-0", false).await.unwrap();
    assert_eq!(copy(&desk, "home:d", "home:e").await.unwrap().entry_count, copies::MAX_COPIED as u64);
    desk.check();
}

#[tokio::test]
async fn permission_comes_before_existence() {
    let desk = Desk::new().await;
    desk.file("home:there", b"x").await;
    desk.file("public:plans/there", b"x").await;
    for name in ["there", "not-there"] {
        let look = |who: &Caller, at: String| entries::get(&desk.app, who, &path(&at)).map(drop);
        is(look(&desk.bert, format!("home/anna:{name}")), Reason::DirectoryUnknown);
        is(look(&desk.chef, format!("home/anna:{name}")), Reason::AccessDenied);
        let admin = local();
        is(look(&admin, format!("home/anna:{name}")), Reason::AccessDenied);
        is(look(&desk.bert, format!("home/nobody:{name}")), Reason::DirectoryUnknown);
        is(look(&desk.bert, format!("public:board/{name}")), Reason::AccessDenied);
        is(look(&desk.bert, format!("public:nowhere/{name}")), Reason::DirectoryUnknown);
        is(look(&desk.gast, format!("public:plans/{name}")), Reason::DirectoryUnknown);
        refused(desk.put(&desk.bert, &format!("public:cases/{name}"), b"y").await, Reason::AccessDenied);
        refused(desk.put(&desk.gast, &format!("public:plans/{name}"), b"y").await, Reason::DirectoryUnknown);
        is(
            trash::delete(
                &desk.app,
                &desk.bert,
                path(&format!("public:cases/{name}")),
                true,
                String::new(),
                Once::always(),
            )
            .await
            .map(drop),
            Reason::AccessDenied,
        );
    }
    let nobody = Caller::default();
    is(entries::get(&desk.app, &nobody, &path("public:plans/there")), Reason::CredentialsMissing);
    is(entries::get(&desk.app, &nobody, &path("home:there")), Reason::CredentialsMissing);
    assert_eq!(read(&desk.app, &desk.bert, "public:plans/there", 0), b"x");
    desk.check();
}

#[tokio::test]
async fn work_under_a_request_id_is_done_once() {
    let desk = Desk::new().await;
    desk.file("home:a", b"a").await;
    let id = Uuid::now_v7().to_string();
    let once = |request: &[u8]| {
        let key = RequestKey::new(&desk.anna, "DeleteEntry", &id, request).unwrap();
        Once::new(key, |id: &Uuid| bytes::Bytes::copy_from_slice(id.as_bytes()))
    };
    let delete = |request: &'static [u8]| {
        trash::delete(&desk.app, &desk.anna, path("home:a"), false, String::new(), once(request))
    };
    let first = fresh(delete(b"one").await.unwrap());
    desk.file("home:a", b"another").await;
    match delete(b"one").await.unwrap() {
        Answer::Repeated(bytes) => assert_eq!(&bytes[..], first.as_bytes()),
        Answer::New(_) => panic!("it was done twice"),
    }
    assert_eq!(desk.read("home:a", 0), b"another");
    is(delete(b"two").await.map(drop), Reason::RequestIdReused);
}
