//! What Rock Ridge (IEEE P1282) adds to a directory record, in the entries of the System Use Sharing Protocol.

use super::reader::{Reader, le32};
use super::{NodeKind, time};
use common::error::{Reason, Result};

/// Continuations of one record that are followed.
const MAX_AREAS: usize = 16;
/// Bytes of names and links that are put together.
const MAX_TEXT: usize = 4096;

/// What was found.
#[derive(Clone, Default, Debug)]
pub(super) struct Extras {
    pub(super) name: Option<String>,
    mode: Option<u32>,
    target: Option<String>,
    pub(super) modified_ms: Option<i64>,
    /// The directory is at this sector instead.
    pub(super) child: Option<u32>,
    /// The directory belongs elsewhere and is reached from there.
    pub(super) moved_here: bool,
    /// Something of Rock Ridge was there.
    seen: bool,
    name_raw: Vec<u8>,
    name_done: bool,
    target_open: bool,
}

impl Extras {
    pub(super) fn is_rock_ridge(&self) -> bool {
        self.seen
    }

    pub(super) fn kind(&self, directory: bool) -> NodeKind {
        match self.mode.map(|m| m & 0o170_000) {
            Some(0o040_000) => NodeKind::Directory,
            // A directory without records would be a lie.
            _ if directory => NodeKind::Directory,
            Some(0o100_000) | None => NodeKind::File,
            Some(0o120_000) => NodeKind::Symlink { target: self.target.clone().unwrap_or_default() },
            Some(_) => NodeKind::Other,
        }
    }

    fn take(&mut self, signature: [u8; 2], data: &[u8]) {
        match &signature {
            b"RR" => self.seen = true,
            b"PX" if data.len() >= 8 => {
                self.seen = true;
                self.mode = Some(le32(data, 0));
            }
            b"NM" => self.name(data),
            b"SL" => self.link(data),
            b"TF" => self.times(data),
            b"CL" if data.len() >= 8 => self.child = Some(le32(data, 0)),
            b"RE" => self.moved_here = true,
            _ => {}
        }
    }

    fn name(&mut self, data: &[u8]) {
        let Some((flags, text)) = data.split_first() else { return };
        self.seen = true;
        if self.name_done || self.name_raw.len() + text.len() > MAX_TEXT {
            return;
        }
        match flags & 6 {
            2 => self.name_raw.push(b'.'),
            4 => self.name_raw.extend_from_slice(b".."),
            _ => self.name_raw.extend_from_slice(text),
        }
        self.name_done = flags & 1 == 0;
    }

    fn link(&mut self, data: &[u8]) {
        let Some((_, mut rest)) = data.split_first() else { return };
        let target = self.target.get_or_insert_default();
        while let [flags, len, tail @ ..] = rest {
            let Some((text, tail)) = tail.split_at_checked(usize::from(*len)) else { return };
            if target.len() + text.len() > MAX_TEXT {
                return;
            }
            if !target.is_empty() && !target.ends_with('/') && !self.target_open {
                target.push('/');
            }
            match flags & 0x0e {
                2 => target.push('.'),
                4 => target.push_str(".."),
                8 => target.push('/'),
                _ => target.push_str(&String::from_utf8_lossy(text)),
            }
            self.target_open = flags & 1 != 0;
            rest = tail;
        }
    }

    fn times(&mut self, data: &[u8]) {
        let Some((flags, stamps)) = data.split_first() else { return };
        let len = if flags & 0x80 != 0 { 17 } else { 7 };
        // The time of creation stands before that of modification.
        let at = if flags & 1 != 0 { len } else { 0 };
        if flags & 2 == 0 {
            return;
        }
        if let Some(stamp) = stamps.get(at..at + len) {
            self.modified_ms = if len == 17 { time::long(stamp) } else { time::short(stamp) };
        }
    }
}

/// How much to skip in every area, if the area of a root's own record says that there are entries.
pub(super) fn skip(system: &[u8]) -> Option<usize> {
    // Some discs of the XA kind put 14 bytes before it.
    [0, 14].into_iter().find_map(|at| {
        let entry = system.get(at..at + 7)?;
        (&entry[..2] == b"SP" && entry[4..6] == [0xbe, 0xef]).then(|| usize::from(entry[6]))
    })
}

/// Reads the entries of a record, also those that are continued elsewhere.
///
/// # Errors
/// What reading says; entries that make no sense are passed over.
pub(super) async fn read(reader: &Reader, system: &[u8], skip: usize) -> Result<Extras> {
    let mut extras = Extras::default();
    let mut next = scan(system.get(skip..).unwrap_or(&[]), &mut extras);
    for _ in 0..MAX_AREAS {
        let Some((sector, offset, len)) = next else { break };
        if offset >= 2048 || len > 2048 {
            break;
        }
        let start = u64::from(sector) * 2048 + u64::from(offset);
        match reader.read(start, len.into()).await {
            Ok(area) => next = scan(&area, &mut extras),
            Err(error) if error.is(Reason::DiscFormatUnknown) => break,
            Err(error) => return Err(error),
        }
    }
    if !extras.name_raw.is_empty() {
        extras.name = Some(String::from_utf8_lossy(&extras.name_raw).into_owned());
    }
    Ok(extras)
}

/// Takes the entries of one area; gives the place of the next one.
fn scan(mut area: &[u8], extras: &mut Extras) -> Option<(u32, u32, u32)> {
    let mut next = None;
    while let [a, b, len, _, ..] = *area {
        let Some(data) = area.get(4..usize::from(len)) else { break };
        match &[a, b] {
            b"ST" => break,
            b"CE" if data.len() >= 24 => next = Some((le32(data, 0), le32(data, 8), le32(data, 16))),
            signature => extras.take(*signature, data),
        }
        area = &area[usize::from(len)..];
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(area: &[u8]) -> Extras {
        let mut extras = Extras::default();
        scan(area, &mut extras);
        extras
    }

    #[test]
    fn names_may_come_in_parts() {
        let extras = scanned(b"NM\x08\x01\x01abcNM\x07\x01\x00deNM\x06\x01\x00x");
        assert_eq!(extras.name_raw, b"abcde");
    }

    #[test]
    fn links_are_put_together() {
        let extras = scanned(b"SL\x0f\x01\x00\x08\x00\x00\x03usr\x00\x01xPX");
        assert_eq!(extras.target.as_deref(), Some("/usr/x"));
    }

    #[test]
    fn lengths_that_do_not_fit_end_the_area() {
        for area in [&b"NM\x00\x01"[..], b"NM\xff\x01a", b"NM", b"NM\x04\x01NM\x03\x01", b"SL\x08\x01\x00\x00\xffa"] {
            let extras = scanned(area);
            assert!(extras.name_raw.is_empty(), "{area:?}");
        }
    }
}
