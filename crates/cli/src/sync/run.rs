//! Doing what was decided: one step after the other for changes of names, many at a time for contents.
//!
//! Each step checks right before it acts that what it replaces is still what the plan was made for: on the server by
//! version and etag, here by the file's looks. A step that fails is reported and leaves the others alone. After each
//! step the memory knows what both sides agree on; it is saved now and then, and losing the last steps only means that
//! the next run finds both sides equal there.

use super::conflict::ConflictNames;
use super::local::{STAGING, changed_meanwhile, rename_new, stamp, to_trash, unchanged};
use super::plan::{Action, Before, Digest, Node, Plan, is_below, plan};
use super::scan::{self, LocalTree, RemoteTree, local_path, remote_path};
use super::state::{KeptConflict, Memory, MemoryStore, Stamp};
use crate::bytes::{self, Download, Expect, Upload};
use crate::commands::{call, places, request_id};
use crate::connect::Office;
use crate::progress::Meter;
use common::error::{Error, Reason, Result};
use common::model::EntryPath;
use common::retry::RetryPolicy;
use proto::v1;
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// The memory is saved after so many steps.
const SAVE_EVERY: usize = 500;
/// Contents are moved in groups of this many files, so that the memory is saved in between.
const GROUP: usize = 2000;
/// More deletions than this, and more than half of everything, must be confirmed.
const DELETIONS_UNASKED: usize = 20;

/// What a run works with.
pub struct Run<'a> {
    /// The server.
    pub office: &'a Office,
    /// The directory here.
    pub directory: PathBuf,
    /// The directory on the server.
    pub remote: EntryPath,
    /// Name of the run's trash, and day of its conflicts: RFC 3339.
    pub time: String,
    /// Whose conflicts.
    pub who: String,
}

/// Both trees and what to do about them.
pub struct Decided {
    local: LocalTree,
    remote: RemoteTree,
    /// What to do.
    pub plan: Plan,
}

/// How a run went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Steps that were done.
    pub done: Vec<Action>,
    /// Steps that failed, by path.
    pub failed: Vec<(String, Error)>,
    /// Conflicts that were kept.
    pub conflicts: Vec<KeptConflict>,
    /// True if a step failed because something changed meanwhile: another run will settle it.
    pub moved_on: bool,
}

impl Decided {
    /// What was here.
    pub fn local_tree(&self) -> &super::plan::Tree {
        &self.local.tree
    }

    /// What was passed over on either side.
    pub fn skipped(&self) -> Vec<String> {
        let local = self.local.skipped.iter().cloned();
        local.chain(self.remote.skipped.iter().map(|s| format!("{s} (on the server)"))).collect()
    }

    /// How many files and directories would go on one side, if that is suspiciously many: more than half of what both
    /// sides agreed on.
    pub fn mass_deletion(&self, memory: &Memory) -> Option<usize> {
        let below = |path: &String, all: usize, tree: &super::plan::Tree| {
            all + tree.keys().filter(|p| *p == path || is_below(p, path)).count()
        };
        let (mut here, mut there) = (0, 0);
        for action in &self.plan.actions {
            match action {
                Action::DeleteLocal(path) => here = below(path, here, &self.local.tree),
                Action::DeleteRemote(path) => there = below(path, there, &self.remote.tree),
                _ => {}
            }
        }
        let most = here.max(there);
        (most > DELETIONS_UNASKED && most * 2 > memory.entries.len()).then_some(most)
    }
}

/// Reads both sides and decides.
///
/// # Errors
/// If either side cannot be read.
pub async fn decide(run: &Run<'_>, memory: &Memory) -> Result<Decided> {
    let (directory, memory_copy) = (run.directory.clone(), memory.clone());
    let reading = tokio::task::spawn_blocking(move || scan::local(&directory, &memory_copy));
    let remote = scan::remote(run.office, &run.remote).await;
    let local = reading.await.map_err(|e| Error::internal("the reading thread ended").caused_by(e))??;
    let remote = remote?;
    let base = memory.base();
    let day = crate::output::format::day(&run.time);
    let taken = local.tree.keys().chain(remote.tree.keys()).chain(base.keys());
    let mut names = ConflictNames::new(&run.who, &day, taken);
    let plan = plan(&local.tree, &remote.tree, &base, &mut names);
    Ok(Decided { local, remote, plan })
}

/// Carries out a plan.
///
/// # Errors
/// Only if the memory cannot be saved; failed steps are in the outcome.
pub async fn carry_out(
    run: &Run<'_>,
    decided: &Decided,
    memory: &mut Memory,
    store: &MemoryStore,
    meter: &Meter,
) -> Result<Outcome> {
    let mut worker = Worker { run, decided, memory, outcome: Outcome::default(), lost: HashSet::new() };
    let (mut uploads, mut downloads, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for (at, action) in decided.plan.actions.iter().enumerate() {
        match action {
            Action::Upload { .. } => uploads.push(action),
            Action::Download { .. } => downloads.push(action),
            Action::DeleteLocal(_) | Action::DeleteRemote(_) if !uploads.is_empty() || !downloads.is_empty() => {
                last.push(action);
            }
            other => worker.step(other).await,
        }
        if at % SAVE_EVERY == SAVE_EVERY - 1 {
            store.save(worker.memory)?;
        }
    }
    for group in uploads.chunks(GROUP) {
        worker.upload(group, meter).await;
        store.save(worker.memory)?;
    }
    if !downloads.is_empty() {
        let staging = run.directory.join(STAGING);
        std::fs::create_dir_all(&staging).map_err(|e| super::local::failed(&staging, e))?;
    }
    for group in downloads.chunks(GROUP) {
        worker.download(group, meter).await;
        store.save(worker.memory)?;
    }
    // Goes only if it is empty; what is in it belongs to files that could not be got whole.
    let _ = std::fs::remove_dir(run.directory.join(STAGING));
    for action in last {
        worker.step(action).await;
    }
    for (path, kept_as) in &decided.plan.conflicts {
        worker.remember_conflict(path, kept_as);
    }
    store.save(worker.memory)?;
    Ok(worker.outcome)
}

struct Worker<'a> {
    run: &'a Run<'a>,
    decided: &'a Decided,
    memory: &'a mut Memory,
    outcome: Outcome,
    /// Contents that could not be put: whatever else holds them on the server must stay.
    lost: HashSet<Digest>,
}

impl Worker<'_> {
    fn local(&self, path: &str) -> PathBuf {
        local_path(&self.run.directory, path)
    }

    fn remote(&self, path: &str) -> Result<EntryPath> {
        remote_path(&self.run.remote, path)
    }

    fn fail(&mut self, path: &str, error: Error) {
        let raced = [Reason::VersionStale, Reason::EtagStale, Reason::EntryExists, Reason::EntryUnknown];
        self.outcome.moved_on |= raced.iter().any(|r| error.is(*r));
        self.outcome.failed.push((path.to_owned(), error));
    }

    async fn step(&mut self, action: &Action) {
        let (path, result) = match action {
            Action::Record(path) => (path, self.record(path)),
            Action::Forget(path) => {
                self.memory.forget(path);
                (path, Ok(()))
            }
            Action::RenameLocal { path, to } => (path, self.rename_local(path, to)),
            Action::MoveRemote { path, to } => (path, self.move_remote(path, to).await),
            Action::DeleteLocal(path) => (path, self.delete_local(path)),
            Action::DeleteRemote(path) => (path, self.delete_remote(path).await),
            Action::MakeLocal(path) => (path, self.make_local(path)),
            Action::MakeRemote(path) => (path, self.make_remote(path).await),
            // Contents go in groups.
            Action::Upload { path, .. } | Action::Download { path, .. } => (path, Ok(())),
        };
        match result {
            Ok(()) => {
                if !matches!(action, Action::Record(_) | Action::Forget(_)) {
                    self.outcome.done.push(action.clone());
                }
            }
            Err(error) => self.fail(path, error),
        }
    }

    fn record(&mut self, path: &str) -> Result<()> {
        match self.decided.local.tree.get(path) {
            Some(Node::File(digest)) => {
                self.memory.record_file(path, digest, self.decided.local.stamps.get(path).copied());
            }
            Some(Node::Directory) => self.memory.record_directory(path),
            None => {}
        }
        Ok(())
    }

    fn rename_local(&mut self, path: &str, to: &str) -> Result<()> {
        rename_new(&self.local(path), &self.local(to))?;
        self.memory.forget(path);
        Ok(())
    }

    async fn move_remote(&mut self, path: &str, to: &str) -> Result<()> {
        let request = v1::MoveEntryRequest {
            source: Some(places::wire(&self.remote(path)?)),
            destination: Some(places::wire(&self.remote(to)?)),
            overwrite: false,
            etag: self.etag(path),
            request_id: request_id(),
        };
        call(self.run.office.files().move_entry(request)).await?;
        self.memory.forget(path);
        Ok(())
    }

    /// What the plan was made for on the server.
    fn etag(&self, path: &str) -> String {
        self.decided.remote.entries.get(path).map(|e| e.etag.clone()).unwrap_or_default()
    }

    fn delete_local(&mut self, path: &str) -> Result<()> {
        let tree = self.decided.local.tree.iter();
        // Also for directories: every file in it must look as it did.
        for (p, node) in tree.filter(|(p, _)| *p == path || is_below(p, path)) {
            let file = self.local(p);
            let as_seen = match node {
                Node::File(_) => unchanged(&file, self.decided.local.stamps.get(p)),
                Node::Directory => file.is_dir(),
            };
            if !as_seen {
                return Err(changed_meanwhile(&file));
            }
        }
        to_trash(&self.run.directory, &self.run.time.replace(':', ""), path)?;
        self.memory.forget(path);
        Ok(())
    }

    async fn delete_remote(&mut self, path: &str) -> Result<()> {
        let tree = self.decided.remote.tree.iter();
        let holds_lost = tree.filter(|(p, _)| *p == path || is_below(p, path)).any(|(_, node)| match node {
            Node::File(digest) => self.lost.contains(digest),
            Node::Directory => false,
        });
        if holds_lost {
            return Err(Error::new(Reason::Cancelled, format!("{path} stays on the server for now"))
                .why_is("the same content could not be put under its new name")
                .fix_is("look at the other errors, then synchronise again"));
        }
        let request = v1::DeleteEntryRequest {
            path: Some(places::wire(&self.remote(path)?)),
            recursive: true,
            etag: self.etag(path),
            request_id: request_id(),
        };
        match call(self.run.office.files().delete_entry(request)).await {
            Err(error) if !error.is(Reason::EntryUnknown) => return Err(error),
            _ => {}
        }
        self.memory.forget(path);
        Ok(())
    }

    fn make_local(&mut self, path: &str) -> Result<()> {
        let directory = self.local(path);
        match std::fs::create_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => return Err(super::local::failed(&directory, error)),
            Ok(()) => {}
        }
        self.memory.record_directory(path);
        Ok(())
    }

    async fn make_remote(&mut self, path: &str) -> Result<()> {
        let request = v1::MakeDirectoryRequest {
            path: Some(places::wire(&self.remote(path)?)),
            parents: true,
            request_id: request_id(),
        };
        call(self.run.office.files().make_directory(request)).await?;
        self.memory.record_directory(path);
        Ok(())
    }

    /// A conflict copy was seen under its old name.
    fn seen_as<'p>(&'p self, path: &'p str) -> &'p str {
        self.decided.plan.conflicts.iter().find(|(_, to)| to == path).map_or(path, |(from, _)| from)
    }

    fn entry_for_download(&self, path: &str) -> Option<&v1::Entry> {
        self.decided.remote.entries.get(self.seen_as(path))
    }

    async fn upload(&mut self, group: &[&Action], meter: &Meter) {
        let (mut uploads, mut paths) = (Vec::new(), Vec::new());
        for action in group {
            let Action::Upload { path, before } = action else { continue };
            let target = match self.remote(path) {
                Ok(target) => target,
                Err(error) => {
                    self.fail(path, error);
                    continue;
                }
            };
            let expect = match (before, self.decided.remote.entries.get(path)) {
                (Before::AsSeen, Some(entry)) => Expect::Version(entry.version),
                _ => Expect::Absent,
            };
            let (source, retry) = (self.local(path), RetryPolicy::INTERACTIVE);
            uploads.push(Upload { source, target, expect, make_parents: false, mode: None, retry });
            paths.push((*action, path));
        }
        let results = bytes::upload(self.run.office, &uploads, meter).await;
        for ((action, path), result) in paths.into_iter().zip(results) {
            match result.and_then(|entry| digest_of(&entry)) {
                Ok(digest) => {
                    // A rename changes the ctime, so a conflict copy is looked at anew; and a file that was written to
                    // since it was looked at has other content than its stamp says.
                    let seen = self.decided.local.tree.get(path) == Some(&Node::File(digest));
                    let stamp = self.decided.local.stamps.get(path).copied().filter(|_| seen);
                    self.memory.record_file(path, &digest, stamp);
                    self.outcome.done.push(action.clone());
                }
                Err(error) => {
                    if let Some(Node::File(digest)) = self.decided.local.tree.get(self.seen_as(path)) {
                        self.lost.insert(*digest);
                    }
                    self.fail(path, error);
                }
            }
        }
    }

    async fn download(&mut self, group: &[&Action], meter: &Meter) {
        let (mut downloads, mut targets) = (Vec::new(), Vec::new());
        for action in group {
            let Action::Download { path, before } = action else { continue };
            let (source, version) = match (self.remote(path), self.entry_for_download(path)) {
                (Ok(source), Some(entry)) => (source, entry.version),
                (Err(error), _) => {
                    self.fail(path, error);
                    continue;
                }
                (Ok(_), None) => continue,
            };
            let expected = match before {
                Before::AsSeen => self.decided.local.stamps.get(path).copied(),
                Before::Absent => None,
            };
            let target = self.staged(path);
            if *before == Before::AsSeen {
                // What both versions have in common need not be fetched: the file here is the basis.
                let _ = tokio::fs::copy(self.local(path), &target).await;
            }
            downloads.push(Download { source, version, target });
            targets.push((*action, path, expected));
        }
        let results = bytes::download(self.run.office, &downloads, meter).await;
        for (((action, path, expected), download), result) in targets.into_iter().zip(&downloads).zip(results) {
            let place = self.local(path);
            let placed = result.and_then(|entry| {
                put_in_place(&download.target, &place, expected.as_ref())?;
                digest_of(&entry)
            });
            match placed {
                Ok(digest) => {
                    let stamp = place.symlink_metadata().ok().map(|m| stamp(&m));
                    self.memory.record_file(path, &digest, stamp);
                    self.outcome.done.push(action.clone());
                }
                Err(error) => self.fail(path, error),
            }
        }
    }

    /// Where a file comes together before it gets its place: always the same name for a path, so that a later run goes
    /// on with what an interrupted one has brought.
    fn staged(&self, path: &str) -> PathBuf {
        self.run.directory.join(STAGING).join(&blake3::hash(path.as_bytes()).to_hex()[..32])
    }

    fn remember_conflict(&mut self, path: &str, kept_as: &str) {
        let failed: BTreeSet<&String> = self.outcome.failed.iter().map(|(p, _)| p).collect();
        if failed.contains(&path.to_owned()) || failed.contains(&kept_as.to_owned()) {
            return;
        }
        let moved = |a: &Action| matches!(a, Action::MoveRemote { to, .. } if to == kept_as);
        let conflict = KeptConflict {
            path: path.to_owned(),
            kept_as: kept_as.to_owned(),
            time: self.run.time.clone(),
            kept_is_theirs: self.decided.plan.actions.iter().any(moved),
        };
        self.memory.keep_conflict(conflict.clone());
        self.outcome.conflicts.push(conflict);
    }
}

/// The digest of an entry's content.
fn digest_of(entry: &v1::Entry) -> Result<Digest> {
    <Digest>::try_from(entry.manifest_digest.as_ref())
        .map_err(|_| Error::new(Reason::MessageMalformed, "the server sent no digest"))
}

/// Gives a file that has come its place, if what is there is what the plan was made for.
fn put_in_place(file: &Path, target: &Path, expected: Option<&Stamp>) -> Result<()> {
    if !unchanged(target, expected) {
        // It was fetched in vain; the next run decides anew.
        let _ = std::fs::remove_file(file);
        return Err(changed_meanwhile(target));
    }
    match expected {
        Some(_) => std::fs::rename(file, target).map_err(|e| super::local::failed(target, e)),
        None => rename_new(file, target),
    }
}
