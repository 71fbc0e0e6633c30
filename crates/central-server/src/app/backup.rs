//! Backups: everything an office needs to begin again on another machine, in one directory.
//!
//! ```text
//! DIR/backup.json     what belongs to the backup: revision, files with sizes and BLAKE3 digests
//! DIR/backup.b3       BLAKE3 of backup.json
//! DIR/backup.sig      signature of backup.json by the office's key: ECDSA P-256 with SHA-256, DER
//! DIR/store-N.atr     the metadata at revision N (each record in it is checksummed by itself)
//! DIR/chunks/         content; each chunk is verified by its digest
//! DIR/keys/           the office's keys: whoever has them can pose as the server, so the directory is private
//! ```
//!
//! A later backup into the same directory copies only new segments. Until its `backup.json` is in place, which is one
//! rename, the directory is the earlier backup; what only that one needed is removed afterwards. Content is pinned before
//! metadata is read, so that everything the metadata refers to is copied.
//!
//! The digests find what went bad on the medium. The signature says who made the backup: whoever restores names the
//! office's certificate, of which every member has a copy, and gets only what this office wrote. Without it the signature is
//! compared with the certificate in the backup itself, which finds a manifest that was changed and not who changed it. It
//! does not help against someone who can read the backup, since the office's key is in it, nor against an older backup of
//! the same office; the time in the manifest is shown.

use super::office::{Layout, make_private};
use super::{App, references};
use crate::settings::Settings;
use common::chunk::backup::{prune_backup, verify_backup};
use common::chunk::{BackupReport, ChunkStore, ChunkStoreSettings};
use common::clock::SystemClock;
use common::error::{Error, Reason, Result};
use common::identity::{read_secret, write_public, write_secret};
use common::store::Store;
use common::tls::check_office_signature;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

const FORMAT: u32 = 1;
const MANIFEST: &str = "backup.json";
const DIGEST: &str = "backup.b3";
const SIGNATURE: &str = "backup.sig";
/// Keys of an office. The server's own key and certificate would be made anew, but then machines that know its key
/// would wonder.
const KEYS: [&str; 4] = ["ca.key", "ca.pem", "server.key", "server.pem"];
/// A manifest larger than this is none.
const MANIFEST_MAX: u64 = 64 << 20;

/// What a backup consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this file.
    pub format: u32,
    /// Program that wrote it.
    pub version: String,
    /// The office's name.
    pub office: String,
    /// The office's id.
    pub office_uid: String,
    /// The revision it shows.
    pub revision: u64,
    /// When it was made, milliseconds since 1970.
    pub time_ms: u64,
    /// The metadata.
    pub store: FileDigest,
    /// The keys, below `keys/`.
    pub keys: Vec<FileDigest>,
    /// Names of the segments, below `chunks/`.
    pub segments: Vec<String>,
}

/// A file and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its content, hex.
    pub blake3: String,
}

/// How far a backup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes copied.
    pub copied_bytes: u64,
    /// Bytes in all, as far as known.
    pub total_bytes: u64,
}

fn damaged(what: impl Into<String>) -> Error {
    Error::new(Reason::StoreCorrupt, what)
        .why_is("a file of the backup is missing or was changed")
        .fix_is("use another backup")
}

/// Writes a backup. Blocks.
///
/// # Errors
/// `FIELD_INVALID` for a directory that cannot be one, `DISK_FULL`, `IO_FAILED`, those of the stores. An earlier backup
/// in the directory stays usable then.
pub fn write(app: &App, directory: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(Manifest, Progress)> {
    check_target(app, directory)?;
    make_private(directory)?;
    let pin = app.chunks.pin();
    // Everything that is durable from here on refers to content that the pin keeps.
    let fresh = directory.join("store.new");
    let (revision, store_bytes, store_digest) = export_to(&app.store, &fresh)?;
    let name = format!("store-{revision}.atr");
    std::fs::rename(&fresh, directory.join(&name))?;
    let chunks = directory.join("chunks");
    make_private(&chunks)?;
    let done = |copied, total| Progress { copied_bytes: copied + store_bytes, total_bytes: total + store_bytes };
    let report: BackupReport = app.chunks.backup_to(&pin, &chunks, |copied, total| progress(done(copied, total)))?;
    drop(pin);
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        office: app.office.name.clone(),
        office_uid: app.office.uid.to_string(),
        revision,
        time_ms: app.clock.now_ms(),
        store: FileDigest { name, bytes: store_bytes, blake3: store_digest },
        keys: copy_keys(&Layout::new(&app.settings.server.data_directory).keys(), &directory.join("keys"))?,
        segments: report.segments.clone(),
    };
    write_manifest(app, directory, &manifest)?;
    remove_older(directory, &manifest.store.name)?;
    prune_backup(&chunks, &report)?;
    Ok((manifest, done(report.copied_bytes, report.total_bytes)))
}

fn check_target(app: &App, directory: &Path) -> Result<()> {
    let wrong = |what: &str| Err(Error::new(Reason::FieldInvalid, what.to_owned()).with("field", "directory"));
    if !directory.is_absolute() || directory.components().any(|c| c == std::path::Component::ParentDir) {
        return wrong("the backup's directory must be an absolute path without '..'");
    }
    let data = &app.settings.server.data_directory;
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real(directory).starts_with(real(data)) {
        return wrong("a backup inside of the data directory would be lost with it");
    }
    if directory.is_dir() && !directory.join(MANIFEST).exists() && std::fs::read_dir(directory)?.next().is_some() {
        // A backup that was cut off has no manifest, but nothing that is not ours either.
        let ours = |name: &str| name == "store.new" || name == "chunks" || name == "keys" || is_store(name);
        for entry in std::fs::read_dir(directory)? {
            if !entry?.file_name().to_str().is_some_and(ours) {
                return wrong("the directory holds something that is no backup");
            }
        }
    }
    Ok(())
}

fn is_store(name: &str) -> bool {
    name.strip_prefix("store-").and_then(|n| n.strip_suffix(".atr")).is_some_and(|n| n.parse::<u64>().is_ok())
}

fn create(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?)
}

/// Exports the store to a file, durably. Gives revision, size and digest.
fn export_to(store: &Store, path: &Path) -> Result<(u64, u64, String)> {
    let mut writer = Hashing { inner: BufWriter::new(create(path)?), hasher: blake3::Hasher::new(), bytes: 0 };
    let summary = store.export(&mut writer)?;
    writer.flush()?;
    let file = writer.inner.into_inner().map_err(|e| Error::from(e.into_error()))?;
    file.sync_all()?;
    Ok((summary.revision, writer.bytes, writer.hasher.finalize().to_hex().to_string()))
}

struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hasher.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, data: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(data)?;
        self.hasher.update(&data[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

fn copy_keys(from: &Path, to: &Path) -> Result<Vec<FileDigest>> {
    make_private(to)?;
    let mut copied = Vec::new();
    for name in KEYS {
        let path = from.join(name);
        if !path.exists() {
            continue;
        }
        let bytes = if name.ends_with(".key") { read_secret(&path)?.to_vec() } else { std::fs::read(&path)? };
        put_key(&to.join(name), &bytes)?;
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        copied.push(FileDigest { name: name.to_owned(), bytes: bytes.len() as u64, blake3 });
    }
    Ok(copied)
}

fn put_key(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.extension().is_some_and(|e| e == "key") { write_secret(path, bytes) } else { write_public(path, bytes) }
}

/// Digest and signature first: a manifest with another one's is refused, and the next backup mends it.
fn write_manifest(app: &App, directory: &Path, manifest: &Manifest) -> Result<()> {
    let text = serde_json::to_vec_pretty(manifest).map_err(|e| Error::internal("a manifest").caused_by(e))?;
    let digest = blake3::hash(&text).to_hex();
    let signature = app.office.ca.sign(&text)?;
    let fresh = |name: &str| directory.join(format!("{name}.new"));
    // Each is written to a new file, synced and renamed.
    write_public(&fresh(DIGEST), digest.as_bytes())?;
    write_public(&fresh(SIGNATURE), &signature)?;
    write_public(&directory.join(MANIFEST), &text)?;
    for name in [DIGEST, SIGNATURE] {
        std::fs::rename(fresh(name), directory.join(name))?;
    }
    File::open(directory)?.sync_all()?;
    Ok(())
}

fn remove_older(directory: &Path, keep: &str) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| is_store(name) && name != keep) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Reads the manifest of a backup.
///
/// # Errors
/// `STORE_CORRUPT` if it is missing or damaged, `STORE_TOO_NEW` if a newer program wrote it.
pub fn read_manifest(directory: &Path) -> Result<Manifest> {
    read_manifest_text(directory).map(|(manifest, _)| manifest)
}

fn read_manifest_text(directory: &Path) -> Result<(Manifest, Vec<u8>)> {
    let path = directory.join(MANIFEST);
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|f| f.take(MANIFEST_MAX).read_to_end(&mut text))
        .map_err(|e| damaged(format!("{} cannot be read", path.display())).caused_by(e))?;
    let digest = blake3::hash(&text).to_hex();
    // A crash between the two renames leaves the digest under its other name.
    let known = [DIGEST.to_owned(), format!("{DIGEST}.new")];
    if !known.iter().any(|name| std::fs::read(directory.join(name)).is_ok_and(|d| d == digest.as_bytes())) {
        return Err(damaged(format!("{} does not match its digest", path.display())));
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| damaged("the manifest").caused_by(e))?;
    if manifest.format > FORMAT {
        return Err(Error::new(Reason::StoreTooNew, "the backup was written by a newer version"));
    }
    Ok((manifest, text))
}

/// Checks who wrote the manifest. Gives back whether that is proven: by the certificate that the caller trusts, and not
/// merely by the one in the backup.
fn check_signature(directory: &Path, manifest: &[u8], trusted: Option<&str>) -> Result<bool> {
    // As with the digest, a crash between the renames leaves it under its other name.
    let known = [SIGNATURE.to_owned(), format!("{SIGNATURE}.new")];
    let signatures: Vec<Vec<u8>> = known.iter().filter_map(|name| std::fs::read(directory.join(name)).ok()).collect();
    let own;
    let (ca, whose) = match trusted {
        Some(pem) => (pem, "the given certificate"),
        None => {
            let path = directory.join("keys/ca.pem");
            own = std::fs::read_to_string(path).map_err(|e| damaged("keys/ca.pem cannot be read").caused_by(e))?;
            (&own[..], "the certificate in the backup")
        }
    };
    if !signatures.iter().any(|signature| check_office_signature(ca, manifest, signature).is_ok()) {
        return Err(damaged(format!("the signature of {MANIFEST} does not fit {whose}"))
            .why_is("another office made the backup, or someone without this office's key changed it"));
    }
    Ok(trusted.is_some())
}

/// What a restore found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The backup's manifest.
    pub manifest: Manifest,
    /// The backup is proven to be the office's: its signature fits the certificate that was given. Without one, it is only
    /// known to be whole.
    pub verified: bool,
    /// Records of the metadata.
    pub record_count: u64,
    /// Chunks, each compared with its digest.
    pub chunk_count: u64,
    /// Their bytes.
    pub chunk_bytes: u64,
}

/// Makes a data directory of a backup and checks all of it: every digest, every record, every chunk, and that every
/// file's content is there. Blocks. `to` must not exist or be empty; it appears whole or not at all. `trusted` is the
/// office's certificate (PEM), kept elsewhere than the backup; see the module for what is known without it.
///
/// # Errors
/// `STORE_CORRUPT`, `CHUNK_DAMAGED` if the backup is damaged; `FIELD_INVALID` if `to` is in use; `IO_FAILED`, `DISK_FULL`.
pub fn restore(from: &Path, to: &Path, settings: &Settings, trusted: Option<&str>) -> Result<Restored> {
    let (manifest, text) = read_manifest_text(from)?;
    let verified = check_signature(from, &text, trusted)?;
    if to.exists() && std::fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::new(Reason::FieldInvalid, format!("{} is not empty", to.display()))
            .why_is("a restore never overwrites data")
            .fix_is("name a directory that does not exist yet"));
    }
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_private(parent)?;
    let work = tempfile::Builder::new().prefix(".atrium-restore-").tempdir_in(parent)?;
    let layout = Layout::new(work.path());
    for key in &manifest.keys {
        let name = plain_name(&key.name)?;
        let bytes =
            std::fs::read(from.join("keys").join(name)).map_err(|e| damaged(format!("keys/{name}")).caused_by(e))?;
        if blake3::hash(&bytes).to_hex().as_str() != key.blake3 {
            return Err(damaged(format!("keys/{name} does not match its digest")));
        }
        make_private(&layout.keys())?;
        put_key(&layout.keys().join(name), &bytes)?;
    }
    copy_chunks(&from.join("chunks"), &layout.chunks(), &manifest)?;
    let checked = verify_backup(&layout.chunks(), |_| ())?;
    if let Some(id) = checked.damaged.first() {
        return Err(Error::new(
            Reason::ChunkDamaged,
            format!("{} chunks of the backup are damaged", checked.damaged.len()),
        )
        .with("first", id));
    }
    let record_count = import(from, &manifest, &layout, settings)?;
    let done = Restored {
        manifest,
        verified,
        record_count,
        chunk_count: checked.chunk_count,
        chunk_bytes: checked.read_bytes,
    };
    if to.exists() {
        std::fs::remove_dir(to)?;
    }
    let work = work.keep();
    std::fs::rename(&work, to).inspect_err(|_| drop(std::fs::remove_dir_all(&work)))?;
    File::open(parent)?.sync_all()?;
    Ok(done)
}

/// Names out of a manifest are no paths.
fn plain_name(name: &str) -> Result<&str> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    if plain { Ok(name) } else { Err(damaged("the manifest names an impossible file")) }
}

fn copy_chunks(from: &Path, to: &Path, manifest: &Manifest) -> Result<()> {
    make_private(to)?;
    for name in &manifest.segments {
        let name = plain_name(name)?;
        // An index file may be missing: it is made from the segment.
        let index = name.replace(".seg", ".idx");
        for (name, needed) in [(name, true), (index.as_str(), false)] {
            if !needed && !from.join(name).exists() {
                continue;
            }
            std::fs::copy(from.join(name), to.join(name))
                .map_err(|e| damaged(format!("chunks/{name}")).caused_by(e))?;
            File::open(to.join(name))?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()?;
    Ok(())
}

/// Imports the metadata and checks that all content it names is there. Gives the number of records.
fn import(from: &Path, manifest: &Manifest, layout: &Layout, settings: &Settings) -> Result<u64> {
    let name = plain_name(&manifest.store.name)?;
    let file = File::open(from.join(name)).map_err(|e| damaged(name).caused_by(e))?;
    let mut reader = Hashing { inner: BufReader::new(file), hasher: blake3::Hasher::new(), bytes: 0 };
    let store = Store::import(&crate::serve::store_settings(settings, layout), &mut reader)?;
    std::io::copy(&mut reader, &mut std::io::sink())?;
    if reader.hasher.finalize().to_hex().as_str() != manifest.store.blake3 {
        return Err(damaged(format!("{name} does not match its digest")));
    }
    let report = store.verify()?;
    if !report.is_sound() {
        return Err(damaged("the restored metadata is not sound"));
    }
    let chunks = ChunkStore::open(&ChunkStoreSettings::new(layout.chunks()))?;
    let app = App::new(store, chunks, Arc::new(SystemClock), Arc::new(settings.clone()))?;
    let missing = missing_content(&app)?;
    if missing > 0 {
        return Err(damaged(format!("{missing} pieces of content are missing")));
    }
    Ok(report.records)
}

/// References to content that is not there. Blocks: reads all metadata of files.
///
/// # Errors
/// Those of the stores.
pub fn missing_content(app: &App) -> Result<u64> {
    let mut missing = 0;
    references::for_each(app, &mut |id| missing += u64::from(app.chunks.length(&id).is_none()))?;
    Ok(missing)
}
