//! The doors by which programs print (IPP and IPPS), open while a printer of this machine is shared with everyone.
//!
//! Who comes through them has no identity, so they lead only to printers on which *everyone* may print and that are not
//! for members only, and nobody manages anything through them. Those printers are announced in the local network, under
//! this node's name, by DNS-SD.
//!
//! The certificate is made once and kept (`STATE/devices/ipps.pem`): programs that remember what they saw first, as CUPS
//! does, go on to trust it. It proves nothing else, as with any network printer.

use super::book::{self, Entry};
use super::{Devices, access};
use crate::settings::DeviceSettings;
use common::error::{Error, Reason, Result};
use common::model::Right;
use device::audit::Line;
use device::ipp::codes::Operation;
use device::model::Kind;
use device::printer::Who;
use device::printer::dnssd::{self, Announcer};
use device::printer::model::Right as PrinterRight;
use device::printer::service::{Access, Peer, Service, ServiceOptions};
use parking_lot::Mutex;
use proto::peer::v1 as wire;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The doors, open or closed.
pub(super) struct Doors {
    settings: DeviceSettings,
    open: tokio::sync::Mutex<Option<Open>>,
    /// Where programs connect, while they are open.
    addresses: Mutex<Addresses>,
}

#[derive(Clone, Default)]
struct Addresses {
    plain: Option<SocketAddr>,
    tls: Option<SocketAddr>,
}

struct Open {
    stop: CancellationToken,
    announcer: Option<Announcer>,
    announced: BTreeSet<String>,
}

impl Doors {
    /// Most bytes of documents that wait for one printer.
    pub fn spool_limit(&self) -> u64 {
        self.settings.spool_limit.bytes()
    }

    /// Closed.
    pub fn new(settings: DeviceSettings) -> Self {
        Self { settings, open: tokio::sync::Mutex::new(None), addresses: Mutex::default() }
    }
}

/// Everyone's right to a printer that programs may use; `None` if they may not.
fn everyones(entry: &Entry) -> Option<Right> {
    let Some(wire::share_device_request::Kind::Printer(printer)) = &entry.share.kind else { return None };
    if printer.members_only {
        return None;
    }
    book::everyones(&entry.share).filter(|r| *r >= Right::Write)
}

struct Gate(Devices);

impl Access for Gate {
    fn allows(&self, _: &Who, _: &Peer, printer: &str, right: PrinterRight) -> bool {
        let entry = self.0.0.book.get(Kind::Printer, printer);
        right != PrinterRight::Manage && entry.is_some_and(|e| everyones(&e).is_some())
    }

    fn decided(&self, who: &Who, _: &Peer, printer: &str, operation: Operation, granted: bool) {
        let resource = format!("printers/{printer}");
        let line = match granted {
            true => Line::granted(&who.caller, &resource, "ipp"),
            false => Line::refused(&who.caller, &resource, "ipp", &access::unknown(&resource)),
        };
        self.0.0.audit.note(line.with_detail(format!("{operation:?}")));
    }
}

/// The address in the local network by which others reach this machine.
pub(super) fn outward(listening: SocketAddr) -> SocketAddr {
    if !listening.ip().is_unspecified() {
        return listening;
    }
    let mine = if_addrs::get_if_addrs().unwrap_or_default();
    let v4 = mine.iter().find(|i| !i.is_loopback() && i.ip().is_ipv4()).map(|i| i.ip());
    SocketAddr::new(v4.unwrap_or_else(|| std::net::Ipv4Addr::LOCALHOST.into()), listening.port())
}

impl Devices {
    /// Where programs reach a printer.
    pub(super) fn uris_of(&self, entry: &Entry) -> Vec<String> {
        if everyones(entry).is_none() {
            return Vec::new();
        }
        let addresses = self.0.ipp.addresses.lock().clone();
        let uri = |scheme: &str, at: Option<SocketAddr>| {
            at.map(|at| format!("{scheme}://{}/ipp/print/{}", outward(at), entry.name))
        };
        uri("ipp", addresses.plain).into_iter().chain(uri("ipps", addresses.tls)).collect()
    }

    /// Opens the doors if there is a printer behind them, closes them if not, and announces what there is.
    pub(super) async fn open_doors(&self) {
        let public: Vec<Arc<Entry>> = self.0.book.all().into_iter().filter(|e| everyones(e).is_some()).collect();
        let mut open = self.0.ipp.open.lock().await;
        if public.is_empty() {
            self.shut(open.take()).await;
            return;
        }
        if open.is_none() {
            match self.begin_doors().await {
                Ok(begun) => *open = Some(begun),
                Err(error) => {
                    tracing::warn!(%error, "programs cannot print on this machine's printers");
                    for entry in &public {
                        let problem = super::remote::own_problem(&entry.local_name(), &error);
                        self.0.problems.lock().insert(entry.local_name(), problem);
                    }
                    return;
                }
            }
        }
        if let Some(open) = open.as_mut() {
            self.announce(open, &public);
        }
    }

    async fn begin_doors(&self) -> Result<Open> {
        let settings = &self.0.ipp.settings;
        let stop = CancellationToken::new();
        let host = host_name();
        let options = ServiceOptions { host: format!("{host}.local"), ..ServiceOptions::default() };
        let service = Service::new(self.0.printers.clone(), Arc::new(Gate(self.clone())), options);
        let mut found = Addresses::default();
        let mut serving = Vec::new();
        for at in &settings.ipp_listen {
            let listener = listen(*at).await?;
            found.plain = found.plain.or(listener.local_addr().ok());
            serving.push((listener, None));
        }
        if !settings.ipps_listen.is_empty() {
            let path = self.0.directory.join("ipps.pem");
            let names = vec![host.clone(), format!("{host}.local"), "localhost".to_owned()];
            let made = tokio::task::spawn_blocking(move || tls(&path, names)).await;
            let config = made.map_err(|e| Error::internal("a certificate").caused_by(e))??;
            for at in &settings.ipps_listen {
                let listener = listen(*at).await?;
                found.tls = found.tls.or(listener.local_addr().ok());
                serving.push((listener, Some(config.clone())));
            }
        }
        for (listener, config) in serving {
            let (service, stop) = (service.clone(), stop.clone());
            self.0.shutdown.spawn(async move { service.serve(listener, config, None, stop).await });
        }
        *self.0.ipp.addresses.lock() = found;
        let announcer = match settings.announce {
            true => Announcer::start(&host, Vec::new(), &[])
                .map_err(|error| tracing::warn!(%error, "printers are not announced in the local network"))
                .ok(),
            false => None,
        };
        Ok(Open { stop, announcer, announced: BTreeSet::new() })
    }

    fn announce(&self, open: &mut Open, public: &[Arc<Entry>]) {
        let Some(announcer) = &mut open.announcer else { return };
        let addresses = self.0.ipp.addresses.lock().clone();
        let names: BTreeSet<String> = public.iter().map(|e| e.name.clone()).collect();
        for gone in open.announced.difference(&names) {
            announcer.remove(gone);
        }
        for name in &names {
            let Ok(view) = self.0.printers.get(name) else { continue };
            let (host, path) = (announcer.host().to_owned(), format!("ipp/print/{name}"));
            let (plain, tls) = (addresses.plain.map(|a| a.port()), addresses.tls.map(|a| a.port()));
            let what = dnssd::announcement(&view.config, &path, &host, plain, tls);
            if let Err(error) = announcer.put(name, &what) {
                tracing::warn!(printer = name, %error, "a printer is not announced");
            }
        }
        open.announced = names;
    }

    async fn shut(&self, open: Option<Open>) {
        let Some(open) = open else { return };
        *self.0.ipp.addresses.lock() = Addresses::default();
        open.stop.cancel();
        if let Some(announcer) = open.announcer {
            announcer.stop().await;
        }
    }

    /// Closes the doors and says goodbye.
    pub(super) async fn close_doors(&self) {
        let open = self.0.ipp.open.lock().await.take();
        self.shut(open).await;
    }
}

async fn listen(at: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(at).await.map_err(|e| {
        Error::new(Reason::IoFailed, format!("nothing can listen on {at} for printing"))
            .why_is(e.to_string())
            .fix_is("set devices.ipp_listen and devices.ipps_listen to ports that are free")
            .caused_by(e)
    })
}

/// This machine's name up to the first dot, as a label.
fn host_name() -> String {
    let uname = rustix::system::uname();
    let full = uname.nodename().to_string_lossy().to_lowercase();
    let label: String = full.split('.').next().unwrap_or_default().chars().take(50).collect();
    // Not the plain name: another responder of the machine may answer for that one.
    format!("{}-atrium", if label.is_empty() { "machine" } else { &label })
}

/// The certificate that is kept, or a new one.
fn tls(path: &Path, names: Vec<String>) -> Result<Arc<rustls::ServerConfig>> {
    let failed = |e: &dyn std::fmt::Display| {
        Error::new(Reason::CertificateInvalid, "the certificate for printing is damaged")
            .why_is(e.to_string())
            .fix_is(format!("remove {}; a new one is made", path.display()))
    };
    let pem = match std::fs::read(path) {
        Ok(pem) => pem,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let made = rcgen::generate_simple_self_signed(names)
                .map_err(|e| Error::internal("a certificate for printing").caused_by(e))?;
            let pem = format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem()).into_bytes();
            common::identity::write_secret(path, &pem)?;
            pem
        }
        Err(e) => return Err(e.into()),
    };
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|e| failed(&e))?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| failed(&e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // Printing programs of many ages come here.
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| failed(&e))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|e| failed(&e))?;
    Ok(Arc::new(config))
}
