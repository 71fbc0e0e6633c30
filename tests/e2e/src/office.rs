//! A central server, agents and people in a directory.

use crate::peers::Place;
use crate::process::{Finished, Process, Programs, poll, run, words};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A running office.
#[derive(Debug)]
pub struct Office {
    programs: Programs,
    directory: PathBuf,
    server: Option<Process>,
    address: SocketAddr,
    metrics: Option<SocketAddr>,
    place: Place,
    extra: Vec<String>,
}

/// Someone with an agent.
#[derive(Debug)]
pub struct Person {
    programs: Programs,
    /// Account name.
    pub name: String,
    directory: PathBuf,
    socket: PathBuf,
    agent: Option<Process>,
}

impl Office {
    /// Starts a server in this directory on a free loopback port.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(directory: &Path, extra: &[&str]) -> Result<Self> {
        Self::start_at(directory, Place::Loopback, extra)
    }

    /// Starts a server on loopback, or on a machine of a network lab.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_at(directory: &Path, place: Place, extra: &[&str]) -> Result<Self> {
        let address = match &place {
            Place::Loopback => SocketAddr::from(([127, 0, 0, 1], 0)),
            Place::Machine(lab, machine) => SocketAddr::from((lab.address(*machine, 0), 7443)),
        };
        let mut office = Self {
            programs: Programs::find()?,
            directory: directory.to_owned(),
            server: None,
            address,
            metrics: None,
            place,
            extra: extra.iter().map(|s| (*s).to_owned()).collect(),
        };
        std::fs::create_dir_all(directory)?;
        office.restart()?;
        Ok(office)
    }

    /// Starts the server (again) on the address it had.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_with(&[])
    }

    /// The same with variables in its environment.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let program = self.programs.path("central-server");
        let mut command = match &self.place {
            Place::Loopback => Command::new(program),
            Place::Machine(lab, machine) => lab.command(*machine, program),
        };
        command
            .envs(environment.iter().copied())
            .arg("--data-dir")
            .arg(self.data())
            .args(["--listen", &self.address.to_string(), "--web-listen", "127.0.0.1:0"])
            .args(&self.extra);
        let (server, line) = Process::daemon(command, "central-server", &self.directory.join("server.log"))?;
        let address = line.split_whitespace().find_map(|w| w.parse::<SocketAddr>().ok());
        self.address = address.with_context(|| format!("no address in {line:?}"))?;
        self.metrics = line.split_whitespace().find_map(|w| w.strip_prefix("metrics=")?.parse().ok());
        self.server = Some(server);
        Ok(())
    }

    /// The server process.
    ///
    /// # Errors
    /// It was killed.
    pub fn server(&mut self) -> Result<&mut Process> {
        self.server.as_mut().context("the server does not run")
    }

    /// The server's process id, while it runs.
    pub fn server_id(&self) -> Option<u32> {
        self.server.as_ref().map(Process::id)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().context("the server does not run")?.kill()
    }

    /// SIGKILL, if it has not died already.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn kill_if_running(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        if server.is_running() { server.kill() } else { Ok(()) }
    }

    /// SIGTERM, and a clean end.
    ///
    /// # Errors
    /// It does not run, or does not end cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.server.take().context("the server does not run")?.stop()
    }

    /// Gives the server process away: it goes on after this office is dropped.
    pub fn detach(mut self) -> Option<u32> {
        let id = self.server.as_ref().map(Process::id);
        std::mem::forget(self.server.take());
        id
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Path of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.path(name)
    }

    /// Bytes of answers that the server has sent, by its own count; on loopback only.
    ///
    /// # Errors
    /// It does not tell.
    pub fn sent_bytes(&self) -> Result<u64> {
        let address = self.metrics.context("no metrics")?;
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text.lines().find_map(|l| l.strip_prefix("atrium_rpc_sent_bytes_total "));
        line.and_then(|n| n.trim().parse().ok()).context("no count of sent bytes")
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The directory of everything.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The office CA, PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.data().join("ca.pem")
    }

    /// Runs the command line as the local administrator, whatever comes of it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_admin(&self, arguments: &[&str], input: &str) -> Result<Finished> {
        let mut command = Command::new(self.programs.path("atrium"));
        command.arg("--server").arg(format!("unix:{}", self.data().join("admin.sock").display()));
        run(command.args(arguments), input.as_bytes())
    }

    /// Runs the command line as the local administrator.
    ///
    /// # Errors
    /// It fails.
    pub fn admin(&self, arguments: &[&str], input: &str) -> Result<Finished> {
        let done = self.try_admin(arguments, input)?;
        if done.code != 0 {
            bail!("atrium {}: exit {}\n{}{}", words(arguments), done.code, done.text(), done.stderr);
        }
        Ok(done)
    }

    /// Adds a user.
    ///
    /// # Errors
    /// The server refuses.
    pub fn add_user(&self, name: &str, password: &str) -> Result<()> {
        self.admin(&["admin", "users", "add", name, "--password-file", "-"], password).map(drop)
    }

    /// A new one-time code.
    ///
    /// # Errors
    /// The server refuses.
    pub fn invite(&self) -> Result<String> {
        let done = self.admin(&["admin", "invite", "--json"], "")?;
        Ok(done.json()?["code"].as_str().context("code")?.to_owned())
    }

    /// Makes the data directory from a backup; the server must be down.
    ///
    /// # Errors
    /// It cannot.
    pub fn restore(&self, backup: &Path) -> Result<()> {
        let mut command = Command::new(self.programs.path("central-server"));
        let done = run(command.arg("restore").arg(backup).arg(self.data()), b"")?;
        if done.code != 0 {
            bail!("central-server restore: exit {}\n{}{}", done.code, done.text(), done.stderr);
        }
        Ok(())
    }

    /// Someone with an agent that has not joined.
    ///
    /// # Errors
    /// The agent does not start.
    pub fn stranger(&self, name: &str) -> Result<Person> {
        let mut person = Person::new(&self.programs, name, &self.directory.join(name));
        person.start_agent()?;
        Ok(person)
    }

    /// Adds a user with an agent, joined and signed in.
    ///
    /// # Errors
    /// Any step fails.
    pub fn person(&self, name: &str) -> Result<Person> {
        let password = format!("correct horse {name}");
        self.add_user(name, &password)?;
        let person = self.stranger(name)?;
        let code = self.invite()?;
        let pc = format!("{name}-pc");
        person.atrium_with(&["join", &self.address.to_string(), "--code-file", "-", "--name", &pc], &code)?;
        person.atrium_with(&["login", name, "--password-file", "-"], &password)?;
        Ok(person)
    }
}

impl Person {
    fn new(programs: &Programs, name: &str, directory: &Path) -> Self {
        Self {
            programs: programs.clone(),
            name: name.to_owned(),
            directory: directory.to_owned(),
            socket: directory.join("agent.sock"),
            agent: None,
        }
    }

    /// Starts the agent (again).
    ///
    /// # Errors
    /// It does not start.
    pub fn start_agent(&mut self) -> Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let mut command = Command::new(self.programs.path("client-agent"));
        command.arg("--state-dir").arg(self.directory.join("state")).arg("--socket").arg(&self.socket);
        let (agent, _) = Process::daemon(command, "client-agent", &self.directory.join("agent.log"))?;
        self.agent = Some(agent);
        Ok(())
    }

    /// SIGKILL for the agent.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("the agent does not run")?.kill()
    }

    /// SIGTERM for the agent, and a clean end.
    ///
    /// # Errors
    /// It does not run, or does not end cleanly.
    pub fn stop_agent(&mut self) -> Result<()> {
        self.agent.take().context("the agent does not run")?.stop()
    }

    /// The agent process.
    ///
    /// # Errors
    /// It was killed.
    pub fn agent(&mut self) -> Result<&mut Process> {
        self.agent.as_mut().context("the agent does not run")
    }

    /// Gives the agent process away.
    pub fn detach(mut self) -> Option<u32> {
        let id = self.agent.as_ref().map(Process::id);
        std::mem::forget(self.agent.take());
        id
    }

    /// The agent's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// This person's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The command line as this person.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.path("atrium"));
        command.env("ATRIUM_AGENT_SOCKET", &self.socket).env("XDG_STATE_HOME", &self.directory).args(arguments);
        command
    }

    /// Runs it, whatever comes of it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_atrium(&self, arguments: &[&str]) -> Result<Finished> {
        self.try_atrium_with(arguments, "")
    }

    /// The same with this standard input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_atrium_with(&self, arguments: &[&str], input: &str) -> Result<Finished> {
        run(&mut self.command(arguments), input.as_bytes())
    }

    /// Runs it.
    ///
    /// # Errors
    /// It fails.
    pub fn atrium(&self, arguments: &[&str]) -> Result<Finished> {
        self.atrium_with(arguments, "")
    }

    /// Runs it with this standard input.
    ///
    /// # Errors
    /// It fails.
    pub fn atrium_with(&self, arguments: &[&str], input: &str) -> Result<Finished> {
        let done = run(&mut self.command(arguments), input.as_bytes())?;
        if done.code != 0 {
            bail!("{}: atrium {}: exit {}\n{}{}", self.name, words(arguments), done.code, done.text(), done.stderr);
        }
        Ok(done)
    }

    /// Waits until the agent says that it is connected.
    ///
    /// # Errors
    /// Not within 30 seconds.
    pub fn wait_connected(&self) -> Result<()> {
        let connected = poll(Duration::from_secs(30), || self.try_atrium(&["status"]).is_ok_and(|s| s.code == 0));
        if !connected {
            let status = self.try_atrium(&["status"])?;
            bail!("{} is not connected: {}{}", self.name, status.text(), status.stderr);
        }
        Ok(())
    }
}
