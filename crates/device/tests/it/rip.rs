//! Ripping: exact, resumable, around what cannot be read.

use crate::discs::{drive_with, noise, scratched};
use common::error::{Error, Reason};
use device::nbd::{BlockSource, Client, Export, Server, ServerConfig, client};
use device::optical::drives::{DriveHandle, Limits};
use device::optical::iso::Faults;
use device::optical::rip::{Options, Outcome, map::Map, map::Status, rip};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

async fn run(drive: &DriveHandle, image: &Path, options: Options) -> common::error::Result<Outcome> {
    rip(Arc::new(drive.source().unwrap()), image, options, |_| {}).await
}

#[tokio::test]
async fn a_whole_disc_becomes_an_exact_image() {
    let disc = noise(5 << 20 | 4096, 1);
    let (_drives, drive, _control, dir) = drive_with(&disc, Limits::default()).await;
    let image = dir.path().join("out.iso");
    let mut last = 0;
    let outcome = rip(Arc::new(drive.source().unwrap()), &image, Options::default(), |p| last = p.done_bytes).await;
    let outcome = outcome.unwrap();
    assert_eq!((outcome.bad_sectors, outcome.map, outcome.resumed_bytes), (0, None, 0));
    assert!(last > 0 && std::fs::read(&image).unwrap() == disc);
    assert!(!dir.path().join("out.iso.part").exists() && !dir.path().join("out.iso.map").exists());
    let error = run(&drive, &image, Options::default()).await.unwrap_err();
    assert!(error.is(Reason::ResourceExists));
}

#[tokio::test]
async fn one_per_cent_of_bad_sectors_costs_just_these() {
    let disc = noise(20 << 20, 2);
    let (_drives, drive, control, dir) = drive_with(&disc, Limits::default()).await;
    let faults = Faults { random: Some((0.01, 42)), ..Faults::default() };
    control.set_faults(faults.clone());
    // Nothing of it is known from before it was scratched.
    let old = drive.state().generation;
    control.press_eject().unwrap();
    control.close();
    drive.watch().wait_for(|s| s.generation > old).await.unwrap();
    let image = dir.path().join("out.iso");
    let outcome = run(&drive, &image, Options::default()).await.unwrap();
    let bad: Vec<u64> = (0..10_240).filter(|sector| faults.is_bad(*sector)).collect();
    assert!(bad.len() > 50);
    assert_eq!(outcome.bad_sectors, bad.len() as u64);
    let ripped = std::fs::read(&image).unwrap();
    for (sector, (is, was)) in ripped.chunks(2048).zip(disc.chunks(2048)).enumerate() {
        let expected = if bad.contains(&(sector as u64)) { &[0; 2048][..] } else { was };
        assert!(is == expected, "sector {sector}");
    }
    let text = std::fs::read_to_string(outcome.map.unwrap()).unwrap();
    let map = Map::parse(&text, disc.len() as u64).unwrap();
    let told: Vec<u64> =
        map.runs().filter(|(_, s)| *s == Status::Bad).flat_map(|(run, _)| run.start / 2048..run.end / 2048).collect();
    assert_eq!(told, bad);
}

#[tokio::test]
async fn retries_bring_sectors_that_heal() {
    let disc = noise(3 << 20, 3);
    let (_drives, drive, control, dir) = drive_with(&disc, Limits::default()).await;
    control.set_faults(Faults { heals_after: Some(4), ..scratched(700..705) });
    let image = dir.path().join("out.iso");
    let outcome = run(&drive, &image, Options { retries: 5, ..Options::default() }).await.unwrap();
    assert_eq!(outcome.bad_sectors, 0);
    assert!(std::fs::read(&image).unwrap() == disc);
}

/// Options under which it loses its lease after so many reads.
fn lost_after(reads: u32) -> Options {
    let count = Arc::new(AtomicU32::new(0));
    let permitted = move || match count.fetch_add(1, Ordering::Relaxed) {
        n if n < reads => Ok(()),
        _ => Err(Error::new(Reason::LeaseLost, "the lease is over")),
    };
    Options { permitted: Arc::new(permitted), ..Options::default() }
}

#[tokio::test]
async fn it_goes_on_where_it_stopped_and_with_the_same_disc_only() {
    let disc = noise(12 << 20, 4);
    let (_drives, drive, control, dir) = drive_with(&disc, Limits::default()).await;
    control.set_faults(scratched(2000..2001));
    let image = dir.path().join("out.iso");
    assert!(run(&drive, &image, lost_after(7)).await.unwrap_err().is(Reason::LeaseLost));
    assert!(!image.exists() && dir.path().join("out.iso.map").exists());
    let old = drive.state().generation;
    // Another disc of the same size.
    std::fs::write(dir.path().join("b.iso"), noise(12 << 20, 5)).unwrap();
    control.insert(&dir.path().join("b.iso")).unwrap();
    let mut state = drive.watch();
    let second = state.wait_for(|s| s.generation > old).await.unwrap().generation;
    assert!(run(&drive, &image, Options::default()).await.unwrap_err().is(Reason::DiscChanged));
    // The first one again: a new generation, and the same disc.
    control.insert(&dir.path().join("a.iso")).unwrap();
    state.wait_for(|s| s.generation > second).await.unwrap();
    let outcome = run(&drive, &image, Options::default()).await.unwrap();
    assert!(outcome.resumed_bytes >= 5 << 20, "{outcome:?}");
    assert_eq!(outcome.bad_sectors, 1);
    let mut expected = disc;
    expected[2000 * 2048..2001 * 2048].fill(0);
    assert!(std::fs::read(&image).unwrap() == expected);
}

#[tokio::test]
async fn a_damaged_map_is_left_alone() {
    let (_drives, drive, _control, dir) = drive_with(&noise(4 << 20, 6), Limits::default()).await;
    let image = dir.path().join("out.iso");
    assert!(run(&drive, &image, lost_after(2)).await.is_err());
    std::fs::write(dir.path().join("out.iso.map"), "0x0 ? 1\n0x0 0x10 +\n").unwrap();
    assert!(run(&drive, &image, Options::default()).await.unwrap_err().is(Reason::StoreCorrupt));
    assert!(dir.path().join("out.iso.part").exists());
}

#[tokio::test]
async fn a_pulled_disc_stops_it_and_keeps_what_was_read() {
    let disc = noise(64 << 20, 7);
    let (_drives, drive, control, dir) = drive_with(&disc, Limits::default()).await;
    let image = dir.path().join("out.iso");
    let mut pulled = false;
    let error = rip(Arc::new(drive.source().unwrap()), &image, Options::default(), |progress| {
        if progress.done_bytes >= 4 << 20 && !pulled {
            pulled = true;
            control.pull();
        }
    });
    let error = error.await.unwrap_err();
    assert!(error.is(Reason::DiscChanged), "{error:?}");
    // Blocks that were read ahead before the pull may still be given out: they are of this disc. Any other one has to ask
    // the drive, so no more than the cache holds can follow.
    let map = std::fs::read_to_string(dir.path().join("out.iso.map")).unwrap();
    let map = Map::parse(&map, disc.len() as u64).unwrap();
    assert!((4 << 20..=20 << 20).contains(&map.bytes(Status::Finished)), "{map}");
    let part = std::fs::read(dir.path().join("out.iso.part")).unwrap();
    for (run, _) in map.runs().filter(|(_, status)| *status == Status::Finished) {
        let run = run.start as usize..run.end as usize;
        assert!(part[run.clone()] == disc[run]);
    }
}

#[tokio::test]
async fn a_drive_that_gets_stuck_is_worked_around() {
    /// Never answers in time where a range touches two sectors, and does not say which.
    struct Stuck(Vec<u8>);
    impl BlockSource for Stuck {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }
        fn read(
            &self,
            offset: u64,
            len: u32,
        ) -> futures_util::future::BoxFuture<'_, common::error::Result<bytes::Bytes>> {
            let range = offset as usize..offset as usize + len as usize;
            let stuck = [100_usize, 300].iter().any(|s| range.start < (s + 1) * 2048 && s * 2048 < range.end);
            let bytes = bytes::Bytes::copy_from_slice(&self.0[range]);
            let late = Error::new(Reason::DeadlineExceeded, "stuck");
            Box::pin(async move { if stuck { Err(late) } else { Ok(bytes) } })
        }
    }
    let disc = noise(2 << 20, 8);
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("out.iso");
    let mut reads = 0;
    let outcome = rip(Arc::new(Stuck(disc.clone())), &image, Options::default(), |_| reads += 1).await.unwrap();
    assert_eq!(outcome.bad_sectors, 2);
    assert!(reads < 150, "{reads} reads");
    let ripped = std::fs::read(&image).unwrap();
    assert!(ripped[101 * 2048..300 * 2048] == disc[101 * 2048..300 * 2048]);
}

#[tokio::test]
async fn an_export_on_another_machine_is_ripped_the_same() {
    let disc = noise(6 << 20, 9);
    let (_drives, drive, control, dir) = drive_with(&disc, Limits::default()).await;
    control.set_faults(scratched(1500..1503));
    let export = Export::read_only("dvd", "", Arc::new(drive.source().unwrap()));
    let server = Server::new(Arc::new(vec![export]), ServerConfig::default());
    let (near, far) = tokio::io::duplex(1 << 20);
    let serving = tokio::spawn(async move { server.serve(far).await });
    let config = client::ClientConfig { request: Duration::from_secs(20), ..Default::default() };
    let source = Client::connect(near, "dvd", config).await.unwrap();
    let image = dir.path().join("out.iso");
    let outcome = rip(Arc::new(source), &image, Options::default(), |_| {}).await.unwrap();
    assert_eq!(outcome.bad_sectors, 3);
    serving.await.unwrap();
    let mut expected = disc;
    expected[1500 * 2048..1503 * 2048].fill(0);
    assert!(std::fs::read(&image).unwrap() == expected);
}
