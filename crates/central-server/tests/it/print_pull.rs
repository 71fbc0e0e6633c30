//! Pulling print jobs: the server, and the machine that a printer hangs on, with a spool that outlives both.

use crate::fixture::local;
use crate::server::TestServer;
use bytes::Bytes;
use central_server::app::directories::PrincipalName;
use central_server::app::print::printers;
use common::error::{Error, Reason, Result};
use common::flow::RetryPolicy;
use common::flow::print_pull::{
    Document, JobReport, OfferedPrinter, PrinterCondition, Progress, PullSettings, PullStatus, PulledJob,
    PulledPrinter, pull,
};
use common::model::{Right, Role};
use common::rpc::{OfficeChannel, OfficeConnection};
use common::tls::DeviceCredentials;
use parking_lot::Mutex;
use proto::v1;
use proto::v1::print_request::Part;
use proto::v1::print_service_client::PrintServiceClient;
use std::collections::HashMap;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The longest that anything here may take; only a defect takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine's spool and its printer. Everything in it is "on disk": it stays when pulling ends.
struct Spool {
    id: Mutex<Uuid>,
    disk: Mutex<Disk>,
    changed: Notify,
}

#[derive(Default)]
struct Disk {
    jobs: HashMap<Uuid, (PulledJob, JobReport)>,
    documents: HashMap<Uuid, Vec<u8>>,
    /// Parts of documents that an earlier run left.
    parts: HashMap<Uuid, Vec<u8>>,
    /// What came out of the printer.
    paper: Vec<(Uuid, Vec<u8>)>,
    /// How often a job's document was asked for.
    accepts: HashMap<Uuid, u32>,
    /// In which order jobs came.
    order: Vec<Uuid>,
    /// The printer prints by itself.
    ready: bool,
    /// The printer's name, if it is another one than the usual.
    offers: Option<&'static str>,
    /// A document is stopped after so many bytes, until this is cancelled.
    gate: Option<(usize, CancellationToken)>,
    /// Why documents are not taken.
    refuse: Option<Reason>,
}

impl Spool {
    fn new(ready: bool) -> Arc<Self> {
        let disk = Disk { ready, ..Disk::default() };
        Arc::new(Self { id: Mutex::new(Uuid::new_v4()), disk: Mutex::new(disk), changed: Notify::new() })
    }

    /// The printer takes what waits.
    fn print_all(&self) {
        let mut disk = self.disk.lock();
        disk.ready = true;
        let waiting: Vec<Uuid> =
            disk.jobs.iter().filter(|(_, (_, r))| !r.progress.is_end()).map(|(id, _)| *id).collect();
        waiting.into_iter().for_each(|id| disk.print(id));
        drop(disk);
        self.changed.notify_one();
    }

    fn lose_everything(&self) {
        *self.id.lock() = Uuid::new_v4();
        let mut disk = self.disk.lock();
        let paper = std::mem::take(&mut disk.paper);
        *disk = Disk { ready: disk.ready, paper, ..Disk::default() };
    }

    fn paper(&self) -> Vec<(Uuid, Vec<u8>)> {
        self.disk.lock().paper.clone()
    }

    fn known(&self) -> usize {
        self.disk.lock().jobs.len()
    }
}

impl Disk {
    fn print(&mut self, id: Uuid) {
        let document = self.documents.get(&id).cloned().unwrap_or_default();
        if let Some((_, report)) = self.jobs.get_mut(&id) {
            *report = JobReport { progress: Progress::Completed, reason: String::new(), sheets: 1 };
            self.paper.push((id, document));
        }
    }
}

impl PulledPrinter for Spool {
    fn spool_id(&self) -> Uuid {
        *self.id.lock()
    }

    async fn printers(&self) -> Result<Vec<OfferedPrinter>> {
        Ok(vec![OfferedPrinter {
            name: self.disk.lock().offers.unwrap_or("laser").into(),
            description: String::new(),
            location: String::new(),
            formats: Vec::new(),
            color: false,
            duplex: false,
            condition: PrinterCondition::Idle,
            reason: String::new(),
        }])
    }

    async fn jobs(&self) -> Result<Vec<Uuid>> {
        Ok(self.disk.lock().jobs.keys().copied().collect())
    }

    async fn accept(&self, job: PulledJob, mut document: Document) -> Result<()> {
        let (mut data, refuse) = {
            let mut disk = self.disk.lock();
            *disk.accepts.entry(job.id).or_default() += 1;
            disk.order.push(job.id);
            if disk.jobs.contains_key(&job.id) {
                return Ok(());
            }
            (disk.parts.get(&job.id).cloned().unwrap_or_default(), disk.refuse)
        };
        if let Some(reason) = refuse {
            return Err(Error::new(reason, "the spool does not want it"));
        }
        document.have(&data);
        while let Some(piece) = document.next().await? {
            data.extend_from_slice(&piece);
            let gate = {
                let mut disk = self.disk.lock();
                disk.parts.insert(job.id, data.clone());
                disk.gate.clone()
            };
            if let Some((_, open)) = gate.filter(|(bytes, _)| data.len() >= *bytes) {
                self.changed.notify_one();
                open.cancelled().await;
            }
        }
        let mut disk = self.disk.lock();
        let id = job.id;
        disk.parts.remove(&id);
        if disk.jobs.contains_key(&id) {
            return Ok(());
        }
        disk.documents.insert(id, data);
        disk.jobs.insert(id, (job, JobReport { progress: Progress::Waiting, reason: String::new(), sheets: 0 }));
        if disk.ready {
            disk.print(id);
        }
        drop(disk);
        self.changed.notify_one();
        Ok(())
    }

    async fn state(&self, job: Uuid) -> Result<Option<JobReport>> {
        Ok(self.disk.lock().jobs.get(&job).map(|(_, report)| report.clone()))
    }

    async fn prioritize(&self, job: Uuid, priority: u8) -> Result<()> {
        if let Some((job, _)) = self.disk.lock().jobs.get_mut(&job) {
            job.priority = priority;
        }
        Ok(())
    }

    async fn cancel(&self, job: Uuid, why: &str) -> Result<()> {
        if let Some((_, report)) = self.disk.lock().jobs.get_mut(&job)
            && !report.progress.is_end()
        {
            *report = JobReport { progress: Progress::Canceled, reason: why.to_owned(), sheets: 0 };
        }
        self.changed.notify_one();
        Ok(())
    }

    async fn forget(&self, job: Uuid) -> Result<()> {
        let mut disk = self.disk.lock();
        disk.jobs.remove(&job);
        disk.documents.remove(&job);
        Ok(())
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Pulling, until it is dropped: that is a crash of the machine's program.
struct Puller {
    task: JoinHandle<()>,
    status: watch::Receiver<PullStatus>,
}

impl Drop for Puller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn quick() -> PullSettings {
    let retry = RetryPolicy {
        first: Duration::from_millis(10),
        longest: Duration::from_millis(200),
        ..PullSettings::default().retry
    };
    PullSettings { retry, ..PullSettings::default() }
}

fn start(connection: OfficeConnection, spool: &Arc<Spool>) -> Puller {
    let (sender, status) = watch::channel(PullStatus::default());
    let task = tokio::spawn(pull(connection, spool.clone(), quick(), sender, CancellationToken::new()));
    Puller { task, status }
}

type Client = PrintServiceClient<OfficeChannel>;

struct Shop {
    server: TestServer,
    machine: DeviceCredentials,
    token: String,
}

impl Shop {
    /// An office in which "laser" is known and anna may print on it.
    async fn new() -> Self {
        let server = TestServer::start().await;
        let machine = server.join().await;
        let token = server.token("anna", Role::Member).await;
        let request = v1::RegisterPrinterRequest {
            name: "laser".into(),
            state: v1::PrinterState::Idle as i32,
            ..Default::default()
        };
        Client::new(server.device(&machine).control()).register_printer(request).await.unwrap();
        let app = server.running.app();
        printers::grant(app, &local(), "laser", PrincipalName::User("anna".into()), Right::Write).await.unwrap();
        Self { server, machine, token }
    }

    fn pull(&self, spool: &Arc<Spool>) -> Puller {
        start(self.server.device(&self.machine), spool)
    }

    fn anna(&self) -> Client {
        Client::new(self.server.with_token(&self.token).control())
    }

    /// Stops the server and starts it again at the same address.
    async fn restart(self) -> Self {
        let (Self { server, machine, token }, address) = (self, None::<SocketAddr>);
        let address = address.unwrap_or(server.running.addr);
        let directory = server.stop().await;
        let server = TestServer::in_directory(directory, |s| s.grpc.listen = address).await;
        Self { server, machine, token }
    }
}

fn messages(request_id: Uuid, document: &[u8]) -> Vec<v1::PrintRequest> {
    let header = v1::PrintHeader { printer: "laser".into(), request_id: request_id.to_string(), ..Default::default() };
    let mut messages = vec![v1::PrintRequest { part: Some(Part::Header(header)) }];
    messages.extend(
        document.chunks(1 << 20).map(|c| v1::PrintRequest { part: Some(Part::Data(Bytes::copy_from_slice(c))) }),
    );
    messages
}

async fn print(client: &mut Client, document: &[u8]) -> v1::PrintJob {
    client.print(tokio_stream::iter(messages(Uuid::new_v4(), document))).await.unwrap().into_inner()
}

async fn get(client: &mut Client, id: &str) -> v1::PrintJob {
    client.get_print_job(v1::GetPrintJobRequest { id: id.to_owned() }).await.unwrap().into_inner()
}

/// Waits until it is so. What is asked is cheap, and there is nothing to wait on.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("it never came to this: {what}"));
}

async fn until_state(client: &Client, id: &str, state: v1::PrintJobState) -> v1::PrintJob {
    until(state.as_str_name(), || {
        let mut client = client.clone();
        async move { get(&mut client, id).await.state() == state }
    })
    .await;
    get(&mut client.clone(), id).await
}

fn document(size: usize, seed: u8) -> Vec<u8> {
    (0..size).map(|n| (n / 251) as u8 ^ (n as u8) ^ seed).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_pulled_printed_and_forgotten() {
    let shop = Shop::new().await;
    let spool = Spool::new(true);
    let mut anna = shop.anna();
    let early = print(&mut anna, &document(700_000, 1)).await;
    let _puller = shop.pull(&spool);
    let late = print(&mut anna, &document(10, 2)).await;
    for job in [&early, &late] {
        let done = until_state(&anna, &job.id, v1::PrintJobState::Completed).await;
        assert_eq!((done.sheets, done.attempt, done.may_be_printed_twice), (1, 1, false));
    }
    let paper = spool.paper();
    assert_eq!(paper.len(), 2);
    assert!(paper.iter().any(|(_, d)| *d == document(700_000, 1)) && paper.iter().any(|(_, d)| *d == document(10, 2)));
    until("the spool has forgotten both", || async { spool.known() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_urgent_is_taken_first_and_what_becomes_urgent_is_moved_up_where_it_is() {
    let shop = Shop::new().await;
    let spool = Spool::new(false);
    let mut anna = shop.anna();
    let mut ids = Vec::new();
    for priority in [10, 50, 90] {
        let v1::PrintRequest { part: Some(Part::Header(mut header)) } = messages(Uuid::new_v4(), b"x")[0].clone()
        else {
            panic!()
        };
        header.priority = priority;
        let first = v1::PrintRequest { part: Some(Part::Header(header)) };
        let all = vec![first, messages(Uuid::new_v4(), b"x")[1].clone()];
        ids.push(anna.print(tokio_stream::iter(all)).await.unwrap().into_inner().id);
    }
    let _puller = shop.pull(&spool);
    for id in &ids {
        until_state(&anna, id, v1::PrintJobState::Taken).await;
    }
    let uuid = |id: &String| Uuid::parse_str(id).unwrap();
    assert_eq!(spool.disk.lock().order.last().copied(), Some(uuid(&ids[0])), "the least urgent one is the last");
    let request = v1::SetPrintJobPriorityRequest { id: ids[0].clone(), priority: 100 };
    anna.set_print_job_priority(request).await.unwrap();
    until("it is moved up in the spool", || async {
        spool.disk.lock().jobs.get(&uuid(&ids[0])).is_some_and(|(job, _)| job.priority == 100)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printer_that_went_while_there_was_no_connection_is_withdrawn_by_the_next() {
    let shop = Shop::new().await;
    let spool = Spool::new(false);
    let mut anna = shop.anna();
    let job = print(&mut anna, b"x").await;
    // The program was off meanwhile, and comes back with another printer.
    spool.disk.lock().offers = Some("inkjet");
    let _puller = shop.pull(&spool);
    let ended = until_state(&anna, &job.id, v1::PrintJobState::Canceled).await;
    assert_eq!(ended.state_reason, "the printer was removed");
    let list = v1::ListPrintersRequest::default();
    assert!(anna.list_printers(list).await.unwrap().into_inner().printers.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_goes_on_where_the_server_was_restarted() {
    let shop = Shop::new().await;
    let spool = Spool::new(true);
    let open = CancellationToken::new();
    spool.disk.lock().gate = Some((300_000, open.clone()));
    let puller = shop.pull(&spool);
    let job = print(&mut shop.anna(), &document(6_000_000, 3)).await;
    let id = Uuid::parse_str(&job.id).unwrap();
    let had = || spool.disk.lock().parts.get(&id).map_or(0, Vec::len);
    until("some of the document is there", || async { had() >= 300_000 }).await;
    let shop = shop.restart().await;
    open.cancel();
    until_state(&shop.anna(), &job.id, v1::PrintJobState::Completed).await;
    assert!(spool.paper() == [(id, document(6_000_000, 3))]);
    assert_eq!(spool.disk.lock().accepts[&id], 1, "it was accepted once, over two connections");
    assert!(puller.status.borrow().connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_crashes_at_any_point_prints_once() {
    let shop = Shop::new().await;
    let spool = Spool::new(false);
    let mut anna = shop.anna();
    // In the middle of a document.
    let open = CancellationToken::new();
    spool.disk.lock().gate = Some((500_000, open.clone()));
    let puller = shop.pull(&spool);
    let job = print(&mut anna, &document(2_000_000, 4)).await;
    let id = Uuid::parse_str(&job.id).unwrap();
    until("half of it", || async { spool.disk.lock().parts.get(&id).is_some_and(|p| p.len() >= 500_000) }).await;
    drop(puller);
    spool.disk.lock().gate = None;
    // After it was accepted, with nothing said.
    let puller = shop.pull(&spool);
    until("accepted", || async { spool.known() == 1 }).await;
    drop(puller);
    // After it was printed, with nothing said.
    spool.print_all();
    let puller = shop.pull(&spool);
    let done = until_state(&anna, &job.id, v1::PrintJobState::Completed).await;
    assert_eq!((done.attempt, done.may_be_printed_twice), (1, false));
    until("forgotten", || async { spool.known() == 0 }).await;
    drop(puller);
    let _puller = shop.pull(&spool);
    let next = print(&mut anna, &document(5, 5)).await;
    until_state(&anna, &next.id, v1::PrintJobState::Completed).await;
    assert!(spool.paper() == [(id, document(2_000_000, 4)), (Uuid::parse_str(&next.id).unwrap(), document(5, 5))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_delivered_twice_is_printed_once() {
    let mut shop = Shop::new().await;
    let spool = Spool::new(false);
    let mut puller = shop.pull(&spool);
    let mut jobs = Vec::new();
    for n in 0..8 {
        jobs.push(print(&mut shop.anna(), &document(50_000, n)).await);
    }
    until("all accepted", || async { spool.known() == 8 }).await;
    // Each watch begins with all jobs, those that were taken included.
    for _ in 0..2 {
        shop = shop.restart().await;
        tokio::time::timeout(PATIENCE, puller.status.wait_for(|s| s.connected)).await.unwrap().unwrap();
    }
    puller = shop.pull(&spool);
    spool.print_all();
    let anna = shop.anna();
    for job in &jobs {
        let done = until_state(&anna, &job.id, v1::PrintJobState::Completed).await;
        assert_eq!(done.attempt, 1);
    }
    assert_eq!(spool.paper().len(), 8);
    assert!(spool.disk.lock().accepts.values().all(|n| *n == 1));
    drop(puller);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_was_lost_takes_its_jobs_again_and_they_say_so() {
    let shop = Shop::new().await;
    let spool = Spool::new(false);
    let mut anna = shop.anna();
    let puller = shop.pull(&spool);
    let job = print(&mut anna, b"once or twice").await;
    until_state(&anna, &job.id, v1::PrintJobState::Taken).await;
    until("accepted", || async { spool.known() == 1 }).await;
    drop(puller);
    spool.lose_everything();
    spool.print_all();
    let _puller = shop.pull(&spool);
    let done = until_state(&anna, &job.id, v1::PrintJobState::Completed).await;
    assert_eq!((done.attempt, done.may_be_printed_twice), (2, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_is_carried_out_where_the_job_is() {
    let shop = Shop::new().await;
    let spool = Spool::new(false);
    let mut anna = shop.anna();
    let cancel = |job: &v1::PrintJob| {
        let (mut client, id) = (anna.clone(), job.id.clone());
        async move { client.cancel_print_job(v1::CancelPrintJobRequest { id }).await.unwrap().into_inner() }
    };
    let open = CancellationToken::new();
    let puller = shop.pull(&spool);
    // In the machine's queue.
    let queued = print(&mut anna.clone(), b"queued").await;
    until("accepted", || async { spool.known() == 1 }).await;
    assert!(cancel(&queued).await.cancel_requested);
    until_state(&anna, &queued.id, v1::PrintJobState::Canceled).await;
    until("forgotten", || async { spool.known() == 0 }).await;
    // While its document is fetched.
    spool.disk.lock().gate = Some((100_000, open.clone()));
    let fetched = print(&mut anna.clone(), &document(3_000_000, 6)).await;
    let id = Uuid::parse_str(&fetched.id).unwrap();
    until("fetching", || async { spool.disk.lock().parts.contains_key(&id) }).await;
    assert!(cancel(&fetched).await.cancel_requested);
    // The machine hears of it while the document is held up: another job shows that its watch has got that far.
    spool.disk.lock().gate = None;
    let marker = print(&mut anna.clone(), b"marker").await;
    until("the marker is there", || async {
        spool.disk.lock().jobs.contains_key(&Uuid::parse_str(&marker.id).unwrap())
    })
    .await;
    open.cancel();
    until_state(&anna, &fetched.id, v1::PrintJobState::Canceled).await;
    cancel(&marker).await;
    until_state(&anna, &marker.id, v1::PrintJobState::Canceled).await;
    drop(puller);
    // While the machine is away: it learns of it when it is back, and says what became of the job.
    let puller = shop.pull(&spool);
    let away = print(&mut anna, b"away").await;
    until("accepted", || async { spool.disk.lock().jobs.contains_key(&Uuid::parse_str(&away.id).unwrap()) }).await;
    drop(puller);
    let mut client = shop.anna();
    let asked = client.cancel_print_job(v1::CancelPrintJobRequest { id: away.id.clone() }).await.unwrap().into_inner();
    assert!(asked.cancel_requested);
    let _puller = shop.pull(&spool);
    until_state(&client, &away.id, v1::PrintJobState::Canceled).await;
    assert_eq!(spool.paper(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_wait_for_a_machine_that_is_away_and_its_printing_goes_on_without_the_server() {
    let shop = Shop::new().await;
    let spool = Spool::new(false);
    let job = print(&mut shop.anna(), b"waits").await;
    let mut puller = shop.pull(&spool);
    until_state(&shop.anna(), &job.id, v1::PrintJobState::Taken).await;
    until("accepted", || async { spool.known() == 1 }).await;
    let (address, machine, token) = (shop.server.running.addr, shop.machine.clone(), shop.token.clone());
    let directory = shop.server.stop().await;
    tokio::time::timeout(PATIENCE, puller.status.wait_for(|s| !s.connected && s.problem.is_some()))
        .await
        .unwrap()
        .unwrap();
    // The server is away; the machine prints what it has.
    spool.print_all();
    assert_eq!(spool.paper().len(), 1);
    let server = TestServer::in_directory(directory, |s| s.grpc.listen = address).await;
    let shop = Shop { server, machine, token };
    until_state(&shop.anna(), &job.id, v1::PrintJobState::Completed).await;
    tokio::time::timeout(PATIENCE, puller.status.wait_for(|s| s.connected && s.problem.is_none()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(spool.paper().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_spool_never_takes_is_aborted_with_the_reason() {
    let shop = Shop::new().await;
    let spool = Spool::new(true);
    spool.disk.lock().refuse = Some(Reason::PrintFormatUnknown);
    let _puller = shop.pull(&spool);
    let mut anna = shop.anna();
    let job = print(&mut anna, b"???").await;
    let done = until_state(&anna, &job.id, v1::PrintJobState::Aborted).await;
    assert!(done.state_reason.contains("the spool does not want it"), "{}", done.state_reason);
    // A spool that was full for a moment is asked again.
    spool.disk.lock().refuse = Some(Reason::DiskFull);
    let job = print(&mut anna, b"later").await;
    let id = Uuid::parse_str(&job.id).unwrap();
    until("it was tried", || async { spool.disk.lock().accepts.contains_key(&id) }).await;
    spool.disk.lock().refuse = None;
    until_state(&anna, &job.id, v1::PrintJobState::Completed).await;
    assert_eq!(spool.paper().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_another_machine_has_is_said_and_holds_up_nothing() {
    let shop = Shop::new().await;
    let other = shop.server.join().await;
    let spool = Spool::new(true);
    let mut puller = start(shop.server.device(&other), &spool);
    let refused = puller.status.wait_for(|s| s.connected && !s.refused.is_empty());
    assert_eq!(tokio::time::timeout(PATIENCE, refused).await.unwrap().unwrap().refused[0].0, "laser");
}

/// The program itself, on the directory of a server that was stopped.
struct Process(Child);

impl Process {
    fn start(directory: &Path, address: SocketAddr) -> Self {
        let text = format!(
            "[grpc]\nlisten = '{address}'\n[web]\nenabled = false\n[server]\nreserve = '1MiB'\n\
             [sessions]\nhash_memory = '8KiB'\nhash_passes = 1\n"
        );
        let file = directory.join("server.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_central-server"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ATRIUM_")) {
            command.env_remove(name);
        }
        command.arg("--config").arg(&file).arg("--data-dir").arg(directory.join("data"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the server did not start");
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_again_and_again_loses_no_job_and_doubles_none() {
    const CLIENTS: u8 = 3;
    const JOBS: u8 = 12;
    const KILLS: u32 = 8;
    let shop = Shop::new().await;
    let address = shop.server.running.addr;
    let spool = Spool::new(true);
    let connections: Vec<OfficeConnection> = (0..CLIENTS).map(|_| shop.server.with_token(&shop.token)).collect();
    let mut puller = shop.pull(&spool);
    let (machine, server) = (shop.machine.clone(), shop.server);
    let pulling = server.device(&machine);
    let directory = server.stop().await;
    let mut process = Process::start(directory.path(), address);
    let acknowledged = Arc::new(Mutex::new(HashMap::<Uuid, (Uuid, u8)>::new()));
    let clients: Vec<JoinHandle<()>> = connections
        .into_iter()
        .enumerate()
        .map(|(client, connection)| {
            let acknowledged = acknowledged.clone();
            tokio::spawn(async move {
                for n in 0..JOBS {
                    let (request, seed) = (Uuid::new_v4(), client as u8 * JOBS + n);
                    let job = loop {
                        let stream = tokio_stream::iter(messages(request, &document(400_000, seed)));
                        match Client::new(connection.control()).print(stream).await {
                            Ok(job) => break job.into_inner(),
                            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                        }
                    };
                    acknowledged.lock().insert(Uuid::parse_str(&job.id).unwrap(), (request, seed));
                }
            })
        })
        .collect();
    // A kill comes after so many further acknowledgements, each time after a little longer.
    for kill in 0..KILLS {
        let wanted = (kill as usize + 1) * 4;
        until("work goes on", || async {
            acknowledged.lock().len() >= wanted || clients.iter().all(JoinHandle::is_finished)
        })
        .await;
        tokio::time::sleep(Duration::from_micros(u64::from(kill) * 3_700)).await;
        drop(process);
        if kill % 3 == 2 {
            // The machine's program crashes too.
            puller.task.abort();
            let _ = (&mut puller.task).await;
            puller = start(pulling.clone(), &spool);
        }
        let directory = directory.path().to_owned();
        process = tokio::task::spawn_blocking(move || Process::start(&directory, address)).await.unwrap();
    }
    for client in clients {
        tokio::time::timeout(PATIENCE, client).await.expect("the clients end").unwrap();
    }
    let all = CLIENTS as usize * JOBS as usize;
    assert_eq!(acknowledged.lock().len(), all, "each request is one job");
    until("all are on paper", || async { spool.paper().len() >= all }).await;
    until("the server knows it", || async { spool.known() == 0 }).await;
    let mut paper = spool.paper();
    paper.sort();
    for (id, (_, seed)) in acknowledged.lock().iter() {
        let prints: Vec<_> = paper.iter().filter(|(job, _)| job == id).collect();
        assert_eq!(prints.len(), 1, "once each");
        assert!(prints[0].1 == document(400_000, *seed), "and what was handed over");
    }
    assert_eq!(paper.len(), all, "and nothing else");
    drop((puller, process));
    let left = std::fs::read_dir(directory.path().join("data/print")).unwrap().count();
    assert_eq!(left, 0, "no document is left");
}
