//! Printers announced by DNS-SD, so that they show in every program's print dialog.
//!
//! Print dialogs look for the subtypes `_universal` (phones and tablets, AirPrint) and `_print` (IPP Everywhere, CUPS), and
//! need both. The responder that this program uses announces one subtype for an instance, so there are two of them, each
//! with its own subtype and otherwise the same records: to others they are one answer given twice. They share port 5353 with
//! whatever else answers there, such as Avahi.
//!
//! Only local printers are given to it (see `docs/adr/0011-devices.md`); what other nodes share is announced by them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use common::error::{Error, Reason, Result};
use mdns_sd::{IfKind, ServiceDaemon, ServiceEvent, ServiceInfo};

use super::model::PrinterConfig;
use super::service::{is_ours as mark_is_ours, make_and_model, urf};

/// Subtypes, one for each responder.
const SUBTYPES: [&str; 2] = ["_universal", "_print"];
/// How long goodbyes may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// What is announced of a printer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announcement {
    /// Name of the instance, as people see it; at most 63 bytes.
    pub instance: String,
    /// Port of IPP, if it is served.
    pub port: Option<u16>,
    /// Port of IPP over TLS, if it is served.
    pub tls_port: Option<u16>,
    /// Keys and values of the TXT record.
    pub txt: Vec<(String, String)>,
}

/// Under what name a printer is announced.
pub fn instance(config: &PrinterConfig) -> String {
    let name = if config.info.trim().is_empty() { config.name.clone() } else { super::model::clean(&config.info, 63) };
    // A dot in an instance's name needs an escape that not every program gets right.
    name.replace('.', " ")
}

/// Whether a printer that says this of its make and model is one of a node of an office: such a printer is announced by
/// its owner alone.
pub fn is_ours(make_and_model: &str) -> bool {
    mark_is_ours(make_and_model)
}

/// What to announce of a printer. `path`: of its URI, without the first '/'; `host` and `port` make the address of its page.
pub fn announcement(
    config: &PrinterConfig,
    path: &str,
    host: &str,
    port: Option<u16>,
    tls_port: Option<u16>,
) -> Announcement {
    let can = config.capabilities();
    let mut txt: Vec<(String, String)> = Vec::new();
    let mut put = |key: &str, value: String| txt.push((key.to_owned(), cut_txt(key, &value)));
    let truth = |b: bool| if b { "T" } else { "F" }.to_owned();
    put("txtvers", "1".into());
    put("qtotal", "1".into());
    put("rp", path.to_owned());
    put("ty", make_and_model(&config.name));
    put("product", format!("({})", make_and_model(&config.name)));
    put("note", config.location.clone());
    put("pdl", can.formats.join(","));
    put("URF", urf(&can).join(","));
    put("UUID", config.uuid.to_string());
    let (scheme, page_port) = match (port, tls_port) {
        (Some(port), _) => ("http", port),
        (None, tls) => ("https", tls.unwrap_or(631)),
    };
    put("adminurl", format!("{scheme}://{host}:{page_port}/"));
    put("Color", truth(can.color));
    put("Duplex", truth(can.duplex));
    put("priority", "0".into());
    put("kind", "document".into());
    put("PaperMax", if can.media.iter().any(|m| m.contains("a3")) { "isoC-A2" } else { "legal-A4" }.into());
    put("mopria-certified", "1.3".into());
    put("air", "none".into());
    if tls_port.is_some() {
        put("TLS", "1.2".into());
    }
    Announcement { instance: instance(config), port, tls_port, txt }
}

/// A TXT string has at most 255 bytes, the key and '=' included.
fn cut_txt(key: &str, value: &str) -> String {
    crate::ipp::codec::cut(value, 254 - key.len()).to_owned()
}

/// The instance and the type of service that a `dnssd:` address names, such as CUPS has of printers that it found by DNS-SD:
/// `dnssd://Laser%20%40%20anna._ipps._tcp.local/?uuid=…`.
fn named(uri: &str) -> Option<(String, String)> {
    let authority = uri.strip_prefix("dnssd://")?.split(['/', '?']).next()?;
    let (mut bytes, mut rest) = (Vec::new(), authority.as_bytes());
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok())?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    let name = String::from_utf8(bytes).ok()?;
    let name = name.trim_end_matches('.');
    let at = name.find("._ipps._tcp").or_else(|| name.find("._ipp._tcp"))?;
    Some((name[..at].to_owned(), format!("{}.", &name[at + 1..])))
}

/// The make and model of a printer that a `dnssd:` address names, as it is announced; `None` if nothing is heard of it in
/// time.
pub async fn make_of(uri: &str, patience: Duration) -> Option<String> {
    let (instance, service) = named(uri)?;
    let daemon = ServiceDaemon::new().ok()?;
    let found = async {
        let answers = daemon.browse(&service).ok()?;
        while let Ok(event) = answers.recv_async().await {
            if let ServiceEvent::ServiceResolved(info) = event
                && instance_of(info.get_fullname(), &service).eq_ignore_ascii_case(&instance)
            {
                return info.get_property_val_str("ty").map(str::to_owned);
            }
        }
        None
    };
    let found = tokio::time::timeout(patience, found).await.ok().flatten();
    let _ = daemon.shutdown();
    found
}

/// The instance in a full name, without the escapes of dots.
fn instance_of(full: &str, service: &str) -> String {
    let name = full.get(..full.len().saturating_sub(service.len() + 1)).unwrap_or(full);
    name.replace("\\.", ".")
}

/// Announces printers until it is stopped.
pub struct Announcer {
    responders: Vec<ServiceDaemon>,
    host: String,
    addresses: Vec<IpAddr>,
    /// Full names of what is announced, by printer.
    announced: BTreeMap<String, Vec<String>>,
}

impl Announcer {
    /// Starts the responders. `host` is this machine's label in `.local`, which must not be one that another responder of the
    /// machine (such as Avahi) answers for with other addresses; `addresses`: all of the machine if it is empty;
    /// `interfaces`: all if it is empty.
    ///
    /// # Errors
    /// `IO_FAILED` if multicast sockets cannot be opened.
    pub fn start(host: &str, addresses: Vec<IpAddr>, interfaces: &[String]) -> Result<Self> {
        let mut responders = Vec::new();
        for _ in SUBTYPES {
            let daemon = ServiceDaemon::new().map_err(failed)?;
            if !interfaces.is_empty() {
                daemon.disable_interface(IfKind::All).map_err(failed)?;
                let wanted: Vec<IfKind> = interfaces.iter().cloned().map(IfKind::Name).collect();
                daemon.enable_interface(wanted).map_err(failed)?;
            }
            responders.push(daemon);
        }
        let host = host.trim_end_matches('.').trim_end_matches(".local");
        Ok(Self { responders, host: format!("{host}.local."), addresses, announced: BTreeMap::new() })
    }

    /// The name of this machine in announcements, without a dot at its end.
    pub fn host(&self) -> &str {
        self.host.trim_end_matches('.')
    }

    /// Announces a printer, or what has changed of it.
    ///
    /// # Errors
    /// `FIELD_INVALID` if something cannot be announced.
    pub fn put(&mut self, printer: &str, what: &Announcement) -> Result<()> {
        let mut names = Vec::new();
        for (kind, port) in [("_ipp._tcp", what.port), ("_ipps._tcp", what.tls_port)] {
            let Some(port) = port else { continue };
            for (responder, subtype) in self.responders.iter().zip(SUBTYPES) {
                let service_type = format!("{subtype}._sub.{kind}.local.");
                let txt: Vec<(&str, &str)> = what.txt.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                let info =
                    ServiceInfo::new(&service_type, &what.instance, &self.host, &self.addresses[..], port, &txt[..]);
                let mut info = info.map_err(|error| {
                    Error::new(Reason::FieldInvalid, "the printer cannot be announced").caused_by(error)
                })?;
                if self.addresses.is_empty() {
                    info = info.enable_addr_auto();
                }
                names.push(info.get_fullname().to_owned());
                responder.register(info).map_err(failed)?;
            }
        }
        names.sort();
        names.dedup();
        let before = self.announced.insert(printer.to_owned(), names.clone()).unwrap_or_default();
        for gone in before.iter().filter(|n| !names.contains(n)) {
            self.goodbye(gone);
        }
        Ok(())
    }

    /// Says goodbye for a printer.
    pub fn remove(&mut self, printer: &str) {
        for name in self.announced.remove(printer).unwrap_or_default() {
            self.goodbye(&name);
        }
    }

    fn goodbye(&self, name: &str) {
        for responder in &self.responders {
            let _ = responder.unregister(name);
        }
    }

    /// Says goodbye for all printers and ends.
    pub async fn stop(mut self) {
        let mut waiting = Vec::new();
        for name in std::mem::take(&mut self.announced).into_values().flatten() {
            waiting.extend(self.responders.iter().filter_map(|r| r.unregister(&name).ok()));
        }
        let told = async {
            for answer in waiting {
                let _ = answer.recv_async().await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE, told).await;
        for responder in &self.responders {
            if let Ok(done) = responder.shutdown() {
                let _ = tokio::time::timeout(GOODBYE, done.recv_async()).await;
            }
        }
    }
}

fn failed(error: mdns_sd::Error) -> Error {
    Error::new(Reason::IoFailed, "printers cannot be announced in the local network").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printer::model::Destination;

    fn config() -> PrinterConfig {
        PrinterConfig::new("laser", Destination::Folder { path: "/tmp/x".into(), pages_per_minute: None })
    }

    #[test]
    fn keys_that_phones_need_are_there() {
        let config = config();
        let what = announcement(&config, "ipp/print", "anna-pc.local", Some(631), Some(6310));
        let get = |key: &str| what.txt.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        assert_eq!(get("rp"), Some("ipp/print"));
        assert_eq!(get("UUID"), Some(config.uuid.to_string().as_str()));
        assert_eq!(get("adminurl"), Some("http://anna-pc.local:631/"));
        assert!(get("URF").unwrap().starts_with("V1.4,CP1,W8,SRGB24,RS300-600"), "iOS shows nothing without it");
        assert!(get("pdl").unwrap().contains("image/urf"));
        assert_eq!(get("TLS"), Some("1.2"));
    }

    #[test]
    fn the_address_of_a_printer_that_cups_found_is_read() {
        let laser = ("Laser @ anna".to_owned(), "_ipps._tcp.local.".to_owned());
        assert_eq!(named("dnssd://Laser%20%40%20anna._ipps._tcp.local/?uuid=1"), Some(laser.clone()));
        assert_eq!(named("dnssd://Laser%20@%20anna._ipps._tcp.local./cups"), Some(laser));
        assert_eq!(named("dnssd://a%20._ipp._tcp.local").unwrap().1, "_ipp._tcp.local.");
        for bad in [
            "dnssd://laser",
            "ipp://laser._ipp._tcp.local/",
            "dnssd://%zz._ipp._tcp.local/",
            "dnssd://%ff._ipp._tcp.local",
        ] {
            assert_eq!(named(bad), None, "{bad}");
        }
        assert_eq!(instance_of("La\\.ser._ipp._tcp.local.", "_ipp._tcp.local."), "La.ser");
    }

    #[test]
    fn strings_keep_within_their_length() {
        let mut config = config();
        config.info = "ä.".repeat(100);
        config.outputs[0].capabilities.formats = (0..50).map(|n| format!("application/x-{n}")).collect();
        let what = announcement(&config, "ipp/print", "h.local", Some(1), None);
        assert!(what.instance.len() <= 63 && !what.instance.contains('.'));
        assert!(what.txt.iter().all(|(k, v)| k.len() + 1 + v.len() <= 255));
    }
}
