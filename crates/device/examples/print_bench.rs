//! How fast jobs are accepted and finished, here and by another print server.
//!
//! ```text
//! print_bench URI [JOBS]                   jobs of 30 kB to that printer, and until all of them are over
//! print_bench folder DIR [JOBS]            the same to a folder printer inside of this process, over IPP
//!     NOWAIT=1: only until they are accepted; FORMAT=TYPE: under this media type; LANES=N: with so many connections only
//! print_bench sample FILE PAGES            writes a PDF file of so many pages (or raster, if it ends with .pwg)
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use atrium_device::ipp::client::{Client, Piece, Target};
use atrium_device::ipp::{Message, Operation, Value, group};
use atrium_device::printer::pages::{pdf, raster};
use atrium_device::printer::service::{Open, Service, ServiceOptions};
use atrium_device::printer::{Destination, Options, PrinterConfig, Printers};
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error>;

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

async fn measure(uri: &str, jobs: usize, connections: usize) -> Result<(f64, f64), Failure> {
    let client = Client::new(Target::of_uri(uri)?, None);
    let mut file = tempfile::tempfile()?;
    let content = one_page();
    std::io::Write::write_all(&mut file, &content)?;
    let piece = Piece { file: Arc::new(file), offset: 0, length: content.len() as u64 };
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for lane in 0..connections {
        let (client, piece) = (client.clone(), piece.clone());
        tasks.push(tokio::spawn(async move {
            for n in (lane..jobs).step_by(connections) {
                let mut print = request(&client, Operation::PrintJob);
                let attributes = print.group_mut(group::OPERATION);
                attributes.put("job-name", Value::name(format!("bench {n}")));
                let format = std::env::var("FORMAT").unwrap_or_else(|_| "application/pdf".into());
                attributes.put("document-format", Value::MimeType(format));
                client.ask(&print, Some(vec![piece.clone()])).await?;
            }
            Ok::<_, common::error::Error>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let accepted = begin.elapsed();
    while std::env::var_os("NOWAIT").is_none() {
        let mut list = request(&client, Operation::GetJobs);
        list.group_mut(group::OPERATION).put("which-jobs", Value::keyword("not-completed"));
        let answer = client.ask(&list, None).await?;
        if !answer.groups.iter().any(|g| g.tag == group::JOB) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let finished = begin.elapsed();
    let rate = |time: Duration| jobs as f64 / time.as_secs_f64();
    println!(
        "accepted {:.0}/s, finished {:.0}/s ({jobs} jobs, {connections} connections)",
        rate(accepted),
        rate(finished)
    );
    Ok((rate(accepted), rate(finished)))
}

fn lanes() -> Vec<usize> {
    std::env::var("LANES").ok().and_then(|n| n.parse().ok()).map_or(vec![1, 4, 16], |n| vec![n])
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
        Some("folder") => {
            let dir = std::path::PathBuf::from(words.get(1).ok_or("a directory is needed")?);
            let printers = Printers::open(Options::new(dir.join("state"))).await?;
            let destination = Destination::Folder { path: dir.join("out"), pages_per_minute: None };
            printers.put(PrinterConfig::new("bench", destination)).await?;
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let uri = format!("ipp://{}/ipp/print", listener.local_addr()?);
            let service = Service::new(printers.clone(), Arc::new(Open), ServiceOptions::default());
            let stop = CancellationToken::new();
            let serving = tokio::spawn({
                let stop = stop.clone();
                async move { service.serve(listener, None, Some("bench".into()), stop).await }
            });
            for connections in lanes() {
                measure(&uri, number(2, 100)?, connections).await?;
            }
            stop.cancel();
            serving.await?;
            printers.close().await;
        }
        Some(uri) => {
            for connections in lanes() {
                measure(uri, number(1, 100)?, connections).await?;
            }
        }
        None => return Err("see the top of this example".into()),
    }
    Ok(())
}
