//! Announcements: what each node says about itself, signed by it; the newest of each member is kept and passed on.
//!
//! Bounds: 16 KiB each, one of each present member.

use super::record::verify;
use super::view::View;
use crate::model::OfficeId;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::model::DeviceId;
use prost::Message;
use proto::peer::v1 as peer;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Largest announcement.
pub const MAX_ANNOUNCEMENT_BYTES: usize = 16 * 1024;
/// Most addresses of a node.
pub const MAX_ADDRESSES: usize = 32;
/// Most announcements in one message.
pub const MAX_IN_MESSAGE: usize = 512;
/// Most bytes of announcements in one message, about.
pub const MAX_MESSAGE_BYTES: usize = 2 << 20;

const LABEL: &[u8] = b"atrium announcement v1\0";
const MAX_VERSION_BYTES: usize = 64;
const MAX_NAME_BYTES: usize = 1_024;
/// A device id and a sequence in [`Board::held`].
const HELD_BYTES: usize = 40;

/// What a node says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeInfo {
    /// Its office.
    pub office: OfficeId,
    /// Its public key.
    pub device_key: [u8; 32],
    /// BLAKE3 of that.
    pub device: DeviceId,
    /// Rises with every announcement.
    pub sequence: u64,
    /// Full hierarchical name, as it sees it.
    pub node_name: String,
    /// Where it listens; at most 32.
    pub addresses: Vec<SocketAddr>,
    /// Program version.
    pub version: String,
    /// Passes connections on.
    pub relays: bool,
    /// Keeps parcels for others.
    pub keeps_parcels: bool,
    /// Random for each start of the program.
    pub instance: [u8; 8],
}

/// What this node says about itself; [`super::Office::announce`] adds the rest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Announced {
    /// Where it listens; the first 32 are told.
    pub addresses: Vec<SocketAddr>,
    /// Program version.
    pub version: String,
    /// Passes connections on.
    pub relays: bool,
    /// Keeps parcels for others.
    pub keeps_parcels: bool,
    /// Random for each start of the program.
    pub instance: [u8; 8],
}

/// An announcement whose form and signature are good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announcement {
    info: NodeInfo,
    bytes: Bytes,
    signature: [u8; 64],
}

fn invalid(what: &str) -> Error {
    Error::new(Reason::RecordInvalid, format!("announcement: {what}"))
}

impl Announcement {
    /// Signs one.
    ///
    /// # Errors
    /// RECORD_INVALID if others would refuse it.
    pub fn sign(key: &DeviceKey, info: &NodeInfo) -> Result<Self> {
        let wire = peer::NodeInfo {
            office_id: Bytes::copy_from_slice(&info.office.0),
            device_key: Bytes::copy_from_slice(&key.public_key()),
            sequence: info.sequence,
            node_name: info.node_name.clone(),
            addresses: info.addresses.iter().take(MAX_ADDRESSES).map(SocketAddr::to_string).collect(),
            version: info.version.clone(),
            relays: info.relays,
            keeps_parcels: info.keeps_parcels,
            instance_id: Bytes::copy_from_slice(&info.instance),
        };
        let bytes = Bytes::from(wire.encode_to_vec());
        let signature = key.sign(&[LABEL, &bytes].concat());
        Self::decode(&peer::Announcement { info: bytes, signature: signature.to_vec().into() })
    }

    /// Reads one from outside and checks form and signature.
    ///
    /// # Errors
    /// RECORD_INVALID.
    pub fn read(wire: &peer::Announcement) -> Result<Self> {
        let announcement = Self::decode(wire)?;
        verify(&announcement.info.device_key, LABEL, &announcement.bytes, &announcement.signature)?;
        Ok(announcement)
    }

    /// Reads one from this node's own store.
    ///
    /// # Errors
    /// RECORD_INVALID.
    pub fn decode(wire: &peer::Announcement) -> Result<Self> {
        if wire.info.len() + wire.signature.len() > MAX_ANNOUNCEMENT_BYTES {
            return Err(invalid("longer than 16 KiB"));
        }
        let signature = wire.signature[..].try_into().map_err(|_| invalid("the signature has not 64 bytes"))?;
        let info = peer::NodeInfo::decode(&wire.info[..]).map_err(|_| invalid("no statement"))?;
        let array = |bytes: &Bytes| <[u8; 32]>::try_from(&bytes[..]).map_err(|_| invalid("a field has not 32 bytes"));
        let device_key = array(&info.device_key)?;
        if info.addresses.len() > MAX_ADDRESSES
            || info.version.len() > MAX_VERSION_BYTES
            || info.node_name.len() > MAX_NAME_BYTES
            || info.node_name.chars().chain(info.version.chars()).any(char::is_control)
        {
            return Err(invalid("too many addresses, or a text that is none"));
        }
        let addresses: Result<_, _> = info.addresses.iter().map(|a| a.parse()).collect();
        let info = NodeInfo {
            office: OfficeId(array(&info.office_id)?),
            device_key,
            device: DeviceId::of_key(&device_key),
            sequence: info.sequence,
            node_name: info.node_name,
            addresses: addresses.map_err(|_| invalid("an address is none"))?,
            version: info.version,
            relays: info.relays,
            keeps_parcels: info.keeps_parcels,
            instance: info.instance_id[..].try_into().map_err(|_| invalid("instance_id has not 8 bytes"))?,
        };
        Ok(Self { info, bytes: Bytes::copy_from_slice(&wire.info), signature })
    }

    /// Bytes on the wire, about.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len() + 80
    }

    /// What it says.
    pub fn info(&self) -> &NodeInfo {
        &self.info
    }

    /// As the contract writes it.
    pub fn wire(&self) -> peer::Announcement {
        peer::Announcement { info: self.bytes.clone(), signature: Bytes::copy_from_slice(&self.signature) }
    }
}

/// The newest announcement of every present member.
#[derive(Clone, Debug, Default)]
pub struct Board {
    newest: BTreeMap<DeviceId, Announcement>,
}

/// What two boards can give each other.
#[derive(Clone, Debug, Default)]
pub struct Difference {
    /// Newer here.
    pub newer: Vec<Announcement>,
    /// More of these than fit in one message.
    pub more: bool,
    /// Newer there.
    pub wanted: Vec<DeviceId>,
}

impl Board {
    /// Takes one in if its node is a present member and it is newer than what is here; true if so.
    pub fn take(&mut self, announcement: Announcement, view: &View) -> bool {
        let info = announcement.info();
        let here = self.newest.get(&info.device).map_or(0, |a| a.info().sequence);
        if view.office_id() != Some(info.office) || !view.is_member(&info.device) || info.sequence <= here {
            return false;
        }
        self.newest.insert(info.device, announcement);
        true
    }

    /// Drops those of devices that are no members any more; gives back which.
    pub fn drop_strangers(&mut self, view: &View) -> Vec<DeviceId> {
        let gone: Vec<DeviceId> = self.newest.keys().filter(|d| !view.is_member(d)).copied().collect();
        for device in &gone {
            self.newest.remove(device);
        }
        gone
    }

    /// The newest of a device.
    pub fn get(&self, device: &DeviceId) -> Option<&Announcement> {
        self.newest.get(device)
    }

    /// All, in order of device ids.
    pub fn all(&self) -> impl Iterator<Item = &Announcement> {
        self.newest.values()
    }

    /// BLAKE3 over the sorted (device id, sequence) pairs.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.held()).as_bytes()
    }

    /// Device id and sequence of each, joined.
    pub fn held(&self) -> Vec<u8> {
        let mut held = Vec::with_capacity(self.newest.len() * HELD_BYTES);
        for (device, announcement) in &self.newest {
            held.extend_from_slice(&device.0);
            held.extend_from_slice(&announcement.info().sequence.to_le_bytes());
        }
        held
    }

    /// Compared with what another one holds.
    ///
    /// # Errors
    /// FIELD_INVALID if `held` is not such a list.
    pub fn compare(&self, held: &[u8]) -> Result<Difference> {
        if !held.len().is_multiple_of(HELD_BYTES) || held.len() / HELD_BYTES > super::MAX_RECORDS {
            return Err(Error::new(Reason::FieldInvalid, "held is not a list of device ids and sequences"));
        }
        let mut theirs = BTreeMap::new();
        for pair in held.chunks_exact(HELD_BYTES) {
            let (device, sequence) = pair.split_at(32);
            if let (Ok(device), Ok(sequence)) = (device.try_into(), sequence.try_into()) {
                theirs.insert(DeviceId(device), u64::from_le_bytes(sequence));
            }
        }
        let mut difference = Difference::default();
        let mut bytes = 0;
        for (device, announcement) in &self.newest {
            if theirs.get(device).is_some_and(|s| *s >= announcement.info().sequence) {
                continue;
            }
            bytes += announcement.size_bytes();
            if difference.newer.len() == MAX_IN_MESSAGE || bytes > MAX_MESSAGE_BYTES {
                difference.more = true;
                break;
            }
            difference.newer.push(announcement.clone());
        }
        let newer_there = |(device, sequence): &(&DeviceId, &u64)| {
            self.newest.get(*device).is_none_or(|a| a.info().sequence < **sequence)
        };
        difference.wanted = theirs.iter().filter(newer_there).map(|(d, _)| *d).take(MAX_IN_MESSAGE).collect();
        Ok(difference)
    }
}
