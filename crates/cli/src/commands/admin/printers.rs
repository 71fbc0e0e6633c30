//! `admin printers`.

use super::{Context, call};
use crate::args::PrintersAction;
use crate::args::value::PrintPeriodArg;
use crate::commands::server_print::{self, ServerJobs};
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{bytes, count, limit, pad, safe};
use crate::output::schema::{Done, ServerPrintAccount, ServerPrintQuota};
use crate::prompt::confirm;
use common::error::Result;
use proto::v1;

/// Items of a page.
const PAGE: u32 = 500;
const DAY_MS: u64 = 24 * 3600 * 1000;

pub(super) async fn printers(c: &Context, office: &Office, action: PrintersAction) -> Result<Exit> {
    match action {
        PrintersAction::List => return server_print::list_printers(c, office).await,
        PrintersAction::Jobs { printer, ended } => {
            let which = ServerJobs { printer: printer.unwrap_or_default(), everyone: true, ended };
            return server_print::list_jobs(c, office, which).await;
        }
        PrintersAction::Grant { printer, grant } => {
            let wire = v1::Grant { principal: Some(grant.whom.wire()), right: grant.right as i32 };
            let request = v1::GrantPrinterRequest { printer: printer.clone(), grant: Some(wire) };
            call(office.prints().grant_printer(request)).await?;
            let who = grant.whom.to_string();
            done(c, "printers grant", &printer, format!("{who} may {} {printer}", grant.right.word()))?;
        }
        PrintersAction::Revoke { printer, whom } => {
            let request = v1::RevokePrinterRequest { printer: printer.clone(), principal: Some(whom.wire()) };
            call(office.prints().revoke_printer(request)).await?;
            done(c, "printers revoke", &printer, format!("{whom} has no right of its own on {printer} any more"))?;
        }
        PrintersAction::Remove { printer, yes } => {
            confirm(&c.out, yes.yes, &format!("{printer} is forgotten and its jobs are canceled"), &printer).await?;
            call(office.prints().remove_printer(v1::RemovePrinterRequest { name: printer.clone() })).await?;
            done(c, "printers remove", &printer, format!("{printer} is gone"))?;
        }
        PrintersAction::Move { printer, device, yes } => {
            let what = format!("{printer} and its jobs go to the machine {}", device.get(..8).unwrap_or(&device));
            confirm(&c.out, yes.yes, &what, &printer).await?;
            let request = v1::MovePrinterRequest { name: printer.clone(), device_id: device };
            let moved = call(office.prints().move_printer(request)).await?;
            done(c, "printers move", &printer, format!("{printer} is at {} now", safe(&moved.machine)))?;
        }
        PrintersAction::Quota { user, sheets, size, period } => {
            return set_quota(c, office, user, sheets, size, period).await;
        }
        PrintersAction::Quotas => return quotas(c, office).await,
        PrintersAction::Accounts { days } => return accounts(c, office, days).await,
    }
    Ok(Exit::Ok)
}

fn done(c: &Context, action: &str, subject: &str, message: String) -> Result<()> {
    c.out.changed(&Done::new(action, subject, None, message), |d| d.message.clone())
}

fn whose(user: &str) -> String {
    if user.is_empty() { "everybody else".to_owned() } else { safe(user) }
}

fn quota_line(q: &ServerPrintQuota) -> String {
    let sheets = if q.sheets == 0 { "no limit of sheets".to_owned() } else { count(q.sheets, "sheet", "sheets") };
    format!("{}  {sheets}, {} in a {}", pad(&whose(&q.user), 20), limit(q.size_bytes), q.period)
}

fn quota_of(quota: v1::PrintQuota) -> ServerPrintQuota {
    let period = match quota.period() {
        v1::PrintPeriod::Day => "day",
        v1::PrintPeriod::Week => "week",
        _ => "month",
    };
    ServerPrintQuota { user: quota.user, sheets: quota.sheets, size_bytes: quota.size_bytes, period: period.to_owned() }
}

async fn set_quota(
    c: &Context,
    office: &Office,
    user: Option<String>,
    sheets: u64,
    size_bytes: u64,
    period: PrintPeriodArg,
) -> Result<Exit> {
    let quota = v1::PrintQuota { user: user.unwrap_or_default(), sheets, size_bytes, period: period.wire() as i32 };
    let set = call(office.prints().set_print_quota(v1::SetPrintQuotaRequest { quota: Some(quota) })).await?;
    c.out.changed(&quota_of(set), quota_line)?;
    Ok(Exit::Ok)
}

async fn quotas(c: &Context, office: &Office) -> Result<Exit> {
    let mut list = c.out.list::<ServerPrintQuota>(&[])?;
    let mut token = String::new();
    loop {
        let request = v1::ListPrintQuotasRequest { page_size: PAGE, page_token: token };
        let page = call(office.prints().list_print_quotas(request)).await?;
        for quota in page.quotas {
            list.item(&quota_of(quota), quota_line)?;
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    list.end("no quotas")?;
    Ok(Exit::Ok)
}

async fn accounts(c: &Context, office: &Office, days: u32) -> Result<Exit> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let today = u32::try_from(now.as_millis() as u64 / DAY_MS).unwrap_or(u32::MAX);
    let first_day = today.saturating_sub(days.saturating_sub(1));
    let mut list = c.out.list::<ServerPrintAccount>(&[])?;
    let mut token = String::new();
    loop {
        let request = v1::ListPrintAccountsRequest { first_day, last_day: today, page_size: PAGE, page_token: token };
        let page = call(office.prints().list_print_accounts(request)).await?;
        for account in page.accounts {
            let (user, job_count) = (account.user, account.job_count);
            let (sheets, size_bytes) = (account.sheets, account.size_bytes);
            list.item(&ServerPrintAccount { user, job_count, sheets, size_bytes }, |a| {
                let (jobs, sheets) = (count(a.job_count, "job", "jobs"), count(a.sheets, "sheet", "sheets"));
                format!("{}  {jobs}, {sheets}, {}", pad(&safe(&a.user), 20), bytes(a.size_bytes))
            })?;
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    list.end("nothing was printed")?;
    Ok(Exit::Ok)
}
