//! The workstation agent.

use clap::{Parser, Subcommand};
use client_agent::settings::Settings;
use common::error::{Error, Reason, Result};
use common::settings::Sources;
use common::shutdown::Shutdown;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Atrium's workstation agent: keeps this machine's place in the office, its upload queue and its chunk cache.
///
/// Exit codes: 0 ended as asked, 1 failed, 2 usage or settings, 3 another agent uses the state directory.
#[derive(Parser)]
#[command(name = "client-agent", version)]
struct Flags {
    /// Settings file
    #[arg(long, env = "ATRIUM_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// State directory [default: /var/lib/atrium-agent]
    #[arg(long, global = true)]
    state_dir: Option<PathBuf>,
    /// Local socket [default: /run/atrium/agent.sock]
    #[arg(long, global = true)]
    socket: Option<PathBuf>,
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
    /// Ask a running agent whether it answers; exit 0 if so
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

fn run(flags: Flags) -> Result<()> {
    let sources = Sources::process(flags.config)
        .flag("--state-dir", "agent.state_directory", absolute(flags.state_dir)?)
        .flag("--socket", "agent.socket", absolute(flags.socket)?);
    let loaded = sources.load::<Settings>()?;
    if flags.print_config {
        print!("{}", loaded.print()?);
        return Ok(());
    }
    if flags.check_config {
        println!("the settings are valid");
        return Ok(());
    }
    let settings = loaded.settings;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if matches!(flags.verb, Some(Verb::Health)) {
        return runtime.block_on(async {
            common::rpc::OfficeConnection::unix(&settings.agent.socket, Reason::AgentUnreachable)?.check().await
        });
    }
    common::telemetry::init(&settings.log.of("client-agent"))?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals(settings.agent.drain.get())?;
        let running = client_agent::start(settings, shutdown.clone()).await?;
        // Scripts read this line; a closed standard output is no reason to end.
        let _ = writeln!(std::io::stdout(), "client-agent is ready on {}", running.socket.display());
        client_agent::notify_systemd(running.link.clone(), &shutdown);
        running.wait().await.map_err(|e| match e.is(Reason::IoFailed) {
            true => e,
            false => Error::internal("the agent ended").caused_by(e),
        })
    })
}
