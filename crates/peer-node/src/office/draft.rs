//! What a member would state, over what it knows: plain functions that decide, without signing or writing.

use super::ledger::Ledger;
use super::names;
use super::record::{Admission, Kind, MAX_GROUP_PERSONS, Profile, Record, Statement};
use super::view::{Member, View, check_member};
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
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

/// A member that is about to state something.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    ledger: &'a Ledger,
    view: &'a View,
    own: &'a Member,
}

impl<'a> Draft<'a> {
    /// `view` is of the same ledger and names who drafts.
    ///
    /// # Errors
    /// NOT_A_MEMBER, DEVICE_REVOKED.
    pub fn new(ledger: &'a Ledger, view: &'a View) -> Result<Self> {
        check_member(view, &view.me())?;
        let own = view.member(&view.me()).ok_or_else(|| Error::internal("a member without an entry"))?;
        Ok(Self { ledger, view, own })
    }

    /// Who belongs, as it sees it.
    pub fn view(&self) -> &'a View {
        self.view
    }

    /// A device becomes a member.
    ///
    /// # Errors
    /// ACCESS_DENIED, FIELD_INVALID, DEVICE_REVOKED for one that was cut off, ALREADY_JOINED for a member.
    pub fn admit(&self, device_key: [u8; 32], sealing_key: [u8; 32], profile: Profile) -> Result<Vec<Kind>> {
        if !self.own.may_invite || (profile.may_manage && !self.own.may_manage) {
            return Err(denied("invite others with these rights"));
        }
        check_profile(&profile)?;
        let admission = Admission::new(device_key, sealing_key, profile);
        if self.view.revoked(&admission.device) {
            return Err(Error::new(Reason::DeviceRevoked, "this device was cut off from the office")
                .fix_is("a device that was cut off needs a new key: remove the node's data directory, then join"));
        }
        if self.view.is_member(&admission.device) {
            return Err(Error::new(Reason::AlreadyJoined, "this device is a member already"));
        }
        Ok(vec![Kind::Admission(admission)])
    }

    /// A member changes.
    ///
    /// # Errors
    /// ACCESS_DENIED, MEMBER_UNKNOWN, FIELD_INVALID, LAST_ADMIN.
    pub fn change_member(&self, device: DeviceId, patch: MemberPatch) -> Result<Vec<Kind>> {
        require_manage(self.own)?;
        let member = self
            .view
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
        if profile.may_invite && !self.own.may_invite {
            return Err(denied("give a right that it does not have itself"));
        }
        if !profile.may_manage {
            keep_a_manager(self.view, &device)?;
        }
        let revisions = self.ledger.statements().filter_map(|s| match &s.kind {
            Kind::Member { device: d, revision, .. } if *d == device => Some(*revision),
            _ => None,
        });
        let (heads, _) = self.ledger.heads(&device);
        Ok(vec![Kind::Member { device, revision: next_revision(revisions), profile, heads }])
    }

    /// A device is cut off; nothing if it is already.
    ///
    /// # Errors
    /// ACCESS_DENIED, MEMBER_UNKNOWN, LAST_ADMIN.
    pub fn revoke(&self, device: DeviceId, reason: String) -> Result<Vec<Kind>> {
        if device != self.own.device {
            require_manage(self.own)?;
        }
        if self.view.revoked(&device) {
            return Ok(Vec::new());
        }
        if !self.view.is_member(&device) {
            return Err(Error::new(Reason::MemberUnknown, "there is no such member"));
        }
        keep_a_manager(self.view, &device)?;
        let (heads, last_sequence) = self.ledger.heads(&device);
        Ok(vec![Kind::Revocation { device, last_sequence, heads, reason }])
    }

    /// A group changes.
    ///
    /// # Errors
    /// ACCESS_DENIED, FIELD_INVALID, GROUP_UNKNOWN, GROUP_TOO_LARGE.
    pub fn set_group(&self, group: String, add: Vec<String>, remove: &[String], removed: bool) -> Result<Vec<Kind>> {
        require_manage(self.own)?;
        names::check_principal(&group, "group")?;
        add.iter().try_for_each(|person| names::check_principal(person, "persons"))?;
        let key = fold(&group);
        let present = self.view.groups().iter().find(|(name, _)| fold(name) == key);
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
        if persons.len() > MAX_GROUP_PERSONS {
            return Err(Error::new(Reason::GroupTooLarge, "a group has at most 500 persons"));
        }
        let revisions = self.ledger.statements().filter_map(|s| match &s.kind {
            Kind::Group { group, revision, .. } if fold(group) == key => Some(*revision),
            _ => None,
        });
        let revision = next_revision(revisions);
        let persons = if removed { Vec::new() } else { persons };
        Ok(vec![Kind::Group { group: name, revision, persons, removed }])
    }

    /// The central server changes.
    ///
    /// # Errors
    /// ACCESS_DENIED.
    pub fn set_server(&self, server: String, ca_pem: String) -> Result<Vec<Kind>> {
        require_manage(self.own)?;
        let revisions = self.ledger.statements().filter_map(|s| match &s.kind {
            Kind::Server { revision, .. } => Some(*revision),
            _ => None,
        });
        Ok(vec![Kind::Server { revision: next_revision(revisions), server, ca_pem }])
    }

    /// Signs statements as the next ones of this member.
    ///
    /// # Errors
    /// OFFICE_FULL, RECORD_INVALID; FIELD_INVALID.
    pub fn sign(&self, key: &DeviceKey, kinds: Vec<Kind>, now_ms: u64) -> Result<Vec<Record>> {
        let me = self.own.device;
        let ends = kinds.iter().any(|k| matches!(k, Kind::Revocation { .. }));
        if !ends && !self.ledger.has_room(&me, kinds.len()) {
            return Err(Error::new(Reason::OfficeFull, "no more membership records fit"));
        }
        let (mut sequence, mut previous) = self.ledger.next(&me);
        let mut records = Vec::with_capacity(kinds.len());
        for kind in kinds {
            let statement = Statement {
                office: Some(self.ledger.office()),
                author_key: key.public_key(),
                author: me,
                sequence,
                previous,
                create_ms: now_ms,
                kind,
            };
            let record = Record::sign(key, &statement)?;
            (sequence, previous) = (sequence.saturating_add(1), Some(record.statement_id()));
            records.push(record);
        }
        Ok(records)
    }
}

/// The record that founds an office; the profile has all rights.
///
/// # Errors
/// FIELD_INVALID.
pub fn found(
    key: &DeviceKey,
    office: &str,
    nonce: [u8; 16],
    sealing_key: [u8; 32],
    profile: Profile,
    now_ms: u64,
) -> Result<Record> {
    names::check_office(office)?;
    let profile = Profile { may_invite: true, may_manage: true, ..profile };
    check_profile(&profile)?;
    let member = Admission::new(key.public_key(), sealing_key, profile);
    let statement = Statement {
        office: None,
        author_key: key.public_key(),
        author: key.device_id(),
        sequence: 1,
        previous: None,
        create_ms: now_ms,
        kind: Kind::Founding { office: office.to_owned(), nonce, member },
    };
    Record::sign(key, &statement)
}
