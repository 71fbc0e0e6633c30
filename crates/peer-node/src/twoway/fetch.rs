//! How a copy gets contents: a small interface, so that tests can stand in for transfers.

use common::error::Result;
use futures_util::future::BoxFuture;
use std::path::PathBuf;
use std::time::Duration;

use crate::transfer::Order;

/// Brings contents to this machine.
pub trait Fetcher: Send + Sync + 'static {
    /// Fetches an order. When it returns, those of its files that are there are whole, verified and safe from a power cut,
    /// and nothing more is written; also if it failed. Gives up when nothing has moved for as long as `patience` says.
    ///
    /// # Errors
    /// Why not all files are there.
    fn fetch(&self, order: Order, patience: Duration) -> BoxFuture<'static, Result<()>>;

    /// Ends what an earlier run of the program ordered into this directory, so that nothing is written there any more.
    fn give_up(&self, below: PathBuf) -> BoxFuture<'static, ()>;
}
