//! Files of a disc: ISO 9660 with Rock Ridge and Joliet, and UDF.
//!
//! Everything on a disc may be a lie: sizes, places, directories that hold themselves. So each step has a bound, nothing
//! that a disc says is used as an index or a length without a check, and a directory is read once per question and never
//! followed by itself; only [`Disc::walk`] descends, and it refuses to enter a directory twice.
//!
//! **Bounds.** 16 MiB and 100,000 entries per directory, 64 levels, 16,384 pieces per file, 1,000,000 entries per walk,
//! 2 MiB of what was read last.
//!
//! Names are those of [`common::model::EntryName`]; an entry with any other, or with one that another entry of its
//! directory has already, is left out and counted.

mod iso9660;
mod reader;
mod rockridge;
mod stream;
mod time;
mod udf;

pub use stream::DiscFile;

use crate::nbd::BlockSource;
use common::error::{Error, Reason, Result};
use common::model::EntryName;
use reader::Reader;
use std::collections::HashSet;
use std::sync::Arc;

/// Most bytes of a directory.
const MAX_DIRECTORY_BYTES: u64 = 16 << 20;
/// Most entries of a directory.
const MAX_ENTRIES: usize = 100_000;
/// Most levels of directories.
pub const MAX_DEPTH: usize = 64;
/// Most pieces of a file.
const MAX_PIECES: usize = 16 << 10;
/// Most entries of a walk.
pub const MAX_WALK: usize = 1_000_000;

/// Which of the directory trees of a disc.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Tree {
    /// ISO 9660 with the names and kinds of Rock Ridge.
    RockRidge,
    /// UDF 1.02 to 2.60, without virtual and sparable partitions.
    Udf,
    /// ISO 9660 with the names of Joliet.
    Joliet,
    /// ISO 9660 as it is.
    Iso9660,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, which is shown and never followed.
    Symlink {
        /// What it says; may be anything.
        target: String,
    },
    /// A device, a pipe and the like.
    Other,
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name; the root's is empty.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// Size of a file; 0 for all else.
    pub size_bytes: u64,
    /// When it was changed last: milliseconds since 1970 UTC, if the disc says.
    pub modified_ms: Option<i64>,
}

/// A directory's entries.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    /// Those that can be shown, in the order of the disc.
    pub nodes: Vec<Node>,
    /// Entries that were left out, because their names cannot be used.
    pub skipped: usize,
}

/// Where the bytes of something are.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    /// Pieces of the disc, in order.
    Pieces(Vec<Piece>),
    /// A directory of ISO 9660 whose own first entry says how long it is.
    IsoDirectory(u32),
    /// A file entry of UDF.
    Icb(udf::Address),
    /// Nowhere.
    Nothing,
}

/// A run of bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    /// Offset on the disc; zeroes if absent.
    at: Option<u64>,
    len: u64,
}

/// An entry with its place.
#[derive(Clone, Debug)]
struct Found {
    node: Node,
    place: Place,
}

/// Found entries of a directory and how many were left out.
#[derive(Default)]
struct Entries {
    found: Vec<Found>,
    skipped: usize,
    names: HashSet<String>,
}

impl Entries {
    /// Adds an entry if its name can be used.
    ///
    /// # Errors
    /// Too many entries.
    fn add(&mut self, found: Found) -> Result<()> {
        if self.found.len() + self.skipped >= MAX_ENTRIES {
            return Err(damaged("a directory has too many entries"));
        }
        if EntryName::new(found.node.name.as_str()).is_ok() && self.names.insert(found.node.name.clone()) {
            self.found.push(found);
        } else {
            self.skipped += 1;
        }
        Ok(())
    }
}

/// The root of a tree.
enum Root {
    Iso(iso9660::Volume),
    Udf(Box<udf::Volume>),
}

/// A disc whose files can be read.
pub struct Disc {
    reader: Reader,
    trees: Vec<(Tree, Root)>,
    /// Place of the tree that is used.
    used: usize,
}

impl Disc {
    /// Finds the trees of a disc. The first one there is of Rock Ridge, UDF, Joliet and plain ISO 9660 is used: that is
    /// the order in which they know most about names, sizes and kinds.
    ///
    /// # Errors
    /// DISC_FORMAT_UNKNOWN, and what reading says.
    pub async fn open(source: Arc<dyn BlockSource>) -> Result<Self> {
        let reader = Reader::new(source);
        let mut trees = Vec::new();
        let volumes = iso9660::volumes(&reader).await?;
        trees.extend(volumes.into_iter().map(|volume| (volume.tree(), Root::Iso(volume))));
        match udf::Volume::find(&reader).await {
            Ok(Some(volume)) => trees.push((Tree::Udf, Root::Udf(Box::new(volume)))),
            Ok(None) => {}
            // The other trees may be whole.
            Err(error) if error.is(Reason::DiscFormatUnknown) && !trees.is_empty() => {}
            Err(error) => return Err(error),
        }
        if trees.is_empty() {
            return Err(Error::new(Reason::DiscFormatUnknown, "no file system was found on the disc"));
        }
        let order = [Tree::RockRidge, Tree::Udf, Tree::Joliet, Tree::Iso9660];
        trees.sort_by_key(|(tree, _)| order.iter().position(|o| o == tree));
        Ok(Self { reader, trees, used: 0 })
    }

    /// The trees that there are, the one that is used by itself first.
    pub fn trees(&self) -> Vec<Tree> {
        self.trees.iter().map(|(tree, _)| *tree).collect()
    }

    /// Uses another tree.
    ///
    /// # Errors
    /// DISC_FORMAT_UNKNOWN.
    pub fn use_tree(&mut self, tree: Tree) -> Result<()> {
        let found = self.trees.iter().position(|(t, _)| *t == tree);
        self.used = found.ok_or_else(|| Error::new(Reason::DiscFormatUnknown, "the disc has no such tree"))?;
        Ok(())
    }

    /// Generation of the disc.
    pub fn generation(&self) -> u64 {
        self.reader.source().generation()
    }

    /// Entries of a directory; the empty path is the root.
    ///
    /// # Errors
    /// NOT_FOUND kinds, PATH_INVALID, DISC_FORMAT_UNKNOWN for a damaged directory, and what reading says.
    pub async fn list(&self, path: &str) -> Result<Listing> {
        let entries = self.entries(&self.find(path).await?, None).await?;
        let nodes = entries.found.into_iter().map(|f| f.node).collect();
        Ok(Listing { nodes, skipped: entries.skipped })
    }

    /// One entry.
    ///
    /// # Errors
    /// As [`Disc::list`].
    pub async fn stat(&self, path: &str) -> Result<Node> {
        Ok(self.find(path).await?.node)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// As [`Disc::list`]; PATH_INVALID for what is no file.
    pub async fn open_file(&self, path: &str) -> Result<DiscFile> {
        let found = self.find(path).await?;
        if found.node.kind != NodeKind::File {
            return Err(Error::new(Reason::PathInvalid, "only files can be read"));
        }
        let (pieces, size) = self.pieces(&found).await?;
        DiscFile::new(self.reader.source().clone(), pieces, size)
    }

    /// All entries below a directory with their paths, directories before what is in them.
    ///
    /// # Errors
    /// As [`Disc::list`]; DISC_FORMAT_UNKNOWN for a directory that is inside of itself or there twice, for more than
    /// [`MAX_DEPTH`] levels, and for more than `most` (at most [`MAX_WALK`]) entries.
    pub async fn walk(&self, path: &str, most: usize) -> Result<Vec<(String, Node)>> {
        let start = self.find(path).await?;
        let mut seen = HashSet::new();
        let mut out = Vec::new();
        let mut open = vec![(path.trim_matches('/').to_owned(), start, 0)];
        while let Some((path, directory, depth)) = open.pop() {
            if depth > MAX_DEPTH {
                return Err(damaged("directories are nested too deeply"));
            }
            if !seen.insert(identity(&directory)) {
                return Err(damaged("a directory is inside of itself"));
            }
            for found in self.entries(&directory, None).await?.found {
                if out.len() >= most.min(MAX_WALK) {
                    return Err(damaged("there are too many entries"));
                }
                let path =
                    if path.is_empty() { found.node.name.clone() } else { format!("{path}/{}", found.node.name) };
                out.push((path.clone(), found.node.clone()));
                if found.node.kind == NodeKind::Directory {
                    open.push((path, found, depth + 1));
                }
            }
        }
        Ok(out)
    }

    fn root(&self) -> &Root {
        &self.trees[self.used].1
    }

    async fn find(&self, path: &str) -> Result<Found> {
        let mut found = match self.root() {
            Root::Iso(volume) => volume.root(),
            Root::Udf(volume) => volume.root(&self.reader).await?,
        };
        let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
        if names.len() > MAX_DEPTH {
            return Err(Error::new(Reason::PathInvalid, "the path has too many levels"));
        }
        for name in names {
            EntryName::new(name)?;
            let entries = self.entries(&found, Some(name)).await?;
            let next = entries.found.into_iter().find(|f| f.node.name == name);
            found = next.ok_or_else(|| Error::new(Reason::AddressUnknown, format!("{name:?} is not on the disc")))?;
        }
        Ok(found)
    }

    /// Entries of a directory. Where only one of them is wanted, work on the others is saved if the tree allows it.
    async fn entries(&self, directory: &Found, only: Option<&str>) -> Result<Entries> {
        if directory.node.kind != NodeKind::Directory {
            return Err(Error::new(Reason::PathInvalid, "this is not a directory"));
        }
        match self.root() {
            Root::Iso(volume) => volume.entries(&self.reader, &directory.place).await,
            Root::Udf(volume) => volume.entries(&self.reader, &directory.place, only).await,
        }
    }

    async fn pieces(&self, found: &Found) -> Result<(Vec<Piece>, u64)> {
        match (&found.place, self.root()) {
            (Place::Pieces(pieces), _) => Ok((pieces.clone(), found.node.size_bytes)),
            (Place::Icb(address), Root::Udf(volume)) => {
                let file = volume.file(&self.reader, *address).await?;
                Ok((file.pieces, file.size))
            }
            _ => Ok((Vec::new(), 0)),
        }
    }
}

/// What makes a directory the same as another.
fn identity(directory: &Found) -> (u64, u64) {
    match &directory.place {
        Place::Pieces(pieces) => (0, pieces.first().and_then(|p| p.at).unwrap_or(u64::MAX)),
        Place::IsoDirectory(sector) => (0, u64::from(*sector) * 2048),
        Place::Icb(address) => (1 + u64::from(address.partition), address.block.into()),
        Place::Nothing => (u64::MAX, 0),
    }
}

fn damaged(what: &str) -> Error {
    Error::new(Reason::DiscFormatUnknown, what).why_is("the disc's file system is damaged or not true")
}

/// Reads the whole of some pieces, as a directory is read.
async fn read_all(reader: &Reader, pieces: &[Piece], size: u64) -> Result<Vec<u8>> {
    if size > MAX_DIRECTORY_BYTES {
        return Err(damaged("a directory is too large"));
    }
    let mut out = Vec::with_capacity(size as usize);
    for piece in pieces {
        let len = piece.len.min(size - out.len() as u64);
        match piece.at {
            Some(at) => out.extend_from_slice(&reader.read(at, len).await?),
            None => out.resize(out.len() + len as usize, 0),
        }
    }
    Ok(out)
}
