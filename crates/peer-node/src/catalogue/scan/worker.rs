//! One thread of a scan.

use common::error::Result;
use common::model::path::{MAX_DEPTH, MAX_PATH_BYTES};
use common::model::{EntryName, fold};
use parking_lot::Mutex;
use rustix::fs::FileType;
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

use super::pool::Pool;
use super::{Counters, ScanOptions, Target, directory_of, is_settled, read};
use crate::catalogue::beneath::{Look, Root, file_in, look_again, look_at, names};
use crate::catalogue::entry::{EntryKind, Stored, join, split};
use crate::catalogue::folder::Folder;
use crate::catalogue::index::Change;
use crate::catalogue::problem::Problem;
use crate::catalogue::rules::Rules;

/// Files of one directory that are hashed as one piece of work.
const FILES: usize = 64;
/// Known entries read at a time.
const KNOWN: usize = 1_000;

/// A piece of work.
pub(super) enum Work {
    /// Find out what is at a path.
    Target(Target),
    /// List a directory and compare it with the index.
    Directory(String),
    /// Read files of one directory.
    Files(String, Vec<(String, Option<Stored>)>),
    /// A directory is gone: so is everything below it.
    Gone(String),
}

pub(super) struct Worker<'a> {
    pub folder: &'a Folder,
    pub root: &'a Root,
    pub rules: &'a Rules,
    pub options: &'a ScanOptions,
    pub pool: &'a Pool,
    pub found: SyncSender<Change>,
    /// Files that were not left alone.
    pub late: &'a Mutex<Vec<String>>,
    /// Files that are left to a later look.
    pub resting: &'a Mutex<Vec<String>>,
    pub counters: &'a Counters,
    pub last: bool,
    pub buffer: Vec<u8>,
}

/// Known entries of a directory in order of names, a page at a time.
struct Known<'a> {
    worker: &'a Folder,
    directory: &'a str,
    page: VecDeque<Stored>,
    after: String,
    end: bool,
}

impl Known<'_> {
    fn peek(&mut self) -> Result<Option<&Stored>> {
        if self.page.is_empty() && !self.end {
            let page = self.worker.index.directory(self.directory, &self.after, KNOWN)?;
            self.end = page.len() < KNOWN;
            if let Some(last) = page.last() {
                self.after = last.entry.name().to_owned();
            }
            self.page = page.into();
        }
        Ok(self.page.front())
    }

    fn next(&mut self) -> Result<Option<Stored>> {
        self.peek()?;
        Ok(self.page.pop_front())
    }
}

impl Worker<'_> {
    pub fn run(mut self) {
        while let Some(work) = self.pool.next() {
            let done = self.work(work);
            self.pool.done();
            if let Err(error) = done {
                self.pool.fail(error);
                return;
            }
        }
    }

    fn work(&mut self, work: Work) -> Result<()> {
        match work {
            Work::Target(target) => self.target(&target),
            Work::Directory(path) => self.directory(&path),
            Work::Files(directory, files) => self.files(&directory, files),
            Work::Gone(path) => self.gone(&path),
        }
    }

    fn problem(&self, path: &str, problem: Problem) {
        self.folder.problems.lock().add(path, problem);
    }

    fn report(&self, change: Change) {
        // If nobody takes it any more, the scan has failed and is being ended.
        if self.found.send(change).is_err() {
            self.pool.stop();
        }
    }

    fn seen(&self) {
        self.counters.seen.fetch_add(1, Ordering::Relaxed);
        self.folder.progress.seen.fetch_add(1, Ordering::Relaxed);
    }

    fn target(&mut self, target: &Target) -> Result<()> {
        let path = target.path.as_str();
        if path.is_empty() {
            if target.below {
                self.pool.push(Work::Directory(String::new()));
            }
            return Ok(());
        }
        if crate::catalogue::entry::check_path(path).is_err() {
            return Ok(());
        }
        let there = self.root.stat(path);
        match (target.below, &there) {
            (false, Ok(_)) => self.folder.problems.lock().clear_own(path),
            (below, _) => self.folder.problems.lock().clear(path, below),
        }
        let known = self.folder.index.stored(path)?;
        let ignored_above = !directory_of(path).is_empty() && self.rules.ignores_any(directory_of(path), true);
        match there {
            Ok(look) if !ignored_above => {
                let is_new = !known.as_ref().is_some_and(|k| k.entry.is_directory());
                let job = self.one(path, &look, known, target.below || is_new)?;
                job.map_or(Ok(()), |job| self.files(directory_of(path), vec![job]))
            }
            // A parent that became a link, or is mounted over, says nothing about its entries.
            Err(Errno::LOOP | Errno::XDEV | Errno::ACCESS | Errno::IO) => Ok(()),
            _ => {
                self.missing(known);
                Ok(())
            }
        }
    }

    /// What is at a path, its parents being as they should. Gives back a file that must be read.
    fn one(
        &mut self,
        path: &str,
        look: &Look,
        known: Option<Stored>,
        below: bool,
    ) -> Result<Option<(String, Option<Stored>)>> {
        self.seen();
        let is_directory = look.kind == FileType::Directory;
        if self.rules.ignores(path, is_directory) {
            self.missing(known);
            return Ok(None);
        }
        let was_directory = known.as_ref().is_some_and(|k| k.entry.is_directory());
        match look.kind {
            FileType::Directory => {
                self.subdirectory(path, look, known, below);
                Ok(None)
            }
            FileType::RegularFile => {
                if was_directory {
                    self.pool.push(Work::Gone(path.to_owned()));
                }
                let same = known.as_ref().is_some_and(|k| k.entry.is_file() && k.file == Some(look.stat));
                if same && !self.options.verify {
                    return Ok(None);
                }
                Ok(Some((split(path).1.to_owned(), known)))
            }
            FileType::Symlink => {
                self.problem(path, Problem::Link);
                self.missing(known);
                Ok(None)
            }
            _ => {
                self.problem(path, Problem::Special);
                self.missing(known);
                Ok(None)
            }
        }
    }

    fn subdirectory(&self, path: &str, look: &Look, known: Option<Stored>, below: bool) {
        if look.device != self.folder.device(self.root) {
            // What is known of it stays: it is not deleted, it is covered.
            self.problem(path, Problem::OtherFileSystem);
            return;
        }
        let same = known.as_ref().is_some_and(|k| k.entry.is_directory() && k.entry.mode == look.mode);
        if !same {
            let expected = known.as_ref().map_or(0, |k| k.entry.sequence);
            self.report(Change::Put {
                path: path.to_owned(),
                kind: EntryKind::Directory,
                file: look.stat,
                mode: look.mode,
                chunks: [].into(),
                expected,
            });
        }
        if below {
            self.pool.push(Work::Directory(path.to_owned()));
        }
    }

    /// An entry whose file is not there, or not to be shared.
    fn missing(&self, known: Option<Stored>) {
        let Some(entry) = known.map(|k| k.entry).filter(|e| !e.deleted) else { return };
        self.report(Change::Remove { path: entry.path.clone(), expected: entry.sequence });
        if entry.is_directory() {
            self.pool.push(Work::Gone(entry.path));
        }
    }

    fn gone(&self, path: &str) -> Result<()> {
        let mut known =
            Known { worker: self.folder, directory: path, page: VecDeque::new(), after: String::new(), end: false };
        while let Some(stored) = known.next()? {
            if self.pool.is_stopped() {
                break;
            }
            self.missing(Some(stored));
        }
        Ok(())
    }

    /// The names of a directory that can be shared, in order.
    fn valid_names(&self, path: &str, fd: &OwnedFd) -> Result<Vec<String>, Errno> {
        let too_deep = path.split('/').count() >= MAX_DEPTH;
        let mut valid = Vec::new();
        for found in names(fd)? {
            let lossy = found.name.to_string_lossy().into_owned();
            let whole = join(path, &lossy);
            match found.name.into_string().map(EntryName::new) {
                Err(_) => self.problem(&whole, Problem::Name("it is not UTF-8".into())),
                Ok(Err(error)) => self.problem(&whole, Problem::Name(error.why().to_owned())),
                Ok(Ok(_)) if too_deep || whole.len() > MAX_PATH_BYTES => self.problem(&whole, Problem::TooLong),
                Ok(Ok(name)) => valid.push(name.as_str().to_owned()),
            }
        }
        valid.sort_unstable();
        self.clashes(path, &valid);
        Ok(valid)
    }

    /// Tells of names that other systems cannot tell apart.
    fn clashes(&self, path: &str, names: &[String]) {
        // Names that are what they fold to are all different.
        if names.iter().all(|n| n.is_ascii() && !n.bytes().any(|b| b.is_ascii_uppercase())) {
            return;
        }
        let mut folded: HashMap<String, &str> = HashMap::with_capacity(names.len());
        for name in names {
            if let Some(other) = folded.insert(fold(name), name) {
                self.problem(&join(path, name), Problem::CaseClash(other.to_owned()));
            }
        }
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        let unreadable = |errno: Errno| match errno {
            // Gone or replaced since it was listed: its parent is looked at again because of that.
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {}
            Errno::XDEV => self.problem(path, Problem::OtherFileSystem),
            other => self.problem(path, Problem::Unreadable(io::Error::from(other).to_string())),
        };
        let fd = match self.root.directory(path) {
            Ok(fd) => fd,
            Err(errno) => {
                unreadable(errno);
                return Ok(());
            }
        };
        self.folder.problems.lock().clear_entries(path);
        let names = match self.valid_names(path, &fd) {
            Ok(names) => names,
            Err(errno) => {
                unreadable(errno);
                return Ok(());
            }
        };
        let folder = self.folder;
        let mut known =
            Known { worker: folder, directory: path, page: VecDeque::new(), after: String::new(), end: false };
        let mut batch = Vec::new();
        for name in names {
            if self.pool.is_stopped() {
                return Ok(());
            }
            while known.peek()?.is_some_and(|k| *k.entry.name() < *name) {
                let stored = known.next()?;
                self.missing(stored);
            }
            let stored = match known.peek()? {
                Some(k) if k.entry.name() == name => known.next()?,
                _ => None,
            };
            let whole = join(path, &name);
            match look_at(&fd, name.as_str()) {
                Ok(look) => batch.extend(self.one(&whole, &look, stored, true)?),
                Err(Errno::NOENT) => self.missing(stored),
                Err(errno) => self.problem(&whole, Problem::Unreadable(io::Error::from(errno).to_string())),
            }
            if batch.len() == FILES {
                self.batch(path, std::mem::take(&mut batch))?;
            }
        }
        while let Some(stored) = known.next()? {
            self.missing(Some(stored));
        }
        self.batch(path, batch)
    }

    fn batch(&mut self, path: &str, files: Vec<(String, Option<Stored>)>) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        match self.pool.offer(Work::Files(path.to_owned(), files)) {
            Some(Work::Files(path, files)) => self.files(&path, files),
            _ => Ok(()),
        }
    }

    fn files(&mut self, directory: &str, files: Vec<(String, Option<Stored>)>) -> Result<()> {
        let fd = match self.root.directory(directory) {
            Ok(fd) => fd,
            // As in `directory`.
            Err(_) => return Ok(()),
        };
        for (name, known) in files {
            if self.pool.is_stopped() {
                break;
            }
            self.file(&fd, &join(directory, &name), &name, known);
        }
        Ok(())
    }

    /// Comes back to a file later in this scan, or leaves it to the next one.
    fn later(&self, path: &str) {
        if self.last {
            self.problem(path, Problem::Changing);
        }
        self.late.lock().push(path.to_owned());
    }

    fn paced(&self, path: &str, begin: u64, torn: bool) {
        let now = self.folder.now_ms();
        self.folder.pace.lock().read(path, now, now.saturating_sub(begin), torn);
    }

    /// A file has changed while it was read.
    fn torn(&self, path: &str, begin: u64) {
        self.paced(path, begin, true);
        self.later(path);
    }

    fn file(&mut self, directory: &OwnedFd, path: &str, name: &str, known: Option<Stored>) {
        let begin = self.folder.now_ms();
        if self.folder.index.is_held(path) || (self.options.paced && !self.folder.pace.lock().allows(path, begin)) {
            return self.resting.lock().push(path.to_owned());
        }
        let (file, before) = match file_in(directory.as_fd(), name) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::LOOP | Errno::INVAL) => return self.later(path),
            Err(Errno::XDEV) => return self.problem(path, Problem::OtherFileSystem),
            Err(errno) => return self.problem(path, Problem::Unreadable(io::Error::from(errno).to_string())),
        };
        if !is_settled(&before.stat) {
            return self.later(path);
        }
        let hook = self.options.hook.clone().map(|hook| {
            let path = path.to_owned();
            move || hook(&path, 0)
        });
        let again = file.try_clone();
        let pool = self.pool;
        let chunks = match read::chunks(file, before.stat.size, &mut self.buffer, hook, &|| pool.is_stopped()) {
            Ok(chunks) => chunks,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::UnexpectedEof => self.torn(path, begin),
                    io::ErrorKind::FileTooLarge => self.problem(path, Problem::TooLarge),
                    io::ErrorKind::Interrupted => {}
                    _ => self.problem(path, Problem::Unreadable(error.to_string())),
                };
            }
        };
        self.counters.hashed_files.fetch_add(1, Ordering::Relaxed);
        self.counters.hashed_bytes.fetch_add(before.stat.size, Ordering::Relaxed);
        self.folder.progress.hashed_files.fetch_add(1, Ordering::Relaxed);
        self.folder.progress.hashed_bytes.fetch_add(before.stat.size, Ordering::Relaxed);
        let after = again.ok().and_then(|f| look_again(&f).ok());
        let there = look_at(directory, name).ok();
        let same = |look: Option<Look>| look.is_some_and(|l| l.stat == before.stat && l.mode == before.mode);
        if !same(after) || !same(there) {
            return self.torn(path, begin);
        }
        self.paced(path, begin, false);
        self.publish(path, &before, chunks, known);
    }

    fn publish(&self, path: &str, look: &Look, chunks: Vec<common::model::ChunkRef>, known: Option<Stored>) {
        let expected = known.as_ref().map_or(0, |k| k.entry.sequence);
        if let Some(known) = known.filter(|k| k.entry.is_file()) {
            let same_content = known.entry.digest == common::model::manifest_digest(&chunks);
            let same_file = known.file == Some(look.stat);
            if same_file && !same_content {
                return self.problem(path, Problem::SilentChange);
            }
            if same_file {
                return;
            }
            if same_content && known.entry.modify_time_ns == look.stat.mtime_ns && known.entry.mode == look.mode {
                return self.report(Change::Seen { path: path.to_owned(), file: look.stat, expected });
            }
        }
        let (path, file, mode) = (path.to_owned(), look.stat, look.mode);
        self.report(Change::Put { path, kind: EntryKind::File, file, mode, chunks: chunks.into(), expected });
    }
}
