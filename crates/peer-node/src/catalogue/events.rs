//! Changes of folders as the system tells them, gathered until they rest.

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, MetadataKind, ModifyKind};
use notify::{Config, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::entry::is_below;
use super::folder::{Folder, Request};
use super::scan::Target;

/// Paths gathered; beyond them the whole folder is looked at.
const GATHERED: usize = 10_000;

/// When to look, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// After the last event.
    pub quiet_ms: u64,
    /// After the first event, however many follow.
    pub longest_ms: u64,
    /// Between two looks at everything.
    pub rescan_ms: u64,
    /// The same after events were lost, so that a folder that is always busy is not always looked at.
    pub overflow_ms: u64,
}

/// What to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Due {
    /// Everything.
    All,
    /// These, none below another that is looked at with all below it.
    Some(Vec<Target>),
}

/// Gathers what has happened and says when to look at what. No clock: `now` is in milliseconds of any monotonic one.
#[derive(Debug)]
pub struct Gathering {
    patience: Patience,
    paths: BTreeMap<String, bool>,
    first: u64,
    last: u64,
    later: BTreeMap<String, u64>,
    all_at: u64,
    ended_at: Option<u64>,
}

impl Gathering {
    /// One that wants everything looked at at once.
    pub fn new(patience: Patience, now: u64) -> Self {
        Self {
            patience,
            paths: BTreeMap::new(),
            first: now,
            last: now,
            later: BTreeMap::new(),
            all_at: now,
            ended_at: None,
        }
    }

    /// Something has happened at a path.
    pub fn touched(&mut self, path: &str, below: bool, now: u64) {
        if self.paths.is_empty() {
            self.first = now;
        }
        self.last = now;
        if let Some(known) = self.paths.get_mut(path) {
            *known |= below;
        } else if self.paths.len() < GATHERED {
            self.paths.insert(path.to_owned(), below);
        } else {
            self.overflowed(now);
        }
    }

    /// A path is to be looked at after a while.
    pub fn later(&mut self, path: &str, at: u64) {
        if self.later.len() < GATHERED {
            self.later.insert(path.to_owned(), at);
        } else {
            self.overflowed(at);
        }
    }

    /// Events were lost.
    pub fn overflowed(&mut self, now: u64) {
        let rested = self.ended_at.map_or(now, |e| e + self.patience.overflow_ms);
        self.all_at = self.all_at.min(rested.max(now + self.patience.quiet_ms));
    }

    /// Everything is to be looked at now.
    pub fn all_now(&mut self, now: u64) {
        self.all_at = now;
    }

    /// When something is due.
    pub fn due_at(&self) -> u64 {
        let paths = (self.last + self.patience.quiet_ms).min(self.first + self.patience.longest_ms);
        let paths = if self.paths.is_empty() { u64::MAX } else { paths };
        let later = self.later.values().min().copied().unwrap_or(u64::MAX);
        self.all_at.min(paths).min(later)
    }

    /// Takes what is due.
    pub fn take(&mut self, now: u64) -> Option<Due> {
        if now < self.due_at() {
            return None;
        }
        if now >= self.all_at {
            self.paths.clear();
            self.later.clear();
            self.all_at = u64::MAX;
            return Some(Due::All);
        }
        let mut taken = BTreeMap::new();
        if now >= self.last + self.patience.quiet_ms || now >= self.first + self.patience.longest_ms {
            taken = std::mem::take(&mut self.paths);
        }
        self.later.retain(|path, at| {
            if *at <= now {
                taken.entry(path.clone()).or_insert(false);
            }
            *at > now
        });
        let mut targets: Vec<Target> = Vec::with_capacity(taken.len());
        let mut covering: Option<String> = None;
        for (path, below) in taken {
            if covering.as_ref().is_some_and(|c| is_below(&path, c)) {
                continue;
            }
            if below {
                covering = Some(path.clone());
            }
            targets.push(Target { path, below });
        }
        Some(Due::Some(targets))
    }

    /// How often everything is looked at from now on.
    pub fn rescan_every(&mut self, ms: u64) {
        self.patience.rescan_ms = ms;
    }

    /// A look at everything has ended; `complete` if it came to its end.
    pub fn all_done(&mut self, now: u64, complete: bool) {
        self.ended_at = Some(now);
        let wait = if complete { self.patience.rescan_ms } else { self.patience.overflow_ms };
        self.all_at = self.all_at.min(now + wait);
    }
}

/// Has the system tell what happens in a folder. `None` with a reason if it cannot: then rescans must do.
pub(super) fn watch(folder: &Arc<Folder>) -> Result<RecommendedWatcher, String> {
    let (theirs, root) = (Arc::downgrade(folder), folder.path.clone());
    let tell = move |event: notify::Result<notify::Event>| {
        let Some(folder) = theirs.upgrade() else { return };
        match event {
            Ok(event) if event.need_rescan() => folder.ask(Request::Overflow),
            Ok(event) => told(&folder, &root, &event),
            Err(error) => {
                folder.set_watch_problem(Some(error.to_string()));
                folder.ask(Request::Overflow);
            }
        }
    };
    let config = Config::default().with_follow_symlinks(false);
    let mut watcher = RecommendedWatcher::new(tell, config).map_err(|e| e.to_string())?;
    watcher.watch(&folder.path, RecursiveMode::Recursive).map_err(|e| e.to_string())?;
    Ok(watcher)
}

/// `None`: nothing has changed. `Some(true)`: it may be a directory with things in it.
fn weight(kind: EventKind) -> Option<bool> {
    Some(match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => return None,
        EventKind::Create(CreateKind::File) | EventKind::Remove(_) => false,
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(MetadataKind::Any)) => false,
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)) => true,
        _ => false,
    })
}

fn told(folder: &Folder, root: &Path, event: &notify::Event) {
    let Some(below) = weight(event.kind) else { return };
    for path in &event.paths {
        let Ok(inside) = path.strip_prefix(root) else { continue };
        match inside.to_str() {
            Some(path) => folder.ask(Request::Touched { path: path.to_owned(), below }),
            // Its directory tells of it.
            None => {
                let parent = inside.ancestors().find_map(Path::to_str).unwrap_or_default();
                folder.ask(Request::Touched { path: parent.to_owned(), below: true });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { quiet_ms: 100, longest_ms: 1_000, rescan_ms: 60_000, overflow_ms: 10_000 };

    fn begun() -> Gathering {
        let mut g = Gathering::new(PATIENCE, 0);
        assert_eq!(g.take(0), Some(Due::All));
        g.all_done(10, true);
        g
    }

    fn some(paths: &[(&str, bool)]) -> Option<Due> {
        Some(Due::Some(paths.iter().map(|(p, below)| Target { path: (*p).into(), below: *below }).collect()))
    }

    #[test]
    fn paths_are_due_when_they_rest() {
        let mut g = begun();
        g.touched("a", false, 20);
        g.touched("b", false, 90);
        assert_eq!((g.take(120), g.due_at()), (None, 190));
        assert_eq!(g.take(190), some(&[("a", false), ("b", false)]));
        assert_eq!(g.take(191), None);
    }

    #[test]
    fn a_folder_that_never_rests_is_looked_at_all_the_same() {
        let mut g = begun();
        (0..20).for_each(|i| g.touched("a", false, 20 + i * 50));
        assert_eq!(g.take(1_019), None);
        assert_eq!(g.take(1_020), some(&[("a", false)]));
    }

    #[test]
    fn what_is_below_another_is_not_looked_at_twice() {
        let mut g = begun();
        for (path, below) in [("d/e", false), ("d", true), ("d/e/f", false), ("de", false)] {
            g.touched(path, below, 20);
        }
        assert_eq!(g.take(500), some(&[("d", true), ("de", false)]));
    }

    #[test]
    fn lost_events_mean_looking_at_everything_but_not_all_the_time() {
        let mut g = begun();
        g.touched("a", false, 20);
        g.overflowed(20);
        assert_eq!(g.take(120), some(&[("a", false)]));
        assert_eq!(g.due_at(), 10_010);
        assert_eq!(g.take(10_010), Some(Due::All));
        g.all_done(10_020, true);
        assert_eq!(g.due_at(), 70_020, "and again after the usual time");
        (0..20_000).for_each(|i| g.touched(&format!("f{i}"), false, 10_100));
        assert_eq!(g.due_at(), 10_200);
    }

    #[test]
    fn a_scan_that_was_broken_off_is_done_again() {
        let mut g = Gathering::new(PATIENCE, 0);
        assert_eq!(g.take(0), Some(Due::All));
        g.all_done(5, false);
        assert_eq!(g.due_at(), 10_005);
        g.later("x", 300);
        assert_eq!(g.take(300), some(&[("x", false)]));
    }
}
