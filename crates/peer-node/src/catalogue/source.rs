//! Chunks of shared folders, as parts of their files.

use common::error::{Reason, Result};
use common::model::{ChunkId, DeviceId, Right};
use std::path::PathBuf;
use std::sync::Arc;

use super::Catalogue;
use super::access::require;
use super::entry::Stored;
use super::folder::{Folder, Request};
use crate::model::{Content, Scope, ShareId};
use crate::source::{ChunkSource, Holdings, Place, unknown_scope};

/// Most chunks that are listed one by one.
const LISTED_MAX: usize = 1_000_000;

/// A module that knows contents by their digests, in scopes that are not shares.
pub trait ManifestSource: Send + Sync + 'static {
    /// The content, if the scope is this module's and the asker may have it; `None` if it is not this module's. Blocks.
    ///
    /// # Errors
    /// ENTRY_UNKNOWN, ACCESS_DENIED.
    fn manifest(&self, scope: &Scope, asker: &DeviceId, digest: &[u8; 32]) -> Result<Option<Content>>;
}

impl Catalogue {
    fn scope_folder(&self, scope: &Scope) -> Option<Arc<Folder>> {
        match scope {
            Scope::Share(share) => self.folder(share).ok(),
            Scope::Parcel(_) | Scope::Ticket { .. } => None,
        }
    }

    fn place(folder: &Folder, stored: &Stored, offset: u64, len: u32) -> Place {
        Place::File { path: folder.path.join(&stored.entry.path), offset, len, stamp: stored.file }
    }

    /// Doubts what a folder says about a chunk: it is not looked for there any longer, and the file is read again.
    fn doubt(&self, folder: &Folder, chunk: &ChunkId, place: &Place) {
        let Place::File { path, .. } = place else { return };
        let Some(inside) = path.strip_prefix(&folder.path).ok().and_then(|p| p.to_str()) else { return };
        if let Ok(Some(entry)) = folder.index.entry(inside) {
            folder.index.forget_place(chunk, entry.sequence);
            folder.ask(Request::Doubted { path: inside.to_owned() });
        }
    }

    /// The absolute path of an entry of a folder here.
    ///
    /// # Errors
    /// SHARE_UNKNOWN; PATH_INVALID, NAME_INVALID.
    pub fn local_path(&self, share: &ShareId, path: &str) -> Result<PathBuf> {
        let folder = self.folder(share)?;
        if path.is_empty() {
            return Ok(folder.path.clone());
        }
        super::entry::check_path(path)?;
        Ok(folder.path.join(path))
    }
}

impl ChunkSource for Catalogue {
    fn may_have(&self, scope: &Scope, asker: &DeviceId) -> Result<bool> {
        let Scope::Share(share) = scope else { return Ok(false) };
        // The grants of a share that is known hold for whatever is here of it, in a folder or from a transfer.
        let Some(known) = self.0.book.get(share) else { return Ok(false) };
        let right = if known.hidden { None } else { self.right(share, asker) };
        match require(right, Right::Read) {
            Ok(_) => Ok(true),
            Err(error) if error.is(Reason::AccessDenied) => Err(error),
            Err(_) => Err(unknown_scope()),
        }
    }

    fn locate(&self, scope: &Scope, chunk: &ChunkId) -> Result<Option<Place>> {
        let Some(folder) = self.scope_folder(scope) else { return Ok(None) };
        let found = folder.index.by_chunk(chunk)?;
        Ok(found.first().map(|(entry, offset, len)| Self::place(&folder, entry, *offset, *len)))
    }

    fn holdings(&self, scope: &Scope, manifests: &[[u8; 32]]) -> Result<Holdings> {
        let Some(folder) = self.scope_folder(scope) else { return Ok(Holdings::default()) };
        if manifests.is_empty() && !folder.mirror {
            return Ok(Holdings { complete: true, have: Vec::new() });
        }
        let mut have = Vec::new();
        let mut missing = manifests.is_empty();
        if manifests.is_empty() {
            for stored in folder.index.walk("", "") {
                let Some(content) = folder.index.content(&stored?.entry)? else { continue };
                have.extend(content.chunks.iter().map(|c| c.id));
                if have.len() > LISTED_MAX {
                    have.truncate(LISTED_MAX);
                    break;
                }
            }
        }
        for digest in manifests {
            match folder.index.by_digest(digest)? {
                Some((_, content)) if have.len() < LISTED_MAX => have.extend(content.chunks.iter().map(|c| c.id)),
                _ => missing = true,
            }
        }
        if missing { Ok(Holdings { complete: false, have }) } else { Ok(Holdings { complete: true, have: Vec::new() }) }
    }

    fn moved(&self, scope: &Scope, chunk: &ChunkId, place: &Place) {
        if let Some(folder) = self.scope_folder(scope) {
            self.doubt(&folder, chunk, place);
        }
    }

    fn find(&self, chunk: &ChunkId) -> Option<Place> {
        self.folders().iter().find_map(|folder| {
            let (stored, offset, len) = folder.index.by_chunk(chunk).ok()?.into_iter().next()?;
            Some(Self::place(folder, &stored, offset, len))
        })
    }

    fn stale(&self, chunk: &ChunkId, place: &Place) {
        self.folders().iter().for_each(|folder| self.doubt(folder, chunk, place));
    }
}
