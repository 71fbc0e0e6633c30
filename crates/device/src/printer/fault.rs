//! Faults that tests put in: what each step of the spool does when it is reached.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

type Hook = Arc<dyn Fn(&'static str) -> io::Result<()> + Send + Sync>;

/// Is asked at each named step of accepting and printing; by default nothing happens.
#[derive(Clone, Default)]
pub struct Faults(Option<Hook>);

/// The steps, in the order of a job's life.
pub const POINTS: &[&str] = &[
    "spool-write",
    "spool-sync",
    "journal-write",
    "journal-sync",
    "account",
    "journal-synced",
    "accepted",
    "output-begin",
    "folder-write",
    "folder-sync",
    "folder-rename",
    "folder-renamed",
    "output-end",
];

impl Faults {
    /// No faults.
    pub fn none() -> Self {
        Self(None)
    }

    /// Calls this at each step; an error is taken as the step's own. It may also end the process.
    pub fn hook(hook: impl Fn(&'static str) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// Faults that are switched on and off.
    pub fn switched() -> (Self, Switch) {
        let switch = Switch::default();
        let own = switch.clone();
        (Self::hook(move |point| own.at(point)), switch)
    }

    /// A step is reached.
    ///
    /// # Errors
    /// If the test wants one here.
    pub fn at(&self, point: &'static str) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |hook| hook(point))
    }
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Faults(hook)" } else { "Faults" })
    }
}

/// Switches faults.
#[derive(Clone, Default)]
pub struct Switch(Arc<Mutex<Switched>>);

#[derive(Default)]
struct Switched {
    failing: Vec<&'static str>,
    /// From the so many-th time that this step is reached, everything fails: the process is as good as dead.
    die_at: Option<(&'static str, u32)>,
    dead: bool,
}

impl Switch {
    /// This step fails from now on.
    pub fn fail(&self, point: &'static str) {
        self.0.lock().failing.push(point);
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        *self.0.lock() = Switched::default();
    }

    /// When the step is reached for the `count`-th time, it and everything after it fails.
    pub fn die_at(&self, point: &'static str, count: u32) {
        self.0.lock().die_at = Some((point, count));
    }

    /// True once it died.
    pub fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    fn at(&self, point: &'static str) -> io::Result<()> {
        let mut state = self.0.lock();
        if let Some((wanted, count)) = state.die_at
            && wanted == point
        {
            state.die_at = Some((wanted, count.saturating_sub(1)));
            state.dead |= count <= 1;
        }
        if state.dead || state.failing.contains(&point) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}
