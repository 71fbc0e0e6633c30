//! How fast jobs are accepted and finished, here and by another print server.
//!
//! ```text
//! print_bench URI [JOBS]                   jobs of 30 kB to that printer, and until all of them are over
//!     NOWAIT=1: only until they are accepted; then they are canceled. FORMAT=TYPE: under this media type; LANES=N: with so
//!     many connections only, each of which is kept (ONCE=1: a connection for each job)
//! print_bench serve DIR                    two folder printers: /printers/held, which is paused, and /printers/folder
//! print_bench sample FILE PAGES            writes a PDF file of so many pages (or raster, if it ends with .pwg)
//! ```

use std::time::{Duration, Instant};

use atrium_device::ipp::client::{Client, Endpoint, Target, read_answer};
use atrium_device::ipp::{Message, Operation, Value, encode, group};
use atrium_device::printer::pages::{pdf, raster};
use atrium_device::printer::service::{Open, Service, ServiceOptions};
use atrium_device::printer::{Destination, Options, PrinterConfig, Printers};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A PDF file of one page and about 30 kB.
fn one_page() -> Vec<u8> {
    let mut file = pdf::sample(1, "Benchmark");
    file.extend(std::iter::repeat_n(b'\n', 30_000usize.saturating_sub(file.len())));
    file
}

fn request(client: &Client, operation: Operation) -> Message {
    let mut request = Message::request(operation, client.next_id());
    let attributes = request.group_mut(group::OPERATION);
    attributes.put("printer-uri", Value::uri(&client.target().uri));
    attributes.put("requesting-user-name", Value::name("bench"));
    request
}

/// A connection that is kept: the smallest client that there can be, so that the server is what is measured.
struct Lane {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    target: Target,
}

impl Lane {
    async fn open(target: &Target) -> Result<Self, Failure> {
        let Endpoint::Tcp { host, port, .. } = &target.endpoint else { return Err("an address is needed".into()) };
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, target: target.clone() })
    }

    async fn ask(&mut self, message: &Message, document: &[u8]) -> Result<(), Failure> {
        let mut body = encode(message).to_vec();
        body.extend_from_slice(document);
        let request = http::Request::post(self.target.path.as_str())
            .header(http::header::HOST, "localhost")
            .header(http::header::CONTENT_TYPE, "application/ipp")
            .body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?.into_body().collect().await?.to_bytes();
        let answer = read_answer(&answer).map_err(|e| format!("{e:?}"))?;
        match answer.status() {
            Some(status) if status.is_success() => Ok(()),
            status => Err(format!("the job was refused: {status:?}").into()),
        }
    }
}

async fn measure(uri: &str, jobs: usize, connections: usize) -> Result<(), Failure> {
    let client = Client::new(Target::of_uri(uri)?, None);
    let content = one_page();
    let once = std::env::var_os("ONCE").is_some();
    let format = std::env::var("FORMAT").unwrap_or_else(|_| "application/pdf".into());
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..connections {
        let (client, content, format) = (client.clone(), content.clone(), format.clone());
        tasks.push(tokio::spawn(async move {
            let mut lane = Lane::open(client.target()).await?;
            for n in (number..jobs).step_by(connections) {
                let mut print = request(&client, Operation::PrintJob);
                let attributes = print.group_mut(group::OPERATION);
                attributes.put("job-name", Value::name(format!("bench {n}")));
                attributes.put("document-format", Value::MimeType(format.clone()));
                if once {
                    lane = Lane::open(client.target()).await?;
                }
                lane.ask(&print, &content).await?;
            }
            Ok::<_, Failure>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let accepted = begin.elapsed();
    let rate = |time: Duration| jobs as f64 / time.as_secs_f64();
    let what = format!("({jobs} jobs, {connections} connections)");
    if std::env::var_os("NOWAIT").is_some() {
        client.ask(&request(&client, Operation::CancelMyJobs), None).await?;
        println!("accepted {:.0}/s {what}", rate(accepted));
        return Ok(());
    }
    loop {
        let mut list = request(&client, Operation::GetJobs);
        list.group_mut(group::OPERATION).put("which-jobs", Value::keyword("not-completed"));
        let answer = client.ask(&list, None).await?;
        if !answer.groups.iter().any(|g| g.tag == group::JOB) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    println!("accepted {:.0}/s, finished {:.0}/s {what}", rate(accepted), rate(begin.elapsed()));
    Ok(())
}

fn lanes() -> Vec<usize> {
    std::env::var("LANES").ok().and_then(|n| n.parse().ok()).map_or(vec![1, 4, 16], |n| vec![n])
}

async fn serve(dir: std::path::PathBuf) -> Result<(), Failure> {
    let printers = Printers::open(Options::new(dir.join("state"))).await?;
    for name in ["held", "folder"] {
        let destination = Destination::Folder { path: dir.join(name), pages_per_minute: None };
        printers.put(PrinterConfig::new(name, destination)).await?;
    }
    printers.pause("held", true).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let service = Service::new(printers.clone(), std::sync::Arc::new(Open), ServiceOptions::default());
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { service.serve(listener, None, None, stop).await }
    });
    println!("READY port={port}");
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    term.recv().await;
    stop.cancel();
    serving.await?;
    printers.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize, usual: usize| words.get(n).map_or(Ok(usual), |w| w.parse());
    match words.first().map(String::as_str) {
        Some("sample") => {
            let file = words.get(1).ok_or("a file is needed")?;
            let pages = number(2, 1)? as u32;
            let content = if file.ends_with(".pwg") {
                raster::white_pwg(pages, 1240, 1754)
            } else {
                pdf::sample(pages, "Sample")
            };
            std::fs::write(file, content)?;
        }
        Some("serve") => serve(words.get(1).ok_or("a directory is needed")?.into()).await?,
        Some(uri) => {
            for connections in lanes() {
                measure(uri, number(1, 100)?, connections).await?;
            }
        }
        None => return Err("see the top of this example".into()),
    }
    Ok(())
}
