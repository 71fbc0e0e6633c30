//! Single decisions, and a simulation that makes thousands of them.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::printer::model::{Destination, Pin, Sides, Ticket, Who};
use crate::printer::printers::{JobRequest, job_of};

fn config(outputs: usize) -> PrinterConfig {
    let folder = |n: usize| Destination::Folder { path: format!("/x/{n}").into(), pages_per_minute: None };
    let mut config = PrinterConfig::new("laser", folder(0));
    config.outputs = (0..outputs)
        .map(|n| OutputConfig {
            name: format!("out{n}"),
            destination: folder(n),
            capabilities: Capabilities::default(),
        })
        .collect();
    config
}

fn queue(outputs: usize) -> Queue {
    Queue::new(&config(outputs), |_| 1, Switches::default(), Vec::new())
}

fn job(id: u32, priority: u8, sheets: u32) -> Job {
    let request = JobRequest { name: format!("job {id}"), priority, ..JobRequest::default() };
    let mut job = job_of(JobId(id), "laser", &Who::stated("anna", "10.0.0.1"), request, 1000);
    let format = "application/pdf".to_owned();
    job.documents.push(Document {
        name: String::new(),
        format,
        bytes: 10,
        pages: Some(sheets),
        file: None,
        canceled: false,
    });
    job.complete = true;
    job
}

fn submit(queue: &mut Queue, job: Job) -> Vec<Action> {
    queue.apply(Event::Submit(Box::new(job)), 1000).unwrap()
}

fn started(actions: &[Action]) -> Vec<(u32, String)> {
    let start = |a: &Action| match a {
        Action::Start { job, output, .. } => Some((job.0, output.clone())),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

fn done(queue: &mut Queue, id: u32) -> Vec<Action> {
    queue.apply(Event::Ended(JobId(id), Outcome::Done { impressions: None }), 2000).unwrap()
}

#[test]
fn promoted_then_priority_then_number() {
    let mut queue = queue(1);
    assert_eq!(started(&submit(&mut queue, job(1, 50, 1))), [(1, "out0".into())]);
    for (id, priority) in [(2, 50), (3, 90), (4, 10), (5, 50)] {
        assert!(started(&submit(&mut queue, job(id, priority, 1))).is_empty(), "one at a time");
    }
    queue.apply(Event::Promote(JobId(4)), 0).unwrap();
    let order: Vec<u32> = (0..4)
        .fold((vec![], 1), |(mut order, running), _| {
            let next = started(&done(&mut queue, running))[0].0;
            order.push(next);
            (order, next)
        })
        .0;
    assert_eq!(order, [4, 3, 2, 5]);
}

#[test]
fn a_job_goes_to_what_suffices_and_has_least_to_do() {
    let mut config = config(3);
    config.outputs[0].capabilities.duplex = false;
    config.outputs[1].capabilities.color = false;
    let mut queue = Queue::new(&config, |_| 2, Switches::default(), Vec::new());
    let mut duplex = job(1, 50, 10);
    duplex.ticket = Ticket { sides: Some(Sides::TwoSidedLongEdge), ..Ticket::default() };
    assert_eq!(started(&submit(&mut queue, duplex)), [(1, "out1".into())]);
    let mut color = job(2, 50, 3);
    color.ticket.color = Some("color".into());
    assert_eq!(started(&submit(&mut queue, color)), [(2, "out0".into())]);
    assert_eq!(started(&submit(&mut queue, job(3, 50, 2))), [(3, "out2".into())], "it has nothing to do");
    assert_eq!(started(&submit(&mut queue, job(4, 50, 1))), [(4, "out2".into())], "two sheets are less than three");
    let mut a2 = job(5, 50, 1);
    a2.ticket.media = Some("iso_a2_420x594mm".into());
    assert_eq!(queue.apply(Event::Submit(Box::new(a2)), 0), Err(Refusal::Unsuitable));
}

#[test]
fn a_queue_goes_on_by_itself_when_its_printer_is_ready() {
    let mut queue = queue(1);
    submit(&mut queue, job(1, 50, 1));
    let refused = Outcome::Refused { reason: "media-empty-error".into() };
    let actions = queue.apply(Event::Ended(JobId(1), refused), 0).unwrap();
    assert!(started(&actions).is_empty() && actions.contains(&Action::Probe("out0".into())));
    assert!(started(&submit(&mut queue, job(2, 50, 1))).is_empty());
    let actions = queue.apply(Event::Condition("out0".into(), Condition::READY), 0).unwrap();
    assert_eq!(started(&actions), [(1, "out0".into())]);
}

#[test]
fn a_jammed_job_moves_once_and_only_when_the_first_printer_lets_it_go() {
    let mut queue = queue(2);
    submit(&mut queue, job(1, 50, 5));
    let actions = queue.apply(Event::Stalled(JobId(1), "media-jam-error".into(), 2), 0).unwrap();
    assert!(actions.contains(&Action::Withdraw(JobId(1))));
    assert!(started(&actions).is_empty(), "it is still at the first one");
    let actions = queue.apply(Event::Ended(JobId(1), Outcome::Withdrawn { impressions: 2 }), 0).unwrap();
    assert_eq!(started(&actions), [(1, "out1".into())]);
    // The other one jams too, and the first one is mended: no second move.
    queue.apply(Event::Condition("out0".into(), Condition::READY), 0).unwrap();
    let actions = queue.apply(Event::Stalled(JobId(1), "media-jam-error".into(), 1), 0).unwrap();
    assert!(!actions.contains(&Action::Withdraw(JobId(1))));
    queue.apply(Event::Going(JobId(1), 1), 0).unwrap();
    queue.apply(Event::Ended(JobId(1), Outcome::Done { impressions: Some(5) }), 0).unwrap();
    assert_eq!(queue.job(JobId(1)).unwrap().impressions_done, 7, "what came out of the first one is counted");
}

#[test]
fn a_job_whose_printer_fell_silent_goes_back_to_it_and_nowhere_else() {
    let mut queue = queue(2);
    submit(&mut queue, job(1, 50, 5));
    let lost = Outcome::Lost { reason: "timed-out".into() };
    assert!(started(&queue.apply(Event::Ended(JobId(1), lost), 0).unwrap()).is_empty());
    let actions = queue.apply(Event::Condition("out0".into(), Condition::READY), 0).unwrap();
    let expected = Action::Start { job: JobId(1), output: "out0".into(), repeat: true };
    assert!(actions.contains(&expected));
}

#[test]
fn jobs_that_were_being_printed_are_looked_for_after_a_restart() {
    let mut before = queue(1);
    submit(&mut before, job(1, 50, 1));
    submit(&mut before, job(2, 50, 1));
    let mut after = Queue::new(&config(1), |_| 1, Switches::default(), before.jobs().cloned().collect());
    let actions = after.apply(Event::Tick, 0).unwrap();
    assert!(actions.contains(&Action::Start { job: JobId(1), output: "out0".into(), repeat: true }));
    assert_eq!(started(&actions).len(), 1);
}

#[test]
fn five_wrong_pins_lock_for_five_minutes_and_a_day_wipes() {
    let mut queue = queue(1);
    let mut secret = job(1, 50, 1);
    secret.pin = Some(Pin::new("1234", [1; 16]));
    assert!(started(&submit(&mut queue, secret)).is_empty());
    let mut release = |pin: &str, now| queue.apply(Event::Release(JobId(1), Some(pin.into())), now);
    for left in (1..5).rev() {
        assert_eq!(release("0000", 2000), Err(Refusal::PinWrong(left)));
    }
    assert_eq!(release("0000", 2000), Err(Refusal::PinLocked(2000 + PIN_LOCK_MS)));
    assert_eq!(
        release("1234", 3000),
        Err(Refusal::PinLocked(2000 + PIN_LOCK_MS)),
        "the right one is not looked at either"
    );
    assert_eq!(release("0000", 2000 + PIN_LOCK_MS), Err(Refusal::PinWrong(4)));
    assert_eq!(started(&release("1234", 2000 + PIN_LOCK_MS).unwrap()).len(), 1);

    let mut secret = job(2, 50, 1);
    secret.pin = Some(Pin::new("1234", [1; 16]));
    submit(&mut queue, secret);
    assert_eq!(
        queue.apply(Event::Alter(JobId(2), Changes { hold: Some(None), ..Changes::default() }), 0),
        Err(Refusal::PinWrong(5))
    );
    assert_eq!(queue.next_tick(), Some(1000 + PIN_LIFE_MS));
    let actions = queue.apply(Event::Tick, 1000 + PIN_LIFE_MS).unwrap();
    assert!(actions.contains(&Action::Ended(JobId(2))));
}

#[test]
fn held_jobs_wait_for_their_time_and_new_ones_for_their_release() {
    let mut queue = queue(1);
    let mut later = job(1, 50, 1);
    later.hold = Some(Hold::Until(5000));
    assert!(started(&submit(&mut queue, later)).is_empty());
    assert_eq!(queue.next_tick(), Some(5000));
    assert!(started(&queue.apply(Event::Tick, 4999).unwrap()).is_empty());
    assert_eq!(started(&queue.apply(Event::Tick, 5000).unwrap()).len(), 1);
    done(&mut queue, 1);
    queue.apply(Event::HoldNew(true), 0).unwrap();
    assert!(started(&submit(&mut queue, job(2, 50, 1))).is_empty());
    assert_eq!(started(&queue.apply(Event::HoldNew(false), 0).unwrap()), [(2, "out0".into())]);
}

#[test]
fn documents_that_do_not_come_end_their_job() {
    let mut queue = queue(1);
    let mut open = job(1, 50, 1);
    (open.documents, open.complete) = (Vec::new(), false);
    submit(&mut queue, open);
    assert!(queue.apply(Event::Tick, 1000 + DOCUMENT_WAIT_MS - 1).unwrap().is_empty());
    queue.apply(Event::Tick, 1000 + DOCUMENT_WAIT_MS).unwrap();
    assert_eq!(queue.job(JobId(1)).unwrap().state, JobState::Aborted);
    assert_eq!(queue.apply(Event::Cancel(JobId(1)), 0), Err(Refusal::Over));
}

#[test]
fn history_is_bounded() {
    let mut config = config(1);
    config.limits.history = 3;
    let mut queue = Queue::new(&config, |_| 1, Switches::default(), Vec::new());
    for id in 1..=5 {
        submit(&mut queue, job(id, 50, 1));
        done(&mut queue, id);
    }
    assert_eq!(queue.jobs().map(|j| j.id.0).collect::<Vec<_>>(), [3, 4, 5]);
}

/// What the outside world does to a queue.
#[derive(Clone, Debug)]
enum Step {
    Submit { priority: u8, sheets: u32, duplex: bool, hold: bool, pin: bool },
    Verb(u8, u8),
    Printer(u8, u8),
    Finish(u8, u8),
    Restart,
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..=100, 1u32..30, any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.1))
            .prop_map(|(priority, sheets, duplex, hold, pin)| Step::Submit { priority, sheets, duplex, hold, pin }),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Step::Verb(a, b)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Step::Printer(a, b)),
        5 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Step::Finish(a, b)),
        1 => Just(Step::Restart),
        1 => any::<u16>().prop_map(Step::Pass),
    ]
}

/// The outputs, as they really are: who has what, and what was ever finished.
struct World {
    queue: Queue,
    config: PrinterConfig,
    at: BTreeMap<JobId, String>,
    withdrawn: BTreeSet<JobId>,
    printed: BTreeMap<JobId, u32>,
    ended: BTreeSet<JobId>,
    next: u32,
    now: u64,
}

impl World {
    fn new() -> Self {
        let mut config = config(3);
        config.outputs[1].capabilities.duplex = false;
        config.limits.history = 10_000;
        let queue = Queue::new(&config, |o| if o.name == "out2" { 2 } else { 1 }, Switches::default(), Vec::new());
        Self {
            queue,
            config,
            at: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            printed: BTreeMap::new(),
            ended: BTreeSet::new(),
            next: 1,
            now: 1000,
        }
    }

    fn event(&mut self, event: Event) {
        let before: BTreeMap<JobId, Job> = self.queue.jobs().map(|j| (j.id, j.clone())).collect();
        let result = self.queue.apply(event.clone(), self.now);
        let actions = result.unwrap_or_default();
        let mut told = BTreeSet::new();
        for action in &actions {
            match action {
                Action::Save(id) => {
                    told.insert(*id);
                }
                Action::Ended(id) => {
                    told.insert(*id);
                    assert!(self.ended.insert(*id), "{id} ended twice");
                }
                Action::Start { job, output, repeat } => self.start(*job, output, *repeat),
                Action::Withdraw(id) => {
                    self.withdrawn.insert(*id);
                }
                Action::Forget(_) | Action::SavePrinter | Action::Probe(_) => {}
            }
        }
        for job in self.queue.jobs() {
            let guess = matches!(event, Event::Release(..));
            assert!(
                before.get(&job.id) == Some(job) || told.contains(&job.id) || guess,
                "{} changed and nobody was told",
                job.id
            );
        }
        self.check();
    }

    fn start(&mut self, id: JobId, output: &str, repeat: bool) {
        assert!(!self.queue.switches().paused, "{id} started while paused");
        assert!(!self.ended.contains(&id), "{id} started after its end");
        if let Some(has) = self.at.get(&id) {
            assert!(has == output && repeat, "{id} started at {output} while {has} has it");
        }
        self.at.insert(id, output.to_owned());
    }

    fn check(&self) {
        for slot in self.queue.slots() {
            assert!(slot.running.len() <= slot.lanes);
            for id in &slot.running {
                let job = self.queue.job(*id).unwrap();
                assert!(matches!(job.state, JobState::Processing | JobState::Stopped));
                assert!(slot.capabilities.suffice(&job.ticket, &["application/pdf"]));
            }
        }
        assert!(self.printed.values().all(|n| *n <= 1), "printed twice: {:?}", self.printed);
    }

    fn pick(&self, n: u8) -> Option<JobId> {
        let ids: Vec<JobId> = self.queue.jobs().map(|j| j.id).collect();
        (!ids.is_empty()).then(|| ids[usize::from(n) % ids.len()])
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit { priority, sheets, duplex, hold, pin } => {
                let mut new = job(self.next, priority, sheets);
                self.next += 1;
                new.ticket.sides = duplex.then_some(Sides::TwoSidedLongEdge);
                new.hold = hold.then_some(Hold::Indefinite);
                new.pin = pin.then(|| Pin::new("1", [0; 16]));
                new.created_ms = self.now;
                self.event(Event::Submit(Box::new(new)));
            }
            Step::Verb(which, verb) => {
                let Some(id) = self.pick(which) else { return };
                self.event(match verb % 9 {
                    0 => Event::Hold(id, Hold::Indefinite),
                    1 => Event::Release(id, Some("1".into())),
                    2 => Event::Release(id, Some("2".into())),
                    3 => Event::Cancel(id),
                    4 => Event::Promote(id),
                    5 => Event::Pause,
                    6 => Event::HoldNew(verb > 127),
                    7 => Event::Alter(id, Changes { priority: Some(verb), ..Changes::default() }),
                    _ => Event::Resume,
                });
            }
            Step::Printer(which, what) => {
                let name = format!("out{}", which % 3);
                let condition = if what % 2 == 0 { Condition::READY } else { Condition::unready("media-empty-error") };
                self.event(Event::Condition(name, condition));
            }
            Step::Finish(which, how) => self.finish(which, how),
            Step::Restart => {
                let kept = self.queue.jobs().cloned().collect();
                let lanes = |o: &OutputConfig| if o.name == "out2" { 2 } else { 1 };
                self.queue = Queue::new(&self.config, lanes, self.queue.switches().clone(), kept);
                self.withdrawn.clear();
                self.event(Event::Tick);
            }
            Step::Pass(seconds) => {
                self.now += u64::from(seconds) * 1000;
                self.event(Event::Tick);
            }
        }
    }

    /// An output does something with a job that the queue thinks it has.
    fn finish(&mut self, which: u8, how: u8) {
        let running: Vec<JobId> = self.queue.slots().iter().flat_map(|s| s.running.iter().copied()).collect();
        if running.is_empty() {
            return;
        }
        let id = running[usize::from(which) % running.len()];
        let printed = self.printed.contains_key(&id);
        let outcome = match how % 8 {
            // Printed already, and looked for again: the output says so.
            _ if printed => Outcome::Done { impressions: None },
            0 => return self.event(Event::Stalled(id, "media-jam-error".into(), 1)),
            1 => return self.event(Event::Going(id, 1)),
            2 => Outcome::Refused { reason: "media-empty-error".into() },
            3 => {
                // It is printed all the same, sometimes.
                if how > 127 {
                    *self.printed.entry(id).or_default() += 1;
                }
                Outcome::Lost { reason: "timed-out".into() }
            }
            4 => Outcome::Aborted { message: "damaged".into() },
            _ if self.withdrawn.contains(&id) => Outcome::Withdrawn { impressions: 1 },
            _ => {
                *self.printed.entry(id).or_default() += 1;
                Outcome::Done { impressions: None }
            }
        };
        if !matches!(outcome, Outcome::Lost { .. }) {
            self.at.remove(&id);
        }
        self.withdrawn.remove(&id);
        self.event(Event::Ended(id, outcome));
    }

    /// Everything is mended and released: everything must end.
    fn settle(&mut self) {
        self.event(Event::Resume);
        self.event(Event::HoldNew(false));
        for id in self.queue.jobs().map(|j| j.id).collect::<Vec<_>>() {
            self.now += PIN_LOCK_MS;
            self.event(Event::Release(id, Some("1".into())));
        }
        for _ in 0..10_000 {
            for n in 0..3 {
                self.event(Event::Condition(format!("out{n}"), Condition::READY));
            }
            if self.queue.active_count() == 0 {
                return;
            }
            self.finish(0, 5);
        }
        let left: Vec<_> = self.queue.active().map(|j| (j.id, j.state, j.reason.clone())).collect();
        panic!("jobs that never end: {left:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_lost_doubled_or_stuck(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
        prop_assert_eq!(world.ended.len(), world.queue.jobs().count());
    }
}
