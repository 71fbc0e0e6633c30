//! Being told of changes of the local side by the file system.
//!
//! What is told is only that something may have changed; what it is, a scan finds out. Events that are lost (a queue that
//! ran over, a directory that could not be watched) therefore cost time and nothing else: they count as a change, and
//! [`LocalEvents::is_complete`] says that scans are needed more often. Network file systems tell nothing of what other
//! machines do, so scans go on now and then in any case.

use super::local::is_ours;
use common::error::{Error, Reason, Result};
use notify::event::{AccessKind, AccessMode};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::path::{Component, Path};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Longest wait for a burst of changes to end.
const BURST_MAX: Duration = Duration::from_secs(5);

/// Events of a directory and everything below it, until dropped.
#[derive(Debug)]
pub struct LocalEvents {
    told: Arc<Told>,
    _watcher: RecommendedWatcher,
}

#[derive(Debug, Default)]
struct Told {
    changed: Notify,
    incomplete: AtomicBool,
}

impl LocalEvents {
    /// Begins. Changes from here on are told. Blocking: every directory is looked at.
    ///
    /// # Errors
    /// `IO_FAILED` if the file system tells nothing, or the system's number of watched directories is used up.
    pub fn begin(directory: &Path) -> Result<Self> {
        let told = Arc::new(Told::default());
        let (tell, base) = (told.clone(), directory.to_owned());
        let handler = move |event: notify::Result<Event>| {
            let lost = match &event {
                Ok(event) => event.need_rescan(),
                Err(_) => true,
            };
            if event.is_err() {
                tell.incomplete.store(true, Ordering::Relaxed);
            }
            if lost || event.is_ok_and(|event| concerns(&base, &event)) {
                // Remembered if nobody waits at this moment; more than one is one.
                tell.changed.notify_one();
            }
        };
        let begun =
            RecommendedWatcher::new(handler, Config::default().with_follow_symlinks(false)).and_then(|mut w| {
                w.watch(directory, RecursiveMode::Recursive)?;
                Ok(w)
            });
        let watcher = begun.map_err(|error| {
            let why = match &error.kind {
                notify::ErrorKind::MaxFilesWatch => {
                    "the system watches no more directories; fs.inotify.max_user_watches is its limit".to_owned()
                }
                _ => error.to_string(),
            };
            Error::new(Reason::IoFailed, format!("the file system does not tell of changes in {}", directory.display()))
                .why_is(why)
                .caused_by(error)
        })?;
        Ok(Self { told, _watcher: watcher })
    }

    /// Waits until something may have changed since the last time. Safe to cancel.
    pub async fn changed(&self) {
        self.told.changed.notified().await;
    }

    /// Waits until nothing has changed for `quiet`, but not longer than a few seconds.
    pub async fn settled(&self, quiet: Duration) {
        let end = Instant::now() + BURST_MAX.max(quiet);
        while Instant::now() < end && tokio::time::timeout(quiet, self.changed()).await.is_ok() {}
    }

    /// False once a part of the directory could not be watched.
    pub fn is_complete(&self) -> bool {
        !self.told.incomplete.load(Ordering::Relaxed)
    }
}

/// Whether an event may mean a change of what is synchronised: not reading, and not what we keep beside it ourselves.
fn concerns(base: &Path, event: &Event) -> bool {
    let changes = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    };
    let ours = |path: &Path| {
        let below = path.strip_prefix(base).unwrap_or(path);
        below.components().any(|c| matches!(c, Component::Normal(name) if name.to_str().is_some_and(is_ours)))
    };
    changes && (event.paths.is_empty() || event.paths.iter().any(|path| !ours(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{CreateKind, ModifyKind};

    #[test]
    fn reading_and_our_own_files_are_no_changes() {
        let base = Path::new("/home/anna/.atrium-odd/plans");
        let event = |kind, path: &str| Event::new(kind).add_path(base.join(path));
        assert!(concerns(base, &event(EventKind::Create(CreateKind::File), "a")));
        assert!(concerns(base, &event(EventKind::Modify(ModifyKind::Any), "d/a")));
        assert!(concerns(base, &event(EventKind::Access(AccessKind::Close(AccessMode::Write)), "a")));
        assert!(!concerns(base, &event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "a")));
        assert!(!concerns(base, &event(EventKind::Create(CreateKind::File), ".atrium-staging/0")));
        assert!(!concerns(base, &event(EventKind::Create(CreateKind::File), "d/.a.atrium-part")));
        let moved = event(EventKind::Modify(ModifyKind::Any), ".atrium-trash/x").add_path(base.join("x"));
        assert!(concerns(base, &moved), "something left or came");
        assert!(concerns(base, &Event::new(EventKind::Other)));
    }

    #[tokio::test]
    async fn changes_at_any_depth_are_told_also_in_new_directories() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let events = LocalEvents::begin(dir.path()).unwrap();
        std::fs::write(dir.path().join("a/b/c"), "1").unwrap();
        tokio::time::timeout(PATIENCE, events.changed()).await.expect("a new file");
        std::fs::create_dir(dir.path().join("new")).unwrap();
        tokio::time::timeout(PATIENCE, events.changed()).await.expect("a new directory");
        events.settled(Duration::from_millis(200)).await;
        std::fs::write(dir.path().join("new/file"), "1").unwrap();
        tokio::time::timeout(PATIENCE, events.changed()).await.expect("a file in the new directory");
        events.settled(Duration::from_millis(200)).await;
        std::fs::remove_file(dir.path().join("a/b/c")).unwrap();
        tokio::time::timeout(PATIENCE, events.changed()).await.expect("a file that went");
        assert!(events.is_complete());
        assert!(LocalEvents::begin(&dir.path().join("missing")).is_err());
    }
}
