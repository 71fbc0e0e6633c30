//! Second copies of shares on other machines' disks (`atrium space mirror`): proven, repaired, moved, never lost unseen.

use anyhow::{Context, Result, ensure};
use atrium_e2e::peers::{Peer, PeerOffice, Place};
use atrium_e2e::process::poll;
use atrium_e2e::sample;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);
/// Bytes of an object's file before its content.
const HEADER: usize = 84;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Anna and Cleo lend disks; Bert has a share with a second copy at Anna's.
struct World {
    dir: tempfile::TempDir,
    office: PeerOffice,
    share: PathBuf,
    name: String,
    recovery_key: String,
}

/// Small marks beside large content, so that a copy takes some calls.
fn fill(share: &Path) -> Result<()> {
    fs::create_dir_all(share.join("old"))?;
    fs::write(share.join("plan.txt"), "the plan\n")?;
    for n in 0..4 {
        sample::file(&share.join(format!("old/hall-{n}.dwg")), 11 + n, 6_000_000)?;
    }
    Ok(())
}

impl World {
    fn new(name: &str, proof: &str, next: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        // Behind the settings of devices that every peer on loopback has.
        let settings = format!("\nmirror_look = \"200ms\"\nmirror_proof = \"{proof}\"\n");
        let office =
            PeerOffice::found(&dir.path().join("office"), &["anna", "bert", "cleo"], |_| Place::Loopback, &settings)?;
        office.wait_connected()?;
        let share = dir.path().join("plans");
        fill(&share)?;
        let mut world = Self { dir, office, share, name: name.to_owned(), recovery_key: String::new() };
        for (at, disk) in [(0, "big"), (2, "old")] {
            world.lend(at, disk)?;
        }
        let bert = &world.office.peers[1];
        bert.atrium(&["share", text(&world.share), "--name", name, "--with", "cleo"])?;
        bert.wait_until(&["devices", "--json"], |a| a.contains("disks/big") && a.contains("disks/old"))?;
        let mut mirror = vec!["space", "mirror", name, "acme/anna/disks/big", "--json"];
        if next {
            mirror.extend(["--next", "acme/cleo/disks/old"]);
        }
        let made = bert.atrium(&mirror)?.json()?;
        world.recovery_key = made["recovery_key"].as_str().context("no recovery key")?.to_owned();
        Ok(world)
    }

    fn lent(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("lent-{at}"))
    }

    fn lend(&self, at: usize, disk: &str) -> Result<()> {
        let (folder, disk) = (self.lent(at), format!("disks/{disk}"));
        fs::create_dir_all(&folder)?;
        let size = ["--size", "200MiB", "--reserve", "1MiB", "--with", "everyone"];
        self.office.peers[at].atrium(&[&["share", &disk, "--folder", text(&folder)][..], &size].concat())?;
        Ok(())
    }

    /// Objects of copies on a disk.
    fn objects(&self, at: usize) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.lent(at).join("atrium-lent")).into_iter().flatten().flatten();
        let is_object = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("m-"));
        entries.map(|e| e.path()).filter(is_object).collect()
    }

    /// The copy as Bert's machine tells of it, and the exit code.
    fn mirror(&self) -> Result<(Value, i32)> {
        let finished = self.office.peers[1].try_atrium(&["space", "mirrors", "--json"], "")?;
        let mirror = finished.json()?["items"][0].clone();
        Ok((mirror, finished.code))
    }

    fn wait_mirror(&self, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let so = poll(PATIENCE, || {
            last = self.mirror().map_or(Value::Null, |(m, _)| m);
            is_so(&last)
        });
        ensure!(so, "the copy is {last:#}\n{}", self.office.peers[1].log_tail());
        Ok(last)
    }

    /// Gets the copy back and compares it with what was shared in the beginning.
    fn restored_is_whole(&self, how: &[&str]) -> Result<()> {
        let (back, first) = (tempfile::tempdir()?, tempfile::tempdir()?);
        fill(first.path())?;
        let to = back.path().join("back");
        self.office.peers[1].atrium(&[&["space", "restore", &self.name, text(&to)], how].concat())?;
        for file in ["plan.txt", "old/hall-0.dwg", "old/hall-1.dwg", "old/hall-2.dwg", "old/hall-3.dwg"] {
            ensure!(fs::read(to.join(file))? == fs::read(first.path().join(file))?, "{file} differs");
        }
        Ok(())
    }

    fn begin_leaving(&self, at: usize, disk: &str) -> Result<Child> {
        self.office.peers[at].begin_atrium(&["unshare", disk])
    }
}

fn ends_well(mut child: Child, peer: &Peer) -> Result<()> {
    let mut code = None;
    let ended = poll(PATIENCE, || {
        code = child.try_wait().ok().flatten();
        code.is_some()
    });
    if !ended {
        child.kill()?;
        child.wait()?;
    }
    ensure!(code.is_some_and(|c| c.success()), "{} did not leave: {code:?}\n{}", peer.name, peer.log_tail());
    Ok(())
}

#[test]
fn a_copy_moves_to_the_chosen_disk_when_its_lender_leaves_whoever_is_killed() -> Result<()> {
    let mut world = World::new("plans", "1d", true)?;
    let key = world.dir.path().join("recovery");
    fs::write(&key, &world.recovery_key)?;
    // Bert is away: the lender waits, takes nothing new, and does so after a kill as well.
    world.office.peers[1].stop()?;
    let mut waiting = world.begin_leaving(0, "disks/big")?;
    let leaves = |a: &str| a.contains("\"leaving\"");
    world.office.peers[2].wait_until(&["devices", "acme/anna/disks/big", "--json"], leaves)?;
    ensure!(waiting.try_wait()?.is_none(), "it did not wait");
    waiting.kill()?;
    waiting.wait()?;
    world.office.peers[0].kill()?;
    world.office.peers[0].restart()?;
    world.office.peers[2].wait_until(&["devices", "acme/anna/disks/big", "--json"], leaves)?;
    ensure!(!world.objects(0).is_empty(), "what was lent is gone");
    let refused = world.office.peers[2].try_atrium(&["space", "borrow", "acme/anna/disks/big", "1MiB"], "")?;
    ensure!(refused.code != 0, "a disk that leaves was lent");
    // He comes back, and is killed while the copy moves.
    world.office.peers[1].restart()?;
    let begun = poll(PATIENCE, || !world.objects(2).is_empty());
    ensure!(begun, "nothing moves\n{}", world.office.peers[1].log_tail());
    world.office.peers[1].kill()?;
    world.office.peers[1].restart()?;
    ends_well(world.begin_leaving(0, "disks/big")?, &world.office.peers[0])?;
    world.wait_mirror(|m| m["state"] == "whole" && m["disk"] == "acme/cleo/disks/old")?;
    ensure!(world.objects(0).is_empty(), "something is left at the lender that left");
    let seen = world.office.peers[2].atrium(&["devices", "--json"])?.text();
    ensure!(!seen.contains("disks/big"), "it is shared still: {seen}");
    world.restored_is_whole(&[])?;
    // The key that was written down in the beginning fits the copy where it is now.
    world.restored_is_whole(&["--recovery-key-file", text(&key), "--disk", "acme/cleo/disks/old"])?;
    // And it goes on there.
    fs::write(world.share.join("new.txt"), "new\n")?;
    let bert = &world.office.peers[1];
    bert.wait_until(&["ls", "acme/bert/plans"], |a| a.contains("new.txt"))?;
    let again = bert.atrium(&["space", "mirror", "plans", "acme/cleo/disks/old", "--json"])?.json()?;
    ensure!(again["generation"] == 2, "{again}");
    Ok(())
}

#[test]
fn a_copy_without_another_disk_comes_home_and_is_placed_anew() -> Result<()> {
    let world = World::new("plans", "1d", false)?;
    let [anna, bert, _] = &world.office.peers[..] else { unreachable!() };
    // Somebody's scratch space is not wiped by leaving.
    bert.atrium(&["space", "borrow", "acme/anna/disks/big", "1MiB", "--label", "work"])?;
    let busy = anna.try_atrium(&["unshare", "disks/big", "--json"], "")?;
    ensure!(busy.code != 0 && (busy.text() + &busy.stderr).contains("RESOURCE_BUSY"), "{}", busy.stderr);
    bert.atrium(&["space", "return", "work", "--yes"])?;
    ends_well(world.begin_leaving(0, "disks/big")?, anna)?;
    let (mirror, code) = world.mirror()?;
    ensure!(mirror["state"] == "home" && mirror["disk"] == "" && code == 3, "{code}: {mirror}");
    ensure!(mirror["problem"]["fix"].as_str().is_some_and(|f| f.contains("space mirror plans")), "{mirror}");
    // It is all there, also what is deleted meanwhile.
    fs::remove_dir_all(world.share.join("old"))?;
    world.restored_is_whole(&[])?;
    bert.wait_until(&["ls", "acme/bert/plans"], |a| !a.contains("old"))?;
    let placed = bert.atrium(&["space", "mirror", "plans", "acme/cleo/disks/old", "--json"])?.json()?;
    ensure!(placed["generation"] == 2, "{placed}");
    let (mirror, code) = world.mirror()?;
    ensure!(mirror["state"] == "whole" && mirror["disk"] == "acme/cleo/disks/old" && code == 0, "{code}: {mirror}");
    world.restored_is_whole(&["--generation", "1"])?;
    let home = bert.directory().join("state/devices/mirrors/home");
    let left = fs::read_dir(&home)?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("m-")).count();
    ensure!(left == 0, "{left} objects are at home still");
    Ok(())
}

#[test]
fn a_copy_that_is_wiped_is_shown_as_lost_and_can_be_made_anew() -> Result<()> {
    let world = World::new("plans", "1d", true)?;
    let [anna, bert, _] = &world.office.peers[..] else { unreachable!() };
    anna.atrium(&["unshare", "disks/big", "--now"])?;
    let (mirror, code) = world.mirror()?;
    ensure!(mirror["state"] == "lost" && code == 3, "{code}: {mirror}");
    let told = |a: &str| a.contains("MIRROR_MISSING") && a.contains("space mirror plans");
    bert.wait_until(&["status", "--json"], told)?;
    // Also on the same disk, when it is lent again.
    world.lend(0, "big")?;
    bert.wait_until(&["devices", "acme/anna/disks/big", "--json"], |a| a.contains("\"ready\""))?;
    bert.atrium(&["space", "mirror", "plans", "acme/anna/disks/big"])?;
    world.wait_mirror(|m| m["state"] == "whole" && !m["proven_time"].is_null())?;
    bert.wait_until(&["status", "--json"], |a| !a.contains("MIRROR_MISSING"))?;
    world.restored_is_whole(&[])
}

#[test]
fn what_a_lender_loses_is_found_by_proof_and_sent_again() -> Result<()> {
    // A name as long as names can be.
    let name = "ä".repeat(127);
    let world = World::new(&name, "1s", false)?;
    let first = world.wait_mirror(|m| m["proven_time"].is_string())?;
    ensure!(first["repaired_count"] == 0 && first["failed_time"].is_null(), "{first}");
    ensure!(first["proven_count"].as_u64() > Some(4) && first["proven_count"] == first["part_count"], "{first}");
    // A flipped bit, and a file that is gone.
    let mut objects: Vec<(u64, PathBuf)> =
        world.objects(0).into_iter().map(|p| (fs::metadata(&p).map_or(0, |m| m.len()), p)).collect();
    objects.sort();
    let [.., (_, gone), (len, flipped)] = &objects[..] else { anyhow::bail!("too few objects") };
    let whole = fs::read(flipped)?;
    let mut bytes = whole.clone();
    bytes[*len as usize / 2] ^= 1;
    fs::write(flipped, bytes)?;
    fs::remove_file(gone)?;
    let mended = world.wait_mirror(|m| m["repaired_count"] == 2 && m["state"] == "whole")?;
    ensure!(mended["failed_time"].is_string() && mended["problem"].is_null(), "{mended}");
    // Before the content is when it was put.
    let content = |bytes: &[u8]| bytes.get(HEADER..).map(<[u8]>::to_vec);
    ensure!(content(&fs::read(flipped)?) == content(&whole) && gone.exists(), "it is not as it was");
    let listed = world.office.peers[1].atrium(&["space", "list", "--json"])?.json()?;
    ensure!(listed["items"][0]["proven_time"].is_string(), "{listed}");
    let shown = world.office.peers[1].atrium(&["space", "mirrors"])?.text();
    ensure!(shown.contains("2 parts were sent again"), "{shown}");
    world.restored_is_whole(&[])
}
