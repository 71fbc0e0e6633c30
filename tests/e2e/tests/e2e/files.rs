//! Files in and out through real programs.

use anyhow::Result;
use atrium_e2e::process::poll;
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
