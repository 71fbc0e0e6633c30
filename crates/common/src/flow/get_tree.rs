//! A directory down.

use super::get::get_tracked;
use super::link::{Link, check_manifest, strange};
use super::local::{LocalFile, PartFile, blocking, exists, local_error, publish};
use super::options::{GetOptions, GetTreeOptions, TreeSummary};
use super::progress::{Event, Progress, Tracker};
use super::put_tree::{copy_of, stops};
use super::walk::{child, join};
use super::{BATCH_BYTES, BATCH_FILES, BATCHES, LARGE_FILES, SMALL_FILE};
use crate::bulk::{Part, Rope, download};
use crate::chunk::Chunker;
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkRef, EntryPath, manifest_digest};
use crate::rpc::OfficeConnection;
use crate::wire::{path_to, system_from_timestamp};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use proto::v1;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Files that are written by one thread at a time.
const WRITE_TOGETHER: usize = 64;
/// Directories that are known and not yet looked into.
const MAX_DIRECTORIES: usize = 1_000_000;

/// Gets what is in a directory of the server into a local one, which is made if need be. Nothing is deleted here. A file
/// that has the same content already is left as it is. Links below `local` are never followed.
///
/// # Errors
/// If the tree cannot be begun: `from` is no directory, or `local` cannot be made. All that happens later is in the
/// summary.
pub async fn get_tree(
    connection: &OfficeConnection,
    from: &EntryPath,
    local: &Path,
    options: &GetTreeOptions,
    progress: &dyn Progress,
) -> Result<TreeSummary> {
    let tracker = Tracker::new(progress);
    let link = Link { connection, tracker: &tracker, retry: options.retry };
    let entry = link.entry(from).await?;
    let entry = entry.ok_or_else(|| Error::new(Reason::EntryUnknown, format!("{from} is not there")))?;
    if entry.kind != v1::EntryKind::Directory as i32 {
        return Err(Error::new(Reason::NotADirectory, format!("{from} is a file")));
    }
    let target = local.to_owned();
    let fresh = blocking(move || {
        let fresh = !target.exists();
        fs::create_dir_all(&target).map_err(|e| local_error(&target, "made", e)).map(|()| fresh)
    })
    .await?;
    let engine = Engine { link: &link, options, summary: Mutex::default() };
    let (jobs, queue) = mpsc::channel(BATCH_FILES);
    let top = Directory { from: from.clone(), local: local.to_owned(), name: String::new(), fresh };
    futures_util::future::join(engine.feed(top, jobs), engine.run(queue)).await;
    let mut summary = engine.summary.into_inner();
    summary.moved_bytes = tracker.moved();
    Ok(summary)
}

/// A directory to look into; the local one exists.
struct Directory {
    from: EntryPath,
    local: PathBuf,
    name: String,
    /// Nothing was there before.
    fresh: bool,
}

/// A file to get.
#[derive(Clone, Debug)]
struct Job {
    from: EntryPath,
    local: PathBuf,
    name: String,
    size: u64,
    digest: Option<[u8; 32]>,
    fresh: bool,
}

struct Engine<'a> {
    link: &'a Link<'a>,
    options: &'a GetTreeOptions,
    summary: Mutex<TreeSummary>,
}

impl Engine<'_> {
    /// Lists directories, makes the local ones, and gives out the files.
    async fn feed(&self, top: Directory, jobs: mpsc::Sender<Job>) {
        let mut todo = vec![top];
        while let Some(directory) = todo.pop() {
            let mut token = String::new();
            loop {
                let (entries, next) = match self.link.list(&directory.from, token).await {
                    Ok(page) => page,
                    Err(error) => {
                        self.broken(&directory.name, error);
                        break;
                    }
                };
                for entry in entries {
                    match self.look(&directory, entry).await {
                        Ok(Found::File(job)) => {
                            self.link.tracker.expect(1, job.size);
                            if jobs.send(job).await.is_err() {
                                return;
                            }
                        }
                        Ok(Found::Directory(found)) if todo.len() < MAX_DIRECTORIES => todo.push(found),
                        Ok(Found::Directory(found)) => {
                            let error = Error::new(Reason::TreeTooLarge, "there are more than a million directories");
                            self.fail(found.name, error);
                        }
                        Err((name, error)) => self.fail(name, error),
                    }
                }
                if next.is_empty() || self.stopped() {
                    break;
                }
                token = next;
            }
            if self.stopped() {
                return;
            }
        }
    }

    /// Turns an entry of a listing into work. Its name is checked as if it came from an enemy.
    async fn look(&self, directory: &Directory, entry: v1::Entry) -> Result<Found, (String, Error)> {
        let name = join(&directory.name, &entry.display_name);
        let from = child(&directory.from, &entry.display_name).map_err(|e| (name.clone(), e))?;
        let local = directory.local.join(&entry.display_name);
        if entry.kind != v1::EntryKind::Directory as i32 {
            let digest = entry.manifest_digest.as_ref().try_into().ok();
            return Ok(Found::File(Job { from, local, name, size: entry.size_bytes, digest, fresh: directory.fresh }));
        }
        let path = local.clone();
        let fresh = blocking(move || make_directory(&path)).await.map_err(|e| (name.clone(), e))?;
        if fresh {
            self.summary.lock().directories += 1;
        }
        Ok(Found::Directory(Directory { from, local, name, fresh }))
    }

    async fn run(&self, mut queue: mpsc::Receiver<Job>) {
        let mut small: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        let mut large: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        let (mut batch, mut batch_bytes) = (Vec::new(), 0);
        let mut open = true;
        loop {
            if self.stopped() {
                queue.close();
                while queue.try_recv().is_ok() {}
                batch.clear();
            }
            let room = small.len() < BATCHES && large.len() < LARGE_FILES;
            tokio::select! {
                Some(()) = small.next(), if !small.is_empty() => {}
                Some(()) = large.next(), if !large.is_empty() => {}
                job = queue.recv(), if open && room => match job {
                    Some(job) if job.size > SMALL_FILE => large.push(Box::pin(self.large(job))),
                    Some(job) => {
                        batch_bytes += job.size;
                        batch.push(job);
                    }
                    None => open = false,
                },
                else => {}
            }
            if batch.len() >= BATCH_FILES || batch_bytes >= BATCH_BYTES || (!open && !batch.is_empty()) {
                batch_bytes = 0;
                small.push(Box::pin(self.small(std::mem::take(&mut batch))));
            }
            if !open && small.is_empty() && large.is_empty() {
                return;
            }
        }
    }

    async fn large(&self, job: Job) {
        match self.unchanged(vec![job.clone()]).await {
            Ok(left) if left.is_empty() => return,
            Ok(_) => {}
            Err(error) => return self.done(&job.name, Err(error)),
        }
        self.whole(job).await;
    }

    async fn whole(&self, job: Job) {
        let options = GetOptions {
            version: 0,
            replace: self.options.replace,
            sync: self.options.sync,
            retry: self.options.retry,
        };
        let got = get_tracked(self.link, &job.from, &job.local, &options, job.size).await;
        self.done(&job.name, got.map(|e| e.size_bytes));
    }

    /// Gets files of one chunk or none, all in one stream.
    async fn small(&self, jobs: Vec<Job>) {
        let mut left = match self.unchanged(jobs).await {
            Ok(left) => left,
            Err(error) => return self.broken("", error),
        };
        let mut backoff = self.options.retry.delays();
        let mut verify_there = false;
        while !left.is_empty() {
            let before = left.len();
            let mut round = Round { engine: self, jobs: left, states: Vec::new(), finished: Vec::new() };
            let result = round.run(verify_there).await;
            let (again, damaged, grown) = round.rest();
            for job in grown {
                self.whole(job).await;
            }
            left = again;
            // What arrived damaged is asked for once more, checked by the server too.
            if !damaged.is_empty() && verify_there {
                for job in damaged {
                    let error = Error::new(Reason::ChunkDamaged, "the content does not match its digest");
                    self.done(&job.name, Err(error));
                }
            } else if !damaged.is_empty() {
                verify_there = true;
                left.extend(damaged);
            }
            if left.len() < before {
                backoff.reset();
            }
            if let Err(error) = result
                && let Err(error) = self.link.pause(error, &mut backoff).await
            {
                if stops(&error) {
                    self.stop(&error);
                }
                for job in left.drain(..) {
                    self.done(&job.name, Err(copy_of(&error)));
                }
            }
        }
    }

    /// Leaves out the files that are here with the same content.
    async fn unchanged(&self, jobs: Vec<Job>) -> Result<Vec<Job>> {
        if jobs.iter().all(|j| j.fresh) {
            return Ok(jobs);
        }
        let replace = self.options.replace;
        let looked =
            blocking(move || Ok(jobs.into_iter().map(|job| (look_here(&job, replace), job)).collect::<Vec<_>>()))
                .await?;
        let mut left = Vec::new();
        for (here, job) in looked {
            match here {
                Here::Absent | Here::Other => left.push(job),
                Here::Same => {
                    self.link.tracker.done(job.size, 0);
                    self.summary.lock().unchanged += 1;
                    self.link.tracker.event(Event::Unchanged { path: &job.name });
                    self.link.tracker.file_done();
                }
                Here::InTheWay(error) => self.done(&job.name, Err(error)),
            }
        }
        Ok(left)
    }

    fn done(&self, name: &str, result: Result<u64>) {
        match result {
            Ok(bytes) => {
                let mut summary = self.summary.lock();
                summary.files += 1;
                summary.bytes += bytes;
                drop(summary);
                self.link.tracker.event(Event::Finished { path: name });
            }
            Err(error) if stops(&error) => {
                self.stop(&error);
                self.fail(name.to_owned(), error);
            }
            Err(error) => self.fail(name.to_owned(), error),
        }
        self.link.tracker.file_done();
    }

    fn broken(&self, name: &str, error: Error) {
        if stops(&error) {
            self.stop(&error);
        }
        self.fail(name.to_owned(), error);
    }

    fn fail(&self, name: String, error: Error) {
        self.link.tracker.event(Event::Failed { path: &name, error: &error });
        self.summary.lock().fail(name, error);
    }

    fn stop(&self, error: &Error) {
        self.summary.lock().stopped.get_or_insert_with(|| copy_of(error));
    }

    fn stopped(&self) -> bool {
        self.summary.lock().stopped.is_some()
    }
}

enum Found {
    File(Job),
    Directory(Directory),
}

enum Here {
    Absent,
    Same,
    Other,
    InTheWay(Error),
}

fn look_here(job: &Job, replace: bool) -> Here {
    let Ok(meta) = fs::symlink_metadata(&job.local) else { return Here::Absent };
    if meta.is_dir() {
        let message = format!("{} is a directory here and a file on the server", job.name);
        return Here::InTheWay(Error::new(Reason::IsADirectory, message));
    }
    if meta.is_file() && meta.len() == job.size && job.digest.is_some() && digest_here(&job.local) == job.digest {
        return Here::Same;
    }
    if replace { Here::Other } else { Here::InTheWay(exists(&job.local)) }
}

fn digest_here(path: &Path) -> Option<[u8; 32]> {
    let file = LocalFile::open(path, false).ok()?;
    let pieces = Chunker::new(&file.file).map(|p| p.map(|p| p.chunk));
    let chunks: Vec<ChunkRef> = pieces.collect::<io::Result<_>>().ok()?;
    Some(manifest_digest(&chunks))
}

/// Makes a directory; true if it was not there. Something else of that name, a link for example, is not gone through.
fn make_directory(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(path).map_err(|e| local_error(path, "made", e))?;
            if meta.is_dir() {
                return Ok(false);
            }
            Err(Error::new(Reason::NotADirectory, format!("{} is in the way", path.display()))
                .why_is("it is not a directory here, perhaps a symbolic link")
                .fix_is("move it away, or get the directory to another place"))
        }
        Err(e) => Err(local_error(path, "made", e)),
    }
}

/// What is known of an item of a request.
#[derive(Default)]
enum State {
    #[default]
    Waiting,
    /// The header has come.
    Open {
        entry: Box<v1::Entry>,
        chunks: Vec<ChunkRef>,
        content: Rope,
    },
    /// It is larger now than a batch takes; its content is passed over.
    Grown,
    Damaged,
    Done,
}

/// One request for many files.
struct Round<'a> {
    engine: &'a Engine<'a>,
    jobs: Vec<Job>,
    states: Vec<State>,
    /// Whole and not yet written.
    finished: Vec<(usize, Box<v1::Entry>, Vec<ChunkRef>, Rope)>,
}

impl Round<'_> {
    async fn run(&mut self, verify_there: bool) -> Result<()> {
        self.states.resize_with(self.jobs.len(), State::default);
        let item =
            |job: &Job| v1::DownloadItem { path: Some(path_to(&job.from)), with_manifest: true, ..Default::default() };
        let request = v1::DownloadRequest {
            items: self.jobs.iter().map(item).collect(),
            client_verifies: !verify_there,
            block_size_bytes: 0,
        };
        let mut writing = FuturesUnordered::new();
        let result = self.receive(&request, &mut writing).await;
        self.write(&mut writing);
        while let Some(written) = writing.next().await {
            self.take(written);
        }
        result
    }

    async fn receive(
        &mut self,
        request: &v1::DownloadRequest,
        writing: &mut FuturesUnordered<BoxFuture<'static, Written>>,
    ) -> Result<()> {
        let link = self.engine.link;
        let mut stream = download(link.connection.bulk(), request).await?;
        while let Some(part) = stream.next().await? {
            // The stream knows that the item is one of the request.
            let n = part.item as usize;
            let state = self.states.get_mut(n).ok_or_else(|| strange("an item that was not asked for"))?;
            match (part.part, std::mem::take(state)) {
                (Part::Failed(error), _) => {
                    *state = State::Done;
                    let damaged = error.is(Reason::ChunkDamaged) && request.client_verifies;
                    if damaged {
                        *state = State::Damaged;
                    } else {
                        self.engine.done(&self.jobs[n].name, Err(error));
                    }
                }
                (Part::Header { entry: Some(entry), chunks }, State::Waiting) => {
                    *state = match entry.size_bytes {
                        size if size > SMALL_FILE => State::Grown,
                        _ => State::Open { entry, chunks, content: Rope::new() },
                    };
                }
                (Part::Data { offset, data }, State::Open { entry, chunks, mut content }) => {
                    if offset != content.len() as u64 || content.len() + data.len() > SMALL_FILE as usize {
                        return Err(strange("content of another place than was asked for"));
                    }
                    data.into_pieces().into_iter().for_each(|p| content.push(p));
                    *state = State::Open { entry, chunks, content };
                }
                (Part::Trailer { .. }, State::Open { entry, chunks, content }) => {
                    *state = State::Done;
                    self.finished.push((n, entry, chunks, content));
                    if self.finished.len() >= WRITE_TOGETHER {
                        self.write(writing);
                        while writing.len() > BATCHES {
                            if let Some(written) = writing.next().await {
                                self.take(written);
                            }
                        }
                    }
                }
                (Part::Header { .. } | Part::Data { .. } | Part::Trailer { .. }, State::Grown) => *state = State::Grown,
                (_, _) => return Err(strange("parts in another order than header, data, trailer")),
            }
        }
        Ok(())
    }

    /// Gives what is whole to a thread that verifies and writes it.
    fn write(&mut self, writing: &mut FuturesUnordered<BoxFuture<'static, Written>>) {
        if self.finished.is_empty() {
            return;
        }
        let options = Arc::new(self.engine.options.clone());
        let work: Vec<_> = std::mem::take(&mut self.finished)
            .into_iter()
            .map(|(n, entry, chunks, content)| (n, self.jobs[n].local.clone(), entry, chunks, content))
            .collect();
        let numbers: Vec<usize> = work.iter().map(|w| w.0).collect();
        let thread = blocking(move || {
            Ok(work
                .into_iter()
                .map(|(n, local, entry, chunks, content)| (n, write_file(&local, &entry, chunks, &content, &options)))
                .collect::<Vec<_>>())
        });
        writing.push(Box::pin(async move {
            match thread.await {
                Ok(written) => written,
                Err(error) => numbers.into_iter().map(|n| (n, Err(copy_of(&error)))).collect(),
            }
        }));
    }

    fn take(&mut self, written: Written) {
        for (n, result) in written {
            let job = &self.jobs[n];
            match result {
                Err(error) if error.is(Reason::ChunkDamaged) => self.states[n] = State::Damaged,
                result => {
                    if let Ok(bytes) = &result {
                        self.engine.link.tracker.correct(job.size, *bytes);
                        self.engine.link.tracker.done(*bytes, *bytes);
                    }
                    self.engine.done(&job.name, result);
                }
            }
        }
    }

    /// Jobs to ask for again, damaged ones, and grown ones.
    fn rest(self) -> (Vec<Job>, Vec<Job>, Vec<Job>) {
        let (mut again, mut damaged, mut grown) = (Vec::new(), Vec::new(), Vec::new());
        for (job, state) in self.jobs.into_iter().zip(self.states) {
            match state {
                State::Waiting | State::Open { .. } => again.push(job),
                State::Damaged => damaged.push(job),
                State::Grown => grown.push(job),
                State::Done => {}
            }
        }
        (again, damaged, grown)
    }
}

type Written = Vec<(usize, Result<u64>)>;

/// Verifies a small file and puts it into its place.
fn write_file(
    target: &Path,
    entry: &v1::Entry,
    chunks: Vec<ChunkRef>,
    content: &Rope,
    options: &GetTreeOptions,
) -> Result<u64> {
    let manifest = check_manifest(chunks, entry.version, entry.size_bytes, &entry.manifest_digest)?;
    let damaged = || Error::new(Reason::ChunkDamaged, "the content does not match its digest");
    if content.len() as u64 != manifest.size {
        return Err(damaged());
    }
    let mut offset = 0;
    for chunk in &manifest.chunks {
        if content.slice(offset, chunk.len as usize).chunk_id() != chunk.id {
            return Err(damaged());
        }
        offset += chunk.len as usize;
    }
    let part = PartFile::claim(target)?;
    part.clear()?;
    let mut file = &part.file;
    let written = content.pieces().iter().try_for_each(|p| io::Write::write_all(&mut file, p));
    let modified = entry.modify_time.as_ref().and_then(|t| system_from_timestamp(t, "modify_time").ok());
    let published = written
        .map_err(|e| local_error(target, "written", e))
        .and_then(|()| publish(&part.file, &part.path, target, entry.mode, modified, options.replace, options.sync));
    if let Err(error) = published {
        // Nothing of it is worth keeping: it is as quickly fetched as found again.
        let _ = part.clear();
        return Err(error);
    }
    Ok(manifest.size)
}
