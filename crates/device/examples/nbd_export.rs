//! Exports an image file as an optical drive by NBD and HTTP, and obeys lines from standard input, so that any program can
//! be tried with discs that are changed, pulled out or scratched in the middle of a read.
//!
//! ```text
//! nbd_export IMAGE [--unix PATH] [--tcp ADDR] [--tls-cert PEM --tls-key PEM] [--http ADDR] [--writable]
//! ```
//!
//! It prints one line per listener (`unix PATH`, `tcp ADDR`, `http ADDR`), then one line per change of the drive. Lines it
//! obeys: see `IsoControl::obey`, and `quit`. With `--writable` the image is exported as a disk instead, without a drive.

use atrium_device as device;
use common::error::{Error, Reason, Result};
use device::nbd::{self, BlockSource, Export, ExportEntry, Exports, FileSource, Server, ServerConfig, Tls};
use device::optical::Disc;
use device::optical::drives::{DriveHandle, Drives, Limits, Medium, NoGuard};
use device::optical::generation::MemoryGenerations;
use device::optical::http::{Library, Service, Shelf};
use device::optical::iso::IsoDrive;
use futures_util::future::BoxFuture;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncBufReadExt;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct Arguments {
    image: PathBuf,
    unix: Option<PathBuf>,
    tcp: Option<String>,
    http: Option<String>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    writable: bool,
}

fn arguments() -> Option<Arguments> {
    let mut words = std::env::args().skip(1);
    let mut out = Arguments { image: words.next()?.into(), ..Arguments::default() };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--unix" => out.unix = Some(words.next()?.into()),
            "--tcp" => out.tcp = Some(words.next()?),
            "--http" => out.http = Some(words.next()?),
            "--tls-cert" => out.cert = Some(words.next()?.into()),
            "--tls-key" => out.key = Some(words.next()?.into()),
            "--writable" => out.writable = true,
            _ => return None,
        }
    }
    Some(out)
}

/// The disc that is in the drive, under the name `disc`.
struct DriveExport(DriveHandle);

impl DriveExport {
    fn title(&self) -> String {
        match self.0.state().medium {
            Medium::Ready { title, .. } => title,
            _ => String::new(),
        }
    }
}

impl Exports for DriveExport {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(vec![ExportEntry { name: "disc".to_owned(), description: self.title() }]) })
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Export>> {
        Box::pin(async move {
            if !matches!(name, "" | "disc") {
                return Err(nbd::server::unknown(name));
            }
            Ok(Export::read_only("disc", self.title(), Arc::new(self.0.source()?)))
        })
    }
}

impl Library for DriveExport {
    fn shelf(&self) -> BoxFuture<'_, Result<Shelf>> {
        Box::pin(async {
            let image: Arc<dyn BlockSource> = Arc::new(self.0.source()?);
            let files = Disc::open(image.clone()).await.ok().map(Arc::new);
            Ok(Shelf { title: self.title(), image, files })
        })
    }
}

fn tls(arguments: &Arguments) -> Result<Tls> {
    let (Some(cert), Some(key)) = (&arguments.cert, &arguments.key) else { return Ok(Tls::Off) };
    let bad = |what: &str| Error::new(Reason::CertificateInvalid, format!("the {what} cannot be used"));
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let chain = chain.map_err(|e| bad("certificate").caused_by(e))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| bad("key").caused_by(e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.map_err(|e| bad("TLS").caused_by(e))?.with_no_client_auth();
    let config = config.with_single_cert(chain, key).map_err(|e| bad("key").caused_by(e))?;
    Ok(Tls::Required(Arc::new(config)))
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let Some(arguments) = arguments() else {
        eprintln!("usage: nbd_export IMAGE [--unix PATH] [--tcp ADDR] [--tls-cert PEM --tls-key PEM] [--http ADDR]");
        std::process::exit(2);
    };
    let drives = Drives::new(Arc::new(MemoryGenerations::default()), Arc::new(NoGuard), Limits::default());
    let (drive, control) = IsoDrive::new();
    let handle = drives.add("dvd", Box::new(drive))?;
    let exports: Arc<dyn Exports> = if arguments.writable {
        let source = Arc::new(FileSource::open(&arguments.image, true)?);
        let entry = ExportEntry { name: "disk".to_owned(), description: String::new() };
        Arc::new(vec![Export { entry, source, read_only: false }])
    } else {
        control.insert(&arguments.image)?;
        let mut state = handle.watch();
        let _ = state.wait_for(|s| matches!(s.medium, Medium::Ready { .. })).await;
        Arc::new(DriveExport(handle.clone()))
    };
    let server = Server::new(exports, ServerConfig { tls: tls(&arguments)?, ..ServerConfig::default() });
    let stop = CancellationToken::new();
    listen(&arguments, &server, &handle, &stop).await?;
    let mut state = handle.watch();
    tokio::spawn(async move {
        loop {
            let now = state.borrow_and_update().clone();
            println!("drive generation={} {:?}", now.generation, now.medium);
            if state.changed().await.is_err() {
                return;
            }
        }
    });
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await?.filter(|line| line.trim() != "quit") {
        match control.obey(&line) {
            Ok(()) => println!("ok {line}"),
            Err(error) => println!("error {}: {error}", error.reason()),
        }
    }
    stop.cancel();
    drives.shutdown().await;
    server.stop().await;
    if let Some(path) = &arguments.unix {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

async fn listen(arguments: &Arguments, server: &Server, drive: &DriveHandle, stop: &CancellationToken) -> Result<()> {
    if let Some(path) = &arguments.unix {
        let (server, listener) = (server.clone(), nbd::listen::bind_unix(path).await?);
        tokio::spawn(async move { server.serve_unix(listener).await });
        println!("unix {}", Path::display(path));
    }
    if let Some(address) = &arguments.tcp {
        let (server, listener) = (server.clone(), tokio::net::TcpListener::bind(address).await?);
        println!("tcp {}", listener.local_addr()?);
        tokio::spawn(async move { server.serve_tcp(listener).await });
    }
    if let Some(address) = &arguments.http {
        let listener = tokio::net::TcpListener::bind(address).await?;
        println!("http {}", listener.local_addr()?);
        let (service, stop) = (Service::new(Arc::new(DriveExport(drive.clone())), []), stop.clone());
        tokio::spawn(async move { service.serve(listener, stop).await });
    }
    Ok(())
}
