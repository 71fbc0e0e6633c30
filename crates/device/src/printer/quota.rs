//! Quotas: how much each person printed in the present period, and what that leaves.
//!
//! Use is charged when a job is over, from what was really printed, in the same journal entry as the job's end; so it is
//! neither lost nor counted twice by a crash. What waits in queues is reserved: it counts against an allowance although it
//! is not charged yet, or else ten jobs sent at once would pass where ten in a row would not.

use serde::{Deserialize, Serialize};

use super::model::{Allowance, Class, Period, Quotas, Who};
use crate::ipp::value::{civil_of_days, days_of_civil};

const DAY_MS: u64 = 86_400_000;

/// What somebody printed since the beginning of a period.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// When the period began, in milliseconds since 1970.
    pub since_ms: u64,
    /// Jobs that are over and used something.
    pub jobs: u64,
    /// Sheets.
    pub sheets: u64,
    /// Bytes of documents.
    pub bytes: u64,
}

/// What is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exceeded {
    /// Sheets: (allowed, used and waiting).
    Sheets(u64, u64),
    /// Bytes: (allowed, used and waiting).
    Bytes(u64, u64),
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sheets(allowed, used) => write!(f, "{used} of {allowed} sheets are used or waiting to be printed"),
            Self::Bytes(allowed, used) => write!(f, "{used} of {allowed} bytes are used or waiting to be printed"),
        }
    }
}

/// When the period that `now_ms` lies in began.
pub fn period_start(period: Period, now_ms: u64) -> u64 {
    let day = now_ms / DAY_MS;
    let first = match period {
        Period::Day => day,
        // 1970-01-01 was a Thursday.
        Period::Week => day.saturating_sub((day + 3) % 7),
        Period::Month => {
            let (year, month, _) = civil_of_days(day as i64);
            days_of_civil(year, month, 1) as u64
        }
    };
    first * DAY_MS
}

/// The allowance of a caller.
pub fn allowance(quotas: &Quotas, who: &Who) -> Allowance {
    match who.class {
        Class::Unauthenticated => quotas.unauthenticated,
        Class::Member => quotas.persons.get(&who.caller.person).copied().unwrap_or(quotas.members),
    }
}

/// Use in the present period, from what was last recorded.
pub fn current(period: Period, recorded: Option<&Usage>, now_ms: u64) -> Usage {
    let since_ms = period_start(period, now_ms);
    match recorded {
        // A clock that went back must not open a second allowance.
        Some(usage) if usage.since_ms >= since_ms => *usage,
        _ => Usage { since_ms, ..Usage::default() },
    }
}

/// Whether something more fits: `waiting` and `more` are (sheets, bytes).
///
/// # Errors
/// What would be exceeded. An allowance that is used up exactly lets nothing more in, not even something whose size is
/// not known yet: so `more` of (0, 0) asks whether it makes sense to begin an upload.
pub fn check(allowed: Allowance, usage: &Usage, waiting: (u64, u64), more: (u64, u64)) -> Result<(), Exceeded> {
    let over = |limit: u64, used: u64, more: u64| if more == 0 { used >= limit } else { used + more > limit };
    if let Some(limit) = allowed.sheets {
        let used = usage.sheets + waiting.0;
        if over(limit, used, more.0) {
            return Err(Exceeded::Sheets(limit, used + more.0));
        }
    }
    if let Some(limit) = allowed.bytes {
        let used = usage.bytes + waiting.1;
        if over(limit, used, more.1) {
            return Err(Exceeded::Bytes(limit, used + more.1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Caller;

    /// 2026-11-30, a Monday, 20:15 UTC.
    const NOW: u64 = 1_796_069_700_000;

    #[test]
    fn periods_begin_at_midnight_monday_and_the_first() {
        let day = |y, m, d| days_of_civil(y, m, d) as u64 * DAY_MS;
        assert_eq!(period_start(Period::Day, NOW), day(2026, 11, 30));
        assert_eq!(period_start(Period::Week, NOW), day(2026, 11, 30));
        assert_eq!(period_start(Period::Week, NOW - DAY_MS), day(2026, 11, 23));
        assert_eq!(period_start(Period::Month, NOW), day(2026, 11, 1));
        assert_eq!(period_start(Period::Week, 0), 0);
    }

    #[test]
    fn use_ends_with_its_period_and_a_clock_that_goes_back_opens_nothing() {
        let used = Usage { since_ms: period_start(Period::Day, NOW), jobs: 1, sheets: 9, bytes: 10 };
        assert_eq!(current(Period::Day, Some(&used), NOW + 1000), used);
        assert_eq!(current(Period::Day, Some(&used), NOW + DAY_MS).sheets, 0);
        assert_eq!(current(Period::Day, Some(&used), NOW - DAY_MS), used);
    }

    #[test]
    fn what_waits_counts() {
        let allowed = Allowance { sheets: Some(10), bytes: Some(1000) };
        let used = Usage { sheets: 4, bytes: 100, ..Usage::default() };
        assert_eq!(check(allowed, &used, (3, 0), (3, 900)), Ok(()));
        assert_eq!(check(allowed, &used, (3, 0), (4, 0)), Err(Exceeded::Sheets(10, 11)));
        assert_eq!(check(allowed, &used, (0, 900), (1, 0)), Err(Exceeded::Bytes(1000, 1000)));
        assert_eq!(check(allowed, &used, (6, 0), (0, 0)), Err(Exceeded::Sheets(10, 10)), "nothing left to begin with");
        assert_eq!(check(Allowance::default(), &used, (1 << 40, 1 << 60), (1, 1)), Ok(()));
    }

    #[test]
    fn named_members_have_their_own_allowance_and_stated_names_have_not() {
        let mut quotas = Quotas { members: Allowance { sheets: Some(5), bytes: None }, ..Quotas::default() };
        quotas.unauthenticated.sheets = Some(1);
        quotas.persons.insert("anna".into(), Allowance { sheets: Some(50), bytes: None });
        let member = |p: &str| Who::member(Caller { person: p.into(), machine: String::new(), device: "d".into() });
        assert_eq!(allowance(&quotas, &member("anna")).sheets, Some(50));
        assert_eq!(allowance(&quotas, &member("ben")).sheets, Some(5));
        assert_eq!(allowance(&quotas, &Who::stated("anna", "")).sheets, Some(1));
    }
}
