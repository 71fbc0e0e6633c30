//! What a job may become, as plain functions of the job and what happens. `None` means that it stays as it is.

use super::Job;
use super::records::{self, JobState};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::Guess;
use common::model::pin::{pin_locked, pin_wrong};
use uuid::Uuid;

/// Why a job ended that its person did not want any more.
pub const CANCELED: &str = "canceled on request";

fn ended(job: &Job) -> Error {
    let state = records::state(job);
    Error::new(Reason::PrintJobEnded, format!("the job is {} already", state.word())).with("state", state.word())
}

fn end(job: &Job, state: JobState, reason: &str, now_ms: u64) -> Job {
    Job {
        state: state as u32,
        state_reason: reason.to_owned(),
        end_ms: now_ms.max(1),
        cancel_requested: false,
        pin: None,
        ..job.clone()
    }
}

/// Somebody does not want it any more. One that the printer's machine has is canceled there.
///
/// # Errors
/// `PRINT_JOB_ENDED` if it ended another way.
pub fn cancel(job: &Job, reason: &str, now_ms: u64) -> Result<Option<Job>> {
    match records::state(job) {
        JobState::Canceled => Ok(None),
        state if state.is_end() => Err(ended(job)),
        state if state.is_taken() && job.cancel_requested => Ok(None),
        state if state.is_taken() => Ok(Some(Job { cancel_requested: true, ..job.clone() })),
        _ => Ok(Some(end(job, JobState::Canceled, reason, now_ms))),
    }
}

/// It is not to be printed until it is released.
///
/// # Errors
/// `PRINT_JOB_ENDED`, `PRINT_JOB_TAKEN`.
pub fn hold(job: &Job) -> Result<Option<Job>> {
    match records::state(job) {
        JobState::Held => Ok(None),
        JobState::Pending => Ok(Some(Job { state: JobState::Held as u32, ..job.clone() })),
        state if state.is_end() => Err(ended(job)),
        _ => Err(Error::new(Reason::PrintJobTaken, "the printer's machine has the job already")),
    }
}

/// It is to be printed after all, if this is its PIN. With `PIN_WRONG`, the job that comes back counts the guess.
///
/// # Errors
/// `PRINT_JOB_ENDED`.
pub fn release(job: &Job, pin: Option<&str>, now_ms: u64) -> Result<(Option<Job>, Option<Error>)> {
    match records::state(job) {
        JobState::Held => {}
        state if state.is_end() => return Err(ended(job)),
        _ => return Ok((None, None)),
    }
    let refused = match records::pin(job) {
        None => None,
        Some(mut kept) => match kept.guess(pin, now_ms) {
            Guess::Right => None,
            Guess::Wrong(left) => Some((kept, pin_wrong(left))),
            Guess::Locked(until) => Some((kept, pin_locked(until))),
        },
    };
    Ok(match refused {
        None => (Some(Job { state: JobState::Pending as u32, pin: None, ..job.clone() }), None),
        Some((kept, error)) => {
            let counted = Job { pin: Some(records::encode_pin(&kept)), ..job.clone() };
            ((counted != *job).then_some(counted), Some(error))
        }
    })
}

/// It is to be earlier or later than others.
///
/// # Errors
/// `PRINT_JOB_ENDED`.
pub fn prioritize(job: &Job, priority: u32) -> Result<Option<Job>> {
    match records::state(job) {
        state if state.is_end() => Err(ended(job)),
        _ => Ok((records::priority(job) != priority).then(|| Job { priority, ..job.clone() })),
    }
}

/// A spool takes it. The spool that has it already gets it again under the same attempt. For any other one the attempt
/// rises: what the earlier spool says no longer counts, but it may have printed, so the job says that it may be on paper
/// twice. A job that is held or has ended is taken by nobody; the caller sees it from the job.
pub fn claim(job: &Job, spool: Uuid, now_ms: u64) -> Option<Job> {
    let state = records::state(job);
    if state.is_end() || state == JobState::Held {
        return None;
    }
    let same = job.spool[..] == spool.as_bytes()[..];
    if same && state.is_taken() {
        return None;
    }
    if job.cancel_requested && !same {
        return Some(end(job, JobState::Canceled, "canceled on request; the machine that had it lost it", now_ms));
    }
    let attempt = if same { job.attempt } else { job.attempt.saturating_add(1) };
    Some(Job {
        state: JobState::Taken as u32,
        state_reason: String::new(),
        spool: Bytes::copy_from_slice(spool.as_bytes()),
        attempt,
        may_be_printed_twice: job.may_be_printed_twice || attempt > 1,
        ..job.clone()
    })
}

/// The printer's machine says how it goes.
///
/// # Errors
/// `PRINT_ATTEMPT_STALE` if the job was given to another spool since, or to nobody yet; `PRINT_JOB_ENDED` if it ended
/// another way; `FIELD_INVALID` for a state that a machine cannot say.
pub fn update(job: &Job, attempt: u32, state: JobState, reason: &str, sheets: u64, now_ms: u64) -> Result<Option<Job>> {
    if !state.is_end() && !state.is_taken() {
        return Err(
            Error::new(Reason::FieldInvalid, "a printer's machine cannot say this of a job").with("field", "state")
        );
    }
    if attempt == 0 || attempt != job.attempt {
        return Err(Error::new(Reason::PrintAttemptStale, format!("attempt {attempt} is not the present one"))
            .with("attempt", job.attempt));
    }
    let present = records::state(job);
    if present.is_end() {
        return if present == state { Ok(None) } else { Err(ended(job)) };
    }
    let sheets = sheets.max(job.sheets);
    let next = match state.is_end() {
        true => Job { sheets, ..end(job, state, reason, now_ms) },
        false => Job { state: state as u32, state_reason: reason.to_owned(), sheets, ..job.clone() },
    };
    Ok((next != *job).then_some(next))
}

/// The server itself gives it up.
pub fn abort(job: &Job, reason: &str, now_ms: u64) -> Option<Job> {
    (!records::state(job).is_end()).then(|| end(job, JobState::Aborted, reason, now_ms))
}

/// Another machine is to print it. One that the old machine had taken is to be taken anew.
pub fn moved(job: &Job, device: &str, now_ms: u64) -> Option<Job> {
    let state = records::state(job);
    if state.is_end() || job.device == device {
        return None;
    }
    if job.cancel_requested {
        return Some(Job { device: device.to_owned(), ..end(job, JobState::Canceled, CANCELED, now_ms) });
    }
    let state = if state == JobState::Held { state } else { JobState::Pending };
    Some(Job { device: device.to_owned(), state: state as u32, state_reason: String::new(), ..job.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::model::Pin;
    use common::model::pin::PIN_LOCK_MS;
    use proptest::prelude::*;

    fn job() -> Job {
        Job {
            state: JobState::Pending as u32,
            device: "a".into(),
            size_bytes: 10,
            reserved_sheets: 1,
            ..Job::default()
        }
    }

    fn spool(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn the_same_spool_keeps_its_attempt_and_another_one_gets_the_next() {
        let first = claim(&job(), spool(1), 5).expect("taken");
        assert_eq!((first.attempt, first.may_be_printed_twice), (1, false));
        assert_eq!(claim(&first, spool(1), 6), None);
        let printing = update(&first, 1, JobState::Processing, "", 1, 7).expect("allowed").expect("changed");
        let second = claim(&printing, spool(2), 8).expect("taken again");
        assert_eq!((second.attempt, second.may_be_printed_twice, records::state(&second)), (2, true, JobState::Taken));
        let stale = update(&second, 1, JobState::Completed, "", 3, 9).expect_err("refused");
        assert!(stale.is(Reason::PrintAttemptStale));
        assert_eq!(stale.detail("attempt"), Some("2"));
        let done = update(&second, 2, JobState::Completed, "", 3, 9).expect("allowed").expect("changed");
        assert_eq!((records::state(&done), done.sheets, done.end_ms), (JobState::Completed, 3, 9));
        assert_eq!(update(&done, 2, JobState::Completed, "", 3, 10).expect("repeated"), None);
        assert!(update(&done, 2, JobState::Aborted, "", 3, 10).expect_err("refused").is(Reason::PrintJobEnded));
    }

    #[test]
    fn a_job_is_canceled_at_once_or_where_it_is() {
        let canceled = cancel(&job(), CANCELED, 5).expect("allowed").expect("changed");
        assert_eq!((records::state(&canceled), canceled.end_ms), (JobState::Canceled, 5));
        assert_eq!(cancel(&canceled, CANCELED, 6).expect("repeated"), None);
        let taken = claim(&job(), spool(1), 5).expect("taken");
        let asked = cancel(&taken, CANCELED, 6).expect("allowed").expect("changed");
        assert!(asked.cancel_requested && records::state(&asked) == JobState::Taken);
        assert_eq!(cancel(&asked, CANCELED, 6).expect("repeated"), None);
        // Too late is too late.
        let done = update(&asked, 1, JobState::Completed, "", 1, 7).expect("allowed").expect("changed");
        assert!(!done.cancel_requested);
        assert!(cancel(&done, CANCELED, 8).expect_err("refused").is(Reason::PrintJobEnded));
        // A machine that lost it cannot be asked any more.
        let lost = claim(&asked, spool(2), 9).expect("changed");
        assert_eq!((records::state(&lost), lost.attempt), (JobState::Canceled, 1));
    }

    #[test]
    fn only_a_job_that_nobody_took_is_held() {
        let held = hold(&job()).expect("allowed").expect("changed");
        assert_eq!((hold(&held).expect("repeated"), claim(&held, spool(1), 1)), (None, None));
        let released = release(&held, None, 1).expect("allowed").0.expect("changed");
        assert_eq!(release(&released, None, 1).expect("repeated").0, None);
        let taken = claim(&released, spool(1), 1).expect("taken");
        assert!(hold(&taken).expect_err("refused").is(Reason::PrintJobTaken));
        let ended = abort(&taken, "too old", 3).expect("changed");
        assert!(hold(&ended).is_err_and(|e| e.is(Reason::PrintJobEnded)));
        assert!(release(&ended, None, 4).is_err_and(|e| e.is(Reason::PrintJobEnded)));
        assert_eq!(abort(&ended, "again", 4), None);
    }

    #[test]
    fn a_job_with_a_pin_is_released_by_it_alone() {
        let pin = Some(records::encode_pin(&Pin::new("0815", [3; 16])));
        let held = Job { state: JobState::Held as u32, pin, ..job() };
        let (same, refused) = release(&held, None, 5).expect("allowed");
        assert!(same.is_none() && refused.expect("refused").is(Reason::PinWrong), "saying nothing is no guess");
        let mut guessed = held.clone();
        for _ in 0..5 {
            let (counted, refused) = release(&guessed, Some("1111"), 6).expect("allowed");
            assert!(refused.expect("refused").is(Reason::PinWrong));
            guessed = counted.expect("counted");
            assert_eq!((records::state(&guessed), claim(&guessed, spool(1), 6)), (JobState::Held, None));
        }
        let (_, locked) = release(&guessed, Some("0815"), 7).expect("allowed");
        assert!(locked.expect("refused").detail("locked_until_ms").is_some());
        let (released, refused) = release(&guessed, Some("0815"), 6 + PIN_LOCK_MS).expect("allowed");
        let released = released.expect("changed");
        assert!(refused.is_none() && released.pin.is_none() && records::state(&released) == JobState::Pending);
        let canceled = cancel(&held, CANCELED, 5).expect("allowed").expect("changed");
        assert!(canceled.pin.is_none(), "a PIN is not kept longer than it is needed");
    }

    #[test]
    fn a_priority_is_changed_until_the_end() {
        assert_eq!(prioritize(&job(), records::PRIORITY).expect("allowed"), None);
        let first = prioritize(&job(), 90).expect("allowed").expect("changed");
        assert_eq!((records::priority(&first), prioritize(&first, 90).expect("repeated")), (90, None));
        let taken = claim(&first, spool(1), 1).expect("taken");
        assert_eq!(prioritize(&taken, 10).expect("allowed").expect("changed").priority, 10);
        let ended = abort(&taken, "", 3).expect("changed");
        assert!(prioritize(&ended, 10).expect_err("refused").is(Reason::PrintJobEnded));
    }

    #[test]
    fn a_moved_job_is_taken_anew_and_going_back_is_no_new_attempt() {
        let taken = claim(&job(), spool(1), 1).expect("taken");
        let away = moved(&taken, "b", 2).expect("changed");
        assert_eq!((records::state(&away), away.device.as_str(), away.attempt), (JobState::Pending, "b", 1));
        let back = moved(&away, "a", 3).expect("changed");
        assert_eq!(claim(&back, spool(1), 4).expect("taken").attempt, 1, "the same spool still has it");
        let other = claim(&away, spool(2), 4).expect("taken");
        assert!(other.attempt == 2 && other.may_be_printed_twice);
        assert_eq!(moved(&other, "b", 5), None);
        let asked = cancel(&other, CANCELED, 6).expect("allowed").expect("changed");
        assert_eq!(records::state(&moved(&asked, "a", 7).expect("changed")), JobState::Canceled);
    }

    #[test]
    fn what_was_not_printed_costs_nothing() {
        let waiting = Job { reserved_sheets: 4, ..job() };
        let charge = |job: &Job| (records::charge(job).jobs, records::charge(job).sheets, records::charge(job).bytes);
        assert_eq!(charge(&waiting), (1, 4, 10));
        assert_eq!(charge(&abort(&waiting, "", 1).expect("changed")), (0, 0, 0));
        let taken = claim(&waiting, spool(1), 1).expect("taken");
        let done = |sheets| update(&taken, 1, JobState::Completed, "", sheets, 2).expect("allowed").expect("changed");
        assert_eq!((charge(&done(9)), charge(&done(0)), charge(&done(2))), ((1, 9, 10), (1, 4, 10), (1, 2, 10)));
        let part = update(&taken, 1, JobState::Canceled, "", 2, 2).expect("allowed").expect("changed");
        assert_eq!(charge(&part), (1, 2, 10));
    }

    #[derive(Clone, Debug)]
    enum Event {
        Cancel,
        Hold,
        Release,
        Claim(u128),
        Update(u32, u32, u64),
        Abort,
        Move(bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Cancel),
            Just(Event::Hold),
            Just(Event::Release),
            (1..4u128).prop_map(Event::Claim),
            (0..4u32, 0..10u32, 0..5u64).prop_map(|(a, s, n)| Event::Update(a, s, n)),
            Just(Event::Abort),
            any::<bool>().prop_map(Event::Move),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_an_end_is_final_and_attempts_only_rise(events in proptest::collection::vec(event(), 0..40)) {
            let mut job = job();
            for (now, event) in events.into_iter().enumerate() {
                let now = now as u64 + 1;
                let next = match event {
                    Event::Cancel => cancel(&job, CANCELED, now).unwrap_or(None),
                    Event::Hold => hold(&job).unwrap_or(None),
                    Event::Release => release(&job, None, now).ok().and_then(|(next, _)| next),
                    Event::Claim(n) => claim(&job, spool(n), now),
                    Event::Update(attempt, state, sheets) => {
                        let state = JobState::from_number(state).unwrap_or(JobState::Pending);
                        let next = update(&job, attempt, state, "", sheets, now).unwrap_or(None);
                        prop_assert!(next.is_none() || attempt == job.attempt);
                        next
                    }
                    Event::Abort => abort(&job, "", now),
                    Event::Move(there) => moved(&job, if there { "b" } else { "a" }, now),
                };
                let Some(next) = next else { continue };
                prop_assert!(!records::state(&job).is_end(), "an end is final");
                prop_assert!(next.attempt >= job.attempt && next.sheets >= job.sheets);
                prop_assert!(next.attempt == job.attempt || next.spool != job.spool);
                prop_assert_eq!(next.may_be_printed_twice, next.attempt > 1);
                prop_assert_eq!(next.end_ms > 0, records::state(&next).is_end());
                prop_assert!(!records::state(&next).is_taken() || next.attempt > 0);
                prop_assert!(!next.cancel_requested || records::state(&next).is_taken());
                job = next;
            }
        }
    }
}
