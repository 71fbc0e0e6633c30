//! Backups, and offices that are made of them.

use crate::fixture::{PASSWORD, attempt};
use crate::server::{TestServer, settings};
use bytes::Bytes;
use central_server::Settings;
use central_server::app::{backup, sessions};
use common::error::{Error, Reason};
use common::model::{ChunkId, Role, UploadId};
use common::tls::OfficeCa;
use proto::v1;
use proto::v1::admin_service_client::AdminServiceClient;
use std::path::Path;

async fn take(server: &TestServer, directory: &Path) -> Result<v1::BackupResponse, Error> {
    let request = v1::BackupRequest { directory: directory.display().to_string() };
    let mut admin = AdminServiceClient::new(server.local().control());
    let mut stream = admin.backup(request).await?.into_inner();
    let mut last = None;
    while let Some(message) = stream.message().await? {
        last = Some(message);
    }
    Ok(last.expect("a last message"))
}

/// The restore is for a thread that may block.
fn restore(from: &Path, to: &Path, settings: &Settings) -> Result<backup::Restored, Error> {
    tokio::task::block_in_place(|| backup::restore(from, to, settings, None))
}

fn store_chunk(server: &TestServer, content: &'static [u8]) -> ChunkId {
    let chunks = &server.running.app().chunks;
    let lease = chunks.lease(UploadId::generate());
    let id = ChunkId::of(content);
    chunks.append(id, &[Bytes::from_static(content)], &lease).unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_becomes_an_office_that_works() {
    let server = TestServer::start().await;
    server.token("anna", Role::Member).await;
    let id = store_chunk(&server, b"content that is to survive");
    let ca = server.running.ca_pem().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("backup");
    let first = take(&server, &to).await.unwrap();
    assert!(first.done && first.revision > 0 && first.copied_bytes == first.total_bytes);
    // A second one copies the metadata and what is new, and replaces the first.
    server.token("bert", Role::Member).await;
    let second = take(&server, &to).await.unwrap();
    assert!(second.revision > first.revision && second.copied_bytes < second.total_bytes);
    let stores = std::fs::read_dir(&to)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("store-"));
    assert_eq!(stores.count(), 1);
    server.stop().await;

    let fresh = tempfile::tempdir().unwrap();
    let data = fresh.path().join("data");
    let restored = restore(&to, &data, &settings(fresh.path())).unwrap();
    assert_eq!((restored.manifest.revision, restored.chunk_count), (second.revision, 1));
    let server = TestServer::in_directory(fresh, |_| {}).await;
    assert_eq!(server.running.ca_pem(), ca);
    let app = server.running.app();
    for name in ["anna", "bert"] {
        sessions::login(app, attempt(name, PASSWORD, "192.0.2.1")).await.unwrap();
    }
    assert_eq!(&app.chunks.read(&id, 0..26, true).unwrap()[..], b"content that is to survive");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_refused_and_leaves_nothing() {
    let server = TestServer::start().await;
    store_chunk(&server, &[7; 5000]);
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("backup");
    take(&server, &to).await.unwrap();
    server.stop().await;
    let manifest = backup::read_manifest(&to).unwrap();
    let segment = format!("chunks/{}", manifest.segments.iter().find(|s| s.ends_with(".seg")).unwrap());
    for file in ["backup.json", "backup.sig", &manifest.store.name, "keys/ca.pem", &segment] {
        let path = to.join(file);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 0x40;
        std::fs::write(&path, &bad).unwrap();
        let fresh = tempfile::tempdir().unwrap();
        let error = restore(&to, &fresh.path().join("data"), &settings(fresh.path())).expect_err(file);
        assert_eq!(error.kind(), common::error::Kind::DataLoss, "{file}: {error:?}");
        assert_eq!(std::fs::read_dir(fresh.path()).unwrap().count(), 0, "{file}");
        std::fs::write(&path, &good).unwrap();
    }
    let fresh = tempfile::tempdir().unwrap();
    restore(&to, &fresh.path().join("data"), &settings(fresh.path())).unwrap();
    let error = restore(&to, &fresh.path().join("data"), &settings(fresh.path())).unwrap_err();
    assert!(error.is(Reason::FieldInvalid), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_to_a_place_of_its_own() {
    let server = TestServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let full = dir.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("thesis.odt"), b"x").unwrap();
    let inside = server.directory.path().join("data/backup");
    for bad in [Path::new("relative"), Path::new(""), &inside, &full, Path::new("/tmp/../tmp/x")] {
        let error = take(&server, bad).await.expect_err("refused");
        assert!(error.is(Reason::FieldInvalid), "{bad:?}: {error:?}");
    }
    assert!(full.join("thesis.odt").exists());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_reads_everything_and_reclaiming_frees_what_nobody_needs() {
    let server = TestServer::start().await;
    store_chunk(&server, b"one");
    store_chunk(&server, b"two");
    let mut admin = AdminServiceClient::new(server.local().control());
    let mut stream = admin.scrub(v1::ScrubRequest::default()).await.unwrap().into_inner();
    let mut last = v1::ScrubResponse::default();
    while let Some(message) = stream.message().await.unwrap() {
        last = message;
    }
    assert!(last.done && last.damaged.is_empty());
    assert_eq!((last.chunk_count, last.read_bytes), (2, 6));
    let pass = admin.reclaim_space(v1::ReclaimSpaceRequest {}).await.unwrap().into_inner();
    assert_eq!((pass.candidate_count, pass.removed_count), (2, 0), "both are under a lease or were seen in this epoch");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_known_by_the_offices_signature() {
    let server = TestServer::start().await;
    let ca = server.running.ca_pem().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("backup");
    take(&server, &to).await.unwrap();
    server.stop().await;
    let restore = |trusted: Option<&str>| {
        let fresh = tempfile::tempdir().unwrap();
        let data = fresh.path().join("data");
        tokio::task::block_in_place(|| backup::restore(&to, &data, &settings(fresh.path()), trusted))
    };
    assert!(restore(Some(&ca)).unwrap().verified);
    assert!(!restore(None).unwrap().verified, "whole, but nobody said whose it must be");
    let stranger = OfficeCa::create("another", 1_700_000_000_000).unwrap();
    let error = restore(Some(stranger.ca_pem())).unwrap_err();
    assert!(error.is(Reason::StoreCorrupt) && error.message().contains("signature"), "{error:?}");
    // Certificates of both offices: one that fits is enough, as while a CA is replaced.
    assert!(restore(Some(&format!("{}{ca}", stranger.ca_pem()))).unwrap().verified);

    // Somebody changes it, makes all digests fit, and signs it with a key of their own.
    let text = std::fs::read_to_string(to.join("backup.json")).unwrap();
    let forged = text.replace("\"office\":", "\"office\" :");
    assert_ne!(forged, text);
    std::fs::write(to.join("backup.json"), &forged).unwrap();
    std::fs::write(to.join("backup.b3"), blake3::hash(forged.as_bytes()).to_hex().as_bytes()).unwrap();
    for trusted in [None, Some(&ca[..])] {
        assert!(restore(trusted).unwrap_err().is(Reason::StoreCorrupt), "the old signature");
    }
    std::fs::write(to.join("backup.sig"), stranger.sign(forged.as_bytes()).unwrap()).unwrap();
    for trusted in [None, Some(&ca[..])] {
        assert!(restore(trusted).unwrap_err().is(Reason::StoreCorrupt), "a stranger's signature");
    }
    std::fs::remove_file(to.join("backup.sig")).unwrap();
    assert!(restore(None).unwrap_err().is(Reason::StoreCorrupt), "no signature");
}
