//! What the server streams to a printer's machine: jobs and documents.

use super::convert::encode_owned;
use crate::app::entries;
use crate::app::print::owner::{Document, Watcher};
use crate::grpc::shutting_down;
use common::error::{Error, Reason, Result};
use common::status::to_status;
use proto::v1;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Time between marks.
const MARK: Duration = Duration::from_secs(15);
/// A machine that takes nothing for so long is let go; it can come back.
const PATIENCE: Duration = Duration::from_secs(30);
/// Messages that wait for a machine.
const WAITING: usize = 2;

/// Tells a machine of its jobs until the call or the server ends.
pub fn watch(watcher: Watcher, stop: CancellationToken) -> ReceiverStream<Result<v1::WatchPrintJobsResponse, Status>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = tell(watcher, &sender) => ended,
            () = stop.cancelled() => Err(shutting_down()),
            () = sender.closed() => return,
        };
        if let Err(error) = ended {
            let _ = tokio::time::timeout(PATIENCE, sender.send(Err(to_status(&error)))).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn tell(mut watcher: Watcher, sender: &mpsc::Sender<Result<v1::WatchPrintJobsResponse, Status>>) -> Result<()> {
    let mut complete = false;
    loop {
        let message = match tokio::time::timeout(MARK, watcher.next()).await {
            Ok(batch) => {
                let batch = batch?;
                complete = batch.complete;
                v1::WatchPrintJobsResponse { jobs: batch.jobs.iter().map(encode_owned).collect(), complete }
            }
            Err(_) => v1::WatchPrintJobsResponse { jobs: Vec::new(), complete },
        };
        send(sender, message, PATIENCE).await?;
    }
}

/// Sends a document.
pub fn document(
    document: Document,
    patience: Duration,
) -> ReceiverStream<Result<v1::FetchPrintDocumentResponse, Status>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = pour(document, &sender, patience) => ended,
            () = sender.closed() => return,
        };
        if let Err(error) = ended {
            let _ = tokio::time::timeout(PATIENCE, sender.send(Err(to_status(&error)))).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn pour(
    mut document: Document,
    sender: &mpsc::Sender<Result<v1::FetchPrintDocumentResponse, Status>>,
    patience: Duration,
) -> Result<()> {
    let mut first = true;
    loop {
        let offset_bytes = document.offset();
        let (back, data) = entries::blocking(move || {
            let data = document.read()?;
            Ok((document, data))
        })
        .await?;
        document = back;
        let ended = data.is_empty();
        if first || !ended {
            send(sender, v1::FetchPrintDocumentResponse { offset_bytes, data }, patience).await?;
        }
        if ended {
            return Ok(());
        }
        first = false;
    }
}

async fn send<T>(sender: &mpsc::Sender<Result<T, Status>>, message: T, patience: Duration) -> Result<()> {
    match tokio::time::timeout(patience, sender.send(Ok(message))).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new(Reason::WatcherTooSlow, "the machine takes nothing any more")),
    }
}
