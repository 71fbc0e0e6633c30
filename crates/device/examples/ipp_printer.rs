//! A folder (or, with `--to`, another printer or a CUPS queue) as a printer in the local network: IPP, IPPS, announced by DNS-SD.
//!
//! ```text
//! ipp_printer --dir STATE --out FOLDER [--name NAME] [--port N] [--tls-port N] [--host LABEL --announce]
//!             [--interface NAME]... [--ppm N] [--manage everybody] [--to ipp://HOST:PORT/PATH | --to cups:QUEUE]
//! ```
//! Prints `READY port=N tls-port=N` when it listens; ends on SIGTERM or SIGINT. With `ABORT_AT=STEP:N` in the environment
//! the process aborts when it reaches that step of the spool for the N-th time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use atrium_device::ipp::Trust;
use atrium_device::printer::dnssd::{Announcer, announcement};
use atrium_device::printer::service::{Access, Open, Peer, Service, ServiceOptions};
use atrium_device::printer::{Destination, Faults, Options, PrinterConfig, Printers, Right, Who};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct Arguments {
    dir: PathBuf,
    out: PathBuf,
    name: String,
    port: u16,
    tls_port: u16,
    host: String,
    announce: bool,
    interfaces: Vec<String>,
    ppm: Option<u32>,
    everybody: bool,
    to: Option<String>,
}

type Failure = Box<dyn std::error::Error>;

fn arguments() -> Result<Arguments, Failure> {
    let mut found = Arguments { name: "folder".into(), host: "atrium-printer".into(), ..Arguments::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--dir" => found.dir = value()?.into(),
            "--out" => found.out = value()?.into(),
            "--name" => found.name = value()?,
            "--port" => found.port = value()?.parse()?,
            "--tls-port" => found.tls_port = value()?.parse()?,
            "--host" => found.host = value()?,
            "--interface" => found.interfaces.push(value()?),
            "--ppm" => found.ppm = Some(value()?.parse()?),
            "--manage" => found.everybody = value()? == "everybody",
            "--to" => found.to = Some(value()?),
            "--announce" => found.announce = true,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    if found.dir.as_os_str().is_empty() || found.out.as_os_str().is_empty() {
        return Err("--dir and --out are needed".into());
    }
    Ok(found)
}

/// Everybody may do everything: for tests that drive the printer from another machine.
struct Everybody;

impl Access for Everybody {
    fn allows(&self, _who: &Who, _peer: &Peer, _printer: &str, _right: Right) -> bool {
        true
    }
}

fn faults() -> Faults {
    let Ok(text) = std::env::var("ABORT_AT") else { return Faults::none() };
    let (step, count) = text.split_once(':').unwrap_or((&text, "1"));
    let (step, left) = (step.to_owned(), AtomicU32::new(count.parse().unwrap_or(1)));
    Faults::hook(move |point| {
        if point == step && left.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
        Ok(())
    })
}

fn tls(host: &str) -> Result<Arc<rustls::ServerConfig>, Failure> {
    let names = vec!["localhost".to_owned(), format!("{host}.local")];
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())?;
    Ok(Arc::new(config))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = arguments()?;
    let printers = Printers::open(Options { faults: faults(), ..Options::new(&arguments.dir) }).await?;
    let destination = match arguments.to.as_deref() {
        None => Destination::Folder { path: arguments.out.clone(), pages_per_minute: arguments.ppm },
        Some(to) => match to.strip_prefix("cups:") {
            Some(queue) => Destination::Cups { queue: queue.into(), server: None },
            None => Destination::Ipp { uri: to.into(), trust: Trust::default() },
        },
    };
    let config = match printers.get(&arguments.name) {
        Ok(view) => view.config,
        Err(_) => {
            let config = PrinterConfig::new(&arguments.name, destination);
            printers.put(config.clone()).await?;
            config
        }
    };
    let access: Arc<dyn Access> = if arguments.everybody { Arc::new(Everybody) } else { Arc::new(Open) };
    let options = ServiceOptions { connections_per_address: 256, ..ServiceOptions::default() };
    let service = Service::new(printers.clone(), access, options);
    let stop = CancellationToken::new();
    let plain = TcpListener::bind(("::", arguments.port)).await?;
    let secure = TcpListener::bind(("::", arguments.tls_port)).await?;
    let (port, tls_port) = (plain.local_addr()?.port(), secure.local_addr()?.port());
    let only = Some(arguments.name.clone());
    let serving = [
        tokio::spawn({
            let (service, only, stop) = (service.clone(), only.clone(), stop.clone());
            async move { service.serve(plain, None, only, stop).await }
        }),
        tokio::spawn({
            let (service, stop, tls) = (service.clone(), stop.clone(), tls(&arguments.host)?);
            async move { service.serve(secure, Some(tls), only, stop).await }
        }),
    ];
    let mut announcer = None;
    if arguments.announce {
        let mut started = Announcer::start(&arguments.host, Vec::new(), &arguments.interfaces)?;
        let host = started.host().to_owned();
        started.put(&config.name, &announcement(&config, "ipp/print", &host, Some(port), Some(tls_port)))?;
        announcer = Some(started);
    }
    println!("READY port={port} tls-port={tls_port}");
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    if let Some(announcer) = announcer {
        announcer.stop().await;
    }
    stop.cancel();
    for task in serving {
        task.await?;
    }
    printers.close().await;
    Ok(())
}
