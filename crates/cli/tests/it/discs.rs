//! Discs in other machines' drives.

use crate::fake_peer::{Running, State, code, disc, ok, text};
use crate::process::{failure, run};
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

#[test]
fn a_disc_is_listed_like_a_share() {
    let peer = Running::start(disc());
    let (exit, top) = peer.json(&["ls", "acme/anna-pc/drives/dvd"]);
    assert_eq!((exit, top["kind"].as_str(), top["generation"].as_u64()), (0, Some("disc_entry_list"), Some(7)));
    assert_eq!(top["items"][0]["address"], "acme/anna-pc/drives/dvd/docs");
    assert_eq!(text(&peer.run(&["ls", "drives/dvd/docs"]).stdout), "a.pdf\ndeep/\nempty\n");
    let all = text(&peer.run(&["ls", "-R", "drives/dvd"]).stdout);
    assert!(all.lines().any(|l| l == "drives/dvd/docs/deep/b.txt"), "{all}");
    let one = text(&peer.run(&["ls", "drives/dvd/docs/a.pdf"]).stdout);
    assert!(one.contains("4.9 KiB") && one.trim_end().ends_with("a.pdf"), "{one}");
    let missing = peer.run(&["ls", "drives/dvd/x", "--json"]);
    assert_eq!((code(&missing), failure(&missing)["reason"].as_str()), (4, Some("ENTRY_UNKNOWN")));
    assert!(missing.stdout.is_empty());
}

#[test]
fn cat_goes_on_where_the_connection_broke() {
    let peer = Running::start(State { break_next: Mutex::new(2), ..disc() });
    let output = peer.run(&["cat", "acme/anna-pc/drives/dvd/docs/a.pdf"]);
    ok(&output);
    assert!(output.stdout == peer.fake.0.disc["docs/a.pdf"]);
    assert_eq!(peer.told().last().unwrap(), "read acme/anna-pc/drives/dvd docs/a.pdf from 2000");
}

#[test]
fn a_directory_of_a_disc_is_got_and_nothing_is_replaced() {
    let peer = Running::start(disc());
    let (exit, got) = peer.json(&["get", "drives/dvd", peer.path("copy").to_str().unwrap()]);
    assert_eq!((exit, got["files"].as_u64(), got["kind"].as_str()), (0, Some(4), Some("transfer")));
    for (name, data) in &peer.fake.0.disc {
        assert!(std::fs::read(peer.path("copy").join(name)).unwrap() == *data, "{name}");
    }
    assert_eq!(std::fs::read_dir(peer.path("copy/docs")).unwrap().count(), 3, "no parts are left");
    peer.told();
    let (_, again) = peer.json(&["get", "drives/dvd", peer.path("copy").to_str().unwrap()]);
    assert_eq!((again["files"].as_u64(), again["unchanged_files"].as_u64()), (Some(0), Some(4)));
    assert!(peer.told().is_empty(), "nothing was read again");
    std::fs::write(peer.path("copy/readme"), "mine").unwrap();
    assert_eq!(code(&peer.run(&["get", "drives/dvd", peer.path("copy").to_str().unwrap()])), 3);
    assert_eq!(std::fs::read(peer.path("copy/readme")).unwrap(), b"mine");
    ok(&peer.run(&["get", "-f", "drives/dvd/readme", peer.path("copy").to_str().unwrap()]));
    assert_eq!(std::fs::read(peer.path("copy/readme")).unwrap(), b"hi");
}

#[test]
fn an_interrupted_file_of_a_disc_goes_on_and_another_disc_begins_anew() {
    let peer = Running::start(State { break_next: Mutex::new(2), for_good: Mutex::new(true), ..disc() });
    let target = peer.path("a.pdf");
    assert_eq!(code(&peer.run(&["get", "drives/dvd/docs/a.pdf", target.to_str().unwrap()])), 1);
    assert!(!target.exists(), "nothing is called so before it is whole");
    ok(&peer.run(&["get", "drives/dvd/docs/a.pdf", target.to_str().unwrap()]));
    assert_eq!(peer.told(), ["read drives/dvd docs/a.pdf from 0", "read drives/dvd docs/a.pdf from 2000"]);
    assert!(std::fs::read(&target).unwrap() == peer.fake.0.disc["docs/a.pdf"]);
    // Half of the file is here, and then there is another disc in the drive.
    std::fs::remove_file(&target).unwrap();
    *peer.fake.0.break_next.lock().unwrap() = 2;
    assert_eq!(code(&peer.run(&["get", "drives/dvd/docs/a.pdf", target.to_str().unwrap()])), 1);
    let other = Running::start(State { generation: 8, ..disc() });
    let args = ["--peer", other.socket.to_str().unwrap(), "get", "drives/dvd/docs/a.pdf", target.to_str().unwrap()];
    ok(&run(peer.home.path(), &args));
    assert_eq!(other.told(), ["read drives/dvd docs/a.pdf from 0"]);
}

#[test]
fn a_disc_that_wants_to_do_harm_reaches_nothing() {
    let mut state = disc();
    state.disc.insert("..".into(), b"out".to_vec());
    state.disc.insert("a\u{1b}b".into(), b"control".to_vec());
    let peer = Running::start(state);
    let inside = peer.path("inside");
    assert_eq!(code(&peer.run(&["get", "drives/dvd", inside.to_str().unwrap()])), 3);
    assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 2, "docs and readme");
    assert!(!text(&peer.run(&["ls", "drives/dvd"]).stdout).contains('\u{1b}'));
}

#[test]
fn discs_are_copied_offered_and_taken_out() {
    let peer = Running::start(disc());
    let file = peer.path("film.iso");
    let (exit, copy) = peer.json(&["disc", "rip", "dvd", file.to_str().unwrap()]);
    assert_eq!(
        (exit, copy["kind"].as_str(), copy["sources"][0]["received_bytes"].as_u64()),
        (0, Some("disc_copy"), Some(4096))
    );
    assert_eq!(peer.told(), [format!("rip dvd to {} retries=0", file.display())]);
    let bad = Running::start(State { bad_sectors: 3, ..disc() });
    let output = bad.run(&["disc", "rip", "dvd", file.to_str().unwrap(), "--retries", "9"]);
    assert_eq!(code(&output), 3, "done, with bad sectors");
    assert!(text(&output.stderr).contains("film.iso.map"), "{}", text(&output.stderr));
    let export = peer.run(&["disc", "export", "dvd"]);
    assert_eq!(text(&export.stdout), "nbd://127.0.0.1:10809\nhttp://127.0.0.1:8080/\n");
    assert!(text(&export.stderr).contains("the disc was changed"));
    let socket = peer.run_there(&["disc", "export", "dvd", "--nbd-socket", "dvd.sock"]);
    assert_eq!(text(&socket.stdout), format!("nbd+unix:///?socket={}\n", peer.path("dvd.sock").display()));
    let open = peer.run_there(&["disc", "export", "dvd", "--listen", "192.0.2.1", "--tls", "new/keys"]);
    let keys = peer.path("new/keys");
    assert_eq!(
        text(&open.stdout),
        format!("nbds://192.0.2.1:10809/?tls-certificates={}\n", keys.display().to_string().replace(' ', "%20"))
    );
    for (file, holds, mode) in [
        ("ca-cert.pem", "authority of the export", 0o644),
        ("client-cert.pem", "certificate of the export", 0o644),
        ("client-key.pem", "key of the export", 0o600),
    ] {
        assert_eq!(std::fs::read_to_string(keys.join(file)).unwrap(), holds);
        assert_eq!(std::fs::metadata(keys.join(file)).unwrap().permissions().mode() & 0o777, mode, "{file}");
    }
    for wrong in [&["--tls", "keys"][..], &["--plain"], &["--listen", "::", "--tls", "keys", "--plain"]] {
        assert_eq!(code(&peer.run(&[&["disc", "export", "dvd"], wrong].concat())), 2, "{wrong:?}");
    }
    ok(&peer.run(&["disc", "eject", "dvd"]));
    ok(&peer.run(&["disc", "insert", "drives/dvd", file.to_str().unwrap()]));
    let told = peer.told();
    assert_eq!(told, ["DRIVE_VERB_EJECT dvd ".to_owned(), format!("DRIVE_VERB_INSERT drives/dvd {}", file.display())]);
}
