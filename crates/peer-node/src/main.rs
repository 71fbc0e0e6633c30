//! The peer.

use clap::{Parser, Subcommand};
use common::error::{Error, Reason, Result};
use common::rpc::OfficeConnection;
use common::settings::Sources;
use common::shutdown::Shutdown;
use common::status::from_status;
use common::telemetry::{Format, Telemetry};
use peer_node::settings::{LogFormat, Settings, Surroundings};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Atrium's peer: shares this machine's folders with other machines, without a server.
///
/// Exit codes: 0 ended as asked, 1 failed, 2 usage or settings, 3 another peer uses the state directory or the port.
#[derive(Parser)]
#[command(name = "peer-node", version)]
struct Flags {
    /// Settings file
    #[arg(long, env = "ATRIUM_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// State directory [default: $XDG_STATE_HOME/atrium-peer; for root /var/lib/atrium-peer]
    #[arg(long, global = true)]
    state_dir: Option<PathBuf>,
    /// Local socket [default: $XDG_RUNTIME_DIR/atrium/peer.sock; for root /run/atrium/peer.sock]
    #[arg(long, global = true)]
    socket: Option<PathBuf>,
    /// Address to listen on for other peers; may be given several times [default: [::]:7444]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// Another peer to ask for its office, host:port; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    seed: Vec<String>,
    /// Check the settings and end
    #[arg(long)]
    check_config: bool,
    /// Print every setting with where it came from, and end
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Ask a running peer whether it answers; exit 0 if so
    Health,
}

fn main() -> ExitCode {
    common::tls::install_provider();
    match run(Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}\nwhy:   {}\nfix:   {}", error.message(), error.why(), error.fix());
            tracing::error!("{error:?}");
            ExitCode::from(match error {
                e if e.is(Reason::SettingsInvalid) => 2,
                e if e.is(Reason::StoreBusy) => 3,
                _ => 1,
            })
        }
    }
}

fn absolute(path: Option<PathBuf>) -> Result<Option<String>> {
    path.map(|p| Ok(std::path::absolute(p)?.to_string_lossy().into_owned())).transpose()
}

/// As a list setting takes it; nothing if the flag was not given.
fn joined(values: impl IntoIterator<Item = impl ToString>) -> Option<String> {
    let values: Vec<String> = values.into_iter().map(|v| v.to_string()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// Whether a running peer serves whoever asks here.
async fn health(settings: &Settings) -> Result<()> {
    let connection = OfficeConnection::unix(&settings.node.socket, Reason::PeerNotRunning)?;
    let request = HealthCheckRequest { service: peer_node::local::SERVICE.to_owned() };
    let answer = HealthClient::new(connection.control()).check(request).await.map_err(|s| from_status(&s))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        _ => Err(Error::new(Reason::ShuttingDown, "the peer does not serve now")),
    }
}

fn run(flags: Flags) -> Result<()> {
    let sources = Sources::process(flags.config)
        .flag("--state-dir", "node.state_directory", absolute(flags.state_dir)?)
        .flag("--socket", "node.socket", absolute(flags.socket)?)
        .flag("--listen", "node.listen", joined(flags.listen))
        .flag("--seed", "discovery.seeds", joined(flags.seed));
    let loaded = sources.load::<Settings>()?;
    if flags.print_config {
        print!("{}", loaded.print()?);
        return Ok(());
    }
    let settings = loaded.settings.resolve(&Surroundings::process())?;
    if flags.check_config {
        println!("the settings are valid");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if matches!(flags.verb, Some(Verb::Health)) {
        return runtime.block_on(health(&settings));
    }
    let format = match settings.log.format {
        LogFormat::Auto => Format::Auto,
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    common::telemetry::init(&Telemetry { program: "peer-node", filter: settings.log.level.clone(), format })?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::on_signals(settings.node.drain.get())?;
        let running = peer_node::node::start(settings, shutdown.clone()).await?;
        let addresses: Vec<String> = running.addresses.iter().map(SocketAddr::to_string).collect();
        // Scripts read this line; a closed standard output is no reason to end.
        let _ = writeln!(
            std::io::stdout(),
            "peer-node is ready on {} listening {}",
            running.socket.display(),
            addresses.join(",")
        );
        running.notify_systemd();
        running.wait().await.map_err(|e| match e.is(Reason::IoFailed) {
            true => e,
            false => Error::internal("the peer ended").caused_by(e),
        })
    });
    // Blocking work that is still under way is cut off; nothing that was acknowledged depends on it.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ended
}
