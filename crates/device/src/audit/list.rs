//! Pages of the log.

use super::Record;
use super::chain::{decode_or_error, record_key, records_end};
use common::error::{Error, Reason, Result};
use common::store::Store;

const BATCH: usize = 1_000;
/// Records that one call looks at; with a filter that fits few, pages may be short or empty before the end.
const SCAN_MAX: usize = 10_000;
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1_000;

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// 1 to 1,000; 0 means 100.
    pub page_size: u32,
    /// From the last page; empty for the first.
    pub page_token: String,
    /// Newest first instead of oldest first.
    pub newest_first: bool,
    /// Only of this person, unless empty.
    pub person: String,
    /// Only of this device (a printer, drive or disk), unless empty.
    pub resource: String,
}

/// A page of the log.
#[derive(Clone, Debug)]
pub struct Page {
    /// In order.
    pub records: Vec<Record>,
    /// Empty at the end.
    pub next_page_token: String,
}

fn token(newest_first: bool, sequence: u64) -> String {
    format!("{}{sequence}", if newest_first { 'b' } else { 'f' })
}

fn read_token(query: &Query) -> Result<Option<u64>> {
    if query.page_token.is_empty() {
        return Ok(None);
    }
    let bad = || Error::new(Reason::PageTokenInvalid, "the page token does not belong to this list");
    let number = query.page_token.strip_prefix(if query.newest_first { 'b' } else { 'f' }).ok_or_else(bad)?;
    number.parse().map(Some).map_err(|_| bad())
}

/// A page; the token names the last record that was looked at.
pub(super) fn list(store: &Store, prefix: &[u8], query: &Query) -> Result<Page> {
    let size = match query.page_size as usize {
        0 => PAGE_DEFAULT,
        n => n.min(PAGE_MAX),
    };
    let (mut from, mut to) = (record_key(prefix, 0), records_end(prefix));
    match read_token(query)? {
        Some(sequence) if query.newest_first => to = record_key(prefix, sequence),
        Some(sequence) => from = record_key(prefix, sequence.saturating_add(1)),
        None => {}
    }
    let (mut records, mut seen) = (Vec::new(), 0);
    loop {
        let batch = match query.newest_first {
            true => store.range_back(&from, &to, BATCH)?,
            false => store.range(&from, &to, BATCH)?,
        };
        let (many, ended) = (batch.len(), batch.len() < BATCH);
        for (index, (_, stored)) in batch.into_iter().enumerate() {
            let record = decode_or_error(&stored)?;
            let sequence = record.sequence;
            seen += 1;
            let wanted = (query.person.is_empty() || query.person == record.who.person)
                && (query.resource.is_empty() || query.resource == record.resource);
            if wanted {
                records.push(record);
            }
            let last = ended && index + 1 == many;
            if !last && (records.len() == size || seen == SCAN_MAX) {
                return Ok(Page { records, next_page_token: token(query.newest_first, sequence) });
            }
            match query.newest_first {
                true => to = record_key(prefix, sequence),
                false => from = record_key(prefix, sequence.saturating_add(1)),
            }
        }
        if ended {
            return Ok(Page { records, next_page_token: String::new() });
        }
    }
}
