//! What is below a directory of the server, page by page: to list it, to fetch it, to search it.

use super::address::address_of;
use super::browse::{Found, TREE_MAX, entry_of, is_directory, item, join, name_of, page_of, too_large};
use crate::office::View;
use crate::transfer::OrderDirectory;
use common::error::{Error, Reason, Result};
use common::rpc::OfficeConnection;
use proto::peer::v1 as peer;
use proto::v1;
use std::collections::VecDeque;

/// Entries of one answer of the server.
const PAGE: u32 = 1_000;

/// A directory that is being walked through: its path below the root, what is left of the page, and the next page.
struct Level {
    directory: String,
    entries: VecDeque<v1::Entry>,
    next: Option<String>,
}

/// Everything below a directory, each directory directly before what is in it. Holds one page a level: at most 128,000
/// entries.
pub struct Walk<'a> {
    connection: &'a OfficeConnection,
    root: String,
    open: Vec<Level>,
}

impl<'a> Walk<'a> {
    /// From the beginning.
    pub fn new(connection: &'a OfficeConnection, top: &v1::Path) -> Self {
        let mut walk = Self { connection, root: top.root.clone(), open: Vec::new() };
        walk.enter(top.path.clone());
        walk
    }

    /// From behind an entry, which a page ended with. Only the directories above it are looked through.
    ///
    /// # Errors
    /// PAGE_TOKEN_INVALID if it is gone; those of the server.
    pub async fn behind(connection: &'a OfficeConnection, top: &v1::Path, last: &str) -> Result<Self> {
        let gone = || Error::new(Reason::PageTokenInvalid, "what the last page ended with is gone");
        let mut walk = Self::new(connection, top);
        let inside = last.strip_prefix(&top.path).ok_or_else(gone)?.trim_start_matches('/');
        for name in inside.split('/') {
            let found = loop {
                let level = walk.open.last().map(|l| l.directory.clone()).unwrap_or_default();
                match walk.next_here().await? {
                    Some(entry) if name_of(&entry) == name => break (join(&level, name), entry),
                    Some(_) => {}
                    None => return Err(gone()),
                }
            };
            if is_directory(&found.1) {
                walk.enter(found.0);
            }
        }
        Ok(walk)
    }

    fn enter(&mut self, directory: String) {
        self.open.push(Level { directory, entries: VecDeque::new(), next: Some(String::new()) });
    }

    /// The next entry of the innermost directory.
    async fn next_here(&mut self) -> Result<Option<v1::Entry>> {
        let Some(level) = self.open.last_mut() else { return Ok(None) };
        loop {
            if let Some(entry) = level.entries.pop_front() {
                return Ok(Some(entry));
            }
            let Some(token) = level.next.take() else { return Ok(None) };
            let at = v1::Path { root: self.root.clone(), path: level.directory.clone() };
            let page = page_of(self.connection, &at, PAGE, &token).await?;
            level.entries = page.entries.into();
            level.next = Some(page.next_page_token).filter(|t| !t.is_empty());
        }
    }

    /// The next entry, with its path below the root.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn next(&mut self) -> Result<Option<(String, v1::Entry)>> {
        while let Some(level) = self.open.last() {
            let directory = level.directory.clone();
            let Some(entry) = self.next_here().await? else {
                self.open.pop();
                continue;
            };
            let path = join(&directory, name_of(&entry));
            if is_directory(&entry) {
                self.enter(path.clone());
            }
            return Ok(Some((path, entry)));
        }
        Ok(None)
    }
}

/// A page of everything below a place; the token is the address of the last item of the page before.
///
/// # Errors
/// Those of [`Walk`].
pub async fn list_all(
    connection: &OfficeConnection,
    view: &View,
    top: &v1::Path,
    token: &str,
    size: usize,
) -> Result<peer::ListResponse> {
    if !top.path.is_empty() {
        let entry = entry_of(connection, top).await?;
        if !is_directory(&entry) {
            let address = address_of(view, &top.root, &top.path);
            return Ok(peer::ListResponse { items: vec![item(&entry, address)], ..Default::default() });
        }
    }
    let base = address_of(view, &top.root, "");
    let mut walk = match token.strip_prefix(&base).map(|rest| rest.trim_start_matches('/')) {
        Some(last) if !last.is_empty() => Walk::behind(connection, top, last).await?,
        _ => Walk::new(connection, top),
    };
    let mut answer = peer::ListResponse::default();
    while let Some((path, entry)) = walk.next().await? {
        if answer.items.len() == size {
            answer.next_page_token = answer.items.last().map(|i| i.address.clone()).unwrap_or_default();
            break;
        }
        answer.items.push(item(&entry, address_of(view, &top.root, &path)));
    }
    Ok(answer)
}

/// The files and directories below a path; true if it is a file itself.
pub async fn tree(
    connection: OfficeConnection,
    top: v1::Path,
    name: String,
) -> Result<(bool, Vec<Found>, Vec<OrderDirectory>)> {
    if !top.path.is_empty() && !is_directory(&entry_of(&connection, &top).await?) {
        return Ok((true, vec![Found { relative: name, path: top }], Vec::new()));
    }
    let (mut found, mut directories) = (Vec::new(), Vec::new());
    let mut walk = Walk::new(&connection, &top);
    while let Some((path, entry)) = walk.next().await? {
        let relative = path[top.path.len()..].trim_start_matches('/').to_owned();
        if is_directory(&entry) {
            directories.push(OrderDirectory { path: relative, mode: 0o755 });
        } else {
            found.push(Found { relative, path: v1::Path { root: top.root.clone(), path } });
        }
        if found.len() + directories.len() > TREE_MAX {
            return Err(too_large());
        }
    }
    Ok((false, found, directories))
}
