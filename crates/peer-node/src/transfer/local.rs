//! What need not be fetched because it is on this disk: the old version of a file, other shares, earlier transfers, and
//! what an earlier run of this transfer wrote.
//!
//! Runs on a blocking thread while the network is already at work. A piece is not asked for until it was looked for here;
//! what is looked for only in an index is let go in a moment, what may be in an old version waits until that was read.
//! Everything that is taken is hashed first.

use super::plan::Plan;
use super::scheduler::Piece;
use super::serve::{Buffers, Reader};
use super::writer::{Kind, Writer, exists};
use crate::source::Sources;
use common::bulk::Rope;
use common::chunk::ParallelChunker;
use common::error::{Error, Reason, Result};
use common::model::ChunkId;
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Pieces that are reported together.
const BATCH: usize = 256;
/// Content that is reported together.
const BATCH_BYTES: u64 = 8 << 20;

/// What was found.
#[derive(Debug, Default)]
pub struct Finding {
    /// Pieces that are in their places now.
    pub had: Vec<Piece>,
    /// Pieces that have to be fetched.
    pub missing: Vec<Piece>,
}

/// What there is to look through.
pub struct Survey {
    /// The order.
    pub plan: Arc<Plan>,
    /// Where to put what is found.
    pub writer: Arc<Writer>,
    /// Other places of this machine.
    pub sources: Sources,
    /// Files at whose place something is.
    pub present: Vec<u32>,
    /// Pieces that may have been written before the machine stopped.
    pub doubtful: BTreeSet<Piece>,
    /// Ends it early.
    pub stop: CancellationToken,
}

/// The files at whose place something is already.
///
/// # Errors
/// ENTRY_EXISTS if it is not to be replaced and cannot be the same; IS_A_DIRECTORY, NOT_A_DIRECTORY; IO_FAILED.
pub fn present(plan: &Plan, writer: &Writer) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for (n, file) in plan.order.files.iter().enumerate() {
        if writer.is_published(n as u32) {
            continue;
        }
        match writer.tree().kind(&file.path)? {
            Kind::Nothing => {}
            Kind::File(size) if plan.order.overwrite || size == file.content.size_bytes => found.push(n as u32),
            Kind::Other if plan.order.overwrite => {}
            Kind::Directory => {
                let shown = writer.tree().path().join(&file.path);
                return Err(Error::new(Reason::IsADirectory, format!("{} is a directory", shown.display())));
            }
            Kind::File(_) | Kind::Other => return Err(exists(&writer.tree().path().join(&file.path))),
        }
    }
    Ok(found)
}

impl Survey {
    /// Looks, and tells of what was found as it goes; `tell` says whether anyone listens. Every missing piece is told of
    /// once.
    ///
    /// # Errors
    /// Those of writing. What was not looked for yet is told of as missing.
    pub fn run(mut self, mut tell: impl FnMut(Finding) -> bool) -> Result<()> {
        let mut open: BTreeSet<Piece> = (0..self.plan.pieces.len() as Piece).filter(|p| !self.writer.has(*p)).collect();
        let result = self.look(&mut open, &mut tell);
        let rest = Finding { had: Vec::new(), missing: open.into_iter().collect() };
        if !self.stop.is_cancelled() {
            tell(rest);
        }
        result
    }

    fn look(&mut self, open: &mut BTreeSet<Piece>, tell: &mut impl FnMut(Finding) -> bool) -> Result<()> {
        // What only an index knows of goes first: it lets the network begin.
        let waiting = self.waiting();
        let quick: Vec<Piece> = open.iter().copied().filter(|p| !waiting.contains(p)).collect();
        if !self.look_up(&quick, open, tell)? {
            return Ok(());
        }
        let mut buffer = Vec::new();
        let mut finding = Finding::default();
        for piece in std::mem::take(&mut self.doubtful) {
            if open.contains(&piece) && self.writer.holds(piece, &mut buffer) {
                self.writer.note(piece)?;
                open.remove(&piece);
                finding.had.push(piece);
            }
        }
        if !finding.had.is_empty() && !tell(finding) {
            return Ok(());
        }
        for file in std::mem::take(&mut self.present) {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            self.old_version(file, open, tell)?;
        }
        let rest: Vec<Piece> = open.iter().copied().collect();
        self.look_up(&rest, open, tell).map(drop)
    }

    /// Pieces that may be in files which have to be read first.
    fn waiting(&self) -> HashSet<Piece> {
        let files = self.present.iter().flat_map(|f| self.plan.pieces_of(*f)).copied();
        files.chain(self.doubtful.iter().copied()).collect()
    }

    /// Takes pieces from wherever an index says that they are. False if nobody listens any more.
    fn look_up(
        &self,
        pieces: &[Piece],
        open: &mut BTreeSet<Piece>,
        tell: &mut impl FnMut(Finding) -> bool,
    ) -> Result<bool> {
        let mut reader = Reader::new(self.sources.clone(), Buffers::default());
        let mut finding = Finding::default();
        let mut bytes = 0;
        for piece in pieces {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            let chunk = self.plan.pieces[*piece as usize];
            match self.find(&mut reader, &chunk.id, chunk.len) {
                Some(content) => {
                    self.writer.write(*piece, &content)?;
                    finding.had.push(*piece);
                    bytes += u64::from(chunk.len);
                }
                None => finding.missing.push(*piece),
            }
            open.remove(piece);
            if finding.had.len() + finding.missing.len() >= BATCH || bytes >= BATCH_BYTES {
                bytes = 0;
                if !tell(std::mem::take(&mut finding)) {
                    return Ok(false);
                }
            }
        }
        Ok(tell(finding))
    }

    fn find(&self, reader: &mut Reader, chunk: &ChunkId, len: u32) -> Option<Rope> {
        for (source, place) in self.sources.find(chunk) {
            if place.len() == len
                && let Some(content) = reader.read_at(chunk, &place)
            {
                return Some(content.into());
            }
            source.stale(chunk, &place);
        }
        None
    }

    /// Takes what the file at the place of a new one has of it.
    fn old_version(&self, file: u32, open: &mut BTreeSet<Piece>, tell: &mut impl FnMut(Finding) -> bool) -> Result<()> {
        let wanted = &self.plan.order.files[file as usize];
        let Some(old) = self.writer.tree().read(&wanted.path)? else { return Ok(()) };
        if old.metadata()?.len() == wanted.content.size_bytes && self.is_same(file, &old) {
            return self.adopt(file, &old, open, tell);
        }
        if !self.plan.order.overwrite {
            return Err(exists(&self.writer.tree().path().join(&wanted.path)));
        }
        // Only an aid: what cannot be read is fetched.
        let Ok(pieces) = ParallelChunker::new(old) else { return Ok(()) };
        let mut finding = Finding::default();
        for found in pieces {
            let Ok(found) = found else { break };
            if self.stop.is_cancelled() {
                return Ok(());
            }
            if let Some(piece) = self.plan.piece_of(&found.chunk.id)
                && open.remove(&piece)
            {
                self.writer.write(piece, &found.data.into())?;
                finding.had.push(piece);
            }
            if finding.had.len() >= 8 {
                tell(std::mem::take(&mut finding));
            }
        }
        tell(finding);
        Ok(())
    }

    fn is_same(&self, file: u32, old: &File) -> bool {
        let mut buffer = Vec::new();
        let mut at = 0;
        self.plan.pieces_of(file).iter().all(|piece| {
            let chunk = self.plan.pieces[*piece as usize];
            buffer.resize(chunk.len as usize, 0);
            let same = old.read_exact_at(&mut buffer, at).is_ok() && ChunkId::of(&buffer) == chunk.id;
            at += u64::from(chunk.len);
            same && !self.stop.is_cancelled()
        })
    }

    /// The file is what it should become. Its pieces may belong to other files too.
    fn adopt(
        &self,
        file: u32,
        old: &File,
        open: &mut BTreeSet<Piece>,
        tell: &mut impl FnMut(Finding) -> bool,
    ) -> Result<()> {
        self.writer.adopt(file, old)?;
        let mut finding = Finding::default();
        let mut at = 0;
        for piece in self.plan.pieces_of(file) {
            let chunk = self.plan.pieces[*piece as usize];
            let elsewhere = self.plan.spots_of(*piece).iter().any(|s| !self.writer.is_published(s.file));
            if open.remove(piece) {
                if elsewhere {
                    let mut content = vec![0; chunk.len as usize];
                    old.read_exact_at(&mut content, at)?;
                    if ChunkId::of(&content) != chunk.id {
                        return Err(Error::new(Reason::LocalFileChanged, "a file changed while it was read"));
                    }
                    self.writer.write(*piece, &content.into())?;
                } else {
                    self.writer.note(*piece)?;
                }
                finding.had.push(*piece);
            }
            at += u64::from(chunk.len);
        }
        tell(finding);
        Ok(())
    }
}
