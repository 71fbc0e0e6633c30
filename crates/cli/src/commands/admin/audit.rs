//! `admin audit`.

use super::{Context, call};
use crate::args::AuditAction;
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{count, hex, pad, rfc3339, safe};
use crate::output::schema::{AuditCheck, AuditRecord};
use common::error::{Error, Reason, Result};
use proto::v1;

pub(super) async fn audit(c: &Context, office: &Office, action: AuditAction) -> Result<Exit> {
    match action {
        AuditAction::List { actor, action, newest, limit } => list(c, office, &actor, &action, newest, limit).await,
        AuditAction::Verify => verify(c, office).await,
    }
}

async fn list(
    c: &Context,
    office: &Office,
    actor: &str,
    action: &str,
    newest_first: bool,
    limit: Option<u64>,
) -> Result<Exit> {
    let mut list = c.out.list::<AuditRecord>(&[])?;
    let mut token = String::new();
    let mut left = limit.unwrap_or(u64::MAX);
    'pages: loop {
        let request = v1::ListAuditRequest {
            page_size: u32::try_from(left.clamp(1, 1000)).unwrap_or(1000),
            page_token: token,
            actor: actor.to_owned(),
            action: action.to_owned(),
            newest_first,
        };
        let page = call(office.admin().list_audit(request)).await?;
        for record in page.records {
            if left == 0 {
                break 'pages;
            }
            left -= 1;
            let record = AuditRecord {
                sequence: record.sequence,
                time: rfc3339(record.time.as_ref()),
                actor: record.actor,
                action: record.action,
                subject: record.subject,
                success: record.success,
                detail: record.detail,
                hash: hex(&record.hash),
            };
            list.item(&record, |r| {
                let result = if r.success { "ok     " } else { "refused" };
                let time = r.time.as_deref().unwrap_or("-");
                let (actor, action) = (pad(&safe(&r.actor), 16), pad(&safe(&r.action), 16));
                format!(
                    "{:>8}  {time}  {result}  {actor}  {action}  {}  {}",
                    r.sequence,
                    safe(&r.subject),
                    safe(&r.detail)
                )
                .trim_end()
                .to_owned()
            })?;
        }
        token = page.next_page_token;
        if token.is_empty() || left == 0 {
            break;
        }
    }
    list.end("no records")?;
    Ok(Exit::Ok)
}

async fn verify(c: &Context, office: &Office) -> Result<Exit> {
    let answer = call(office.admin().verify_audit(v1::VerifyAuditRequest {})).await?;
    let check = AuditCheck {
        record_count: answer.record_count,
        intact: answer.intact,
        first_bad_sequence: answer.first_bad_sequence,
        head: hex(&answer.head),
    };
    c.out.object(&check, |check| {
        let records = count(check.record_count, "record", "records");
        if check.intact { format!("{records}, all intact; head {}", check.head) } else { format!("{records} checked") }
    })?;
    if check.intact {
        return Ok(Exit::Ok);
    }
    Err(Error::new(
        Reason::StoreCorrupt,
        format!("the audit log is not intact from record {}", check.first_bad_sequence),
    )
    .why_is("a record was changed or taken out, or the database is damaged")
    .fix_is("keep the data as it is, compare it with a backup, and find out who had access to the server"))
}
