//! Up to a thousand small files up, in one stream of chunks and one commit.

use super::link::Link;
use super::local::{LocalFile, blocking};
use super::options::Expect;
use crate::bulk::UploadCall;
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkId, ChunkRef, EntryPath, UploadId, manifest_digest};
use crate::status::from_item_error;
use crate::wire::{chunks_to, path_to, timestamp_from_system};
use bytes::Bytes;
use proto::v1;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::SystemTime;

/// A small file that changes while it is read is read again so many times.
const REREADS: u32 = 3;
/// Commits that say that chunks are missing, which are then sent again.
const COMMITS: u32 = 5;

/// A file to put.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) local: PathBuf,
    pub(super) follow: bool,
    pub(super) to: EntryPath,
    /// Below the tree, for reports.
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) expect: Expect,
    /// Digest of the file that is there, if it has the same size.
    pub(super) present: Option<[u8; 32]>,
}

/// What became of a file.
#[derive(Debug)]
pub(super) enum Outcome {
    Put {
        bytes: u64,
    },
    Unchanged,
    /// It has grown beyond what a batch takes.
    Large,
    Failed(Error),
}

/// A file that has been read.
struct Read {
    job: usize,
    chunk: Option<(ChunkRef, Bytes)>,
    mode: u32,
    modified: SystemTime,
}

impl Read {
    fn chunks(&self) -> Vec<ChunkRef> {
        self.chunk.iter().map(|(chunk, _)| *chunk).collect()
    }
}

/// Puts the files; as many outcomes as jobs, in their order.
///
/// # Errors
/// What concerns all of them: the server stayed away, the session ended.
pub(super) async fn put_batch(link: &Link<'_>, jobs: &[Job], largest: u64) -> Result<Vec<Outcome>> {
    let to_read = jobs.to_vec();
    let results = blocking(move || Ok(to_read.iter().map(|job| read(job, largest)).collect::<Vec<_>>())).await?;
    let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(jobs.len());
    let mut files = Vec::with_capacity(jobs.len());
    for (n, (result, job)) in results.into_iter().zip(jobs).enumerate() {
        outcomes.push(match result {
            Ok(Some(mut file)) => {
                file.job = n;
                link.tracker.correct(job.size, file.chunk.as_ref().map_or(0, |(c, _)| u64::from(c.len)));
                if job.present == Some(manifest_digest(&file.chunks())) {
                    Some(Outcome::Unchanged)
                } else {
                    files.push(file);
                    None
                }
            }
            Ok(None) => Some(Outcome::Large),
            Err(error) => Some(Outcome::Failed(error)),
        });
    }
    let upload = UploadId::generate();
    if !files.is_empty() {
        let all: Vec<usize> = (0..files.len()).collect();
        send(link, upload, &files, &all).await?;
        commit(link, upload, jobs, &files, &mut outcomes).await?;
    }
    let lost = || Outcome::Failed(Error::internal("a file of a batch was forgotten"));
    Ok(outcomes.into_iter().map(|o| o.unwrap_or_else(lost)).collect())
}

/// Reads and hashes a file; `None` if it is too large for a batch.
fn read(job: &Job, largest: u64) -> Result<Option<Read>> {
    let mut attempt = 0;
    loop {
        let file = LocalFile::open(&job.local, job.follow)?;
        if file.stamp.size > largest {
            return Ok(None);
        }
        let read = file.read_at(0, file.stamp.size as usize).and_then(|data| file.check_unchanged().map(|()| data));
        match read {
            Ok(data) => {
                let chunk = ChunkRef { id: ChunkId::of(&data), len: data.len() as u32 };
                let chunk = (!data.is_empty()).then(|| (chunk, Bytes::from(data)));
                return Ok(Some(Read { job: 0, chunk, mode: file.mode, modified: file.modified }));
            }
            Err(error) if error.is(Reason::LocalFileChanged) && attempt < REREADS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Sends the chunks of these files, each content once. A batch is little: what breaks off is sent again as a whole.
async fn send(link: &Link<'_>, upload: UploadId, files: &[Read], which: &[usize]) -> Result<()> {
    let mut backoff = link.retry.delays();
    loop {
        match send_once(link, upload, files, which).await {
            Ok(bytes) => {
                link.tracker.done(0, bytes);
                return Ok(());
            }
            Err(error) => link.pause(error, &mut backoff).await?,
        }
    }
}

async fn send_once(link: &Link<'_>, upload: UploadId, files: &[Read], which: &[usize]) -> Result<u64> {
    let mut sent = HashSet::with_capacity(which.len());
    let mut bytes = 0;
    let mut call = None;
    for (chunk, data) in which.iter().filter_map(|n| files[*n].chunk.as_ref()) {
        if sent.insert(chunk.id) {
            let call = call.get_or_insert_with(|| UploadCall::start(link.connection.bulk(), upload));
            call.send(chunk.id, data.clone().into()).await?;
            bytes += u64::from(chunk.len);
        }
    }
    match call {
        Some(call) => call.finish().await.map(|_| bytes),
        None => Ok(0),
    }
}

async fn commit(
    link: &Link<'_>,
    upload: UploadId,
    jobs: &[Job],
    files: &[Read],
    outcomes: &mut [Option<Outcome>],
) -> Result<()> {
    let mut open: Vec<usize> = (0..files.len()).collect();
    let mut last: HashMap<usize, Error> = HashMap::new();
    for round in 0..COMMITS {
        // A commit is told by its upload: the files that are left need one of their own, which must have their chunks.
        let upload = if round == 0 { upload } else { UploadId::generate() };
        if round > 0 {
            send(link, upload, files, &open).await?;
        }
        let messages = open.iter().map(|n| message(&jobs[files[*n].job], &files[*n])).collect();
        let results = link.commit(upload, messages).await?;
        let mut again = Vec::new();
        for (n, result) in open.iter().zip(results) {
            let job = files[*n].job;
            match result.result {
                Some(v1::file_commit_result::Result::Entry(entry)) => {
                    outcomes[job] = Some(Outcome::Put { bytes: entry.size_bytes });
                }
                Some(v1::file_commit_result::Result::Error(error)) => {
                    let error = from_item_error(&error);
                    if error.is(Reason::ChunksMissing) {
                        last.insert(job, error);
                        again.push(*n);
                    } else {
                        outcomes[job] = Some(Outcome::Failed(error));
                    }
                }
                None => outcomes[job] = Some(Outcome::Failed(super::link::strange("no result"))),
            }
        }
        open = again;
        if open.is_empty() {
            return Ok(());
        }
    }
    for n in open {
        let job = files[n].job;
        outcomes[job] = last.remove(&job).map(Outcome::Failed);
    }
    Ok(())
}

fn message(job: &Job, file: &Read) -> v1::FileCommit {
    v1::FileCommit {
        path: Some(path_to(&job.to)),
        chunks: chunks_to(&file.chunks()),
        expected: Some(job.expect.message()),
        modify_time: Some(timestamp_from_system(file.modified)),
        mode: file.mode,
        make_parents: true,
        fencing_token: 0,
    }
}
