//! The two sides of the exchange, without network and without state outside of them.

use super::{CONFIRMATION_BYTES, Code, SPAKE_MESSAGE_BYTES, check_display_name};
use crate::error::{Error, Reason, Result};
use crate::identity::DeviceRequest;
use aws_lc_rs::hmac;
use spake2::{Ed25519Group, Identity, Password, Spake2};
use std::fmt;
use zeroize::Zeroizing;

const LABEL: &[u8] = b"atrium enrolment 1";
const JOINER: &[u8] = b"joiner";
const OFFICE: &[u8] = b"office";

/// Everything that the office tells a machine that it admits; all of it is covered by the office's proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The office's name.
    pub office: String,
    /// Its CA certificates, PEM.
    pub ca_pem: String,
    /// The device's certificate chain, PEM, leaf first.
    pub certificate_pem: String,
    /// The device's id, 64 hex digits.
    pub device_id: String,
}

/// The machine that wants to join, before it has the office's message.
pub struct Joiner {
    spake: Spake2<Ed25519Group>,
    nameplate: String,
    message: Vec<u8>,
}

impl Joiner {
    /// Begins; gives the message for `BeginEnrolment`.
    pub fn start(code: &Code) -> (Self, Vec<u8>) {
        let (spake, message) = Spake2::start_a(&password(code), &Identity::new(JOINER), &Identity::new(OFFICE));
        (Self { spake, nameplate: code.nameplate(), message: message.clone() }, message)
    }

    /// Goes on with the office's message and the key that the server showed; gives the proof for `FinishEnrolment`.
    ///
    /// # Errors
    /// OFFICE_PROOF_WRONG if the message is not one of SPAKE2; FIELD_INVALID for a display name that cannot be one.
    pub fn confirm(
        self,
        office_message: &[u8],
        server_spki_sha256: &[u8; 32],
        certificate_request: &[u8],
        display_name: &str,
    ) -> Result<(JoinerProof, [u8; CONFIRMATION_BYTES])> {
        check_display_name(display_name)?;
        let not_spake = |_| Error::new(Reason::OfficeProofWrong, "the server's answer is not one of this protocol");
        let key = Zeroizing::new(self.spake.finish(office_message).map_err(not_spake)?);
        let transcript = Transcript::new(&Seen {
            nameplate: &self.nameplate,
            joiner_message: &self.message,
            office_message,
            server_spki_sha256,
            certificate_request,
            display_name,
        });
        let confirmation = transcript.sign(&key, JOINER);
        Ok((JoinerProof { key, transcript }, confirmation))
    }
}

/// The machine that has proved itself and waits for the office's proof.
pub struct JoinerProof {
    key: Zeroizing<Vec<u8>>,
    transcript: Transcript,
}

impl JoinerProof {
    /// Checks the office's proof over its answer. Nothing of the answer may be used before.
    ///
    /// # Errors
    /// OFFICE_PROOF_WRONG.
    pub fn check_office(&self, confirmation: &[u8], answer: &Answer) -> Result<()> {
        if self.transcript.with_answer(answer).verify(&self.key, OFFICE, confirmation) {
            Ok(())
        } else {
            Err(Error::new(Reason::OfficeProofWrong, "the server could not prove that it knows the code"))
        }
    }

    /// As [`JoinerProof::check_office`], over an answer that is given as parts. The first part names the protocol that
    /// the parts are of, so that no answer of one is one of another.
    ///
    /// # Errors
    /// OFFICE_PROOF_WRONG.
    pub fn check_parts(&self, confirmation: &[u8], parts: &[&[u8]]) -> Result<()> {
        if self.transcript.with_parts(parts).verify(&self.key, OFFICE, confirmation) {
            Ok(())
        } else {
            Err(Error::new(Reason::OfficeProofWrong, "the other side could not prove that it knows the code"))
        }
    }
}

/// The office's side, after the joiner's first message.
pub struct Office {
    spake: Spake2<Ed25519Group>,
    nameplate: String,
    joiner_message: Vec<u8>,
    message: Vec<u8>,
    server_spki_sha256: [u8; 32],
}

impl Office {
    /// Answers a joiner's message; gives the message to send back.
    ///
    /// # Errors
    /// FIELD_INVALID if the joiner's message has the wrong length or side.
    pub fn start(code: &Code, joiner_message: &[u8], server_spki_sha256: [u8; 32]) -> Result<(Self, Vec<u8>)> {
        if joiner_message.len() != SPAKE_MESSAGE_BYTES || joiner_message[0] != b'A' {
            return Err(Error::new(Reason::FieldInvalid, "spake_message is not a joiner's"));
        }
        let (spake, message) = Spake2::start_b(&password(code), &Identity::new(JOINER), &Identity::new(OFFICE));
        let office = Self {
            spake,
            nameplate: code.nameplate(),
            joiner_message: joiner_message.to_vec(),
            message: message.clone(),
            server_spki_sha256,
        };
        Ok((office, message))
    }

    /// The public part of the code that this is about.
    pub fn nameplate(&self) -> &str {
        &self.nameplate
    }

    /// Checks the joiner's proof.
    ///
    /// # Errors
    /// INVITE_CODE_WRONG if it is wrong: the code must be burned. Nothing else was looked at then.
    pub fn check(self, confirmation: &[u8], certificate_request: &[u8], display_name: &str) -> Result<OfficeProof> {
        let wrong = || Error::new(Reason::InviteCodeWrong, "the proof of the code is wrong");
        let key = Zeroizing::new(self.spake.finish(&self.joiner_message).map_err(|_| wrong())?);
        let transcript = Transcript::new(&Seen {
            nameplate: &self.nameplate,
            joiner_message: &self.joiner_message,
            office_message: &self.message,
            server_spki_sha256: &self.server_spki_sha256,
            certificate_request,
            display_name,
        });
        if !transcript.verify(&key, JOINER, confirmation) {
            return Err(wrong());
        }
        Ok(OfficeProof { key, transcript })
    }
}

/// The office's side, when the joiner has proved that it knows the code.
pub struct OfficeProof {
    key: Zeroizing<Vec<u8>>,
    transcript: Transcript,
}

impl OfficeProof {
    /// The office's proof over its answer.
    pub fn confirm(&self, answer: &Answer) -> [u8; CONFIRMATION_BYTES] {
        self.transcript.with_answer(answer).sign(&self.key, OFFICE)
    }

    /// As [`OfficeProof::confirm`], for [`JoinerProof::check_parts`].
    pub fn confirm_parts(&self, parts: &[&[u8]]) -> [u8; CONFIRMATION_BYTES] {
        self.transcript.with_parts(parts).sign(&self.key, OFFICE)
    }
}

/// What both sides must have seen alike.
struct Seen<'a> {
    nameplate: &'a str,
    joiner_message: &'a [u8],
    office_message: &'a [u8],
    server_spki_sha256: &'a [u8; 32],
    certificate_request: &'a [u8],
    display_name: &'a str,
}

/// Parts one after the other, each with its length (8 bytes, big-endian) before it, so that no two lists of parts give
/// the same bytes.
#[derive(Clone)]
struct Transcript(Vec<u8>);

impl Transcript {
    fn new(seen: &Seen<'_>) -> Self {
        let mut transcript = Self(Vec::with_capacity(1024));
        transcript.push(LABEL);
        transcript.push(seen.nameplate.as_bytes());
        transcript.push(seen.joiner_message);
        transcript.push(seen.office_message);
        transcript.push(seen.server_spki_sha256);
        transcript.push(seen.certificate_request);
        transcript.push(seen.display_name.as_bytes());
        transcript
    }

    fn with_answer(&self, answer: &Answer) -> Self {
        let parts = [&answer.office, &answer.ca_pem, &answer.certificate_pem, &answer.device_id];
        self.with_parts(&parts.map(|part| part.as_bytes()))
    }

    fn with_parts(&self, parts: &[&[u8]]) -> Self {
        let mut transcript = self.clone();
        for part in parts {
            transcript.push(part);
        }
        transcript
    }

    fn push(&mut self, part: &[u8]) {
        self.0.extend_from_slice(&(part.len() as u64).to_be_bytes());
        self.0.extend_from_slice(part);
    }

    fn sign(&self, key: &[u8], role: &[u8]) -> [u8; CONFIRMATION_BYTES] {
        let tag = hmac::sign(&role_key(key, role), &self.0);
        tag.as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes")
    }

    /// In constant time.
    fn verify(&self, key: &[u8], role: &[u8], confirmation: &[u8]) -> bool {
        hmac::verify(&role_key(key, role), &self.0, confirmation).is_ok()
    }
}

/// A key of its own for each role, so that a proof cannot be sent back to the one who made it.
fn role_key(key: &[u8], role: &[u8]) -> hmac::Key {
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &[LABEL, b" key ", role].concat());
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

fn password(code: &Code) -> Password {
    Password::new(code.reveal())
}

/// What a joiner proved beside the code: its key.
pub(super) fn check_request(certificate_request: &[u8], display_name: &str) -> Result<DeviceRequest> {
    check_display_name(display_name)?;
    DeviceRequest::check(certificate_request)
}

macro_rules! opaque {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}
opaque! { Joiner JoinerProof Office OfficeProof }

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPKI: [u8; 32] = [7; 32];

    fn answer() -> Answer {
        Answer { office: "Acme".into(), ca_pem: "ca".into(), certificate_pem: "leaf".into(), device_id: "id".into() }
    }

    /// The office's verdict on a joiner with perhaps another code, another view of the server's key, or changed parts.
    fn meet(joiner_code: &str, seen_by_joiner: [u8; 32], csr: (&[u8], &[u8])) -> Result<(JoinerProof, OfficeProof)> {
        let (joiner, x) = Joiner::start(&joiner_code.parse().unwrap());
        let (office, y) = Office::start(&"7-amber-lion-canal".parse().unwrap(), &x, SPKI).unwrap();
        let (proof, confirmation) = joiner.confirm(&y, &seen_by_joiner, csr.0, "anna-pc").unwrap();
        Ok((proof, office.check(&confirmation, csr.1, "anna-pc")?))
    }

    #[test]
    fn both_believe_each_other_with_the_same_code() {
        let (joiner, office) = meet("7 Amber Lion Canal", SPKI, (b"csr", b"csr")).unwrap();
        joiner.check_office(&office.confirm(&answer()), &answer()).unwrap();
    }

    #[test]
    fn a_wrong_code_another_server_key_or_another_request_is_noticed() {
        for (code, spki, csr) in [
            ("7-amber-lion-cactus", SPKI, &b"csr"[..]),
            ("8-amber-lion-canal", SPKI, b"csr"),
            ("7-amber-lion-canal", [8; 32], b"csr"),
            ("7-amber-lion-canal", SPKI, b"other"),
        ] {
            assert!(meet(code, spki, (b"csr", csr)).unwrap_err().is(Reason::InviteCodeWrong), "{code}");
        }
    }

    #[test]
    fn every_part_of_the_answer_is_covered() {
        let (joiner, office) = meet("7-amber-lion-canal", SPKI, (b"csr", b"csr")).unwrap();
        let proof = office.confirm(&answer());
        let changed = [
            Answer { office: "Acm".into(), ..answer() },
            Answer { ca_pem: "evil".into(), ..answer() },
            Answer { certificate_pem: "evil".into(), ..answer() },
            Answer { device_id: "evil".into(), ..answer() },
            // The same letters, divided otherwise.
            Answer { office: "Acmeca".into(), ca_pem: String::new(), ..answer() },
        ];
        for answer in changed {
            assert!(joiner.check_office(&proof, &answer).unwrap_err().is(Reason::OfficeProofWrong));
        }
        for cut in [&proof[..31], &[][..], &[0; 32][..]] {
            assert!(joiner.check_office(cut, &answer()).is_err());
        }
    }

    #[test]
    fn every_part_of_an_answer_in_parts_is_covered() {
        let (joiner, office) = meet("7-amber-lion-canal", SPKI, (b"csr", b"csr")).unwrap();
        let proof = office.confirm_parts(&[b"protocol", b"Acme", b"digest"]);
        joiner.check_parts(&proof, &[b"protocol", b"Acme", b"digest"]).unwrap();
        let changed: [&[&[u8]]; 5] = [
            &[b"protocol", b"Acme", b"digesu"],
            &[b"protocol", b"Acmed", b"igest"],
            &[b"protoco", b"Acme", b"digest"],
            &[b"protocol", b"Acme"],
            &[b"protocol", b"Acme", b"digest", b""],
        ];
        for parts in changed {
            assert!(joiner.check_parts(&proof, parts).unwrap_err().is(Reason::OfficeProofWrong));
        }
    }

    #[test]
    fn the_joiners_own_proof_is_no_proof_of_the_office() {
        let (joiner, x) = Joiner::start(&"7-amber-lion-canal".parse().unwrap());
        let (_, y) = Office::start(&"7-amber-lion-canal".parse().unwrap(), &x, SPKI).unwrap();
        let (proof, own) = joiner.confirm(&y, &SPKI, b"csr", "anna-pc").unwrap();
        assert!(proof.check_office(&own, &answer()).is_err());
    }

    #[test]
    fn the_joiners_message_sent_back_is_refused() {
        let (joiner, x) = Joiner::start(&"7-amber-lion-canal".parse().unwrap());
        assert!(joiner.confirm(&x, &SPKI, b"csr", "a").unwrap_err().is(Reason::OfficeProofWrong));
    }

    proptest! {
        #[test]
        fn random_messages_never_panic_and_prove_nothing(
            x in proptest::collection::vec(any::<u8>(), 0..80),
            y in proptest::collection::vec(any::<u8>(), 0..80),
            confirmation in proptest::collection::vec(any::<u8>(), 0..80),
            as_point in any::<bool>(),
        ) {
            let code: Code = "7-amber-lion-canal".parse().unwrap();
            let mut x = x;
            if as_point {
                x.resize(SPAKE_MESSAGE_BYTES, 1);
                x[0] = b'A';
            }
            if let Ok((office, _)) = Office::start(&code, &x, SPKI) {
                prop_assert!(office.check(&confirmation, b"csr", "a").unwrap_err().is(Reason::InviteCodeWrong));
            }
            let mut y = y;
            if as_point {
                y.resize(SPAKE_MESSAGE_BYTES, 1);
                y[0] = b'B';
            }
            let (joiner, _) = Joiner::start(&code);
            if let Ok((proof, _)) = joiner.confirm(&y, &SPKI, b"csr", "a") {
                prop_assert!(proof.check_office(&confirmation, &answer()).is_err());
            }
        }
    }
}
