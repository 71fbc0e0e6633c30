//! The second half of the demonstration: three peers without a server.

use super::{GIB, figures, say, size, text, timed};
use anyhow::{Context, Result, bail, ensure};
use atrium_e2e::peers::{Peer, PeerOffice, Place};
use atrium_e2e::process::poll;
use atrium_e2e::{compare, sample};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The one file in the shared folder.
const FILE: u64 = GIB / 4;
/// What the owner gives at most, so that the two have a reason to help each other, and one can be killed in the middle.
const CAP: &str = "48MiB";

pub(super) fn demo(dir: &Path) -> Result<()> {
    say("\nThree machines without any server: each has a peer-node, and nothing else.\n");
    let names = ["anna-pc", "bert-pc", "cleo-pc"];
    let (mut office, took) = timed(|| {
        let office = PeerOffice::found(&dir.join("peers"), &names, |_| Place::Loopback, "")?;
        office.wait_connected()?;
        Ok(office)
    })?;
    let [anna, bert, cleo] = &mut office.peers[..] else { bail!("three peers were started") };
    say(format!(
        "10. Anna's machine founded the office acme; Bert's and Cleo's joined with one-time codes ({:.2} s for all).",
        took.as_secs_f64()
    ));

    let folder = dir.join("shared");
    let documents = folder.join("documentation");
    copy_tree(&sample::tree()?.join("std"), &documents)?;
    sample::archive(&folder.join("toolchain.tar"), FILE)?;
    let address = "acme/anna-pc/work";
    let (_, took) = timed(|| {
        anna.atrium(&["share", text(&folder), "--name", "work", "--with", "everyone"])?;
        for peer in [&*bert, &*cleo] {
            peer.wait_until(&["ls", address, "--json"], |answer| answer.contains("toolchain.tar"))?;
        }
        Ok(())
    })?;
    let counted = compare::trees(&folder, &folder)?;
    say(format!(
        "11. Anna shared a real folder where it is, nothing copied: {} files, {}; Bert and Cleo saw it after {:.2} s.",
        counted.files,
        size(counted.bytes),
        took.as_secs_f64()
    ));
    let found = bert.atrium(&["find", "toolchain", "--json"])?.text();
    ensure!(found.contains("acme/anna-pc/work/toolchain.tar"), "not found: {found}");

    anna.atrium(&["limit", "--upload", CAP])?;
    let (to_bert, to_cleo) = (bert.directory().join("work"), cleo.directory().join("work"));
    let ((), took) = timed(|| {
        let mut at_bert = bert.begin_atrium(&["get", address, text(&to_bert)])?;
        let mut at_cleo = cleo.begin_atrium(&["get", address, text(&to_cleo)])?;
        let reached = poll(Duration::from_secs(60), || done_bytes(cleo).is_some_and(|d| d > FILE / 4));
        let had = done_bytes(cleo).unwrap_or(0);
        ensure!(reached && had < FILE, "Cleo's transfer was not in its middle: {had} bytes");
        cleo.kill()?;
        let _ = at_cleo.wait();
        say(format!(
            "12. Bert and Cleo fetched it at once. SIGKILL for Cleo's peer-node with {} MiB there; started again.",
            had >> 20
        ));
        cleo.restart()?;
        let ended = at_bert.wait()?;
        ensure!(ended.success(), "Bert's get ended with {ended}");
        wait_done(cleo)
    })?;
    let (bert_from, cleo_from) = (sources(bert)?, sources(cleo)?);
    for (who, to) in [("Bert", &to_bert), ("Cleo", &to_cleo)] {
        compare::trees(&folder, to).with_context(|| format!("what {who} has"))?;
    }
    ensure!(bert_from.contains_key("cleo-pc") || cleo_from.contains_key("bert-pc"), "the two did not help each other");
    say(format!(
        "    Both have all of it, equal byte for byte: {} each, with the kill in it.",
        figures(counted.bytes, took)
    ));
    for (who, from) in [("Bert", bert_from), ("Cleo, since the kill,", cleo_from)] {
        let parts: Vec<String> = from.iter().map(|(n, b)| format!("{} MiB from {n}", b >> 20)).collect();
        say(format!("    {who} got {}.", parts.join(", ")));
    }

    cleo.stop()?;
    let letter = dir.join("letter.pdf");
    fs::write(&letter, sample::bytes(21, 5_000_000))?;
    let (_, took) = timed(|| anna.atrium(&["send", text(&letter), "cleo-pc", "--note", "for tomorrow"]))?;
    say(format!(
        "13. Cleo's machine is off. Anna sent her a file; safe in the outbox after {:.0} ms.",
        took.as_secs_f64() * 1e3
    ));
    cleo.restart()?;
    let (_, took) = timed(|| anna.wait_until(&["outbox", "--json"], |answer| answer.contains("\"delivered\"")))?;
    let there = cleo.inbox().join("anna-pc").join("letter.pdf");
    compare::files(&letter, &there).context("what Cleo received")?;
    say(format!(
        "    Cleo's machine came back: the file was there, with receipt, {:.1} s later - equal.",
        took.as_secs_f64()
    ));

    let revoked = anna.atrium(&["members", "revoke", "bert-pc", "--reason", "sold", "--yes"])?;
    ensure!(revoked.code == 0, "revoke");
    let (refused, took) = timed(|| {
        bert.wait_until(&["status", "--json"], |answer| {
            answer.contains("\"revoked\": true") || answer.contains("\"revoked\":true")
        })
    })?;
    drop(refused);
    say(format!("14. Anna cut Bert's machine off; it was out {:.0} ms later.", took.as_secs_f64() * 1e3));
    for peer in &mut office.peers {
        peer.stop()?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The newest transfer, as the peer tells it.
fn newest(peer: &Peer) -> Result<Value> {
    let all = peer.atrium(&["transfers", "--json"])?.json()?;
    let items = all["items"].as_array().or_else(|| all["transfers"].as_array()).context("no list of transfers")?;
    items.first().cloned().context("no transfer")
}

fn done_bytes(peer: &Peer) -> Option<u64> {
    newest(peer).ok()?["done_bytes"].as_u64()
}

fn wait_done(peer: &Peer) -> Result<()> {
    let mut last = Value::Null;
    let done = poll(Duration::from_secs(60), || {
        last = newest(peer).unwrap_or(Value::Null);
        last["state"] == "done"
    });
    ensure!(done, "the transfer is not done: {last}");
    Ok(())
}

/// Machines that gave something, with bytes.
fn sources(peer: &Peer) -> Result<std::collections::BTreeMap<String, u64>> {
    let transfer = newest(peer)?;
    let list = transfer["sources"].as_array().context("no sources")?;
    let pair = |s: &Value| {
        let name = s["node_name"].as_str()?.rsplit('/').next()?.to_owned();
        let bytes = s["received_bytes"].as_u64()?;
        (bytes > 0).then_some((name, bytes))
    };
    Ok(list.iter().filter_map(pair).collect())
}
