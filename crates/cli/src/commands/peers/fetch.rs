//! `get` and `cat` of hierarchical addresses.

use super::progress::{Display, summary, text};
use super::{absolute_text, error_of};
use crate::args::place::{Address, is_server_place};
use crate::args::{Get, Global};
use crate::commands::{Context, call, devices};
use crate::exit::Exit;
use crate::output::Output;
use crate::output::schema::PeerTransfer;
use crate::output::usage;
use crate::peer::{self, Peer};
use common::error::{Error, Reason, Result};
use common::status::from_status;
use proto::peer::v1 as wire;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tonic::Streaming;
use wire::transfer_progress::State;

/// Whether `get` is about addresses: its first word is no place on the server.
pub(in crate::commands) fn wants(args: &Get) -> bool {
    args.paths.first().is_some_and(|p| !is_server_place(p))
}

pub(in crate::commands) async fn get(c: &Context, args: Get) -> Result<Exit> {
    let (sources, destination) = divide(&args.paths)?;
    if args.version_number.is_some() {
        return Err(usage("machines share the present version only", "leave --version out"));
    }
    let into = sources.len() > 1 || is_directory_by_name(&destination);
    let peer = c.peer()?;
    if let Some(discs) = devices::files::on_discs(&peer, &sources).await? {
        if args.detach {
            return Err(usage("--detach is for shares; a disc is read by this command itself", "leave it out"));
        }
        return devices::files::get(c, &peer, discs, &destination, into, args.overwrite).await;
    }
    if into {
        std::fs::create_dir_all(&destination)?;
    }
    let request = wire::GetRequest {
        addresses: sources.iter().map(ToString::to_string).collect(),
        destination: absolute_text(&destination)?,
        overwrite: args.overwrite,
        cancel_on_disconnect: false,
        exact: sources.len() == 1 && !into,
    };
    let stream = call(peer.client().get(request)).await?;
    if args.detach {
        return detach(c, stream).await;
    }
    let mut pause = PauseOnStop::new(c);
    for done in follow(c, stream, &mut pause).await? {
        c.out.changed(&done, summary)?;
    }
    Ok(Exit::Ok)
}

/// Addresses, and at the end the place here unless there is only one word.
fn divide(paths: &[String]) -> Result<(Vec<Address>, PathBuf)> {
    let (last, rest) = paths.split_last().ok_or_else(|| usage("what shall be got?", "name an address"))?;
    let address = |text: &String| -> Result<Address> {
        if is_server_place(text) {
            return Err(usage("places on the server and addresses cannot be mixed", "get them one after the other"));
        }
        text.parse().map_err(|e: String| usage(e, "name addresses first, the place here last"))
    };
    if rest.is_empty() {
        return Ok((vec![address(last)?], PathBuf::from(".")));
    }
    if is_server_place(last) && !Path::new(last).exists() {
        return Err(usage(format!("{last} is no place here"), "name a directory of this machine last"));
    }
    Ok((rest.iter().map(address).collect::<Result<_>>()?, PathBuf::from(last)))
}

/// "plans/", ".", "..", "x/..": a directory that things go into, not a name for a new one.
fn is_directory_by_name(path: &Path) -> bool {
    let slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    slash || !matches!(path.components().next_back(), Some(std::path::Component::Normal(_)))
}

/// Tells the transfers that have begun, and leaves them alone.
async fn detach(c: &Context, mut stream: Streaming<wire::TransferProgress>) -> Result<Exit> {
    let first = stream.message().await.map_err(|s| from_status(&s))?;
    let first = first.ok_or_else(|| Error::internal("the peer said nothing about the transfer"))?;
    if let Some(problem) = first.problem.clone().filter(|_| first.state == State::Failed as i32) {
        return Err(error_of(problem));
    }
    c.out.changed(&PeerTransfer::from(first), |t| format!("transfer {} goes on by itself", t.id))?;
    c.out.hint("atrium transfers");
    Ok(Exit::Ok)
}

/// Shows progress until the end; the last states of those that are done.
pub(super) async fn follow(
    c: &Context,
    mut stream: Streaming<wire::TransferProgress>,
    pause: &mut PauseOnStop,
) -> Result<Vec<PeerTransfer>> {
    let mut display = Display::new(&c.out);
    let (mut done, mut open) = (Vec::new(), None);
    while let Some(progress) = stream.message().await.map_err(|s| from_status(&s))? {
        let problem = progress.problem.clone();
        let state = State::try_from(progress.state).unwrap_or(State::Unspecified);
        let shown = PeerTransfer::from(progress);
        if matches!(state, State::Done | State::Failed | State::Cancelled) {
            pause.has_ended(&shown.id);
            open = None;
        } else {
            pause.is_under_way(&shown.id);
        }
        match state {
            State::Done => done.push(shown),
            State::Failed => {
                return Err(problem.map_or_else(|| Error::internal("the transfer failed"), error_of));
            }
            State::Cancelled => {
                return Err(Error::new(Reason::Cancelled, "the transfer was cancelled")
                    .why_is("somebody cancelled it: `atrium transfers cancel`")
                    .fix_is("give the same command again"));
            }
            _ => {
                display.show(&shown, Instant::now());
                open = Some(shown);
            }
        }
    }
    pause.have_all_ended();
    match open {
        None if !done.is_empty() => Ok(done),
        None => Err(Error::internal("the peer said nothing about the transfer")),
        Some(other) => Err(Error::new(Reason::ShuttingDown, "the peer stopped telling how far the transfer is")
            .why_is(format!("the transfer is {}: {}", other.state, text(&other)))
            .fix_is(format!("atrium transfers watch {}", other.id))),
    }
}

/// Pauses a transfer that is under way when the command is stopped: Ctrl-C ends the traffic, and what is there stays.
pub(super) struct PauseOnStop {
    ids: BTreeSet<String>,
    active: bool,
    out: Output,
    global: Global,
}

impl PauseOnStop {
    pub(super) fn new(c: &Context) -> Self {
        Self { ids: BTreeSet::new(), active: true, out: c.out.clone(), global: c.global.clone() }
    }

    /// For those who only watch.
    pub(super) fn never(c: &Context) -> Self {
        let mut never = Self::new(c);
        never.active = false;
        never
    }

    fn is_under_way(&mut self, id: &str) {
        if self.active {
            self.ids.insert(id.to_owned());
        }
    }

    fn has_ended(&mut self, id: &str) {
        self.ids.remove(id);
    }

    fn have_all_ended(&mut self) {
        self.ids.clear();
    }
}

impl Drop for PauseOnStop {
    fn drop(&mut self) {
        if self.ids.is_empty() {
            return;
        }
        let (ids, global, out) = (std::mem::take(&mut self.ids), self.global.clone(), self.out.clone());
        // The command is being dropped and can wait for nothing; the program waits for its threads.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || {
                if pause(&global, &ids).is_ok() {
                    let all = ids.into_iter().collect::<Vec<_>>().join(" ");
                    out.note(&format!("paused; go on with the same command, or: atrium transfers resume {all}"));
                }
            });
        }
    }
}

fn pause(global: &Global, ids: &BTreeSet<String>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = peer::peer(global)?.client();
        let verb = wire::control_transfer_request::Verb::Pause as i32;
        for id in ids {
            let request = wire::ControlTransferRequest { transfer_id: id.clone(), verb };
            call(client.control_transfer(request)).await?;
        }
        Ok(())
    })
}

/// Writes one file to standard output.
pub(in crate::commands) async fn cat(c: &Context, peer: &Peer, address: &Address) -> Result<()> {
    if let Some(disc) = devices::files::on_disc(peer, address).await? {
        return devices::files::cat(c, peer, &disc).await;
    }
    let request = wire::CatRequest { address: address.to_string() };
    let mut stream = call(peer.bulk_client().cat(request)).await?;
    while let Some(part) = stream.message().await.map_err(|s| from_status(&s))? {
        c.out.raw(&part.data)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(paths: &[&str]) -> Result<(Vec<String>, String)> {
        let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
        let (sources, destination) = divide(&paths)?;
        Ok((sources.iter().map(ToString::to_string).collect(), destination.display().to_string()))
    }

    #[test]
    fn of_several_words_the_last_is_the_place_here() {
        assert_eq!(divided(&["acme/a/s/x"]).unwrap(), (vec!["acme/a/s/x".to_owned()], ".".to_owned()));
        let (sources, destination) = divided(&["acme/a/s/x", "acme/b/s/", "target/"]).unwrap();
        assert_eq!((sources.join(" ").as_str(), destination.as_str()), ("acme/a/s/x acme/b/s", "target/"));
        assert!(divided(&["acme/a", "home:b", "."]).is_err(), "mixed");
        assert!(divided(&["acme/a", "home:b"]).is_err(), "no place here");
        assert!(divided(&["../x", "."]).is_err());
    }
}
