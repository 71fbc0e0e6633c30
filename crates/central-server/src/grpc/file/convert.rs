//! File messages into what the application takes, and back. Received messages are checked here, once.

use crate::app::commits::{Expected, FileCommit, MAX_CHUNKS, Published};
use crate::app::entries::{Entry, FileTime};
use crate::app::trash::Deleted;
use crate::app::versions::Version;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::{EntryPath, RootName, UploadId};
use common::status::to_item_error;
use common::wire;
use prost_types::Timestamp;
use proto::v1;
use uuid::Uuid;

pub use common::wire::timestamp_from_ms as timestamp;

/// The refusal of a field.
pub fn invalid(field: &str, message: impl Into<String>) -> Error {
    Error::new(Reason::FieldInvalid, message).with("field", field)
}

/// A required path.
///
/// # Errors
/// `FIELD_INVALID`, `PATH_INVALID`, `NAME_INVALID`.
pub fn path(path: Option<v1::Path>, field: &str) -> Result<EntryPath> {
    wire::path_from(path.as_ref(), field)
}

/// A root.
///
/// # Errors
/// `PATH_INVALID`.
pub fn root(name: &str, field: &str) -> Result<RootName> {
    RootName::parse(name).map_err(|e| e.with("field", field))
}

/// A UUID that names something in the trash.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn trash_id(text: &str) -> Result<Uuid> {
    Uuid::try_parse(text).map_err(|_| invalid("trash_id", "the trash id is not a UUID"))
}

/// A UUID that names an upload.
///
/// # Errors
/// `UPLOAD_INVALID`.
pub fn upload_id(text: &str) -> Result<UploadId> {
    Uuid::try_parse(text)
        .map(UploadId)
        .map_err(|_| Error::new(Reason::UploadInvalid, "the upload id is not a UUID").with("field", "upload_id"))
}

/// A file to publish.
///
/// # Errors
/// `FIELD_INVALID`, `PATH_INVALID`, `NAME_INVALID`.
pub fn file_commit(file: v1::FileCommit) -> Result<FileCommit> {
    use v1::file_commit::Expected as E;
    let expected = match file.expected {
        Some(E::Any(true)) => Expected::Any,
        Some(E::Absent(true)) => Expected::Absent,
        Some(E::Version(version)) => Expected::Version(version),
        Some(E::Any(false) | E::Absent(false)) | None => {
            return Err(invalid("expected", "it is not said what is expected to be there")
                .fix_is("set one of: any, absent, version"));
        }
    };
    Ok(FileCommit {
        path: path(file.path, "path")?,
        chunks: wire::chunks_from(&file.chunks, MAX_CHUNKS)?,
        expected,
        modify_time: file.modify_time.map(|t| FileTime::new(t.seconds, t.nanos)).transpose()?,
        mode: file.mode & 0o777,
        make_parents: file.make_parents,
        fencing_token: file.fencing_token,
    })
}

/// What became of a file.
pub fn encode_published(published: Published) -> v1::FileCommitResult {
    use v1::file_commit_result::Result as R;
    match published {
        Ok(entry) => v1::FileCommitResult { result: Some(R::Entry(encode_entry(&entry))), missing_chunks: Vec::new() },
        Err(refused) => v1::FileCommitResult {
            result: Some(R::Error(to_item_error(&refused.error))),
            missing_chunks: refused.missing,
        },
    }
}

fn file_time(time: FileTime) -> Timestamp {
    Timestamp { seconds: time.seconds, nanos: time.nanos as i32 }
}

/// An entry with its path.
pub fn encode_entry(entry: &Entry) -> v1::Entry {
    v1::Entry { path: Some(wire::path_to(&entry.path)), ..encode_listed(entry) }
}

/// An entry of a list, without path.
pub fn encode_listed(entry: &Entry) -> v1::Entry {
    v1::Entry {
        path: None,
        uid: entry.id.to_string(),
        kind: if entry.directory { v1::EntryKind::Directory } else { v1::EntryKind::File } as i32,
        size_bytes: entry.size_bytes,
        modify_time: entry.modify_time.map(file_time),
        mode: entry.mode,
        version: entry.version,
        etag: entry.etag.clone(),
        manifest_digest: digest(&entry.manifest_digest),
        author: entry.author.clone(),
        update_time: Some(timestamp(entry.update_ms)),
        lock: entry.lock.as_ref().map(|lock| v1::EntryLock {
            user: lock.user.clone(),
            expire_time: Some(timestamp(lock.expire_ms)),
            fencing_token: lock.fencing_token,
            note: lock.note.clone(),
        }),
        display_name: entry.display_name.clone(),
    }
}

fn digest(digest: &Option<[u8; 32]>) -> Bytes {
    digest.as_ref().map(|d| Bytes::copy_from_slice(d)).unwrap_or_default()
}

/// Something in the trash.
pub fn encode_deleted(deleted: &Deleted) -> v1::list_trash_response::Item {
    v1::list_trash_response::Item {
        trash_id: deleted.id.to_string(),
        entry: Some(encode_entry(&deleted.entry)),
        delete_time: Some(timestamp(deleted.delete_ms)),
        deleted_by: deleted.deleted_by.clone(),
    }
}

/// A version of a file.
pub fn encode_version(version: &Version) -> v1::list_versions_response::Version {
    v1::list_versions_response::Version {
        version: version.version,
        size_bytes: version.size_bytes,
        modify_time: Some(file_time(version.modify_time)),
        update_time: Some(timestamp(version.update_ms)),
        author: version.author.clone(),
        manifest_digest: digest(&version.manifest_digest),
        current: version.current,
    }
}
