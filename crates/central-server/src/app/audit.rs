//! The audit log: append-only, each record chained to the one before by its hash.
//!
//! A record is written in the transaction of the change that it tells of ([`record`]), so neither is there without the
//! other; if the log cannot be written, the change is refused. What changes nothing (refusals, failed logins) is written
//! on its own through [`refusals`], which bounds how much a flood can write.
//!
//! `a/SEQUENCE` holds the records, numbered from 1 without gaps. `b/` holds number and hash of the last one, so that a
//! cut-off tail shows too. Whoever can write the database can of course compute a new chain; that is why `verify` gives
//! the head's hash, to be noted down elsewhere.
//!
//! Secrets never come here. Texts from outside are cut and freed of control characters.

pub mod refusals;

pub use refusals::{Refusals, flush_refusals, refused};

use super::App;
use super::page::{self, PageToken};
use super::records::{self, AUDIT_HEAD, View, audit_key};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::store::{Store, Txn};
use prost::Message;
use proto::record::v1 as stored;

/// Longest actor, action and subject in bytes.
const MAX_WORD: usize = 256;
/// Longest detail in bytes.
const MAX_DETAIL: usize = 1024;
/// Records that one call of [`list`] looks at; with a filter that fits few, pages may be short.
const MAX_SCAN: usize = 10_000;
const BATCH: usize = 1_000;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// 1, 2, 3 …
    pub sequence: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// Who, as [`super::caller::Caller::actor`] writes it.
    pub actor: String,
    /// What, such as "user.create".
    pub action: String,
    /// To what.
    pub subject: String,
    /// Whether it was allowed and done.
    pub success: bool,
    /// More, for people.
    pub detail: String,
    /// Over the previous record's hash and this record.
    pub hash: [u8; 32],
}

/// What is to be noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Who, as [`super::caller::Caller::actor`] writes it.
    pub actor: String,
    /// What, such as "user.create".
    pub action: &'static str,
    /// To what.
    pub subject: String,
    /// Whether it was allowed and done.
    pub success: bool,
    /// More, for people.
    pub detail: String,
}

/// Appends a record in the transaction of the change that it tells of.
///
/// # Errors
/// `AUDIT_FAILED` if the chain's end cannot be read: nothing may be done then.
pub fn record(
    txn: &mut Txn<'_>,
    now_ms: u64,
    actor: &str,
    action: &str,
    subject: &str,
    success: bool,
    detail: &str,
) -> Result<()> {
    let (last, previous) = end_of_chain(txn)?;
    let mut line = stored::Audit {
        sequence: last + 1,
        time_ms: now_ms,
        actor: clean(actor, MAX_WORD),
        action: clean(action, MAX_WORD),
        subject: clean(subject, MAX_WORD),
        success,
        detail: clean(detail, MAX_DETAIL),
        hash: Bytes::new(),
    };
    let hash = chain(&previous, &line);
    line.hash = Bytes::copy_from_slice(&hash);
    let head = stored::Audit { sequence: line.sequence, hash: line.hash.clone(), ..Default::default() };
    records::save(txn, &audit_key(line.sequence), &line).map_err(failed)?;
    records::save(txn, AUDIT_HEAD, &head).map_err(failed)
}

/// [`record`] for a [`Note`].
///
/// # Errors
/// `AUDIT_FAILED`.
pub fn note(txn: &mut Txn<'_>, now_ms: u64, note: &Note) -> Result<()> {
    record(txn, now_ms, &note.actor, note.action, &note.subject, note.success, &note.detail)
}

fn end_of_chain(txn: &Txn<'_>) -> Result<(u64, [u8; 32])> {
    match head(txn).map_err(failed)? {
        Some(head) => Ok(head),
        None if records::under(txn, b"a/", 1)?.is_empty() => Ok((0, [0; 32])),
        None => Err(failed(Error::new(Reason::StoreCorrupt, "the audit log has lost its head"))),
    }
}

fn head(view: &impl View) -> Result<Option<(u64, [u8; 32])>> {
    let Some(head) = records::load::<stored::Audit>(view, AUDIT_HEAD)? else { return Ok(None) };
    let hash = <[u8; 32]>::try_from(&head.hash[..])
        .map_err(|e| Error::new(Reason::StoreCorrupt, "the audit log's head is damaged").caused_by(e))?;
    Ok(Some((head.sequence, hash)))
}

fn failed(cause: Error) -> Error {
    Error::new(Reason::AuditFailed, "the audit log could not be written").caused_by(cause)
}

/// The hash of a record: fields in order, texts with their length, so that no two different records look alike.
fn chain(previous: &[u8; 32], line: &stored::Audit) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("atrium 2026 audit record");
    hasher.update(previous);
    hasher.update(&line.sequence.to_le_bytes());
    hasher.update(&line.time_ms.to_le_bytes());
    hasher.update(&[u8::from(line.success)]);
    for text in [&line.actor, &line.action, &line.subject, &line.detail] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

fn clean(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let c = if c.is_control() { '\u{FFFD}' } else { c };
        if out.len() + c.len_utf8() > max {
            // Room for the mark was not kept: the cut text ends at the bound, the mark goes beyond by three bytes.
            out.push('…');
            break;
        }
        out.push(c);
    }
    out
}

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// 1 to 1,000; 0 means 100.
    pub page_size: u32,
    /// From the last page.
    pub page_token: String,
    /// Only this actor, unless empty.
    pub actor: String,
    /// Only this action, unless empty.
    pub action: String,
    /// Newest first instead of oldest first.
    pub newest_first: bool,
}

/// A page of the log.
#[derive(Clone, Debug)]
pub struct Page {
    /// In order.
    pub records: Vec<AuditRecord>,
    /// Empty at the end.
    pub next_page_token: String,
}

/// A page of the log. Blocks for up to 10,000 reads.
///
/// # Errors
/// `PAGE_TOKEN_INVALID`.
pub fn list(store: &Store, query: &Query) -> Result<Page> {
    let order = if query.newest_first { "audit back" } else { "audit" };
    let list = page::fingerprint(order, &[&query.actor, &query.action]);
    let (mut from, mut to) = (audit_key(0), common::store::prefix_end(b"a/"));
    if let Some(token) = PageToken::read(&query.page_token, list)? {
        let sequence = token.number()?;
        match query.newest_first {
            true => to = audit_key(sequence),
            false => from = audit_key(sequence.saturating_add(1)),
        }
    }
    let size = page::size(query.page_size);
    let mut records = Vec::new();
    let mut seen = 0;
    loop {
        let batch = match query.newest_first {
            true => store.range_back(&from, &to, BATCH)?,
            false => store.range(&from, &to, BATCH)?,
        };
        let ended = batch.len() < BATCH;
        let many = batch.len();
        for (index, (_, value)) in batch.into_iter().enumerate() {
            let line = view(records::decode(value)?)?;
            let sequence = line.sequence;
            seen += 1;
            if (query.actor.is_empty() || query.actor == line.actor)
                && (query.action.is_empty() || query.action == line.action)
            {
                records.push(line);
            }
            let last = ended && index + 1 == many;
            if !last && (records.len() == size || seen == MAX_SCAN) {
                return Ok(Page { records, next_page_token: PageToken::at_number(list, sequence) });
            }
            match query.newest_first {
                true => to = audit_key(sequence),
                false => from = audit_key(sequence.saturating_add(1)),
            }
        }
        if ended {
            return Ok(Page { records, next_page_token: String::new() });
        }
    }
}

fn view(line: stored::Audit) -> Result<AuditRecord> {
    let hash = <[u8; 32]>::try_from(&line.hash[..])
        .map_err(|e| Error::new(Reason::StoreCorrupt, "an audit record is damaged").caused_by(e))?;
    Ok(AuditRecord {
        sequence: line.sequence,
        time_ms: line.time_ms,
        actor: line.actor,
        action: line.action,
        subject: line.subject,
        success: line.success,
        detail: line.detail,
        hash,
    })
}

/// What a check of the chain showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Records that fit.
    pub record_count: u64,
    /// First number whose record is missing or does not fit; `None` if all do.
    pub first_bad: Option<u64>,
    /// Hash of the last record; zeros for an empty log.
    pub head: [u8; 32],
}

/// Checks the whole chain and its head. Blocks; reads all records. Records that are appended meanwhile may be left out.
///
/// # Errors
/// Those of the store; damage is no error but the result.
pub fn verify(store: &Store) -> Result<Verified> {
    let bad = |count, first, head| Ok(Verified { record_count: count, first_bad: Some(first), head });
    let before = match head(store) {
        Ok(head) => head,
        Err(e) if e.is(Reason::StoreCorrupt) => return bad(0, 1, [0; 32]),
        Err(e) => return Err(e),
    };
    let (mut count, mut previous) = (0, [0; 32]);
    let (last, head_hash) = before.unwrap_or((0, [0; 32]));
    loop {
        let batch = store.range(&audit_key(count + 1), &audit_key(last.saturating_add(1)), BATCH)?;
        let ended = batch.len() < BATCH;
        for (key, value) in batch {
            let expected = count + 1;
            let Ok(line) = records::decode::<stored::Audit>(value.clone()) else {
                return bad(count, expected, previous);
            };
            let hash = chain(&previous, &line);
            // The bytes are compared too: there are several ways to write one record, and only ours is right.
            let written = line.encode_to_vec() == value && line.sequence == expected && line.hash[..] == hash[..];
            if key[..] != audit_key(expected)[..] || !written {
                return bad(count, expected, previous);
            }
            (count, previous) = (expected, hash);
        }
        if ended {
            break;
        }
    }
    if count != last || previous != head_hash {
        return bad(count, (count + 1).min(last.max(1)), previous);
    }
    // Only appending writes, record and head together: a record beyond the head as it is now never came that way. One
    // before the first never did either.
    let now = head(store)?.map_or(0, |(sequence, _)| sequence);
    let beyond = store.range(&audit_key(now.saturating_add(1)), &common::store::prefix_end(b"a/"), 1)?;
    if !beyond.is_empty() || store.get(&audit_key(0))?.is_some() {
        return bad(count, now.saturating_add(1), previous);
    }
    Ok(Verified { record_count: count, first_bad: None, head: previous })
}

/// Writes a note that stands for itself, such as the start of a backup.
///
/// # Errors
/// `AUDIT_FAILED`.
pub async fn append(app: &App, note: Note) -> Result<()> {
    let now_ms = app.clock.now_ms();
    app.store.transact(move |txn| self::note(txn, now_ms, &note)).await?;
    Ok(())
}
