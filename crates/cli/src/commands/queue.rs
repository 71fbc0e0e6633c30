//! `queue` and `cache`: what the agent does for its user.

use super::{Context, call};
use crate::args::{Cache, CacheAction, Queue, QueueAction};
use crate::exit::Exit;
use crate::output::format::{bytes, minute, rfc3339, safe};
use crate::output::schema::{Done, QueueItem, typed_path};
use common::error::Result;
use proto::agent::v1 as agent;

pub(super) async fn queue(c: &Context, args: Queue) -> Result<Exit> {
    let mut client = c.agent().await?.client();
    match args.action.unwrap_or(QueueAction::List) {
        QueueAction::List => {
            let answer = call(client.list_queue(agent::ListQueueRequest {})).await?;
            let mut list = c.out.list::<QueueItem>(&[])?;
            for item in answer.items {
                let item = QueueItem {
                    id: item.id,
                    path: typed_path(&item.root, &item.path),
                    size_bytes: item.size_bytes,
                    create_time: rfc3339(item.create_time.as_ref()),
                    attempt_count: item.attempt_count.into(),
                    last_error: item.last_error,
                    held: item.held,
                };
                list.item(&item, |i| {
                    let state = match (i.held, i.last_error.is_empty()) {
                        (true, _) => format!("set aside: {}", safe(&i.last_error)),
                        (false, false) => format!("waits ({} tries): {}", i.attempt_count, safe(&i.last_error)),
                        (false, true) => "waits".to_owned(),
                    };
                    let time = minute(i.create_time.as_deref());
                    format!("{}  {time}  {:>11}  {}  {state}", i.id, bytes(i.size_bytes), safe(&i.path))
                })?;
            }
            list.end("nothing waits to be uploaded")?;
        }
        QueueAction::Cancel { id } => {
            call(client.cancel_upload(agent::CancelUploadRequest { id: id.clone() })).await?;
            let done = Done::new("queue cancel", &id, None, format!("took {id} out of the queue"));
            c.out.changed(&done, |d| d.message.clone())?;
        }
    }
    Ok(Exit::Ok)
}

pub(super) async fn cache(c: &Context, args: Cache) -> Result<Exit> {
    let CacheAction::Clear = args.action;
    let mut client = c.agent().await?.client();
    let answer = call(client.clear_cache(agent::ClearCacheRequest {})).await?;
    let message = format!("emptied the cache: {} freed", bytes(answer.freed_bytes));
    let done = Done::new("cache clear", "cache", Some(answer.freed_bytes.to_string()), message);
    c.out.changed(&done, |d| d.message.clone())?;
    Ok(Exit::Ok)
}
