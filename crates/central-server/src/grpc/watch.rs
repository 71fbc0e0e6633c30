//! `atrium.v1.WatchService`.

use crate::app::App;
use crate::app::caller::Caller;
use crate::app::watch::{Delivery, Watcher};
use crate::grpc::file::convert::timestamp;
use common::error::{Error, Reason, Result};
use common::model::RootName;
use common::status::to_status;
use proto::v1;
use proto::v1::watch_service_server::WatchService;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Time between marks of progress.
const MARK: Duration = Duration::from_secs(15);
/// A watcher that takes nothing for so long is let go; it can come back with its cursor.
const PATIENCE: Duration = Duration::from_secs(30);
/// Messages that wait for a watcher. With [`PATIENCE`], a slow one costs this much and no more.
const WAITING: usize = 4;
/// Changes in one message; a larger commit still has one cursor and comes in several messages, the last one with it.
const CHANGES_MAX: usize = 1000;
/// Roots in one request.
const ROOTS_MAX: usize = 1000;

/// Serves change streams.
#[derive(Clone)]
pub struct Watch {
    app: App,
    stop: CancellationToken,
}

impl Watch {
    /// Serves until `stop`.
    pub fn new(app: App, stop: CancellationToken) -> Self {
        Self { app, stop }
    }

    async fn open(&self, request: Request<v1::WatchRequest>) -> Result<Watcher> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        caller.require_user()?;
        let request = request.into_inner();
        if request.roots.len() > ROOTS_MAX {
            return Err(Error::new(Reason::FieldInvalid, "more than 1,000 roots"));
        }
        let mut roots = Vec::with_capacity(request.roots.len());
        for name in &request.roots {
            let name = RootName::parse(name)?;
            roots.push(crate::app::directories::require_readable(&self.app, &caller, &name)?);
        }
        Watcher::open(self.app.clone(), caller, roots, request.cursor).await
    }
}

#[tonic::async_trait]
impl WatchService for Watch {
    type WatchStream = ReceiverStream<Result<v1::WatchResponse, Status>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = self.open(request).await.map_err(|e| to_status(&e))?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = serve(watcher, &sender) => ended,
                () = stop.cancelled() => Err(Error::new(Reason::ShuttingDown, "the server is shutting down")),
                () = sender.closed() => return,
            };
            if let Err(error) = ended {
                let _ = tokio::time::timeout(PATIENCE, sender.send(Err(to_status(&error)))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Sender = mpsc::Sender<Result<v1::WatchResponse, Status>>;

async fn serve(mut watcher: Watcher, sender: &Sender) -> Result<()> {
    send(sender, v1::WatchResponse { cursor: watcher.position(), changes: Vec::new() }).await?;
    let mut marks = tokio::time::interval(MARK);
    marks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    marks.tick().await;
    loop {
        tokio::select! {
            delivery = watcher.next() => deliver(sender, delivery?).await?,
            _ = marks.tick() => {
                watcher.ask_rights().await?;
                send(sender, v1::WatchResponse { cursor: watcher.position(), changes: Vec::new() }).await?;
            }
        }
    }
}

async fn deliver(sender: &Sender, delivery: Delivery) -> Result<()> {
    let mut changes: Vec<v1::Change> = Vec::with_capacity(delivery.changes.len().min(CHANGES_MAX));
    let mut rest = delivery.changes.into_iter().peekable();
    while let Some(seen) = rest.next() {
        changes.push(encode(seen));
        let last = rest.peek().is_none();
        if last || changes.len() == CHANGES_MAX {
            // Only the commit's last message moves the cursor, so a client that breaks off in between gets it whole.
            let cursor = if last { delivery.cursor } else { delivery.cursor - 1 };
            send(sender, v1::WatchResponse { cursor, changes: std::mem::take(&mut changes) }).await?;
        }
    }
    Ok(())
}

async fn send(sender: &Sender, message: v1::WatchResponse) -> Result<()> {
    match tokio::time::timeout(PATIENCE, sender.send(Ok(message))).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new(Reason::WatcherTooSlow, "the watcher takes nothing any more")),
    }
}

fn encode(seen: crate::app::watch::Seen) -> v1::Change {
    let change = seen.change;
    v1::Change {
        kind: i32::try_from(change.kind).unwrap_or(0),
        previous_path: seen.previous_root.map(|root| v1::Path { root, path: change.previous_path }),
        path: Some(v1::Path { root: seen.root, path: change.path }),
        uid: uuid::Uuid::from_slice(&change.uid).map(|u| u.to_string()).unwrap_or_default(),
        entry_kind: if change.directory { v1::EntryKind::Directory } else { v1::EntryKind::File } as i32,
        version: change.version,
        size_bytes: change.size_bytes,
        user: change.user,
        time: Some(timestamp(change.time_ms)),
        manifest_digest: change.manifest_digest,
    }
}
