//! The set of records that a node keeps.
//!
//! A record is kept if it is of this office and its author ever had the right to make it ([`Closure`]). That grows with
//! the set only, so nodes that have seen the same records keep the same ones, whatever the order; a record that comes
//! before what gives its author the right is *early*: it is passed over and comes again with the next exchange.
//!
//! Bounds: 4,096 records of one author, of which those with the smallest (sequence, id) are kept, so that all nodes keep
//! the same ones of a flood; 20,000 in all, and 1,000 more for revocations, so that a flood can always be ended. Beyond
//! that new records are refused. Memory: about 1 KiB a record, 16 KiB at most.

use super::closure::Closure;
use super::record::{Kind, MAX_HEADS, Record, RecordId, Rights, Statement, StatementId};
use crate::model::OfficeId;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Most records of one author.
pub const MAX_AUTHOR_RECORDS: usize = 4_096;
/// Most records in all.
pub const MAX_RECORDS: usize = 20_000;
/// Revocations that are taken beyond that.
pub const REVOCATION_RESERVE: usize = 1_000;

/// Records of one office.
#[derive(Clone, Debug)]
pub struct Ledger {
    office: OfficeId,
    founding: RecordId,
    records: BTreeMap<RecordId, Record>,
    by_author: HashMap<DeviceId, BTreeMap<(u64, RecordId), StatementId>>,
    by_statement: HashMap<StatementId, RecordId>,
    closure: Closure,
    digest: [u8; 32],
}

/// What became of records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inserted {
    /// Are kept now and were not before.
    pub accepted: Vec<RecordId>,
    /// Were kept and are not any more: they gave way to smaller ones of their author.
    pub evicted: Vec<RecordId>,
    /// Author's right is not known yet.
    pub early: Vec<RecordId>,
    /// Authors of which there are too many, or of another office.
    pub refused: Vec<DeviceId>,
}

/// What one side of an exchange lacks.
#[derive(Clone, Debug, Default)]
pub struct Lacking {
    /// The other side lacks these, in an order in which they can be taken.
    pub records: Vec<Record>,
    /// There are more.
    pub more: bool,
    /// This side lacks these.
    pub wanted: Vec<RecordId>,
}

impl Ledger {
    /// The set with only the founding record.
    ///
    /// # Errors
    /// RECORD_INVALID if the record founds nothing.
    pub fn found(record: Record) -> Result<Self> {
        if !matches!(record.statement().kind, Kind::Founding { .. }) {
            return Err(Error::new(Reason::RecordInvalid, "the first membership record founds no office"));
        }
        let mut ledger = Self {
            office: record.office(),
            founding: record.id(),
            records: BTreeMap::new(),
            by_author: HashMap::new(),
            by_statement: HashMap::new(),
            closure: Closure::default(),
            digest: [0; 32],
        };
        ledger.put(record);
        ledger.refresh();
        Ok(ledger)
    }

    /// From records of which one founds the office; order does not matter.
    ///
    /// # Errors
    /// RECORD_INVALID if none does.
    pub fn of(records: Vec<Record>) -> Result<Self> {
        let founding = records.iter().find(|r| matches!(r.statement().kind, Kind::Founding { .. })).cloned();
        let founding =
            founding.ok_or_else(|| Error::new(Reason::RecordInvalid, "no membership record founds an office"))?;
        let mut ledger = Self::found(founding)?;
        ledger.insert(records);
        Ok(ledger)
    }

    /// Which of these would be kept, without keeping them. [`Inserted::accepted`] and `evicted` are empty.
    pub fn sift(&self, records: Vec<Record>) -> (Vec<Record>, Inserted) {
        let mut result = Inserted::default();
        let mut new: BTreeMap<RecordId, Record> = BTreeMap::new();
        for record in records {
            if record.office() != self.office {
                result.refused.push(record.statement().author);
            } else if !self.contains(&record.id()) {
                new.insert(record.id(), record);
            }
        }
        if new.is_empty() {
            return (Vec::new(), result);
        }
        let closure = Closure::of(self.statements().chain(new.values().map(Record::statement)));
        let (mut good, early): (Vec<Record>, Vec<Record>) =
            new.into_values().partition(|r| closure.allows(r.statement()));
        result.early = early.iter().map(Record::id).collect();
        // In the order of their place in their author's chain, so that the smaller ones need not push out the greater.
        good.sort_by_key(|r| (r.statement().sequence, r.id()));
        (good, result)
    }

    /// Takes records in.
    pub fn insert(&mut self, records: Vec<Record>) -> Inserted {
        let (good, mut result) = self.sift(records);
        for record in good {
            if self.make_room(&record, &mut result.evicted) {
                result.accepted.push(record.id());
                self.put(record);
            } else {
                result.refused.push(record.statement().author);
            }
        }
        if !result.evicted.is_empty() {
            let evicted: HashSet<RecordId> = result.evicted.iter().copied().collect();
            result.accepted.retain(|id| !evicted.contains(id));
        }
        if !result.accepted.is_empty() || !result.evicted.is_empty() {
            self.refresh();
        }
        result
    }

    /// True if one more of this author has a place; may push out a greater one of the same author.
    fn make_room(&mut self, record: &Record, evicted: &mut Vec<RecordId>) -> bool {
        let statement = record.statement();
        let own = self.by_author.get(&statement.author);
        if own.map_or(0, BTreeMap::len) >= MAX_AUTHOR_RECORDS {
            let last = own.and_then(|o| o.keys().next_back().copied());
            return match last {
                Some(last) if last > (statement.sequence, record.id()) && last.1 != self.founding => {
                    self.remove(&last.1);
                    evicted.push(last.1);
                    true
                }
                _ => false,
            };
        }
        self.records.len() < most(statement)
    }

    /// True if it could have a place now.
    pub fn may_fit(&self, record: &Record) -> bool {
        let statement = record.statement();
        match self.by_author.get(&statement.author) {
            Some(own) if own.len() >= MAX_AUTHOR_RECORDS => {
                own.keys().next_back().is_some_and(|last| *last > (statement.sequence, record.id()))
            }
            _ => self.records.len() < most(statement),
        }
    }

    fn put(&mut self, record: Record) {
        let statement = record.statement();
        let own = self.by_author.entry(statement.author).or_default();
        own.insert((statement.sequence, record.id()), record.statement_id());
        self.by_statement.insert(record.statement_id(), record.id());
        self.records.insert(record.id(), record);
    }

    fn remove(&mut self, id: &RecordId) {
        let Some(record) = self.records.remove(id) else { return };
        let statement = record.statement();
        if let Some(own) = self.by_author.get_mut(&statement.author) {
            own.remove(&(statement.sequence, *id));
            // The same statement may be there with another signature.
            let twin = own.iter().find(|(_, s)| **s == record.statement_id()).map(|((_, id), _)| *id);
            match twin {
                Some(twin) => self.by_statement.insert(record.statement_id(), twin),
                None => self.by_statement.remove(&record.statement_id()),
            };
        }
    }

    fn refresh(&mut self) {
        self.closure = Closure::of(self.records.values().map(Record::statement));
        let mut hasher = blake3::Hasher::new();
        for id in self.records.keys() {
            hasher.update(&id.0);
        }
        self.digest = *hasher.finalize().as_bytes();
    }

    /// Which office.
    pub fn office(&self) -> OfficeId {
        self.office
    }

    /// BLAKE3 over the sorted ids.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Never: the founding record is always there.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// True if it is kept.
    pub fn contains(&self, id: &RecordId) -> bool {
        self.records.contains_key(id)
    }

    /// A record.
    pub fn get(&self, id: &RecordId) -> Option<&Record> {
        self.records.get(id)
    }

    /// All records in order of ids.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// The founding record.
    pub fn founding(&self) -> &Record {
        &self.records[&self.founding]
    }

    /// All ids in order.
    pub fn ids(&self) -> impl Iterator<Item = RecordId> + '_ {
        self.records.keys().copied()
    }

    /// All statements.
    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        self.records.values().map(Record::statement)
    }

    /// Who ever had which right, over all that is kept.
    pub fn closure(&self) -> &Closure {
        &self.closure
    }

    /// Records of one author in order of sequence.
    pub fn by<'a>(&'a self, author: &DeviceId) -> impl Iterator<Item = &'a Record> + use<'a> {
        self.by_author.get(author).into_iter().flatten().filter_map(|((_, id), _)| self.records.get(id))
    }

    /// True if one more record of this author would be kept.
    pub fn has_room(&self, author: &DeviceId, count: usize) -> bool {
        let own = self.by_author.get(author).map_or(0, BTreeMap::len);
        own + count <= MAX_AUTHOR_RECORDS && self.records.len() + count <= MAX_RECORDS
    }

    /// The place of the author's next statement: its sequence, and the one before it.
    pub fn next(&self, author: &DeviceId) -> (u64, Option<StatementId>) {
        let last = self.by_author.get(author).and_then(|own| own.last_key_value());
        last.map_or((1, None), |((sequence, _), statement)| (sequence.saturating_add(1), Some(*statement)))
    }

    /// The device's last statements, for a revocation or change: naming them names all of its statements that are kept.
    /// More than one if the device went on from an old copy of its data. The second value is the greatest sequence.
    pub fn heads(&self, device: &DeviceId) -> (Vec<StatementId>, u64) {
        let mut own: Vec<&Record> = self.by(device).collect();
        own.reverse();
        let last = own.first().map_or(0, |r| r.statement().sequence);
        let (mut heads, mut covered) = (Vec::new(), HashSet::new());
        for record in own {
            if heads.len() < MAX_HEADS && !covered.contains(&record.statement_id()) {
                heads.push(record.statement_id());
                self.cover(device, record.statement_id(), &mut covered);
            }
        }
        (heads, last)
    }

    /// The statements of the device that are among these or before one of them.
    pub fn covered(&self, device: &DeviceId, heads: &[StatementId]) -> HashSet<StatementId> {
        let mut covered = HashSet::new();
        for head in heads {
            self.cover(device, *head, &mut covered);
        }
        covered
    }

    fn cover(&self, device: &DeviceId, head: StatementId, covered: &mut HashSet<StatementId>) {
        let mut next = Some((head, u64::MAX));
        while let Some((id, before)) = next.take() {
            let Some(statement) = self.by_statement.get(&id).and_then(|r| self.records.get(r)).map(Record::statement)
            else {
                return;
            };
            if statement.author == *device && statement.sequence < before && covered.insert(id) {
                next = statement.previous.map(|p| (p, statement.sequence));
            }
        }
    }

    /// Sorts records so that what gives a right mostly comes before what needs it.
    fn in_order(&self, records: &mut [Record]) {
        records.sort_by_cached_key(|r| {
            let statement = r.statement();
            (self.closure.rank(&statement.author).0, statement.sequence, r.id())
        });
    }

    /// What the one who holds `theirs` lacks (at most `count` records and `bytes` bytes), and what it has that is not
    /// here.
    pub fn lacking(&self, theirs: &[RecordId], count: usize, bytes: usize) -> Lacking {
        let theirs: BTreeSet<RecordId> = theirs.iter().copied().collect();
        let wanted = theirs.iter().filter(|id| !self.contains(id)).copied().collect();
        let mut records: Vec<Record> =
            self.records.iter().filter(|(id, _)| !theirs.contains(id)).map(|(_, r)| r.clone()).collect();
        self.in_order(&mut records);
        let more = cut(&mut records, count, bytes);
        Lacking { records, more, wanted }
    }

    /// All records, the founding one first, then what `proof` names, then the rest, up to this many bytes.
    pub fn whole(&self, device: &DeviceId, bytes: usize) -> Vec<Record> {
        let mut records = self.proof(device);
        let first: HashSet<RecordId> = records.iter().map(Record::id).collect();
        let mut rest: Vec<Record> = self.records.values().filter(|r| !first.contains(&r.id())).cloned().collect();
        self.in_order(&mut rest);
        records.append(&mut rest);
        cut(&mut records, MAX_RECORDS + REVOCATION_RESERVE, bytes);
        records
    }

    /// Records that make a device a member, the founding one first: its admission, what gave its admitter the right to
    /// it, and so on.
    pub fn proof(&self, device: &DeviceId) -> Vec<Record> {
        self.with_chains(self.support(*device, Rights { member: true, ..Rights::default() }))
    }

    /// Adds the other statements of those authors that something restricts: whether a statement is before the heads that
    /// a restriction names is seen only from the whole chain.
    fn with_chains(&self, mut records: Vec<Record>) -> Vec<Record> {
        let target = |s: &Statement| match &s.kind {
            Kind::Revocation { device, .. } | Kind::Member { device, .. } => Some(*device),
            _ => None,
        };
        let restricted: BTreeSet<DeviceId> = self.statements().filter_map(target).collect();
        let authors: BTreeSet<DeviceId> = records.iter().map(|r| r.statement().author).collect();
        let known: HashSet<RecordId> = records.iter().map(Record::id).collect();
        for author in authors.intersection(&restricted) {
            records.extend(self.by(author).filter(|r| !known.contains(&r.id())).cloned());
        }
        records
    }

    /// Records that give a device these rights, the founding one first.
    fn support(&self, device: DeviceId, rights: Rights) -> Vec<Record> {
        let mut proof = vec![self.founding().clone()];
        let mut seen = HashSet::new();
        let mut needs = one_by_one(device, rights);
        while let Some((device, right)) = needs.pop() {
            let founder = device == self.founding().statement().author;
            if founder || !seen.insert((device, right)) {
                continue;
            }
            let giver = self.records.values().filter(|r| self.gives(r.statement(), &device, right));
            if let Some(record) = giver.min_by_key(|r| self.closure.rank(&r.statement().author)) {
                let author = record.statement().author;
                needs.extend(one_by_one(author, record.statement().needs().or(right)));
                if !proof.contains(record) {
                    proof.push(record.clone());
                }
            }
        }
        proof
    }

    /// Records that show why a device is no member: what restricts it or those to whom it owes its admission, and what
    /// gives the authors of that the right to it.
    pub fn why_out(&self, device: &DeviceId) -> Vec<Record> {
        let mut chain = vec![*device];
        let mut at = 0;
        while let Some(device) = chain.get(at).copied() {
            let admits = |s: &&Statement| s.admits().is_some_and(|a| a.device == device);
            let authors: BTreeSet<DeviceId> = self.statements().filter(admits).map(|s| s.author).collect();
            chain.extend(authors.into_iter().filter(|a| !chain.contains(a)).collect::<Vec<_>>());
            at += 1;
        }
        let restricts = |r: &&Record| match &r.statement().kind {
            Kind::Revocation { device, .. } | Kind::Member { device, .. } => chain.contains(device),
            _ => false,
        };
        let mut why: Vec<Record> = Vec::new();
        for record in self.records.values().filter(restricts) {
            let needed = self.support(record.statement().author, record.statement().needs());
            for one in needed.into_iter().chain([record.clone()]) {
                if !why.contains(&one) {
                    why.push(one);
                }
            }
        }
        self.with_chains(why)
    }

    fn gives(&self, statement: &Statement, to: &DeviceId, right: Rights) -> bool {
        if !self.closure.allows(statement) || !self.closure.rights(&statement.author).has(right) {
            return false;
        }
        match &statement.kind {
            Kind::Admission(a) => a.device == *to && Rights { member: true, ..a.profile.rights() }.has(right),
            Kind::Member { device, profile, .. } => device == to && profile.rights().has(right),
            _ => false,
        }
    }
}

/// Rights of a device, each by itself.
fn one_by_one(device: DeviceId, rights: Rights) -> Vec<(DeviceId, Rights)> {
    let none = Rights::default();
    let single = [
        Rights { member: rights.member, ..none },
        Rights { invite: rights.invite, ..none },
        Rights { manage: rights.manage, ..none },
    ];
    single.into_iter().filter(|right| *right != none).map(|right| (device, right)).collect()
}

/// Records that there may be with one like this.
fn most(statement: &Statement) -> usize {
    match statement.kind {
        Kind::Revocation { .. } => MAX_RECORDS + REVOCATION_RESERVE,
        _ => MAX_RECORDS,
    }
}

/// Cuts a list to so many records and bytes, but never to nothing. True if something was cut off.
pub fn cut(records: &mut Vec<Record>, count: usize, bytes: usize) -> bool {
    let mut sum = 0usize;
    let fitting = records.iter().take_while(|r| {
        sum = sum.saturating_add(r.size_bytes());
        sum <= bytes
    });
    let keep = fitting.count().max(1).min(count).min(records.len());
    let more = keep < records.len();
    records.truncate(keep);
    more
}
