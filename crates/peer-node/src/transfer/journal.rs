//! Which pieces are on disk, so that a transfer goes on where it stopped without reading anything again.
//!
//! An append-only file of entries of 8 bytes: a letter, a number, 3 bytes of a checksum over both and the entry's position.
//! A piece's entry is appended right after the piece was written, without any sync: what a killed process has written is
//! still in the system's cache, so it is as good as on disk *until the machine itself restarts*. Therefore the journal also
//! notes the machine's boot id, and sync points: "everything up to entry n is on disk".
//!
//! | after | then |
//! |---|---|
//! | the process was killed | every entry counts |
//! | the machine stopped | entries up to the last sync point count; the pieces of the others are read and hashed once |
//! | a torn or damaged entry | what follows is cut off: the pieces are found missing and fetched again |

use super::scheduler::Piece;
use common::error::{Error, Reason, Result};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"ATRHAVE1";
const ENTRY: usize = 8;
/// Entries of a journal at most: above this something is wrong, and it is begun anew.
const MAX_ENTRIES: usize = 64_000_000;

/// What is noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    /// The piece is written in all its places.
    Have(Piece),
    /// The piece is not there any more.
    Lost(Piece),
    /// The file has its name.
    Published(u32),
    /// Everything up to this entry is on disk.
    Synced(u32),
    /// A quarter of the boot id.
    Boot(u32),
}

impl Note {
    fn parts(self) -> (u8, u32) {
        match self {
            Self::Have(n) => (b'h', n),
            Self::Lost(n) => (b'l', n),
            Self::Published(n) => (b'p', n),
            Self::Synced(n) => (b's', n),
            Self::Boot(n) => (b'b', n),
        }
    }

    fn encode(self, at: usize) -> [u8; ENTRY] {
        let (letter, number) = self.parts();
        let mut out = [0; ENTRY];
        out[0] = letter;
        out[1..5].copy_from_slice(&number.to_le_bytes());
        let check = check(&out[..5], at);
        out[5..].copy_from_slice(&check);
        out
    }

    fn decode(entry: &[u8], at: usize) -> Option<Self> {
        if entry.len() != ENTRY || check(&entry[..5], at) != entry[5..] {
            return None;
        }
        let number = u32::from_le_bytes(entry[1..5].try_into().ok()?);
        Some(match entry[0] {
            b'h' => Self::Have(number),
            b'l' => Self::Lost(number),
            b'p' => Self::Published(number),
            b's' => Self::Synced(number),
            b'b' => Self::Boot(number),
            _ => return None,
        })
    }
}

/// FNV-1a, folded: enough to tell an entry from what is left of another one.
fn check(entry: &[u8], at: usize) -> [u8; 3] {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in entry.iter().chain(&(at as u64).to_le_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let folded = hash ^ (hash >> 24) ^ (hash >> 48);
    [folded as u8, (folded >> 8) as u8, (folded >> 16) as u8]
}

/// What a journal says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Pieces that are there.
    pub have: BTreeSet<Piece>,
    /// Pieces that were written before the machine stopped and may be there: to be read and hashed.
    pub doubtful: BTreeSet<Piece>,
    /// Files that have their names.
    pub published: BTreeSet<u32>,
    /// The same, before the machine stopped.
    pub doubtful_files: BTreeSet<u32>,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    entries: usize,
}

impl Journal {
    /// Opens it, or makes it. `boot` tells one run of the machine from another.
    ///
    /// # Errors
    /// IO_FAILED, DISK_FULL.
    pub fn open(path: &Path, boot: [u32; 4]) -> Result<(Self, Found)> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (notes, found) = read(&bytes, boot);
        let good = if notes == 0 { 0 } else { MAGIC.len() + notes * ENTRY };
        if good != bytes.len() {
            file.set_len(good as u64)?;
        }
        let mut journal = Self { file, entries: notes };
        if notes == 0 {
            journal.file.set_len(0)?;
            journal.file.write_all(MAGIC)?;
        }
        journal.append(&boot.map(Note::Boot))?;
        Ok((journal, found))
    }

    /// Appends notes.
    ///
    /// # Errors
    /// IO_FAILED, DISK_FULL: they may be there or not.
    pub fn append(&mut self, notes: &[Note]) -> Result<()> {
        if self.entries + notes.len() > MAX_ENTRIES {
            return Err(Error::new(Reason::StoreLimit, "the journal of a transfer has become too long"));
        }
        let mut bytes = Vec::with_capacity(notes.len() * ENTRY);
        for (n, note) in notes.iter().enumerate() {
            bytes.extend_from_slice(&note.encode(self.entries + n));
        }
        match self.file.write_all(&bytes) {
            Ok(()) => self.entries += notes.len(),
            Err(error) => {
                // A torn entry would hide those that follow.
                let whole = MAGIC.len() + self.entries * ENTRY;
                self.file.set_len(whole as u64)?;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Entries so far: what a sync point that begins now may speak of.
    pub fn position(&self) -> u32 {
        u32::try_from(self.entries).unwrap_or(u32::MAX)
    }

    /// Notes that everything up to this position is on disk, and puts the note there too.
    ///
    /// # Errors
    /// IO_FAILED, DISK_FULL.
    pub fn synced(&mut self, position: u32) -> Result<()> {
        self.append(&[Note::Synced(position)])?;
        self.file.sync_data()?;
        Ok(())
    }
}

/// Good entries, and what they say.
fn read(bytes: &[u8], boot: [u32; 4]) -> (usize, Found) {
    let Some(rest) = bytes.strip_prefix(MAGIC) else { return (0, Found::default()) };
    let mut notes: Vec<Note> = Vec::with_capacity(rest.len() / ENTRY);
    for (at, entry) in rest.chunks(ENTRY).take(MAX_ENTRIES).enumerate() {
        match Note::decode(entry, at) {
            Some(note) => notes.push(note),
            None => break,
        }
    }
    let synced = notes.iter().filter_map(|n| if let Note::Synced(n) = n { Some(*n as usize) } else { None }).max();
    let synced = synced.unwrap_or(0);
    let mut found = Found::default();
    let (mut parts, mut same) = ([0; 4], false);
    for (at, note) in notes.iter().enumerate() {
        let sure = same || at < synced;
        match *note {
            Note::Boot(part) => {
                // The last four in a row: some of an earlier id may have been cut off.
                parts.rotate_left(1);
                parts[3] = part;
                same = parts == boot;
            }
            Note::Have(piece) if sure => {
                found.doubtful.remove(&piece);
                found.have.insert(piece);
            }
            Note::Have(piece) => {
                if !found.have.contains(&piece) {
                    found.doubtful.insert(piece);
                }
            }
            Note::Lost(piece) => {
                found.have.remove(&piece);
                found.doubtful.remove(&piece);
            }
            Note::Published(file) if sure => {
                found.doubtful_files.remove(&file);
                found.published.insert(file);
            }
            Note::Published(file) => {
                if !found.published.contains(&file) {
                    found.doubtful_files.insert(file);
                }
            }
            Note::Synced(_) => {}
        }
    }
    (notes.len(), found)
}

/// For fuzzing: reads bytes as a journal, and as the notes of one whose checks fit, cut off at any place.
///
/// # Panics
/// If a piece or a file is both sure and doubtful, or what was cut off changes what stands before it.
pub fn fuzz_journal(bytes: &[u8]) {
    let boot = [1, 2, 3, 4];
    let sound =
        |found: &Found| found.have.is_disjoint(&found.doubtful) && found.published.is_disjoint(&found.doubtful_files);
    assert!(sound(&read(bytes, boot).1));
    let mut journal = MAGIC.to_vec();
    for (at, note) in bytes.chunks_exact(2).enumerate() {
        let number = u32::from(note[1]);
        let note = match note[0] % 5 {
            0 => Note::Have(number),
            1 => Note::Lost(number),
            2 => Note::Published(number),
            3 => Note::Synced(number),
            _ => Note::Boot(number % 6),
        };
        journal.extend_from_slice(&note.encode(at));
    }
    let (notes, found) = read(&journal, boot);
    assert_eq!(notes, (bytes.len() / 2).min(MAX_ENTRIES));
    assert!(sound(&found));
    journal.truncate(journal.len() - bytes.len() % ENTRY);
    let (fewer, found) = read(&journal, boot);
    assert!(fewer <= notes && notes - fewer <= 1 && sound(&found));
}

/// Tells this run of the machine from others.
pub fn boot_id() -> [u32; 4] {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let id = id.and_then(|text| uuid::Uuid::parse_str(text.trim()).ok());
    // Where there is none, only sync points count.
    let bytes = *id.unwrap_or_else(uuid::Uuid::new_v4).as_bytes();
    std::array::from_fn(|n| u32::from_le_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: [u32; 4] = [1, 2, 3, 4];
    const TWO: [u32; 4] = [5, 6, 7, 8];

    #[test]
    fn a_killed_process_loses_nothing_and_a_stopped_machine_doubts_what_was_not_synced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("have");
        let (mut journal, found) = Journal::open(&path, ONE).unwrap();
        assert_eq!(found, Found::default());
        journal.append(&[Note::Have(1), Note::Published(0)]).unwrap();
        let position = journal.position();
        journal.append(&[Note::Have(2)]).unwrap();
        journal.synced(position).unwrap();
        journal.append(&[Note::Have(3), Note::Have(4), Note::Lost(4), Note::Published(1)]).unwrap();
        drop(journal);
        let (journal, found) = Journal::open(&path, ONE).unwrap();
        assert_eq!((found.have, found.doubtful), ([1, 2, 3].into(), [].into()));
        assert_eq!((found.published, found.doubtful_files), ([0, 1].into(), [].into()));
        drop(journal);
        let (_, found) = Journal::open(&path, TWO).unwrap();
        assert_eq!((found.have, found.doubtful), ([1].into(), [2, 3].into()));
        assert_eq!((found.published, found.doubtful_files), ([0].into(), [1].into()));
    }

    proptest! {
        #[test]
        fn damage_costs_what_follows_it_and_nothing_else(
            pieces in prop::collection::vec(0u32..1000, 1..50),
            at in 0usize..500,
            value: u8,
            cut in 0usize..500,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("have");
            let (mut journal, _) = Journal::open(&path, ONE).unwrap();
            let notes: Vec<Note> = pieces.iter().map(|p| Note::Have(*p)).collect();
            journal.append(&notes).unwrap();
            drop(journal);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at % bytes.len();
            let same = bytes[at] == value;
            bytes[at] = value;
            bytes.truncate(bytes.len() - cut % bytes.len());
            let good = if same { usize::MAX } else { at.saturating_sub(8) / 8 };
            std::fs::write(&path, &bytes).unwrap();
            let (mut journal, found) = Journal::open(&path, ONE).unwrap();
            prop_assert!(found.have.iter().all(|p| pieces.contains(p)));
            let sure: BTreeSet<Piece> =
                pieces.iter().take(good.saturating_sub(4)).take((bytes.len().saturating_sub(8) / 8).saturating_sub(4)).copied().collect();
            prop_assert!(sure.is_subset(&found.have), "{:?} {:?}", sure, found.have);
            journal.append(&[Note::Have(7777)]).unwrap();
            drop(journal);
            let (_, after) = Journal::open(&path, ONE).unwrap();
            prop_assert!(after.have.contains(&7777) && after.have.is_superset(&found.have));
        }
    }
}
