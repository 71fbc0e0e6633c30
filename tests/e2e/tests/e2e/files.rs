//! Files in and out through real programs.

use anyhow::Result;
use atrium_e2e::process::{Process, poll};
use atrium_e2e::{Office, compare, sample};
use std::fs;
use std::process::Stdio;
use std::time::Duration;

#[test]
fn a_tree_comes_back_as_it_was() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut office = Office::start(&dir.path().join("office"), &[])?;
    let anna = office.person("anna")?;
    let tree = dir.path().join("tree");
    for (name, length) in [("empty", 0), ("one", 1), ("small", 4096), ("edge", 262_144), ("big", 9_000_001)] {
        for sub in ["", "a", "a/b", "ü ö/日本"] {
            fs::create_dir_all(tree.join(sub))?;
            fs::write(tree.join(sub).join(name), sample::bytes(length as u64 + sub.len() as u64, length))?;
        }
    }
    fs::create_dir_all(tree.join("nothing/in it"))?;
    std::os::unix::fs::symlink("/etc/passwd", tree.join("link"))?;
    let text = |p: &std::path::Path| p.to_string_lossy().into_owned();
    anna.atrium(&["put", &text(&tree), "home:tree"])?;
    let back = dir.path().join("back");
    anna.atrium(&["get", "home:tree", &text(&back)])?;
    fs::remove_file(tree.join("link"))?;
    let same = compare::trees(&tree, &back)?;
    assert_eq!(same.files, 20);
    assert!(back.join("nothing/in it").is_dir());

    anna.atrium(&["mv", "home:tree/a", "home:tree/moved"])?;
    anna.atrium(&["cp", "home:tree/moved", "home:copy"])?;
    anna.atrium(&["rm", "-r", "home:tree"])?;
    assert_eq!(anna.try_atrium(&["ls", "home:tree"])?.code, 4);
    assert_eq!(anna.atrium(&["cat", "home:copy/b/big"])?.stdout, fs::read(tree.join("a/b/big"))?);
    office.stop()
}

#[test]
fn an_upload_goes_on_after_the_server_was_killed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut office = Office::start(&dir.path().join("office"), &[])?;
    let anna = office.person("anna")?;
    let file = dir.path().join("file");
    sample::file(&file, 3, 300 << 20)?;
    let text = file.to_string_lossy().into_owned();
    let mut upload = anna
        .command(&["put", &text, "home:file"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let data = office.data().join("chunks");
    let stored = || -> u64 {
        fs::read_dir(&data).into_iter().flatten().flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
    };
    poll(Duration::from_secs(60), || stored() > 30_000_000 || upload.try_wait().ok().flatten().is_some());
    office.kill()?;
    office.restart()?;
    let output = upload.wait_with_output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let back = dir.path().join("back");
    anna.atrium(&["get", "home:file", &back.to_string_lossy()])?;
    compare::files(&file, &back)?;
    let scrub = office.admin(&["admin", "scrub", "--json"], "")?.text();
    assert!(!scrub.is_empty());
    Ok(())
}

#[test]
fn a_backup_becomes_the_same_office() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut office = Office::start(&dir.path().join("office"), &[])?;
    let anna = office.person("anna")?;
    let content = sample::bytes(5, 3_000_000);
    let file = dir.path().join("file");
    fs::write(&file, &content)?;
    anna.atrium(&["put", &file.to_string_lossy(), "home:kept.bin"])?;
    let backup = dir.path().join("backup");
    office.admin(&["admin", "backup", &backup.to_string_lossy()], "")?;
    anna.atrium(&["rm", "home:kept.bin"])?;
    office.stop()?;
    fs::remove_dir_all(office.data())?;
    office.restore(&backup)?;
    office.restart()?;
    anna.wait_connected()?;
    assert_eq!(anna.atrium(&["cat", "home:kept.bin"])?.stdout, content);
    let audit = office.admin(&["admin", "audit", "verify"], "")?;
    assert!(!audit.text().is_empty());
    Ok(())
}

#[test]
fn two_way_sync_keeps_both_sides_of_a_conflict() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let office = Office::start(&dir.path().join("office"), &[])?;
    let anna = office.person("anna")?;
    let (left, right) = (dir.path().join("left"), dir.path().join("right"));
    fs::create_dir_all(left.join("sub"))?;
    fs::create_dir_all(&right)?;
    fs::write(left.join("sub/a.txt"), "one")?;
    let sync = |local: &std::path::Path| anna.try_atrium(&["sync", &local.to_string_lossy(), "home:shared"]);
    assert_eq!(sync(&left)?.code, 0);
    assert_eq!(sync(&right)?.code, 0);
    assert_eq!(fs::read_to_string(right.join("sub/a.txt"))?, "one");
    fs::write(left.join("sub/a.txt"), "left side")?;
    fs::write(right.join("sub/a.txt"), "right")?;
    assert_eq!(sync(&left)?.code, 0);
    let conflicted = sync(&right)?;
    assert!([0, 8].contains(&conflicted.code), "{}", conflicted.stderr);
    sync(&left)?;
    let mut contents: Vec<String> =
        fs::read_dir(left.join("sub"))?.map(|e| Ok(fs::read_to_string(e?.path())?)).collect::<Result<_>>()?;
    contents.sort();
    assert_eq!(contents, ["left side", "right"]);
    fs::remove_file(left.join("sub/a.txt"))?;
    sync(&left)?;
    sync(&right)?;
    assert!(!right.join("sub/a.txt").exists());
    Ok(())
}

#[test]
fn a_watching_sync_is_told_of_changes_and_a_conflict_ends_as_one_decides() -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let dir = tempfile::tempdir()?;
    let office = Office::start(&dir.path().join("office"), &[])?;
    let anna = office.person("anna")?;
    let (left, right) = (dir.path().join("left"), dir.path().join("right"));
    fs::create_dir_all(left.join("sub"))?;
    fs::create_dir_all(&right)?;
    fs::write(left.join("sub/a.txt"), "one")?;
    let sync = || anna.atrium(&["sync", &left.to_string_lossy(), "home:shared"]);
    let reads = |path: &std::path::Path, text: &str| fs::read_to_string(path).is_ok_and(|t| t == text);
    sync()?;
    // It looks by itself once an hour: what it finds sooner, it was told of.
    let watching = ["sync", &right.to_string_lossy(), "home:shared", "--watch", "--interval", "1h"];
    let (watch, first) = Process::daemon(anna.command(&watching), "sync", &dir.path().join("sync.log"))?;
    assert!(first.contains("1 down"), "{first}");
    fs::create_dir(right.join("new"))?;
    fs::write(right.join("new/b.txt"), "from the right")?;
    let arrived = || anna.try_atrium(&["cat", "home:shared/new/b.txt"]).is_ok_and(|c| c.stdout == b"from the right");
    assert!(poll(PATIENCE, arrived), "{}", watch.log_tail());
    sync()?;
    fs::write(left.join("new/c.txt"), "from the left")?;
    sync()?;
    assert!(poll(PATIENCE, || reads(&right.join("new/c.txt"), "from the left")), "{}", watch.log_tail());

    // Changed on both sides: the left one comes second, so its version stands aside there.
    let place = left.join("sub/a.txt");
    fs::write(&place, "mine")?;
    fs::write(right.join("sub/a.txt"), "theirs")?;
    let arrived = || anna.try_atrium(&["cat", "home:shared/sub/a.txt"]).is_ok_and(|c| c.stdout == b"theirs");
    assert!(poll(PATIENCE, arrived), "{}", watch.log_tail());
    sync()?;
    assert!(reads(&place, "theirs"));
    let listed = anna.atrium(&["conflicts", "--json", &left.to_string_lossy()])?.json()?;
    let conflict = &listed["items"][0];
    assert_eq!((conflict["path"].as_str(), conflict["kept_is"].as_str()), (Some("sub/a.txt"), Some("mine")));
    let other = left.join(conflict["kept_as"].as_str().unwrap_or_default());
    assert!(reads(&other, "mine"));
    let kept = anna.atrium(&["conflicts", "keep", "mine", &place.to_string_lossy(), "--json"])?.json()?;
    let trashed = std::path::PathBuf::from(kept["result"].as_str().unwrap_or_default());
    assert!(reads(&place, "mine") && reads(&trashed, "theirs") && !other.exists());
    sync()?;
    assert_eq!(anna.atrium(&["cat", "home:shared/sub/a.txt"])?.stdout, b"mine");
    assert!(poll(PATIENCE, || reads(&right.join("sub/a.txt"), "mine")), "{}", watch.log_tail());
    let left_over = anna.atrium(&["conflicts", "--json"])?.json()?;
    assert_eq!(left_over["items"].as_array().map(Vec::len), Some(0), "{left_over}");
    watch.kill()
}
