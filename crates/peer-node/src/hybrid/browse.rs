//! What is on the server: listing it, and what a fetch of it needs.

use super::address::{Place, address_of, is_office};
use super::shelf::ServerFile;
use super::swarm::server_device;
use super::{Hybrid, walk};
use crate::catalogue::names;
use crate::model::{Content, Scope, ShownTicket};
use crate::transfer::{OrderDirectory, OrderFile};
use common::error::{Error, Kind, Reason, Result};
use common::model::DeviceId;
use common::rpc::{OfficeChannel, OfficeConnection};
use common::status::{from_item_error, from_status};
use common::ticket::MAX_MANIFESTS;
use common::wire;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use proto::peer::v1 as peer;
use proto::v1;
use proto::v1::directory_service_client::DirectoryServiceClient;
use proto::v1::file_service_client::FileServiceClient;
use std::time::Duration;

/// Largest answer: a page of 65,536 chunks, or of 5,000 entries with long names.
const ANSWER_MAX: usize = 16 * 1024 * 1024;
/// A listing does not wait longer for the server.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nor a search.
const SEARCH_PATIENCE: Duration = Duration::from_secs(20);
/// Manifests that are asked for side by side.
const MANIFESTS: usize = 8;
/// Most entries below a directory that is fetched or listed with everything in it.
pub(super) const TREE_MAX: usize = 1_000_000;
/// Public directories that are shown at the office.
const SHOWN_DIRECTORIES: usize = 10_000;

/// Files of one ticket.
#[derive(Clone, Debug)]
pub struct ServerFiles {
    /// The right.
    pub scope: Scope,
    /// Paths are relative to the top.
    pub files: Vec<OrderFile>,
}

/// What is below an address on the server.
#[derive(Clone, Debug)]
pub struct ServerTree {
    /// Full address.
    pub address: String,
    /// The last segment.
    pub name: String,
    /// It is one file, and its path is its name.
    pub is_file: bool,
    /// The files, one group for each ticket.
    pub groups: Vec<ServerFiles>,
    /// Directories, relative to the top.
    pub directories: Vec<OrderDirectory>,
    /// Where to ask: the server, then members that are there.
    pub sources: Vec<DeviceId>,
}

fn files(connection: &OfficeConnection) -> FileServiceClient<OfficeChannel> {
    FileServiceClient::new(connection.control()).max_decoding_message_size(ANSWER_MAX)
}

pub(super) fn name_of(entry: &v1::Entry) -> &str {
    &entry.display_name
}

pub(super) fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

pub(super) fn is_directory(entry: &v1::Entry) -> bool {
    entry.kind() == v1::EntryKind::Directory
}

fn digest_of(entry: &v1::Entry) -> Result<[u8; 32]> {
    entry.manifest_digest[..].try_into().map_err(|_| strange("a file without a content"))
}

fn strange(what: &str) -> Error {
    Error::new(Reason::MessageMalformed, format!("the server sent {what}"))
}

fn unknown(address: &str) -> Error {
    Error::new(Reason::AddressUnknown, format!("nothing on the server has the address {address:.200}"))
}

pub(super) async fn page_of(
    c: &OfficeConnection,
    path: &v1::Path,
    size: u32,
    token: &str,
) -> Result<v1::ListEntriesResponse> {
    let request = v1::ListEntriesRequest { path: Some(path.clone()), page_size: size, page_token: token.to_owned() };
    files(c).list_entries(request).await.map(tonic::Response::into_inner).map_err(|s| from_status(&s))
}

pub(super) async fn entry_of(connection: &OfficeConnection, path: &v1::Path) -> Result<v1::Entry> {
    let request = v1::GetEntryRequest { path: Some(path.clone()) };
    files(connection).get_entry(request).await.map(tonic::Response::into_inner).map_err(|s| from_status(&s))
}

pub(super) async fn roots(connection: &OfficeConnection) -> Result<Vec<v1::Directory>> {
    let mut client = DirectoryServiceClient::new(connection.control()).max_decoding_message_size(ANSWER_MAX);
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListDirectoriesRequest { page_size: 1_000, page_token };
        let page = client.list_directories(request).await.map_err(|s| from_status(&s))?.into_inner();
        all.extend(page.directories);
        page_token = page.next_page_token;
        if page_token.is_empty() || all.len() >= SHOWN_DIRECTORIES {
            return Ok(all);
        }
    }
}

/// The content of a file version, checked.
async fn content_of(connection: &OfficeConnection, file: &ServerFile) -> Result<Content> {
    let mut chunks = Vec::new();
    let mut page_token = String::new();
    loop {
        let request =
            v1::GetManifestRequest { path: Some(file.path.clone()), version: file.version, page_size: 0, page_token };
        let page = files(connection).get_manifest(request).await.map_err(|s| from_status(&s))?.into_inner();
        chunks.extend(wire::chunks_from(&page.chunks, 65_536)?);
        page_token = page.next_page_token;
        if page_token.is_empty() || page.chunks.is_empty() {
            break;
        }
        if chunks.len() > crate::transfer::order::MAX_CHUNKS {
            return Err(Error::new(Reason::TreeTooLarge, "the file has too many chunks"));
        }
    }
    let content = Content::of(chunks);
    if content.digest != file.digest {
        return Err(
            strange("another content than the one of the ticket").fix_is("try again: the file may have changed")
        );
    }
    Ok(content)
}

/// A file below the top of what is fetched.
pub(super) struct Found {
    /// Below the top.
    pub relative: String,
    /// On the server.
    pub path: v1::Path,
}

impl Hybrid {
    /// What an address stands for on the server; `None` if it is not one of the server's.
    ///
    /// # Errors
    /// PATH_INVALID, NAME_INVALID.
    pub fn place(&self, address: &str) -> Result<Option<Place>> {
        Place::read(&self.0.office.view(), address)
    }

    /// True if the server's directories are to be shown at this address, which is the office's.
    pub fn shown_at(&self, address: &str) -> bool {
        let view = self.0.office.view();
        view.server().is_some() && is_office(&view, address)
    }

    /// The server's directories that the person may see, as items of the office; or why they cannot be shown.
    pub async fn top_items(&self) -> (Vec<peer::Item>, Option<peer::NodeProblem>) {
        let list = self.0.access.call(|c| async move { roots(&c).await });
        let listed = tokio::time::timeout(PATIENCE, list).await.unwrap_or_else(|_| Err(slow()));
        match listed {
            Ok(roots) => (roots.iter().map(|r| self.root_item(r)).collect(), None),
            Err(error) => (Vec::new(), Some(problem(&error))),
        }
    }

    /// What is at a place on the server: one page. The token is the one of the last page.
    ///
    /// # Errors
    /// ADDRESS_UNKNOWN, NOT_SIGNED_IN, SERVER_UNREACHABLE; what the server says.
    pub async fn list(&self, place: &Place, recursive: bool, token: &str, size: u32) -> Result<peer::ListResponse> {
        let work = self.0.access.call(|c| async move { self.list_at(&c, place, recursive, token, size).await });
        if recursive { work.await } else { tokio::time::timeout(PATIENCE * 2, work).await.map_err(|_| slow())? }
    }

    async fn list_at(
        &self,
        connection: &OfficeConnection,
        place: &Place,
        recursive: bool,
        token: &str,
        size: u32,
    ) -> Result<peer::ListResponse> {
        let Some(path) = place.wire() else {
            let public = *place == Place::Public;
            let mut all = roots(connection).await?;
            all.sort_by(|a, b| a.name.cmp(&b.name));
            if recursive {
                all.retain(|r| !public || r.name.starts_with("public/"));
                return self.list_roots(connection, &all, token, size as usize).await;
            }
            let items = all.iter().filter(|r| !public || r.name.starts_with("public/")).map(|r| self.root_item(r));
            return Ok(peer::ListResponse { items: items.collect(), ..Default::default() });
        };
        let view = self.0.office.view();
        if recursive {
            return walk::list_all(connection, &view, &path, token, size as usize).await;
        }
        if !path.path.is_empty() {
            let entry = entry_of(connection, &path).await?;
            if !is_directory(&entry) {
                let address = address_of(&view, &path.root, &path.path);
                return Ok(peer::ListResponse { items: vec![item(&entry, address)], ..Default::default() });
            }
        }
        let page = page_of(connection, &path, size.clamp(1, 5_000), token).await?;
        let address = |e: &v1::Entry| address_of(&view, &path.root, &join(&path.path, name_of(e)));
        Ok(peer::ListResponse {
            items: page.entries.iter().map(|e| item(e, address(e))).collect(),
            next_page_token: page.next_page_token,
            problems: Vec::new(),
        })
    }

    /// Searches names below a place, or on all of the server: gives what has all of the words in its path. A search that
    /// would take too long ends early, and says so.
    pub async fn find(
        &self,
        words: &[String],
        below: &Place,
        limit: usize,
    ) -> (Vec<peer::Item>, Option<peer::NodeProblem>) {
        let found = parking_lot::Mutex::new(Vec::new());
        let search = self.0.access.call(|c| self.search(c, words, below, limit, &found));
        let ended = tokio::time::timeout(SEARCH_PATIENCE, search).await;
        let problem = match ended {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(problem(&error)),
            Err(_) => Some(problem(&Error::new(
                Reason::DeadlineExceeded,
                "the search of the central server's directories took too long and ended early",
            ))),
        };
        let mut found: Vec<(u8, peer::Item)> = found.into_inner();
        found.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| names::order(&a.1.address, &b.1.address)));
        found.truncate(limit);
        (found.into_iter().map(|(_, item)| item).collect(), problem)
    }

    async fn search(
        &self,
        connection: OfficeConnection,
        words: &[String],
        below: &Place,
        limit: usize,
        found: &parking_lot::Mutex<Vec<(u8, peer::Item)>>,
    ) -> Result<()> {
        found.lock().clear();
        let view = self.0.office.view();
        let tops: Vec<v1::Path> = match below.wire() {
            Some(path) => vec![path],
            None => {
                let all = roots(&connection).await?.into_iter();
                let wanted = all.filter(|r| *below == Place::Top || r.name.starts_with("public/"));
                wanted.map(|r| v1::Path { root: r.name, path: String::new() }).collect()
            }
        };
        for top in tops {
            let mut walk = walk::Walk::new(&connection, &top);
            while let Some((path, entry)) = walk.next().await? {
                if let Some(rank) = names::rank(&path, words) {
                    let mut found = found.lock();
                    found.push((rank, item(&entry, address_of(&view, &top.root, &path))));
                    if found.len() >= limit {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Several directories with everything in them; a page is of one of them.
    async fn list_roots(
        &self,
        connection: &OfficeConnection,
        roots: &[v1::Directory],
        token: &str,
        size: usize,
    ) -> Result<peer::ListResponse> {
        let view = self.0.office.view();
        let address = |r: &v1::Directory| address_of(&view, &r.name, "");
        let is_in = |r: &&v1::Directory| token == address(r) || token.starts_with(&(address(r) + "/"));
        // The token of a directory itself is that of its beginning.
        let Some(root) = roots.iter().find(is_in).or(roots.first()) else { return Ok(peer::ListResponse::default()) };
        let top = v1::Path { root: root.name.clone(), path: String::new() };
        let begins = !token.starts_with(&(address(root) + "/"));
        let mut page = walk::list_all(connection, &view, &top, if begins { "" } else { token }, size).await?;
        if begins {
            page.items.insert(0, self.root_item(root));
        }
        if page.next_page_token.is_empty() {
            let next = roots.iter().skip_while(|r| r.name != root.name).nth(1);
            page.next_page_token = next.map(address).unwrap_or_default();
        }
        Ok(page)
    }

    fn root_item(&self, root: &v1::Directory) -> peer::Item {
        peer::Item {
            kind: peer::item::Kind::ServerDirectory as i32,
            address: address_of(&self.0.office.view(), &root.name, ""),
            size_bytes: root.used_bytes,
            right: root.my_right,
            holder_count: 1,
            online: true,
            ..Default::default()
        }
    }

    /// Everything below a place on the server (or the file itself), with contents and tickets: what a fetch needs.
    ///
    /// # Errors
    /// ADDRESS_UNKNOWN for what is no directory or file, TREE_TOO_LARGE, NOT_SIGNED_IN, NOT_JOINED if this machine has not
    /// joined the server; what the server says.
    pub async fn tree(&self, place: &Place, neighbours: &[DeviceId]) -> Result<ServerTree> {
        let view = self.0.office.view();
        let server = self.0.access.server()?;
        let path = place.wire().ok_or_else(|| unknown(view.name()))?;
        let address = address_of(&view, &path.root, &path.path);
        let name = address.rsplit('/').next().unwrap_or_default().to_owned();
        let (is_file, found, directories) = self.0.access.call(|c| walk::tree(c, path.clone(), name.clone())).await?;
        let (mut groups, mut chunks) = (Vec::new(), 0);
        for some in found.chunks(MAX_MANIFESTS) {
            let group = self.ticket_for(some).await?;
            chunks += group.files.iter().map(|f| f.content.chunks.len()).sum::<usize>();
            if chunks > crate::transfer::order::MAX_CHUNKS {
                return Err(too_large());
            }
            groups.push(group);
        }
        let mut sources = vec![server_device(&server.ca_pem)];
        sources.extend(neighbours.iter().take(crate::transfer::order::MAX_SOURCES - 1));
        Ok(ServerTree { address, name, is_file, groups, directories, sources })
    }

    pub(super) async fn issue(&self, request: v1::IssueReadTicketRequest) -> Result<v1::IssueReadTicketResponse> {
        let issue = |c: OfficeConnection| {
            let request = request.clone();
            async move { files(&c).issue_read_ticket(request).await.map_err(|s| from_status(&s)) }
        };
        self.0.access.call(issue).await.map(tonic::Response::into_inner).map_err(not_joined)
    }

    async fn ticket_for(&self, found: &[Found]) -> Result<ServerFiles> {
        let me = self.0.office.me();
        let request = v1::IssueReadTicketRequest {
            paths: found.iter().map(|f| f.path.clone()).collect(),
            device_id: me.0.to_vec().into(),
        };
        let issued = self.issue(request).await?;
        if issued.items.len() != found.len() {
            return Err(strange("a ticket for other files than were asked for"));
        }
        let connection = self.0.access.connection().await?;
        let one = |(found, item): (&Found, v1::TicketItem)| {
            let (connection, relative, path) = (connection.clone(), found.relative.clone(), found.path.clone());
            async move {
                let entry = match item.result {
                    Some(v1::ticket_item::Result::Entry(entry)) => entry,
                    Some(v1::ticket_item::Result::Error(error)) => return Err(from_item_error(&error)),
                    None => return Err(strange("neither a file nor an error")),
                };
                let file = ServerFile { path, version: entry.version, digest: digest_of(&entry)? };
                let content = content_of(&connection, &file).await?;
                let mtime_ns = entry
                    .modify_time
                    .as_ref()
                    .map_or(0, |t| t.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(t.nanos)));
                let mode = if entry.mode == 0 { 0o644 } else { entry.mode };
                Ok((OrderFile { path: relative, mtime_ns, mode, content: content.clone() }, file, content))
            }
        };
        let work: Vec<_> = found.iter().zip(issued.items).map(one).collect();
        let all: Vec<(OrderFile, ServerFile, Content)> = stream::iter(work).buffered(MANIFESTS).try_collect().await?;
        let shown = ShownTicket::read(&issued.ticket, &issued.signature)?;
        let (mut ordered, mut shelf) = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
        for (order, file, content) in all {
            if !shown.covers(&file.digest) {
                return Err(strange("a ticket that does not cover a file of it"));
            }
            ordered.push(order);
            shelf.push((file, content));
        }
        self.0.shelves.put(&shown, shelf, self.0.clock.now_ms()).await?;
        Ok(ServerFiles { scope: Scope::Ticket(shown), files: ordered })
    }

    /// The shelf of a ticket; asks the server for the manifests if they are not in memory any more.
    pub(super) async fn shelf(&self, ticket: &ShownTicket) -> Result<std::sync::Arc<super::shelf::Shelf>> {
        if let Some(shelf) = self.0.shelves.held(ticket) {
            return Ok(shelf);
        }
        let (this, shown) = (self.clone(), ticket.clone());
        let found = tokio::task::spawn_blocking(move || this.0.shelves.remembered(&shown)).await;
        let found = found.map_err(|e| Error::internal("reading a ticket's files").caused_by(e))??;
        let found = found.ok_or_else(|| {
            Error::new(Reason::EntryUnknown, "what the ticket is about is not remembered")
                .fix_is("begin the fetch anew")
        })?;
        let connection = self.0.access.connection().await?;
        let one = |file: ServerFile| {
            let connection = connection.clone();
            async move { content_of(&connection, &file).await.map(|content| (file, content)) }
        };
        let files = stream::iter(found).map(one).buffered(MANIFESTS).try_collect().await?;
        Ok(self.0.shelves.restore(ticket, files))
    }
}

pub(super) fn too_large() -> Error {
    Error::new(Reason::TreeTooLarge, "there is too much below this directory").fix_is("name a directory further down")
}

pub(super) fn slow() -> Error {
    Error::new(Reason::ServerUnreachable, "the central server does not answer in time")
}

/// The server knows no machine of this id.
fn not_joined(error: Error) -> Error {
    if !error.is(Reason::DeviceUnknown) {
        return error;
    }
    Error::new(Reason::NotJoined, "this machine has not joined the office's central server yet")
        .why_is("the server gives read tickets to its members only")
        .fix_is("stay connected with the machine where the server was attached: it invites this one by itself")
}

/// Why something on the server is not in an answer.
pub fn problem(error: &Error) -> peer::NodeProblem {
    let message = match error.kind() {
        Kind::Unavailable => "the central server cannot be reached".to_owned(),
        _ => error.message().to_owned(),
    };
    peer::NodeProblem {
        reason: error.reason().to_owned(),
        message,
        why: error.why().to_owned(),
        fix: error.fix().to_owned(),
    }
}

pub(super) fn item(entry: &v1::Entry, address: String) -> peer::Item {
    let kind = if is_directory(entry) { peer::item::Kind::Directory } else { peer::item::Kind::File };
    let digest = <[u8; 32]>::try_from(&entry.manifest_digest[..]).ok();
    peer::Item {
        kind: kind as i32,
        address,
        size_bytes: entry.size_bytes,
        modify_time: entry.modify_time,
        right: v1::Right::Read as i32,
        holder_count: 1,
        online: true,
        person: entry.author.clone(),
        manifest_digest: digest.map(|d| blake3::Hash::from_bytes(d).to_hex().to_string()).unwrap_or_default(),
        ..Default::default()
    }
}
