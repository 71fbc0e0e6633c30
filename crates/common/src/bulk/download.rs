//! `DownloadResponse` without copying.

use super::message::{Encoded, MessageBuilder, len_field_len, number_field_len};
use super::rope::Rope;
use super::walk::{Walker, malformed};
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkId, ChunkRef, MAX_CHUNK_BYTES};
use crate::status::{from_item_error, to_item_error};
use prost::Message;
use proto::v1;
use std::collections::VecDeque;

/// Largest data block.
pub const MAX_BLOCK: usize = 1024 * 1024;
/// Smallest block size that a caller may ask for.
pub const MIN_BLOCK: usize = 4 * 1024;
/// Most chunks in one header.
pub const MAX_HEADER_CHUNKS: usize = 65_536;
/// Largest message: a full header and a full block.
pub const MAX_DOWNLOAD_MESSAGE: usize = 8 * 1024 * 1024;
/// Most parts in one message.
pub const MAX_PARTS: usize = 16_384;

/// Messages are sent once they hold this much.
const FULL_BYTES: usize = 256 * 1024;
/// ... or this many parts.
const FULL_PARTS: usize = 4096;
/// A block does not join a message that it would make larger than this.
const OVERFULL_BYTES: usize = MAX_BLOCK + MAX_BLOCK / 4;
/// Chunks written into one header: less than 1 MiB, so that any generated client takes it.
const HEADER_CHUNKS: usize = 16_384;

/// A part of an item.
#[derive(Debug)]
pub struct ItemPart {
    /// Position of the item in the request.
    pub item: u32,
    /// What there is of it.
    pub part: Part,
}

/// What a part holds.
#[derive(Debug)]
pub enum Part {
    /// First part of an item, or more of its manifest.
    Header {
        /// The file version; only in the first header.
        entry: Option<Box<v1::Entry>>,
        /// Chunks of the manifest, if it was asked for.
        chunks: Vec<ChunkRef>,
    },
    /// Content.
    Data {
        /// Position in the file.
        offset: u64,
        /// 1 byte to 1 MiB.
        data: Rope,
    },
    /// Last part of an item that went well.
    Trailer {
        /// As in the entry.
        manifest_digest: [u8; 32],
        /// Bytes sent for this item.
        sent_bytes: u64,
    },
    /// Last part of an item that went wrong.
    Failed(Error),
}

/// Reads a message. Parts of kinds that this build does not know are left out.
///
/// # Errors
/// `MESSAGE_MALFORMED`, `FIELD_INVALID`, `MESSAGE_TOO_LARGE`.
pub fn decode_download(message: &Rope) -> Result<Vec<ItemPart>> {
    let mut out = Vec::new();
    let mut walker = Walker::new(message);
    let mut seen = 0;
    while let Some((number, found)) = walker.field()? {
        if number != 1 {
            walker.skip(number, found)?;
            continue;
        }
        seen += 1;
        if seen > MAX_PARTS {
            return Err(Error::new(Reason::MessageTooLarge, "a message holds more than 16,384 parts"));
        }
        out.extend(decode_part(walker.message(found)?)?);
    }
    Ok(out)
}

fn decode_part(mut walker: Walker<'_>) -> Result<Option<ItemPart>> {
    let mut item = 0;
    let mut kind: Option<(u32, Rope)> = None;
    while let Some((number, found)) = walker.field()? {
        match number {
            1 => item = walker.number(found)? as u32,
            2..=5 => {
                let content = walker.rope(found)?;
                // More than one in a part: the last kind counts, and the same kind twice is merged, which is what joining
                // their bytes does. Each must be a whole message of its own.
                if let Some((seen, all)) = &mut kind {
                    decode_kind(*seen, all)?;
                    if *seen == number {
                        decode_kind(number, &content)?;
                        content.into_pieces().into_iter().for_each(|p| all.push(p));
                        continue;
                    }
                }
                kind = Some((number, content));
            }
            _ => walker.skip(number, found)?,
        }
    }
    let Some((number, content)) = kind else { return Ok(None) };
    Ok(Some(ItemPart { item, part: decode_kind(number, &content)? }))
}

fn decode_kind(number: u32, content: &Rope) -> Result<Part> {
    match number {
        2 => decode_header(content),
        3 => decode_data(content),
        4 => decode_trailer(content),
        _ => {
            let error = v1::ItemError::decode(content.to_bytes()).map_err(|_| malformed("an error is damaged"))?;
            Ok(Part::Failed(from_item_error(&error)))
        }
    }
}

fn decode_header(content: &Rope) -> Result<Part> {
    let mut entry: Option<Rope> = None;
    let mut chunks = Vec::new();
    let mut walker = Walker::new(content);
    while let Some((number, found)) = walker.field()? {
        match number {
            1 => {
                let all = entry.get_or_insert_default();
                walker.rope(found)?.into_pieces().into_iter().for_each(|p| all.push(p));
            }
            2 if chunks.len() == MAX_HEADER_CHUNKS => {
                return Err(Error::new(Reason::MessageTooLarge, "a header holds more than 65,536 chunks"));
            }
            2 => chunks.push(decode_chunk_ref(walker.message(found)?)?),
            _ => walker.skip(number, found)?,
        }
    }
    let entry = match entry {
        None => None,
        // Copied, so that a kept entry does not keep the receive buffer.
        Some(content) => {
            Some(Box::new(v1::Entry::decode(content.compact()).map_err(|_| malformed("an entry is damaged"))?))
        }
    };
    Ok(Part::Header { entry, chunks })
}

fn decode_chunk_ref(mut walker: Walker<'_>) -> Result<ChunkRef> {
    let (mut digest, mut len) = (Rope::new(), 0u32);
    while let Some((number, found)) = walker.field()? {
        match number {
            1 => digest = walker.rope(found)?,
            2 => len = walker.number(found)? as u32,
            _ => walker.skip(number, found)?,
        }
    }
    let id = (digest.len() == 32).then(|| digest.to_bytes()).and_then(|d| ChunkId::from_slice(&d));
    match id {
        Some(id) if len >= 1 && len as usize <= MAX_CHUNK_BYTES => Ok(ChunkRef { id, len }),
        _ => Err(Error::new(Reason::FieldInvalid, "a chunk of a manifest is not valid").with("field", "chunks")),
    }
}

fn decode_data(content: &Rope) -> Result<Part> {
    let (mut offset, mut data) = (0, Rope::new());
    let mut walker = Walker::new(content);
    while let Some((number, found)) = walker.field()? {
        match number {
            1 => offset = walker.number(found)?,
            2 => data = walker.rope(found)?,
            _ => walker.skip(number, found)?,
        }
    }
    if data.is_empty() || data.len() > MAX_BLOCK || offset.checked_add(data.len() as u64).is_none() {
        return Err(Error::new(Reason::FieldInvalid, "a data block has not 1 byte to 1 MiB").with("field", "data"));
    }
    Ok(Part::Data { offset, data })
}

fn decode_trailer(content: &Rope) -> Result<Part> {
    let trailer = v1::DownloadTrailer::decode(content.to_bytes()).map_err(|_| malformed("a trailer is damaged"))?;
    let manifest_digest = trailer.manifest_digest.as_ref().try_into().map_err(|_| {
        Error::new(Reason::FieldInvalid, "a manifest's digest has not 32 bytes").with("field", "manifest_digest")
    })?;
    Ok(Part::Trailer { manifest_digest, sent_bytes: trailer.sent_bytes })
}

/// Packs parts into messages of about 256 KiB, or one block if that is larger.
#[derive(Debug)]
pub struct DownloadEncoder {
    block: usize,
    builder: MessageBuilder,
    parts: usize,
    ready: VecDeque<Encoded>,
}

impl DownloadEncoder {
    /// With blocks of at most so many bytes; 0 means 1 MiB, and everything is brought into 4 KiB to 1 MiB.
    pub fn new(block_bytes: usize) -> Self {
        let block = if block_bytes == 0 { MAX_BLOCK } else { block_bytes.clamp(MIN_BLOCK, MAX_BLOCK) };
        Self { block, builder: MessageBuilder::new(), parts: 0, ready: VecDeque::new() }
    }

    /// First part of an item. A long manifest takes several headers.
    pub fn header(&mut self, item: u32, entry: &v1::Entry, chunks: &[ChunkRef]) {
        let (first, rest) = chunks.split_at(chunks.len().min(HEADER_CHUNKS));
        self.one_header(item, Some(entry), first);
        rest.chunks(HEADER_CHUNKS).for_each(|chunks| self.one_header(item, None, chunks));
    }

    fn one_header(&mut self, item: u32, entry: Option<&v1::Entry>, chunks: &[ChunkRef]) {
        let chunk_len = |c: &ChunkRef| len_field_len(32) + number_field_len(u64::from(c.len));
        let entry_len = entry.map(Message::encoded_len);
        let len =
            entry_len.map_or(0, len_field_len) + chunks.iter().map(|c| len_field_len(chunk_len(c))).sum::<usize>();
        self.begin_part(item, 2, len);
        if let Some(entry) = entry {
            self.builder.len_field(1, entry_len.unwrap_or(0));
            self.builder.message(entry);
        }
        for chunk in chunks {
            self.builder.len_field(2, chunk_len(chunk));
            self.builder.len_field(1, 32);
            self.builder.small(chunk.id.as_bytes());
            self.builder.varint_field(2, u64::from(chunk.len));
        }
        self.end_part();
    }

    /// Content at this position of the file, cut into blocks.
    pub fn data(&mut self, item: u32, offset: u64, data: &Rope) {
        let mut done = 0;
        while done < data.len() {
            let block = data.slice(done, self.block);
            let at = offset + done as u64;
            done += block.len();
            self.begin_part(item, 3, number_field_len(at) + len_field_len(block.len()));
            if at != 0 {
                self.builder.varint_field(1, at);
            }
            self.builder.len_field(2, block.len());
            self.builder.payload(block);
            self.end_part();
        }
    }

    /// Last part of an item that went well.
    pub fn trailer(&mut self, item: u32, manifest_digest: &[u8; 32], sent_bytes: u64) {
        self.begin_part(item, 4, len_field_len(32) + number_field_len(sent_bytes));
        self.builder.len_field(1, 32);
        self.builder.small(manifest_digest);
        if sent_bytes != 0 {
            self.builder.varint_field(2, sent_bytes);
        }
        self.end_part();
    }

    /// Last part of an item that went wrong.
    pub fn failed(&mut self, item: u32, error: &Error) {
        let error = to_item_error(error);
        self.begin_part(item, 5, error.encoded_len());
        self.builder.message(&error);
        self.end_part();
    }

    /// Ends the message that is being filled.
    pub fn flush(&mut self) {
        if !self.builder.is_empty() {
            self.parts = 0;
            self.ready.push_back(std::mem::replace(&mut self.builder, MessageBuilder::new()).finish());
        }
    }

    /// The next message that is full, or was ended by [`DownloadEncoder::flush`].
    pub fn pop(&mut self) -> Option<Encoded> {
        self.ready.pop_front()
    }

    fn begin_part(&mut self, item: u32, kind: u32, len: usize) {
        if self.builder.len() + len > OVERFULL_BYTES {
            self.flush();
        }
        let item = u64::from(item);
        self.builder.len_field(1, number_field_len(item) + len_field_len(len));
        if item != 0 {
            self.builder.varint_field(1, item);
        }
        self.builder.len_field(kind, len);
    }

    fn end_part(&mut self) {
        self.parts += 1;
        if self.builder.len() >= FULL_BYTES || self.parts >= FULL_PARTS {
            self.flush();
        }
    }
}

/// For fuzzing: decodes arbitrary bytes and compares with the generated decoder.
pub fn fuzz_download(data: &[u8]) {
    use v1::download_part::Part as Theirs;
    let generated = v1::DownloadResponse::decode(data);
    let ours = decode_download(&super::cut_for_tests(data));
    let (theirs, ours) = match (generated, ours) {
        (Ok(theirs), Ok(ours)) => (theirs, ours),
        // The generated one knows no limits and no digests.
        (Ok(_), Err(ours)) => {
            assert!(!ours.is(Reason::MessageMalformed) && !ours.is(Reason::Internal), "{ours:?}");
            return;
        }
        (Err(theirs), Ok(_)) => panic!("accepted what the generated decoder refuses: {theirs}"),
        (Err(_), Err(_)) => return,
    };
    let theirs: Vec<_> = theirs.parts.into_iter().filter(|p| p.part.is_some()).collect();
    assert_eq!(theirs.len(), ours.len());
    for (theirs, ours) in theirs.into_iter().zip(ours) {
        assert_eq!(theirs.item, ours.item);
        match (theirs.part, ours.part) {
            (Some(Theirs::Header(theirs)), Part::Header { entry, chunks }) => {
                assert_eq!(theirs.entry, entry.map(|e| *e));
                assert!(
                    theirs
                        .chunks
                        .iter()
                        .map(|c| (&c.digest[..], c.length_bytes))
                        .eq(chunks.iter().map(|c| (&c.id.0[..], c.len)))
                );
            }
            (Some(Theirs::Data(theirs)), Part::Data { offset, data }) => {
                assert_eq!((theirs.offset_bytes, theirs.data), (offset, data.to_bytes()));
            }
            (Some(Theirs::Trailer(theirs)), Part::Trailer { manifest_digest, sent_bytes }) => {
                assert_eq!((&theirs.manifest_digest[..], theirs.sent_bytes), (&manifest_digest[..], sent_bytes));
            }
            (Some(Theirs::Error(theirs)), Part::Failed(ours)) => {
                assert!(theirs.reason.is_empty() || theirs.reason.starts_with(ours.reason()));
            }
            (theirs, ours) => panic!("{theirs:?} is not {ours:?}"),
        }
    }
}
