//! `watch`: changes as they happen, across restarts of the server, without a gap.

use super::{Context, call};
use crate::args::Watch;
use crate::args::value::RootArg;
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{bytes, hex, rfc3339, safe, second};
use crate::output::schema::{Change, WatchMark, kind_word, typed_path};
use common::error::{Error, Reason, Result};
use common::retry::RetryPolicy;
use common::status::from_status;
use proto::v1;

pub(super) async fn watch(c: &Context, args: Watch) -> Result<Exit> {
    let office = c.office().await?;
    let mut follower = Follower::new(args.roots.iter().map(RootArg::wire).collect(), args.cursor);
    let mut left = args.count;
    loop {
        let event = follower.next(&office, |error| c.out.note(&format!("{error}; trying again"))).await?;
        match event {
            Event::Gap(cursor) => {
                c.out.warn("changes may have been missed: the server's log does not reach back that far; list again");
                mark(c, cursor, true)?;
            }
            Event::Changes(response) => {
                for change in &response.changes {
                    if left == Some(0) {
                        return Ok(Exit::Ok);
                    }
                    c.out.object(&shown(change, response.cursor), line)?;
                    left = left.map(|n| n - 1);
                }
                mark(c, response.cursor, false)?;
            }
        }
        if left == Some(0) {
            return Ok(Exit::Ok);
        }
    }
}

fn mark(c: &Context, cursor: u64, gap: bool) -> Result<()> {
    if c.out.json { c.out.json(&WatchMark { cursor, gap }) } else { Ok(()) }
}

/// What a follower has to tell.
pub(super) enum Event {
    /// Changes, or a mark of progress.
    Changes(v1::WatchResponse),
    /// Changes before this cursor may have been missed.
    Gap(u64),
}

/// Follows the change stream and takes it up again wherever it breaks off.
pub(super) struct Follower {
    roots: Vec<String>,
    cursor: u64,
    stream: Option<tonic::Streaming<v1::WatchResponse>>,
    /// What was said last; the same trouble is told once.
    trouble: String,
}

impl Follower {
    /// Of these roots, after this cursor; 0 is from now on.
    pub(super) fn new(roots: Vec<String>, cursor: u64) -> Self {
        Self { roots, cursor, stream: None, trouble: String::new() }
    }

    /// The next event. Waits as long as it takes: a server that is away is asked again, less and less often.
    pub(super) async fn next(&mut self, office: &Office, on_trouble: impl Fn(&Error)) -> Result<Event> {
        let mut backoff = RetryPolicy::default().delays();
        loop {
            let error = match self.try_next(office).await {
                Ok(response) => {
                    self.cursor = response.cursor;
                    self.trouble.clear();
                    return Ok(Event::Changes(response));
                }
                Err(error) => error,
            };
            self.stream = None;
            if error.is(Reason::CursorTooOld) {
                self.cursor = error.detail("oldest_cursor").and_then(|c| c.parse().ok()).unwrap_or(0);
                return Ok(Event::Gap(self.cursor));
            }
            if !error.is_transient() {
                return Err(error);
            }
            if self.trouble != error.message() {
                error.message().clone_into(&mut self.trouble);
                on_trouble(&error);
            }
            match backoff.after(&error) {
                Some(delay) => tokio::time::sleep(delay).await,
                // The policy's tries are used up; watching has no end of its own, so it goes on at the slowest pace.
                None => tokio::time::sleep(std::time::Duration::from_secs(10)).await,
            }
        }
    }

    async fn try_next(&mut self, office: &Office) -> Result<v1::WatchResponse> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = v1::WatchRequest { roots: self.roots.clone(), cursor: self.cursor };
                self.stream.insert(call(office.watch().watch(request)).await?)
            }
        };
        match stream.message().await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(Error::new(Reason::ShuttingDown, "the server ended the stream")),
            Err(status) => Err(from_status(&status)),
        }
    }
}

fn shown(change: &v1::Change, cursor: u64) -> Change {
    use v1::change::Kind;
    let event = match Kind::try_from(change.kind) {
        Ok(Kind::Created) => "created",
        Ok(Kind::Modified) => "modified",
        Ok(Kind::Moved) => "moved",
        Ok(Kind::Deleted) => "deleted",
        Ok(Kind::Lock) => "lock",
        Ok(Kind::Rights) => "rights",
        Ok(Kind::Unspecified) | Err(_) => "unknown",
    };
    let typed = |p: &v1::Path| typed_path(&p.root, &p.path);
    Change {
        cursor,
        event: event.to_owned(),
        path: change.path.as_ref().map(typed).unwrap_or_default(),
        previous_path: change.previous_path.as_ref().filter(|p| !p.root.is_empty()).map(typed),
        uid: change.uid.clone(),
        r#type: kind_word(change.entry_kind),
        version: change.version,
        size_bytes: change.size_bytes,
        user: change.user.clone(),
        time: rfc3339(change.time.as_ref()),
        manifest_digest: hex(&change.manifest_digest),
    }
}

fn line(change: &Change) -> String {
    let time = second(change.time.as_deref());
    let user = if change.user.is_empty() { "someone" } else { &change.user };
    let (user, path) = (safe(user), safe(&change.path));
    match change.event.as_str() {
        "moved" => format!("{time} {user} moved {} to {path}", safe(change.previous_path.as_deref().unwrap_or("?"))),
        "lock" => format!("{time} {user} checked out or gave back {path}"),
        "rights" => format!("{time} {user} changed the rights of {path}"),
        event if change.r#type == "file" && event != "deleted" => {
            format!("{time} {user} {event} {path} (version {}, {})", change.version, bytes(change.size_bytes))
        }
        event => format!("{time} {user} {event} {path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_like_sentences_and_new_kinds_do_no_harm() {
        let mut change = v1::Change {
            kind: v1::change::Kind::Modified as i32,
            path: Some(v1::Path { root: "public/plans".into(), path: "x.pdf".into() }),
            entry_kind: v1::EntryKind::File as i32,
            version: 3,
            size_bytes: 2048,
            user: "anna".into(),
            time: Some(crate::output::format::timestamp_ms(1_795_374_245_000)),
            ..Default::default()
        };
        let (_, said) = line(&shown(&change, 7)).split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert_eq!(said, "anna modified public:plans/x.pdf (version 3, 2.0 KiB)");
        change.kind = 99;
        assert_eq!(shown(&change, 7).event, "unknown");
        change.kind = v1::change::Kind::Moved as i32;
        change.previous_path = Some(v1::Path { root: "home".into(), path: "y\u{1b}[2J".into() });
        assert!(line(&shown(&change, 7)).ends_with(" anna moved home:y?[2J to public:plans/x.pdf"));
    }
}
