//! Moving chunks: serving, following, scheduling, writing, resuming.

pub mod order;
pub mod peers;
pub mod progress;

pub use order::{Order, OrderDirectory, OrderFile};
pub use peers::{PeerEvent, PeerLink, Peers};
pub use progress::{Limit, Problem, Progress, SourceProgress, State};
