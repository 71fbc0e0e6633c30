//! Many files up.

use super::link::Link;
use super::options::{Expect, PutItem, PutOptions, PutTreeOptions, TreeSummary};
use super::progress::{Event, Progress, Tracker};
use super::put::put_tracked;
use super::put_batch::{Job, Outcome, put_batch};
use super::walk::{self, Found, walk};
use super::{BATCH_BYTES, BATCH_FILES, BATCHES, LARGE_FILES, SMALL_FILE};
use crate::error::{Error, Kind, Reason, Result};
use crate::model::{EntryName, EntryPath};
use crate::rpc::OfficeConnection;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use proto::v1;
use std::collections::HashMap;
use std::path::Path;
use tokio::sync::mpsc;

/// Directories that are being made at a time.
const DIRECTORIES: usize = 16;
/// Entries of one directory on the server that are compared; beyond them files are put without looking.
const MAX_LISTED: usize = 200_000;

/// Puts what is in a local directory into a directory on the server, which is made if need be. Nothing is deleted there.
/// Symbolic links are not followed. A file whose content the server has already under that name is left as it is.
///
/// # Errors
/// If the tree cannot be begun: `local` is not a directory, the server is away, the target cannot be looked at. All that
/// happens later is in the summary.
pub async fn put_tree(
    connection: &OfficeConnection,
    local: &Path,
    to: &EntryPath,
    options: &PutTreeOptions,
    progress: &dyn Progress,
) -> Result<TreeSummary> {
    let tracker = Tracker::new(progress);
    let link = Link { connection, tracker: &tracker, retry: options.retry };
    let present = link.entry(to).await?;
    match &present {
        Some(entry) if entry.kind != v1::EntryKind::Directory as i32 => {
            return Err(Error::new(Reason::NotADirectory, format!("{to} is a file")));
        }
        _ => {}
    }
    std::fs::read_dir(local).map_err(|e| super::local::local_error(local, "read", e))?;
    let engine = Engine::new(&link);
    let (jobs, queue) = mpsc::channel(BATCH_FILES);
    let (sender, found) = mpsc::channel(walk::WAITING);
    let (root, target) = (local.to_owned(), to.clone());
    let walking = tokio::task::spawn_blocking(move || walk(&root, &target, &sender));
    let feed = engine.feed(found, jobs, present.is_some(), options);
    futures_util::future::join(feed, engine.run(queue)).await;
    if let Err(error) = walking.await {
        engine.fail(String::new(), Error::internal("the thread that looks through a directory ended").caused_by(error));
    }
    Ok(engine.summary())
}

/// Puts these files. Links among the local paths are followed. Missing parents are made.
///
/// # Errors
/// None so far: all is in the summary, whose paths are those on the server.
pub async fn put_many(
    connection: &OfficeConnection,
    items: Vec<PutItem>,
    options: &PutTreeOptions,
    progress: &dyn Progress,
) -> Result<TreeSummary> {
    let tracker = Tracker::new(progress);
    let link = Link { connection, tracker: &tracker, retry: options.retry };
    let engine = Engine::new(&link);
    let (jobs, queue) = mpsc::channel(BATCH_FILES);
    let feed = async {
        for items in items.chunks(BATCH_FILES) {
            let batch = items.to_vec();
            let sizes = super::local::blocking(move || {
                Ok(batch.iter().map(|i| std::fs::metadata(&i.local).map_or(0, |m| m.len())).collect::<Vec<_>>())
            });
            let sizes = sizes.await.unwrap_or_default();
            for (item, size) in items.iter().zip(sizes) {
                let job = Job {
                    local: item.local.clone(),
                    follow: true,
                    to: item.to.clone(),
                    name: item.to.to_string(),
                    size,
                    expect: item.expect,
                    present: None,
                };
                tracker.expect(1, size);
                if jobs.send(Work::File(job)).await.is_err() {
                    return;
                }
            }
        }
        // Moved into here, so that the end of this is the end of the queue.
        drop(jobs);
    };
    futures_util::future::join(feed, engine.run(queue)).await;
    Ok(engine.summary())
}

/// Something to do.
#[derive(Debug)]
enum Work {
    File(Job),
    Directory(EntryPath),
}

/// A directory of the server: what is there by name.
type Listing = HashMap<String, Present>;

struct Present {
    directory: bool,
    size: u64,
    digest: Option<[u8; 32]>,
}

/// Works jobs off: batches of small files, large ones singly, directories.
struct Engine<'a> {
    link: &'a Link<'a>,
    summary: Mutex<TreeSummary>,
}

impl<'a> Engine<'a> {
    fn new(link: &'a Link<'a>) -> Self {
        Self { link, summary: Mutex::default() }
    }

    fn summary(self) -> TreeSummary {
        let mut summary = self.summary.into_inner();
        summary.moved_bytes = self.link.tracker.moved();
        summary
    }

    fn stopped(&self) -> bool {
        self.summary.lock().stopped.is_some()
    }

    fn fail(&self, name: String, error: Error) {
        self.link.tracker.event(Event::Failed { path: &name, error: &error });
        self.summary.lock().fail(name, error);
    }

    /// Turns what is found into work, comparing with what the server has.
    async fn feed(
        &self,
        mut found: mpsc::Receiver<Found>,
        jobs: mpsc::Sender<Work>,
        present: bool,
        options: &PutTreeOptions,
    ) {
        let expect = match options.expect {
            Expect::Absent => Expect::Absent,
            Expect::Any | Expect::Version(_) => Expect::Any,
        };
        // One for each directory that is entered and not yet left; `None` if the server does not have it.
        let mut listings: Vec<Option<Listing>> = Vec::new();
        while let Some(found) = found.recv().await {
            let work = match found {
                Found::Enter { to } => {
                    let there = match listings.last() {
                        None => present,
                        Some(None) => false,
                        Some(Some(listing)) => {
                            let name = to.name().map_or("", EntryName::as_str);
                            listing.get(name).is_some_and(|p| p.directory)
                        }
                    };
                    listings.push(if there { self.listing(&to).await } else { None });
                    continue;
                }
                Found::Leave { to, empty } => {
                    let known = listings.pop().flatten().is_some();
                    if !empty || known {
                        continue;
                    }
                    Work::Directory(to)
                }
                Found::File { local, to, name, size } => {
                    self.link.tracker.expect(1, size);
                    let there = listings.last().and_then(Option::as_ref);
                    let there = there.and_then(|l| l.get(to.name().map_or("", EntryName::as_str)));
                    let same_size = there.filter(|p| !p.directory && p.size == size && !options.even_unchanged);
                    let present = same_size.and_then(|p| p.digest);
                    Work::File(Job { local, follow: false, to, name, size, expect, present })
                }
                Found::Skipped { name, why } => {
                    self.link.tracker.event(Event::Skipped { path: &name, why });
                    self.summary.lock().skip(name, why);
                    continue;
                }
                Found::Failed { name, error } => {
                    self.fail(name, error);
                    continue;
                }
            };
            if jobs.send(work).await.is_err() {
                return;
            }
        }
    }

    /// What the server has in this directory. If that cannot be told, everything is put.
    async fn listing(&self, path: &EntryPath) -> Option<Listing> {
        let mut listing = Listing::new();
        let mut token = String::new();
        loop {
            let (entries, next) = match self.link.list(path, token).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::debug!(reason = error.reason(), "a directory could not be compared");
                    return None;
                }
            };
            for entry in entries {
                let digest = entry.manifest_digest.as_ref().try_into().ok();
                let directory = entry.kind == v1::EntryKind::Directory as i32;
                listing.insert(entry.display_name, Present { directory, size: entry.size_bytes, digest });
            }
            if next.is_empty() || listing.len() >= MAX_LISTED {
                return Some(listing);
            }
            token = next;
        }
    }

    async fn run(&self, mut queue: mpsc::Receiver<Work>) {
        let mut small: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        let mut large: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        let mut directories: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        let (mut batch, mut batch_bytes) = (Vec::new(), 0);
        let mut open = true;
        loop {
            if self.stopped() {
                // What is under way ends by itself; nothing new begins.
                queue.close();
                while queue.try_recv().is_ok() {}
                batch.clear();
            }
            let room = small.len() < BATCHES && large.len() < LARGE_FILES && directories.len() < DIRECTORIES;
            tokio::select! {
                Some(()) = small.next(), if !small.is_empty() => {}
                Some(()) = large.next(), if !large.is_empty() => {}
                Some(()) = directories.next(), if !directories.is_empty() => {}
                work = queue.recv(), if open && room => match work {
                    Some(Work::Directory(path)) => directories.push(Box::pin(self.directory(path))),
                    Some(Work::File(job)) if job.size > SMALL_FILE => large.push(Box::pin(self.large(job))),
                    Some(Work::File(job)) => {
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
            if !open && small.is_empty() && large.is_empty() && directories.is_empty() {
                return;
            }
        }
    }

    async fn small(&self, jobs: Vec<Job>) {
        let outcomes = match put_batch(self.link, &jobs, SMALL_FILE).await {
            Ok(outcomes) => outcomes,
            Err(error) => return self.broken(&jobs, error),
        };
        for (job, outcome) in jobs.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Large => self.large(job).await,
                other => self.tell(&job, other),
            }
        }
    }

    async fn large(&self, job: Job) {
        let options = PutOptions {
            expect: job.expect,
            make_parents: true,
            skip_unchanged: job.present.is_some(),
            retry: self.link.retry,
            ..PutOptions::default()
        };
        match put_tracked(self.link, &job.local, job.follow, &job.to, &options, job.size).await {
            // Content that was the same has been counted chunk by chunk already.
            Ok((_, true)) => self.tell_counted(&job, Outcome::Unchanged),
            Ok((entry, false)) => self.tell_counted(&job, Outcome::Put { bytes: entry.size_bytes }),
            Err(error) if stops(&error) => self.broken(&[job], error),
            Err(error) => self.tell(&job, Outcome::Failed(error)),
        }
    }

    async fn directory(&self, path: EntryPath) {
        match self.link.make_directory(&path).await {
            Ok(()) => self.summary.lock().directories += 1,
            Err(error) => {
                let name = path.relative();
                if stops(&error) {
                    self.stop(&error);
                }
                self.fail(name, error);
            }
        }
    }

    fn tell(&self, job: &Job, outcome: Outcome) {
        self.link.tracker.done(job.size, 0);
        self.tell_counted(job, outcome);
    }

    fn tell_counted(&self, job: &Job, outcome: Outcome) {
        let path = job.name.as_str();
        match outcome {
            Outcome::Put { bytes } => {
                let mut summary = self.summary.lock();
                summary.files += 1;
                summary.bytes += bytes;
                drop(summary);
                self.link.tracker.event(Event::Finished { path });
            }
            Outcome::Unchanged => {
                self.summary.lock().unchanged += 1;
                self.link.tracker.event(Event::Unchanged { path });
            }
            Outcome::Failed(error) => self.fail(job.name.clone(), error),
            Outcome::Large => {}
        }
        self.link.tracker.file_done();
    }

    /// Something that concerns every file: those of this batch fail, and nothing more is begun if it makes no sense.
    fn broken(&self, jobs: &[Job], error: Error) {
        if stops(&error) {
            self.stop(&error);
        }
        for job in jobs {
            self.fail(job.name.clone(), copy_of(&error));
            self.link.tracker.file_done();
        }
    }

    fn stop(&self, error: &Error) {
        self.summary.lock().stopped.get_or_insert_with(|| copy_of(error));
    }
}

/// True for errors after which the next file cannot do better.
pub(super) fn stops(error: &Error) -> bool {
    error.is_transient() || error.kind() == Kind::Unauthenticated
}

/// The same words again.
pub(super) fn copy_of(error: &Error) -> Error {
    let mut copy = Error::remote(
        error.kind(),
        error.reason().to_owned(),
        error.message().to_owned(),
        error.why().to_owned(),
        error.fix().to_owned(),
    );
    for (key, value) in error.metadata() {
        copy = copy.with(key, value);
    }
    match error.request_id() {
        Some(id) => copy.under_request(id),
        None => copy,
    }
}
