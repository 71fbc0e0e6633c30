//! ISO 9660 (ECMA-119): volumes and directories.

use super::reader::{Reader, le16, le32};
use super::rockridge::{self, Extras};
use super::{Entries, Found, MAX_PIECES, Node, NodeKind, Piece, Place, Tree, damaged, read_all, time};
use common::error::{Reason, Result};

const SECTOR: u64 = 2048;
/// Descriptors that are looked at.
const MAX_DESCRIPTORS: u64 = 32;
const FLAG_DIRECTORY: u8 = 0x02;
const FLAG_ASSOCIATED: u8 = 0x04;
const FLAG_MORE: u8 = 0x80;

/// A volume descriptor's tree.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    tree: Tree,
    root: Record,
    /// Bytes to skip in each system use area.
    skip: usize,
}

/// A directory record.
#[derive(Clone, Debug)]
struct Record {
    sector: u32,
    len: u32,
    flags: u8,
    modified_ms: Option<i64>,
    name: Vec<u8>,
    system: Vec<u8>,
}

impl Record {
    /// Decodes a record; nothing if its lengths do not fit.
    fn decode(raw: &[u8]) -> Option<Self> {
        let raw = raw.get(..usize::from(*raw.first()?))?;
        let name_len = usize::from(*raw.get(32)?);
        let name = raw.get(33..33 + name_len)?.to_vec();
        // The name is padded to an even length of the record so far.
        let system = raw.get(33 + name_len + (1 - name_len % 2)..).unwrap_or(&[]).to_vec();
        let sector = le32(raw, 2).checked_add(u32::from(raw[1]))?;
        Some(Self { sector, len: le32(raw, 10), flags: raw[25], modified_ms: time::short(&raw[18..25]), name, system })
    }

    fn piece(&self) -> Piece {
        Piece { at: Some(u64::from(self.sector) * SECTOR), len: self.len.into() }
    }
}

/// The trees of a disc: Joliet's, and Rock Ridge's or the plain one.
///
/// # Errors
/// What reading says; a disc without them has none.
pub(super) async fn volumes(reader: &Reader) -> Result<Vec<Volume>> {
    let mut out: Vec<Volume> = Vec::new();
    for number in 16..16 + MAX_DESCRIPTORS {
        if (number + 1) * SECTOR > reader.size() {
            break;
        }
        let raw = match reader.sector(number).await {
            Ok(raw) => raw,
            // UDF may still be found.
            Err(error) if error.is(Reason::SectorBad) => break,
            Err(error) => return Err(error),
        };
        if raw.len() != 2048 || &raw[1..6] != b"CD001" || raw[0] == 255 {
            break;
        }
        let joliet = raw[0] == 2 && matches!(&raw[88..91], b"%/@" | b"%/C" | b"%/E");
        // Other sizes of blocks are allowed and never used.
        if le16(&raw, 128) != 2048 || !(raw[0] == 1 || joliet) {
            continue;
        }
        let Some(root) = Record::decode(&raw[156..190]) else { continue };
        let tree = if joliet { Tree::Joliet } else { Tree::Iso9660 };
        if out.iter().any(|v| (v.tree == Tree::Joliet) == joliet) {
            continue;
        }
        let mut volume = Volume { tree, root, skip: 0 };
        if !joliet && let Some(skip) = volume.rock_ridge(reader).await? {
            volume.tree = Tree::RockRidge;
            volume.skip = skip;
        }
        out.push(volume);
    }
    Ok(out)
}

impl Volume {
    pub(super) fn tree(&self) -> Tree {
        self.tree
    }

    pub(super) fn root(&self) -> Found {
        let node =
            Node { name: String::new(), kind: NodeKind::Directory, size_bytes: 0, modified_ms: self.root.modified_ms };
        Found { node, place: Place::Pieces(vec![self.root.piece()]) }
    }

    /// How much to skip if the root's own entry says that there is Rock Ridge.
    async fn rock_ridge(&self, reader: &Reader) -> Result<Option<usize>> {
        let start = u64::from(self.root.sector) * SECTOR;
        let raw = match reader.read(start, SECTOR).await {
            Ok(raw) => raw,
            Err(error) if error.is(Reason::DiscFormatUnknown) || error.is(Reason::SectorBad) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(own) = Record::decode(&raw) else { return Ok(None) };
        let Some(skip) = rockridge::skip(&own.system) else { return Ok(None) };
        let extras = rockridge::read(reader, &own.system, 0).await?;
        Ok(extras.is_rock_ridge().then_some(skip))
    }

    pub(super) async fn entries(&self, reader: &Reader, place: &Place) -> Result<Entries> {
        let (pieces, size) = match place {
            Place::Pieces(pieces) => (pieces.clone(), pieces.iter().map(|p| p.len).sum()),
            Place::IsoDirectory(sector) => {
                let start = u64::from(*sector) * SECTOR;
                let own = Record::decode(&reader.read(start, SECTOR).await?);
                let own = own.filter(|r| r.name == [0]).ok_or_else(|| damaged("a moved directory is not there"))?;
                (vec![own.piece()], own.len.into())
            }
            _ => return Err(damaged("a directory is nowhere")),
        };
        let raw = read_all(reader, &pieces, size).await?;
        let mut entries = Entries::default();
        let mut begun: Option<(Record, Vec<Piece>)> = None;
        for record in records(&raw) {
            if record.flags & FLAG_ASSOCIATED != 0 || matches!(record.name[..], [] | [0] | [1]) {
                continue;
            }
            let (first, mut pieces) = match begun.take() {
                Some((first, pieces)) if first.name == record.name => (first, pieces),
                _ => (record.clone(), Vec::new()),
            };
            pieces.push(record.piece());
            if pieces.len() > MAX_PIECES {
                return Err(damaged("a file has too many pieces"));
            }
            if record.flags & FLAG_MORE != 0 {
                begun = Some((first, pieces));
            } else if let Some(found) = self.found(reader, &first, pieces).await? {
                entries.add(found)?;
            }
        }
        Ok(entries)
    }

    /// The entry that a record stands for; nothing if it is shown elsewhere.
    async fn found(&self, reader: &Reader, record: &Record, pieces: Vec<Piece>) -> Result<Option<Found>> {
        let extras = match self.tree {
            Tree::RockRidge => rockridge::read(reader, &record.system, self.skip).await?,
            _ => Extras::default(),
        };
        if extras.moved_here {
            return Ok(None);
        }
        let name = extras.name.clone().unwrap_or_else(|| self.plain_name(&record.name));
        let directory = record.flags & FLAG_DIRECTORY != 0;
        let kind = if extras.child.is_some() { NodeKind::Directory } else { extras.kind(directory) };
        let size_bytes = if kind == NodeKind::File { pieces.iter().map(|p| p.len).sum() } else { 0 };
        let modified_ms = extras.modified_ms.or(record.modified_ms);
        let place = match (extras.child, &kind) {
            (Some(sector), _) => Place::IsoDirectory(sector),
            (None, NodeKind::File | NodeKind::Directory) => Place::Pieces(pieces),
            _ => Place::Nothing,
        };
        Ok(Some(Found { node: Node { name, kind, size_bytes, modified_ms }, place }))
    }

    /// The name without the version that ISO 9660 hangs on it.
    fn plain_name(&self, raw: &[u8]) -> String {
        let name = if self.tree == Tree::Joliet {
            let units = raw.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]]));
            char::decode_utf16(units).map(|c| c.unwrap_or('\u{fffd}')).collect()
        } else {
            String::from_utf8_lossy(raw).into_owned()
        };
        let name = match name.rsplit_once(';') {
            Some((name, version)) if !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => &name,
        };
        let dot = if self.tree == Tree::Joliet { None } else { name.strip_suffix('.') };
        dot.unwrap_or(name).to_owned()
    }
}

/// Records of a directory. They do not cross the ends of sectors; one that does is skipped with the rest of its sector.
fn records(raw: &[u8]) -> impl Iterator<Item = Record> {
    raw.chunks(SECTOR as usize).flat_map(|sector| {
        let mut rest = sector;
        std::iter::from_fn(move || {
            let len = usize::from(*rest.first()?);
            // A record has at least a name of one byte, so this ends.
            let record = if len >= 34 { Record::decode(rest) } else { None }?;
            rest = rest.get(len..).unwrap_or(&[]);
            Some(record)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_with_their_sector_and_lies_end_it_early() {
        let mut raw = vec![0; 4096];
        let mut one = [0_u8; 34];
        (one[0], one[32], one[33]) = (34, 1, b'A');
        raw[..34].copy_from_slice(&one);
        raw[34..68].copy_from_slice(&one);
        raw[2048..2082].copy_from_slice(&one);
        assert_eq!(records(&raw).count(), 3);
        // A name that is longer than its record.
        raw[34 + 32] = 200;
        assert_eq!(records(&raw).count(), 2);
        assert_eq!(records(&[0xff; 4096]).count(), 0, "names that are longer than their records");
        assert_eq!(records(&[33; 2048]).count(), 0);
    }

    #[test]
    fn versions_are_cut_off() {
        let root = Record { sector: 0, len: 0, flags: 2, modified_ms: None, name: vec![], system: vec![] };
        let name = |tree, raw: &[u8]| Volume { tree, root: root.clone(), skip: 0 }.plain_name(raw);
        assert_eq!(name(Tree::Iso9660, b"README.TXT;1"), "README.TXT");
        assert_eq!(name(Tree::Iso9660, b"README.;1"), "README");
        assert_eq!(name(Tree::Joliet, b"\0a\0;\0x"), "a;x");
        assert_eq!(name(Tree::Joliet, b"\0\xe4\0;\x001"), "ä");
    }
}
