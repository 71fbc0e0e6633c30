//! `UploadChunksRequest` without copying.

use super::message::{Encoded, MessageBuilder, len_field_len};
use super::rope::Rope;
use super::walk::{Walker, malformed};
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkId, MAX_CHUNK_BYTES, UploadId};

/// Most data of all chunks of one message.
pub const MAX_UPLOAD_DATA: usize = 4 * 1024 * 1024;
/// Most chunks of one message.
pub const MAX_UPLOAD_CHUNKS: usize = 4096;
/// Largest message: the data, 48 bytes for each chunk, and room for unknown fields.
pub const MAX_UPLOAD_MESSAGE: usize = MAX_UPLOAD_DATA + 512 * 1024;

/// Messages are sent once they hold this much data.
const FULL_DATA: usize = 1024 * 1024;
/// ... or this many chunks.
const FULL_CHUNKS: usize = 1024;

/// A message of the upload stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadMessage {
    /// Which upload the chunks belong to; messages after the first may leave it out.
    pub upload: Option<UploadId>,
    /// Digests as the sender claims them, and contents.
    pub chunks: Vec<(ChunkId, Rope)>,
}

/// Reads a message.
///
/// # Errors
/// `MESSAGE_MALFORMED`, `UPLOAD_INVALID`, `FIELD_INVALID`, `MESSAGE_TOO_LARGE`.
pub fn decode_upload(message: &Rope) -> Result<UploadMessage> {
    let mut out = UploadMessage::default();
    let mut data_bytes = 0;
    let mut walker = Walker::new(message);
    while let Some((number, found)) = walker.field()? {
        match number {
            1 => out.upload = decode_upload_id(&walker.rope(found)?)?,
            2 => {
                let (id, data) = decode_chunk(walker.message(found)?)?;
                data_bytes += data.len();
                if data_bytes > MAX_UPLOAD_DATA || out.chunks.len() == MAX_UPLOAD_CHUNKS {
                    return Err(Error::new(
                        Reason::MessageTooLarge,
                        "a message holds more than 4 MiB of data or 4,096 chunks",
                    ));
                }
                out.chunks.push((id, data));
            }
            _ => walker.skip(number, found)?,
        }
    }
    Ok(out)
}

fn decode_upload_id(text: &Rope) -> Result<Option<UploadId>> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = || Error::new(Reason::UploadInvalid, "the upload id is not a UUID").with("field", "upload_id");
    // The longest written form of a UUID has 45 bytes.
    if text.len() > 64 {
        return Err(invalid());
    }
    let text = text.to_bytes();
    let text = std::str::from_utf8(&text).map_err(|_| malformed("a text is not UTF-8"))?;
    text.parse().map(Some).map_err(|_| invalid())
}

fn decode_chunk(mut walker: Walker<'_>) -> Result<(ChunkId, Rope)> {
    let (mut digest, mut data) = (Rope::new(), Rope::new());
    while let Some((number, found)) = walker.field()? {
        match number {
            1 => digest = walker.rope(found)?,
            2 => data = walker.rope(found)?,
            _ => walker.skip(number, found)?,
        }
    }
    if digest.len() != 32 {
        return Err(
            Error::new(Reason::FieldInvalid, "a chunk's digest has not 32 bytes").with("field", "chunks.digest")
        );
    }
    if data.is_empty() || data.len() > MAX_CHUNK_BYTES {
        return Err(Error::new(Reason::FieldInvalid, "a chunk has not 1 byte to 4 MiB").with("field", "chunks.data"));
    }
    let id = ChunkId::from_slice(&digest.to_bytes()).ok_or_else(|| Error::internal("32 bytes are a digest"))?;
    Ok((id, data))
}

/// Packs chunks into messages: large ones about 1 MiB a message, small ones up to 1,024 together.
#[derive(Debug)]
pub struct UploadEncoder {
    upload: UploadId,
    builder: MessageBuilder,
    chunks: usize,
    data: usize,
    first: bool,
}

impl UploadEncoder {
    /// For this upload; its id goes into the first message.
    pub fn new(upload: UploadId) -> Self {
        Self { upload, builder: MessageBuilder::new(), chunks: 0, data: 0, first: true }
    }

    /// Adds a chunk of 1 byte to 4 MiB. Gives back a message if one is full.
    pub fn push(&mut self, id: ChunkId, data: Rope) -> Option<Encoded> {
        let done = if self.data + data.len() > MAX_UPLOAD_DATA { self.flush() } else { None };
        self.begin();
        self.chunks += 1;
        self.data += data.len();
        self.builder.len_field(2, len_field_len(32) + len_field_len(data.len()));
        self.builder.len_field(1, 32);
        self.builder.small(id.as_bytes());
        self.builder.len_field(2, data.len());
        self.builder.payload(data);
        // Both can only be full at once if a message was nearly full and the chunk is a large one; then the message
        // that was begun goes with the next chunk.
        done.or_else(|| if self.data >= FULL_DATA || self.chunks >= FULL_CHUNKS { self.flush() } else { None })
    }

    /// The last message, if there is anything left. The first message is made even without chunks.
    pub fn flush(&mut self) -> Option<Encoded> {
        self.begin();
        if self.builder.is_empty() {
            return None;
        }
        self.chunks = 0;
        self.data = 0;
        Some(std::mem::replace(&mut self.builder, MessageBuilder::new()).finish())
    }

    fn begin(&mut self) {
        if std::mem::take(&mut self.first) {
            let id = self.upload.to_string();
            self.builder.len_field(1, id.len());
            self.builder.small(id.as_bytes());
        }
    }
}

/// For fuzzing: decodes arbitrary bytes and compares with the generated decoder.
pub fn fuzz_upload(data: &[u8]) {
    use prost::Message;
    let generated = proto::v1::UploadChunksRequest::decode(data);
    let ours = decode_upload(&super::cut_for_tests(data));
    match (&generated, &ours) {
        (Ok(theirs), Ok(ours)) => {
            assert_eq!(theirs.upload_id.parse().ok(), ours.upload);
            assert_eq!(theirs.chunks.len(), ours.chunks.len());
            for (theirs, (id, data)) in theirs.chunks.iter().zip(&ours.chunks) {
                assert_eq!(theirs.digest, id.as_bytes()[..]);
                assert_eq!(theirs.data, data.to_bytes());
            }
        }
        // The generated one knows no limits and no digests.
        (Ok(_), Err(ours)) => assert!(!ours.is(Reason::MessageMalformed) && !ours.is(Reason::Internal), "{ours:?}"),
        (Err(theirs), Ok(_)) => panic!("accepted what the generated decoder refuses: {theirs}"),
        (Err(_), Err(_)) => {}
    }
}
