//! Plain values: ids, names, paths, chunks, rights. No tokio, no gRPC, no database.

pub mod chunk;
pub mod id;
pub mod name;
pub mod path;
pub mod pin;
pub mod principal;

pub use chunk::{ChunkId, ChunkRef, MAX_CHUNK_BYTES, manifest_digest};
pub use id::{DeviceId, NodeId, RootId, UploadId};
pub use name::{EntryName, fold};
pub use path::{EntryPath, RootName};
pub use pin::{Guess, Pin};
pub use principal::{Principal, Right, Role};
