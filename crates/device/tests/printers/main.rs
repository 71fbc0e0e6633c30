//! Printers over IPP: the service, its refusals, and printers that print to other printers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use atrium_device::ipp::client::{Client, Piece, Target, read_answer};
use atrium_device::ipp::trust::{first_use, peek};
use atrium_device::ipp::{Message, Operation, Status, Trust, Value, encode, group};
use atrium_device::model::Caller;
use atrium_device::printer::fault::Switch;
use atrium_device::printer::output::Fault;
use atrium_device::printer::pages::pdf;
use atrium_device::printer::service::{Access, Open, Peer, Service, ServiceOptions};
use atrium_device::printer::{
    Destination, DocumentRequest, Faults, Job, JobId, JobRequest, JobState, Options, PrinterConfig, PrinterState,
    Printers, Right, Ticket, Who,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// How often outputs are asked how they are.
const PROBE: Duration = Duration::from_millis(10);

/// A printer in a directory, served on a port.
struct Node {
    printers: Printers,
    switch: Switch,
    uri: String,
    address: std::net::SocketAddr,
    stop: CancellationToken,
}

async fn open(dir: &Path) -> (Printers, Switch) {
    let (faults, switch) = Faults::switched();
    let options = Options {
        faults,
        probe_every: PROBE,
        idle_probe_every: PROBE,
        reserve_bytes: 0,
        ..Options::new(dir.join("state"))
    };
    (Printers::open(options).await.unwrap(), switch)
}

impl Node {
    async fn start(dir: &Path, access: impl Access, change: impl FnOnce(&mut PrinterConfig)) -> Self {
        let (printers, switch) = open(dir).await;
        let mut config =
            PrinterConfig::new("laser", Destination::Folder { path: dir.join("out"), pages_per_minute: None });
        change(&mut config);
        printers.put(config).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Service::new(printers.clone(), Arc::new(access), ServiceOptions::default());
        let stop = CancellationToken::new();
        let until = stop.clone();
        tokio::spawn(async move { service.serve(listener, None, Some("laser".into()), until).await });
        Self { printers, switch, uri: format!("ipp://{address}/ipp/print"), address, stop }
    }

    fn client(&self) -> Client {
        Client::new(Target::of_uri(&self.uri).unwrap(), None)
    }

    /// A request of the protocol, for this printer and in this name.
    fn request(&self, operation: Operation, user: &str) -> Message {
        let mut request = Message::request(operation, 7);
        request.group_mut(group::OPERATION).put("printer-uri", Value::uri(&self.uri));
        request.group_mut(group::OPERATION).put("requesting-user-name", Value::name(user));
        request
    }

    async fn ask(&self, request: &Message) -> Message {
        self.client().send(request, None).await.unwrap()
    }

    async fn print(&self, user: &str, content: &[u8]) -> Message {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
        let piece = Piece { file: Arc::new(file), offset: 0, length: content.len() as u64 };
        self.client().send(&self.request(Operation::PrintJob, user), Some(vec![piece])).await.unwrap()
    }
}

/// A printer that is reached without TLS.
fn ipp(uri: &str) -> Destination {
    Destination::Ipp { uri: uri.to_owned(), trust: Trust::default() }
}

/// The boss may do everything, nobody nothing, others print.
struct Careful;
impl Access for Careful {
    fn allows(&self, who: &Who, _: &Peer, _: &str, right: Right) -> bool {
        match who.caller.person.as_str() {
            "boss" => true,
            "nobody" => false,
            _ => right != Right::Manage,
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.map(|e| e.unwrap().path()).filter(|p| !p.file_name().unwrap().to_str().unwrap().starts_with('.')).collect()
}

fn anna() -> Who {
    Who::member(Caller { person: "anna".into(), machine: "pc".into(), device: "aa".into() })
}

async fn submit(printers: &Printers, ticket: Ticket, content: &[u8]) -> Job {
    let request = JobRequest { name: "report".into(), ticket, ..JobRequest::default() };
    let mut upload = printers.submit("laser", &anna(), request, DocumentRequest::default(), None).unwrap();
    upload.write(content).await.unwrap();
    upload.finish().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printer_prints_to_another_one_and_learns_what_it_printed() {
    let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let far_node = Node::start(far.path(), Open, |_| {}).await;
    let near_node = Node::start(near.path(), Open, |c| {
        c.outputs[0].destination = ipp(&far_node.uri);
    })
    .await;
    let job = submit(&near_node.printers, Ticket { copies: 2, ..Ticket::default() }, &pdf::sample(3, "far")).await;
    let job = near_node.printers.over(job.id).await.unwrap();
    assert_eq!((job.state, job.impressions_done), (JobState::Completed, 6));
    assert_eq!(files(&far.path().join("out")).len(), 1);
    let there = far_node.printers.jobs(None, |_| true, 10).unwrap();
    assert_eq!((there[0].ticket.copies, there[0].owner.caller.person.as_str()), (2, "anna"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_the_far_printers_answer_doubles_nothing() {
    for point in ["output-begin", "output-end"] {
        let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let far_node = Node::start(far.path(), Open, |_| {}).await;
        let (printers, switch) = open(near.path()).await;
        printers.put(PrinterConfig::new("laser", ipp(&far_node.uri))).await.unwrap();
        printers.pause("laser", true).await.unwrap();
        let job = submit(&printers, Ticket::default(), &pdf::sample(1, "once")).await;
        switch.die_at(point, 1);
        // It dies while this is answered, or soon after.
        let _ = printers.pause("laser", false).await;
        tokio::time::timeout(Duration::from_secs(30), async {
            while !switch.is_dead() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
        printers.close().await;
        drop(printers);
        let (printers, _) = open(near.path()).await;
        assert_eq!(printers.over(job.id).await.unwrap().state, JobState::Completed, "{point}");
        assert_eq!(files(&far.path().join("out")).len(), 1, "{point}");
        assert_eq!(far_node.printers.jobs(None, |_| true, 10).unwrap().len(), 1, "{point}");
        assert!(!far_node.switch.is_dead());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_printer_that_is_off_or_refuses_is_waited_for() {
    let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Nobody listens there yet.
    let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let (printers, _) = open(near.path()).await;
    let uri = format!("ipp://{address}/ipp/print");
    printers.put(PrinterConfig::new("laser", ipp(&uri))).await.unwrap();
    let job = submit(&printers, Ticket::default(), &pdf::sample(1, "later")).await;
    printers.until(|p| p.get("laser").unwrap().state == PrinterState::Stopped).await.unwrap();
    assert_eq!(printers.get("laser").unwrap().reasons, ["connecting-to-device"]);
    // It is switched on.
    let (far_printers, _) = open(far.path()).await;
    let folder = Destination::Folder { path: far.path().join("out"), pages_per_minute: None };
    far_printers.put(PrinterConfig::new("laser", folder)).await.unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let service = Service::new(far_printers.clone(), Arc::new(Open), ServiceOptions::default());
    tokio::spawn(async move { service.serve(listener, None, Some("laser".into()), CancellationToken::new()).await });
    assert_eq!(printers.over(job.id).await.unwrap().state, JobState::Completed);
    // It runs out of paper in its queue; what waits there is seen here, and canceled there when it is canceled here.
    far_printers.set_fault("laser", "laser", Fault::Empty).unwrap();
    let job = submit(&printers, Ticket::default(), &pdf::sample(1, "never")).await;
    far_printers.until(|p| p.get("laser").unwrap().jobs == 1).await.unwrap();
    let verb = atrium_device::printer::Verb::Cancel;
    printers.control(job.id, &anna(), false, verb).await.unwrap();
    assert_eq!(printers.over(job.id).await.unwrap().state, JobState::Canceled);
    assert_eq!(far_printers.get("laser").unwrap().jobs, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cancel_nothing_and_only_managers_pause() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), Careful, |_| {}).await;
    assert_eq!(node.ask(&node.request(Operation::PausePrinter, "anna")).await.status(), Some(Status::NotAuthorized));
    assert_eq!(node.ask(&node.request(Operation::PausePrinter, "boss")).await.status(), Some(Status::Ok));
    assert_eq!(node.print("nobody", &pdf::sample(1, "x")).await.status(), Some(Status::NotFound), "not even seen");
    let made = node.print("anna", &pdf::sample(1, "x")).await;
    let id = made.group(group::JOB).unwrap().int("job-id").unwrap();
    let about = |operation, user| {
        let mut request = node.request(operation, user);
        request.group_mut(group::OPERATION).put("job-id", Value::Integer(id));
        request
    };
    assert_eq!(node.ask(&about(Operation::CancelJob, "eve")).await.status(), Some(Status::NotAuthorized));
    let seen = node.ask(&about(Operation::GetJobAttributes, "eve")).await;
    assert_eq!(seen.group(group::JOB).unwrap().str("job-name"), Some("private"));
    assert_eq!(node.ask(&about(Operation::CancelJob, "anna")).await.status(), Some(Status::Ok));
    assert_eq!(node.ask(&about(Operation::CancelJob, "anna")).await.status(), Some(Status::NotPossible));
    assert_eq!(node.ask(&about(Operation::RestartJob, "anna")).await.status(), Some(Status::NotPossible));
    node.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_refuses_before_the_document_comes() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), Open, |c| c.quotas.unauthenticated.bytes = Some(1_000_000)).await;
    let mut stream = TcpStream::connect(node.address).await.unwrap();
    let head = encode(&node.request(Operation::PrintJob, "anna"));
    let length = head.len() + 2_000_000_000;
    let text = format!(
        "POST /ipp/print HTTP/1.1\r\nHost: x\r\nContent-Type: application/ipp\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.write_all(&head).await.unwrap();
    // Not one byte of the document was sent.
    let answer = answer(&mut stream).await;
    assert_eq!(answer.status(), Some(Status::AccountLimitReached));
    assert!(answer.operation_str("status-message").unwrap().contains("1000000 bytes"));
}

/// The IPP message of an HTTP answer that ends with the connection.
async fn answer(stream: &mut TcpStream) -> Message {
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    tokio::time::timeout(Duration::from_secs(30), reading).await.unwrap().unwrap();
    let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("an HTTP answer");
    read_answer(&bytes[at + 4..]).expect("an IPP message")
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_requests_that_wait_for_100_continue_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), Open, |_| {}).await;
    let mut stream = TcpStream::connect(node.address).await.unwrap();
    let text = "POST /ipp/print HTTP/1.1\r\nHost: x\r\nContent-Type: application/ipp\r\nTransfer-Encoding: chunked\r\n\
                Expect: 100-continue\r\nConnection: close\r\n\r\n";
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut go = [0; 25];
    stream.read_exact(&mut go).await.unwrap();
    assert_eq!(&go, b"HTTP/1.1 100 Continue\r\n\r\n");
    let mut whole = encode(&node.request(Operation::PrintJob, "anna")).to_vec();
    let content = pdf::sample(2, "chunks");
    whole.extend_from_slice(&content);
    for part in whole.chunks(7) {
        stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await.unwrap();
        stream.write_all(part).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let answer = answer(&mut stream).await;
    assert_eq!(answer.status(), Some(Status::Ok));
    let id = answer.group(group::JOB).unwrap().int("job-id").unwrap();
    node.printers.over(JobId(id as u32)).await.unwrap();
    assert_eq!(std::fs::read(&files(&dir.path().join("out"))[0]).unwrap(), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_several_documents_and_pins_work_over_ipp() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), Open, |_| {}).await;
    let mut create = node.request(Operation::CreateJob, "anna");
    create.group_mut(group::OPERATION).put("job-password", Value::OctetString("4711".into()));
    let made = node.ask(&create).await;
    let id = made.group(group::JOB).unwrap().int("job-id").unwrap();
    for (n, last) in [(1, false), (2, true)] {
        let mut send = node.request(Operation::SendDocument, "anna");
        send.group_mut(group::OPERATION).put("job-id", Value::Integer(id)).put("last-document", Value::Boolean(last));
        let content = pdf::sample(n, "part");
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &content).unwrap();
        let piece = Piece { file: Arc::new(file), offset: 0, length: content.len() as u64 };
        assert_eq!(node.client().send(&send, Some(vec![piece])).await.unwrap().status(), Some(Status::Ok));
    }
    let job = node.printers.job(JobId(id as u32)).unwrap();
    assert_eq!((job.state, job.sheets, job.reason.as_str()), (JobState::Held, 3, "job-password-wait"));
    let mut release = node.request(Operation::ReleaseJob, "somebody-at-the-printer");
    release.group_mut(group::OPERATION).put("job-id", Value::Integer(id));
    assert_eq!(node.ask(&release).await.status(), Some(Status::NotAuthorized));
    release.group_mut(group::OPERATION).put("job-password", Value::OctetString("4711".into()));
    assert_eq!(node.ask(&release).await.status(), Some(Status::Ok));
    node.printers.over(JobId(id as u32)).await.unwrap();
    assert_eq!(files(&dir.path().join("out")).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_pulled_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), Careful, |_| {}).await;
    let mut subscribe = node.request(Operation::CreatePrinterSubscriptions, "anna");
    let wanted = subscribe.group_mut(group::SUBSCRIPTION);
    wanted.put("notify-pull-method", Value::keyword("ippget"));
    wanted.put("notify-events", Value::keyword("job-completed"));
    let made = node.ask(&subscribe).await;
    let id = made.group(group::SUBSCRIPTION).unwrap().int("notify-subscription-id").unwrap();
    for _ in 0..3 {
        let made = node.print("anna", &pdf::sample(1, "x")).await;
        node.printers.over(JobId(made.group(group::JOB).unwrap().int("job-id").unwrap() as u32)).await.unwrap();
    }
    let mut pull = node.request(Operation::GetNotifications, "anna");
    pull.group_mut(group::OPERATION).put("notify-subscription-ids", Value::Integer(id));
    let numbers = |answer: &Message| -> Vec<i32> {
        let events = answer.groups.iter().filter(|g| g.tag == group::EVENT);
        events.map(|g| g.int("notify-sequence-number").unwrap()).collect()
    };
    let all = numbers(&node.ask(&pull).await);
    assert_eq!(all.len(), 3);
    assert!(all.is_sorted());
    pull.group_mut(group::OPERATION).put("notify-sequence-numbers", Value::Integer(all[1] + 1));
    assert_eq!(numbers(&node.ask(&pull).await), all[2..]);
    let mut other = node.request(Operation::CancelSubscription, "eve");
    other.group_mut(group::OPERATION).put("notify-subscription-id", Value::Integer(id));
    assert_eq!(node.ask(&other).await.status(), Some(Status::NotAuthorized));
}

/// Where a printer is served by TLS, and the certificate that it shows.
struct Secure {
    uri: String,
    certificate: rcgen::CertifiedKey<rcgen::KeyPair>,
}

/// Serves a printer by TLS, at this address, with a certificate that it made itself.
async fn serve_tls(printers: &Printers, at: &str, until: CancellationToken) -> Secure {
    let certificate = rcgen::generate_simple_self_signed(vec!["printer".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key.into())
        .unwrap();
    let listener = TcpListener::bind(at).await.unwrap();
    let uri = format!("ipps://{}/ipp/print", listener.local_addr().unwrap());
    let service = Service::new(printers.clone(), Arc::new(Open), ServiceOptions::default());
    tokio::spawn(async move { service.serve(listener, Some(Arc::new(config)), Some("laser".into()), until).await });
    Secure { uri, certificate }
}

async fn far_printers(dir: &Path) -> Printers {
    let (printers, _) = open(dir).await;
    let folder = Destination::Folder { path: dir.join("out"), pages_per_minute: None };
    printers.put(PrinterConfig::new("laser", folder)).await.unwrap();
    printers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printer_with_a_certificate_of_its_own_is_pinned_and_another_certificate_is_refused() {
    let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let far_printers = far_printers(far.path()).await;
    let stop = CancellationToken::new();
    let secure = serve_tls(&far_printers, "127.0.0.1:0", stop.clone()).await;
    let target = Target::of_uri(&secure.uri).unwrap();
    assert_eq!(peek(&target).await.unwrap(), secure.certificate.cert.der().to_vec());
    let pinned = first_use(&target).await.unwrap();
    assert_eq!(pinned, Trust::pin(secure.certificate.cert.der()), "no authority knows it");

    let (printers, _) = open(near.path()).await;
    let to =
        |trust: &Trust| PrinterConfig::new("laser", Destination::Ipp { uri: secure.uri.clone(), trust: trust.clone() });
    for trust in [&pinned, &Trust::Given(secure.certificate.cert.pem())] {
        printers.put(to(trust)).await.unwrap();
        let job = submit(&printers, Ticket::default(), &pdf::sample(1, "secret")).await;
        assert_eq!(printers.over(job.id).await.unwrap().state, JobState::Completed);
    }
    assert_eq!(files(&far.path().join("out")).len(), 2);

    // Nobody vouches for it: nothing is sent, and it says so.
    let stands = |p: &Printers| {
        let view = p.get("laser").unwrap();
        view.state == PrinterState::Stopped && view.reasons == ["certificate-untrusted"]
    };
    let other = rcgen::generate_simple_self_signed(vec!["printer".to_owned()]).unwrap();
    for trust in [Trust::System, Trust::Given(other.cert.pem())] {
        printers.put(to(&trust)).await.unwrap();
        printers.until(stands).await.unwrap();
    }
    printers.put(to(&pinned)).await.unwrap();
    printers.until(|p| p.get("laser").unwrap().state == PrinterState::Idle).await.unwrap();

    // Another printer, or somebody in between, at the same address: the job waits, and is not sent there.
    stop.cancel();
    let at = secure.uri.trim_start_matches("ipps://").split('/').next().unwrap().to_owned();
    until_free(&at).await;
    let again = CancellationToken::new();
    let new = serve_tls(&far_printers, &at, again.clone()).await;
    let job = submit(&printers, Ticket::default(), &pdf::sample(1, "secret")).await;
    printers.until(stands).await.unwrap();
    assert!(!printers.job(job.id).unwrap().state.is_over());
    assert_eq!(files(&far.path().join("out")).len(), 2);
    let told = Client::new(target.clone(), Some(pinned.config().unwrap())).handshake().await.unwrap_err();
    assert!(told.is(common::error::Reason::PrinterUntrusted));
    let shown = Trust::pin(new.certificate.cert.der()).to_string();
    assert_eq!(told.detail("certificate"), Some(shown.as_str()));
    assert!(told.why().contains(&shown) && told.fix().contains("--trust new"), "{} {}", told.why(), told.fix());
    // It is looked at anew: the job that waited is printed.
    printers.put(to(&Trust::pin(&peek(&target).await.unwrap()))).await.unwrap();
    assert_eq!(printers.over(job.id).await.unwrap().state, JobState::Completed);
    assert_eq!(files(&far.path().join("out")).len(), 3);
    // What is kept is read again.
    printers.close().await;
    drop(printers);
    let (printers, _) = open(near.path()).await;
    let job = submit(&printers, Ticket::default(), &pdf::sample(1, "after a restart")).await;
    assert_eq!(printers.over(job.id).await.unwrap().state, JobState::Completed);
    again.cancel();
}

/// Waits until nobody listens there any more.
async fn until_free(at: &str) {
    let free = tokio::time::timeout(Duration::from_secs(30), async {
        while TcpListener::bind(at).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    free.await.expect("the address is not given back");
}
