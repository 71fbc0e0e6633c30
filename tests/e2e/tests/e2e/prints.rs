//! Documents that go through the central server's queues to a printer of a peer-node, with all programs as they are.

use crate::hybrid::{attach, server};
use anyhow::{Context, Result, ensure};
use atrium_e2e::devices::pdf;
use atrium_e2e::office::{Office, Person};
use atrium_e2e::peers::{Peer, PeerOffice, Place};
use atrium_e2e::process::poll;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
/// The printer's name at the server.
const LASER: &str = "laser.anna";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Anna's machine has a printer, a folder; bert has an account at the server, and an agent.
struct Shop {
    dir: tempfile::TempDir,
    peers: PeerOffice,
    server: Office,
    bert: Person,
}

impl Shop {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let peers = PeerOffice::found(&dir.path().join("office"), &["anna"], |_| Place::Loopback, "")?;
        let server = server(&dir.path().join("server"), Place::Loopback)?;
        attach(&peers, &server)?;
        let bert = server.person("bert")?;
        let shop = Self { dir, peers, server, bert };
        shop.share()?;
        Ok(shop)
    }

    fn paper(&self) -> PathBuf {
        self.dir.path().join("paper")
    }

    fn anna(&mut self) -> &mut Peer {
        &mut self.peers.peers[0]
    }

    /// Shares the printer with everyone, and lets everyone of the server print on it.
    fn share(&self) -> Result<()> {
        let output = format!("folder:{}", text(&self.paper()));
        let share = ["share", "printers/laser", "--output", &output, "--duplex", "--with", "everyone"];
        self.peers.peers[0].atrium(&share)?;
        self.wait_printer("is offered", |p| p.is_some())?;
        self.server.admin(&["admin", "printers", "grant", LASER, "everyone=write"], "").map(drop)
    }

    /// The printer as the server shows it.
    fn printer(&self) -> Result<Option<Value>> {
        let list = self.server.admin(&["admin", "printers", "list", "--json"], "")?.json()?;
        Ok(list["items"].as_array().context("items")?.iter().find(|p| p["name"] == LASER).cloned())
    }

    fn wait_printer(&self, what: &str, is_so: impl Fn(Option<&Value>) -> bool) -> Result<()> {
        let mut last = None;
        let so = poll(PATIENCE, || {
            last = self.printer().ok().flatten();
            is_so(last.as_ref())
        });
        ensure!(so, "it never came to this, that the printer {what}: {last:?}\n{}", self.peers.peers[0].log_tail());
        Ok(())
    }

    fn printer_is(&self, state: &str) -> Result<()> {
        self.wait_printer(state, |p| p.is_some_and(|p| p["state"] == state))
    }

    /// A document that no other one is equal to.
    fn document(&self, name: &str, pages: usize, bytes: usize) -> Result<PathBuf> {
        let path = self.dir.path().join(format!("{name}.pdf"));
        let mut content = pdf(pages);
        content.extend_from_slice(format!("\n%{name}\n").as_bytes());
        let filled = content.len().max(bytes);
        content.resize(filled, b'\n');
        fs::write(&path, content)?;
        Ok(path)
    }

    /// Hands a document over; the job's id.
    fn print(&self, document: &Path, more: &[&str]) -> Result<String> {
        let print = ["print", text(document), "--via-server", LASER, "--json"];
        let job = self.bert.atrium(&[&print, more].concat())?.json()?;
        Ok(job["id"].as_str().context("a job's id")?.to_owned())
    }

    /// Hands over so many documents: each one's job, and what has to come out.
    fn print_some(&self, what: &str, count: usize, bytes: usize) -> Result<BTreeMap<String, Vec<u8>>> {
        let one = |n| {
            let document = self.document(&format!("{what}-{n}"), 1, bytes)?;
            Ok((self.print(&document, &[])?, fs::read(&document)?))
        };
        (0..count).map(one).collect()
    }

    fn job(&self, id: &str) -> Result<Value> {
        let list = self.bert.atrium(&["jobs", "--server-queue", "--all", "--json"])?.json()?;
        let found = list["items"].as_array().context("items")?.iter().find(|j| j["id"] == id).cloned();
        found.with_context(|| format!("no job {id} in {list}"))
    }

    fn wait_job(&self, id: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let so = poll(PATIENCE, || {
            last = self.job(id).unwrap_or_default();
            is_so(&last)
        });
        let log = self.peers.peers[0].log_tail();
        ensure!(so, "it never came to this, that the job is {what}: {last}\n{log}");
        Ok(last)
    }

    fn job_is(&self, id: &str, state: &str) -> Result<Value> {
        self.wait_job(id, state, |j| j["state"] == state)
    }

    /// What came out of the printer.
    fn printed(&self) -> Vec<Vec<u8>> {
        let entries = fs::read_dir(self.paper()).into_iter().flatten().flatten().map(|e| e.path());
        let pages = entries.filter(|p| p.extension().is_some_and(|e| e == "pdf"));
        pages.filter_map(|p| fs::read(p).ok()).collect()
    }

    /// Waits until all of them are completed; each has come out once, whole, and nothing else has.
    fn printed_once(&self, expected: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        for id in expected.keys() {
            let job = self.job_is(id, "completed")?;
            ensure!(job["may_be_printed_twice"] == false, "it says that it may be on paper twice: {job}");
        }
        let mut printed = self.printed();
        let mut wanted: Vec<Vec<u8>> = expected.values().cloned().collect();
        printed.sort();
        wanted.sort();
        ensure!(printed.len() == wanted.len(), "{} documents came out instead of {}", printed.len(), wanted.len());
        ensure!(printed == wanted, "other bytes came out than went in");
        Ok(())
    }

    /// What bert has printed, by the server's account: jobs and sheets.
    fn account(&self) -> Result<(u64, u64)> {
        let list = self.server.admin(&["admin", "printers", "accounts", "--json"], "")?.json()?;
        let his = list["items"].as_array().context("items")?.iter().find(|a| a["user"] == "bert").cloned();
        let count = |name: &str| his.as_ref().and_then(|a| a[name].as_u64()).unwrap_or(0);
        Ok((count("job_count"), count("sheets")))
    }

    /// Holds up the folder, or lets it go on.
    fn fault(&self, words: &str) -> Result<()> {
        fs::create_dir_all(self.paper())?;
        Ok(fs::write(self.paper().join(".fault"), words)?)
    }
}

#[test]
fn a_document_comes_out_as_it_went_in_and_is_accounted_for() -> Result<()> {
    let mut shop = Shop::new()?;
    let document = shop.document("offer", 3, 0)?;
    let id = shop.print(&document, &["--copies", "2", "--sides", "long"])?;
    let job = shop.job_is(&id, "completed")?;
    let printed = shop.printed();
    ensure!(printed == [fs::read(&document)?], "{} documents came out, or other bytes", printed.len());
    // Three pages on both sides are two sheets, twice.
    ensure!(job["sheets"] == 4 && job["user"] == "bert", "{job}");
    assert_eq!(shop.account()?, (1, 4));

    // A job that is canceled while it waits at the printer's machine never comes out and costs nothing.
    shop.anna().atrium(&["printer", "pause", "printers/laser"])?;
    let unwanted = shop.print(&document, &[])?;
    shop.job_is(&unwanted, "taken")?;
    shop.bert.atrium(&["jobs", "cancel-at-server", &unwanted])?;
    shop.job_is(&unwanted, "canceled")?;
    shop.anna().atrium(&["printer", "resume", "printers/laser"])?;
    assert_eq!(shop.account()?, (1, 4));

    // One with a PIN waits at the server until it is stated there.
    let (pin, wrong) = (shop.dir.path().join("pin.txt"), shop.dir.path().join("wrong.txt"));
    fs::write(&pin, "0815\n")?;
    fs::write(&wrong, "4711\n")?;
    let secret = shop.print(&document, &["--pin-file", text(&pin), "--priority", "80"])?;
    let job = shop.job(&secret)?;
    ensure!(job["state"] == "held" && job["needs_pin"] == true && job["priority"] == 80, "{job}");
    let release = |file: &Path| shop.bert.try_atrium(&["jobs", "release-at-server", &secret, "--pin-file", text(file)]);
    let refused = release(&wrong)?;
    ensure!(refused.code != 0 && refused.stderr.contains("PIN"), "{}", refused.stderr);
    ensure!(shop.job(&secret)?["state"] == "held", "released by a wrong PIN");
    shop.bert.atrium(&["jobs", "priority-at-server", &secret, "90"])?;
    ensure!(release(&pin)?.code == 0, "the right PIN is refused");
    ensure!(shop.job_is(&secret, "completed")?["priority"] == 90);
    assert_eq!((shop.account()?, shop.printed().len()), ((2, 7), 2));

    // The next one that he may still begin is printed to its end; the one after it is refused, and says why.
    shop.server.admin(&["admin", "printers", "quota", "bert", "--sheets", "9"], "")?;
    let last = shop.print(&document, &[])?;
    let sheets = shop.job_is(&last, "completed")?["sheets"].clone();
    ensure!(sheets == 3, "{sheets} sheets");
    let refused = shop.bert.try_atrium(&["print", text(&document), "--via-server", LASER, "--json"])?;
    let said = refused.text() + &refused.stderr;
    ensure!(refused.code != 0 && said.contains("PRINT_QUOTA_EXCEEDED"), "{said}");
    assert_eq!((shop.account()?, shop.printed().len()), ((3, 10), 3));
    Ok(())
}

#[test]
fn kills_of_the_machine_and_of_the_server_lose_nothing_and_double_nothing() -> Result<()> {
    let mut shop = Shop::new()?;
    // Between being pulled and being printed: the machine dies, then the server, and both come back.
    shop.anna().atrium(&["printer", "pause", "printers/laser"])?;
    let mut all = shop.print_some("pulled", 3, 0)?;
    for id in all.keys() {
        shop.job_is(id, "taken")?;
    }
    shop.anna().kill()?;
    shop.server.kill()?;
    shop.server.restart()?;
    shop.anna().restart()?;
    ensure!(shop.printed().is_empty(), "printed although paused");
    shop.anna().atrium(&["printer", "resume", "printers/laser"])?;
    shop.printed_once(&all)?;

    // In the middle of being printed.
    shop.fault("jam 0")?;
    let jammed = shop.print_some("jammed", 1, 0)?;
    for id in jammed.keys() {
        shop.job_is(id, "stopped")?;
    }
    shop.anna().kill()?;
    shop.fault("")?;
    shop.anna().restart()?;
    all.extend(jammed);
    shop.printed_once(&all)?;

    // The server dies when the machine has the jobs, and they are printed while it is away.
    shop.anna().atrium(&["printer", "pause", "printers/laser"])?;
    let more = shop.print_some("away", 2, 0)?;
    for id in more.keys() {
        shop.job_is(id, "taken")?;
    }
    shop.server.kill()?;
    shop.anna().atrium(&["printer", "resume", "printers/laser"])?;
    all.extend(more);
    let out = poll(PATIENCE, || shop.printed().len() == all.len());
    ensure!(out, "{} of {} came out without the server", shop.printed().len(), all.len());
    shop.server.restart()?;
    shop.printed_once(&all)?;

    // The server dies when the jobs wait for a machine that is off.
    shop.anna().kill()?;
    all.extend(shop.print_some("waiting", 2, 0)?);
    shop.server.kill()?;
    shop.server.restart()?;
    shop.anna().restart()?;
    shop.printed_once(&all)?;

    // Whatever is going on at the moment, with documents that take a while to fetch.
    for round in 0..4 {
        all.extend(shop.print_some(&format!("round{round}"), 2, 24 << 20)?);
        if round % 2 == 0 {
            shop.anna().kill()?;
            shop.anna().restart()?;
        } else {
            shop.server.kill()?;
            shop.server.restart()?;
        }
    }
    shop.printed_once(&all)?;
    assert_eq!(shop.account()?, (all.len() as u64, all.len() as u64));
    Ok(())
}

#[test]
fn the_queue_says_when_its_printer_is_stopped_away_or_not_shared_any_more() -> Result<()> {
    let mut shop = Shop::new()?;
    // Without paper.
    shop.fault("empty")?;
    let mut all = shop.print_some("hungry", 1, 0)?;
    shop.wait_printer("has no paper", |p| {
        p.is_some_and(|p| p["state"] == "stopped" && p["state_reason"].to_string().contains("media-empty"))
    })?;
    let id = all.keys().next().context("a job")?.clone();
    shop.wait_job(&id, "told why", |j| j["state_reason"].to_string().contains("media-empty"))?;
    shop.fault("")?;
    shop.printed_once(&all)?;
    shop.printer_is("idle")?;

    // Its machine is off: said at once, not when it was silent for long.
    shop.anna().kill()?;
    shop.printer_is("away")?;
    all.extend(shop.print_some("patient", 1, 0)?);
    for id in all.keys().filter(|id| shop.job(id).is_ok_and(|j| j["state"] != "completed")) {
        let job = shop.job(id)?;
        ensure!(job["state"] == "pending" && job["state_reason"].to_string().contains("away"), "{job}");
    }
    shop.anna().restart()?;
    shop.printed_once(&all)?;

    // It is shared no more while a job waits at the machine: refused, then forced; the job says that it was canceled.
    shop.anna().atrium(&["printer", "pause", "printers/laser"])?;
    let canceled = shop.print(&shop.document("unwanted", 1, 0)?, &[])?;
    shop.job_is(&canceled, "taken")?;
    let refused = shop.anna().try_atrium(&["unshare", "printers/laser", "--json"], "")?;
    ensure!(refused.code != 0 && (refused.text() + &refused.stderr).contains("RESOURCE_BUSY"));
    shop.anna().atrium(&["unshare", "printers/laser", "--force"])?;
    shop.wait_printer("is gone", |p| p.is_none())?;
    shop.job_is(&canceled, "canceled")?;
    shop.printed_once(&all)?;

    // One whose name the server does not take is shared among the peers, and its owner is told.
    let output = format!("folder:{}", text(&shop.dir.path().join("other")));
    shop.anna().atrium(&["share", "printers/3d", "--output", &output, "--with", "everyone"])?;
    let own = ["devices", "printers/3d", "--own", "--json"];
    shop.anna().wait_until(&own, |said| said.contains("does not take it as 3d.anna"))?;
    shop.anna().atrium(&["unshare", "printers/3d"])?;

    // The server hears of it also if it was away meanwhile, with a job that waits there.
    shop.share()?;
    let stopped = shop.anna().stop();
    stopped?;
    let lost = shop.print(&shop.document("lost", 1, 0)?, &[])?;
    shop.server.kill()?;
    shop.anna().restart()?;
    shop.anna().atrium(&["unshare", "printers/laser"])?;
    shop.anna().kill()?;
    shop.server.restart()?;
    shop.wait_printer("is still known", |p| p.is_some())?;
    shop.anna().restart()?;
    shop.wait_printer("is gone", |p| p.is_none())?;
    let job = shop.job_is(&lost, "canceled")?;
    ensure!(job["state_reason"].to_string().contains("removed"), "{job}");
    let refused = shop.bert.try_atrium(&["print", text(&shop.document("late", 1, 0)?), "--via-server", LASER])?;
    ensure!(refused.code != 0, "{}", refused.text());
    shop.printed_once(&all)
}
