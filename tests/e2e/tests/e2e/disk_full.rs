//! A real file system without space under a real server.
//!
//! The server's data is on a small tmpfs. It is mounted in a mount namespace of the test's own, in which the test starts
//! itself anew, so that nothing is left behind however it ends. That needs root; without, the test says so and passes.

use anyhow::{Context, Result, ensure};
use atrium_e2e::process::poll;
use atrium_e2e::{Office, Person, sample};
use common::error::Reason;
use common::store::{EngineKind, Store, StoreSettings};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const INSIDE: &str = "TEST_IN_NAMESPACE";
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// Whether this is the process in the namespace; otherwise that process was started and has ended well, or cannot be.
fn in_namespace(test: &str) -> Result<bool> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting a small file system needs root");
        return Ok(false);
    }
    let may_mount = Command::new("unshare").args(["--mount", "true"]).status();
    if !may_mount.is_ok_and(|s| s.success()) {
        println!("skipped: mount namespaces are not allowed here");
        return Ok(false);
    }
    let own = std::env::current_exe()?;
    let mut command = Command::new("unshare");
    let status = command.arg("--mount").arg(own).args(["--exact", test, "--nocapture"]).env(INSIDE, "1").status()?;
    ensure!(status.success(), "the test in the namespace failed: {status}");
    Ok(false)
}

fn mount(directory: &Path, size: &str) -> Result<()> {
    fs::create_dir_all(directory)?;
    let options = format!("size={size},mode=0700");
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(directory).status()?;
    ensure!(status.success(), "mount: {status}");
    Ok(())
}

/// Takes all space that there is.
fn fill(directory: &Path) -> Result<()> {
    let mut file = File::create(directory.join("filler"))?;
    for size in [MIB, 4096, 1] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
    Ok(())
}

fn full(person: &Person, arguments: &[&str]) -> Result<()> {
    let done = person.try_atrium(arguments)?;
    let said = &done.stderr;
    ensure!(done.code == 9, "exit {}: {said}", done.code);
    for part in ["why:", "fix:", "disk"] {
        ensure!(said.contains(part), "{part} is missing in {said}");
    }
    Ok(())
}

#[test]
fn a_full_disk_refuses_changes_loses_nothing_and_needs_no_restart() -> Result<()> {
    if !in_namespace("disk_full::a_full_disk_refuses_changes_loses_nothing_and_needs_no_restart")? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("server.toml");
    fs::write(&config, "[server]\nreserve = \"16MiB\"\n[chunks]\nsegment = \"8MiB\"\nreclaim_interval = \"1s\"\n")?;
    let data = dir.path().join("office/data");
    mount(&data, "160m")?;
    let mut office = Office::start(&dir.path().join("office"), &["--config", &config.to_string_lossy()])?;
    let anna = office.person("anna")?;
    let put = |name: &str, length: usize| -> Result<(String, String)> {
        let file = dir.path().join(name);
        fs::write(&file, sample::bytes(length as u64, length))?;
        Ok((file.to_string_lossy().into_owned(), format!("home:{name}")))
    };
    let check = |names: &[(&str, usize)]| -> Result<()> {
        for (name, length) in names {
            let got = anna.atrium(&["cat", "--no-cache", &format!("home:{name}")])?;
            ensure!(got.stdout == sample::bytes(*length as u64, *length), "{name} came back otherwise");
        }
        Ok(())
    };
    let (kept, small, large) = (40 * MIB + 3, 100_003, 150 * MIB + 5);
    for (name, length) in [("kept", kept), ("small", small)] {
        let (from, to) = put(name, length)?;
        anna.atrium(&["put", "--no-queue", &from, &to])?;
    }

    // More than fits: refused on the way, with the reserve untouched.
    let (from, to) = put("large", large)?;
    full(&anna, &["put", "--no-queue", &from, &to])?;
    check(&[("kept", kept), ("small", small)])?;

    // Then somebody else takes the rest, reserve and all.
    fill(&data)?;
    let (from, to) = put("late", 70_001)?;
    full(&anna, &["put", "--no-queue", &from, &to])?;
    full(&anna, &["mkdir", "home:new"])?;
    full(&anna, &["rm", "home:small"])?;
    check(&[("kept", kept), ("small", small)])?;
    let status = office.try_admin(&["admin", "status"], "")?;
    ensure!(status.code != 0 && status.text().contains("free for data"), "{}", status.text());
    ensure!(office.server()?.is_running(), "the server has ended: {}", office.server()?.log_tail());

    // With space again it goes on by itself.
    fs::remove_file(data.join("filler"))?;
    anna.atrium(&["rm", "home:kept"])?;
    anna.atrium(&["restore", "purge", "home:", "--yes"])?;
    let taken = poll(PATIENCE, || anna.try_atrium(&["put", "--no-queue", &from, &to]).is_ok_and(|p| p.code == 0));
    ensure!(taken, "no file is taken though there is space: {}", office.server()?.log_tail());
    anna.atrium(&["mkdir", "home:new"])?;
    check(&[("small", small), ("late", 70_001)])?;

    // Nothing on disk is damaged, whatever was cut off in the middle.
    office.stop()?;
    let verify = Command::new(office.program("central-server"))
        .args(["verify", "--data-dir"])
        .arg(&data)
        .output()
        .context("verify")?;
    let said = String::from_utf8_lossy(&verify.stdout);
    ensure!(verify.status.success() && said.contains("everything is whole"), "{said}");
    office.restart()?;
    anna.wait_connected()?;
    check(&[("small", small), ("late", 70_001)])
}

/// Somebody takes all space while the store writes: the race between its look at the free space and its writing.
#[test]
fn a_store_that_meets_a_full_disk_keeps_what_it_acknowledged() -> Result<()> {
    if !in_namespace("disk_full::a_store_that_meets_a_full_disk_keeps_what_it_acknowledged")? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    for (engine, round) in [EngineKind::Sled, EngineKind::Redb].into_iter().flat_map(|e| (0..4u64).map(move |r| (e, r)))
    {
        let place = dir.path().join(format!("{engine}{round}"));
        mount(&place, "32m")?;
        let settings = StoreSettings { engine, directory: place.join("store"), ..StoreSettings::default() };
        let store = Store::open(&settings)?;
        let mut acknowledged = 0u64;
        let write = |n: u64| store.transact_blocking(move |txn| txn.put(n.to_be_bytes(), sample::bytes(n, 30_000)));
        for n in 0..20 + round {
            write(n)?;
            acknowledged = n + 1;
        }
        let filling = {
            let place = place.clone();
            std::thread::spawn(move || fill(&place))
        };
        let mut refusals = 0;
        for n in acknowledged..acknowledged + 2_000 {
            match write(n) {
                Ok(_) if refusals == 0 => acknowledged = n + 1,
                Ok(_) => break,
                Err(error) => {
                    ensure!(error.is(Reason::DiskFull) || error.is(Reason::StoreFailed), "{error:?}");
                    refusals += 1;
                }
            }
            if refusals == 50 {
                break;
            }
        }
        filling.join().map_err(|_| anyhow::anyhow!("the filling thread panicked"))??;
        ensure!(refusals > 0, "the disk was never full");
        println!("{engine}: {acknowledged} acknowledged, {refusals} refused, failed: {}", store.is_failed());
        drop(store);
        fs::remove_file(place.join("filler"))?;
        let store = Store::open(&settings)?;
        ensure!(store.verify()?.is_sound(), "{engine} is damaged");
        for n in 0..acknowledged {
            let found = store.get(&n.to_be_bytes())?;
            ensure!(found.is_some_and(|v| v[..] == sample::bytes(n, 30_000)[..]), "{engine} has lost {n}");
        }
        store.transact_blocking(|txn| txn.put(*b"on it goes", "!"))?;
        drop(store);
        let status = Command::new("umount").arg(&place).status()?;
        ensure!(status.success(), "umount: {status}");
    }
    Ok(())
}
