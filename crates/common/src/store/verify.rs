//! Checks every record of one state while writers go on.

use bytes::Bytes;

use super::record::{self, Meta, SPACE_LOG};
use super::view::FrozenScan;
use super::{DamagedRecord, VerifyReport, log};
use crate::error::Result;

/// Damaged records that a report names.
const NAMED: usize = 1_000;

pub(super) fn run(scan: &FrozenScan<'_>) -> Result<VerifyReport> {
    let meta = scan.frozen.meta;
    let mut seen = Meta { revision: meta.revision, oldest: meta.oldest, ..Meta::default() };
    let mut report = VerifyReport { revision: meta.revision, ..VerifyReport::default() };
    let mut changes = log::Reader::new(meta.oldest);
    let mut log_is_whole = true;
    loop {
        let page = scan.page()?;
        if page.is_empty() {
            break;
        }
        for (key, raw) in page {
            seen.add(&key, &raw);
            report.records += 1;
            report.bytes += (key.len() + raw.len()) as u64;
            match record::open(&key, &raw) {
                Ok(block) if key[0] == SPACE_LOG => log_is_whole &= changes.block(block, &mut |_| {}).is_ok(),
                Ok(_) => {}
                Err(error) => {
                    report.damaged_count += 1;
                    if report.damaged.len() < NAMED {
                        report.damaged.push(DamagedRecord { key: readable(&key), what: error.message().to_owned() });
                    }
                }
            }
        }
    }
    report.totals_match = seen == meta;
    report.log_is_whole = log_is_whole && changes.position() == meta.revision;
    Ok(report)
}

fn readable(key: &Bytes) -> String {
    if key[0] == SPACE_LOG {
        format!("change log, revision {}", log::key_revision(key).unwrap_or(0))
    } else {
        record::readable(&key[1..])
    }
}
