//! Files: the tree, trash, versions, locks, uploads and commits.

use crate::desk::{Desk, changes, chunks_of, commit_one, is, order, path, put, read, refused, send};
use crate::fixture::{fresh, local};
use central_server::app::answers::{Answer, Once, RequestKey};
use central_server::app::caller::Caller;
use central_server::app::commits::{self, Expected, FileCommit};
use central_server::app::entries::{self, FileTime};
use central_server::app::moves::{self, Move};
use central_server::app::{copies, directories, locks, reclaim, retention, trash, uploads, versions};
use common::chunk::LEASE_IDLE;
use common::error::Reason;
use common::model::{ChunkId, ChunkRef, EntryPath, RootName, UploadId};
use common::settings::{ByteSize, HumanDuration};
use std::time::Duration;
use uuid::Uuid;

async fn rename(desk: &Desk, from: &str, to: &str, overwrite: bool) -> common::error::Result<entries::Entry> {
    let order = Move { source: path(from), destination: path(to), overwrite, etag: String::new() };
    moves::move_entry(&desk.app, &desk.anna, order, Once::always()).await.map(fresh)
}

async fn copy(desk: &Desk, from: &str, to: &str) -> common::error::Result<copies::Copied> {
    copies::copy(&desk.app, &desk.anna, path(from), path(to), Once::always()).await.map(fresh)
}

async fn delete(desk: &Desk, at: &str, recursive: bool) -> common::error::Result<Uuid> {
    trash::delete(&desk.app, &desk.anna, path(at), recursive, String::new(), Once::always()).await.map(fresh)
}

async fn restore(desk: &Desk, root: &str, id: Uuid, to: Option<&str>) -> common::error::Result<entries::Entry> {
    let (root, to) = (RootName::parse(root).unwrap(), to.map(path));
    trash::restore(&desk.app, &desk.anna, root, id, to, Once::always()).await.map(fresh)
}

#[tokio::test]
async fn a_file_is_put_and_read_and_put_again() {
    let desk = Desk::new().await;
    let first = desk.file("home:a.txt", b"one").await;
    assert_eq!((first.version, first.size_bytes, &first.author[..], first.mode), (1, 3, "anna", 0o644));
    assert_eq!(first.modify_time, Some(FileTime { seconds: 1_600_000_000, nanos: 7 }));
    let data: Vec<u8> = (0..10_500u32).map(|n| (n / 7) as u8).collect();
    let second = desk.file("home:a.txt", &data).await;
    assert_eq!((second.version, second.id, second.size_bytes), (2, first.id, 10_500));
    assert_ne!(second.etag, first.etag);
    assert_eq!(desk.look("home:a.txt"), second);
    assert_eq!(desk.read("home:a.txt", 0), data);
    assert_eq!(desk.read("home:a.txt", 1), b"one");
    assert_eq!(desk.used("home/anna"), (10_503, 1));
    let empty = desk.file("home:empty", b"").await;
    assert_eq!((empty.size_bytes, empty.version), (0, 1));
    is(versions::open(&desk.app, &desk.anna, &path("home:a.txt"), 3), Reason::VersionUnknown);
    desk.check();
}

#[tokio::test]
async fn the_same_content_again_is_no_new_version_and_a_new_time_is_noted() {
    let desk = Desk::new().await;
    let first = desk.file("home:a", b"same").await;
    let again = desk.file("home:a", b"same").await;
    assert_eq!(again, first, "nothing was written");
    // Without any chunk of this upload: who may write the file has its content.
    let mut file = order("home:a", chunks_of(b"same"), Expected::Version(1));
    file.modify_time = Some(FileTime { seconds: 5, nanos: 0 });
    file.mode = 0o600;
    let touched = commit_one(&desk.app, &desk.anna, UploadId::generate(), file).await.unwrap();
    assert_eq!((touched.version, touched.mode, touched.modify_time.unwrap().seconds), (1, 0o600, 5));
    assert_ne!(touched.etag, first.etag);
    assert_eq!(desk.used("home/anna"), (4, 1));
    desk.check();
}

#[tokio::test]
async fn expectations_hold() {
    let desk = Desk::new().await;
    let put = |at: &'static str, data: &'static [u8], expected| put(&desk.app, &desk.anna, at, data, expected);
    refused(put("home:a", b"1", Expected::Version(1)).await, Reason::VersionStale);
    refused(put("home:a", b"1", Expected::Version(0)).await, Reason::FieldInvalid);
    put("home:a", b"1", Expected::Absent).await.unwrap();
    refused(put("home:a", b"2", Expected::Absent).await, Reason::EntryExists);
    refused(put("home:a", b"2", Expected::Version(2)).await, Reason::VersionStale);
    assert_eq!(put("home:a", b"2", Expected::Version(1)).await.unwrap().version, 2);
    refused(put("home:A", b"2", Expected::Any).await, Reason::NameClash);
    desk.dir("home:d").await;
    refused(put("home:d", b"2", Expected::Any).await, Reason::IsADirectory);
    refused(put("home:d", b"2", Expected::Absent).await, Reason::EntryExists);
    refused(put("home:a/b", b"2", Expected::Any).await, Reason::NotADirectory);
    refused(put("home:x/b", b"2", Expected::Any).await, Reason::EntryUnknown);
    refused(put("home:", b"2", Expected::Any).await, Reason::IsADirectory);
    desk.check();
}

#[tokio::test]
async fn a_commit_that_is_sent_again_gives_the_same_results() {
    let desk = Desk::new().await;
    desk.file("home:kept", b"before").await;
    let upload = UploadId::generate();
    let mut files = Vec::new();
    for (at, data, expected) in [
        ("home:new", &b"n"[..], Expected::Absent),
        ("home:kept", b"changed", Expected::Version(1)),
        ("home:any/deep/one", b"o", Expected::Any),
    ] {
        let chunks = send(&desk.app, &desk.anna, upload, data);
        files.push(FileCommit { make_parents: true, ..order(at, chunks, expected) });
    }
    let orders = || files.iter().cloned().map(Ok).collect::<Vec<_>>();
    let first = commits::commit(&desk.app, &desk.anna, upload, orders()).await.unwrap();
    let first: Vec<_> = first.into_iter().map(|r| r.unwrap()).collect();
    let used = desk.used("home/anna");

    let again = commits::commit(&desk.app, &desk.anna, upload, orders()).await.unwrap();
    assert_eq!(again.into_iter().map(|r| r.unwrap()).collect::<Vec<_>>(), first);
    // Grouped otherwise, after a restart (nothing is proven), and after somebody else's version.
    desk.file("home:new", b"later").await;
    let fresh = Desk { app: restarted(&desk), ..desk };
    for (file, then) in files.iter().cloned().zip(&first).rev() {
        let result = commit_one(&fresh.app, &fresh.anna, upload, file).await.unwrap();
        assert_eq!((result.version, result.id, result.size_bytes), (then.version, then.id, then.size_bytes));
    }
    assert_eq!(fresh.read("home:new", 0), b"later", "the repetition has not undone the change after it");
    assert_eq!(fresh.used("home/anna").0, used.0 + 5);
    fresh.check();
}

/// The same stores with nothing in memory.
fn restarted(desk: &Desk) -> central_server::app::App {
    let mut app = desk.app.clone();
    app.files = Default::default();
    app
}

#[tokio::test]
async fn knowing_a_digest_does_not_give_the_content() {
    let desk = Desk::new().await;
    let secret = b"known only to anna".repeat(200);
    desk.file("home:secret", &secret).await;
    desk.put(&desk.anna, "public:plans/shown", b"shown to all").await.unwrap();
    let chunks = chunks_of(&secret);

    let upload = UploadId::generate();
    let asked = commits::find_missing(&desk.app, &desk.bert, upload, chunks.clone(), vec![]).await.unwrap();
    assert_eq!(asked, (0..chunks.len() as u32).collect::<Vec<_>>(), "it is there, but not for bert");
    let bases = vec![path("home/anna:secret"), path("public:plans/shown"), path("public:plans/none"), path("home:")];
    let asked = commits::find_missing(&desk.app, &desk.bert, upload, chunks.clone(), bases).await.unwrap();
    assert_eq!(asked.len(), chunks.len(), "a base that he cannot read proves nothing");
    let result = commit_one(&desk.app, &desk.bert, upload, order("home:mine", chunks.clone(), Expected::Any)).await;
    let refused = result.unwrap_err();
    assert!(refused.error.is(Reason::ChunksMissing));
    assert_eq!(refused.missing, (0..chunks.len() as u32).collect::<Vec<_>>());
    assert_eq!(desk.used("home/bert"), (0, 0));

    // A base that he can read does.
    let shown = chunks_of(b"shown to all");
    let both: Vec<ChunkRef> = [&chunks[..1], &shown[..]].concat();
    let bases = vec![path("public:plans/shown")];
    let asked = commits::find_missing(&desk.app, &desk.bert, upload, both, bases).await.unwrap();
    assert_eq!(asked, [0]);
    let mine = commit_one(&desk.app, &desk.bert, upload, order("home:mine", shown, Expected::Any)).await.unwrap();
    assert_eq!(read(&desk.app, &desk.bert, "home:mine", 0), b"shown to all");
    assert_eq!(mine.author, "bert");

    // Anna's upload is nobody else's.
    let hers = UploadId::generate();
    send(&desk.app, &desk.anna, hers, &secret);
    is(uploads::begin(&desk.app, &desk.bert, hers).map(drop), Reason::UploadInvalid);
    is(
        commits::commit(&desk.app, &desk.bert, hers, vec![Ok(order("home:x", chunks.clone(), Expected::Any))])
            .await
            .map(drop),
        Reason::UploadInvalid,
    );
    is(commits::find_missing(&desk.app, &desk.bert, hers, chunks, vec![]).await.map(drop), Reason::UploadInvalid);
    desk.check();
}

#[tokio::test]
async fn chunks_that_are_not_there_or_of_another_length_are_named() {
    let desk = Desk::new().await;
    let upload = UploadId::generate();
    let mut chunks = send(&desk.app, &desk.anna, upload, &[1; 2 * crate::desk::CHUNK + 10]);
    chunks[2].len += 1;
    chunks.insert(1, ChunkRef { id: ChunkId::of(b"never sent"), len: 10 });
    let result = commit_one(&desk.app, &desk.anna, upload, order("home:a/b", chunks.clone(), Expected::Any)).await;
    refused(result, Reason::EntryUnknown);
    let mut file = order("home:a/b", chunks, Expected::Any);
    file.make_parents = true;
    let result = commit_one(&desk.app, &desk.anna, upload, file).await.unwrap_err();
    assert!(result.error.is(Reason::ChunksMissing));
    assert_eq!(result.missing, [1, 3]);
    desk.gone("home:a");
    assert_eq!(desk.used("home/anna"), (0, 0), "not even the parents were made");
    desk.check();
}

#[tokio::test]
async fn each_file_of_a_commit_stands_for_itself() {
    let desk = Desk::new().await;
    desk.limit("home/anna", 10).await;
    let upload = UploadId::generate();
    let chunks = |data: &[u8]| send(&desk.app, &desk.anna, upload, data);
    let file = |at: &str, data: &[u8]| FileCommit { make_parents: true, ..order(at, chunks(data), Expected::Any) };
    let files = vec![
        Ok(file("home:d/one", b"12345")),
        Ok(file("home:e/too-much", b"1234567890")),
        Err(EntryPath::new("home", "../x").unwrap_err()),
        Ok(file("home:d/two", b"67890")),
        Ok(file("public:none/x", b"1")),
        Ok(file("public:board/x", b"1")),
        Ok(file("home:d/one/below", b"")),
        Ok(file("home:d/one", b"")),
        Ok(file("home:d/last", b"x")),
    ];
    let results = commits::commit(&desk.app, &desk.anna, upload, files).await.unwrap();
    let words: Vec<String> = results
        .iter()
        .map(|r| match r {
            Ok(entry) => format!("v{}", entry.version),
            Err(refused) => refused.error.reason().to_owned(),
        })
        .collect();
    assert_eq!(
        words,
        [
            "v1",
            "QUOTA_EXCEEDED",
            "NAME_INVALID",
            "v1",
            "DIRECTORY_UNKNOWN",
            "ACCESS_DENIED",
            "NOT_A_DIRECTORY",
            "v2",
            "QUOTA_EXCEEDED"
        ]
    );
    desk.gone("home:e");
    assert_eq!(desk.used("home/anna"), (10, 3));
    desk.check();
}

#[tokio::test]
async fn many_files_go_in_several_transactions() {
    let desk = Desk::new().await;
    let upload = UploadId::generate();
    let chunks = send(&desk.app, &desk.anna, upload, b"small");
    let deep =
        |n: usize| format!("home:{}/f{n}", (0..60).map(|d| format!("{}-{d}", n % 7)).collect::<Vec<_>>().join("/"));
    let files: Vec<_> = (0..commits::MAX_FILES)
        .map(|n| Ok(FileCommit { make_parents: true, ..order(&deep(n), chunks.clone(), Expected::Absent) }))
        .collect();
    let before = desk.app.store.revision();
    let results = commits::commit(&desk.app, &desk.anna, upload, files).await.unwrap();
    assert!(results.iter().all(|r| r.as_ref().is_ok_and(|e| e.version == 1)));
    assert!(desk.app.store.revision() - before > 2);
    assert_eq!(desk.used("home/anna"), (5_000, 1_000 + 7 * 60));
    desk.check();

    let too_many: Vec<_> =
        (0..=commits::MAX_FILES).map(|_| Ok(order("home:x", chunks.clone(), Expected::Any))).collect();
    is(commits::commit(&desk.app, &desk.anna, upload, too_many).await.map(drop), Reason::FieldInvalid);
    let long = vec![chunks[0]; commits::MAX_CHUNKS + 1];
    let long = vec![Ok(order("home:x", long, Expected::Any))];
    is(commits::commit(&desk.app, &desk.anna, upload, long).await.map(drop), Reason::FieldInvalid);
}

#[tokio::test]
async fn a_long_manifest_is_kept_in_chunks_and_read_in_pages() {
    let desk = Desk::new().await;
    let upload = UploadId::generate();
    let one = send(&desk.app, &desk.anna, upload, b"a chunk")[0];
    let two = send(&desk.app, &desk.anna, upload, b"another")[0];
    let count = versions::CHUNKS_PER_MANIFEST + 100;
    let chunks: Vec<ChunkRef> = (0..count).map(|n| if n % 3 == 0 { two } else { one }).collect();
    let entry =
        commit_one(&desk.app, &desk.anna, upload, order("home:long", chunks.clone(), Expected::Any)).await.unwrap();
    assert_eq!(entry.size_bytes, 7 * count as u64);
    assert_eq!(&versions::open(&desk.app, &desk.anna, &path("home:long"), 0).unwrap().chunks[..], &chunks[..]);
    let (mut token, mut found) = (String::new(), Vec::new());
    loop {
        let page = versions::manifest(&desk.app, &desk.anna, &path("home:long"), 0, 60_000, &token).await.unwrap();
        assert_eq!((page.version, page.size_bytes), (1, entry.size_bytes));
        found.extend(page.chunks);
        if page.next_page_token.is_empty() {
            break;
        }
        // A new version while the pages are read: the token keeps to the old one.
        if token.is_empty() {
            desk.file("home:long", b"short").await;
        }
        token = page.next_page_token;
    }
    assert_eq!(found, chunks);
    let other = versions::manifest(&desk.app, &desk.anna, &path("home:long"), 1, 1, &token).await;
    is(other.map(drop), Reason::PageTokenInvalid);
    let short = versions::manifest(&desk.app, &desk.anna, &path("home:long"), 0, 0, "").await.unwrap();
    assert_eq!((short.version, short.chunks.len()), (2, 1));
    desk.check();
}

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

#[tokio::test]
async fn a_full_disk_refuses_content_and_lets_everything_else_go_on() {
    let desk = Desk::with(|s| s.files.max_file = ByteSize(1_000)).await;
    desk.file("home:a", b"a").await;
    desk.app.files.set_disk_full(true);
    let upload = UploadId::generate();
    let files = vec![Ok(order("home:b", vec![], Expected::Any))];
    is(commits::commit(&desk.app, &desk.anna, upload, files).await.map(drop), Reason::DiskFull);
    assert_eq!(desk.read("home:a", 0), b"a");
    let id = delete(&desk, "home:a", false).await.unwrap();
    trash::purge(&desk.app, &desk.anna, RootName::OwnHome, Some(id)).await.unwrap();
    desk.app.files.set_disk_full(false);
    desk.file("home:a", &[1; 1_000]).await;
    refused(desk.put(&desk.anna, "home:b", &[1; 1_001]).await, Reason::FileTooLarge);
    desk.check();
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
    // Leases of this test's uploads are the store's own affair; end them.
    for _ in 0..2 {
        reclaim::pass(&desk.app).await.unwrap();
    }
    desk.check();
    assert_eq!(desk.read("home:a", 1), b"version one");
    desk.office.advance(LEASE_IDLE.as_secs() + 1);
    desk.app.files.uploads.expire(desk.app.clock.now_ms());
    assert_eq!(desk.app.files.uploads.count(), (0, 0));
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
