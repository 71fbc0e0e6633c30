//! An office without network, for tests of what the application decides.

use central_server::app::accounts::{self, NewUser, User};
use central_server::app::answers::{Answer, Once};
use central_server::app::caller::Caller;
use central_server::app::sessions::{self, Attempt, Login, Password};
use central_server::app::{App, audit};
use central_server::settings::Settings;
use common::chunk::{ChunkStore, ChunkStoreSettings};
use common::clock::ManualClock;
use common::error::Result;
use common::model::Role;
use common::settings::ByteSize;
use common::store::Store;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Password of every user that [`TestOffice::user`] makes.
pub const PASSWORD: &str = "open sesame";

pub struct TestOffice {
    pub app: App,
    pub clock: Arc<ManualClock>,
    _directory: tempfile::TempDir,
}

impl TestOffice {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::over(Store::memory(), change)
    }

    pub fn over(store: Store, change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = Settings::in_directory(directory.path());
        settings.sessions.hash_memory = ByteSize::kib(8);
        settings.sessions.hash_passes = 1;
        change(&mut settings);
        let chunks = ChunkStore::open(&ChunkStoreSettings::new(directory.path().join("chunks"))).unwrap();
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        // Opening blocks, which is not allowed on a thread that runs tasks.
        let (shared, settings) = (clock.clone(), Arc::new(settings));
        let app = std::thread::spawn(|| App::new(store, chunks, shared, settings)).join().unwrap().unwrap();
        Self { app, clock, _directory: directory }
    }

    pub fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Makes a user whose password is [`PASSWORD`].
    pub async fn user(&self, name: &str, role: Role) -> User {
        fresh(accounts::create(&self.app, &local(), new_user(name, role, PASSWORD), Once::always()).await.unwrap())
    }

    pub async fn try_login(&self, name: &str, password: &str) -> Result<Login> {
        sessions::login(&self.app, attempt(name, password, "192.0.2.1")).await
    }

    pub async fn login(&self, name: &str) -> Login {
        self.try_login(name, PASSWORD).await.unwrap()
    }

    /// A signed-in caller.
    pub async fn caller(&self, name: &str) -> Caller {
        let token = self.login(name).await.token;
        self.by_token(&token)
    }

    /// The caller who shows this token.
    pub fn by_token(&self, token: &str) -> Caller {
        Caller { user: Some(sessions::authenticate(&self.app, token).unwrap()), ..Caller::default() }
    }

    /// The whole audit log.
    pub fn audit(&self) -> Vec<audit::AuditRecord> {
        let mut query = audit::Query { page_size: 1000, ..audit::Query::default() };
        let mut records = Vec::new();
        loop {
            let page = audit::list(&self.app.store, &query).unwrap();
            records.extend(page.records);
            if page.next_page_token.is_empty() {
                return records;
            }
            query.page_token = page.next_page_token;
        }
    }
}

/// The administrator of the server machine.
pub fn local() -> Caller {
    Caller { local_admin: true, ..Caller::default() }
}

pub fn new_user(name: &str, role: Role, password: &str) -> NewUser {
    NewUser {
        name: name.to_owned(),
        display_name: String::new(),
        role,
        quota_bytes: 0,
        password: Password::new(password.to_owned()),
    }
}

pub fn attempt(name: &str, password: &str, from: &str) -> Attempt {
    Attempt {
        user: name.to_owned(),
        password: Password::new(password.to_owned()),
        purpose: "test".to_owned(),
        lifetime: Duration::ZERO,
        source: Some(from.parse::<IpAddr>().unwrap()),
        device: None,
    }
}

pub fn fresh<T: std::fmt::Debug>(answer: Answer<T>) -> T {
    match answer {
        Answer::New(value) => value,
        Answer::Repeated(_) => panic!("the answer was remembered"),
    }
}
