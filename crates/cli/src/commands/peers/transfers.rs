//! `transfers` and `limit`.

use super::fetch::{PauseOnStop, follow};
use super::progress::{summary, text};
use crate::args::{Limit, Transfers, TransfersAction};
use crate::commands::{Context, call};
use crate::exit::Exit;
use crate::output::format::{bytes, pad, safe};
use crate::output::schema::{Limits, PeerTransfer};
use common::error::{Error, Reason, Result};
use proto::peer::v1 as wire;
use wire::control_transfer_request::Verb;

/// Shortest beginning of an id.
const ID_MIN: usize = 4;

pub(in crate::commands) async fn transfers(c: &Context, args: Transfers) -> Result<Exit> {
    let (id, verb, done) = match args.action {
        None | Some(TransfersAction::List) => return list(c).await,
        Some(TransfersAction::Watch { id }) => return watch(c, &id).await,
        Some(TransfersAction::Pause { id }) => (id, Verb::Pause, "paused"),
        Some(TransfersAction::Resume { id }) => (id, Verb::Resume, "goes on"),
        Some(TransfersAction::Cancel { id }) => (id, Verb::Cancel, "is cancelled"),
    };
    let transfer_id = whole_id(c, &id).await?;
    let request = wire::ControlTransferRequest { transfer_id, verb: verb as i32 };
    let answer = PeerTransfer::from(call(c.peer()?.client().control_transfer(request)).await?);
    c.out.changed(&answer, |t| format!("{} {done}: {}", t.id, safe(&t.title)))?;
    Ok(Exit::Ok)
}

async fn all(c: &Context) -> Result<Vec<wire::TransferProgress>> {
    Ok(call(c.peer()?.client().list_transfers(wire::ListTransfersRequest {})).await?.transfers)
}

async fn list(c: &Context) -> Result<Exit> {
    let mut list = c.out.list::<PeerTransfer>(&[])?;
    for transfer in all(c).await? {
        list.item(&PeerTransfer::from(transfer), line)?;
    }
    list.end("no transfers")?;
    Ok(Exit::Ok)
}

fn line(t: &PeerTransfer) -> String {
    let far = match t.state.as_str() {
        "done" => summary(t),
        "failed" => t.problem.as_ref().map_or_else(String::new, |p| format!("{}: {}", safe(&p.message), safe(&p.fix))),
        _ => text(t),
    };
    format!("{}  {}  {}  to {}\n    {far}", t.id, pad(&t.state, 9), safe(&t.title), safe(&t.destination))
}

async fn watch(c: &Context, id: &str) -> Result<Exit> {
    let transfer_id = whole_id(c, id).await?;
    let stream = call(c.peer()?.client().watch_transfer(wire::WatchTransferRequest { transfer_id })).await?;
    for done in follow(c, stream, &mut PauseOnStop::never(c)).await? {
        c.out.changed(&done, summary)?;
    }
    Ok(Exit::Ok)
}

/// The transfer that an id or its beginning means.
async fn whole_id(c: &Context, id: &str) -> Result<String> {
    let ids: Vec<String> = all(c).await?.into_iter().map(|t| t.transfer_id).collect();
    unique(id, &ids).map(str::to_owned).ok_or_else(|| unknown(id))
}

/// The only one that begins so.
fn unique<'a>(begin: &str, ids: &'a [String]) -> Option<&'a str> {
    let mut found = ids.iter().filter(|id| begin.len() >= ID_MIN && id.starts_with(begin));
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

fn unknown(id: &str) -> Error {
    Error::new(Reason::EntryUnknown, format!("no transfer, or more than one, begins with {}", safe(id)))
        .why_is("it has ended long ago, or the id is wrong")
        .fix_is("`atrium transfers` lists all")
}

pub(in crate::commands) async fn limit(c: &Context, args: Limit) -> Result<Exit> {
    let changes = args.upload.is_some() || args.download.is_some() || args.schedule.is_some() || args.yields.is_some();
    let schedule = args.schedule.map(|s| if s == "always" { String::new() } else { s });
    let request = wire::SetLimitsRequest {
        upload_rate: args.upload,
        download_rate: args.download,
        schedule,
        yields: args.yields,
    };
    let limits = Limits::from(call(c.peer()?.client().set_limits(request)).await?);
    let shown = |l: &Limits| {
        let rate = |n: u64| if n == 0 { "no limit".to_owned() } else { format!("{}/s", bytes(n)) };
        let when = if l.schedule.is_empty() { "always".to_owned() } else { safe(&l.schedule) };
        let yields = if l.yields { "gives way to other traffic" } else { "does not give way to other traffic" };
        format!("up {}, down {}, {when}; {yields}", rate(l.upload_rate), rate(l.download_rate))
    };
    if changes {
        c.out.changed(&limits, shown)?
    } else {
        c.out.object(&limits, shown)?
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_of_an_id_must_mean_one_transfer() {
        let ids = ["0192f3a0-7c1e".to_owned(), "0192f3a0-8d2f".to_owned(), "0193ffff-0000".to_owned()];
        assert_eq!(unique("0193", &ids), Some("0193ffff-0000"));
        assert_eq!(unique("0192f3a0-7c1e", &ids), Some("0192f3a0-7c1e"));
        for wrong in ["0192f3a0", "019", "", "0194"] {
            assert_eq!(unique(wrong, &ids), None, "{wrong}");
        }
    }
}
