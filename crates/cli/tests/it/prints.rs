//! Printing on other machines' printers.

use crate::fake_peer::{Running, State, code, disc, ok, text};
use crate::process::{atrium, failure};
use std::sync::Mutex;

#[test]
fn a_document_that_is_sent_twice_is_printed_once() {
    // The first answer is lost, the second time the printer knows the job.
    let peer = Running::start(State { break_next: Mutex::new(2), ..disc() });
    let file = peer.path("plan.pdf");
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 253) as u8).collect();
    std::fs::write(&file, &content).unwrap();
    let (exit, job) = peer.json(&["print", file.to_str().unwrap(), "--at", "laser", "--media", "a4"]);
    assert_eq!(
        (exit, job["kind"].as_str(), job["id"].as_str()),
        (0, Some("print_job"), Some("acme/anna-pc/printers/laser#1"))
    );
    assert_eq!(peer.told(), ["print plan.pdf at laser: 3000000 bytes"; 2]);
    let jobs = peer.fake.0.jobs.lock().unwrap();
    assert_eq!(jobs.len(), 1);
    assert!(jobs[0].1 == content);
    assert_eq!((jobs[0].0.size_bytes, jobs[0].0.media.as_str()), (3_000_000, "iso_a4_210x297mm"));
}

#[test]
fn several_files_and_standard_input_are_printed_at_the_only_printer() {
    let peer = Running::start(disc());
    std::fs::write(peer.path("a"), "first").unwrap();
    let missing = peer.run_there(&["print", "a", "missing", "--hold"]);
    assert_eq!(code(&missing), 3, "{}", text(&missing.stderr));
    assert_eq!(peer.told(), ["print a at acme/anna-pc/printers/laser: 5 bytes"], "the other one is only seen");
    let mut command = atrium(peer.home.path(), &peer.args(&["print", "-", "--name", "from a pipe"]));
    let input = std::fs::File::open(peer.path("a")).unwrap();
    ok(&command.stdin(input).output().unwrap());
    assert_eq!(peer.told(), ["print from a pipe at acme/anna-pc/printers/laser: 5 bytes"]);
    let ids: Vec<_> = peer.fake.0.jobs.lock().unwrap().iter().map(|(h, _)| h.request_id.clone()).collect();
    assert_ne!(ids[0], ids[1], "each file is a wish of its own");
    let pin = peer.run_there(&["print", "a", "--pin", "--json"]);
    assert!(failure(&pin)["fix"].as_str().unwrap().contains("--pin-file"), "nobody can be asked");
    std::fs::write(peer.path("pin"), "12\n").unwrap();
    assert_eq!(code(&peer.run_there(&["print", "a", "--pin-file", "pin"])), 2, "too short");
    assert!(peer.told().is_empty());
}

#[test]
fn jobs_are_listed_and_changed_by_the_name_that_is_listed() {
    let peer = Running::start(disc());
    std::fs::write(peer.path("a"), "x").unwrap();
    std::fs::write(peer.path("pin"), "4711\n").unwrap();
    ok(&peer.run_there(&["print", "a"]));
    ok(&peer.run_there(&["print", "a", "--pin-file", "pin"]));
    peer.told();
    let (exit, list) = peer.json(&["jobs"]);
    assert_eq!((exit, list["kind"].as_str()), (0, Some("print_job_list")));
    assert_eq!(list["items"][1]["id"], "acme/anna-pc/printers/laser#1");
    let shown = text(&peer.run(&["jobs", "laser", "--all"]).stdout);
    assert!(shown.lines().next().unwrap().contains("laser#2") && shown.contains("waits for its PIN"), "{shown}");
    ok(&peer.run(&["jobs", "hold", "laser#1"]));
    ok(&peer.run(&["jobs", "priority", "laser#1", "90"]));
    ok(&peer.run(&["jobs", "release", "acme/anna-pc/printers/laser#1"]));
    ok(&peer.run_there(&["jobs", "release", "laser#2", "--pin-file", "pin"]));
    assert_eq!(code(&peer.run(&["jobs", "cancel", "laser#1", "laser#9"])), 3);
    let asked = peer.run(&["jobs", "release", "laser#2", "--json"]);
    assert!(failure(&asked)["fix"].as_str().unwrap().contains("--pin-file"));
    assert_eq!(
        peer.told(),
        [
            "all jobs ended=false",
            "jobs of laser ended=true",
            "PRINT_JOB_VERB_HOLD laser#1 0 ",
            "PRINT_JOB_VERB_PRIORITY laser#1 90 ",
            "PRINT_JOB_VERB_SHOW acme/anna-pc/printers/laser#1 0 ",
            "PRINT_JOB_VERB_RELEASE acme/anna-pc/printers/laser#1 0 ",
            "PRINT_JOB_VERB_RELEASE laser#2 0 4711",
            "PRINT_JOB_VERB_CANCEL laser#1 0 ",
            "PRINT_JOB_VERB_CANCEL laser#9 0 ",
            "PRINT_JOB_VERB_SHOW laser#2 0 ",
        ]
    );
    ok(&peer.run(&["printer", "pause", "laser"]));
    ok(&peer.run(&["printer", "quota", "laser", "--sheets", "none", "--period", "7d"]));
    assert_eq!(
        peer.told(),
        ["printer laser Some(true) None None None", "printer laser None Some(0) None Some(604800)"]
    );
}
