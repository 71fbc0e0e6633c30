//! `disc`: the tray, copies of whole discs, discs for programs.

use super::{Context, call};
use crate::args::{Disc, DiscAction};
use crate::commands::peers::absolute_text;
use crate::exit::Exit;
use crate::output::format::{bytes, count, duration, safe};
use crate::output::schema::{DiscCopy, DiscExport, DiscSource, SharedDevice};
use crate::output::usage;
use crate::progress::{Counts, Meter};
use common::error::Result;
use common::identity::{write_public, write_secret};
use common::status::from_status;
use proto::peer::v1 as wire;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(in crate::commands) async fn disc(c: &Context, args: Disc) -> Result<Exit> {
    match args.action {
        DiscAction::Eject { drive } => control(c, drive.as_str(), wire::DriveVerb::Eject, None, "is open").await,
        DiscAction::Close { drive } => control(c, drive.as_str(), wire::DriveVerb::Close, None, "is closed").await,
        DiscAction::Insert { drive, image } => {
            control(c, drive.as_str(), wire::DriveVerb::Insert, Some(&image), "has the image").await
        }
        DiscAction::Rip { drive, file, retries } => rip(c, drive.as_str(), &file, retries.unwrap_or(0)).await,
        DiscAction::Export { drive, nbd, nbd_socket, http, listen, tls, plain } => {
            let offer = Offer { nbd, socket: nbd_socket, http, listen, tls, plain };
            export(c, drive.as_str(), offer).await
        }
    }
}

async fn control(c: &Context, drive: &str, verb: wire::DriveVerb, image: Option<&Path>, done: &str) -> Result<Exit> {
    // The peer shows the lease, if this machine has one.
    let request = wire::ControlDriveRequest {
        device: drive.to_owned(),
        verb: verb as i32,
        image_path: image.map(absolute_text).transpose()?.unwrap_or_default(),
        ..Default::default()
    };
    let device = SharedDevice::from(call(c.peer()?.devices().control_drive(request)).await?);
    c.out.changed(&device, |d| {
        let title = d.drive.as_ref().map(|d| d.title.as_str()).filter(|t| !t.is_empty());
        let title = title.map(|t| format!("; in it is {:?}", safe(t))).unwrap_or_default();
        format!("{} {done} ({}{title})", safe(&d.address), safe(&d.state))
    })?;
    Ok(Exit::Ok)
}

async fn rip(c: &Context, drive: &str, file: &Path, retries: u32) -> Result<Exit> {
    if file.is_dir() {
        return Err(usage(format!("{} is a directory", file.display()), "name the file, like film.iso"));
    }
    let path = absolute_text(file)?;
    let request = wire::RipDiscRequest { device: drive.to_owned(), path: path.clone(), retries };
    let meter = Meter::new(&c.out, "rip");
    let mut stream = call(c.peer()?.local_devices().rip_disc(request)).await?;
    let mut last = None;
    while let Some(now) = stream.message().await.map_err(|s| from_status(&s))? {
        meter.remark((now.bad_sectors > 0).then(|| count(now.bad_sectors, "bad sector", "bad sectors")));
        meter.set(Counts { done_bytes: now.done_bytes, total_bytes: now.total_bytes, done_files: 0, total_files: 1 });
        let done = now.done;
        last = Some(now);
        if done {
            break;
        }
    }
    meter.finish();
    let end = last
        .filter(|l| l.done)
        .ok_or_else(|| super::broke_off("the copy", "give the same command again; it goes on where it stopped"))?;
    let copy = DiscCopy {
        device: drive.to_owned(),
        path,
        title: end.title,
        done_bytes: end.done_bytes,
        total_bytes: end.total_bytes,
        bad_sector_count: end.bad_sectors,
        sources: sources(end.sources),
        elapsed_ms: u64::try_from(meter.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    c.out.changed(&copy, copy_text)?;
    if copy.bad_sector_count == 0 {
        return Ok(Exit::Ok);
    }
    let bad = count(copy.bad_sector_count, "sector", "sectors");
    c.out.warn(&format!(
        "{bad} cannot be read; {}.map lists them. Clean the disc and give the same command again",
        safe(&copy.path)
    ));
    Ok(Exit::Partly)
}

fn sources(from: std::collections::HashMap<String, u64>) -> Vec<DiscSource> {
    let mut sources: Vec<DiscSource> =
        from.into_iter().map(|(node_name, received_bytes)| DiscSource { node_name, received_bytes }).collect();
    sources.sort_by(|a, b| b.received_bytes.cmp(&a.received_bytes).then_with(|| a.node_name.cmp(&b.node_name)));
    sources
}

fn copy_text(d: &DiscCopy) -> String {
    let from: Vec<String> =
        d.sources.iter().map(|s| format!("{} from {}", bytes(s.received_bytes), safe(&s.node_name))).collect();
    let from = if from.is_empty() { String::new() } else { format!("; {}", from.join(", ")) };
    let elapsed = duration(Duration::from_millis(d.elapsed_ms));
    format!("copied {:?} to {} ({} in {elapsed}{from})", safe(&d.title), safe(&d.path), bytes(d.done_bytes))
}

/// The ways on which a disc is offered.
struct Offer {
    nbd: bool,
    socket: Option<PathBuf>,
    http: bool,
    listen: Option<SocketAddr>,
    tls: Option<PathBuf>,
    plain: bool,
}

async fn export(c: &Context, drive: &str, offer: Offer) -> Result<Exit> {
    let any = offer.nbd || offer.http || offer.socket.is_some() || offer.listen.is_some();
    let tls_directory = offer.tls.as_deref().map(absolute_text).transpose()?;
    let request = wire::ExportDiscRequest {
        device: drive.to_owned(),
        nbd_socket: offer.socket.as_deref().map(absolute_text).transpose()?.unwrap_or_default(),
        nbd: offer.nbd || !any,
        http: offer.http || !any,
        nbd_listen: offer.listen.map(|at| at.to_string()).unwrap_or_default(),
        tls: offer.tls.is_some(),
        plain: offer.plain,
    };
    let mut stream = call(c.peer()?.local_devices().export_disc(request)).await?;
    let mut shown: Option<DiscExport> = None;
    while let Some(now) = stream.message().await.map_err(|s| from_status(&s))? {
        if let (Some(keys), Some(directory)) = (&now.keys, &tls_directory) {
            write_keys(Path::new(directory), keys)?;
        }
        let uris = now.uris.into_iter().map(|uri| with_keys(uri, tls_directory.as_deref())).collect();
        let (disc_changed, tls_directory) = (now.disc_changed, tls_directory.clone());
        let now = DiscExport { device: drive.to_owned(), uris, disc_changed, tls_directory };
        // Later answers may leave out what stays as it was.
        let uris = match (&shown, now.uris.is_empty()) {
            (Some(before), true) => before.uris.clone(),
            _ => now.uris.clone(),
        };
        let now = DiscExport { uris, ..now };
        if shown.as_ref() == Some(&now) {
            continue;
        }
        let new_uris = shown.as_ref().is_none_or(|s| s.uris != now.uris);
        if c.out.json {
            c.out.json(&now)?;
        } else if new_uris {
            now.uris.iter().try_for_each(|uri| c.out.line(&safe(uri)))?;
            hints(c, &now.uris);
        }
        if now.disc_changed {
            c.out.warn("the disc was changed; programs get errors until you end this and begin again");
        }
        shown = Some(now);
    }
    Err(super::broke_off("the export", "give the same command again"))
}

/// Puts the keys where programs look for them (as libnbd and QEMU name the files), for this user only.
fn write_keys(directory: &Path, keys: &wire::ExportKeys) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    write_public(&directory.join("ca-cert.pem"), keys.ca_certificate.as_bytes())?;
    write_public(&directory.join("client-cert.pem"), keys.client_certificate.as_bytes())?;
    write_secret(&directory.join("client-key.pem"), keys.client_key.as_bytes())
}

/// An address as programs take it: with the directory of its keys.
fn with_keys(uri: String, directory: Option<&str>) -> String {
    let Some(directory) = directory.filter(|_| uri.starts_with("nbds:")) else { return uri };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
    let escaped: String =
        directory.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect();
    format!("{uri}/?tls-certificates={escaped}")
}

/// How programs are pointed to it.
fn hints(c: &Context, uris: &[String]) {
    for uri in uris {
        let uri = safe(uri);
        match uri.split(':').next() {
            Some("http") => c.out.hint(&format!("vlc {uri}")),
            Some(_) if uri.starts_with("nbd") => c.out.hint(&format!("nbdcopy '{uri}' disc.iso")),
            _ => {}
        }
    }
    c.out.note("until Ctrl-C");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_over_tls_name_the_keys() {
        let of = |uri: &str| with_keys(uri.to_owned(), Some("/home/anna b/k&y"));
        assert_eq!(of("nbds://192.0.2.1:1"), "nbds://192.0.2.1:1/?tls-certificates=/home/anna%20b/k%26y");
        assert_eq!(of("nbd://127.0.0.1:1"), "nbd://127.0.0.1:1");
        assert_eq!(with_keys("nbds://[::1]:1".to_owned(), None), "nbds://[::1]:1");
    }
}
