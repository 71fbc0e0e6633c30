//! The parser: complete, explained, with examples that work.

use atrium_cli::args::Cli;
use clap::{Command, CommandFactory, Parser};

/// All commands with their full names, without the generated `help`.
pub fn commands() -> Vec<(String, Command)> {
    fn walk(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
        found.push((name.to_owned(), command.clone()));
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
            walk(sub, &format!("{name} {}", sub.get_name()), found);
        }
    }
    let mut root = Cli::command();
    root.build();
    let mut found = Vec::new();
    walk(&root, "atrium", &mut found);
    found
}

/// Splits a line as a shell does, as far as the examples need it: words, double quotes, redirections and pipes end it.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut open) = (false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, open) = (!quoted, true),
            ' ' if !quoted => {
                if open {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            '>' | '|' if !quoted => break,
            c => {
                word.push(c);
                open = true;
            }
        }
    }
    if open {
        words.push(word);
    }
    words
}

#[test]
fn the_parser_has_no_contradictions() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_of_the_product_is_there() {
    let names: Vec<String> = commands().into_iter().map(|(name, _)| name).collect();
    let verbs = "join login logout whoami status doctor ls put get cat mkdir mv cp rm restore versions lock unlock share \
                 why sync conflicts watch queue cache admin completions init invite peers members office find unshare shares \
                 mirror transfers limit send inbox outbox devices use release request print jobs printer disc space";
    let areas = "users groups quota directories invite invites devices audit backup restore scrub reclaim status";
    for verb in verbs.split_whitespace() {
        assert!(names.contains(&format!("atrium {verb}")), "{verb}");
    }
    for area in areas.split_whitespace() {
        assert!(names.contains(&format!("atrium admin {area}")), "admin {area}");
    }
}

#[test]
fn every_command_says_what_it_is_and_shows_how() {
    for (name, command) in commands() {
        assert!(command.get_about().is_some_and(|a| a.to_string().len() > 4), "{name} has no description");
        let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(examples.starts_with("Example"), "{name} has no example");
        for arg in command.get_arguments() {
            assert!(arg.get_help().is_some(), "{name}: {} is not explained", arg.get_id());
        }
    }
}

#[test]
fn every_example_is_understood() {
    let mut count = 0;
    for (name, command) in commands() {
        let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in examples.lines().skip(1).map(str::trim).take_while(|l| !l.is_empty()) {
            // "tar c notes | atrium put …", "sudo atrium …"; other programs' lines are theirs.
            let Some(at) = line.find("atrium ") else { continue };
            if line.starts_with("sudo systemctl") {
                continue;
            }
            let parsed = Cli::try_parse_from(words(&line[at..]));
            assert!(parsed.is_ok(), "{name}: {line}\n{}", parsed.err().map(|e| e.to_string()).unwrap_or_default());
            count += 1;
        }
    }
    assert!(count > 100, "only {count} examples were found");
}

#[test]
fn secrets_cannot_be_given_in_arguments() {
    for (name, command) in commands() {
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            let words = ["password", "token", "code", "secret"];
            let secret = words.iter().any(|s| long.contains(s)) || long.split('-').any(|word| word == "pin");
            let by_file = long.ends_with("-file") || !arg.get_action().takes_values();
            assert!(!secret || by_file, "{name} --{long} would put a secret into the process list");
            let env = arg.get_env().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
            assert!(!env.contains("PASSWORD") && (!env.contains("TOKEN") || env.ends_with("_FILE")), "{env}");
        }
    }
}

#[test]
fn what_cannot_be_undone_asks_and_can_be_told_not_to() {
    for name in [
        "atrium restore purge",
        "atrium admin users delete",
        "atrium admin groups delete",
        "atrium admin directories delete",
        "atrium admin devices revoke",
        "atrium members revoke",
        "atrium members groups delete",
        "atrium sync",
        "atrium space return",
    ] {
        let (_, command) = commands().into_iter().find(|(n, _)| n == name).unwrap();
        assert!(command.get_arguments().any(|a| a.get_long() == Some("yes")), "{name}");
    }
    for name in ["atrium rm", "atrium put", "atrium sync"] {
        let (_, command) = commands().into_iter().find(|(n, _)| n == name).unwrap();
        assert!(command.get_arguments().any(|a| a.get_long() == Some("dry-run")), "{name}");
    }
}

#[test]
fn mistakes_are_answered_with_the_nearest_word() {
    let message = |line: &[&str]| Cli::try_parse_from(line).unwrap_err().to_string();
    assert!(message(&["atrium", "statsu"]).contains("status"));
    assert!(message(&["atrium", "ls", "--josn"]).contains("--json"));
    assert!(message(&["atrium", "mkdir", "notes/a.txt"]).contains("home:notes/a.txt"));
    assert!(message(&["atrium", "ls", "/etc"]).contains("acme/anna-pc"));
    assert!(message(&["atrium", "share", "public:plans/x"]).contains("public:plans"));
}
