//! Share records: what an owner states about a share, signed, and the rule by which one replaces another.
//!
//! A share's id is made from its owner's key, so nobody else can make a record of it. Of two records of one share the one
//! that is *removed* counts, then the one with the higher revision, then the one with the greater digest: the same
//! winner everywhere, in whatever order records arrive.

use common::error::{Error, Reason, Result};
use common::identity::{DeviceKey, random_bytes};
use common::model::{DeviceId, EntryName, Right};
use ed25519_dalek::{Signature, VerifyingKey};
use prost::Message;
use proto::peer::v1 as wire;
use proto::v1::{Grant, principal};
use std::collections::HashSet;
use uuid::Uuid;

use crate::model::{OfficeId, ShareId};

/// Longest serialized share.
pub const RECORD_BYTES_MAX: usize = 48 << 10;
/// Most grants of a share.
pub const GRANTS_MAX: usize = 256;
/// Longest ignore rules of a share, in bytes.
pub const RULES_BYTES_MAX: usize = 16 << 10;
/// Most lines of ignore rules.
pub const RULES_LINES_MAX: usize = 1_000;

const SIGN_CONTEXT: &[u8] = b"atrium share v1\0";
const ID_CONTEXT: &[u8] = b"atrium share id v1\0";

/// A share as its owner states it. Only made by [`Terms::sign`] and [`ShareRecord::verify`]: one that exists is valid.
#[derive(Clone, PartialEq, Debug)]
pub struct ShareRecord {
    share: ShareId,
    owner: DeviceId,
    terms: Terms,
    signed: wire::ShareRecord,
    digest: [u8; 32],
}

/// What an owner decides about a share.
#[derive(Clone, PartialEq, Debug)]
pub struct Terms {
    /// Makes the id, together with the owner's key.
    pub nonce: [u8; 16],
    /// The office.
    pub office: OfficeId,
    /// One segment below the owner's node name.
    pub name: String,
    /// Members with write change it on their own copies.
    pub two_way: bool,
    /// Who may do what.
    pub grants: Vec<Grant>,
    /// Counts the changes.
    pub revision: u64,
    /// No longer shared, for good.
    pub removed: bool,
    /// Lines in the syntax of gitignore.
    pub ignore_rules: String,
}

impl Terms {
    /// Terms of a new share, with a random nonce.
    pub fn new(office: OfficeId, name: &str) -> Self {
        Self {
            nonce: random_bytes(),
            office,
            name: name.to_owned(),
            two_way: false,
            grants: Vec::new(),
            revision: 1,
            removed: false,
            ignore_rules: String::new(),
        }
    }

    /// Signs them.
    ///
    /// # Errors
    /// SHARE_INVALID or NAME_INVALID if a record of them would not be accepted.
    pub fn sign(&self, key: &DeviceKey) -> Result<ShareRecord> {
        let owner_key = key.public_key();
        let mode = if self.two_way { wire::ShareMode::TwoWay } else { wire::ShareMode::ReadOnly };
        let share = wire::Share {
            share_id: share_id(&owner_key, &self.nonce).as_bytes().to_vec().into(),
            owner_key: owner_key.to_vec().into(),
            share_name: self.name.clone(),
            mode: mode.into(),
            grants: self.grants.clone(),
            revision: self.revision,
            removed: self.removed,
            ignore_rules: self.ignore_rules.clone(),
            office_id: self.office.0.to_vec().into(),
            nonce: self.nonce.to_vec().into(),
        };
        let share = share.encode_to_vec();
        let signature = key.sign(&signed_text(&share));
        ShareRecord::verify(&wire::ShareRecord { share: share.into(), signature: signature.to_vec().into() })
    }
}

/// The id of a share: UUIDv8 from the owner's key and a nonce.
pub fn share_id(owner_key: &[u8; 32], nonce: &[u8; 16]) -> ShareId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(ID_CONTEXT).update(owner_key).update(nonce);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    ShareId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

fn signed_text(share: &[u8]) -> Vec<u8> {
    [SIGN_CONTEXT, share].concat()
}

fn wrong(what: &str) -> Error {
    Error::new(Reason::ShareInvalid, format!("a share record was refused: {what}"))
}

impl ShareRecord {
    /// Checks a record that came from anywhere.
    ///
    /// # Errors
    /// SHARE_INVALID if it is malformed, beyond a bound, or not signed by the owner that its id belongs to.
    pub fn verify(signed: &wire::ShareRecord) -> Result<Self> {
        if signed.share.len() > RECORD_BYTES_MAX {
            return Err(wrong("it is longer than 48 KiB"));
        }
        let share = wire::Share::decode(&signed.share[..]).map_err(|_| wrong("it cannot be decoded"))?;
        let owner_key: [u8; 32] = share.owner_key[..].try_into().map_err(|_| wrong("the owner's key"))?;
        let nonce: [u8; 16] = share.nonce[..].try_into().map_err(|_| wrong("the nonce"))?;
        let office = share.office_id[..].try_into().map(OfficeId).map_err(|_| wrong("the office"))?;
        let id = share_id(&owner_key, &nonce);
        if share.share_id[..] != id.as_bytes()[..] {
            return Err(wrong("its id does not belong to its owner"));
        }
        let signature = Signature::from_slice(&signed.signature).map_err(|_| wrong("the signature"))?;
        VerifyingKey::from_bytes(&owner_key)
            .and_then(|key| key.verify_strict(&signed_text(&signed.share), &signature))
            .map_err(|_| wrong("the signature is not the owner's"))?;
        let two_way = match share.mode() {
            wire::ShareMode::ReadOnly => false,
            wire::ShareMode::TwoWay => true,
            wire::ShareMode::Unspecified => return Err(wrong("the mode")),
        };
        if EntryName::new(share.share_name.as_str()).is_err() || share.share_name == "*" {
            return Err(wrong("the name"));
        }
        check_grants(&share.grants)?;
        if share.ignore_rules.len() > RULES_BYTES_MAX || share.ignore_rules.lines().nth(RULES_LINES_MAX).is_some() {
            return Err(wrong("the ignore rules are longer than 16 KiB or 1,000 lines"));
        }
        let terms = Terms {
            nonce,
            office,
            name: share.share_name,
            two_way,
            grants: share.grants,
            revision: share.revision,
            removed: share.removed,
            ignore_rules: share.ignore_rules,
        };
        let digest = *blake3::hash(&signed.share).as_bytes();
        // Copied: what was received may be a small part of a large buffer.
        let signed =
            wire::ShareRecord { share: signed.share.to_vec().into(), signature: signed.signature.to_vec().into() };
        Ok(Self { share: id, owner: DeviceId::of_key(&owner_key), terms, signed, digest })
    }

    /// Which share.
    pub fn share(&self) -> ShareId {
        self.share
    }
    /// Whose.
    pub fn owner(&self) -> DeviceId {
        self.owner
    }
    /// What the owner states.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }
    /// Name below the owner's node name.
    pub fn name(&self) -> &str {
        &self.terms.name
    }
    /// No longer shared.
    pub fn removed(&self) -> bool {
        self.terms.removed
    }
    /// The signed form.
    pub fn signed(&self) -> &wire::ShareRecord {
        &self.signed
    }
    /// BLAKE3 of the serialized share.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// True if this one counts and the other does not.
    pub fn replaces(&self, other: &ShareRecord) -> bool {
        let rank = |r: &ShareRecord| (r.terms.removed, r.terms.revision, r.digest);
        rank(self) > rank(other)
    }
}

/// Checks grants.
///
/// # Errors
/// SHARE_INVALID: too many, one without principal or right, or two for one principal.
pub fn check_grants(grants: &[Grant]) -> Result<()> {
    if grants.len() > GRANTS_MAX {
        return Err(wrong("it has more than 256 grants"));
    }
    let mut seen = HashSet::new();
    for grant in grants {
        let kind = grant.principal.as_ref().and_then(|p| p.kind.as_ref()).ok_or_else(|| wrong("a grant for nobody"))?;
        let (sort, name) = match kind {
            principal::Kind::User(name) => (0, name.as_str()),
            principal::Kind::Group(name) => (1, name.as_str()),
            principal::Kind::Device(id) => {
                id.parse::<DeviceId>().map_err(|()| wrong("a grant for a device without a valid id"))?;
                (2, id.as_str())
            }
            principal::Kind::Everyone(true) => (3, "everyone"),
            principal::Kind::Everyone(false) => return Err(wrong("a grant for nobody")),
        };
        if name.is_empty() || name.len() > 255 || !seen.insert((sort, name)) {
            return Err(wrong("a grant's principal is empty, too long or named twice"));
        }
        Right::from_number(grant.right).ok_or_else(|| wrong("a grant without a right"))?;
    }
    Ok(())
}

/// The nil id, which no share has.
pub const NO_SHARE: ShareId = ShareId(Uuid::nil());

#[cfg(test)]
mod tests {
    use super::*;

    fn office() -> OfficeId {
        OfficeId([7; 32])
    }

    fn record(key: &DeviceKey, terms: &Terms) -> ShareRecord {
        terms.sign(key).unwrap()
    }

    #[test]
    fn a_signed_record_is_verified_and_a_changed_one_refused() {
        let key = DeviceKey::generate();
        let terms = Terms::new(office(), "plans");
        let good = record(&key, &terms);
        assert_eq!(ShareRecord::verify(good.signed()).unwrap(), good);
        for i in 0..good.signed().share.len() {
            let mut share = good.signed().share.to_vec();
            share[i] ^= 1;
            let forged = wire::ShareRecord { share: share.into(), signature: good.signed().signature.clone() };
            assert!(ShareRecord::verify(&forged).is_err(), "byte {i}");
        }
    }

    #[test]
    fn nobody_else_can_state_anything_about_a_share() {
        let (anna, mallory) = (DeviceKey::generate(), DeviceKey::generate());
        let terms = Terms::new(office(), "plans");
        let good = record(&anna, &terms);
        let mut share = wire::Share::decode(&good.signed().share[..]).unwrap();
        // With her own key under the same id: the id does not fit.
        share.owner_key = mallory.public_key().to_vec().into();
        share.revision = 99;
        let bytes = share.encode_to_vec();
        let signature = mallory.sign(&signed_text(&bytes)).to_vec();
        let forged = wire::ShareRecord { share: bytes.into(), signature: signature.into() };
        assert!(ShareRecord::verify(&forged).unwrap_err().is(Reason::ShareInvalid));
        // The owner's key, signed by another.
        share.owner_key = anna.public_key().to_vec().into();
        let bytes = share.encode_to_vec();
        let signature = mallory.sign(&signed_text(&bytes)).to_vec();
        let forged = wire::ShareRecord { share: bytes.into(), signature: signature.into() };
        assert!(ShareRecord::verify(&forged).unwrap_err().is(Reason::ShareInvalid));
    }

    #[test]
    fn one_record_wins_whatever_the_order() {
        let key = DeviceKey::generate();
        let first = Terms::new(office(), "plans");
        let second = Terms { revision: 2, ..first.clone() };
        let removed = Terms { revision: 2, removed: true, ..first.clone() };
        let revived = Terms { revision: 9, ..first.clone() };
        let all: Vec<_> = [first, second, removed, revived].iter().map(|t| record(&key, t)).collect();
        for a in &all {
            assert!(!a.replaces(a));
            for b in &all {
                assert!(a == b || a.replaces(b) != b.replaces(a));
            }
        }
        assert!(all[1].replaces(&all[0]));
        assert!(all[2].replaces(&all[3]), "removed stays removed");
    }

    #[test]
    fn terms_beyond_the_bounds_are_refused() {
        let key = DeviceKey::generate();
        let good = Terms::new(office(), "plans");
        let grant = |kind, right| Grant { principal: Some(proto::v1::Principal { kind }), right };
        let anna = Some(principal::Kind::User("anna".into()));
        for bad in [
            Terms { name: "a/b".into(), ..good.clone() },
            Terms { name: "..".into(), ..good.clone() },
            Terms { name: "*".into(), ..good.clone() },
            Terms { ignore_rules: "x\n".repeat(RULES_BYTES_MAX), ..good.clone() },
            Terms { grants: vec![grant(None, 2)], ..good.clone() },
            Terms { grants: vec![grant(anna.clone(), 0)], ..good.clone() },
            Terms { grants: vec![grant(anna.clone(), 2), grant(anna.clone(), 3)], ..good.clone() },
            Terms { grants: vec![grant(Some(principal::Kind::Device("xyz".into())), 2)], ..good.clone() },
        ] {
            assert!(bad.sign(&key).unwrap_err().is(Reason::ShareInvalid), "{bad:?}");
        }
        Terms { grants: vec![grant(anna, 2), grant(Some(principal::Kind::Everyone(true)), 1)], ..good }
            .sign(&key)
            .unwrap();
    }
}
