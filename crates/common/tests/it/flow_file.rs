//! One file up and down: whole, changed, over a wire that breaks, from a server that forgets or damages.

use crate::flow_fake::{IMPATIENT, Place, RETRY, at, content, put_options};
use atrium_common::error::Reason;
use atrium_common::flow::{
    Event, Expect, GetOptions, NoProgress, Progress, PutOptions, Totals, get_file, put_file, put_reader, read_file,
};
use atrium_common::model::UploadId;
use parking_lot::Mutex;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

const MIB: usize = 1 << 20;

fn get_options() -> GetOptions {
    GetOptions { retry: RETRY, ..GetOptions::default() }
}

fn parts_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.ends_with(".atrium-part")).collect()
}

/// Keeps the last totals and the names of all events.
#[derive(Default)]
struct Record {
    totals: Mutex<Totals>,
    events: Mutex<Vec<String>>,
}

impl Progress for Record {
    fn totals(&self, totals: Totals) {
        *self.totals.lock() = totals;
    }
    fn event(&self, event: Event<'_>) {
        let text = format!("{event:?}");
        self.events.lock().push(text.split([' ', '{']).next().unwrap_or_default().to_owned());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_all_sizes_arrive_and_come_back_as_they_were() {
    let place = Place::new().await;
    for size in [0, 1, 4096, 256 << 10, (256 << 10) + 1, 3 * MIB, 5 * MIB + 7, 70 * MIB] {
        let data = content(size, size as u64);
        let local = place.file("in", &data);
        fs::set_permissions(&local, fs::Permissions::from_mode(0o640)).unwrap();
        let modified = UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
        fs::File::options().write(true).open(&local).unwrap().set_modified(modified).unwrap();
        let record = Record::default();
        let to = at(&format!("home:a/b/{size}"));
        let entry = put_file(&place.connection, &local, &to, &put_options(), &record).await.unwrap();
        assert_eq!((entry.size_bytes, entry.mode, entry.version), (size as u64, 0o640, 1));
        let size_bytes = size as u64;
        let whole = Totals {
            done_bytes: size_bytes,
            total_bytes: size_bytes,
            done_files: 1,
            total_files: 1,
            moved_bytes: size_bytes,
        };
        assert_eq!(*record.totals.lock(), whole);
        assert!(place.fake.content(&to.to_string()).unwrap() == data, "{size}");

        let out = place.path("out");
        let record = Record::default();
        let entry = get_file(&place.connection, &to, &out, &get_options(), &record).await.unwrap();
        assert_eq!(entry.size_bytes, size_bytes);
        assert!(fs::read(&out).unwrap() == data, "{size}");
        let meta = fs::metadata(&out).unwrap();
        assert_eq!((meta.permissions().mode() & 0o7777, meta.modified().unwrap()), (0o640, modified));
        assert_eq!(*record.totals.lock(), whole);
        fs::remove_file(&out).unwrap();

        let mut read = Vec::new();
        read_file(&place.connection, &to, &get_options(), &mut read, &NoProgress).await.unwrap();
        assert!(read == data, "{size}");
    }
    assert_eq!(parts_in(place.dir.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_changed_is_moved() {
    let place = Place::new().await;
    let mut data = content(48 * MIB, 1);
    let local = place.file("in", &data);
    let out = place.path("out");
    let to = at("home:big");
    put_file(&place.connection, &local, &to, &put_options(), &NoProgress).await.unwrap();
    get_file(&place.connection, &to, &out, &get_options(), &NoProgress).await.unwrap();
    place.fake.seen();

    data.splice(20 * MIB..20 * MIB + 1000, content(MIB, 2));
    let local = place.file("in", &data);
    let record = Record::default();
    let entry = put_file(&place.connection, &local, &to, &put_options(), &record).await.unwrap();
    let seen = place.fake.seen();
    assert!(seen.uploaded_bytes <= 10 * MIB as u64, "{seen:?}");
    assert_eq!((entry.version, record.totals.lock().done_bytes), (2, data.len() as u64));
    assert!(place.fake.content("home:big").unwrap() == data);

    let record = Record::default();
    get_file(&place.connection, &to, &out, &get_options(), &record).await.unwrap();
    let seen = place.fake.seen();
    assert!(seen.downloaded_bytes <= 10 * MIB as u64, "{seen:?}");
    assert_eq!(record.totals.lock().done_bytes, data.len() as u64);
    assert!(fs::read(&out).unwrap() == data);

    // Nothing at all when nothing changed; the entry's attributes still come.
    fs::set_permissions(&out, fs::Permissions::from_mode(0o600)).unwrap();
    get_file(&place.connection, &to, &out, &get_options(), &NoProgress).await.unwrap();
    assert!(place.fake.seen().downloaded_bytes <= 4 * MIB as u64);
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o644);
    let same = PutOptions { skip_unchanged: true, ..put_options() };
    let entry = put_file(&place.connection, &local, &to, &same, &NoProgress).await.unwrap();
    assert_eq!((entry.version, place.fake.seen().uploaded_bytes), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_chunks_travel_once() {
    let place = Place::new().await;
    let local = place.file("in", &vec![0; 40 * MIB]);
    let to = at("home:zeros");
    put_file(&place.connection, &local, &to, &put_options(), &NoProgress).await.unwrap();
    assert!(place.fake.seen().uploaded_bytes <= 4 * MIB as u64);
    let out = place.path("out");
    let record = Record::default();
    get_file(&place.connection, &to, &out, &get_options(), &record).await.unwrap();
    assert!(place.fake.seen().downloaded_bytes <= 4 * MIB as u64);
    assert_eq!(record.totals.lock().done_bytes, 40 * MIB as u64);
    assert!(fs::read(&out).unwrap() == vec![0; 40 * MIB]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_breaks_again_and_again_delays_and_nothing_else() {
    let place = Place::new().await;
    for (seed, size) in [(1u64, 9 * MIB), (2, 24 * MIB), (3, 72 * MIB)] {
        let cuts: Vec<u64> = content(8 * 12, seed)
            .chunks(8)
            .map(|c| 4_000 + u64::from_le_bytes(c.try_into().unwrap()) % (size as u64 / 4))
            .collect();
        let data = content(size, seed);
        let local = place.file("in", &data);
        let to = at(&format!("home:{seed}"));
        let before = place.wire.cuts_done();
        place.wire.cut_after(cuts.clone());
        let record = Record::default();
        put_file(&place.connection, &local, &to, &put_options(), &record).await.unwrap();
        assert!(place.wire.cuts_done() > before, "the cuts happened");
        assert!(record.events.lock().iter().any(|e| e == "Waiting"));
        let totals = *record.totals.lock();
        assert_eq!((totals.done_bytes, totals.done_files), (size as u64, 1));
        assert!(place.fake.content(&to.to_string()).unwrap() == data, "seed {seed}");

        let out = place.path("out");
        let before = place.wire.cuts_done();
        place.wire.cut_after(cuts);
        let record = Record::default();
        get_file(&place.connection, &to, &out, &get_options(), &record).await.unwrap();
        assert!(place.wire.cuts_done() > before);
        assert_eq!(record.totals.lock().done_bytes, size as u64);
        assert!(fs::read(&out).unwrap() == data, "seed {seed}");
        fs::remove_file(&out).unwrap();
        place.wire.cut_after([]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_lost_is_sent_again_and_a_lost_answer_changes_nothing() {
    let place = Place::new().await;
    let data = content(12 * MIB, 5);
    let local = place.file("in", &data);
    place.fake.faults(|f| {
        f.lose_chunks = 3;
        f.swallow_commits = 2;
    });
    let record = Record::default();
    let entry = put_file(&place.connection, &local, &at("home:x"), &put_options(), &record).await.unwrap();
    assert_eq!(entry.version, 1);
    assert_eq!(record.totals.lock().done_bytes, data.len() as u64);
    assert!(place.fake.content("home:x").unwrap() == data);
    // A server that never keeps anything is given up, in words.
    place.fake.faults(|f| f.lose_chunks = usize::MAX);
    let error = put_file(&place.connection, &local, &at("home:y"), &put_options(), &NoProgress).await.unwrap_err();
    assert!(error.is(Reason::ChunksMissing), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_where_another_process_left_it() {
    let place = Place::new().await;
    let data = content(30 * MIB, 6);
    let local = place.file("in", &data);
    let options = PutOptions { upload: Some(UploadId::generate()), retry: IMPATIENT, ..put_options() };
    // The first attempt ends in the middle: nobody answers any more.
    place.wire.cut_after([15 * MIB as u64, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    let error = put_file(&place.connection, &local, &at("home:x"), &options, &NoProgress).await.unwrap_err();
    assert!(error.is(Reason::ServerUnreachable), "{error:?}");
    place.wire.cut_after([]);
    let before = place.fake.seen().uploaded_bytes;
    let options = PutOptions { retry: RETRY, ..options };
    put_file(&place.connection, &local, &at("home:x"), &options, &NoProgress).await.unwrap();
    let after = place.fake.seen().uploaded_bytes;
    assert_eq!(before + after, data.len() as u64, "nothing is sent twice");
    assert!(before > 0 && place.fake.content("home:x").unwrap() == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_it_was_given_up() {
    let place = Place::new().await;
    let data = content(40 * MIB, 7);
    let local = place.file("in", &data);
    let to = at("home:x");
    put_file(&place.connection, &local, &to, &put_options(), &NoProgress).await.unwrap();
    place.fake.seen();
    let out = place.path("out");

    /// Wakes the test when half has come.
    struct Half(tokio::sync::Notify, u64);
    impl Progress for Half {
        fn totals(&self, totals: Totals) {
            if totals.done_bytes >= self.1 {
                self.0.notify_one();
            }
        }
    }
    let half = Half(tokio::sync::Notify::new(), 20 * MIB as u64);
    let options = get_options();
    tokio::select! {
        _ = get_file(&place.connection, &to, &out, &options, &half) => panic!("it should not have ended yet"),
        () = half.0.notified() => {}
    }
    assert!(!out.exists() && parts_in(place.dir.path()) == [".out.atrium-part"]);
    let record = Record::default();
    get_file(&place.connection, &to, &out, &get_options(), &record).await.unwrap();
    assert!(record.totals.lock().moved_bytes <= 22 * MIB as u64, "{:?}", record.totals.lock());
    assert!(fs::read(&out).unwrap() == data);
    assert_eq!(parts_in(place.dir.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_asked_for_once_more() {
    let place = Place::new().await;
    let data = content(20 * MIB, 8);
    let local = place.file("in", &data);
    let to = at("home:x");
    put_file(&place.connection, &local, &to, &put_options(), &NoProgress).await.unwrap();
    place.fake.seen();
    place.fake.faults(|f| f.damage = 3);
    let out = place.path("out");
    get_file(&place.connection, &to, &out, &get_options(), &NoProgress).await.unwrap();
    assert!(place.fake.seen().verified_downloads >= 1);
    assert!(fs::read(&out).unwrap() == data);
    place.fake.faults(|f| f.damage = 2);
    let mut read = Vec::new();
    read_file(&place.connection, &to, &get_options(), &mut read, &NoProgress).await.unwrap();
    assert!(read == data, "and the order is kept");

    fs::write(&out, "what was here before").unwrap();
    place.fake.faults(|f| f.damage_always = Some("x".into()));
    let error = get_file(&place.connection, &to, &out, &get_options(), &NoProgress).await.unwrap_err();
    assert!(error.is(Reason::ChunkDamaged), "{error:?}");
    assert_eq!(fs::read(&out).unwrap(), b"what was here before");
}

/// Writes to the file whenever some of it has been read.
struct Writer {
    path: PathBuf,
    times: Mutex<usize>,
    record: Record,
}

impl Progress for Writer {
    fn totals(&self, totals: Totals) {
        let mut times = self.times.lock();
        if totals.done_bytes > 0 && *times > 0 {
            *times -= 1;
            let mut data = fs::read(&self.path).unwrap();
            data.extend_from_slice(b"more");
            fs::write(&self.path, data).unwrap();
        }
    }
    fn event(&self, event: Event<'_>) {
        self.record.event(event);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_being_written_is_read_again_then_refused() {
    let place = Place::new().await;
    let path = place.file("in", &content(9 * MIB, 9));
    let writer = Writer { path: path.clone(), times: Mutex::new(1), record: Record::default() };
    put_file(&place.connection, &path, &at("home:x"), &put_options(), &writer).await.unwrap();
    assert_eq!(*writer.record.events.lock(), ["Restarted"]);
    assert!(place.fake.content("home:x").unwrap() == fs::read(&path).unwrap());

    let writer = Writer { path: path.clone(), times: Mutex::new(usize::MAX), record: Record::default() };
    let error = put_file(&place.connection, &path, &at("home:y"), &put_options(), &writer).await.unwrap_err();
    assert!(error.is(Reason::LocalFileChanged), "{error:?}");
    assert_eq!(*writer.record.events.lock(), ["Restarted"; 3]);
    assert!(place.fake.content("home:y").is_none(), "nothing half-done is published");
}

#[tokio::test(flavor = "multi_thread")]
async fn expectations_are_the_servers_to_judge_and_its_words_come_through() {
    let place = Place::new().await;
    let local = place.file("in", b"one");
    let put = |to: &'static str, expect, make_parents| {
        let options = PutOptions { expect, make_parents, ..put_options() };
        let (connection, local) = (place.connection.clone(), local.clone());
        async move { put_file(&connection, &local, &at(to), &options, &NoProgress).await }
    };
    assert!(put("home:no/x", Expect::Any, false).await.unwrap_err().is(Reason::EntryUnknown));
    assert_eq!(put("home:x", Expect::Absent, true).await.unwrap().version, 1);
    assert!(put("home:x", Expect::Absent, true).await.unwrap_err().is(Reason::EntryExists));
    assert!(put("home:x", Expect::Version(7), true).await.unwrap_err().is(Reason::VersionStale));
    assert_eq!(put("home:x", Expect::Version(1), true).await.unwrap().version, 2);
    place.fake.faults(|f| f.refuse = Some("secret".into()));
    assert!(put("home:secret", Expect::Any, true).await.unwrap_err().is(Reason::AccessDenied));
    let gone = get_file(&place.connection, &at("home:gone"), &place.path("o"), &get_options(), &NoProgress).await;
    assert!(gone.unwrap_err().is(Reason::EntryUnknown));
    assert_eq!(parts_in(place.dir.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn local_obstacles_are_told_before_anything_is_touched() {
    let place = Place::new().await;
    let local = place.file("in", b"new");
    let to = at("home:x");
    put_file(&place.connection, &local, &to, &put_options(), &NoProgress).await.unwrap();
    let keep = GetOptions { replace: false, ..get_options() };
    let out = place.file("out", b"old");
    let error = get_file(&place.connection, &to, &out, &keep, &NoProgress).await.unwrap_err();
    assert!(error.is(Reason::EntryExists) && fs::read(&out).unwrap() == b"old");
    let error = get_file(&place.connection, &to, place.dir.path(), &get_options(), &NoProgress).await.unwrap_err();
    assert!(error.is(Reason::IsADirectory));
    let nowhere = place.path("no/such/place");
    assert!(get_file(&place.connection, &to, &nowhere, &get_options(), &NoProgress).await.is_err());
    for bad in [place.dir.path().to_owned(), place.path("nothing"), PathBuf::from("/dev/null")] {
        assert!(put_file(&place.connection, &bad, &to, &put_options(), &NoProgress).await.is_err(), "{bad:?}");
    }
    // A link at the unfinished file's name is not written through.
    let victim = place.file("victim", b"precious");
    std::os::unix::fs::symlink(&victim, place.path(".fresh.atrium-part")).unwrap();
    get_file(&place.connection, &to, &place.path("fresh"), &get_options(), &NoProgress).await.unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert_eq!(fs::read(place.path("fresh")).unwrap(), b"new");
    // A link at the target is replaced, not followed.
    std::os::unix::fs::symlink(&victim, place.path("link")).unwrap();
    get_file(&place.connection, &to, &place.path("link"), &get_options(), &NoProgress).await.unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(!fs::symlink_metadata(place.path("link")).unwrap().is_symlink());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_do_not_disturb_each_other() {
    let place = Place::new().await;
    let data = content(30 * MIB, 10);
    let local = place.file("in", &data);
    let to = at("home:x");
    put_file(&place.connection, &local, &to, &put_options(), &NoProgress).await.unwrap();
    let out = place.path("out");
    let options = get_options();
    let (a, b) = tokio::join!(
        get_file(&place.connection, &to, &out, &options, &NoProgress),
        get_file(&place.connection, &to, &out, &options, &NoProgress),
    );
    a.unwrap();
    b.unwrap();
    assert!(fs::read(&out).unwrap() == data);
    assert_eq!(parts_in(place.dir.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reader_gives_arrives() {
    let place = Place::new().await;
    let data = content(6 * MIB, 11);
    let reader = std::io::Cursor::new(data.clone());
    let entry = put_reader(&place.connection, reader, &at("home:x"), &put_options(), &NoProgress).await.unwrap();
    assert_eq!((entry.size_bytes, entry.mode), (data.len() as u64, 0));
    assert!(place.fake.content("home:x").unwrap() == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_away_is_given_up_in_words() {
    let place = Place::new().await;
    let local = place.file("in", &content(MIB, 12));
    place.wire.down();
    let options = PutOptions { retry: IMPATIENT, ..put_options() };
    let record = Record::default();
    let error = put_file(&place.connection, &local, &at("home:x"), &options, &record).await.unwrap_err();
    assert!(error.is(Reason::ServerUnreachable) && error.is_transient(), "{error:?}");
    assert_eq!(*record.events.lock(), ["Waiting"; 2]);
}

#[test]
fn everything_may_be_spawned() {
    fn is_send<T: Send>(_: impl FnOnce(&'static Place) -> T) {}
    is_send(|p| async { put_file(&p.connection, Path::new(""), &at("home:"), &put_options(), &NoProgress).await });
    is_send(|p| async { get_file(&p.connection, &at("home:"), Path::new(""), &get_options(), &NoProgress).await });
    is_send(|p| async { put_reader(&p.connection, std::io::empty(), &at("home:"), &put_options(), &NoProgress).await });
    is_send(|p| async {
        read_file(&p.connection, &at("home:"), &get_options(), &mut tokio::io::sink(), &NoProgress).await
    });
}
