//! News of chunks, for those who follow a subject.
//!
//! One log a subject, as long as somebody follows it or fetches it here; every follower has a position in it and takes what
//! came since, so that a slow one costs nothing. The log keeps the last [`LOG_MAX`] entries; a follower that has fallen
//! further behind begins anew.
//!
//! What counts is what a scope is about, not whose right it is: each machine has a read ticket of its own for the same
//! contents. Tickets may also overlap, when a file has changed between two listings, or when one machine fetches a file of
//! what another one fetches as a whole. Then each is told of those chunks that its own ticket covers.

use super::plan::{Plan, prefix};
use super::scheduler::Piece;
use crate::model::{Scope, Subject};
use common::model::{ChunkId, DeviceId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::watch;

/// Entries that a log keeps.
pub const LOG_MAX: usize = 1 << 18;
/// Devices that are named to others.
pub const TAKERS_MAX: usize = 512;

type All = Mutex<HashMap<Subject, Weak<Feed>>>;

/// The feeds of all subjects. Clones are handles to the same ones.
#[derive(Clone, Default)]
pub struct Feeds(Arc<All>);

/// The feed of one subject.
pub struct Feed {
    subject: Subject,
    /// Where those are that it may have something in common with.
    all: Weak<All>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    served: AtomicU64,
}

#[derive(Default)]
struct State {
    log: VecDeque<([u8; 8], bool)>,
    /// Position of the log's first entry.
    base: u64,
    /// Devices that take part, by the number of calls in which they said so.
    takers: BTreeMap<DeviceId, u32>,
    version: u64,
}

/// What came since a position.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// Chunks that came.
    pub have: Vec<[u8; 8]>,
    /// Chunks that went.
    pub lost: Vec<[u8; 8]>,
    /// The position now.
    pub position: u64,
    /// The log does not reach back that far: ask for everything again.
    pub gap: bool,
}

impl Feeds {
    /// The feed of what a scope is about, made if there is none.
    pub fn of(&self, scope: &Scope) -> Arc<Feed> {
        let subject = scope.subject();
        let mut all = self.0.lock();
        if let Some(feed) = all.get(&subject).and_then(Weak::upgrade) {
            return feed;
        }
        all.retain(|_, feed| feed.strong_count() > 0);
        let feed = Arc::new(Feed {
            subject: subject.clone(),
            all: Arc::downgrade(&self.0),
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            served: AtomicU64::new(0),
        });
        all.insert(subject, Arc::downgrade(&feed));
        feed
    }

    /// Tells those who follow just this. Does nothing if nobody does.
    pub fn publish(
        &self,
        scope: &Scope,
        have: impl IntoIterator<Item = ChunkId>,
        lost: impl IntoIterator<Item = ChunkId>,
    ) {
        let feed = self.0.lock().get(&scope.subject()).and_then(Weak::upgrade);
        if let Some(feed) = feed {
            feed.publish(have, lost);
        }
    }

    /// Tells everybody who follows something of a plan of those pieces that are in what they follow.
    pub fn publish_pieces(&self, plan: &Plan, have: &[Piece], lost: &[Piece]) {
        if have.is_empty() && lost.is_empty() {
            return;
        }
        let subject = plan.order.scope.subject();
        for feed in overlapping(&self.0, &subject) {
            let told = |pieces: &[Piece]| -> Vec<ChunkId> {
                let seen = pieces.iter().filter(|p| feed.subject == subject || plan.is_about(**p, &feed.subject));
                seen.filter_map(|p| Some(plan.pieces.get(*p as usize)?.id)).collect()
            };
            feed.publish(told(have), told(lost));
        }
    }
}

/// The feeds that have something in common with a subject, its own among them.
fn overlapping(all: &All, subject: &Subject) -> Vec<Arc<Feed>> {
    let all = all.lock();
    match subject {
        Subject::Contents(_) => {
            all.iter().filter(|(other, _)| subject.overlaps(other)).filter_map(|(_, feed)| feed.upgrade()).collect()
        }
        _ => all.get(subject).and_then(Weak::upgrade).into_iter().collect(),
    }
}

impl Feed {
    /// The other ones that have something in common with it.
    fn others(&self) -> Vec<Arc<Feed>> {
        let Some(all) = self.all.upgrade() else { return Vec::new() };
        let mut found = overlapping(&all, &self.subject);
        found.retain(|feed| feed.subject != self.subject);
        found
    }

    /// Has those who look at it, or at one that has something in common with it, look again.
    fn stir(&self) {
        self.others().iter().for_each(|feed| feed.change(|_| true));
    }

    /// Counts content that was given to others.
    pub fn count_served(&self, bytes: u64) {
        self.served.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Content given to others, since this feed was made.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Adds news.
    pub fn publish(&self, have: impl IntoIterator<Item = ChunkId>, lost: impl IntoIterator<Item = ChunkId>) {
        self.change(|state| {
            let news =
                have.into_iter().map(|c| (prefix(&c), true)).chain(lost.into_iter().map(|c| (prefix(&c), false)));
            let before = state.log.len();
            state.log.extend(news);
            let changed = state.log.len() > before;
            let over = state.log.len().saturating_sub(LOG_MAX);
            state.log.drain(..over);
            state.base += over as u64;
            changed
        });
    }

    /// A device takes part, until what is given back is dropped.
    pub fn enter(self: &Arc<Self>, device: DeviceId) -> Taker {
        self.change(|state| {
            let room = state.takers.len() < TAKERS_MAX;
            match state.takers.get_mut(&device) {
                Some(calls) => *calls += 1,
                None if room => drop(state.takers.insert(device, 1)),
                None => {}
            }
            true
        });
        self.stir();
        Taker { feed: self.clone(), device }
    }

    /// Devices that take part in something that has a part in common with it.
    pub fn related_takers(&self) -> BTreeSet<DeviceId> {
        self.others().iter().flat_map(|feed| feed.takers()).take(TAKERS_MAX).collect()
    }

    /// The position of what comes next.
    pub fn position(&self) -> u64 {
        let state = self.state.lock();
        state.base + state.log.len() as u64
    }

    /// At most `limit` news since a position.
    pub fn since(&self, position: u64, limit: usize) -> News {
        let state = self.state.lock();
        let end = state.base + state.log.len() as u64;
        if position < state.base || position > end {
            return News { position: end, gap: true, ..News::default() };
        }
        let mut news = News { position, ..News::default() };
        for (chunk, here) in state.log.iter().skip((position - state.base) as usize).take(limit) {
            if *here {
                news.have.push(*chunk)
            } else {
                news.lost.push(*chunk)
            }
            news.position += 1;
        }
        news
    }

    /// The devices that take part in just this.
    pub fn takers(&self) -> BTreeSet<DeviceId> {
        self.state.lock().takers.keys().copied().collect()
    }

    /// Follows changes of any kind.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn change(&self, f: impl FnOnce(&mut State) -> bool) {
        let mut state = self.state.lock();
        if f(&mut state) {
            state.version += 1;
            let version = state.version;
            drop(state);
            self.changed.send_replace(version);
        }
    }
}

/// A device that takes part.
pub struct Taker {
    feed: Arc<Feed>,
    device: DeviceId,
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.feed.change(|state| {
            if let Some(calls) = state.takers.get_mut(&self.device) {
                *calls -= 1;
                if *calls == 0 {
                    state.takers.remove(&self.device);
                }
            }
            true
        });
        self.feed.stir();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ShareId;

    fn chunk(n: u32) -> ChunkId {
        ChunkId::of(&n.to_le_bytes())
    }

    #[test]
    fn followers_get_what_came_since_their_position() {
        let feeds = Feeds::default();
        let scope = Scope::Share(ShareId::generate());
        feeds.publish(&scope, [chunk(0)], []);
        let feed = feeds.of(&scope);
        assert_eq!(feed.position(), 0, "nobody followed");
        let changed = feed.subscribe();
        feeds.publish(&scope, [chunk(1), chunk(2)], [chunk(3)]);
        assert!(changed.has_changed().unwrap());
        let first = feed.since(0, 2);
        assert_eq!((first.have, first.lost, first.position), (vec![prefix(&chunk(1)), prefix(&chunk(2))], vec![], 2));
        let rest = feed.since(2, 10);
        assert_eq!((rest.have, rest.lost, rest.position), (vec![], vec![prefix(&chunk(3))], 3));
        assert!(feed.since(4, 1).gap);
    }

    /// A scope by a ticket for these contents.
    fn ticket(device: u8, contents: &[[u8; 32]]) -> Scope {
        let ca = common::tls::OfficeCa::create("acme", 1_700_000_000_000).unwrap();
        let device = DeviceId([device; 32]);
        let ticket = common::ticket::Ticket::new("acme", device, contents.iter().copied(), 1_700_000_000_000);
        let (bytes, signature) = ticket.sign(&ca).unwrap();
        Scope::Ticket(crate::model::ShownTicket::read(&bytes, &signature).unwrap())
    }

    #[test]
    fn tickets_of_many_machines_are_about_the_same_and_nobody_is_told_of_what_is_not_his() {
        use crate::model::Content;
        use crate::transfer::order::{Order, OrderFile};
        use common::model::ChunkRef;
        let content =
            |n: u32| Content::of(vec![ChunkRef { id: chunk(n), len: 5 }, ChunkRef { id: chunk(n + 1), len: 6 }]);
        let (one, two) = (content(10), content(20));
        let file = |path: &str, content: &Content| OrderFile {
            path: path.into(),
            mtime_ns: 0,
            mode: 0o644,
            content: content.clone(),
        };
        let plan = Plan::new(Order {
            scope: ticket(1, &[one.digest, two.digest]),
            title: "t".into(),
            destination: "/x".into(),
            files: vec![file("a", &one), file("b", &two)],
            directories: Vec::new(),
            sources: Vec::new(),
            overwrite: false,
        })
        .unwrap();
        let feeds = Feeds::default();
        let mine = feeds.of(&plan.order.scope);
        let same = feeds.of(&ticket(2, &[two.digest, one.digest]));
        assert!(Arc::ptr_eq(&mine, &same), "another machine's ticket for the same");
        let (some, none) = (feeds.of(&ticket(3, &[two.digest, [9; 32]])), feeds.of(&ticket(4, &[[9; 32]])));
        let looked = some.subscribe();
        let _taker = mine.enter(DeviceId([1; 32]));
        assert!(looked.has_changed().unwrap());
        assert!(some.takers().is_empty() && some.related_takers().contains(&DeviceId([1; 32])));
        assert!(none.related_takers().is_empty());
        feeds.publish_pieces(&plan, &[0, 1, 2, 3], &[]);
        assert_eq!(mine.since(0, 9).have.len(), 4);
        assert_eq!(some.since(0, 9).have, [prefix(&chunk(20)), prefix(&chunk(21))]);
        assert!(none.since(0, 9).have.is_empty());
    }

    #[test]
    fn the_log_is_bounded_and_says_so() {
        let feeds = Feeds::default();
        let scope = Scope::Share(ShareId::generate());
        let feed = feeds.of(&scope);
        feed.publish((0..LOG_MAX as u32 + 10).map(chunk), []);
        assert!(feed.since(5, 10).gap);
        let news = feed.since(10, usize::MAX);
        assert_eq!((news.have.len(), news.gap), (LOG_MAX, false));
    }

    #[test]
    fn who_takes_part_is_known_as_long_as_a_call_says_so() {
        let feed = Feeds::default().of(&Scope::Share(ShareId::generate()));
        let (one, again, two) =
            (feed.enter(DeviceId([1; 32])), feed.enter(DeviceId([1; 32])), feed.enter(DeviceId([2; 32])));
        assert_eq!(feed.takers().len(), 2);
        drop(one);
        drop(two);
        assert_eq!(feed.takers().into_iter().collect::<Vec<_>>(), [DeviceId([1; 32])]);
        drop(again);
        assert!(feed.takers().is_empty());
    }
}
