//! `use`, `release`, `request`.

use super::child::Running;
use super::{Context, call};
use crate::args::{Release, Request, Use};
use crate::exit::Exit;
use crate::output::format::{count, duration, safe};
use crate::output::schema::{Done, Lease};
use crate::output::usage;
use common::error::{Error, Reason, Result};
use common::status::from_status;
use proto::peer::v1 as wire;
use std::time::Duration;
use tonic::Streaming;

/// Longest note.
const NOTE_MAX: usize = 500;

pub(in crate::commands) async fn take(c: &Context, args: Use) -> Result<Exit> {
    let device = args.address.to_string();
    let mode = if args.shared { wire::LeaseMode::Shared } else { wire::LeaseMode::Exclusive };
    let request = wire::UseDeviceRequest {
        device: device.clone(),
        mode: mode as i32,
        seconds: args.lifetime.map_or(0, |t| t.as_secs()),
        wait: args.wait,
        watch: !args.command.is_empty(),
    };
    let mut stream = call(c.peer()?.local_devices().use_device(request)).await?;
    let lease = until_held(c, &mut stream, &device).await?;
    if args.command.is_empty() {
        c.out.changed(&lease, |l| held_text(l, args.lifetime))?;
        c.out.hint(&format!("atrium release {}", safe(&device)));
        return Ok(Exit::Ok);
    }
    c.out.note(&held_text(&lease, args.lifetime));
    let environment = [("ATRIUM_DEVICE", device.clone()), ("ATRIUM_FENCING_TOKEN", lease.fencing_token.to_string())];
    let mut running = Running::start(&args.command, &environment)?;
    let lost = tokio::select! {
        exit = running.end() => return exit,
        lost = until_lost(c, &mut stream, &device) => lost,
    };
    c.out.warn(&format!("{} is no longer yours; stopping the command", safe(&device)));
    running.stop().await?;
    Err(lost)
}

fn held_text(l: &Lease, lifetime: Option<Duration>) -> String {
    let how = if l.mode == "shared" { "yours, together with others" } else { "yours alone" };
    let until = lifetime.map_or_else(|| "until you release it".to_owned(), |t| format!("for {}", duration(t)));
    format!("{} is {how}, {until} (lease {})", safe(&l.device), l.fencing_token)
}

/// Waits for the turn; says how many are before.
async fn until_held(c: &Context, stream: &mut Streaming<wire::Lease>, device: &str) -> Result<Lease> {
    let mut told = None;
    while let Some(lease) = stream.message().await.map_err(|s| from_status(&s))? {
        let lease = Lease::of(lease, device);
        match lease.state.as_str() {
            "held" => {
                say_notes(c, &lease);
                return Ok(lease);
            }
            _ if told != Some(lease.position) => {
                told = Some(lease.position);
                let before = count(lease.position, "is", "are");
                c.out.note(&format!("waiting for {}: {before} before you", safe(device)));
            }
            _ => {}
        }
    }
    Err(super::broke_off("the lease", "give the same command again"))
}

/// Follows a lease that is held; why it is not any more.
async fn until_lost(c: &Context, stream: &mut Streaming<wire::Lease>, device: &str) -> Error {
    loop {
        match stream.message().await {
            Ok(Some(lease)) => {
                let lease = Lease::of(lease, device);
                say_notes(c, &lease);
                if lease.state != "held" {
                    return lost(device, "it was taken back");
                }
            }
            Ok(None) => return lost(device, "its time is over, or it was given back"),
            Err(status) => return from_status(&status),
        }
    }
}

fn lost(device: &str, why: &str) -> Error {
    Error::new(Reason::LeaseLost, format!("{} is no longer yours", safe(device))).why_is(why)
}

fn say_notes(c: &Context, lease: &Lease) {
    for note in &lease.notes {
        let text = if note.text.is_empty() { String::new() } else { format!(": {}", safe(&note.text)) };
        c.out.note(&format!("{} asks for {}{text}", safe(&note.from), safe(&lease.device)));
    }
}

pub(in crate::commands) async fn release(c: &Context, args: Release) -> Result<Exit> {
    let device = args.address.to_string();
    let lease_id = args.lease.map(|id| id.as_bytes().to_vec().into()).unwrap_or_default();
    let request = wire::ReleaseDeviceRequest { device: device.clone(), take_back: args.take_back, lease_id };
    call(c.peer()?.local_devices().release_device(request)).await?;
    let what = if args.take_back || args.lease.is_some() { "was taken back" } else { "is given back" };
    let done = Done::new("release", &device, None, format!("{} {what}", safe(&device)));
    c.out.changed(&done, |d| d.message.clone())?;
    Ok(Exit::Ok)
}

pub(in crate::commands) async fn request(c: &Context, args: Request) -> Result<Exit> {
    let device = args.address.to_string();
    let text = args.text.join(" ");
    if text.len() > NOTE_MAX {
        return Err(usage(format!("the text has {} bytes", text.len()), format!("say it in {NOTE_MAX} bytes")));
    }
    let request = wire::RequestDeviceRequest { device: device.clone(), text };
    let answer = call(c.peer()?.devices().request_device(request)).await?;
    let nobody = answer.holder.is_empty();
    let message = match nobody {
        true => format!("nobody holds {}; you can take it", safe(&device)),
        false => format!("{} was told", safe(&answer.holder)),
    };
    let holder = (!nobody).then_some(answer.holder);
    c.out.changed(&Done::new("request", &device, holder, message), |d| d.message.clone())?;
    if nobody {
        c.out.hint(&format!("atrium use {}", safe(&device)));
    }
    Ok(Exit::Ok)
}
