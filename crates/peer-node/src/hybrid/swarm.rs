//! The server as a node that has everything of a ticket.
//!
//! Calls to it are answered in this process: *Follow* says that everything is there, *Fetch* asks the server for ranges of
//! files and passes the content on as chunks, in the order in which they were asked for. Nothing is verified here: who
//! fetches hashes what it gets.

use super::Hybrid;
use super::shelf::{Shelf, Spot};
use crate::model::Scope;
use crate::transfer::peers::{Channel, PeerEvent, PeerLink, Peers, Way};
use bytes::Bytes;
use common::bulk::{
    DownloadStream, Encoded, FETCH_PATH, FetchEncoder, IDLE, MAX_FETCH_CHUNKS, MessageBody, MessageReader,
    MessageSender, Part, Rope, Side, channel, download, respond_error, respond_stream,
};
use common::error::{Error, Kind, Reason, Result};
use common::model::{ChunkId, DeviceId};
use common::rpc::OfficeConnection;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::Frame;
use prost::Message;
use proto::peer::v1 as peer;
use proto::v1;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

const FOLLOW_PATH: &str = "/atrium.peer.v1.TransferService/Follow";
/// A request for 1,024 chunks with a ticket of 1,000 contents is a third of it.
const REQUEST_MAX: usize = 1024 * 1024;
/// Content that waits between the server's stream and the transfer.
const QUEUE_BYTES: usize = 2 * 1024 * 1024;
/// Items of one call to the server.
const ITEMS_MAX: usize = 1_000;

/// The device that stands for the server of these certificates, wherever it is.
pub fn server_device(ca_pem: &str) -> DeviceId {
    DeviceId(*blake3::hash(format!("atrium server {}", ca_pem.trim()).as_bytes()).as_bytes())
}

/// Nodes, and the server as one of them.
pub struct WithServer {
    hybrid: Hybrid,
    nodes: Arc<dyn Peers>,
}

impl WithServer {
    /// Adds the server to these nodes.
    pub fn new(hybrid: Hybrid, nodes: Arc<dyn Peers>) -> Self {
        Self { hybrid, nodes }
    }

    fn is_server(&self, device: &DeviceId) -> bool {
        self.hybrid.0.access.server().is_ok_and(|s| server_device(&s.ca_pem) == *device)
    }
}

impl Peers for WithServer {
    fn me(&self) -> DeviceId {
        self.nodes.me()
    }

    fn name_of(&self, device: &DeviceId) -> String {
        if self.is_server(device) { "server".to_owned() } else { self.nodes.name_of(device) }
    }

    fn link(&self, device: DeviceId) -> BoxFuture<'static, Result<PeerLink>> {
        if !self.is_server(&device) {
            return self.nodes.link(device);
        }
        let hybrid = self.hybrid.clone();
        Box::pin(async move {
            let connection = hybrid.0.access.connection().await?;
            let asked = Instant::now();
            connection.check().await?;
            let round_trip = asked.elapsed();
            let service = ServerService { hybrid };
            let boxed = || -> Channel { BoxCloneSyncService::new(service.clone().map_err(|e: Infallible| match e {})) };
            let bulk = (0..connection.bulk_count()).map(|_| boxed()).collect();
            Ok(PeerLink { control: boxed(), bulk, way: Way::Direct, round_trip })
        })
    }

    fn is_spared(&self, device: &DeviceId) -> bool {
        self.is_server(device)
    }

    fn shown(&self, scope: &Scope) -> Scope {
        self.hybrid.shown(scope)
    }

    fn renewed(&self, scope: Scope) -> BoxFuture<'static, Scope> {
        let hybrid = self.hybrid.clone();
        Box::pin(async move { hybrid.renewed(scope).await })
    }

    fn neighbours(&self) -> Vec<DeviceId> {
        self.nodes.neighbours()
    }

    fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.nodes.events()
    }
}

/// Answers `atrium.peer.v1.TransferService` for the server.
#[derive(Clone)]
struct ServerService {
    hybrid: Hybrid,
}

impl tower::Service<Request<Body>> for ServerService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let hybrid = self.hybrid.clone();
        Box::pin(async move { Ok(answer(hybrid, request).await.unwrap_or_else(|e| respond_error(&e))) })
    }
}

async fn answer(hybrid: Hybrid, request: Request<Body>) -> Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let (mut sender, stream) = channel(Side::Server, QUEUE_BYTES, IDLE);
    let task = match head.uri.path() {
        FETCH_PATH => {
            let request: peer::FetchRequest = read(body).await?;
            let shelf = shelf_of(&hybrid, request.scope.as_ref()).await?;
            let chunks: Vec<ChunkId> = request.digests.chunks_exact(32).filter_map(ChunkId::from_slice).collect();
            if chunks.len() > MAX_FETCH_CHUNKS || !request.digests.len().is_multiple_of(32) {
                return Err(Error::new(Reason::FieldInvalid, "a fetch asks for up to 1,024 chunks"));
            }
            tokio::spawn(async move {
                let result = fetch(&hybrid, &shelf, &chunks, &mut sender).await;
                sender.finish(result);
            })
        }
        FOLLOW_PATH => {
            let request: peer::FollowRequest = read(body).await?;
            shelf_of(&hybrid, request.scope.as_ref()).await?;
            tokio::spawn(async move {
                let all = peer::FollowResponse { complete: true, ..Default::default() };
                if sender.send(Encoded::of(&all)).await.is_ok() {
                    let result = watch(&hybrid).await;
                    sender.finish(result);
                }
            })
        }
        path => return Err(Error::new(Reason::MethodUnknown, format!("there is no method {path:.100}"))),
    };
    Ok(respond_stream(WithTask { stream, _task: AbortOnDropHandle::new(task) }))
}

async fn read<M: Message + Default>(body: Body) -> Result<M> {
    let malformed = || Error::new(Reason::MessageMalformed, "the request could not be decoded");
    let message = MessageReader::new(body, REQUEST_MAX, IDLE).next().await?.ok_or_else(malformed)?;
    M::decode(message.to_bytes()).map_err(|e| malformed().caused_by(e))
}

async fn shelf_of(hybrid: &Hybrid, scope: Option<&peer::Scope>) -> Result<Arc<Shelf>> {
    match Scope::read(scope)? {
        Scope::Ticket(ticket) => hybrid.shelf(&ticket).await,
        _ => Err(crate::source::unknown_scope()),
    }
}

/// Ends when the server has gone, so that the transfer knows.
async fn watch(hybrid: &Hybrid) -> Result<()> {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let connection = hybrid.0.access.connection().await?;
        tokio::time::timeout(LOOK_EVERY, connection.check())
            .await
            .map_err(|_| Error::new(Reason::ServerUnreachable, "the central server does not answer"))??;
    }
}

/// How often a followed server is looked at.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// A chunk that is waited for, in the order of the request.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    index: u32,
    /// The item of the call to the server and the place in its file; `None` if it is in none of the files.
    at: Option<(u32, Spot)>,
}

/// One call to the server.
#[derive(Debug, Default)]
struct Call {
    items: Vec<v1::DownloadItem>,
    wanted: VecDeque<Wanted>,
}

/// Makes calls of a request: an item for each run of chunks that lie one after the other in a file, ascending.
fn calls(shelf: &Shelf, chunks: &[ChunkId]) -> Vec<Call> {
    let mut calls = vec![Call::default()];
    let mut last: Option<Spot> = None;
    for (index, chunk) in chunks.iter().enumerate() {
        let (index, spot) = (index as u32, shelf.spot(chunk));
        if calls.last().is_some_and(|c| c.items.len() == ITEMS_MAX) {
            calls.push(Call::default());
            last = None;
        }
        let Some(call) = calls.last_mut() else { break };
        let Some(spot) = spot else {
            call.wanted.push_back(Wanted { index, at: None });
            continue;
        };
        let end = |s: Spot| s.offset + u64::from(s.len);
        let range = v1::ByteRange { offset_bytes: spot.offset, length_bytes: u64::from(spot.len) };
        match (call.items.last_mut(), last) {
            (Some(item), Some(before)) if before.file == spot.file && spot.offset >= end(before) => {
                match item.ranges.last_mut() {
                    Some(range) if spot.offset == end(before) => range.length_bytes += u64::from(spot.len),
                    _ => item.ranges.push(range),
                }
            }
            _ => {
                let Some(file) = shelf.files.get(spot.file as usize) else { continue };
                call.items.push(v1::DownloadItem {
                    path: Some(file.path.clone()),
                    version: file.version,
                    ranges: vec![range],
                    with_manifest: false,
                });
            }
        }
        last = Some(spot);
        call.wanted.push_back(Wanted { index, at: Some((call.items.len() as u32 - 1, spot)) });
    }
    calls
}

async fn fetch(hybrid: &Hybrid, shelf: &Shelf, chunks: &[ChunkId], sender: &mut MessageSender) -> Result<()> {
    let mut sorting = Sorting { encoder: FetchEncoder::default(), wanted: VecDeque::new(), gathered: Rope::new() };
    for call in calls(shelf, chunks) {
        sorting.wanted = call.wanted;
        sorting.skip_absent();
        if !call.items.is_empty() {
            let request = v1::DownloadRequest { items: call.items, client_verifies: true, block_size_bytes: 0 };
            let request = &request;
            let open = |c: OfficeConnection| async move { download(c.bulk(), request).await };
            let stream = hybrid.0.access.call(open).await?;
            sorting.run(stream, sender).await?;
        }
        sorting.send(sender).await?;
    }
    sorting.encoder.flush();
    sorting.send(sender).await
}

/// Makes chunks of the ranges as they come.
struct Sorting {
    encoder: FetchEncoder,
    wanted: VecDeque<Wanted>,
    gathered: Rope,
}

fn strange() -> Error {
    Error::new(Reason::MessageMalformed, "the server sent something else than was asked for")
}

impl Sorting {
    fn skip_absent(&mut self) {
        while let Some(next) = self.wanted.front().filter(|w| w.at.is_none()) {
            self.encoder.absent(next.index);
            self.wanted.pop_front();
        }
    }

    async fn run(&mut self, mut stream: DownloadStream, sender: &mut MessageSender) -> Result<()> {
        while let Some(part) = stream.next().await? {
            match part.part {
                Part::Header { .. } | Part::Trailer { .. } => {}
                Part::Data { offset, data } => self.take(part.item, offset, &data)?,
                Part::Failed(error) => self.fail(part.item, error)?,
            }
            self.send(sender).await?;
        }
        if self.wanted.is_empty() { Ok(()) } else { Err(strange()) }
    }

    fn take(&mut self, item: u32, mut offset: u64, data: &Rope) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            let next = *self.wanted.front().ok_or_else(strange)?;
            let (of, spot) = next.at.ok_or_else(strange)?;
            if of != item || offset != spot.offset + self.gathered.len() as u64 {
                return Err(strange());
            }
            let piece = data.slice(done, spot.len as usize - self.gathered.len());
            done += piece.len();
            offset += piece.len() as u64;
            piece.into_pieces().into_iter().for_each(|p| self.gathered.push(p));
            if self.gathered.len() == spot.len as usize {
                self.encoder.chunk(next.index, &std::mem::take(&mut self.gathered));
                self.wanted.pop_front();
                self.skip_absent();
            }
        }
        Ok(())
    }

    /// A file that is gone, or that the person may not read any more, has nothing; the others go on.
    fn fail(&mut self, item: u32, error: Error) -> Result<()> {
        if !matches!(error.kind(), Kind::NotFound | Kind::PermissionDenied | Kind::OutOfRange | Kind::DataLoss) {
            return Err(error);
        }
        tracing::debug!(reason = error.reason(), "a file of the server cannot be read");
        self.gathered = Rope::new();
        while let Some(next) = self.wanted.front().filter(|w| w.at.is_none_or(|(of, _)| of == item)) {
            self.encoder.absent(next.index);
            self.wanted.pop_front();
        }
        Ok(())
    }

    async fn send(&mut self, sender: &mut MessageSender) -> Result<()> {
        while let Some(message) = self.encoder.pop() {
            sender.send(message).await?;
        }
        Ok(())
    }
}

/// A body whose producer ends with it.
struct WithTask {
    stream: MessageBody,
    _task: AbortOnDropHandle<()>,
}

impl http_body::Body for WithTask {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.stream).poll_frame(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shelf::ServerFile;
    use super::*;
    use crate::model::Content;
    use common::model::ChunkRef;

    fn chunk(n: u8) -> ChunkRef {
        ChunkRef { id: ChunkId::of(&[n]), len: u32::from(n) * 10 }
    }

    fn shelf() -> Shelf {
        let file = |n: u64, chunks: &[u8]| {
            let content = Content::of(chunks.iter().map(|c| chunk(*c)).collect::<Vec<_>>());
            let path = v1::Path { root: "home".into(), path: n.to_string() };
            (ServerFile { path, version: n, digest: content.digest }, content)
        };
        Shelf::new(vec![file(1, &[1, 2, 3, 4]), file(2, &[5, 6])])
    }

    fn ids(all: &[u8]) -> Vec<ChunkId> {
        all.iter().map(|n| chunk(*n).id).collect()
    }

    fn ranges(call: &Call) -> Vec<(u64, Vec<(u64, u64)>)> {
        let range = |r: &v1::ByteRange| (r.offset_bytes, r.length_bytes);
        call.items.iter().map(|i| (i.version, i.ranges.iter().map(range).collect())).collect()
    }

    #[test]
    fn chunks_become_ranges_in_the_order_that_was_asked_for() {
        let calls = calls(&shelf(), &ids(&[1, 2, 4, 3, 9, 5, 6, 1]));
        assert_eq!(calls.len(), 1);
        // 1 and 2 touch, 4 is behind a gap, 3 lies before it, then the other file, then back.
        let expected = vec![(1, vec![(0, 30), (60, 40)]), (1, vec![(30, 30)]), (2, vec![(0, 110)]), (1, vec![(0, 10)])];
        assert_eq!(ranges(&calls[0]), expected);
        assert_eq!(calls[0].wanted.iter().map(|w| w.index).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        assert!(calls[0].wanted[4].at.is_none());
    }

    #[test]
    fn content_is_cut_into_chunks_wherever_blocks_end() {
        for block in [1, 7, 10, 30, 200] {
            let mut all = calls(&shelf(), &ids(&[9, 1, 2, 4, 9]));
            let call = all.remove(0);
            let mut sorting = Sorting { encoder: FetchEncoder::default(), wanted: call.wanted, gathered: Rope::new() };
            sorting.skip_absent();
            for (offset, len) in [(0u64, 30usize), (60, 40)] {
                let content = Rope::from(vec![7u8; len]);
                let mut at = 0;
                while at < len {
                    let piece = content.slice(at, block);
                    sorting.take(0, offset + at as u64, &piece).unwrap();
                    at += piece.len();
                }
            }
            assert!(sorting.wanted.is_empty(), "blocks of {block}");
            assert!(sorting.take(0, 100, &Rope::from(vec![1])).is_err(), "nothing more was asked for");
        }
    }

    #[test]
    fn a_file_that_is_gone_is_absent_and_the_rest_comes() {
        let mut all = calls(&shelf(), &ids(&[1, 2, 5]));
        let call = all.remove(0);
        let mut sorting = Sorting { encoder: FetchEncoder::default(), wanted: call.wanted, gathered: Rope::new() };
        sorting.take(0, 0, &Rope::from(vec![0; 15])).unwrap();
        sorting.fail(0, Error::new(Reason::VersionUnknown, "gone")).unwrap();
        sorting.take(1, 0, &Rope::from(vec![0; 50])).unwrap();
        assert!(sorting.wanted.is_empty());
        assert!(sorting.fail(1, Error::new(Reason::ServerUnreachable, "away")).is_err());
    }

    #[test]
    fn a_call_has_no_more_items_than_the_server_takes() {
        let back_and_forth: Vec<u8> = (0..1_500).map(|n| if n % 2 == 0 { 1 } else { 5 }).collect();
        let calls = calls(&shelf(), &ids(&back_and_forth));
        assert_eq!(calls.iter().map(|c| c.items.len()).collect::<Vec<_>>(), [1_000, 500]);
        assert_eq!(calls.iter().map(|c| c.wanted.len()).sum::<usize>(), 1_500);
    }
}
