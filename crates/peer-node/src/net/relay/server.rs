//! `RelayService`.

use super::hub::{Hub, Listener, Pipe};
use super::{MAX_DATA, MAX_MESSAGE};
use crate::net::identity::NodeIdentity;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::identity::DeviceId;
use futures_util::{Stream, StreamExt};
use proto::peer::v1 as peer;
use proto::peer::v1::relay_service_server::{RelayService, RelayServiceServer};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(10);

/// The service, for this node's neighbours.
#[derive(Clone, Debug)]
pub struct RelayServer {
    hub: Arc<Hub>,
}

impl RelayServer {
    pub(in crate::net) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// As a service to mount, with its bounds.
    pub fn service(self) -> RelayServiceServer<Self> {
        RelayServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }
}

type Frames = Pin<Box<dyn Stream<Item = Result<peer::RelayFrame, Status>> + Send>>;

#[tonic::async_trait]
impl RelayService for RelayServer {
    type ConnectStream = Frames;
    type ListenStream = Listening;
    type AcceptStream = Frames;

    async fn connect(&self, request: Request<Streaming<peer::ConnectRequest>>) -> Result<Response<Frames>, Status> {
        let caller = NodeIdentity::member_of(&request)?;
        let mut messages = request.into_inner();
        let first = first(&mut messages).await?;
        let target = <[u8; 32]>::try_from(&first.target[..])
            .map_err(|_| Error::new(Reason::FieldInvalid, "the target is not a device's id"))?;
        let pipe = self.hub.connect(caller, DeviceId(target))?;
        Ok(Response::new(join(pipe, messages.map(|m| m.map(|m| m.data)))))
    }

    async fn listen(&self, request: Request<peer::ListenRequest>) -> Result<Response<Listening>, Status> {
        let device = NodeIdentity::member_of(&request)?;
        let (receiver, listener) = self.hub.listen(device)?;
        Ok(Response::new(Listening { receiver, _listener: listener }))
    }

    async fn accept(&self, request: Request<Streaming<peer::AcceptRequest>>) -> Result<Response<Frames>, Status> {
        let device = NodeIdentity::member_of(&request)?;
        let mut messages = request.into_inner();
        let first = first(&mut messages).await?;
        let pipe = self.hub.take(device, &first.ticket)?;
        Ok(Response::new(join(pipe, messages.map(|m| m.map(|m| m.data)))))
    }
}

/// Connections that wait to be taken.
#[derive(Debug)]
pub struct Listening {
    receiver: mpsc::Receiver<peer::ListenResponse>,
    _listener: Listener,
}

impl Stream for Listening {
    type Item = Result<peer::ListenResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx).map(|r| r.map(Ok))
    }
}

async fn first<T>(messages: &mut Streaming<T>) -> Result<T> {
    match tokio::time::timeout(FIRST, messages.message()).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err(Error::new(Reason::MessageMalformed, "the stream ended before its first message")),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(Error::new(Reason::DeadlineExceeded, "the first message did not come")),
    }
}

/// Joins a call's stream of messages with a pipe: what comes in goes to the other end, what comes from there goes out.
fn join(pipe: Pipe, incoming: impl Stream<Item = Result<Bytes, Status>> + Send + 'static) -> Frames {
    let Pipe { mut from_other, to_other, passage } = pipe;
    let passing = passage.clone();
    tokio::spawn(async move {
        let mut incoming = std::pin::pin!(incoming);
        loop {
            let next = tokio::select! {
                next = incoming.next() => next,
                // The other end takes nothing any more.
                () = to_other.closed() => return,
            };
            let Some(Ok(data)) = next else { return };
            if data.len() > MAX_DATA {
                return;
            }
            passing.pass(data.len()).await;
            if !data.is_empty() && to_other.send(data).await.is_err() {
                return;
            }
        }
    });
    let first = futures_util::stream::once(std::future::ready(Ok(peer::RelayFrame::default())));
    let rest = futures_util::stream::poll_fn(move |cx| {
        let _held = &passage;
        from_other.poll_recv(cx).map(|data| data.map(|data| Ok(peer::RelayFrame { data })))
    });
    Box::pin(first.chain(rest))
}
