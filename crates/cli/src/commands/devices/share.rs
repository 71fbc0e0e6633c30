//! `share` and `unshare` of devices, and their part of `shares`.

use super::{Context, call};
use crate::args::Share;
use crate::args::device_value::{OwnDevice as Named, PrinterOutput, PrinterTrust, segment_of};
use crate::commands::peers::absolute_text;
use crate::exit::Exit;
use crate::output::format::{bytes, safe};
use crate::output::schema::{Done, OwnDevice};
use crate::output::{Output, usage};
use crate::progress::{Counts, Meter};
use common::error::{Error, Kind, Reason, Result};
use common::model::Right;
use common::status::from_status;
use proto::peer::v1 as wire;
use proto::v1;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use wire::DeviceKind;
use wire::share_device_request::Kind as ShareKind;

/// Longest text with certificates.
const PEM_MAX: u64 = 64 << 10;

/// Devices of this machine; none if its peer is of a version without.
async fn own_devices(c: &Context) -> Result<Vec<wire::LocalDevice>> {
    let answer = call(c.peer()?.local_devices().list_own_devices(wire::ListOwnDevicesRequest {})).await;
    match answer {
        Ok(answer) => Ok(answer.devices),
        Err(error) if error.kind() == Kind::Unimplemented => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The same for the list of shares.
pub(in crate::commands) async fn all_own(c: &Context) -> Result<Vec<OwnDevice>> {
    Ok(own_devices(c).await?.into_iter().map(OwnDevice::from).collect())
}

/// The device of this machine that a text means: by its name there, or its full address.
pub(in crate::commands) async fn own(c: &Context, text: &str) -> Result<Option<wire::Device>> {
    let named = Named::of(text);
    if named.is_none() && !text.contains('/') {
        return Ok(None);
    }
    let is_it = |d: &wire::Device| match &named {
        Some(named) => d.kind == named.kind as i32 && d.name == named.name,
        None => d.address == text,
    };
    Ok(own_devices(c).await?.into_iter().filter_map(|d| d.device).find(is_it))
}

/// The device that `share` is about, and what is known of it; `None` if it is about a folder. What is written like a
/// device is one if it is told what it needs, or is shared already.
pub(in crate::commands) async fn meant(
    c: &Context,
    target: &Path,
    args: &Share,
) -> Result<Option<(Named, Option<wire::LocalDevice>)>> {
    let Some(named) = Named::of_path(target) else { return Ok(None) };
    let is_it =
        |d: &wire::LocalDevice| d.device.as_ref().is_some_and(|d| d.kind == named.kind as i32 && d.name == named.name);
    let known = own_devices(c).await?.into_iter().find(is_it);
    Ok((known.is_some() || args.device.any()).then_some((named, known)))
}

pub(in crate::commands) async fn share(
    c: &Context,
    named: &Named,
    known: Option<wire::LocalDevice>,
    args: Share,
) -> Result<Exit> {
    if args.name.is_some() || args.two_way.is_some() || !args.ignore.is_empty() {
        return Err(usage("--name, --two-way and --ignore are for folders", "leave them out"));
    }
    // Shared again as it was, a disk that was leaving stays.
    let leaving = known.as_ref().and_then(|k| k.device.as_ref()).is_some_and(|d| d.state == "leaving");
    let changes = args.device.any() || !args.with.is_empty() || !args.revoke.is_empty() || leaving;
    if let (Some(known), false) = (&known, changes) {
        c.out.object(&OwnDevice::from(known.clone()), |d| text(&c.out, d))?;
        return Ok(Exit::Ok);
    }
    let before = known.and_then(|k| k.share);
    if before.is_none() && args.with.is_empty() {
        return Err(usage(
            format!("{named} is not shared yet"),
            format!("say with whom as well: atrium share {named} … --with everyone"),
        ));
    }
    let request = request(named, before, &args)?;
    let shared = OwnDevice::from(call(c.peer()?.local_devices().share_device(request)).await?);
    c.out.changed(&shared, |d| format!("{} is shared: {}", safe(&d.device.address), whom(d)))?;
    if let Some(pin) = shared.trust.as_deref().filter(|t| t.starts_with("sha256:")) {
        c.out.hint(&format!(
            "the printer's certificate is {} from now on; compare it with what the printer shows",
            safe(pin)
        ));
    }
    for p in &shared.problems {
        c.out.warn(&safe(&format!("{}: {}; {}", p.message, p.why, p.fix)));
    }
    c.out.hint(&format!("atrium devices {named}"));
    Ok(Exit::Ok)
}

/// What is asked for: what was there before, changed by the options.
fn request(named: &Named, before: Option<wire::ShareDeviceRequest>, args: &Share) -> Result<wire::ShareDeviceRequest> {
    let o = &args.device;
    let foreign = match named.kind {
        DeviceKind::Printer => o.of_drive() || o.of_disk(),
        DeviceKind::Drive => o.of_printer() || o.of_disk(),
        _ => o.of_printer() || o.of_drive(),
    };
    if foreign {
        let kind = segment_of(named.kind);
        return Err(usage(
            format!("some options do not fit {kind}"),
            "`atrium share --help` says what each kind needs",
        ));
    }
    let mut request = before.unwrap_or_default();
    request.name = named.name.clone();
    if let Some(description) = &o.description {
        request.description = description.clone();
    }
    let kind = request.kind.take();
    request.kind = Some(match named.kind {
        DeviceKind::Printer => ShareKind::Printer(printer(named, kind, args)?),
        DeviceKind::Drive => ShareKind::Drive(drive(named, kind, args)?),
        _ => ShareKind::Disk(disk(named, kind, args)?),
    });
    let usual = if named.kind == DeviceKind::Drive { Right::Read } else { Right::Write };
    let mut grants: Vec<v1::Grant> = std::mem::take(&mut request.grants);
    let gone: Vec<v1::Principal> = args.revoke.iter().map(|w| w.wire()).collect();
    grants.retain(|g| !g.principal.as_ref().is_some_and(|p| gone.contains(p)));
    for with in &args.with {
        let principal = Some(with.whom.wire());
        let right = with.right.unwrap_or_else(|| args.right_or(usual)) as i32;
        grants.retain(|g| g.principal != principal);
        grants.push(v1::Grant { principal, right });
    }
    request.grants = grants;
    Ok(request)
}

fn needed(named: &Named, what: &str) -> common::error::Error {
    usage(format!("{named} is not shared yet"), format!("say what it is: atrium share {named} {what} --with everyone"))
}

fn printer(named: &Named, before: Option<ShareKind>, args: &Share) -> Result<wire::PrinterShare> {
    use wire::printer_output::Kind;
    let mut p = match before {
        Some(ShareKind::Printer(p)) => p,
        _ => wire::PrinterShare::default(),
    };
    let o = &args.device;
    if let Some(output) = &o.output {
        let kind = match output {
            PrinterOutput::Folder(path) => Kind::Folder(absolute_text(path)?),
            PrinterOutput::Cups(queue) => Kind::CupsQueue(queue.clone()),
            PrinterOutput::Uri(uri) => Kind::Uri(uri.clone()),
            PrinterOutput::Group(members) => Kind::Group(wire::PrinterGroup { members: members.clone() }),
        };
        let output = Some(wire::PrinterOutput { kind: Some(kind) });
        if p.output != output {
            // What was known of another printer's certificate says nothing of this one's.
            p.trust.clear();
        }
        p.output = output;
    }
    match &o.trust {
        Some(PrinterTrust::Word(word)) => p.trust = word.clone(),
        Some(PrinterTrust::File(path)) => p.trust = certificates(path)?,
        None => {}
    }
    if p.output.is_none() {
        return Err(needed(named, "--output cups:QUEUE"));
    }
    if let Some(location) = &o.location {
        p.location = location.clone();
    }
    p.color = o.in_color.unwrap_or(p.color);
    p.duplex = o.duplex.unwrap_or(p.duplex);
    p.members_only = o.members_only.unwrap_or(p.members_only);
    if !o.format.is_empty() {
        p.formats = o.format.clone();
    }
    Ok(p)
}

/// The text of a file with certificates.
fn certificates(path: &Path) -> Result<String> {
    let read = std::fs::File::open(path).and_then(|f| {
        let mut text = String::new();
        f.take(PEM_MAX + 1).read_to_string(&mut text).map(|_| text)
    });
    let refused = |why: String| {
        Error::new(Reason::CertificateInvalid, format!("{} has no certificate", path.display()))
            .why_is(why)
            .fix_is("name a PEM file, or write sha256:FINGERPRINT, system or new")
    };
    match read {
        Err(error) => Err(refused(error.to_string())),
        Ok(text) if text.len() as u64 > PEM_MAX => Err(refused("it has more than 64 KiB".to_owned())),
        Ok(text) => Ok(text),
    }
}

fn drive(named: &Named, before: Option<ShareKind>, args: &Share) -> Result<wire::DriveShare> {
    use wire::drive_share::Kind;
    let kind = match (&args.device.device, &args.device.image) {
        (Some(file), _) => Some(Kind::DeviceFile(absolute_text(file)?)),
        (None, Some(image)) => Some(Kind::Image(match &image.0 {
            Some(path) => absolute_text(path)?,
            None => String::new(),
        })),
        (None, None) => match before {
            Some(ShareKind::Drive(d)) => d.kind,
            _ => None,
        },
    };
    match kind {
        None => Err(needed(named, "--device /dev/sr0")),
        kind => Ok(wire::DriveShare { kind }),
    }
}

fn disk(named: &Named, before: Option<ShareKind>, args: &Share) -> Result<wire::DiskShare> {
    let mut d = match before {
        Some(ShareKind::Disk(d)) => d,
        _ => wire::DiskShare::default(),
    };
    let o = &args.device;
    if let Some(folder) = &o.folder {
        d.folder = absolute_text(folder)?;
    }
    d.size_bytes = o.size.unwrap_or(d.size_bytes);
    d.reserve_bytes = o.reserve.unwrap_or(d.reserve_bytes);
    d.per_person_bytes = o.per_person.unwrap_or(d.per_person_bytes);
    if d.folder.is_empty() || d.size_bytes == 0 {
        return Err(needed(named, "--folder DIRECTORY --size 100GiB"));
    }
    Ok(d)
}

fn whom(d: &OwnDevice) -> String {
    let shown: Vec<String> = d.grants.iter().map(|g| format!("{} may {}", safe(&g.who), g.right)).collect();
    if shown.is_empty() { "with nobody".to_owned() } else { shown.join(", ") }
}

/// A device of this machine, in a few lines.
pub(in crate::commands) fn text(out: &Output, d: &OwnDevice) -> String {
    let mut remarks = vec![safe(&d.target)];
    remarks.push(safe(&d.device.state));
    remarks.extend(d.device.state_reason.as_deref().map(safe));
    remarks.extend(d.device.disk.as_ref().map(|k| format!("{} of {} lent", bytes(k.used_bytes), bytes(k.size_bytes))));
    remarks.extend(d.trust.as_deref().map(trust_text));
    remarks.extend(d.members_only.then(|| "members only".to_owned()));
    remarks.extend(d.device.holder.as_deref().map(|h| format!("held by {}", safe(h))));
    let mut text = format!("{}\n  {}\n  {}", out.paint(&safe(&d.device.address), "34;1"), remarks.join(", "), whom(d));
    for p in &d.problems {
        text.push_str(&format!("\n  {}\n    why: {}\n    fix: {}", safe(&p.message), safe(&p.why), safe(&p.fix)));
    }
    text
}

fn trust_text(trust: &str) -> String {
    match trust {
        "system" => "certificate from an authority".to_owned(),
        "file" => "certificate as given".to_owned(),
        pin => format!("certificate {}", safe(pin)),
    }
}

pub(in crate::commands) async fn unshare(c: &Context, device: &wire::Device, force: bool, now: bool) -> Result<Exit> {
    if now && device.kind != DeviceKind::Disk as i32 {
        return Err(usage("--now is for disks", "leave it out"));
    }
    if device.kind == DeviceKind::Disk as i32 && !now {
        leave(c, device, force).await?;
    } else {
        let request = wire::UnshareDeviceRequest { device: device.address.clone(), force, now };
        call(c.peer()?.local_devices().unshare_device(request)).await?;
    }
    let message = format!("{} is shared no longer", safe(&device.address));
    c.out.changed(&Done::new("unshare", &device.address, None, message), |d| d.message.clone())?;
    Ok(Exit::Ok)
}

/// Waits until all second copies have left a disk, and says how that goes.
async fn leave(c: &Context, device: &wire::Device, force: bool) -> Result<()> {
    let request = wire::LeaveDiskRequest { device: device.address.clone(), force };
    let mut stream = call(c.peer()?.local_devices().leave_disk(request)).await?;
    let mut told = BTreeSet::new();
    let meter = Meter::new(&c.out, "leave");
    while let Some(now) = stream.message().await.map_err(|s| from_status(&s))? {
        if now.done {
            meter.finish();
            return Ok(());
        }
        let mirrors = now.mirrors;
        let sum = |of: fn(&wire::LeavingMirror) -> u64| mirrors.iter().map(of).sum();
        let (done_bytes, total_bytes) = (sum(|m| m.fetched_bytes.min(m.total_bytes)), sum(|m| m.total_bytes));
        meter.set(Counts { done_bytes, total_bytes, done_files: 0, total_files: 0 });
        for m in &mirrors {
            let away = if m.online { "" } else { "; that machine is away, and is waited for" };
            let node = if m.node_name.is_empty() { "a machine that is no member any more" } else { &m.node_name };
            let line = format!("{} of {} leaves for {}{away}", safe(&m.label), safe(&m.person), safe(node));
            if told.insert(line.clone()) {
                meter.say(&line);
            }
        }
    }
    meter.finish();
    let address = safe(&device.address);
    Err(super::broke_off("the disk", &format!("give the same command again; `atrium share {address}` keeps the disk")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn asked(line: &[&str], before: Option<wire::ShareDeviceRequest>) -> Result<wire::ShareDeviceRequest> {
        let cli = Cli::try_parse_from([&["atrium", "share"], line].concat()).unwrap();
        let Command::Share(args) = cli.command else { panic!() };
        request(&Named::of(line[0]).unwrap(), before, &args)
    }

    #[test]
    fn the_usual_right_is_to_print_to_read_and_to_borrow() {
        let right = |line: &[&str]| asked(line, None).unwrap().grants[0].right;
        let printer = ["printers/laser", "--output", "cups:HP", "--with", "everyone"];
        assert_eq!(right(&printer), Right::Write as i32);
        assert_eq!(right(&["drives/dvd", "--device", "/dev/sr0", "--with", "everyone"]), Right::Read as i32);
        assert_eq!(right(&["disks/d", "--folder", "/srv", "--size", "1GiB", "--with", "anna"]), Right::Write as i32);
        assert_eq!(right(&[&printer[..], &["--right", "see"]].concat()), Right::See as i32);
        assert_eq!(right(&["drives/dvd", "--image", "none", "--with", "anna=manage"]), Right::Manage as i32);
    }

    #[test]
    fn given_again_it_changes_what_is_named_and_leaves_the_rest() {
        let first = asked(
            &[
                "printers/laser",
                "--output",
                "folder:/srv/out",
                "--duplex",
                "--with",
                "everyone",
                "--with",
                "anna=manage",
            ],
            None,
        )
        .unwrap();
        let line = ["printers/laser", "--location", "hall", "--in-color", "--duplex=no", "--revoke", "everyone"];
        let second = asked(&line, Some(first.clone())).unwrap();
        let Some(ShareKind::Printer(p)) = second.kind else { panic!() };
        let Some(ShareKind::Printer(old)) = first.kind else { panic!() };
        assert_eq!((p.output, p.location.as_str(), p.color, p.duplex), (old.output, "hall", true, false));
        assert_eq!(second.grants.len(), 1);
        assert_eq!(second.grants[0].right, Right::Manage as i32);
        let once = asked(
            &["printers/laser", "--with", "anna=see"],
            Some(asked(&["printers/laser", "--output", "cups:x", "--with", "anna"], None).unwrap()),
        )
        .unwrap();
        assert_eq!(once.grants.len(), 1, "a person has one right");
    }

    #[test]
    fn a_certificate_belongs_to_its_output() {
        let trust = |share: &wire::ShareDeviceRequest| match &share.kind {
            Some(ShareKind::Printer(p)) => p.trust.clone(),
            _ => panic!(),
        };
        let first = ["printers/x", "--output", "ipps://a/ipp/print", "--trust", "sha256:00", "--with", "anna"];
        let first = asked(&first, None).unwrap();
        assert_eq!(trust(&first), "sha256:00");
        let same = ["printers/x", "--output", "ipps://a/ipp/print", "--location", "hall"];
        assert_eq!(trust(&asked(&same, Some(first.clone())).unwrap()), "sha256:00");
        let other = ["printers/x", "--output", "ipps://b/ipp/print"];
        assert_eq!(trust(&asked(&other, Some(first.clone())).unwrap()), "");
        assert_eq!(trust(&asked(&["printers/x", "--trust", "new"], Some(first.clone())).unwrap()), "new");
        let missing = asked(&["printers/x", "--trust", "/nowhere/at.pem"], Some(first)).unwrap_err();
        assert!(missing.is(Reason::CertificateInvalid));
    }

    #[test]
    fn what_a_kind_needs_is_said() {
        for (line, fix) in [
            (&["printers/x", "--with", "anna"][..], "--output"),
            (&["drives/x", "--description", "a", "--with", "anna"], "--device"),
            (&["disks/x", "--folder", "/srv", "--with", "anna"], "--size"),
            (&["disks/x", "--folder", "/srv", "--size", "none", "--with", "anna"], "--size"),
            (&["drives/x", "--output", "cups:x", "--with", "anna"], "help"),
            (&["printers/x", "--output", "cups:x", "--size", "1GiB", "--with", "anna"], "help"),
        ] {
            let error = asked(line, None).unwrap_err();
            assert!(error.fix().contains(fix), "{line:?}: {}", error.fix());
        }
    }
}
