//! A device shared onward is never announced twice: a printer whose pages would go to a printer of another node is not
//! shared here. Members reach that one by its own name, with its owner's rights, queue and quotas.
//!
//! A printer says what it is: one of ours has our mark in its make and model (`device::printer::dnssd::is_ours`). A queue
//! of CUPS is asked for its own, and for where it prints to, also if that is a name in DNS-SD. For this
//! question any certificate is believed. What does not answer within [`PATIENCE`] cannot be told from a printer that is
//! switched off, and is let through.

use common::error::{Error, Reason, Result};
use device::ipp::client::{Client, Endpoint, Target};
use device::ipp::codes::{Operation, group};
use device::ipp::trust::{anybody, is_secure};
use device::ipp::value::{Message, Value};
use device::printer::dnssd::{is_ours, make_of};
use proto::peer::v1 as wire;
use proto::peer::v1::printer_output::Kind as Output;
use std::time::Duration;
use tokio::time::timeout;

/// How long a printer may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(3);
/// Where the CUPS of this machine listens.
const CUPS: &str = "/run/cups/cups.sock";

/// Refuses an output that is a printer of another node.
///
/// # Errors
/// RESOURCE_REMOTE; RESOURCE_INVALID for an address that is none.
pub(super) async fn refuse(share: &wire::PrinterShare) -> Result<()> {
    let Some(output) = share.output.as_ref().and_then(|o| o.kind.as_ref()) else { return Ok(()) };
    let target = match output {
        Output::Uri(uri) => Target::of_uri(uri)?,
        Output::CupsQueue(queue) => Target::of_cups(queue, Endpoint::Unix(CUPS.into()))?,
        Output::Folder(_) | Output::Group(_) => return Ok(()),
    };
    if leads_to_ours(target).await {
        return Err(Error::new(Reason::ResourceRemote, "that is a printer of another node, which shares it already")
            .fix_is("print on it by its own name: atrium devices"));
    }
    Ok(())
}

/// True if a printer, or what is directly behind it, is one of ours.
async fn leads_to_ours(target: Target) -> bool {
    let Some(said) = attributes(target).await else { return false };
    let ours = |m: &Message| m.group(group::PRINTER).and_then(|g| g.str("printer-make-and-model")).is_some_and(is_ours);
    if ours(&said) {
        return true;
    }
    let Some(behind) = said.group(group::PRINTER).and_then(|g| g.str("device-uri")) else { return false };
    match Target::of_uri(behind) {
        Ok(target) => attributes(target).await.is_some_and(|m| ours(&m)),
        Err(_) => make_of(behind, PATIENCE).await.is_some_and(|make| is_ours(&make)),
    }
}

/// What a printer says about itself; `None` if it says nothing in time.
async fn attributes(target: Target) -> Option<Message> {
    let tls = if is_secure(&target) { Some(anybody().ok()?) } else { None };
    let client = Client::new(target, tls);
    let mut request = Message::request(Operation::GetPrinterAttributes, client.next_id());
    let operation = request.group_mut(group::OPERATION);
    operation.put("printer-uri", Value::uri(&client.target().uri));
    operation.put_all("requested-attributes", ["printer-make-and-model", "device-uri"].map(Value::keyword));
    timeout(PATIENCE, client.ask(&request, None)).await.ok()?.ok()
}
