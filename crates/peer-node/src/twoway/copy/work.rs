//! Doing what is wanted: fetching contents, and changing the folder.

use common::error::{Error, Result};
use common::model::DeviceId;
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinSet;

use super::{Copy, blocking, problem};
use crate::catalogue::entry::{Entry, FileStamp, Stored};
use crate::catalogue::problem::printable;
use crate::catalogue::rules::Rules;
use crate::catalogue::{Adoption, Hold, short_id};
use crate::model::{Content, Scope};
use crate::transfer::{Order, OrderFile};
use crate::twoway::decide::{Action, Policy, Save, decide, stubborn};
use crate::twoway::place::{Leftover, Place, STAGE, Trouble};
use crate::twoway::want::{Class, Want};

/// Wants looked at together.
const PAGE: usize = 500;
/// Versions put in place together.
const TOGETHER: usize = 256;
/// What is fetched together.
const FILES_MAX: usize = 1_000;
const BYTES_MAX: u64 = 256 << 20;
const CHUNKS_MAX: usize = 300_000;
/// A file of this size is fetched by itself, beside the others.
const LARGE: u64 = 64 << 20;
/// Large files fetched at a time.
const LARGE_MAX: usize = 2;
/// Sources named in an order; others are found from there.
const SOURCES_MAX: usize = 64;
/// How long nothing may move before an order is given up and planned anew.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so many attempts it is looked whether the name clashes with another.
const SUSPICIOUS: u32 = 4;

/// A version to take, with all wants that are about it.
pub(super) struct Item {
    entry: Entry,
    devices: Vec<DeviceId>,
    wants: Vec<Want>,
    /// Where its content is, below the folder.
    staged: Option<(String, Content)>,
}

/// What came of an item.
enum Done {
    /// Nothing is left to do.
    Finished,
    /// The index is to say so.
    Note(Box<Noted>),
    /// Not now; have this path looked at first.
    Later(Option<String>),
    /// Not until someone does something about it.
    Problem(proto::peer::v1::NodeProblem),
}

struct Noted {
    entry: Entry,
    content: Option<Content>,
    file: Option<FileStamp>,
    expected: u64,
    /// Another path that is to be looked at: a conflict copy.
    look: Option<String>,
}

/// Wants by what has to be done.
#[derive(Default)]
struct Plan {
    obsolete: Vec<Want>,
    direct: Vec<Item>,
    fetch: Vec<Item>,
    last: Vec<u8>,
    more: bool,
    deletions: bool,
}

impl Copy {
    /// Goes through what is wanted once.
    pub(super) async fn work(self: &Arc<Self>, large: &mut JoinSet<()>) -> Result<()> {
        let (mut after, mut fetch): (Vec<u8>, Vec<Item>) = Default::default();
        let mut bytes = 0;
        loop {
            let (this, from) = (self.clone(), after.clone());
            let plan = blocking(move || this.plan(&from)).await?;
            if self.ended.is_cancelled() {
                return Ok(());
            }
            // Nothing is deleted before what may be made of it is there.
            if plan.deletions && !fetch.is_empty() {
                self.deliver(std::mem::take(&mut fetch)).await?;
                bytes = 0;
            }
            let this = self.clone();
            blocking(move || {
                this.wants.done(plan.obsolete)?;
                this.perform(plan.direct)
            })
            .await?;
            for item in plan.fetch {
                if item.entry.size_bytes >= LARGE {
                    self.deliver_beside(item, large);
                    continue;
                }
                bytes += item.entry.size_bytes;
                fetch.push(item);
                if fetch.len() >= FILES_MAX || bytes >= BYTES_MAX {
                    self.deliver(std::mem::take(&mut fetch)).await?;
                    bytes = 0;
                }
            }
            after = plan.last;
            if !plan.more {
                break;
            }
        }
        self.deliver(fetch).await?;
        let this = self.clone();
        let missing = blocking(move || this.wants.count_files()).await?;
        self.missing.store(missing, Ordering::Relaxed);
        Ok(())
    }

    fn deliver_beside(self: &Arc<Self>, item: Item, large: &mut JoinSet<()>) {
        if large.len() >= LARGE_MAX {
            return;
        }
        self.busy.lock().insert(item.entry.path.clone());
        let this = self.clone();
        large.spawn(async move {
            let path = item.entry.path.clone();
            let done = this.deliver(vec![item]).await;
            this.busy.lock().remove(&path);
            if let Err(error) = done {
                tracing::debug!(share = %this.share, ?error, "a large file could not be fetched");
            }
        });
    }

    /// Sorts a page of wants.
    fn plan(&self, after: &[u8]) -> Result<Plan> {
        let page = self.wants.page(after, PAGE)?;
        let mut plan = Plan { more: page.len() == PAGE, ..Plan::default() };
        let Some(policy) = self.policy() else { return Ok(Plan { more: false, ..plan }) };
        let Some(last) = page.last() else { return Ok(plan) };
        plan.last = last.key.clone();
        let root = self.inner.catalogue.open_folder(&self.share)?;
        let place = Place::new(&root, 0);
        let (rules, me) = (self.rules()?, short_id(&self.inner.me));
        let mut trusted: HashMap<DeviceId, bool> = HashMap::new();
        let mut taken: HashMap<String, (bool, usize)> = HashMap::new();
        for want in page {
            if !*trusted.entry(want.device).or_insert_with(|| self.trusts(&want.device)) {
                plan.obsolete.push(want);
                continue;
            }
            plan.deletions |= Class::of(&want.entry) == Class::Deletion;
            if self.is_waiting(&want.entry.path) {
                continue;
            }
            if let Some(&(fetch, at)) = taken.get(&want.entry.path) {
                let item = if fetch { &mut plan.fetch[at] } else { &mut plan.direct[at] };
                if item.entry.version == want.entry.version && item.entry.digest == want.entry.digest {
                    item.devices.push(want.device);
                    item.wants.push(want);
                } else {
                    // After the first one it may look different.
                    self.wake();
                }
                continue;
            }
            let stored = self.index.stored(&want.entry.path)?;
            let state = place.state(&want.entry.path, stored.as_ref(), &rules);
            let action = decide(me, policy, stored.as_ref().map(|s| &s.entry), &want.entry, state);
            if action == Action::Nothing {
                plan.obsolete.push(want);
                continue;
            }
            let fetch = action.needs_content();
            let to = if fetch { &mut plan.fetch } else { &mut plan.direct };
            taken.insert(want.entry.path.clone(), (fetch, to.len()));
            let (entry, devices) = (want.entry.clone(), vec![want.device]);
            to.push(Item { entry, devices, wants: vec![want], staged: None });
        }
        Ok(plan)
    }

    /// Fetches contents and puts them in place.
    async fn deliver(self: &Arc<Self>, mut items: Vec<Item>) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        let batch = format!("{}", self.batches.fetch_add(1, Ordering::Relaxed));
        let directory = format!("{STAGE}/{batch}");
        let mut files = Vec::new();
        let mut sources: HashSet<DeviceId> = HashSet::new();
        let mut chunks = 0;
        for (at, item) in items.iter_mut().enumerate() {
            let Some(content) = self.content(item).await else {
                self.try_later(&item.entry.path);
                continue;
            };
            chunks += content.chunks.len();
            if chunks > CHUNKS_MAX && !files.is_empty() {
                break;
            }
            sources.extend(&item.devices);
            files.push(OrderFile {
                path: at.to_string(),
                mtime_ns: item.entry.modify_time_ns,
                mode: item.entry.mode,
                content: content.clone(),
            });
            item.staged = Some((format!("{directory}/{at}"), content));
        }
        if files.is_empty() {
            return Ok(());
        }
        sources.extend(self.inner.news.of(&self.share).into_iter().map(|(device, _)| device));
        let order = Order {
            scope: Scope::Share(self.share),
            title: self.inner.catalogue.record(&self.share)?.name().to_owned(),
            destination: self.path.join(&directory),
            files,
            directories: Vec::new(),
            sources: sources.into_iter().take(SOURCES_MAX).collect(),
            overwrite: true,
        };
        if let Err(error) = self.inner.fetcher.fetch(order, PATIENCE).await {
            tracing::debug!(share = %self.share, ?error, "not all of an order was fetched");
        }
        let this = self.clone();
        blocking(move || {
            let done = this.perform(items.into_iter().filter(|i| i.staged.is_some()).collect());
            if let Ok(root) = this.inner.catalogue.open_folder(&this.share) {
                Place::new(&root, 0).drop_stage(&batch);
            }
            done
        })
        .await
    }

    /// The chunks of an item, from the first device that tells them.
    async fn content(&self, item: &Item) -> Option<Content> {
        for device in &item.devices {
            match self.inner.catalogue.content_of(*device, self.share, &item.entry).await {
                Ok(content) => return Some(content),
                Err(error) => tracing::debug!(%device, ?error, "a content could not be read"),
            }
        }
        None
    }

    /// Takes versions: changes the folder, then the index. Blocks.
    fn perform(&self, items: Vec<Item>) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        let root = self.inner.catalogue.open_folder(&self.share)?;
        let rules = self.rules()?;
        let mut place = Place::new(&root, self.inner.clock.now_ms());
        let mut rest = items.into_iter();
        loop {
            let together: Vec<Item> = rest.by_ref().take(TOGETHER).collect();
            if together.is_empty() {
                return Ok(());
            }
            self.perform_together(&mut place, &rules, together)?;
        }
    }

    fn perform_together(&self, place: &mut Place<'_>, rules: &Rules, items: Vec<Item>) -> Result<()> {
        let Some(policy) = self.policy() else { return Ok(()) };
        let mut noted: Vec<(Hold, Noted, Vec<Want>)> = Vec::new();
        let mut finished: Vec<Want> = Vec::new();
        for item in items {
            let path = item.entry.path.clone();
            let Some(hold) = self.index.hold(&path) else {
                self.try_later(&path);
                continue;
            };
            if !item.devices.iter().any(|d| self.trusts(d)) {
                finished.extend(item.wants);
                continue;
            }
            match self.act(place, rules, policy, &item)? {
                Done::Finished => finished.extend(item.wants),
                Done::Note(note) => noted.push((hold, *note, item.wants)),
                Done::Later(look) => self.put_off(place, &path, look),
                Done::Problem(problem) => {
                    self.try_later(&path);
                    self.tell(&path, problem);
                }
            }
        }
        place.sync().map_err(std::io::Error::from)?;
        finished.extend(self.note(noted)?);
        self.wants.done(finished)
    }

    /// Notes what is in the folder now. Gives back the wants that are done.
    fn note(&self, noted: Vec<(Hold, Noted, Vec<Want>)>) -> Result<Vec<Want>> {
        if noted.is_empty() {
            return Ok(Vec::new());
        }
        let batch = noted.iter().map(|(hold, note, _)| Adoption {
            hold,
            entry: note.entry.clone(),
            chunks: note.content.as_ref().map_or_else(|| [].into(), |c| c.chunks.clone()),
            file: note.file,
            expected: note.expected,
        });
        let sequences = self.index.adopt(batch.collect())?;
        let mut finished = Vec::new();
        for ((hold, note, wants), sequence) in noted.into_iter().zip(sequences) {
            let path = note.entry.path;
            drop(hold);
            if let Some(look) = note.look {
                self.inner.catalogue.look_soon(&self.share, &look, false);
            }
            if sequence.is_some() {
                self.untell(&path);
                self.later.lock().remove(&path);
                finished.extend(wants);
            } else {
                self.inner.catalogue.look_soon(&self.share, &path, false);
                self.try_later(&path);
            }
        }
        Ok(finished)
    }

    fn put_off(&self, place: &Place<'_>, path: &str, look: Option<String>) {
        let tries = self.try_later(path);
        let Some(look) = look else { return };
        self.inner.catalogue.look_soon(&self.share, &look, true);
        if tries >= SUSPICIOUS
            && let Some(other) = place.clash(path)
        {
            let why = format!("this system cannot tell it from {:?}", printable(&other));
            self.tell(path, problem("NAME_CLASH", printable(path), &why, "rename one of them at another copy"));
        }
    }

    fn machine(&self, short: u64) -> String {
        let catalogue = &self.inner.catalogue;
        let device = self.inner.roster.nodes().into_iter().find(|n| short_id(&n.device) == short);
        device.map_or_else(
            || format!("{:08x}", short >> 32),
            |n| catalogue.node_name(&n.device).rsplit('/').next().unwrap_or_default().to_owned(),
        )
    }

    /// Changes the folder for one version. The path is held.
    fn act(&self, place: &mut Place<'_>, rules: &Rules, policy: Policy, item: &Item) -> Result<Done> {
        let path = item.entry.path.as_str();
        let stored = self.index.stored(path)?;
        let state = place.state(path, stored.as_ref(), rules);
        let me = short_id(&self.inner.me);
        let action = decide(me, policy, stored.as_ref().map(|s| &s.entry), &item.entry, state);
        let alive = stored.as_ref().filter(|s| !s.entry.deleted);
        let expected = stored.as_ref().map_or(0, |s| s.entry.sequence);
        let note = |entry: Box<Entry>, content, file, look| {
            Ok(Done::Note(Box::new(Noted { entry: *entry, content, file, expected, look })))
        };
        match action {
            Action::Nothing => Ok(Done::Finished),
            Action::Wait => Ok(Done::Later(Some(path.to_owned()))),
            Action::Blocked(why) => {
                self.try_later(path);
                self.blocked(path, why);
                Ok(Done::Later(None))
            }
            Action::Note(entry) => match self.present(&entry, alive)? {
                Some((content, file)) => note(entry, content, file, None),
                None => Ok(Done::Later(Some(path.to_owned()))),
            },
            Action::Touch(entry) => {
                let Some((content, _)) = self.present(&entry, alive)? else {
                    return Ok(Done::Later(Some(path.to_owned())));
                };
                let Some(alive) = alive else { return Ok(Done::Later(None)) };
                match place.touch(alive, &entry) {
                    Ok(file) => note(entry, content, Some(file), Some(path.to_owned())),
                    Err(trouble) => self.trouble(path, trouble),
                }
            }
            Action::Install(entry, save) => {
                let Some((staged, content)) = Self::staged(place, item, &entry) else { return Ok(Done::Later(None)) };
                let machine = alive.map(|a| self.machine(a.entry.modified_by)).unwrap_or_default();
                match place.install(path, staged, alive, save, &machine) {
                    Ok((file, kept)) => note(entry, Some(content), Some(file), kept.filter(|_| save == Save::Conflict)),
                    Err(trouble) => self.trouble(path, trouble),
                }
            }
            Action::Remove(entry) => {
                let Some(alive) = alive else { return Ok(Done::Later(None)) };
                match place.remove(path, alive, Save::Trash, "") {
                    Ok(_) => note(entry, None, None, None),
                    Err(trouble) => self.trouble(path, trouble),
                }
            }
            Action::MakeDirectory(entry, save) => {
                let mut look = None;
                if let (Some(file), true) = (alive, save != Save::Nothing) {
                    let machine = self.machine(file.entry.modified_by);
                    match place.remove(path, file, save, &machine) {
                        Ok(kept) => look = kept.filter(|_| save == Save::Conflict),
                        Err(trouble) => return self.trouble(path, trouble),
                    }
                }
                match place.make_directory(path, entry.mode) {
                    Ok(file) => note(entry, None, Some(file), look),
                    Err(trouble) => self.trouble(path, trouble),
                }
            }
            Action::RemoveDirectory(entry) => match place.remove_directory(path) {
                Ok(()) => note(entry, None, None, None),
                Err(Trouble::NotEmpty) => self.not_empty(place, rules, policy, item, alive),
                Err(trouble) => self.trouble(path, trouble),
            },
            Action::ReplaceDirectory(entry) => {
                let Some((staged, content)) = Self::staged(place, item, &entry) else { return Ok(Done::Later(None)) };
                match place.remove_directory(path).and_then(|()| place.install(path, staged, None, Save::Nothing, "")) {
                    Ok((file, _)) => note(entry, Some(content), Some(file), None),
                    Err(Trouble::NotEmpty) => self.not_empty(place, rules, policy, item, alive),
                    Err(trouble) => self.trouble(path, trouble),
                }
            }
        }
    }

    /// The fetched content, if it is the one that is needed.
    fn staged<'a>(place: &Place<'_>, item: &'a Item, entry: &Entry) -> Option<(&'a str, Content)> {
        let (staged, content) = item.staged.as_ref()?;
        (content.digest == entry.digest && place.is_staged(staged, entry.size_bytes))
            .then(|| (staged.as_str(), content.clone()))
    }

    /// Content and file of what is here already and stays.
    fn present(&self, entry: &Entry, alive: Option<&Stored>) -> Result<Option<(Option<Content>, Option<FileStamp>)>> {
        if entry.deleted {
            return Ok(Some((None, None)));
        }
        let Some(alive) = alive else { return Ok(None) };
        if entry.is_directory() {
            return Ok(Some((None, Some(alive.file.unwrap_or_default()))));
        }
        let content = self.index.content(&alive.entry)?;
        Ok(content.filter(|c| c.digest == entry.digest).map(|c| (Some(c), alive.file)))
    }

    fn trouble(&self, path: &str, trouble: Trouble) -> Result<Done> {
        let (reason, fix) = match trouble {
            Trouble::Changed | Trouble::NotEmpty => return Ok(Done::Later(Some(path.to_owned()))),
            Trouble::System(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => ("DISK_FULL", "make room on the disk"),
            Trouble::System(Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ) => {
                ("NAME_INVALID", "rename it at another copy: this system cannot hold the name")
            }
            Trouble::System(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
                ("UNREADABLE", "give yourself the right to write in the folder")
            }
            Trouble::System(Errno::LOOP | Errno::XDEV) => {
                ("LINK_NOT_SHARED", "a link or another file system is on the way; move it out of the folder")
            }
            Trouble::System(_) => ("IO_FAILED", "check the disk"),
        };
        let Trouble::System(errno) = trouble else { return Err(Error::internal("trouble without a cause")) };
        let why = std::io::Error::from(errno).to_string();
        Ok(Done::Problem(problem(reason, printable(path), &why, fix)))
    }

    /// A directory that was to go and has something in it.
    fn not_empty(
        &self,
        place: &Place<'_>,
        rules: &Rules,
        policy: Policy,
        item: &Item,
        alive: Option<&Stored>,
    ) -> Result<Done> {
        let path = item.entry.path.as_str();
        let Some(alive) = alive else { return Ok(Done::Later(None)) };
        let why = match place.leftover(path, rules, &|inside| self.index.entry(inside))? {
            None => return Ok(Done::Later(Some(path.to_owned()))),
            Some(Leftover::Unknown(inside)) => return Ok(Done::Later(Some(inside))),
            Some(Leftover::Known(inside)) if self.wants.is_going(&inside)? => return Ok(Done::Later(None)),
            Some(Leftover::Known(_)) => {
                // Its deletion may come with the rest of that index.
                for device in &item.devices {
                    if !self.is_read(device)? {
                        return Ok(Done::Later(None));
                    }
                }
                "there are files in it that only this copy has"
            }
            Some(Leftover::Unshared(_)) => "there are files in it that are not shared",
        };
        match stubborn(short_id(&self.inner.me), policy, &alive.entry, &item.entry) {
            Some(entry) => {
                let (file, expected) = (Some(alive.file.unwrap_or_default()), alive.entry.sequence);
                Ok(Done::Note(Box::new(Noted { entry, content: None, file, expected, look: None })))
            }
            None => {
                let fix = "move or delete them if the directory is to go";
                Ok(Done::Problem(problem("DIRECTORY_NOT_EMPTY", printable(path), why, fix)))
            }
        }
    }
}
