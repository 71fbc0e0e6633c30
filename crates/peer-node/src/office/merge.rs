//! Records and announcements that come in: checked, written, then counted and passed on.

use super::announce::{Announced, Announcement, Difference, MAX_IN_MESSAGE, MAX_MESSAGE_BYTES, NodeInfo};
use super::kept::Batch;
use super::record::{Kind, Record, RecordId, id_of};
use super::{Lacking, Ledger, News, Office, evaluate};
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use proto::peer::v1 as peer;
use std::sync::Arc;

/// Most records in one message.
pub const MAX_PUSH_RECORDS: usize = 512;
/// Most bytes of records in one message, about.
pub const MAX_PUSH_BYTES: usize = 2 << 20;

/// What became of records that came in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergeReport {
    /// Were new and are kept, in the store, now.
    pub accepted: Vec<RecordId>,
    /// Were known.
    pub known: usize,
    /// Signed well, but the author's right to it is not known here yet.
    pub early: usize,
    /// Malformed, forged, of another office, or beyond the bound.
    pub refused: usize,
    /// What was wrong with the first of those that no honest node sends on: forged or malformed.
    pub problem: Option<String>,
}

impl Office {
    /// Fails if this node belongs to an office already.
    pub(super) fn require_outside(&self) -> Result<()> {
        match self.0.state.lock().ledger {
            Some(_) => Err(Error::new(Reason::AlreadyJoined, "this machine belongs to an office already")
                .fix_is("stop the node and remove its data directory to begin anew")),
            None => Ok(()),
        }
    }

    /// Enters an office with these records, of which one founds it: writes them and lets them count.
    pub(super) async fn enter(&self, records: Vec<Record>, announcements: Vec<Announcement>) -> Result<()> {
        let ledger = Ledger::of(records)?;
        let kept: Vec<Record> = ledger.records().cloned().collect();
        Batch::default().records(&kept).write(&self.0.store).await?;
        Batch::default().founding(&ledger.founding().id()).write(&self.0.store).await?;
        {
            let mut state = self.0.state.lock();
            let view = Arc::new(evaluate(&ledger, self.me()));
            state.ledger = Some(ledger);
            self.0.view.send_replace(view);
        }
        self.take_announcements(announcements, None).await?;
        let ids = kept.iter().map(Record::id).collect();
        self.tell(News::Records { ids, urgent: false, from: None });
        Ok(())
    }

    /// Takes in records from outside. Those that are accepted are in the store, count, and are on their way to the
    /// neighbours when this returns.
    ///
    /// # Errors
    /// NOT_JOINED; those of the store, and nothing was accepted then.
    pub async fn merge(&self, records: Vec<peer::Record>, from: Option<DeviceId>) -> Result<MergeReport> {
        let office = self.clone();
        // To its end even if the caller goes away: what is written must count.
        let task = tokio::spawn(async move { office.merge_now(records, from).await });
        task.await.unwrap_or_else(|e| Err(Error::internal("records were not taken in").caused_by(e)))
    }

    async fn merge_now(&self, wire: Vec<peer::Record>, from: Option<DeviceId>) -> Result<MergeReport> {
        let office = self.clone();
        let sifted = tokio::task::spawn_blocking(move || office.sift(&wire));
        let (records, mut report) =
            sifted.await.unwrap_or_else(|e| Err(Error::internal("records were not checked").caused_by(e)))?;
        if !records.is_empty() {
            Batch::default().records(&records).write(&self.0.store).await?;
            let (accepted, refused) = self.adopt(records, from).await;
            report.accepted = accepted;
            report.refused += refused;
        }
        if let (true, Some(from)) = (report.early > 0, from) {
            self.tell(News::Behind(from));
        }
        Ok(report)
    }

    /// Which of these can be kept: well formed, well signed, of this office, by someone with the right to it.
    fn sift(&self, wire: &[peer::Record]) -> Result<(Vec<Record>, MergeReport)> {
        let mut report = MergeReport::default();
        let known = |id: RecordId| self.with_ledger(|l| l.contains(&id));
        let mut read = Vec::new();
        for record in wire {
            let no_office = || Error::new(Reason::NotJoined, "this machine belongs to no office");
            if known(id_of(record)).ok_or_else(no_office)? {
                report.known += 1;
                continue;
            }
            match Record::read(record) {
                Ok(record) => read.push(record),
                Err(error) => {
                    report.refused += 1;
                    report.problem.get_or_insert_with(|| error.message().to_owned());
                }
            }
        }
        let sifted = self.with_ledger(|ledger| {
            let (good, rest) = ledger.sift(read);
            let over = good.len();
            // Beyond the bounds nothing is written; what exactly stays is decided when they are taken in.
            let good: Vec<Record> = good.into_iter().filter(|r| ledger.may_fit(r)).collect();
            report.early += rest.early.len();
            report.refused += rest.refused.len() + (over - good.len());
            good
        });
        Ok((sifted.unwrap_or_default(), report))
    }

    /// Lets records count that are in the store. Gives back those that are new, and how many had no place.
    pub(super) async fn adopt(&self, records: Vec<Record>, from: Option<DeviceId>) -> (Vec<RecordId>, usize) {
        let office = self.clone();
        let adopted = tokio::task::spawn_blocking(move || office.adopt_now(records, from));
        let (accepted, refused, gone, strangers) = adopted.await.unwrap_or_default();
        if !gone.is_empty() || !strangers.is_empty() {
            // Only saves room: what is left over is sorted out again at the next start.
            let batch = Batch::default().without(&gone).without_announcements(&strangers);
            if let Err(error) = batch.write(&self.0.store).await {
                tracing::warn!(error = ?error, "superseded records stay in the store");
            }
        }
        (accepted, refused)
    }

    fn adopt_now(
        &self,
        records: Vec<Record>,
        from: Option<DeviceId>,
    ) -> (Vec<RecordId>, usize, Vec<RecordId>, Vec<DeviceId>) {
        let mut state = self.0.state.lock();
        let state = &mut *state;
        let Some(ledger) = state.ledger.as_mut() else { return Default::default() };
        let given: Vec<RecordId> = records.iter().map(Record::id).collect();
        let inserted = ledger.insert(records);
        let mut gone = inserted.evicted.clone();
        gone.extend(given.into_iter().filter(|id| !ledger.contains(id)));
        if inserted.accepted.is_empty() && inserted.evicted.is_empty() {
            return (Vec::new(), inserted.refused.len(), gone, Vec::new());
        }
        let view = Arc::new(evaluate(ledger, self.me()));
        let strangers = state.board.drop_strangers(&view);
        let cuts = |id: &RecordId| {
            ledger.get(id).is_some_and(|r| matches!(r.statement().kind, Kind::Revocation { .. } | Kind::Member { .. }))
        };
        let urgent = inserted.accepted.iter().any(cuts);
        // Under the lock, so that a later view is never overtaken by an earlier one.
        self.0.view.send_replace(view);
        self.tell(News::Records { ids: inserted.accepted.clone().into(), urgent, from });
        (inserted.accepted, inserted.refused.len(), gone, strangers)
    }

    /// Answers [`peer::ExchangeRecordsRequest`]: what the other side lacks, at most 512 records and 2 MiB, and what this
    /// side lacks.
    pub fn lacking(&self, theirs: &[RecordId]) -> Lacking {
        self.with_ledger(|ledger| ledger.lacking(theirs, MAX_PUSH_RECORDS, MAX_PUSH_BYTES)).unwrap_or_default()
    }

    /// Records by id, those that are here, in parts that fit into one message each.
    pub fn pages(&self, ids: &[RecordId]) -> Vec<Vec<Record>> {
        let found = self.with_ledger(|ledger| ids.iter().filter_map(|id| ledger.get(id).cloned()).collect());
        let mut rest: Vec<Record> = found.unwrap_or_default();
        let mut pages = Vec::new();
        while !rest.is_empty() {
            let mut page = rest.clone();
            super::cut(&mut page, MAX_PUSH_RECORDS, MAX_PUSH_BYTES);
            rest.drain(..page.len());
            pages.push(page);
        }
        pages
    }

    /// Announces this node: signs, writes, and sends it on its way. The sequence is the clock's milliseconds, or one more
    /// than the last if that is not greater.
    ///
    /// # Errors
    /// NOT_JOINED, DEVICE_REVOKED, RECORD_INVALID; those of the store.
    pub async fn announce(&self, announced: Announced) -> Result<Announcement> {
        let view = self.view();
        self.present(&view)?;
        let me = self.me();
        let last = self.announcement(&me).map_or(0, |a| a.info().sequence);
        let info = NodeInfo {
            office: view.office_id().ok_or_else(|| Error::internal("a member without an office"))?,
            device_key: self.0.key.public_key(),
            device: me,
            sequence: self.0.clock.now_ms().max(last.saturating_add(1)),
            node_name: view.node_name(&me),
            addresses: announced.addresses,
            version: announced.version,
            relays: announced.relays,
            keeps_parcels: announced.keeps_parcels,
            instance: announced.instance,
        };
        let announcement = Announcement::sign(&self.0.key, &info)?;
        self.take_announcements(vec![announcement.clone()], None).await?;
        Ok(announcement)
    }

    /// The newest announcement of a device.
    pub fn announcement(&self, device: &DeviceId) -> Option<Announcement> {
        self.0.state.lock().board.get(device).cloned()
    }

    /// The newest announcement of every present member, this one included.
    pub fn announcements(&self) -> Vec<Announcement> {
        self.0.state.lock().board.all().cloned().collect()
    }

    /// Announcements of these devices, as many as fit in one message.
    pub fn page_of_announcements(&self, devices: impl Iterator<Item = DeviceId>) -> Vec<Announcement> {
        let state = self.0.state.lock();
        let mut bytes = 0;
        let fits = |a: &&Announcement| {
            bytes += a.size_bytes();
            bytes <= MAX_MESSAGE_BYTES
        };
        let found = devices.take(MAX_IN_MESSAGE).filter_map(|d| state.board.get(&d));
        found.take_while(fits).cloned().collect()
    }

    /// BLAKE3 over the (device id, sequence) pairs of the announcements.
    pub fn announcements_digest(&self) -> [u8; 32] {
        self.0.state.lock().board.digest()
    }

    /// Device id and sequence of each announcement, joined.
    pub fn announcements_held(&self) -> Vec<u8> {
        self.0.state.lock().board.held()
    }

    /// The announcements compared with what another one holds.
    ///
    /// # Errors
    /// FIELD_INVALID if `held` is not such a list.
    pub fn compare_announcements(&self, held: &[u8]) -> Result<Difference> {
        self.0.state.lock().board.compare(held)
    }

    /// Takes in announcements from outside; gives back how many were newer. Malformed ones and those of strangers are
    /// passed over.
    ///
    /// # Errors
    /// Those of the store; they count nevertheless, since the next start only has to learn them again.
    pub async fn merge_announcements(&self, wire: Vec<peer::Announcement>, from: Option<DeviceId>) -> Result<usize> {
        let office = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let view = office.view();
            let newer = |a: &Announcement| {
                let here = office.announcement(&a.info().device).map_or(0, |h| h.info().sequence);
                view.is_member(&a.info().device) && a.info().sequence > here
            };
            // The signature last: it costs the most.
            let read = wire.iter().filter(|w| Announcement::decode(w).is_ok_and(|a| newer(&a)));
            read.filter_map(|w| Announcement::read(w).ok()).collect()
        });
        let read = read.await.map_err(|e| Error::internal("announcements were not checked").caused_by(e))?;
        self.take_announcements(read, from).await
    }

    async fn take_announcements(&self, announcements: Vec<Announcement>, from: Option<DeviceId>) -> Result<usize> {
        let taken: Vec<Announcement> = {
            let view = self.view();
            let mut state = self.0.state.lock();
            announcements.into_iter().filter(|a| state.board.take(a.clone(), &view)).collect()
        };
        if taken.is_empty() {
            return Ok(0);
        }
        let written = Batch::default().announcements(&taken).write(&self.0.store).await;
        self.tell(News::Announcements { from });
        written.map(|()| taken.len())
    }
}
