//! Snapshots and roots as bytes. What is read here was sealed by the key's owner, and is checked all the same: an older or
//! newer program, or a stolen key, must not make a restore write outside of its folder or use memory without bound.
//!
//! ```text
//! snapshot   "ATSNAP01" · files u64 · each: path u16+bytes · mode u32 · mtime_ms i64 · size u64 · chunks u32 · each 36 bytes
//! root       "ATROOT01" · generation u64 · created_ms u64 · digest of the root before (32) · label u16+bytes
//!            · bytes of the snapshot u64 · its digest (32) · chunks u32 · each 36 bytes
//! ```
//!
//! All numbers are little-endian. Files come in ascending order of their paths' bytes, so there is one way to write a list.

use common::error::{Error, Reason, Result};
use common::model::{ChunkRef, EntryName};
use std::collections::HashSet;

const SNAPSHOT: &[u8; 8] = b"ATSNAP01";
const ROOT: &[u8; 8] = b"ATROOT01";
/// Files of a snapshot.
pub(super) const FILES_MAX: usize = 500_000;
/// Bytes of a snapshot.
pub(super) const SNAPSHOT_MAX: usize = 128 << 20;
/// Longest path in bytes, and most segments.
const PATH_MAX: usize = 4096;
const DEPTH_MAX: usize = 128;
const LABEL_MAX: usize = 256;
/// What a file costs at least, so that a count can be believed before memory is taken for it.
const FILE_MIN: usize = 2 + 1 + 4 + 8 + 8 + 4;

/// A file of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileEntry {
    /// Where it lies below the share: valid names, joined by '/'.
    pub path: String,
    /// Permission bits; only the nine of owner, group and others, and those of execution count.
    pub mode: u32,
    /// When it was changed, in milliseconds since 1970.
    pub mtime_ms: i64,
    /// Bytes.
    pub size: u64,
    /// Its content.
    pub chunks: Vec<ChunkRef>,
}

/// All files of a share at one time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Manifest {
    /// In ascending order of their paths' bytes.
    pub files: Vec<FileEntry>,
}

/// What leads to the snapshot of a generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Root {
    /// Its number: 1, 2, 3 …
    pub generation: u64,
    /// When it was made, by the owner's clock.
    pub created_ms: u64,
    /// BLAKE3 of the sealed root before it; zeros for the first.
    pub previous: [u8; 32],
    /// For people.
    pub label: String,
    /// Bytes of the snapshot.
    pub size: u64,
    /// Their BLAKE3.
    pub digest: [u8; 32],
    /// The snapshot, cut into chunks.
    pub chunks: Vec<ChunkRef>,
}

fn invalid(what: &str) -> Error {
    Error::new(Reason::ChunkDamaged, "the snapshot cannot be read").why_is(what.to_owned())
}

fn too_large() -> Error {
    Error::new(Reason::TreeTooLarge, "there are too many files for one mirror")
        .fix_is("mirror parts of the share, each to a place of its own")
}

/// Checks a path below a share.
fn check_path(path: &str) -> Result<()> {
    if path.is_empty() || path.len() > PATH_MAX || path.split('/').count() > DEPTH_MAX {
        return Err(Error::new(Reason::PathInvalid, "a path of the snapshot is empty, too long or too deep"));
    }
    path.split('/').try_for_each(|segment| EntryName::new(segment).map(drop))
}

/// The content of a file, as its chunks say.
fn sum(chunks: &[ChunkRef]) -> u64 {
    chunks.iter().map(|c| u64::from(c.len)).sum()
}

impl Manifest {
    /// Checks what is to be written, and puts it in order.
    ///
    /// # Errors
    /// `PATH_INVALID`, `NAME_INVALID`, `FIELD_INVALID` if two have one path, one lies below another, or sizes do not add up;
    /// `TREE_TOO_LARGE`.
    pub fn new(mut files: Vec<FileEntry>) -> Result<Self> {
        files.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        let manifest = Self { files };
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<()> {
        if self.files.len() > FILES_MAX {
            return Err(too_large());
        }
        let field = |what: &str| Error::new(Reason::FieldInvalid, what.to_owned());
        let mut paths = HashSet::with_capacity(self.files.len());
        for file in &self.files {
            check_path(&file.path)?;
            if !paths.insert(file.path.as_str()) {
                return Err(field("a path comes twice in the snapshot"));
            }
            if sum(&file.chunks) != file.size {
                return Err(field("a file's chunks do not make up its size"));
            }
        }
        for file in &self.files {
            let mut above = file.path.as_str();
            while let Some((up, _)) = above.rsplit_once('/') {
                if paths.contains(up) {
                    return Err(field("a path of the snapshot is a file and a folder"));
                }
                above = up;
            }
        }
        Ok(())
    }

    /// The bytes of a checked one.
    ///
    /// # Errors
    /// `TREE_TOO_LARGE` beyond 128 MiB.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = SNAPSHOT.to_vec();
        out.extend_from_slice(&(self.files.len() as u64).to_le_bytes());
        for file in &self.files {
            put_text(&mut out, &file.path);
            out.extend_from_slice(&file.mode.to_le_bytes());
            out.extend_from_slice(&file.mtime_ms.to_le_bytes());
            out.extend_from_slice(&file.size.to_le_bytes());
            put_chunks(&mut out, &file.chunks);
            if out.len() > SNAPSHOT_MAX {
                return Err(too_large());
            }
        }
        Ok(out)
    }

    /// Reads one. Memory is bounded by the length of what is read.
    ///
    /// # Errors
    /// `CHUNK_DAMAGED`, or as [`Manifest::new`] says; never a panic.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let cut = || invalid("it is cut short or of an unknown format");
        if bytes.len() > SNAPSHOT_MAX {
            return Err(too_large());
        }
        let mut read = Read(bytes);
        if read.take(8) != Some(SNAPSHOT) {
            return Err(cut());
        }
        let count = read.u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(cut)?;
        if count > FILES_MAX || count > read.0.len() / FILE_MIN {
            return Err(invalid("it says that it has more files than it can have"));
        }
        let mut files: Vec<FileEntry> = Vec::with_capacity(count);
        for _ in 0..count {
            let file = read.file().ok_or_else(cut)?;
            if files.last().is_some_and(|last| last.path.as_bytes() >= file.path.as_bytes()) {
                return Err(invalid("its files are not in order"));
            }
            files.push(file);
        }
        if !read.0.is_empty() {
            return Err(invalid("there is something behind its end"));
        }
        let manifest = Self { files };
        manifest.check()?;
        Ok(manifest)
    }
}

impl Root {
    /// Its bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = ROOT.to_vec();
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.created_ms.to_le_bytes());
        out.extend_from_slice(&self.previous);
        put_text(&mut out, &crate::audit::clean(&self.label, LABEL_MAX));
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.digest);
        put_chunks(&mut out, &self.chunks);
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// `CHUNK_DAMAGED`; never a panic.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let root = Read(bytes).root().ok_or_else(|| invalid("its root is cut short or of an unknown format"))?;
        if root.size > SNAPSHOT_MAX as u64 || sum(&root.chunks) != root.size {
            return Err(invalid("its root's sizes do not add up"));
        }
        Ok(root)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Paths and labels are checked or cut far below.
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_chunks(out: &mut Vec<u8>, chunks: &[ChunkRef]) {
    out.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
    chunks.iter().for_each(|chunk| chunk.encode_into(out));
}

struct Read<'a>(&'a [u8]);

impl<'a> Read<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn text(&mut self, max: usize) -> Option<String> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        String::from_utf8(self.take(len).filter(|_| len <= max)?.to_vec()).ok()
    }
    fn chunks(&mut self) -> Option<Vec<ChunkRef>> {
        let count = u32::from_le_bytes(self.array()?) as usize;
        ChunkRef::decode_all(self.take(count.checked_mul(ChunkRef::ENCODED)?)?)
    }
    fn file(&mut self) -> Option<FileEntry> {
        Some(FileEntry {
            path: self.text(PATH_MAX)?,
            mode: u32::from_le_bytes(self.array()?),
            mtime_ms: i64::from_le_bytes(self.array()?),
            size: self.u64()?,
            chunks: self.chunks()?,
        })
    }
    fn root(mut self) -> Option<Root> {
        if self.take(8)? != ROOT {
            return None;
        }
        let root = Root {
            generation: self.u64()?,
            created_ms: self.u64()?,
            previous: self.array()?,
            label: self.text(LABEL_MAX)?,
            size: self.u64()?,
            digest: self.array()?,
            chunks: self.chunks()?,
        };
        self.0.is_empty().then_some(root)
    }
}

/// Reads bytes as a snapshot and as a root, and writes what could be read again: what a fuzzer calls.
///
/// # Panics
/// If something that could be read is written in another way.
pub fn fuzz_snapshot(data: &[u8]) {
    if let Ok(manifest) = Manifest::decode(data) {
        assert_eq!(manifest.encode().expect("it is as long as what was read"), data);
        for file in &manifest.files {
            assert!(file.path.split('/').all(|s| !matches!(s, "" | "." | "..")), "{:?}", file.path);
        }
    }
    if let Ok(root) = Root::decode(data)
        && !root.label.chars().any(char::is_control)
    {
        assert_eq!(root.encode(), data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::model::ChunkId;
    use proptest::prelude::*;

    fn file(path: &str, lens: &[u32]) -> FileEntry {
        let chunks: Vec<ChunkRef> =
            lens.iter().map(|len| ChunkRef { id: ChunkId::of(&len.to_le_bytes()), len: *len }).collect();
        FileEntry { path: path.to_owned(), mode: 0o644, mtime_ms: -5, size: sum(&chunks), chunks }
    }

    #[test]
    fn hostile_snapshots_are_refused() {
        let two = |a: &str, b: &str| Manifest::new(vec![file(a, &[1]), file(b, &[])]);
        for (a, b) in
            [("a", "a"), ("a", "a/b"), ("a/b", "a/b/c/d"), ("a", "../b"), ("a", "/b"), ("a", "b//c"), ("a", "")]
        {
            assert!(two(a, b).is_err(), "{a} {b}");
        }
        for (a, b) in [("a/b", "a/c"), ("a", "a!"), ("a!", "a/b"), ("a/b", "a!")] {
            let manifest = two(a, b).unwrap();
            assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        }
        assert!(Manifest::new(vec![file(&"a/".repeat(200), &[])]).is_err());
        assert!(Manifest::new(vec![FileEntry { size: 7, ..file("a", &[3]) }]).is_err());
        // Written by hand: a path that leaves the folder, in an order that is right.
        let evil = Manifest { files: vec![file("../../etc/passwd", &[1])] };
        assert!(Manifest::decode(&evil.encode().unwrap()).unwrap_err().is(Reason::NameInvalid));
        let unordered = Manifest { files: vec![file("b", &[]), file("a", &[])] };
        assert!(Manifest::decode(&unordered.encode().unwrap()).is_err());
        let mut many = SNAPSHOT.to_vec();
        many.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(Manifest::decode(&many).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_changed_bytes_never_panic(
            names in prop::collection::btree_set("[a-z]{1,6}(/[a-z]{1,6}\\.x){0,3}", 0..12),
            lens in prop::collection::vec(1u32..100_000, 0..5),
            harm in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let files: Vec<FileEntry> = names.iter().map(|n| file(n, &lens)).collect();
            let Ok(manifest) = Manifest::new(files) else { return Ok(()) };
            let mut bytes = manifest.encode().unwrap();
            prop_assert_eq!(&Manifest::decode(&bytes).unwrap(), &manifest);
            for (at, with) in harm {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            fuzz_snapshot(&bytes);
            let root = Root {
                generation: 7, created_ms: 8, previous: [9; 32], label: "x".to_owned(), size: 0, digest: [1; 32],
                chunks: Vec::new(),
            };
            prop_assert_eq!(&Root::decode(&root.encode()).unwrap(), &root);
            fuzz_snapshot(&root.encode());
        }
    }
}
