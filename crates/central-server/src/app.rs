//! What the server decides. Signatures here carry no generated and no transport type.

pub mod accounts;
pub mod admin;
pub mod answers;
pub mod audit;
pub mod backup;
pub mod caller;
pub mod change_log;
pub mod commits;
pub mod copies;
pub mod devices;
pub mod directories;
pub mod disk;
pub mod edit;
pub mod enrolment;
pub mod entries;
pub mod expiry;
pub mod file_state;
pub mod groups;
pub mod identity;
pub mod locks;
pub mod moves;
pub mod office;
pub mod page;
pub mod print;
pub mod proof_log;
pub mod quota;
pub mod reclaim;
pub mod records;
pub mod references;
pub mod remembered;
pub mod retention;
pub mod rights;
pub mod sessions;
pub mod tickets;
pub mod trash;
pub mod tree;
pub mod uploads;
pub mod versions;
pub mod watch;

use crate::settings::Settings;
use common::chunk::ChunkStore;
use common::clock::SharedClock;
use common::error::Result;
use common::store::Store;
use file_state::FileState;
use identity::Identity;
use office::Office;
use sessions::LoginSettings;
use sessions::limits::Limit;
use sessions::password::HashSettings;
use std::fmt;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use watch::Feed;

/// The running office: everything a decision needs. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// Metadata.
    pub store: Store,
    /// Content.
    pub chunks: ChunkStore,
    /// Time.
    pub clock: SharedClock,
    /// Checked settings.
    pub settings: Arc<Settings>,
    /// Name, id and keys of the office.
    pub office: Arc<Office>,
    /// What identity and security keep in memory.
    pub identity: Arc<Identity>,
    /// What the file service keeps in memory.
    pub files: Arc<FileState>,
    /// What print queues keep in memory.
    pub prints: Arc<print::PrintState>,
    /// Hands changes to watchers.
    pub feed: Feed,
    /// What upkeep has found.
    pub health: Arc<admin::Health>,
    /// Cancelled when the server begins to stop: open streams end with SHUTTING_DOWN.
    pub shutdown: CancellationToken,
}

impl App {
    /// An application over these parts.
    ///
    /// # Errors
    /// `SETTINGS_INVALID` for password hashes that cannot be computed.
    pub fn open(
        store: Store,
        chunks: ChunkStore,
        clock: SharedClock,
        settings: Arc<Settings>,
        office: Arc<Office>,
        shutdown: CancellationToken,
    ) -> Result<Self> {
        let identity = Identity::new(&login_settings(&settings), clock.clone())?;
        Ok(Self {
            store,
            chunks,
            health: Arc::new(admin::Health::new(clock.now_ms())),
            clock,
            prints: Arc::new(print::PrintState::new(&settings)),
            settings,
            office,
            identity: Arc::new(identity),
            files: Arc::default(),
            feed: Feed::default(),
            shutdown,
        })
    }

    /// An application of an office whose keys are kept nowhere, for tests and for checks.
    ///
    /// # Errors
    /// As [`App::open`].
    pub fn new(store: Store, chunks: ChunkStore, clock: SharedClock, settings: Arc<Settings>) -> Result<Self> {
        let office = Arc::new(Office::ephemeral(&clock)?);
        Self::open(store, chunks, clock, settings, office, CancellationToken::new())
    }
}

fn login_settings(settings: &Settings) -> LoginSettings {
    let sessions = &settings.sessions;
    let limit = |burst| Limit { burst, period: sessions.attempt_refill.get() };
    LoginSettings {
        hash: HashSettings {
            memory_kib: u32::try_from(sessions.hash_memory.bytes() / 1024).unwrap_or(u32::MAX),
            passes: sessions.hash_passes,
            parallel: sessions.hashers,
            queue: sessions.hash_queue,
            ..HashSettings::default()
        },
        per_account: limit(sessions.login_attempts),
        per_source: limit(sessions.address_attempts),
        lifetime: sessions.lifetime.get(),
        lifetime_max: sessions.lifetime_max.get(),
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "App({})", self.office.name)
    }
}
