//! What the program's commands do.

use crate::app::accounts::{self, NewUser};
use crate::app::answers::Once;
use crate::app::caller::Caller;
use crate::app::office::{DataDirectory, Layout};
use crate::app::sessions::Password;
use crate::app::{App, audit, backup, reclaim};
use crate::serve;
use crate::settings::Settings;
use common::clock::SystemClock;
use common::error::{Error, Kind, Reason, Result};
use common::model::Role;
use common::settings::SecretFile;
use common::shutdown::Shutdown;
use common::store::Store;
use common::telemetry;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// The program's name.
const PROGRAM: &str = "central-server";

/// The exit code of a failure: 2 settings, 3 data directory in use, 4 data damaged, 1 everything else.
pub fn exit_code(error: &Error) -> u8 {
    if error.is(Reason::SettingsInvalid) {
        2
    } else if error.is(Reason::StoreBusy) {
        3
    } else if error.kind() == Kind::DataLoss {
        4
    } else {
        1
    }
}

fn start_log(settings: &Settings) -> Result<()> {
    telemetry::init(&settings.log.of(PROGRAM))
}

fn runtime(settings: &Settings) -> Result<Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(settings.server.blocking_threads)
        .build();
    built.map_err(|e| Error::internal("the runtime could not be started").caused_by(e))
}

/// Serves until a signal.
///
/// # Errors
/// Those of the start, or what ended it.
pub fn serve(settings: Settings) -> Result<()> {
    start_log(&settings)?;
    let runtime = runtime(&settings)?;
    let outcome = runtime.block_on(async {
        let shutdown = Shutdown::on_signals(settings.server.drain.get())?;
        let running = serve::start(settings, shutdown).await?;
        // For whoever started it on port 0, and for people.
        let metrics = running.metrics_addr.map_or_else(|| "off".to_owned(), |a| a.to_string());
        let line = format!("serving {} admin={} metrics={metrics}", running.addr, running.admin_socket.display());
        // Standard output may be closed; that is no reason not to serve.
        let _ = writeln!(std::io::stdout(), "{line}");
        running.wait().await
    });
    // What is still running in blocking threads was told to end; nothing acknowledged depends on it.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

/// What `init` is asked for.
#[derive(Clone, Debug, Default)]
pub struct Init {
    /// User name of a first administrator.
    pub admin: Option<String>,
    /// File with the password, "-" for standard input.
    pub password_file: Option<PathBuf>,
}

/// Makes an office. Repeating it is harmless, except that an administrator is made only once.
///
/// # Errors
/// `USER_EXISTS`, `PASSWORD_TOO_WEAK`, and those of opening a data directory.
pub fn init(settings: Settings, wanted: &Init) -> Result<()> {
    let password = wanted.password_file.as_deref().map(read_password).transpose()?;
    let runtime = runtime(&settings)?;
    let opened = serve::open(settings, Arc::new(SystemClock), CancellationToken::new())?;
    let app = opened.app.clone();
    let made = runtime.block_on(async {
        if let (Some(name), Some(password)) = (&wanted.admin, password) {
            make_admin(&app, name, password).await?;
            println!("administrator {name} can sign in");
        }
        Ok(())
    });
    println!("office {:?} is in {}", app.office.name, app.settings.server.data_directory.display());
    println!("certificate authority: {}", app.office.ca.fingerprint()?);
    drop(app);
    runtime.block_on(opened.close());
    made
}

async fn make_admin(app: &App, name: &str, password: Password) -> Result<()> {
    let local = Caller { local_admin: true, request_id: "init".into(), ..Caller::default() };
    let new =
        NewUser { name: name.to_owned(), display_name: String::new(), role: Role::Admin, quota_bytes: 0, password };
    accounts::create(app, &local, new, Once::always()).await.map(|_| ())
}

fn read_password(path: &Path) -> Result<Password> {
    if path == Path::new("-") {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        return Ok(Password::new(line.trim_end_matches(['\r', '\n']).to_owned()));
    }
    Ok(Password::new(SecretFile::new(path).read()?.expose().to_owned()))
}

/// Makes a data directory of a backup.
///
/// # Errors
/// As [`backup::restore`].
pub fn restore(settings: &Settings, from: &Path, to: &Path, ca: Option<&Path>) -> Result<()> {
    let to = std::path::absolute(to)?;
    let trusted = ca.map(read_certificate).transpose()?;
    let restored = backup::restore(from, &to, settings, trusted.as_deref())?;
    println!(
        "restored {} as of revision {}: {} records, {} chunks, {} bytes, all checked",
        to.display(),
        restored.manifest.revision,
        restored.record_count,
        restored.chunk_count,
        restored.chunk_bytes
    );
    let (office, second) = (&restored.manifest.office, restored.manifest.time_ms / 1000);
    match ca {
        Some(ca) => println!("signed by the office {office:?} at Unix time {second}: verified with {}", ca.display()),
        None => println!(
            "NOT VERIFIED who made it: it says the office {office:?}, at Unix time {second}. Restore with --ca FILE, the \
             office's certificate as every member has it, to have that checked"
        ),
    }
    Ok(())
}

/// The office's certificate, as somebody kept it.
fn read_certificate(path: &Path) -> Result<String> {
    let read = std::fs::read_to_string(path).map_err(Error::from);
    let checked = read.and_then(|pem| common::tls::ClientTls::office(&pem).map(|_| pem));
    checked.map_err(|e| {
        Error::new(Reason::CertificateInvalid, format!("{} is no office's certificate", path.display()))
            .why_is(e.message().to_owned())
            .fix_is("name the file ca.pem of the office, from a member or from where you keep it")
            .caused_by(e)
    })
}

/// Checks everything in a data directory.
///
/// # Errors
/// `STORE_CORRUPT` or `CHUNK_DAMAGED` if something is damaged.
pub fn verify(settings: Settings) -> Result<()> {
    let runtime = runtime(&settings)?;
    require_data(&settings)?;
    // The stores run tasks of their own.
    let _inside = runtime.enter();
    let opened = serve::open(settings, Arc::new(SystemClock), CancellationToken::new())?;
    let outcome = verify_app(&opened.app);
    runtime.block_on(opened.close());
    outcome
}

fn verify_app(app: &App) -> Result<()> {
    let report = app.store.verify()?;
    println!("metadata: revision {}, {} records, {} damaged", report.revision, report.records, report.damaged_count);
    for damaged in report.damaged.iter().take(20) {
        println!("  damaged record {}: {}", damaged.key, damaged.what);
    }
    let chain = audit::verify(&app.store)?;
    println!("audit log: {} records", chain.record_count);
    let content = reclaim::scrub(app, 0, |_| ControlFlow::Continue(()))?;
    println!("content: {} chunks, {} damaged", content.progress.chunk_count, content.damaged.len());
    let missing = backup::missing_content(app)?;
    println!("references: {missing} to content that is missing");
    for file in reclaim::files_hit(app, &content.damaged)? {
        println!("  damaged: {file}");
    }
    let damaged = |what: &str| Err(Error::new(Reason::StoreCorrupt, what));
    if !report.is_sound() {
        return damaged("the metadata is damaged");
    }
    if let Some(first) = chain.first_bad {
        return damaged(&format!("the audit log does not fit from record {first} on"));
    }
    if missing > 0 || !content.damaged.is_empty() {
        return Err(Error::new(Reason::ChunkDamaged, "content is damaged or missing"));
    }
    println!("everything is whole");
    Ok(())
}

fn require_data(settings: &Settings) -> Result<()> {
    let directory = &settings.server.data_directory;
    if Layout::new(directory).store().exists() {
        return Ok(());
    }
    Err(Error::new(Reason::SettingsInvalid, format!("{} holds no office", directory.display()))
        .why_is("nothing was kept there yet")
        .fix_is("name the right directory with --data-dir"))
}

/// Writes the metadata to a file: whole or not at all.
///
/// # Errors
/// Those of the store, `IO_FAILED`, `DISK_FULL`.
pub fn export(settings: &Settings, file: &Path) -> Result<()> {
    require_data(settings)?;
    let directory = DataDirectory::take(&settings.server.data_directory)?;
    let store = Store::open(&serve::store_settings(settings, directory.layout()))?;
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let options = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
    let mut writer = BufWriter::new(options);
    let summary = store.export(&mut writer)?;
    writer.into_inner().map_err(|e| Error::from(e.into_error()))?.sync_all()?;
    std::fs::rename(&partial, file)?;
    println!("exported revision {}: {} records, {} bytes", summary.revision, summary.records, summary.bytes);
    Ok(())
}

/// Makes the metadata from an exported file.
///
/// # Errors
/// `FIELD_INVALID` if there is metadata or there are no keys; `STORE_CORRUPT` for a damaged file.
pub fn import(settings: &Settings, file: &Path) -> Result<()> {
    let directory = DataDirectory::take(&settings.server.data_directory)?;
    let layout = directory.layout();
    if layout.store().exists() {
        return Err(Error::new(Reason::FieldInvalid, format!("{} is there already", layout.store().display()))
            .why_is("an import never overwrites data")
            .fix_is("move it away first, and keep it until all is well"));
    }
    if !layout.keys().join("ca.pem").exists() {
        return Err(Error::new(Reason::FieldInvalid, "the office's keys are missing")
            .why_is("an export holds the metadata only")
            .fix_is("put keys/ back first, or restore a backup, which holds everything"));
    }
    let mut reader = BufReader::new(File::open(file)?);
    let store = Store::import(&serve::store_settings(settings, layout), &mut reader)?;
    let report = store.verify()?;
    println!("imported revision {}: {} records into {}", report.revision, report.records, settings.store.engine);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_as_documented() {
        for (reason, code) in [
            (Reason::SettingsInvalid, 2),
            (Reason::StoreBusy, 3),
            (Reason::StoreCorrupt, 4),
            (Reason::ChunkDamaged, 4),
            (Reason::IoFailed, 1),
            (Reason::StoreTooNew, 1),
        ] {
            assert_eq!(exit_code(&Error::new(reason, "x")), code, "{reason:?}");
        }
    }
}
