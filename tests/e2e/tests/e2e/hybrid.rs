//! Both networks at once: an office of peers with a central server.

use anyhow::{Context, Result, ensure};
use atrium_e2e::office::Office;
use atrium_e2e::peers::{Peer, PeerOffice, Place};
use atrium_e2e::process::poll;
use atrium_e2e::{compare, sample};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::rc::Rc;
use std::time::Duration;
use testkit::lab::{Lab, MachineId};

const PATIENCE: Duration = Duration::from_secs(120);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn password(name: &str) -> String {
    format!("correct horse {name}")
}

/// A server with its administrator "boss" and the public directory "plans" that everyone may read.
pub fn server(directory: &Path, place: Place) -> Result<Office> {
    let office = Office::start_at(directory, place, &[])?;
    office.admin(&["admin", "users", "add", "boss", "--role", "admin", "--password-file", "-"], &password("boss"))?;
    public(&office, "plans", "everyone")?;
    Ok(office)
}

fn public(office: &Office, name: &str, with: &str) -> Result<()> {
    let path = format!("public:{name}");
    office.admin(&["admin", "directories", "add", &path], "")?;
    office.admin(&["share", &path, "--with", with, "--right", "read"], "").map(drop)
}

/// Runs the command line at a machine as somebody of the server, by the network.
fn at_server(peer: &Peer, office: &Office, arguments: &[&str], input: &str) -> Result<String> {
    let (address, ca) = (office.address().to_string(), office.ca_file());
    let mut all = vec!["--server", &address, "--ca", text(&ca)];
    all.extend(arguments);
    let done = peer.try_atrium(&all, input)?;
    ensure!(done.code == 0, "atrium {all:?} ended with {}:\n{}{}", done.code, done.text(), done.stderr);
    Ok(done.text())
}

/// The first machine brings the server in; waits until all have joined it.
pub fn attach(peers: &PeerOffice, office: &Office) -> Result<String> {
    let first = &peers.peers[0];
    at_server(first, office, &["login", "boss", "--password-file", "-"], &password("boss"))?;
    let said = first.atrium(&["office", "attach", &office.address().to_string(), "--ca", text(&office.ca_file())])?;
    for peer in &peers.peers {
        peer.wait_until(&["status", "--json"], |a| a.contains("\"server_joined\":true") || joined(a))?;
    }
    Ok(said.text())
}

fn joined(status: &str) -> bool {
    let status: serde_json::Value = serde_json::from_str(status).unwrap_or_default();
    status["peer"]["server_joined"] == true
}

/// A person with an account, signed in by the peer.
fn sign_in(peer: &Peer, office: &Office, name: &str) -> Result<()> {
    office.add_user(name, &password(name))?;
    let done = peer.try_atrium(&["login", name, "--password-file", "-"], &password(name))?;
    ensure!(done.code == 0, "{name} cannot sign in: {}", done.stderr);
    Ok(())
}

/// Puts a file of this size into public:plans.
fn big_file(peer: &Peer, office: &Office, at: &Path, bytes: u64) -> Result<PathBuf> {
    fs::create_dir_all(at)?;
    let file = at.join("big.bin");
    sample::file(&file, 7, bytes)?;
    at_server(peer, office, &["put", text(&file), "public:plans/big.bin"], "")?;
    Ok(file)
}

fn newest_transfer(peer: &Peer) -> serde_json::Value {
    let answer = peer.try_atrium(&["transfers", "--json"], "").ok().and_then(|f| f.json().ok());
    answer.map(|a| a["items"][0].clone()).unwrap_or_default()
}

/// Bytes that came from the server, and bytes that are there.
fn progress(peer: &Peer) -> (u64, u64) {
    let transfer = newest_transfer(peer);
    let sources = transfer["sources"].as_array().cloned().unwrap_or_default();
    let of_server = sources.iter().filter(|s| s["node_name"] == "server");
    (of_server.filter_map(|s| s["received_bytes"].as_u64()).sum(), transfer["done_bytes"].as_u64().unwrap_or(0))
}

fn end_well(gets: Vec<Child>, peers: &[Peer]) -> Result<()> {
    for (mut get, peer) in gets.into_iter().zip(peers) {
        let mut ended = None;
        poll(PATIENCE, || {
            ended = get.try_wait().ok().flatten();
            ended.is_some()
        });
        let ok = ended.is_some_and(|s| s.success());
        if ended.is_none() {
            get.kill()?;
            get.wait()?;
        }
        ensure!(ok, "{}: {ended:?}, {}\n{}", peer.name, newest_transfer(peer), peer.log_tail());
    }
    Ok(())
}

#[test]
fn an_office_gets_a_server_and_keeps_names_members_and_shares() {
    let dir = tempfile::tempdir().unwrap();
    let mut peers = PeerOffice::found(dir.path(), &["anna", "bert", "cleo"], |_| Place::Loopback, "").unwrap();
    peers.wait_connected().unwrap();
    let source = dir.path().join("work");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("a.txt"), "a").unwrap();
    peers.peers[0].atrium(&["share", text(&source), "--name", "work", "--with", "everyone"]).unwrap();
    peers.peers[1].wait_until(&["ls", "acme/anna/work"], |a| a.contains("a.txt")).unwrap();
    let members = |peer: &Peer| {
        let all = peer.atrium(&["members", "--json"]).unwrap().json().unwrap();
        let name = |m: &serde_json::Value| (m["display_name"].to_string(), m["device_id"].to_string());
        all["items"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    let before = members(&peers.peers[2]);
    let mut office = server(&dir.path().join("server"), Place::Loopback).unwrap();
    let said = attach(&peers, &office).unwrap();
    assert!(said.contains("3 machines have joined it"), "{said}");
    for peer in &peers.peers {
        assert_eq!(members(peer), before, "{}", peer.name);
        assert_eq!(peer.atrium(&["cat", "acme/anna/work/a.txt"]).unwrap().text(), "a");
    }
    // The same again says the same, and a machine that was off joins when it is back: also after a restart of both.
    let again = peers.peers[0].atrium(&["office", "attach", &office.address().to_string()]).unwrap().text();
    assert!(again.contains("3 machines have joined it"), "{again}");
    let code = peers.peers[0].atrium(&["invite", "--for", "dora"]).unwrap().text();
    let seeds = peers.peers[0].addresses().to_vec();
    let dora = Peer::start(&dir.path().join("dora"), "dora", Place::Loopback, &seeds, "").unwrap();
    let join = ["join", &seeds[0].to_string(), "--code-file", "-", "--name", "dora"];
    assert_eq!(dora.try_atrium(&join, code.trim()).unwrap().code, 0);
    dora.wait_until(&["status", "--json"], joined).unwrap();
    office.restart().ok();
    peers.peers[0].kill().unwrap();
    peers.peers[0].restart().unwrap();
    peers.peers[0].wait_until(&["status", "--json"], joined).unwrap();
    // A member that may not manage the office cannot give it another server.
    let other = at_server(&peers.peers[1], &office, &["login", "boss", "--password-file", "-"], &password("boss"));
    other.unwrap();
    let refused = peers.peers[1].try_atrium(&["office", "attach", &office.address().to_string()], "").unwrap();
    assert_ne!(refused.code, 0, "{}", refused.text());
}

#[test]
fn what_is_on_the_server_is_listed_beside_the_shares_found_read_and_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let peers = PeerOffice::found(dir.path(), &["anna", "bert"], |_| Place::Loopback, "").unwrap();
    peers.wait_connected().unwrap();
    let office = server(&dir.path().join("server"), Place::Loopback).unwrap();
    attach(&peers, &office).unwrap();
    let [anna, bert] = &peers.peers[..] else { unreachable!() };
    // Bert's machine has an agent too, and so he is signed in.
    let agent = office.person("bert").unwrap();
    fs::create_dir_all(bert.directory().join("atrium")).unwrap();
    std::os::unix::fs::symlink(agent.socket(), bert.directory().join("atrium/agent.sock")).unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("hall/old")).unwrap();
    fs::create_dir_all(source.join("empty")).unwrap();
    for n in 0..30u64 {
        fs::write(source.join(format!("hall/old/{n:02}.txt")), sample::bytes(n, 50 + n as usize * 99)).unwrap();
    }
    sample::file(&source.join("hall/plan.pdf"), 3, 5_000_000).unwrap();
    at_server(anna, &office, &["put", text(&source), "public:plans/site"], "").unwrap();
    let office_list = bert.wait_until(&["ls", "acme"], |a| a.contains("server/public/plans/")).unwrap();
    assert!(office_list.starts_with("anna/\n"), "{office_list}");
    let top = bert.atrium(&["ls", "acme/server", "--json"]).unwrap().json().unwrap();
    let addresses: Vec<&str> = top["items"].as_array().unwrap().iter().filter_map(|i| i["address"].as_str()).collect();
    assert_eq!(addresses, ["acme/server/home", "acme/server/public/plans"], "{top}");
    assert_eq!(top["items"][1]["type"], "server_directory");
    let all = bert.atrium(&["ls", "--recursive", "acme/server/public/plans"]).unwrap().text();
    assert_eq!(all.lines().count(), 5 + 30, "{all}");
    let everything = bert.atrium(&["ls", "--recursive", "acme"]).unwrap().text();
    assert!(everything.contains("acme/server/public/plans/site/hall/plan.pdf"), "{everything}");
    let found = bert.atrium(&["find", "PLAN.pdf"]).unwrap().text();
    assert!(found.contains("acme/server/public/plans/site/hall/plan.pdf"), "{found}");
    let below = bert.atrium(&["find", "07", "--below", "acme/server/public"]).unwrap().text();
    assert_eq!(below.trim(), "acme/server/public/plans/site/hall/old/07.txt");
    let to = dir.path().join("got");
    bert.atrium(&["get", "acme/server/public/plans/site", text(&to)]).unwrap();
    compare::trees(&source, &to).unwrap();
    let read = bert.atrium(&["cat", "acme/server/public/plans/site/hall/plan.pdf"]).unwrap();
    assert!(read.stdout == fs::read(source.join("hall/plan.pdf")).unwrap());
    let status = bert.atrium(&["status"]).unwrap().text();
    assert!(status.contains("atrium ls acme/server"), "{status}");
}

#[test]
fn who_has_no_right_on_the_server_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let peers = PeerOffice::found(dir.path(), &["anna", "bert", "cleo"], |_| Place::Loopback, "").unwrap();
    peers.wait_connected().unwrap();
    let office = server(&dir.path().join("server"), Place::Loopback).unwrap();
    attach(&peers, &office).unwrap();
    let [anna, bert, cleo] = &peers.peers[..] else { unreachable!() };
    sign_in(bert, &office, "bert").unwrap();
    public(&office, "secret", "bert").unwrap();
    let file = dir.path().join("x.bin");
    sample::file(&file, 5, 6_000_000).unwrap();
    at_server(anna, &office, &["put", text(&file), "public:secret/x.bin"], "").unwrap();
    let got = dir.path().join("bert-x");
    bert.atrium(&["get", "acme/server/public/secret/x.bin", text(&got)]).unwrap();
    compare::files(&file, &got).unwrap();
    let address = "acme/server/public/secret/x.bin";
    let to = dir.path().join("cleo-x");
    // A member without an account sees nothing of the server, though another member has the file and serves it.
    let nobody = cleo.try_atrium(&["get", address, text(&to)], "").unwrap();
    assert_ne!(nobody.code, 0);
    assert!(nobody.stderr.contains("atrium login"), "{}", nobody.stderr);
    // One without the right does not even learn that it is there.
    sign_in(cleo, &office, "cleo").unwrap();
    let seen = cleo.atrium(&["ls", "acme"]).unwrap().text();
    assert!(seen.contains("public/plans") && !seen.contains("secret"), "{seen}");
    assert!(!cleo.atrium(&["find", "x.bin"]).unwrap().text().contains("secret"));
    let unknown = cleo.try_atrium(&["get", "acme/server/public/none/x.bin", text(&to)], "").unwrap();
    for arguments in [&["get", address, text(&to)][..], &["cat", address], &["ls", "acme/server/public/secret"]] {
        let refused = cleo.try_atrium(arguments, "").unwrap();
        assert_eq!(refused.code, unknown.code, "{arguments:?}: {}{}", refused.text(), refused.stderr);
    }
    assert!(!to.exists());
    // Once signed out, nobody.
    bert.atrium(&["logout"]).unwrap();
    assert_ne!(bert.try_atrium(&["cat", address], "").unwrap().code, 0);
}

/// Copies that the server sends when so many machines fetch a file at once, without any limit of rate.
fn copies_sent(names: &[&str], bytes: u64) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let peers = PeerOffice::found(dir.path(), names, |_| Place::Loopback, "")?;
    peers.wait_connected()?;
    let office = server(&dir.path().join("server"), Place::Loopback)?;
    attach(&peers, &office)?;
    for peer in &peers.peers[1..] {
        sign_in(peer, &office, &peer.name)?;
    }
    let file = big_file(&peers.peers[0], &office, dir.path(), bytes)?;
    let before = office.sent_bytes()?;
    let to = |peer: &Peer| peer.directory().join("got.bin");
    let get = |peer: &Peer| peer.begin_atrium(&["get", "acme/server/public/plans/big.bin", text(&to(peer))]);
    let gets: Vec<Child> = peers.peers.iter().map(get).collect::<Result<_>>()?;
    end_well(gets, &peers.peers)?;
    let copies = (office.sent_bytes()? - before) as f64 / bytes as f64;
    let of_server: Vec<u64> = peers.peers.iter().map(|p| progress(p).0).collect();
    println!(
        "{} x {bytes} without a limit: the server sent {copies:.3} copies; from it came {of_server:?}",
        names.len()
    );
    for peer in &peers.peers {
        compare::files(&file, &to(peer))?;
    }
    Ok(copies)
}

#[test]
fn three_machines_fetch_a_big_file_and_the_server_sends_it_about_once() {
    let copies = copies_sent(&["anna", "bert", "cleo"], 96 << 20).unwrap();
    assert!(copies <= 1.1, "the server sent {copies:.3} copies for three machines");
}

#[test]
#[ignore = "twenty machines take minutes; by hand: cargo test -p atrium-e2e --test e2e hybrid::twenty -- --ignored"]
fn twenty_machines_fetch_a_big_file_and_the_server_sends_it_about_once() {
    let names: Vec<String> = (0..20).map(|n| format!("pc{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let copies = copies_sent(&names, 96 << 20).unwrap();
    assert!(copies <= 1.2, "the server sent {copies:.3} copies for twenty machines");
}

#[test]
fn when_the_server_dies_after_one_copy_the_machines_finish_among_themselves() {
    const BYTES: u64 = 60_000_000;
    // The machines give more slowly than the server, so that it has given everything long before they have it all.
    const SLOW_TO_OTHERS: &str = "[limits]\nupload = \"3MB\"\n";
    let Some(lab) = Lab::with_machines(4).unwrap() else { return };
    let machines: Vec<MachineId> = lab.machines().collect();
    let lab = Rc::new(lab);
    let place = |at: usize| Place::Machine(lab.clone(), machines[at]);
    let dir = tempfile::tempdir().unwrap();
    let peers = PeerOffice::found(dir.path(), &["anna", "bert", "cleo"], place, SLOW_TO_OTHERS).unwrap();
    peers.wait_connected().unwrap();
    let mut office = server(&dir.path().join("server"), place(3)).unwrap();
    attach(&peers, &office).unwrap();
    for peer in &peers.peers[1..] {
        sign_in(peer, &office, &peer.name).unwrap();
    }
    let file = big_file(&peers.peers[0], &office, dir.path(), BYTES).unwrap();
    machines[..3].iter().for_each(|m| lab.set_rate(*m, 50).unwrap());
    lab.set_rate(machines[3], 150).unwrap();
    let sent_before = lab.traffic(machines[3]).unwrap().0;
    let to = |peer: &Peer| peer.directory().join("got.bin");
    let get = |peer: &Peer| peer.begin_atrium(&["get", "acme/server/public/plans/big.bin", text(&to(peer))]);
    let gets: Vec<Child> = peers.peers.iter().map(get).collect::<Result<_>>().unwrap();
    // One copy has left it, and nothing comes from it any more, while the machines go on.
    let mut last = (0, 0);
    let mut still = 0;
    let given = poll(PATIENCE, || {
        let all: Vec<(u64, u64)> = peers.peers.iter().map(progress).collect();
        let now = (all.iter().map(|a| a.0).sum::<u64>(), all.iter().map(|a| a.1).sum::<u64>());
        still = if now.0 == last.0 && now.1 > last.1 && now.0 >= BYTES { still + 1 } else { 0 };
        last = now;
        still >= 2 || now.1 >= 3 * BYTES
    });
    assert!(given && last.1 < 3 * BYTES, "the server was needed to the end: {last:?}");
    let sent = lab.traffic(machines[3]).unwrap().0 - sent_before;
    office.kill().unwrap();
    let copies = sent as f64 / BYTES as f64;
    println!("killed when {} of {} bytes were there; {copies:.3} copies had gone through its line", last.1, 3 * BYTES);
    assert!((1.0..1.2).contains(&copies), "{copies:.3} copies");
    end_well(gets, &peers.peers).unwrap();
    for peer in &peers.peers {
        compare::files(&file, &to(peer)).unwrap();
    }
    let read = peers.peers[0].try_atrium(&["ls", "acme/server/public/plans"], "").context("ls").unwrap();
    assert_ne!(read.code, 0, "the server is away");
    let listed = peers.peers[0].atrium(&["ls", "acme"]).unwrap();
    assert!(listed.text().contains("bert/"), "{}", listed.text());
}
