//! Multicast DNS: announcing this node as `_atrium._tcp`, and finding others.
//!
//! The TXT record has `v` (the program's version), `o` (the first 16 hexadecimal digits of BLAKE3 of the office's id, so
//! that the id itself is not told to everyone), `d` (the device's id), `i` (this start of the program), `n` (public parts of
//! codes by which others can join here, with commas) and, without an office, `name`. Nothing of it is signed: it is a
//! hint where to connect.

use super::beacon::{InstanceId, MAX_INVITING, OfficeTag, shown};
use super::table::{Event, MAX_ADDRESSES, Sighting};
use crate::net::FoundBy;
use common::error::{Error, Reason, Result};
use common::identity::DeviceId;
use mdns_sd::{ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};
use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

const SERVICE: &str = "_atrium._tcp.local.";
/// Names that are remembered, so that a removal can be understood.
const MAX_NAMES: usize = 4096;
/// How often the daemon looks for changed addresses, in seconds.
const LOOK: u32 = 2;
/// How long the daemon may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// What this node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) device: DeviceId,
    pub(super) instance: InstanceId,
    pub(super) port: u16,
    pub(super) office: Option<OfficeTag>,
    pub(super) inviting: Vec<String>,
    pub(super) display_name: String,
}

/// The responder and browser.
pub(super) struct Mdns {
    daemon: ServiceDaemon,
    said: Option<(Said, String)>,
    _reads: AbortOnDropHandle<()>,
}

impl Mdns {
    /// Begins to look for others.
    ///
    /// # Errors
    /// IO_FAILED if the system gives no socket for it.
    pub(super) fn start(events: mpsc::Sender<Event>) -> Result<Self> {
        let failed = |e: mdns_sd::Error| Error::new(Reason::IoFailed, format!("multicast DNS: {e}"));
        let daemon = ServiceDaemon::new().map_err(failed)?;
        daemon.set_ip_check_interval(LOOK).map_err(failed)?;
        let found = daemon.browse(SERVICE).map_err(failed)?;
        let reads = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut names: HashMap<String, DeviceId> = HashMap::new();
            while let Ok(event) = found.recv_async().await {
                if let Some(event) = understood(event, &mut names) {
                    // If the reader does not keep up, what comes is dropped: the beacon tells the same.
                    let _ = events.try_send(event);
                }
            }
        }));
        Ok(Self { daemon, said: None, _reads: reads })
    }

    /// Announces this node; does nothing if that is what it says already.
    ///
    /// # Errors
    /// IO_FAILED if the daemon has ended.
    pub(super) fn say(&mut self, said: Said) -> Result<()> {
        if self.said.as_ref().is_some_and(|(before, _)| *before == said) {
            return Ok(());
        }
        let failed = |e: mdns_sd::Error| Error::new(Reason::IoFailed, format!("multicast DNS: {e}"));
        let service = service(&said).map_err(failed)?;
        let name = service.get_fullname().to_owned();
        self.daemon.register(service).map_err(failed)?;
        self.said = Some((said, name));
        Ok(())
    }

    /// Says goodbye and ends.
    pub(super) async fn leave(self) {
        let bye = async {
            if let Some((_, name)) = &self.said
                && let Ok(done) = self.daemon.unregister(name)
            {
                let _ = done.recv_async().await;
            }
            if let Ok(done) = self.daemon.shutdown() {
                let _ = done.recv_async().await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE, bye).await;
    }
}

fn service(said: &Said) -> std::result::Result<ServiceInfo, mdns_sd::Error> {
    let label = said.device.to_string()[..16].to_owned();
    let mut properties: Vec<(&str, String)> =
        vec![("v", env!("CARGO_PKG_VERSION").to_owned()), ("d", said.device.to_string()), ("i", hex(&said.instance))];
    if let Some(office) = &said.office {
        properties.push(("o", hex(office)));
    } else {
        properties.push(("name", shown(&said.display_name, 64)));
    }
    if !said.inviting.is_empty() {
        properties.push(("n", said.inviting.iter().take(MAX_INVITING).cloned().collect::<Vec<_>>().join(",")));
    }
    let host = format!("atrium-{label}.local.");
    Ok(ServiceInfo::new(SERVICE, &label, &host, "", said.port, &properties[..])?.enable_addr_auto())
}

fn understood(event: ServiceEvent, names: &mut HashMap<String, DeviceId>) -> Option<Event> {
    match event {
        ServiceEvent::ServiceResolved(service) => {
            let sighting = sighting(&service)?;
            if names.len() < MAX_NAMES || names.contains_key(&service.fullname) {
                names.insert(service.fullname.clone(), sighting.device);
            }
            Some(Event::Heard(sighting))
        }
        ServiceEvent::ServiceRemoved(_, name) => names.remove(&name).map(Event::Unlisted),
        _ => None,
    }
}

fn sighting(service: &ResolvedService) -> Option<Sighting> {
    let text = |key: &str| service.get_property_val_str(key).unwrap_or_default();
    let device: DeviceId = text("d").parse().ok()?;
    let mut addresses: Vec<SocketAddr> = service
        .addresses
        .iter()
        .map(ScopedIp::to_ip_addr)
        // Without the card's number an address of one link leads nowhere; beacons bring those.
        .filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .map(|ip| SocketAddr::new(ip, service.port))
        .collect();
    addresses.sort();
    addresses.truncate(MAX_ADDRESSES);
    Some(Sighting {
        device,
        how: FoundBy::Mdns,
        addresses,
        instance: None,
        claimed: unhex(text("i")),
        from: None,
        office: unhex(text("o")),
        version: shown(text("v"), 32),
        inviting: text("n").split(',').filter(|n| !n.is_empty()).take(MAX_INVITING).map(|n| shown(n, 32)).collect(),
        display_name: shown(text("name"), 64),
        clock_ahead_ms: None,
    })
}

fn hex(bytes: &[u8; 8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        // Writing to a string does not fail.
        let _ = write!(text, "{b:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 8]> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten().map(u64::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let said = Said {
            device: DeviceId([7; 32]),
            instance: [1; 8],
            port: 7444,
            office: Some([0xab; 8]),
            inviting: vec!["4".into(), "17".into()],
            display_name: "anna-pc".into(),
        };
        let mut service = service(&said).unwrap().as_resolved_service();
        service.addresses = ["10.0.0.1", "fe80::1", "fd00::1"]
            .map(|ip| ScopedIp::from(ip.parse::<IpAddr>().unwrap()))
            .into_iter()
            .collect();
        let mut names = HashMap::new();
        let Some(Event::Heard(heard)) =
            understood(ServiceEvent::ServiceResolved(Box::new(service.clone())), &mut names)
        else {
            panic!("not understood");
        };
        assert_eq!((heard.device, heard.office), (said.device, said.office));
        assert_eq!((heard.instance, heard.claimed), (None, Some(said.instance)));
        assert_eq!(heard.inviting, said.inviting);
        assert_eq!(heard.addresses, ["10.0.0.1:7444".parse().unwrap(), "[fd00::1]:7444".parse().unwrap()]);
        assert_eq!(heard.display_name, "", "the name is for machines without an office");
        let gone = ServiceEvent::ServiceRemoved(SERVICE.into(), service.fullname.clone());
        assert_eq!(understood(gone.clone(), &mut names), Some(Event::Unlisted(said.device)));
        assert_eq!(understood(gone, &mut names), None);
    }

    #[test]
    fn others_services_of_the_same_name_are_passed_over() {
        let info = ServiceInfo::new(SERVICE, "x", "x.local.", "10.0.0.1", 1, &[("d", "nonsense")][..]).unwrap();
        assert!(sighting(&info.as_resolved_service()).is_none());
        assert_eq!(unhex("xyz"), None);
        assert_eq!(unhex("00000000000000ff"), Some([0, 0, 0, 0, 0, 0, 0, 255]));
        assert_eq!(hex(&[0, 0, 0, 0, 0, 0, 0, 255]), "00000000000000ff");
    }
}
