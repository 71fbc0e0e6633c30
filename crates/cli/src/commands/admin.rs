//! `admin`: running an office.

mod audit;
mod devices;
mod directories;
mod groups;
mod printers;
mod upkeep;
mod users;

use super::{Context, call, request_id};
use crate::args::{Admin, AdminArea};
use crate::exit::Exit;
use common::error::Result;

pub(super) async fn admin(c: &Context, args: Admin) -> Result<Exit> {
    if let AdminArea::Restore { from, to, arguments } = args.area {
        return upkeep::restore(c, &from, &to, &arguments);
    }
    let office = c.admin_office().await?;
    match args.area {
        AdminArea::Users { action } => users::users(c, &office, action).await,
        AdminArea::Groups { action } => groups::groups(c, &office, action).await,
        AdminArea::Quota { target, limit } => directories::quota(c, &office, target, limit).await,
        AdminArea::Directories { action } => directories::directories(c, &office, action).await,
        AdminArea::Invite { lifetime, purpose } => devices::invite(c, &office, lifetime, purpose).await,
        AdminArea::Invites { action } => devices::invites(c, &office, action).await,
        AdminArea::Devices { action } => devices::devices(c, &office, action).await,
        AdminArea::Printers { action } => printers::printers(c, &office, action).await,
        AdminArea::Audit { action } => audit::audit(c, &office, action).await,
        AdminArea::Backup { directory } => upkeep::backup(c, &office, &directory).await,
        AdminArea::Scrub { rate } => upkeep::scrub(c, &office, rate).await,
        AdminArea::Reclaim => upkeep::reclaim(c, &office).await,
        AdminArea::Status => upkeep::status(c, &office).await,
        // Done above, without a server.
        AdminArea::Restore { .. } => Ok(Exit::Ok),
    }
}
