//! Printers, drives and disks of real peer-nodes, used from others.

use anyhow::{Context, Result, ensure};
use atrium_e2e::devices::{iso, pdf};
use atrium_e2e::peers::{Peer, PeerOffice, Place};
use atrium_e2e::process::poll;
use atrium_e2e::sample;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn office(dir: &Path) -> Result<PeerOffice> {
    let office = PeerOffice::found(&dir.join("office"), &["anna", "bert", "cleo"], |_| Place::Loopback, "")?;
    office.wait_connected()?;
    Ok(office)
}

/// Documents in the folder of a printer.
fn printed(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    entries.filter(|p| p.extension().is_some_and(|e| e == "pdf")).collect()
}

fn wait_printed(folder: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let there = poll(PATIENCE, || {
        found = printed(folder);
        found.len() >= count
    });
    ensure!(there && found.len() == count, "{} documents instead of {count}", found.len());
    Ok(found)
}

/// Fails with this reason.
fn refused(peer: &Peer, arguments: &[&str], reason: &str) -> Result<()> {
    let finished = peer.try_atrium(&[arguments, &["--json"]].concat(), "")?;
    let said = finished.text() + &finished.stderr;
    ensure!(finished.code != 0 && said.contains(reason), "{arguments:?}: {} {said}", finished.code);
    Ok(())
}

#[test]
fn a_printer_is_used_by_those_who_may_and_loses_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut office = office(dir.path())?;
    let paper = dir.path().join("paper");
    let document = dir.path().join("offer.pdf");
    fs::write(&document, pdf(2))?;
    let output = format!("folder:{}", text(&paper));
    let [anna, bert, cleo] = &mut office.peers[..] else { unreachable!() };
    anna.atrium(&["share", "printers/laser", "--output", &output, "--with", "bert"])?;
    let address = "acme/anna/printers/laser";
    bert.wait_until(&["devices", "--json"], |a| a.contains(address))?;

    // Whoever may not see it is told that it is not there.
    let seen = cleo.atrium(&["devices", "--json"])?.text();
    ensure!(!seen.contains("laser"), "cleo sees it: {seen}");
    refused(cleo, &["print", text(&document), "--at", address], "RESOURCE_UNKNOWN")?;

    bert.atrium(&["print", text(&document), "--at", address])?;
    let found = wait_printed(&paper, 1)?;
    assert_eq!(fs::read(&found[0])?, fs::read(&document)?);
    fs::remove_file(&found[0])?;

    // Jobs wait while it is paused; a kill of the printer's machine loses none and doubles none.
    anna.atrium(&["printer", "pause", "printers/laser"])?;
    for _ in 0..5 {
        bert.atrium(&["print", text(&document), "--at", address])?;
    }
    anna.kill()?;
    anna.restart()?;
    bert.wait_until(&["jobs", "--json"], |a| a.matches("\"pending\"").count() == 5)?;
    ensure!(printed(&paper).is_empty(), "printed although paused");
    anna.atrium(&["printer", "resume", "printers/laser"])?;
    wait_printed(&paper, 5)?;
    bert.wait_until(&["jobs", "--json"], |a| !a.contains("\"pending\""))?;
    ensure!(printed(&paper).len() == 5, "a job was printed twice");

    let audit = anna.atrium(&["devices", "--audit", "--verify", "--json"])?.text();
    ensure!(audit.contains("RESOURCE_UNKNOWN") && audit.contains("cleo"), "the refusal is not in the audit: {audit}");
    Ok(())
}

#[test]
fn a_disc_is_read_by_many_held_by_one_and_never_mixed_up() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("content");
    fs::create_dir_all(folder.join("letters"))?;
    sample::file(&folder.join("film.bin"), 5, 6_000_000)?;
    fs::write(folder.join("letters/an old letter.txt"), "dear bert\n")?;
    let (first, second) = (dir.path().join("first.iso"), dir.path().join("second.iso"));
    if !iso(&folder, &first, "FIRST")? {
        println!("skipped: neither xorriso nor genisoimage is installed");
        return Ok(());
    }
    fs::write(folder.join("letters/another.txt"), "dear cleo\n")?;
    iso(&folder, &second, "SECOND")?;
    let office = office(dir.path())?;
    let [anna, bert, cleo] = &office.peers[..] else { unreachable!() };
    anna.atrium(&["share", "drives/dvd", "--image", text(&first), "--with", "everyone=write"])?;
    let address = "acme/anna/drives/dvd";
    bert.wait_until(&["devices", "--json"], |a| a.contains("FIRST"))?;

    // Files, as files.
    bert.atrium(&["ls", address])?;
    let letter = bert.atrium(&["cat", &format!("{address}/letters/an old letter.txt")])?.text();
    assert_eq!(letter, "dear bert\n");
    let film = dir.path().join("film.bin");
    bert.atrium(&["get", &format!("{address}/film.bin"), text(&film)])?;
    assert_eq!(fs::read(&film)?, fs::read(folder.join("film.bin"))?);

    // The whole disc; what one has read, the next one gets from there.
    let (to_bert, to_cleo) = (dir.path().join("bert.iso"), dir.path().join("cleo.iso"));
    bert.atrium(&["disc", "rip", address, text(&to_bert)])?;
    let told = cleo.atrium(&["disc", "rip", address, text(&to_cleo), "--json"])?;
    let told = told.text() + &told.stderr;
    ensure!(told.contains("acme/bert"), "cleo got nothing from bert: {told}");
    for image in [&to_bert, &to_cleo] {
        ensure!(fs::read(image)? == fs::read(&first)?, "{} is not the disc", image.display());
    }

    // One holds it alone; the other one is refused, told by whom, and can ask.
    bert.atrium(&["use", address])?;
    refused(cleo, &["use", address], "RESOURCE_BUSY")?;
    refused(cleo, &["disc", "eject", address], "RESOURCE_BUSY")?;
    cleo.atrium(&["request", address, "just for a minute"])?;
    bert.atrium(&["disc", "eject", address])?;
    refused(cleo, &["cat", &format!("{address}/film.bin")], "TRAY_OPEN")?;
    bert.atrium(&["release", address])?;

    // Another disc: what was begun with the first one ends with an error and no mixture.
    anna.atrium(&["disc", "insert", "drives/dvd", text(&second)])?;
    cleo.wait_until(&["devices", "--json"], |a| a.contains("SECOND"))?;
    let again = dir.path().join("again.iso");
    cleo.atrium(&["disc", "rip", address, text(&again)])?;
    ensure!(fs::read(&again)? == fs::read(&second)?, "the second disc came out wrong");
    Ok(())
}

#[test]
fn borrowed_space_is_ones_own_and_ends() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let office = office(dir.path())?;
    let [anna, bert, cleo] = &office.peers[..] else { unreachable!() };
    let lent = dir.path().join("lent");
    fs::create_dir_all(&lent)?;
    let share =
        ["share", "disks/big", "--folder", text(&lent), "--size", "20MiB", "--reserve", "1MiB", "--with", "bert"];
    anna.atrium(&share)?;
    let address = "acme/anna/disks/big";
    bert.wait_until(&["devices", "--json"], |a| a.contains(address))?;
    refused(cleo, &["space", "borrow", address, "1MiB"], "RESOURCE_UNKNOWN")?;
    bert.atrium(&["space", "borrow", address, "8MiB", "--for", "1h", "--label", "work"])?;
    let file = dir.path().join("data.bin");
    sample::file(&file, 9, 5_000_000)?;
    bert.atrium(&["space", "put", "work", text(&file)])?;
    refused(bert, &["space", "put", "work", text(&file), "second.bin"], "SPACE_FULL")?;
    let back = dir.path().join("back.bin");
    bert.atrium(&["space", "get", "work", "data.bin", text(&back)])?;
    assert_eq!(fs::read(&back)?, fs::read(&file)?);
    refused(anna, &["unshare", "disks/big"], "RESOURCE_BUSY")?;
    bert.atrium(&["space", "return", "work", "--yes"])?;
    let listed = bert.atrium(&["space", "list", "--json"])?.text();
    ensure!(!listed.contains("work"), "still there: {listed}");
    let left = poll(PATIENCE, || size_of(&lent) < 1_000_000);
    ensure!(left, "{} bytes are left in the lent folder", size_of(&lent));
    anna.atrium(&["unshare", "disks/big"])?;
    Ok(())
}

fn size_of(folder: &Path) -> u64 {
    let mut open = vec![folder.to_owned()];
    let mut sum = 0;
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => open.push(entry.path()),
                Ok(meta) => sum += meta.len(),
                Err(_) => {}
            }
        }
    }
    sum
}

#[test]
fn a_share_has_a_second_copy_that_its_lender_cannot_read() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let office = office(dir.path())?;
    let [anna, bert, _] = &office.peers[..] else { unreachable!() };
    let lent = dir.path().join("lent");
    fs::create_dir_all(&lent)?;
    anna.atrium(&[
        "share",
        "disks/big",
        "--folder",
        text(&lent),
        "--size",
        "100MiB",
        "--reserve",
        "1MiB",
        "--with",
        "bert",
    ])?;
    let plans = dir.path().join("plans");
    fs::create_dir_all(plans.join("old"))?;
    fs::write(plans.join("secret.txt"), "the secret of the house\n".repeat(100))?;
    sample::file(&plans.join("old/hall.dwg"), 3, 3_000_000)?;
    bert.atrium(&["share", text(&plans), "--name", "plans", "--with", "cleo"])?;
    bert.wait_until(&["devices", "--json"], |a| a.contains("disks/big"))?;
    bert.atrium(&["space", "mirror", "plans", "acme/anna/disks/big"])?;
    let readable = std::process::Command::new("grep").args(["-rl", "secret of the house"]).arg(&lent).output()?;
    ensure!(readable.stdout.is_empty(), "the lender can read it: {}", String::from_utf8_lossy(&readable.stdout));
    fs::remove_dir_all(plans.join("old"))?;
    let back = dir.path().join("restored");
    bert.atrium(&["space", "restore", "plans", text(&back)])?;
    assert_eq!(fs::read(back.join("secret.txt"))?, fs::read(plans.join("secret.txt"))?);
    assert_eq!(fs::read(back.join("old/hall.dwg")).context("what was deleted since")?, {
        let again = dir.path().join("again");
        sample::file(&again, 3, 3_000_000)?;
        fs::read(again)?
    });
    Ok(())
}
