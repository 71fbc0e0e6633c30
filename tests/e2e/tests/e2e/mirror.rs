//! Copies of two-way shares (`atrium mirror`) by real peer-nodes on loopback.

use anyhow::{Result, ensure};
use atrium_e2e::peers::{Peer, PeerOffice, Place};
use atrium_e2e::process::poll;
use atrium_e2e::sample;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every file below a folder with its content; what Atrium keeps for itself (trash, staging) is passed over.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(base: &Path, at: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if !entry.file_name().to_string_lossy().starts_with(".atrium-") {
                    walk(base, &path, into);
                }
            } else if let Ok(bytes) = fs::read(&path) {
                into.insert(path.strip_prefix(base).unwrap().to_owned(), bytes);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(folder, folder, &mut all);
    all
}

/// Waits until the folders hold the same files, and these satisfy.
fn wait_equal(folders: &[&Path], is_so: impl Fn(&BTreeMap<PathBuf, Vec<u8>>) -> bool) -> Result<()> {
    let mut names = Vec::new();
    let equal = poll(PATIENCE, || {
        let all: Vec<_> = folders.iter().map(|f| content(f)).collect();
        names = all.iter().map(|c| c.keys().cloned().collect::<Vec<_>>()).collect();
        all.windows(2).all(|two| two[0] == two[1]) && is_so(&all[0])
    });
    ensure!(equal, "the copies do not become what they should be: {names:#?}");
    Ok(())
}

fn has(content: &BTreeMap<PathBuf, Vec<u8>>, name: &str, bytes: &[u8]) -> bool {
    content.get(Path::new(name)).is_some_and(|c| c == bytes)
}

/// The conflicts that a machine tells of.
fn conflicts(peer: &Peer) -> Vec<Value> {
    let told = peer.try_atrium(&["conflicts", "--json"], "").ok().and_then(|f| f.json().ok());
    told.and_then(|t| t["items"].as_array().cloned()).unwrap_or_default()
}

fn wait_conflicts(peer: &Peer, number: usize) -> Result<Vec<Value>> {
    let mut last = Vec::new();
    let so = poll(PATIENCE, || {
        last = conflicts(peer);
        last.len() == number
    });
    ensure!(so, "{} tells of {last:?} instead of {number} conflicts\n{}", peer.name, peer.log_tail());
    Ok(last)
}

/// Three machines; the first owns a two-way share, the others keep copies of it.
struct Office {
    _dir: tempfile::TempDir,
    office: PeerOffice,
    folders: [PathBuf; 3],
}

impl Office {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let office = PeerOffice::found(dir.path(), &["anna", "bert", "cleo"], |_| Place::Loopback, "")?;
        office.wait_connected()?;
        let folders = ["plans", "berts", "cleos"].map(|name| dir.path().join(name));
        fs::create_dir_all(folders[0].join("old"))?;
        fs::write(folders[0].join("plan.txt"), "the plan")?;
        fs::write(folders[0].join("old/first.txt"), "the first draft")?;
        fs::write(folders[0].join("old/second.txt"), "the second draft")?;
        sample::file(&folders[0].join("hall.dwg"), 5, 6_000_000)?;
        let shared = ["share", text(&folders[0]), "--name", "plans", "--with", "everyone", "--write", "--two-way"];
        office.peers[0].atrium(&shared)?;
        for at in [1, 2] {
            let peer = &office.peers[at];
            peer.wait_until(&["ls", "acme/anna/plans"], |a| a.contains("hall.dwg"))?;
            peer.atrium(&["mirror", "acme/anna/plans", text(&folders[at])])?;
        }
        let made = Self { _dir: dir, office, folders };
        made.wait(|c| c.len() == 4)?;
        Ok(made)
    }

    fn wait(&self, is_so: impl Fn(&BTreeMap<PathBuf, Vec<u8>>) -> bool) -> Result<()> {
        wait_equal(&self.folders.each_ref().map(PathBuf::as_path), is_so)
    }
}

/// Files in the trash of a folder, by name without the time of day.
fn trashed(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let all = content(&folder.join(".atrium-trash"));
    all.into_iter().map(|(path, bytes)| (path.file_name().unwrap().to_string_lossy().into_owned(), bytes)).collect()
}

#[test]
fn changes_travel_in_both_directions_and_what_is_deleted_stays_deleted() {
    let mut two_way = Office::new().unwrap();
    let [plans, berts, cleos] = two_way.folders.clone();
    fs::write(plans.join("from-anna.txt"), "made by anna").unwrap();
    fs::write(berts.join("plan.txt"), "the plan, as bert has it").unwrap();
    fs::create_dir(cleos.join("new")).unwrap();
    fs::write(cleos.join("new/from-cleo.txt"), "made by cleo").unwrap();
    two_way
        .wait(|c| {
            has(c, "from-anna.txt", b"made by anna")
                && has(c, "plan.txt", b"the plan, as bert has it")
                && has(c, "new/from-cleo.txt", b"made by cleo")
                && c.len() == 6
        })
        .unwrap();
    assert!(trashed(&plans).iter().any(|(_, bytes)| bytes == b"the plan"), "the replaced version is in the trash");

    // Cleo is off while Bert deletes, and learns of it when she returns; she had not touched the file.
    two_way.office.peers[2].stop().unwrap();
    fs::remove_file(berts.join("old/first.txt")).unwrap();
    fs::rename(berts.join("old/second.txt"), berts.join("old/last.txt")).unwrap();
    wait_equal(&[&plans, &berts], |c| c.len() == 5 && has(c, "old/last.txt", b"the second draft")).unwrap();
    // What she deletes herself meanwhile counts, too, and what she makes.
    fs::remove_file(cleos.join("from-anna.txt")).unwrap();
    fs::write(cleos.join("made-while-off.txt"), "while off").unwrap();
    two_way.office.peers[2].restart().unwrap();
    two_way
        .wait(|c| {
            c.len() == 5
                && has(c, "made-while-off.txt", b"while off")
                && !c.contains_key(Path::new("old/first.txt"))
                && !c.contains_key(Path::new("from-anna.txt"))
        })
        .unwrap();
    for folder in [&plans, &cleos] {
        assert!(trashed(folder).iter().any(|(name, _)| name.starts_with("first.")), "{}", folder.display());
    }
    for peer in &two_way.office.peers {
        assert_eq!(conflicts(peer), Vec::<Value>::new(), "{}", peer.name);
    }
}

#[test]
fn conflicts_are_listed_by_all_and_ended_by_one() {
    let mut two_way = Office::new().unwrap();
    let [plans, berts, cleos] = two_way.folders.clone();
    let names = ["plan.txt", "old/first.txt", "old/second.txt"];
    let versions = |who: &str| names.map(|name| (name, format!("{name}, by {who}")));
    two_way.office.peers[1].stop().unwrap();
    for (name, bytes) in versions("bert") {
        fs::write(berts.join(name), bytes).unwrap();
    }
    for (name, bytes) in versions("anna") {
        fs::write(plans.join(name), bytes).unwrap();
    }
    wait_equal(&[&plans, &cleos], |c| versions("anna").iter().all(|(n, b)| has(c, n, b.as_bytes()))).unwrap();
    two_way.office.peers[1].restart().unwrap();
    two_way.wait(|c| c.len() == 4 + names.len()).unwrap();
    for peer in &two_way.office.peers {
        let told = wait_conflicts(peer, names.len()).unwrap();
        for (name, _) in versions("anna") {
            assert!(told.iter().any(|k| k["path"] == name && k["remote"] == "acme/anna/plans"), "{told:?}");
        }
    }
    // Nothing is lost: both versions of each are there, under one name or the other.
    for (name, bytes) in versions("anna").into_iter().chain(versions("bert")) {
        assert!(content(&cleos).values().any(|c| *c == bytes.as_bytes()), "{name}");
    }

    // Cleo keeps one, the other, and both; all machines see the end of it.
    let cleo = &two_way.office.peers[2];
    let at_name = |name: &str| fs::read(cleos.join(name)).unwrap();
    let told = conflicts(cleo);
    let other = |name: &str| {
        let conflict = told.iter().find(|k| k["path"] == name).unwrap();
        fs::read(cleos.join(conflict["kept_as"].as_str().unwrap())).unwrap()
    };
    let (mine, theirs) = (at_name(names[0]), other(names[1]));
    let both = [at_name(names[2]), other(names[2])];
    cleo.atrium(&["conflicts", "keep", "mine", text(&cleos.join(names[0]))]).unwrap();
    cleo.atrium(&["conflicts", "keep", "theirs", text(&cleos.join(names[1]))]).unwrap();
    cleo.atrium(&["conflicts", "keep", "both", text(&cleos.join(names[2]))]).unwrap();
    two_way
        .wait(|c| {
            has(c, names[0], &mine)
                && has(c, names[1], &theirs)
                && has(c, names[2], &both[0])
                && c.values().any(|v| *v == both[1])
                && c.len() == 5
        })
        .unwrap();
    for peer in &two_way.office.peers {
        wait_conflicts(peer, 0).unwrap();
    }
    let gone = two_way.office.peers[0].try_atrium(&["conflicts", "keep", "mine", text(&plans.join(names[0]))], "");
    assert_ne!(gone.unwrap().code, 0, "there is no conflict any longer");
}

#[test]
fn a_copy_wants_an_empty_folder_and_one_that_may_only_read_follows() {
    let dir = tempfile::tempdir().unwrap();
    let office = PeerOffice::found(dir.path(), &["anna", "bert"], |_| Place::Loopback, "").unwrap();
    office.wait_connected().unwrap();
    let [anna, bert] = &office.peers[..] else { unreachable!() };
    let (plans, copy) = (dir.path().join("plans"), dir.path().join("copy"));
    fs::create_dir(&plans).unwrap();
    fs::write(plans.join("plan.txt"), "the plan").unwrap();
    anna.atrium(&["share", text(&plans), "--name", "plans", "--with", "bert"]).unwrap();
    bert.wait_until(&["ls", "acme/anna/plans"], |a| a.contains("plan.txt")).unwrap();
    fs::create_dir(&copy).unwrap();
    fs::write(copy.join("own.txt"), "mine").unwrap();
    let refused = bert.try_atrium(&["mirror", "acme/anna/plans", text(&copy)], "").unwrap();
    assert!(refused.code != 0 && refused.stderr.contains("not empty"), "{}", refused.stderr);
    fs::remove_file(copy.join("own.txt")).unwrap();
    bert.atrium(&["mirror", "acme/anna/plans", text(&copy)]).unwrap();
    wait_equal(&[&plans, &copy], |c| c.len() == 1).unwrap();
    // What Bert changes stays with him, and he is told so; what Anna changes reaches him.
    fs::write(copy.join("berts.txt"), "only here").unwrap();
    fs::write(plans.join("second.txt"), "of anna").unwrap();
    let followed = poll(PATIENCE, || has(&content(&copy), "second.txt", b"of anna"));
    assert!(followed && !plans.join("berts.txt").exists());
    bert.wait_until(&["shares", "--json"], |a| a.contains("CHANGE_NOT_SHARED")).unwrap();
    // The end of the copy leaves its files.
    bert.atrium(&["unshare", text(&copy)]).unwrap();
    assert!(copy.join("plan.txt").exists() && copy.join("berts.txt").exists());
}
