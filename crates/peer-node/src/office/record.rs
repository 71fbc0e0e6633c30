//! Records: what members state, with their signatures.
//!
//! A [`Record`] that exists is well formed and, if it came from outside, its signature is good. Whether it counts is
//! another matter (`rule.rs`). The statement is kept as the bytes that were signed; its id is BLAKE3 of them, the record's
//! id is BLAKE3 of statement and signature.

use super::names::{check_machine, check_office, check_principal, check_unit};
use crate::model::OfficeId;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::model::DeviceId;
use common::wire::{ms_from_timestamp, timestamp_from_ms};
use ed25519_dalek::{Signature, VerifyingKey};
use prost::Message;
use proto::peer::v1 as peer;
use proto::peer::v1::statement::Kind as WireKind;
use std::fmt;
use std::sync::Arc;

/// Largest record: statement and signature.
pub const MAX_RECORD_BYTES: usize = 16 * 1024;
/// Largest statement.
pub const MAX_STATEMENT_BYTES: usize = MAX_RECORD_BYTES - SIGNATURE_BYTES;
/// Most last statements that a revocation or change names.
pub const MAX_HEADS: usize = 64;
/// Most persons of a group.
pub const MAX_GROUP_PERSONS: usize = 500;
/// Longest reason of a revocation, in bytes.
pub const MAX_REASON_BYTES: usize = 512;

const SIGNATURE_BYTES: usize = 64;
const RECORD_LABEL: &[u8] = b"atrium membership record v1\0";

macro_rules! digest_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 32]);
        impl $name {
            /// From 32 bytes; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
    };
}

digest_id! {
    /// A record: BLAKE3 of its statement and signature.
    RecordId
}
digest_id! {
    /// A statement: BLAKE3 of its bytes.
    StatementId
}

/// What a member may do beside being one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Rights {
    /// Belongs to the office.
    pub member: bool,
    /// May invite others.
    pub invite: bool,
    /// May revoke others, change members, groups and the server.
    pub manage: bool,
}

impl Rights {
    /// Everything.
    pub const ALL: Self = Self { member: true, invite: true, manage: true };

    /// True if all of `other` is in it.
    pub fn has(self, other: Self) -> bool {
        (self.member || !other.member) && (self.invite || !other.invite) && (self.manage || !other.manage)
    }

    /// What is in either.
    pub fn or(self, other: Self) -> Self {
        Self {
            member: self.member || other.member,
            invite: self.invite || other.invite,
            manage: self.manage || other.manage,
        }
    }
}

/// A member as an admission or a change states it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// The machine's name.
    pub display_name: String,
    /// The person that it belongs to.
    pub person: String,
    /// Between office and machine in the hierarchical name; may be empty.
    pub unit: String,
    /// May invite.
    pub may_invite: bool,
    /// May manage.
    pub may_manage: bool,
}

impl Profile {
    /// The rights that it names, beside being a member.
    pub fn rights(&self) -> Rights {
        Rights { member: false, invite: self.may_invite, manage: self.may_manage }
    }

    fn check(&self) -> Result<()> {
        check_machine(&self.display_name)?;
        check_principal(&self.person, "person")?;
        check_unit(&self.unit)
    }
}

/// A device becomes a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admission {
    /// Its public key.
    pub device_key: [u8; 32],
    /// BLAKE3 of that.
    pub device: DeviceId,
    /// X25519 public key for sealed parcels.
    pub sealing_key: [u8; 32],
    /// Everything that may change later.
    pub profile: Profile,
}

/// What is stated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The first record.
    Founding {
        /// The office's name.
        office: String,
        /// Makes two offices of one name differ.
        nonce: [u8; 16],
        /// The first member: the author.
        member: Admission,
    },
    /// A device becomes a member.
    Admission(Admission),
    /// A device is cut off for ever.
    Revocation {
        /// Which.
        device: DeviceId,
        /// None of its statements after this one counts.
        last_sequence: u64,
        /// These, and those before them, count.
        heads: Vec<StatementId>,
        /// For people.
        reason: String,
    },
    /// A member changes.
    Member {
        /// Which.
        device: DeviceId,
        /// Counts the changes of this member.
        revision: u64,
        /// As it is now.
        profile: Profile,
        /// Its statements that are neither among these nor before one of them need the rights of this change.
        heads: Vec<StatementId>,
    },
    /// A group changes.
    Group {
        /// Its name.
        group: String,
        /// Counts the changes of this group.
        revision: u64,
        /// Who is in it.
        persons: Vec<String>,
        /// It is gone.
        removed: bool,
    },
    /// The office's central server changes.
    Server {
        /// Counts the changes.
        revision: u64,
        /// "host:port", empty if there is none.
        server: String,
        /// To verify it by.
        ca_pem: String,
    },
}

/// A statement, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statement {
    /// `None` only in the founding statement.
    pub office: Option<OfficeId>,
    /// Who states it.
    pub author_key: [u8; 32],
    /// BLAKE3 of that.
    pub author: DeviceId,
    /// Counts the author's statements from 1.
    pub sequence: u64,
    /// The author's statement before this one.
    pub previous: Option<StatementId>,
    /// The author's clock, for people; 0 if not said.
    pub create_ms: u64,
    /// What.
    pub kind: Kind,
}

/// A statement with its signature. Clones share it.
#[derive(Clone)]
pub struct Record(Arc<Inner>);

struct Inner {
    id: RecordId,
    statement_id: StatementId,
    bytes: Bytes,
    signature: [u8; SIGNATURE_BYTES],
    statement: Statement,
}

fn invalid(what: &str) -> Error {
    Error::new(Reason::RecordInvalid, format!("membership record: {what}"))
}

fn array<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| invalid(&format!("{what} has not {N} bytes")))
}

/// The id that a record has, without a look into it.
pub fn id_of(wire: &peer::Record) -> RecordId {
    RecordId(*blake3::Hasher::new().update(&wire.statement).update(&wire.signature).finalize().as_bytes())
}

impl Record {
    /// Signs a statement.
    ///
    /// # Errors
    /// RECORD_INVALID or FIELD_INVALID if it is one that others would refuse.
    pub fn sign(key: &DeviceKey, statement: &Statement) -> Result<Self> {
        let bytes = Bytes::from(statement.wire().encode_to_vec());
        let signature = key.sign(&[RECORD_LABEL, &bytes].concat());
        let wire = peer::Record { statement: bytes, signature: signature.to_vec().into() };
        Self::decode(&wire)
    }

    /// Reads a record from outside and checks form and signature.
    ///
    /// # Errors
    /// RECORD_INVALID or FIELD_INVALID, saying what is wrong.
    pub fn read(wire: &peer::Record) -> Result<Self> {
        let record = Self::decode(wire)?;
        verify(&record.0.statement.author_key, RECORD_LABEL, &record.0.bytes, &record.0.signature)?;
        Ok(record)
    }

    /// Reads a record from this node's own store: its signature was checked before it was put there.
    ///
    /// # Errors
    /// Like [`Record::read`].
    pub fn decode(wire: &peer::Record) -> Result<Self> {
        if wire.statement.len() > MAX_STATEMENT_BYTES {
            return Err(invalid("longer than 16 KiB"));
        }
        let signature = array(&wire.signature, "the signature")?;
        let message = peer::Statement::decode(&wire.statement[..]).map_err(|_| invalid("no statement"))?;
        let statement_id = StatementId(*blake3::hash(&wire.statement).as_bytes());
        let statement = Statement::of(&message)?;
        // A copy, so that a record does not keep the message alive that it came in.
        let bytes = Bytes::copy_from_slice(&wire.statement);
        Ok(Self(Arc::new(Inner { id: id_of(wire), statement_id, bytes, signature, statement })))
    }

    /// Its id.
    pub fn id(&self) -> RecordId {
        self.0.id
    }

    /// The statement's id.
    pub fn statement_id(&self) -> StatementId {
        self.0.statement_id
    }

    /// What is stated.
    pub fn statement(&self) -> &Statement {
        &self.0.statement
    }

    /// The office that it belongs to: for the founding record, the one that it founds.
    pub fn office(&self) -> OfficeId {
        self.0.statement.office.unwrap_or(OfficeId(self.0.statement_id.0))
    }

    /// Bytes on the wire and on disk, about.
    pub fn size_bytes(&self) -> usize {
        self.0.bytes.len() + SIGNATURE_BYTES + 8
    }

    /// As the contract writes it.
    pub fn wire(&self) -> peer::Record {
        peer::Record { statement: self.0.bytes.clone(), signature: Bytes::copy_from_slice(&self.0.signature) }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({:?} {:?})", self.0.id, self.0.statement)
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Record {}

/// Checks an Ed25519 signature over a label and a message, strictly: one key, one message, no second valid signature by
/// others.
pub(super) fn verify(key: &[u8; 32], label: &[u8], message: &[u8], signature: &[u8; 64]) -> Result<()> {
    let key = VerifyingKey::from_bytes(key).map_err(|_| invalid("the author's key is no point"))?;
    if key.is_weak() {
        return Err(invalid("the author's key is weak"));
    }
    key.verify_strict(&[label, message].concat(), &Signature::from_bytes(signature))
        .map_err(|_| invalid("the signature is wrong"))
}

impl Statement {
    fn of(wire: &peer::Statement) -> Result<Self> {
        let office = match wire.office_id.len() {
            0 => None,
            _ => Some(OfficeId(array(&wire.office_id, "office_id")?)),
        };
        let author_key = array(&wire.author_key, "author_key")?;
        let previous = match wire.previous.len() {
            0 => None,
            _ => Some(StatementId(array(&wire.previous, "previous")?)),
        };
        if wire.sequence == 0 || previous.is_none() != (wire.sequence == 1) {
            return Err(invalid("sequence and previous do not fit"));
        }
        let kind = Kind::of(wire.kind.as_ref().ok_or_else(|| invalid("of a kind that this version does not know"))?)?;
        let author = DeviceId::of_key(&author_key);
        let founds = matches!(&kind, Kind::Founding { member, .. } if member.device == author);
        if matches!(kind, Kind::Founding { .. }) != (founds && office.is_none() && wire.sequence == 1)
            || (office.is_none() && !founds)
        {
            return Err(invalid("only the founding statement has no office, and its author is the first member"));
        }
        let create_ms = wire.create_time.as_ref().map_or(Ok(0), |t| ms_from_timestamp(t, "create_time"))?;
        Ok(Self { office, author_key, author, sequence: wire.sequence, previous, create_ms, kind })
    }

    fn wire(&self) -> peer::Statement {
        peer::Statement {
            office_id: self.office.map(|o| Bytes::copy_from_slice(&o.0)).unwrap_or_default(),
            author_key: Bytes::copy_from_slice(&self.author_key),
            sequence: self.sequence,
            create_time: Some(timestamp_from_ms(self.create_ms)),
            previous: self.previous.map(|p| Bytes::copy_from_slice(&p.0)).unwrap_or_default(),
            kind: Some(self.kind.wire()),
        }
    }

    /// The rights that its author needs.
    pub fn needs(&self) -> Rights {
        let rights = |invite, manage| Rights { member: true, invite, manage };
        match &self.kind {
            Kind::Founding { .. } => rights(false, false),
            Kind::Admission(_) => rights(true, false),
            Kind::Revocation { device, .. } => rights(false, *device != self.author),
            Kind::Member { .. } | Kind::Group { .. } | Kind::Server { .. } => rights(false, true),
        }
    }

    /// The device that it makes a member, if it does that.
    pub fn admits(&self) -> Option<&Admission> {
        match &self.kind {
            Kind::Founding { member, .. } | Kind::Admission(member) => Some(member),
            _ => None,
        }
    }
}

fn heads_of(wire: &[Bytes]) -> Result<Vec<StatementId>> {
    if wire.len() > MAX_HEADS {
        return Err(invalid("more than 64 heads"));
    }
    wire.iter().map(|h| array(h, "a head").map(StatementId)).collect()
}

fn heads_to(heads: &[StatementId]) -> Vec<Bytes> {
    heads.iter().map(|h| Bytes::copy_from_slice(&h.0)).collect()
}

fn profile_of(wire: &peer::Admission, unit: &str) -> Result<Profile> {
    let profile = Profile {
        display_name: wire.display_name.clone(),
        person: wire.person.clone(),
        unit: unit.to_owned(),
        may_invite: wire.may_invite,
        may_manage: wire.may_manage,
    };
    profile.check()?;
    Ok(profile)
}

impl Admission {
    /// A device with this key.
    pub fn new(device_key: [u8; 32], sealing_key: [u8; 32], profile: Profile) -> Self {
        Self { device_key, device: DeviceId::of_key(&device_key), sealing_key, profile }
    }

    fn of(wire: &peer::Admission) -> Result<Self> {
        let profile = profile_of(wire, &wire.unit)?;
        let sealing_key = array(&wire.sealing_key, "sealing_key")?;
        Ok(Self::new(array(&wire.device_key, "device_key")?, sealing_key, profile))
    }

    fn wire(&self) -> peer::Admission {
        peer::Admission {
            device_key: Bytes::copy_from_slice(&self.device_key),
            display_name: self.profile.display_name.clone(),
            person: self.profile.person.clone(),
            may_invite: self.profile.may_invite,
            may_manage: self.profile.may_manage,
            sealing_key: Bytes::copy_from_slice(&self.sealing_key),
            unit: self.profile.unit.clone(),
        }
    }
}

impl Kind {
    fn of(wire: &WireKind) -> Result<Self> {
        Ok(match wire {
            WireKind::Founding(f) => {
                check_office(&f.office)?;
                let member = f.member.as_ref().ok_or_else(|| invalid("no first member"))?;
                Self::Founding {
                    office: f.office.clone(),
                    nonce: array(&f.nonce, "nonce")?,
                    member: Admission::of(member)?,
                }
            }
            WireKind::Admission(a) => Self::Admission(Admission::of(a)?),
            WireKind::Revocation(r) => {
                if r.reason.len() > MAX_REASON_BYTES {
                    return Err(invalid("the reason is longer than 512 bytes"));
                }
                Self::Revocation {
                    device: DeviceId(array(&r.device_id, "device_id")?),
                    last_sequence: r.last_sequence,
                    heads: heads_of(&r.heads)?,
                    reason: r.reason.clone(),
                }
            }
            WireKind::MemberChange(c) => Self::Member {
                device: DeviceId(array(&c.device_id, "device_id")?),
                revision: c.revision,
                profile: profile_of(c.member.as_ref().ok_or_else(|| invalid("no member"))?, &c.unit)?,
                heads: heads_of(&c.heads)?,
            },
            WireKind::GroupChange(g) => {
                check_principal(&g.group, "group")?;
                if g.persons.len() > MAX_GROUP_PERSONS {
                    return Err(invalid("more than 500 persons in a group"));
                }
                g.persons.iter().try_for_each(|p| check_principal(p, "persons"))?;
                Self::Group {
                    group: g.group.clone(),
                    revision: g.revision,
                    persons: g.persons.clone(),
                    removed: g.removed,
                }
            }
            WireKind::ServerChange(s) => {
                if s.server.len() > 300 || s.server.chars().any(|c| c.is_control() || c.is_whitespace()) {
                    return Err(invalid("the server is no address"));
                }
                Self::Server { revision: s.revision, server: s.server.clone(), ca_pem: s.ca_pem.clone() }
            }
        })
    }

    fn wire(&self) -> WireKind {
        match self {
            Self::Founding { office, nonce, member } => WireKind::Founding(peer::Founding {
                office: office.clone(),
                nonce: Bytes::copy_from_slice(nonce),
                member: Some(member.wire()),
            }),
            Self::Admission(a) => WireKind::Admission(a.wire()),
            Self::Revocation { device, last_sequence, heads, reason } => WireKind::Revocation(peer::Revocation {
                device_id: Bytes::copy_from_slice(&device.0),
                last_sequence: *last_sequence,
                reason: reason.clone(),
                heads: heads_to(heads),
            }),
            Self::Member { device, revision, profile, heads } => WireKind::MemberChange(peer::MemberChange {
                device_id: Bytes::copy_from_slice(&device.0),
                revision: *revision,
                member: Some(peer::Admission {
                    display_name: profile.display_name.clone(),
                    person: profile.person.clone(),
                    may_invite: profile.may_invite,
                    may_manage: profile.may_manage,
                    ..peer::Admission::default()
                }),
                unit: profile.unit.clone(),
                heads: heads_to(heads),
            }),
            Self::Group { group, revision, persons, removed } => WireKind::GroupChange(peer::GroupChange {
                group: group.clone(),
                revision: *revision,
                persons: persons.clone(),
                removed: *removed,
            }),
            Self::Server { revision, server, ca_pem } => WireKind::ServerChange(peer::ServerChange {
                revision: *revision,
                server: server.clone(),
                ca_pem: ca_pem.clone(),
            }),
        }
    }
}
