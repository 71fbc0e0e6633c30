//! `atrium.peer.v1.FetchResponse` without copying.

use super::message::{Encoded, MessageBuilder, len_field_len, number_field_len};
use super::rope::Rope;
use super::walk::{Walker, malformed};
use crate::error::{Error, Reason, Result};
use crate::model::MAX_CHUNK_BYTES;
use std::collections::VecDeque;

/// Most chunks of one request.
pub const MAX_FETCH_CHUNKS: usize = 1_024;
/// Largest message that is taken: a whole chunk and some more.
pub const MAX_FETCH_MESSAGE: usize = 5 * 1024 * 1024;
/// Most parts in one message.
pub const MAX_FETCH_PARTS: usize = 4_096;

/// Messages are sent once they hold this much.
const FULL_BYTES: usize = 1024 * 1024;
/// ... or this many parts.
const FULL_PARTS: usize = 1_024;
/// A part does not join a message that it would make larger than this.
const OVERFULL_BYTES: usize = FULL_BYTES + FULL_BYTES / 4;

/// A part of one chunk.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FetchPart {
    /// Position of the chunk in the request.
    pub index: u32,
    /// Position in the chunk.
    pub offset: u32,
    /// Length of the whole chunk, in its first part.
    pub length: u32,
    /// The chunk is not there, or not in the scope.
    pub absent: bool,
    /// Content.
    pub data: Rope,
}

/// Reads a message.
///
/// # Errors
/// `MESSAGE_MALFORMED`, `FIELD_INVALID`, `MESSAGE_TOO_LARGE`.
pub fn decode_fetch(message: &Rope) -> Result<Vec<FetchPart>> {
    let mut out = Vec::new();
    let mut walker = Walker::new(message);
    while let Some((number, found)) = walker.field()? {
        if number != 1 {
            walker.skip(number, found)?;
            continue;
        }
        if out.len() == MAX_FETCH_PARTS {
            return Err(Error::new(Reason::MessageTooLarge, "a message holds more than 4,096 parts"));
        }
        out.push(decode_part(walker.message(found)?)?);
    }
    Ok(out)
}

fn decode_part(mut walker: Walker<'_>) -> Result<FetchPart> {
    let mut part = FetchPart::default();
    while let Some((number, found)) = walker.field()? {
        match number {
            1 => part.index = walker.number(found)? as u32,
            2 => part.offset = walker.number(found)? as u32,
            3 => part.data = walker.rope(found)?,
            4 => part.absent = walker.number(found)? != 0,
            5 => part.length = walker.number(found)? as u32,
            _ => walker.skip(number, found)?,
        }
    }
    let end = u64::from(part.offset) + part.data.len() as u64;
    if part.absent != part.data.is_empty() || end > MAX_CHUNK_BYTES as u64 || part.length as usize > MAX_CHUNK_BYTES {
        return Err(Error::new(Reason::FieldInvalid, "a part of a chunk is not valid").with("field", "parts"));
    }
    Ok(part)
}

/// Packs chunks into messages of about 1 MiB.
#[derive(Debug, Default)]
pub struct FetchEncoder {
    builder: Option<MessageBuilder>,
    parts: usize,
    ready: VecDeque<Encoded>,
}

impl FetchEncoder {
    /// Adds a whole chunk.
    pub fn chunk(&mut self, index: u32, data: &Rope) {
        let mut done = 0;
        while done < data.len() {
            let part = data.slice(done, FULL_BYTES);
            let length = if done == 0 { data.len() as u64 } else { 0 };
            let (at, index) = (done as u64, u64::from(index));
            done += part.len();
            let len =
                number_field_len(index) + number_field_len(at) + number_field_len(length) + len_field_len(part.len());
            let builder = self.begin_part(len);
            for (number, value) in [(1, index), (2, at), (5, length)] {
                if value != 0 {
                    builder.varint_field(number, value);
                }
            }
            builder.len_field(3, part.len());
            builder.payload(part);
            self.end_part();
        }
    }

    /// Says that a chunk is not there.
    pub fn absent(&mut self, index: u32) {
        let index = u64::from(index);
        let builder = self.begin_part(number_field_len(index) + 2);
        if index != 0 {
            builder.varint_field(1, index);
        }
        builder.varint_field(4, 1);
        self.end_part();
    }

    /// Ends the message that is being filled.
    pub fn flush(&mut self) {
        if let Some(builder) = self.builder.take() {
            self.parts = 0;
            self.ready.push_back(builder.finish());
        }
    }

    /// The next message that is full, or was ended by [`FetchEncoder::flush`].
    pub fn pop(&mut self) -> Option<Encoded> {
        self.ready.pop_front()
    }

    fn begin_part(&mut self, len: usize) -> &mut MessageBuilder {
        if self.builder.as_ref().is_some_and(|b| b.len() + len > OVERFULL_BYTES) {
            self.flush();
        }
        let builder = self.builder.get_or_insert_with(MessageBuilder::new);
        builder.len_field(1, len);
        builder
    }

    fn end_part(&mut self) {
        self.parts += 1;
        if self.parts >= FULL_PARTS || self.builder.as_ref().is_some_and(|b| b.len() >= FULL_BYTES) {
            self.flush();
        }
    }
}

/// For fuzzing: decodes arbitrary bytes and compares with the generated decoder.
pub fn fuzz_fetch(data: &[u8]) {
    use prost::Message;
    let generated = proto::peer::v1::FetchResponse::decode(data);
    let ours = decode_fetch(&super::cut_for_tests(data));
    match (generated, ours) {
        (Ok(theirs), Ok(ours)) => {
            assert_eq!(theirs.parts.len(), ours.len());
            for (theirs, ours) in theirs.parts.iter().zip(&ours) {
                assert_eq!((theirs.index, theirs.offset_bytes), (ours.index, ours.offset));
                assert_eq!((theirs.length_bytes, theirs.absent), (ours.length, ours.absent));
                assert_eq!(theirs.data, ours.data.to_bytes());
            }
        }
        // The generated one knows no limits.
        (Ok(_), Err(ours)) => assert!(!ours.is(Reason::MessageMalformed) && !ours.is(Reason::Internal), "{ours:?}"),
        (Err(theirs), Ok(_)) => panic!("accepted what the generated decoder refuses: {theirs}"),
        (Err(_), Err(_)) => {}
    }
}

/// The error for an answer that has nothing to do with the question.
pub(super) fn strange_fetch() -> Error {
    malformed("a chunk came that was not asked for")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;

    fn encode(chunks: &[Option<Vec<u8>>]) -> Vec<Rope> {
        let mut encoder = FetchEncoder::default();
        for (index, chunk) in chunks.iter().enumerate() {
            match chunk {
                Some(data) => encoder.chunk(index as u32, &Rope::from(data.clone())),
                None => encoder.absent(index as u32),
            }
        }
        encoder.flush();
        std::iter::from_fn(|| encoder.pop())
            .map(|message| {
                let all: Rope = message.frames().cloned().collect();
                let len = u32::from_be_bytes(all.to_bytes()[1..5].try_into().unwrap()) as usize;
                assert_eq!(len + 5, all.len());
                all.slice(5, len)
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_generated_decoder_reads_what_is_written(
            sizes in prop::collection::vec(prop::option::of(prop_oneof![1usize..50, 8000usize..9000, 1_000_000usize..2_500_000]), 0..4),
        ) {
            let chunks: Vec<Option<Vec<u8>>> =
                sizes.iter().enumerate().map(|(n, s)| s.map(|s| (0..s).map(|i| (i * 31 + n) as u8).collect())).collect();
            let mut back: Vec<Option<Vec<u8>>> = vec![Some(Vec::new()); chunks.len()];
            for message in encode(&chunks) {
                prop_assert!(message.len() <= OVERFULL_BYTES + 64);
                let ours = decode_fetch(&message).unwrap();
                let theirs = proto::peer::v1::FetchResponse::decode(message.to_bytes()).unwrap();
                prop_assert_eq!(ours.len(), theirs.parts.len());
                for (ours, theirs) in ours.iter().zip(theirs.parts) {
                    prop_assert_eq!(&theirs.data, &ours.data.to_bytes());
                    prop_assert_eq!(
                        (theirs.index, theirs.offset_bytes, theirs.length_bytes, theirs.absent),
                        (ours.index, ours.offset, ours.length, ours.absent)
                    );
                    let slot = &mut back[ours.index as usize];
                    if ours.absent {
                        *slot = None;
                    } else {
                        let data = slot.as_mut().unwrap();
                        prop_assert_eq!(data.len(), ours.offset as usize);
                        let whole = chunks[ours.index as usize].as_ref().unwrap().len();
                        prop_assert_eq!(ours.length as usize, if ours.offset == 0 { whole } else { 0 });
                        data.extend_from_slice(&ours.data.to_bytes());
                    }
                }
            }
            prop_assert_eq!(back, chunks);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz_fetch(&data);
        }

        #[test]
        fn damaged_messages_are_survived(at in 0usize..4000, value: u8) {
            let message = encode(&[Some(vec![7; 3000]), None, Some(vec![8; 900])]).remove(0);
            let mut bytes = message.to_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = value;
            fuzz_fetch(&bytes);
        }
    }

    #[test]
    fn payloads_are_not_copied() {
        let data = Bytes::from(vec![1; 100_000]);
        let mut encoder = FetchEncoder::default();
        encoder.chunk(3, &Rope::from(data.clone()));
        encoder.flush();
        let message = encoder.pop().unwrap();
        assert!(message.frames().any(|f| f.as_ptr() == data.as_ptr()));
        assert_eq!(message.frames().count(), 2, "headers and payload, nothing behind it");
    }
}
