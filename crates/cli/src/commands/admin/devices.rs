//! `admin invite`, `admin invites`, `admin devices`.

use super::{Context, call};
use crate::args::{DevicesAction, InvitesAction};
use crate::commands::places::PAGE;
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{minute, pad, rfc3339, safe};
use crate::output::schema::{Device, Done, Invite, NewInvite};
use crate::prompt::confirm;
use common::error::Result;
use proto::v1;
use std::time::Duration;

pub(super) async fn invite(c: &Context, office: &Office, lifetime: Duration, purpose: String) -> Result<Exit> {
    let request = v1::CreateInviteRequest { lifetime_seconds: lifetime.as_secs(), purpose };
    let answer = call(office.devices().create_invite(request)).await?;
    let invite =
        NewInvite { code: answer.code, nameplate: answer.nameplate, expire_time: rfc3339(answer.expire_time.as_ref()) };
    // The code is what was asked for, so it is shown even with --quiet, and alone if the output is not a terminal.
    c.out.object(&invite, |i| i.code.clone())?;
    let until = minute(invite.expire_time.as_deref());
    c.out.note(&format!("valid once, until {until}; on the new machine: sudo atrium join SERVER"));
    Ok(Exit::Ok)
}

pub(super) async fn invites(c: &Context, office: &Office, action: InvitesAction) -> Result<Exit> {
    match action {
        InvitesAction::List => {
            let answer = call(office.devices().list_invites(v1::ListInvitesRequest {})).await?;
            let mut list = c.out.list::<Invite>(&[])?;
            for invite in answer.invites {
                let invite = Invite {
                    nameplate: invite.nameplate,
                    purpose: invite.purpose,
                    expire_time: rfc3339(invite.expire_time.as_ref()),
                    creator: invite.creator,
                };
                list.item(&invite, |i| {
                    let until = minute(i.expire_time.as_deref());
                    format!("{:>5}  until {until}  by {}  {}", i.nameplate, safe(&i.creator), safe(&i.purpose))
                })?;
            }
            list.end("no living codes")?;
        }
        InvitesAction::Delete { nameplate } => {
            call(office.devices().delete_invite(v1::DeleteInviteRequest { nameplate: nameplate.clone() })).await?;
            let done = Done::new("invites delete", &nameplate, None, format!("the code {nameplate}-… is dead"));
            c.out.changed(&done, |d| d.message.clone())?;
        }
    }
    Ok(Exit::Ok)
}

pub(super) async fn devices(c: &Context, office: &Office, action: DevicesAction) -> Result<Exit> {
    match action {
        DevicesAction::List => {
            let mut list = c.out.list::<Device>(&[])?;
            let mut token = String::new();
            loop {
                let request = v1::ListDevicesRequest { page_size: PAGE, page_token: token };
                let page = call(office.devices().list_devices(request)).await?;
                for device in &page.devices {
                    list.item(&Device::from(device), |d| {
                        let state = if d.revoked { "  [revoked]" } else { "" };
                        let seen = minute(d.last_seen_time.as_deref());
                        let id = d.id.get(..16).unwrap_or(&d.id);
                        format!("{id}  {}  last seen {seen}{state}", pad(&safe(&d.display_name), 20))
                    })?;
                }
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
            list.end("no devices")?;
        }
        DevicesAction::Revoke { id, yes } => {
            let word = id.get(..8).unwrap_or(&id).to_owned();
            confirm(&c.out, yes.yes, &format!("the machine {word} will be cut off at once"), &word).await?;
            let device = call(office.devices().revoke_device(v1::RevokeDeviceRequest { id })).await?;
            let message =
                format!("{} ({}) is cut off", safe(&device.display_name), device.id.get(..16).unwrap_or(&device.id));
            c.out.changed(&Done::new("devices revoke", &device.id, None, message), |d| d.message.clone())?;
        }
    }
    Ok(Exit::Ok)
}
