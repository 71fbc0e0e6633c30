//! Joining: both sides of the exchange with a one-time code, and introductions.
//!
//! SPAKE2 as in [`common::enrol`]. The TLS key in the transcript is the certificate key of the inviting node as each side
//! sees it, so somebody in between with a key of its own makes both proofs fail. The office's proof covers the office's
//! name, all records and the new device's id; the joiner believes nothing before it has checked it, and then checks that
//! the records make both of them members.

use super::announce::{Announcement, MAX_IN_MESSAGE};
use super::kept::Batch;
use super::merge::MAX_PUSH_RECORDS;
use super::record::{Profile, Record};
use super::{Ledger, Office, cut, evaluate, names, sealing_key};
use aws_lc_rs::digest;
use bytes::Bytes;
use common::bulk::GrpcChannel;
use common::enrol::{Begun, Code, Joiner, Proven};
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::model::DeviceId;
use common::status::from_status;
use proto::peer::v1 as peer;
use proto::peer::v1::enrolment_service_client::EnrolmentServiceClient;
use std::time::Duration;

/// First part of the office's answer: names the protocol.
const PROTOCOL: &[u8] = b"atrium.peer.v1";
/// Most bytes of records that a new member is given at once.
const MAX_RECORDS_BYTES: usize = 16 << 20;
/// Most bytes of an introduction: a stranger may send 64 KiB.
const MAX_INTRODUCTION_BYTES: usize = 48 << 10;
/// Largest answer that is read from an office that has not proved itself yet.
const MAX_ANSWER: usize = 32 << 20;
/// For each of the two calls.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_EXCHANGE_ID: usize = 256;
/// What goes before an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410 section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// SHA-256 of the SubjectPublicKeyInfo of a node's TLS key: what the transcript pins.
pub fn key_digest(public_key: &[u8; 32]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, &[&SPKI_PREFIX[..], public_key].concat());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// What a machine learns by joining.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joined {
    /// The office's name.
    pub office: String,
    /// Full name of this node.
    pub node_name: String,
    /// The person, as the invite has it.
    pub person: String,
}

/// What a joiner asks for in its second message.
#[derive(Clone, Debug)]
pub(super) struct Finish {
    pub(super) exchange_id: String,
    pub(super) confirmation: Bytes,
    pub(super) certificate_request: Bytes,
    pub(super) display_name: String,
    pub(super) person: String,
    pub(super) sealing_key: Bytes,
}

/// BLAKE3 over all records, each part with its length before it.
fn records_digest(records: &[peer::Record]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in records.iter().flat_map(|r| [&r.statement, &r.signature]) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

impl Office {
    /// The inviting side's first step.
    ///
    /// # Errors
    /// INVITE_UNKNOWN, FIELD_INVALID, TOO_MANY_EXCHANGES.
    pub(super) fn begin_enrolment(&self, nameplate: &str, message: &[u8]) -> Result<Begun> {
        let now_ms = self.0.clock.now_ms();
        let code = self.0.invites.lock().get(nameplate, now_ms)?.code()?;
        self.0.exchanges.begin(&code, message, key_digest(&self.0.key.public_key()))
    }

    /// The inviting side's second step: admits the machine, durably, before it answers.
    ///
    /// # Errors
    /// EXCHANGE_UNKNOWN; INVITE_CODE_WRONG, and the code is burned; INVITE_UNKNOWN if it was used or taken back
    /// meanwhile; DEVICE_REVOKED for a device that was cut off; FIELD_INVALID, CERTIFICATE_REQUEST_INVALID,
    /// ACCESS_DENIED if this member may not invite any more, OFFICE_FULL; those of the store.
    pub(super) async fn finish_enrolment(&self, finish: Finish) -> Result<peer::FinishEnrolmentResponse> {
        let proven = self.0.exchanges.finish(
            &finish.exchange_id,
            &finish.confirmation,
            &finish.certificate_request,
            &finish.display_name,
        );
        let proven = match proven {
            Err(error) if error.is(Reason::InviteCodeWrong) => {
                if let Some(nameplate) = error.detail("nameplate") {
                    // Burned already if somebody else was quicker.
                    let _ = self.withdraw_invite(nameplate).await;
                }
                return Err(error.fix_is("ask for a new code, `atrium invite`; this one is burned"));
            }
            other => other?,
        };
        self.admit(&proven, &finish).await?;
        self.answer(&proven)
    }

    async fn admit(&self, proven: &Proven, finish: &Finish) -> Result<()> {
        names::check_machine(&proven.display_name)?;
        let wrong = |_| Error::new(Reason::FieldInvalid, "sealing_key has not 32 bytes").with("field", "sealing_key");
        let sealing_key = finish.sealing_key[..].try_into().map_err(wrong)?;
        let (nameplate, display_name) = (proven.nameplate.clone(), proven.display_name.clone());
        let (device_key, device) = (*proven.request.public_key(), proven.request.device_id());
        let (asked_person, office) = (finish.person.clone(), self.clone());
        let also = Batch::default().without_invite(&nameplate);
        let admitted = self.author(also, move |draft| {
            let now_ms = office.0.clock.now_ms();
            let invite = office.0.invites.lock().get(&nameplate, now_ms)?;
            let person = if invite.person.is_empty() { asked_person } else { invite.person };
            let (may_invite, may_manage) = (invite.may_invite, invite.may_manage);
            let profile = Profile { display_name, person, unit: invite.unit, may_invite, may_manage };
            let kinds = match draft.view().is_member(&device) {
                true => Vec::new(),
                false => draft.admit(device_key, sealing_key, profile)?,
            };
            // From here on it is used: nobody else finds it.
            office.0.invites.lock().take(&nameplate, now_ms)?;
            Ok(kinds)
        });
        admitted.await?;
        self.0.exchanges.forget(&proven.nameplate);
        Ok(())
    }

    fn answer(&self, proven: &Proven) -> Result<peer::FinishEnrolmentResponse> {
        let device = proven.request.device_id();
        let records = self.with_ledger(|ledger| ledger.whole(&device, MAX_RECORDS_BYTES)).unwrap_or_default();
        let records: Vec<peer::Record> = records.iter().map(Record::wire).collect();
        let (office, device_id) = (self.view().name().to_owned(), device.to_string());
        let parts: [&[u8]; 4] = [PROTOCOL, office.as_bytes(), &records_digest(&records), device_id.as_bytes()];
        let confirmation = proven.confirm_parts(&parts).to_vec().into();
        let announcements = self.announcements().iter().take(MAX_IN_MESSAGE).map(Announcement::wire).collect();
        Ok(peer::FinishEnrolmentResponse { confirmation, office, records, device_id, announcements })
    }

    /// Takes in the records by which a member shows that it is one; says whether it is. One that was cut off is heard
    /// no more. Who is none any longer is shown why.
    ///
    /// # Errors
    /// NOT_JOINED, OVERLOADED if many introduce themselves at the same moment.
    pub(super) async fn introduce(
        &self,
        device: DeviceId,
        records: Vec<peer::Record>,
    ) -> Result<peer::IntroduceResponse> {
        let busy = || {
            Error::new(Reason::Overloaded, "many nodes introduce themselves at the moment")
                .retry_after(Duration::from_secs(1))
        };
        let _place = self.0.introductions.try_acquire().map_err(|_| busy())?;
        let view = self.view();
        if !view.revoked(&device) && !view.is_member(&device) {
            self.merge(records, None).await?;
        }
        if self.view().is_member(&device) {
            return Ok(peer::IntroduceResponse { member: true, records: Vec::new() });
        }
        let known = self.with_ledger(|ledger| ledger.closure().rights(&device).member);
        let why = || self.with_ledger(|ledger| ledger.why_out(&device));
        let mut why = known.filter(|known| *known).and_then(|_| why()).unwrap_or_default();
        cut(&mut why, MAX_PUSH_RECORDS, MAX_INTRODUCTION_BYTES);
        Ok(peer::IntroduceResponse { member: false, records: why.iter().map(Record::wire).collect() })
    }

    /// Records by which this node shows others that it is a member, as far as a stranger may send them.
    pub fn introduction(&self) -> Vec<Record> {
        let me = self.me();
        let mut records = self.with_ledger(|ledger| ledger.proof(&me)).unwrap_or_default();
        cut(&mut records, MAX_PUSH_RECORDS, MAX_INTRODUCTION_BYTES);
        records
    }

    /// Introduces this node to a member that does not know it yet; true if it does now. If this device was cut off, it
    /// learns that here.
    ///
    /// # Errors
    /// What broke the call; those of the store.
    pub async fn introduce_to(&self, channel: impl GrpcChannel) -> Result<bool> {
        let records = self.introduction().iter().map(Record::wire).collect();
        let mut request = tonic::Request::new(peer::IntroduceRequest { records });
        request.set_timeout(CALL_TIMEOUT);
        let answer = EnrolmentServiceClient::new(channel).introduce(request).await;
        let answer = answer.map_err(|s| from_status(&s))?.into_inner();
        if !answer.records.is_empty() {
            self.merge(answer.records, None).await?;
        }
        Ok(answer.member)
    }

    /// Joins an office: proves the code to the node at the other end of the channel, which shows the certificate key
    /// `inviter_key`, has it prove the same, and takes over the office's records. Durable when this returns. Until the
    /// other side has proved itself, nothing secret is sent and nothing that it says is used.
    ///
    /// # Errors
    /// FIELD_INVALID for a code or name that cannot be one, ALREADY_JOINED (nothing was sent then); INVITE_UNKNOWN,
    /// INVITE_CODE_WRONG (the code is burned), EXCHANGE_UNKNOWN, TOO_MANY_EXCHANGES, DEVICE_REVOKED from the other side;
    /// OFFICE_PROOF_WRONG if it does not know the code or someone is in between; RECORD_INVALID if what it says makes no
    /// sense; those of the connection and of the store.
    pub async fn join(
        &self,
        channel: impl GrpcChannel,
        inviter_key: [u8; 32],
        code: &str,
        display_name: &str,
        person: &str,
    ) -> Result<Joined> {
        let code: Code = code.parse()?;
        names::check_machine(display_name)?;
        names::check_principal(person, "person")?;
        self.require_outside()?;
        let (records, announcements) =
            exchange(channel, &inviter_key, &code, (display_name, person), &self.0.key).await?;
        let office = self.clone();
        self.in_turn(async move {
            office.require_outside()?;
            office.enter(records, announcements).await
        })
        .await?;
        let view = self.view();
        let own = self.present(&view)?;
        let (office, node_name) = (view.name().to_owned(), view.node_name(&own.device));
        Ok(Joined { office, node_name, person: own.person.clone() })
    }
}

/// The joiner's side over the network; what it gives back is checked.
async fn exchange(
    channel: impl GrpcChannel,
    inviter_key: &[u8; 32],
    code: &Code,
    (display_name, person): (&str, &str),
    key: &DeviceKey,
) -> Result<(Vec<Record>, Vec<Announcement>)> {
    let mut client = EnrolmentServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let certificate_request = key.certificate_request()?;
    let (joiner, message) = Joiner::start(code);
    let mut begin =
        tonic::Request::new(peer::BeginEnrolmentRequest { nameplate: code.nameplate(), spake_message: message.into() });
    begin.set_timeout(CALL_TIMEOUT);
    let begun = client.begin_enrolment(begin).await.map_err(|s| from_status(&s))?.into_inner();
    if begun.exchange_id.len() > MAX_EXCHANGE_ID {
        return Err(Error::new(Reason::OfficeProofWrong, "the answer is not one of this protocol"));
    }
    let (proof, confirmation) =
        joiner.confirm(&begun.spake_message, &key_digest(inviter_key), &certificate_request, display_name)?;
    let own_sealing_key = sealing_key(key)?;
    let mut finish = tonic::Request::new(peer::FinishEnrolmentRequest {
        exchange_id: begun.exchange_id,
        confirmation: confirmation.to_vec().into(),
        certificate_request: certificate_request.into(),
        display_name: display_name.to_owned(),
        person: person.to_owned(),
        sealing_key: own_sealing_key.to_vec().into(),
    });
    finish.set_timeout(CALL_TIMEOUT);
    let answer = client.finish_enrolment(finish).await.map_err(|s| from_status(&s))?.into_inner();
    let parts: [&[u8]; 4] =
        [PROTOCOL, answer.office.as_bytes(), &records_digest(&answer.records), answer.device_id.as_bytes()];
    proof.check_parts(&answer.confirmation, &parts)?;

    // From here on it is the office that speaks; what it says must still make sense.
    let (inviter, me) = (DeviceId::of_key(inviter_key), key.device_id());
    let read = tokio::task::spawn_blocking(move || read_office(&answer, &inviter, &me, &own_sealing_key));
    read.await.map_err(|e| Error::internal("the office's records were not checked").caused_by(e))?
}

fn read_office(
    answer: &peer::FinishEnrolmentResponse,
    inviter: &DeviceId,
    me: &DeviceId,
    own_sealing_key: &[u8; 32],
) -> Result<(Vec<Record>, Vec<Announcement>)> {
    let wrong = |what: &str| Error::new(Reason::RecordInvalid, what);
    let records = answer.records.iter().map(Record::read).collect::<Result<Vec<_>>>()?;
    let ledger = Ledger::of(records)?;
    let view = evaluate(&ledger, *me);
    if view.name() != answer.office || !view.is_member(inviter) {
        return Err(wrong("the records are not of the office that answered"));
    }
    let own = view.member(me).filter(|m| !m.revoked);
    let own = own.ok_or_else(|| wrong("the records do not make this machine a member"))?;
    if own.sealing_key != *own_sealing_key {
        return Err(wrong("this machine is a member with another sealing key"));
    }
    let announcements = answer.announcements.iter().take(MAX_IN_MESSAGE);
    let announcements = announcements.filter_map(|a| Announcement::read(a).ok()).collect();
    Ok((ledger.records().cloned().collect(), announcements))
}
