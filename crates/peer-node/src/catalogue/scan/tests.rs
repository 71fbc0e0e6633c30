use super::*;
use crate::catalogue::beneath::Root;
use crate::catalogue::entry::Entry;
use crate::catalogue::folder::FolderRecord;
use crate::catalogue::index::IndexHandle;
use crate::catalogue::rules::Rules;
use crate::model::{Content, ShareId};
use common::chunk::Chunker;
use common::store::Store;
use parking_lot::Mutex;
use rustix::fs::{CWD, FileType, Mode};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;

struct Fixture {
    _dir: tempfile::TempDir,
    top: PathBuf,
    outside: PathBuf,
    folder: Arc<Folder>,
}

impl Fixture {
    fn new() -> Self {
        Self::with_rules("")
    }

    fn with_rules(rules: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (top, outside) = (dir.path().join("shared"), dir.path().join("outside"));
        std::fs::create_dir_all(&top).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        let root = Root::open(&top).unwrap();
        let index = IndexHandle::open(Store::memory(), ShareId(uuid::Uuid::from_u128(1)), 7).unwrap();
        let record = FolderRecord::new(&root, "", false);
        let (folder, _) = Folder::new(index, &record, Rules::new(rules).unwrap(), CancellationToken::new());
        Self { _dir: dir, top, outside, folder }
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.top.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn scan(&self) -> ScanReport {
        self.scan_with(&ScanOptions::default())
    }

    fn scan_with(&self, options: &ScanOptions) -> ScanReport {
        let all = [Target { path: String::new(), below: true }];
        run(&self.folder, &all, options, &CancellationToken::new()).unwrap()
    }

    fn look(&self, path: &str, below: bool) -> ScanReport {
        let target = Target { path: path.into(), below };
        run(&self.folder, &[target], &ScanOptions::default(), &CancellationToken::new()).unwrap()
    }

    fn entry(&self, path: &str) -> Option<Entry> {
        self.folder.index.entry(path).unwrap()
    }

    fn there(&self) -> Vec<String> {
        self.folder.index.walk("", "").map(|s| s.unwrap().entry.path).collect()
    }

    fn has(&self, path: &str, reason: &str) -> bool {
        self.folder.problems.lock().has(path, reason)
    }
}

fn content(path: &Path) -> Content {
    let file = std::fs::File::open(path).unwrap();
    Content::of(Chunker::new(file).map(|p| p.unwrap().chunk).collect::<Vec<_>>())
}

/// Content that is not cut at the same places everywhere.
fn bytes(len: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

#[test]
fn a_folder_is_indexed_and_only_changes_are_read_again() {
    let f = Fixture::new();
    f.write("a.txt", "alpha");
    f.write("d/empty", "");
    f.write("d/big", bytes(5 << 20, 1));
    f.write("d/e/c.txt", "gamma");
    let report = f.scan();
    assert_eq!((report.hashed_files, report.changed, report.removed), (4, 6, 0));
    assert_eq!(f.there(), ["a.txt", "d", "d/big", "d/e", "d/e/c.txt", "d/empty"]);
    let big = f.entry("d/big").unwrap();
    assert_eq!(f.folder.index.content(&big).unwrap().unwrap(), content(&f.top.join("d/big")));
    assert_eq!(f.entry("d/empty").unwrap().chunk_count, 0);
    let again = f.scan();
    assert_eq!((again.hashed_files, again.changed, again.seen), (0, 0, 6));

    std::fs::rename(f.top.join("d/e"), f.top.join("moved")).unwrap();
    std::fs::remove_file(f.top.join("a.txt")).unwrap();
    let sequence = f.folder.index.head().max_sequence;
    let report = f.scan();
    assert_eq!((report.changed, report.removed), (2, 3));
    assert_eq!(f.there(), ["d", "d/big", "d/empty", "moved", "moved/c.txt"]);
    let news = f.folder.index.after(sequence, 100).unwrap();
    let gone: Vec<&str> = news.iter().filter(|e| e.deleted).map(|e| e.path.as_str()).collect();
    assert_eq!(gone.len(), 3);
    assert!(["a.txt", "d/e", "d/e/c.txt"].iter().all(|p| gone.contains(p)));
}

#[test]
fn a_change_in_the_middle_of_a_big_file_changes_few_chunks() {
    let f = Fixture::new();
    let mut data = bytes(40 << 20, 2);
    f.write("big", &data);
    f.scan();
    let before = f.folder.index.content(&f.entry("big").unwrap()).unwrap().unwrap();
    data[20 << 20..(20 << 20) + 100].fill(9);
    data.splice(5 << 20..5 << 20, *b"some more bytes");
    f.write("big", &data);
    f.scan();
    let after = f.folder.index.content(&f.entry("big").unwrap()).unwrap().unwrap();
    assert_eq!(after, content(&f.top.join("big")));
    let new = after.chunks.iter().filter(|c| !before.chunks.contains(c)).count();
    assert!((1..=6).contains(&new), "{new} of {} chunks are new", after.chunks.len());
    assert_eq!(f.entry("big").unwrap().version.count(7), 2);
}

#[test]
fn times_and_modes_are_changes_and_a_rewrite_of_the_same_is_none() {
    let f = Fixture::new();
    f.write("a", "same");
    f.scan();
    let first = f.entry("a").unwrap();
    std::fs::set_permissions(f.top.join("a"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(f.scan().changed, 1);
    assert_eq!(f.entry("a").unwrap().mode, 0o600);
    // Written anew with the same content and the old time: nothing that others would see.
    let time = std::fs::metadata(f.top.join("a")).unwrap().modified().unwrap();
    std::fs::remove_file(f.top.join("a")).unwrap();
    f.write("a", "same");
    std::fs::set_permissions(f.top.join("a"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::File::options().write(true).open(f.top.join("a")).unwrap().set_modified(time).unwrap();
    let report = f.scan();
    assert_eq!((report.hashed_files, report.changed), (1, 0));
    assert_eq!(f.scan().hashed_files, 0);
    assert_eq!(f.entry("a").unwrap().digest, first.digest);
}

#[test]
fn a_file_and_a_directory_may_take_each_others_place() {
    let f = Fixture::new();
    f.write("x/inside/deep", "1");
    f.write("y", "2");
    f.scan();
    std::fs::remove_dir_all(f.top.join("x")).unwrap();
    std::fs::remove_file(f.top.join("y")).unwrap();
    f.write("x", "file now");
    f.write("y/inside", "directory now");
    f.scan();
    assert_eq!(f.there(), ["x", "y", "y/inside"]);
    assert!(f.entry("x").unwrap().is_file() && f.entry("y").unwrap().is_directory());
    assert!(f.entry("x/inside/deep").unwrap().deleted);
    assert_eq!(f.folder.index.head().file_count, 2);
}

#[test]
fn a_file_that_changes_while_it_is_read_is_read_again_and_never_published_torn() {
    for size in [100, 3 << 20, 20 << 20] {
        let f = Fixture::new();
        f.write("busy", bytes(size, 1));
        let (path, reads) = (f.top.join("busy"), Arc::new(AtomicU32::new(0)));
        let count = reads.clone();
        let hook: ReadHook = Arc::new(move |_, _| {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                let mut file = std::fs::File::options().write(true).open(&path).unwrap();
                file.write_all(&bytes(size / 2, 2)).unwrap();
            }
        });
        let report = f.scan_with(&ScanOptions { hook: Some(hook), ..ScanOptions::default() });
        assert_eq!(reads.load(Ordering::SeqCst), 2, "{size}");
        assert!(report.again.is_empty());
        let entry = f.entry("busy").unwrap();
        assert_eq!(f.folder.index.content(&entry).unwrap().unwrap(), content(&f.top.join("busy")), "{size}");
        assert_eq!(entry.version.count(7), 1, "only one version was published");
    }
}

#[test]
fn a_file_that_never_rests_keeps_its_old_version_and_is_a_problem() {
    let f = Fixture::new();
    f.write("busy", "first version");
    f.scan();
    let first = f.entry("busy").unwrap();
    f.write("busy", "second");
    let (path, turn) = (f.top.join("busy"), Arc::new(AtomicU32::new(0)));
    let hook: ReadHook = Arc::new(move |_, _| {
        let n = turn.fetch_add(1, Ordering::SeqCst);
        std::fs::write(&path, format!("{n} and growing{}", "!".repeat(n as usize))).unwrap();
    });
    let report = f.scan_with(&ScanOptions { hook: Some(hook), ..ScanOptions::default() });
    assert_eq!(report.again, ["busy"]);
    assert_eq!(f.entry("busy").unwrap(), first);
    assert!(f.has("busy", "FILE_CHANGING"));
    f.look("busy", false);
    assert_eq!(f.folder.index.content(&f.entry("busy").unwrap()).unwrap().unwrap(), content(&f.top.join("busy")));
    assert!(!f.has("busy", "FILE_CHANGING"));
}

#[test]
fn hostile_names_links_and_special_files_are_told_and_not_shared() {
    let f = Fixture::new();
    std::fs::write(f.outside.join("secret"), "secret").unwrap();
    f.write("good", "good");
    f.write("tab\there", "x");
    f.write("gnp.\u{202e}exe", "x");
    std::fs::write(f.top.join(OsStr::from_bytes(b"not-utf8-\xff")), "x").unwrap();
    symlink(f.outside.join("secret"), f.top.join("link")).unwrap();
    symlink(&f.outside, f.top.join("way")).unwrap();
    symlink("good", f.top.join("inner")).unwrap();
    symlink("nowhere", f.top.join("broken")).unwrap();
    rustix::fs::mknodat(CWD, f.top.join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(f.top.join("socket")).unwrap();
    f.write("Plan.txt", "1");
    f.write("PLAN.TXT", "2");
    f.scan();
    assert_eq!(f.there(), ["PLAN.TXT", "Plan.txt", "good"]);
    for (path, reason) in [
        ("tab\there", "NAME_INVALID"),
        ("gnp.\u{202e}exe", "NAME_INVALID"),
        ("not-utf8-\u{fffd}", "NAME_INVALID"),
        ("link", "LINK_NOT_SHARED"),
        ("way", "LINK_NOT_SHARED"),
        ("inner", "LINK_NOT_SHARED"),
        ("broken", "LINK_NOT_SHARED"),
        ("pipe", "SPECIAL_FILE"),
        ("socket", "SPECIAL_FILE"),
        ("Plan.txt", "NAME_CLASH"),
    ] {
        assert!(f.has(path, reason), "{path:?} {reason}");
    }
    // Single paths, as events name them, lead nowhere else either.
    for path in ["way/secret", "link", "../outside/secret", "inner", "pipe", "tab\there"] {
        f.look(path, true);
    }
    assert_eq!(f.there(), ["PLAN.TXT", "Plan.txt", "good"]);
    assert_eq!(f.folder.index.by_chunk(&common::model::ChunkId::of(b"secret")).unwrap(), []);
    // What is put right is shared, and no problem any longer.
    std::fs::remove_file(f.top.join("link")).unwrap();
    f.write("link", "a file now");
    f.look("link", false);
    assert!(f.entry("link").unwrap().is_file() && !f.has("link", "LINK_NOT_SHARED"));
}

#[test]
fn a_file_that_becomes_a_link_is_gone() {
    let f = Fixture::new();
    std::fs::write(f.outside.join("x"), "outside").unwrap();
    f.write("d/x", "inside");
    f.write("y", "inside");
    f.scan();
    std::fs::remove_dir_all(f.top.join("d")).unwrap();
    symlink(&f.outside, f.top.join("d")).unwrap();
    std::fs::remove_file(f.top.join("y")).unwrap();
    symlink(f.outside.join("x"), f.top.join("y")).unwrap();
    f.scan();
    assert!(f.there().is_empty());
}

#[test]
fn a_directory_swapped_for_a_link_all_the_time_never_leads_outside() {
    let f = Fixture::new();
    let secret = bytes(5_000, 99);
    for i in 0..20 {
        std::fs::write(f.outside.join(format!("f{i}")), &secret).unwrap();
        f.write(&format!("d/f{i}"), "inside");
    }
    f.write("rest", "x");
    let (top, outside) = (f.top.clone(), f.outside.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let ended = stop.clone();
    let swapping = std::thread::spawn(move || {
        let mut turns = 0_u64;
        while !ended.load(Ordering::Relaxed) {
            std::fs::rename(top.join("d"), top.join("kept")).unwrap();
            symlink(&outside, top.join("d")).unwrap();
            std::fs::remove_file(top.join("d")).unwrap();
            std::fs::rename(top.join("kept"), top.join("d")).unwrap();
            turns += 1;
        }
        turns
    });
    for _ in 0..15 {
        f.scan();
        assert_eq!(f.folder.index.by_chunk(&common::model::ChunkId::of(&secret)).unwrap(), []);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(swapping.join().unwrap() > 0);
    f.scan();
    assert!(f.entry("d/f0").unwrap().is_file() && f.entry("rest").unwrap().is_file());
}

#[test]
fn ignored_files_are_not_shared_and_go_when_they_are_ignored_later() {
    let f = Fixture::with_rules("*.o\n/target/\n");
    f.write("src/a.rs", "1");
    f.write("src/a.o", "2");
    f.write("target/debug/x", "3");
    f.write(".plan.atrium-part", "4");
    f.scan();
    assert_eq!(f.there(), ["src", "src/a.rs"]);
    f.look("target/debug/x", false);
    f.look("src/a.o", false);
    assert_eq!(f.there(), ["src", "src/a.rs"]);
    f.folder.set_rules(Rules::new("src/\n").unwrap());
    f.scan();
    assert_eq!(f.there(), ["target", "target/debug", "target/debug/x"]);
}

#[test]
fn a_missing_or_another_folder_says_nothing_about_deletions() {
    let f = Fixture::new();
    f.write("a", "1");
    f.scan();
    let all = [Target { path: String::new(), below: true }];
    let scan = || run(&f.folder, &all, &ScanOptions::default(), &CancellationToken::new());
    std::fs::rename(&f.top, f.outside.join("away")).unwrap();
    assert!(scan().unwrap_err().is(Reason::FolderChanged));
    std::fs::create_dir(&f.top).unwrap();
    assert!(scan().unwrap_err().is(Reason::FolderChanged));
    assert!(f.has("", "FOLDER_CHANGED"));
    assert_eq!(f.there(), ["a"]);
    std::fs::remove_dir(&f.top).unwrap();
    std::fs::rename(f.outside.join("away"), &f.top).unwrap();
    scan().unwrap();
    assert!(!f.has("", "FOLDER_CHANGED"));
    assert_eq!(f.there(), ["a"]);
    // But if the new one is meant, it is.
    std::fs::rename(&f.top, f.outside.join("away")).unwrap();
    std::fs::create_dir(&f.top).unwrap();
    f.folder.accept(&Root::open(&f.top).unwrap());
    scan().unwrap();
    assert!(f.there().is_empty());
}

#[test]
fn a_path_that_someone_holds_is_left_to_them() {
    let f = Fixture::new();
    f.write("d/a", "1");
    f.write("b", "2");
    let hold = f.folder.index.hold("d/a").unwrap();
    let report = f.scan();
    assert_eq!((f.there(), report.again), (vec!["b".to_owned(), "d".to_owned()], vec!["d/a".to_owned()]));
    drop(hold);
    f.look("d/a", false);
    assert!(f.entry("d/a").unwrap().is_file());
}

#[test]
fn content_that_changes_behind_unchanged_times_is_not_taken_for_a_new_version() {
    let f = Fixture::new();
    f.write("a", "as it was");
    f.scan();
    let before = f.folder.index.stored("a").unwrap().unwrap();
    f.write("a", "flipped!!");
    // As if no time had changed.
    let file = Root::open(&f.top).unwrap().stat("a").unwrap().stat;
    f.folder.index.commit(vec![Change::Seen { path: "a".into(), file, expected: before.entry.sequence }]).unwrap();
    assert_eq!(f.scan().hashed_files, 0);
    f.scan_with(&ScanOptions { verify: true, ..ScanOptions::default() });
    assert!(f.has("a", "CONTENT_DAMAGED"));
    assert_eq!(f.entry("a").unwrap(), before.entry);
}

#[test]
fn a_scan_can_be_broken_off() {
    let f = Fixture::new();
    (0..50).for_each(|i| f.write(&format!("f{i}"), "x"));
    let cancel = CancellationToken::new();
    let (inside, count) = (cancel.clone(), Arc::new(Mutex::new(0)));
    let hook: ReadHook = Arc::new(move |_, _| {
        *count.lock() += 1;
        if *count.lock() == 3 {
            inside.cancel();
        }
    });
    let all = [Target { path: String::new(), below: true }];
    // All files rest long enough to be read in the first round.
    let options = ScanOptions { hook: Some(hook), threads: 1, ..ScanOptions::default() };
    assert!(run(&f.folder, &all, &options, &cancel).unwrap_err().is(Reason::Cancelled));
    assert_eq!(f.scan().again, Vec::<String>::new());
    assert_eq!(f.there().len(), 50);
}

#[test]
fn events_in_new_directories_bring_the_directories_too() {
    let f = Fixture::new();
    f.scan();
    f.write("new/deep/file", "1");
    f.write("new/other", "2");
    f.look("new/deep/file", false);
    assert_eq!(f.there(), ["new", "new/deep", "new/deep/file", "new/other"]);
    std::fs::remove_dir_all(f.top.join("new")).unwrap();
    f.look("new", false);
    assert!(f.there().is_empty());
}
