//! What people use now: nginx over HTTPS with curl, Samba with encryption and smbclient, an rsync daemon (no TLS).
//! Each runs in a directory of its own on a free loopback port.

use super::{Contender, Inputs, Work};
use crate::process::poll;
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

pub(super) fn installed(program: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"]
        .iter()
        .map(|d| Path::new(d).join(program))
        .find(|p| p.is_file())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn run_all(commands: Vec<Command>) -> Result<()> {
    let mut running = Vec::new();
    for mut command in commands {
        running.push(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    }
    for mut child in running {
        ensure!(child.wait()?.success(), "a client failed");
    }
    Ok(())
}

/// A peer's server process; ended when dropped, with its children.
#[derive(Debug)]
pub(super) struct Server(Child);

impl Server {
    pub(super) fn start(command: &mut Command, port: u16) -> Result<Self> {
        let server = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let up = poll(Duration::from_secs(20), || TcpStream::connect(("127.0.0.1", port)).is_ok());
        ensure!(up, "{command:?} does not listen");
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM, so that it ends its own children.
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

/// Systems that people use now, running.
pub type Peers = Vec<Box<dyn Contender>>;

/// Starts all peers that are installed; says which are missing.
///
/// # Errors
/// One that is installed does not start.
pub fn start_all(directory: &Path) -> Result<(Peers, Vec<String>)> {
    let mut peers: Peers = Vec::new();
    let mut missing = Vec::new();
    let mut want = |programs: &[&str]| -> Option<Vec<PathBuf>> {
        let found: Option<Vec<PathBuf>> = programs.iter().map(|p| installed(p)).collect();
        if found.is_none() {
            missing.push(programs.join(" + "));
        }
        found
    };
    if let Some(p) = want(&["nginx", "curl", "openssl"]) {
        peers.push(Box::new(Nginx::start(&directory.join("nginx"), &p)?));
    }
    if let Some(p) = want(&["smbd", "smbclient", "smbpasswd"]) {
        peers.push(Box::new(Samba::start(&directory.join("samba"), &p)?));
    }
    if let Some(p) = want(&["rsync"]) {
        peers.push(Box::new(Rsync::start(&directory.join("rsync"), &p)?));
    }
    Ok((peers, missing))
}

fn empty(directory: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    Ok(())
}

/// nginx with the DAV module over HTTPS.
struct Nginx {
    server: Server,
    port: u16,
    files: PathBuf,
    directory: PathBuf,
}

impl Nginx {
    fn start(directory: &Path, programs: &[PathBuf]) -> Result<Self> {
        let files = directory.join("files");
        empty(&files)?;
        let d = directory.display();
        run(Command::new(&programs[2])
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-keyout"])
            .arg(directory.join("key.pem"))
            .arg("-out")
            .arg(directory.join("cert.pem")))?;
        let port = free_port()?;
        let config = directory.join("nginx.conf");
        fs::write(
            &config,
            format!(
                "daemon off; pid {d}/pid; error_log {d}/error.log; worker_processes 2; user root;
                 events {{ worker_connections 512; }}
                 http {{ access_log off; sendfile on; client_max_body_size 0; client_body_temp_path {d}/tmp;
                   proxy_temp_path {d}/t1; fastcgi_temp_path {d}/t2; uwsgi_temp_path {d}/t3; scgi_temp_path {d}/t4;
                   ssl_protocols TLSv1.3; ssl_certificate {d}/cert.pem; ssl_certificate_key {d}/key.pem;
                   keepalive_requests 100000;
                   server {{ listen 127.0.0.1:{port} ssl http2; root {files}; dav_methods PUT DELETE MKCOL;
                     create_full_put_path on; }} }}",
                files = files.display()
            ),
        )?;
        let server = Server::start(Command::new(&programs[0]).arg("-p").arg(directory).arg("-c").arg(&config), port)?;
        Ok(Self { server, port, files, directory: directory.to_owned() })
    }

    fn curl(&self) -> Command {
        let mut command = Command::new("curl");
        command.args(["-sSf", "--tlsv1.3"]).arg("--cacert").arg(self.directory.join("cert.pem"));
        command
    }

    fn url(&self, name: &str) -> String {
        format!("https://localhost:{}/{name}", self.port)
    }

    fn many(&self, inputs: &Inputs, scratch: Option<&Path>) -> Result<()> {
        let mut list = String::new();
        for d in 0..100 {
            if let Some(scratch) = scratch {
                fs::create_dir_all(scratch.join(format!("small/{d:02}")))?;
            }
            for i in 0..100 {
                let name = format!("small/{d:02}/{i:02}.bin");
                let url = self.url(&name);
                match scratch {
                    Some(scratch) => writeln!(list, "url = \"{url}\"\noutput = \"{}\"", scratch.join(&name).display())?,
                    None => {
                        let source = inputs.small.parent().context("inputs")?.join(&name);
                        writeln!(
                            list,
                            "url = \"{url}\"\nupload-file = \"{}\"\noutput = \"/dev/null\"",
                            source.display()
                        )?;
                    }
                }
            }
        }
        let config = self.directory.join("curl.conf");
        fs::write(&config, list)?;
        run(self.curl().args(["--http2", "--parallel", "--parallel-max", "64"]).arg("-K").arg(&config))
    }
}

impl Contender for Nginx {
    fn name(&self) -> &str {
        "nginx HTTPS"
    }
    fn server_pids(&self) -> Vec<u32> {
        vec![self.server.0.id()]
    }
    fn prepare(&mut self, work: Work) -> Result<()> {
        match work {
            Work::PutBig | Work::PutEight | Work::PutSmall => empty(&self.files),
            _ => Ok(()),
        }
    }
    fn perform(&mut self, work: Work, inputs: &Inputs, scratch: &Path) -> Result<Option<()>> {
        match work {
            Work::PutBig | Work::PutChanged => {
                let source = if work == Work::PutBig { &inputs.big } else { &inputs.changed };
                run(self.curl().args(["--http1.1", "-T"]).arg(source).arg(self.url("big.bin")))?;
            }
            Work::GetBig => {
                run(self.curl().arg("--http1.1").arg("-o").arg(scratch.join("big.bin")).arg(self.url("big.bin")))?;
            }
            Work::PutEight => run_all(
                (0..8)
                    .map(|c| {
                        let mut command = self.curl();
                        command.arg("--http1.1");
                        for i in [2 * c, 2 * c + 1] {
                            command
                                .arg("-T")
                                .arg(inputs.eight.join(format!("{i:02}.bin")))
                                .arg(self.url(&format!("eight/{i:02}.bin")));
                        }
                        command
                    })
                    .collect(),
            )?,
            Work::GetEight => {
                fs::create_dir_all(scratch.join("eight"))?;
                run_all(
                    (0..8)
                        .map(|c| {
                            let mut command = self.curl();
                            command.arg("--http1.1");
                            for i in [2 * c, 2 * c + 1] {
                                command
                                    .arg("-o")
                                    .arg(scratch.join(format!("eight/{i:02}.bin")))
                                    .arg(self.url(&format!("eight/{i:02}.bin")));
                            }
                            command
                        })
                        .collect(),
                )?;
            }
            Work::PutSmall => self.many(inputs, None)?,
            Work::GetSmall => self.many(inputs, Some(scratch))?,
        }
        Ok(Some(()))
    }
}

/// smbd with encryption required, and smbclient.
struct Samba {
    server: Server,
    port: u16,
    files: PathBuf,
}

impl Samba {
    fn start(directory: &Path, programs: &[PathBuf]) -> Result<Self> {
        let files = directory.join("files");
        empty(&files)?;
        let d = directory.display();
        for sub in ["private", "lock", "state", "cache", "pid", "ncalrpc"] {
            fs::create_dir_all(directory.join(sub))?;
        }
        let port = free_port()?;
        let config = directory.join("smb.conf");
        fs::write(
            &config,
            format!(
                "[global]\nserver role = standalone\nsmb ports = {port}\ninterfaces = 127.0.0.1\nbind interfaces only = yes\n\
                 private dir = {d}/private\nlock directory = {d}/lock\nstate directory = {d}/state\ncache directory = {d}/cache\n\
                 pid directory = {d}/pid\nncalrpc dir = {d}/ncalrpc\npassdb backend = tdbsam:{d}/private/passdb.tdb\n\
                 log file = {d}/log\nlog level = 0\nserver smb encrypt = required\nserver min protocol = SMB3_11\n\
                 disable spoolss = yes\nload printers = no\nmap to guest = never\n\
                 [share]\npath = {}\nread only = no\nforce user = root\n",
                files.display()
            ),
        )?;
        let mut child = Command::new(&programs[2])
            .arg("-c")
            .arg(&config)
            .args(["-s", "-a", "root"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        use std::io::Write;
        child.stdin.take().context("smbpasswd")?.write_all(b"bench\nbench\n")?;
        ensure!(child.wait()?.success(), "smbpasswd failed");
        let server = Server::start(Command::new(&programs[0]).args(["-F", "-s"]).arg(&config), port)?;
        Ok(Self { server, port, files })
    }

    fn client(&self, script: &str) -> Command {
        let mut command = Command::new("smbclient");
        command.arg("//127.0.0.1/share").args([
            "-p",
            &self.port.to_string(),
            "-U",
            "root%bench",
            "-m",
            "SMB3",
            "--client-protection=encrypt",
            "-c",
            script,
        ]);
        command
    }
}

impl Contender for Samba {
    fn name(&self) -> &str {
        "Samba encrypted"
    }
    fn server_pids(&self) -> Vec<u32> {
        vec![self.server.0.id()]
    }
    fn prepare(&mut self, work: Work) -> Result<()> {
        match work {
            Work::PutBig | Work::PutEight | Work::PutSmall => empty(&self.files),
            _ => Ok(()),
        }
    }
    fn perform(&mut self, work: Work, inputs: &Inputs, scratch: &Path) -> Result<Option<()>> {
        match work {
            Work::PutBig => run(&mut self.client(&format!("put {} big.bin", inputs.big.display())))?,
            Work::PutChanged => run(&mut self.client(&format!("put {} big.bin", inputs.changed.display())))?,
            Work::GetBig => run(&mut self.client(&format!("get big.bin {}", scratch.join("big.bin").display())))?,
            Work::PutEight | Work::GetEight => {
                fs::create_dir_all(self.files.join("eight"))?;
                fs::create_dir_all(scratch.join("eight"))?;
                run_all(
                    (0..8)
                        .map(|c| {
                            let script: Vec<String> = [2 * c, 2 * c + 1]
                                .iter()
                                .map(|i| {
                                    let name = format!("{i:02}.bin");
                                    if work == Work::PutEight {
                                        format!("put {} eight/{name}", inputs.eight.join(&name).display())
                                    } else {
                                        format!("get eight/{name} {}", scratch.join("eight").join(&name).display())
                                    }
                                })
                                .collect();
                            self.client(&script.join("; "))
                        })
                        .collect(),
                )?;
            }
            Work::PutSmall => {
                let parent = inputs.small.parent().context("inputs")?;
                run(&mut self.client(&format!("lcd {}; recurse ON; prompt OFF; mput small", parent.display())))?;
            }
            Work::GetSmall => {
                run(&mut self.client(&format!("lcd {}; recurse ON; prompt OFF; mget small", scratch.display())))?;
            }
        }
        Ok(Some(()))
    }
}

/// An rsync daemon: no encryption, writes not synced.
struct Rsync {
    server: Server,
    port: u16,
    files: PathBuf,
}

impl Rsync {
    fn start(directory: &Path, programs: &[PathBuf]) -> Result<Self> {
        let files = directory.join("files");
        empty(&files)?;
        let port = free_port()?;
        let config = directory.join("rsyncd.conf");
        fs::write(
            &config,
            format!(
                "use chroot = no\nuid = root\ngid = root\nlog file = {}/log\n[m]\npath = {}\nread only = no\n",
                directory.display(),
                files.display()
            ),
        )?;
        let server = Server::start(
            Command::new(&programs[0])
                .args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={port}")])
                .arg(format!("--config={}", config.display())),
            port,
        )?;
        Ok(Self { server, port, files })
    }

    fn client(&self, extra: &[&str], from: &str, to: &str) -> Command {
        let mut command = Command::new("rsync");
        command.arg("-rt").args(extra).arg(from).arg(to);
        command
    }

    fn remote(&self, name: &str) -> String {
        format!("rsync://127.0.0.1:{}/m/{name}", self.port)
    }
}

impl Contender for Rsync {
    fn name(&self) -> &str {
        "rsync daemon (no TLS)"
    }
    fn server_pids(&self) -> Vec<u32> {
        vec![self.server.0.id()]
    }
    fn prepare(&mut self, work: Work) -> Result<()> {
        match work {
            Work::PutBig | Work::PutEight | Work::PutSmall => empty(&self.files),
            _ => Ok(()),
        }
    }
    fn perform(&mut self, work: Work, inputs: &Inputs, scratch: &Path) -> Result<Option<()>> {
        let text = |p: &Path| p.to_string_lossy().into_owned();
        match work {
            Work::PutBig => run(&mut self.client(&["-W"], &text(&inputs.big), &self.remote("big.bin")))?,
            Work::PutChanged => run(&mut self.client(&["--no-W"], &text(&inputs.changed), &self.remote("big.bin")))?,
            Work::GetBig => run(&mut self.client(&["-W"], &self.remote("big.bin"), &text(&scratch.join("big.bin"))))?,
            Work::PutEight | Work::GetEight => {
                fs::create_dir_all(self.files.join("eight"))?;
                fs::create_dir_all(scratch.join("eight"))?;
                run_all(
                    (0..8)
                        .map(|c| {
                            let mut command = Command::new("rsync");
                            command.args(["-rt", "-W"]);
                            let names = [2 * c, 2 * c + 1].map(|i| format!("{i:02}.bin"));
                            if work == Work::PutEight {
                                command.args(names.iter().map(|n| inputs.eight.join(n))).arg(self.remote("eight/"));
                            } else {
                                command
                                    .args(names.iter().map(|n| self.remote(&format!("eight/{n}"))))
                                    .arg(scratch.join("eight/"));
                            }
                            command
                        })
                        .collect(),
                )?;
            }
            Work::PutSmall => run(&mut self.client(&["-W"], &text(&inputs.small), &self.remote("")))?,
            Work::GetSmall => run(&mut self.client(&["-W"], &self.remote("small"), &text(scratch)))?,
        }
        Ok(Some(()))
    }
}
