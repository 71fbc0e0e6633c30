//! `sync`.

use super::conflicts::shown as conflict;
use super::{Context, call, identity, places, request_id, watch};
use crate::args::Sync;
use crate::connect::Office;
use crate::dirs;
use crate::exit::Exit;
use crate::output::format::{count, rfc3339, safe, timestamp_ms};
use crate::output::schema::{FileFailure, SyncAction, SyncReport};
use crate::progress::Meter;
use crate::prompt;
use crate::sync::events::LocalEvents;
use crate::sync::plan::{Action, Tree};
use crate::sync::run::{Decided, Outcome, Run, carry_out, decide};
use crate::sync::state::{KeptConflict, Memory, MemoryStore, Pair};
use common::clock::{Clock, SystemClock};
use common::error::{Error, Kind, Reason, Result};
use common::model::EntryPath;
use common::retry::RetryPolicy;
use proto::v1;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// When something changes while a run is at work, it begins anew at most so often.
const ROUNDS: usize = 3;
/// Changes often come in bursts; this long they are gathered.
const GATHER: Duration = Duration::from_millis(500);
/// With --watch, time between looks through everything here, where the file system tells of changes and where not.
const LOOK_TOLD: Duration = Duration::from_secs(300);
const LOOK_UNTOLD: Duration = Duration::from_secs(5);
/// With --watch, what failed is tried again after this time even if nothing has changed.
const TRY_FAILED: Duration = Duration::from_secs(60);

pub(super) async fn sync(c: &Context, args: Sync) -> Result<Exit> {
    let directory = canonical(&args.directory)?;
    let office = c.office().await?;
    let who = identity::ask_whoami(&office).await?;
    let user = who.user.clone().unwrap_or_default();
    let remote = args.remote.path.clone();
    let pair =
        Pair { directory: directory.clone(), office: who.office, user: user.clone(), remote: remote.to_string() };
    let store = MemoryStore::open(&dirs::state()?)?;
    let _lock = store.lock(&pair)?;
    let mut job = Job {
        c,
        office: &office,
        directory,
        remote,
        user,
        pair,
        store,
        yes: args.yes.yes,
        seen: None,
        looked: tokio::time::Instant::now(),
        look_took: Duration::ZERO,
    };
    if args.dry_run {
        return job.dry_run().await;
    }
    if args.watch {
        return job.follow(args.interval).await;
    }
    let (report, exit) = job.settle().await?;
    c.out.changed(&report, summary)?;
    if !report.conflicts.is_empty() {
        c.out.hint("atrium conflicts");
    }
    Ok(exit)
}

pub(super) fn canonical(directory: &Path) -> Result<PathBuf> {
    let found = directory.canonicalize().and_then(|p| p.metadata().map(|m| (p, m)));
    match found {
        Ok((path, metadata)) if metadata.is_dir() => Ok(path),
        Ok((path, _)) => Err(Error::new(Reason::NotADirectory, format!("{} is not a directory", path.display()))
            .fix_is("name a directory; single files are put and got")),
        Err(error) => Err(Error::new(Reason::EntryUnknown, format!("{} cannot be synchronised", directory.display()))
            .why_is(error.to_string())
            .fix_is(format!("make it first: mkdir -p {}", directory.display()))),
    }
}

struct Job<'a> {
    c: &'a Context,
    office: &'a Office,
    directory: PathBuf,
    remote: EntryPath,
    user: String,
    pair: Pair,
    store: MemoryStore,
    yes: bool,
    /// What was here when it was last decided, and whether all of that could be done.
    seen: Option<Seen>,
    /// When everything here was last looked through, and how long that took.
    looked: tokio::time::Instant,
    look_took: Duration,
}

/// Waits until the file system tells of a change here, and until it has been quiet after it; for ever without events.
async fn told(events: Option<&LocalEvents>, quiet: Duration) {
    match events {
        Some(events) => {
            events.changed().await;
            events.settled(quiet).await;
        }
        None => std::future::pending().await,
    }
}

struct Seen {
    tree: Tree,
    at: Instant,
    failed: bool,
}

impl Job<'_> {
    fn run(&self) -> Run<'_> {
        let time = rfc3339(Some(&timestamp_ms(SystemClock.now_ms()))).unwrap_or_default();
        Run {
            office: self.office,
            directory: self.directory.clone(),
            remote: self.remote.clone(),
            time,
            who: self.user.clone(),
        }
    }

    /// The directory on the server; made if missing.
    async fn remote_entry(&self, make: bool) -> Result<Option<v1::Entry>> {
        match places::find(self.office, &self.remote).await? {
            Some(entry) if places::is_directory(&entry) => Ok(Some(entry)),
            Some(_) => Err(Error::new(Reason::NotADirectory, format!("{} is a file", self.remote))
                .fix_is("name a directory; single files are put and got")),
            None if !make => Ok(None),
            None => {
                let path = Some(places::wire(&self.remote));
                let request = v1::MakeDirectoryRequest { path, parents: true, request_id: request_id() };
                call(self.office.files().make_directory(request)).await.map(Some)
            }
        }
    }

    /// What both sides agreed on, if both are still the same directories.
    fn memory(&self, remote_uid: &str) -> Result<Memory> {
        let metadata = self.directory.metadata()?;
        let local_id = (metadata.dev(), metadata.ino());
        let known = self.store.load(&self.pair)?;
        let fits = |m: &Memory| m.remote_uid == remote_uid && m.local_id == local_id;
        Ok(match known {
            Some(memory) if fits(&memory) => memory,
            Some(old) => {
                self.c.out.warn("one of the two is another directory than before; both are joined, nothing is deleted");
                let mut memory = Memory::new(self.pair.clone(), remote_uid.to_owned(), local_id);
                memory.conflicts = old.conflicts;
                memory
            }
            None => Memory::new(self.pair.clone(), remote_uid.to_owned(), local_id),
        })
    }

    async fn dry_run(&self) -> Result<Exit> {
        let Some(entry) = self.remote_entry(false).await? else {
            self.c.out.note(&format!("{} would be made", self.remote));
            return Ok(Exit::Ok);
        };
        let memory = self.memory(&entry.uid)?;
        let decided = decide(&self.run(), &memory).await?;
        let mut report = self.report(&decided, true);
        report.actions = decided.plan.changes().map(shown).collect();
        let time = self.run().time;
        let moved =
            |to: &String| decided.plan.actions.iter().any(|a| matches!(a, Action::MoveRemote { to: t, .. } if t == to));
        let kept = decided.plan.conflicts.iter().map(|(path, to)| KeptConflict {
            path: path.clone(),
            kept_as: to.clone(),
            time: time.clone(),
            kept_is_theirs: moved(to),
        });
        report.conflicts = kept.map(|k| conflict(&self.pair, &k)).collect();
        self.c.out.object(&report, |r| {
            let lines: Vec<String> = r.actions.iter().map(line).collect();
            let steps = count(r.actions.len() as u64, "step", "steps");
            format!("{}\n{steps}; nothing was done", lines.join("\n")).trim_start().to_owned()
        })?;
        Ok(Exit::Ok)
    }

    fn report(&self, decided: &Decided, dry_run: bool) -> SyncReport {
        SyncReport {
            directory: self.directory.display().to_string(),
            remote: self.remote.to_string(),
            actions: Vec::new(),
            conflicts: Vec::new(),
            skipped: decided.skipped(),
            failed: Vec::new(),
            dry_run,
        }
    }

    /// Makes both sides the same; begins anew if something changes on the way.
    async fn settle(&mut self) -> Result<(SyncReport, Exit)> {
        let meter = Meter::new(&self.c.out, "sync");
        let mut all = None;
        for round in 1..=ROUNDS {
            let entry = self.remote_entry(true).await?.unwrap_or_default();
            let mut memory = self.memory(&entry.uid)?;
            let run = self.run();
            let decided = decide(&run, &memory).await?;
            if let Some(number) = decided.mass_deletion(&memory) {
                self.agree_to_deletion(number).await?;
            }
            let outcome = carry_out(&run, &decided, &mut memory, &self.store, &meter).await?;
            self.seen = Some(Seen { tree: decided.local_tree().clone(), at: Instant::now(), failed: false });
            let report = all.get_or_insert_with(|| self.report(&decided, false));
            let again = outcome.moved_on && round < ROUNDS;
            self.add(report, outcome, again);
            if !again {
                break;
            }
        }
        meter.finish();
        let report = all.ok_or_else(|| Error::internal("no round was made"))?;
        report.failed.iter().for_each(|f| self.c.out.file_failure(f));
        for skipped in &report.skipped {
            self.c.out.note(&format!("passed over {}", safe(skipped)));
        }
        if let Some(seen) = &mut self.seen {
            seen.failed = !report.failed.is_empty();
        }
        let exit = if report.failed.is_empty() { Exit::Ok } else { Exit::Partly };
        Ok((report, exit))
    }

    /// Failures that another round may settle are not reported yet.
    fn add(&self, report: &mut SyncReport, outcome: Outcome, again: bool) {
        report.actions.extend(outcome.done.iter().map(shown));
        report.conflicts.extend(outcome.conflicts.iter().map(|k| conflict(&self.pair, k)));
        if !again {
            let failed = outcome.failed.iter();
            report.failed.extend(failed.map(|(path, error)| FileFailure {
                path: path.clone(),
                error: crate::output::schema::Failure::of(error),
            }));
        }
    }

    async fn agree_to_deletion(&self, number: usize) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        let what = format!("{number} files and directories would go to the trash, more than half of all");
        if !self.c.out.interactive {
            return Err(Error::remote(
                Kind::FailedPrecondition,
                "TOO_MANY_DELETIONS".into(),
                what,
                "that many deletions at once are often a mistake, like a disk that is not mounted".into(),
                "look with --dry-run; if it is right, add --yes".into(),
            ));
        }
        let word = self.directory.file_name().map_or_else(|| "yes".to_owned(), |n| n.to_string_lossy().into_owned());
        prompt::confirm(&self.c.out, false, &what, &word).await
    }

    /// Goes on until it is stopped: whenever something changes on the server, and whenever the file system tells of a
    /// change here. Now and then it looks through everything here as well, as not all file systems tell everything.
    async fn follow(&mut self, interval: Option<Duration>) -> Result<Exit> {
        let root = self.remote.root.to_string();
        let mut follower = watch::Follower::new(vec![root], 0);
        let mut backoff = RetryPolicy::PATIENT.delays();
        let out = &self.c.out.clone();
        let trouble = |error: &Error| out.note(&format!("{error}; trying again"));
        // Before the first look, so that nothing falls between.
        let events = self.local_events().await?;
        // The first event is a mark that comes as soon as the server watches, so nothing falls between list and watch.
        follower.next(self.office, trouble).await?;
        let mut due = true;
        loop {
            if due {
                match self.settle().await {
                    Ok((report, _)) => {
                        backoff.reset();
                        if !report.actions.is_empty() || !report.failed.is_empty() {
                            self.c.out.changed(&report, summary)?;
                        }
                    }
                    Err(error) if error.kind() == Kind::Unavailable || error.kind() == Kind::DeadlineExceeded => {
                        self.c.out.note(&format!("{error}; trying again"));
                        let delay = backoff.after(&error).unwrap_or(Duration::from_secs(60));
                        tokio::time::sleep(delay).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            // A whole look takes its time in large trees; this much of the time at least goes to nothing.
            let quiet = GATHER.max(self.look_took);
            due = tokio::select! {
                event = follower.next(self.office, trouble) => match event? {
                    watch::Event::Gap(_) => true,
                    watch::Event::Changes(response) => {
                        let mine = response.changes.iter().any(|change| self.concerns(change));
                        if mine {
                            tokio::time::sleep(GATHER).await;
                        }
                        mine
                    }
                },
                () = told(events.as_ref(), quiet) => self.local_changed().await?,
                () = tokio::time::sleep_until(self.next_look(events.as_ref(), interval)) => self.local_changed().await?,
            };
        }
    }

    /// What tells of changes here; without it, everything is looked through more often.
    async fn local_events(&self) -> Result<Option<LocalEvents>> {
        let directory = self.directory.clone();
        let begun = tokio::task::spawn_blocking(move || LocalEvents::begin(&directory)).await;
        match begun.map_err(|e| Error::internal("the reading thread ended").caused_by(e))? {
            Ok(events) => Ok(Some(events)),
            Err(error) => {
                let every = crate::output::format::duration(LOOK_UNTOLD);
                self.c.out.note(&format!("{} ({}); looking every {every}", error.message(), error.why()));
                Ok(None)
            }
        }
    }

    fn next_look(&self, events: Option<&LocalEvents>, interval: Option<Duration>) -> tokio::time::Instant {
        let told = events.is_some_and(LocalEvents::is_complete);
        let mut wait = interval.unwrap_or(if told { LOOK_TOLD } else { LOOK_UNTOLD });
        if self.seen.as_ref().is_some_and(|seen| seen.failed) {
            wait = wait.min(TRY_FAILED);
        }
        self.looked + wait
    }

    /// Whether a change on the server touches the synchronised directory.
    fn concerns(&self, change: &v1::Change) -> bool {
        let here = self.remote.relative();
        let touches = |p: &v1::Path| {
            here.is_empty()
                || p.path == here
                || p.path.strip_prefix(&here).is_some_and(|r| r.starts_with('/'))
                || here.strip_prefix(&p.path).is_some_and(|r| r.starts_with('/'))
        };
        [&change.path, &change.previous_path].into_iter().flatten().any(touches)
    }

    /// Looks for changes here without asking the server. What failed is tried again now and then.
    async fn local_changed(&mut self) -> Result<bool> {
        let begin = tokio::time::Instant::now();
        let changed = self.look().await;
        self.looked = tokio::time::Instant::now();
        self.look_took = begin.elapsed();
        changed
    }

    async fn look(&self) -> Result<bool> {
        let (Some(memory), Some(seen)) = (self.store.load(&self.pair)?, &self.seen) else { return Ok(true) };
        if seen.failed && seen.at.elapsed() >= TRY_FAILED {
            return Ok(true);
        }
        let directory = self.directory.clone();
        let scan = tokio::task::spawn_blocking(move || crate::sync::scan::local(&directory, &memory));
        let found = scan.await.map_err(|e| Error::internal("the reading thread ended").caused_by(e))??;
        Ok(found.tree != seen.tree)
    }
}

fn shown(action: &Action) -> SyncAction {
    let make = |name: &str, path: &str, to: Option<&String>| SyncAction {
        action: name.to_owned(),
        path: path.to_owned(),
        new_path: to.cloned(),
    };
    match action {
        Action::Record(path) => make("record", path, None),
        Action::Forget(path) => make("forget", path, None),
        Action::RenameLocal { path, to } => make("conflict_local", path, Some(to)),
        Action::MoveRemote { path, to } => make("conflict_remote", path, Some(to)),
        Action::DeleteLocal(path) => make("delete_local", path, None),
        Action::DeleteRemote(path) => make("delete_remote", path, None),
        Action::MakeLocal(path) => make("make_local", path, None),
        Action::MakeRemote(path) => make("make_remote", path, None),
        Action::Upload { path, .. } => make("upload", path, None),
        Action::Download { path, .. } => make("download", path, None),
    }
}

fn line(action: &SyncAction) -> String {
    let to = action.new_path.as_deref().map(|t| format!(" -> {}", safe(t))).unwrap_or_default();
    format!("{:16} {}{to}", action.action, safe(&action.path))
}

fn summary(r: &SyncReport) -> String {
    let number = |names: &[&str]| r.actions.iter().filter(|a| names.contains(&a.action.as_str())).count();
    let (up, down) = (number(&["upload"]), number(&["download"]));
    let gone = number(&["delete_local", "delete_remote"]);
    let mut text = if r.actions.is_empty() && r.failed.is_empty() {
        format!("{} and {} are the same", r.directory, r.remote)
    } else {
        format!("synchronised {} and {}: {up} up, {down} down, {gone} to the trash", r.directory, r.remote)
    };
    if !r.conflicts.is_empty() {
        text.push_str(&format!(", {}", count(r.conflicts.len() as u64, "conflict kept", "conflicts kept")));
    }
    if !r.failed.is_empty() {
        text.push_str(&format!(", {} failed", r.failed.len()));
    }
    text
}
