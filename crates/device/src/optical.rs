//! Optical drives of a machine: what is in them, reading, files, ripping, players.
//!
//! ```text
//!   drive      Drive: what a drive can do, blocking          iso      a drive whose discs are image files, with faults
//!   linux      /dev/sr*: the kernel's ioctls and events      drives   all drives of a node: a thread and a cache each
//!   generation numbers of discs that only rise               files    ISO 9660, Rock Ridge, Joliet and UDF
//!   rip        a disc to an image, resumable, with a map     http     image and files for players, with ranges
//! ```
//!
//! Each disc that gets ready has a new *generation*, which every read names. A read of an old one fails with
//! DISC_CHANGED, never with bytes of another disc.

pub mod drive;
pub mod drives;
pub mod files;
pub mod generation;
pub mod http;
pub mod iso;
pub mod linux;
pub mod rip;

pub use drive::{BLOCK_BYTES, Drive, SECTOR_BYTES};
pub use drives::{Block, DriveHandle, DriveSource, Drives, Limits, Medium, State, TrayGuard};
pub use files::Disc;
pub use generation::{FileGenerations, Generations};
