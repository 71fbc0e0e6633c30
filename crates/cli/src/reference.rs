//! The reference of all commands, made from the parser: Markdown and man pages.

use crate::args::Cli;
use crate::exit::Exit;
use crate::output::schema;
use clap::{Arg, Command, CommandFactory};
use common::error::{Error, Result};
use std::fmt::Write;

/// `docs/cli.md`.
pub fn markdown() -> String {
    let mut text = String::from(
        "# The atrium command\n\n<!-- Made by `atrium generate docs`; change crates/cli/src/args instead. -->\n\n",
    );
    let mut root = Cli::command();
    root.build();
    paragraph(&mut text, &root);
    text.push_str("## Commands\n\n| Command | |\n|---|---|\n");
    for command in visible(&root) {
        let _ = writeln!(text, "| [`atrium {0}`](#atrium-{0}) | {1} |", command.get_name(), one_line(command));
    }
    text.push_str("\n## Options of every command\n\n");
    options(&mut text, root.get_arguments().filter(|a| a.is_global_set()));
    text.push_str(ENVIRONMENT);
    exit_codes(&mut text);
    text.push_str(ERRORS);
    for command in visible(&root) {
        section(&mut text, command, "atrium", 2);
    }
    json(&mut text);
    text
}

const ENVIRONMENT: &str = "\
## Environment

| Variable | |
|---|---|
| `ATRIUM_AGENT_SOCKET` | as `--agent` |
| `ATRIUM_PEER_SOCKET` | as `--peer`; without either, the peer that you started, then one that the system runs for you (`/run/atrium-peer/NAME/peer.sock`) |
| `ATRIUM_SERVER`, `ATRIUM_CA`, `ATRIUM_TOKEN_FILE` | as `--server`, `--ca`, `--token-file`; a flag beats its variable |
| `XDG_RUNTIME_DIR` | `$XDG_RUNTIME_DIR/atrium/agent.sock` is used if it exists, else `/run/atrium/agent.sock` |
| `XDG_STATE_HOME` | sessions of `login --server` and the memory of `sync` are kept in `$XDG_STATE_HOME/atrium` (`~/.local/state/atrium`) |
| `NO_COLOR`, `TERM=dumb` | no colour |

Passwords, codes and tokens are never taken from the environment or from an option's value: they are asked for, or read
from a file or standard input. Only `join` takes a code as a word, since it is used up by the same call.

";

const ERRORS: &str = "\
## Errors

On standard error, for people:

```
error: home:a.txt does not exist
why: there is no such file or directory
fix: `atrium ls` shows what is there
request: 0192f3a0-7c1e-7b52-9a43-5d0c9f0b7f11
```

With `--json`, as one object of the kind [`error`](#json). The request id is the one under which the server has logged
the call. `docs/errors.md` lists all reasons. Two are of the command itself: `USAGE` (a mistake in the command line) and
`TOO_MANY_DELETIONS` (`sync` would delete more than half of everything).

";

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help")
}

fn one_line(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn paragraph(text: &mut String, command: &Command) {
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let _ = writeln!(text, "{}\n", about.trim());
}

fn exit_codes(text: &mut String) {
    text.push_str("## Exit codes\n\nA code that is not in this table means failure; new ones may be added.\n\n| Code | Meaning |\n|---|---|\n");
    for (exit, meaning) in Exit::ALL {
        let _ = writeln!(text, "| {} | {meaning} |", exit.code());
    }
    text.push('\n');
}

fn section(text: &mut String, command: &Command, parent: &str, level: usize) {
    let name = format!("{parent} {}", command.get_name());
    let _ = writeln!(text, "{} {name}\n", "#".repeat(level.min(4)));
    paragraph(text, command);
    let usage = command.clone().bin_name(&name).render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim();
    let _ = writeln!(text, "```\n{usage}\n```\n");
    let aliases: Vec<&str> = command.get_visible_aliases().collect();
    if !aliases.is_empty() {
        let _ = writeln!(text, "Also called: `{}`.\n", aliases.join("`, `"));
    }
    options(text, command.get_arguments().filter(|a| !a.is_global_set() && !a.is_hide_set() && a.get_id() != "help"));
    if let Some(examples) = command.get_after_help() {
        let examples = examples.to_string();
        let (list, rest) = examples.split_once("\n\n").unwrap_or((&examples, ""));
        let lines: Vec<&str> = list.lines().skip(1).map(str::trim).collect();
        let _ = writeln!(text, "```sh\n{}\n```\n", lines.join("\n"));
        if !rest.is_empty() {
            let _ = writeln!(text, "{}\n", rest.trim());
        }
    }
    for sub in visible(command) {
        section(text, sub, &name, level + 1);
    }
}

fn options<'a>(text: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let rows: Vec<String> = arguments.filter(|a| a.get_id() != "version" || !a.is_global_set()).map(row).collect();
    if !rows.is_empty() {
        let _ = writeln!(text, "| Argument | |\n|---|---|\n{}\n", rows.join("\n"));
    }
}

fn row(arg: &Arg) -> String {
    let value = arg.get_value_names().and_then(|n| n.first()).map(ToString::to_string).unwrap_or_default();
    let takes_value = arg.get_action().takes_values();
    let name = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (None, Some(long)) => format!("--{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, None) => {
            return format!(
                "| `{}` | {} |",
                if value.is_empty() { arg.get_id().to_string() } else { value },
                help(arg)
            );
        }
    };
    let shown = if takes_value { format!("{name} {value}") } else { name };
    format!("| `{shown}` | {} |", help(arg))
}

fn help(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let defaults: Vec<String> = arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    if arg.get_action().takes_values() && defaults.iter().any(|d| !d.is_empty()) {
        let _ = write!(text, " (default: {})", defaults.join(", "));
    }
    text.replace('|', "\\|")
}

fn json(text: &mut String) {
    text.push_str(
        "## JSON\n\nEvery object has `\"schema\": 1` and its `kind`. Under the same schema number, fields are only added. \
         Times are RFC 3339 in UTC, sizes are bytes.\n\nLists are one object of the kind `KIND_list` with the array \
         `items`, whose elements have the fields of KIND without `schema` and `kind`; it is written as the elements come \
         in, and is incomplete if the command fails on the way. `watch` writes one object a line. Errors, warnings and \
         progress are objects on lines of standard error.\n\n",
    );
    for object in schema::descriptions() {
        let _ = writeln!(text, "### {}\n\n{}\n\n| Field | Type | |\n|---|---|---|", object.kind, object.about);
        for (name, kind, about) in &object.fields {
            let _ = writeln!(text, "| `{}` | {kind} | {about} |", name.trim_start_matches("r#"));
        }
        text.push('\n');
    }
    while text.ends_with("\n\n") {
        text.pop();
    }
}

/// Man pages: file name and content, one for each command and subcommand.
///
/// # Errors
/// If one cannot be rendered.
pub fn man_pages() -> Result<Vec<(String, Vec<u8>)>> {
    let mut root = Cli::command();
    root.build();
    let mut pages = Vec::new();
    man(&root, "atrium", &mut pages)?;
    Ok(pages)
}

fn man(command: &Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone().version(env!("CARGO_PKG_VERSION")))
        .title(name.to_owned())
        .source(concat!("atrium ", env!("CARGO_PKG_VERSION")))
        .manual("Atrium")
        .render(&mut page)
        .map_err(|e| Error::internal("a man page could not be made").caused_by(e))?;
    pages.push((format!("{name}.1"), page));
    for sub in visible(command) {
        man(sub, &format!("{name}-{}", sub.get_name()), pages)?;
    }
    Ok(())
}
