//! The keys of an export that programs of other machines reach: made for it, worth nothing after it.
//!
//! Programs that read block devices know certificates, not membership keys. So an authority is made that signs two: one
//! for this machine's end, and one for whoever was given it. The authority's key is forgotten at once, and the other two
//! live as long as the export. Without the client's certificate nobody reads a byte.

use super::ipp::outward;
use common::error::{Error, Reason, Result};
use common::tls::local_names;
use proto::peer::v1 as wire;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Longer than any export goes on; how long somebody may use it is decided by the export's end.
const LIFE: Duration = Duration::from_secs(366 * 86_400);
/// For clocks that differ.
const BACKDATE: Duration = Duration::from_secs(86_400);

/// Where an export listens for others, and how.
#[derive(Debug)]
pub(super) struct Door {
    pub at: SocketAddr,
    pub tls: bool,
}

/// What a request says about it; `None` if nothing.
///
/// # Errors
/// FIELD_INVALID; TLS_REQUIRED beyond loopback unless it is said that anybody may read.
pub(super) fn asked(r: &wire::ExportDiscRequest) -> Result<Option<Door>> {
    let wrong = |what: &str| Error::new(Reason::FieldInvalid, what.to_owned()).with("field", "nbd_listen");
    if r.nbd_listen.is_empty() {
        return match r.tls || r.plain {
            true => Err(wrong("it is not said on which address the export is offered")),
            false => Ok(None),
        };
    }
    let at: SocketAddr =
        r.nbd_listen.parse().map_err(|_| wrong("this is no address with a port, like 0.0.0.0:10809"))?;
    match (r.tls, r.plain) {
        (true, true) => Err(wrong("an export is offered either over TLS or plain")),
        (false, false) if !at.ip().is_loopback() => {
            Err(Error::new(Reason::TlsRequired, format!("the disc is not offered on {at} without TLS"))
                .why_is("whoever reaches that address would read the disc, and everybody on the way what is read")
                .fix_is("give --tls DIRECTORY for the keys; or --plain, if everybody may read the disc"))
        }
        (tls, _) => Ok(Some(Door { at, tls })),
    }
}

/// The URI for others when it listens there.
pub(super) fn uri(door: &Door, listening: SocketAddr) -> String {
    let scheme = if door.tls { "nbds" } else { "nbd" };
    format!("{scheme}://{}", outward(listening))
}

/// Keys for both ends of an export at an address.
///
/// # Errors
/// INTERNAL if the cryptography refuses.
pub(super) fn keys(listening: SocketAddr) -> Result<(Arc<ServerConfig>, wire::ExportKeys)> {
    let made = |e: rcgen::Error| Error::internal("a certificate of an export").caused_by(e);
    let tls = |e: &dyn std::fmt::Display| Error::internal(format!("the keys of an export: {e}"));
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made);

    let mut authority = params("disc export");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = key()?;
    let authority_certificate = authority.self_signed(&authority_key).map_err(made)?;
    let issuer = Issuer::new(authority, authority_key);

    let mut server = params("disc export, this machine");
    server.subject_alt_names = subject_names(listening);
    let (server, server_key) = (end(server, ExtendedKeyUsagePurpose::ServerAuth), key()?);
    let server = server.signed_by(&server_key, &issuer).map_err(made)?;
    let (client, client_key) = (end(params("disc export, reader"), ExtendedKeyUsagePurpose::ClientAuth), key()?);
    let client = client.signed_by(&client_key, &issuer).map_err(made)?;

    let mut roots = RootCertStore::empty();
    roots.add(authority_certificate.der().clone()).map_err(|e| tls(&e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| tls(&e))?
        .with_client_cert_verifier(clients.map_err(|e| tls(&e))?)
        .with_single_cert(vec![server.der().clone()], private(&server_key))
        .map_err(|e| tls(&e))?;
    // A resumed session would pass by the verifier.
    config.send_tls13_tickets = 0;
    let keys = wire::ExportKeys {
        ca_certificate: authority_certificate.pem(),
        client_certificate: Certificate::pem(&client),
        client_key: client_key.serialize_pem(),
    };
    Ok((Arc::new(config), keys))
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = now.checked_sub(BACKDATE).unwrap_or(now).into();
    params.not_after = now.checked_add(LIFE).unwrap_or(now).into();
    params
}

fn end(mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    params.is_ca = IsCa::ExplicitNoCa;
    // TLS 1.3 needs signatures only; QEMU wants to see both.
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![usage];
    params
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// Names and addresses by which programs may look for this machine.
fn subject_names(listening: SocketAddr) -> Vec<SanType> {
    let mut names: BTreeSet<String> = local_names().into_iter().collect();
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let mine = if_addrs::get_if_addrs().unwrap_or_default();
    names.extend(mine.iter().map(|i| i.ip().to_string()));
    if !listening.ip().is_unspecified() {
        names.insert(listening.ip().to_string());
    }
    let name = |text: String| match text.parse::<IpAddr>() {
        Ok(address) => Some(SanType::IpAddress(address)),
        Err(_) => text.try_into().ok().map(SanType::DnsName),
    };
    names.into_iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_beyond_this_machine_is_encrypted_or_explicitly_not() {
        let of = |nbd_listen: &str, tls, plain| {
            let nbd_listen = nbd_listen.to_owned();
            asked(&wire::ExportDiscRequest { nbd_listen, tls, plain, ..Default::default() })
        };
        assert!(of("", false, false).unwrap().is_none());
        for (at, tls, plain, reason) in [
            ("0.0.0.0:0", false, false, Reason::TlsRequired),
            ("[::]:10809", false, false, Reason::TlsRequired),
            ("192.0.2.1:10809", false, false, Reason::TlsRequired),
            ("192.0.2.1:10809", true, true, Reason::FieldInvalid),
            ("anna-pc", true, false, Reason::FieldInvalid),
            ("", true, false, Reason::FieldInvalid),
            ("", false, true, Reason::FieldInvalid),
        ] {
            let error = of(at, tls, plain).unwrap_err();
            assert!(error.is(reason), "{at} {tls} {plain}: {error:?}");
        }
        for (at, tls, plain) in [("127.0.0.1:0", false, false), ("[::1]:0", true, false), ("0.0.0.0:0", false, true)] {
            assert_eq!(of(at, tls, plain).unwrap().unwrap().tls, tls, "{at}");
        }
    }

    #[test]
    fn keys_are_those_of_one_export() {
        let at = SocketAddr::from(([192, 0, 2, 7], 10809));
        let (_, one) = keys(at).unwrap();
        let (_, other) = keys(at).unwrap();
        assert_ne!(one.ca_certificate, other.ca_certificate);
        assert_ne!(one.client_key, other.client_key);
        assert_eq!(uri(&Door { at, tls: true }, at), "nbds://192.0.2.7:10809");
    }
}
