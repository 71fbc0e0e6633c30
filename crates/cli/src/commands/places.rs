//! Questions about places on the server that several verbs ask.

use super::call;
use crate::args::value::RemotePath;
use crate::connect::Office;
use crate::output::usage;
use common::error::{Error, Reason, Result};
use common::model::{EntryName, EntryPath};
use proto::v1;

/// Page size of lists: one round trip for most directories.
pub const PAGE: u32 = 1000;
/// Most entries below one directory that a command walks through.
pub const WALK_MAX: usize = 5_000_000;

/// As the contract writes it.
pub fn wire(path: &EntryPath) -> v1::Path {
    v1::Path { root: path.root.to_string(), path: path.relative() }
}

/// The entry at a path.
///
/// # Errors
/// `ENTRY_UNKNOWN`, `ACCESS_DENIED`.
pub async fn entry(office: &Office, path: &EntryPath) -> Result<v1::Entry> {
    call(office.files().get_entry(v1::GetEntryRequest { path: Some(wire(path)) })).await
}

/// The entry at a path, or nothing.
///
/// # Errors
/// All but `ENTRY_UNKNOWN`.
pub async fn find(office: &Office, path: &EntryPath) -> Result<Option<v1::Entry>> {
    match entry(office, path).await {
        Ok(entry) => Ok(Some(entry)),
        Err(error) if error.is(Reason::EntryUnknown) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether it is a directory.
pub fn is_directory(entry: &v1::Entry) -> bool {
    entry.kind == v1::EntryKind::Directory as i32
}

/// One page of a directory.
///
/// # Errors
/// `NOT_A_DIRECTORY`, `ENTRY_UNKNOWN`, `ACCESS_DENIED`.
pub async fn page(office: &Office, path: &EntryPath, token: String) -> Result<v1::ListEntriesResponse> {
    let request = v1::ListEntriesRequest { path: Some(wire(path)), page_size: PAGE, page_token: token };
    call(office.files().list_entries(request)).await
}

/// The path of a listed entry.
///
/// # Errors
/// If the server sent a name that cannot be one.
pub fn child(parent: &EntryPath, entry: &v1::Entry) -> Result<EntryPath> {
    EntryName::new(entry.display_name.as_str()).map(|name| parent.child(name))
}

/// Everything below a directory, the directory itself not included, parents before their children.
///
/// # Errors
/// As [`page`]; `TREE_TOO_LARGE` beyond [`WALK_MAX`] entries.
pub async fn walk(office: &Office, root: &EntryPath) -> Result<Vec<(EntryPath, v1::Entry)>> {
    let mut found = Vec::new();
    let mut open = std::collections::VecDeque::from([root.clone()]);
    while let Some(directory) = open.pop_front() {
        let mut token = String::new();
        loop {
            let page = page(office, &directory, token).await?;
            for entry in page.entries {
                let path = child(&directory, &entry)?;
                if is_directory(&entry) {
                    open.push_back(path.clone());
                }
                found.push((path, entry));
                if found.len() > WALK_MAX {
                    return Err(Error::new(Reason::TreeTooLarge, format!("there is too much below {root}")));
                }
            }
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
    }
    Ok(found)
}

/// Where each source goes: into the destination if it is a directory (or there are several sources), else to exactly
/// that name.
///
/// # Errors
/// `NOT_A_DIRECTORY` if several sources shall go to a file; whatever asking for the destination ends with.
pub async fn destinations(office: &Office, names: &[EntryName], destination: &RemotePath) -> Result<Vec<EntryPath>> {
    let into = if destination.into {
        true
    } else {
        match find(office, &destination.path).await? {
            Some(entry) => is_directory(&entry),
            None => false,
        }
    };
    if into {
        return Ok(names.iter().map(|name| destination.path.child(name.clone())).collect());
    }
    match names {
        [_] => Ok(vec![destination.path.clone()]),
        _ => Err(Error::new(Reason::NotADirectory, format!("{destination} is not a directory"))
            .why_is("several things cannot all go to one name")
            .fix_is(format!("make it with `atrium mkdir {destination}`, or name an existing directory"))),
    }
}

/// The last part of a path.
///
/// # Errors
/// `USAGE` for a whole private or public directory.
pub fn name_of(path: &EntryPath) -> Result<EntryName> {
    path.name().cloned().ok_or_else(|| {
        usage(
            format!("{path} is a whole directory of the office, not something in it"),
            format!("name something in it, like {path}/a.txt"),
        )
    })
}
