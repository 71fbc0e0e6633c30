//! What was worked out of records and still holds.
//!
//! Every call asks whose token it carries and what its root is: some reads each, of records that hardly ever change. The
//! outcome is kept with the revision at which the reading began and counts until a record of one of these kinds changes,
//! which [`Store::last_change`] tells without reading. So an answer is never older than what reading would have given:
//! what a transaction has taken away is gone when the transaction is acknowledged.

use common::error::Result;
use common::store::Store;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::hash::Hash;

/// Most outcomes of one kind. At the bound all are forgotten, which costs reading them once more.
const MAX: usize = 8_192;

/// Outcomes by what they were worked out for.
#[derive(Debug)]
pub struct Remembered<K, V> {
    /// First bytes of the keys of all records that an outcome depends on.
    kinds: &'static [u8],
    known: RwLock<HashMap<K, Known<V>>>,
}

#[derive(Debug)]
struct Known<V> {
    revision: u64,
    value: V,
}

/// The revision up to which nothing of these kinds may change for an outcome of now to hold. Ask before reading.
pub fn position(store: &Store) -> u64 {
    store.revision()
}

/// True if no record of these kinds has changed since this position.
pub fn holds(store: &Store, kinds: &[u8], position: u64) -> bool {
    kinds.iter().all(|kind| store.last_change(*kind) <= position)
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    /// Nothing is known yet. `kinds` are the first bytes of the keys of all records that are read to find an outcome.
    pub fn new(kinds: &'static [u8]) -> Self {
        Self { kinds, known: RwLock::default() }
    }

    /// The outcome, by reading only if what is known does not hold any more. An outcome that `read` says is none is not
    /// kept.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn get<Q>(&self, store: &Store, key: &Q, read: impl FnOnce() -> Result<Option<V>>) -> Result<Option<V>>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(known) = self.known.read().get(key)
            && holds(store, self.kinds, known.revision)
        {
            return Ok(Some(known.value.clone()));
        }
        let revision = position(store);
        let Some(value) = read()? else { return Ok(None) };
        let mut known = self.known.write();
        if known.len() >= MAX {
            known.clear();
        }
        known.insert(key.to_owned(), Known { revision, value: value.clone() });
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    async fn put(store: &Store, key: &'static str, value: &'static str) {
        store.transact(move |txn| txn.put(key, value)).await.expect("commit");
    }

    #[tokio::test]
    async fn an_outcome_holds_until_a_record_of_its_kinds_changes() {
        let store = Store::memory();
        put(&store, "u/anna", "1").await;
        let known = Remembered::<String, Vec<u8>>::new(b"ux");
        let reads = Cell::new(0);
        let ask = || {
            let read = || {
                reads.set(reads.get() + 1);
                Ok(store.get(b"u/anna")?.map(|v| v.to_vec()))
            };
            known.get(&store, "anna", read).expect("read")
        };
        assert_eq!((ask(), ask(), reads.get()), (Some(b"1".to_vec()), Some(b"1".to_vec()), 1));
        put(&store, "f/other", "x").await;
        assert_eq!((ask(), reads.get()), (Some(b"1".to_vec()), 1), "another kind");
        put(&store, "x/other", "x").await;
        assert_eq!((ask(), reads.get()), (Some(b"1".to_vec()), 2), "one of its kinds");
        put(&store, "u/anna", "2").await;
        assert_eq!((ask(), reads.get()), (Some(b"2".to_vec()), 3), "itself");
        store.transact(|txn| txn.delete("u/anna")).await.expect("commit");
        assert_eq!((ask(), ask(), reads.get()), (None, None, 5), "nothing is not remembered");
    }

    #[tokio::test]
    async fn the_number_of_outcomes_is_bounded() {
        let store = Store::memory();
        let known = Remembered::<String, usize>::new(b"u");
        for n in 0..=MAX {
            known.get(&store, n.to_string().as_str(), || Ok(Some(n))).expect("read");
        }
        assert_eq!(known.known.read().len(), 1);
    }
}
