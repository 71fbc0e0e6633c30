//! Directories up and down.

use crate::flow_fake::{IMPATIENT, Place, RETRY, at, content};
use atrium_common::error::Reason;
use atrium_common::flow::{
    Expect, GetTreeOptions, NoProgress, Progress, PutItem, PutTreeOptions, Totals, get_tree, put_many, put_tree,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

fn put_options() -> PutTreeOptions {
    PutTreeOptions { retry: RETRY, ..PutTreeOptions::default() }
}

fn get_options() -> GetTreeOptions {
    GetTreeOptions { retry: RETRY, ..GetTreeOptions::default() }
}

#[derive(Default)]
struct Last(Mutex<Totals>);

impl Progress for Last {
    fn totals(&self, totals: Totals) {
        *self.0.lock() = totals;
    }
}

/// Files with their content, directories with `None`.
fn tree(dir: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    fn add(dir: &Path, name: &str, out: &mut BTreeMap<String, Option<Vec<u8>>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                out.insert(name.clone(), None);
                add(&entry.path(), &name, out);
            } else {
                out.insert(name, Some(fs::read(entry.path()).unwrap()));
            }
        }
    }
    let mut out = BTreeMap::new();
    add(dir, "", &mut out);
    out
}

/// 2,300 small files, three large ones, empty files and directories, deep ones.
fn make_tree(place: &Place) -> u64 {
    let mut bytes = 0;
    let mut put = |name: String, size: usize, seed: u64| {
        place.file(&format!("in/{name}"), &content(size, seed));
        bytes += size as u64;
    };
    for n in 0..2300u64 {
        put(format!("small/{}/{n}.txt", n % 7), (n % 5000) as usize, n);
    }
    for n in 0..3u64 {
        put(format!("large-{n}"), (1 << 20) * (n as usize + 1) + 17, n + 10_000);
    }
    put("a/b/c/d/e/f/deep ü.txt".into(), 100_000, 1);
    put("edge".into(), 256 << 10, 2);
    put("edge+1".into(), (256 << 10) + 1, 3);
    fs::create_dir_all(place.path("in/empty/emptier")).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_arrives_and_comes_back_and_stays_when_it_is_the_same() {
    let place = Place::new().await;
    let bytes = make_tree(&place);
    let last = Last::default();
    let to = at("home:tree");
    let summary = put_tree(&place.connection, &place.path("in"), &to, &put_options(), &last).await.unwrap();
    assert!(summary.is_complete(), "{summary:?}");
    assert_eq!((summary.files, summary.bytes, summary.unchanged, summary.directories), (2306, bytes, 0, 1));
    let totals = *last.0.lock();
    assert_eq!((totals.done_files, totals.total_files), (2306, 2306));
    assert_eq!((totals.done_bytes, totals.total_bytes), (bytes, bytes));
    assert!(place.fake.paths().contains(&"tree/empty/emptier/".to_owned()));

    let last = Last::default();
    let out = place.path("out");
    let summary = get_tree(&place.connection, &to, &out, &get_options(), &last).await.unwrap();
    assert!(summary.is_complete(), "{summary:?}");
    assert_eq!((summary.files, summary.bytes, summary.unchanged), (2306, bytes, 0));
    let totals = *last.0.lock();
    assert_eq!((totals.done_files, totals.done_bytes, totals.total_bytes), (2306, bytes, bytes));
    assert!(tree(&place.path("in")) == tree(&out));

    place.fake.seen();
    let summary = put_tree(&place.connection, &out, &to, &put_options(), &NoProgress).await.unwrap();
    assert_eq!((summary.files, summary.unchanged, summary.directories), (0, 2306, 0), "{summary:?}");
    let summary = get_tree(&place.connection, &to, &out, &get_options(), &NoProgress).await.unwrap();
    assert_eq!((summary.files, summary.unchanged, summary.directories), (0, 2306, 0), "{summary:?}");
    let seen = place.fake.seen();
    assert_eq!((seen.uploaded_bytes, seen.downloaded_bytes), (0, 0));

    place.file("in/small/3/new", b"new");
    let mut changed = fs::read(place.path("in/large-2")).unwrap();
    changed[5] ^= 1;
    place.file("in/large-2", &changed);
    let summary = put_tree(&place.connection, &place.path("in"), &to, &put_options(), &NoProgress).await.unwrap();
    assert_eq!((summary.files, summary.unchanged), (2, 2305));
    let summary = get_tree(&place.connection, &to, &out, &get_options(), &NoProgress).await.unwrap();
    assert_eq!((summary.files, summary.unchanged), (2, 2305));
    assert!(tree(&place.path("in")) == tree(&out));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaking_wire_and_a_forgetful_server_change_nothing_in_the_end() {
    let place = Place::new().await;
    let bytes = make_tree(&place);
    place.wire.cut_after((1..12).map(|n| 200_000 + n * 77_777));
    place.fake.faults(|f| {
        f.lose_chunks = 4;
        f.swallow_commits = 3;
    });
    let to = at("home:tree");
    let last = Last::default();
    let summary = put_tree(&place.connection, &place.path("in"), &to, &put_options(), &last).await.unwrap();
    assert!(summary.is_complete(), "{summary:?}");
    assert_eq!((summary.files, summary.bytes, last.0.lock().done_bytes), (2306, bytes, bytes));
    assert!(place.wire.cuts_done() >= 5);

    place.wire.cut_after((1..12).map(|n| 200_000 + n * 77_777));
    place.fake.faults(|f| f.damage = 5);
    let out = place.path("out");
    let last = Last::default();
    let summary = get_tree(&place.connection, &to, &out, &get_options(), &last).await.unwrap();
    assert!(summary.is_complete(), "{summary:?}");
    assert_eq!((summary.files, summary.bytes, last.0.lock().done_bytes), (2306, bytes, bytes));
    assert!(tree(&place.path("in")) == tree(&out));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_file_does_not_stop_the_others() {
    let place = Place::new().await;
    for n in 0..20 {
        place.file(&format!("in/{n}"), b"fine");
    }
    place.file("in/refused", b"x");
    place.file("in/refused-large", &content(1 << 20, 1));
    place.file("in/.old.atrium-part", b"x");
    symlink("/etc", place.path("in/link")).unwrap();
    symlink("nowhere", place.path("in/dangling")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, place.path("in/pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::write(place.path("in").join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "x").unwrap();
    place.file("in/bad\nname", b"x");
    place.fake.faults(|f| f.refuse = Some("refused".into()));
    let to = at("home:t");
    let summary = put_tree(&place.connection, &place.path("in"), &to, &put_options(), &NoProgress).await.unwrap();
    assert_eq!((summary.files, summary.failed_count, summary.skipped_count), (20, 4, 4), "{summary:?}");
    assert!(!summary.is_complete() && summary.stopped.is_none());
    let mut failed: Vec<_> = summary.failed.iter().map(|p| (p.path.as_str(), p.error.reason())).collect();
    failed.sort_unstable();
    let expected = [
        ("bad\nname", "NAME_INVALID"),
        ("refused", "ACCESS_DENIED"),
        ("refused-large", "ACCESS_DENIED"),
        ("\u{fffd}\u{fffd}", "NAME_INVALID"),
    ];
    assert_eq!(failed, expected);
    let mut skipped: Vec<_> = summary.skipped.iter().map(|(p, _)| p.as_str()).collect();
    skipped.sort_unstable();
    assert_eq!(skipped, [".old.atrium-part", "dangling", "link", "pipe"]);

    place.fake.faults(|f| f.damage_always = Some("7".into()));
    let out = place.path("out");
    let summary = get_tree(&place.connection, &to, &out, &get_options(), &NoProgress).await.unwrap();
    assert_eq!((summary.files, summary.failed_count), (19, 1), "{summary:?}");
    assert!(summary.failed[0].path == "7" && summary.failed[0].error.is(Reason::ChunkDamaged));
    assert!(!out.join("7").exists() && tree(&out).len() == 19);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_links_cannot_lead_out_of_the_target() {
    let place = Place::new().await;
    place.file("in/sub/f", b"from the server");
    place.file("in/ok", b"fine");
    let to = at("home:t");
    put_tree(&place.connection, &place.path("in"), &to, &put_options(), &NoProgress).await.unwrap();
    let hostile = ["..", ".", "", "a/b", "/etc/passwd", "../up", "nul\0", "x\u{202e}y"];
    place.fake.faults(|f| f.hostile_names = hostile.map(str::to_owned).into());
    // In place of the directory there is a link to somewhere else here.
    fs::create_dir_all(place.path("out")).unwrap();
    fs::create_dir_all(place.path("elsewhere")).unwrap();
    symlink(place.path("elsewhere"), place.path("out/sub")).unwrap();
    let out = place.path("out");
    let summary = get_tree(&place.connection, &to, &out, &get_options(), &NoProgress).await.unwrap();
    assert_eq!((summary.files, summary.failed_count), (1, 1 + hostile.len() as u64), "{summary:?}");
    assert_eq!(fs::read_dir(place.path("elsewhere")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 3, "in, out, elsewhere");
    assert_eq!(fs::read(out.join("ok")).unwrap(), b"fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_here_is_told_file_by_file() {
    let place = Place::new().await;
    for name in ["a", "b", "c", "d/e"] {
        place.file(&format!("in/{name}"), b"theirs");
    }
    let to = at("home:t");
    put_tree(&place.connection, &place.path("in"), &to, &put_options(), &NoProgress).await.unwrap();
    place.file("out/a", b"mine");
    place.file("out/b", b"theirs");
    fs::create_dir_all(place.path("out/c")).unwrap();
    place.file("out/d", b"a file");
    let keep = GetTreeOptions { replace: false, ..get_options() };
    let out = place.path("out");
    let summary = get_tree(&place.connection, &to, &out, &keep, &NoProgress).await.unwrap();
    let mut failed: Vec<_> = summary.failed.iter().map(|p| (p.path.as_str(), p.error.reason())).collect();
    failed.sort_unstable();
    assert_eq!(failed, [("a", "ENTRY_EXISTS"), ("c", "IS_A_DIRECTORY"), ("d", "NOT_A_DIRECTORY")]);
    assert_eq!((summary.files, summary.unchanged), (0, 1));
    assert_eq!(fs::read(out.join("a")).unwrap(), b"mine");
    let summary = get_tree(&place.connection, &to, &out, &get_options(), &NoProgress).await.unwrap();
    assert_eq!((summary.files, summary.unchanged, summary.failed_count), (1, 1, 2));
    assert_eq!(fs::read(out.join("a")).unwrap(), b"theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn chosen_files_go_to_chosen_places() {
    let place = Place::new().await;
    let one = place.file("one", b"1");
    let two = place.file("two", &content(300_000, 1));
    let item = |local: &Path, to: &str, expect| PutItem { local: local.to_owned(), to: at(to), expect };
    let items = vec![
        item(&one, "home:x/1", Expect::Absent),
        item(&two, "public:p/2", Expect::Any),
        item(&place.path("missing"), "home:3", Expect::Any),
        item(&one, "home:4", Expect::Version(9)),
    ];
    let summary = put_many(&place.connection, items, &put_options(), &NoProgress).await.unwrap();
    assert_eq!((summary.files, summary.failed_count), (2, 2), "{summary:?}");
    assert_eq!(place.fake.content("home:x/1").unwrap(), b"1");
    assert!(place.fake.content("public:p/2").unwrap() == content(300_000, 1));
    let stale = summary.failed.iter().find(|p| p.path == "home:4").unwrap();
    assert!(stale.error.is(Reason::VersionStale));
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_that_cannot_begin_say_so_and_those_that_break_off_too() {
    let place = Place::new().await;
    make_tree(&place);
    let file = place.file("file", b"x");
    let to = at("home:t");
    let put = |from: &Path| {
        let (connection, from) = (place.connection.clone(), from.to_owned());
        async move { put_tree(&connection, &from, &at("home:t"), &put_options(), &NoProgress).await }
    };
    assert!(put(&file).await.is_err());
    assert!(put(&place.path("nowhere")).await.is_err());
    let gone = get_tree(&place.connection, &to, &place.path("o"), &get_options(), &NoProgress).await;
    assert!(gone.unwrap_err().is(Reason::EntryUnknown) && !place.path("o").exists());

    put(&place.path("in/small/1")).await.unwrap();
    let impatient = PutTreeOptions { retry: IMPATIENT, ..put_options() };
    struct CutOff<'a>(&'a Place);
    impl Progress for CutOff<'_> {
        fn totals(&self, totals: Totals) {
            if totals.done_files > 0 {
                self.0.wire.down();
            }
        }
    }
    let to = at("home:u");
    let summary = put_tree(&place.connection, &place.path("in"), &to, &impatient, &CutOff(&place)).await.unwrap();
    assert!(summary.stopped.as_ref().is_some_and(|e| e.is(Reason::ServerUnreachable)), "{summary:?}");
    assert!(summary.files > 0 && summary.files < 2306);
    let error = put_tree(&place.connection, &place.path("in"), &to, &impatient, &NoProgress).await.unwrap_err();
    assert!(error.is(Reason::ServerUnreachable));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_into_one_place_do_not_disturb_each_other() {
    let place = Place::new().await;
    make_tree(&place);
    put_tree(&place.connection, &place.path("in"), &at("home:x"), &put_options(), &NoProgress).await.unwrap();
    let (out, options, from) = (place.path("out"), get_options(), at("home:x"));
    let get = || get_tree(&place.connection, &from, &out, &options, &NoProgress);
    let (a, b) = tokio::join!(get(), get());
    for summary in [a.unwrap(), b.unwrap()] {
        assert!(summary.is_complete(), "{summary:?}");
    }
    assert!(tree(&out) == tree(&place.path("in")));
}
