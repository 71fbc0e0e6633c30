//! Plain values of printing: printers, jobs, who prints, what a job asks for.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

pub use common::model::Pin;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ipp::trust::Trust;
use crate::model::Caller;

/// The number of a job: unique on its node, never given twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u32);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How sure the node is of who a caller is. Quotas count the classes apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Proven by the connection.
    Member,
    /// Somebody in the local network, under the name that the program stated.
    Unauthenticated,
}

/// Who acts on a printer.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Who {
    /// Person, machine and device.
    pub caller: Caller,
    /// Whether that is proven.
    pub class: Class,
}

impl Who {
    /// A member of the office, as the connection proves.
    pub fn member(caller: Caller) -> Self {
        Self { caller, class: Class::Member }
    }

    /// Somebody in the local network who states this name and came from this address.
    pub fn stated(name: &str, address: &str) -> Self {
        let person = clean(name, 64);
        let person = if person.is_empty() { "anonymous".to_owned() } else { person };
        Self {
            caller: Caller { person, machine: clean(address, 64), device: String::new() },
            class: Class::Unauthenticated,
        }
    }

    /// Under what name quotas and accounting keep it: a stated name is never a member's.
    pub fn account(&self) -> String {
        match self.class {
            Class::Member => self.caller.person.clone(),
            Class::Unauthenticated => format!("lan:{}", self.caller.person),
        }
    }

    /// True if this one may act on what is the other's: the same member, or the same stated name from the same address.
    pub fn same(&self, other: &Who) -> bool {
        self.class == other.class
            && self.caller.person == other.caller.person
            && (self.class == Class::Member || self.caller.machine == other.caller.machine)
    }

    /// True if both are counted as one.
    pub fn same_account(&self, other: &Who) -> bool {
        self.class == other.class && self.caller.person == other.caller.person
    }
}

/// Text without control characters and of at most `most` bytes: for names that come from outside and are shown.
pub fn clean(text: &str, most: usize) -> String {
    let kept: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    crate::ipp::codec::cut(&kept, most).to_owned()
}

/// What a caller is about to do; see [`crate::printer::service::Access`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Right {
    /// See the printer, its state and its queue.
    See,
    /// Print, and act on own jobs.
    Print,
    /// Act on everybody's jobs, pause, resume.
    Manage,
}

/// State of a job, as in RFC 8011 section 5.3.7.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Waits for its turn.
    Pending,
    /// Waits to be released, for a time, or for its documents.
    Held,
    /// Is being printed.
    Processing,
    /// Was being printed; the printer stopped.
    Stopped,
    /// Was taken back.
    Canceled,
    /// Could not be printed.
    Aborted,
    /// Was printed.
    Completed,
}

impl JobState {
    /// Its number in IPP.
    pub fn code(self) -> i32 {
        match self {
            Self::Pending => 3,
            Self::Held => 4,
            Self::Processing => 5,
            Self::Stopped => 6,
            Self::Canceled => 7,
            Self::Aborted => 8,
            Self::Completed => 9,
        }
    }

    /// True if nothing more happens to the job.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Canceled | Self::Aborted | Self::Completed)
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Processing => "processing",
            Self::Stopped => "stopped",
            Self::Canceled => "canceled",
            Self::Aborted => "aborted",
            Self::Completed => "completed",
        }
    }
}

/// Which sides of a sheet are printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sides {
    /// One.
    #[default]
    OneSided,
    /// Both, turned like a book.
    TwoSidedLongEdge,
    /// Both, turned like a calendar.
    TwoSidedShortEdge,
}

impl Sides {
    /// The keyword of IPP.
    pub fn word(self) -> &'static str {
        match self {
            Self::OneSided => "one-sided",
            Self::TwoSidedLongEdge => "two-sided-long-edge",
            Self::TwoSidedShortEdge => "two-sided-short-edge",
        }
    }

    /// What has this keyword.
    pub fn of(word: &str) -> Option<Self> {
        [Self::OneSided, Self::TwoSidedLongEdge, Self::TwoSidedShortEdge].into_iter().find(|s| s.word() == word)
    }
}

/// Until when a job is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// Until somebody releases it.
    Indefinite,
    /// Until this time, in milliseconds since 1970.
    Until(u64),
}

/// What a job asks of a printer. What is `None` is the printer's choice.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ticket {
    /// How often everything is printed, 1 to 999; 0 counts as 1.
    pub copies: u32,
    /// Sides of a sheet.
    pub sides: Option<Sides>,
    /// A size, as in PWG 5101.1: `iso_a4_210x297mm`.
    pub media: Option<String>,
    /// `auto`, `color` or `monochrome`.
    pub color: Option<String>,
    /// 3 draft, 4 normal, 5 high.
    pub quality: Option<u8>,
    /// 3 portrait, 4 landscape, 5 and 6 the same upside down.
    pub orientation: Option<u8>,
    /// Pages on a side: 1, 2, 4, 6, 9 or 16.
    pub number_up: Option<u32>,
    /// Pages that are printed, as ranges from 1; all if empty.
    pub pages: Vec<(u32, u32)>,
}

impl Ticket {
    /// Copies, at least one.
    pub fn copies(&self) -> u32 {
        self.copies.max(1)
    }

    /// True if both sides of sheets are asked for.
    pub fn duplex(&self) -> bool {
        matches!(self.sides, Some(Sides::TwoSidedLongEdge | Sides::TwoSidedShortEdge))
    }

    /// True if colour is asked for by name.
    pub fn color(&self) -> bool {
        self.color.as_deref() == Some("color")
    }

    /// How many of `pages` pages are printed.
    pub fn selected(&self, pages: u32) -> u32 {
        if self.pages.is_empty() {
            return pages;
        }
        let within =
            |(low, high): &(u32, u32)| (u64::from((*high).min(pages)) + 1).saturating_sub(u64::from((*low).max(1)));
        let sum: u64 = self.pages.iter().map(within).sum();
        u32::try_from(sum).unwrap_or(u32::MAX)
    }

    /// Printed sides (impressions) and sheets of a document of so many pages.
    pub fn cost(&self, pages: u32) -> (u32, u32) {
        let sides = self.selected(pages).div_ceil(self.number_up.unwrap_or(1).max(1));
        let sheets = if self.duplex() { sides.div_ceil(2) } else { sides };
        (sides.saturating_mul(self.copies()), sheets.saturating_mul(self.copies()))
    }
}

/// A document of a job, in the spool.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Document {
    /// Its name, for people.
    pub name: String,
    /// Media type.
    pub format: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Pages, if they could be counted.
    pub pages: Option<u32>,
    /// The file of the spool that it lies in; small ones lie in the journal.
    #[serde(default)]
    pub file: Option<String>,
    /// Taken back by Cancel-Document: not printed.
    #[serde(default)]
    pub canceled: bool,
}

/// A print job.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// Its universal name, also the mark by which a printer's queue is searched for it after a crash.
    pub uuid: Uuid,
    /// The printer that it was sent to.
    pub printer: String,
    /// Who sent it.
    pub owner: Who,
    /// Its name, for people.
    pub name: String,
    /// What it asks for.
    pub ticket: Ticket,
    /// In the order in which they are printed.
    pub documents: Vec<Document>,
    /// True once no more documents come.
    pub complete: bool,
    /// State.
    pub state: JobState,
    /// Why it is in that state, as keywords of `job-state-reasons`.
    pub reason: String,
    /// The same for people; empty if there is nothing to say.
    pub message: String,
    /// 1 to 100; higher goes first.
    pub priority: u8,
    /// Rises with each promotion; goes before priority.
    pub promoted: u64,
    /// Until when it is held.
    pub hold: Option<Hold>,
    /// PIN for its release.
    pub pin: Option<Pin>,
    /// Which of the printer's outputs has or had it.
    pub output: Option<String>,
    /// True from the moment that an output may have got something of it, until it is known that nothing is left there.
    pub begun: bool,
    /// True once it was moved away from a jammed output; it is moved once.
    pub moved: bool,
    /// True if it is to be taken back as soon as its output lets it go.
    pub canceling: bool,
    /// Printed sides that it will have, if known.
    pub impressions: Option<u32>,
    /// Sheets that it will take, at least.
    pub sheets: u32,
    /// Printed sides so far, over all outputs.
    pub impressions_done: u32,
    /// Bytes of all documents.
    pub bytes: u64,
    /// When it came, in milliseconds since 1970.
    pub created_ms: u64,
    /// When its printing began.
    pub processing_ms: Option<u64>,
    /// When it was over.
    pub ended_ms: Option<u64>,
    /// When something last came of a job that is not complete.
    pub touched_ms: u64,
}

impl Job {
    /// Sheets that were used, from the sides that were printed: whole runs of the job as it was counted, and the part of one
    /// that a jam or a cancellation ended.
    pub fn sheets_done(&self) -> u32 {
        let part = |sides: u32| if self.ticket.duplex() { sides.div_ceil(2) } else { sides };
        match self.impressions {
            Some(sides) if sides > 0 => {
                let runs = self.impressions_done / sides;
                runs.saturating_mul(self.sheets).saturating_add(part(self.impressions_done % sides))
            }
            _ => part(self.impressions_done),
        }
    }

    /// Documents that are printed, with their places.
    pub fn printed(&self) -> impl Iterator<Item = (usize, &Document)> {
        self.documents.iter().enumerate().filter(|(_, d)| !d.canceled)
    }

    /// Counts sides and sheets again from the documents.
    pub fn recount(&mut self) {
        let costs: Vec<_> = self.printed().map(|(_, d)| (d.pages, self.ticket.cost(d.pages.unwrap_or(1)))).collect();
        let known = costs.iter().all(|(pages, _)| pages.is_some());
        self.impressions = known.then(|| costs.iter().fold(0, |sum: u32, (_, (sides, _))| sum.saturating_add(*sides)));
        self.sheets = costs.iter().fold(0, |sum, (_, (_, sheets))| sum.saturating_add(*sheets));
        self.bytes = self.documents.iter().map(|d| d.bytes).sum();
    }
}

/// Where an output puts what it prints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "to")]
pub enum Destination {
    /// A folder, one file a document: a printer for tests and demonstrations, or an archive.
    Folder {
        /// The folder; made if it is missing.
        path: PathBuf,
        /// Pages that it pretends to print in a minute; as fast as the disk if it is missing.
        pages_per_minute: Option<u32>,
    },
    /// A queue of a CUPS server.
    Cups {
        /// Its name.
        queue: String,
        /// `/run/cups/cups.sock` if it is missing; another socket, or `HOST:PORT`.
        server: Option<String>,
    },
    /// A printer by its address, `ipp:` or `ipps:`.
    Ipp {
        /// Its URI.
        uri: String,
        /// Which certificate of it is believed, for `ipps:`.
        #[serde(default)]
        trust: Trust,
    },
}

/// What a printer can do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Colour.
    pub color: bool,
    /// Both sides of a sheet.
    pub duplex: bool,
    /// Sizes, as in PWG 5101.1; the first is what it prints on if nothing is said.
    pub media: Vec<String>,
    /// Media types of documents that it takes.
    pub formats: Vec<String>,
    /// Dots per inch.
    pub resolutions: Vec<u32>,
    /// Sides in a minute.
    pub pages_per_minute: u32,
}

impl Default for Capabilities {
    fn default() -> Self {
        let words = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Self {
            color: true,
            duplex: true,
            media: words(&[
                "iso_a4_210x297mm",
                "iso_a3_297x420mm",
                "iso_a5_148x210mm",
                "na_letter_8.5x11in",
                "na_index-4x6_4x6in",
            ]),
            formats: words(&["application/pdf", "image/jpeg", "image/pwg-raster", "image/urf"]),
            resolutions: vec![300, 600],
            pages_per_minute: 20,
        }
    }
}

impl Capabilities {
    /// True if it can print such a job: colour and both sides only if they are asked for by name.
    pub fn suffice(&self, ticket: &Ticket, formats: &[&str]) -> bool {
        (self.color || !ticket.color())
            && (self.duplex || !ticket.duplex())
            && ticket.media.as_ref().is_none_or(|m| self.media.contains(m))
            && formats.iter().all(|f| self.formats.iter().any(|own| own == f))
    }
}

/// One way for a printer's jobs to become paper.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OutputConfig {
    /// Its name within the printer.
    pub name: String,
    /// Where it goes.
    #[serde(flatten)]
    pub destination: Destination,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// A span of quotas, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Period {
    /// From midnight.
    Day,
    /// From Monday.
    Week,
    /// From the first of the month.
    #[default]
    Month,
}

/// The most that somebody may print in a period; what is missing is not limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Allowance {
    /// Sheets of paper.
    pub sheets: Option<u64>,
    /// Bytes of documents.
    pub bytes: Option<u64>,
}

/// Who may print how much.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Quotas {
    /// How long an allowance lasts.
    pub period: Period,
    /// For members who are not named.
    pub members: Allowance,
    /// For everybody without an identity, each stated name by itself.
    pub unauthenticated: Allowance,
    /// For members by name, instead of the one for all.
    pub persons: BTreeMap<String, Allowance>,
}

/// How much a queue holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueLimits {
    /// Jobs that are not over.
    pub jobs: usize,
    /// Bytes of their documents.
    pub bytes: u64,
    /// Bytes of one job.
    pub job_bytes: u64,
    /// Jobs of one person that are not over.
    pub person_jobs: usize,
    /// Jobs that are over and still listed.
    pub history: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { jobs: 2000, bytes: 16 << 30, job_bytes: 4 << 30, person_jobs: 1000, history: 500 }
    }
}

/// A printer as its owner set it up. With several outputs it is a group: one queue, several machines.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PrinterConfig {
    /// Its name in addresses: 1 to 63 of `a-z`, `0-9`, `-`, `_`, beginning with a letter or digit.
    pub name: String,
    /// Its universal name; stays when the rest is changed.
    pub uuid: Uuid,
    /// For people.
    #[serde(default)]
    pub info: String,
    /// Where it stands.
    #[serde(default)]
    pub location: String,
    /// Where it stands, as a `geo:` URI.
    #[serde(default)]
    pub geo: Option<String>,
    /// The office's name.
    #[serde(default)]
    pub organization: String,
    /// In the order in which idle ones are preferred.
    pub outputs: Vec<OutputConfig>,
    /// Who may print how much.
    #[serde(default)]
    pub quotas: Quotas,
    /// How much the queue holds.
    #[serde(default)]
    pub limits: QueueLimits,
}

impl PrinterConfig {
    /// A printer with one output named as it is, and defaults for everything else.
    pub fn new(name: impl Into<String>, destination: Destination) -> Self {
        let name = name.into();
        let output = OutputConfig { name: name.clone(), destination, capabilities: Capabilities::default() };
        Self {
            info: name.clone(),
            name,
            uuid: Uuid::new_v4(),
            location: String::new(),
            geo: None,
            organization: String::new(),
            outputs: vec![output],
            quotas: Quotas::default(),
            limits: QueueLimits::default(),
        }
    }

    /// What at least one output can do.
    pub fn capabilities(&self) -> Capabilities {
        let mut all = Capabilities {
            color: false,
            duplex: false,
            media: vec![],
            formats: vec![],
            resolutions: vec![],
            pages_per_minute: 0,
        };
        for own in self.outputs.iter().map(|o| &o.capabilities) {
            all.color |= own.color;
            all.duplex |= own.duplex;
            all.pages_per_minute = all.pages_per_minute.saturating_add(own.pages_per_minute);
            merge(&mut all.media, &own.media);
            merge(&mut all.formats, &own.formats);
            merge(&mut all.resolutions, &own.resolutions);
        }
        all
    }
}

fn merge<T: Clone + PartialEq>(all: &mut Vec<T>, own: &[T]) {
    for one in own {
        if !all.contains(one) {
            all.push(one.clone());
        }
    }
}

/// True if it can be a printer's or output's name.
pub fn valid_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
        && !name.starts_with(['-', '_'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sheets_follow_copies_sides_number_up_and_ranges() {
        let mut ticket = Ticket { copies: 3, ..Ticket::default() };
        assert_eq!(ticket.cost(5), (15, 15));
        ticket.sides = Some(Sides::TwoSidedLongEdge);
        assert_eq!(ticket.cost(5), (15, 9), "each copy begins on a new sheet");
        ticket.number_up = Some(4);
        assert_eq!(ticket.cost(5), (6, 3));
        ticket.number_up = None;
        ticket.pages = vec![(2, 3), (5, 99)];
        assert_eq!(ticket.cost(5), (9, 6));
        ticket.pages = vec![(8, 9)];
        assert_eq!(ticket.cost(5), (0, 0));
        assert_eq!(
            Ticket { pages: vec![(0, u32::MAX), (0, u32::MAX)], ..Ticket::default() }.cost(u32::MAX),
            (u32::MAX, u32::MAX)
        );
    }

    #[test]
    fn names_are_safe_in_paths_and_labels() {
        for good in ["laser", "a", "hp-2_b"] {
            assert!(valid_name(good), "{good}");
        }
        for bad in ["", "-a", "_x", "A", "a/b", "..", "a.b", "a b", "ü", &"x".repeat(64)] {
            assert!(!valid_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_stated_name_is_never_a_member() {
        let caller = Caller { person: "anna".into(), machine: "pc".into(), device: "ab".into() };
        let (member, stated) = (Who::member(caller), Who::stated("anna", "10.0.0.7"));
        assert!(!member.same(&stated));
        assert_ne!(member.account(), stated.account());
        assert_eq!(Who::stated("\u{1b}[2J", "x").caller.person, "[2J");
    }
}
