//! The connection to the central server: one per Unix user (with that user's session) and one for the machine itself.
//!
//! Connections are lazy and come back by themselves; the keeper looks from time to time, says what is wrong in words, and
//! renews the machine's certificate. A server that restarts or a network that changes costs one failed look at most.

use crate::membership::{Member, Membership};
use crate::people::People;
use crate::settings::Settings;
use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::rpc::{ConnectOptions, OfficeConnection};
use common::status::from_status;
use common::tls::{check_membership, renew_after_ms};
use parking_lot::Mutex;
use proto::v1;
use proto::v1::device_service_client::DeviceServiceClient;
use proto::v1::session_service_client::SessionServiceClient;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Users whose connections are kept; more than this many take turns.
const CONNECTIONS_MAX: usize = 64;
/// First wait after a failed look.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// A look that takes longer has failed.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// How the connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// This machine is in no office.
    NotJoined,
    /// Not looked yet.
    Connecting,
    /// The server answers.
    Connected,
    /// It does not: reason, message, why, fix.
    Lost(Problem),
    /// The office has cut this machine off.
    Revoked(Problem),
}

/// Something is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Stable word.
    pub reason: String,
    /// What.
    pub message: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Self {
            reason: error.reason().to_owned(),
            message: error.message().to_owned(),
            why: error.why().to_owned(),
            fix: error.fix().to_owned(),
        }
    }
}

/// The connections.
pub struct Link {
    member: Arc<Member>,
    people: Arc<People>,
    settings: Arc<Settings>,
    clock: SharedClock,
    /// By Unix uid; `None` is the machine itself.
    connections: Mutex<HashMap<Option<u32>, OfficeConnection>>,
    state: watch::Sender<State>,
    look: Notify,
}

impl Link {
    /// Not connected yet.
    pub fn new(member: Arc<Member>, people: Arc<People>, settings: Arc<Settings>, clock: SharedClock) -> Self {
        let joined = member.get().is_ok();
        let state = watch::Sender::new(if joined { State::Connecting } else { State::NotJoined });
        Self { member, people, settings, clock, connections: Mutex::default(), state, look: Notify::new() }
    }

    /// How it is, and every change of it.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Looks now instead of later.
    pub fn look_now(&self) {
        self.look.notify_one();
    }

    /// A connection as the machine itself.
    ///
    /// # Errors
    /// `NOT_JOINED`; a certificate that cannot be used.
    pub fn machine(&self) -> Result<OfficeConnection> {
        self.connection(None, None)
    }

    /// A connection as a Unix user's Atrium account.
    ///
    /// # Errors
    /// `NOT_SIGNED_IN`, `NOT_JOINED`.
    pub fn person(&self, uid: u32) -> Result<OfficeConnection> {
        let session = self
            .people
            .get(uid)
            .ok_or_else(|| Error::new(Reason::NotSignedIn, "nobody is signed in as this user on this machine"))?;
        self.connection(Some(uid), Some(&session.token))
    }

    /// Forgets all connections: the membership has changed.
    pub fn reset(&self) {
        self.connections.lock().clear();
        self.state.send_if_modified(|s| {
            let connecting = *s != State::Connecting;
            *s = State::Connecting;
            connecting
        });
        self.look_now();
    }

    /// Forgets a user's connection: the session has changed.
    pub fn forget(&self, uid: u32) {
        self.connections.lock().remove(&Some(uid));
    }

    fn connection(&self, who: Option<u32>, token: Option<&str>) -> Result<OfficeConnection> {
        let mut connections = self.connections.lock();
        if let Some(found) = connections.get(&who) {
            return Ok(found.clone());
        }
        let membership = self.member.get()?;
        let mut options =
            ConnectOptions::new(&*membership.server, &*membership.ca_pem).device(self.member.credentials()?);
        if let Some(token) = token {
            options = options.token(token);
        }
        let connection = OfficeConnection::lazy(&options)?;
        if connections.len() >= CONNECTIONS_MAX {
            let other = connections.keys().find(|k| k.is_some()).copied();
            other.and_then(|k| connections.remove(&k));
        }
        connections.insert(who, connection.clone());
        Ok(connection)
    }

    /// Keeps looking until told to stop.
    pub async fn keep(&self, stop: CancellationToken) {
        let mut wait = FIRST_RETRY;
        loop {
            let state = tokio::select! {
                state = self.look_once() => state,
                () = stop.cancelled() => return,
            };
            let next = match &state {
                State::Connected => {
                    wait = FIRST_RETRY;
                    self.settings.server.check_interval.get()
                }
                // Only joining changes this, and joining wakes us.
                State::NotJoined => Duration::from_secs(3600),
                _ => {
                    wait = (wait * 2).min(self.settings.server.retry_max.get());
                    wait
                }
            };
            self.announce(state);
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                () = self.look.notified() => wait = FIRST_RETRY,
                () = stop.cancelled() => return,
            }
        }
    }

    fn announce(&self, state: State) {
        self.state.send_if_modified(|old| {
            if *old == state {
                return false;
            }
            match &state {
                State::Connected => tracing::info!("connected"),
                State::Lost(p) => tracing::warn!(reason = p.reason, "no connection: {}", p.message),
                State::Revoked(_) => tracing::error!("the office has cut this machine off"),
                State::NotJoined | State::Connecting => {}
            }
            *old = state;
            true
        });
    }

    async fn look_once(&self) -> State {
        let Ok(connection) = self.machine() else {
            return match self.member.get() {
                Err(_) => State::NotJoined,
                Ok(_) => State::Lost(Problem::from(&Error::internal("this machine's certificate cannot be used"))),
            };
        };
        let mut sessions = SessionServiceClient::new(connection.control());
        let asked = tokio::time::timeout(LOOK_TIMEOUT, sessions.who_am_i(v1::WhoAmIRequest {})).await;
        let error = match asked {
            Ok(Ok(_)) => {
                if let Err(error) = self.renew_if_due(&connection).await {
                    tracing::warn!(reason = error.reason(), "the certificate could not be renewed: {error}");
                }
                return State::Connected;
            }
            Ok(Err(status)) => from_status(&status),
            Err(_) => Error::new(Reason::ServerUnreachable, "the server does not answer"),
        };
        if error.is(Reason::DeviceRevoked) {
            State::Revoked(Problem::from(&error))
        } else if error.is(Reason::CredentialsMissing) || error.is(Reason::DeviceRequired) {
            // The certificate was not taken as valid: it has expired while this machine was off. Renewing is allowed.
            match self.renew(&connection).await {
                Ok(()) => State::Connecting,
                Err(renewing) => State::Lost(Problem::from(&renewing)),
            }
        } else {
            State::Lost(Problem::from(&error))
        }
    }

    async fn renew_if_due(&self, connection: &OfficeConnection) -> Result<()> {
        let membership = self.member.get()?;
        let due = renew_after_ms(
            membership.certificate_begin_ms,
            membership.certificate_end_ms,
            self.settings.server.renew_percent,
        );
        if self.clock.now_ms() < due {
            return Ok(());
        }
        self.renew(connection).await
    }

    async fn renew(&self, connection: &OfficeConnection) -> Result<()> {
        let request =
            v1::RenewCertificateRequest { certificate_request: self.member.key.certificate_request()?.into() };
        let mut devices = DeviceServiceClient::new(connection.control());
        let answer = devices.renew_certificate(request).await.map_err(|s| from_status(&s))?.into_inner();
        let checked = check_membership(&answer.ca_pem, &answer.certificate_pem, &self.member.key.public_key())?;
        let old = self.member.get()?;
        self.member.set(Membership {
            ca_pem: answer.ca_pem,
            certificate_pem: answer.certificate_pem,
            certificate_begin_ms: checked.not_before_ms,
            certificate_end_ms: checked.not_after_ms,
            ..(*old).clone()
        })?;
        // Running transfers keep their connections; what begins from now on shows the new certificate.
        self.connections.lock().clear();
        tracing::info!("the certificate was renewed");
        Ok(())
    }
}
