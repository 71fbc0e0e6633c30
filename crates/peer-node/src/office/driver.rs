//! Gossip at work: carries out what `gossip.rs` decides, over the neighbours' channels.

use super::gossip::{Action, Event, Facts, Gossip};
use super::merge::{MAX_PUSH_RECORDS, MergeReport};
use super::record::{Record, RecordId};
use super::{Announcement, News, Office};
use crate::net::{LinkEvent, Network, NodeChannel};
use bytes::Bytes;
use common::bulk::GrpcChannel;
use common::error::Result;
use common::identity::random_bytes;
use common::model::DeviceId;
use common::status::from_status;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, future};
use proto::peer::v1 as peer;
use proto::peer::v1::membership_service_client::MembershipServiceClient;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;

/// Largest answer that is read.
pub(super) const MAX_MESSAGE: usize = 4 << 20;
/// For each call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For a goodbye: the node ends and does not wait for long.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Calls in progress at a time.
const CALLS: usize = 64;
/// Rounds of one exchange; the rest comes with the next Hello.
const ROUNDS: usize = 64;
/// Neighbours that are told in Hello.
pub(super) const MAX_NEIGHBOURS: usize = 1_000;

/// A neighbour comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It can be called.
    Up(DeviceId),
    /// It cannot any more.
    Down(DeviceId),
}

/// Members that this node is connected with.
pub trait Neighbours: Clone + Send + Sync + 'static {
    /// What calls are made on.
    type Channel: GrpcChannel + Sync;

    /// Who can be called now.
    fn devices(&self) -> Vec<DeviceId>;

    /// The channel to one of them.
    fn channel(&self, device: &DeviceId) -> Option<Self::Channel>;

    /// Who comes and goes from now on. May lose something: [`Neighbours::devices`] is looked at again now and then.
    fn changes(&self) -> BoxStream<'static, Change>;
}

impl Neighbours for Network {
    type Channel = NodeChannel;

    fn devices(&self) -> Vec<DeviceId> {
        self.neighbours()
    }

    fn channel(&self, device: &DeviceId) -> Option<NodeChannel> {
        self.linked(device).map(|link| link.control())
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        let change = |event| match event {
            Ok(LinkEvent::Up { device, .. }) => Some(Change::Up(device)),
            Ok(LinkEvent::Down { device, .. }) => Some(Change::Down(device)),
            _ => None,
        };
        BroadcastStream::new(self.events()).filter_map(move |event| future::ready(change(event))).boxed()
    }
}

/// The calls to one neighbour.
#[derive(Clone)]
pub struct Spread<C> {
    office: Office,
    device: DeviceId,
    client: MembershipServiceClient<C>,
}

/// Gossips until the token is cancelled: connects the office to its neighbours. Records that this node states or learns
/// are with all neighbours after one call to each.
pub async fn gossip<N: Neighbours>(office: Office, neighbours: N, end: CancellationToken) {
    let mut driver = Driver {
        gossip: Gossip::new(u64::from_le_bytes(random_bytes())),
        calls: JoinSet::new(),
        places: Arc::new(Semaphore::new(CALLS)),
        office,
        neighbours,
    };
    let mut news = driver.office.news();
    let mut changes = driver.neighbours.changes();
    driver.reconcile();
    loop {
        let now_ms = driver.now_ms();
        let wait = driver.gossip.due_ms().map_or(Duration::from_secs(10), |due| {
            Duration::from_millis(due.saturating_sub(now_ms)).min(Duration::from_secs(10))
        });
        let event = tokio::select! {
            () = end.cancelled() => break,
            Some(ended) = driver.calls.join_next() => ended.ok(),
            Some(change) = changes.next() => Some(match change {
                Change::Up(device) => Event::Up(device),
                Change::Down(device) => Event::Down(device),
            }),
            heard = news.recv() => match heard {
                Ok(news) => event_of(news),
                Err(RecvError::Lagged(_)) => Some(Event::Missed),
                Err(RecvError::Closed) => break,
            },
            () = tokio::time::sleep(wait) => {
                driver.reconcile();
                Some(Event::Tick)
            }
        };
        if let Some(event) = event {
            driver.handle(event);
        }
    }
    driver.calls.shutdown().await;
}

/// Tells all neighbours that this node ends now. Waits for a second at most.
pub async fn say_goodbye<N: Neighbours>(neighbours: &N, instance: [u8; 8]) {
    let calls = neighbours.devices().into_iter().filter_map(|d| neighbours.channel(&d)).map(|channel| async move {
        let mut request = tonic::Request::new(peer::LeaveRequest { instance_id: Bytes::copy_from_slice(&instance) });
        request.set_timeout(GOODBYE_TIMEOUT);
        // Who does not hear it notices by itself.
        let _ = MembershipServiceClient::new(channel).leave(request).await;
    });
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, future::join_all(calls)).await;
}

fn event_of(news: News) -> Option<Event> {
    Some(match news {
        News::Records { ids, urgent, from } => Event::Records { ids: ids.to_vec(), urgent, from },
        News::Announcements { from } => Event::Announcements { from },
        News::Behind(device) => Event::Behind(device),
        News::Heard(device, facts) => Event::Heard(device, facts),
        News::Observed { .. } | News::Left { .. } => return None,
    })
}

struct Driver<N> {
    gossip: Gossip,
    calls: JoinSet<Event>,
    places: Arc<Semaphore>,
    office: Office,
    neighbours: N,
}

impl<N: Neighbours> Driver<N> {
    fn now_ms(&self) -> u64 {
        self.office.clock().now_ms()
    }

    /// Brings the list of neighbours up to date, whatever was missed.
    fn reconcile(&mut self) {
        let present = self.neighbours.devices();
        let gone: Vec<DeviceId> = self.gossip.neighbours().filter(|d| !present.contains(d)).copied().collect();
        let new: Vec<DeviceId> = {
            let known: Vec<&DeviceId> = self.gossip.neighbours().collect();
            present.into_iter().filter(|d| !known.contains(&d)).collect()
        };
        gone.into_iter().for_each(|device| self.handle(Event::Down(device)));
        new.into_iter().for_each(|device| self.handle(Event::Up(device)));
    }

    fn handle(&mut self, event: Event) {
        let own = self.office.facts(self.neighbours.devices());
        for action in self.gossip.handle(event, &own, self.now_ms()) {
            self.begin(action);
        }
    }

    fn begin(&mut self, action: Action) {
        let device = match &action {
            Action::Hello(d) | Action::Push(d, _) | Action::ExchangeRecords(d) | Action::ExchangeAnnouncements(d) => *d,
        };
        let Some(channel) = self.neighbours.channel(&device) else {
            // Gone since: the call has failed, and that is said later, not from within.
            self.calls.spawn(future::ready(ended(&action, device, None)));
            return;
        };
        let spread = Spread::new(self.office.clone(), device, channel);
        let (places, neighbours) = (self.places.clone(), self.neighbours.devices());
        self.calls.spawn(async move {
            let _place = places.acquire().await;
            let outcome = tokio::time::timeout(CALL_TIMEOUT * 3, spread.run(&action, neighbours)).await;
            match outcome {
                Ok(Ok(progress)) => ended(&action, device, Some(progress)),
                Ok(Err(error)) => {
                    tracing::debug!(%device, reason = error.reason(), "gossip failed");
                    ended(&action, device, None)
                }
                Err(_) => ended(&action, device, None),
            }
        });
    }
}

/// The event of an action that has ended; the outcome is `None` if it failed, else whether it brought anything.
fn ended(action: &Action, device: DeviceId, outcome: Option<bool>) -> Event {
    let (ok, progress) = (outcome.is_some(), outcome == Some(true));
    match action {
        Action::Hello(_) => Event::HelloEnded(device, ok),
        Action::Push(..) => Event::PushEnded(device, ok),
        Action::ExchangeRecords(_) => Event::RecordsEnded { device, ok, progress },
        Action::ExchangeAnnouncements(_) => Event::AnnouncementsEnded { device, ok, progress },
    }
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

impl<C: GrpcChannel> Spread<C> {
    /// Calls over this channel to this member.
    pub fn new(office: Office, device: DeviceId, channel: C) -> Self {
        let client = MembershipServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        Self { office, device, client }
    }

    /// Carries out one action; true if one of the two has more than before.
    ///
    /// # Errors
    /// What the other side said, or what broke the call.
    pub async fn run(mut self, action: &Action, neighbours: Vec<DeviceId>) -> Result<bool> {
        match action {
            Action::Hello(_) => self.hello(neighbours).await.map(|()| false),
            Action::Push(_, ids) => self.push(ids).await,
            Action::ExchangeRecords(_) => self.exchange_records().await,
            Action::ExchangeAnnouncements(_) => self.exchange_announcements().await,
        }
    }

    async fn hello(&mut self, neighbours: Vec<DeviceId>) -> Result<()> {
        let message = self.office.hello(neighbours);
        let answer = self.client.hello(request(message)).await.map_err(|s| from_status(&s))?.into_inner();
        if let Some(announcement) = answer.announcement {
            self.office.merge_announcements(vec![announcement], Some(self.device)).await?;
        }
        if let Ok(address) = answer.observed_address.parse() {
            self.office.tell(News::Observed { by: self.device, address });
        }
        let facts = facts_of(&answer.records_digest, &answer.announcements_digest, &answer.neighbours)?;
        self.office.tell(News::Heard(self.device, facts));
        Ok(())
    }

    async fn push(&mut self, ids: &[RecordId]) -> Result<bool> {
        let mut progress = false;
        for page in self.office.pages(ids) {
            let records = page.iter().map(Record::wire).collect();
            let push = request(peer::PushRecordsRequest { records });
            let answer = self.client.push_records(push).await.map_err(|s| from_status(&s))?.into_inner();
            progress |= answer.accepted_count > 0;
        }
        Ok(progress)
    }

    async fn exchange_records(&mut self) -> Result<bool> {
        let mut any = false;
        for _ in 0..ROUNDS {
            let ids = self.office.with_ledger(|l| l.ids().map(|id| Bytes::copy_from_slice(&id.0)).collect());
            let message = peer::ExchangeRecordsRequest { record_ids: ids.unwrap_or_default() };
            let answer = self.client.exchange_records(request(message)).await.map_err(|s| from_status(&s))?;
            let mut answer = answer.into_inner();
            answer.records.truncate(MAX_PUSH_RECORDS);
            let report = self.merge(answer.records).await?;
            let wanted: Vec<RecordId> = answer.wanted_ids.iter().filter_map(|id| RecordId::from_slice(id)).collect();
            let pushed = self.push(&wanted).await?;
            any |= pushed || !report.accepted.is_empty();
            if !answer.more || report.accepted.is_empty() {
                break;
            }
        }
        Ok(any)
    }

    async fn merge(&self, records: Vec<peer::Record>) -> Result<MergeReport> {
        let report = self.office.merge(records, Some(self.device)).await?;
        self.office.blame(&self.device, &report);
        Ok(report)
    }

    async fn exchange_announcements(&mut self) -> Result<bool> {
        let own = self.office.announcement(&self.office.me());
        let mut announcements: Vec<Announcement> = own.into_iter().collect();
        let mut any = false;
        for _ in 0..ROUNDS {
            let message = peer::ExchangeAnnouncementsRequest {
                announcements: announcements.iter().map(Announcement::wire).collect(),
                held: self.office.announcements_held().into(),
            };
            let answer = self.client.exchange_announcements(request(message)).await.map_err(|s| from_status(&s))?;
            let answer = answer.into_inner();
            let new = self.office.merge_announcements(answer.announcements, Some(self.device)).await?;
            let wanted = answer.wanted.iter().filter_map(|d| <[u8; 32]>::try_from(&d[..]).ok()).map(DeviceId);
            announcements = self.office.page_of_announcements(wanted);
            any |= new > 0 || !announcements.is_empty();
            if announcements.is_empty() && !(answer.more && new > 0) {
                break;
            }
        }
        Ok(any)
    }
}

/// What Hello says, read.
///
/// # Errors
/// FIELD_INVALID.
pub(super) fn facts_of(records: &[u8], announcements: &[u8], neighbours: &[Bytes]) -> Result<Facts> {
    let wrong = || common::error::Error::new(common::error::Reason::FieldInvalid, "a digest has not 32 bytes");
    let neighbours = neighbours.iter().take(MAX_NEIGHBOURS).filter_map(|d| <[u8; 32]>::try_from(&d[..]).ok());
    Ok(Facts {
        records: records.try_into().map_err(|_| wrong())?,
        announcements: announcements.try_into().map_err(|_| wrong())?,
        neighbours: neighbours.map(DeviceId).collect(),
    })
}

impl Office {
    /// What this node holds.
    pub fn facts(&self, neighbours: Vec<DeviceId>) -> Facts {
        let state = self.0.state.lock();
        Facts {
            records: state.ledger.as_ref().map_or([0; 32], super::Ledger::digest),
            announcements: state.board.digest(),
            neighbours,
        }
    }

    /// The message that says who this node is and what it holds.
    pub fn hello(&self, neighbours: Vec<DeviceId>) -> peer::HelloRequest {
        let facts = self.facts(neighbours);
        peer::HelloRequest {
            announcement: self.announcement(&self.me()).map(|a| a.wire()),
            records_digest: Bytes::copy_from_slice(&facts.records),
            announcements_digest: Bytes::copy_from_slice(&facts.announcements),
            neighbours: facts.neighbours.iter().take(MAX_NEIGHBOURS).map(|d| Bytes::copy_from_slice(&d.0)).collect(),
        }
    }
}
