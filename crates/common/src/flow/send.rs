//! Sending chunks over several connections at once, until every one has been confirmed.

use super::link::Link;
use super::local::{LocalFile, blocking, changed};
use crate::bulk::{Rope, UploadCall};
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkId, ChunkRef, UploadId};
use futures_util::future::try_join_all;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc};

/// Chunks that wait for a connection.
const WAITING: usize = 1;

/// Where a chunk is in the local file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) chunk: ChunkRef,
    pub(super) offset: u64,
}

/// A chunk on its way.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) placed: Placed,
    pub(super) data: Rope,
}

/// Where the producer puts chunks.
pub(super) type Pieces = mpsc::Sender<Piece>;

/// Sends what `produce` gives, over so many connections. Gives back the producer's value and the chunks of calls that
/// broke: they may have arrived or not.
///
/// # Errors
/// The producer's, what the server said, or the last error when the policy is exhausted.
pub(super) async fn send_all<T, F, Fut>(
    link: &Link<'_>,
    upload: UploadId,
    connections: usize,
    produce: F,
) -> Result<(T, Vec<Placed>)>
where
    F: FnOnce(Pieces) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let (sender, receiver) = mpsc::channel(WAITING);
    let receiver = Mutex::new(receiver);
    let workers = try_join_all((0..connections.max(1)).map(|_| work(link, upload, &receiver)));
    // If the workers fail, the producer is dropped, and the other way round.
    let (value, lost) = futures_util::future::try_join(produce(sender), workers).await?;
    Ok((value, lost.concat()))
}

/// One connection's work: gives the chunks of its calls that broke.
async fn work(link: &Link<'_>, upload: UploadId, pieces: &Mutex<mpsc::Receiver<Piece>>) -> Result<Vec<Placed>> {
    let mut lost = Vec::new();
    let mut sent: Vec<Placed> = Vec::new();
    let mut call: Option<UploadCall> = None;
    let mut backoff = link.retry.delays();
    while let Some(piece) = next(pieces).await {
        loop {
            let open = call.get_or_insert_with(|| UploadCall::start(link.connection.bulk(), upload));
            match open.send(piece.placed.chunk.id, piece.data.clone()).await {
                Ok(()) => break,
                Err(error) => {
                    call = None;
                    give_up(link, &mut sent, &mut lost);
                    link.pause(error, &mut backoff).await?;
                }
            }
        }
        let len = u64::from(piece.placed.chunk.len);
        link.tracker.done(len, len);
        sent.push(piece.placed);
    }
    if let Some(call) = call
        && let Err(error) = call.finish().await
    {
        give_up(link, &mut sent, &mut lost);
        link.pause(error, &mut backoff).await?;
    }
    Ok(lost)
}

async fn next(pieces: &Mutex<mpsc::Receiver<Piece>>) -> Option<Piece> {
    pieces.lock().await.recv().await
}

fn give_up(link: &Link<'_>, sent: &mut Vec<Placed>, lost: &mut Vec<Placed>) {
    link.tracker.undo(sent.iter().map(|p| u64::from(p.chunk.len)).sum());
    lost.append(sent);
}

/// Finds out which of these chunks did not arrive and sends them again from the file, until all have.
///
/// # Errors
/// `LOCAL_FILE_CHANGED` if the file has other content there now; what the server said.
pub(super) async fn make_sure(
    link: &Link<'_>,
    upload: UploadId,
    connections: usize,
    file: &Arc<LocalFile>,
    mut doubtful: Vec<Placed>,
) -> Result<()> {
    let mut backoff = link.retry.delays();
    while !doubtful.is_empty() {
        let chunks: Vec<ChunkRef> = doubtful.iter().map(|p| p.chunk).collect();
        let missing: Vec<Placed> =
            link.find_missing(upload, &chunks, &[]).await?.into_iter().map(|n| doubtful[n]).collect();
        // What arrived was taken back from the progress when its call broke.
        let arrived = total(&doubtful) - total(&missing);
        link.tracker.done(arrived, 0);
        if missing.len() < doubtful.len() {
            backoff.reset();
        } else {
            let fruitless = "the connection breaks again and again, and nothing arrives";
            link.pause(Error::new(Reason::ServerUnreachable, fruitless), &mut backoff).await?;
        }
        doubtful = send_again(link, upload, connections, file, missing).await?;
    }
    Ok(())
}

/// Sends chunks from the file; gives those of calls that broke.
pub(super) async fn send_again(
    link: &Link<'_>,
    upload: UploadId,
    connections: usize,
    file: &Arc<LocalFile>,
    missing: Vec<Placed>,
) -> Result<Vec<Placed>> {
    let produce = |pieces: Pieces| async move {
        for placed in missing {
            let data = read_chunk(file, placed).await?;
            if pieces.send(Piece { placed, data }).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    send_all(link, upload, connections, produce).await.map(|((), lost)| lost)
}

/// A chunk's content, read from the file again.
///
/// # Errors
/// `LOCAL_FILE_CHANGED` if there is other content now.
pub(super) async fn read_chunk(file: &Arc<LocalFile>, placed: Placed) -> Result<Rope> {
    let file = file.clone();
    blocking(move || {
        let data = file.read_at(placed.offset, placed.chunk.len as usize)?;
        if ChunkId::of(&data) != placed.chunk.id {
            return Err(changed(&file.path));
        }
        Ok(data.into())
    })
    .await
}

fn total(chunks: &[Placed]) -> u64 {
    chunks.iter().map(|p| u64::from(p.chunk.len)).sum()
}
