//! Child processes that never outlive their owner.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where the programs are: beside the running one, or one directory up for test binaries.
#[derive(Clone, Debug)]
pub struct Programs(PathBuf);

impl Programs {
    /// Finds them.
    ///
    /// # Errors
    /// They are not built.
    pub fn find() -> Result<Self> {
        let own = std::env::current_exe()?;
        for directory in own.ancestors().skip(1).take(3) {
            if directory.join("central-server").is_file() && directory.join("atrium").is_file() {
                return Ok(Self(directory.to_owned()));
            }
        }
        bail!("the programs are not beside {}; fix: cargo build --workspace --bins", own.display())
    }

    /// A program's path.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }
}

/// A daemon. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts a daemon with its standard error going to a log file and waits for its first line on standard output,
    /// which says that it is ready and where.
    ///
    /// # Errors
    /// It cannot be started or ends before it is ready; the end of its log is in the error.
    pub fn daemon(mut command: Command, name: &str, log: &Path) -> Result<(Self, String)> {
        let out = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(out);
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let stdout = child.stdout.take().context("standard output")?;
        let mut process = Self { child, log: log.to_owned(), name: name.to_owned() };
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        if line.is_empty() {
            let status = process.child.wait()?;
            bail!("{name} ended at once ({status}):\n{}", process.log_tail());
        }
        // Whatever comes later must not block the daemon.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Ok((process, line))
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// SIGKILL, then waits for the end.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, then waits for a clean end.
    ///
    /// # Errors
    /// It ends with a failure, or not within 60 seconds.
    pub fn stop(mut self) -> Result<()> {
        self.signal(rustix::process::Signal::TERM)?;
        let status = self.wait_up_to(Duration::from_secs(60))?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, self.log_tail()),
            None => bail!("{} did not end within 60 s:\n{}", self.name, self.log_tail()),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).context("signal")
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn wait_up_to(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let mut done = None;
        poll(limit, || {
            done = self.child.try_wait().ok().flatten();
            done.is_some()
        });
        Ok(done)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again every few milliseconds until it is so; false if the time is over first.
pub fn poll(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the one polling loop that watches other processes from outside"
        )]
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a command left.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; -1 after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.stdout).with_context(|| format!("not JSON: {}", self.text()))
    }
}

/// Runs a command to its end, with this standard input.
///
/// # Errors
/// It cannot be started.
pub fn run(command: &mut Command, input: &[u8]) -> Result<Finished> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("standard input")?;
    let input = input.to_vec();
    // A command that does not read its input must not block us.
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output()?;
    let _ = feeder.join();
    Ok(Finished {
        code: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The words of a command for messages.
pub fn words(arguments: &[impl AsRef<OsStr>]) -> String {
    arguments.iter().map(|a| a.as_ref().to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
