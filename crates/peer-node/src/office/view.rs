//! Who belongs now: a snapshot that is computed from the records (`rule.rs`) and never changes.

use super::names::EVERYONE;
use crate::model::OfficeId;
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right, fold};
use proto::v1 as central;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Fewest digits by which a device is named.
const MIN_ID_DIGITS: usize = 8;

/// Refuses those who are no members now. Looked up on each call: who is cut off is refused on open connections too.
///
/// # Errors
/// DEVICE_REVOKED, NOT_A_MEMBER.
pub fn check_member(view: &View, device: &DeviceId) -> Result<()> {
    if view.is_member(device) {
        Ok(())
    } else if view.revoked(device) {
        Err(Error::new(Reason::DeviceRevoked, "this device was cut off from the office"))
    } else {
        Err(Error::new(Reason::NotAMember, "this device is no member of the office"))
    }
}

/// A member, present or cut off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its device id.
    pub device: DeviceId,
    /// Its Ed25519 public key.
    pub key: [u8; 32],
    /// The machine's name.
    pub display_name: String,
    /// The person that it belongs to.
    pub person: String,
    /// Between office and machine in the hierarchical name; may be empty.
    pub unit: String,
    /// May invite others.
    pub may_invite: bool,
    /// May revoke others, change members, groups and the server.
    pub may_manage: bool,
    /// X25519 public key for sealed parcels.
    pub sealing_key: [u8; 32],
    /// Who admitted it; `None` for the founder.
    pub admitted_by: Option<DeviceId>,
    /// When, by that one's clock, milliseconds since 1970.
    pub create_ms: u64,
    /// Cut off, for ever.
    pub revoked: bool,
}

/// The office's central server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CentralServer {
    /// "host:port".
    pub server: String,
    /// Certificates to verify it by, PEM.
    pub ca_pem: String,
}

/// Who belongs to the office.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    pub(super) office: Option<OfficeId>,
    pub(super) name: String,
    pub(super) me: DeviceId,
    /// In order of names.
    pub(super) members: Vec<Member>,
    pub(super) index: HashMap<DeviceId, usize>,
    /// Cut off, also those that never were members.
    pub(super) revoked: HashSet<DeviceId>,
    pub(super) groups: BTreeMap<String, Vec<String>>,
    pub(super) server: Option<CentralServer>,
    pub(super) records_digest: [u8; 32],
    pub(super) record_count: usize,
}

impl View {
    /// Before `init` or `join`: nobody belongs, this device neither.
    pub fn empty(me: DeviceId) -> Self {
        Self {
            office: None,
            name: String::new(),
            me,
            members: Vec::new(),
            index: HashMap::new(),
            revoked: HashSet::new(),
            groups: BTreeMap::new(),
            server: None,
            records_digest: [0; 32],
            record_count: 0,
        }
    }

    /// The office; `None` before `init` or `join`.
    pub fn office_id(&self) -> Option<OfficeId> {
        self.office
    }

    /// The office's name; empty before `init` or `join`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// This device.
    pub fn me(&self) -> DeviceId {
        self.me
    }

    /// True if the device belongs to the office now.
    pub fn is_member(&self, device: &DeviceId) -> bool {
        self.member(device).is_some_and(|m| !m.revoked)
    }

    /// A member, also one that was cut off.
    pub fn member(&self, device: &DeviceId) -> Option<&Member> {
        self.index.get(device).and_then(|at| self.members.get(*at))
    }

    /// Members in order of names, also those that were cut off.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter()
    }

    /// Members that were not cut off, in order of names.
    pub fn present(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| !m.revoked)
    }

    /// True if the device was cut off.
    pub fn revoked(&self, device: &DeviceId) -> bool {
        self.revoked.contains(device)
    }

    /// All devices that were cut off.
    pub fn revoked_devices(&self) -> impl Iterator<Item = &DeviceId> {
        self.revoked.iter()
    }

    /// Groups by name, with the persons in them.
    pub fn groups(&self) -> &BTreeMap<String, Vec<String>> {
        &self.groups
    }

    /// The central server, if the office has one.
    pub fn server(&self) -> Option<&CentralServer> {
        self.server.as_ref()
    }

    /// BLAKE3 over the sorted ids of all records.
    pub fn records_digest(&self) -> [u8; 32] {
        self.records_digest
    }

    /// Number of records.
    pub fn record_count(&self) -> usize {
        self.record_count
    }

    /// The greatest right that these grants give the device; `None` for those who are not members. Persons and groups are
    /// the same whatever the case of their letters.
    pub fn right(&self, device: &DeviceId, grants: &[central::Grant]) -> Option<Right> {
        use central::principal::Kind;
        let member = self.member(device).filter(|m| !m.revoked)?;
        let person = fold(&member.person);
        let applies = |kind: &Kind| match kind {
            Kind::User(user) => fold(user) == person,
            Kind::Group(group) => self.in_group(group, &person),
            Kind::Device(id) => id.parse() == Ok(*device),
            Kind::Everyone(everyone) => *everyone,
        };
        grants
            .iter()
            .filter(|g| g.principal.as_ref().and_then(|p| p.kind.as_ref()).is_some_and(applies))
            .filter_map(|g| Right::from_number(g.right))
            .max()
    }

    fn in_group(&self, group: &str, folded_person: &str) -> bool {
        self.persons_of(group).is_some_and(|persons| persons.iter().any(|p| fold(p) == folded_person))
    }

    fn persons_of(&self, group: &str) -> Option<&Vec<String>> {
        let key = fold(group);
        self.groups.iter().find(|(name, _)| fold(name) == key).map(|(_, persons)| persons)
    }

    /// Devices of a person that belong to the office now.
    pub fn persons_devices(&self, person: &str) -> Vec<DeviceId> {
        let person = fold(person);
        self.present().filter(|m| fold(&m.person) == person).map(|m| m.device).collect()
    }

    /// The full hierarchical name of a device, "acme/sales/anna-pc". If two members claim one name, both have "~" and the
    /// beginning of their device id behind it. A device that is no member is called by its id.
    pub fn node_name(&self, device: &DeviceId) -> String {
        let Some(member) = self.member(device) else { return device.to_string() };
        let name = self.plain_name(member);
        if self.is_disputed(member) { format!("{name}~{}", &device.to_string()[..MIN_ID_DIGITS]) } else { name }
    }

    /// True if another member that was not cut off claims the same name.
    pub fn is_disputed(&self, member: &Member) -> bool {
        let key = (fold(&member.unit), fold(&member.display_name));
        self.present().any(|m| m.device != member.device && (fold(&m.unit), fold(&m.display_name)) == key)
    }

    fn plain_name(&self, member: &Member) -> String {
        if member.unit.is_empty() {
            format!("{}/{}", self.name, member.display_name)
        } else {
            format!("{}/{}/{}", self.name, member.unit, member.display_name)
        }
    }

    /// One member by device id, a beginning of it of 8 digits or more, its machine's name or its full name. Also finds
    /// members that were cut off, after all others.
    ///
    /// # Errors
    /// MEMBER_UNKNOWN; FIELD_INVALID if several are meant.
    pub fn find_member(&self, text: &str) -> Result<&Member> {
        let unknown = || Error::new(Reason::MemberUnknown, format!("{text:?} names no member"));
        let present: Vec<&Member> = self.present().filter(|m| self.is_called(m, text)).collect();
        let found = if present.is_empty() {
            self.members().filter(|m| m.revoked && self.is_called(m, text)).collect()
        } else {
            present
        };
        match found.as_slice() {
            [] => Err(unknown()),
            [one] => Ok(one),
            several => Err(ambiguous(text, several.iter().map(|m| self.node_name(&m.device)))),
        }
    }

    fn is_called(&self, member: &Member, text: &str) -> bool {
        let key = fold(text);
        let by_id = || text.len() >= MIN_ID_DIGITS && member.device.to_string().starts_with(&key);
        fold(&member.display_name) == key
            || fold(&self.node_name(&member.device)) == key
            || (text.contains('/') && fold(&self.plain_name(member)) == key)
            || by_id()
    }

    /// Devices that a person means by a receiver: "everyone", "group:sales", a person, a machine, a full node name, a
    /// device id or the beginning of one. Only present members; this device is among them if it is meant.
    ///
    /// # Errors
    /// MEMBER_UNKNOWN; FIELD_INVALID if a word means a person and a machine of somebody else, or several machines.
    pub fn resolve_members(&self, text: &str) -> Result<Vec<DeviceId>> {
        if fold(text) == EVERYONE {
            return Ok(self.present().map(|m| m.device).collect());
        }
        if let Some(group) = text.strip_prefix("group:") {
            let unknown = || Error::new(Reason::MemberUnknown, format!("there is no group {group:?}"));
            let persons: HashSet<String> =
                self.persons_of(group).ok_or_else(unknown)?.iter().map(|p| fold(p)).collect();
            return Ok(self.present().filter(|m| persons.contains(&fold(&m.person))).map(|m| m.device).collect());
        }
        let of_person = self.persons_devices(text);
        let machine = match self.find_member(text) {
            Ok(member) if !member.revoked => Some(member),
            Ok(_) => None,
            Err(error) if error.is(Reason::FieldInvalid) && of_person.is_empty() => return Err(error),
            Err(_) => None,
        };
        match machine {
            Some(member) if of_person.is_empty() => Ok(vec![member.device]),
            Some(member) if !of_person.contains(&member.device) => {
                let person = format!("the person {text}");
                Err(ambiguous(text, [person, self.node_name(&member.device)].into_iter()))
            }
            None if of_person.is_empty() => {
                Err(Error::new(Reason::MemberUnknown, format!("{text:?} is no person, machine or group here")))
            }
            _ => Ok(of_person),
        }
    }
}

fn ambiguous(text: &str, meant: impl Iterator<Item = String>) -> Error {
    let meant: Vec<String> = meant.take(8).collect();
    Error::new(Reason::FieldInvalid, format!("{text:?} may be {}", meant.join(" or ")))
        .why_is("more than one member is called so")
        .fix_is("write the full name, such as acme/sales/anna-pc, or the device id")
}
