//! Sending, the inbox, the outbox.

use super::{Answers, Parts};
use crate::mailbox::{Arrived, ArrivedState, Delivery, DeliveryState, Prepared, Rules, Sent};
use crate::model::ParcelId;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::status::to_status;
use common::wire::timestamp_from_ms;
use proto::peer::v1 as peer;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Pieces of a stream that wait for the disk.
const WAITING: usize = 8;

impl Parts {
    /// Takes the first message, prepares the parcel, and then tells of its deliveries until all have ended.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut requests: Streaming<peer::SendRequest>,
    ) -> Result<Answers<peer::SendResponse>> {
        use peer::send_request::Part;
        let first = requests.message().await.map_err(|s| common::status::from_status(&s))?;
        let Some(Part::Header(header)) = first.and_then(|r| r.part) else {
            return Err(Error::new(Reason::FieldInvalid, "the first message is not a header"));
        };
        let to = self.receivers(&header.to)?;
        let (answers, receiver) = mpsc::channel(4);
        let parts = self.clone();
        tokio::spawn(async move {
            if let Err(error) = parts.send_all(header, to, requests, &answers).await {
                // A caller that is gone has no use for the error.
                let _ = answers.send(Err(to_status(&error))).await;
            }
        });
        Ok(ReceiverStream::new(receiver))
    }

    fn receivers(&self, names: &[String]) -> Result<Vec<DeviceId>> {
        let view = self.office.view();
        if view.office_id().is_none() {
            return Err(Error::new(Reason::NotJoined, "this machine is in no office of peers yet"));
        }
        let mut to = Vec::new();
        for name in names {
            to.extend(view.resolve_members(name)?);
        }
        Ok(to)
    }

    async fn send_all(
        &self,
        header: peer::SendHeader,
        to: Vec<DeviceId>,
        requests: Streaming<peer::SendRequest>,
        answers: &mpsc::Sender<Result<peer::SendResponse, tonic::Status>>,
    ) -> Result<()> {
        let (progress, mut prepared) = watch::channel(Prepared::default());
        let sending = async {
            if header.paths.is_empty() {
                let (pieces, receiver) = mpsc::channel(WAITING);
                let feeding = tokio::spawn(feed(requests, pieces));
                let id = self.mailbox.send_stream(header.stream_name, receiver, to, header.note, progress).await;
                feeding.abort();
                id
            } else {
                let paths = header.paths.iter().map(PathBuf::from).collect::<Vec<_>>();
                if paths.iter().any(|p| !p.is_absolute()) {
                    return Err(Error::new(Reason::FieldInvalid, "a path is not absolute"));
                }
                self.mailbox.send(paths, to, header.note, progress).await
            }
        };
        tokio::pin!(sending);
        let id = loop {
            tokio::select! {
                id = &mut sending => break id?,
                Ok(()) = prepared.changed() => {
                    let now = *prepared.borrow_and_update();
                    let answer = peer::SendResponse {
                        prepared_bytes: now.bytes,
                        total_bytes: now.total_bytes,
                        ..Default::default()
                    };
                    // A caller that does not listen does not stop the sending.
                    let _ = answers.try_send(Ok(answer));
                }
            }
        };
        let mut watched = self.mailbox.watch_sent(id)?;
        loop {
            let sent = watched.borrow_and_update().clone();
            let over = sent.deliveries.iter().all(|d| d.state.is_ended());
            let answer = peer::SendResponse {
                parcel_id: id.to_string(),
                prepared_bytes: sent.total_bytes,
                total_bytes: sent.total_bytes,
                deliveries: self.deliveries(&sent),
            };
            if answers.send(Ok(answer)).await.is_err() || over || watched.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    fn deliveries(&self, sent: &Sent) -> Vec<peer::Delivery> {
        let view = self.office.view();
        let kept_by: Vec<String> = sent.keepers.iter().map(|k| view.node_name(k)).collect();
        let delivery = |d: &Delivery| peer::Delivery {
            node_name: view.node_name(&d.device),
            person: view.member(&d.device).map(|m| m.person.clone()).unwrap_or_default(),
            state: delivery_state(d.state).into(),
            message: d.message.clone(),
            receipt_time: (d.receipt_ms != 0).then(|| timestamp_from_ms(d.receipt_ms)),
            kept_by: if d.state.is_ended() { Vec::new() } else { kept_by.clone() },
        };
        sent.deliveries.iter().map(delivery).collect()
    }

    fn outbox_item(&self, sent: &Sent) -> peer::OutboxItem {
        peer::OutboxItem {
            parcel_id: sent.id.to_string(),
            title: sent.title.clone(),
            total_bytes: sent.total_bytes,
            create_time: Some(timestamp_from_ms(sent.create_ms)),
            deliveries: self.deliveries(sent),
        }
    }

    fn inbox_item(&self, arrived: &Arrived) -> peer::InboxItem {
        use peer::inbox_item::State;
        let view = self.office.view();
        let person = view.member(&arrived.sender).map(|m| m.person.clone()).unwrap_or_default();
        let state = match arrived.state {
            ArrivedState::Asks => State::Asks,
            ArrivedState::Running => State::Running,
            ArrivedState::Done => State::Done,
            ArrivedState::Refused => State::Refused,
        };
        let path = match arrived.paths.first() {
            Some(path) => path.clone(),
            None => self.mailbox.rules().directory.join(&person),
        };
        peer::InboxItem {
            parcel_id: arrived.id.to_string(),
            node_name: view.node_name(&arrived.sender),
            person,
            title: arrived.title.clone(),
            note: arrived.note.clone(),
            file_count: arrived.file_count,
            total_bytes: arrived.total_bytes,
            done_bytes: arrived.done_bytes,
            state: state.into(),
            create_time: Some(timestamp_from_ms(arrived.create_ms)),
            path: path.to_string_lossy().into_owned(),
        }
    }

    pub(super) fn list_inbox(&self) -> peer::ListInboxResponse {
        let items = self.mailbox.arrived().iter().map(|a| self.inbox_item(a)).collect();
        peer::ListInboxResponse { items, rules: Some(wire_rules(&self.mailbox.rules())) }
    }

    pub(super) fn list_outbox(&self) -> peer::ListOutboxResponse {
        peer::ListOutboxResponse { items: self.mailbox.sent().iter().map(|s| self.outbox_item(s)).collect() }
    }

    pub(super) async fn answer_parcel(&self, request: peer::AnswerParcelRequest) -> Result<peer::InboxItem> {
        let id = self.mailbox.find(&request.parcel_id)?;
        let directory = (!request.directory.is_empty()).then(|| PathBuf::from(&request.directory));
        let answered = self.mailbox.answer(id, request.accept, directory).await?;
        if request.always {
            self.remember(&id, request.accept).await?;
        }
        Ok(self.inbox_item(&answered))
    }

    /// From now on the sender's parcels are accepted, or refused, without asking.
    async fn remember(&self, id: &ParcelId, accept: bool) -> Result<()> {
        let sender = self.mailbox.arrived().into_iter().find(|a| a.id == *id).map(|a| a.sender);
        let view = self.office.view();
        let Some(person) = sender.and_then(|s| view.member(&s)).map(|m| m.person.clone()) else { return Ok(()) };
        let mut rules = self.mailbox.rules();
        let (add, remove) = match accept {
            true => (&mut rules.accept, &mut rules.refuse),
            false => (&mut rules.refuse, &mut rules.accept),
        };
        remove.remove(&person);
        add.insert(person);
        self.mailbox.set_rules(rules).await.map(drop)
    }

    pub(super) async fn cancel_parcel(&self, request: peer::CancelParcelRequest) -> Result<peer::OutboxItem> {
        let id = self.mailbox.find(&request.parcel_id)?;
        Ok(self.outbox_item(&self.mailbox.cancel(id).await?))
    }

    pub(super) async fn set_accept_rules(&self, request: peer::SetAcceptRulesRequest) -> Result<peer::AcceptRules> {
        let wanted = request.rules.ok_or_else(|| Error::new(Reason::FieldInvalid, "rules are missing"))?;
        let rules = Rules {
            accept: wanted.accept_persons.into_iter().collect(),
            accept_all: wanted.accept_all,
            ask_above_bytes: wanted.ask_above_bytes,
            refuse: wanted.refuse_persons.into_iter().collect(),
            directory: PathBuf::from(wanted.directory),
        };
        Ok(wire_rules(&self.mailbox.set_rules(rules).await?))
    }

    /// Parcels that wait for their receivers, and those that wait for a word of this person.
    pub(super) fn parcel_counts(&self) -> (usize, usize) {
        let waits = |s: &&Sent| s.deliveries.iter().any(|d| !d.state.is_ended());
        let outbox = self.mailbox.sent().iter().filter(waits).count();
        (outbox, self.mailbox.arrived().iter().filter(|a| a.state == ArrivedState::Asks).count())
    }
}

/// Passes the pieces of a stream on. Only a stream that ended well gets the empty piece that means its end.
async fn feed(mut requests: Streaming<peer::SendRequest>, to: mpsc::Sender<bytes::Bytes>) {
    use peer::send_request::Part;
    loop {
        let piece = match requests.message().await {
            Ok(Some(peer::SendRequest { part: Some(Part::Data(data)) })) if data.is_empty() => continue,
            Ok(Some(peer::SendRequest { part: Some(Part::Data(data)) })) => data,
            Ok(None) => bytes::Bytes::new(),
            // Another header in the middle, or a caller that broke off.
            Ok(Some(_)) | Err(_) => return,
        };
        let ended = piece.is_empty();
        if to.send(piece).await.is_err() || ended {
            return;
        }
    }
}

fn delivery_state(state: DeliveryState) -> peer::delivery::State {
    use peer::delivery::State;
    match state {
        DeliveryState::Queued => State::Queued,
        DeliveryState::Asking => State::Asking,
        DeliveryState::Running => State::Running,
        DeliveryState::Delivered => State::Delivered,
        DeliveryState::Refused => State::Refused,
        DeliveryState::Cancelled => State::Cancelled,
        DeliveryState::Expired => State::Expired,
    }
}

fn wire_rules(rules: &Rules) -> peer::AcceptRules {
    peer::AcceptRules {
        accept_persons: rules.accept.iter().cloned().collect(),
        accept_all: rules.accept_all,
        ask_above_bytes: rules.ask_above_bytes,
        refuse_persons: rules.refuse.iter().cloned().collect(),
        directory: rules.directory.to_string_lossy().into_owned(),
    }
}
