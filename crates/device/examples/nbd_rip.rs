//! Rips a disc that is exported by NBD on a Unix socket.
//!
//! ```text
//! nbd_rip SOCKET EXPORT IMAGE [RETRIES]
//! ```
//!
//! Exits with 0 if the image is whole, with 1 if sectors are missing (`IMAGE.map` lists them), with 3 if it did not get to
//! the end; the same command goes on then.

use atrium_device as device;
use common::error::Result;
use device::nbd::{Client, client::ClientConfig};
use device::optical::rip::{Options, Outcome, rip};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

async fn run(socket: &str, export: &str, image: &str, retries: u32) -> Result<Outcome> {
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let source = Client::connect(stream, export, ClientConfig::default()).await?;
    let options = Options { retries, ..Options::default() };
    let mut last = 0;
    rip(Arc::new(source), Path::new(image), options, move |progress| {
        let percent = progress.done_bytes * 100 / progress.size_bytes.max(1);
        if std::mem::replace(&mut last, percent) != percent {
            println!("{:?} {percent} %, {} bad sectors", progress.phase, progress.bad_sectors);
        }
    })
    .await
}

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().collect();
    let (Some(socket), Some(export), Some(image)) = (words.get(1), words.get(2), words.get(3)) else {
        eprintln!("usage: nbd_rip SOCKET EXPORT IMAGE [RETRIES]");
        return ExitCode::from(2);
    };
    let retries = words.get(4).and_then(|n| n.parse().ok()).unwrap_or(1);
    match run(socket, export, image, retries).await {
        Ok(outcome) => {
            println!("done with {} bad sectors", outcome.bad_sectors);
            ExitCode::from(u8::from(outcome.bad_sectors > 0))
        }
        Err(error) => {
            eprintln!("{}: {error}: {}", error.reason(), error.why());
            ExitCode::from(3)
        }
    }
}
