//! Runs this test binary again as a child, kills it, and simulates power cuts with `tests/powercut/powercut.c`.
//!
//! A child is a test of this binary that returns at once unless [`child_directory`] finds its variable. It reports on its
//! standard error, one line for each thing that it takes for durable, beginning with [`MARK`].

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

const DIRECTORY: &str = "ATRIUM_TEST_CHILD_DIRECTORY";
const ARGUMENT: &str = "ATRIUM_TEST_CHILD_ARGUMENT";
/// Lines of a child that mean something begin with this.
pub const MARK: &str = "ack ";

/// In a child: the directory it works in and its argument.
pub fn child_directory() -> Option<(PathBuf, String)> {
    let directory = std::env::var_os(DIRECTORY)?;
    Some((directory.into(), std::env::var(ARGUMENT).unwrap_or_default()))
}

/// In a child: reports something that must not be lost from now on. One write, so a kill cuts no line in two.
pub fn acknowledge(what: &str) {
    use std::io::Write;
    std::io::stderr().write_all(format!("{MARK}{what}\n").as_bytes()).expect("the parent reads until it kills us");
}

/// A running child. It is killed when this is dropped.
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    /// What it said that was no acknowledgement: shown if it ends by itself.
    noise: String,
}

/// Starts the test `name` (with its modules) of this binary as a child.
pub fn start(name: &str, directory: &Path, argument: &str, preload: Option<(&Path, &Path)>) -> Running {
    let mut command = Command::new(std::env::current_exe().expect("a running program has a path"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command.env(DIRECTORY, directory).env(ARGUMENT, argument);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some((library, shadow)) = preload {
        command.env("LD_PRELOAD", library).env("POWERCUT_ROOT", directory).env("POWERCUT_SHADOW", shadow);
    }
    let mut child = command.spawn().expect("the test binary runs");
    let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    Running { child, lines, noise: String::new() }
}

impl Running {
    /// The next thing it acknowledged; nothing once it has ended.
    pub fn next(&mut self) -> Option<String> {
        for line in self.lines.by_ref() {
            let line = line.expect("a pipe can be read");
            match line.strip_prefix(MARK) {
                Some(what) => return Some(what.to_owned()),
                None => self.noise.extend([&line[..], "\n"]),
            }
        }
        None
    }

    /// Reads `count` acknowledgements, kills it with SIGKILL, and gives back all that it acknowledged until then.
    pub fn kill_after(mut self, count: usize) -> Vec<String> {
        let mut seen = Vec::new();
        while seen.len() < count {
            match self.next() {
                Some(what) => seen.push(what),
                None => panic!("the child ended by itself after {} acknowledgements:\n{}", seen.len(), self.noise),
            }
        }
        self.child.kill().expect("our child can be killed");
        self.child.wait().expect("our child can be waited for");
        while let Some(what) = self.next() {
            seen.push(what);
        }
        seen
    }

    /// Waits until it ends by itself.
    pub fn finish(mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(what) = self.next() {
            seen.push(what);
        }
        let status = self.child.wait().expect("our child can be waited for");
        assert!(status.success(), "the child failed: {status}\n{}", self.noise);
        seen
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The compiled library, or nothing (and a line that says so) where no C compiler is installed.
pub fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    let built = LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/powercut/powercut.c");
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let library = directory.path().join("powercut.so");
        let output = Command::new("cc")
            .args(["-O1", "-Wall", "-Werror", "-Wno-format-truncation", "-shared", "-fPIC", "-pthread", "-o"])
            .arg(&library)
            .arg(&source)
            .arg("-ldl")
            .output();
        match output {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                eprintln!(
                    "SKIPPED: power cuts are not simulated, because there is no C compiler `cc` (apt-get install gcc)"
                );
                None
            }
            Err(e) => panic!("cc: {e}"),
            Ok(output) => {
                assert!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
                Some((directory, library))
            }
        }
    });
    built.as_ref().map(|(_, library)| library.as_path())
}

/// Copies a directory tree: the state from which a machine starts after the power is back.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory can be made");
    for entry in std::fs::read_dir(from).expect("a directory can be read") {
        let entry = entry.expect("a directory can be read");
        let name = entry.file_name();
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &to.join(name));
        } else if !name.to_string_lossy().ends_with(".powercut") {
            std::fs::copy(entry.path(), to.join(name)).expect("a file can be copied");
        }
    }
}

/// Writes four files in four ways. Run by the test below.
#[test]
fn child_that_syncs_some_files() {
    let Some((directory, _)) = child_directory() else { return };
    let sync = |path: &Path| std::fs::File::open(path).unwrap().sync_all().unwrap();
    std::fs::write(directory.join("unsynced"), "lost").unwrap();
    std::fs::write(directory.join("synced"), "kept").unwrap();
    sync(&directory.join("synced"));
    std::fs::write(directory.join("synced"), "kept, then changed without a sync").unwrap();
    std::fs::write(directory.join("named"), "lost").unwrap();
    std::fs::create_dir(directory.join("below")).unwrap();
    std::fs::write(directory.join("below/temporary"), "moved").unwrap();
    sync(&directory.join("below/temporary"));
    std::fs::rename(directory.join("below/temporary"), directory.join("moved")).unwrap();
    std::fs::write(directory.join("removed"), "x").unwrap();
    sync(&directory.join("removed"));
    std::fs::remove_file(directory.join("removed")).unwrap();
    std::fs::remove_file(directory.join("unsynced")).unwrap();
    sync(&directory);
    std::fs::write(directory.join("unsynced"), "lost").unwrap();
    acknowledge("done");
}

#[test]
fn only_what_was_synced_survives_a_power_cut() {
    let Some(library) = library() else { return };
    let (root, shadow) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let child = start("powercut::child_that_syncs_some_files", root.path(), "", Some((library, shadow.path())));
    assert_eq!(child.finish(), ["done"]);
    let left = |name: &str| std::fs::read_to_string(shadow.path().join(name)).ok();
    assert_eq!(left("synced").as_deref(), Some("kept"));
    assert_eq!(left("unsynced"), None);
    assert_eq!(left("named").as_deref(), Some(""), "its name was synced, its content was not");
    assert_eq!(left("moved").as_deref(), Some("moved"));
    assert_eq!(left("removed"), None);
    assert_eq!(left("below/temporary"), None);
}
