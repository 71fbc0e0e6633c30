//! Machines of the office.

use crate::fixture::{TestOffice, local};
use central_server::app::caller::Caller;
use central_server::app::{devices, records};
use common::error::{Error, Reason};
use common::identity::DeviceKey;
use common::model::{DeviceId, Role};
use common::tls::check_membership;
use proto::record::v1 as record;

fn is(error: &Error, reason: Reason) {
    assert!(error.is(reason), "{error:?} is not {reason:?}");
}

async fn put(office: &TestOffice, id: &str) {
    let device = record::Device { id: id.to_owned(), display_name: "pc".into(), ..record::Device::default() };
    let write = office.app.store.transact(move |txn| records::save(txn, &records::device_key(&device.id), &device));
    write.await.unwrap();
}

fn stored(office: &TestOffice, id: &DeviceId) -> record::Device {
    records::load(&office.app.store, &records::device_key(&id.to_string())).unwrap().unwrap()
}

#[tokio::test]
async fn only_members_that_were_not_cut_off_are_let_in() {
    let office = TestOffice::new();
    let app = &office.app;
    let id = DeviceId([7; 32]);
    assert!(!devices::is_allowed(app, &id).unwrap());
    put(&office, &id.to_string()).await;
    assert!(devices::is_allowed(app, &id).unwrap());
    let mut events = app.identity.subscribe();
    let revoked = devices::revoke(app, &local(), &id.to_string()).await.unwrap();
    assert!(revoked.revoked && events.has_changed().unwrap(), "open streams are told");
    events.mark_unchanged();
    assert!(!devices::is_allowed(app, &id).unwrap());
    assert!(devices::revoke(app, &local(), &id.to_string()).await.unwrap().revoked, "repeating is harmless");
    assert_eq!(office.audit().iter().filter(|r| r.action == "device.revoke" && r.success).count(), 1);
}

#[tokio::test]
async fn a_prefix_names_a_device_if_it_is_long_and_unique() {
    let office = TestOffice::new();
    let app = &office.app;
    let (one, two) = (format!("{:0<64}", "abcdef0123"), format!("{:0<64}", "abcdef0124"));
    put(&office, &one).await;
    put(&office, &two).await;
    for bad in ["", "abcdef0", "abcdef01", "abcdef012", "ABCDEF0123", "abcdef012x", &format!("{one}0"), "../../../../"]
    {
        is(&devices::revoke(app, &local(), bad).await.unwrap_err(), Reason::FieldInvalid);
    }
    is(&devices::revoke(app, &local(), "abcdef0125").await.unwrap_err(), Reason::DeviceUnknown);
    assert_eq!(devices::revoke(app, &local(), "abcdef0124").await.unwrap().id, two);
    assert!(!records::load::<record::Device>(&app.store, &records::device_key(&one)).unwrap().unwrap().revoked);
}

#[tokio::test]
async fn a_call_is_noted_to_the_minute_without_a_write() {
    let office = TestOffice::new();
    let app = &office.app;
    let id = DeviceId([7; 32]);
    put(&office, &id.to_string()).await;
    office.advance(42);
    let minute = 1_700_000_042_000 / 60_000 * 60_000;
    let before = app.store.revision();
    for _ in 0..1000 {
        assert!(devices::is_allowed(app, &id).unwrap());
    }
    assert!(!devices::is_allowed(app, &DeviceId([8; 32])).unwrap());
    assert_eq!(app.store.revision(), before);
    assert_eq!(devices::list(app, &local(), 0, "").await.unwrap().devices[0].last_seen_ms, minute, "shown at once");
    assert_eq!(stored(&office, &id).last_seen_ms, 0);
    devices::flush_seen(app).await.unwrap();
    assert_eq!(stored(&office, &id).last_seen_ms, minute);
    let after = app.store.revision();
    devices::is_allowed(app, &id).unwrap();
    devices::flush_seen(app).await.unwrap();
    devices::flush_seen(app).await.unwrap();
    assert_eq!(app.store.revision(), after, "the same minute is not written again");
    assert!(
        records::load::<record::Device>(&app.store, &records::device_key(&DeviceId([8; 32]).to_string()))
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn what_is_remembered_of_calls_is_bounded() {
    let office = TestOffice::new();
    let app = &office.app;
    let id = |n: u32| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        DeviceId(id)
    };
    for batch in 0..3 {
        let write = app.store.transact(move |txn| {
            (batch * 7000..(batch + 1) * 7000).try_for_each(|n| {
                let device = record::Device { id: id(n).to_string(), ..record::Device::default() };
                records::save(txn, &records::device_key(&device.id), &device)
            })
        });
        write.await.unwrap();
    }
    for n in 0..21_000 {
        assert!(devices::is_allowed(app, &id(n)).unwrap());
    }
    devices::flush_seen(app).await.unwrap();
    let written = (0..21_000).filter(|n| stored(&office, &id(*n)).last_seen_ms > 0).count();
    assert_eq!(written, 20_000);
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_key_only() {
    let office = TestOffice::new();
    let app = &office.app;
    let key = DeviceKey::generate();
    put(&office, &key.device_id().to_string()).await;
    let caller = Caller { device: Some(key.device_id()), ..Caller::default() };
    let renewed = devices::renew(app, &caller, &key.certificate_request().unwrap()).await.unwrap();
    let membership = check_membership(&renewed.ca_pem, &renewed.certificate_pem, &key.public_key()).unwrap();
    assert_eq!(membership.device_id, key.device_id());
    assert_eq!(stored(&office, &key.device_id()).certificate_expire_ms, membership.not_after_ms);
    let other = DeviceKey::generate().certificate_request().unwrap();
    is(&devices::renew(app, &caller, &other).await.unwrap_err(), Reason::CertificateRequestInvalid);
    is(&devices::renew(app, &caller, b"nonsense").await.unwrap_err(), Reason::CertificateRequestInvalid);
    let own = key.certificate_request().unwrap();
    is(&devices::renew(app, &local(), &own).await.unwrap_err(), Reason::DeviceRequired);
    devices::revoke(app, &local(), &key.device_id().to_string()).await.unwrap();
    is(&devices::renew(app, &caller, &own).await.unwrap_err(), Reason::DeviceRevoked);
    let refused = office.audit().into_iter().filter(|r| r.action == "device.renew" && !r.success).count();
    assert_eq!(refused, 2);
}

#[tokio::test]
async fn devices_are_managed_by_administrators_in_pages() {
    let office = TestOffice::new();
    let app = &office.app;
    office.user("anna", Role::Member).await;
    let anna = office.caller("anna").await;
    is(&devices::list(app, &anna, 0, "").await.unwrap_err(), Reason::AdminRequired);
    is(&devices::revoke(app, &anna, "abcdef0123").await.unwrap_err(), Reason::AdminRequired);
    is(&devices::list(app, &Caller::default(), 0, "").await.unwrap_err(), Reason::CredentialsMissing);
    for n in 0..25u8 {
        put(&office, &DeviceId([n; 32]).to_string()).await;
    }
    for size in [1, 7, 24, 25, 26] {
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let page = devices::list(app, &local(), size, &token).await.unwrap();
            found.extend(page.devices.into_iter().map(|d| d.id));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert!(found.len() == 25 && found.is_sorted());
    }
}
