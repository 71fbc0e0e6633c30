//! What this machine shares: the device's settings as its person gave them, kept in the store under `d/s/`.
//!
//! A record is the `ShareDeviceRequest` itself. Names of one kind are told apart without regard to letter case. The book
//! is small (at most [`DEVICES_MAX`]) and wholly in memory; each change is on disk before it is answered.

use common::error::{Error, Reason, Result};
use common::model::{EntryName, Right, fold};
use common::store::{Store, prefix_end};
use device::model::Kind;
use parking_lot::RwLock;
use prost::Message;
use proto::peer::v1 as wire;
use proto::peer::v1::share_device_request::Kind as Share;
use proto::v1::Grant;
use proto::v1::principal::Kind as Principal;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most devices that a machine shares.
pub const DEVICES_MAX: usize = 64;
/// Most grants of a device.
const GRANTS_MAX: usize = 256;
/// Longest text for people.
const TEXT_MAX: usize = 255;
/// Where the records are.
const SPACE: &[u8] = b"d/s/";

/// A device of this machine as it is shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// The last segment of its address.
    pub name: String,
    /// As its person shared it.
    pub share: wire::ShareDeviceRequest,
}

impl Entry {
    /// Checks what a person asks for.
    ///
    /// # Errors
    /// NAME_INVALID, RESOURCE_INVALID, FIELD_INVALID.
    pub fn new(share: wire::ShareDeviceRequest) -> Result<Self> {
        let kind = match &share.kind {
            Some(Share::Printer(_)) => Kind::Printer,
            Some(Share::Drive(_)) => Kind::Drive,
            Some(Share::Disk(_)) => Kind::Disk,
            None => return Err(Error::new(Reason::ResourceInvalid, "it is not said what kind of device it is")),
        };
        let name = EntryName::new(share.name.as_str())?.as_str().to_owned();
        if share.grants.len() > GRANTS_MAX {
            return Err(Error::new(Reason::FieldInvalid, "a device has at most 256 grants").with("field", "grants"));
        }
        if share.description.len() > TEXT_MAX || share.description.chars().any(char::is_control) {
            return Err(Error::new(Reason::FieldInvalid, "the description is longer than 255 bytes or not one line")
                .with("field", "description"));
        }
        Ok(Self { kind, name, share })
    }

    /// Its name at this node: "printers/laser".
    pub fn local_name(&self) -> String {
        format!("{}/{}", self.kind.segment(), self.name)
    }
}

/// True for a folder printer and for a drive of image files.
pub fn is_simulated(share: &wire::ShareDeviceRequest) -> bool {
    match &share.kind {
        Some(Share::Printer(p)) => {
            matches!(p.output.as_ref().and_then(|o| o.kind.as_ref()), Some(wire::printer_output::Kind::Folder(_)))
        }
        Some(Share::Drive(d)) => matches!(d.kind, Some(wire::drive_share::Kind::Image(_))),
        _ => false,
    }
}

/// The right that everybody in the office has.
pub fn everyones(share: &wire::ShareDeviceRequest) -> Option<Right> {
    let of_everyone =
        |g: &&Grant| matches!(g.principal.as_ref().and_then(|p| p.kind.as_ref()), Some(Principal::Everyone(true)));
    share.grants.iter().filter(of_everyone).filter_map(|g| Right::from_number(g.right)).max()
}

/// All of them.
pub struct Book {
    store: Store,
    entries: RwLock<BTreeMap<(Kind, String), Arc<Entry>>>,
}

fn key(kind: Kind, name: &str) -> Vec<u8> {
    [SPACE, kind.segment().as_bytes(), b"/", fold(name).as_bytes()].concat()
}

impl Book {
    /// Reads what is kept. Blocks.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(store: Store) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (_, bytes) in store.range(SPACE, &prefix_end(SPACE), DEVICES_MAX)? {
            let share = wire::ShareDeviceRequest::decode(&bytes[..])
                .map_err(|e| Error::new(Reason::StoreCorrupt, "the record of a shared device").caused_by(e))?;
            let entry = Entry::new(share)?;
            entries.insert((entry.kind, fold(&entry.name)), Arc::new(entry));
        }
        Ok(Self { store, entries: RwLock::new(entries) })
    }

    /// All, by kind and name.
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.read().values().cloned().collect()
    }

    /// One.
    pub fn get(&self, kind: Kind, name: &str) -> Option<Arc<Entry>> {
        self.entries.read().get(&(kind, fold(name))).cloned()
    }

    /// Keeps one, in the place of an older one of its name.
    ///
    /// # Errors
    /// STORE_LIMIT if there are too many; those of the store.
    pub async fn put(&self, entry: Arc<Entry>) -> Result<()> {
        let at = (entry.kind, fold(&entry.name));
        {
            let entries = self.entries.read();
            if !entries.contains_key(&at) && entries.len() >= DEVICES_MAX {
                return Err(Error::new(Reason::StoreLimit, "a machine shares at most 64 devices")
                    .fix_is("unshare one that nobody uses"));
            }
        }
        let (key, bytes) = (key(entry.kind, &entry.name), entry.share.encode_to_vec());
        self.store.transact(move |txn| txn.put(key.clone(), bytes.clone())).await?;
        self.entries.write().insert(at, entry);
        Ok(())
    }

    /// Forgets one.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove(&self, kind: Kind, name: &str) -> Result<()> {
        let key = key(kind, name);
        self.store.transact(move |txn| txn.delete(key.clone())).await?;
        self.entries.write().remove(&(kind, fold(name)));
        Ok(())
    }
}
