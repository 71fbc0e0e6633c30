//! Hostile messages to the file and directory services: each is refused with the documented reason and leaves nothing.

use crate::desk::{Desk, chunks_of, send};
use central_server::app::caller::Caller;
use central_server::grpc::directory::Directories;
use central_server::grpc::file::Files;
use common::error::Error;
use common::model::UploadId;
use common::status::from_status;
use proto::v1;
use proto::v1::directory_service_server::DirectoryService;
use proto::v1::file_service_server::FileService;
use tonic::{Request, Response, Status};
use uuid::Uuid;

fn from<T>(who: &Caller, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(who.clone());
    request
}

fn reason<T>(result: Result<Response<T>, Status>) -> String {
    match result {
        Ok(_) => "OK".to_owned(),
        Err(status) => from_status(&status).reason().to_owned(),
    }
}

fn at(root: &str, path: &str) -> Option<v1::Path> {
    Some(v1::Path { root: root.into(), path: path.into() })
}

fn commit(path: Option<v1::Path>) -> v1::FileCommit {
    v1::FileCommit { path, expected: Some(v1::file_commit::Expected::Any(true)), ..Default::default() }
}

fn chunk(digest: &[u8], length_bytes: u32) -> v1::Chunk {
    v1::Chunk { digest: bytes::Bytes::copy_from_slice(digest), length_bytes }
}

/// Commits one file and gives the item's reason, or the call's.
async fn publish(files: &Files, who: &Caller, upload: &str, file: v1::FileCommit) -> (String, Vec<u32>) {
    let request = v1::CommitFilesRequest { upload_id: upload.into(), files: vec![file] };
    match files.commit_files(from(who, request)).await {
        Err(status) => (from_status(&status).reason().to_owned(), vec![]),
        Ok(response) => {
            let result = response.into_inner().results.remove(0);
            match result.result {
                Some(v1::file_commit_result::Result::Entry(_)) => ("OK".into(), vec![]),
                Some(v1::file_commit_result::Result::Error(error)) => {
                    assert!(!error.why.is_empty() && !error.fix.is_empty(), "{error:?}");
                    (error.reason, result.missing_chunks)
                }
                None => panic!("no result"),
            }
        }
    }
}

#[tokio::test]
async fn hostile_names_and_paths() {
    let desk = Desk::new().await;
    let files = Files::new(desk.app.clone());
    let long = "x".repeat(256);
    let deep = vec!["a"; 129].join("/");
    let wide = vec!["x".repeat(200); 21].join("/");
    let cases: [(&str, &str, &str); 20] = [
        ("home", "..", "NAME_INVALID"),
        ("home", ".", "NAME_INVALID"),
        ("home", "a/../b", "NAME_INVALID"),
        ("home", "/a", "NAME_INVALID"),
        ("home", "a/", "NAME_INVALID"),
        ("home", "a//b", "NAME_INVALID"),
        ("home", "a\0b", "NAME_INVALID"),
        ("home", "a\nb", "NAME_INVALID"),
        ("home", "x\u{202e}gpj.exe", "NAME_INVALID"),
        ("home", &long, "NAME_INVALID"),
        ("home", &deep, "PATH_INVALID"),
        ("home", &wide, "PATH_INVALID"),
        ("", "a", "PATH_INVALID"),
        ("home/", "a", "PATH_INVALID"),
        ("home/anna/b", "a", "PATH_INVALID"),
        ("public", "a", "PATH_INVALID"),
        ("public/", "a", "PATH_INVALID"),
        ("public/..", "a", "PATH_INVALID"),
        ("s/home/anna", "a", "PATH_INVALID"),
        ("HOME", "a", "PATH_INVALID"),
    ];
    for (root, path, expected) in cases {
        let place = || at(root, path);
        let get = files.get_entry(from(&desk.anna, v1::GetEntryRequest { path: place() })).await;
        assert_eq!(reason(get), expected, "{root:?} {path:?}");
        let make = v1::MakeDirectoryRequest { path: place(), parents: true, ..Default::default() };
        assert_eq!(reason(files.make_directory(from(&desk.anna, make)).await), expected);
        let upload = Uuid::now_v7().to_string();
        assert_eq!(publish(&files, &desk.anna, &upload, commit(place())).await.0, expected);
        let order = v1::MoveEntryRequest { source: at("home", "x"), destination: place(), ..Default::default() };
        assert_eq!(reason(files.move_entry(from(&desk.anna, order)).await), expected);
    }
    // Names that only look special are names.
    for name in ["...", "con", "a:b", "\\", "~", "-rf", "日本", "\u{1F600}"] {
        let make = v1::MakeDirectoryRequest { path: at("home", name), ..Default::default() };
        assert_eq!(reason(files.make_directory(from(&desk.anna, make)).await), "OK", "{name}");
    }
    desk.check();
}

#[tokio::test]
async fn messages_with_nothing_in_them() {
    let desk = Desk::new().await;
    let (files, roots) = (Files::new(desk.app.clone()), Directories::new(desk.app.clone()));
    macro_rules! refused {
        ($($service:ident.$method:ident($request:ty) $expected:literal;)*) => {$(
            let got = reason($service.$method(from(&desk.chef, <$request>::default())).await);
            assert_eq!(got, $expected, stringify!($method));
            let got = reason($service.$method(Request::new(<$request>::default())).await);
            assert!(got != "OK" && got != "INTERNAL", "{} by nobody: {got}", stringify!($method));
        )*};
    }
    refused! {
        files.get_entry(v1::GetEntryRequest) "FIELD_INVALID";
        files.list_entries(v1::ListEntriesRequest) "FIELD_INVALID";
        files.make_directory(v1::MakeDirectoryRequest) "FIELD_INVALID";
        files.move_entry(v1::MoveEntryRequest) "FIELD_INVALID";
        files.copy_entry(v1::CopyEntryRequest) "FIELD_INVALID";
        files.delete_entry(v1::DeleteEntryRequest) "FIELD_INVALID";
        files.list_trash(v1::ListTrashRequest) "PATH_INVALID";
        files.restore_trash(v1::RestoreTrashRequest) "PATH_INVALID";
        files.purge_trash(v1::PurgeTrashRequest) "PATH_INVALID";
        files.list_versions(v1::ListVersionsRequest) "FIELD_INVALID";
        files.restore_version(v1::RestoreVersionRequest) "FIELD_INVALID";
        files.lock_entry(v1::LockEntryRequest) "FIELD_INVALID";
        files.unlock_entry(v1::UnlockEntryRequest) "FIELD_INVALID";
        files.get_manifest(v1::GetManifestRequest) "FIELD_INVALID";
        files.find_missing_chunks(v1::FindMissingChunksRequest) "UPLOAD_INVALID";
        files.commit_files(v1::CommitFilesRequest) "UPLOAD_INVALID";
        files.issue_read_ticket(v1::IssueReadTicketRequest) "FIELD_INVALID";
        roots.get_directory(v1::GetDirectoryRequest) "PATH_INVALID";
        roots.create_directory(v1::CreateDirectoryRequest) "PATH_INVALID";
        roots.update_directory(v1::UpdateDirectoryRequest) "PATH_INVALID";
        roots.delete_directory(v1::DeleteDirectoryRequest) "PATH_INVALID";
        roots.grant_right(v1::GrantRightRequest) "PATH_INVALID";
        roots.revoke_right(v1::RevokeRightRequest) "PATH_INVALID";
        roots.explain_right(v1::ExplainRightRequest) "PATH_INVALID";
    }
    desk.check();
}

#[tokio::test]
async fn hostile_commits() {
    let desk = Desk::new().await;
    let files = Files::new(desk.app.clone());
    let upload = UploadId::generate();
    let good = send(&desk.app, &desk.anna, upload, b"content");
    let id = good[0].id.as_bytes().to_vec();
    let upload = upload.to_string();
    let file = |chunks: Vec<v1::Chunk>| v1::FileCommit { chunks, ..commit(at("home", "f")) };
    let expect = |expected| v1::FileCommit { expected, ..commit(at("home", "f")) };
    use v1::file_commit::Expected as E;
    let time = |seconds, nanos| {
        let modify_time = Some(prost_types::Timestamp { seconds, nanos });
        v1::FileCommit { modify_time, ..commit(at("home", "f")) }
    };
    let cases = [
        (file(vec![chunk(&id[..31], 7)]), "FIELD_INVALID"),
        (file(vec![chunk(&[], 7)]), "FIELD_INVALID"),
        (file(vec![chunk(&id, 0)]), "FIELD_INVALID"),
        (file(vec![chunk(&id, 4 * 1024 * 1024 + 1)]), "FIELD_INVALID"),
        (file(vec![chunk(&id, u32::MAX)]), "FIELD_INVALID"),
        (file(vec![chunk(&id, 8)]), "CHUNKS_MISSING"),
        (file(vec![chunk(&id, 6)]), "CHUNKS_MISSING"),
        (file(vec![chunk(&[9; 32], 7)]), "CHUNKS_MISSING"),
        (expect(None), "FIELD_INVALID"),
        (expect(Some(E::Any(false))), "FIELD_INVALID"),
        (expect(Some(E::Absent(false))), "FIELD_INVALID"),
        (expect(Some(E::Version(0))), "FIELD_INVALID"),
        (expect(Some(E::Version(u64::MAX))), "VERSION_STALE"),
        (time(i64::MAX, 0), "FIELD_INVALID"),
        (time(i64::MIN, 0), "FIELD_INVALID"),
        (time(0, -1), "FIELD_INVALID"),
        (time(0, i32::MAX), "FIELD_INVALID"),
        (v1::FileCommit { fencing_token: u64::MAX, ..commit(at("home", "f")) }, "LOCK_LOST"),
        (commit(at("home", "")), "IS_A_DIRECTORY"),
        (commit(None), "FIELD_INVALID"),
        (commit(at("home/bert", "f")), "DIRECTORY_UNKNOWN"),
    ];
    for (file, expected) in cases {
        let text = format!("{file:?}");
        assert_eq!(publish(&files, &desk.anna, &upload, file).await.0, expected, "{text}");
    }
    desk.gone("home:f");
    for bad in ["", "x", "00000000-0000-0000-0000-000000000000", "../../etc/passwd"] {
        assert_eq!(publish(&files, &desk.anna, bad, commit(at("home", "f"))).await.0, "UPLOAD_INVALID", "{bad}");
        let ask = v1::FindMissingChunksRequest { upload_id: bad.into(), ..Default::default() };
        assert_eq!(reason(files.find_missing_chunks(from(&desk.anna, ask)).await), "UPLOAD_INVALID");
    }
    // Another's upload id, and another's chunk under an own one.
    let stolen = || file(vec![chunk(&id, 7)]);
    assert_eq!(publish(&files, &desk.bert, &upload, stolen()).await.0, "UPLOAD_INVALID");
    let own = Uuid::now_v7().to_string();
    assert_eq!(publish(&files, &desk.bert, &own, stolen()).await, ("CHUNKS_MISSING".into(), vec![0]));
    // Unix types and setuid bits are not taken; a mode is nine bits.
    let mode = v1::FileCommit { mode: 0o104_755, ..stolen() };
    assert_eq!(publish(&files, &desk.anna, &upload, mode).await.0, "OK");
    assert_eq!(desk.look("home:f").mode, 0o755);

    let many = v1::CommitFilesRequest { upload_id: upload.clone(), files: vec![commit(at("home", "m")); 1_001] };
    assert_eq!(reason(files.commit_files(from(&desk.anna, many)).await), "FIELD_INVALID");
    let heavy = v1::CommitFilesRequest {
        upload_id: upload.clone(),
        files: vec![v1::FileCommit { chunks: vec![chunk(&id, 7); 65_537], ..commit(at("home", "m")) }; 4],
    };
    assert_eq!(reason(files.commit_files(from(&desk.anna, heavy)).await), "FIELD_INVALID");
    desk.gone("home:m");
    let ask = |chunks, bases| v1::FindMissingChunksRequest { upload_id: upload.clone(), chunks, bases };
    let cases = [
        (ask(vec![chunk(&id, 7); 65_537], vec![]), "FIELD_INVALID"),
        (ask(vec![], vec![at("home", "f").unwrap(); 17]), "FIELD_INVALID"),
        (ask(vec![chunk(&id[..5], 7)], vec![]), "FIELD_INVALID"),
        (ask(vec![], vec![at("home", "..").unwrap()]), "NAME_INVALID"),
        (ask(vec![chunk(&id, 7)], vec![at("home", "none").unwrap(), at("home", "f").unwrap()]), "OK"),
    ];
    for (request, expected) in cases {
        assert_eq!(reason(files.find_missing_chunks(from(&desk.anna, request)).await), expected);
    }
    desk.check();
}

#[tokio::test]
async fn hostile_tokens_ids_and_sizes() {
    let desk = Desk::new().await;
    let files = Files::new(desk.app.clone());
    desk.file("home:f", b"1").await;
    desk.file("home:f", b"2").await;
    for token in ["x", "00", "zz00", &"0".repeat(5_000), "00000000000000000000000000000000", "\0", "ä"] {
        let page_token = token.to_owned();
        let list = v1::ListEntriesRequest { path: at("home", ""), page_token: page_token.clone(), page_size: 1 };
        assert_eq!(reason(files.list_entries(from(&desk.anna, list)).await), "PAGE_TOKEN_INVALID", "{token:?}");
        let list = v1::ListTrashRequest { root: "home".into(), page_token: page_token.clone(), page_size: 1 };
        assert_eq!(reason(files.list_trash(from(&desk.anna, list)).await), "PAGE_TOKEN_INVALID");
        let list = v1::ListVersionsRequest { path: at("home", "f"), page_token: page_token.clone(), page_size: 1 };
        assert_eq!(reason(files.list_versions(from(&desk.anna, list)).await), "PAGE_TOKEN_INVALID");
        let list = v1::GetManifestRequest { path: at("home", "f"), page_token, ..Default::default() };
        assert_eq!(reason(files.get_manifest(from(&desk.anna, list)).await), "PAGE_TOKEN_INVALID");
    }
    // A token of another list.
    let list = v1::ListVersionsRequest { path: at("home", "f"), page_size: 1, ..Default::default() };
    let page_token = files.list_versions(from(&desk.anna, list)).await.unwrap().into_inner().next_page_token;
    assert!(!page_token.is_empty());
    let list = v1::ListTrashRequest { root: "home".into(), page_token, page_size: 1 };
    assert_eq!(reason(files.list_trash(from(&desk.anna, list)).await), "PAGE_TOKEN_INVALID");
    // The largest sizes are cut, not served.
    let list = v1::ListEntriesRequest { path: at("home", ""), page_size: u32::MAX, ..Default::default() };
    assert_eq!(reason(files.list_entries(from(&desk.anna, list)).await), "OK");
    let get =
        v1::GetManifestRequest { path: at("home", "f"), page_size: u32::MAX, version: u64::MAX, ..Default::default() };
    assert_eq!(reason(files.get_manifest(from(&desk.anna, get)).await), "VERSION_UNKNOWN");

    for id in ["x", "..", "00000000-0000-0000-0000-00000000000g"] {
        let back = v1::RestoreTrashRequest { root: "home".into(), trash_id: id.into(), ..Default::default() };
        assert_eq!(reason(files.restore_trash(from(&desk.anna, back)).await), "FIELD_INVALID");
        let purge = v1::PurgeTrashRequest { root: "home".into(), trash_id: id.into() };
        assert_eq!(reason(files.purge_trash(from(&desk.anna, purge)).await), "FIELD_INVALID");
        let make = v1::MakeDirectoryRequest { path: at("home", "d"), request_id: id.into(), ..Default::default() };
        assert_eq!(reason(files.make_directory(from(&desk.anna, make)).await), "FIELD_INVALID");
    }
    let lock = |lifetime_seconds, note: &str| v1::LockEntryRequest {
        path: at("home", "f"),
        lifetime_seconds,
        note: note.into(),
    };
    for bad in [lock(u64::MAX, ""), lock(2_592_001, ""), lock(1, &"x".repeat(257)), lock(1, "a\u{1b}[31m")] {
        assert_eq!(reason(files.lock_entry(from(&desk.anna, bad)).await), "FIELD_INVALID");
    }
    assert_eq!(reason(files.lock_entry(from(&desk.anna, lock(1, &"ä".repeat(256)))).await), "OK");
    desk.check();
}

#[tokio::test]
async fn hostile_rights() {
    let desk = Desk::new().await;
    let roots = Directories::new(desk.app.clone());
    use v1::principal::Kind;
    let grant = |name: &str, kind: Option<Kind>, right: i32| v1::GrantRightRequest {
        name: name.into(),
        grant: Some(v1::Grant { principal: Some(v1::Principal { kind }), right }),
    };
    let anna = || Some(Kind::User("anna".into()));
    let cases = [
        (grant("public/plans", None, 2), "FIELD_INVALID"),
        (grant("public/plans", Some(Kind::Everyone(false)), 2), "FIELD_INVALID"),
        (grant("public/plans", anna(), 0), "FIELD_INVALID"),
        (grant("public/plans", anna(), 5), "FIELD_INVALID"),
        (grant("public/plans", anna(), -1), "FIELD_INVALID"),
        (grant("public/plans", anna(), i32::MAX), "FIELD_INVALID"),
        (grant("public/plans", Some(Kind::User(String::new())), 2), "FIELD_INVALID"),
        (grant("public/plans", Some(Kind::User("x".repeat(10_000))), 2), "FIELD_INVALID"),
        (grant("public/plans", Some(Kind::User("anna/../chef".into())), 2), "USER_UNKNOWN"),
        (grant("public/plans", Some(Kind::Group("\0".into())), 2), "GROUP_UNKNOWN"),
        (grant("public/plans", Some(Kind::Device("ff".into())), 2), "DEVICE_UNKNOWN"),
        (grant("public/none", anna(), 2), "DIRECTORY_UNKNOWN"),
        (grant("home/anna", anna(), 2), "ACCESS_DENIED"),
        (v1::GrantRightRequest { name: "public/plans".into(), grant: None }, "FIELD_INVALID"),
    ];
    for (request, expected) in cases {
        let text = format!("{request:?}");
        assert_eq!(
            reason(roots.grant_right(from(&desk.chef, request)).await),
            expected,
            "{}",
            &text[..text.len().min(200)]
        );
    }
    let create = |name: &str, grants| v1::CreateDirectoryRequest { name: name.into(), grants, ..Default::default() };
    let one = || v1::Grant { principal: Some(v1::Principal { kind: anna() }), right: 1 };
    for (request, expected) in [
        (create("public/a/b", vec![]), "PATH_INVALID"),
        (create("public/..", vec![]), "PATH_INVALID"),
        (create("home/anna", vec![]), "FIELD_INVALID"),
        (create("home", vec![]), "FIELD_INVALID"),
        (create("public/many", vec![one(); 1_000]), "FIELD_INVALID"),
        (create("public/PLANS", vec![]), "NAME_CLASH"),
    ] {
        assert_eq!(reason(roots.create_directory(from(&desk.chef, request)).await), expected);
    }
    let why = v1::ExplainRightRequest { name: "public/plans".into(), user: "x".repeat(100_000) };
    assert_eq!(reason(roots.explain_right(from(&desk.chef, why)).await), "FIELD_INVALID");
    desk.check();
}

#[tokio::test]
async fn a_request_that_is_sent_again_is_answered_as_before() {
    let desk = Desk::new().await;
    let (files, roots) = (Files::new(desk.app.clone()), Directories::new(desk.app.clone()));
    let id = || Uuid::now_v7().to_string();
    macro_rules! twice {
        ($service:ident.$method:ident($who:expr, $request:expr)) => {{
            let request = $request;
            let first = $service.$method(from($who, request.clone())).await.unwrap().into_inner();
            let revision = desk.app.store.revision();
            let second = $service.$method(from($who, request.clone())).await.unwrap().into_inner();
            assert_eq!(first, second, stringify!($method));
            assert_eq!(desk.app.store.revision(), revision, "nothing was done twice");
            let mut other = request;
            other.request_id = other.request_id.to_uppercase();
            assert_eq!(reason($service.$method(from($who, other)).await), "REQUEST_ID_REUSED");
            first
        }};
    }
    let anna = &desk.anna;
    let request_id = id();
    twice!(files.make_directory(
        anna,
        v1::MakeDirectoryRequest { path: at("home", "d"), parents: false, request_id: request_id.clone() }
    ));
    desk.file("home:f", b"1").await;
    desk.file("home:f", b"22").await;
    let (source, destination) = (at("home", "f"), at("home", "d/g"));
    twice!(
        files.move_entry(anna, v1::MoveEntryRequest { source, destination, request_id: id(), ..Default::default() })
    );
    let (source, destination) = (at("home", "d"), at("home", "e"));
    let copied = twice!(files.copy_entry(anna, v1::CopyEntryRequest { source, destination, request_id: id() }));
    assert_eq!(copied.entry_count, 2);
    let path = at("home", "d/g");
    twice!(files.restore_version(anna, v1::RestoreVersionRequest { path, version: 1, request_id: id() }));
    let gone =
        v1::DeleteEntryRequest { path: at("home", "d"), recursive: true, request_id: id(), ..Default::default() };
    let trash_id = twice!(files.delete_entry(anna, gone)).trash_id;
    let back = v1::RestoreTrashRequest { root: "home".into(), trash_id, destination: None, request_id: id() };
    twice!(files.restore_trash(anna, back));
    let new = v1::CreateDirectoryRequest { name: "public/new".into(), request_id: id(), ..Default::default() };
    twice!(roots.create_directory(&desk.chef, new));
    // Somebody else's id is another id.
    let same = v1::MakeDirectoryRequest { path: at("home", "d"), parents: false, request_id };
    assert_eq!(reason(files.make_directory(from(&desk.bert, same)).await), "OK");
    desk.check();
}

#[tokio::test]
async fn errors_name_the_field_and_help() {
    let desk = Desk::new().await;
    let files = Files::new(desk.app.clone());
    let request = v1::MoveEntryRequest { source: at("home", "a"), destination: at("home", ".."), ..Default::default() };
    let error: Error = from_status(&files.move_entry(from(&desk.anna, request)).await.unwrap_err());
    assert_eq!(error.detail("field"), Some("destination"));
    assert!(!error.why().is_empty() && !error.fix().is_empty());
    desk.file("home:a", b"1").await;
    let stale = v1::DeleteEntryRequest { path: at("home", "a"), etag: "0-0".into(), ..Default::default() };
    let error = from_status(&files.delete_entry(from(&desk.anna, stale)).await.unwrap_err());
    assert_eq!((error.reason(), error.detail("present_etag")), ("ETAG_STALE", Some(&desk.look("home:a").etag[..])));
    let upload = UploadId::generate();
    send(&desk.app, &desk.anna, upload, b"x");
    let chunks = chunks_of(b"x").iter().map(common::wire::chunk_to).collect();
    desk.limit("home/anna", 1).await;
    let full = v1::FileCommit { chunks, ..commit(at("home", "b")) };
    let (word, missing) = publish(&files, &desk.anna, &upload.to_string(), full).await;
    assert_eq!((&word[..], missing), ("QUOTA_EXCEEDED", vec![]));
}
