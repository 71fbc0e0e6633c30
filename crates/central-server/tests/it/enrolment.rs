//! Invites and joining.

use crate::fixture::{TestOffice, local};
use central_server::app::caller::Caller;
use central_server::app::enrolment::{self, Admitted, NewInvite};
use central_server::app::{App, devices, expiry, records};
use common::enrol::{Begun, Code, Joiner, JoinerProof};
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::model::Role;
use common::tls::check_membership;
use std::net::IpAddr;
use std::time::Duration;

const FROM: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

async fn invite(office: &TestOffice) -> NewInvite {
    enrolment::invite(&office.app, &local(), Duration::ZERO, "for anna").await.unwrap()
}

/// A joiner that is half way through.
struct Half {
    begun: Begun,
    proof: JoinerProof,
    confirmation: [u8; 32],
    request: Vec<u8>,
}

async fn begin(app: &App, code: &str, key: &DeviceKey) -> Result<Half> {
    let code: Code = code.parse().unwrap();
    let (joiner, message) = Joiner::start(&code);
    let begun = enrolment::begin(app, &code.nameplate(), &message, FROM).await?;
    let request = key.certificate_request().unwrap();
    let spki = app.office.tls.spki_sha256().unwrap();
    let (proof, confirmation) = joiner.confirm(&begun.spake_message, &spki, &request, "anna-pc").unwrap();
    Ok(Half { begun, proof, confirmation, request })
}

async fn finish(app: &App, half: &Half) -> Result<Admitted> {
    enrolment::finish(app, &half.begun.exchange_id, &half.confirmation, &half.request, "anna-pc", FROM).await
}

async fn join(app: &App, code: &str, key: &DeviceKey) -> Result<Admitted> {
    let half = begin(app, code, key).await?;
    let admitted = finish(app, &half).await?;
    half.proof.check_office(&admitted.confirmation, &admitted.answer).unwrap();
    Ok(admitted)
}

/// The same code with another last word.
fn wrong(code: &str) -> String {
    let (rest, last) = code.rsplit_once('-').unwrap();
    format!("{rest}-{}", if last == "amber" { "lion" } else { "amber" })
}

fn is(error: &Error, reason: Reason) {
    assert!(error.is(reason), "{error:?} is not {reason:?}");
}

#[tokio::test]
async fn a_machine_joins_with_a_code_and_gets_a_certificate_that_holds() {
    let office = TestOffice::new();
    let app = &office.app;
    let invite = invite(&office).await;
    assert_eq!(invite.expire_ms, 1_700_000_000_000 + 15 * 60 * 1000);
    assert!(invite.code.starts_with(&format!("{}-", invite.nameplate)));
    let key = DeviceKey::generate();
    let admitted = join(app, &invite.code, &key).await.unwrap();
    assert_eq!(admitted.answer.device_id, key.device_id().to_string());
    assert_eq!(admitted.answer.office, app.office.name);
    let membership =
        check_membership(&admitted.answer.ca_pem, &admitted.answer.certificate_pem, &key.public_key()).unwrap();
    let device = devices::list(app, &local(), 0, "").await.unwrap().devices.remove(0);
    assert_eq!((device.display_name.as_str(), device.revoked), ("anna-pc", false));
    assert_eq!(device.certificate_expire_ms, membership.not_after_ms, "the record says what the certificate says");
    assert!(devices::is_allowed(app, &key.device_id()).unwrap());
    let joined = office.audit().into_iter().find(|r| r.action == "device.join").unwrap();
    assert!(joined.success && joined.subject == format!("device:{}", key.device_id()));
    assert!(joined.detail.contains("anna-pc") && joined.detail.contains("of local"), "{}", joined.detail);
}

#[tokio::test]
async fn a_code_is_good_once_and_is_gone_from_the_store_then() {
    let office = TestOffice::new();
    let app = &office.app;
    let invite = invite(&office).await;
    let half = begin(app, &invite.code, &DeviceKey::generate()).await.unwrap();
    join(app, &invite.code, &DeviceKey::generate()).await.unwrap();
    is(&begin(app, &invite.code, &DeviceKey::generate()).await.err().unwrap(), Reason::InviteUnknown);
    is(&finish(app, &half).await.unwrap_err(), Reason::ExchangeUnknown);
    assert!(records::under(&app.store, b"i/", 10).unwrap().is_empty());
    assert!(records::under(&app.store, b"e/", 10).unwrap().is_empty());
    let words = invite.code.split_once('-').unwrap().1.as_bytes();
    for (_, value) in app.store.range(b"", b"", 10_000).unwrap() {
        assert!(!value.windows(words.len()).any(|w| w == words));
    }
}

#[tokio::test]
async fn one_wrong_guess_burns_the_code() {
    let office = TestOffice::new();
    let app = &office.app;
    let invite = invite(&office).await;
    is(&join(app, &wrong(&invite.code), &DeviceKey::generate()).await.unwrap_err(), Reason::InviteCodeWrong);
    is(&join(app, &invite.code, &DeviceKey::generate()).await.unwrap_err(), Reason::InviteUnknown);
    assert!(devices::list(app, &local(), 0, "").await.unwrap().devices.is_empty());
    assert!(office.audit().iter().any(|r| r.action == "invite.burn" && !r.success));
}

#[tokio::test]
async fn many_guesses_at_the_same_moment_are_one_guess() {
    for _ in 0..20 {
        let office = TestOffice::new();
        let app = &office.app;
        let invite = invite(&office).await;
        let mut halves = Vec::new();
        for n in 0..8 {
            let code = if n == 4 { invite.code.clone() } else { wrong(&invite.code) };
            halves.push(begin(app, &code, &DeviceKey::generate()).await.unwrap());
        }
        let outcomes = futures_util::future::join_all(halves.iter().map(|h| finish(app, h))).await;
        let decided = outcomes.iter().filter(|o| match o {
            Ok(_) => true,
            Err(error) => error.is(Reason::InviteCodeWrong),
        });
        assert_eq!(decided.count(), 1, "only one guess was answered");
        for outcome in outcomes.iter().filter_map(|o| o.as_ref().err()) {
            assert!(
                [Reason::InviteCodeWrong, Reason::InviteUnknown, Reason::ExchangeUnknown]
                    .iter()
                    .any(|r| outcome.is(*r)),
                "{outcome:?}"
            );
        }
        let members = devices::list(app, &local(), 0, "").await.unwrap().devices.len();
        assert_eq!(members, outcomes.iter().filter(|o| o.is_ok()).count());
        assert!(records::under(&app.store, b"i/", 10).unwrap().is_empty());
    }
}

#[tokio::test]
async fn codes_that_are_none_look_like_codes_that_ended() {
    let office = TestOffice::new();
    let app = &office.app;
    let expired = invite(&office).await;
    office.advance(15 * 60);
    let mut seen = Vec::new();
    let (_, message) = Joiner::start(&expired.code.parse().unwrap());
    for nameplate in [expired.nameplate.as_str(), "0", "1000", "", "x", "12345678", "../x"] {
        let error = enrolment::begin(app, nameplate, &message, FROM).await.unwrap_err();
        is(&error, Reason::InviteUnknown);
        seen.push((error.message().to_owned(), error.why().to_owned(), error.metadata().len()));
    }
    seen.dedup();
    assert_eq!(seen.len(), 1);
    let log = format!("{:?}", office.audit());
    assert!(!log.contains("12345678") && log.contains("invite:(unknown)"));
}

#[tokio::test]
async fn an_exchange_ends_with_its_invite() {
    let office = TestOffice::new();
    let app = &office.app;
    let invite = invite(&office).await;
    office.advance(15 * 60 - 10);
    let half = begin(app, &invite.code, &DeviceKey::generate()).await.unwrap();
    office.advance(10);
    is(&finish(app, &half).await.unwrap_err(), Reason::InviteUnknown);
    // The record stays a minute longer, so that its number is not given to somebody else meanwhile.
    assert_eq!(expiry::sweep(app).await.unwrap(), 0);
    office.advance(60);
    assert_eq!(expiry::sweep(app).await.unwrap(), 1);
    assert!(records::under(&app.store, b"i/", 10).unwrap().is_empty());
}

#[tokio::test]
async fn an_invite_can_be_taken_back() {
    let office = TestOffice::new();
    let app = &office.app;
    let invite = invite(&office).await;
    let half = begin(app, &invite.code, &DeviceKey::generate()).await.unwrap();
    for _ in 0..2 {
        enrolment::take_back(app, &local(), &invite.nameplate).await.unwrap();
    }
    enrolment::take_back(app, &local(), "no number").await.unwrap();
    is(&finish(app, &half).await.unwrap_err(), Reason::ExchangeUnknown);
    is(&begin(app, &invite.code, &DeviceKey::generate()).await.err().unwrap(), Reason::InviteUnknown);
    assert_eq!(office.audit().iter().filter(|r| r.action == "invite.delete").count(), 1);
}

#[tokio::test]
async fn invites_are_listed_without_codes_and_bounded() {
    let office = TestOffice::new();
    let app = &office.app;
    let mut nameplates = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let made = invite(&office).await;
        assert!(nameplates.insert(made.nameplate), "numbers are unique");
    }
    let full = enrolment::invite(app, &local(), Duration::ZERO, "").await.unwrap_err();
    is(&full, Reason::TooManyInvites);
    let listed = enrolment::invites(app, &local()).await.unwrap();
    assert_eq!(listed.len(), 100);
    assert!(listed.is_sorted_by_key(|i| i.nameplate.parse::<u32>().unwrap()));
    assert!(listed.iter().all(|i| i.purpose == "for anna" && i.creator == "local"));
    office.advance(15 * 60);
    assert!(enrolment::invites(app, &local()).await.unwrap().is_empty());
    for _ in 0..100 {
        invite(&office).await;
    }
    office.advance(61);
    assert_eq!(expiry::sweep(app).await.unwrap(), 100);
    assert_eq!(enrolment::invites(app, &local()).await.unwrap().len(), 100);
}

#[tokio::test]
async fn invites_need_an_administrator_and_sane_wishes() {
    let office = TestOffice::new();
    let app = &office.app;
    office.user("anna", Role::Auditor).await;
    let anna = office.caller("anna").await;
    let device = Caller { device: Some(DeviceKey::generate().device_id()), ..Caller::default() };
    for (caller, reason) in [(&anna, Reason::AdminRequired), (&device, Reason::CredentialsMissing)] {
        is(&enrolment::invite(app, caller, Duration::ZERO, "").await.unwrap_err(), reason);
        is(&enrolment::invites(app, caller).await.unwrap_err(), reason);
        is(&enrolment::take_back(app, caller, "7").await.unwrap_err(), reason);
    }
    let day = Duration::from_secs(86_400);
    enrolment::invite(app, &local(), day, "").await.unwrap();
    let long = enrolment::invite(app, &local(), day + Duration::from_secs(1), "").await.unwrap_err();
    is(&long, Reason::FieldInvalid);
    is(&enrolment::invite(app, &local(), day, "a\nb").await.unwrap_err(), Reason::FieldInvalid);
}

#[tokio::test]
async fn joining_again_keeps_the_record_and_a_key_that_was_cut_off_stays_out() {
    let office = TestOffice::new();
    let app = &office.app;
    let key = DeviceKey::generate();
    join(app, &invite(&office).await.code, &key).await.unwrap();
    office.advance(60);
    join(app, &invite(&office).await.code, &key).await.unwrap();
    let device = devices::list(app, &local(), 0, "").await.unwrap().devices.remove(0);
    assert_eq!(device.create_ms, 1_700_000_000_000);
    devices::revoke(app, &local(), &device.id).await.unwrap();
    let code = invite(&office).await.code;
    is(&join(app, &code, &key).await.unwrap_err(), Reason::DeviceRevoked);
    assert!(!devices::is_allowed(app, &key.device_id()).unwrap());
    join(app, &code, &DeviceKey::generate()).await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_none_does_not_use_the_code_up() {
    let office = TestOffice::new();
    let app = &office.app;
    let invite = invite(&office).await;
    let code: Code = invite.code.parse().unwrap();
    let (joiner, message) = Joiner::start(&code);
    is(&enrolment::begin(app, &invite.nameplate, b"short", FROM).await.unwrap_err(), Reason::FieldInvalid);
    let begun = enrolment::begin(app, &invite.nameplate, &message, FROM).await.unwrap();
    let spki = app.office.tls.spki_sha256().unwrap();
    let (_, confirmation) = joiner.confirm(&begun.spake_message, &spki, b"no request", "anna-pc").unwrap();
    let outcome = enrolment::finish(app, &begun.exchange_id, &confirmation, b"no request", "anna-pc", FROM).await;
    is(&outcome.unwrap_err(), Reason::CertificateRequestInvalid);
    join(app, &invite.code, &DeviceKey::generate()).await.unwrap();
}

#[tokio::test]
async fn whoever_sits_in_between_burns_the_code_and_gets_nothing() {
    let office = TestOffice::new();
    let app = &office.app;
    let invite = invite(&office).await;
    let (joiner, message) = Joiner::start(&invite.code.parse().unwrap());
    let begun = enrolment::begin(app, &invite.nameplate, &message, FROM).await.unwrap();
    let request = DeviceKey::generate().certificate_request().unwrap();
    // The joiner saw the key of somebody else.
    let (_, confirmation) = joiner.confirm(&begun.spake_message, &[9; 32], &request, "anna-pc").unwrap();
    let outcome = enrolment::finish(app, &begun.exchange_id, &confirmation, &request, "anna-pc", FROM).await;
    is(&outcome.unwrap_err(), Reason::InviteCodeWrong);
    assert!(records::under(&app.store, b"m/", 10).unwrap().is_empty());
}
