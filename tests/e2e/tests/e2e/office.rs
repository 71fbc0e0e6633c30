//! Joining, signing in, rights, and what a machine that was cut off may do.

use anyhow::Result;
use atrium_e2e::Office;
use std::os::unix::fs::PermissionsExt;

#[test]
fn people_join_sign_in_and_see_what_they_may() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut office = Office::start(&dir.path().join("office"), &[])?;
    let anna = office.person("anna")?;
    let bert = office.person("bert")?;
    let who = anna.atrium(&["whoami", "--json"])?.json()?;
    assert_eq!(who["user"], "anna");

    office.admin(&["admin", "directories", "add", "public:plans"], "")?;
    // Nobody but administrators knows of it yet: it looks like one that does not exist.
    assert_eq!(bert.try_atrium(&["ls", "public:plans"])?.code, 4);
    office.admin(&["share", "public:plans", "--with", "anna", "--right", "manage"], "")?;
    anna.atrium_with(&["put", "-", "public:plans/a.txt"], "hello")?;
    anna.atrium(&["share", "public:plans", "--with", "bert", "--right", "read"])?;
    assert_eq!(bert.atrium(&["cat", "public:plans/a.txt"])?.text(), "hello");
    let refused = bert.try_atrium(&["rm", "public:plans/a.txt"])?;
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.stderr.contains("why:") && refused.stderr.contains("fix:"), "{}", refused.stderr);
    let why = anna.atrium(&["why", "public:plans", "bert"])?.text();
    assert!(why.contains("read"), "{why}");
    assert_eq!(bert.try_atrium(&["share", "public:plans", "--with", "bert", "--right", "write"])?.code, 5);

    anna.atrium_with(&["put", "-", "home:secret.txt"], "mine")?;
    for place in ["home/anna:", "home/anna:secret.txt"] {
        let refused = bert.try_atrium(&["ls", place])?;
        assert!([4, 5].contains(&refused.code), "{place}: {}", refused.stderr);
    }
    // Administrators manage, but do not read.
    let refused = office.try_admin(&["cat", "home/anna:secret.txt"], "")?;
    assert_ne!(refused.code, 0);

    anna.atrium(&["logout"])?;
    assert_eq!(anna.try_atrium(&["ls", "home:"])?.code, 10);
    office.stop()
}

#[test]
fn a_code_works_once_and_a_wrong_guess_burns_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let office = Office::start(&dir.path().join("office"), &[])?;
    let person = office.person("anna")?;
    let mut other = office.stranger("bert")?;
    let address = office.address().to_string();
    let code = office.invite()?;
    let wrong = format!("{}-abacus-abacus-abacus", code.split('-').next().unwrap_or(""));
    let refused = other.try_atrium_with(&["join", &address, "--code-file", "-"], &wrong)?;
    assert_ne!(refused.code, 0);
    let burned = other.try_atrium_with(&["join", &address, "--code-file", "-"], &code)?;
    assert_ne!(burned.code, 0, "a burned code was taken");
    let code = office.invite()?;
    other.atrium_with(&["join", &address, "--code-file", "-"], &code)?;
    let again = person.try_atrium_with(&["join", &address, "--code-file", "-"], &code)?;
    assert_ne!(again.code, 0, "a code worked twice");
    // The key never leaves the agent's directory, and only the agent reads it.
    let key = other.directory().join("state/device.key");
    assert_eq!(std::fs::metadata(key)?.permissions().mode() & 0o077, 0);
    other.stop_agent()
}

#[test]
fn a_revoked_machine_is_cut_off() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let office = Office::start(&dir.path().join("office"), &[])?;
    let anna = office.person("anna")?;
    let status = anna.atrium(&["status", "--json"])?.json()?.to_string();
    let devices = office.admin(&["admin", "devices", "list", "--json"], "")?.json()?;
    let id = devices["items"][0]["id"].as_str().unwrap_or_default().to_owned();
    assert_eq!(id.len(), 64, "{devices}");
    assert!(status.contains(&id), "{status}");
    office.admin(&["admin", "devices", "revoke", &id, "--yes"], "")?;
    let told = atrium_e2e::process::poll(std::time::Duration::from_secs(20), || {
        anna.try_atrium(&["status"]).is_ok_and(|s| s.code != 0 && (s.text() + &s.stderr).contains("cut"))
    });
    assert!(told, "{:?}", anna.try_atrium(&["status"])?);
    Ok(())
}
