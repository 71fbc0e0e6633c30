//! `make demo`: shows an office on this machine and checks every byte. `make up`, `make down`: one that stays.

mod devices;
mod peers;

use anyhow::{Context, Result, bail, ensure};
use atrium_e2e::process::{Programs, poll};
use atrium_e2e::{Office, Person, compare, sample};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;

fn main() -> ExitCode {
    let verb = std::env::args().nth(1);
    let done = match verb.as_deref() {
        None => demo(),
        Some("up") => up(),
        Some("down") => down(),
        Some(_) => {
            eprintln!("usage: demo [up|down]");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe demonstration failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: impl AsRef<str>) {
    println!("{}", text.as_ref());
}

/// "1.00 GiB in 1.52 s, 706 MB/s".
fn figures(bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    format!("{} in {seconds:.2} s, {:.0} MB/s", size(bytes), bytes as f64 / 1e6 / seconds)
}

fn size(bytes: u64) -> String {
    match bytes {
        GIB.. => format!("{:.2} GiB", bytes as f64 / GIB as f64),
        1_048_576.. => format!("{:.0} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{bytes} bytes"),
    }
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let begin = Instant::now();
    Ok((work()?, begin.elapsed()))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or("")
}

/// What anna sees through `atrium watch`, line by line.
struct Watch {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watch {
    fn start(person: &Person, place: &str) -> Result<Self> {
        let mut child = person
            .command(&["watch", place, "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("watch")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let watch = Self { child, lines };
        // The first line says that the stream is open.
        watch.lines.recv_timeout(Duration::from_secs(20)).context("the watch did not open")?;
        Ok(watch)
    }

    fn wait_for(&self, word: &str) -> Result<String> {
        let end = Instant::now() + Duration::from_secs(20);
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if line.contains(word) {
                return Ok(line);
            }
        }
        bail!("watch did not tell of {word}")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn demo() -> Result<()> {
    let begin = Instant::now();
    let scratch = tempfile::Builder::new().prefix("atrium-demo-").tempdir()?;
    let dir = scratch.path();
    say("An office on this machine: everything over TLS 1.3 on loopback, everything under a temporary directory.\n");

    let (mut office, took) = timed(|| Office::start(&dir.join("office"), &[]))?;
    say(format!(
        "1. The central server is up at {} after {:.2} s; its first start founded the office.",
        office.address(),
        took.as_secs_f64()
    ));
    let ((mut anna, mut bert), took) = timed(|| Ok((office.person("anna")?, office.person("bert")?)))?;
    say(format!(
        "2. Anna and Bert have accounts; each one's agent joined with a one-time code and they signed in ({:.2} s for both).",
        took.as_secs_f64()
    ));
    office.admin(&["admin", "directories", "add", "public:plans"], "")?;
    office.admin(&["share", "public:plans", "--with", "everyone", "--right", "write"], "")?;

    let tree = sample::tree()?;
    let (_, took) = timed(|| anna.atrium(&["put", "-p", text(&tree), "public:plans/documentation"]))?;
    let counted = count(&tree)?;
    say(format!(
        "3. Anna put a real tree into public:plans: {} files, {} ({:.0} files/s), durable.",
        counted.files,
        figures(counted.bytes, took),
        counted.files as f64 / took.as_secs_f64()
    ));

    let big = dir.join("toolchain.tar");
    sample::archive(&big, GIB)?;
    let (_, took) = timed(|| anna.atrium(&["put", "-p", text(&big), "home:archive/toolchain.tar"]))?;
    say(format!("4. Anna put one real file into her private directory: {}, durable.", figures(GIB, took)));

    let listed = bert.atrium(&["ls", "public:plans", "--json"])?.text();
    ensure!(listed.contains("documentation"), "bert does not see the public directory: {listed}");
    let refused = bert.try_atrium(&["ls", "home/anna:archive"])?;
    ensure!(refused.code == 4 || refused.code == 5, "bert was not refused: exit {} {}", refused.code, refused.stderr);
    let reason = refused.stderr.lines().next().unwrap_or("").to_owned();
    say(format!("5. Bert sees the public directory. He asks for Anna's private one and is told:\n     {reason}"));

    let watch = Watch::start(&anna, "public:plans")?;
    let note = dir.join("note.txt");
    fs::write(&note, "Bert was here.\n")?;
    let (_, took) = timed(|| {
        bert.atrium(&["put", text(&note), "public:plans/documentation/index.html"])?;
        watch.wait_for("index.html")
    })?;
    drop(watch);
    let versions = anna.atrium(&["versions", "public:plans/documentation/index.html", "--json"])?.json()?;
    ensure!(versions.to_string().contains("bert"), "no version by bert: {versions}");
    say(format!(
        "6. Bert changed a file; Anna's watch told her {:.0} ms after he began. The old version is kept.",
        took.as_secs_f64() * 1e3
    ));

    // One MiB changed in the middle of one GiB.
    let changed = dir.join("toolchain-2.tar");
    fs::copy(&big, &changed)?;
    patch(&changed, GIB / 2, &sample::bytes(7, 1 << 20))?;
    let (_, took) = timed(|| anna.atrium(&["put", text(&changed), "home:archive/toolchain.tar"]))?;
    say(format!(
        "7. One MiB in the middle of the file changed; putting all {} again took {:.2} s.",
        size(GIB),
        took.as_secs_f64()
    ));

    let second = dir.join("second.bin");
    sample::file(&second, 11, GIB)?;
    let stored = stored_bytes(&office.data())?;
    let (_, took) = timed(|| {
        let mut upload = anna
            .command(&["put", "-p", text(&second), "home:archive/second.bin"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let reached = poll(Duration::from_secs(60), || {
            stored_bytes(&office.data()).is_ok_and(|now| now > stored + 400_000_000)
                || upload.try_wait().ok().flatten().is_some()
        });
        ensure!(reached && upload.try_wait()?.is_none(), "the upload was over before the server could be killed");
        office.kill()?;
        let had = stored_bytes(&office.data())?.saturating_sub(stored);
        say(format!(
            "8. SIGKILL for the server in the middle of another upload ({} of {} had arrived).",
            size(had),
            size(GIB)
        ));
        office.restart()?;
        let output = upload.wait_with_output()?;
        ensure!(output.status.success(), "the upload failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    })?;
    say(format!(
        "   Restarted; the upload went on by itself and finished: {} with the crash in it.",
        figures(GIB, took)
    ));
    anna.wait_connected()?;
    bert.wait_connected()?;

    say("9. Everything is read back and compared byte for byte:");
    let back = dir.join("back");
    fs::create_dir(&back)?;
    let (_, took) = timed(|| bert.atrium(&["get", "public:plans/documentation", text(&back.join("documentation"))]))?;
    let got = back.join("documentation");
    ensure!(fs::read(got.join("index.html"))? == b"Bert was here.\n", "bert's change is missing");
    anna.atrium(&["get", "public:plans/documentation/index.html", "--version", "1", text(&back.join("index.html"))])?;
    fs::rename(back.join("index.html"), got.join("index.html"))?;
    let same = compare::trees(&tree, &got)?;
    say(format!("     the tree, by Bert: {} files, {} - equal", same.files, figures(same.bytes, took)));
    for (remote, local) in [("home:archive/toolchain.tar", &changed), ("home:archive/second.bin", &second)] {
        let copy = back.join("file");
        let (_, took) = timed(|| anna.atrium(&["get", remote, text(&copy)]))?;
        compare::files(local, &copy)?;
        fs::remove_file(&copy)?;
        say(format!("     {remote}, by Anna: {} - equal", figures(GIB, took)));
    }
    let first = back.join("first");
    anna.atrium(&["get", "home:archive/toolchain.tar", "--version", "1", text(&first)])?;
    compare::files(&big, &first)?;
    say("     version 1 of home:archive/toolchain.tar - equal");
    let audit = office.admin(&["admin", "audit", "verify"], "")?.text();
    say(format!("     the audit log's hash chain: {}", audit.lines().next().unwrap_or("checked")));

    anna.stop_agent()?;
    bert.stop_agent()?;
    office.stop()?;
    fs::remove_dir_all(back)?;

    peers::demo(dir)?;
    devices::demo(dir)?;
    say(format!("\nAll equal, nothing lost; all programs have ended. {:.0} s in all.", begin.elapsed().as_secs_f64()));
    Ok(())
}

fn count(tree: &Path) -> Result<compare::Compared> {
    let mut sum = compare::Compared::default();
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let inner = count(&entry.path())?;
            sum.files += inner.files;
            sum.bytes += inner.bytes;
        } else if kind.is_file() {
            sum.files += 1;
            sum.bytes += entry.metadata()?.len();
        }
    }
    Ok(sum)
}

fn patch(path: &Path, offset: u64, data: &[u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    fs::File::options().write(true).open(path)?.write_all_at(data, offset)?;
    Ok(())
}

/// Bytes in the server's segment files.
fn stored_bytes(data: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut open = vec![data.join("chunks")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => open.push(entry.path()),
                Ok(meta) => sum += meta.len().min(meta_blocks(&meta)),
                Err(_) => {}
            }
        }
    }
    Ok(sum)
}

/// A file that was made longer ahead of its content counts only what is written.
fn meta_blocks(meta: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    meta.blocks() * 512
}

fn place() -> Result<PathBuf> {
    let programs = Programs::find()?;
    Ok(programs.directory().parent().context("target directory")?.join("office"))
}

fn up() -> Result<()> {
    let dir = place()?;
    ensure!(!dir.join("pids").exists(), "an office is up already in {}; fix: make down", dir.display());
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let office = Office::start(&dir, &[])?;
    let people = [office.person("anna")?, office.person("bert")?];
    office.admin(&["admin", "directories", "add", "public:plans"], "")?;
    office.admin(&["share", "public:plans", "--with", "everyone", "--right", "write"], "")?;
    say(format!("The office is up at {} (CA: {}).", office.address(), office.ca_file().display()));
    say("Add the programs to your path, and be anna:");
    say(format!("  export PATH={}:$PATH", Programs::find()?.directory().display()));
    for person in &people {
        say(format!("  export ATRIUM_AGENT_SOCKET={}   # {}", person.socket().display(), person.name));
    }
    say("  atrium status; atrium put README.md home:; atrium ls");
    say("Stop it: make down");
    let mut pids: Vec<String> = people.into_iter().filter_map(Person::detach).map(|p| p.to_string()).collect();
    pids.extend(office.detach().map(|p| p.to_string()));
    fs::write(dir.join("pids"), pids.join("\n"))?;
    Ok(())
}

fn down() -> Result<()> {
    let dir = place()?;
    let Ok(pids) = fs::read_to_string(dir.join("pids")) else {
        say("No office is up.");
        return Ok(());
    };
    for pid in pids.lines() {
        // Only what is still one of our programs: the number may have been given to something else since.
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if ["central-server", "client-agent"].contains(&name.trim()) {
            Command::new("kill").arg(pid).status()?;
        }
    }
    let gone =
        poll(Duration::from_secs(60), || pids.lines().all(|pid| !Path::new("/proc").join(pid).join("exe").exists()));
    ensure!(gone, "a program did not end; see {}", dir.display());
    fs::remove_dir_all(&dir)?;
    say("The office is down; its state is removed.");
    Ok(())
}
