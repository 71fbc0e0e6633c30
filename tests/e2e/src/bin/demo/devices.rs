//! The third part of the demonstration: a printer, a drive and disk space of one machine, used from others.

use super::{figures, say, text, timed};
use anyhow::{Context, Result, ensure};
use atrium_e2e::devices::{iso, pdf, program};
use atrium_e2e::peers::{PeerOffice, Place};
use atrium_e2e::process::poll;
use atrium_e2e::{compare, sample};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn demo(dir: &Path) -> Result<()> {
    say("\nA printer, a disc drive and a disk of one machine, used from two others.\n");
    let office = PeerOffice::found(&dir.join("devices"), &["anna-pc", "bert-pc", "cleo-pc"], |_| Place::Loopback, "")?;
    office.wait_connected()?;
    let [anna, bert, cleo] = &office.peers[..] else { anyhow::bail!("three peers were started") };

    let paper = dir.join("paper");
    anna.atrium(&["share", "printers/laser", "--output", &format!("folder:{}", text(&paper)), "--with", "everyone"])?;
    let document = dir.join("offer.pdf");
    fs::write(&document, pdf(3))?;
    let (_, took) = timed(|| bert.atrium(&["print", text(&document), "--at", "acme/anna-pc/printers/laser"]))?;
    let printed = one_file(&paper, 1)?;
    compare::files(&document, &printed[0])?;
    say(format!(
        "15. Bert printed a PDF of three pages on Anna's printer: safe after {:.0} ms, and the pages are equal.",
        took.as_secs_f64() * 1e3
    ));
    if let Some(ipptool) = program("ipptool") {
        let uri = ipp_uri(&bert.atrium(&["devices", "acme/anna-pc/printers/laser", "--json"])?.text())?;
        let output = Command::new(ipptool)
            .args(["-t", "-f", text(&document), &uri, "print-job.test"])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains("[PASS]") && !said.contains("[FAIL]"), "ipptool: {said}");
        for page in one_file(&paper, 2)? {
            compare::files(&document, &page)?;
        }
        say("    ipptool, a program that is not ours, printed the same PDF over IPP: equal.");
    } else {
        say("    (ipptool is not installed; with Debian's cups-ipp-utils it would print here, too)");
    }

    let folder = sample::tree()?.join("std/primitive");
    let folder = if folder.is_dir() { folder } else { sample::tree()? };
    let image = dir.join("disc.iso");
    if iso(&folder, &image, "DOCUMENTS")? {
        anna.atrium(&["share", "drives/dvd", "--image", text(&image), "--with", "everyone"])?;
        let back = dir.join("disc-back");
        let (_, took) = timed(|| bert.atrium(&["get", "acme/anna-pc/drives/dvd", text(&back)]))?;
        let same = compare::trees(&folder, &back)?;
        say(format!(
            "16. Anna's drive has a disc; Bert read its {} files from his machine ({}): equal.",
            same.files,
            figures(same.bytes, took)
        ));
        let ripped = dir.join("ripped.iso");
        let size = fs::metadata(&image)?.len();
        let (_, took) = timed(|| cleo.atrium(&["disc", "rip", "acme/anna-pc/drives/dvd", text(&ripped)]))?;
        compare::files(&image, &ripped)?;
        say(format!("    Cleo copied the whole disc: {} - equal.", figures(size, took)));
    } else {
        say("16. (neither xorriso nor genisoimage is installed; with one of them a disc would be read here)");
    }

    let lent = dir.join("lent");
    fs::create_dir_all(&lent)?;
    let disk = ["share", "disks/big", "--folder", text(&lent), "--size", "1GiB", "--reserve", "1MiB"];
    anna.atrium(&[&disk[..], &["--with", "everyone"]].concat())?;
    cleo.atrium(&["space", "borrow", "acme/anna-pc/disks/big", "200MiB", "--for", "1h", "--label", "video"])?;
    let film = dir.join("film.bin");
    sample::file(&film, 31, 100 << 20)?;
    let (_, took) = timed(|| cleo.atrium(&["space", "put", "video", text(&film)]))?;
    let back = dir.join("film-back.bin");
    cleo.atrium(&["space", "get", "video", "film.bin", text(&back)])?;
    compare::files(&film, &back)?;
    cleo.atrium(&["space", "return", "video", "--yes"])?;
    say(format!(
        "17. Cleo borrowed 200 MiB of Anna's disk for an hour, kept a file there ({}), got it back - equal - and returned it.",
        figures(100 << 20, took)
    ));
    let audit = anna.atrium(&["devices", "--audit", "--verify"])?.text();
    ensure!(!audit.is_empty(), "no audit");
    say("    Every grant is in the audit of Anna's machine, and its chain is whole.");
    let mut office = office;
    for peer in &mut office.peers {
        peer.stop()?;
    }
    Ok(())
}

/// The files in a folder once there are so many.
fn one_file(folder: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let there = poll(PATIENCE, || {
        found = files(folder);
        found.len() == count
    });
    ensure!(there, "{} has {} files and not {count}", folder.display(), found.len());
    Ok(found)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "pdf")).collect()
}

fn ipp_uri(json: &str) -> Result<String> {
    let start = json.find("ipp://").context("the printer has no address for programs")?;
    let rest = &json[start..];
    Ok(rest[..rest.find('"').context("an address without end")?].to_owned())
}
