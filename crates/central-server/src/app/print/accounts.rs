//! What people printed, and how much they may.
//!
//! Accounts are kept by person and day (UTC), so a quota over any period is the sum of at most 31 records, and a change of
//! the period changes nothing that was counted. Waiting jobs count as what was reserved for them, so nobody prints beyond
//! a quota by handing over many jobs at once; what was not printed is given back.

use super::super::caller::Caller;
use super::super::identity::require_admin;
use super::super::page::{self, PageToken};
use super::super::records::{self as stored, View, user_key};
use super::super::{App, audit, entries};
use super::records::{account_key, quota_key};
use common::error::{Error, Reason, Result};
use common::store::prefix_end;
use proto::record::v1 as record;
use uuid::Uuid;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// People whose accounts one page looks at; with a span in which few printed, pages may be short.
const MAX_SCAN: usize = 10_000;

/// A span of time in UTC; the numbers of `atrium.v1.PrintPeriod`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// From midnight.
    Day = 1,
    /// From Monday.
    Week = 2,
    /// From the first of the calendar month.
    Month = 3,
}

impl Period {
    /// From the wire's number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Day, Self::Week, Self::Month].into_iter().find(|p| *p as u32 == number)
    }

    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }

    /// First day of the period that this day is in.
    pub fn first_day(self, day: u32) -> u32 {
        match self {
            Self::Day => day,
            // 1970-01-01 was a Thursday.
            Self::Week => day.saturating_sub((day + 3) % 7),
            Self::Month => day.saturating_sub(day_of_month(day) - 1),
        }
    }
}

/// The day of a time, in UTC, since 1970-01-01.
pub fn day_of(time_ms: u64) -> u32 {
    // Beyond the year 11,000,000 all days are the same.
    u32::try_from(time_ms / DAY_MS).unwrap_or(u32::MAX / 2).min(u32::MAX / 2)
}

/// 1 to 31, in the Gregorian calendar. Years are counted from March, so that the leap day is a year's last.
fn day_of_month(day: u32) -> u32 {
    let since_0000_march = u64::from(day) + 719_468;
    let of_era = since_0000_march % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    (of_year - (153 * month + 2) / 5 + 1) as u32
}

/// What somebody may print in a period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// A user's name; empty: everybody who has no quota of their own.
    pub user: String,
    /// 0: no limit.
    pub sheets: u64,
    /// 0: no limit.
    pub bytes: u64,
    /// How long.
    pub period: Period,
}

impl Quota {
    fn of(record: record::PrintQuota) -> Self {
        Self {
            user: record.user_name,
            sheets: record.sheets,
            bytes: record.size_bytes,
            period: Period::from_number(record.period).unwrap_or(Period::Month),
        }
    }
}

/// The quota of a person.
///
/// # Errors
/// Those of the store.
pub fn quota_of(view: &impl View, user: Uuid) -> Result<Option<Quota>> {
    let own: Option<record::PrintQuota> = stored::load(view, &quota_key(user.as_bytes()))?;
    let found = match own {
        Some(own) => Some(own),
        None => stored::load(view, &quota_key(b""))?,
    };
    Ok(found.map(Quota::of))
}

/// What a person has used since a day.
fn used(view: &impl View, user: Uuid, from: u32, to: u32) -> Result<record::PrintAccount> {
    let (from, to) = (account_key(user.as_bytes(), from), account_key(user.as_bytes(), to.saturating_add(1)));
    let mut sum = record::PrintAccount::default();
    for (_, value) in view.range(&from, &to, 366)? {
        add(&mut sum, &stored::decode(value)?);
    }
    Ok(sum)
}

fn add(sum: &mut record::PrintAccount, part: &record::PrintAccount) {
    sum.job_count = sum.job_count.saturating_add(part.job_count);
    sum.sheets = sum.sheets.saturating_add(part.sheets);
    sum.size_bytes = sum.size_bytes.saturating_add(part.size_bytes);
    sum.user_name.clone_from(&part.user_name);
}

/// Refuses what goes beyond a person's quota. Gives the bytes that are left.
///
/// # Errors
/// `PRINT_QUOTA_EXCEEDED`.
pub fn require(view: &impl View, user: Uuid, sheets: u64, bytes: u64, now_ms: u64) -> Result<u64> {
    let Some(quota) = quota_of(view, user)? else { return Ok(u64::MAX) };
    let today = day_of(now_ms);
    let used = used(view, user, quota.period.first_day(today), today)?;
    for (what, limit, used, more) in
        [("sheets", quota.sheets, used.sheets, sheets), ("bytes", quota.bytes, used.size_bytes, bytes)]
    {
        if limit > 0 && used.saturating_add(more) > limit {
            return Err(exceeded(what, limit, used, quota.period));
        }
    }
    Ok(if quota.bytes == 0 { u64::MAX } else { quota.bytes.saturating_sub(used.size_bytes) })
}

fn exceeded(what: &str, limit: u64, used: u64, period: Period) -> Error {
    let message = format!("{used} of {limit} {what} of this {} are used, and this would be more", period.word());
    Error::new(Reason::PrintQuotaExceeded, message).with("limit", limit).with("used", used).with("unit", what)
}

/// The refusal of a document that turns out to be larger than what is left.
pub(super) fn bytes_exceeded() -> Error {
    Error::new(Reason::PrintQuotaExceeded, "the document is larger than what is left of the quota")
        .with("unit", "bytes")
}

/// Sets the limits of a person or of everybody; without any, takes them away.
///
/// # Errors
/// `ADMIN_REQUIRED`, `USER_UNKNOWN`.
pub async fn set_quota(app: &App, caller: &Caller, quota: Quota) -> Result<Quota> {
    let shown: String = quota.user.chars().take(64).collect();
    let subject = if shown.is_empty() { "everyone".to_owned() } else { format!("user:{shown}") };
    require_admin(app, caller, "print.quota", &subject).await?;
    let (actor, now_ms) = (caller.actor(), app.clock.now_ms());
    let committed = app
        .store
        .transact(move |txn| {
            let uid = match quota.user.as_str() {
                "" => Vec::new(),
                name => {
                    let user: Option<record::User> = stored::load(&*txn, &user_key(name))?;
                    user.filter(|u| !u.deleted)
                        .ok_or_else(|| Error::new(Reason::UserUnknown, format!("there is no user {name:?}")))?
                        .uid
                        .to_vec()
                }
            };
            let key = quota_key(&uid);
            if quota.sheets == 0 && quota.bytes == 0 {
                txn.delete(&key)?;
            } else {
                let record = record::PrintQuota {
                    user_name: quota.user.clone(),
                    sheets: quota.sheets,
                    size_bytes: quota.bytes,
                    period: quota.period as u32,
                };
                stored::save(txn, &key, &record)?;
            }
            let detail = format!("{} sheets, {} bytes in a {}", quota.sheets, quota.bytes, quota.period.word());
            audit::record(txn, now_ms, &actor, "print.quota", &subject, true, &detail)?;
            Ok(quota.clone())
        })
        .await?;
    Ok(committed.value)
}

/// Limits that are set, everybody's first.
///
/// # Errors
/// `ADMIN_REQUIRED`, `PAGE_TOKEN_INVALID`.
pub async fn quotas(app: &App, caller: &Caller, page_size: u32, page_token: &str) -> Result<(Vec<Quota>, String)> {
    require_admin(app, caller, "print.quotas", "").await?;
    let list = page::fingerprint("print quotas", &[]);
    let prefix = quota_key(b"");
    let mut from = prefix.clone();
    if let Some(token) = PageToken::read(page_token, list)? {
        from.extend_from_slice(token.position());
        from.push(0);
    }
    let size = page::size(page_size);
    let mut found = app.store.range(&from, &prefix_end(&prefix), size + 1)?;
    let mut next = String::new();
    if found.len() > size {
        found.truncate(size);
        next = found.last().map_or_else(String::new, |(key, _)| PageToken::at(list, &key[prefix.len()..]));
    }
    let quotas = found.into_iter().map(|(_, value)| Ok(Quota::of(stored::decode(value)?))).collect::<Result<_>>()?;
    Ok((quotas, next))
}

/// What a person printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// A user's name.
    pub user: String,
    /// Jobs.
    pub jobs: u64,
    /// Sheets.
    pub sheets: u64,
    /// Bytes of documents.
    pub bytes: u64,
}

/// What people printed from one day to another, by person.
///
/// # Errors
/// `ADMIN_REQUIRED`, `PAGE_TOKEN_INVALID`, `FIELD_INVALID` for a span that ends before it begins.
pub async fn list(
    app: &App,
    caller: &Caller,
    days: (u32, u32),
    page_size: u32,
    page_token: &str,
) -> Result<(Vec<Account>, String)> {
    require_admin(app, caller, "print.accounts", "").await?;
    let (first, last) = (days.0, if days.1 == 0 { day_of(app.clock.now_ms()) } else { days.1 });
    if first > last {
        return Err(Error::new(Reason::FieldInvalid, "the span ends before it begins").with("field", "last_day"));
    }
    let list = page::fingerprint("print accounts", &[&first.to_string(), &days.1.to_string()]);
    let start = PageToken::read(page_token, list)?.map(|t| t.position().to_vec());
    let (store, size) = (app.store.clone(), page::size(page_size));
    entries::blocking(move || {
        let to = prefix_end(b"w/a/");
        let mut from = match start {
            Some(user) => after_user(&user),
            None => b"w/a/".to_vec(),
        };
        let mut accounts = Vec::new();
        for _ in 0..MAX_SCAN {
            let Some((key, _)) = store.range(&from, &to, 1)?.into_iter().next() else {
                return Ok((accounts, String::new()));
            };
            let user = key.get(4..20).unwrap_or_default().to_vec();
            let sum = span(&store, &user, first, last)?;
            if sum.job_count > 0 || sum.sheets > 0 {
                let (jobs, sheets, bytes) = (sum.job_count, sum.sheets, sum.size_bytes);
                accounts.push(Account { user: sum.user_name, jobs, sheets, bytes });
            }
            from = after_user(&user);
            if accounts.len() == size {
                return Ok((accounts, PageToken::at(list, &user)));
            }
        }
        let last = from.get(4..20).unwrap_or_default().to_vec();
        Ok((accounts, PageToken::at(list, &last)))
    })
    .await
}

/// Beyond every record of a person.
fn after_user(user: &[u8]) -> Vec<u8> {
    [b"w/a/", user, &[0xFF; 5]].concat()
}

fn span(view: &impl View, user: &[u8], first: u32, last: u32) -> Result<record::PrintAccount> {
    let (mut from, to) = (account_key(user, first), account_key(user, last.saturating_add(1)));
    let mut sum = record::PrintAccount::default();
    loop {
        let page = view.range(&from, &to, 1_000)?;
        let ended = page.len() < 1_000;
        for (key, value) in page {
            from = [&key[..], b"\0"].concat();
            add(&mut sum, &stored::decode(value)?);
        }
        if ended {
            return Ok(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_begin_where_the_calendar_says() {
        // 2024-02-29 (a Thursday) is day 19,782; 2024-03-01 is 19,783; 2000-02-29 is 11,016.
        assert_eq!(
            [0, 30, 31, 58, 59, 11_016, 11_017, 19_782, 19_783].map(day_of_month),
            [1, 31, 1, 28, 1, 29, 1, 29, 1]
        );
        assert_eq!(Period::Month.first_day(19_782), 19_782 - 28);
        assert_eq!(Period::Month.first_day(19_783), 19_783);
        assert_eq!(Period::Week.first_day(19_782), 19_782 - 3);
        assert_eq!(Period::Day.first_day(19_782), 19_782);
        assert_eq!((Period::Week.first_day(0), Period::Week.first_day(4)), (0, 4), "the first Monday is the fifth");
        assert_eq!(day_of(DAY_MS * 19_782 + DAY_MS - 1), 19_782);
        // Every day's month begins at most 30 days earlier, and one month follows the other.
        for day in 0..60_000 {
            let first = Period::Month.first_day(day);
            assert!(day - first <= 30 && day_of_month(first) == 1);
            assert!(day_of_month(day + 1) == day_of_month(day) + 1 || day_of_month(day + 1) == 1);
        }
        assert!(day_of(u64::MAX) < u32::MAX);
    }
}
