//! One option of a client, decoded and answered. No IO: the server looks exports up between the two steps.

use super::server::ExportEntry;
use super::source::MAX_READ;
use super::wire::*;
use bytes::{BufMut, Bytes, BytesMut};

/// Longest data of an option that is read: a name of 4,096 bytes and as many queries, with room. Up to
/// [`MAX_OPTION_SKIPPED`] it is skipped and refused; beyond that the connection ends.
pub const MAX_OPTION: u32 = 16 << 10;
/// See [`MAX_OPTION`].
pub const MAX_OPTION_SKIPPED: u32 = 256 << 10;
/// Most options in one negotiation.
pub const MAX_OPTIONS: u32 = 64;
/// Most queries of one metadata option that are looked at.
const MAX_QUERIES: u32 = 64;

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opt {
    /// The old way to choose an export.
    ExportName(String),
    /// Ends the negotiation.
    Abort,
    /// Which exports there are.
    List,
    /// Begin TLS.
    StartTls,
    /// What an export is; with `go` it is also chosen.
    Info {
        /// Its name; empty for the default export.
        name: String,
        /// It is chosen as well.
        go: bool,
        /// Facts that are asked for by number.
        facts: Vec<u16>,
    },
    /// Structured replies.
    StructuredReply,
    /// Metadata contexts of an export; with `set` they are chosen.
    Meta {
        /// Name of the export.
        name: String,
        /// They are chosen.
        set: bool,
        /// A query matches `base:allocation`.
        base: bool,
    },
    /// Something that is not offered.
    Unknown(u32),
}

/// Why an option cannot be decoded: the answer to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed(
    /// Number of the refusal.
    pub u32,
);

/// Decodes an option.
///
/// # Errors
/// The refusal to answer with.
pub fn decode(option: u32, data: &[u8]) -> Result<Opt, Malformed> {
    let empty = |opt| if data.is_empty() { Ok(opt) } else { Err(Malformed(REP_ERR_INVALID)) };
    match option {
        OPT_EXPORT_NAME => Ok(Opt::ExportName(text(data)?)),
        // The document lets an abort carry anything.
        OPT_ABORT => Ok(Opt::Abort),
        OPT_LIST => empty(Opt::List),
        OPT_STARTTLS => empty(Opt::StartTls),
        OPT_INFO | OPT_GO => decode_info(option == OPT_GO, data),
        OPT_STRUCTURED_REPLY => empty(Opt::StructuredReply),
        OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => decode_meta(option == OPT_SET_META_CONTEXT, data),
        other => Ok(Opt::Unknown(other)),
    }
}

fn decode_info(go: bool, data: &[u8]) -> Result<Opt, Malformed> {
    let mut rest = data;
    let name = string(&mut rest)?;
    let count = usize::from(be16(take(&mut rest, 2)?, 0));
    if rest.len() != count * 2 {
        return Err(Malformed(REP_ERR_INVALID));
    }
    let facts = rest.chunks_exact(2).map(|b| be16(b, 0)).collect();
    Ok(Opt::Info { name, go, facts })
}

fn decode_meta(set: bool, data: &[u8]) -> Result<Opt, Malformed> {
    let mut rest = data;
    let name = string(&mut rest)?;
    let count = be32(take(&mut rest, 4)?, 0);
    if count > MAX_QUERIES {
        return Err(Malformed(REP_ERR_TOO_BIG));
    }
    // No query lists everything, and chooses nothing.
    let mut base = count == 0 && !set;
    for _ in 0..count {
        let query = string(&mut rest)?;
        base |= query == BASE_ALLOCATION || (!set && query == "base:");
    }
    if !rest.is_empty() {
        return Err(Malformed(REP_ERR_INVALID));
    }
    Ok(Opt::Meta { name, set, base })
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], Malformed> {
    let (head, tail) = rest.split_at_checked(len).ok_or(Malformed(REP_ERR_INVALID))?;
    *rest = tail;
    Ok(head)
}

fn string(rest: &mut &[u8]) -> Result<String, Malformed> {
    let len = be32(take(rest, 4)?, 0) as usize;
    text(take(rest, len)?)
}

fn text(raw: &[u8]) -> Result<String, Malformed> {
    if raw.len() > MAX_STRING {
        return Err(Malformed(REP_ERR_TOO_BIG));
    }
    match std::str::from_utf8(raw) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(Malformed(REP_ERR_INVALID)),
    }
}

/// Size and flags, as they end `EXPORT_NAME` and stand in `INFO_EXPORT`.
pub fn size_and_flags(size: u64, flags: u16) -> [u8; 10] {
    let mut out = [0; 10];
    out[..8].copy_from_slice(&size.to_be_bytes());
    out[8..].copy_from_slice(&flags.to_be_bytes());
    out
}

/// The answers to `INFO` and `GO` for an export, acknowledgement included.
pub fn info_replies(option: u32, entry: &ExportEntry, size: u64, flags: u16, asked: &[u16]) -> Vec<Bytes> {
    let fact = |kind: u16, data: &[u8]| {
        let mut out = BytesMut::with_capacity(2 + data.len());
        out.put_u16(kind);
        out.put_slice(data);
        option_reply(option, REP_INFO, &out)
    };
    let mut sizes = [0; 12];
    // Any alignment is served; 64 KiB are 32 sectors, which a drive reads in about the time of one.
    for (at, size) in [1_u32, 64 << 10, MAX_READ].into_iter().enumerate() {
        sizes[at * 4..at * 4 + 4].copy_from_slice(&size.to_be_bytes());
    }
    let mut out = vec![fact(INFO_EXPORT, &size_and_flags(size, flags)), fact(INFO_BLOCK_SIZE, &sizes)];
    if asked.contains(&INFO_NAME) {
        out.push(fact(INFO_NAME, shorten(&entry.name).as_bytes()));
    }
    if asked.contains(&INFO_DESCRIPTION) && !entry.description.is_empty() {
        out.push(fact(INFO_DESCRIPTION, shorten(&entry.description).as_bytes()));
    }
    out.push(option_reply(option, REP_ACK, &[]));
    out
}

/// The answers to `LIST`.
pub fn list_replies(entries: &[ExportEntry]) -> Vec<Bytes> {
    let one = |entry: &ExportEntry| {
        let (name, description) = (shorten(&entry.name), shorten(&entry.description));
        let mut out = BytesMut::with_capacity(4 + name.len() + description.len());
        out.put_u32(name.len() as u32);
        out.put_slice(name.as_bytes());
        out.put_slice(description.as_bytes());
        option_reply(OPT_LIST, REP_SERVER, &out)
    };
    entries.iter().map(one).chain([option_reply(OPT_LIST, REP_ACK, &[])]).collect()
}

/// The answers to a metadata option for an export that exists.
pub fn meta_replies(set: bool, base: bool) -> Vec<Bytes> {
    let option = if set { OPT_SET_META_CONTEXT } else { OPT_LIST_META_CONTEXT };
    let mut out = Vec::with_capacity(2);
    if base {
        let mut data = BytesMut::with_capacity(4 + BASE_ALLOCATION.len());
        data.put_u32(if set { BASE_ALLOCATION_ID } else { 0 });
        data.put_slice(BASE_ALLOCATION.as_bytes());
        out.push(option_reply(option, REP_META_CONTEXT, &data));
    }
    out.push(option_reply(option, REP_ACK, &[]));
    out
}

/// A refusal with a sentence for people.
pub fn refusal(option: u32, kind: u32, text: &str) -> Bytes {
    option_reply(option, kind, shorten(text).as_bytes())
}

/// At most as long as the protocol's strings may be.
pub fn shorten(text: &str) -> &str {
    let mut end = text.len().min(MAX_STRING);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, facts: &[u16]) -> Vec<u8> {
        let mut out = (name.len() as u32).to_be_bytes().to_vec();
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&(facts.len() as u16).to_be_bytes());
        facts.iter().for_each(|f| out.extend_from_slice(&f.to_be_bytes()));
        out
    }

    fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut out = (name.len() as u32).to_be_bytes().to_vec();
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&(queries.len() as u32).to_be_bytes());
        for query in queries {
            out.extend_from_slice(&(query.len() as u32).to_be_bytes());
            out.extend_from_slice(query.as_bytes());
        }
        out
    }

    #[test]
    fn names_and_facts_are_read() {
        let opt = decode(OPT_GO, &info("dvd", &[INFO_NAME, INFO_BLOCK_SIZE]));
        assert_eq!(opt, Ok(Opt::Info { name: "dvd".into(), go: true, facts: vec![1, 3] }));
    }

    #[test]
    fn lying_lengths_are_invalid() {
        let mut raw = info("dvd", &[1]);
        raw[3] = 200;
        assert_eq!(decode(OPT_GO, &raw), Err(Malformed(REP_ERR_INVALID)));
        raw[0] = 0xff;
        assert_eq!(decode(OPT_INFO, &raw), Err(Malformed(REP_ERR_INVALID)));
        let mut raw = info("dvd", &[1]);
        raw.push(0);
        assert_eq!(decode(OPT_GO, &raw), Err(Malformed(REP_ERR_INVALID)));
        assert_eq!(decode(OPT_GO, &[]), Err(Malformed(REP_ERR_INVALID)));
        assert_eq!(decode(OPT_LIST, &[1]), Err(Malformed(REP_ERR_INVALID)));
        assert_eq!(decode(OPT_GO, &info(&"x".repeat(4097), &[])), Err(Malformed(REP_ERR_TOO_BIG)));
        assert_eq!(decode(OPT_GO, &info("a\0b", &[])), Err(Malformed(REP_ERR_INVALID)));
    }

    #[test]
    fn contexts_are_matched_as_the_document_says() {
        let base = |option, queries: &[&str]| match decode(option, &meta("d", queries)) {
            Ok(Opt::Meta { base, .. }) => base,
            other => panic!("{other:?}"),
        };
        assert!(base(OPT_LIST_META_CONTEXT, &[]) && base(OPT_LIST_META_CONTEXT, &["base:"]));
        assert!(!base(OPT_SET_META_CONTEXT, &[]) && !base(OPT_SET_META_CONTEXT, &["base:"]));
        assert!(base(OPT_SET_META_CONTEXT, &["x:y", "base:allocation"]));
        assert!(!base(OPT_LIST_META_CONTEXT, &["qemu:"]));
        let mut many = meta("d", &[]);
        many[5..9].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(decode(OPT_SET_META_CONTEXT, &many), Err(Malformed(REP_ERR_TOO_BIG)));
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let text = format!("{}ä", "x".repeat(MAX_STRING - 1));
        assert_eq!(shorten(&text).len(), MAX_STRING - 1);
    }
}
