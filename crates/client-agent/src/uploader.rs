//! Works the upload queue off, one upload at a time, oldest first.
//!
//! An upload that fails because the server is away waits. One whose account is not signed in is passed over until it is.
//! One that met another version on the server is kept beside it as a conflict copy: nothing is overwritten, nothing is
//! thrown away. One that cannot succeed by itself is held with its error until its owner signs in again or removes it.

use crate::link::{Link, State};
use crate::people::People;
use crate::queue::{Expected, Item, Queue};
use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::flow::{Expect, NoProgress, PutOptions, put_file};
use common::model::{EntryName, EntryPath, UploadId};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Between looks at a queue that has something in it.
const RETRY: Duration = Duration::from_secs(5);
/// Conflict copies are numbered up to here.
const COPIES_MAX: u32 = 100;

/// Everything that the work needs.
pub struct Uploader {
    /// What is to be done.
    pub queue: Arc<Queue>,
    /// The way to the server.
    pub link: Arc<Link>,
    /// Who is signed in.
    pub people: Arc<People>,
    /// Time, for names of conflict copies.
    pub clock: SharedClock,
}

impl Uploader {
    /// Works until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut state = self.link.state();
        loop {
            let connected = *state.borrow_and_update() == State::Connected;
            if connected {
                tokio::select! {
                    () = self.pass() => {}
                    () = stop.cancelled() => return,
                }
            }
            tokio::select! {
                () = self.queue.changed() => {}
                changed = state.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if connected && self.queue.totals().0 > 0 => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Tries every item once; ends early when the server is away.
    async fn pass(&self) {
        for mut item in self.queue.list() {
            if item.held {
                continue;
            }
            let Some(session) = self.people.get(item.uid) else {
                self.note(&mut item, "waits until its owner signs in on this machine");
                continue;
            };
            item.attempts = item.attempts.saturating_add(1);
            match self.upload(&item, &session.user).await {
                Ok(()) => {
                    tracing::info!(upload = %item.id, "a queued upload has arrived");
                    if let Err(error) = self.queue.remove(&item.id, None) {
                        tracing::error!("a finished upload could not be removed from the queue: {error:?}");
                    }
                }
                Err(error) if error.is_transient() => {
                    self.note(&mut item, error.message());
                    self.link.look_now();
                    return;
                }
                Err(error) if error.is(Reason::SessionInvalid) || error.is(Reason::CredentialsMissing) => {
                    self.note(&mut item, "waits until its owner signs in on this machine");
                }
                Err(error) => {
                    tracing::warn!(upload = %item.id, reason = error.reason(), "a queued upload is held");
                    item.held = true;
                    let text = format!("{}: {}; {}", error.message(), error.why(), error.fix());
                    self.note(&mut item, &text);
                }
            }
        }
    }

    fn note(&self, item: &mut Item, text: &str) {
        if item.last_error != text || item.held {
            item.last_error = text.to_owned();
            if let Err(error) = self.queue.update(item) {
                tracing::error!("a queued upload's state could not be written: {error:?}");
            }
        }
    }

    async fn upload(&self, item: &Item, user: &str) -> Result<()> {
        let path = EntryPath::new(&item.root, &item.path)?;
        let expect = match item.expected {
            Expected::Any => Expect::Any,
            Expected::Absent => Expect::Absent,
            Expected::Version(version) => Expect::Version(version),
        };
        match self.put(item, &path, expect, UploadId(item.id)).await {
            Err(error) if error.is(Reason::VersionStale) || error.is(Reason::EntryExists) => {}
            other => return other,
        }
        // A commit whose answer was lost is recognized by its upload id and is no conflict. This is one.
        for number in 1..=COPIES_MAX {
            let copy = conflict_copy(&path, user, self.clock.now_ms(), number)?;
            match self.put(item, &copy, Expect::Absent, UploadId::generate()).await {
                Err(error) if error.is(Reason::EntryExists) => {}
                Ok(()) => {
                    tracing::warn!(upload = %item.id, "a queued upload met another version; kept as {copy}");
                    return Ok(());
                }
                other => return other,
            }
        }
        Err(Error::new(Reason::EntryExists, "there are 100 conflict copies of this file already"))
    }

    async fn put(&self, item: &Item, path: &EntryPath, expect: Expect, upload: UploadId) -> Result<()> {
        let connection = self.link.person(item.uid)?;
        let options = PutOptions {
            expect,
            make_parents: true,
            mode: Some(item.mode),
            modified: Some(UNIX_EPOCH + Duration::from_millis(item.modify_ms)),
            upload: Some(upload),
            ..PutOptions::default()
        };
        put_file(&connection, &self.queue.data_path(&item.id), path, &options, &NoProgress).await.map(drop)
    }
}

/// "notes (conflict anna 2026-11-22).txt", with a number from the second on.
fn conflict_copy(path: &EntryPath, user: &str, now_ms: u64, number: u32) -> Result<EntryPath> {
    let missing = || Error::new(Reason::RootFixed, "a root cannot be uploaded");
    let name = path.name().ok_or_else(missing)?.as_str();
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && extension.len() <= 16 => (stem, format!(".{extension}")),
        _ => (name, String::new()),
    };
    let count = if number > 1 { format!(" {number}") } else { String::new() };
    let mark = format!(" (conflict {user} {}{count})", date(now_ms));
    // Names have 255 bytes at most.
    let room = 255usize.saturating_sub(mark.len() + extension.len());
    let mut end = stem.len().min(room);
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    let copy = EntryName::new(format!("{}{mark}{extension}", &stem[..end]))?;
    Ok(path.parent().ok_or_else(missing)?.child(copy))
}

/// The day in UTC, "2026-11-22" (civil from days, Howard Hinnant's algorithm).
fn date(now_ms: u64) -> String {
    let days = (now_ms / 86_400_000) as i64 + 719_468;
    let era = days / 146_097;
    let of_era = days - era * 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflict_copies_keep_the_extension_and_fit() {
        let now = 1_795_305_600_000;
        let copy = |text: &str, n| conflict_copy(&EntryPath::parse(text).unwrap(), "anna", now, n).unwrap().to_string();
        assert_eq!(copy("home:a/notes.txt", 1), "home:a/notes (conflict anna 2026-11-22).txt");
        assert_eq!(copy("home:notes", 2), "home:notes (conflict anna 2026-11-22 2)");
        assert_eq!(copy("home:.rc", 1), "home:.rc (conflict anna 2026-11-22)");
        let long = conflict_copy(&EntryPath::parse(&format!("home:{}.txt", "ü".repeat(125))).unwrap(), "anna", now, 1);
        assert!(long.unwrap().name().unwrap().as_str().len() <= 255);
    }

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400_000), "2000-02-29");
        assert_eq!(date(1_709_251_199_999), "2024-02-29");
        assert_eq!(date(1_735_689_599_999), "2024-12-31");
    }
}
