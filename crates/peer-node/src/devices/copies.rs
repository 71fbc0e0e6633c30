//! Second copies of this machine's shares on disks of other machines: making them, getting them back, where they are.
//!
//! The copy is sealed here (`device::disk::mirror`); what travels and what the lender keeps tells nothing. A mirror's key
//! lies in `STATE/devices/mirrors/SHARE.key` (0600), where the copy is in `SHARE.json` ([`Kept`]); the *recovery key* is
//! both in one text, for the day when this machine is gone. A copy that moves keeps its place's id if it can, so that the
//! recovery key goes on to fit.
//!
//! What is copied is the share as its index has it: ignore rules hold, and each chunk is compared with its digest when it
//! is read from the file. What is no longer in the share is let go after each copy (`MirrorWriter::prune`).
//!
//! Looking after copies (proofs, moving) is in `keeper`.

use super::Devices;
use super::address::Target;
use super::disk::{blocking, space_id};
use super::far_place::{FarPlace, said};
use super::grpc::Asked;
use crate::catalogue::beneath::Root;
use crate::catalogue::{Catalogue, TreeFile};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::identity::write_secret;
use common::model::{ChunkRef, DeviceId, fold};
use device::disk::mirror::proof::Standing;
use device::disk::mirror::{FileEntry, MirrorKey, MirrorPlace, MirrorReader, MirrorWriter, Source};
use device::disk::{LocalPlace, PlaceId};
use futures_util::StreamExt;
use proto::peer::v1 as wire;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Problems that are told.
const LEFT_OUT_MAX: usize = 100;
/// How long what was deleted stays unless its owner says.
const RETENTION: u64 = 30 * 86_400;
/// The least that is borrowed for a copy.
const SIZE_MIN: u64 = 64 << 20;
/// Longest name of a share that is the beginning of a file's name as it is: with ".UUID.key" behind it, it is a name.
const STEM_MAX: usize = 200;
/// How long a person waits while a copy is being looked after.
const KEEPER_PATIENCE: Duration = Duration::from_secs(600);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A place somewhere.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Spot {
    /// The lender's node.
    pub node: String,
    /// The disk's name there; empty: taken home, on this machine.
    pub disk: String,
    /// The place.
    pub place: uuid::Uuid,
}

impl Spot {
    /// The lender's node.
    ///
    /// # Errors
    /// STORE_CORRUPT.
    pub fn node(&self) -> Result<DeviceId> {
        self.node.parse().map_err(|()| Error::new(Reason::StoreCorrupt, "where a mirror is"))
    }

    /// Is the copy on this machine only, because its lender left?
    pub fn is_home(&self) -> bool {
        self.disk.is_empty()
    }

    /// Is it this disk?
    pub fn is_at(&self, target: &Target) -> bool {
        self.node == target.node.to_string() && fold(&self.disk) == fold(&target.local_name())
    }
}

/// A place that is to be given back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Left {
    /// Which.
    #[serde(flatten)]
    pub at: Spot,
    /// All in it goes after its time, because its lender does not leave.
    #[serde(default)]
    pub retired: bool,
}

impl From<Spot> for Left {
    fn from(at: Spot) -> Self {
        Self { at, retired: false }
    }
}

/// What is remembered of a share's copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Where it is.
    #[serde(flatten)]
    pub at: Spot,
    /// The newest generation that was made: an older newest one means that something is missing.
    pub generation: u64,
    /// The share's name.
    #[serde(default)]
    pub share: String,
    /// Bytes that were borrowed; 0 in what an earlier version wrote.
    #[serde(default)]
    pub size_bytes: u64,
    /// How long what was deleted stays; 0 likewise.
    #[serde(default)]
    pub retention_seconds: u64,
    /// Address of the disk to which it moves when this one's machine leaves; empty: home.
    #[serde(default)]
    pub next_disk: String,
    /// Where it is being moved to.
    #[serde(default)]
    pub moving: Option<Spot>,
    /// Where it was, to be given back.
    #[serde(default)]
    pub left: Vec<Left>,
    /// What its proofs said.
    #[serde(default)]
    pub standing: Standing,
}

/// Who copies a share just now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Copier {
    /// Somebody asked for it.
    Person,
    /// It is being looked after.
    Keeper,
}

/// A share is being copied while this lives.
pub(super) struct Copying {
    devices: Devices,
    share: String,
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.devices.0.mirroring.lock().remove(&self.share);
    }
}

/// A share as its index has it, read from its folder.
pub(super) struct ShareSource {
    root: Root,
    files: Vec<FileEntry>,
}

impl ShareSource {
    /// # Errors
    /// SHARE_UNKNOWN, ADDRESS_AMBIGUOUS, STARTING.
    pub async fn open(catalogue: &Catalogue, share: &str) -> Result<(String, Self)> {
        let local = catalogue.local_share(share)?;
        if !local.complete {
            return Err(Error::new(Reason::Starting, "the share is being looked through")
                .fix_is("try again when `atrium shares` shows no more scanning"));
        }
        let resolved = catalogue.resolve(&local.address).await?;
        let files = catalogue.tree(&resolved).await?.into_iter().filter_map(entry_of).collect();
        let path = local.path.clone();
        let root = blocking(move || Root::open(&path)).await?;
        Ok((local.record.name().to_owned(), Self { root, files }))
    }
}

fn entry_of(file: TreeFile) -> Option<FileEntry> {
    let content = file.content?;
    Some(FileEntry {
        path: file.path,
        mode: file.entry.mode,
        mtime_ms: file.entry.modify_time_ns.div_euclid(1_000_000),
        size: content.size_bytes,
        chunks: content.chunks.to_vec(),
    })
}

impl Source for ShareSource {
    fn files(&self) -> Result<Vec<FileEntry>> {
        Ok(self.files.clone())
    }

    fn read(&self, file: &FileEntry, offset: u64, chunk: &ChunkRef) -> Result<Bytes> {
        let failed = |e: rustix::io::Errno| Error::from(std::io::Error::from(e));
        let (open, _) = self.root.file(&file.path).map_err(failed)?;
        let mut data = vec![0; chunk.len as usize];
        open.read_exact_at(&mut data, offset)?;
        Ok(data.into())
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Devices {
    pub(super) fn mirrors(&self) -> PathBuf {
        self.0.directory.join("mirrors")
    }

    fn mirror_file(&self, share: &str, end: &str) -> PathBuf {
        self.mirrors().join(format!("{}.{end}", stem(share)))
    }

    /// One copy of a share at a time: two would make two keys, and keep one.
    ///
    /// # Errors
    /// RESOURCE_BUSY.
    pub(super) fn begin_copy(&self, share: &str, who: Copier) -> Result<Copying> {
        let mut all = self.0.mirroring.lock();
        if all.contains_key(share) {
            return Err(Error::new(Reason::ResourceBusy, format!("{share} is being copied already")));
        }
        all.insert(share.to_owned(), who);
        drop(all);
        Ok(Copying { devices: self.clone(), share: share.to_owned() })
    }

    /// The same for a person, who waits while the copy is being looked after.
    async fn begin_copy_patiently(&self, share: &str) -> Result<Copying> {
        let waited = async {
            while self.0.mirroring.lock().get(share) == Some(&Copier::Keeper) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        // Whoever is too late is told so by the next line.
        let _ = tokio::time::timeout(KEEPER_PATIENCE, waited).await;
        self.begin_copy(share, Copier::Person)
    }

    pub(super) fn place_at(&self, spot: &Spot) -> Result<Arc<dyn MirrorPlace>> {
        let (node, place) = (spot.node()?, PlaceId(spot.place));
        if spot.is_home() {
            let who = super::access::caller(&*self.0.roster, &self.me())?;
            return Ok(Arc::new(LocalPlace::new(self.home()?, place, who)));
        }
        if node == self.me() {
            let (lender, who) = self.lent_to(&node, &spot.disk)?;
            return Ok(Arc::new(LocalPlace::new(lender, place, who)));
        }
        let space = place.0.as_bytes().to_vec().into();
        Ok(Arc::new(FarPlace { devices: self.clone(), node, disk: spot.disk.clone(), space }))
    }

    /// Borrows a place for a copy: under the id that it had, so that recovery keys go on to fit, or under a new one where
    /// that one was used before.
    ///
    /// # Errors
    /// Those of borrowing.
    pub(super) async fn borrow_for(&self, kept: &Kept, target: &Target) -> Result<Spot> {
        let request = |place: uuid::Uuid| wire::BorrowSpaceRequest {
            device: target.local_name(),
            kind: wire::SpaceKind::Mirror as i32,
            size_bytes: kept.size_bytes.max(SIZE_MIN),
            label: format!("mirror of {}", kept.share).chars().take(60).collect(),
            retention_seconds: if kept.retention_seconds == 0 { RETENTION } else { kept.retention_seconds },
            request_id: place.as_bytes().to_vec().into(),
            ..Default::default()
        };
        let mut borrowed = self.borrow_at(target, request(kept.at.place)).await;
        if let Err(error) = &borrowed
            && (error.is(Reason::SpaceExpired) || error.is(Reason::FieldInvalid))
        {
            borrowed = self.borrow_at(target, request(PlaceId::generate().0)).await;
        }
        let place = space_id(&borrowed?.space_id)?;
        Ok(Spot { node: target.node.to_string(), disk: target.local_name(), place: place.0 })
    }

    async fn borrow_at(&self, target: &Target, r: wire::BorrowSpaceRequest) -> Result<wire::Space> {
        if target.node == self.me() {
            return self.borrow_space(&self.me(), r).await;
        }
        said(self.client(target.node).await?.borrow_space(r).await)
    }

    /// Copies a share into a mirror place, or what is new of it.
    ///
    /// # Errors
    /// SHARE_UNKNOWN, STARTING, RESOURCE_UNKNOWN, ACCESS_DENIED, SPACE_FULL; what goes wrong later comes in the stream.
    pub(super) async fn mirror_to(&self, r: wire::MirrorToRequest) -> Result<Asked<wire::MirrorProgress>> {
        let (name, source) = ShareSource::open(&self.0.catalogue, &r.share).await?;
        let copying = self.begin_copy_patiently(&name).await?;
        let total: u64 = source.files.iter().map(|f| f.size).sum();
        let (mut kept, key) = self.mirror_of(&name, &r, total).await?;
        let (tell, told) = mpsc::channel(4);
        let (files, devices) = (source.files.len() as u64, self.clone());
        let begun = wire::MirrorProgress { total_bytes: total, file_count: files, ..Default::default() };
        let _ = tell.send(Ok(begun.clone())).await;
        self.0.shutdown.spawn_until(async move {
            let _copying = copying;
            let key = Arc::new(key);
            let made = async {
                if kept.moving.is_some() {
                    devices.move_copy(&mut kept).await?;
                }
                let report = devices.snapshot(&mut kept, key.clone(), Arc::new(source)).await?;
                Ok((report, format!("{}:{}", PlaceId(kept.at.place), &*key.to_text())))
            };
            let made = tokio::select! {
                made = made => made,
                // Nobody waits for it any more; the next time goes on from here.
                () = tell.closed() => return,
            };
            let last = made.map(|(report, recovery_key)| wire::MirrorProgress {
                done_bytes: report.sent_bytes,
                present_bytes: total.saturating_sub(report.sent_bytes),
                file_count: report.files as u64,
                done: true,
                generation: report.generation,
                recovery_key,
                left_out: left_out(report.left_out),
                ..begun
            });
            let _ = tell.send(last).await;
        });
        Ok(tokio_stream::wrappers::ReceiverStream::new(told).boxed())
    }

    /// Writes a generation, and lets go what no longer belongs to the share.
    pub(super) async fn snapshot(
        &self,
        kept: &mut Kept,
        key: Arc<MirrorKey>,
        source: Arc<ShareSource>,
    ) -> Result<device::disk::mirror::Report> {
        let writer = MirrorWriter::new(key, self.place_at(&kept.at)?);
        let report = writer.snapshot(source, &kept.share, now_ms()).await?;
        kept.generation = report.generation;
        self.write_kept(kept).await?;
        // What is not let go now is let go the next time; the copy is made.
        if let Err(error) = writer.prune(1).await {
            tracing::info!(%error, share = kept.share, "what was deleted in a share stays in its second copy for now");
        }
        Ok(report)
    }

    /// Where a share's copy is, or is to move to; made if there is none, or if another disk is named.
    async fn mirror_of(&self, name: &str, r: &wire::MirrorToRequest, total: u64) -> Result<(Kept, MirrorKey)> {
        let target = self.find(&r.disk).await?;
        let next_disk = match r.next_disk.is_empty() {
            true => None,
            // As it is written in full: short names change their meaning.
            false => Some(self.full_address(&self.find(&r.next_disk).await?)),
        };
        let known = self.read_kept(name).await?;
        let old = known.as_ref().map(|(kept, _)| kept.at.place);
        let fresh = |at: Spot| Kept {
            at,
            generation: 0,
            share: name.to_owned(),
            size_bytes: if r.size_bytes == 0 { total.saturating_mul(2).max(SIZE_MIN) } else { r.size_bytes },
            retention_seconds: if r.retention_seconds == 0 { RETENTION } else { r.retention_seconds },
            next_disk: next_disk.clone().unwrap_or_default(),
            moving: None,
            left: Vec::new(),
            standing: Standing::new(u64::from_le_bytes(common::identity::random_bytes())),
        };
        if let Some((mut kept, key)) = known {
            if let Some(next_disk) = &next_disk {
                kept.next_disk.clone_from(next_disk);
            }
            if r.size_bytes > 0 {
                kept.size_bytes = r.size_bytes;
            }
            kept.size_bytes = kept.size_bytes.max(total.saturating_mul(2));
            let seen = self.see(&kept.at).await;
            let lost = matches!(&seen, super::keeper::Seen::Gone(_));
            let leaves = kept.at.is_home() || matches!(&seen, super::keeper::Seen::Leaving);
            if lost {
                // Made anew with the same key, also on the disk where it was.
                kept.at = self.borrow_for(&kept, &target).await?;
                (kept.generation, kept.moving) = (0, None);
                kept.standing = Standing { repaired: kept.standing.repaired, ..fresh(kept.at.clone()).standing };
            }
            if lost || kept.at.is_at(&target) {
                self.write_kept(&kept).await?;
                return Ok((kept, key));
            }
            if leaves {
                kept.moving = Some(self.borrow_for(&kept, &target).await?);
                self.write_kept(&kept).await?;
                return Ok((kept, key));
            }
        }
        let at = Spot { node: target.node.to_string(), disk: target.local_name(), place: PlaceId::generate().0 };
        let mut kept = fresh(at);
        kept.at = self.borrow_for(&kept, &target).await?;
        let key_path = self.mirror_file(name, "key");
        let old_path = self.mirror_file(name, &format!("{}.key", old.unwrap_or(kept.at.place)));
        let key = blocking(move || {
            // The old copy's key stays readable under the name of its place: that copy still exists.
            if key_path.exists() {
                std::fs::rename(&key_path, old_path)?;
            }
            let key = MirrorKey::generate();
            key.save(&key_path)?;
            Ok(key)
        })
        .await?;
        self.write_kept(&kept).await?;
        Ok((kept, key))
    }

    /// What is remembered of a share's copy, and its key; `None` if there is none.
    ///
    /// # Errors
    /// STORE_CORRUPT, KEY_FILE_EXPOSED, KEY_FILE_INVALID, IO_FAILED.
    pub(super) async fn read_kept(&self, share: &str) -> Result<Option<(Kept, MirrorKey)>> {
        let (directory, share) = (self.mirrors(), share.to_owned());
        let (kept, key) = (self.mirror_file(&share, "json"), self.mirror_file(&share, "key"));
        blocking(move || {
            std::fs::create_dir_all(&directory)?;
            let bytes = match std::fs::read(&kept) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            let mut kept: Kept = serde_json::from_slice(&bytes)
                .map_err(|e| Error::new(Reason::StoreCorrupt, "where a mirror is").caused_by(e))?;
            if kept.share.is_empty() {
                kept.share = share;
            }
            Ok(Some((kept, MirrorKey::load(&key)?)))
        })
        .await
    }

    /// Shares that have a copy.
    pub(super) async fn mirrored(&self) -> Vec<String> {
        let directory = self.mirrors();
        let read = move || {
            let mut shares = Vec::new();
            for entry in std::fs::read_dir(directory)? {
                let path = entry?.path();
                let stem = path.extension().filter(|e| *e == "json").and_then(|_| path.file_stem()?.to_str());
                let Some(stem) = stem else { continue };
                let kept = std::fs::read(&path).ok().and_then(|b| serde_json::from_slice::<Kept>(&b).ok());
                shares.push(kept.map(|k| k.share).filter(|s| !s.is_empty()).unwrap_or_else(|| stem.to_owned()));
            }
            shares.sort();
            Ok(shares)
        };
        // Nothing was ever mirrored.
        blocking(read).await.unwrap_or_default()
    }

    /// On disk on return.
    ///
    /// # Errors
    /// IO_FAILED, DISK_FULL.
    pub(super) async fn write_kept(&self, kept: &Kept) -> Result<()> {
        let path = self.mirror_file(&kept.share, "json");
        let text = serde_json::to_vec_pretty(kept).map_err(|e| Error::internal("a mirror's place").caused_by(e))?;
        blocking(move || write_secret(&path, &text)).await
    }

    /// Gets a mirrored share back.
    ///
    /// # Errors
    /// FIELD_INVALID, ENTRY_UNKNOWN if there is no such mirror; what goes wrong later comes in the stream.
    pub(super) async fn restore_mirror(&self, r: wire::RestoreMirrorRequest) -> Result<Asked<wire::MirrorProgress>> {
        let folder = PathBuf::from(&r.path);
        if !folder.is_absolute() {
            return Err(Error::new(Reason::FieldInvalid, "the path is not absolute").with("field", "path"));
        }
        let (place, key, least) = self.mirror_to_read(&r).await?;
        let generation = (r.generation > 0).then_some(r.generation);
        let least = if generation.is_some() { 0 } else { least };
        let (tell, told) = mpsc::channel(4);
        self.0.shutdown.spawn_until(async move {
            let restored = async {
                let reader = MirrorReader::open(Arc::new(key), place, generation, least).await?;
                let total: u64 = reader.files().iter().map(|f| f.size).sum();
                let begun = wire::MirrorProgress {
                    total_bytes: total,
                    file_count: reader.files().len() as u64,
                    generation: reader.root().generation,
                    ..Default::default()
                };
                let _ = tell.send(Ok(begun.clone())).await;
                let restored = reader.restore(&folder).await?;
                Ok(wire::MirrorProgress {
                    done_bytes: restored.bytes,
                    file_count: (restored.files + restored.present) as u64,
                    left_out: left_out(restored.failed),
                    done: true,
                    ..begun
                })
            };
            let restored = tokio::select! {
                restored = restored => restored,
                () = tell.closed() => return,
            };
            let _ = tell.send(restored).await;
        });
        Ok(tokio_stream::wrappers::ReceiverStream::new(told).boxed())
    }

    async fn mirror_to_read(&self, r: &wire::RestoreMirrorRequest) -> Result<(Arc<dyn MirrorPlace>, MirrorKey, u64)> {
        if !r.recovery_key.is_empty() {
            let wrong = || Error::new(Reason::FieldInvalid, "this is no recovery key").with("field", "recovery_key");
            let (place, key) = r.recovery_key.trim().split_once(':').ok_or_else(wrong)?;
            let target = self.find(&r.disk).await?;
            let place: PlaceId = place.parse().map_err(|_| wrong())?;
            let spot = Spot { node: target.node.to_string(), disk: target.local_name(), place: place.0 };
            return Ok((self.place_at(&spot)?, MirrorKey::from_text(key)?, 0));
        }
        let name = common::model::EntryName::new(r.share.as_str())?;
        let unknown = || {
            Error::new(Reason::EntryUnknown, format!("there is no mirror of {:?} that this machine made", r.share))
                .fix_is("on another machine, give the recovery key and the disk: --recovery-key, --disk")
        };
        let (kept, key) = self.read_kept(name.as_str()).await?.ok_or_else(unknown)?;
        Ok((self.place_at(&kept.at)?, key, kept.generation))
    }
}

/// The beginning of a copy's file names: the share's name, or of a long one as much as fits and a digest of all of it.
fn stem(share: &str) -> String {
    if share.len() <= STEM_MAX {
        return share.to_owned();
    }
    let digest = blake3::hash(share.as_bytes()).to_hex();
    let cut = (0..=STEM_MAX - 33).rev().find(|at| share.is_char_boundary(*at)).unwrap_or(0);
    format!("{}~{}", &share[..cut], &digest[..32])
}

fn left_out(files: Vec<(String, String)>) -> Vec<wire::NodeProblem> {
    let problem = |(path, why): (String, String)| wire::NodeProblem {
        reason: Reason::LocalFileChanged.word().to_owned(),
        message: path,
        why,
        fix: "do it again when the file rests".to_owned(),
    };
    files.into_iter().take(LEFT_OUT_MAX).map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_names_have_files_of_their_own() {
        let long = "ä".repeat(127);
        let other = format!("{}b", "ä".repeat(126));
        for name in [long.as_str(), &other, "plans", &"x".repeat(STEM_MAX), &"x".repeat(STEM_MAX + 1)] {
            let file = format!("{}.{}.key", stem(name), uuid::Uuid::nil());
            assert!(file.len() <= 255, "{} bytes", file.len());
        }
        assert_ne!(stem(&long), stem(&other));
        assert_eq!(stem("plans"), "plans");
    }

    #[test]
    fn what_an_earlier_version_wrote_is_read() {
        let text =
            r#"{"node": "00", "disk": "disks/big", "place": "00000000-0000-0000-0000-000000000007", "generation": 3}"#;
        let kept: Kept = serde_json::from_str(text).unwrap();
        assert_eq!((kept.at.disk.as_str(), kept.generation, kept.standing), ("disks/big", 3, Standing::default()));
        assert!(kept.moving.is_none() && kept.left.is_empty() && !kept.at.is_home());
    }
}
