//! Sockets for beacons: one that hears for each of IPv4 and IPv6, and one that calls for each card.
//!
//! A call goes out by the card's own socket, so that it leaves by that card and answers come back to it even if several
//! nodes of one machine share the listening port.

use super::beacon::{MAX_DATAGRAM, Sieve};
use super::cards::Card;
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// "atri": transient, for one link only.
pub const GROUP: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x6174, 0x7269);

/// A datagram and where it came from.
pub(super) type Datagram = (Vec<u8>, SocketAddr);

/// What hears and calls.
pub(super) struct Calls {
    port: u16,
    hears: [Option<Hearing>; 2],
    calling: BTreeMap<Key, Calling>,
    heard: Heard,
    /// What does not work, by where.
    pub(super) problems: BTreeMap<String, String>,
}

/// A card's address, and the card's number, which IPv6 needs.
type Key = (u32, IpAddr, Option<Ipv4Addr>);

struct Calling {
    name: String,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    _reads: AbortOnDropHandle<()>,
}

struct Hearing {
    socket: Arc<UdpSocket>,
    _reads: AbortOnDropHandle<()>,
}

/// Where datagrams go that were heard and passed the sieve.
#[derive(Clone)]
struct Heard {
    sender: mpsc::Sender<Datagram>,
    sieve: Arc<Mutex<Sieve>>,
    began: Instant,
}

impl Calls {
    /// Listens on a port; with 0 it only calls and hears answers. Call it inside a runtime.
    pub(super) fn open(port: u16, sender: mpsc::Sender<Datagram>) -> Self {
        let heard = Heard { sender, sieve: Arc::default(), began: Instant::now() };
        let mut problems = BTreeMap::new();
        let hears = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)].map(|ip| {
            let socket = socket(SocketAddr::new(ip, port), None).map_err(|error| {
                problems.insert(format!("UDP port {port} of {ip}"), error.to_string());
            });
            let socket = Arc::new(socket.ok()?);
            Some(Hearing { _reads: heard.clone().read(socket.clone()), socket })
        });
        Self { port, hears, calling: BTreeMap::new(), heard, problems }
    }

    /// Calls by these cards from now on.
    pub(super) fn set_cards(&mut self, cards: &[Card]) {
        let wanted: BTreeMap<Key, &Card> = cards.iter().filter_map(|c| key(c).map(|k| (k, c))).collect();
        self.calling.retain(|key, _| wanted.contains_key(key));
        for (key, card) in wanted {
            if self.calling.contains_key(&key) {
                continue;
            }
            match self.begin(card) {
                Ok(calling) => {
                    self.problems.remove(&card.name);
                    self.calling.insert(key, calling);
                }
                Err(error) => _ = self.problems.insert(card.name.clone(), error.to_string()),
            }
        }
    }

    fn begin(&self, card: &Card) -> io::Result<Calling> {
        let (bind, to) = match (card.ip, card.broadcast) {
            (IpAddr::V4(ip), Some(broadcast)) => (SocketAddr::from((ip, 0)), SocketAddr::from((broadcast, self.port))),
            _ => {
                let to = SocketAddrV6::new(GROUP, self.port, 0, card.index);
                (SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), SocketAddr::from(to))
            }
        };
        let socket = Arc::new(socket(bind, bind.is_ipv6().then_some(card.index))?);
        if let (true, Some(hearing)) = (bind.is_ipv6(), &self.hears[1]) {
            match hearing.socket.join_multicast_v6(&GROUP, card.index) {
                // Joined already, by another address of the same card.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                other => other?,
            }
        }
        let reads = self.heard.clone().read(socket.clone());
        Ok(Calling { name: card.name.clone(), socket, to, _reads: reads })
    }

    /// Sends to everyone, by all cards.
    pub(super) fn announce(&mut self, datagram: &[u8]) {
        for calling in self.calling.values() {
            match calling.socket.try_send_to(datagram, calling.to) {
                Ok(_) => _ = self.problems.remove(&calling.name),
                // The socket's queue is full: the next repetition will do.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => _ = self.problems.insert(calling.name.clone(), format!("to {}: {error}", calling.to)),
            }
        }
    }

    /// Sends to one.
    pub(super) fn answer(&self, datagram: &[u8], to: SocketAddr) {
        let hearing = &self.hears[usize::from(to.is_ipv6())];
        if let Some(hearing) = hearing
            && let Err(error) = hearing.socket.try_send_to(datagram, to)
        {
            tracing::debug!(%to, %error, "an answer could not be sent");
        }
    }

    /// By which cards it calls, and where to.
    pub(super) fn describe(&self) -> Vec<String> {
        self.calling.values().map(|c| format!("{} to {}", c.name, c.to)).collect()
    }
}

fn key(card: &Card) -> Option<Key> {
    match card.ip {
        IpAddr::V4(_) => card.broadcast.map(|b| (card.index, card.ip, Some(b))),
        // One call a card; every card with IPv6 has an address of its own link.
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some((card.index, Ipv6Addr::UNSPECIFIED.into(), None)),
        IpAddr::V6(_) => None,
    }
}

fn socket(bind: SocketAddr, multicast_card: Option<u32>) -> io::Result<UdpSocket> {
    let family = if bind.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if bind.port() != 0 {
        // Several nodes of one machine hear the same calls.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if bind.is_ipv4() {
        sockopt::set_socket_broadcast(&socket, true)?;
    } else {
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_ipv6_multicast_loop(&socket, true)?;
        sockopt::set_ipv6_multicast_hops(&socket, 1)?;
    }
    if let Some(card) = multicast_card {
        sockopt::set_ipv6_multicast_if(&socket, card)?;
    }
    rustix::net::bind(&socket, &bind)?;
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

impl Heard {
    fn read(self, socket: Arc<UdpSocket>) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(async move {
            // One byte more than allowed, so that a longer one is noticed.
            let mut buffer = [0; MAX_DATAGRAM + 1];
            loop {
                match socket.recv_from(&mut buffer).await {
                    Ok((len, from)) => self.take(&buffer[..len], from),
                    // An answer that could not be delivered comes back as an error of the socket.
                    Err(error) => {
                        tracing::debug!(%error, "a beacon's socket");
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    }
                }
            }
        }))
    }

    fn take(&self, datagram: &[u8], from: SocketAddr) {
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.sieve.lock().pass(from.ip(), now_ms) {
            // If the reader does not keep up, what comes is dropped: it will be repeated.
            let _ = self.sender.try_send((datagram.to_vec(), from));
        }
    }
}
