//! Statements of this node.

use super::kept::Batch;
use super::record::{Admission, Kind, Profile, Record, Statement};
use super::view::{Member, View};
use super::{Ledger, Office, evaluate, names, sealing_key};
use common::error::{Error, Reason, Result};
use common::identity::random_bytes;
use common::model::{DeviceId, fold};

/// What changes of a member; `None` stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberPatch {
    /// May invite others.
    pub may_invite: Option<bool>,
    /// May revoke others and change members.
    pub may_manage: Option<bool>,
    /// The person that the machine belongs to.
    pub person: Option<String>,
    /// Between office and machine in its name.
    pub unit: Option<String>,
    /// The machine's name.
    pub display_name: Option<String>,
}

pub(super) fn denied(what: &str) -> Error {
    Error::new(Reason::AccessDenied, format!("this machine may not {what}"))
        .why_is("the right to invite and the right to manage are given to machines, one by one")
        .fix_is("ask somebody who may; `atrium members` shows who may what")
}

fn require_manage(own: &Member) -> Result<()> {
    if own.may_manage { Ok(()) } else { Err(denied("change members, groups or the server")) }
}

/// Refuses to leave nobody who could manage the office.
fn keep_a_manager(view: &View, without: &DeviceId) -> Result<()> {
    let other = view.present().any(|m| m.may_manage && m.device != *without);
    let losing = view.member(without).is_some_and(|m| m.may_manage && !m.revoked);
    if losing && !other {
        return Err(Error::new(Reason::LastAdmin, "this is the last machine that may manage the office")
            .fix_is("give the right to another machine first: `atrium members change --may-manage`"));
    }
    Ok(())
}

fn check_profile(profile: &Profile) -> Result<()> {
    names::check_machine(&profile.display_name)?;
    names::check_principal(&profile.person, "person")?;
    names::check_unit(&profile.unit)
}

/// The next revision of a thing of which these were stated.
fn next_revision(revisions: impl Iterator<Item = u64>) -> u64 {
    revisions.max().unwrap_or(0).saturating_add(1)
}

impl Office {
    /// Founds an office; this device is its first member, with all rights. Durable when this returns.
    ///
    /// # Errors
    /// ALREADY_JOINED, FIELD_INVALID; those of the store.
    pub async fn create(&self, name: &str, display_name: &str, person: &str, unit: &str) -> Result<()> {
        let (display_name, person, unit) = (display_name.to_owned(), person.to_owned(), unit.to_owned());
        let profile = Profile { display_name, person, unit, may_invite: true, may_manage: true };
        names::check_office(name)?;
        check_profile(&profile)?;
        let (office, name) = (self.clone(), name.to_owned());
        self.in_turn(async move {
            office.require_outside()?;
            let key = &office.0.key;
            let member = Admission::new(key.public_key(), sealing_key(key)?, profile);
            let kind = Kind::Founding { office: name, nonce: random_bytes(), member };
            let record = Record::sign(key, &office.statement(None, 1, None, kind))?;
            office.enter(vec![record], Vec::new()).await
        })
        .await
    }

    /// Changes a member's rights, person, unit or name.
    ///
    /// # Errors
    /// NOT_JOINED, ACCESS_DENIED, MEMBER_UNKNOWN, FIELD_INVALID, LAST_ADMIN, OFFICE_FULL; those of the store.
    pub async fn change_member(&self, device: DeviceId, patch: MemberPatch) -> Result<()> {
        self.author(Batch::default(), move |ledger, view, own| {
            require_manage(own)?;
            let member = view
                .member(&device)
                .filter(|m| !m.revoked)
                .ok_or_else(|| Error::new(Reason::MemberUnknown, "there is no such member"))?;
            let profile = Profile {
                display_name: patch.display_name.unwrap_or_else(|| member.display_name.clone()),
                person: patch.person.unwrap_or_else(|| member.person.clone()),
                unit: patch.unit.unwrap_or_else(|| member.unit.clone()),
                may_invite: patch.may_invite.unwrap_or(member.may_invite),
                may_manage: patch.may_manage.unwrap_or(member.may_manage),
            };
            check_profile(&profile)?;
            if profile.may_invite && !member.may_invite && !own.may_invite {
                return Err(denied("give a right that it does not have itself"));
            }
            if !profile.may_manage {
                keep_a_manager(view, &device)?;
            }
            let revisions = ledger.statements().filter_map(|s| match &s.kind {
                Kind::Member { device: d, revision, .. } if *d == device => Some(*revision),
                _ => None,
            });
            let (heads, _) = ledger.heads(&device);
            Ok(vec![Kind::Member { device, revision: next_revision(revisions), profile, heads }])
        })
        .await
        .map(drop)
    }

    /// Cuts a device off, for ever. A member may also cut itself off: it leaves.
    ///
    /// # Errors
    /// NOT_JOINED, ACCESS_DENIED, MEMBER_UNKNOWN, FIELD_INVALID, LAST_ADMIN; those of the store.
    pub async fn revoke(&self, device: DeviceId, reason: &str) -> Result<()> {
        if reason.len() > super::record::MAX_REASON_BYTES || reason.chars().any(char::is_control) {
            return Err(Error::new(Reason::FieldInvalid, "the reason is longer than 512 bytes or not one line"));
        }
        let reason = reason.to_owned();
        self.author(Batch::default(), move |ledger, view, own| {
            if device != own.device {
                require_manage(own)?;
            }
            if view.revoked(&device) {
                return Ok(Vec::new());
            }
            if !view.is_member(&device) {
                return Err(Error::new(Reason::MemberUnknown, "there is no such member"));
            }
            keep_a_manager(view, &device)?;
            let (heads, last_sequence) = ledger.heads(&device);
            Ok(vec![Kind::Revocation { device, last_sequence, heads, reason }])
        })
        .await
        .map(drop)
    }

    /// Adds persons to a group and removes others; makes the group if it is not there, or removes it.
    ///
    /// # Errors
    /// NOT_JOINED, ACCESS_DENIED, FIELD_INVALID, GROUP_UNKNOWN if one that is not there is to be removed,
    /// GROUP_TOO_LARGE; those of the store.
    pub async fn set_group(&self, group: &str, add: Vec<String>, remove: Vec<String>, removed: bool) -> Result<()> {
        names::check_principal(group, "group")?;
        add.iter().try_for_each(|person| names::check_principal(person, "persons"))?;
        let group = group.to_owned();
        self.author(Batch::default(), move |ledger, view, own| {
            require_manage(own)?;
            let key = fold(&group);
            let present = view.groups().iter().find(|(name, _)| fold(name) == key);
            if removed && present.is_none() {
                return Err(Error::new(Reason::GroupUnknown, "there is no such group"));
            }
            let name = present.map_or(group, |(name, _)| name.clone());
            let mut persons = present.map(|(_, persons)| persons.clone()).unwrap_or_default();
            for person in add {
                if !persons.iter().any(|p| fold(p) == fold(&person)) {
                    persons.push(person);
                }
            }
            persons.retain(|p| !remove.iter().any(|r| fold(r) == fold(p)));
            persons.sort();
            if persons.len() > super::record::MAX_GROUP_PERSONS {
                return Err(Error::new(Reason::GroupTooLarge, "a group has at most 500 persons"));
            }
            let revisions = ledger.statements().filter_map(|s| match &s.kind {
                Kind::Group { group, revision, .. } if fold(group) == key => Some(*revision),
                _ => None,
            });
            let revision = next_revision(revisions);
            let persons = if removed { Vec::new() } else { persons };
            Ok(vec![Kind::Group { group: name, revision, persons, removed }])
        })
        .await
        .map(drop)
    }

    /// Says that the office has a central server; an empty address says that it has none.
    ///
    /// # Errors
    /// NOT_JOINED, ACCESS_DENIED, RECORD_INVALID if address or certificates are too long; those of the store.
    pub async fn set_server(&self, server: &str, ca_pem: &str) -> Result<()> {
        let (server, ca_pem) = (server.to_owned(), ca_pem.to_owned());
        self.author(Batch::default(), move |ledger, _, own| {
            require_manage(own)?;
            let revisions = ledger.statements().filter_map(|s| match &s.kind {
                Kind::Server { revision, .. } => Some(*revision),
                _ => None,
            });
            Ok(vec![Kind::Server { revision: next_revision(revisions), server, ca_pem }])
        })
        .await
        .map(drop)
    }

    /// Makes statements of this node: drafts them over what is known, signs them, writes them together with `also`, and
    /// then lets them count. The draft may state nothing.
    pub(super) async fn author<F>(&self, also: Batch, draft: F) -> Result<Vec<Record>>
    where
        F: FnOnce(&Ledger, &View, &Member) -> Result<Vec<Kind>> + Send + 'static,
    {
        let office = self.clone();
        self.in_turn(async move {
            let records = office.draft(draft)?;
            also.records(&records).write(&office.0.store).await?;
            office.adopt(records.clone(), None).await;
            Ok(records)
        })
        .await
    }

    /// Runs one such task after the other, each to its end even if the caller goes away.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let office = self.clone();
        let task = tokio::spawn(async move {
            let _turn = office.0.authoring.acquire().await;
            task.await
        });
        task.await.unwrap_or_else(|e| Err(Error::internal("a statement was not made").caused_by(e)))
    }

    fn draft<F>(&self, draft: F) -> Result<Vec<Record>>
    where
        F: FnOnce(&Ledger, &View, &Member) -> Result<Vec<Kind>>,
    {
        let state = self.0.state.lock();
        let me = self.me();
        let ledger = state.ledger.as_ref();
        let view = ledger.map_or_else(|| View::empty(me), |ledger| evaluate(ledger, me));
        let own = self.present(&view)?;
        let Some(ledger) = ledger else { return Ok(Vec::new()) };
        let kinds = draft(ledger, &view, own)?;
        let ends = kinds.iter().any(|k| matches!(k, Kind::Revocation { .. }));
        if !ends && !ledger.has_room(&me, kinds.len()) {
            return Err(Error::new(Reason::OfficeFull, "no more membership records fit"));
        }
        let (mut sequence, mut previous) = ledger.next(&me);
        let mut records = Vec::with_capacity(kinds.len());
        for kind in kinds {
            let record = Record::sign(&self.0.key, &self.statement(Some(ledger), sequence, previous, kind))?;
            (sequence, previous) = (sequence.saturating_add(1), Some(record.statement_id()));
            records.push(record);
        }
        Ok(records)
    }

    fn statement(
        &self,
        ledger: Option<&Ledger>,
        sequence: u64,
        previous: Option<super::StatementId>,
        kind: Kind,
    ) -> Statement {
        Statement {
            office: ledger.map(Ledger::office),
            author_key: self.0.key.public_key(),
            author: self.me(),
            sequence,
            previous,
            create_ms: self.0.clock.now_ms(),
            kind,
        }
    }
}
