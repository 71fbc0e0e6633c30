//! Plain values that all kinds of devices share.

use std::fmt;
use std::str::FromStr;

/// What a shared device is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A printer: `NODE/printers/NAME`.
    Printer,
    /// An optical drive: `NODE/drives/NAME`.
    Drive,
    /// Space on a disk: `NODE/disks/NAME`.
    Disk,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Printer, Self::Drive, Self::Disk];

    /// The word for one.
    pub fn word(self) -> &'static str {
        match self {
            Self::Printer => "printer",
            Self::Drive => "drive",
            Self::Disk => "disk",
        }
    }

    /// Its segment in an address, between node name and device name.
    pub fn segment(self) -> &'static str {
        match self {
            Self::Printer => "printers",
            Self::Drive => "drives",
            Self::Disk => "disks",
        }
    }

    /// The kind whose segment it is.
    pub fn of_segment(segment: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.segment() == segment)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Kind {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|k| k.word() == word).ok_or(())
    }
}

/// Who asks, as the node that owns the device knows it: proven by the connection, never said by the caller.
#[derive(Clone, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Caller {
    /// The person that the calling machine belongs to; empty for somebody from the local network without an identity.
    pub person: String,
    /// The calling machine's name, for people and the audit.
    pub machine: String,
    /// Its device id, hexadecimal; empty for somebody without one.
    pub device: String,
}
