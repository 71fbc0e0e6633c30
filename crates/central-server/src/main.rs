//! `central-server`: keeps an office's data and answers its machines.

use central_server::command::{self, Init};
use central_server::settings::Settings;
use clap::{Parser, Subcommand};
use common::error::Result;
use common::settings::{Loaded, Sources};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps an office's data and answers its machines.
///
/// Without a command it serves until SIGTERM, which lets running calls end; a second signal does not wait for them.
///
/// Exit codes: 0 well; 1 failed; 2 wrong usage or settings; 3 another process uses the data directory; 4 data is damaged.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// Settings file (TOML).
    #[arg(long, value_name = "FILE", env = "ATRIUM_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Check the settings and end.
    #[arg(long)]
    check_config: bool,
    /// Print all settings, and where each comes from, and end.
    #[arg(long)]
    print_config: bool,
    /// Where everything is kept (server.data_directory).
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Address and port for gRPC (grpc.listen).
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Address and port for metrics (web.listen).
    #[arg(long, value_name = "ADDR:PORT")]
    web_listen: Option<SocketAddr>,
    /// Path of the administration socket (admin.socket).
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// Name of a new office (office.name).
    #[arg(long, value_name = "NAME", global = true)]
    office: Option<String>,
    /// What is logged, for example "info" or "info,central_server=debug" (log.level).
    #[arg(long, value_name = "FILTER", global = true)]
    log_level: Option<String>,
    /// How it is logged: auto, text or json (log.format).
    #[arg(long, value_name = "FORMAT", global = true)]
    log_format: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new office without serving it, optionally with a first administrator.
    Init {
        /// User name of a first administrator.
        #[arg(long, value_name = "NAME", requires = "password_file")]
        admin: Option<String>,
        /// File with the administrator's password; "-" reads one line from standard input.
        #[arg(long, value_name = "FILE", requires = "admin")]
        password_file: Option<PathBuf>,
    },
    /// Make a data directory of a backup and check all of it. Does not need the settings' data directory.
    Restore {
        /// Directory of the backup.
        from: PathBuf,
        /// Directory to make.
        to: PathBuf,
        /// The office's certificate (PEM), kept elsewhere than the backup: only a backup that this office made is taken.
        /// Without it, it is said that this was not checked.
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
    },
    /// Check every record and every piece of content of a server that is not running.
    Verify,
    /// Write the metadata of a server that is not running to a file.
    Export {
        /// File to write.
        file: PathBuf,
    },
    /// Make the metadata of a server from an exported file, for example to change the engine.
    Import {
        /// File to read.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    common::tls::install_provider();
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}\nwhy:   {}\nfix:   {}", error.message(), error.why(), error.fix());
            tracing::error!(?error, "failed");
            ExitCode::from(command::exit_code(&error))
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let path = |p: &PathBuf| p.display().to_string();
    let loaded: Loaded<Settings> = Sources::process(arguments.config)
        .flag("--data-dir", "server.data_directory", arguments.data_dir.as_ref().map(absolute).transpose()?)
        .flag("--listen", "grpc.listen", arguments.listen)
        .flag("--web-listen", "web.listen", arguments.web_listen)
        .flag("--admin-socket", "admin.socket", arguments.admin_socket.as_ref().map(path))
        .flag("--office", "office.name", arguments.office)
        .flag("--log-level", "log.level", arguments.log_level)
        .flag("--log-format", "log.format", arguments.log_format)
        .load()?;
    if arguments.print_config {
        print!("{}", loaded.print()?);
        return Ok(());
    }
    if arguments.check_config {
        println!("the settings are in order");
        return Ok(());
    }
    let settings = loaded.settings;
    match arguments.command {
        None => command::serve(settings),
        Some(Command::Init { admin, password_file }) => command::init(settings, &Init { admin, password_file }),
        Some(Command::Restore { from, to, ca }) => command::restore(&settings, &from, &to, ca.as_deref()),
        Some(Command::Verify) => command::verify(settings),
        Some(Command::Export { file }) => command::export(&settings, &file),
        Some(Command::Import { file }) => command::import(&settings, &file),
    }
}

fn absolute(path: &PathBuf) -> Result<String> {
    Ok(std::path::absolute(path)?.display().to_string())
}
