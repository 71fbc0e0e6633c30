//! Messages as bytes (RFC 8010 section 3), with hard limits.
//!
//! A message is a header of 8 bytes, groups of attributes, the end tag, and perhaps a document. [`Scanner`] finds the end
//! tag while bytes still come in; [`decode`] then reads what lies before it. Both look at each byte once. Collections are
//! read with a stack of at most [`MAX_DEPTH`] entries, never by recursion.

use std::collections::HashSet;

use bytes::{BufMut, Bytes, BytesMut};

use super::codes::{group, tag};
use super::value::{Attribute, DateTime, Group, Message, Value};

/// Collections within collections; libcups stops at the same depth.
pub const MAX_DEPTH: usize = 10;
/// Bytes of a message before its document.
pub const MAX_ATTRIBUTES: usize = 1 << 20;
/// Bytes of a value: the most that a signed 16-bit length can say.
pub const MAX_VALUE: usize = 32_767;
/// Bytes of a name.
pub const MAX_NAME: usize = 255;
/// Values of a message, in all groups and collections: bounds the memory that many tiny values take.
pub const MAX_VALUES: usize = 20_000;

/// Why bytes are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// They end too early.
    #[error("the message ends in the middle")]
    Truncated,
    /// More than [`MAX_ATTRIBUTES`] bytes or [`MAX_VALUES`] values.
    #[error("the attributes take more than 1 MiB or have more than 20,000 values")]
    TooLarge,
    /// A value of more than [`MAX_VALUE`] bytes.
    #[error("a value has more than 32,767 bytes")]
    ValueTooLong,
    /// A name of more than [`MAX_NAME`] bytes.
    #[error("a name has more than 255 bytes")]
    NameTooLong,
    /// Collections deeper than [`MAX_DEPTH`].
    #[error("collections are nested deeper than 10")]
    TooDeep,
    /// A value whose length does not fit its tag.
    #[error("a value has the wrong length for its type")]
    WrongLength,
    /// Characters that are not UTF-8.
    #[error("a value is not UTF-8")]
    NotUtf8,
    /// Tags in an order that has no meaning.
    #[error("the attributes are not in an order that has a meaning")]
    Disorder,
    /// Two attributes of one name in a group.
    #[error("an attribute is there twice")]
    Duplicate,
}

/// Finds the end of the attributes while bytes come in.
#[derive(Debug, Default)]
pub struct Scanner {
    at: usize,
}

impl Scanner {
    /// A scanner at the beginning of a message.
    pub fn new() -> Self {
        Self { at: 8 }
    }

    /// Where the document begins, if `bytes` (all that came so far, from the beginning) hold all attributes.
    ///
    /// # Errors
    /// If they are larger than allowed, which is seen before their bytes are there.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, DecodeError> {
        loop {
            if self.at > MAX_ATTRIBUTES {
                return Err(DecodeError::TooLarge);
            }
            let Some(rest) = bytes.get(self.at..) else { return Ok(None) };
            let Some(&first) = rest.first() else { return Ok(None) };
            if first == group::END {
                return Ok(Some(self.at + 1));
            }
            if first < 0x10 {
                self.at += 1;
                continue;
            }
            let Some(name) = length_at(rest, 1) else { return Ok(None) };
            if name > MAX_NAME {
                return Err(DecodeError::NameTooLong);
            }
            let Some(value) = length_at(rest, 3 + name) else { return Ok(None) };
            if value > MAX_VALUE {
                return Err(DecodeError::ValueTooLong);
            }
            self.at += 5 + name + value;
        }
    }
}

fn length_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

/// The first 8 bytes of a message: version, code and request id. Enough to answer one that is malformed further on.
pub fn header(bytes: &[u8]) -> Option<((u8, u8), u16, i32)> {
    let bytes: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    let [major, minor, c1, c0, r3, r2, r1, r0] = bytes;
    Some(((major, minor), u16::from_be_bytes([c1, c0]), i32::from_be_bytes([r3, r2, r1, r0])))
}

/// Reads a message from the beginning of `bytes`; gives it and the number of bytes that it took.
///
/// # Errors
/// If the bytes are no message within the limits. Never panics; takes time linear in the input.
pub fn decode(bytes: &[u8]) -> Result<(Message, usize), DecodeError> {
    let (version, code, request_id) = header(bytes).ok_or(DecodeError::Truncated)?;
    let mut reader = Reader { bytes, at: 8 };
    let mut build = Build::default();
    loop {
        let first = reader.byte()?;
        if reader.at > MAX_ATTRIBUTES {
            return Err(DecodeError::TooLarge);
        }
        if first < 0x10 {
            build.delimiter(first)?;
            if first == group::END {
                let message = Message { version, code, request_id, groups: build.groups };
                return Ok((message, reader.at));
            }
            continue;
        }
        let name = reader.counted(MAX_NAME, DecodeError::NameTooLong)?;
        let value = reader.counted(MAX_VALUE, DecodeError::ValueTooLong)?;
        build.item(first, name, value)?;
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.bytes.get(self.at).ok_or(DecodeError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn counted(&mut self, most: usize, error: DecodeError) -> Result<&'a [u8], DecodeError> {
        let length = length_at(self.bytes, self.at).ok_or(DecodeError::Truncated)?;
        if length > most {
            return Err(error);
        }
        let from = self.at + 2;
        let value = self.bytes.get(from..from + length).ok_or(DecodeError::Truncated)?;
        self.at = from + length;
        Ok(value)
    }
}

/// What was read so far.
#[derive(Default)]
struct Build {
    groups: Vec<Group>,
    names: HashSet<String>,
    /// Members of the collections that are open, outermost first.
    open: Vec<Vec<Attribute>>,
    values: usize,
}

impl Build {
    fn delimiter(&mut self, tag: u8) -> Result<(), DecodeError> {
        if !self.open.is_empty() || tag == 0 {
            return Err(DecodeError::Disorder);
        }
        if tag != group::END {
            // An empty group is a byte: they count as values do.
            self.count()?;
            self.names.clear();
            self.groups.push(Group::new(tag));
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), DecodeError> {
        self.values += 1;
        if self.values > MAX_VALUES { Err(DecodeError::TooLarge) } else { Ok(()) }
    }

    fn item(&mut self, tag: u8, name: &[u8], value: &[u8]) -> Result<(), DecodeError> {
        self.count()?;
        if let Some(members) = self.open.last_mut() {
            if !name.is_empty() {
                return Err(DecodeError::Disorder);
            }
            if tag == tag::MEMBER_NAME {
                if value.is_empty() || value.len() > MAX_NAME || members.last().is_some_and(|m| m.values.is_empty()) {
                    return Err(DecodeError::Disorder);
                }
                members.push(Attribute { name: string(value)?, values: Vec::new() });
                return Ok(());
            }
            if tag == tag::END_COLLECTION {
                if members.last().is_some_and(|m| m.values.is_empty()) {
                    return Err(DecodeError::Disorder);
                }
                let members = self.open.pop().unwrap_or_default();
                return self.push(Value::Collection(members));
            }
        } else {
            if tag == tag::MEMBER_NAME || tag == tag::END_COLLECTION {
                return Err(DecodeError::Disorder);
            }
            if !name.is_empty() {
                let name = string(name)?;
                if !self.names.insert(name.clone()) {
                    return Err(DecodeError::Duplicate);
                }
                let group = self.groups.last_mut().ok_or(DecodeError::Disorder)?;
                group.attributes.push(Attribute { name, values: Vec::with_capacity(1) });
            }
        }
        if tag == tag::BEGIN_COLLECTION {
            if self.open.len() == MAX_DEPTH {
                return Err(DecodeError::TooDeep);
            }
            // It must have a place to go to when it ends.
            self.place()?;
            self.open.push(Vec::new());
            return Ok(());
        }
        self.push(typed(tag, value)?)
    }

    fn place(&mut self) -> Result<&mut Vec<Value>, DecodeError> {
        let last = match self.open.last_mut() {
            Some(members) => members.last_mut(),
            None => self.groups.last_mut().and_then(|g| g.attributes.last_mut()),
        };
        last.map(|a| &mut a.values).ok_or(DecodeError::Disorder)
    }

    fn push(&mut self, value: Value) -> Result<(), DecodeError> {
        self.place()?.push(value);
        Ok(())
    }
}

fn string(bytes: &[u8]) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::NotUtf8)
}

fn int(bytes: &[u8]) -> Result<i32, DecodeError> {
    bytes.try_into().map(i32::from_be_bytes).map_err(|_| DecodeError::WrongLength)
}

fn typed(tag: u8, value: &[u8]) -> Result<Value, DecodeError> {
    Ok(match tag {
        tag::UNSUPPORTED => Value::Unsupported,
        tag::UNKNOWN => Value::Unknown,
        tag::NO_VALUE => Value::NoValue,
        tag::INTEGER => Value::Integer(int(value)?),
        tag::ENUM => Value::Enum(int(value)?),
        tag::BOOLEAN => match value {
            [0] => Value::Boolean(false),
            [1] => Value::Boolean(true),
            _ => return Err(DecodeError::WrongLength),
        },
        tag::OCTET_STRING => Value::OctetString(Bytes::copy_from_slice(value)),
        tag::DATE_TIME => Value::DateTime(DateTime { octets: value.try_into().map_err(|_| DecodeError::WrongLength)? }),
        tag::RESOLUTION => match value {
            [x @ .., unit] if x.len() == 8 => Value::Resolution { x: int(&x[..4])?, y: int(&x[4..])?, unit: *unit },
            _ => return Err(DecodeError::WrongLength),
        },
        tag::RANGE if value.len() == 8 => Value::Range(int(&value[..4])?, int(&value[4..])?),
        tag::RANGE => return Err(DecodeError::WrongLength),
        tag::TEXT_LANGUAGE | tag::NAME_LANGUAGE => {
            let language = length_at(value, 0).and_then(|n| value.get(2..2 + n)).ok_or(DecodeError::WrongLength)?;
            let rest = &value[2 + language.len()..];
            let text = length_at(rest, 0).and_then(|n| rest.get(2..2 + n)).ok_or(DecodeError::WrongLength)?;
            if rest.len() != 2 + text.len() {
                return Err(DecodeError::WrongLength);
            }
            let (language, text) = (string(language)?, string(text)?);
            if tag == tag::TEXT_LANGUAGE { Value::TextIn(language, text) } else { Value::NameIn(language, text) }
        }
        tag::TEXT => Value::Text(string(value)?),
        tag::NAME => Value::Name(string(value)?),
        tag::KEYWORD => Value::Keyword(string(value)?),
        tag::URI => Value::Uri(string(value)?),
        tag::URI_SCHEME => Value::UriScheme(string(value)?),
        tag::CHARSET => Value::Charset(string(value)?),
        tag::NATURAL_LANGUAGE => Value::Language(string(value)?),
        tag::MIME_TYPE => Value::MimeType(string(value)?),
        _ => Value::Other(tag, Bytes::copy_from_slice(value)),
    })
}

/// Writes a message, up to and with the end tag.
///
/// Names and values that are longer than the protocol allows are cut (characters are never cut through), attributes
/// without a value and collections deeper than [`MAX_DEPTH`] get the value `no-value`.
pub fn encode(message: &Message) -> Bytes {
    let mut out = BytesMut::with_capacity(1024);
    out.put_slice(&[message.version.0, message.version.1]);
    out.put_u16(message.code);
    out.put_i32(message.request_id);
    for group in &message.groups {
        out.put_u8(group.tag);
        for attribute in &group.attributes {
            write_values(&mut out, attribute.name.as_str(), &attribute.values, 0);
        }
    }
    out.put_u8(group::END);
    out.freeze()
}

fn write_values(out: &mut BytesMut, name: &str, values: &[Value], depth: usize) {
    if values.is_empty() {
        write_item(out, tag::NO_VALUE, name, &[]);
    }
    for (n, value) in values.iter().enumerate() {
        write_value(out, if n == 0 { name } else { "" }, value, depth);
    }
}

fn write_item(out: &mut BytesMut, tag: u8, name: &str, value: &[u8]) {
    let name = cut(name, MAX_NAME);
    let value = &value[..value.len().min(MAX_VALUE)];
    out.put_u8(tag);
    out.put_u16(name.len() as u16);
    out.put_slice(name.as_bytes());
    out.put_u16(value.len() as u16);
    out.put_slice(value);
}

/// The longest beginning of at most `most` bytes that ends with a whole character.
pub fn cut(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
    &text[..end]
}

fn write_value(out: &mut BytesMut, name: &str, value: &Value, depth: usize) {
    let mut item = |tag: u8, value: &[u8]| write_item(out, tag, name, value);
    match value {
        Value::Unsupported => item(tag::UNSUPPORTED, &[]),
        Value::Unknown => item(tag::UNKNOWN, &[]),
        Value::NoValue => item(tag::NO_VALUE, &[]),
        Value::Integer(n) => item(tag::INTEGER, &n.to_be_bytes()),
        Value::Enum(n) => item(tag::ENUM, &n.to_be_bytes()),
        Value::Boolean(b) => item(tag::BOOLEAN, &[u8::from(*b)]),
        Value::OctetString(bytes) => item(tag::OCTET_STRING, bytes),
        Value::DateTime(date) => item(tag::DATE_TIME, &date.octets),
        Value::Resolution { x, y, unit } => {
            let mut octets = [0; 9];
            octets[..4].copy_from_slice(&x.to_be_bytes());
            octets[4..8].copy_from_slice(&y.to_be_bytes());
            octets[8] = *unit;
            item(tag::RESOLUTION, &octets);
        }
        Value::Range(low, high) => {
            let mut octets = [0; 8];
            octets[..4].copy_from_slice(&low.to_be_bytes());
            octets[4..].copy_from_slice(&high.to_be_bytes());
            item(tag::RANGE, &octets);
        }
        Value::TextIn(language, text) => item(tag::TEXT_LANGUAGE, &in_language(language, text, 1023)),
        Value::NameIn(language, text) => item(tag::NAME_LANGUAGE, &in_language(language, text, 255)),
        Value::Text(s) => item(tag::TEXT, cut(s, 1023).as_bytes()),
        Value::Name(s) => item(tag::NAME, cut(s, 255).as_bytes()),
        Value::Keyword(s) => item(tag::KEYWORD, cut(s, 255).as_bytes()),
        Value::Uri(s) => item(tag::URI, cut(s, 1023).as_bytes()),
        Value::UriScheme(s) => item(tag::URI_SCHEME, cut(s, 63).as_bytes()),
        Value::Charset(s) => item(tag::CHARSET, cut(s, 63).as_bytes()),
        Value::Language(s) => item(tag::NATURAL_LANGUAGE, cut(s, 63).as_bytes()),
        Value::MimeType(s) => item(tag::MIME_TYPE, cut(s, 255).as_bytes()),
        Value::Other(tag, bytes) => item(*tag, bytes),
        Value::Collection(_) if depth == MAX_DEPTH => item(tag::NO_VALUE, &[]),
        Value::Collection(members) => {
            item(tag::BEGIN_COLLECTION, &[]);
            for member in members {
                write_item(out, tag::MEMBER_NAME, "", cut(&member.name, MAX_NAME).as_bytes());
                write_values(out, "", &member.values, depth + 1);
            }
            write_item(out, tag::END_COLLECTION, "", &[]);
        }
    }
}

fn in_language(language: &str, text: &str, most: usize) -> Vec<u8> {
    let (language, text) = (cut(language, 63), cut(text, most));
    let mut out = Vec::with_capacity(4 + language.len() + text.len());
    out.extend_from_slice(&(language.len() as u16).to_be_bytes());
    out.extend_from_slice(language.as_bytes());
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    out
}

/// For the fuzz target: what can be read can be written, and reads the same again; the scanner finds the same end.
pub fn fuzz(bytes: &[u8]) {
    let mut scanner = Scanner::new();
    // In two parts, as a network would bring it.
    let scanned = scanner.scan(&bytes[..bytes.len() / 2]).and_then(|early| match early {
        Some(end) => Ok(Some(end)),
        None => scanner.scan(bytes),
    });
    let Ok((message, end)) = decode(bytes) else { return };
    assert_eq!(scanned, Ok(Some(end)));
    let written = encode(&message);
    if written.len() <= MAX_ATTRIBUTES
        && let Ok((again, _)) = decode(&written)
    {
        assert_eq!(encode(&again), written);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ipp::codes::Operation;

    fn attribute_bytes(out: &mut Vec<u8>, tag: u8, name: &str, value: &[u8]) {
        let mut bytes = BytesMut::new();
        write_item(&mut bytes, tag, name, value);
        out.extend_from_slice(&bytes);
    }

    fn start() -> Vec<u8> {
        vec![2, 0, 0, 0x0b, 0, 0, 0, 1, group::OPERATION]
    }

    /// A request with collections nested to this depth.
    fn nested(depth: usize) -> Vec<u8> {
        let mut bytes = start();
        attribute_bytes(&mut bytes, tag::BEGIN_COLLECTION, "media-col", &[]);
        for _ in 1..depth {
            attribute_bytes(&mut bytes, tag::MEMBER_NAME, "", b"m");
            attribute_bytes(&mut bytes, tag::BEGIN_COLLECTION, "", &[]);
        }
        for _ in 0..depth {
            attribute_bytes(&mut bytes, tag::END_COLLECTION, "", &[]);
        }
        bytes.push(group::END);
        bytes
    }

    #[test]
    fn depth_ten_is_read_and_eleven_is_refused() {
        assert!(decode(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(decode(&nested(MAX_DEPTH + 1)), Err(DecodeError::TooDeep));
        assert_eq!(decode(&nested(50_000)), Err(DecodeError::TooDeep));
    }

    #[test]
    fn a_member_with_two_values_loses_nothing_after_it() {
        let members = vec![
            Attribute::many("a", [Value::Integer(1), Value::Integer(2)]),
            Attribute::one("b", Value::keyword("x")),
        ];
        let mut message = Message::request(Operation::PrintJob, 7);
        message.group_mut(group::JOB).put("col", Value::Collection(members));
        let bytes = encode(&message);
        assert_eq!(decode(&bytes), Ok((message, bytes.len())));
    }

    #[test]
    fn limits_hold_in_scanner_and_decoder() {
        let mut large = start();
        for n in 0..100 {
            attribute_bytes(&mut large, tag::OCTET_STRING, &format!("a{n}"), &[7; 32_000]);
        }
        large.push(group::END);
        assert_eq!(Scanner::new().scan(&large), Err(DecodeError::TooLarge));
        assert_eq!(decode(&large), Err(DecodeError::TooLarge));

        let mut many = start();
        attribute_bytes(&mut many, tag::NO_VALUE, "a", &[]);
        for _ in 0..MAX_VALUES {
            attribute_bytes(&mut many, tag::NO_VALUE, "", &[]);
        }
        many.push(group::END);
        assert_eq!(decode(&many), Err(DecodeError::TooLarge));

        let mut long = start();
        long.extend_from_slice(&[tag::OCTET_STRING, 0, 1, b'a', 0x80, 0]);
        assert_eq!(Scanner::new().scan(&long), Err(DecodeError::ValueTooLong), "seen before its bytes are there");
    }

    #[test]
    fn disorder_is_refused() {
        type Items<'a> = Vec<(u8, &'a str, &'a [u8])>;
        let table: [(&str, Items<'_>); 6] = [
            ("value before name", vec![(tag::INTEGER, "", &[0, 0, 0, 1])]),
            ("member outside", vec![(tag::MEMBER_NAME, "", b"a")]),
            ("end outside", vec![(tag::END_COLLECTION, "", b"")]),
            ("open at end", vec![(tag::BEGIN_COLLECTION, "a", b"")]),
            ("value without member", vec![(tag::BEGIN_COLLECTION, "a", b""), (tag::INTEGER, "", &[0, 0, 0, 1])]),
            ("nested without member", vec![(tag::BEGIN_COLLECTION, "a", b""), (tag::BEGIN_COLLECTION, "", b"")]),
        ];
        for (what, items) in table {
            let mut bytes = start();
            for (tag, name, value) in items {
                attribute_bytes(&mut bytes, tag, name, value);
            }
            bytes.push(group::END);
            assert_eq!(decode(&bytes), Err(DecodeError::Disorder), "{what}");
        }
        let mut twice = start();
        attribute_bytes(&mut twice, tag::BOOLEAN, "a", &[1]);
        attribute_bytes(&mut twice, tag::BOOLEAN, "a", &[0]);
        twice.push(group::END);
        assert_eq!(decode(&twice), Err(DecodeError::Duplicate));
    }

    #[test]
    fn every_beginning_of_a_message_is_truncated() {
        let mut message = Message::request(Operation::PrintJob, 1);
        let inner = vec![Attribute::one("x-dimension", Value::Integer(21_000))];
        let members = vec![Attribute::one("media-size", Value::Collection(inner))];
        message.group_mut(group::JOB).put("media-col", Value::Collection(members));
        let bytes = encode(&message);
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), Err(DecodeError::Truncated), "{end}");
            assert_eq!(Scanner::new().scan(&bytes[..end]), Ok(None), "{end}");
        }
        assert_eq!(Scanner::new().scan(&bytes), Ok(Some(bytes.len())));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i32>().prop_map(Value::Integer),
            any::<bool>().prop_map(Value::Boolean),
            any::<i32>().prop_map(Value::Enum),
            prop::collection::vec(any::<u8>(), 0..80).prop_map(|v| Value::OctetString(v.into())),
            any::<[u8; 11]>().prop_map(|octets| Value::DateTime(DateTime { octets })),
            any::<(i32, i32, u8)>().prop_map(|(x, y, unit)| Value::Resolution { x, y, unit }),
            any::<(i32, i32)>().prop_map(|(a, b)| Value::Range(a, b)),
            ".{0,40}".prop_map(Value::Text),
            ".{0,40}".prop_map(Value::Name),
            "[a-z-]{1,20}".prop_map(Value::Keyword),
            ("[a-z]{2}", ".{0,20}").prop_map(|(l, t)| Value::TextIn(l, t)),
            Just(Value::NoValue),
        ];
        leaf.prop_recursive(6, 40, 4, |inner| {
            prop::collection::vec(("[a-z]{1,8}", prop::collection::vec(inner, 1..4)), 0..4)
                .prop_map(|m| Value::Collection(m.into_iter().map(|(n, v)| Attribute::many(n, v)).collect()))
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(values in prop::collection::vec(prop::collection::vec(any_value(), 1..4), 0..6)) {
            let mut message = Message::request(Operation::GetJobs, 3);
            for (n, values) in values.into_iter().enumerate() {
                message.group_mut(group::JOB).put_all(&format!("a{n}"), values);
            }
            let bytes = encode(&message);
            prop_assert_eq!(decode(&bytes), Ok((message, bytes.len())));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            fuzz(&bytes);
        }

        #[test]
        fn no_change_of_a_message_panics(at in 0usize..200, byte in any::<u8>(), depth in 1usize..12) {
            let mut bytes = nested(depth);
            let at = at % bytes.len();
            bytes[at] = byte;
            fuzz(&bytes);
        }
    }
}
