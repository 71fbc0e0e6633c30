//! UDF (ECMA-167 and the OSTA profile), read-only: physical partitions, and the metadata partitions of Blu-ray discs.
//! Discs written packet by packet with virtual or sparable partitions are refused.

use super::reader::{Reader, le16, le32, le64};
use super::{Entries, Found, MAX_DIRECTORY_BYTES, MAX_PIECES, Node, NodeKind, Piece, Place, damaged, read_all, time};
use bytes::Bytes;
use common::error::{Reason, Result};

const SECTOR: u64 = 2048;
const TAG_ANCHOR: u16 = 2;
const TAG_PARTITION: u16 = 5;
const TAG_VOLUME: u16 = 6;
const TAG_END: u16 = 8;
const TAG_FILE_SET: u16 = 256;
const TAG_NAME: u16 = 257;
const TAG_MORE_PIECES: u16 = 258;
const TAG_FILE: u16 = 261;
const TAG_EXTENDED_FILE: u16 = 266;
/// Descriptors of a volume that are looked at.
const MAX_DESCRIPTORS: u64 = 256;
/// Partitions of a volume.
const MAX_PARTITIONS: usize = 8;
/// Continued lists of pieces of one file.
const MAX_LISTS: usize = 256;

/// A block of a partition of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Address {
    pub(super) partition: u16,
    pub(super) block: u32,
}

/// How blocks of a partition are found.
#[derive(Clone, Debug)]
enum Partition {
    /// From this sector on, so many.
    Physical { start: u32, len: u32 },
    /// In the pieces of a file.
    Metadata(Vec<Piece>),
}

/// A volume.
#[derive(Debug)]
pub(super) struct Volume {
    partitions: Vec<Partition>,
    root: Address,
}

/// A file entry.
pub(super) struct File {
    kind: NodeKind,
    pub(super) size: u64,
    modified_ms: Option<i64>,
    pub(super) pieces: Vec<Piece>,
}

/// True if a descriptor is what its tag should say: the number, and the sum over the tag.
fn is_tagged(raw: &[u8], tag: u16) -> bool {
    let Some(head) = raw.first_chunk::<16>() else { return false };
    let sum = head.iter().enumerate().filter(|(at, _)| *at != 4).fold(0_u8, |sum, (_, b)| sum.wrapping_add(*b));
    sum == head[4] && le16(head, 0) == tag
}

/// The address in a long allocation descriptor.
fn address(raw: &[u8], at: usize) -> Address {
    Address { block: le32(raw, at + 4), partition: le16(raw, at + 8) }
}

impl Volume {
    /// Finds the volume of a disc; nothing if it has none.
    ///
    /// # Errors
    /// DISC_FORMAT_UNKNOWN if there is one that cannot be read.
    pub(super) async fn find(reader: &Reader) -> Result<Option<Self>> {
        let sectors = reader.size() / SECTOR;
        for number in [Some(256), sectors.checked_sub(257), sectors.checked_sub(1)].into_iter().flatten() {
            let anchor = match reader.sector(number).await {
                Ok(anchor) if is_tagged(&anchor, TAG_ANCHOR) => anchor,
                Ok(_) => continue,
                Err(error) if error.is(Reason::DiscFormatUnknown) || error.is(Reason::SectorBad) => continue,
                Err(error) => return Err(error),
            };
            // The main sequence, then its copy.
            let main = Self::open(reader, le32(&anchor, 16), le32(&anchor, 20)).await;
            return match main {
                Ok(volume) => Ok(Some(volume)),
                Err(error) if error.is(Reason::DiscFormatUnknown) || error.is(Reason::SectorBad) => {
                    Self::open(reader, le32(&anchor, 24), le32(&anchor, 28)).await.map(Some)
                }
                Err(error) => Err(error),
            };
        }
        Ok(None)
    }

    async fn open(reader: &Reader, len: u32, start: u32) -> Result<Self> {
        let mut physical: Vec<(u16, u32, u32)> = Vec::new();
        let mut logical: Option<Bytes> = None;
        for number in 0..(u64::from(len) / SECTOR).min(MAX_DESCRIPTORS) {
            let raw = reader.sector(u64::from(start) + number).await?;
            if is_tagged(&raw, TAG_PARTITION) && physical.len() < MAX_PARTITIONS {
                physical.push((le16(&raw, 22), le32(&raw, 188), le32(&raw, 192)));
            } else if is_tagged(&raw, TAG_VOLUME) {
                logical = Some(raw);
            } else if is_tagged(&raw, TAG_END) {
                break;
            }
        }
        let logical = logical.ok_or_else(|| damaged("there is no logical volume"))?;
        if u64::from(le32(&logical, 212)) != SECTOR {
            return Err(damaged("the volume has blocks of another size"));
        }
        let mut volume = Self { partitions: Vec::new(), root: Address { partition: 0, block: 0 } };
        volume.map_partitions(reader, &logical, &physical).await?;
        let set = volume.block(reader, address(&logical, 248)).await?;
        if !is_tagged(&set, TAG_FILE_SET) {
            return Err(damaged("there is no set of files"));
        }
        volume.root = address(&set, 400);
        Ok(volume)
    }

    async fn map_partitions(&mut self, reader: &Reader, logical: &[u8], physical: &[(u16, u32, u32)]) -> Result<()> {
        let len = le32(logical, 264) as usize;
        let mut maps = logical.get(440..440 + len.min(2048 - 440)).unwrap_or(&[]);
        let find =
            |number: u16| physical.iter().find(|p| p.0 == number).map(|p| Partition::Physical { start: p.1, len: p.2 });
        let gone = || damaged("a partition is not there");
        while let [kind, len, ..] = *maps {
            if self.partitions.len() >= MAX_PARTITIONS {
                break;
            }
            let Some((map, rest)) = maps.split_at_checked(usize::from(len)).filter(|_| len >= 6) else { break };
            let partition = match (kind, len) {
                (1, 6) => find(le16(map, 4)).ok_or_else(gone)?,
                (2, 64) if map[5..28].starts_with(b"*UDF Metadata Partition") => {
                    let below = find(le16(map, 38)).ok_or_else(gone)?;
                    metadata(reader, below, le32(map, 40), le32(map, 44)).await?
                }
                _ => return Err(damaged("the disc was written in packets").why_is("such discs are not supported")),
            };
            self.partitions.push(partition);
            maps = rest;
        }
        Ok(())
    }

    /// Where a run of blocks is on the disc, and how much of it lies together.
    fn locate(&self, at: Address, len: u64) -> Result<Piece> {
        let outside = || damaged("something lies outside of its partition");
        match self.partitions.get(usize::from(at.partition)).ok_or_else(outside)? {
            Partition::Physical { start, len: blocks } => {
                let bytes = u64::from(blocks.checked_sub(at.block).ok_or_else(outside)?) * SECTOR;
                let offset = (u64::from(*start) + u64::from(at.block)) * SECTOR;
                if bytes == 0 { Err(outside()) } else { Ok(Piece { at: Some(offset), len: len.min(bytes) }) }
            }
            Partition::Metadata(pieces) => {
                let mut skip = u64::from(at.block) * SECTOR;
                for piece in pieces {
                    if skip < piece.len {
                        return Ok(Piece { at: piece.at.map(|a| a + skip), len: len.min(piece.len - skip) });
                    }
                    skip -= piece.len;
                }
                Err(outside())
            }
        }
    }

    async fn block(&self, reader: &Reader, at: Address) -> Result<Bytes> {
        match self.locate(at, SECTOR)? {
            Piece { at: Some(offset), len: SECTOR } => reader.read(offset, SECTOR).await,
            _ => Err(damaged("a descriptor is nowhere")),
        }
    }

    pub(super) async fn root(&self, reader: &Reader) -> Result<Found> {
        let file = self.file(reader, self.root).await?;
        let node = Node { name: String::new(), kind: file.kind, size_bytes: 0, modified_ms: file.modified_ms };
        Ok(Found { node, place: Place::Icb(self.root) })
    }

    /// A file entry and where its bytes are.
    ///
    /// # Errors
    /// DISC_FORMAT_UNKNOWN, and what reading says.
    pub(super) async fn file(&self, reader: &Reader, at: Address) -> Result<File> {
        let raw = self.block(reader, at).await?;
        let (times, lists) = match () {
            () if is_tagged(&raw, TAG_FILE) => (84, 168),
            () if is_tagged(&raw, TAG_EXTENDED_FILE) => (92, 208),
            () => return Err(damaged("a file entry is not one")),
        };
        let attributes = le32(&raw, lists) as usize;
        let start = attributes.checked_add(lists + 8).filter(|s| *s <= raw.len());
        let start = start.ok_or_else(|| damaged("a file entry is too long"))?;
        let list = raw.get(start..start.saturating_add(le32(&raw, lists + 4) as usize));
        let list = list.ok_or_else(|| damaged("a file entry is too long"))?;
        let kind = match raw[27] {
            4 => NodeKind::Directory,
            // Real-time files are files whose pieces lie well.
            5 | 249 => NodeKind::File,
            12 => NodeKind::Symlink { target: String::new() },
            250..=252 => NodeKind::Directory,
            _ => NodeKind::Other,
        };
        let size = le64(&raw, 56);
        let pieces = if le16(&raw, 34) & 7 == 3 {
            let Piece { at: block, .. } = self.locate(at, SECTOR)?;
            vec![Piece { at: block.map(|b| b + start as u64), len: list.len() as u64 }]
        } else {
            self.pieces(reader, at.partition, le16(&raw, 34) & 7, list).await?
        };
        Ok(File { kind, size, modified_ms: time::udf(&raw[times..times + 12]), pieces })
    }

    /// Follows lists of allocation descriptors.
    async fn pieces(&self, reader: &Reader, partition: u16, form: u16, list: &[u8]) -> Result<Vec<Piece>> {
        let width = match form {
            0 => 8,
            1 => 16,
            _ => return Err(damaged("a file's pieces are written in an unknown form")),
        };
        let mut out: Vec<Piece> = Vec::new();
        let mut list = list.to_vec();
        for _ in 0..MAX_LISTS {
            let mut next = None;
            for raw in list.chunks_exact(width) {
                let len = u64::from(le32(raw, 0) & 0x3fff_ffff);
                let at = match form {
                    0 => Address { block: le32(raw, 4), partition },
                    _ => address(raw, 0),
                };
                if len == 0 {
                    break;
                }
                match le32(raw, 0) >> 30 {
                    0 => self.add(&mut out, at, len)?,
                    3 => {
                        next = Some(at);
                        break;
                    }
                    _ => push(&mut out, Piece { at: None, len })?,
                }
            }
            let Some(at) = next else { return Ok(out) };
            let raw = self.block(reader, at).await?;
            let end = 24_usize.saturating_add(le32(&raw, 20) as usize);
            let more = raw.get(24..end).filter(|_| is_tagged(&raw, TAG_MORE_PIECES));
            list = more.ok_or_else(|| damaged("a list of pieces is not continued"))?.to_vec();
        }
        Err(damaged("a list of pieces does not end"))
    }

    /// Adds a run, which a metadata partition may break up.
    fn add(&self, out: &mut Vec<Piece>, mut at: Address, mut len: u64) -> Result<()> {
        loop {
            let piece = self.locate(at, len)?;
            push(out, piece)?;
            len -= piece.len;
            if len == 0 {
                return Ok(());
            }
            if piece.len % SECTOR != 0 {
                return Err(damaged("a piece ends within a block"));
            }
            let blocks = u32::try_from(piece.len / SECTOR).ok();
            let block = blocks.and_then(|blocks| at.block.checked_add(blocks));
            at.block = block.ok_or_else(|| damaged("something lies outside of its partition"))?;
        }
    }

    pub(super) async fn entries(&self, reader: &Reader, place: &Place, only: Option<&str>) -> Result<Entries> {
        let Place::Icb(at) = place else { return Err(damaged("a directory is nowhere")) };
        let file = self.file(reader, *at).await?;
        if file.size > MAX_DIRECTORY_BYTES {
            return Err(damaged("a directory is too large"));
        }
        let raw = read_all(reader, &file.pieces, file.size).await?;
        let mut entries = Entries::default();
        let mut rest = &raw[..];
        while rest.len() >= 38 && is_tagged(rest, TAG_NAME) {
            let (flags, name_len) = (rest[18], usize::from(rest[19]));
            let name_at = 38 + usize::from(le16(rest, 36));
            let len = (name_at + name_len).next_multiple_of(4);
            let Some(name) = rest.get(name_at..name_at + name_len) else { break };
            let name = decode_name(name);
            let at = address(rest, 20);
            rest = rest.get(len..).unwrap_or(&[]);
            // Deleted ones, and the way back up.
            if flags & 0x0c == 0 && only.is_none_or(|only| only == name) {
                entries.add(self.found(reader, name, at).await?)?;
            }
        }
        Ok(entries)
    }

    async fn found(&self, reader: &Reader, name: String, at: Address) -> Result<Found> {
        let (kind, size_bytes, modified_ms) = match self.file(reader, at).await {
            Ok(file) if file.kind == NodeKind::File => (file.kind, file.size, file.modified_ms),
            Ok(file) => (file.kind, 0, file.modified_ms),
            // The others of the directory can still be shown.
            Err(error) if error.is(Reason::DiscFormatUnknown) || error.is(Reason::SectorBad) => {
                (NodeKind::Other, 0, None)
            }
            Err(error) => return Err(error),
        };
        Ok(Found { node: Node { name, kind, size_bytes, modified_ms }, place: Place::Icb(at) })
    }
}

fn push(out: &mut Vec<Piece>, piece: Piece) -> Result<()> {
    if let Some(last) = out.last_mut() {
        let follows = match (last.at, piece.at) {
            (Some(before), Some(after)) => before.checked_add(last.len) == Some(after),
            (None, None) => true,
            _ => false,
        };
        if follows {
            last.len = last.len.saturating_add(piece.len);
            return Ok(());
        }
    }
    if out.len() >= MAX_PIECES {
        return Err(damaged("a file has too many pieces"));
    }
    out.push(piece);
    Ok(())
}

/// A metadata partition: a file in a physical one, or its mirror.
async fn metadata(reader: &Reader, below: Partition, main: u32, mirror: u32) -> Result<Partition> {
    let volume = Volume { partitions: vec![below], root: Address { partition: 0, block: 0 } };
    let main = volume.file(reader, Address { partition: 0, block: main }).await;
    let file = match main {
        Ok(file) => file,
        Err(error) if error.is(Reason::DiscFormatUnknown) || error.is(Reason::SectorBad) => {
            volume.file(reader, Address { partition: 0, block: mirror }).await?
        }
        Err(error) => return Err(error),
    };
    Ok(Partition::Metadata(file.pieces))
}

/// A name in OSTA compressed Unicode.
fn decode_name(raw: &[u8]) -> String {
    match raw.split_first() {
        Some((8, text)) => text.iter().map(|b| char::from(*b)).collect(),
        Some((16, text)) => {
            let units = text.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]]));
            char::decode_utf16(units).map(|c| c.unwrap_or('\u{fffd}')).collect()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_summed() {
        let mut raw = [0; 16];
        raw[0] = 2;
        assert!(!is_tagged(&raw, TAG_ANCHOR));
        raw[4] = 2;
        assert!(is_tagged(&raw, TAG_ANCHOR) && !is_tagged(&raw, TAG_FILE) && !is_tagged(&raw[..15], TAG_ANCHOR));
    }

    #[test]
    fn names_come_in_two_widths() {
        assert_eq!(decode_name(b"\x08a\xe4"), "aä");
        assert_eq!(decode_name(b"\x10\x65\xe5\x67\x2c"), "日本");
        assert_eq!(decode_name(b"\x07abc"), "");
        assert_eq!(decode_name(b""), "");
    }

    #[test]
    fn runs_of_a_metadata_partition_are_broken_up() {
        let piece = |at, len| Piece { at: Some(at), len };
        let partitions = vec![Partition::Metadata(vec![piece(0, 4096), piece(8192, 4096)])];
        let volume = Volume { partitions, root: Address { partition: 0, block: 0 } };
        let mut out = Vec::new();
        volume.add(&mut out, Address { partition: 0, block: 1 }, 4096).unwrap();
        assert_eq!(out, [piece(2048, 2048), piece(8192, 2048)]);
        assert!(volume.add(&mut Vec::new(), Address { partition: 0, block: 3 }, 4096).is_err());
        assert!(volume.add(&mut Vec::new(), Address { partition: 1, block: 0 }, 1).is_err());
    }
}
