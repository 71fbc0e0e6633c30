//! What each verb does. One file per group of verbs; each function reads its arguments, talks to the server or the
//! agent, and tells what it did.

mod admin;
mod browse;
mod conflicts;
mod devices;
mod doctor;
mod identity;
mod local;
mod locks;
mod peers;
pub(crate) mod places;
mod queue;
pub mod server_print;
mod share;
mod status;
mod sync;
mod transfer;
mod trash;
mod tree;
mod versions;
mod watch;

use crate::args::{Command, Global};
use crate::connect::{self, Agent, Office};
use crate::exit::Exit;
use crate::output::Output;
use common::error::Result;
use common::status::from_status;
use std::future::Future;

/// What a command works with.
#[derive(Clone, Debug)]
pub struct Context {
    /// Options of every command.
    pub global: Global,
    /// Where it writes.
    pub out: Output,
}

impl Context {
    /// Connects to the server.
    ///
    /// # Errors
    /// `AGENT_UNREACHABLE`, `NOT_JOINED`, `SERVER_UNREACHABLE`, `TLS_FAILED`.
    pub async fn office(&self) -> Result<Office> {
        connect::office(&self.global).await
    }

    /// Connects to the server for an administrator: the server's own socket will do if there is no agent.
    ///
    /// # Errors
    /// As [`Context::office`].
    pub async fn admin_office(&self) -> Result<Office> {
        connect::admin_office(&self.global).await
    }

    /// Connects to this machine's agent.
    ///
    /// # Errors
    /// `AGENT_UNREACHABLE`.
    pub async fn agent(&self) -> Result<Agent> {
        connect::agent(&self.global).await
    }
}

/// Carries out a command.
///
/// # Errors
/// Whatever it ran into, with why and fix.
pub async fn run(context: &Context, command: Command) -> Result<Exit> {
    let c = context;
    match command {
        Command::Init(args) => peers::office::init(c, args).await,
        Command::Invite(args) => peers::office::invite(c, args).await,
        Command::Join(args) => identity::join(c, args).await,
        Command::Peers(_) => peers::members::peers(c).await,
        Command::Members(args) => peers::members::members(c, args).await,
        Command::Office(args) => peers::office::office(c, args).await,
        Command::Login(args) => identity::login(c, args).await,
        Command::Logout(_) => identity::logout(c).await,
        Command::Whoami(_) => identity::whoami(c).await,
        Command::Password(args) => identity::password(c, args).await,
        Command::Sessions(args) => identity::sessions(c, args).await,
        Command::Status(_) => status::status(c).await,
        Command::Doctor(args) => doctor::doctor(c, args).await,
        Command::Ls(args) => browse::ls(c, args).await,
        Command::Put(args) => transfer::put(c, args).await,
        Command::Get(args) => transfer::get(c, args).await,
        Command::Cat(args) => transfer::cat(c, args).await,
        Command::Find(args) => peers::browse::find(c, args).await,
        Command::Mkdir(args) => tree::mkdir(c, args).await,
        Command::Mv(args) => tree::mv(c, args).await,
        Command::Cp(args) => tree::cp(c, args).await,
        Command::Rm(args) => tree::rm(c, args).await,
        Command::Restore(args) => trash::restore(c, args).await,
        Command::Versions(args) => versions::versions(c, args).await,
        Command::Lock(args) => locks::lock(c, args).await,
        Command::Unlock(args) => locks::unlock(c, args).await,
        Command::Share(args) => share::share(c, args).await,
        Command::Unshare(args) => peers::shares::unshare(c, args).await,
        Command::Shares(_) => peers::shares::shares(c).await,
        Command::Mirror(args) => peers::shares::mirror(c, args).await,
        Command::Why(args) => share::why(c, args).await,
        Command::Sync(args) => sync::sync(c, args).await,
        Command::Conflicts(args) => conflicts::conflicts(c, args).await,
        Command::Watch(args) => watch::watch(c, args).await,
        Command::Transfers(args) => peers::transfers::transfers(c, args).await,
        Command::Limit(args) => peers::transfers::limit(c, args).await,
        Command::Send(args) => peers::mailbox::send(c, args).await,
        Command::Inbox(args) => peers::mailbox::inbox(c, args).await,
        Command::Outbox(args) => peers::mailbox::outbox(c, args).await,
        Command::Devices(args) => devices::list::devices(c, args).await,
        Command::Use(args) => devices::lease::take(c, args).await,
        Command::Release(args) => devices::lease::release(c, args).await,
        Command::Request(args) => devices::lease::request(c, args).await,
        Command::Print(args) => devices::print::print(c, args).await,
        Command::Jobs(args) => devices::jobs::jobs(c, args).await,
        Command::Printer(args) => devices::jobs::printer(c, args).await,
        Command::Disc(args) => devices::disc::disc(c, args).await,
        Command::Space(args) => devices::space::space(c, args).await,
        Command::Queue(args) => queue::queue(c, args).await,
        Command::Cache(args) => queue::cache(c, args).await,
        Command::Admin(args) => admin::admin(c, args).await,
        Command::Completions(args) => local::completions(c, args),
        Command::Generate(args) => local::generate(c, args),
    }
}

/// Awaits a call; its answer, or its error in words.
pub(crate) async fn call<T>(future: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T> {
    match future.await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(from_status(&status)),
    }
}

/// A fresh id under which the server recognizes a repeated request.
pub(crate) fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// Tells an error about one item of several and goes on; the command ends with "partly" if another item went well.
#[derive(Debug, Default)]
pub(crate) struct Several {
    done: u64,
    failed: Option<common::error::Error>,
}

impl Several {
    /// Notes how one item went.
    pub(crate) fn note(&mut self, out: &Output, result: Result<()>) -> Result<()> {
        match result {
            Ok(()) => self.done += 1,
            Err(error) if crate::output::is_reader_gone(&error) => return Err(error),
            Err(error) => {
                // The first error is the one that the command ends with; main shows it.
                if let Some(first) = self.failed.replace(error) {
                    out.error(&first);
                }
            }
        }
        Ok(())
    }

    /// The end of the command.
    pub(crate) fn end(self, out: &Output) -> Result<Exit> {
        match self.failed {
            None => Ok(Exit::Ok),
            Some(error) if self.done == 0 => Err(error),
            Some(error) => {
                out.error(&error);
                Ok(Exit::Partly)
            }
        }
    }
}

/// Names for completion: of a directory, or of all public directories.
///
/// # Errors
/// As [`Context::office`] and whatever listing ends with.
pub async fn list_for_completion(
    global: Global,
    path: Option<common::model::EntryPath>,
    limit: usize,
) -> Result<Vec<String>> {
    let office = connect::office(&global).await?;
    let Some(path) = path else {
        let request = proto::v1::ListDirectoriesRequest { page_size: 1000, page_token: String::new() };
        let answer = call(office.directories().list_directories(request)).await?;
        let names = answer.directories.iter().filter_map(|d| d.name.strip_prefix("public/"));
        return Ok(names.take(limit).map(|n| format!("{n}/")).collect());
    };
    let page = places::page(&office, &path, String::new()).await?;
    let name = |e: &proto::v1::Entry| {
        if places::is_directory(e) { format!("{}/", e.display_name) } else { e.display_name.clone() }
    };
    Ok(page.entries.iter().take(limit).map(name).collect())
}

/// Names below a hierarchical address, for completion.
///
/// # Errors
/// `PEER_NOT_RUNNING` and whatever listing ends with.
pub async fn list_addresses_for_completion(global: Global, directory: &str, limit: usize) -> Result<Vec<String>> {
    peers::browse::names(&crate::peer::peer(&global)?, directory, limit).await
}

/// Devices of a kind, for completion: their addresses, and their names where only one has it.
///
/// # Errors
/// `PEER_NOT_RUNNING` and whatever listing ends with.
pub async fn list_devices_for_completion(global: Global, kind: proto::peer::v1::DeviceKind) -> Result<Vec<String>> {
    devices::list::names(&crate::peer::peer(&global)?, kind).await
}

/// Borrowed spaces, for completion: their labels, and the ids of those without.
///
/// # Errors
/// `PEER_NOT_RUNNING` and whatever listing ends with.
pub async fn list_spaces_for_completion(global: Global) -> Result<Vec<String>> {
    devices::space::names(&crate::peer::peer(&global)?).await
}
