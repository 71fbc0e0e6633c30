//! A second copy of a share in a mirror place: the side of its owner, who encrypts.
//!
//! The lender sees sealed objects with ids that tell nothing, their sizes in steps of 4 KiB, and when they came. Names, contents,
//! which objects belong together and how many files there are stay with the owner of the [`MirrorKey`].
//!
//! # Format
//!
//! * A **chunk** of a file (cut like everywhere, `common::chunk`) is an object. Its id is a keyed hash of its digest, so the same
//!   chunk is sent once, and nobody else can tell which chunk it is. Its content is its length, the bytes, zeros up to a
//!   multiple of 4 KiB, sealed by AES-256-GCM under a key of its own, derived from mirror key and digest. Equal content gives an
//!   equal object: sending it again changes nothing, and a lender can be asked to prove that it has it.
//! * A **snapshot** lists files with their chunks ([`Manifest`]). It is cut into chunks itself, which are objects likewise.
//! * The **root** of a generation lists the chunks of its snapshot, and holds the digest of the root before it. It is sealed
//!   under a key derived from mirror key, generation and a random salt. Putting it is what makes a generation exist.
//!
//! # What a lender can do and how it shows
//!
//! Change, exchange or invent an object: opening fails, by the seal and by the chunk's digest. Withhold one: it is missing,
//! [`MirrorReader::verify`] names the files that are hit, and a proof that is asked for from time to time ([`proof`]) finds
//! it without transferring anything. Withhold the newest generations: who knows the last number
//! ([`Report::generation`]) sees that it is gone ([`MirrorReader::open`] takes the least that is expected). It can
//! always destroy what it has, so a share that matters has mirrors in two places.
//!
//! # Resuming
//!
//! Nothing is noted on the owner's side: what has arrived is asked of the place ([`MirrorPlace::missing`]), so a snapshot that
//! was broken off goes on with what is missing. Without its root, objects of a broken one are found by
//! [`MirrorWriter::prune`].
//!
//! # What is deleted in the share
//!
//! [`MirrorWriter::prune`] after a snapshot lets everything go that the newest generations do not need. It stays for the
//! retention time, in which older generations can still be read by their number; then its space is free.
//!
//! # Bounds
//!
//! 500,000 files and 128 MiB of manifest in a snapshot; 8 MiB of sealed objects on the way at a time.

mod drain;
mod folder;
mod key;
mod manifest;
pub mod place;
pub mod proof;
mod reader;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
mod writer;

pub use drain::{Drained, drain};
pub use folder::FolderSource;
pub use key::MirrorKey;
pub use manifest::{FileEntry, Manifest, Root, fuzz_snapshot};
pub use place::{LocalPlace, MirrorPlace, ObjectId, Space};
pub use proof::Proof;
pub use reader::{MirrorReader, Restored, VerifyReport};
pub use writer::{MirrorWriter, Report, Source};
