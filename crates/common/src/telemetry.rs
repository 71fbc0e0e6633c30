//! Logs: to the journal when systemd started us, else to standard error as text or as JSON lines.
//!
//! A line never contains what a peer could use to deceive a terminal or a log reader: control characters are escaped.
//! Every call runs in a span with its `request_id`, which is the one that people see in error messages.

mod escape;

use crate::error::{Error, Reason, Result};
use crate::settings::Problems;
use escape::EscapingWriter;
use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

/// Where the log goes and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The journal if standard error is connected to it, else text.
    #[default]
    Auto,
    /// Text on standard error, coloured on a terminal unless `NO_COLOR` is set or `TERM` is "dumb".
    Text,
    /// One JSON object a line on standard error.
    Json,
}

/// What a program wants of its log.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// The program's name; its identifier in the journal.
    pub program: &'static str,
    /// "info", or a filter such as "info,central_server=debug". `ATRIUM_LOG` wins over it.
    pub filter: String,
    /// Where to and how.
    pub format: Format,
}

/// The section "log" of every program's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// error, warn, info, debug, trace, or a filter such as "info,common=debug".
    pub level: String,
    /// auto, text or json.
    pub format: Format,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: Format::Auto }
    }
}

impl Log {
    /// Reports a filter that is none.
    pub fn validate(&self, problems: &mut Problems) {
        if let Err(error) = check_filter(&self.level) {
            problems.add("log.level", error);
        }
    }

    /// What a program of this name wants of its log.
    pub fn of(&self, program: &'static str) -> Telemetry {
        Telemetry { program, filter: self.level.clone(), format: self.format }
    }
}

/// Libraries below that say much at levels that we use ourselves.
const QUIET: &str = "h2=warn,hyper=warn,hyper_util=warn,rustls=warn,sled=warn,tower=warn,tonic=warn,tokio_util=warn";

/// Checks a filter.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn check_filter(filter: &str) -> std::result::Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // A word without '=' would be taken as the name of a module, and a misspelt level would silence everything else.
    for part in filter.split(',').map(str::trim) {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        if !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
            return Err(format!("{level:?} is none of off, error, warn, info, debug, trace"));
        }
    }
    EnvFilter::try_new(without_spaces(filter)).map(|_| ()).map_err(|e| format!("is no log filter: {e}"))
}

fn without_spaces(filter: &str) -> String {
    filter.split_whitespace().collect()
}

fn filter(given: &str) -> Result<EnvFilter> {
    let chosen = std::env::var("ATRIUM_LOG").ok().filter(|v| !v.is_empty());
    let (text, from) = match &chosen {
        Some(text) => (text.as_str(), "environment ATRIUM_LOG"),
        None => (given, "log.level"),
    };
    let wrong = |what: String| Error::new(Reason::SettingsInvalid, format!("{from}: {what}"));
    check_filter(text).map_err(wrong)?;
    // The later directive for the same target wins, so what is asked for by name comes after the quiet ones.
    EnvFilter::try_new(format!("{QUIET},{}", without_spaces(text))).map_err(|e| wrong(e.to_string()))
}

/// Starts the log of this process. May be called once.
///
/// # Errors
/// `SETTINGS_INVALID` for a filter that cannot be understood, `IO_FAILED` if the journal does not take it, and
/// `INTERNAL` if it was started before.
pub fn init(telemetry: &Telemetry) -> Result<()> {
    let filter = filter(&telemetry.filter)?;
    let journal = telemetry.format == Format::Auto && stderr_is_journal();
    let layer: Box<dyn Layer<Registry> + Send + Sync> = if journal {
        let journald = tracing_journald::layer()
            .map_err(|e| Error::new(Reason::IoFailed, "the journal cannot be reached").caused_by(e))?;
        Box::new(journald.with_syslog_identifier(telemetry.program.to_owned()))
    } else if telemetry.format == Format::Json {
        Box::new(fmt::layer().json().with_ansi(false).with_writer(std::io::stderr))
    } else {
        let colour = colour_wanted();
        Box::new(fmt::layer().with_ansi(colour).with_writer(move || EscapingWriter::new(std::io::stderr(), colour)))
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(|e| Error::internal("the log was started twice").caused_by(e))?;
    log_panics();
    Ok(())
}

/// Panics go to the log like everything else, so that they are not lost where standard error is.
fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let payload = info.payload();
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        tracing::error!(place, "defect: {text}");
    }));
}

/// True if standard error is a terminal that wants colour.
pub fn colour_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    std::io::stderr().is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// True if `JOURNAL_STREAM` names the file that standard error is, as systemd.exec(5) asks one to compare: the variable
/// alone is inherited by everything that a service starts.
fn stderr_is_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    is_same_file(&stream, stat.st_dev, stat.st_ino)
}

fn is_same_file(stream: &str, device: u64, inode: u64) -> bool {
    stream
        .split_once(':')
        .and_then(|(d, i)| Some((d.parse::<u64>().ok()?, i.parse::<u64>().ok()?)))
        .is_some_and(|named| named == (device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        for good in ["info", "DEBUG", "info,central_server=debug", "warn, h2=off"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["", "inof", "central_server", "info,x=loud", "info,,"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_journal_is_known_by_its_file() {
        assert!(is_same_file("8:4711", 8, 4711));
        for other in ["8:4712", "9:4711", "8", "", "a:b", "8:4711:1"] {
            assert!(!is_same_file(other, 8, 4711), "{other}");
        }
    }
}
