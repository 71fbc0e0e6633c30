//! Records of print queues in the store, and everything that follows from them.
//!
//! | key | value |
//! | --- | --- |
//! | `w/p/NAME` | Printer |
//! | `w/j/JOB` | PrintJob |
//! | `w/u/USER_UID JOB` | a job of this person |
//! | `w/o/USER_UID JOB` | an open job (one that has not ended) of this person |
//! | `w/n/PRINTER_UID JOB` | a job of this printer |
//! | `w/d/PRINTER_UID JOB` | an open job of this printer |
//! | `w/q/DEVICE_ID JOB` | an open job, not held, that this machine is to print or prints |
//! | `w/c/CREATE_MS JOB` | an open job, by its age |
//! | `w/e/END_MS JOB` | an ended job, by its end |
//! | `w/a/USER_UID DAY` | PrintAccount |
//! | `w/l/USER_UID` | PrintQuota; without uid: of everybody else |
//! | `w/t` | PrintTotals |
//!
//! A job is written by [`put_job`] alone. It writes the keys that follow from the job and removes those that followed from
//! the job as it was, and keeps accounts and totals: each account is the sum of [`charge`] over its jobs (those forgotten
//! since included), the totals are those of the open jobs.

use super::super::directories::PrincipalName;
use super::super::records::{self, View};
use super::super::rights;
use super::Job;
use super::accounts::day_of;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::{Pin, Principal, Right};
use common::store::Txn;
use proto::record::v1 as record;
use uuid::Uuid;

/// The usual priority of a job.
pub const PRIORITY: u32 = 50;
/// Totals of all queues.
pub const TOTALS: &[u8] = b"w/t";

/// Where a job stands; the numbers of `atrium.v1.PrintJobState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Waits for the printer's machine.
    Pending = 1,
    /// Waits to be released.
    Held = 2,
    /// In the queue of the printer's machine.
    Taken = 3,
    /// Is being printed.
    Processing = 4,
    /// The printer stopped in the middle.
    Stopped = 5,
    /// Was not wanted any more.
    Canceled = 6,
    /// Could not be printed.
    Aborted = 7,
    /// Is on paper.
    Completed = 8,
}

impl JobState {
    /// From the wire's number.
    pub fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Pending,
            2 => Self::Held,
            3 => Self::Taken,
            4 => Self::Processing,
            5 => Self::Stopped,
            6 => Self::Canceled,
            7 => Self::Aborted,
            8 => Self::Completed,
            _ => return None,
        })
    }

    /// Nothing more becomes of it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Canceled | Self::Aborted | Self::Completed)
    }

    /// The printer's machine has it.
    pub fn is_taken(self) -> bool {
        matches!(self, Self::Taken | Self::Processing | Self::Stopped)
    }

    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Taken => "taken",
            Self::Processing => "processing",
            Self::Stopped => "stopped",
            Self::Canceled => "canceled",
            Self::Aborted => "aborted",
            Self::Completed => "completed",
        }
    }
}

/// Where a job stands. A state of a newer version counts as stopped: it is shown, and nothing is done with it.
pub fn state(job: &Job) -> JobState {
    JobState::from_number(job.state).unwrap_or(JobState::Stopped)
}

/// A job's id.
///
/// # Errors
/// `STORE_CORRUPT`.
pub fn id_of(job: &Job) -> Result<Uuid> {
    records::uuid(&job.id)
}

/// How early a job is among those that wait for a printer, 1 to 100.
pub fn priority(job: &Job) -> u32 {
    if job.priority == 0 { PRIORITY } else { job.priority }
}

/// The PIN of a job that has one. One that is damaged fits nothing.
pub fn pin(job: &Job) -> Option<Pin> {
    let kept = job.pin.as_ref()?;
    Some(Pin {
        salt: kept.salt[..].try_into().unwrap_or_default(),
        hash: kept.hash[..].try_into().unwrap_or_default(),
        wrong: u8::try_from(kept.wrong).unwrap_or(u8::MAX),
        locked_until_ms: kept.locked_until_ms,
    })
}

/// A PIN as it is kept.
pub fn encode_pin(pin: &Pin) -> record::PrintPin {
    record::PrintPin {
        salt: Bytes::copy_from_slice(&pin.salt),
        hash: Bytes::copy_from_slice(&pin.hash),
        wrong: pin.wrong.into(),
        locked_until_ms: pin.locked_until_ms,
    }
}

/// What a job counts as in the account of its person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Jobs.
    pub jobs: u64,
    /// Sheets.
    pub sheets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What a job counts as: a waiting one as what was reserved for it, one that was canceled or failed before anything was
/// on paper as nothing, any other as the sheets that its printer's machine told of (as what was reserved if it told none).
pub fn charge(job: &Job) -> Charge {
    let sheets = match state(job) {
        JobState::Canceled | JobState::Aborted if job.sheets == 0 => return Charge::default(),
        JobState::Canceled | JobState::Aborted => job.sheets,
        JobState::Completed if job.sheets > 0 => job.sheets,
        _ => job.sheets.max(job.reserved_sheets),
    };
    Charge { jobs: 1, sheets, bytes: job.size_bytes }
}

fn key(kind: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let mut key = kind.to_vec();
    parts.iter().for_each(|p| key.extend_from_slice(p));
    key
}

/// `w/p/NAME`
pub fn printer_key(name: &str) -> Vec<u8> {
    key(b"w/p/", &[name.as_bytes()])
}
/// `w/j/JOB`
pub fn job_key(id: &[u8]) -> Vec<u8> {
    key(b"w/j/", &[id])
}
/// Jobs of a person; only open ones, or all.
pub fn jobs_of_user(user: &[u8], ended: bool) -> Vec<u8> {
    key(if ended { b"w/u/" } else { b"w/o/" }, &[user])
}
/// Jobs of a printer; only open ones, or all.
pub fn jobs_of_printer(printer: &[u8], ended: bool) -> Vec<u8> {
    key(if ended { b"w/n/" } else { b"w/d/" }, &[printer])
}
/// Jobs that a machine is to print.
pub fn jobs_of_device(device: &str) -> Vec<u8> {
    key(b"w/q/", &[device.as_bytes(), b"/"])
}
/// Open jobs, from this age on.
pub fn open_since(create_ms: u64) -> Vec<u8> {
    key(b"w/c/", &[&create_ms.to_be_bytes()])
}
/// Ended jobs, from this end on.
pub fn ended_since(end_ms: u64) -> Vec<u8> {
    key(b"w/e/", &[&end_ms.to_be_bytes()])
}
/// `w/a/USER_UID DAY`
pub fn account_key(user: &[u8], day: u32) -> Vec<u8> {
    key(b"w/a/", &[user, &day.to_be_bytes()])
}
/// `w/l/USER_UID`
pub fn quota_key(user: &[u8]) -> Vec<u8> {
    key(b"w/l/", &[user])
}

/// The id at the end of a key that follows from a job.
pub fn job_in(key: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(key.get(key.len().checked_sub(16)?..)?).ok()
}

/// Keys that follow from a job, besides its own.
pub fn keys_of(job: &Job) -> Vec<Vec<u8>> {
    let with = |mut prefix: Vec<u8>| {
        prefix.extend_from_slice(&job.id);
        prefix
    };
    let mut keys = vec![with(jobs_of_user(&job.user, true)), with(jobs_of_printer(&job.printer, true))];
    let state = state(job);
    if state.is_end() {
        keys.push(with(ended_since(job.end_ms)));
        return keys;
    }
    keys.push(with(jobs_of_user(&job.user, false)));
    keys.push(with(jobs_of_printer(&job.printer, false)));
    keys.push(with(open_since(job.create_ms)));
    if state != JobState::Held {
        keys.push(with(jobs_of_device(&job.device)));
    }
    keys
}

/// A job.
///
/// # Errors
/// Those of the store.
pub fn load_job(view: &impl View, id: Uuid) -> Result<Option<Job>> {
    records::load(view, &job_key(id.as_bytes()))
}

/// Writes a job that is new, or that was `old`, and all that follows from it. Gives it back as it is now.
///
/// # Errors
/// Those of the store.
pub fn put_job(txn: &mut Txn<'_>, old: Option<&Job>, mut job: Job) -> Result<Job> {
    job.revision = txn.revision();
    let (before, after) = (old.map(keys_of).unwrap_or_default(), keys_of(&job));
    for gone in before.iter().filter(|k| !after.contains(k)) {
        txn.delete(gone)?;
    }
    for new in after.iter().filter(|k| !before.contains(k)) {
        txn.put(new.clone(), Bytes::new())?;
    }
    account(txn, &job, old.map(charge).unwrap_or_default(), charge(&job))?;
    total(txn, old.map(open_part).unwrap_or_default(), open_part(&job))?;
    records::save(txn, &job_key(&job.id), &job)?;
    Ok(job)
}

/// Forgets an ended job. Its account stays.
///
/// # Errors
/// Those of the store.
pub fn forget_job(txn: &mut Txn<'_>, job: &Job) -> Result<()> {
    for key in keys_of(job) {
        txn.delete(key)?;
    }
    txn.delete(job_key(&job.id))
}

fn account(txn: &mut Txn<'_>, job: &Job, before: Charge, after: Charge) -> Result<()> {
    if before == after {
        return Ok(());
    }
    let key = account_key(&job.user, day_of(job.create_ms));
    let mut account: record::PrintAccount = records::load(&*txn, &key)?.unwrap_or_default();
    let apply = |value: &mut u64, before: u64, after: u64| *value = value.saturating_sub(before).saturating_add(after);
    apply(&mut account.job_count, before.jobs, after.jobs);
    apply(&mut account.sheets, before.sheets, after.sheets);
    apply(&mut account.size_bytes, before.bytes, after.bytes);
    account.user_name.clone_from(&job.user_name);
    if account.job_count == 0 && account.sheets == 0 && account.size_bytes == 0 {
        return txn.delete(key);
    }
    records::save(txn, &key, &account)
}

/// Jobs and bytes that an open job adds to the totals.
fn open_part(job: &Job) -> (u64, u64) {
    if state(job).is_end() { (0, 0) } else { (1, job.size_bytes) }
}

fn total(txn: &mut Txn<'_>, before: (u64, u64), after: (u64, u64)) -> Result<()> {
    if before == after {
        return Ok(());
    }
    let mut totals = totals(&*txn)?;
    totals.job_count = totals.job_count.saturating_sub(before.0).saturating_add(after.0);
    totals.size_bytes = totals.size_bytes.saturating_sub(before.1).saturating_add(after.1);
    records::save(txn, TOTALS, &totals)
}

/// Open jobs and the bytes of their documents.
///
/// # Errors
/// Those of the store.
pub fn totals(view: &impl View) -> Result<record::PrintTotals> {
    Ok(records::load(view, TOTALS)?.unwrap_or_default())
}

/// A printer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printer {
    /// Stable id.
    pub uid: Uuid,
    /// Unique name.
    pub name: String,
    /// The machine it hangs on.
    pub device: String,
    /// For people.
    pub description: String,
    /// Where it stands.
    pub location: String,
    /// Media types; none means any.
    pub formats: Vec<String>,
    /// Prints in colour.
    pub color: bool,
    /// Prints on both sides.
    pub duplex: bool,
    /// Who may do what.
    pub grants: Vec<(Principal, Right)>,
    /// When it was first offered.
    pub create_ms: u64,
    /// Commit of the last change.
    pub revision: u64,
    /// An administrator has moved it to its machine, which has not offered it since.
    pub moved: bool,
}

impl Printer {
    pub(super) fn decode(bytes: Bytes) -> Result<Self> {
        let r: record::Printer = records::decode(bytes)?;
        let grants = r.grants.iter().filter_map(|g| {
            let right = Right::from_number(i32::try_from(g.right).ok()?)?;
            Some((rights::decode(&g.principal)?, right))
        });
        Ok(Self {
            uid: records::uuid(&r.uid)?,
            grants: grants.collect(),
            name: r.name,
            device: r.device,
            description: r.description,
            location: r.location,
            formats: r.formats,
            color: r.color,
            duplex: r.duplex,
            create_ms: r.create_ms,
            revision: r.revision,
            moved: r.moved,
        })
    }

    pub(super) fn save(&self, txn: &mut Txn<'_>) -> Result<()> {
        let record = record::Printer {
            uid: Bytes::copy_from_slice(self.uid.as_bytes()),
            name: self.name.clone(),
            device: self.device.clone(),
            description: self.description.clone(),
            location: self.location.clone(),
            formats: self.formats.clone(),
            color: self.color,
            duplex: self.duplex,
            grants: self
                .grants
                .iter()
                .map(|(p, r)| record::Grant { principal: rights::encode(p), right: *r as u32 })
                .collect(),
            create_ms: self.create_ms,
            revision: txn.revision(),
            moved: self.moved,
        };
        records::save(txn, &printer_key(&self.name), &record)
    }

    /// Its rules by name.
    ///
    /// # Errors
    /// Those of the store.
    pub fn grant_names(&self, view: &impl View) -> Result<Vec<(PrincipalName, Right)>> {
        self.grants.iter().map(|(p, r)| Ok((super::super::directories::name_of(view, p)?, *r))).collect()
    }
}

/// A printer, without looking at rights.
///
/// # Errors
/// Those of the store.
pub fn load_printer(view: &impl View, name: &str) -> Result<Option<Printer>> {
    view.get(&printer_key(name))?.map(Printer::decode).transpose()
}

/// What whoever may not see a printer is told, whether it is there or not.
pub fn printer_unknown(name: &str) -> Error {
    let shown: String = name.chars().take(64).collect();
    Error::new(Reason::ResourceUnknown, format!("there is no printer {shown:?}, or you may not see it"))
        .fix_is("`atrium admin printers list` shows an administrator all printers")
}

/// What whoever may not see a job is told, whether it is there or not.
pub fn job_unknown() -> Error {
    Error::new(Reason::PrintJobUnknown, "there is no such print job, or it is not yours")
}
