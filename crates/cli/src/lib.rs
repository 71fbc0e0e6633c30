//! The `atrium` command as a library, so that its parts can be tested one by one.

pub mod args;
pub mod bytes;
pub mod commands;
pub mod complete;
pub mod connect;
pub mod dirs;
pub mod exit;
pub mod output;
pub mod peer;
pub mod progress;
pub mod prompt;
pub mod reference;
pub mod signals;
pub mod sync;

use args::Cli;
use clap::{CommandFactory, Parser};
use commands::Context;
use common::error::{Error, Kind, Reason, Result};
use exit::Exit;
use output::Output;
use std::future::Future;
use std::time::Duration;

/// After Ctrl-C, work on other threads gets this long to put away what it has open.
const LEAVE: Duration = Duration::from_secs(2);

/// The whole program: reads the command line, does it, tells how it went.
pub fn main() -> Exit {
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    let context = Context { out: Output::new(&cli.global), global: cli.global };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            context.out.error(&Error::from(error));
            return Exit::Failed;
        }
    };
    let result = runtime.block_on(until_stopped(context.global.timeout, commands::run(&context, cli.command)));
    if let Err(error) = &result {
        context.out.error(error);
    }
    runtime.shutdown_timeout(LEAVE);
    output::exit_of(&result)
}

/// The command, unless Ctrl-C, SIGTERM or the time limit comes first. Dropping it removes its temporary files.
async fn until_stopped(limit: Option<Duration>, command: impl Future<Output = Result<Exit>>) -> Result<Exit> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let too_long = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let stopped = || {
        Error::new(Reason::Cancelled, "stopped")
            .why_is("the command was interrupted")
            .fix_is("give the same command again; transfers go on where they stopped")
    };
    let interrupted = async {
        interrupt.recv().await;
        while signals::is_left_to_child() {
            interrupt.recv().await;
        }
    };
    tokio::select! {
        result = command => result,
        () = interrupted => Err(stopped()),
        _ = terminate.recv() => Err(stopped()),
        () = too_long => Err(Error::new(Reason::DeadlineExceeded, "it took longer than --timeout allows")
            .fix_is("give the same command again with a longer --timeout; transfers go on where they stopped")),
    }
}

/// Help and version, or a command line that cannot be read.
fn refused(error: &clap::Error) -> Exit {
    use clap::error::ErrorKind;
    let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let asked_json = std::env::args_os().take_while(|a| a != "--").any(|a| a == "--json");
    if !help && asked_json {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let failure = Error::remote(
            Kind::InvalidArgument,
            "USAGE".into(),
            first,
            "the command line could not be read".into(),
            "see `atrium help` and docs/cli.md".into(),
        );
        anstream::eprintln!("{}", output::envelope_text(&output::schema::Failure::of(&failure)));
    } else {
        // A terminal that is gone is nobody's loss.
        let _ = error.print();
    }
    if help { Exit::Ok } else { Exit::Usage }
}
