//! `lock` and `unlock`.

use super::{Context, Several, call, places};
use crate::args::{Lock, Unlock};
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{duration, minute, rfc3339};
use crate::output::schema::Done;
use common::error::Result;
use common::model::EntryPath;
use proto::v1;

pub(super) async fn lock(c: &Context, args: Lock) -> Result<Exit> {
    let office = c.office().await?;
    let mut several = Several::default();
    for path in &args.paths {
        let result = lock_one(c, &office, &path.path, &args).await;
        several.note(&c.out, result)?;
    }
    several.end(&c.out)
}

async fn lock_one(c: &Context, office: &Office, path: &EntryPath, args: &Lock) -> Result<()> {
    let request = v1::LockEntryRequest {
        path: Some(places::wire(path)),
        lifetime_seconds: args.lifetime.as_secs(),
        note: args.note.clone(),
    };
    let entry = call(office.files().lock_entry(request)).await?;
    let until = rfc3339(entry.lock.as_ref().and_then(|l| l.expire_time.as_ref()));
    let shown = match &until {
        Some(time) => format!("until {}", minute(Some(time))),
        None => format!("for {}", duration(args.lifetime)),
    };
    let message = format!("{path} is checked out by you {shown}; only you can change it");
    c.out.changed(&Done::new("lock", path, until, message), |d| d.message.clone())?;
    c.out.hint(&format!("atrium unlock {path}  (gives it back)"));
    Ok(())
}

pub(super) async fn unlock(c: &Context, args: Unlock) -> Result<Exit> {
    let office = c.office().await?;
    let mut several = Several::default();
    for path in &args.paths {
        let request = v1::UnlockEntryRequest { path: Some(places::wire(&path.path)), force: args.force };
        let result = match call(office.files().unlock_entry(request)).await {
            Ok(_) => {
                let done = Done::new("unlock", path, None, format!("{path} is free again"));
                c.out.changed(&done, |d| d.message.clone())
            }
            Err(error) => Err(error),
        };
        several.note(&c.out, result)?;
    }
    several.end(&c.out)
}
