//! Which certificate of a printer that is reached by `ipps:` is believed. See `device::ipp::trust`; here is what a person says
//! of it, and what is kept with the share.

use super::Devices;
use super::book::Entry;
use common::error::{Error, Reason, Result};
use device::ipp::Trust;
use device::ipp::client::{Client, Target};
use device::ipp::trust::{first_use, is_secure, peek};
use device::model::Kind;
use device::printer::output::remote::UNTRUSTED;
use proto::peer::v1 as wire;
use proto::peer::v1::printer_output::Kind as Output;
use proto::peer::v1::share_device_request::Kind as Share;

/// Look at the printer anew.
const NEW: &str = "new";

/// What is kept with a share; the system's authorities if it is of before there was this.
///
/// # Errors
/// CERTIFICATE_INVALID.
pub(super) fn of_share(share: &wire::PrinterShare) -> Result<Trust> {
    if share.trust.is_empty() { Ok(Trust::System) } else { share.trust.parse() }
}

fn secure(share: &wire::PrinterShare) -> Result<Option<Target>> {
    match share.output.as_ref().and_then(|o| o.kind.as_ref()) {
        Some(Output::Uri(uri)) => Ok(Some(Target::of_uri(uri)?).filter(is_secure)),
        _ => Ok(None),
    }
}

fn printer(entry: &Entry) -> Option<&wire::PrinterShare> {
    match &entry.share.kind {
        Some(Share::Printer(printer)) => Some(printer),
        _ => None,
    }
}

/// Puts into a share which certificate is believed from now on. What is known of the same output stays, unless something else
/// is said.
///
/// # Errors
/// CERTIFICATE_INVALID; DEVICE_AWAY if the printer has to be looked at and does not answer; PRINTER_UNTRUSTED if it shows
/// another certificate than the one that is named.
pub(super) async fn settle(entry: &mut Entry, before: Option<&Entry>) -> Result<()> {
    let before = before.and_then(printer).cloned();
    let Some(Share::Printer(share)) = &mut entry.share.kind else { return Ok(()) };
    let Some(target) = secure(share)? else {
        share.trust.clear();
        return Ok(());
    };
    if let Some(before) = before.filter(|b| b.output == share.output && !b.trust.is_empty()) {
        if share.trust.is_empty() {
            share.trust.clone_from(&before.trust);
        }
        if share.trust == before.trust {
            return Ok(());
        }
    }
    let learned = match share.trust.as_str() {
        "" => first_use(&target).await,
        NEW => peek(&target).await.map(|certificate| Trust::pin(&certificate)),
        named => {
            let trust: Trust = named.parse()?;
            match Client::new(target, Some(trust.config()?)).handshake().await {
                Err(error) if error.is(Reason::PrinterUntrusted) => Err(error),
                // What is away now is believed when it is there.
                _ => Ok(trust),
            }
        }
    };
    let learned = learned.map_err(|error| match error.is(Reason::DeviceAway) {
        true => error
            .why_is("its certificate has to be looked at once, and it does not answer by TLS")
            .fix_is("switch it on and share it again, or say which certificate it has: --trust FILE"),
        false => error,
    })?;
    share.trust = learned.to_string();
    Ok(())
}

impl Devices {
    /// That nothing is sent to a printer of this machine because of its certificate.
    pub(super) fn untrusted(&self, entry: &Entry) -> Option<wire::NodeProblem> {
        let view = (entry.kind == Kind::Printer).then(|| self.0.printers.get(&entry.name).ok()).flatten()?;
        let stands = view.reasons.iter().any(|r| r == UNTRUSTED);
        let error = Error::new(Reason::PrinterUntrusted, "the printer's certificate is not the one that is trusted");
        stands.then(|| super::remote::own_problem(&entry.local_name(), &error))
    }
}
