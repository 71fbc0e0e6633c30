//! Subscriptions that are pulled by Get-Notifications (RFC 3995, 3996).
//!
//! Kept in memory: a lease that is gone after a restart is `not-found` to its owner, who subscribes again. What a
//! subscription gets is read from the printers' own list of changes; nothing is stored for each.

use std::collections::BTreeMap;

use super::attributes::seconds;
use crate::ipp::codes::{Status, group};
use crate::ipp::value::{Attribute, Group, Message, Value};
use crate::printer::model::{JobId, JobState, Who};
use crate::printer::printers::{Change, ChangeKind};

/// Subscriptions at a time.
const MOST: usize = 500;
/// Those of one person.
const MOST_OWN: usize = 50;
/// The usual lease, in seconds.
const LEASE: i32 = 86_400;
/// The longest lease, in seconds.
const LEASE_MOST: i32 = 604_800;
/// How often a client is asked to come back, in seconds.
const INTERVAL: i32 = 30;
/// Events that one answer has.
const EVENTS: usize = 100;

const KNOWN: [&str; 10] = [
    "none",
    "printer-config-changed",
    "printer-state-changed",
    "printer-stopped",
    "printer-queue-order-changed",
    "job-created",
    "job-completed",
    "job-state-changed",
    "job-config-changed",
    "job-progress",
];

/// Attributes of a printer about subscriptions.
pub(super) fn describe(out: &mut Group) {
    out.put("notify-events-default", Value::keyword("job-completed"));
    out.put_all("notify-events-supported", KNOWN.map(Value::keyword));
    out.put("notify-lease-duration-default", Value::Integer(LEASE));
    out.put("notify-lease-duration-supported", Value::Range(0, LEASE_MOST));
    out.put("notify-max-events-supported", Value::Integer(KNOWN.len() as i32));
    out.put("notify-pull-method-supported", Value::keyword("ippget"));
    out.put("ippget-event-life", Value::Integer(60));
}

struct Subscription {
    printer: String,
    job: Option<JobId>,
    owner: Who,
    events: Vec<String>,
    lease: i32,
    until_s: i32,
    /// Changes up to this number were there before it.
    since: u64,
    data: Option<Value>,
}

/// All subscriptions.
#[derive(Default)]
pub(super) struct Subscriptions {
    next: i32,
    all: BTreeMap<i32, Subscription>,
}

type Refused = (Status, String);

impl Subscriptions {
    fn expire(&mut self, now_s: i32) {
        self.all.retain(|_, s| s.lease == 0 || s.until_s > now_s);
    }

    /// One subscription for each group of the request.
    pub(super) fn create(
        &mut self,
        request: &Message,
        printer: &str,
        who: &Who,
        now_ms: u64,
        newest: u64,
    ) -> Result<Vec<Group>, Refused> {
        let now = seconds(now_ms);
        self.expire(now);
        let job =
            request.group(group::OPERATION).and_then(|g| g.int("notify-job-id")).and_then(|n| u32::try_from(n).ok());
        let mut made = Vec::new();
        for asked in request.groups.iter().filter(|g| g.tag == group::SUBSCRIPTION).take(20) {
            if asked.str("notify-pull-method").is_some_and(|m| m != "ippget")
                || asked.get("notify-recipient-uri").is_some()
            {
                let words = "events are pulled with ippget and sent nowhere";
                return Err((Status::AttributesNotSupported, words.into()));
            }
            let own = self.all.values().filter(|s| s.owner.same(who)).count();
            if self.all.len() >= MOST || own >= MOST_OWN {
                return Err((Status::TooManySubscriptions, "there are too many subscriptions".into()));
            }
            let events: Vec<String> = match asked.get("notify-events") {
                None => vec!["job-completed".into()],
                Some(list) => list
                    .values
                    .iter()
                    .filter_map(Value::as_str)
                    .filter(|e| KNOWN.contains(e))
                    .map(str::to_owned)
                    .collect(),
            };
            let lease = asked.int("notify-lease-duration").unwrap_or(LEASE).clamp(0, LEASE_MOST);
            self.next += 1;
            let data = asked.value("notify-user-data").cloned();
            let subscription = Subscription {
                printer: printer.to_owned(),
                job: job.map(JobId),
                owner: who.clone(),
                events,
                lease,
                until_s: now.saturating_add(lease),
                since: newest,
                data,
            };
            self.all.insert(self.next, subscription);
            let mut out = Group::new(group::SUBSCRIPTION);
            out.put("notify-subscription-id", Value::Integer(self.next));
            out.put("notify-lease-duration", Value::Integer(lease));
            made.push(out);
        }
        if made.is_empty() {
            return Err((Status::BadRequest, "no subscription is asked for".into()));
        }
        Ok(made)
    }

    fn own(
        &mut self,
        id: Option<i32>,
        who: &Who,
        manage: bool,
        now_s: i32,
    ) -> Result<(i32, &mut Subscription), Refused> {
        self.expire(now_s);
        let id = id.ok_or((Status::BadRequest, "notify-subscription-id is missing".to_owned()))?;
        let found = self.all.get_mut(&id).ok_or((Status::NotFound, "there is no such subscription".to_owned()))?;
        if !manage && !found.owner.same(who) {
            return Err((Status::NotAuthorized, "the subscription is somebody else's".into()));
        }
        Ok((id, found))
    }

    /// Attributes of one.
    pub(super) fn get(&mut self, id: Option<i32>, who: &Who, manage: bool, now_ms: u64) -> Result<Group, Refused> {
        let (id, found) = self.own(id, who, manage, seconds(now_ms))?;
        Ok(show(id, found))
    }

    /// Those of a printer that the caller may see.
    pub(super) fn list(&mut self, printer: &str, who: &Who, manage: bool, now_ms: u64) -> Vec<Group> {
        self.expire(seconds(now_ms));
        let own = self.all.iter().filter(|(_, s)| s.printer == printer && (manage || s.owner.same(who)));
        own.map(|(id, s)| show(*id, s)).collect()
    }

    /// A new lease.
    pub(super) fn renew(
        &mut self,
        id: Option<i32>,
        lease: Option<i32>,
        who: &Who,
        manage: bool,
        now_ms: u64,
    ) -> Result<Group, Refused> {
        let now = seconds(now_ms);
        let (_, found) = self.own(id, who, manage, now)?;
        found.lease = lease.unwrap_or(LEASE).clamp(0, LEASE_MOST);
        found.until_s = now.saturating_add(found.lease);
        let mut out = Group::new(group::SUBSCRIPTION);
        out.put("notify-lease-duration", Value::Integer(found.lease));
        Ok(out)
    }

    /// Ends one.
    pub(super) fn cancel(&mut self, id: Option<i32>, who: &Who, manage: bool, now_ms: u64) -> Result<(), Refused> {
        let (id, _) = self.own(id, who, manage, seconds(now_ms))?;
        self.all.remove(&id);
        Ok(())
    }

    /// Events of those that the request names; `changes` are all that are remembered.
    pub(super) fn events(
        &mut self,
        operation: &Group,
        who: &Who,
        manage: bool,
        now_ms: u64,
        changes: &[Change],
    ) -> Result<Vec<Group>, Refused> {
        let list = |name: &str| -> Vec<i32> {
            operation
                .get(name)
                .map(|a| a.values.iter().filter_map(Value::as_int).take(50).collect())
                .unwrap_or_default()
        };
        let (ids, firsts) = (list("notify-subscription-ids"), list("notify-sequence-numbers"));
        let mut out = Vec::new();
        for (n, id) in ids.iter().enumerate() {
            let (id, found) = self.own(Some(*id), who, manage, seconds(now_ms))?;
            let first = firsts.get(n).copied().unwrap_or(1).max(1);
            for change in changes.iter().filter(|c| found.takes(c)) {
                // The number of a change within the subscription; gaps are allowed, going back is not.
                let sequence = i32::try_from(change.number - found.since).unwrap_or(i32::MAX);
                if sequence >= first && out.len() < EVENTS {
                    out.push(event(id, sequence, found, change));
                }
            }
        }
        Ok(out)
    }

    /// What a client of Get-Notifications is told about when to come again.
    pub(super) fn interval() -> Attribute {
        Attribute::one("notify-get-interval", Value::Integer(INTERVAL))
    }
}

impl Subscription {
    fn takes(&self, change: &Change) -> bool {
        change.number > self.since
            && change.printer == self.printer
            && (self.job.is_none() || self.job == change.job)
            && self.events.iter().any(|e| matches(e, change))
    }
}

fn matches(event: &str, change: &Change) -> bool {
    match (event, change.kind) {
        ("printer-config-changed", ChangeKind::Configured) => true,
        ("printer-state-changed" | "printer-stopped" | "printer-queue-order-changed", ChangeKind::State) => true,
        ("job-completed", ChangeKind::Job) => change.state.is_some_and(JobState::is_over),
        ("job-created" | "job-state-changed" | "job-config-changed" | "job-progress", ChangeKind::Job) => true,
        _ => false,
    }
}

fn show(id: i32, found: &Subscription) -> Group {
    let mut out = Group::new(group::SUBSCRIPTION);
    out.put("notify-subscription-id", Value::Integer(id));
    out.put_all("notify-events", found.events.iter().map(Value::keyword));
    out.put("notify-pull-method", Value::keyword("ippget"));
    out.put("notify-lease-duration", Value::Integer(found.lease));
    out.put("notify-lease-expiration-time", Value::Integer(found.until_s));
    out.put("notify-subscriber-user-name", Value::name(&found.owner.caller.person));
    if let Some(job) = found.job {
        out.put("notify-job-id", Value::Integer(job.0 as i32));
    }
    out
}

fn event(id: i32, sequence: i32, found: &Subscription, change: &Change) -> Group {
    let name = found.events.iter().find(|e| matches(e, change)).map_or("none", String::as_str);
    let mut out = Group::new(group::EVENT);
    out.put("notify-subscription-id", Value::Integer(id));
    out.put("notify-sequence-number", Value::Integer(sequence));
    out.put("notify-subscribed-event", Value::keyword(name));
    out.put("printer-up-time", Value::Integer(seconds(change.at_ms)));
    out.put("notify-text", Value::text(format!("{name} at printer {}", change.printer)));
    if let Some(data) = &found.data {
        out.put("notify-user-data", data.clone());
    }
    if let Some(job) = change.job {
        out.put("notify-job-id", Value::Integer(job.0 as i32));
    }
    if let Some(state) = change.state {
        out.put("job-state", Value::Enum(state.code()));
    }
    out
}
