//! Invites that this node has given out.
//!
//! A code is good for one try: it goes when it is used, guessed wrong once, taken back, or when its time is over. It is
//! kept in the store, so it survives a restart of the node that gave it out. At most 100 live at a time.

use super::Office;
use super::kept::Batch;
use super::names::{check_principal, check_unit};
use common::enrol::Code;
use common::error::{Error, Reason, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Invites that live at a time.
pub const MAX_INVITES: usize = 100;
/// Life of an invite that says nothing else.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(900);
/// Longest life.
pub const MAX_LIFETIME: Duration = Duration::from_secs(86_400);
/// Nameplates are drawn from 1 to this.
const NAMEPLATES: u32 = 999;

/// What an invited machine will be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InviteOptions {
    /// Zero means 15 minutes; at most a day.
    pub lifetime: Duration,
    /// The person that the machine is for; empty: the machine says.
    pub person: String,
    /// May invite others.
    pub may_invite: bool,
    /// May revoke others and change members. Only somebody who may that can give it.
    pub may_manage: bool,
    /// Between office and machine in its name.
    pub unit: String,
}

/// A fresh invite.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invite {
    /// The whole code, "7-amber-lion-canal"; nobody can tell it later.
    pub code: String,
    /// The public part.
    pub nameplate: String,
    /// When it dies, milliseconds since 1970.
    pub expires_ms: u64,
}

/// A living invite, as it is kept.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) nameplate: String,
    code: String,
    pub(super) person: String,
    pub(super) may_invite: bool,
    pub(super) may_manage: bool,
    pub(super) unit: String,
    pub(super) expires_ms: u64,
}

impl Pending {
    /// The code.
    pub(super) fn code(&self) -> Result<Code> {
        self.code.parse()
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pending({})", self.nameplate)
    }
}

/// Living invites by nameplate.
#[derive(Debug, Default)]
pub(super) struct Invites(BTreeMap<String, Pending>);

pub(super) fn unknown() -> Error {
    Error::new(Reason::InviteUnknown, "this machine has given out no living invite with this number")
        .fix_is("ask for a new code: `atrium invite`")
}

impl Invites {
    pub(super) fn of(pending: Vec<Pending>) -> Self {
        Self(pending.into_iter().map(|p| (p.nameplate.clone(), p)).collect())
    }

    fn alive(&self, now_ms: u64) -> impl Iterator<Item = &Pending> {
        let longest = MAX_LIFETIME.as_millis() as u64;
        // Also ended if the clock was turned back by more than a life.
        self.0.values().filter(move |p| p.expires_ms > now_ms && p.expires_ms - now_ms <= longest)
    }

    pub(super) fn get(&self, nameplate: &str, now_ms: u64) -> Result<Pending> {
        self.alive(now_ms).find(|p| p.nameplate == nameplate).cloned().ok_or_else(unknown)
    }

    pub(super) fn take(&mut self, nameplate: &str, now_ms: u64) -> Result<Pending> {
        let found = self.get(nameplate, now_ms)?;
        self.0.remove(nameplate);
        Ok(found)
    }

    pub(super) fn forget(&mut self, nameplate: &str) -> bool {
        self.0.remove(nameplate).is_some()
    }

    /// Takes out what is over.
    fn sweep(&mut self, now_ms: u64) -> Vec<String> {
        let alive: Vec<String> = self.alive(now_ms).map(|p| p.nameplate.clone()).collect();
        let over: Vec<String> = self.0.keys().filter(|n| !alive.contains(n)).cloned().collect();
        self.0.retain(|nameplate, _| alive.contains(nameplate));
        over
    }
}

impl Office {
    /// Makes an invite.
    ///
    /// # Errors
    /// NOT_JOINED, DEVICE_REVOKED, ACCESS_DENIED if this member may not, FIELD_INVALID, TOO_MANY_INVITES.
    pub async fn invite(&self, options: InviteOptions) -> Result<Invite> {
        let view = self.view();
        let own = self.present(&view)?;
        if !own.may_invite || (options.may_manage && !own.may_manage) {
            return Err(super::draft::denied("invite others with these rights"));
        }
        if !options.person.is_empty() {
            check_principal(&options.person, "person")?;
        }
        check_unit(&options.unit)?;
        if options.lifetime > MAX_LIFETIME {
            let what = "an invite lives for a day at most";
            return Err(Error::new(Reason::FieldInvalid, what).with("field", "lifetime_seconds"));
        }
        let lifetime = if options.lifetime.is_zero() { DEFAULT_LIFETIME } else { options.lifetime };
        let now_ms = self.0.clock.now_ms();
        let (pending, over) = {
            let mut invites = self.0.invites.lock();
            let over = invites.sweep(now_ms);
            if invites.0.len() >= MAX_INVITES {
                return Err(Error::new(Reason::TooManyInvites, format!("{MAX_INVITES} invites live already")));
            }
            let free = |n: &u32| !invites.0.contains_key(&n.to_string());
            let number = std::iter::repeat_with(|| rand::random_range(1..=NAMEPLATES)).take(1_000).find(free);
            let number = number.ok_or_else(|| Error::new(Reason::TooManyInvites, "no short number is free"))?;
            let code = Code::generate(number);
            let pending = Pending {
                nameplate: code.nameplate(),
                code: code.reveal(),
                person: options.person,
                may_invite: options.may_invite,
                may_manage: options.may_manage,
                unit: options.unit,
                expires_ms: now_ms.saturating_add(lifetime.as_millis() as u64),
            };
            // Holds the number; counts only once it is written, since nobody knows the code before.
            invites.0.insert(pending.nameplate.clone(), pending.clone());
            (pending, over)
        };
        let mut batch = Batch::default().invite(&pending)?;
        for nameplate in over {
            batch = batch.without_invite(&nameplate);
        }
        if let Err(error) = batch.write(&self.0.store).await {
            self.0.invites.lock().forget(&pending.nameplate);
            return Err(error);
        }
        Ok(Invite { code: pending.code, nameplate: pending.nameplate, expires_ms: pending.expires_ms })
    }

    /// Public parts of the codes that this node has given out and that still live, for beacons.
    pub fn inviting(&self) -> Vec<String> {
        let now_ms = self.0.clock.now_ms();
        self.0.invites.lock().alive(now_ms).map(|p| p.nameplate.clone()).collect()
    }

    /// Takes an invite back; it is gone for good when this returns.
    ///
    /// # Errors
    /// INVITE_UNKNOWN if there is none; those of the store.
    pub async fn withdraw_invite(&self, nameplate: &str) -> Result<()> {
        self.0.exchanges.forget(nameplate);
        let known = self.0.invites.lock().forget(nameplate);
        Batch::default().without_invite(nameplate).write(&self.0.store).await?;
        if known { Ok(()) } else { Err(unknown()) }
    }
}
