//! Plain values that the modules of a node exchange.

use common::error::{Error, Reason, Result};
use common::model::{ChunkRef, DeviceId};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use uuid::Uuid;

/// An office: BLAKE3 of its founding statement.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OfficeId(pub [u8; 32]);

impl fmt::Display for OfficeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for OfficeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(pub Uuid);
        impl $name {
            /// A new one, ordered by time (UUIDv7).
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
            /// From 16 bytes; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Uuid::from_slice(bytes).ok().map(Self)
            }
            /// The 16 bytes.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id! {
    /// A shared folder.
    ShareId
}
uuid_id! {
    /// Something that was sent.
    ParcelId
}
uuid_id! {
    /// A transfer to this machine.
    TransferId
}

/// Where a right to chunks comes from (`atrium.peer.v1.Scope`).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// A share that the asker may read.
    Share(ShareId),
    /// A parcel that the asker receives or keeps.
    Parcel(ParcelId),
    /// The central server's word.
    Ticket(ShownTicket),
}

impl Scope {
    /// As the contract writes it.
    pub fn wire(&self) -> proto::peer::v1::Scope {
        use proto::peer::v1::{self as peer, scope::Kind};
        let kind = match self {
            Self::Share(id) => Kind::ShareId(id.as_bytes().to_vec().into()),
            Self::Parcel(id) => Kind::ParcelId(id.as_bytes().to_vec().into()),
            Self::Ticket(shown) => Kind::Ticket(peer::Ticket {
                ticket: shown.ticket().to_vec().into(),
                signature: shown.signature().to_vec().into(),
            }),
        };
        peer::Scope { kind: Some(kind) }
    }

    /// Reads what came over the wire.
    ///
    /// # Errors
    /// FIELD_INVALID if none is set or an id has the wrong length.
    pub fn read(wire: Option<&proto::peer::v1::Scope>) -> Result<Self> {
        use proto::peer::v1::scope::Kind;
        let wrong = || Error::new(Reason::FieldInvalid, "the scope is missing or malformed");
        match wire.and_then(|s| s.kind.as_ref()).ok_or_else(wrong)? {
            Kind::ShareId(id) => ShareId::from_slice(id).map(Self::Share).ok_or_else(wrong),
            Kind::ParcelId(id) => ParcelId::from_slice(id).map(Self::Parcel).ok_or_else(wrong),
            Kind::Ticket(t) => ShownTicket::read(&t.ticket, &t.signature).map(Self::Ticket),
        }
    }
}

/// A read ticket as it was shown. Nothing in it was checked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ShownTicket(Arc<ShownParts>);

#[derive(PartialEq, Eq, Hash, Debug)]
struct ShownParts {
    ticket: Vec<u8>,
    signature: Vec<u8>,
    manifests: Arc<[[u8; 32]]>,
}

impl ShownTicket {
    /// From what came over the wire.
    ///
    /// # Errors
    /// FIELD_INVALID if it is no ticket.
    pub fn read(ticket: &[u8], signature: &[u8]) -> Result<Self> {
        if signature.len() > common::ticket::MAX_SIGNATURE_BYTES {
            return Err(Error::new(Reason::FieldInvalid, "the signature of a ticket is too long"));
        }
        let read = common::ticket::Ticket::read(ticket)?;
        let (ticket, signature) = (ticket.to_vec(), signature.to_vec());
        Ok(Self(Arc::new(ShownParts { ticket, signature, manifests: read.manifests.into() })))
    }

    /// A serialized `atrium.v1.ReadTicket`.
    pub fn ticket(&self) -> &[u8] {
        &self.0.ticket
    }

    /// The server's signature.
    pub fn signature(&self) -> &[u8] {
        &self.0.signature
    }

    /// Digests of the contents that it is about, ascending.
    pub fn manifests(&self) -> &Arc<[[u8; 32]]> {
        &self.0.manifests
    }

    /// True if the content is one of them.
    pub fn covers(&self, manifest: &[u8; 32]) -> bool {
        self.0.manifests.binary_search(manifest).is_ok()
    }
}

/// What a scope is about, whoever's right it is: tickets of two devices for the same contents are about the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// A share.
    Share(ShareId),
    /// A parcel.
    Parcel(ParcelId),
    /// Contents, by their manifests' digests, ascending.
    Contents(Arc<[[u8; 32]]>),
}

impl Subject {
    /// True if the two have something in common: it is the same share or parcel, or some content is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Contents(a), Self::Contents(b)) => {
                let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
                few.iter().any(|m| many.binary_search(m).is_ok())
            }
            _ => self == other,
        }
    }

    /// True if it is about this content of whatever else: tickets name contents, the others do not.
    pub fn reaches(&self, manifest: &[u8; 32]) -> bool {
        match self {
            Self::Contents(all) => all.binary_search(manifest).is_ok(),
            _ => true,
        }
    }
}

impl Scope {
    /// What it is about.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Share(id) => Subject::Share(*id),
            Self::Parcel(id) => Subject::Parcel(*id),
            Self::Ticket(shown) => Subject::Contents(shown.manifests().clone()),
        }
    }
}

/// The content of a file version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Content {
    /// Its chunks in order.
    pub chunks: Arc<[ChunkRef]>,
    /// [`common::model::manifest_digest`] of them.
    pub digest: [u8; 32],
    /// Sum of their lengths.
    pub size_bytes: u64,
}

impl Content {
    /// From chunks in order.
    pub fn of(chunks: impl Into<Arc<[ChunkRef]>>) -> Self {
        let chunks = chunks.into();
        let digest = common::model::manifest_digest(&chunks);
        let size_bytes = chunks.iter().map(|c| u64::from(c.len)).sum();
        Self { chunks, digest, size_bytes }
    }
}

/// A device and how people call it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeName {
    /// Which.
    pub device: DeviceId,
    /// Full hierarchical name, for example `acme/sales/anna-pc`.
    pub name: String,
}
