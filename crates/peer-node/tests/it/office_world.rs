//! Members as tests see them: a key and the records that it knows, without network and store.

use common::identity::DeviceKey;
use common::model::DeviceId;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::EncodePrivateKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use peer_node::office::{
    Draft, Inserted, Kind, Ledger, Profile, Record, Statement, View, evaluate, found, sealing_key,
};
use rand::Rng;
use rand::rngs::StdRng;
use std::sync::Arc;

/// A device and what it knows.
#[derive(Clone)]
pub struct Knower {
    pub key: Arc<DeviceKey>,
    pub ledger: Ledger,
}

/// A key that a seed decides, so that a history can be made again.
pub fn seeded_key(random: &mut StdRng) -> Arc<DeviceKey> {
    let pem = SigningKey::from_bytes(&random.random()).to_pkcs8_pem(LineEnding::LF).unwrap();
    Arc::new(DeviceKey::from_pem(&pem).unwrap())
}

pub fn profile(name: &str, may_invite: bool, may_manage: bool) -> Profile {
    let (display_name, person) = (format!("{name}-pc"), name.to_owned());
    Profile { display_name, person, unit: String::new(), may_invite, may_manage }
}

impl Knower {
    /// The founder of an office.
    pub fn founder(name: &str) -> Self {
        Self::founder_with(name, Arc::new(DeviceKey::generate()))
    }

    /// The founder of an office, with this key.
    pub fn founder_with(name: &str, key: Arc<DeviceKey>) -> Self {
        let record = found(&key, "acme", [7; 16], sealing_key(&key).unwrap(), profile(name, true, true), 1).unwrap();
        Self { key, ledger: Ledger::found(record).unwrap() }
    }

    /// Admits a new device, which then knows what this one knows.
    pub fn admit(&mut self, name: &str, may_invite: bool, may_manage: bool) -> Self {
        self.admit_key(Arc::new(DeviceKey::generate()), name, may_invite, may_manage)
    }

    /// Admits this device.
    pub fn admit_key(&mut self, key: Arc<DeviceKey>, name: &str, may_invite: bool, may_manage: bool) -> Self {
        let sealing = sealing_key(&key).unwrap();
        let public = key.public_key();
        self.state(|d| d.admit(public, sealing, profile(name, may_invite, may_manage)));
        Self { key, ledger: self.ledger.clone() }
    }

    pub fn device(&self) -> DeviceId {
        self.key.device_id()
    }

    pub fn view(&self) -> View {
        evaluate(&self.ledger, self.device())
    }

    /// States what the draft says, as the program does.
    pub fn try_state(
        &mut self,
        draft: impl FnOnce(Draft<'_>) -> common::error::Result<Vec<Kind>>,
    ) -> common::error::Result<Vec<Record>> {
        let view = self.view();
        let context = Draft::new(&self.ledger, &view)?;
        let records = context.sign(&self.key, draft(context)?, 1_000)?;
        self.ledger.insert(records.clone());
        Ok(records)
    }

    pub fn state(&mut self, draft: impl FnOnce(Draft<'_>) -> common::error::Result<Vec<Kind>>) -> Vec<Record> {
        self.try_state(draft).unwrap()
    }

    pub fn revoke(&mut self, other: &Knower) -> Vec<Record> {
        let device = other.device();
        self.state(|d| d.revoke(device, String::new()))
    }

    /// States anything, as a program could that keeps to no rule: after the statement with this number.
    pub fn lie(&self, after: u64, kind: Kind) -> Record {
        let previous = self.ledger.by(&self.device()).find(|r| r.statement().sequence == after).unwrap();
        let statement = Statement {
            office: Some(self.ledger.office()),
            author_key: self.key.public_key(),
            author: self.device(),
            sequence: after + 1,
            previous: Some(previous.statement_id()),
            create_ms: 1,
            kind,
        };
        Record::sign(&self.key, &statement).unwrap()
    }

    /// Its first statement, whatever it says.
    pub fn lie_first(&self, kind: Kind) -> Record {
        let statement = Statement {
            office: Some(self.ledger.office()),
            author_key: self.key.public_key(),
            author: self.device(),
            sequence: 1,
            previous: None,
            create_ms: 1,
            kind,
        };
        Record::sign(&self.key, &statement).unwrap()
    }

    /// Learns everything that another one knows, until nothing more is taken.
    pub fn learn(&mut self, other: &Ledger) {
        self.take(&other.records().cloned().collect::<Vec<_>>());
    }

    pub fn take(&mut self, records: &[Record]) -> Inserted {
        settle(&mut self.ledger, records)
    }
}

/// Both learn what the other knows.
pub fn sync(a: &mut Knower, b: &mut Knower) {
    let before = a.ledger.clone();
    a.learn(&b.ledger);
    b.learn(&before);
    assert_eq!(a.ledger.digest(), b.ledger.digest());
}

/// Offers records again and again until nothing more is taken, as exchanges do.
pub fn settle(ledger: &mut Ledger, records: &[Record]) -> Inserted {
    loop {
        let inserted = ledger.insert(records.to_vec());
        if inserted.accepted.is_empty() {
            return inserted;
        }
    }
}

/// The view without who looks.
pub fn seen(ledger: &Ledger) -> View {
    evaluate(ledger, DeviceId([0; 32]))
}
