//! The task that hears, decides by the table, and calls.

use super::beacon::Beacon;
use super::cards::{Card, cards};
use super::mdns::{Mdns, Said};
use super::table::{Action, Event, Sighting};
use super::udp::{Calls, Datagram};
use super::{Presence, Probed, office_tag};
use crate::net::{FoundBy, Way};
use common::identity::DeviceId;
use common::status::from_status;
use proto::peer::v1 as peer;
use proto::peer::v1::membership_service_client::MembershipServiceClient;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Datagrams and mDNS events that wait.
const QUEUE: usize = 1024;
/// How often cards and connections are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a link may stand before its other end is asked to connect back: it mostly does so by itself.
const PROBE_AFTER_MS: u64 = 2000;
/// How often that is repeated.
const PROBE_AGAIN_MS: u64 = 300_000;
/// Probes at a time.
const PROBES: usize = 4;
/// For the answer to a probe.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// Goodbyes, since datagrams get lost, and the time between two.
const GOODBYES: usize = 3;
const GOODBYE_GAP: Duration = Duration::from_millis(30);

pub(super) async fn run(presence: Presence, port: u16) {
    let (datagram_in, mut datagrams) = mpsc::channel::<Datagram>(QUEUE);
    let (event_in, mut events) = mpsc::channel::<Event>(QUEUE);
    let options = &presence.0.options;
    let mut runner = Runner {
        port,
        sequence: 0,
        calls: options.beacon.then(|| Calls::open(options.beacon_port, datagram_in.clone())),
        mdns: None,
        mdns_problem: None,
        linked_since: HashMap::new(),
        presence: presence.clone(),
    };
    if options.mdns {
        match Mdns::start(event_in.clone()) {
            Ok(mdns) => runner.mdns = Some(mdns),
            Err(error) => runner.mdns_problem = Some(error.message().to_owned()),
        }
    }
    runner.look_at_cards(true).await;
    let mut links = presence.network().events();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let next = presence.0.began + Duration::from_millis(presence.0.state.lock().table.next_ms());
        tokio::select! {
            () = presence.0.stop.cancelled() => break,
            Some((datagram, from)) = datagrams.recv() => runner.heard(&datagram, from),
            Some(event) = events.recv() => runner.feed(event),
            changed = links.recv() => match changed {
                Ok(_) | Err(RecvError::Lagged(_)) => runner.look_at_connections(),
                // The network is closed, and this node is about to be.
                Err(RecvError::Closed) => presence.0.stop.cancelled().await,
            },
            () = presence.0.news.notified() => runner.feed(Event::Changed),
            _ = look.tick() => {
                runner.look_at_connections();
                runner.look_at_cards(false).await;
                runner.probe_due();
                runner.learn_again();
            }
            () = tokio::time::sleep_until(next) => runner.feed(Event::Tick),
        }
    }
    runner.leave().await;
}

struct Runner {
    presence: Presence,
    port: u16,
    sequence: u64,
    calls: Option<Calls>,
    mdns: Option<Mdns>,
    mdns_problem: Option<String>,
    linked_since: HashMap<DeviceId, u64>,
}

impl Runner {
    fn feed(&mut self, event: Event) {
        let now = self.presence.now_ms();
        let network = self.presence.network().clone();
        let actions = self.presence.0.state.lock().table.handle(now, event, |device| network.welcomes(device));
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Learn(device, address, how) => self.learn(device, address, how),
            Action::Answer(to) => {
                let datagram = self.beacon(false, false);
                if let Some(calls) = &self.calls {
                    calls.answer(&datagram, to);
                }
            }
            Action::Announce(asks) => self.announce(asks),
            Action::Appeared(device) | Action::Left(device) => {
                tracing::debug!(?device, ?action, "presence");
                self.presence.0.changes.send_modify(|n| *n += 1);
            }
        }
    }

    fn learn(&self, device: DeviceId, address: SocketAddr, how: FoundBy) {
        let network = self.presence.network();
        if network.welcomes(&device) {
            network.learn(device, address, how);
        }
    }

    /// Whoever became a member after it was heard is learnt now.
    fn learn_again(&self) {
        let network = self.presence.network();
        let linked: HashSet<DeviceId> = network.neighbours().into_iter().collect();
        let seen: Vec<(DeviceId, Vec<(SocketAddr, FoundBy)>)> = {
            let state = self.presence.0.state.lock();
            let unlinked = state.table.all().filter(|(device, seen)| seen.present && !linked.contains(device));
            unlinked.map(|(device, seen)| (*device, seen.addresses.clone())).collect()
        };
        for (device, addresses) in seen {
            addresses.into_iter().for_each(|(address, how)| self.learn(device, address, how));
        }
    }

    fn heard(&mut self, datagram: &[u8], from: SocketAddr) {
        let Some(beacon) = Beacon::read(datagram) else { return };
        if beacon.device == self.presence.network().me() {
            return;
        }
        if beacon.leaving {
            return self.feed(Event::Goodbye { device: beacon.device, instance: beacon.instance });
        }
        let now = self.presence.0.options.clock.now_ms();
        let ahead = i64::try_from(i128::from(beacon.clock_ms) - i128::from(now)).ok();
        let mut address = from;
        address.set_port(beacon.port);
        self.feed(Event::Heard(Sighting {
            device: beacon.device,
            how: FoundBy::Beacon,
            addresses: vec![address],
            instance: Some((beacon.instance, beacon.sequence)),
            claimed: None,
            from: Some((from, beacon.asks)),
            office: beacon.office,
            version: beacon.version,
            inviting: beacon.inviting,
            display_name: beacon.display_name,
            clock_ahead_ms: ahead,
        }));
    }

    fn beacon(&mut self, asks: bool, leaving: bool) -> Vec<u8> {
        let presence = &self.presence.0;
        self.sequence += 1;
        let office = presence.about.office();
        let display_name = if office.is_none() { presence.about.display_name() } else { String::new() };
        Beacon {
            device: presence.network.me(),
            instance: presence.instance,
            sequence: self.sequence,
            port: self.port,
            office: office.as_ref().map(office_tag),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            inviting: presence.about.inviting(),
            leaving,
            asks,
            display_name,
            clock_ms: presence.options.clock.now_ms(),
        }
        .sign(&presence.options.key)
    }

    fn announce(&mut self, asks: bool) {
        let datagram = self.beacon(asks, false);
        if let Some(calls) = &mut self.calls {
            calls.announce(&datagram);
        }
        let presence = &self.presence.0;
        let office = presence.about.office();
        let said = Said {
            device: presence.network.me(),
            instance: presence.instance,
            port: self.port,
            office: office.as_ref().map(office_tag),
            inviting: presence.about.inviting(),
            display_name: if office.is_none() { presence.about.display_name() } else { String::new() },
        };
        if let Some(mdns) = &mut self.mdns {
            self.mdns_problem = mdns.say(said).err().map(|e| e.message().to_owned());
        }
        self.describe();
    }

    fn describe(&self) {
        let options = &self.presence.0.options;
        let mut lines = Vec::new();
        lines.push(match (options.mdns, &self.mdns_problem) {
            (false, _) => "multicast DNS: switched off".to_owned(),
            (true, None) => "multicast DNS: _atrium._tcp".to_owned(),
            (true, Some(problem)) => format!("multicast DNS does not work: {problem}"),
        });
        match &self.calls {
            None => lines.push("beacon: switched off".to_owned()),
            Some(calls) => {
                lines.extend(calls.describe().into_iter().map(|line| format!("beacon: {line}")));
                lines.extend(calls.problems.iter().map(|(at, what)| format!("beacon does not work: {at}: {what}")));
            }
        }
        self.presence.0.state.lock().discovery = lines;
    }

    async fn look_at_cards(&mut self, first: bool) {
        let found = match tokio::task::spawn_blocking(cards).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return tracing::warn!(%error, "the network cards cannot be read"),
            Err(_) => return,
        };
        let before = std::mem::replace(&mut self.presence.0.state.lock().cards, found.clone());
        if before == found && !first {
            return;
        }
        if let Some(calls) = &mut self.calls {
            // Nobody needs to hear of this node where it does not listen.
            let served: Vec<Card> =
                found.iter().filter(|c| self.presence.network().listens_at(c.ip)).cloned().collect();
            calls.set_cards(&served);
        }
        let mine: BTreeSet<IpAddr> = found.iter().filter(|c| c.is_public()).map(|c| c.ip).collect();
        self.presence.network().set_own_addresses(mine);
        self.describe();
        if !first {
            tracing::info!(
                cards = found.iter().filter(|c| Card::is_public(c)).count(),
                "this machine's addresses have changed"
            );
            self.presence.0.state.lock().probes.clear();
            self.presence.0.hurry.notify_waiters();
            self.feed(Event::Changed);
        }
    }

    fn look_at_connections(&mut self) {
        let network = self.presence.network();
        let links = network.links();
        let now = self.presence.now_ms();
        self.linked_since.retain(|device, _| links.iter().any(|l| l.device() == *device));
        // Connections that have come in are not enough: nobody notices soon if their other end is dead.
        let connected: HashSet<DeviceId> = links.iter().map(|link| link.device()).collect();
        for device in &connected {
            self.linked_since.entry(*device).or_insert(now);
        }
        let before: HashSet<DeviceId> = {
            let state = self.presence.0.state.lock();
            state.table.all().filter(|(_, seen)| seen.connected).map(|(device, _)| *device).collect()
        };
        connected.difference(&before).for_each(|device| self.feed(Event::Connected(*device)));
        before.difference(&connected).for_each(|device| self.feed(Event::Disconnected(*device)));
    }

    /// Asks neighbours to connect back that have not done so by themselves.
    fn probe_due(&mut self) {
        let network = self.presence.network();
        let now = self.presence.now_ms();
        let incoming = network.incoming();
        let addresses: Vec<String> = network.addresses().iter().take(8).map(SocketAddr::to_string).collect();
        let mut state = self.presence.0.state.lock();
        state.probes.retain(|device, _| self.linked_since.contains_key(device));
        let mut room = PROBES.saturating_sub(state.probes.values().filter(|p| p.running).count());
        for link in network.links() {
            let device = link.device();
            let back = matches!(incoming.get(&device), Some(Way::Direct(_)));
            let rested = self.linked_since.get(&device).is_some_and(|since| now >= since + PROBE_AFTER_MS);
            let probed = state.probes.get(&device).is_some_and(|p| p.running || now < p.at_ms + PROBE_AGAIN_MS);
            if back || !rested || probed || room == 0 || !matches!(link.way(), Way::Direct(_)) {
                continue;
            }
            room -= 1;
            let before = state.probes.remove(&device).and_then(|p| p.answer);
            state.probes.insert(device, Probed { at_ms: now, running: true, answer: before });
            let (presence, addresses) = (self.presence.clone(), addresses.clone());
            self.presence.0.tasks.spawn(async move {
                let mut client = MembershipServiceClient::new(link.control());
                let asking = client.probe(peer::ProbeRequest { addresses });
                let answer = match tokio::time::timeout(PROBE_PATIENCE, asking).await {
                    Ok(Ok(answer)) => {
                        let answer = answer.into_inner();
                        let reached = answer.reached.iter().take(8).filter_map(|a| a.parse().ok()).collect();
                        let shown = |p: &String| super::beacon::shown(p, 200);
                        Ok(crate::net::ProbeAnswer {
                            reached,
                            problems: answer.problems.iter().take(8).map(shown).collect(),
                        })
                    }
                    Ok(Err(status)) => Err(from_status(&status).message().to_owned()),
                    Err(_) => Err("it does not answer".to_owned()),
                };
                if let Some(probed) = presence.0.state.lock().probes.get_mut(&device) {
                    (probed.running, probed.answer) = (false, Some(answer));
                }
            });
        }
    }

    async fn leave(mut self) {
        for n in 0..GOODBYES {
            let datagram = self.beacon(false, true);
            if let Some(calls) = &mut self.calls {
                calls.announce(&datagram);
            }
            if n + 1 < GOODBYES {
                let pause = Instant::now() + GOODBYE_GAP;
                tokio::time::sleep_until(pause).await;
            }
        }
        if let Some(mdns) = self.mdns.take() {
            mdns.leave().await;
        }
    }
}
