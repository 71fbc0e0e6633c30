//! First answers to request ids: a call that is sent again gets the answer of the first time and does nothing twice.
//!
//! An answer is remembered in the transaction that does the work, so there is no moment at which the work is done and
//! the answer not known. Answers live for a day; [`super::expiry`] removes them then. Only success is remembered: a call
//! that failed did nothing and may be sent again.

use super::caller::Caller;
use super::expiry;
use super::records::{self, View, answer_key};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::store::Txn;
use proto::record::v1 as record;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How long an answer is remembered.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Names one request of one caller.
#[derive(Clone, Debug)]
pub struct RequestKey {
    key: [u8; 32],
    request_digest: [u8; 32],
}

impl RequestKey {
    /// The key for a request under this id; `None` if the caller gave no id. `request` is the encoded request without
    /// its secrets: a digest of it is stored, and a digest of a password could be guessed at leisure.
    ///
    /// # Errors
    /// `FIELD_INVALID` if the id is not a UUID.
    pub fn new(caller: &Caller, method: &str, request_id: &str, request: &[u8]) -> Result<Option<Self>> {
        if request_id.is_empty() {
            return Ok(None);
        }
        let id = Uuid::try_parse(request_id).map_err(|_| {
            Error::new(Reason::FieldInvalid, "the request id is not a UUID").with("field", "request_id")
        })?;
        let actor = caller.actor();
        let mut hasher = blake3::Hasher::new_derive_key("atrium 2026 request id");
        for part in [actor.as_bytes(), method.as_bytes(), id.as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Ok(Some(Self { key: *hasher.finalize().as_bytes(), request_digest: *blake3::hash(request).as_bytes() }))
    }
}

/// The remembered answer.
///
/// # Errors
/// `REQUEST_ID_REUSED` if another request came under this id.
pub fn lookup(view: &impl View, key: &RequestKey, now_ms: u64) -> Result<Option<Bytes>> {
    match records::load::<record::Answer>(view, &answer_key(&key.key))? {
        Some(answer) if answer.expire_ms > now_ms => {
            if answer.request_digest[..] != key.request_digest[..] {
                return Err(Error::new(Reason::RequestIdReused, "the request id was used for another request"));
            }
            Ok(Some(answer.response))
        }
        _ => Ok(None),
    }
}

/// Remembers the answer for a day.
///
/// # Errors
/// Those of the store.
pub fn remember(txn: &mut Txn<'_>, key: &RequestKey, response: Bytes, now_ms: u64) -> Result<()> {
    let expire_ms = now_ms.saturating_add(LIFETIME.as_millis() as u64);
    let at = answer_key(&key.key);
    let answer = record::Answer { response, expire_ms, request_digest: Bytes::copy_from_slice(&key.request_digest) };
    records::save(txn, &at, &answer)?;
    expiry::at(txn, expire_ms, &at)
}

/// What a call gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// The work was done now.
    New(T),
    /// The work was done before; this is the first answer, as encoded then.
    Repeated(Bytes),
}

impl<T> Answer<T> {
    /// The answer, decoding a repeated one.
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn into<R>(self, encode: impl FnOnce(T) -> R, decode: impl FnOnce(Bytes) -> Result<R>) -> Result<R> {
        match self {
            Self::New(value) => Ok(encode(value)),
            Self::Repeated(bytes) => decode(bytes),
        }
    }
}

type Encode<T> = Arc<dyn Fn(&T) -> Bytes + Send + Sync>;

/// Makes work happen once under a request id. Without an id it happens each time.
pub struct Once<T> {
    key: Option<RequestKey>,
    encode: Option<Encode<T>>,
}

impl<T> Once<T> {
    /// For calls without request id.
    pub fn always() -> Self {
        Self { key: None, encode: None }
    }

    /// Work under this key; `encode` makes the answer that is remembered.
    pub fn new(key: Option<RequestKey>, encode: impl Fn(&T) -> Bytes + Send + Sync + 'static) -> Self {
        Self { key, encode: Some(Arc::new(encode)) }
    }

    /// Does the work, or gives back the first answer.
    ///
    /// # Errors
    /// `REQUEST_ID_REUSED`, and those of the work.
    pub fn run(
        &self,
        txn: &mut Txn<'_>,
        now_ms: u64,
        work: impl FnOnce(&mut Txn<'_>) -> Result<T>,
    ) -> Result<Answer<T>> {
        let (Some(key), Some(encode)) = (&self.key, &self.encode) else {
            return work(txn).map(Answer::New);
        };
        if let Some(response) = lookup(txn, key, now_ms)? {
            return Ok(Answer::Repeated(response));
        }
        let value = work(txn)?;
        remember(txn, key, encode(&value), now_ms)?;
        Ok(Answer::New(value))
    }
}
