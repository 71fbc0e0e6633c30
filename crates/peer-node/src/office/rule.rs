//! From a set of records to who belongs: one function, the same on every node (docs/adr/0006-signed-membership.md).
//!
//! A statement counts if its author has the right to it by statements that count ([`Closure`]) and no *restriction* that
//! counts takes it away. Restrictions are revocations, which take away what the device stated beyond the heads that they
//! name, and changes of members, which take away what the member stated beyond the heads without the rights that the
//! change leaves it. They are looked at from the most senior author to the most junior one; what one of them takes away
//! cannot restrict anybody any more. So of two members that cut each other off at the same time the more senior one
//! stays, and a revocation is undone only by somebody more senior than its author, never by those whom it hits.
//!
//! Statements are only ever taken away, so the passes end, and the result depends on the set alone.

use super::closure::Closure;
use super::ledger::Ledger;
use super::record::{Kind, Profile, Record, RecordId, Rights, Statement, StatementId};
use super::view::{CentralServer, Member, View};
use common::model::{DeviceId, fold};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The change of a group that counts so far: its rank, the name as written, and who is in it.
type NewestGroup<'a> = ((u64, RecordId), &'a String, Option<&'a Vec<String>>);

/// Who belongs, by these records. `me` is only noted in the view.
pub fn evaluate(ledger: &Ledger, me: DeviceId) -> View {
    Judge::new(ledger).run().view(me)
}

struct Judge<'a> {
    ledger: &'a Ledger,
    /// Taken away.
    void: HashSet<StatementId>,
    revoked: HashSet<DeviceId>,
    /// Changes of members by whom they change.
    changes: HashMap<DeviceId, Vec<&'a Record>>,
    /// Over what is not void.
    closure: Closure,
}

/// A change of a member that counts at the moment.
struct Change {
    place: (u64, RecordId),
    rights: Rights,
    covered: HashSet<StatementId>,
}

impl<'a> Judge<'a> {
    fn new(ledger: &'a Ledger) -> Self {
        let mut changes: HashMap<DeviceId, Vec<&Record>> = HashMap::new();
        for record in ledger.records() {
            if let Kind::Member { device, .. } = &record.statement().kind {
                changes.entry(*device).or_default().push(record);
            }
        }
        Self { ledger, void: HashSet::new(), revoked: HashSet::new(), changes, closure: ledger.closure().clone() }
    }

    fn run(mut self) -> Self {
        let rank = |r: &&Record| self.ledger.closure().rank(&r.statement().author);
        let mut restrictions: Vec<&Record> = self.ledger.records().filter(|r| restricts(r.statement())).collect();
        restrictions.sort_by_cached_key(|r| (rank(r), r.statement().sequence, r.id()));
        // A change may count only after what outdid it was taken away, so until nothing changes any more.
        loop {
            let mut changed = false;
            for record in &restrictions {
                changed |= self.apply(record);
            }
            if !changed {
                break;
            }
        }
        self
    }

    fn counts(&self, record: &Record) -> bool {
        !self.void.contains(&record.statement_id()) && self.closure.allows(record.statement())
    }

    /// Takes away what a restriction takes away; true if there was something new.
    fn apply(&mut self, record: &Record) -> bool {
        if !self.counts(record) {
            return false;
        }
        let taken: Vec<StatementId> = match &record.statement().kind {
            Kind::Revocation { device, last_sequence, heads, .. } => {
                self.revoked.insert(*device);
                let covered = self.ledger.covered(device, heads);
                let stays = |r: &&Record| {
                    r.statement_id() == record.statement_id()
                        || (covered.contains(&r.statement_id()) && r.statement().sequence <= *last_sequence)
                };
                self.standing(device).filter(|r| !stays(r)).map(Record::statement_id).collect()
            }
            Kind::Member { device, .. } => self.beyond_rights(device, record),
            _ => Vec::new(),
        };
        if taken.is_empty() {
            return false;
        }
        self.void.extend(taken);
        let void = &self.void;
        let standing = self.ledger.records().filter(|r| !void.contains(&r.statement_id()));
        self.closure = Closure::of(standing.map(Record::statement));
        true
    }

    /// Statements of a device that nothing has taken away. The founding one cannot be: without it there is no office.
    fn standing<'s>(&'s self, device: &DeviceId) -> impl Iterator<Item = &'a Record> + use<'a, 's> {
        let founding = self.ledger.founding().statement_id();
        let standing = move |r: &&Record| !self.void.contains(&r.statement_id()) && r.statement_id() != founding;
        self.ledger.by(device).filter(standing)
    }

    /// Statements of the device for which this change is the one that decides, and does not give the right.
    fn beyond_rights(&self, device: &DeviceId, change: &Record) -> Vec<StatementId> {
        if self.standing(device).all(|r| Rights { member: true, ..Rights::default() }.has(r.statement().needs())) {
            return Vec::new();
        }
        let changes = self.changes(device);
        let Some(own) = changes.iter().find(|c| c.place.1 == change.id()) else { return Vec::new() };
        self.standing(device)
            .filter(|r| {
                let needs = r.statement().needs();
                let lacks = (needs.invite && !own.rights.invite) || (needs.manage && !own.rights.manage);
                let open = |c: &&Change| !c.covered.contains(&r.statement_id());
                lacks && changes.iter().filter(open).map(|c| c.place).max() == Some(own.place)
            })
            .map(Record::statement_id)
            .collect()
    }

    /// Changes of this device that count.
    fn changes(&self, device: &DeviceId) -> Vec<Change> {
        let counting = self.changes.get(device).into_iter().flatten().filter(|r| self.counts(r));
        let read = counting.filter_map(|record| match &record.statement().kind {
            Kind::Member { revision, profile, heads, .. } => Some(Change {
                place: (*revision, record.id()),
                rights: profile.rights(),
                covered: self.ledger.covered(device, heads),
            }),
            _ => None,
        });
        read.collect()
    }

    fn view(self, me: DeviceId) -> View {
        let mut view = View::empty(me);
        let mut admissions: HashMap<DeviceId, Vec<&Record>> = HashMap::new();
        let mut changes: HashMap<DeviceId, ((u64, RecordId), &Record, &Profile)> = HashMap::new();
        let mut groups: BTreeMap<String, NewestGroup<'_>> = BTreeMap::new();
        let mut server = None;
        for record in self.ledger.records() {
            let statement = record.statement();
            if let Some(admission) = statement.admits()
                && self.ledger.closure().allows(statement)
            {
                admissions.entry(admission.device).or_default().push(record);
            }
            if !self.counts(record) {
                continue;
            }
            match &statement.kind {
                Kind::Founding { office, .. } => view.name.clone_from(office),
                Kind::Member { device, revision, profile, .. } => {
                    let entry = ((*revision, record.id()), record, profile);
                    let last = changes.entry(*device).or_insert(entry);
                    if last.0 < entry.0 {
                        *last = entry;
                    }
                }
                Kind::Group { group, revision, persons, removed } => {
                    let entry = ((*revision, record.id()), group, (!removed).then_some(persons));
                    let last = groups.entry(fold(group)).or_insert(entry);
                    if last.0 < entry.0 {
                        *last = entry;
                    }
                }
                Kind::Server { revision, server: address, ca_pem } => {
                    let entry = ((*revision, record.id()), address, ca_pem);
                    server = server.max(Some(entry));
                }
                Kind::Admission(_) | Kind::Revocation { .. } => {}
            }
        }
        for (device, records) in admissions {
            let change = changes.get(&device).map(|(_, record, profile)| (*record, *profile));
            view.members.extend(self.member(&device, &records, change));
        }
        view.members.sort_by_cached_key(|m| (fold(&m.unit), fold(&m.display_name), m.device));
        view.index = view.members.iter().enumerate().map(|(at, m)| (m.device, at)).collect();
        view.groups =
            groups.into_values().filter_map(|(_, name, persons)| persons.map(|p| (name.clone(), p.clone()))).collect();
        view.server = server
            .filter(|(_, address, _)| !address.is_empty())
            .map(|(_, address, ca_pem)| CentralServer { server: address.clone(), ca_pem: ca_pem.clone() });
        view.office = Some(self.ledger.office());
        view.revoked = self.revoked;
        view.records_digest = self.ledger.digest();
        view.record_count = self.ledger.len();
        view
    }

    /// The member that these admissions make, if one of them counts or it was a member before it was cut off.
    fn member(&self, device: &DeviceId, admissions: &[&Record], change: Option<(&Record, &Profile)>) -> Option<Member> {
        let revoked = self.revoked.contains(device);
        let place = |r: &&&Record| (self.ledger.closure().rank(&r.statement().author), r.statement().sequence, r.id());
        let counting = admissions.iter().filter(|r| self.counts(r)).min_by_key(place);
        let record = counting.or_else(|| admissions.iter().min_by_key(place).filter(|_| revoked))?;
        let admission = record.statement().admits()?;
        let founder = record.statement().author == *device;
        let (giver, profile) = change.unwrap_or((record, &admission.profile));
        // Nobody gives more than it has; the founder has everything to begin with.
        let own = match change {
            None if founder => Rights::ALL,
            _ => self.closure.rights(&giver.statement().author),
        };
        Some(Member {
            device: *device,
            key: admission.device_key,
            display_name: profile.display_name.clone(),
            person: profile.person.clone(),
            unit: profile.unit.clone(),
            may_invite: profile.may_invite && own.invite,
            may_manage: profile.may_manage && own.manage,
            sealing_key: admission.sealing_key,
            admitted_by: (!founder).then_some(record.statement().author),
            create_ms: record.statement().create_ms,
            revoked,
        })
    }
}

/// True for what can take something away.
fn restricts(statement: &Statement) -> bool {
    match &statement.kind {
        Kind::Revocation { .. } => true,
        Kind::Member { profile, .. } => !profile.may_invite || !profile.may_manage,
        _ => false,
    }
}
