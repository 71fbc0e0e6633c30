//! Fetching, and what is being fetched.

use super::shares::absolute;
use super::{Answers, Parts};
use crate::catalogue::{Resolved, TreeFile};
use crate::hybrid::ServerTree;
use crate::model::{Scope, ShareId, TransferId};
use crate::transfer::{self, Limits, Order, OrderDirectory, OrderFile, Progress, State, Verb};
use common::error::{Error, Reason, Result};
use common::status::to_status;
use proto::peer::v1 as peer;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Addresses of one call.
const ADDRESSES_MAX: usize = 1_000;
/// Progress is told at most this often; the end at once.
const EVERY: Duration = Duration::from_millis(100);
/// Messages that wait for their reader.
const WAITING: usize = 4;

type Tell = mpsc::Sender<Result<peer::TransferProgress, Status>>;

/// What one address brings, and under which name.
struct Wanted {
    resolved: Resolved,
    /// Below the destination; empty for a directory that becomes the destination itself.
    name: String,
    files: Vec<TreeFile>,
}

impl Parts {
    pub(super) async fn get(self: &Arc<Self>, r: peer::GetRequest) -> Result<Answers<peer::TransferProgress>> {
        self.in_office()?;
        let destination = absolute(&r.destination, "destination")?;
        if r.addresses.is_empty() || r.addresses.len() > ADDRESSES_MAX || (r.exact && r.addresses.len() > 1) {
            return Err(Error::new(Reason::FieldInvalid, "between 1 and 1,000 addresses can be fetched at a time")
                .with("field", "addresses"));
        }
        let mut transfers = Vec::new();
        for order in self.orders(&r, destination).await? {
            transfers.push(self.begin(order).await?);
        }
        let (tell, told) = mpsc::channel(WAITING);
        let parts = self.clone();
        tokio::spawn(async move {
            let followed = parts.follow_all(&transfers, &tell).await;
            match followed {
                Ok(true) => {}
                Ok(false) if r.cancel_on_disconnect => {
                    for (id, _) in &transfers {
                        // It may have ended by itself.
                        let _ = parts.transfers.control(id, Verb::Cancel);
                    }
                }
                Ok(false) => {}
                Err(error) => _ = tell.send(Err(to_status(&error))).await,
            }
        });
        Ok(ReceiverStream::new(told))
    }

    /// An order for each share, and for each ticket of what is on the server, in the order in which they were named.
    async fn orders(&self, r: &peer::GetRequest, destination: PathBuf) -> Result<Vec<Order>> {
        let there = destination.clone();
        let is_directory = blocking(move || Ok(there.is_dir())).await?;
        if !is_directory && r.addresses.len() > 1 {
            return Err(Error::new(Reason::NotADirectory, "the destination is no directory")
                .why_is("several things cannot all become one")
                .fix_is("make it first, or name another one"));
        }
        let mut orders: Vec<(Option<ShareId>, Order)> = Vec::new();
        for address in &r.addresses {
            if let Some(tree) = self.server_tree(address).await? {
                let (base, name) = place(&destination, is_directory, tree.is_file, r.exact, tree.name.clone())?;
                orders.extend(of_server(tree, &base, &name, r.overwrite).into_iter().map(|order| (None, order)));
                continue;
            }
            let resolved = self.catalogue.resolve(address).await?;
            let files = self.catalogue.tree(&resolved).await?;
            let is_file = resolved.entry.as_ref().is_some_and(|e| e.is_file());
            let own_name = match &resolved.entry {
                Some(entry) => entry.name().to_owned(),
                None => resolved.record.name().to_owned(),
            };
            let (base, name) = place(&destination, is_directory, is_file, r.exact, own_name)?;
            let wanted = Wanted { resolved, name, files };
            let share = wanted.resolved.record.share();
            match orders.iter_mut().find(|(s, _)| *s == Some(share)) {
                Some((_, order)) => add(order, wanted, address),
                None => {
                    let mut order = Order {
                        scope: Scope::Share(share),
                        title: String::new(),
                        destination: base,
                        files: Vec::new(),
                        directories: Vec::new(),
                        sources: self.sources(&wanted.resolved),
                        overwrite: r.overwrite,
                    };
                    add(&mut order, wanted, address);
                    orders.push((Some(share), order));
                }
            }
        }
        Ok(orders.into_iter().map(|(_, order)| order).collect())
    }

    /// Begins a transfer, or takes up the one that does the same. One that was to bring other content to the same place
    /// is given up: the file has changed since.
    async fn begin(&self, order: Order) -> Result<(TransferId, watch::Receiver<Progress>)> {
        let total: u64 = order.files.iter().map(|f| f.content.size_bytes).sum();
        let same_place = |p: &Progress| p.destination == order.destination && p.title == order.title;
        for old in self.transfers.list().into_iter().filter(|p| !p.state.is_ended() && same_place(p)) {
            if old.total_bytes == total && old.file_count == order.files.len() as u64 {
                self.transfers.control(&old.id, Verb::Resume)?;
                return Ok((old.id, self.transfers.watch(&old.id)?));
            }
            self.transfers.control(&old.id, Verb::Cancel)?;
            self.transfers.wait(&old.id).await?;
        }
        let id = self.transfers.start(order).await?;
        Ok((id, self.transfers.watch(&id)?))
    }

    /// Tells of all, then of each until it has ended. False if nobody listens any more.
    async fn follow_all(&self, all: &[(TransferId, watch::Receiver<Progress>)], tell: &Tell) -> Result<bool> {
        for (_, progress) in all {
            let now = wire_progress(&progress.borrow());
            if tell.send(Ok(now)).await.is_err() {
                return Ok(false);
            }
        }
        for (_, progress) in all {
            if !follow(progress.clone(), tell).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn transfer_id(text: &str) -> Result<TransferId> {
        let wrong = |_| Error::new(Reason::FieldInvalid, "this is no transfer's id").with("field", "transfer_id");
        text.parse().map_err(wrong)
    }

    pub(super) fn list_transfers(&self) -> peer::ListTransfersResponse {
        peer::ListTransfersResponse { transfers: self.transfers.list().iter().map(wire_progress).collect() }
    }

    pub(super) fn watch_transfer(&self, id: &str) -> Result<Answers<peer::TransferProgress>> {
        let progress = self.transfers.watch(&Self::transfer_id(id)?)?;
        let (tell, told) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            if let Err(error) = follow(progress, &tell).await {
                let _ = tell.send(Err(to_status(&error))).await;
            }
        });
        Ok(ReceiverStream::new(told))
    }

    pub(super) async fn control_transfer(&self, r: peer::ControlTransferRequest) -> Result<peer::TransferProgress> {
        use peer::control_transfer_request::Verb as Wire;
        let id = Self::transfer_id(&r.transfer_id)?;
        let (verb, arrived): (_, fn(State) -> bool) = match r.verb() {
            Wire::Pause => (Verb::Pause, |s| s == State::Paused),
            Wire::Resume => (Verb::Resume, |s| s != State::Paused),
            Wire::Cancel => (Verb::Cancel, |s| s == State::Cancelled),
            Wire::Unspecified => {
                return Err(Error::new(Reason::FieldInvalid, "it is not said what to do").with("field", "verb"));
            }
        };
        let mut progress = self.transfers.watch(&id)?;
        self.transfers.control(&id, verb)?;
        // What it answers is the state that follows, not the one before.
        let stopped = || Error::new(Reason::ShuttingDown, "the node stops before the transfer has changed");
        let now = progress.wait_for(|p| arrived(p.state) || p.state.is_ended()).await.map_err(|_| stopped())?;
        Ok(wire_progress(&now))
    }

    pub(super) async fn set_limits(&self, r: peer::SetLimitsRequest) -> Result<peer::Limits> {
        let old = self.transfers.limits();
        let new = Limits {
            upload_rate: r.upload_rate.unwrap_or(old.upload_rate),
            download_rate: r.download_rate.unwrap_or(old.download_rate),
            schedule: r.schedule.unwrap_or_else(|| old.schedule.clone()),
            yields: r.yields.unwrap_or(old.yields),
        };
        if new != old {
            self.transfers.set_limits(new.clone()).await?;
        }
        Ok(peer::Limits {
            upload_rate: new.upload_rate,
            download_rate: new.download_rate,
            schedule: new.schedule,
            yields: new.yields,
        })
    }

    /// Transfers that are not ended.
    pub(super) fn transfer_count(&self) -> usize {
        self.transfers.list().iter().filter(|p| !p.state.is_ended()).count()
    }
}

/// Where an address goes: the directory of the order, and the name below it.
///
/// A directory that is there takes things into it; with `exact`, a directory becomes it. Else the destination is the new
/// name.
fn place(to: &Path, there: bool, is_file: bool, exact: bool, own_name: String) -> Result<(PathBuf, String)> {
    if there && (is_file || !exact) {
        return Ok((to.to_owned(), own_name));
    }
    if !is_file {
        return Ok((to.to_owned(), String::new()));
    }
    match (to.parent(), to.file_name().and_then(|n| n.to_str())) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.to_owned())),
        _ => {
            Err(Error::new(Reason::FieldInvalid, "the destination is no name for a file").with("field", "destination"))
        }
    }
}

/// Adds what an address brings to an order.
fn add(order: &mut Order, wanted: Wanted, address: &str) {
    let is_file = wanted.resolved.entry.as_ref().is_some_and(|e| e.is_file());
    let path = |below: &str| match (wanted.name.is_empty(), is_file) {
        (true, _) => below.to_owned(),
        (false, true) => wanted.name.clone(),
        (false, false) => format!("{}/{below}", wanted.name),
    };
    if !is_file && !wanted.name.is_empty() {
        let mode = wanted.resolved.entry.as_ref().map_or(0o755, |e| e.mode);
        order.directories.push(OrderDirectory { path: wanted.name.clone(), mode });
    }
    for file in wanted.files {
        match file.content {
            Some(content) => order.files.push(OrderFile {
                path: path(&file.path),
                mtime_ns: file.entry.modify_time_ns,
                mode: file.entry.mode,
                content,
            }),
            None => order.directories.push(OrderDirectory { path: path(&file.path), mode: file.entry.mode }),
        }
    }
    if !order.title.is_empty() {
        order.title.push_str(", ");
    }
    order.title.push_str(address);
}

/// Orders for something on the server: one for each ticket, and so for each thousand files.
fn of_server(tree: ServerTree, base: &Path, name: &str, overwrite: bool) -> Vec<Order> {
    let ServerTree { address, is_file, groups, directories, sources, .. } = tree;
    let path = |below: &str| match (name.is_empty(), is_file) {
        (true, _) => below.to_owned(),
        (false, true) => name.to_owned(),
        (false, false) => format!("{name}/{below}"),
    };
    let mut all: Vec<OrderDirectory> =
        directories.into_iter().map(|d| OrderDirectory { path: path(&d.path), ..d }).collect();
    if !is_file && !name.is_empty() {
        all.insert(0, OrderDirectory { path: name.to_owned(), mode: 0o755 });
    }
    let count = groups.len();
    let order = |(n, group): (usize, crate::hybrid::ServerFiles)| Order {
        scope: group.scope,
        // The same words for the same part, so that the same call again takes up what is under way.
        title: if count == 1 { address.clone() } else { format!("{address} ({} of {count})", n + 1) },
        destination: base.to_owned(),
        files: group.files.into_iter().map(|f| OrderFile { path: path(&f.path), ..f }).collect(),
        directories: if n == 0 { std::mem::take(&mut all) } else { Vec::new() },
        sources: sources.clone(),
        overwrite,
    };
    groups.into_iter().enumerate().map(order).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("a disk task").caused_by(e))?
}

/// Tells of a transfer until it has ended; false if nobody listens any more.
async fn follow(mut progress: watch::Receiver<Progress>, tell: &Tell) -> Result<bool> {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let now = progress.borrow_and_update().clone();
        let ended = now.state.is_ended();
        if tell.send(Ok(wire_progress(&now))).await.is_err() {
            return Ok(false);
        }
        if ended {
            return Ok(true);
        }
        // What changes between two ticks is told together.
        every.tick().await;
        tokio::select! {
            changed = progress.changed() => changed.map_err(|_| {
                Error::new(Reason::ShuttingDown, "the node stops; the transfer goes on when it is started again")
            })?,
            () = tell.closed() => return Ok(false),
        }
    }
}

fn wire_progress(p: &Progress) -> peer::TransferProgress {
    use peer::transfer_progress::State as Wire;
    let state = match p.state {
        State::Listing => Wire::Listing,
        State::Running => Wire::Running,
        State::Waiting => Wire::Waiting,
        State::Paused => Wire::Paused,
        State::Done => Wire::Done,
        State::Failed => Wire::Failed,
        State::Cancelled => Wire::Cancelled,
    };
    let source = |s: &transfer::SourceProgress| peer::SourceProgress {
        node_name: s.name.clone(),
        received_bytes: s.received_bytes,
        rate: s.rate,
        bad_chunk_count: s.bad_chunk_count,
        way: s.way.to_owned(),
    };
    peer::TransferProgress {
        transfer_id: p.id.to_string(),
        state: state.into(),
        title: p.title.clone(),
        file_count: p.file_count,
        done_file_count: p.done_file_count,
        total_bytes: p.total_bytes,
        done_bytes: p.done_bytes,
        local_bytes: p.local_bytes,
        rate: p.rate,
        served_bytes: p.served_bytes,
        sources: p.sources.iter().map(source).collect(),
        limit: p.limit.word().to_owned(),
        floor_ratio: p.floor_ratio,
        problem: p.problem.as_ref().map(|p| peer::NodeProblem {
            reason: p.reason.clone(),
            message: p.message.clone(),
            why: p.why.clone(),
            fix: p.fix.clone(),
        }),
        elapsed_ms: p.elapsed_ms,
        destination: p.destination.to_string_lossy().into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_go_into_a_directory_that_is_there_and_else_get_the_new_name() {
        let to = Path::new("/home/anna/x");
        let of = |there, is_file, exact| {
            let (base, name) = place(to, there, is_file, exact, "plans".into()).unwrap();
            (base.to_str().unwrap().to_owned(), name)
        };
        let into = ("/home/anna/x".to_owned(), "plans".to_owned());
        let itself = ("/home/anna/x".to_owned(), String::new());
        let renamed = ("/home/anna".to_owned(), "x".to_owned());
        assert_eq!(of(true, false, false), into, "a directory into one");
        assert_eq!(of(true, true, false), into, "a file into a directory");
        assert_eq!(of(true, true, true), into, "a file does not become a directory");
        assert_eq!(of(true, false, true), itself, "the same command again goes on");
        assert_eq!(of(false, false, false), itself, "a directory with a new name");
        assert_eq!(of(false, true, false), renamed);
        assert!(place(Path::new("/"), false, true, false, "a".into()).is_err());
    }
}
