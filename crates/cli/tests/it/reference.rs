//! Documents, man pages and completions are made from the parser and are current.

use crate::parser::commands;
use atrium_cli::reference;
use std::path::Path;

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn the_reference_in_the_repository_is_current() {
    let written = std::fs::read_to_string(repository().join("docs/cli.md")).unwrap_or_default();
    assert!(written == reference::markdown(), "fix: cargo run -p atrium -- generate docs docs/cli.md");
}

#[test]
fn reference_man_pages_and_completions_name_the_same_commands() {
    let docs = reference::markdown();
    let pages = reference::man_pages().unwrap();
    let mut bash = Vec::new();
    clap_complete::generate(
        clap_complete::Shell::Bash,
        &mut <atrium_cli::args::Cli as clap::CommandFactory>::command(),
        "atrium",
        &mut bash,
    );
    let bash = String::from_utf8(bash).unwrap();
    let mut shown = 0;
    for (name, command) in commands() {
        let hidden = name.starts_with("atrium generate");
        let page = format!("{}.1", name.replace(' ', "-"));
        assert_eq!(pages.iter().any(|(n, _)| *n == page), !hidden, "{page}");
        if name != "atrium" {
            assert_eq!(docs.lines().any(|l| l.trim_start_matches('#').trim() == name), !hidden, "{name}");
        }
        if hidden {
            continue;
        }
        shown += 1;
        let (_, page) = pages.iter().find(|(n, _)| *n == page).unwrap();
        let page = String::from_utf8_lossy(page);
        for arg in command.get_arguments().filter(|a| !a.is_hide_set()) {
            if let Some(long) = arg.get_long().filter(|l| !["help", "version"].contains(l)) {
                assert!(docs.contains(&format!("--{long}")), "{name} --{long} is not in the reference");
                assert!(page.contains(&long.replace('-', "\\-")), "{name} --{long} is not in its man page");
                assert!(bash.contains(&format!("--{long}")), "{name} --{long} is not completed");
            }
        }
    }
    assert!(shown > 60, "{shown}");
    assert_eq!(pages.len(), shown);
}
