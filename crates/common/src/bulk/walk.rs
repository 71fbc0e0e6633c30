//! Reading protobuf messages from ropes.
//!
//! Accepts exactly what the generated decoder accepts (keys, varints of at most 10 bytes, unknown fields and groups
//! skipped, a known field with another wire type refused) and never joins, copies or allocates by itself.

use super::rope::Rope;
use crate::error::{Error, Reason, Result};
use bytes::Bytes;

/// Groups nested deeper than this are refused, as the generated decoder does.
const MAX_GROUPS: usize = 100;

/// How a field's value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireType {
    /// A number in 1 to 10 bytes.
    Varint,
    /// 8 bytes.
    Fixed64,
    /// A length, then so many bytes.
    Len,
    /// Begin of a group.
    GroupStart,
    /// End of a group.
    GroupEnd,
    /// 4 bytes.
    Fixed32,
}

/// Goes through the fields of one message.
#[derive(Clone, Debug)]
pub struct Walker<'a> {
    pieces: &'a [Bytes],
    /// Position in the first of `pieces`.
    at: usize,
    /// Bytes to the end of the message; the pieces hold at least as many.
    left: usize,
}

impl<'a> Walker<'a> {
    /// Reads the whole rope as one message.
    pub fn new(message: &'a Rope) -> Self {
        Self { pieces: message.pieces(), at: 0, left: message.len() }
    }

    /// Bytes to the end of the message.
    pub fn left(&self) -> usize {
        self.left
    }

    /// The next field's number and wire type; `None` at the end.
    ///
    /// # Errors
    /// `MESSAGE_MALFORMED`.
    pub fn field(&mut self) -> Result<Option<(u32, WireType)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let key = u32::try_from(self.varint()?).map_err(|_| malformed("a field's key is too large"))?;
        let wire_type = match key & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Len,
            3 => WireType::GroupStart,
            4 => WireType::GroupEnd,
            5 => WireType::Fixed32,
            _ => return Err(malformed("a field has an unknown wire type")),
        };
        match key >> 3 {
            0 => Err(malformed("a field has the number 0")),
            number => Ok(Some((number, wire_type))),
        }
    }

    /// The value of a number field.
    ///
    /// # Errors
    /// `MESSAGE_MALFORMED` if the field is of another type.
    pub fn number(&mut self, found: WireType) -> Result<u64> {
        expect(found, WireType::Varint)?;
        self.varint()
    }

    /// The value of a bytes field, as a rope.
    ///
    /// # Errors
    /// `MESSAGE_MALFORMED` if the field is of another type or longer than the message.
    pub fn rope(&mut self, found: WireType) -> Result<Rope> {
        let len = self.length(found)?;
        self.take(len)
    }

    /// The value of a message field, to be walked through in turn.
    ///
    /// # Errors
    /// `MESSAGE_MALFORMED` if the field is of another type or longer than the message.
    pub fn message(&mut self, found: WireType) -> Result<Walker<'a>> {
        let len = self.length(found)?;
        let inner = Walker { pieces: self.pieces, at: self.at, left: len };
        self.advance(len)?;
        Ok(inner)
    }

    /// Passes over a field that is not known.
    ///
    /// # Errors
    /// `MESSAGE_MALFORMED` if it does not end within the message.
    pub fn skip(&mut self, number: u32, found: WireType) -> Result<()> {
        let mut groups: Vec<u32> = Vec::new();
        let (mut number, mut found) = (number, found);
        loop {
            match found {
                WireType::Varint => drop(self.varint()?),
                WireType::Fixed64 => self.advance(8)?,
                WireType::Fixed32 => self.advance(4)?,
                WireType::Len => {
                    let len = self.length(found)?;
                    self.advance(len)?;
                }
                WireType::GroupStart if groups.len() >= MAX_GROUPS => {
                    return Err(malformed("groups are nested too deep"));
                }
                WireType::GroupStart => groups.push(number),
                WireType::GroupEnd => {
                    if groups.pop() != Some(number) {
                        return Err(malformed("a group ends that did not begin"));
                    }
                }
            }
            if groups.is_empty() {
                return Ok(());
            }
            (number, found) = self.field()?.ok_or_else(|| malformed("a group does not end"))?;
        }
    }

    fn length(&mut self, found: WireType) -> Result<usize> {
        expect(found, WireType::Len)?;
        let len = self.varint()?;
        usize::try_from(len).ok().filter(|n| *n <= self.left).ok_or_else(truncated)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in 0..10 {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * shift);
            if byte < 0x80 {
                if shift == 9 && byte > 1 {
                    break;
                }
                return Ok(value);
            }
        }
        Err(malformed("a number is too long"))
    }

    fn byte(&mut self) -> Result<u8> {
        self.left = self.left.checked_sub(1).ok_or_else(truncated)?;
        let piece = self.pieces.first().ok_or_else(truncated)?;
        let byte = *piece.get(self.at).ok_or_else(truncated)?;
        self.at += 1;
        if self.at == piece.len() {
            self.pieces = &self.pieces[1..];
            self.at = 0;
        }
        Ok(byte)
    }

    fn advance(&mut self, len: usize) -> Result<()> {
        self.each(len, |_, _, _| ())
    }

    fn take(&mut self, len: usize) -> Result<Rope> {
        let mut out = Rope::new();
        self.each(len, |piece, from, to| out.push(piece.slice(from..to)))?;
        Ok(out)
    }

    fn each(&mut self, len: usize, mut part: impl FnMut(&Bytes, usize, usize)) -> Result<()> {
        self.left = self.left.checked_sub(len).ok_or_else(truncated)?;
        let mut need = len;
        while need > 0 {
            let piece = self.pieces.first().ok_or_else(truncated)?;
            let take = need.min(piece.len() - self.at);
            part(piece, self.at, self.at + take);
            need -= take;
            self.at += take;
            if self.at == piece.len() {
                self.pieces = &self.pieces[1..];
                self.at = 0;
            }
        }
        Ok(())
    }
}

fn expect(found: WireType, wanted: WireType) -> Result<()> {
    if found == wanted { Ok(()) } else { Err(malformed("a field has another type than the contract says")) }
}

fn truncated() -> Error {
    malformed("it ends too early")
}

/// The error for a message that is not what the contract says.
pub(super) fn malformed(why: &'static str) -> Error {
    Error::new(Reason::MessageMalformed, "a message of the stream could not be decoded").why_is(why)
}

/// For fuzzing: walks through arbitrary bytes, cut in two at a place that the first byte names.
pub fn fuzz_walk(data: &[u8]) {
    let Some((at, data)) = data.split_first() else { return };
    let at = usize::from(*at).min(data.len());
    let rope: Rope = [Bytes::copy_from_slice(&data[..at]), Bytes::copy_from_slice(&data[at..])].into_iter().collect();
    let mut walker = Walker::new(&rope);
    while let Ok(Some((number, found))) = walker.field() {
        if found == WireType::Len {
            let mut copy = walker.clone();
            let (Ok(mut inner), Ok(rope)) = (walker.message(found), copy.rope(found)) else { return };
            assert_eq!(inner.left(), rope.len());
            while let Ok(Some((number, found))) = inner.field() {
                if inner.skip(number, found).is_err() {
                    break;
                }
            }
        } else if walker.skip(number, found).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn walk_all(data: &[u8]) -> Result<usize> {
        let rope = Rope::from(data.to_vec());
        let mut walker = Walker::new(&rope);
        let mut fields = 0;
        while let Some((number, found)) = walker.field()? {
            walker.skip(number, found)?;
            fields += 1;
        }
        Ok(fields)
    }

    #[test]
    fn hostile_messages_are_refused() {
        let deep: Vec<u8> = [0x0b].repeat(200);
        let cases: &[&[u8]] = &[
            &[0x08],                                                                   // a number is missing
            &[0x0a, 0x05, 1, 2],                                                       // shorter than it says
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],       // 2^64 - 1 bytes
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],       // 65 bits
            &[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01], // 11 bytes
            &[0x00, 0x01],                                                             // field 0
            &[0x0e],                                                                   // wire type 6
            &[0x0c],                                                                   // group ends
            &[0x0b, 0x14],                                                             // another group ends
            &[0x0b, 0x08, 0x01],                                                       // group does not end
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0],                                  // key of 36 bits
            &[0x09, 1, 2, 3],                                                          // 8 bytes are 3
            &deep,
        ];
        for case in cases {
            let error = walk_all(case).unwrap_err();
            assert!(error.is(Reason::MessageMalformed), "{case:?}");
        }
        assert_eq!(walk_all(&[0x0b, 0x13, 0x08, 0x01, 0x14, 0x0c, 0x15, 0, 0, 0, 0]).unwrap(), 2);
    }

    proptest! {
        /// `()` is the message without known fields: the generated decoder skips everything.
        #[test]
        fn the_generated_decoder_agrees(data in prop::collection::vec(prop_oneof![0u8..32, any::<u8>()], 0..40)) {
            prop_assert_eq!(walk_all(&data).is_ok(), <() as Message>::decode(&data[..]).is_ok());
        }

        #[test]
        fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz_walk(&data);
        }
    }
}
