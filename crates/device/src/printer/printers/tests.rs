//! Printers with real files: what survives, what is refused, what is counted.

use std::path::Path;
use std::time::Duration;

use common::clock::ManualClock;

use super::*;
use crate::model::Caller;
use crate::printer::fault::{POINTS, Switch};
use crate::printer::model::{Allowance, Class, Destination, JobState, Period, Sides};
use crate::printer::output::Fault;
use crate::printer::pages::pdf;

/// A moment in the middle of a month.
const NOW: u64 = 1_792_000_000_000;

struct Rig {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    switch: Switch,
}

impl Rig {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: Arc::new(ManualClock::new(NOW)), switch: Switch::default() }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn config(&self) -> PrinterConfig {
        PrinterConfig::new("laser", Destination::Folder { path: self.out(), pages_per_minute: None })
    }

    async fn open(&mut self) -> Printers {
        let (faults, switch) = Faults::switched();
        self.switch = switch;
        let options = Options {
            clock: self.clock.clone(),
            probe_every: Duration::from_millis(5),
            faults,
            reserve_bytes: 0,
            ..Options::new(self.dir.path().join("state"))
        };
        Printers::open(options).await.unwrap()
    }

    /// Files that came out, by name.
    fn printed(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.out()) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).filter(|n| !n.starts_with('.')).collect();
        names.sort();
        names
    }

    fn accounting(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.dir.path().join("state/accounting.jsonl")).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

fn anna() -> Who {
    Who::member(Caller { person: "anna".into(), machine: "anna-pc".into(), device: "aa".into() })
}

fn ben() -> Who {
    Who::member(Caller { person: "ben".into(), machine: "ben-pc".into(), device: "bb".into() })
}

async fn print(printers: &Printers, who: &Who, request: JobRequest, content: &[u8]) -> Result<Job> {
    let length = Some(content.len() as u64);
    let mut upload = printers.submit("laser", who, request, DocumentRequest::default(), length)?;
    for part in content.chunks(10_000) {
        upload.write(part).await?;
    }
    upload.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn small_and_large_documents_come_out_as_they_went_in() {
    let mut rig = Rig::new();
    let printers = rig.open().await;
    printers.put(rig.config()).await.unwrap();
    let small = pdf::sample(2, "small");
    let large = pdf::sample(900, "large");
    assert!(small.len() < 64 * 1024 && large.len() > 64 * 1024);
    for content in [&small, &large] {
        let job = print(&printers, &anna(), JobRequest::default(), content).await.unwrap();
        assert_eq!(printers.over(job.id).await.unwrap().state, JobState::Completed);
        let name = rig.printed().pop().unwrap();
        assert_eq!(&std::fs::read(rig.out().join(name)).unwrap(), content);
    }
    printers.close().await;
    let sheets: Vec<_> = rig.accounting().iter().map(|l| l["sheets"].as_u64().unwrap()).collect();
    assert_eq!(sheets, [2, 900]);
    assert_eq!(std::fs::read_dir(rig.dir.path().join("state/spool")).unwrap().count(), 0, "documents are wiped");
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_documents_are_unfolded_and_bombs_refused() {
    use std::io::Write;
    let mut rig = Rig::new();
    let printers = rig.open().await;
    let mut config = rig.config();
    config.limits.job_bytes = 1 << 20;
    printers.put(config).await.unwrap();
    let gzip = |content: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    let document = DocumentRequest { compression: crate::printer::Compression::Gzip, ..DocumentRequest::default() };
    let content = pdf::sample(3, "packed");
    let mut upload = printers.submit("laser", &anna(), JobRequest::default(), document.clone(), None).unwrap();
    upload.write(&gzip(&content)).await.unwrap();
    let job = upload.finish().await.unwrap();
    assert_eq!((job.bytes, job.sheets), (content.len() as u64, 3));

    let mut upload = printers.submit("laser", &anna(), JobRequest::default(), document, None).unwrap();
    let error = upload.write(&gzip(&vec![b'%'; 50 << 20])).await.unwrap_err();
    assert!(error.is(Reason::QueueLimit));
    assert!(upload.received() < 8 << 20, "it is refused before all of it is unfolded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_acknowledged_is_printed_once_wherever_the_process_dies() {
    // Each step, the first and the third time that it is reached; small and large documents.
    for (n, point) in POINTS.iter().enumerate() {
        for count in [1, 3] {
            let mut rig = Rig::new();
            let printers = rig.open().await;
            printers.put(rig.config()).await.unwrap();
            rig.switch.die_at(point, count);
            let mut acknowledged = Vec::new();
            for round in 0..4u32 {
                let pages = if (round as usize + n).is_multiple_of(2) { 1 } else { 900 };
                let content = pdf::sample(pages, "crash");
                if let Ok(job) = print(&printers, &anna(), JobRequest::default(), &content).await {
                    acknowledged.push(job);
                }
                tokio::task::yield_now().await;
            }
            let switch = rig.switch.clone();
            if !switch.is_dead() {
                for job in &acknowledged {
                    // It dies while one of them is printed, or never.
                    let died = async {
                        while !switch.is_dead() {
                            tokio::time::sleep(Duration::from_millis(1)).await
                        }
                    };
                    tokio::select! { () = died => break, _ = printers.over(job.id) => {} }
                }
            }
            printers.close().await;
            drop(printers);

            let printers = rig.open().await;
            for job in &acknowledged {
                let now = printers.over(job.id).await.unwrap();
                assert_eq!((now.uuid, now.state), (job.uuid, JobState::Completed), "{point} {count}");
            }
            // What was not acknowledged may be there too, once.
            printers.until(|p| p.get("laser").unwrap().jobs == 0).await.unwrap();
            let names = rig.printed();
            for job in &acknowledged {
                let own = format!("{:06}-", job.id.0);
                assert_eq!(names.iter().filter(|n| n.starts_with(&own)).count(), 1, "{point} {count}: {names:?}");
            }
            let mut lines: Vec<_> = rig.accounting().iter().map(|l| l["uuid"].to_string()).collect();
            let all = lines.len();
            lines.sort();
            lines.dedup();
            assert_eq!(lines.len(), all, "{point} {count}: accounted twice");
            printers.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_never_given_twice() {
    let mut rig = Rig::new();
    let printers = rig.open().await;
    let mut config = rig.config();
    config.limits.history = 1;
    printers.put(config).await.unwrap();
    let zeroth = print(&printers, &anna(), JobRequest::default(), &pdf::sample(1, "a")).await.unwrap();
    printers.over(zeroth.id).await.unwrap();
    let first = print(&printers, &anna(), JobRequest::default(), &pdf::sample(1, "a")).await.unwrap();
    printers.over(first.id).await.unwrap();
    printers.remove("laser").await.unwrap();
    printers.put(rig.config()).await.unwrap();
    printers.close().await;
    drop(printers);
    let printers = rig.open().await;
    let second = print(&printers, &anna(), JobRequest::default(), &pdf::sample(1, "b")).await.unwrap();
    assert!(second.id > first.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_the_job_and_nothing_else() {
    let mut rig = Rig::new();
    let printers = rig.open().await;
    printers.put(rig.config()).await.unwrap();
    rig.switch.fail("journal-write");
    let error = print(&printers, &anna(), JobRequest::default(), &pdf::sample(1, "a")).await.unwrap_err();
    assert!(error.is(Reason::DiskFull));
    assert_eq!(printers.get("laser").unwrap().jobs, 0);
    rig.switch.mend();
    let job = print(&printers, &anna(), JobRequest::default(), &pdf::sample(1, "a")).await.unwrap();
    assert_eq!(printers.over(job.id).await.unwrap().state, JobState::Completed);
    assert_eq!(rig.printed().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printer_without_paper_goes_on_by_itself() {
    let mut rig = Rig::new();
    let printers = rig.open().await;
    printers.put(rig.config()).await.unwrap();
    printers.set_fault("laser", "laser", Fault::Empty).unwrap();
    let job = print(&printers, &anna(), JobRequest::default(), &pdf::sample(1, "a")).await.unwrap();
    printers.until(|p| p.get("laser").unwrap().state == PrinterState::Stopped).await.unwrap();
    assert_eq!(printers.get("laser").unwrap().reasons, ["media-empty-error"]);
    assert!(rig.printed().is_empty());
    printers.set_fault("laser", "laser", Fault::None).unwrap();
    assert_eq!(printers.over(job.id).await.unwrap().state, JobState::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jam_moves_the_job_once_and_what_came_out_is_counted() {
    let mut rig = Rig::new();
    let printers = rig.open().await;
    let mut config = rig.config();
    let other = rig.dir.path().join("other");
    config.outputs.push(config.outputs[0].clone());
    config.outputs[1].name = "second".into();
    config.outputs[1].destination = Destination::Folder { path: other.clone(), pages_per_minute: None };
    printers.put(config).await.unwrap();
    printers.set_fault("laser", "laser", Fault::Jam(2)).unwrap();
    let job = print(&printers, &anna(), JobRequest::default(), &pdf::sample(5, "a")).await.unwrap();
    let job = printers.over(job.id).await.unwrap();
    assert_eq!((job.state, job.moved, job.impressions_done), (JobState::Completed, true, 7));
    assert_eq!(job.output.as_deref(), Some("second"));
    assert!(rig.printed().is_empty());
    assert_eq!(std::fs::read_dir(other).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_count_sheets_and_bytes_and_what_waits() {
    let mut rig = Rig::new();
    let printers = rig.open().await;
    let mut config = rig.config();
    config.quotas.period = Period::Day;
    config.quotas.members = Allowance { sheets: Some(10), bytes: Some(100_000) };
    printers.put(config).await.unwrap();
    printers.pause("laser", true).await.unwrap();
    let duplex = |copies| {
        let ticket = JobTicket { copies, sides: Some(Sides::TwoSidedLongEdge), ..JobTicket::default() };
        JobRequest { ticket, ..JobRequest::default() }
    };
    // 3 pages on both sides are 2 sheets, 4 times.
    let job = print(&printers, &anna(), duplex(4), &pdf::sample(3, "a")).await.unwrap();
    assert_eq!(job.sheets, 8);
    let error = print(&printers, &anna(), duplex(2), &pdf::sample(3, "a")).await.unwrap_err();
    assert!(error.is(Reason::PrintQuotaExceeded), "what waits counts");
    print(&printers, &ben(), duplex(2), &pdf::sample(3, "a")).await.unwrap();
    let error =
        printers.submit("laser", &anna(), JobRequest::default(), DocumentRequest::default(), Some(200_000)).err();
    assert!(error.unwrap().is(Reason::PrintQuotaExceeded), "before the first byte comes");
    let mut upload =
        printers.submit("laser", &anna(), JobRequest::default(), DocumentRequest::default(), None).unwrap();
    let error = upload.write(&vec![b'%'; 150_000]).await.unwrap_err();
    assert!(error.is(Reason::PrintQuotaExceeded), "while it comes");
    // An upload keeps the printers open.
    drop(upload);
    printers.pause("laser", false).await.unwrap();
    printers.over(job.id).await.unwrap();
    let (used, _, allowed) = printers.usage("laser", &anna()).unwrap();
    assert_eq!((used.sheets, used.jobs, allowed.sheets), (8, 1, Some(10)));
    // The next day everything is allowed again; after a restart it is still known.
    printers.close().await;
    drop(printers);
    let printers = rig.open().await;
    assert_eq!(printers.usage("laser", &anna()).unwrap().0.sheets, 8);
    rig.clock.advance(Duration::from_secs(86_400));
    assert_eq!(printers.usage("laser", &anna()).unwrap().0.sheets, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_touch_a_job_and_a_pin_opens_it() {
    let mut rig = Rig::new();
    let printers = rig.open().await;
    printers.put(rig.config()).await.unwrap();
    let request = JobRequest { pin: Some("4711".into()), ..JobRequest::default() };
    let job = print(&printers, &anna(), request, &pdf::sample(1, "a")).await.unwrap();
    assert_eq!(job.state, JobState::Held);
    for verb in [Verb::Cancel, Verb::Release(Some("4711".into())), Verb::Hold(Hold::Indefinite)] {
        let error = printers.control(job.id, &ben(), false, verb).await.unwrap_err();
        assert!(error.is(Reason::AccessDenied));
    }
    for _ in 0..4 {
        assert!(printers.release_by_pin(job.id, "0000").await.unwrap_err().is(Reason::PinWrong));
    }
    // The count survives a restart.
    printers.close().await;
    drop(printers);
    let printers = rig.open().await;
    assert!(printers.release_by_pin(job.id, "0000").await.unwrap_err().is(Reason::PinWrong));
    assert!(printers.release_by_pin(job.id, "4711").await.unwrap_err().is(Reason::PinWrong), "locked");
    rig.clock.advance(Duration::from_secs(301));
    printers.release_by_pin(job.id, "4711").await.unwrap();
    let job = printers.over(job.id).await.unwrap();
    assert_eq!(job.state, JobState::Completed);
    let error = printers.control(job.id, &anna(), false, Verb::Cancel).await.unwrap_err();
    assert!(error.is(Reason::PrintJobEnded));
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_are_kept_changed_and_removed() {
    let mut rig = Rig::new();
    let printers = rig.open().await;
    let config = rig.config();
    printers.put(config.clone()).await.unwrap();
    printers.pause("laser", true).await.unwrap();
    let job = print(&printers, &anna(), JobRequest::default(), &pdf::sample(1, "a")).await.unwrap();
    let changed = PrinterConfig { location: "Room 7".into(), uuid: uuid::Uuid::new_v4(), ..config.clone() };
    printers.put(changed).await.unwrap();
    printers.close().await;
    drop(printers);
    let printers = rig.open().await;
    let view = printers.get("laser").unwrap();
    assert_eq!((view.config.location.as_str(), view.config.uuid, view.jobs), ("Room 7", config.uuid, 1));
    assert!(view.switches.paused);
    let options = Options::new(rig.dir.path().join("state"));
    assert!(Printers::open(options).await.err().unwrap().is(Reason::StoreBusy));
    printers.remove("laser").await.unwrap();
    assert!(printers.job(job.id).unwrap_err().is(Reason::PrintJobUnknown));
    printers.close().await;
    drop(printers);
    assert!(rig.open().await.list().is_empty());
    assert_eq!(rig.accounting()[0]["state"], "canceled");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_document_is_refused() {
    let mut rig = Rig::new();
    let printers = rig.open().await;
    printers.put(rig.config()).await.unwrap();
    let error = print(&printers, &anna(), JobRequest::default(), b"#!/bin/sh").await.unwrap_err();
    assert!(error.is(Reason::PrintFormatUnknown));
    let document = DocumentRequest { format: Some("application/pdf".into()), ..DocumentRequest::default() };
    let mut upload = printers.submit("laser", &anna(), JobRequest::default(), document, None).unwrap();
    let error = upload.write(&[0xff; 70_000]).await.unwrap_err();
    assert!(error.is(Reason::PrintFormatUnknown), "as soon as its beginning is there");
    let stranger = Who::stated("eve", "10.0.0.9");
    assert_eq!(stranger.class, Class::Unauthenticated);
    assert!(print(&printers, &stranger, JobRequest::default(), b"").await.unwrap_err().is(Reason::FieldInvalid));
    assert!(Path::new(&rig.out()).exists() && rig.printed().is_empty());
}
