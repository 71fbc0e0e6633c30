//! Numbers and headers of the protocol. Everything is big-endian.

use bytes::{BufMut, Bytes, BytesMut};

/// First word of a server's greeting, "NBDMAGIC".
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and the first of each option, "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Begins the answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag of both sides: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of both sides: no 124 zero bytes after `EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Ends the negotiation with an export; cannot fail politely.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Ends the connection.
pub const OPT_ABORT: u32 = 2;
/// Lists exports.
pub const OPT_LIST: u32 = 3;
/// Begins TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Describes an export.
pub const OPT_INFO: u32 = 6;
/// Describes an export and ends the negotiation with it.
pub const OPT_GO: u32 = 7;
/// Asks for structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Lists metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Chooses metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;

/// Answer: done.
pub const REP_ACK: u32 = 1;
/// Answer: one export of a list.
pub const REP_SERVER: u32 = 2;
/// Answer: one fact about an export.
pub const REP_INFO: u32 = 3;
/// Answer: one metadata context.
pub const REP_META_CONTEXT: u32 = 4;
const REP_ERROR: u32 = 1 << 31;
/// Refusal: not offered.
pub const REP_ERR_UNSUP: u32 = REP_ERROR | 1;
/// Refusal: not allowed.
pub const REP_ERR_POLICY: u32 = REP_ERROR | 2;
/// Refusal: malformed.
pub const REP_ERR_INVALID: u32 = REP_ERROR | 3;
/// Refusal: TLS first.
pub const REP_ERR_TLS_REQD: u32 = REP_ERROR | 5;
/// Refusal: no such export.
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
/// Refusal: shutting down.
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR | 7;
/// Refusal: too long.
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR | 9;

/// Fact: size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Fact: the export's canonical name.
pub const INFO_NAME: u16 = 1;
/// Fact: a description for people.
pub const INFO_DESCRIPTION: u16 = 2;
/// Fact: block sizes.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: the others mean something.
pub const TX_HAS_FLAGS: u16 = 1;
/// Transmission flag: read-only.
pub const TX_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: `FLUSH` is known.
pub const TX_SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: `FUA` is known.
pub const TX_SEND_FUA: u16 = 1 << 3;
/// Transmission flag: `TRIM` is known.
pub const TX_SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: `WRITE_ZEROES` is known.
pub const TX_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: `DF` is known (needs structured replies).
pub const TX_SEND_DF: u16 = 1 << 7;
/// Transmission flag: several connections see the same.
pub const TX_CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: `CACHE` is known.
pub const TX_SEND_CACHE: u16 = 1 << 10;

/// Command: read.
pub const CMD_READ: u16 = 0;
/// Command: write.
pub const CMD_WRITE: u16 = 1;
/// Command: end of the connection; no reply.
pub const CMD_DISC: u16 = 2;
/// Command: make durable.
pub const CMD_FLUSH: u16 = 3;
/// Command: give space back.
pub const CMD_TRIM: u16 = 4;
/// Command: read ahead.
pub const CMD_CACHE: u16 = 5;
/// Command: zeroes.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Command: what is stored where.
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Command flag: durable before the reply.
pub const CMD_FLAG_FUA: u16 = 1;
/// Command flag of `WRITE_ZEROES`: keep the space.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag of `READ`: in one piece. Replies of this server always are.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// Command flag of `BLOCK_STATUS`: one extent only.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;

/// Chunk flag: the last one of its reply.
pub const CHUNK_DONE: u16 = 1;
/// Chunk: nothing.
pub const CHUNK_NONE: u16 = 0;
/// Chunk: offset and bytes.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Chunk: offset and length of zeroes.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// Chunk: context id and extents.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Chunk: error with a text.
pub const CHUNK_ERROR: u16 = (1 << 15) | 1;
/// Chunk: error with a text and the offset where.
pub const CHUNK_ERROR_OFFSET: u16 = (1 << 15) | 2;

/// Error: not permitted.
pub const EPERM: u32 = 1;
/// Error: input or output failed.
pub const EIO: u32 = 5;
/// Error: malformed or past the end.
pub const EINVAL: u32 = 22;
/// Error: full, or a write past the end.
pub const ENOSPC: u32 = 28;
/// Error: does not fit.
pub const EOVERFLOW: u32 = 75;
/// Error: not offered.
pub const ENOTSUP: u32 = 95;
/// Error: shutting down.
pub const ESHUTDOWN: u32 = 108;

/// The context of `BLOCK_STATUS` that is offered.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its id in replies of this server.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// State flag of an extent: nothing stored.
pub const STATE_HOLE: u32 = 1;
/// State flag of an extent: reads as zeroes.
pub const STATE_ZERO: u32 = 2;

/// Longest string of the protocol.
pub const MAX_STRING: usize = 4096;

/// Length of a request's header.
pub const REQUEST_LEN: usize = 28;
/// Length of an option's header.
pub const OPTION_LEN: usize = 16;

/// A request's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Flags of the command.
    pub flags: u16,
    /// The command.
    pub command: u16,
    /// What the reply repeats.
    pub cookie: u64,
    /// Where.
    pub offset: u64,
    /// How much.
    pub len: u32,
}

impl Request {
    /// Decodes a header; nothing if the magic number is wrong.
    pub fn decode(raw: &[u8; REQUEST_LEN]) -> Option<Self> {
        (be32(raw, 0) == REQUEST_MAGIC).then(|| Self {
            flags: be16(raw, 4),
            command: be16(raw, 6),
            cookie: be64(raw, 8),
            offset: be64(raw, 16),
            len: be32(raw, 24),
        })
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut raw = [0; REQUEST_LEN];
        raw[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        raw[4..6].copy_from_slice(&self.flags.to_be_bytes());
        raw[6..8].copy_from_slice(&self.command.to_be_bytes());
        raw[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        raw[16..24].copy_from_slice(&self.offset.to_be_bytes());
        raw[24..28].copy_from_slice(&self.len.to_be_bytes());
        raw
    }
}

/// Header of a chunk of a structured reply, with `extra` bytes of room behind it.
pub fn chunk(flags: u16, kind: u16, cookie: u64, len: u32, extra: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(20 + extra);
    out.put_u32(CHUNK_MAGIC);
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(len);
    out
}

/// A simple reply's header.
pub fn simple_reply(error: u32, cookie: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(16);
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error);
    out.put_u64(cookie);
    out.freeze()
}

/// An answer to an option.
pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(20 + data.len());
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
    out.freeze()
}

/// The number at a place, 0 where the bytes end before it; callers pass buffers of known length.
pub fn be16(raw: &[u8], at: usize) -> u16 {
    raw.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes)
}
/// As [`be16`].
pub fn be32(raw: &[u8], at: usize) -> u32 {
    raw.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}
/// As [`be16`].
pub fn be64(raw: &[u8], at: usize) -> u64 {
    raw.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_back_what_was_written() {
        let request =
            Request { flags: 3, command: CMD_READ, cookie: 0x0102_0304_0506_0708, offset: 1 << 40, len: 4096 };
        let mut raw = request.encode();
        assert_eq!(Request::decode(&raw), Some(request));
        raw[0] ^= 1;
        assert_eq!(Request::decode(&raw), None);
    }

    #[test]
    fn headers_have_the_lengths_of_the_document() {
        assert_eq!(chunk(CHUNK_DONE, CHUNK_NONE, 7, 0, 0).len(), 20);
        assert_eq!(simple_reply(EIO, 7).len(), 16);
        assert_eq!(option_reply(OPT_GO, REP_ACK, b"ab").len(), 22);
    }
}
