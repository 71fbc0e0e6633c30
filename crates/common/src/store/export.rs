//! A store as one file: how it is written and read back, on any engine.
//!
//! ```text
//! magic        14 bytes  "ATRIUM-EXPORT\n"
//! version       4        1; all numbers are little-endian
//! schema        4        of the caller's records
//! instance     16        of the store it was made from
//! revision      8
//! oldest        8        revision up to which the change log had been trimmed
//! digest       32        BLAKE3 of everything above
//! then frames, each beginning with one byte:
//!   1  record: key length (4), value length (4), key, value, BLAKE3 of the frame up to here (32)
//!   2  end: number of records (8), bytes of keys and values (8), BLAKE3 of the whole file up to here (32)
//! ```
//! Nothing follows the end. Keys are in ascending order and have their space byte in front; values are payloads without
//! the store's envelope, which depends on the format that is written.

use std::io::{self, Read, Write};

use bytes::Bytes;

use super::log;
use super::record::{self, FORMAT, HEADER_KEY, Header, META_KEY, Meta, SPACE_LOG, SPACE_USER};
use super::view::FrozenScan;
use super::{ExportSummary, KEY_MAX, engine::Guarded};
use crate::error::{Error, Reason, Result};

const MAGIC: &[u8; 14] = b"ATRIUM-EXPORT\n";
const VERSION: u32 = 1;
const RECORD: u8 = 1;
const END: u8 = 2;
/// A value of the caller has at most 64 KiB; a block of the change log a little more than one payload.
const STORED_MAX: usize = 80 << 10;
const IMPORT_RECORDS: usize = 2_000;
const IMPORT_BYTES: usize = 4 << 20;

struct Summing<'a> {
    to: &'a mut dyn Write,
    hasher: blake3::Hasher,
}

impl Summing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.to.write_all(bytes)
    }
}

fn write_failed(error: io::Error) -> Error {
    let full = error.kind() == io::ErrorKind::StorageFull;
    Error::new(if full { Reason::DiskFull } else { Reason::IoFailed }, "the copy of the store could not be written")
        .caused_by(error)
}

/// Writes a frozen state.
pub(super) fn write(scan: &FrozenScan<'_>, to: &mut dyn Write) -> Result<ExportSummary> {
    let (header, meta) = (scan.frozen.header, scan.frozen.meta);
    let mut out = Summing { to, hasher: blake3::Hasher::new() };
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&header.schema.to_le_bytes());
    head.extend_from_slice(&header.instance);
    head.extend_from_slice(&meta.revision.to_le_bytes());
    head.extend_from_slice(&meta.oldest.to_le_bytes());
    let digest = blake3::hash(&head);
    head.extend_from_slice(digest.as_bytes());
    out.write(&head).map_err(write_failed)?;

    let (mut records, mut bytes) = (0_u64, 0_u64);
    let mut seen = Meta { revision: meta.revision, oldest: meta.oldest, ..Meta::default() };
    let mut frame = Vec::with_capacity(16 << 10);
    loop {
        let page = scan.page()?;
        if page.is_empty() {
            break;
        }
        for (key, raw) in page {
            let value = record::open(&key, &raw)?;
            seen.add(&key, &raw);
            frame.clear();
            frame.push(RECORD);
            frame.extend_from_slice(&(key.len() as u32).to_le_bytes());
            frame.extend_from_slice(&(value.len() as u32).to_le_bytes());
            frame.extend_from_slice(&key);
            frame.extend_from_slice(&value);
            let digest = blake3::hash(&frame);
            frame.extend_from_slice(digest.as_bytes());
            out.write(&frame).map_err(write_failed)?;
            records += 1;
            bytes += (key.len() + value.len()) as u64;
        }
    }
    if seen != meta {
        return Err(Error::new(Reason::StoreCorrupt, "the records do not add up to the store's totals")
            .with("expected_records", meta.records)
            .with("found_records", seen.records));
    }
    let mut end = vec![END];
    end.extend_from_slice(&records.to_le_bytes());
    end.extend_from_slice(&bytes.to_le_bytes());
    out.write(&end).map_err(write_failed)?;
    let digest = out.hasher.finalize();
    out.to.write_all(digest.as_bytes()).map_err(write_failed)?;
    out.to.flush().map_err(write_failed)?;
    Ok(ExportSummary { revision: meta.revision, records, bytes, digest: *digest.as_bytes() })
}

fn bad(what: &str) -> Error {
    Error::new(Reason::StoreCorrupt, format!("the copy of the store cannot be read: {what}")).fix_is("use another copy")
}

struct Reading<'a> {
    from: &'a mut dyn Read,
    hasher: blake3::Hasher,
}

impl Reading<'_> {
    fn raw(&mut self, into: &mut [u8]) -> Result<()> {
        self.from.read_exact(into).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => bad("it ends too early"),
            _ => Error::new(Reason::IoFailed, "the copy of the store could not be read").caused_by(e),
        })
    }

    fn take(&mut self, into: &mut [u8]) -> Result<()> {
        self.raw(into)?;
        self.hasher.update(into);
        Ok(())
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.take(&mut bytes)?;
        Ok(bytes)
    }
}

/// What an export says about itself before its records.
pub(super) struct Head {
    pub header: Header,
    revision: u64,
    oldest: u64,
}

fn read_head(from: &mut Reading<'_>) -> Result<Head> {
    let mut head = [0; 54];
    from.take(&mut head)?;
    let digest: [u8; 32] = from.number()?;
    if head[..14] != MAGIC[..] {
        return Err(bad("it is not an export of Atrium"));
    }
    let version = record::read_u32(&head, 14).unwrap_or(0);
    if version > VERSION {
        return Err(Error::new(
            Reason::StoreTooNew,
            format!("the copy has format {version}, this program knows {VERSION}"),
        ));
    }
    if blake3::hash(&head).as_bytes() != &digest || version != VERSION {
        return Err(bad("its head is damaged"));
    }
    let mut instance = [0; 16];
    instance.copy_from_slice(&head[22..38]);
    Ok(Head {
        header: Header { schema: record::read_u32(&head, 18).unwrap_or(0), instance },
        revision: record::read_u64(&head, 38).unwrap_or(0),
        oldest: record::read_u64(&head, 46).unwrap_or(0),
    })
}

/// Reads an export into an empty engine. The header record, without which no store opens, is written last.
///
/// # Errors
/// `STORE_CORRUPT` if anything in the export does not match, `STORE_TOO_NEW` for a later format or schema.
pub(super) fn read(from: &mut dyn Read, into: &Guarded, schema: u32, instance: [u8; 16]) -> Result<ExportSummary> {
    let mut from = Reading { from, hasher: blake3::Hasher::new() };
    let head = read_head(&mut from)?;
    if head.header.schema > schema {
        return Err(super::too_new(head.header.schema, schema));
    }
    if head.oldest > head.revision {
        return Err(bad("its head is damaged"));
    }
    let mut meta = Meta { revision: head.revision, oldest: head.oldest, ..Meta::default() };
    let (mut records, mut bytes) = (0_u64, 0_u64);
    let mut last = Bytes::new();
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    let mut changes = log::Reader::new(head.oldest);
    let mut frame = Vec::new();
    loop {
        let [kind] = from.number()?;
        match kind {
            RECORD => {
                let (key_len, value_len) = (u32::from_le_bytes(from.number()?), u32::from_le_bytes(from.number()?));
                let (key_len, value_len) = (key_len as usize, value_len as usize);
                if key_len == 0 || key_len > KEY_MAX + 1 || value_len > STORED_MAX {
                    return Err(bad("a record is too long"));
                }
                frame.clear();
                frame.push(RECORD);
                frame.extend_from_slice(&(key_len as u32).to_le_bytes());
                frame.extend_from_slice(&(value_len as u32).to_le_bytes());
                let start = frame.len();
                frame.resize(start + key_len + value_len, 0);
                from.take(&mut frame[start..])?;
                let digest: [u8; 32] = from.number()?;
                if blake3::hash(&frame).as_bytes() != &digest {
                    return Err(bad("a record does not match its digest").with("record", records));
                }
                let key = Bytes::copy_from_slice(&frame[start..start + key_len]);
                let value = &frame[start + key_len..];
                if key <= last || !matches!(key[0], SPACE_LOG | SPACE_USER) {
                    return Err(bad("its records are not in order").with("record", records));
                }
                if key[0] == SPACE_LOG {
                    if log::key_revision(&key).is_none_or(|r| r > head.revision) {
                        return Err(bad("its change log is damaged"));
                    }
                    changes.block(Bytes::copy_from_slice(value), &mut |_| {})?;
                }
                let raw = record::seal(&key, value);
                meta.add(&key, &raw);
                records += 1;
                bytes += (key_len + value_len) as u64;
                batch_bytes += key_len + value_len;
                last = key.clone();
                batch.push((key, Some(raw)));
                if batch.len() == IMPORT_RECORDS || batch_bytes > IMPORT_BYTES {
                    into.apply(&batch)?;
                    batch.clear();
                    batch_bytes = 0;
                }
            }
            END => {
                let said = (u64::from_le_bytes(from.number()?), u64::from_le_bytes(from.number()?));
                let digest = from.hasher.finalize();
                let mut stored = [0; 32];
                from.raw(&mut stored)?;
                if said != (records, bytes) || digest.as_bytes() != &stored {
                    return Err(bad("its end does not match its content"));
                }
                if from.from.read(&mut [0])? != 0 {
                    return Err(bad("something follows its end"));
                }
                if changes.position() != head.revision {
                    return Err(bad("its change log is not whole"));
                }
                let header = Header { schema: head.header.schema, instance };
                batch.push((Bytes::from_static(META_KEY), Some(record::seal(META_KEY, &meta.encode()))));
                batch.push((Bytes::from_static(HEADER_KEY), Some(record::seal(HEADER_KEY, &header.encode()))));
                into.apply(&batch)?;
                return Ok(ExportSummary { revision: head.revision, records, bytes, digest: stored });
            }
            _ => return Err(bad("a frame is of an unknown kind").with("format", FORMAT)),
        }
    }
}
