//! What the agent does while the server is away, and over its own death.

use anyhow::Result;
use atrium_e2e::process::poll;
use atrium_e2e::{Office, sample};
use std::fs;
use std::time::Duration;

#[test]
fn a_queued_upload_survives_the_agent_and_the_server() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut office = Office::start(&dir.path().join("office"), &[])?;
    let mut anna = office.person("anna")?;
    office.kill()?;
    let content = sample::bytes(9, 2_000_000);
    let file = dir.path().join("file");
    fs::write(&file, &content)?;
    anna.atrium(&["put", "--queue", &file.to_string_lossy(), "home:later.bin"])?;
    let queue = anna.atrium(&["queue", "list", "--json"])?.text();
    assert!(queue.contains("later.bin"), "{queue}");
    fs::remove_file(&file)?;
    anna.kill_agent()?;
    anna.start_agent()?;
    office.restart()?;
    anna.wait_connected()?;
    let arrived = poll(Duration::from_secs(60), || {
        anna.try_atrium(&["cat", "home:later.bin"]).is_ok_and(|c| c.stdout == content)
    });
    assert!(arrived, "{:?}", anna.try_atrium(&["queue", "list"])?);
    let emptied = poll(Duration::from_secs(20), || {
        anna.try_atrium(&["queue", "list", "--json"]).is_ok_and(|q| !q.text().contains("later.bin"))
    });
    assert!(emptied, "{:?}", anna.try_atrium(&["queue", "list"])?);
    Ok(())
}

#[test]
fn what_was_read_once_is_readable_while_the_server_is_away() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut office = Office::start(&dir.path().join("office"), &[])?;
    let anna = office.person("anna")?;
    let content = sample::bytes(4, 1_500_000);
    let file = dir.path().join("file");
    fs::write(&file, &content)?;
    anna.atrium(&["put", &file.to_string_lossy(), "home:read.bin"])?;
    assert_eq!(anna.atrium(&["cat", "home:read.bin"])?.stdout, content);
    office.kill()?;
    assert_eq!(anna.atrium(&["cat", "home:read.bin"])?.stdout, content);
    let never = anna.try_atrium(&["cat", "home:never-read.bin"])?;
    assert_eq!(never.code, 6, "{}", never.stderr);
    office.restart()?;
    anna.wait_connected()?;
    Ok(())
}

#[test]
fn the_agent_opens_no_network_port() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let office = Office::start(&dir.path().join("office"), &[])?;
    let mut anna = office.person("anna")?;
    anna.wait_connected()?;
    let pid = anna.agent()?.id();
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter_map(|to| to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    assert!(!sockets.is_empty());
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (state, inode) = (fields[3], fields[9]);
            // 0A is LISTEN; a bound UDP socket shows as 07.
            let listens = state == "0A" || (table.starts_with("udp") && state == "07");
            assert!(!(listens && sockets.iter().any(|s| s == inode)), "listens: {table} {line}");
        }
    }
    Ok(())
}
