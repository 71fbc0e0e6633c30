//! What to do about a parcel that was sent: decisions without IO.
//!
//! A receiver that is there is offered the parcel; one that is not gets it when it comes back, from the sender or from a
//! keeper. After a few seconds with a receiver away the parcel is sealed once and given to two keepers. Receipts end a
//! delivery; when all have ended the content can go.

use common::model::DeviceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A receiver that is away for so long makes the parcel be given to keepers.
const PATIENCE_MS: u64 = 3_000;
/// Keepers of one parcel.
const KEEPERS: usize = 2;
/// After an offer that came to nothing, the next one waits so long, doubling up to the last.
const RETRY_MS: [u64; 2] = [2_000, 120_000];
/// A receiver that takes the parcel or asks its person is reminded after this; it answers with its receipt if it has it.
const REMIND_MS: u64 = 60_000;

/// State of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// Waits for the receiver.
    Queued,
    /// The receiver's person was asked.
    Asking,
    /// The receiver fetches it.
    Running,
    /// There, with receipt.
    Delivered,
    /// Not wanted.
    Refused,
    /// Taken back.
    Cancelled,
    /// Too old.
    Expired,
}

impl DeliveryState {
    /// True if nothing happens any more.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Delivered | Self::Refused | Self::Cancelled | Self::Expired)
    }
}

/// A parcel at one receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Which device.
    #[serde(with = "super::shelf::device_text")]
    pub device: DeviceId,
    /// See the enum.
    pub state: DeliveryState,
    /// For people.
    pub message: String,
    /// When the receiver had it, by its clock; 0 before.
    pub receipt_ms: u64,
    /// Not offered again before this.
    next_ms: u64,
    tries: u32,
    #[serde(skip)]
    offered: bool,
}

impl Delivery {
    /// A delivery that has not begun.
    pub fn new(device: DeviceId) -> Self {
        let state = DeliveryState::Queued;
        Self { device, state, message: String::new(), receipt_ms: 0, next_ms: 0, tries: 0, offered: false }
    }
}

/// What a receiver or keeper answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Fetches it.
    Accepted,
    /// Its person must say.
    Asks,
    /// Does not take it.
    Refused,
    /// Has it.
    Complete,
    /// Not now, or no answer.
    Later,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time went on, or others came or went.
    Look,
    /// A receiver came (back): it is worth offering at once.
    Up(DeviceId),
    /// A receiver answered.
    Answered(DeviceId, Answer, String),
    /// A keeper answered.
    Kept(DeviceId, Answer),
    /// The sealed form is on disk.
    SealReady,
    /// A receipt.
    Receipt {
        /// Of whom.
        device: DeviceId,
        /// Or refused.
        delivered: bool,
        /// When.
        at_ms: u64,
        /// For people.
        message: String,
    },
    /// The sender takes it back.
    Cancel,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Offer it to this receiver.
    Offer(DeviceId),
    /// Make the sealed form.
    Seal,
    /// Ask this node to keep it.
    OfferKeep(DeviceId),
    /// All deliveries have ended: the content can go.
    Finish,
}

/// Who is there.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Devices that can be called now.
    pub online: BTreeSet<DeviceId>,
    /// Those of them that keep parcels.
    pub keepers: Vec<DeviceId>,
}

/// How sealing stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seal {
    /// Not needed so far.
    #[default]
    No,
    /// Being made; after a restart it is made again.
    Making,
    /// There.
    Ready,
}

/// A parcel that was sent, as far as decisions go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// When it was sent.
    pub create_ms: u64,
    /// When it is given up.
    pub expire_ms: u64,
    /// One for each receiver.
    pub deliveries: Vec<Delivery>,
    /// The sealed form.
    pub seal: Seal,
    /// Who keeps it.
    #[serde(with = "super::shelf::devices_text")]
    pub keepers: Vec<DeviceId>,
    /// The content is gone.
    pub finished: bool,
    #[serde(skip)]
    asked_keepers: Vec<DeviceId>,
    /// Of these, how many have not answered.
    #[serde(skip)]
    open_asks: usize,
}

impl Outgoing {
    /// A parcel that has just been written.
    pub fn new(create_ms: u64, expire_ms: u64, receivers: &[DeviceId]) -> Self {
        Self {
            create_ms,
            expire_ms,
            deliveries: receivers.iter().copied().map(Delivery::new).collect(),
            seal: Seal::No,
            keepers: Vec::new(),
            finished: false,
            asked_keepers: Vec::new(),
            open_asks: 0,
        }
    }

    /// As it is found after a restart: what was under way begins again.
    pub fn after_restart(&mut self) {
        if self.seal == Seal::Making {
            self.seal = Seal::No;
        }
        for delivery in self.deliveries.iter_mut().filter(|d| !d.state.is_ended()) {
            delivery.next_ms = 0;
        }
    }

    /// Takes in what happened; gives what to do.
    pub fn step(&mut self, event: Event, now_ms: u64, around: &Around) -> Vec<Action> {
        if self.finished {
            return Vec::new();
        }
        self.note(event, now_ms);
        if now_ms >= self.expire_ms {
            self.end_all(DeliveryState::Expired);
        }
        let mut actions = Vec::new();
        for delivery in &mut self.deliveries {
            let due = !delivery.state.is_ended() && !delivery.offered && delivery.next_ms <= now_ms;
            if due && around.online.contains(&delivery.device) {
                delivery.offered = true;
                actions.push(Action::Offer(delivery.device));
            }
        }
        actions.extend(self.think_of_keepers(now_ms, around));
        if self.deliveries.iter().all(|d| d.state.is_ended()) {
            self.finished = true;
            actions.push(Action::Finish);
        }
        actions
    }

    /// Takes in a receipt without looking around.
    pub fn receipt(&mut self, event: Event, now_ms: u64) {
        self.note(event, now_ms);
        self.finished = self.deliveries.iter().all(|d| d.state.is_ended());
    }

    /// Was asked to keep it in this run of the program.
    pub fn may_keep(&self, device: &DeviceId) -> bool {
        self.asked_keepers.contains(device)
    }

    fn note(&mut self, event: Event, now_ms: u64) {
        match event {
            Event::Look => {}
            Event::Up(device) => {
                if let Some(d) = self.open(&device) {
                    (d.next_ms, d.tries) = (0, 0);
                }
            }
            Event::Answered(device, answer, message) => {
                if let Some(d) = self.open(&device) {
                    d.answered(answer, message, now_ms);
                }
            }
            Event::Kept(keeper, answer) => {
                self.open_asks = self.open_asks.saturating_sub(1);
                let keeps = matches!(answer, Answer::Accepted | Answer::Complete);
                if keeps && !self.keepers.contains(&keeper) {
                    self.keepers.push(keeper);
                }
            }
            Event::SealReady => self.seal = Seal::Ready,
            Event::Receipt { device, delivered, at_ms, message } => {
                // Also after a delivery was given up: it has arrived, and people want to know.
                if let Some(d) = self.deliveries.iter_mut().find(|d| d.device == device) {
                    d.state = if delivered { DeliveryState::Delivered } else { DeliveryState::Refused };
                    (d.receipt_ms, d.message, d.offered) = (at_ms, message, false);
                }
            }
            Event::Cancel => self.end_all(DeliveryState::Cancelled),
        }
    }

    fn open(&mut self, device: &DeviceId) -> Option<&mut Delivery> {
        self.deliveries.iter_mut().find(|d| d.device == *device && !d.state.is_ended())
    }

    fn end_all(&mut self, state: DeliveryState) {
        self.deliveries.iter_mut().filter(|d| !d.state.is_ended()).for_each(|d| d.state = state);
    }

    fn think_of_keepers(&mut self, now_ms: u64, around: &Around) -> Vec<Action> {
        let away = |d: &Delivery| !d.state.is_ended() && !around.online.contains(&d.device);
        if now_ms < self.create_ms.saturating_add(PATIENCE_MS) || !self.deliveries.iter().any(away) {
            return Vec::new();
        }
        let receivers: Vec<DeviceId> = self.deliveries.iter().map(|d| d.device).collect();
        let free =
            |k: &&DeviceId| !receivers.contains(k) && !self.keepers.contains(k) && !self.asked_keepers.contains(k);
        let wanted = KEEPERS.saturating_sub(self.keepers.len() + self.open_asks);
        let candidates: Vec<DeviceId> = around.keepers.iter().filter(free).take(wanted).copied().collect();
        match self.seal {
            Seal::No if !candidates.is_empty() => {
                self.seal = Seal::Making;
                vec![Action::Seal]
            }
            Seal::Ready => {
                // One that says no is not asked again by this run of the program.
                self.asked_keepers.extend(&candidates);
                self.open_asks += candidates.len();
                candidates.into_iter().map(Action::OfferKeep).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Delivery {
    fn answered(&mut self, answer: Answer, message: String, now_ms: u64) {
        self.offered = false;
        self.message = message;
        let (state, wait) = match answer {
            Answer::Accepted | Answer::Complete => (DeliveryState::Running, REMIND_MS),
            Answer::Asks => (DeliveryState::Asking, REMIND_MS),
            Answer::Refused => (DeliveryState::Refused, 0),
            Answer::Later => {
                let wait = RETRY_MS[0].saturating_mul(1 << self.tries.min(10)).min(RETRY_MS[1]);
                self.tries += 1;
                (DeliveryState::Queued, wait)
            }
        };
        self.state = state;
        self.next_ms = now_ms.saturating_add(wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(n: u8) -> DeviceId {
        DeviceId([n; 32])
    }

    fn around(online: &[u8], keepers: &[u8]) -> Around {
        Around {
            online: online.iter().copied().map(device).collect(),
            keepers: keepers.iter().copied().map(device).collect(),
        }
    }

    #[test]
    fn a_receiver_that_is_there_gets_it_at_once_and_a_receipt_ends_it() {
        let mut parcel = Outgoing::new(0, 1_000_000, &[device(1)]);
        let there = around(&[1], &[]);
        assert_eq!(parcel.step(Event::Look, 0, &there), [Action::Offer(device(1))]);
        assert_eq!(parcel.step(Event::Look, 1, &there), [], "not twice at a time");
        assert_eq!(parcel.step(Event::Answered(device(1), Answer::Accepted, String::new()), 2, &there), []);
        let receipt = Event::Receipt { device: device(1), delivered: true, at_ms: 3, message: String::new() };
        assert_eq!(parcel.step(receipt, 4, &there), [Action::Finish]);
        assert_eq!(parcel.deliveries[0].state, DeliveryState::Delivered);
        assert_eq!(parcel.step(Event::Look, 5, &there), []);
    }

    #[test]
    fn one_who_is_away_makes_keepers_keep_it_and_gets_it_when_it_returns() {
        let mut parcel = Outgoing::new(0, 1_000_000, &[device(1), device(2)]);
        let away = around(&[2, 5, 6, 7], &[2, 5, 6, 7]);
        assert_eq!(parcel.step(Event::Look, 0, &away), [Action::Offer(device(2))]);
        assert_eq!(parcel.step(Event::Look, PATIENCE_MS, &away), [Action::Seal]);
        assert_eq!(parcel.step(Event::Look, PATIENCE_MS + 1, &away), []);
        let asked = parcel.step(Event::SealReady, PATIENCE_MS + 2, &away);
        assert_eq!(asked, [Action::OfferKeep(device(5)), Action::OfferKeep(device(6))], "receivers are no keepers");
        parcel.step(Event::Kept(device(5), Answer::Accepted), PATIENCE_MS + 3, &away);
        let next = parcel.step(Event::Kept(device(6), Answer::Refused), PATIENCE_MS + 4, &away);
        assert_eq!(next, [Action::OfferKeep(device(7))], "another one instead of the one that refused");
        assert_eq!(parcel.keepers, [device(5)]);
        let back = around(&[1, 2], &[]);
        assert_eq!(parcel.step(Event::Up(device(1)), PATIENCE_MS + 9, &back), [Action::Offer(device(1))]);
    }

    #[test]
    fn offers_that_come_to_nothing_are_repeated_more_and_more_rarely_until_it_is_too_old() {
        let mut parcel = Outgoing::new(0, 10_000_000, &[device(1)]);
        let there = around(&[1], &[]);
        let mut times = Vec::new();
        for now in (0..9_999_000).step_by(1_000) {
            if parcel.step(Event::Look, now, &there) == [Action::Offer(device(1))] {
                times.push(now);
                parcel.step(Event::Answered(device(1), Answer::Later, "no space".into()), now, &there);
            }
        }
        let gaps: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        assert_eq!(&gaps[..3], [2_000, 4_000, 8_000]);
        assert!(gaps[10..].iter().all(|g| *g == RETRY_MS[1]), "{gaps:?}");
        assert_eq!(parcel.step(Event::Look, 10_000_000, &there), [Action::Finish]);
        assert_eq!(parcel.deliveries[0].state, DeliveryState::Expired);
    }

    #[test]
    fn what_is_taken_back_is_not_offered_and_a_late_receipt_still_counts() {
        let mut parcel = Outgoing::new(0, 1_000_000, &[device(1), device(2)]);
        let none = around(&[], &[]);
        let receipt = Event::Receipt { device: device(2), delivered: true, at_ms: 3, message: String::new() };
        parcel.step(receipt, 1, &none);
        assert_eq!(parcel.step(Event::Cancel, 2, &none), [Action::Finish]);
        let states: Vec<_> = parcel.deliveries.iter().map(|d| d.state).collect();
        assert_eq!(states, [DeliveryState::Cancelled, DeliveryState::Delivered]);
        assert_eq!(parcel.step(Event::Up(device(1)), 3, &around(&[1], &[])), []);
    }

    /// Many receivers that come and go, answer or not; whatever happens, each one that is there for long enough ends up
    /// with the parcel, and nobody is offered it twice at a time.
    #[test]
    fn whatever_happens_everyone_who_stays_gets_it() {
        for seed in 0..300u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut roll = |n: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % n
            };
            let receivers: Vec<DeviceId> = (1..=5).map(device).collect();
            let mut parcel = Outgoing::new(0, u64::MAX, &receivers);
            let mut open: BTreeSet<DeviceId> = BTreeSet::new();
            let mut now = 0;
            for round in 0..4_000 {
                now += roll(5_000);
                let calm = round > 2_000;
                let online: Vec<u8> = (1..=5).filter(|_| calm || roll(3) > 0).collect();
                let there = around(&online, &[9]);
                let event = match open.pop_first() {
                    Some(device) if calm => {
                        Event::Receipt { device, delivered: true, at_ms: now, message: String::new() }
                    }
                    Some(device) => {
                        let answers = [Answer::Accepted, Answer::Asks, Answer::Complete, Answer::Later];
                        Event::Answered(device, answers[roll(4) as usize], String::new())
                    }
                    None => Event::Look,
                };
                for action in parcel.step(event, now, &there) {
                    if let Action::Offer(device) = action {
                        assert!(open.insert(device), "seed {seed}: {device:?} was offered it twice at a time");
                    }
                }
            }
            assert!(parcel.finished, "seed {seed}: {:?}", parcel.deliveries);
        }
    }
}
