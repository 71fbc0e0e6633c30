//! Drives, their files and their pages.

use common::error::Reason;
use device::nbd::{BlockSource, FileSource};
use device::optical::drives::{DriveHandle, Drives, Limits, Medium, NoGuard, TrayGuard};
use device::optical::files::{Disc, NodeKind, Tree};
use device::optical::generation::MemoryGenerations;
use device::optical::http::{Service, Shelf};
use device::optical::iso::{Faults, IsoControl, IsoDrive};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes that differ everywhere.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A disc that is bad at one place.
pub fn scratched(sectors: std::ops::Range<u64>) -> Faults {
    Faults { bad: vec![sectors], ..Faults::default() }
}

/// A drive with an image of noise in it.
pub async fn drive_with(image: &[u8], limits: Limits) -> (Drives, DriveHandle, IsoControl, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.iso"), image).unwrap();
    let drives = Drives::new(Arc::new(MemoryGenerations::default()), Arc::new(NoGuard), limits);
    let (drive, control) = IsoDrive::new();
    let handle = drives.add("dvd", Box::new(drive)).unwrap();
    control.insert(&dir.path().join("a.iso")).unwrap();
    ready(&handle).await;
    (drives, handle, control, dir)
}

/// Waits until a disc is ready that is newer than the one of this generation.
async fn ready_after(handle: &DriveHandle, generation: u64) -> u64 {
    let mut state = handle.watch();
    let is = |s: &device::optical::State| matches!(s.medium, Medium::Ready { .. }) && s.generation > generation;
    state.wait_for(is).await.unwrap().generation
}

/// Waits until a disc is ready.
pub async fn ready(handle: &DriveHandle) -> u64 {
    ready_after(handle, 0).await
}

#[tokio::test]
async fn reads_give_the_discs_bytes_wherever_they_begin() {
    let image = noise(5 << 20 | 6144, 1);
    let (_drives, drive, _control, _dir) = drive_with(&image, Limits::default()).await;
    let generation = drive.state().generation;
    for (offset, len) in [(0, 1), (2047, 2), (1 << 20, 1 << 20), ((1 << 20) - 1, 3 << 20), (image.len() - 1, 1)] {
        let bytes = drive.read(generation, offset as u64, len as u32).await.unwrap();
        assert!(bytes == image[offset..offset + len], "{len} at {offset}");
    }
    let block = drive.block(generation, 5).await.unwrap();
    assert_eq!(block.digest(), blake3::hash(&image[5 << 20..]));
    for (offset, len) in [(0, 0), (image.len() as u64, 1), (0, u32::MAX), (u64::MAX, 1)] {
        let error = drive.read(generation, offset, len).await.unwrap_err();
        assert!(error.is(Reason::FieldInvalid) || error.is(Reason::RangeInvalid), "{error:?}");
    }
}

#[tokio::test]
async fn a_changed_disc_fails_old_readers() {
    let (_drives, drive, control, dir) = drive_with(&noise(2 << 20, 1), Limits::default()).await;
    let old = drive.state().generation;
    drive.read(old, 0, 2048).await.unwrap();
    let second = noise(3 << 20, 2);
    std::fs::write(dir.path().join("b.iso"), &second).unwrap();
    control.insert(&dir.path().join("b.iso")).unwrap();
    let new = ready_after(&drive, old).await;
    assert!(new > old);
    assert!(drive.read(old, 0, 2048).await.unwrap_err().is(Reason::DiscChanged));
    assert!(drive.read(new, 0, 2048).await.unwrap() == second[..2048]);
    // The same disc again is a new generation too: nobody knows where it was.
    control.press_eject().unwrap();
    control.close();
    assert!(ready_after(&drive, new).await > new);
}

#[tokio::test]
async fn a_disc_pulled_in_mid_read_ends_each_read_at_once() {
    let (_drives, drive, control, _dir) = drive_with(&noise(64 << 20, 1), Limits::default()).await;
    let generation = drive.state().generation;
    // Longer than any deadline, so only the pull can end it.
    control.set_faults(Faults { delay: Duration::from_secs(600), ..Faults::default() });
    let reads: Vec<_> = (8..40_u64)
        .map(|block| {
            let drive = drive.clone();
            tokio::spawn(async move { drive.read(generation, block << 20, 4096).await })
        })
        .collect();
    tokio::task::yield_now().await;
    control.pull();
    for read in reads {
        let error = read.await.unwrap().unwrap_err();
        assert!(error.is(Reason::DiscChanged), "{error:?}");
    }
    let mut state = drive.watch();
    state.wait_for(|s| s.medium == Medium::Empty).await.unwrap();
    assert!(drive.read(generation, 0, 1).await.unwrap_err().is(Reason::DiscChanged));
    assert!(drive.source().err().unwrap().is(Reason::NoMedium));
}

#[tokio::test]
async fn a_stuck_drive_ends_reads_at_their_deadline_and_stalls_no_other() {
    let limits = Limits { read: Duration::from_millis(200), ..Limits::default() };
    let (drives, stuck, control, dir) = drive_with(&noise(8 << 20, 1), limits).await;
    control.set_faults(Faults { delay: Duration::from_secs(600), ..Faults::default() });
    let (second, other) = IsoDrive::new();
    let well = drives.add("second", Box::new(second)).unwrap();
    other.insert(&dir.path().join("a.iso")).unwrap();
    let generation = ready(&well).await;
    let slow = stuck.read(stuck.state().generation, 4 << 20, 2048);
    let fast = async {
        for block in 0..8_u64 {
            well.read(generation, block << 20, 1 << 20).await.unwrap();
        }
    };
    let (slow, ()) = tokio::join!(slow, fast);
    assert!(slow.unwrap_err().is(Reason::DeadlineExceeded));
}

#[tokio::test]
async fn bad_sectors_are_named_and_their_neighbours_can_be_read() {
    let image = noise(4 << 20, 3);
    let (_drives, drive, control, _dir) = drive_with(&image, Limits::default()).await;
    control.set_faults(scratched(1000..1002));
    let generation = drive.state().generation;
    for _ in 0..2 {
        let error = drive.read(generation, 1 << 20, 1 << 20).await.unwrap_err();
        assert!(error.is(Reason::SectorBad), "{error:?}");
        assert_eq!((error.detail("sector"), error.detail("offset")), (Some("1000"), Some("2048000")));
        assert!(drive.block(generation, 1).await.unwrap_err().is(Reason::SectorBad));
    }
    for (from, to) in
        [(1 << 20, 1000 * 2048), (1002 * 2048, 2 << 20), (2 << 20, 4 << 20), (999 * 2048 + 5, 1000 * 2048)]
    {
        let bytes = drive.read(generation, from as u64, (to - from) as u32).await.unwrap();
        assert!(bytes == image[from..to]);
    }
}

#[tokio::test]
async fn trays_move_for_who_holds_the_token() {
    struct Token;
    impl TrayGuard for Token {
        fn check(&self, drive: &str, token: Option<u64>) -> common::error::Result<()> {
            assert_eq!(drive, "dvd");
            if token == Some(7) { Ok(()) } else { Err(common::error::Error::new(Reason::LeaseLost, "stale")) }
        }
    }
    let drives = Drives::new(Arc::new(MemoryGenerations::default()), Arc::new(Token), Limits::default());
    let (drive, control) = IsoDrive::new();
    let drive = drives.add("dvd", Box::new(drive)).unwrap();
    let mut state = drive.watch();
    state.wait_for(|s| s.medium == Medium::Empty).await.unwrap();
    assert!(drive.eject(Some(6)).await.unwrap_err().is(Reason::LeaseLost));
    assert!(drive.eject(None).await.unwrap_err().is(Reason::LeaseLost));
    drive.lock_tray(Some(7), true).await.unwrap();
    assert!(drive.state().locked && control.press_eject().is_err());
    drive.eject(Some(7)).await.unwrap();
    state.wait_for(|s| s.medium == Medium::TrayOpen).await.unwrap();
    drive.close_tray(Some(7)).await.unwrap();
    state.wait_for(|s| s.medium == Medium::Empty).await.unwrap();
    drives.shutdown().await;
    assert!(drive.eject(Some(7)).await.unwrap_err().is(Reason::DeviceAway));
}

#[tokio::test]
async fn a_drive_whose_code_fails_is_away_and_nothing_else() {
    struct Broken;
    impl device::optical::Drive for Broken {
        fn model(&self) -> String {
            "broken".into()
        }
        fn condition(&mut self) -> std::io::Result<device::optical::drive::Condition> {
            panic!("a defect")
        }
        fn size_bytes(&mut self) -> std::io::Result<u64> {
            Ok(0)
        }
        fn read(
            &mut self,
            _: u64,
            _: &mut [u8],
            _: std::time::Instant,
        ) -> Result<(), device::optical::drive::ReadFault> {
            Ok(())
        }
        fn eject(&mut self) -> common::error::Result<()> {
            Ok(())
        }
        fn close_tray(&mut self) -> common::error::Result<()> {
            Ok(())
        }
        fn lock_tray(&mut self, _: bool) -> common::error::Result<()> {
            Ok(())
        }
    }
    let drives = Drives::new(Arc::new(MemoryGenerations::default()), Arc::new(NoGuard), Limits::default());
    let drive = drives.add("x", Box::new(Broken)).unwrap();
    assert!(drive.eject(None).await.unwrap_err().is(Reason::DeviceAway));
    assert_eq!(drive.state().medium, Medium::Away);
    assert!(drives.get("y").err().unwrap().is(Reason::ResourceUnknown));
}

/// A folder with awkward names, and a disc made of it; nothing where no program for it is installed.
fn real_disc(dir: &Path, arguments: &[&str]) -> Option<(PathBuf, PathBuf)> {
    let tree = dir.join("tree");
    std::fs::create_dir_all(tree.join("a folder/deep/deeper/1/2/3/4/5/6/7/8/9")).unwrap();
    let files: [(&str, usize); 6] = [
        ("README.txt", 1000),
        ("a folder/Übergröße with a long name of more than thirty-one letters.bin", 3_000_001),
        ("a folder/empty", 0),
        ("a folder/deep/deeper/1/2/3/4/5/6/7/8/9/bottom.dat", 70_000),
        ("a folder/deep/one sector", 2048),
        ("CaseSensitive.TXT", 5),
    ];
    for (at, (name, len)) in files.iter().enumerate() {
        std::fs::write(tree.join(name), noise(*len, at as u64)).unwrap();
    }
    std::fs::create_dir_all(tree.join("many")).unwrap();
    for number in 0..300 {
        std::fs::write(tree.join(format!("many/file number {number:04}.txt")), format!("{number}")).unwrap();
    }
    std::os::unix::fs::symlink("../README.txt", tree.join("a folder/link")).unwrap();
    let image = dir.join("disc.iso");
    let made = Command::new("genisoimage")
        .args(["-quiet", "-input-charset", "utf-8", "-V", "HOLIDAYS", "-o"])
        .arg(&image)
        .args(arguments)
        .arg(&tree)
        .output();
    match made {
        Ok(output) if output.status.success() => Some((tree, image)),
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            eprintln!("skipped: genisoimage is not installed (apt-get install genisoimage)");
            None
        }
    }
}

async fn open(image: &Path) -> Disc {
    Disc::open(Arc::new(FileSource::open(image, false).unwrap())).await.unwrap()
}

/// Every file of the folder is on the disc with its bytes, and nothing else.
async fn compare(disc: &Disc, tree: &Path, links: bool) {
    let on_disc = disc.walk("", 10_000).await.unwrap();
    let mut expected = 0;
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(tree.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            let kind = entry.file_type().unwrap();
            if kind.is_symlink() && !links {
                continue;
            }
            expected += 1;
            let text = path.to_str().unwrap();
            let (_, node) = on_disc.iter().find(|(p, _)| p == text).unwrap_or_else(|| panic!("{text} is missing"));
            if kind.is_dir() {
                assert_eq!(node.kind, NodeKind::Directory, "{text}");
                open.push(path);
            } else if kind.is_symlink() {
                assert_eq!(node.kind, NodeKind::Symlink { target: "../README.txt".into() });
                assert!(disc.open_file(text).await.is_err());
            } else {
                let wanted = std::fs::read(tree.join(&path)).unwrap();
                let file = disc.open_file(text).await.unwrap();
                assert_eq!((node.size_bytes, file.size_bytes()), (wanted.len() as u64, wanted.len() as u64), "{text}");
                assert!(node.modified_ms.is_some_and(|ms| ms > 1_500_000_000_000), "{text}");
                let mut at = 0;
                while at < wanted.len() {
                    let len = (wanted.len() - at).min(700_001);
                    assert!(file.read(at as u64, len as u32).await.unwrap() == wanted[at..at + len], "{text} at {at}");
                    at += len;
                }
            }
        }
    }
    assert_eq!(on_disc.len(), expected);
}

#[tokio::test]
async fn rock_ridge_shows_the_folder_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let Some((tree, image)) = real_disc(dir.path(), &["-R", "-J", "-joliet-long"]) else { return };
    let disc = open(&image).await;
    assert_eq!(disc.trees(), [Tree::RockRidge, Tree::Joliet]);
    // genisoimage moves directories below the eighth level to one of its own, which is part of the disc.
    std::fs::create_dir(tree.join("rr_moved")).unwrap();
    compare(&disc, &tree, true).await;
    let readme = disc.stat("README.txt").await.unwrap();
    assert_eq!((readme.kind, readme.size_bytes), (NodeKind::File, 1000));
    assert!(disc.stat("readme.txt").await.is_err());
    for bad in ["missing", "README.txt/x", "a folder/../README.txt", "a folder/link"] {
        assert!(disc.open_file(bad).await.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn joliet_and_udf_show_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let Some((tree, image)) = real_disc(dir.path(), &["-J", "-joliet-long", "-udf", "-D", "-allow-lowercase"]) else {
        return;
    };
    let mut disc = open(&image).await;
    assert_eq!(disc.trees(), [Tree::Udf, Tree::Joliet, Tree::Iso9660]);
    compare(&disc, &tree, false).await;
    disc.use_tree(Tree::Joliet).unwrap();
    compare(&disc, &tree, false).await;
    disc.use_tree(Tree::Iso9660).unwrap();
    let plain = disc.walk("", 10_000).await.unwrap();
    assert!(plain.iter().filter(|(_, n)| n.kind == NodeKind::File).count() >= 300);
    assert!(disc.use_tree(Tree::RockRidge).is_err());
}

/// A source in memory that counts what it is asked for.
struct Memory(Vec<u8>, std::sync::atomic::AtomicU64);

impl BlockSource for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read(&self, offset: u64, len: u32) -> futures_util::future::BoxFuture<'_, common::error::Result<bytes::Bytes>> {
        self.1.fetch_add(len.into(), std::sync::atomic::Ordering::Relaxed);
        let checked = device::nbd::source::check_range(offset, len.into(), self.size_bytes());
        let bytes = checked.map(|()| bytes::Bytes::copy_from_slice(&self.0[offset as usize..][..len as usize]));
        Box::pin(async move { bytes })
    }
}

/// Lists everything and reads something of everything, whatever the disc says.
async fn exhaust(image: Vec<u8>) {
    let memory = Arc::new(Memory(image, Default::default()));
    if let Ok(mut disc) = Disc::open(memory.clone()).await {
        for tree in disc.trees() {
            disc.use_tree(tree).unwrap();
            let Ok(all) = disc.walk("", 2000).await else { continue };
            for (path, node) in all.iter().take(500) {
                if let Ok(file) = disc.open_file(path).await {
                    let len = file.size_bytes().min(4096) as u32;
                    if len > 0 {
                        let _ = file.read(0, len).await;
                        let _ = file.read(file.size_bytes() - u64::from(len), len).await;
                    }
                } else if node.kind == NodeKind::Directory {
                    let _ = disc.list(path).await;
                }
            }
        }
    }
    let read = memory.1.load(std::sync::atomic::Ordering::Relaxed);
    assert!(read < 20 << 30, "unbounded work: {read} bytes were read");
}

#[tokio::test]
async fn damaged_discs_end_in_errors_and_bounded_work() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("one/two")).unwrap();
    std::fs::write(tree.join("one/two/three.txt"), "three").unwrap();
    std::fs::write(tree.join("one/a name that is long enough for a continuation"), "x").unwrap();
    let image = dir.path().join("d.iso");
    let made = Command::new("genisoimage")
        .args(["-quiet", "-R", "-J", "-udf", "-no-pad", "-o"])
        .arg(&image)
        .arg(&tree)
        .output();
    if made.is_err() {
        return eprintln!("skipped: genisoimage is not installed");
    }
    let whole = std::fs::read(&image).unwrap();
    exhaust(whole.clone()).await;
    // Sectors with structures are those that hold anything.
    let used: Vec<usize> =
        whole.chunks(2048).enumerate().filter(|(_, s)| s.iter().any(|b| *b != 0)).map(|(n, _)| n).collect();
    let mut random = 0x1234_5678_9abc_def0_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    // More of them by hand: ATRIUM_DISC_ROUNDS=100000.
    let rounds = std::env::var("ATRIUM_DISC_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    for _ in 0..rounds {
        let mut image = whole.clone();
        for _ in 0..1 + next() % 24 {
            let sector = used[(next() % used.len() as u64) as usize];
            let filled = image[sector * 2048..][..2048].iter().rposition(|b| *b != 0).unwrap_or(0) + 1;
            let place = sector * 2048 + (next() % filled as u64) as usize;
            image[place] = match next() % 4 {
                0 => 0xff,
                1 => 0,
                2 => image[place].wrapping_add(1),
                _ => next() as u8,
            };
        }
        if next() % 8 == 0 {
            image.truncate((next() % image.len() as u64) as usize);
        }
        exhaust(image).await;
    }
}

#[tokio::test]
async fn a_directory_inside_of_itself_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("loop")).unwrap();
    let image = dir.path().join("d.iso");
    let made = Command::new("genisoimage").args(["-quiet", "-o"]).arg(&image).arg(&tree).output();
    if made.is_err() {
        return eprintln!("skipped: genisoimage is not installed");
    }
    let mut bytes = std::fs::read(&image).unwrap();
    let root = u32::from_le_bytes(bytes[16 * 2048 + 158..16 * 2048 + 162].try_into().unwrap());
    let records = root as usize * 2048;
    // The record behind "." and ".." is the directory: it is made to say that it lies where the root lies.
    let (first, second) = (bytes[records] as usize, bytes[records + bytes[records] as usize] as usize);
    let record = records + first + second;
    bytes[record + 2..record + 6].copy_from_slice(&root.to_le_bytes());
    let disc = Disc::open(Arc::new(Memory(bytes, Default::default()))).await.unwrap();
    let error = disc.walk("", 1000).await.unwrap_err();
    assert!(error.is(Reason::DiscFormatUnknown), "{error:?}");
    // One step at a time is bounded by the path.
    assert!(disc.list(&"LOOP/".repeat(60)).await.is_ok());
    assert!(disc.list(&"LOOP/".repeat(65)).await.is_err());
}

#[tokio::test]
async fn noise_is_no_disc() {
    let error = Disc::open(Arc::new(Memory(noise(4 << 20, 9), Default::default()))).await.err().unwrap();
    assert!(error.is(Reason::DiscFormatUnknown));
    assert!(Disc::open(Arc::new(Memory(Vec::new(), Default::default()))).await.is_err());
}

/// One request and its whole answer.
async fn ask(address: std::net::SocketAddr, request: &str) -> (String, Vec<u8>) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut raw = Vec::new();
    let _ = stream.read_to_end(&mut raw).await;
    let end = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(raw.len().saturating_sub(4));
    (String::from_utf8_lossy(&raw[..end]).to_lowercase(), raw[(end + 4).min(raw.len())..].to_vec())
}

#[tokio::test]
async fn players_get_ranges_and_no_mixture_of_discs() {
    let image = noise(3 << 20, 4);
    let (_drives, drive, control, _dir) = drive_with(&image, Limits::default()).await;
    let source = Arc::new(drive.source().unwrap());
    let shelf = Shelf { title: "<b>".into(), image: source, files: None };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let service = Service::new(Arc::new(shelf), []);
    let running = tokio::spawn({
        let stop = stop.clone();
        async move { service.serve(listener, stop).await }
    });
    let get = |extra: &str| format!("GET /disc.iso HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{extra}\r\n");
    let (head, body) = ask(address, &get("")).await;
    assert!(head.starts_with("http/1.1 200") && head.contains("accept-ranges: bytes") && body == image, "{head}");
    let (head, body) = ask(address, &get("Range: bytes=1000000-2000000\r\n")).await;
    assert!(head.starts_with("http/1.1 206") && body == image[1_000_000..=2_000_000], "{head}");
    assert!(head.contains("content-range: bytes 1000000-2000000/3145728"), "{head}");
    let (head, body) = ask(address, &get("Range: bytes=-5\r\n")).await;
    assert!(head.starts_with("http/1.1 206") && body == image[image.len() - 5..]);
    let (head, _) = ask(address, &get("Range: bytes=3145728-\r\n")).await;
    assert!(head.starts_with("http/1.1 416") && head.contains("content-range: bytes */3145728"), "{head}");
    let (head, body) = ask(address, &get("Range: bytes=0-1\r\nIf-Range: \"0-image\"\r\n")).await;
    assert!(head.starts_with("http/1.1 200") && body.len() == image.len());
    let tag = format!("\"{}-image\"", drive.state().generation);
    let (head, body) = ask(address, &get(&format!("Range: bytes=0-1\r\nIf-Range: {tag}\r\n"))).await;
    assert!(head.starts_with("http/1.1 206") && body.len() == 2);
    let (head, body) = ask(address, &get("").replace("GET", "HEAD")).await;
    assert!(head.starts_with("http/1.1 200") && head.contains("content-length: 3145728") && body.is_empty());
    let (head, _) = ask(address, &get("").replace("localhost", "evil.example")).await;
    assert!(head.starts_with("http/1.1 421"), "{head}");
    let (head, _) = ask(address, &get("").replace("GET", "DELETE")).await;
    assert!(head.starts_with("http/1.1 405"), "{head}");
    let (_, page) = ask(address, "GET / HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: close\r\n\r\n").await;
    assert!(String::from_utf8_lossy(&page).contains("&lt;b&gt;"));
    control.pull();
    let mut state = drive.watch();
    state.wait_for(|s| s.medium == Medium::Empty).await.unwrap();
    let (head, _) = ask(address, &get("")).await;
    assert!(head.starts_with("http/1.1 410"), "{head}");
    stop.cancel();
    running.await.unwrap();
}
