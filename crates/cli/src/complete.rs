//! Completion of places on the server, while the user types (clap_complete's environment engine).

use crate::args::{Cli, Global};
use crate::commands::{
    list_addresses_for_completion, list_devices_for_completion, list_for_completion, list_spaces_for_completion,
};
use clap::Parser;
use clap_complete::engine::CompletionCandidate;
use common::error::Result;
use common::model::EntryPath;
use proto::peer::v1::DeviceKind;
use std::ffi::OsStr;
use std::future::Future;
use std::time::Duration;

/// A shell that waits longer than this feels stuck.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Longer lists help nobody.
const CANDIDATES_MAX: usize = 500;

/// What may follow `current`: "home:" and "public:", then what the server has; and what machines share. Errors complete
/// to nothing.
pub fn remote_paths(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let names: Vec<String> = match split(current) {
        Some((directory, prefix)) => {
            let names = ask(&directory).unwrap_or_default();
            names.into_iter().filter(|n| n.starts_with(&prefix)).map(|n| format!("{directory}{n}")).collect()
        }
        None => {
            let (directory, prefix) = current.split_at(current.rfind('/').map_or(0, |at| at + 1));
            let addresses = ask_peer(directory).unwrap_or_default();
            let addresses = addresses.into_iter().filter(|n| n.starts_with(prefix)).map(|n| format!("{directory}{n}"));
            begin_of_place(current).into_iter().chain(addresses).collect()
        }
    };
    names.into_iter().take(CANDIDATES_MAX).map(CompletionCandidate::new).collect()
}

/// "home:" and "public:" as far as they fit.
fn begin_of_place(current: &str) -> Vec<String> {
    ["home:", "public:"].iter().filter(|p| p.starts_with(current)).map(|p| (*p).to_owned()).collect()
}

/// The directory that is listed, as it was typed up to its last ':' or '/', and the beginning of a name in it.
fn split(current: &str) -> Option<(String, String)> {
    let (scheme, rest) = current.split_once(':')?;
    let at = rest.rfind('/').map_or(0, |i| i + 1) + scheme.len() + 1;
    Some((current[..at].to_owned(), current[at..].to_owned()))
}

/// Names in a directory of the server; directories end with '/'. Completion runs before the options are parsed, so the
/// way to the server comes from the environment only.
fn ask(directory: &str) -> Option<Vec<String>> {
    let global = Cli::try_parse_from(["atrium", "whoami"]).ok()?.global;
    let path = match directory {
        "public:" | "public:/" => None,
        other => Some(EntryPath::parse(other).ok()?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let names = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, list_for_completion(global, path, CANDIDATES_MAX)).await.ok()?.ok()
    });
    runtime.shutdown_background();
    names
}

/// Names below a hierarchical address; what has something below it ends with '/'.
fn ask_peer(directory: &str) -> Option<Vec<String>> {
    by_peer(|global| list_addresses_for_completion(global, directory, CANDIDATES_MAX))
}

/// What the peer says, if there is one and it answers in time.
fn by_peer<F: Future<Output = Result<Vec<String>>>>(ask: impl FnOnce(Global) -> F) -> Option<Vec<String>> {
    let global = Cli::try_parse_from(["atrium", "whoami"]).ok()?.global;
    if !crate::peer::is_there(&global) {
        return None;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let names = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(global)).await.ok()?.ok() });
    runtime.shutdown_background();
    names
}

/// Those that begin so, in whole.
fn beginning(current: &OsStr, names: Option<Vec<String>>) -> Vec<CompletionCandidate> {
    let current = current.to_str().unwrap_or_default();
    let fitting = names.unwrap_or_default().into_iter().filter(|n| n.starts_with(current));
    fitting.take(CANDIDATES_MAX).map(CompletionCandidate::new).collect()
}

fn of_kind(current: &OsStr, kind: DeviceKind) -> Vec<CompletionCandidate> {
    beginning(current, by_peer(|global| list_devices_for_completion(global, kind)))
}

/// Devices of all kinds: their addresses, and their names where only one has it.
pub fn devices(current: &OsStr) -> Vec<CompletionCandidate> {
    of_kind(current, DeviceKind::Unspecified)
}

/// Printers.
pub fn printers(current: &OsStr) -> Vec<CompletionCandidate> {
    of_kind(current, DeviceKind::Printer)
}

/// Drives.
pub fn drives(current: &OsStr) -> Vec<CompletionCandidate> {
    of_kind(current, DeviceKind::Drive)
}

/// Disks.
pub fn disks(current: &OsStr) -> Vec<CompletionCandidate> {
    of_kind(current, DeviceKind::Disk)
}

/// Borrowed spaces: their labels, and the ids of those without.
pub fn spaces(current: &OsStr) -> Vec<CompletionCandidate> {
    beginning(current, by_peer(list_spaces_for_completion))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_place_completes_without_a_server() {
        let values = |text: &str| -> Vec<String> {
            let found = remote_paths(OsStr::new(text));
            found.iter().map(|c| c.get_value().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(values(""), ["home:", "public:"]);
        assert_eq!(values("ho"), ["home:"]);
        assert_eq!(values("pub"), ["public:"]);
        assert!(values("x").is_empty());
    }

    #[test]
    fn what_was_typed_is_divided_into_directory_and_beginning() {
        let split = |t: &str| split(t).map(|(a, b)| (a.to_owned(), b.to_owned()));
        let of = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(split("home:no"), of("home:", "no"));
        assert_eq!(split("home:notes/a"), of("home:notes/", "a"));
        assert_eq!(split("public:plans/2026/x"), of("public:plans/2026/", "x"));
        assert_eq!(split("public:"), of("public:", ""));
        assert_eq!(split("home"), None);
    }
}
