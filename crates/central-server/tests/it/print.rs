//! Print queues: what the application decides.

use crate::fixture::{TestOffice, fresh, local};
use bytes::Bytes;
use central_server::app::answers::{Answer, Once, RequestKey};
use central_server::app::caller::Caller;
use central_server::app::directories::PrincipalName;
use central_server::app::print::accounts::{self, Period, Quota};
use central_server::app::print::jobs::{self, Query};
use central_server::app::print::owner::{self, Report, Watcher};
use central_server::app::print::printers::{self, Offer, Shown};
use central_server::app::print::submit::{self, Begun, NewJob};
use central_server::app::print::{Condition, Job, JobState, PrintState, records as print, upkeep};
use central_server::app::{App, records};
use central_server::settings::Settings;
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Pin, Right, Role};
use common::settings::ByteSize;
use common::store::prefix_end;
use proptest::prelude::*;
use prost::Message;
use proto::record::v1 as record;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

const LASER: &str = "laser";

/// An office with people, two machines and a printer: anna prints on "laser", bert manages it, carl sees it, gast does not.
struct Shop {
    office: TestOffice,
    app: App,
    anna: Caller,
    bert: Caller,
    carl: Caller,
    gast: Caller,
    chef: Caller,
    pc: Caller,
    other: Caller,
}

impl Shop {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let office = TestOffice::with(change);
        for (name, role) in [
            ("anna", Role::Member),
            ("bert", Role::Member),
            ("carl", Role::Member),
            ("gast", Role::Guest),
            ("chef", Role::Admin),
        ] {
            office.user(name, role).await;
        }
        let app = office.app.clone();
        let (pc, other) = (device(&app, 1).await, device(&app, 2).await);
        printers::register(&app, &pc, offer(LASER)).await.unwrap();
        for (name, right) in [("anna", Right::Write), ("bert", Right::Manage), ("carl", Right::See)] {
            printers::grant(&app, &local(), LASER, PrincipalName::User(name.into()), right).await.unwrap();
        }
        let (anna, bert, carl) =
            (office.caller("anna").await, office.caller("bert").await, office.caller("carl").await);
        let (gast, chef) = (office.caller("gast").await, office.caller("chef").await);
        Self { office, app, anna, bert, carl, gast, chef, pc, other }
    }

    async fn print(&self, data: &[u8]) -> Job {
        submit(&self.app, &self.anna, new_job(LASER), data, Once::always()).await.map(fresh).unwrap()
    }

    fn documents(&self) -> usize {
        documents(&self.app)
    }

    fn job(&self, job: &Job) -> Job {
        print::load_job(&self.app.store, id(job)).unwrap().unwrap()
    }

    async fn report(&self, job: &Job, attempt: u32, state: JobState, sheets: u64) -> Result<Job> {
        let report = Report { attempt, state, reason: String::new(), sheets };
        owner::update(&self.app, &self.pc, id(job), report).await
    }
}

async fn device(app: &App, n: u8) -> Caller {
    let device = DeviceId([n; 32]);
    let record = record::Device { id: device.to_string(), display_name: format!("pc{n}"), ..Default::default() };
    let key = records::device_key(&record.id);
    app.store.transact(move |txn| records::save(txn, &key, &record)).await.unwrap();
    Caller { device: Some(device), ..Caller::default() }
}

fn offer(name: &str) -> Offer {
    Offer {
        name: name.into(),
        description: "by the window".into(),
        location: "2.14".into(),
        formats: vec!["application/pdf".into()],
        color: true,
        duplex: false,
        condition: Condition::Idle,
        reason: String::new(),
    }
}

fn new_job(printer: &str) -> NewJob {
    NewJob {
        printer: printer.into(),
        display_name: "a.pdf".into(),
        format: String::new(),
        options: Bytes::new(),
        hold: false,
        pin: None,
        priority: 50,
        size_bytes: 0,
        sheets: 0,
    }
}

async fn submit(app: &App, who: &Caller, new: NewJob, data: &[u8], once: Once<Job>) -> Result<Answer<Job>> {
    let Begun::New(mut submission) = submit::begin(app, who, new, None).await? else {
        panic!("no request id was given")
    };
    for piece in data.chunks(1000) {
        submission.write(&Bytes::copy_from_slice(piece))?;
    }
    submission.finish(once).await
}

fn id(job: &Job) -> Uuid {
    print::id_of(job).unwrap()
}

fn documents(app: &App) -> usize {
    std::fs::read_dir(app.settings.server.data_directory.join("print")).map_or(0, Iterator::count)
}

fn is(error: &Error, reason: Reason) {
    assert!(error.is(reason), "{error:?} is not {reason:?}");
}

fn refused<T>(result: Result<T>, reason: Reason) {
    match result {
        Ok(_) => panic!("it was allowed; {reason:?} was expected"),
        Err(error) => is(&error, reason),
    }
}

/// The same stores after a restart.
fn restarted(app: &App) -> App {
    let mut app = app.clone();
    app.prints = Arc::new(PrintState::new(&app.settings));
    app
}

async fn recover(app: &App) {
    let app = app.clone();
    tokio::task::spawn_blocking(move || upkeep::recover(&app)).await.unwrap().unwrap();
}

async fn watched(watcher: &mut Watcher) -> (Vec<Uuid>, bool) {
    let batch = watcher.next().await.unwrap();
    (batch.jobs.iter().map(id).collect(), batch.complete)
}

const SPOOL: Uuid = Uuid::from_u128(0xA);
const SPOOL_2: Uuid = Uuid::from_u128(0xB);

#[tokio::test]
async fn a_document_goes_from_the_person_to_the_printers_machine() {
    let shop = Shop::new().await;
    let data: Vec<u8> = (0..600_000u32).map(|n| n as u8).collect();
    let job = shop.print(&data).await;
    assert_eq!((job.size_bytes, &job.digest[..]), (600_000, &blake3::hash(&data).as_bytes()[..]));
    assert_eq!(shop.documents(), 1);
    let mut watcher = Watcher::open(shop.app.clone(), &shop.pc).unwrap();
    assert_eq!(watched(&mut watcher).await, (vec![id(&job)], true));
    let taken = owner::claim(&shop.app, &shop.pc, id(&job), SPOOL).await.unwrap();
    assert_eq!((taken.attempt, print::state(&taken)), (1, JobState::Taken));
    for offset in [0, 1, 262_144, 599_999] {
        let mut document = owner::document(&shop.app, &shop.pc, id(&job), 1, offset).await.unwrap();
        let mut got = Vec::new();
        loop {
            assert_eq!(document.offset(), offset + got.len() as u64);
            let block = document.read().unwrap();
            if block.is_empty() {
                break;
            }
            got.extend_from_slice(&block);
        }
        assert!(got == data[offset as usize..], "from {offset}");
    }
    refused(owner::document(&shop.app, &shop.pc, id(&job), 1, 600_001).await, Reason::RangeInvalid);
    shop.report(&job, 1, JobState::Processing, 1).await.unwrap();
    let done = shop.report(&job, 1, JobState::Completed, 3).await.unwrap();
    assert_eq!((print::state(&done), done.sheets, shop.documents()), (JobState::Completed, 3, 0));
    let again = shop.report(&job, 1, JobState::Completed, 3).await.unwrap();
    assert_eq!(again.revision, done.revision, "saying it twice is harmless");
    refused(owner::document(&shop.app, &shop.pc, id(&job), 1, 0).await, Reason::PrintJobEnded);
    refused(shop.report(&job, 1, JobState::Aborted, 3).await, Reason::PrintJobEnded);
    assert_eq!(shop.app.prints.ended_counts(), [1, 0, 0]);
    let actions: Vec<String> = shop.office.audit().into_iter().map(|r| r.action).collect();
    for action in ["printer.register", "printer.grant", "print.submit", "print.end"] {
        assert!(actions.iter().any(|a| a == action), "{action} is missing in {actions:?}");
    }
    let (list, _) = accounts::list(&shop.app, &shop.chef, (0, 0), 0, "").await.unwrap();
    assert_eq!(list, [accounts::Account { user: "anna".into(), jobs: 1, sheets: 3, bytes: 600_000 }]);
}

#[tokio::test]
async fn permission_comes_before_existence() {
    let shop = Shop::new().await;
    let app = &shop.app;
    let try_print = async |who: &Caller, at: &str| submit(app, who, new_job(at), b"x", Once::always()).await;
    for (who, at) in [(&shop.gast, LASER), (&shop.gast, "none"), (&shop.anna, "none")] {
        refused(try_print(who, at).await, Reason::ResourceUnknown);
    }
    let (hidden, missing) =
        (try_print(&shop.gast, LASER).await.unwrap_err(), try_print(&shop.gast, "mazer").await.unwrap_err());
    assert_eq!(hidden.message().replace(LASER, "mazer"), missing.message());
    refused(try_print(&shop.carl, LASER).await, Reason::AccessDenied);
    refused(try_print(&shop.pc, LASER).await, Reason::CredentialsMissing);
    let job = shop.print(b"secret").await;
    let nobody = Uuid::from_u128(99);
    for (who, id) in [(&shop.carl, id(&job)), (&shop.gast, id(&job)), (&shop.anna, nobody), (&shop.pc, id(&job))] {
        refused(jobs::get(app, who, id), Reason::PrintJobUnknown);
        refused(jobs::cancel(app, who, id).await, Reason::PrintJobUnknown);
        refused(jobs::hold(app, who, id).await, Reason::PrintJobUnknown);
        refused(jobs::release(app, who, id, None).await, Reason::PrintJobUnknown);
    }
    for who in [&shop.anna, &shop.bert, &shop.chef, &local()] {
        assert_eq!(jobs::get(app, who, id(&job)).unwrap().user_name, "anna");
    }
    // A machine sees the jobs of its own printers only.
    for id in [id(&job), nobody] {
        refused(owner::claim(app, &shop.other, id, SPOOL).await, Reason::PrintJobUnknown);
        refused(owner::document(app, &shop.other, id, 1, 0).await, Reason::PrintJobUnknown);
        let report = Report { attempt: 1, state: JobState::Completed, reason: String::new(), sheets: 0 };
        refused(owner::update(app, &shop.other, id, report).await, Reason::PrintJobUnknown);
    }
    refused(owner::document(app, &shop.pc, id(&job), 0, 0).await, Reason::PrintAttemptStale);
    refused(owner::document(app, &shop.pc, id(&job), 1, 0).await, Reason::PrintAttemptStale);
    refused(owner::claim(app, &shop.anna, id(&job), SPOOL).await, Reason::DeviceRequired);
    refused(printers::withdraw(app, &shop.other, LASER).await, Reason::ResourceUnknown);
    // Lists.
    let list = async |who: &Caller, printer: &str, everyone| {
        let query = Query { printer: printer.into(), everyone, ..Query::default() };
        jobs::list(app, who, query).await.map(|(jobs, _)| jobs.len())
    };
    assert_eq!(list(&shop.anna, "", false).await.unwrap(), 1);
    assert_eq!(list(&shop.carl, "", false).await.unwrap(), 0);
    assert_eq!(list(&shop.bert, LASER, true).await.unwrap(), 1);
    assert_eq!(list(&shop.chef, "", true).await.unwrap(), 1);
    refused(list(&shop.carl, LASER, true).await, Reason::AccessDenied);
    refused(list(&shop.gast, LASER, true).await, Reason::ResourceUnknown);
    refused(list(&shop.bert, "none", true).await, Reason::ResourceUnknown);
    refused(list(&shop.bert, "", true).await, Reason::AdminRequired);
    let names = async |who: &Caller| {
        let (shown, _) = printers::list(app, who, 0, "").await.unwrap();
        shown.into_iter().map(|s| (s.printer.name, s.my_right, s.grants.len())).collect::<Vec<_>>()
    };
    assert_eq!(names(&shop.gast).await, []);
    assert_eq!(names(&shop.carl).await, [(LASER.to_owned(), Some(Right::See), 0)]);
    assert_eq!(names(&shop.bert).await, [(LASER.to_owned(), Some(Right::Manage), 3)]);
    // Administration.
    let user = || PrincipalName::User("carl".into());
    refused(printers::grant(app, &shop.bert, LASER, user(), Right::Write).await, Reason::AdminRequired);
    refused(printers::revoke(app, &shop.bert, LASER, user()).await, Reason::AdminRequired);
    refused(printers::remove(app, &shop.bert, LASER).await, Reason::AdminRequired);
    refused(printers::move_to(app, &shop.bert, LASER, &DeviceId([2; 32]).to_string()).await, Reason::AdminRequired);
    let quota = Quota { user: String::new(), sheets: 1, bytes: 0, period: Period::Day };
    refused(accounts::set_quota(app, &shop.bert, quota).await, Reason::AdminRequired);
    refused(accounts::quotas(app, &shop.bert, 0, "").await, Reason::AdminRequired);
    refused(accounts::list(app, &shop.bert, (0, 0), 0, "").await, Reason::AdminRequired);
    let refusals = shop.office.audit().into_iter().filter(|r| !r.success).count();
    assert!(refusals >= 9, "{refusals}");
}

#[tokio::test]
async fn a_right_that_was_taken_away_ends_printing_and_not_what_is_ones_own() {
    let shop = Shop::new().await;
    let job = shop.print(b"x").await;
    let Begun::New(mut open) = submit::begin(&shop.app, &shop.anna, new_job(LASER), None).await.unwrap() else {
        panic!()
    };
    open.write(&Bytes::from_static(b"y")).unwrap();
    printers::revoke(&shop.app, &shop.chef, LASER, PrincipalName::User("anna".into())).await.unwrap();
    refused(open.finish(Once::always()).await, Reason::ResourceUnknown);
    assert_eq!(shop.documents(), 1, "what was refused leaves nothing");
    assert_eq!(print::state(&jobs::cancel(&shop.app, &shop.anna, id(&job)).await.unwrap()), JobState::Canceled);
    assert_eq!(shop.documents(), 0);
    printers::grant(&shop.app, &shop.chef, LASER, PrincipalName::Everyone, Right::Write).await.unwrap();
    shop.print(b"again").await;
    refused(submit(&shop.app, &shop.gast, new_job(LASER), b"x", Once::always()).await, Reason::ResourceUnknown);
    let machine = PrincipalName::Device(DeviceId([1; 32]).to_string());
    refused(printers::grant(&shop.app, &shop.chef, LASER, machine, Right::Write).await, Reason::FieldInvalid);
}

#[tokio::test]
async fn the_same_request_id_prints_once() {
    let shop = Shop::new().await;
    let once = || {
        let key = RequestKey::new(&shop.anna, "Print", &Uuid::from_u128(5).to_string(), b"header").unwrap();
        (key.clone(), Once::new(key, |job: &Job| Bytes::from(job.encode_to_vec())))
    };
    let (_, first) = once();
    let job = fresh(submit(&shop.app, &shop.anna, new_job(LASER), b"doc", first).await.unwrap());
    // The answer was lost: asked at the beginning already.
    let (key, second) = once();
    let begun = submit::begin(&shop.app, &shop.anna, new_job(LASER), key.as_ref()).await.unwrap();
    let Begun::Repeated(bytes) = begun else { panic!("it began anew") };
    assert_eq!(id(&Job::decode(bytes).unwrap()), id(&job));
    // Both were under way at once.
    let raced = submit(&shop.app, &shop.anna, new_job(LASER), b"doc", second).await.unwrap();
    assert!(matches!(raced, Answer::Repeated(_)));
    assert_eq!(shop.documents(), 1, "the second document is gone");
    let (all, _) = jobs::list(&shop.app, &shop.anna, Query { ended: true, ..Query::default() }).await.unwrap();
    assert_eq!(all.len(), 1);
}

#[tokio::test]
async fn limits_are_kept_and_refusals_leave_nothing() {
    let shop = Shop::with(|s| {
        s.print.max_job = ByteSize(5_000);
        s.print.spool = ByteSize(12_000);
        s.print.jobs_per_person = 3;
    })
    .await;
    let app = &shop.app;
    let try_print = async |new: NewJob, size: usize| submit(app, &shop.anna, new, &vec![7; size], Once::always()).await;
    refused(try_print(NewJob { size_bytes: 5_001, ..new_job(LASER) }, 1).await, Reason::FileTooLarge);
    refused(try_print(new_job(LASER), 5_001).await, Reason::FileTooLarge);
    refused(try_print(new_job(LASER), 0).await, Reason::FieldInvalid);
    refused(try_print(NewJob { size_bytes: 10, ..new_job(LASER) }, 11).await, Reason::FieldInvalid);
    refused(try_print(NewJob { format: "image/x".into(), ..new_job(LASER) }, 1).await, Reason::PrintFormatUnknown);
    assert_eq!(shop.documents(), 0);
    shop.print(&[1; 5_000]).await;
    shop.print(&[1; 5_000]).await;
    refused(try_print(new_job(LASER), 3_000).await, Reason::QueueLimit);
    let third = shop.print(&[1; 2_000]).await;
    refused(try_print(new_job(LASER), 1).await, Reason::QueueLimit);
    jobs::cancel(app, &shop.anna, id(&third)).await.unwrap();
    shop.print(&[1; 100]).await;
    assert_eq!(shop.documents(), 3);
    app.files.set_disk_full(true);
    refused(try_print(new_job(LASER), 1).await, Reason::DiskFull);
    app.files.set_disk_full(false);
    // What waits counts against a quota that is set later, too.
    let quota = |sheets, bytes| Quota { user: "anna".into(), sheets, bytes, period: Period::Month };
    accounts::set_quota(app, &shop.chef, quota(3, 0)).await.unwrap();
    let (open, _) = jobs::list(app, &shop.anna, Query::default()).await.unwrap();
    jobs::cancel(app, &shop.anna, id(&open[0])).await.unwrap();
    refused(try_print(NewJob { sheets: 2, ..new_job(LASER) }, 1).await, Reason::PrintQuotaExceeded);
    try_print(new_job(LASER), 1).await.unwrap();
    check(app);
}

#[tokio::test]
async fn quotas_count_what_waits_and_what_was_printed_in_the_period() {
    let shop = Shop::new().await;
    let app = &shop.app;
    let quota = |user: &str, sheets, bytes| Quota { user: user.into(), sheets, bytes, period: Period::Day };
    accounts::set_quota(app, &shop.chef, quota("", 100, 0)).await.unwrap();
    accounts::set_quota(app, &shop.chef, quota("anna", 10, 2_000)).await.unwrap();
    refused(accounts::set_quota(app, &shop.chef, quota("nobody", 1, 1)).await, Reason::UserUnknown);
    let try_print = async |sheets, size: usize| {
        submit(app, &shop.anna, NewJob { sheets, ..new_job(LASER) }, &vec![7; size], Once::always()).await.map(fresh)
    };
    refused(try_print(11, 1).await, Reason::PrintQuotaExceeded);
    refused(try_print(1, 2_001).await, Reason::PrintQuotaExceeded);
    let waiting = try_print(8, 1_500).await.unwrap();
    refused(try_print(3, 1).await, Reason::PrintQuotaExceeded);
    refused(try_print(1, 501).await, Reason::PrintQuotaExceeded);
    jobs::cancel(app, &shop.anna, id(&waiting)).await.unwrap();
    let job = try_print(8, 1_500).await.unwrap();
    owner::claim(app, &shop.pc, id(&job), SPOOL).await.unwrap();
    shop.report(&job, 1, JobState::Completed, 2).await.unwrap();
    try_print(8, 1).await.unwrap();
    refused(try_print(1, 1).await, Reason::PrintQuotaExceeded);
    // The next day is another one, and the person of no quota of their own has everybody's.
    shop.office.advance(24 * 3600);
    let error = try_print(11, 1).await.unwrap_err();
    assert_eq!(
        (error.detail("limit"), error.detail("used"), error.detail("unit")),
        (Some("10"), Some("0"), Some("sheets"))
    );
    accounts::set_quota(app, &shop.chef, quota("anna", 0, 0)).await.unwrap();
    refused(try_print(101, 1).await, Reason::PrintQuotaExceeded);
    try_print(100, 1).await.unwrap();
    accounts::set_quota(app, &shop.chef, quota("", 0, 0)).await.unwrap();
    try_print(1_000, 1).await.unwrap();
    assert_eq!(accounts::quotas(app, &shop.chef, 0, "").await.unwrap().0, []);
    let today = accounts::day_of(app.clock.now_ms());
    let (all, _) = accounts::list(app, &shop.chef, (today - 1, today), 0, "").await.unwrap();
    assert_eq!((all[0].jobs, all[0].sheets), (4, 2 + 8 + 100 + 1_000));
    let (yesterday, _) = accounts::list(app, &shop.chef, (today - 1, today - 1), 0, "").await.unwrap();
    assert_eq!((yesterday[0].jobs, yesterday[0].sheets, yesterday[0].bytes), (2, 10, 1_501));
    refused(accounts::list(app, &shop.chef, (2, 1), 0, "").await, Reason::FieldInvalid);
}

#[tokio::test]
async fn a_job_that_was_given_out_again_says_so_and_the_earlier_word_counts_no_more() {
    let shop = Shop::new().await;
    let job = shop.print(b"doc").await;
    let claim = async |spool| owner::claim(&shop.app, &shop.pc, id(&job), spool).await.unwrap();
    assert_eq!((claim(SPOOL).await.attempt, claim(SPOOL).await.attempt), (1, 1));
    shop.report(&job, 1, JobState::Processing, 1).await.unwrap();
    // The machine lost its disk.
    let again = claim(SPOOL_2).await;
    assert!(again.attempt == 2 && again.may_be_printed_twice);
    refused(shop.report(&job, 1, JobState::Completed, 1).await, Reason::PrintAttemptStale);
    refused(owner::document(&shop.app, &shop.pc, id(&job), 1, 0).await, Reason::PrintAttemptStale);
    assert!(jobs::get(&shop.app, &shop.anna, id(&job)).unwrap().may_be_printed_twice, "its person is told");
    assert!(shop.office.audit().iter().any(|r| r.action == "print.again"));
    // The administrator gives the printer to another machine. What was to be canceled at the old one is canceled now.
    let unwanted = shop.print(b"unwanted").await;
    owner::claim(&shop.app, &shop.pc, id(&unwanted), SPOOL_2).await.unwrap();
    jobs::cancel(&shop.app, &shop.anna, id(&unwanted)).await.unwrap();
    printers::move_to(&shop.app, &shop.chef, LASER, &DeviceId([2; 32]).to_string()).await.unwrap();
    assert_eq!((print::state(&shop.job(&unwanted)), shop.documents()), (JobState::Canceled, 1));
    let late = Report { attempt: 2, state: JobState::Completed, reason: String::new(), sheets: 1 };
    refused(owner::update(&shop.app, &shop.pc, id(&job), late).await, Reason::PrintJobUnknown);
    let third = owner::claim(&shop.app, &shop.other, id(&job), Uuid::from_u128(3)).await.unwrap();
    assert_eq!(third.attempt, 3);
    refused(printers::register(&shop.app, &shop.pc, offer(LASER)).await, Reason::ResourceExists);
    printers::register(&shop.app, &shop.other, offer(LASER)).await.unwrap();
    refused(
        printers::move_to(&shop.app, &shop.chef, LASER, &DeviceId([9; 32]).to_string()).await,
        Reason::DeviceUnknown,
    );
}

#[tokio::test]
async fn a_watching_machine_is_told_everything_at_least_once() {
    let shop = Shop::new().await;
    let (first, second) = (shop.print(b"1").await, shop.print(b"2").await);
    let held = {
        let new = NewJob { hold: true, ..new_job(LASER) };
        fresh(submit(&shop.app, &shop.anna, new, b"3", Once::always()).await.unwrap())
    };
    let mut watcher = Watcher::open(shop.app.clone(), &shop.pc).unwrap();
    assert_eq!(watched(&mut watcher).await, (vec![id(&first), id(&second)], true));
    jobs::release(&shop.app, &shop.anna, id(&held), None).await.unwrap();
    assert_eq!(watched(&mut watcher).await.0, [id(&held)]);
    // Nobody claimed them: after a minute they are told again.
    shop.office.advance(61);
    jobs::hold(&shop.app, &shop.anna, id(&held)).await.unwrap();
    assert_eq!(watched(&mut watcher).await.0, [id(&first), id(&second), id(&held)]);
    owner::claim(&shop.app, &shop.pc, id(&first), SPOOL).await.unwrap();
    assert_eq!(watched(&mut watcher).await.0, [id(&first)], "also what the machine did itself");
    // A cancellation reaches the machine, and what is canceled before it is taken too.
    jobs::cancel(&shop.app, &shop.anna, id(&first)).await.unwrap();
    let batch = watcher.next().await.unwrap();
    assert!(batch.jobs[0].cancel_requested && print::state(&batch.jobs[0]) == JobState::Taken);
    jobs::cancel(&shop.app, &shop.anna, id(&second)).await.unwrap();
    let batch = watcher.next().await.unwrap();
    assert_eq!((id(&batch.jobs[0]), print::state(&batch.jobs[0])), (id(&second), JobState::Canceled));
    // One that comes back is told what there is now, and another machine nothing.
    let mut anew = Watcher::open(shop.app.clone(), &shop.pc).unwrap();
    assert_eq!(watched(&mut anew).await, (vec![id(&first)], true));
    let mut other = Watcher::open(shop.app.clone(), &shop.other).unwrap();
    assert_eq!(watched(&mut other).await, (vec![], true));
    refused(Watcher::open(shop.app.clone(), &shop.anna), Reason::DeviceRequired);
}

#[tokio::test]
async fn a_machine_says_which_printers_it_has_and_the_others_go_with_their_jobs() {
    let shop = Shop::new().await;
    let (app, pc) = (&shop.app, &shop.pc);
    for name in ["inkjet", "plotter"] {
        printers::register(app, pc, offer(name)).await.unwrap();
    }
    printers::register(app, &shop.other, offer("away")).await.unwrap();
    let job = shop.print(b"1").await;
    let names = async || {
        let shown = printers::list(app, &shop.chef, 0, "").await.unwrap().0;
        shown.into_iter().map(|s| s.printer.name).collect::<Vec<_>>()
    };
    let keep = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    assert!(
        printers::withdraw_others(app, pc, &keep(&["laser", "inkjet", "plotter", "new"])).await.unwrap().is_empty()
    );
    assert_eq!(printers::withdraw_others(app, pc, &keep(&["laser", "plotter"])).await.unwrap(), ["inkjet"]);
    assert_eq!(names().await, ["away", "laser", "plotter"], "another machine's printer is none of its business");
    // One that was moved to it waits until it is offered for the first time; then it is like the others.
    let moved_to = shop.pc.device.unwrap().to_string();
    printers::move_to(app, &shop.chef, "away", &moved_to).await.unwrap();
    assert_eq!(printers::withdraw_others(app, pc, &[]).await.unwrap(), ["laser", "plotter"]);
    assert_eq!(names().await, ["away"]);
    let ended = shop.job(&job);
    assert_eq!((print::state(&ended), ended.state_reason.as_str()), (JobState::Canceled, "the printer was removed"));
    assert_eq!(shop.documents(), 0);
    printers::register(app, pc, offer("away")).await.unwrap();
    assert_eq!(printers::withdraw_others(app, pc, &[]).await.unwrap(), ["away"]);
    refused(printers::withdraw_others(app, &shop.anna, &[]).await, Reason::DeviceRequired);
}

#[tokio::test]
async fn a_printer_is_away_when_its_machine_stops_watching_and_its_jobs_say_so() {
    let shop = Shop::new().await;
    let job = shop.print(b"1").await;
    let condition = async || printers::list(&shop.app, &shop.anna, 0, "").await.unwrap().0[0].presence.condition;
    let why = || jobs::get(&shop.app, &shop.anna, id(&job)).unwrap().state_reason;
    let (first, second) =
        (Watcher::open(shop.app.clone(), &shop.pc).unwrap(), Watcher::open(shop.app.clone(), &shop.pc).unwrap());
    drop(first);
    assert_eq!((condition().await, why().as_str()), (Condition::Idle, ""), "it watches still");
    drop(second);
    assert_eq!((condition().await, why().as_str()), (Condition::Away, "the printer's machine is away"));
    let listed = jobs::list(&shop.app, &shop.anna, Query::default()).await.unwrap().0;
    assert_eq!(listed[0].state_reason, "the printer's machine is away");
    assert_eq!(shop.job(&job).state_reason, "", "it is not kept");
    let _again = Watcher::open(shop.app.clone(), &shop.pc).unwrap();
    assert_eq!((condition().await, why().as_str()), (Condition::Idle, ""));
    let stopped = Offer { condition: Condition::Stopped, reason: "no paper".into(), ..offer(LASER) };
    printers::register(&shop.app, &shop.pc, stopped).await.unwrap();
    assert_eq!(why(), "the printer is stopped: no paper");
    let other = Watcher::open(shop.app.clone(), &shop.other).unwrap();
    drop(other);
    assert_eq!(condition().await, Condition::Stopped, "another machine's watch says nothing of this one");
}

#[tokio::test]
async fn a_pin_is_stated_by_whoever_releases_and_is_given_up_after_a_day() {
    let shop = Shop::new().await;
    let with_pin = async || {
        let new = NewJob { pin: Some(Pin::new("0815", [1; 16])), ..new_job(LASER) };
        fresh(submit(&shop.app, &shop.anna, new, b"3", Once::always()).await.unwrap())
    };
    let (job, forgotten) = (with_pin().await, with_pin().await);
    assert_eq!(print::state(&job), JobState::Held);
    let release =
        async |who: &Caller, pin: Option<&str>| jobs::release(&shop.app, who, id(&job), pin.map(str::to_owned)).await;
    refused(release(&shop.anna, None).await, Reason::PinWrong);
    refused(release(&shop.chef, Some("1111")).await, Reason::PinWrong);
    refused(release(&shop.carl, Some("0815")).await, Reason::PrintJobUnknown);
    let kept = shop.job(&job).pin.unwrap();
    assert_eq!(kept.wrong, 1, "a guess is on disk");
    for _ in 0..4 {
        refused(release(&shop.anna, Some("1111")).await, Reason::PinWrong);
    }
    refused(release(&shop.anna, Some("0815")).await, Reason::PinWrong);
    assert_eq!(owner::claim(&shop.app, &shop.pc, id(&job), SPOOL).await.unwrap().attempt, 0, "nobody takes it");
    shop.office.advance(5 * 60);
    let released = release(&shop.anna, Some("0815")).await.unwrap();
    assert_eq!((print::state(&released), released.pin), (JobState::Pending, None));
    // The other one: nobody states its PIN.
    shop.office.advance(24 * 3600 - 5 * 60 - 1);
    upkeep::pass(&shop.app).await.unwrap();
    assert_eq!(print::state(&shop.job(&forgotten)), JobState::Held);
    shop.office.advance(2);
    upkeep::pass(&shop.app).await.unwrap();
    let ended = shop.job(&forgotten);
    assert_eq!((print::state(&ended), ended.state_reason.as_str()), (JobState::Aborted, upkeep::NO_PIN));
    assert_eq!(print::state(&shop.job(&job)), JobState::Pending, "one that was released waits as others do");
    assert_eq!(shop.documents(), 1);
}

#[tokio::test]
async fn a_priority_is_its_persons_and_the_managers_to_set() {
    let shop = Shop::new().await;
    let job = shop.print(b"1").await;
    let set = async |who: &Caller, to| jobs::set_priority(&shop.app, who, id(&job), to).await;
    assert_eq!(print::priority(&job), 50);
    assert_eq!(set(&shop.anna, 80).await.unwrap().priority, 80);
    assert_eq!(set(&shop.bert, 20).await.unwrap().priority, 20, "bert manages the printer");
    refused(set(&shop.carl, 90).await, Reason::PrintJobUnknown);
    jobs::cancel(&shop.app, &shop.anna, id(&job)).await.unwrap();
    refused(set(&shop.anna, 90).await, Reason::PrintJobEnded);
}

#[tokio::test]
async fn many_jobs_come_in_batches() {
    let shop = Shop::with(|s| s.print.jobs_per_person = 1_000).await;
    let mut wanted = Vec::new();
    for n in 0..230u32 {
        wanted.push(id(&shop.print(&n.to_le_bytes()).await));
    }
    let mut watcher = Watcher::open(shop.app.clone(), &shop.pc).unwrap();
    let mut got = Vec::new();
    loop {
        let (ids, complete) = watched(&mut watcher).await;
        assert!(ids.len() <= owner::BATCH);
        got.extend(ids);
        if complete {
            break;
        }
        assert!(got.len() < wanted.len());
    }
    assert_eq!(got, wanted);
    // Pages of lists: all of them, each once, the newest first.
    for size in [1, 7, 229, 230, 231] {
        let (mut listed, mut token) = (Vec::new(), String::new());
        loop {
            let query = Query { page_size: size, page_token: token, ..Query::default() };
            let (page, next) = jobs::list(&shop.app, &shop.anna, query).await.unwrap();
            listed.extend(page.iter().map(id));
            token = next;
            if token.is_empty() {
                break;
            }
        }
        listed.reverse();
        assert_eq!(listed, wanted, "pages of {size}");
    }
    let query = Query { page_token: "00".into(), ..Query::default() };
    refused(jobs::list(&shop.app, &shop.anna, query).await, Reason::PageTokenInvalid);
}

#[tokio::test]
async fn a_printer_is_away_when_its_machine_is_silent_and_its_name_is_its_own() {
    let shop = Shop::new().await;
    let condition = async || printers::list(&shop.app, &shop.anna, 0, "").await.unwrap().0[0].presence.condition;
    assert_eq!(condition().await, Condition::Idle);
    let stopped = Offer { condition: Condition::Stopped, reason: "no paper".into(), ..offer(LASER) };
    let revision = shop.app.store.revision();
    let shown: Shown = printers::register(&shop.app, &shop.pc, stopped).await.unwrap();
    assert_eq!((shown.presence.reason.as_str(), shown.machine.as_str()), ("no paper", "pc1"));
    assert_eq!(shop.app.store.revision(), revision, "how it is costs no write");
    shop.office.advance(149);
    assert_eq!(condition().await, Condition::Stopped);
    shop.office.advance(1);
    assert_eq!(condition().await, Condition::Away);
    shop.print(b"it waits").await;
    assert_eq!(printers::list(&restarted(&shop.app), &shop.anna, 0, "").await.unwrap().0[0].presence.seen_ms, 0);
    refused(printers::register(&shop.app, &shop.other, offer(LASER)).await, Reason::ResourceExists);
    for bad in ["", "Laser", "a/b", "9"] {
        refused(printers::register(&shop.app, &shop.pc, offer(bad)).await, Reason::FieldInvalid);
    }
    let many = Offer { formats: vec!["x".into(); 33], ..offer("b") };
    refused(printers::register(&shop.app, &shop.pc, many).await, Reason::FieldInvalid);
    refused(printers::register(&shop.app, &shop.anna, offer("b")).await, Reason::DeviceRequired);
    for n in 1..32 {
        printers::register(&shop.app, &shop.pc, offer(&format!("p{n}"))).await.unwrap();
    }
    refused(printers::register(&shop.app, &shop.pc, offer("p32")).await, Reason::QueueLimit);
    printers::register(&shop.app, &shop.other, offer("p32")).await.unwrap();
    assert_eq!(printers::list(&shop.app, &shop.anna, 0, "").await.unwrap().0.len(), 1, "new ones are granted first");
    let (all, token) = printers::list(&shop.app, &shop.chef, 10, "").await.unwrap();
    let (rest, end) = printers::list(&shop.app, &shop.chef, 100, &token).await.unwrap();
    assert_eq!((all.len(), rest.len(), end.as_str()), (10, 23, ""));
}

#[tokio::test]
async fn a_printer_that_is_removed_takes_its_jobs_along() {
    let shop = Shop::new().await;
    let (taken, waiting) = (shop.print(b"1").await, shop.print(b"2").await);
    owner::claim(&shop.app, &shop.pc, id(&taken), SPOOL).await.unwrap();
    printers::remove(&shop.app, &shop.chef, LASER).await.unwrap();
    refused(printers::remove(&shop.app, &shop.chef, LASER).await, Reason::ResourceUnknown);
    assert_eq!(print::state(&shop.job(&waiting)), JobState::Canceled);
    assert!(shop.job(&taken).cancel_requested, "its machine has to say what became of it");
    shop.report(&taken, 1, JobState::Canceled, 0).await.unwrap();
    assert_eq!(shop.documents(), 0);
    // A new printer of that name gives nobody a right to the old one's jobs.
    printers::register(&shop.app, &shop.pc, offer(LASER)).await.unwrap();
    refused(jobs::get(&shop.app, &shop.bert, id(&taken)), Reason::PrintJobUnknown);
    printers::grant(&shop.app, &shop.chef, LASER, PrincipalName::User("bert".into()), Right::Manage).await.unwrap();
    refused(jobs::get(&shop.app, &shop.bert, id(&taken)), Reason::PrintJobUnknown);
    printers::withdraw(&shop.app, &shop.pc, LASER).await.unwrap();
    check(&shop.app);
}

#[tokio::test]
async fn new_printers_are_for_everyone_if_the_settings_say_so() {
    let shop = Shop::with(|s| s.print.everyone = true).await;
    // The highest rule counts, so the lower grant that carl has takes nothing away.
    submit(&shop.app, &shop.carl, new_job(LASER), b"x", Once::always()).await.map(fresh).unwrap();
    printers::register(&shop.app, &shop.pc, offer("b")).await.unwrap();
    submit(&shop.app, &shop.carl, new_job("b"), b"x", Once::always()).await.map(fresh).unwrap();
    refused(submit(&shop.app, &shop.gast, new_job("b"), b"x", Once::always()).await, Reason::ResourceUnknown);
}

#[tokio::test]
async fn a_start_puts_documents_and_jobs_in_accord() {
    let shop = Shop::new().await;
    let (kept, lost, ended) = (shop.print(b"kept").await, shop.print(b"lost").await, shop.print(b"ended").await);
    let directory = shop.app.settings.server.data_directory.join("print");
    // As after a restored backup, a crash between document and job, one while it came in, and one after a job's end.
    std::fs::remove_file(directory.join(id(&lost).to_string())).unwrap();
    std::fs::write(directory.join(Uuid::from_u128(77).to_string()), b"no job").unwrap();
    std::fs::write(directory.join(format!(".{}.part", Uuid::from_u128(78))), b"half").unwrap();
    jobs::cancel(&shop.app, &shop.anna, id(&ended)).await.unwrap();
    std::fs::write(directory.join(id(&ended).to_string()), b"ended").unwrap();
    let app = restarted(&shop.app);
    recover(&app).await;
    assert_eq!(documents(&app), 1);
    let job = shop.job(&lost);
    assert_eq!((print::state(&job), job.state_reason.as_str()), (JobState::Aborted, upkeep::LOST));
    owner::claim(&app, &shop.pc, id(&kept), SPOOL).await.unwrap();
    let mut document = owner::document(&app, &shop.pc, id(&kept), 1, 0).await.unwrap();
    assert_eq!(&document.read().unwrap()[..], b"kept");
    let revision = app.store.revision();
    recover(&app).await;
    assert_eq!(app.store.revision(), revision, "a second start finds nothing to do");
    check(&app);
}

#[tokio::test]
async fn jobs_that_nobody_prints_are_given_up_and_old_ones_forgotten() {
    let shop = Shop::new().await;
    let (old, taken) = (shop.print(b"old").await, shop.print(b"taken").await);
    owner::claim(&shop.app, &shop.pc, id(&taken), SPOOL).await.unwrap();
    shop.office.advance(6 * 24 * 3600);
    let young = shop.print(b"young").await;
    shop.office.advance(24 * 3600 + 1);
    upkeep::pass(&shop.app).await.unwrap();
    for job in [&old, &taken] {
        let job = shop.job(job);
        assert_eq!((print::state(&job), job.state_reason.as_str()), (JobState::Aborted, upkeep::TOO_OLD));
    }
    assert_eq!((print::state(&shop.job(&young)), shop.documents()), (JobState::Pending, 1));
    refused(shop.report(&taken, 1, JobState::Completed, 1).await, Reason::PrintJobEnded);
    shop.office.advance(30 * 24 * 3600 + 1);
    upkeep::pass(&shop.app).await.unwrap();
    assert!(print::load_job(&shop.app.store, id(&old)).unwrap().is_none());
    let (left, _) = jobs::list(&shop.app, &shop.anna, Query { ended: true, ..Query::default() }).await.unwrap();
    assert_eq!(left.iter().map(id).collect::<Vec<_>>(), [id(&young)], "it ended just now");
    check(&shop.app);
}

/// Everything that must hold between records, keys, totals, accounts and documents.
fn check(app: &App) {
    let all = |prefix: &[u8]| app.store.range(prefix, &prefix_end(prefix), 100_000).unwrap();
    let jobs: Vec<Job> = all(b"w/j/").into_iter().map(|(_, v)| Job::decode(v).unwrap()).collect();
    let mut keys: Vec<Vec<u8>> = jobs.iter().flat_map(print::keys_of).collect();
    keys.sort();
    let mut stored: Vec<Vec<u8>> = Vec::new();
    for kind in [b"w/u/", b"w/o/", b"w/n/", b"w/d/", b"w/q/", b"w/c/", b"w/e/"] {
        stored.extend(all(kind).into_iter().map(|(k, _)| k.to_vec()));
    }
    stored.sort();
    assert_eq!(stored, keys, "keys follow from jobs");
    let open: Vec<&Job> = jobs.iter().filter(|j| !print::state(j).is_end()).collect();
    let totals = print::totals(&app.store).unwrap();
    assert_eq!(totals.job_count, open.len() as u64);
    assert_eq!(totals.size_bytes, open.iter().map(|j| j.size_bytes).sum::<u64>());
    for job in &open {
        let path = app.settings.server.data_directory.join("print").join(id(job).to_string());
        assert_eq!(std::fs::metadata(path).unwrap().len(), job.size_bytes, "an open job has its document");
    }
    assert_eq!(documents(app), open.len(), "and only they have one");
}

#[derive(Clone, Debug)]
enum Step {
    Print { user: usize, size: usize, sheets: u64, hold: bool },
    Claim { job: usize, spool: u128 },
    Update { job: usize, attempt: u32, state: u32, sheets: u64 },
    Cancel { job: usize, user: usize },
    Hold(usize),
    Release(usize),
    Move(bool),
    Restart,
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let job = || 0..12usize;
    prop_oneof![
        4 => (0..2usize, 1..3_000usize, 0..6u64, any::<bool>())
            .prop_map(|(user, size, sheets, hold)| Step::Print { user, size, sheets, hold }),
        4 => (job(), 1..3u128).prop_map(|(job, spool)| Step::Claim { job, spool }),
        6 => (job(), 1..4u32, 3..9u32, 0..6u64)
            .prop_map(|(job, attempt, state, sheets)| Step::Update { job, attempt, state, sheets }),
        2 => (job(), 0..2usize).prop_map(|(job, user)| Step::Cancel { job, user }),
        1 => job().prop_map(Step::Hold),
        1 => job().prop_map(Step::Release),
        1 => any::<bool>().prop_map(Step::Move),
        1 => Just(Step::Restart),
        1 => (1..200_000u64).prop_map(Step::Later),
    ]
}

/// What a simple ledger says: who is charged what. Charges of forgotten jobs stay.
#[derive(Default)]
struct Ledger(BTreeMap<Uuid, (String, print::Charge)>);

async fn play(steps: Vec<Step>) {
    let shop = Shop::with(|s| s.print.jobs_per_person = 8).await;
    let mut app = shop.app.clone();
    let people = [&shop.anna, &shop.bert];
    let mut made: Vec<Uuid> = Vec::new();
    let mut ledger = Ledger::default();
    for step in steps {
        let at = |n: usize| made.get(n % made.len().max(1)).copied();
        let machine =
            if print::load_printer(&app.store, LASER).unwrap().unwrap().device == DeviceId([1; 32]).to_string() {
                &shop.pc
            } else {
                &shop.other
            };
        match step {
            Step::Print { user, size, sheets, hold } => {
                let new = NewJob { sheets, hold, ..new_job(LASER) };
                match submit(&app, people[user], new, &vec![1; size], Once::always()).await {
                    Ok(job) => made.push(id(&fresh(job))),
                    Err(error) => is(&error, Reason::QueueLimit),
                }
            }
            Step::Claim { job, spool } => {
                let Some(job) = at(job) else { continue };
                let before = print::load_job(&app.store, job).unwrap();
                let Some(before) = before else { continue };
                let after = owner::claim(&app, machine, job, Uuid::from_u128(spool)).await;
                if let Ok(after) = after {
                    assert!(after.attempt == before.attempt || after.attempt == before.attempt + 1);
                    assert_eq!(after.may_be_printed_twice, after.attempt > 1);
                }
            }
            Step::Update { job, attempt, state, sheets } => {
                let Some(job) = at(job) else { continue };
                let Some(state) = JobState::from_number(state) else { continue };
                let report = Report { attempt, state, reason: String::new(), sheets };
                let before = print::load_job(&app.store, job).unwrap();
                if let Ok(after) = owner::update(&app, machine, job, report).await {
                    assert_eq!(before.unwrap().attempt, attempt, "only the present attempt speaks");
                    assert!(print::state(&after) == state);
                }
            }
            Step::Cancel { job, user } => {
                let Some(job) = at(job) else { continue };
                let _ = jobs::cancel(&app, people[user], job).await;
            }
            Step::Hold(job) => {
                let Some(job) = at(job) else { continue };
                let _ = jobs::hold(&app, &shop.chef, job).await;
            }
            Step::Release(job) => {
                let Some(job) = at(job) else { continue };
                let _ = jobs::release(&app, &shop.chef, job, None).await;
            }
            Step::Move(first) => {
                let to = DeviceId([if first { 1 } else { 2 }; 32]).to_string();
                printers::move_to(&app, &shop.chef, LASER, &to).await.unwrap();
            }
            Step::Restart => {
                app = restarted(&app);
                recover(&app).await;
            }
            Step::Later(seconds) => {
                shop.office.advance(seconds);
                upkeep::pass(&app).await.unwrap();
            }
        }
        for job in &made {
            if let Some(job) = print::load_job(&app.store, *job).unwrap() {
                ledger.0.insert(id(&job), (job.user_name.clone(), print::charge(&job)));
            }
        }
        check(&app);
        let mut expected: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
        for (user, charge) in ledger.0.values() {
            let sum = expected.entry(user.clone()).or_default();
            *sum = (sum.0 + charge.jobs, sum.1 + charge.sheets, sum.2 + charge.bytes);
        }
        expected.retain(|_, sum| *sum != (0, 0, 0));
        let (accounts, _) = accounts::list(&app, &shop.chef, (0, 0), 0, "").await.unwrap();
        let got: BTreeMap<_, _> = accounts.into_iter().map(|a| (a.user, (a.jobs, a.sheets, a.bytes))).collect();
        assert_eq!(got, expected, "accounts are the sum of the jobs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_keys_totals_accounts_and_documents_follow_from_the_jobs(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(play(steps));
    }
}
