//! The ends of a relayed connection: asking for one, and taking the ones that are offered.

use super::hub::{Passage, Pipe, pipe};
use super::{MAX_MESSAGE, RelayStream};
use crate::net::link::Link;
use crate::net::network::Network;
use bytes::Bytes;
use common::error::{Error, Kind, Reason, Result};
use common::identity::DeviceId;
use common::status::from_status;
use futures_util::StreamExt;
use proto::peer::v1 as peer;
use proto::peer::v1::relay_service_client::RelayServiceClient;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// For a relay to find the other end.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failed `Listen`.
const AGAIN: Duration = Duration::from_secs(2);
/// Relayed connections that are being taken from one relay.
const TAKING: usize = 32;

/// Asks a neighbour for a connection to a device.
///
/// # Errors
/// RELAY_REFUSED, PEER_UNREACHABLE, OVERLOADED from the relay; that it does not answer.
pub(in crate::net) async fn connect_through(relay: &Link, target: DeviceId) -> Result<RelayStream> {
    let (near, far) = pipe(Passage::default());
    let Pipe { from_other, to_other, passage } = far;
    let first = peer::ConnectRequest { target: target.0.to_vec().into(), data: Bytes::new() };
    let rest = ReceiverStream::new(from_other).map(|data| peer::ConnectRequest { target: Bytes::new(), data });
    let outgoing = futures_util::stream::once(std::future::ready(first)).chain(rest);
    let mut client = RelayServiceClient::new(relay.bulk()).max_decoding_message_size(MAX_MESSAGE);
    let answer = started(client.connect(outgoing)).await?;
    receive(answer, to_other, passage);
    Ok(RelayStream::from(near))
}

async fn take(relay: &Link, ticket: Bytes) -> Result<RelayStream> {
    let (near, far) = pipe(Passage::default());
    let Pipe { from_other, to_other, passage } = far;
    let first = peer::AcceptRequest { ticket, data: Bytes::new() };
    let rest = ReceiverStream::new(from_other).map(|data| peer::AcceptRequest { ticket: Bytes::new(), data });
    let outgoing = futures_util::stream::once(std::future::ready(first)).chain(rest);
    let mut client = RelayServiceClient::new(relay.bulk()).max_decoding_message_size(MAX_MESSAGE);
    let answer = started(client.accept(outgoing)).await?;
    receive(answer, to_other, passage);
    Ok(RelayStream::from(near))
}

/// Waits for the answer and its first message, which says that the connection stands.
async fn started(
    call: impl Future<Output = Result<tonic::Response<Streaming<peer::RelayFrame>>, tonic::Status>>,
) -> Result<Streaming<peer::RelayFrame>> {
    let starting = async {
        let mut frames = call.await.map_err(|s| from_status(&s))?.into_inner();
        match frames.message().await.map_err(|s| from_status(&s))? {
            Some(_) => Ok(frames),
            None => Err(Error::new(Reason::PeerUnreachable, "the relay ended the connection")),
        }
    };
    let late = || Error::new(Reason::DeadlineExceeded, "the relay does not answer");
    tokio::time::timeout(PATIENCE, starting).await.map_err(|_| late())?
}

fn receive(mut frames: Streaming<peer::RelayFrame>, to: tokio::sync::mpsc::Sender<Bytes>, passage: Arc<Passage>) {
    tokio::spawn(async move {
        let _held = passage;
        loop {
            let next = tokio::select! {
                next = frames.message() => next,
                () = to.closed() => return,
            };
            let Ok(Some(frame)) = next else { return };
            if !frame.data.is_empty() && to.send(frame.data).await.is_err() {
                return;
            }
        }
    });
}

/// Takes the connections that come through a neighbour, for as long as the link to it stands.
pub(in crate::net) async fn listen_at(network: Network, relay: Link) {
    let taking = Arc::new(Semaphore::new(TAKING));
    loop {
        match listen_once(&network, &relay, &taking).await {
            // It has no such service: an older program.
            Err(error) if error.kind() == Kind::Unimplemented => return,
            Err(error) => {
                tracing::debug!(relay = ?relay.device(), reason = error.reason(), "not listening at a neighbour")
            }
            Ok(()) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn listen_once(network: &Network, relay: &Link, taking: &Arc<Semaphore>) -> Result<()> {
    let mut client = RelayServiceClient::new(relay.control());
    let mut offers = client.listen(peer::ListenRequest {}).await.map_err(|s| from_status(&s))?.into_inner();
    while let Some(offer) = offers.message().await.map_err(|s| from_status(&s))? {
        // At the bound the offer is left to expire.
        let Ok(permit) = taking.clone().try_acquire_owned() else { continue };
        let Some(server) = network.server() else { continue };
        let (relay, network) = (relay.clone(), network.clone());
        network.clone().spawn(async move {
            let taken = take(&relay, offer.ticket).await;
            drop(permit);
            match taken {
                Ok(stream) => server.serve_relayed(stream, relay.device()).await,
                Err(error) => {
                    tracing::debug!(me = ?network.me(), relay = ?relay.device(), reason = error.reason(), "offer not taken");
                }
            }
        });
    }
    Ok(())
}
