//! Writing gRPC messages as frames: small things in one buffer, large payloads untouched.

use super::rope::Rope;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::VecDeque;

/// Payloads up to this size are copied between the headers; larger ones become frames of their own. A frame costs about
/// as much as copying 8 KiB.
pub const COPY_BYTES: usize = 8 * 1024;

/// One gRPC message, prefix included, ready to be sent.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    pub(super) frames: VecDeque<Bytes>,
    len: usize,
}

impl Encoded {
    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true of a finished message: the prefix alone is 5 bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The frames in order.
    pub fn frames(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter()
    }

    /// Any message through the generated code.
    pub fn of(message: &impl prost::Message) -> Self {
        let mut builder = MessageBuilder::new();
        message.encode(&mut builder.head).expect("a growing buffer has room");
        builder.finish()
    }
}

/// Puts one message together.
#[derive(Debug)]
pub(super) struct MessageBuilder {
    /// The prefix, all headers, all small payloads.
    head: BytesMut,
    /// Large payloads, and where in `head` they belong.
    payloads: Vec<(usize, Bytes)>,
    payload_bytes: usize,
}

impl MessageBuilder {
    pub(super) fn new() -> Self {
        let mut head = BytesMut::with_capacity(128);
        head.put_slice(&[0; 5]);
        Self { head, payloads: Vec::new(), payload_bytes: 0 }
    }

    /// Bytes of the message so far, without its prefix.
    pub(super) fn len(&self) -> usize {
        self.head.len() - 5 + self.payload_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn varint_field(&mut self, number: u32, value: u64) {
        varint(&mut self.head, u64::from(number << 3));
        varint(&mut self.head, value);
    }

    /// Begins a field of `len` bytes, which the caller adds next.
    pub(super) fn len_field(&mut self, number: u32, len: usize) {
        varint(&mut self.head, u64::from(number << 3 | 2));
        varint(&mut self.head, len as u64);
    }

    pub(super) fn small(&mut self, content: &[u8]) {
        self.head.put_slice(content);
    }

    pub(super) fn message(&mut self, message: &impl prost::Message) {
        message.encode(&mut self.head).expect("a growing buffer has room");
    }

    pub(super) fn payload(&mut self, content: Rope) {
        if content.len() <= COPY_BYTES {
            content.pieces().iter().for_each(|p| self.head.put_slice(p));
            return;
        }
        self.payload_bytes += content.len();
        for piece in content.into_pieces() {
            self.payloads.push((self.head.len(), piece));
        }
    }

    pub(super) fn finish(mut self) -> Encoded {
        let len = self.len();
        let prefix = u32::try_from(len).expect("messages are bounded far below 4 GiB");
        self.head[1..5].copy_from_slice(&prefix.to_be_bytes());
        let mut head = self.head.freeze();
        let mut frames = VecDeque::with_capacity(2 * self.payloads.len() + 1);
        let mut cut = 0;
        for (at, payload) in self.payloads {
            if at > cut {
                frames.push_back(head.split_to(at - cut));
                cut = at;
            }
            frames.push_back(payload);
        }
        if !head.is_empty() {
            frames.push_back(head);
        }
        Encoded { frames, len: len + 5 }
    }
}

/// Bytes that a number takes.
pub(super) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Length of a number field with a one-byte key, which is left out if zero.
pub(super) fn number_field_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

/// Length of a length-delimited field with a one-byte key.
pub(super) fn len_field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}
