//! A machine's side of joining, over the network.

use super::proof::{Answer, Joiner};
use super::{Code, check_display_name};
use crate::error::{Error, Reason, Result};
use crate::identity::{DeviceId, DeviceKey};
use crate::rpc::{CONNECT_TIMEOUT, OfficeConnection, ServerAddress};
use crate::status::from_status;
use crate::tls::{ClientTls, check_membership};
use proto::v1;
use proto::v1::enrolment_service_client::EnrolmentServiceClient;
use std::time::Duration;

/// Largest answer that is read from a server that has not proved itself yet.
const MAX_ANSWER: usize = 256 * 1024;
/// For each of the two calls, making the connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest exchange id that is sent back.
const MAX_EXCHANGE_ID: usize = 256;

/// What a machine has after it joined. All of it was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedOffice {
    /// The office's name.
    pub office: String,
    /// The server as "host:port".
    pub server: String,
    /// The office's CA certificates, PEM.
    pub ca_pem: String,
    /// The device's certificate chain, PEM, leaf first.
    pub certificate_pem: String,
    /// The device's id.
    pub device_id: DeviceId,
    /// Begin of the certificate's life.
    pub not_before_ms: u64,
    /// End of it.
    pub not_after_ms: u64,
}

/// Joins an office: proves the code to the server, has the server prove it too, and gets this device's certificate.
/// Until the server has proved itself, nothing secret is sent and nothing that it says is used.
///
/// # Errors
/// FIELD_INVALID for an address, code or name that cannot be one (nothing was sent then); INVITE_UNKNOWN,
/// INVITE_CODE_WRONG (the code is burned), EXCHANGE_UNKNOWN, TOO_MANY_EXCHANGES from the server; OFFICE_PROOF_WRONG if
/// the server does not know the code or someone is in between; SERVER_UNREACHABLE, TLS_FAILED.
pub async fn join_office(server: &str, code: &str, display_name: &str, key: &DeviceKey) -> Result<JoinedOffice> {
    let server: ServerAddress = server.parse()?;
    let code: Code = code.parse()?;
    check_display_name(display_name)?;
    let certificate_request = key.certificate_request()?;

    let (tls, captured) = ClientTls::capture()?;
    let connection = OfficeConnection::over_tls(&server.to_string(), tls, CONNECT_TIMEOUT, 1)?;
    let mut client = EnrolmentServiceClient::new(connection.control()).max_decoding_message_size(MAX_ANSWER);

    let (joiner, spake_message) = Joiner::start(&code);
    let mut begin = tonic::Request::new(v1::BeginEnrolmentRequest {
        nameplate: code.nameplate(),
        spake_message: spake_message.into(),
    });
    begin.set_timeout(CALL_TIMEOUT);
    let begun = client.begin_enrolment(begin).await.map_err(|s| from_status(&s))?.into_inner();
    if begun.exchange_id.len() > MAX_EXCHANGE_ID {
        return Err(Error::new(Reason::OfficeProofWrong, "the server's answer is not one of this protocol"));
    }

    let server_key = captured.spki_sha256().ok_or_else(|| Error::internal("no server key was captured"))?;
    let (proof, confirmation) =
        joiner.confirm(&begun.spake_message, &server_key, &certificate_request, display_name)?;
    let mut finish = tonic::Request::new(v1::FinishEnrolmentRequest {
        exchange_id: begun.exchange_id,
        confirmation: confirmation.to_vec().into(),
        certificate_request: certificate_request.into(),
        display_name: display_name.to_owned(),
    });
    finish.set_timeout(CALL_TIMEOUT);
    let finished = client.finish_enrolment(finish).await.map_err(|s| from_status(&s))?.into_inner();

    let answer = Answer {
        office: finished.office,
        ca_pem: finished.ca_pem,
        certificate_pem: finished.certificate_pem,
        device_id: finished.device_id,
    };
    proof.check_office(&finished.confirmation, &answer)?;

    // From here on it is the office that speaks; what it says must still make sense.
    let membership = check_membership(&answer.ca_pem, &answer.certificate_pem, &key.public_key())?;
    if answer.device_id != membership.device_id.to_string() {
        return Err(Error::new(Reason::CertificateInvalid, "the server gave this machine another machine's id"));
    }
    captured.belongs_to(&answer.ca_pem)?;
    Ok(JoinedOffice {
        office: answer.office,
        server: server.to_string(),
        ca_pem: answer.ca_pem,
        certificate_pem: answer.certificate_pem,
        device_id: membership.device_id,
        not_before_ms: membership.not_before_ms,
        not_after_ms: membership.not_after_ms,
    })
}
