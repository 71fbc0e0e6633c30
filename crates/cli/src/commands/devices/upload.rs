//! A file as the messages of one call: read on a thread of its own, a few pieces ahead, never more than was announced.
//!
//! A file that becomes shorter or cannot be read ends the call with an error instead of its stream, because the end of the
//! stream would mean that all of it was sent.

use super::NOTHING_SENT;
use crate::progress::{Counts, Meter};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::status::from_status;
use futures_util::{Stream, StreamExt};
use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

/// Bytes of one message; the contract takes up to 1 MiB.
const PIECE: usize = 512 * 1024;
/// Messages that wait for the connection.
const WAITING: usize = 4;

/// Messages of a call.
pub(super) type Messages<M> = Pin<Box<dyn Stream<Item = M> + Send>>;

/// What is sent.
pub(super) struct Source {
    /// The file.
    pub file: Arc<File>,
    /// Its name, for errors.
    pub name: String,
    /// From here on.
    pub offset: u64,
    /// Up to here.
    pub size: u64,
}

/// What was done before this file, of several.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    /// Bytes of the files that are done.
    pub bytes: u64,
    /// How many.
    pub files: u64,
    /// Bytes of all.
    pub total_bytes: u64,
    /// How many in all.
    pub total_files: u64,
}

/// Makes the call with the header, then the data.
///
/// # Errors
/// What the other side said; `LOCAL_FILE_CHANGED` or `IO_FAILED` if the file cannot be read as it was.
pub(super) async fn upload<M, T, F>(
    source: Source,
    header: M,
    data: fn(Bytes) -> M,
    (meter, before): (&Meter, Before),
    call: impl FnOnce(Messages<M>) -> F,
) -> Result<T>
where
    M: Send + 'static,
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let (sender, receiver) = mpsc::channel::<Bytes>(WAITING);
    let (failed, failure) = oneshot::channel();
    let taken = Arc::new(AtomicU64::new(0));
    let (offset, count) = (source.offset, taken.clone());
    let meter = meter.clone();
    let show = move |sent: u64| {
        meter.set(Counts {
            done_bytes: before.bytes + offset + sent,
            total_bytes: before.total_bytes,
            done_files: before.files,
            total_files: before.total_files,
        });
    };
    show(0);
    let begun = taken.clone();
    let first = futures_util::stream::once(async move {
        begun.fetch_add(1, Ordering::Relaxed);
        header
    });
    let mut sent = 0u64;
    let pieces = ReceiverStream::new(receiver).map(move |piece| {
        count.fetch_add(1, Ordering::Relaxed);
        sent += piece.len() as u64;
        show(sent);
        data(piece)
    });
    tokio::spawn(async move {
        let read = tokio::task::spawn_blocking(move || {
            let result = read_into(&source, &sender);
            (sender, result)
        });
        if let Ok((sender, Err(error))) = read.await {
            // The stream must not end as if that had been all.
            let _ = failed.send(error);
            sender.closed().await;
        }
    });
    let answer = tokio::select! {
        answer = call(first.chain(pieces).boxed()) => answer,
        Ok(error) = failure => return Err(error),
    };
    answer.map(tonic::Response::into_inner).map_err(|status| {
        let error = from_status(&status);
        if taken.load(Ordering::Relaxed) == 0 { error.with(NOTHING_SENT, true) } else { error }
    })
}

fn read_into(source: &Source, sender: &mpsc::Sender<Bytes>) -> Result<()> {
    let mut at = source.offset;
    while at < source.size {
        let mut piece = vec![0; PIECE.min(usize::try_from(source.size - at).unwrap_or(PIECE))];
        // The place is named: a reader of an attempt before this one may not have noticed yet that it is over.
        let n = source.file.read_at(&mut piece, at).map_err(|e| {
            Error::new(Reason::IoFailed, format!("{} cannot be read", source.name)).why_is(e.to_string()).caused_by(e)
        })?;
        if n == 0 {
            return Err(Error::new(Reason::LocalFileChanged, format!("{} has become shorter", source.name)));
        }
        piece.truncate(n);
        at += n as u64;
        if sender.blocking_send(piece.into()).is_err() {
            // The other side has answered already; what it said counts.
            return Ok(());
        }
    }
    Ok(())
}
