//! `devices`.

use super::{Context, all, call};
use crate::args::{Devices, KindArg};
use crate::commands::peers::warn_of;
use crate::exit::Exit;
use crate::output::Output;
use crate::output::format::{bytes, count, minute, pad, safe};
use crate::output::schema::{DeviceAuditRecord, OwnDevice, Problem, SharedDevice};
use crate::peer::Peer;
use common::error::{Error, Reason, Result};
use common::model::fold;
use proto::peer::v1 as wire;
use std::collections::HashMap;

impl KindArg {
    fn wire(self) -> wire::DeviceKind {
        match self {
            Self::Printer => wire::DeviceKind::Printer,
            Self::Drive => wire::DeviceKind::Drive,
            Self::Disk => wire::DeviceKind::Disk,
        }
    }
}

pub(in crate::commands) async fn devices(c: &Context, args: Devices) -> Result<Exit> {
    let peer = c.peer()?;
    let address = args.address.as_ref().map(|a| a.as_str());
    if args.audit {
        return audit(c, &peer, address, args.limit.unwrap_or(0), args.verify).await;
    }
    let kind = args.kind.map_or(wire::DeviceKind::Unspecified, KindArg::wire);
    if args.own {
        return own(c, &peer, kind, address).await;
    }
    let answer = all(&peer, kind).await?;
    let found: Vec<SharedDevice> = answer.devices.into_iter().map(SharedDevice::from).collect();
    warn_of(c, answer.problems);
    let (shown, one) = match address {
        None => (found, false),
        Some(address) => {
            let own = own_node(&found, &peer, address).await?;
            select(found, address, own.as_deref())
        }
    };
    match shown.as_slice() {
        [device] if one => c.out.object(device, |d| full(&c.out, d))?,
        [] if address.is_some() => return Err(unknown(address.unwrap_or_default())),
        shown => {
            let mut list = c.out.list::<SharedDevice>(&[])?;
            let width = shown.iter().map(|d| d.address.chars().count()).max().unwrap_or(0);
            for device in shown {
                list.item(device, |d| line(&c.out, d, width))?;
            }
            if list.end("no devices that you may see")? == 0 {
                c.out.hint("atrium share printers/NAME --output … --with everyone");
            }
        }
    }
    Ok(Exit::Ok)
}

fn unknown(address: &str) -> Error {
    Error::new(Reason::ResourceUnknown, format!("there is no device {}", safe(address)))
}

/// The name of this machine, for addresses below it such as "printers/laser". Asked only if it decides something.
async fn own_node(found: &[SharedDevice], peer: &Peer, address: &str) -> Result<Option<String>> {
    let end = format!("/{}", fold(address));
    let several = found.iter().filter(|d| fold(&d.address).ends_with(&end)).count() > 1;
    if !several || !address.contains('/') {
        return Ok(None);
    }
    Ok(Some(call(peer.client().get_status(wire::GetStatusRequest {})).await?.node_name))
}

/// Those that an address means, and whether it names one device: by its full address, below this machine, by its last
/// segments if only one has them; else all below it.
fn select(found: Vec<SharedDevice>, address: &str, own: Option<&str>) -> (Vec<SharedDevice>, bool) {
    let key = fold(address);
    let whole = |d: &SharedDevice| fold(&d.address) == key;
    let mine = |d: &SharedDevice| own.is_some_and(|node| fold(&d.address) == fold(&format!("{node}/{address}")));
    for exact in [&whole as &dyn Fn(&SharedDevice) -> bool, &mine] {
        if let Some(at) = found.iter().position(exact) {
            return (found.into_iter().nth(at).into_iter().collect(), true);
        }
    }
    let (below, end) = (format!("{key}/"), format!("/{key}"));
    let by_end = found.iter().filter(|d| fold(&d.address).ends_with(&end)).count();
    let shown = found.into_iter().filter(|d| {
        let address = fold(&d.address);
        if by_end > 0 { address.ends_with(&end) } else { address.starts_with(&below) }
    });
    (shown.collect(), by_end == 1)
}

/// What is special about it, in a few words.
fn detail(d: &SharedDevice) -> String {
    let mut words = Vec::new();
    if let Some(p) = &d.printer {
        words.push(if p.job_count == 0 { "no jobs".to_owned() } else { count(p.job_count, "job", "jobs") });
        words.extend(p.color.then(|| "colour".to_owned()));
        words.extend(p.duplex.then(|| "both sides".to_owned()));
        words.extend((!p.members.is_empty()).then(|| count(p.members.len() as u64, "printer", "printers")));
        words.extend((!p.location.is_empty()).then(|| safe(&p.location)));
    }
    if let Some(d) = d.drive.as_ref().filter(|d| d.generation > 0) {
        let title = if d.title.is_empty() { "untitled" } else { &d.title };
        words.push(format!("{:?}, {}", safe(title), bytes(d.size_bytes)));
        words.extend((d.bad_block_count > 0).then(|| count(d.bad_block_count, "bad block", "bad blocks")));
    }
    if let Some(d) = &d.disk {
        words.push(format!("{} free of {}", bytes(d.free_bytes), bytes(d.size_bytes)));
    }
    words.extend((d.waiting_count > 0).then(|| format!("{} waiting", d.waiting_count)));
    words.extend(d.state_reason.as_deref().map(safe));
    words.extend((!d.description.is_empty()).then(|| safe(&d.description)));
    words.extend((!d.online).then(|| "machine away".to_owned()));
    words.join("; ")
}

fn line(out: &Output, d: &SharedDevice, width: usize) -> String {
    let address = out.paint(&pad(&safe(&d.address), width), "34;1");
    let state = if d.online { safe(&d.state) } else { "away".to_owned() };
    let holder = d.holder.as_deref().map_or_else(|| "-".to_owned(), safe);
    format!("{address}  {}  {}  {}  {}", pad(&d.r#type, 7), pad(&state, 10), pad(&holder, 16), detail(d))
}

/// Everything about one.
pub(super) fn full(out: &Output, d: &SharedDevice) -> String {
    let mut lines = vec![out.paint(&safe(&d.address), "34;1")];
    let mut say = |name: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("  {}  {text}", pad(name, 11)));
        }
    };
    let simulated = if d.simulated { " (simulated)" } else { "" };
    say("what", format!("{}{simulated}", d.r#type));
    say("description", safe(&d.description));
    let reason = d.state_reason.as_deref().map(|r| format!(": {}", safe(r))).unwrap_or_default();
    let online = if d.online { "" } else { "; its machine is away, this was known last" };
    say("state", format!("{}{reason}{online}", safe(&d.state)));
    say("held by", d.holder.as_deref().map(safe).unwrap_or_default());
    say("waiting", if d.waiting_count == 0 { String::new() } else { d.waiting_count.to_string() });
    for l in &d.leases {
        let purpose = if l.purpose.is_empty() { String::new() } else { format!(": {}", safe(&l.purpose)) };
        say("lease", format!("{}  {}, {}  {}{purpose}", l.id, l.mode, l.state, safe(&l.holder)));
    }
    say("owner", safe(&d.person));
    say("you may", d.right.clone().unwrap_or_else(|| "not known".to_owned()));
    if let Some(p) = &d.printer {
        say("stands", safe(&p.location));
        say("jobs", p.job_count.to_string());
        let can = [(p.color, "colour"), (p.duplex, "both sides")];
        say("prints", can.iter().filter(|(yes, _)| *yes).map(|(_, word)| *word).collect::<Vec<_>>().join(", "));
        say("takes", safe(&p.formats.join(", ")));
        say("printers", safe(&p.members.join(", ")));
        say("sheets left", p.sheets_left.map(|n| n.to_string()).unwrap_or_default());
        say("bytes left", p.bytes_left.map(bytes).unwrap_or_default());
        p.uris.iter().for_each(|uri| say("for programs", safe(uri)));
    }
    if let Some(d) = d.drive.as_ref().filter(|d| d.generation > 0) {
        say("disc", format!("{:?}, {}, {}", safe(&d.title), bytes(d.size_bytes), safe(&d.format)));
        say("generation", d.generation.to_string());
        say("bad blocks", d.bad_block_count.to_string());
    }
    if let Some(d) = &d.disk {
        say("lent", format!("{} of {}", bytes(d.used_bytes), bytes(d.size_bytes)));
        say("free", format!("{}, {} for one person", bytes(d.free_bytes), bytes(d.per_person_bytes)));
    }
    lines.join("\n")
}

async fn own(c: &Context, peer: &Peer, kind: wire::DeviceKind, address: Option<&str>) -> Result<Exit> {
    let answer = call(peer.local_devices().list_own_devices(wire::ListOwnDevicesRequest {})).await?;
    let wanted = |d: &wire::LocalDevice| {
        let d = d.device.clone().unwrap_or_default();
        let fits = address.is_none_or(|a| d.address == a || d.name == a || d.address.ends_with(&format!("/{a}")));
        (kind == wire::DeviceKind::Unspecified || d.kind == kind as i32) && fits
    };
    let shown: Vec<OwnDevice> = answer.devices.into_iter().filter(wanted).map(OwnDevice::from).collect();
    if let (Some(address), true) = (address, shown.is_empty()) {
        return Err(unknown(address));
    }
    let mut list = c.out.list::<OwnDevice>(&[])?;
    for device in &shown {
        list.item(device, |d| super::share::text(&c.out, d))?;
    }
    if list.end("this machine shares no devices")? == 0 {
        c.out.hint("atrium share printers/NAME --output … --with everyone");
    }
    Ok(Exit::Ok)
}

async fn audit(c: &Context, peer: &Peer, address: Option<&str>, limit: u32, verify: bool) -> Result<Exit> {
    let request = wire::ReadDeviceAuditRequest { limit, verify };
    let answer = call(peer.local_devices().read_device_audit(request)).await?;
    let problem = answer.problem.map(Problem::from);
    let mut head = Vec::new();
    if verify {
        head.push(("verified", answer.verified.into()));
        head.push(("problem", serde_json::to_value(&problem).unwrap_or_default()));
    }
    let mut list = c.out.list::<DeviceAuditRecord>(&head)?;
    // The audit names devices as their own machine does.
    let fits = |r: &wire::DeviceAuditRecord| {
        address.is_none_or(|a| {
            a == r.resource || a.ends_with(&format!("/{}", r.resource)) || r.resource.ends_with(&format!("/{a}"))
        })
    };
    for record in answer.records.into_iter().filter(fits) {
        list.item(&DeviceAuditRecord::from(record), audit_line)?;
    }
    list.end("no records")?;
    if !verify || answer.verified {
        if verify {
            c.out.note("all records are intact");
        }
        return Ok(Exit::Ok);
    }
    let p = problem.unwrap_or_else(|| Problem::of(&Error::new(Reason::StoreCorrupt, "the audit log is not intact")));
    Err(Error::remote(common::error::Kind::DataLoss, p.reason, p.message, p.why, p.fix))
}

fn audit_line(r: &DeviceAuditRecord) -> String {
    let result = if r.granted { "ok     " } else { "refused" };
    let from = format!("{} at {}", safe(&r.person), safe(&r.machine));
    let reason = r.reason.as_deref().map(safe).unwrap_or_default();
    let again = if r.repeated_count > 0 { format!(" (and {} more)", r.repeated_count) } else { String::new() };
    format!(
        "{:>8}  {}  {result}  {}  {}  {}  {reason}{again}",
        r.sequence,
        minute(r.time.as_deref()),
        pad(&from, 20),
        pad(&safe(&r.verb), 16),
        pad(&safe(&r.resource), 18)
    )
}

/// Names for completion: addresses, and names that only one device has.
///
/// # Errors
/// Whatever listing ends with.
pub(in crate::commands) async fn names(peer: &Peer, kind: wire::DeviceKind) -> Result<Vec<String>> {
    let devices = all(peer, kind).await?.devices;
    let mut by_name: HashMap<&str, u32> = HashMap::new();
    for device in &devices {
        *by_name.entry(&device.name).or_default() += 1;
    }
    let short = devices.iter().filter(|d| by_name.get(d.name.as_str()) == Some(&1)).map(|d| d.name.clone());
    Ok(short.chain(devices.iter().map(|d| d.address.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(address: &str) -> SharedDevice {
        wire::Device {
            address: address.into(),
            name: address.rsplit('/').next().unwrap().into(),
            online: true,
            ..Default::default()
        }
        .into()
    }

    #[test]
    fn one_device_or_all_below_an_address() {
        let all =
            || vec![device("acme/a/drives/dvd"), device("acme/a/printers/laser"), device("acme/b/printers/laser")];
        let names = |(found, one): (Vec<SharedDevice>, bool)| {
            (found.into_iter().map(|d| d.address).collect::<Vec<_>>().join(" "), one)
        };
        let of = |address: &str, own| names(select(all(), address, own));
        assert_eq!(of("acme/a/printers/laser", None), ("acme/a/printers/laser".to_owned(), true));
        assert_eq!(of("DVD", None), ("acme/a/drives/dvd".to_owned(), true));
        assert_eq!(of("printers/laser", Some("acme/b")), ("acme/b/printers/laser".to_owned(), true));
        assert_eq!(of("laser", None), ("acme/a/printers/laser acme/b/printers/laser".to_owned(), false));
        assert_eq!(of("acme/b", None), ("acme/b/printers/laser".to_owned(), false));
        assert_eq!(of("x", None), (String::new(), false));
    }

    #[test]
    fn control_characters_of_others_do_not_reach_the_terminal() {
        let mut evil = device("acme/a/printers/x");
        evil.state = "idle\u{1b}[2J".into();
        evil.holder = Some("bert\u{7}".into());
        evil.description = "a\nb".into();
        let out = Output {
            json: false,
            quiet: false,
            verbose: false,
            interactive: false,
            color: false,
            color_err: false,
            progress: false,
        };
        for text in [line(&out, &evil, 0), full(&out, &evil)] {
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
            assert!(text.contains("a?b"), "{text:?}");
        }
    }
}
