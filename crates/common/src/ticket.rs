//! Read tickets: the central server's word that a machine may have the chunks of some file versions, from whoever has
//! them (`atrium.v1.ReadTicket`).
//!
//! A ticket is for one device and for contents, named by their manifests' digests. Whoever is shown one checks the
//! office's signature, the device and the time; nothing has to be asked, so tickets hold while the server is away. They
//! cannot be taken back before their day is over, which is why it is one day. What is signed begins with words of its own,
//! so that nothing else that the office's key has signed can be taken for a ticket.

use crate::error::{Error, Reason, Result};
use crate::model::DeviceId;
use crate::tls::{OfficeCa, check_office_signature};
use bytes::Bytes;
use prost::Message;
use proto::v1;
use std::time::Duration;

/// How long a ticket holds.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Most contents of a ticket.
pub const MAX_MANIFESTS: usize = 1_000;
/// Largest ticket: as many digests with their framing, and the rest.
pub const MAX_BYTES: usize = 40 * 1024;
/// Largest signature.
pub const MAX_SIGNATURE_BYTES: usize = 256;
/// Clocks of two machines may differ by this much.
const LENIENCE_MS: u64 = 5 * 60 * 1000;
const CONTEXT: &[u8] = b"atrium read ticket v1\0";

/// What a ticket says, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The office's name.
    pub office: String,
    /// Who may show it.
    pub device: DeviceId,
    /// The contents, ascending.
    pub manifests: Vec<[u8; 32]>,
    /// End of its validity, milliseconds since 1970.
    pub expire_ms: u64,
}

fn wrong(why: &'static str) -> Error {
    Error::new(Reason::FieldInvalid, "this is no read ticket").why_is(why)
}

impl Ticket {
    /// A ticket that begins now. Doubles are left out.
    pub fn new(office: &str, device: DeviceId, manifests: impl IntoIterator<Item = [u8; 32]>, now_ms: u64) -> Self {
        let mut manifests: Vec<[u8; 32]> = manifests.into_iter().collect();
        manifests.sort_unstable();
        manifests.dedup();
        let life = u64::try_from(LIFETIME.as_millis()).unwrap_or(u64::MAX);
        Self { office: office.to_owned(), device, manifests, expire_ms: now_ms.saturating_add(life) }
    }

    /// The ticket and its signature.
    ///
    /// # Errors
    /// INTERNAL.
    pub fn sign(&self, ca: &OfficeCa) -> Result<(Vec<u8>, Vec<u8>)> {
        let seconds = i64::try_from(self.expire_ms / 1000).unwrap_or(i64::MAX);
        let ticket = v1::ReadTicket {
            office: self.office.clone(),
            device_id: Bytes::copy_from_slice(&self.device.0),
            manifest_digests: self.manifests.iter().map(|d| Bytes::copy_from_slice(d)).collect(),
            expire_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        };
        let ticket = ticket.encode_to_vec();
        let signature = ca.sign(&[CONTEXT, &ticket].concat())?;
        Ok((ticket, signature))
    }

    /// Reads a ticket without believing it.
    ///
    /// # Errors
    /// FIELD_INVALID if it is too long or is none.
    pub fn read(ticket: &[u8]) -> Result<Self> {
        if ticket.len() > MAX_BYTES {
            return Err(wrong("it is longer than any ticket"));
        }
        let read = v1::ReadTicket::decode(ticket).map_err(|e| wrong("it cannot be decoded").caused_by(e))?;
        let digest = |d: &Bytes| <[u8; 32]>::try_from(&d[..]).map_err(|_| wrong("a digest has not 32 bytes"));
        let manifests: Vec<[u8; 32]> = read.manifest_digests.iter().map(digest).collect::<Result<_>>()?;
        if manifests.len() > MAX_MANIFESTS || manifests.is_empty() || !manifests.is_sorted_by(|a, b| a < b) {
            return Err(wrong("its contents are none, too many or not in order"));
        }
        let device = <[u8; 32]>::try_from(&read.device_id[..]).map_err(|_| wrong("its device has not 32 bytes"))?;
        let seconds = read.expire_time.map_or(0, |t| t.seconds);
        Ok(Self {
            office: read.office,
            device: DeviceId(device),
            manifests,
            expire_ms: u64::try_from(seconds).unwrap_or(0).saturating_mul(1000),
        })
    }

    /// Reads and checks a ticket that a device shows.
    ///
    /// # Errors
    /// ACCESS_DENIED if it is not of this office, of another device or expired; FIELD_INVALID if it is no ticket;
    /// CERTIFICATE_INVALID if the office's certificates cannot be read.
    pub fn verify(ca_pem: &str, ticket: &[u8], signature: &[u8], asker: &DeviceId, now_ms: u64) -> Result<Self> {
        let read = Self::read(ticket)?;
        let refused = |why: &'static str| Error::new(Reason::AccessDenied, "the read ticket does not hold").why_is(why);
        if signature.len() > MAX_SIGNATURE_BYTES {
            return Err(refused("its signature is not of this office"));
        }
        check_office_signature(ca_pem, &[CONTEXT, ticket].concat(), signature)
            .map_err(|e| refused("its signature is not of this office").caused_by(e))?;
        if read.device != *asker {
            return Err(refused("it is for another machine"));
        }
        if read.expire_ms.saturating_add(LENIENCE_MS) <= now_ms {
            return Err(refused("it has expired").fix_is("begin the transfer anew"));
        }
        Ok(read)
    }

    /// True if the content is in it.
    pub fn covers(&self, manifest: &[u8; 32]) -> bool {
        self.manifests.binary_search(manifest).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;
    const DAY: u64 = 24 * 3600 * 1000;

    fn reason<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().reason().to_owned()
    }

    #[test]
    fn a_ticket_holds_for_its_device_and_its_day_only() {
        let (ca, other) = (OfficeCa::create("acme", NOW).unwrap(), OfficeCa::create("acme", NOW).unwrap());
        let device = DeviceId([1; 32]);
        let ticket = Ticket::new("acme", device, [[9; 32], [3; 32], [9; 32]], NOW);
        let (bytes, signature) = ticket.sign(&ca).unwrap();
        let verify = |ca: &OfficeCa, bytes: &[u8], signature: &[u8], asker: &DeviceId, now: u64| {
            Ticket::verify(ca.ca_pem(), bytes, signature, asker, now)
        };
        assert_eq!(verify(&ca, &bytes, &signature, &device, NOW + DAY).unwrap(), ticket);
        assert!(ticket.covers(&[9; 32]) && !ticket.covers(&[4; 32]));
        assert_eq!(reason(verify(&ca, &bytes, &signature, &DeviceId([2; 32]), NOW)), "ACCESS_DENIED");
        assert_eq!(reason(verify(&ca, &bytes, &signature, &device, NOW + DAY + LENIENCE_MS)), "ACCESS_DENIED");
        assert_eq!(reason(verify(&other, &bytes, &signature, &device, NOW)), "ACCESS_DENIED");
        assert_eq!(reason(verify(&ca, &bytes, &[0; 400], &device, NOW)), "ACCESS_DENIED");
        // The same bytes signed without the words in front of them.
        assert_eq!(reason(verify(&ca, &bytes, &ca.sign(&bytes).unwrap(), &device, NOW)), "ACCESS_DENIED");
        for at in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[at] ^= 1;
            assert!(verify(&ca, &forged, &signature, &device, NOW).is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_is_no_ticket_is_refused() {
        for bad in [&b""[..], b"x", &[0xff; 64], &vec![0; MAX_BYTES + 1]] {
            assert_eq!(reason(Ticket::read(bad)), "FIELD_INVALID");
        }
        let largest = (0..MAX_MANIFESTS as u32).map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes());
        let ca = OfficeCa::create("acme", NOW).unwrap();
        let (bytes, _) = Ticket::new(&"x".repeat(64), DeviceId([1; 32]), largest, NOW).sign(&ca).unwrap();
        assert!(bytes.len() <= MAX_BYTES, "{}", bytes.len());
        assert_eq!(Ticket::read(&bytes).unwrap().manifests.len(), MAX_MANIFESTS);
    }
}
