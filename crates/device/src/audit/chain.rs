//! The chain itself: how records are written, appended, rotated out and checked.
//!
//! A stored record is its body followed by its hash. The body is written in one way only, so that comparing bytes compares
//! content:
//!
//! ```text
//! version 1 · sequence u64 · time_ms u64 · outcome u8 · count u32 · seven texts, each u16 length and bytes
//! ```
//! all little-endian; the texts are person, machine, device, resource, verb, reason, detail.

use super::{DETAIL_MAX, Line, Outcome, Pending, Record, TEXT_MAX, clean};
use crate::model::Caller;
use common::error::{Error, Reason, Result};
use common::store::{Store, Txn, prefix_end};

const VERSION: u8 = 1;
const HASH: usize = 32;
const DERIVE: &str = "atrium 2026-11 device audit record";
/// Verb of the record that a rotation leaves; no caller's line has it.
const ROTATED: &str = "audit.rotate";
/// Most records that one rotation removes; a transaction takes 20,000 writes.
const ROTATE_MAX: u64 = 5_000;
const BATCH: usize = 1_000;

/// The ends of what is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    /// Number of the oldest record that is kept; one more than `last` in an empty log.
    pub(super) first: u64,
    /// Hash of the record before it.
    pub(super) base: [u8; HASH],
    /// Number of the newest record.
    pub(super) last: u64,
    /// Its hash.
    pub(super) end: [u8; HASH],
}

impl Head {
    const EMPTY: Self = Self { first: 1, base: [0; HASH], last: 0, end: [0; HASH] };

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.base);
        out.extend_from_slice(&self.last.to_le_bytes());
        out.extend_from_slice(&self.end);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut read = Read(bytes);
        let version = read.take(1)?[0];
        let head = Self { first: read.u64()?, base: read.hash()?, last: read.u64()?, end: read.hash()? };
        let sound = version == VERSION && read.0.is_empty() && head.first >= 1 && head.first <= head.last + 1;
        sound.then_some(head)
    }
}

struct Read<'a>(&'a [u8]);

impl<'a> Read<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
    fn hash(&mut self) -> Option<[u8; HASH]> {
        self.take(HASH)?.try_into().ok()
    }
    fn text(&mut self) -> Option<String> {
        let len = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
        String::from_utf8(self.take(usize::from(len))?.to_vec()).ok()
    }
}

pub(super) fn head_key(prefix: &[u8]) -> Vec<u8> {
    [prefix, b"h"].concat()
}

pub(super) fn record_key(prefix: &[u8], sequence: u64) -> Vec<u8> {
    [prefix, b"r", &sequence.to_be_bytes()[..]].concat()
}

pub(super) fn records_end(prefix: &[u8]) -> Vec<u8> {
    prefix_end(&[prefix, b"r"].concat())
}

/// The head, if there is a log.
pub(super) fn head(store: &Store, prefix: &[u8]) -> Result<Option<Head>> {
    store.get(&head_key(prefix))?.map(|bytes| read_head(&bytes)).transpose()
}

fn read_head(bytes: &[u8]) -> Result<Head> {
    Head::decode(bytes).ok_or_else(|| damaged("its head"))
}

fn damaged(what: &str) -> Error {
    Error::new(Reason::StoreCorrupt, format!("the log of grants and refusals is damaged: {what} cannot be read"))
}

fn outcome_number(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Granted => 1,
        Outcome::Refused => 2,
        Outcome::Ended => 3,
    }
}

fn body(record: &Record) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&record.sequence.to_le_bytes());
    out.extend_from_slice(&record.time_ms.to_le_bytes());
    out.push(outcome_number(record.outcome));
    out.extend_from_slice(&record.count.to_le_bytes());
    let who = &record.who;
    let texts =
        [&who.person, &who.machine, &who.device, &record.resource, &record.verb, &record.reason, &record.detail];
    for text in texts {
        // Cut before; the bound of a length field is far above.
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

fn hash(previous: &[u8; HASH], body: &[u8]) -> [u8; HASH] {
    let mut hasher = blake3::Hasher::new_derive_key(DERIVE);
    hasher.update(previous).update(body);
    *hasher.finalize().as_bytes()
}

/// A record from its stored form; nothing if it is none.
pub(super) fn decode(stored: &[u8]) -> Option<Record> {
    let mut read = Read(stored);
    let version = read.take(1)?[0];
    let (sequence, time_ms) = (read.u64()?, read.u64()?);
    let outcome = match read.take(1)?[0] {
        1 => Outcome::Granted,
        2 => Outcome::Refused,
        3 => Outcome::Ended,
        _ => return None,
    };
    let count = read.u32()?;
    let who = Caller { person: read.text()?, machine: read.text()?, device: read.text()? };
    let (resource, verb, reason, detail) = (read.text()?, read.text()?, read.text()?, read.text()?);
    let hash = read.hash()?;
    let record = Record { sequence, time_ms, who, resource, verb, outcome, reason, detail, count, hash };
    (version == VERSION && read.0.is_empty()).then_some(record)
}

pub(super) fn decode_or_error(stored: &[u8]) -> Result<Record> {
    decode(stored).ok_or_else(|| damaged("a record"))
}

fn record_of(pending: &Pending, sequence: u64) -> Record {
    let line = &pending.line;
    let who = Caller {
        person: clean(&line.who.person, TEXT_MAX),
        machine: clean(&line.who.machine, TEXT_MAX),
        device: clean(&line.who.device, TEXT_MAX),
    };
    Record {
        sequence,
        time_ms: pending.time_ms,
        who,
        resource: clean(&line.resource, TEXT_MAX),
        verb: clean(line.verb, TEXT_MAX),
        outcome: line.outcome,
        reason: clean(&line.reason, TEXT_MAX),
        detail: clean(&line.detail, DETAIL_MAX),
        count: pending.count,
        hash: [0; HASH],
    }
}

/// Appends lines in order, and removes the oldest records if there are too many.
pub(super) fn append(txn: &mut Txn<'_>, prefix: &[u8], lines: &[Pending], keep: u64) -> Result<()> {
    let mut head = match txn.get(&head_key(prefix))? {
        Some(bytes) => read_head(&bytes)?,
        None => Head::EMPTY,
    };
    for line in lines {
        push(txn, prefix, &mut head, line)?;
    }
    let slack = (keep / 10 + 1).min(ROTATE_MAX - 1);
    let kept = head.last + 1 - head.first;
    if kept > keep + slack {
        let time_ms = lines.last().map_or(0, |line| line.time_ms);
        rotate(txn, prefix, &mut head, keep, time_ms)?;
    }
    txn.put(head_key(prefix), head.encode())
}

fn push(txn: &mut Txn<'_>, prefix: &[u8], head: &mut Head, line: &Pending) -> Result<()> {
    let mut stored = body(&record_of(line, head.last + 1));
    let hash = hash(&head.end, &stored);
    stored.extend_from_slice(&hash);
    (head.last, head.end) = (head.last + 1, hash);
    txn.put(record_key(prefix, head.last), stored)
}

fn rotate(txn: &mut Txn<'_>, prefix: &[u8], head: &mut Head, keep: u64, time_ms: u64) -> Result<()> {
    // One more goes for the record that tells of it.
    let many = (head.last + 2 - head.first).saturating_sub(keep).min(ROTATE_MAX);
    let last_gone = head.first + many - 1;
    let bytes = txn.get(&record_key(prefix, last_gone))?.ok_or_else(|| damaged("its oldest record"))?;
    let base = decode_or_error(&bytes)?.hash;
    for sequence in head.first..=last_gone {
        txn.delete(record_key(prefix, sequence))?;
    }
    (head.first, head.base) = (last_gone + 1, base);
    let who = Caller { person: String::new(), machine: String::new(), device: String::new() };
    let line = Line::ended(&who, "", ROTATED, "").with_detail(statement(last_gone, &base));
    push(txn, prefix, head, &Pending { line, time_ms, count: 1 })
}

/// What a rotation states: the last record that went, and its hash.
fn statement(last_gone: u64, base: &[u8; HASH]) -> String {
    format!("{last_gone} {}", blake3::Hash::from_bytes(*base).to_hex())
}

/// What a check of the chain showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    /// Records that fit.
    pub records: u64,
    /// Number of the oldest record that is kept.
    pub first: u64,
    /// First number whose record is missing or does not fit; `None` if all do.
    pub first_bad: Option<u64>,
    /// Hash of the last record that fits, to be noted down elsewhere; zeros for an empty log.
    pub end: [u8; 32],
}

/// Checks everything that stands in the store now.
pub(super) fn verify(store: &Store, prefix: &[u8]) -> Result<Verified> {
    let head = match head(store, prefix) {
        Ok(head) => head.unwrap_or(Head::EMPTY),
        Err(e) if e.is(Reason::StoreCorrupt) => {
            return Ok(Verified { records: 0, first: 1, first_bad: Some(1), end: [0; HASH] });
        }
        Err(e) => return Err(e),
    };
    let (mut next, mut previous) = (head.first, head.base);
    let mut rotated: Option<String> = None;
    let bad = |next: u64, at: u64, end| {
        Ok(Verified { records: next - head.first, first: head.first, first_bad: Some(at), end })
    };
    while next <= head.last {
        let batch = store.range(&record_key(prefix, next), &record_key(prefix, head.last + 1), BATCH)?;
        if batch.is_empty() {
            return bad(next, next, previous);
        }
        for (key, stored) in batch {
            let Some(record) = decode(&stored) else { return bad(next, next, previous) };
            let fits = key[..] == record_key(prefix, next)[..] && record.sequence == next;
            if !fits || record.hash != hash(&previous, &body(&record)) || stored[..] != sealed(&record)[..] {
                return bad(next, next, previous);
            }
            if record.verb == ROTATED {
                rotated = Some(record.detail.clone());
            }
            (next, previous) = (next + 1, record.hash);
        }
    }
    if previous != head.end {
        return bad(next, head.last.max(1), previous);
    }
    let stated = (head.first > 1).then(|| statement(head.first - 1, &head.base));
    if rotated != stated || (stated.is_none() && head.base != [0; HASH]) {
        return bad(next, head.first, previous);
    }
    stray(store, prefix, &head)?
        .map_or(Ok(Verified { records: next - head.first, first: head.first, first_bad: None, end: previous }), |at| {
            bad(next, at, previous)
        })
}

fn sealed(record: &Record) -> Vec<u8> {
    let mut out = body(record);
    out.extend_from_slice(&record.hash);
    out
}

/// A record outside of what the head tells, as of now: appending and rotating write record and head together.
fn stray(store: &Store, prefix: &[u8], before: &Head) -> Result<Option<u64>> {
    store.read(|view| {
        let now = match view.get(&head_key(prefix))? {
            Some(bytes) => read_head(&bytes)?,
            None => *before,
        };
        let first = view.range(&record_key(prefix, 0), &record_key(prefix, now.first), 1)?;
        let beyond = view.range(&record_key(prefix, now.last.saturating_add(1)), &records_end(prefix), 1)?;
        Ok(if !first.is_empty() {
            Some(now.first)
        } else if !beyond.is_empty() {
            Some(now.last + 1)
        } else {
            None
        })
    })
}
