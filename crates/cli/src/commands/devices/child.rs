//! A command of the user's that runs while a device is held.
//!
//! It has our terminal and our standard streams, and Ctrl-C is its own. If the device is lost it is asked to end, and after
//! [`GRACE`] made to. If we are stopped, it is asked to end too.

use crate::exit::Exit;
use crate::output::usage;
use crate::signals::LeftToChild;
use common::error::{Error, Result};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::{Child, Command};

/// How long it may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// A command that runs.
pub(super) struct Running {
    child: Child,
    _interrupts: LeftToChild,
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// `USAGE` if there is no such program.
    pub(super) fn start(words: &[OsString], environment: &[(&str, String)]) -> Result<Self> {
        let Some((program, arguments)) = words.split_first() else {
            return Err(Error::internal("there is no command"));
        };
        let mut command = Command::new(program);
        command.args(arguments).envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
        let interrupts = LeftToChild::begin();
        let child = command.spawn().map_err(|e| {
            let program = program.to_string_lossy();
            usage(format!("{} cannot be run: {e}", crate::output::format::safe(&program)), "name a program after --")
        })?;
        Ok(Self { child, _interrupts: interrupts })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If waiting fails.
    pub(super) async fn end(&mut self) -> Result<Exit> {
        Ok(exit_of(self.child.wait().await?))
    }

    /// Makes it end.
    ///
    /// # Errors
    /// If waiting fails.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.ask_to_end();
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }

    fn ask_to_end(&self) {
        // No id: it has ended and was waited for, so the number may be another process's by now.
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended just now.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ask_to_end();
    }
}

/// As a shell says it: of a command that a signal has ended, 128 and the signal's number.
fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(0), _) => Exit::Ok,
        (Some(code), _) => Exit::Command(u8::try_from(code & 0xff).unwrap_or(1)),
        (None, Some(signal)) => Exit::Command(u8::try_from(128 + (signal & 0x7f)).unwrap_or(1)),
        (None, None) => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<OsString> {
        line.iter().map(OsString::from).collect()
    }

    #[tokio::test]
    async fn its_exit_code_and_environment_are_its_own() {
        let script = words(&["sh", "-c", "test \"$ATRIUM_DEVICE\" = dvd && exit 7"]);
        let mut running = Running::start(&script, &[("ATRIUM_DEVICE", "dvd".to_owned())]).unwrap();
        assert_eq!(running.end().await.unwrap(), Exit::Command(7));
        let mut killed = Running::start(&words(&["sh", "-c", "kill -9 $$"]), &[]).unwrap();
        assert_eq!(killed.end().await.unwrap().code(), 137);
        assert_eq!(Running::start(&words(&["true"]), &[]).unwrap().end().await.unwrap(), Exit::Ok);
        let missing = Running::start(&words(&["/nonexistent/program"]), &[]).err().unwrap();
        assert_eq!(missing.reason(), "USAGE");
    }

    #[tokio::test]
    async fn it_is_stopped() {
        let mut running = Running::start(&words(&["sleep", "1000"]), &[]).unwrap();
        running.stop().await.unwrap();
        assert_eq!(running.end().await.unwrap().code(), 143, "by SIGTERM, not by the end of its time");
    }
}
