//! Publishing files: uploads, commits, manifests.

use crate::desk::{CHUNK, Desk, chunks_of, commit_one, delete, is, order, path, put, read, refused, restarted, send};
use central_server::app::commits::{Expected, FileCommit};
use central_server::app::entries::FileTime;
use central_server::app::{commits, trash, uploads, versions};
use common::error::Reason;
use common::model::{ChunkId, ChunkRef, EntryPath, RootName, UploadId};
use common::settings::ByteSize;

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
    let mut chunks = send(&desk.app, &desk.anna, upload, &[1; 2 * CHUNK + 10]);
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
