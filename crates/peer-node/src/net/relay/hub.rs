//! Who listens here, which connections wait to be taken, and how many pass through.

use super::QUEUE;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::identity::{DeviceId, random_bytes};
use parking_lot::Mutex;
use proto::peer::v1 as peer;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long a connection waits to be taken.
const WAIT: Duration = Duration::from_secs(10);
/// Connections that one listener has been told of and has not taken.
const UNTAKEN: usize = 16;
/// Connections that wait to be taken, over all.
const MAX_WAITING: usize = 256;
/// Nodes that listen here; a node has 64 links by itself and others on demand.
const MAX_LISTENERS: usize = 1024;

/// What this node does for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayLimits {
    /// Connections passed on at a time; 0 switches relaying off. A pair of nodes uses about three.
    pub connections: usize,
    /// Of these, for one caller.
    pub for_one: usize,
    /// Bytes a second over all of them and both directions; 0 means no bound.
    pub rate: u64,
}

impl Default for RelayLimits {
    /// Off.
    fn default() -> Self {
        Self { connections: 0, for_one: 8, rate: 0 }
    }
}

impl RelayLimits {
    /// On, with bounds for an office's line: 64 connections, 8 for one caller, 4 MiB/s.
    pub fn on() -> Self {
        Self { connections: 64, for_one: 8, rate: 4 * 1024 * 1024 }
    }
}

/// One end of a connection that is passed on.
#[derive(Debug)]
pub(in crate::net) struct Pipe {
    pub(super) from_other: mpsc::Receiver<Bytes>,
    pub(super) to_other: mpsc::Sender<Bytes>,
    pub(super) passage: Arc<Passage>,
}

/// Two ends of a connection.
pub(super) fn pipe(passage: Passage) -> (Pipe, Pipe) {
    let passage = Arc::new(passage);
    let ((to_b, from_a), (to_a, from_b)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
    (
        Pipe { from_other: from_b, to_other: to_b, passage: passage.clone() },
        Pipe { from_other: from_a, to_other: to_a, passage },
    )
}

/// The place of a connection among those that pass; given back when both ends are gone.
#[derive(Debug, Default)]
pub(super) struct Passage(Option<(Arc<Hub>, DeviceId)>);

impl Passage {
    /// Waits until so many bytes may pass.
    pub(super) async fn pass(&self, bytes: usize) {
        let delay = self.0.as_ref().map_or(Duration::ZERO, |(hub, _)| hub.bucket.take(hub.limits.rate, bytes));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let Some((hub, caller)) = &self.0 else { return };
        let mut state = hub.state.lock();
        if let Some(count) = state.passing.get_mut(caller) {
            *count -= 1;
            if *count == 0 {
                state.passing.remove(caller);
            }
        }
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(in crate::net) struct Hub {
    limits: RelayLimits,
    state: Mutex<State>,
    bucket: Bucket,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    next: u64,
    listeners: HashMap<DeviceId, (u64, mpsc::Sender<peer::ListenResponse>)>,
    waiting: HashMap<[u8; 16], Waiting>,
    /// Connections passed on, by caller.
    passing: HashMap<DeviceId, usize>,
}

#[derive(Debug)]
struct Waiting {
    target: DeviceId,
    pipe: Pipe,
    until: Instant,
}

/// A node that listens; it does no longer when this is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    hub: Arc<Hub>,
    device: DeviceId,
    id: u64,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        if state.listeners.get(&self.device).is_some_and(|(id, _)| *id == self.id) {
            state.listeners.remove(&self.device);
        }
    }
}

impl Hub {
    pub(in crate::net) fn new(limits: RelayLimits) -> Arc<Self> {
        Arc::new(Self { limits, ..Self::default() })
    }

    /// Nobody listens here any longer; what is passed on goes on.
    pub(in crate::net) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.listeners.clear();
    }

    /// Who can be reached by the connection that it keeps here.
    pub(in crate::net) fn listening(&self) -> Vec<DeviceId> {
        self.state.lock().listeners.keys().copied().collect()
    }

    pub(in crate::net) fn listens(&self, device: &DeviceId) -> bool {
        self.state.lock().listeners.contains_key(device)
    }

    /// A node begins to listen. The newest call of a node counts.
    pub(super) fn listen(
        self: &Arc<Self>,
        device: DeviceId,
    ) -> Result<(mpsc::Receiver<peer::ListenResponse>, Listener)> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::new(Reason::ShuttingDown, "this node is stopping"));
        }
        if state.listeners.len() >= MAX_LISTENERS && !state.listeners.contains_key(&device) {
            return Err(Error::new(Reason::Overloaded, "too many nodes listen here"));
        }
        let id = state.next;
        state.next += 1;
        let (sender, receiver) = mpsc::channel(UNTAKEN);
        state.listeners.insert(device, (id, sender));
        Ok((receiver, Listener { hub: self.clone(), device, id }))
    }

    /// A connection from this node itself to one that listens here.
    pub(in crate::net) fn call_back(self: &Arc<Self>, me: DeviceId, target: DeviceId) -> Result<Pipe> {
        self.offer(me, target, Passage::default())
    }

    /// A connection for another node.
    pub(super) fn connect(self: &Arc<Self>, caller: DeviceId, target: DeviceId) -> Result<Pipe> {
        if self.limits.connections == 0 {
            return Err(Error::new(Reason::RelayRefused, "this node does not pass connections on"));
        }
        {
            let mut state = self.state.lock();
            if !state.listeners.contains_key(&target) {
                return Err(Error::new(Reason::PeerUnreachable, "that node is not connected with this one"));
            }
            let of_one = state.passing.get(&caller).copied().unwrap_or(0);
            if of_one >= self.limits.for_one || state.passing.values().sum::<usize>() >= self.limits.connections {
                return Err(Error::new(Reason::Overloaded, "this node passes on as many connections as it may"));
            }
            *state.passing.entry(caller).or_default() += 1;
        }
        self.offer(caller, target, Passage(Some((self.clone(), caller))))
    }

    fn offer(&self, caller: DeviceId, target: DeviceId, passage: Passage) -> Result<Pipe> {
        let ticket: [u8; 16] = random_bytes();
        let (near, far) = pipe(passage);
        let mut state = self.state.lock();
        let now = Instant::now();
        let late: Vec<[u8; 16]> = state.waiting.iter().filter(|(_, w)| w.until < now).map(|(t, _)| *t).collect();
        // Dropped after the lock: giving a place back takes it again.
        let _late: Vec<Option<Waiting>> = late.iter().map(|t| state.waiting.remove(t)).collect();
        let offered = match state.listeners.get(&target) {
            None => Err(Error::new(Reason::PeerUnreachable, "that node is not connected with this one")),
            Some(_) if state.waiting.len() >= MAX_WAITING => {
                Err(Error::new(Reason::Overloaded, "too many connections wait to be taken"))
            }
            Some((_, sender)) => sender
                .try_send(peer::ListenResponse { ticket: ticket.to_vec().into(), caller: caller.0.to_vec().into() })
                .map_err(|_| Error::new(Reason::PeerUnreachable, "that node does not take connections")),
        };
        if offered.is_ok() {
            state.waiting.insert(ticket, Waiting { target, pipe: far, until: now + WAIT });
            drop(state);
            return Ok(near);
        }
        drop(state);
        drop((near, far));
        Err(offered.err().unwrap_or_else(|| Error::internal("an offer that was neither taken nor refused")))
    }

    /// The one to whom a connection was offered takes it.
    pub(super) fn take(&self, by: DeviceId, ticket: &[u8]) -> Result<Pipe> {
        let unknown = || Error::new(Reason::PeerUnreachable, "no connection waits under this ticket");
        let ticket: [u8; 16] = ticket.try_into().map_err(|_| unknown())?;
        let mut state = self.state.lock();
        let good = state.waiting.get(&ticket).is_some_and(|w| w.target == by && w.until >= Instant::now());
        if !good {
            return Err(unknown());
        }
        state.waiting.remove(&ticket).map(|w| w.pipe).ok_or_else(unknown)
    }

    /// Connections that pass through here now.
    pub(in crate::net) fn passing(&self) -> usize {
        self.state.lock().passing.values().sum()
    }
}

/// Bytes that may pass: a quarter of a second's worth at once, then by the rate.
#[derive(Debug, Default)]
struct Bucket(Mutex<Option<Instant>>);

impl Bucket {
    /// How long to wait before so many bytes.
    fn take(&self, rate: u64, bytes: usize) -> Duration {
        if rate == 0 {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let burst = Duration::from_millis(250);
        let mut free_at = self.0.lock();
        let start = free_at.map_or(now, |at| at.max(now.checked_sub(burst).unwrap_or(now)));
        let next = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
        *free_at = Some(next);
        next.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> DeviceId {
        DeviceId([n; 32])
    }

    #[test]
    fn a_node_passes_nothing_on_unless_it_is_told_to() {
        let hub = Hub::new(RelayLimits::default());
        let (_told, _listener) = hub.listen(id(2)).unwrap();
        assert!(hub.connect(id(1), id(2)).unwrap_err().is(Reason::RelayRefused));
        hub.call_back(id(9), id(2)).unwrap();
    }

    #[tokio::test]
    async fn only_the_one_it_was_offered_to_takes_a_connection_and_only_once() {
        let hub = Hub::new(RelayLimits::on());
        assert!(hub.connect(id(1), id(2)).unwrap_err().is(Reason::PeerUnreachable));
        let (mut told, listener) = hub.listen(id(2)).unwrap();
        let mut near = hub.connect(id(1), id(2)).unwrap();
        let offer = told.recv().await.unwrap();
        assert_eq!(&offer.caller[..], &id(1).0);
        assert!(hub.take(id(3), &offer.ticket).is_err());
        assert!(hub.take(id(2), &[0; 16]).is_err());
        assert!(hub.take(id(2), b"short").is_err());
        let far = hub.take(id(2), &offer.ticket).unwrap();
        assert!(hub.take(id(2), &offer.ticket).is_err());
        far.to_other.send(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(near.from_other.recv().await.unwrap(), "x");
        assert_eq!(hub.passing(), 1);
        drop((near, far, listener));
        assert_eq!(hub.passing(), 0);
        assert!(hub.listening().is_empty());
    }

    #[test]
    fn bounds_hold_for_one_and_for_all_and_places_come_back() {
        let hub = Hub::new(RelayLimits { connections: 5, for_one: 2, rate: 0 });
        let (_told, _listener) = hub.listen(id(9)).unwrap();
        let mut open: Vec<Pipe> = Vec::new();
        for caller in [1, 1, 2, 2, 3] {
            open.push(hub.connect(id(caller), id(9)).unwrap());
        }
        assert!(hub.connect(id(1), id(9)).unwrap_err().is(Reason::Overloaded));
        assert!(hub.connect(id(4), id(9)).unwrap_err().is(Reason::Overloaded));
        // The far ends still wait to be taken, so the places are not free yet.
        drop(open);
        assert_eq!(hub.passing(), 5);
        hub.state.lock().waiting.values_mut().for_each(|w| w.until = Instant::now() - Duration::from_secs(1));
        hub.call_back(id(8), id(9)).unwrap();
        assert_eq!(hub.passing(), 0);
    }

    #[test]
    fn the_newest_listener_counts_and_the_old_ones_end_does_not_end_it() {
        let hub = Hub::new(RelayLimits::on());
        let (_, old) = hub.listen(id(2)).unwrap();
        let (mut told, _new) = hub.listen(id(2)).unwrap();
        drop(old);
        hub.connect(id(1), id(2)).unwrap();
        assert!(told.try_recv().is_ok());
    }

    #[test]
    fn a_listener_that_takes_nothing_is_offered_no_more() {
        let hub = Hub::new(RelayLimits { connections: 1000, for_one: 1000, rate: 0 });
        let (_told, _listener) = hub.listen(id(2)).unwrap();
        let open: Vec<_> = (0..UNTAKEN).map(|_| hub.connect(id(1), id(2)).unwrap()).collect();
        assert!(hub.connect(id(1), id(2)).unwrap_err().is(Reason::PeerUnreachable));
        assert_eq!(hub.passing(), open.len());
    }

    #[test]
    fn the_rate_is_kept_over_time() {
        let bucket = Bucket::default();
        assert_eq!(bucket.take(0, 1 << 30), Duration::ZERO);
        let waits: Vec<Duration> = (0..10).map(|_| bucket.take(1_000_000, 100_000)).collect();
        assert!(waits.windows(2).all(|w| w[1] > w[0]));
        assert!(waits[9] > Duration::from_millis(700) && waits[9] <= Duration::from_millis(1000), "{waits:?}");
    }
}
