//! Statements of this node: drafted (`draft.rs`), signed, written, then counted.

use super::draft::{Draft, MemberPatch, found};
use super::kept::Batch;
use super::record::{Kind, MAX_REASON_BYTES, Profile, Record};
use super::{Office, evaluate, sealing_key};
use common::error::{Error, Reason, Result};
use common::identity::random_bytes;
use common::model::DeviceId;

impl Office {
    /// Founds an office; this device is its first member, with all rights. Durable when this returns.
    ///
    /// # Errors
    /// ALREADY_JOINED, FIELD_INVALID; those of the store.
    pub async fn create(&self, name: &str, display_name: &str, person: &str, unit: &str) -> Result<()> {
        let (display_name, person, unit) = (display_name.to_owned(), person.to_owned(), unit.to_owned());
        let profile = Profile { display_name, person, unit, may_invite: true, may_manage: true };
        let (office, name) = (self.clone(), name.to_owned());
        self.in_turn(async move {
            office.require_outside()?;
            let key = &office.0.key;
            let record = found(key, &name, random_bytes(), sealing_key(key)?, profile, office.0.clock.now_ms())?;
            office.enter(vec![record], Vec::new()).await
        })
        .await
    }

    /// Changes a member's rights, person, unit or name.
    ///
    /// # Errors
    /// NOT_JOINED, ACCESS_DENIED, MEMBER_UNKNOWN, FIELD_INVALID, LAST_ADMIN, OFFICE_FULL; those of the store.
    pub async fn change_member(&self, device: DeviceId, patch: MemberPatch) -> Result<()> {
        self.author(Batch::default(), move |draft| draft.change_member(device, patch)).await.map(drop)
    }

    /// Cuts a device off, for ever. A member may also cut itself off: it leaves.
    ///
    /// # Errors
    /// NOT_JOINED, ACCESS_DENIED, MEMBER_UNKNOWN, FIELD_INVALID, LAST_ADMIN; those of the store.
    pub async fn revoke(&self, device: DeviceId, reason: &str) -> Result<()> {
        if reason.len() > MAX_REASON_BYTES || reason.chars().any(char::is_control) {
            return Err(Error::new(Reason::FieldInvalid, "the reason is longer than 512 bytes or not one line"));
        }
        let reason = reason.to_owned();
        self.author(Batch::default(), move |draft| draft.revoke(device, reason)).await.map(drop)
    }

    /// Adds persons to a group and removes others; makes the group if it is not there, or removes it.
    ///
    /// # Errors
    /// NOT_JOINED, ACCESS_DENIED, FIELD_INVALID, GROUP_UNKNOWN if one that is not there is to be removed,
    /// GROUP_TOO_LARGE; those of the store.
    pub async fn set_group(&self, group: &str, add: Vec<String>, remove: Vec<String>, removed: bool) -> Result<()> {
        let group = group.to_owned();
        self.author(Batch::default(), move |draft| draft.set_group(group, add, &remove, removed)).await.map(drop)
    }

    /// Says that the office has a central server; an empty address says that it has none.
    ///
    /// # Errors
    /// NOT_JOINED, ACCESS_DENIED, RECORD_INVALID if address or certificates are too long; those of the store.
    pub async fn set_server(&self, server: &str, ca_pem: &str) -> Result<()> {
        let (server, ca_pem) = (server.to_owned(), ca_pem.to_owned());
        self.author(Batch::default(), move |draft| draft.set_server(server, ca_pem)).await.map(drop)
    }

    /// Makes statements of this node: drafts them over what is known, signs them, writes them together with `also`, and
    /// then lets them count. The draft may state nothing.
    pub(super) async fn author<F>(&self, also: Batch, draft: F) -> Result<Vec<Record>>
    where
        F: FnOnce(Draft<'_>) -> Result<Vec<Kind>> + Send + 'static,
    {
        let office = self.clone();
        self.in_turn(async move {
            let records = office.draft(draft)?;
            also.records(&records).write(&office.0.store).await?;
            office.adopt(records.clone(), None).await;
            Ok(records)
        })
        .await
    }

    /// Runs one such task after the other, each to its end even if the caller goes away.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let office = self.clone();
        let task = tokio::spawn(async move {
            let _turn = office.0.authoring.acquire().await;
            task.await
        });
        task.await.unwrap_or_else(|e| Err(Error::internal("a statement was not made").caused_by(e)))
    }

    fn draft<F>(&self, draft: F) -> Result<Vec<Record>>
    where
        F: FnOnce(Draft<'_>) -> Result<Vec<Kind>>,
    {
        self.present(&self.view())?;
        let state = self.0.state.lock();
        let Some(ledger) = state.ledger.as_ref() else { return Ok(Vec::new()) };
        let view = evaluate(ledger, self.me());
        let context = Draft::new(ledger, &view)?;
        let kinds = draft(context)?;
        context.sign(&self.0.key, kinds, self.0.clock.now_ms())
    }
}
