//! Printers: offered by machines, listed by people, managed by administrators.
//!
//! A name belongs to the machine that offered it first, until an administrator removes the printer or moves it. A new
//! printer is for administrators only, or for every member if the settings say so; further rights are granted.

use super::super::caller::Caller;
use super::super::directories::{MAX_GRANTS, PrincipalName};
use super::super::identity::{check_name, check_text, require_admin};
use super::super::page::{self, PageToken};
use super::super::records::{self as stored, View, device_key};
use super::super::{App, audit, devices, entries, rights};
use super::records::{self, Printer, jobs_of_printer, printer_key, printer_unknown};
use super::{Condition, JOBS_PER_PRINTER, Job, PRINTERS_MAX, PRINTERS_PER_DEVICE, Presence, jobs, transitions};
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Principal, Right};
use common::store::{Txn, prefix_end};
use proto::record::v1 as record;
use uuid::Uuid;

/// Most media types of a printer.
pub const FORMATS_MAX: usize = 32;
/// Longest media type.
pub const FORMAT_LEN: usize = 127;

/// A printer as a caller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The printer.
    pub printer: Printer,
    /// The name of its machine.
    pub machine: String,
    /// How it is.
    pub presence: Presence,
    /// Open jobs.
    pub job_count: u32,
    /// The caller's right.
    pub my_right: Option<Right>,
    /// Its rules by name, for those who manage it.
    pub grants: Vec<(PrincipalName, Right)>,
}

/// What a machine says of a printer.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Name.
    pub name: String,
    /// For people.
    pub description: String,
    /// Where it stands.
    pub location: String,
    /// Media types; none means any.
    pub formats: Vec<String>,
    /// Prints in colour.
    pub color: bool,
    /// Prints on both sides.
    pub duplex: bool,
    /// How it is.
    pub condition: Condition,
    /// Why it is stopped.
    pub reason: String,
}

impl Offer {
    fn check(&self) -> Result<()> {
        check_name(&self.name, "name")?;
        check_text(&self.description, "description")?;
        check_text(&self.location, "location")?;
        check_text(&self.reason, "state_reason")?;
        let printable = |f: &String| (1..=FORMAT_LEN).contains(&f.len()) && f.bytes().all(|b| b.is_ascii_graphic());
        if self.formats.len() > FORMATS_MAX || !self.formats.iter().all(printable) {
            return Err(
                Error::new(Reason::FieldInvalid, "these are no media types, or too many").with("field", "formats")
            );
        }
        Ok(())
    }

    fn describes(&self, printer: &Printer) -> bool {
        self.description == printer.description
            && self.location == printer.location
            && self.formats == printer.formats
            && self.color == printer.color
            && self.duplex == printer.duplex
    }

    fn describe(&self, printer: &mut Printer) {
        printer.description.clone_from(&self.description);
        printer.location.clone_from(&self.location);
        printer.formats.clone_from(&self.formats);
        (printer.color, printer.duplex) = (self.color, self.duplex);
    }
}

/// The calling machine.
///
/// # Errors
/// `DEVICE_REQUIRED`.
pub(super) fn machine(caller: &Caller) -> Result<DeviceId> {
    caller.device.ok_or_else(|| Error::new(Reason::DeviceRequired, "this needs a joined machine"))
}

fn subject(name: &str) -> String {
    format!("printer:{name}")
}

fn show(app: &App, view: &impl View, caller: &Caller, printer: Printer) -> Result<Shown> {
    let machine: Option<record::Device> = stored::load(view, &device_key(&printer.device))?;
    let open = stored::under(view, &jobs_of_printer(printer.uid.as_bytes(), false), JOBS_PER_PRINTER)?.len();
    let my_right = rights::granted(&printer.grants, caller);
    let grants = if my_right >= Some(Right::Manage) { printer.grant_names(view)? } else { Vec::new() };
    Ok(Shown {
        machine: machine.map(|m| m.display_name).unwrap_or_default(),
        presence: app.prints.presence(&printer.name, &printer.device, app.clock.now_ms()),
        job_count: u32::try_from(open).unwrap_or(u32::MAX),
        my_right,
        grants,
        printer,
    })
}

/// A page of the printers that the caller may see.
///
/// # Errors
/// `PAGE_TOKEN_INVALID`.
pub async fn list(app: &App, caller: &Caller, page_size: u32, page_token: &str) -> Result<(Vec<Shown>, String)> {
    let list = page::fingerprint("printers", &[&caller.actor()]);
    let start = match PageToken::read(page_token, list)? {
        Some(token) => Some(token.text()?.to_owned()),
        None => None,
    };
    let (app, caller, size) = (app.clone(), caller.clone(), page::size(page_size));
    entries::blocking(move || {
        let mut from = printer_key("");
        if let Some(name) = &start {
            from = [&printer_key(name)[..], b"\0"].concat();
        }
        let mut shown: Vec<Shown> = Vec::new();
        // No more than there can be.
        for (_, value) in app.store.range(&from, &prefix_end(b"w/p/"), PRINTERS_MAX)? {
            let printer = Printer::decode(value)?;
            if rights::granted(&printer.grants, &caller).is_none() {
                continue;
            }
            if shown.len() == size {
                let last = shown.last().map_or("", |s| s.printer.name.as_str());
                let token = PageToken::at(list, last.as_bytes());
                return Ok((shown, token));
            }
            shown.push(show(&app, &app.store, &caller, printer)?);
        }
        Ok((shown, String::new()))
    })
    .await
}

/// A machine offers a printer, or says that it is still there.
///
/// # Errors
/// `DEVICE_REQUIRED`, `FIELD_INVALID`, `RESOURCE_EXISTS` if the name is another machine's, `QUEUE_LIMIT` for more printers
/// than are taken.
pub async fn register(app: &App, caller: &Caller, offer: Offer) -> Result<Shown> {
    let device = machine(caller)?.to_string();
    offer.check()?;
    let known = records::load_printer(&app.store, &offer.name)?;
    let same = known.filter(|p| p.device == device && !p.moved && offer.describes(p));
    let printer = match same {
        Some(printer) => printer,
        None => write_offer(app, caller, device.clone(), offer.clone()).await?,
    };
    let presence = Presence { seen_ms: app.clock.now_ms(), condition: offer.condition, reason: offer.reason };
    app.prints.note(&printer.name, &device, presence);
    show(app, &app.store, caller, printer)
}

async fn write_offer(app: &App, caller: &Caller, device: String, offer: Offer) -> Result<Printer> {
    let (actor, now_ms, everyone) = (caller.actor(), app.clock.now_ms(), app.settings.print.everyone);
    let committed = app
        .store
        .transact(move |txn| {
            let mut printer = match records::load_printer(&*txn, &offer.name)? {
                Some(printer) if printer.device != device => return Err(taken(&offer.name)),
                Some(printer) => printer,
                None => {
                    room(txn, &device)?;
                    let detail = format!("device {device}");
                    audit::record(txn, now_ms, &actor, "printer.register", &subject(&offer.name), true, &detail)?;
                    fresh(&offer.name, &device, everyone, now_ms)
                }
            };
            offer.describe(&mut printer);
            printer.moved = false;
            printer.revision = txn.revision();
            printer.save(txn)?;
            Ok(printer)
        })
        .await?;
    Ok(committed.value)
}

fn fresh(name: &str, device: &str, everyone: bool, now_ms: u64) -> Printer {
    Printer {
        uid: Uuid::now_v7(),
        name: name.to_owned(),
        device: device.to_owned(),
        description: String::new(),
        location: String::new(),
        formats: Vec::new(),
        color: false,
        duplex: false,
        grants: if everyone { vec![(Principal::Everyone, Right::Write)] } else { Vec::new() },
        create_ms: now_ms,
        revision: 0,
        moved: false,
    }
}

fn taken(name: &str) -> Error {
    Error::new(Reason::ResourceExists, format!("another machine offers a printer {name:?}"))
        .why_is("names of printers are unique in the office")
        .fix_is("offer it under another name, or have an administrator move or remove the other one")
}

fn room(txn: &Txn<'_>, device: &str) -> Result<()> {
    let all = stored::under(txn, b"w/p/", PRINTERS_MAX)?;
    let full = all.len() >= PRINTERS_MAX;
    let mut own = 0;
    for (_, value) in all {
        own += usize::from(Printer::decode(value)?.device == device);
    }
    if full || own >= PRINTERS_PER_DEVICE {
        return Err(Error::new(
            Reason::QueueLimit,
            "the office, or this machine, offers as many printers as are taken",
        )
        .fix_is("have an administrator remove printers that are not used"));
    }
    Ok(())
}

/// Forgets a printer: jobs that nobody has taken are canceled, those that were taken are to be.
fn drop_printer(txn: &mut Txn<'_>, printer: &Printer, now_ms: u64) -> Result<Vec<Job>> {
    let mut changed = Vec::new();
    for id in jobs::open_of_printer(txn, printer.uid)? {
        let Some(job) = records::load_job(&*txn, id)? else { continue };
        if let Some(next) = transitions::cancel(&job, "the printer was removed", now_ms)? {
            changed.push(records::put_job(txn, Some(&job), next)?);
        }
    }
    txn.delete(printer_key(&printer.name))?;
    Ok(changed)
}

async fn forget(app: &App, caller: &Caller, name: &str, action: &'static str, of: Option<DeviceId>) -> Result<()> {
    let (actor, now_ms, at) = (caller.actor(), app.clock.now_ms(), name.to_owned());
    let committed = app
        .store
        .transact(move |txn| {
            let printer = records::load_printer(&*txn, &at)?;
            let printer = printer.filter(|p| of.is_none_or(|device| p.device == device.to_string()));
            let printer = printer.ok_or_else(|| printer_unknown(&at))?;
            let changed = drop_printer(txn, &printer, now_ms)?;
            audit::record(txn, now_ms, &actor, action, &subject(&at), true, &format!("{} jobs", changed.len()))?;
            Ok(changed)
        })
        .await?;
    app.prints.forget(name);
    for job in committed.value {
        jobs::settle(app, &job).await;
    }
    app.prints.announce();
    Ok(())
}

/// A machine offers a printer no more.
///
/// # Errors
/// `DEVICE_REQUIRED`, `RESOURCE_UNKNOWN` also for another machine's.
pub async fn withdraw(app: &App, caller: &Caller, name: &str) -> Result<()> {
    let device = machine(caller)?;
    forget(app, caller, name, "printer.withdraw", Some(device)).await
}

/// A machine says which printers it offers now: the others that it had offered are withdrawn. Gives their names.
///
/// # Errors
/// `DEVICE_REQUIRED`.
pub async fn withdraw_others(app: &App, caller: &Caller, keep: &[String]) -> Result<Vec<String>> {
    let device = machine(caller)?;
    let own = device.to_string();
    let mut withdrawn = Vec::new();
    for (_, value) in app.store.range(&printer_key(""), &prefix_end(b"w/p/"), PRINTERS_MAX)? {
        let printer = Printer::decode(value)?;
        if printer.device != own || printer.moved || keep.contains(&printer.name) {
            continue;
        }
        match forget(app, caller, &printer.name, "printer.withdraw", Some(device)).await {
            Ok(()) => withdrawn.push(printer.name),
            // It went, or was moved, since the look.
            Err(error) if error.is(Reason::ResourceUnknown) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(withdrawn)
}

/// Forgets a printer with its grants.
///
/// # Errors
/// `ADMIN_REQUIRED`, `RESOURCE_UNKNOWN`.
pub async fn remove(app: &App, caller: &Caller, name: &str) -> Result<()> {
    require_admin(app, caller, "printer.remove", &subject(name)).await?;
    forget(app, caller, name, "printer.remove", None).await
}

/// What was done to a printer: a line for the audit log, and the jobs that changed with it.
type Done = Option<(String, Vec<Job>)>;

/// Changes a printer's record and notes it.
async fn change(
    app: &App,
    caller: &Caller,
    name: &str,
    action: &'static str,
    work: impl Fn(&mut Txn<'_>, &mut Printer) -> Result<Done> + Send + 'static,
) -> Result<Shown> {
    require_admin(app, caller, action, &subject(name)).await?;
    let (actor, now_ms, at) = (caller.actor(), app.clock.now_ms(), name.to_owned());
    let committed = app
        .store
        .transact(move |txn| {
            let mut printer = records::load_printer(&*txn, &at)?.ok_or_else(|| printer_unknown(&at))?;
            let mut jobs = Vec::new();
            if let Some((detail, changed)) = work(txn, &mut printer)? {
                jobs = changed;
                printer.revision = txn.revision();
                printer.save(txn)?;
                audit::record(txn, now_ms, &actor, action, &subject(&at), true, &detail)?;
            }
            Ok((printer, jobs))
        })
        .await?;
    let (printer, changed) = committed.value;
    for job in changed {
        jobs::settle(app, &job).await;
    }
    app.prints.announce();
    show(app, &app.store, caller, printer)
}

/// Gives a right on a printer, or changes it.
///
/// # Errors
/// `ADMIN_REQUIRED`, `RESOURCE_UNKNOWN`, `FIELD_INVALID` for a device or too many grants, and those about principals.
pub async fn grant(app: &App, caller: &Caller, name: &str, to: PrincipalName, right: Right) -> Result<Shown> {
    if matches!(to, PrincipalName::Device(_)) {
        return Err(Error::new(Reason::FieldInvalid, "people print, not machines").with("field", "principal"));
    }
    change(app, caller, name, "printer.grant", move |txn, printer| {
        let principal = to.resolve(&*txn, &printer.grants)?;
        if printer.grants.contains(&(principal.clone(), right)) {
            return Ok(None);
        }
        printer.grants.retain(|(p, _)| *p != principal);
        if printer.grants.len() >= MAX_GRANTS {
            return Err(Error::new(Reason::FieldInvalid, "the printer has too many grants")
                .fix_is("grant to groups instead of single users")
                .with("field", "grant"));
        }
        printer.grants.push((principal, right));
        Ok(Some((format!("{} may {}", to.words(), right.word()), Vec::new())))
    })
    .await
}

/// Takes a principal's right on a printer away.
///
/// # Errors
/// As [`grant`].
pub async fn revoke(app: &App, caller: &Caller, name: &str, from: PrincipalName) -> Result<Shown> {
    change(app, caller, name, "printer.revoke", move |txn, printer| {
        let principal = from.resolve(&*txn, &printer.grants)?;
        let before = printer.grants.len();
        printer.grants.retain(|(p, _)| *p != principal);
        Ok((printer.grants.len() < before).then(|| (from.words(), Vec::new())))
    })
    .await
}

/// From now on another machine has this printer and its jobs.
///
/// # Errors
/// `ADMIN_REQUIRED`, `RESOURCE_UNKNOWN`, `DEVICE_UNKNOWN`.
pub async fn move_to(app: &App, caller: &Caller, name: &str, device: &str) -> Result<Shown> {
    let (to, clock) = (device.to_owned(), app.clock.clone());
    let shown = change(app, caller, name, "printer.move", move |txn, printer| {
        let unknown = || Error::new(Reason::DeviceUnknown, "there is no such device, or it was cut off");
        if to.parse::<DeviceId>().is_err() || !devices::is_member(&*txn, &to)? {
            return Err(unknown());
        }
        if printer.device == to {
            return Ok(None);
        }
        let open = jobs::open_of_printer(txn, printer.uid)?;
        let mut changed = Vec::new();
        for id in &open {
            let Some(job) = records::load_job(&*txn, *id)? else { continue };
            if let Some(next) = transitions::moved(&job, &to, clock.now_ms()) {
                changed.push(records::put_job(txn, Some(&job), next)?);
            }
        }
        let detail = format!("from device {} to device {to}, {} jobs", printer.device, open.len());
        printer.device.clone_from(&to);
        printer.moved = true;
        Ok(Some((detail, changed)))
    })
    .await?;
    app.prints.forget(name);
    app.prints.announce();
    let presence = app.prints.presence(name, &shown.printer.device, app.clock.now_ms());
    Ok(Shown { presence, ..shown })
}
