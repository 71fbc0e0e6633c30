//! Printers, optical drives and disk space, of this machine and of the others.

use super::Confirm;
use super::device_value::{
    DiscImage, JobRef, PrinterOutput, PrinterTrust, lease_id, listen, media, media_type, page_ranges, sheets,
};
use super::place::{Address, yes_no};
use super::value;
use crate::complete::{devices, disks, drives, printers, spaces};
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use clap_complete::engine::ArgValueCompleter;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A kind of device.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum KindArg {
    /// Printers
    Printer,
    /// Optical drives
    Drive,
    /// Disk space
    Disk,
}

/// List printers, drives and disks of all machines, or show one in full
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium devices\n  atrium devices --kind printer --json\n  atrium devices acme/sales\n  atrium devices acme/anna-pc/printers/laser\n  atrium devices --own\n  atrium devices --audit --verify"
)]
pub struct Devices {
    /// A device, or the beginning of addresses; a device may be written acme/anna-pc/printers/laser, printers/laser if it
    /// is of this machine, or laser if only one is called so
    #[arg(add = ArgValueCompleter::new(devices))]
    pub address: Option<Address>,
    /// Only of this kind
    #[arg(long, value_enum, value_name = "KIND")]
    pub kind: Option<KindArg>,
    /// Only of this machine, with what only its person may know
    #[arg(long)]
    pub own: bool,
    /// What was granted and refused at this machine's devices, newest first
    #[arg(long, conflicts_with_all = ["own", "kind"])]
    pub audit: bool,
    /// With --audit: check that no line was changed or taken out
    #[arg(long, requires = "audit")]
    pub verify: bool,
    /// With --audit: at most this many lines; at most 1000
    #[arg(long, requires = "audit", value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    pub limit: Option<u32>,
}

/// What a device needs to be shared.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Of a device (printers/NAME, drives/NAME, disks/NAME)")]
pub struct DeviceOptions {
    /// Of a printer: where its pages go: folder:DIRECTORY, cups:QUEUE, ipp://HOST/ipp/print, ipps://…, or group:A,B for
    /// other printers of this machine
    #[arg(long, value_name = "OUTPUT")]
    pub output: Option<PrinterOutput>,
    /// Of a printer with an ipps:// output: which certificate of it is believed: a PEM file with the certificate or its
    /// authority, sha256:FINGERPRINT, system for the authorities of this machine, or new to take what it shows now. If left
    /// out, what it shows the first time; another one is refused from then on
    #[arg(long, value_name = "CERTIFICATE", value_hint = ValueHint::FilePath)]
    pub trust: Option<PrinterTrust>,
    /// Of a printer: where it stands
    #[arg(long, value_name = "TEXT")]
    pub location: Option<String>,
    /// Of a printer: whether it prints in colour
    #[arg(long, value_parser = yes_no, num_args = 0..=1, require_equals = true, default_missing_value = "yes", value_name = "yes|no")]
    pub in_color: Option<bool>,
    /// Of a printer: whether it prints on both sides
    #[arg(long, value_parser = yes_no, num_args = 0..=1, require_equals = true, default_missing_value = "yes", value_name = "yes|no")]
    pub duplex: Option<bool>,
    /// Of a printer: not offered to the print dialogs of programs in the network, only to members
    #[arg(long, value_parser = yes_no, num_args = 0..=1, require_equals = true, default_missing_value = "yes", value_name = "yes|no")]
    pub members_only: Option<bool>,
    /// Of a printer: a media type that it takes, such as application/pdf; may be given several times
    #[arg(long, value_parser = media_type, value_name = "MIME")]
    pub format: Vec<String>,
    /// Of a drive: its device file, such as /dev/sr0
    #[arg(long, value_hint = ValueHint::FilePath, value_name = "FILE", conflicts_with = "image")]
    pub device: Option<PathBuf>,
    /// Of a simulated drive: the image that is in it; none for an empty one
    #[arg(long, value_hint = ValueHint::FilePath, value_name = "FILE")]
    pub image: Option<DiscImage>,
    /// Of disk space: the directory in which it is kept
    #[arg(long, value_hint = ValueHint::DirPath, value_name = "DIRECTORY")]
    pub folder: Option<PathBuf>,
    /// Of disk space: so much in all
    #[arg(long, value_parser = value::size, value_name = "SIZE")]
    pub size: Option<u64>,
    /// Of disk space: so much of the disk stays free for yourself, whatever happens; 5GiB if left out
    #[arg(long, value_parser = value::size, value_name = "SIZE")]
    pub reserve: Option<u64>,
    /// Of disk space: so much for one person; all of it if left out
    #[arg(long, value_parser = value::size, value_name = "SIZE")]
    pub per_person: Option<u64>,
    /// What it is, for people
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
}

impl DeviceOptions {
    /// Options of printers that were given.
    pub fn of_printer(&self) -> bool {
        self.output.is_some()
            || self.trust.is_some()
            || self.location.is_some()
            || self.in_color.is_some()
            || self.duplex.is_some()
            || self.members_only.is_some()
            || !self.format.is_empty()
    }

    /// Options of drives that were given.
    pub fn of_drive(&self) -> bool {
        self.device.is_some() || self.image.is_some()
    }

    /// Options of disk space that were given.
    pub fn of_disk(&self) -> bool {
        self.folder.is_some() || self.size.is_some() || self.reserve.is_some() || self.per_person.is_some()
    }

    /// Any of them.
    pub fn any(&self) -> bool {
        self.of_printer() || self.of_drive() || self.of_disk() || self.description.is_some()
    }
}

/// Take a drive for yourself, for a time or while a command runs
///
/// Without --shared nobody else can use it meanwhile. It ends with `atrium release`, when its time is over, or when whoever
/// manages the drive takes it back. With a command, it is held while the command runs; the exit code is then the
/// command's. If it is lost meanwhile, the command is stopped and the exit code is 8. The command finds the device's address
/// in ATRIUM_DEVICE and the number of the lease, which only rises, in ATRIUM_FENCING_TOKEN.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium use acme/anna-pc/drives/dvd --for 30m\n  atrium use dvd --shared\n  atrium use dvd --wait -- sh -c \"atrium disc rip dvd film.iso && atrium disc eject dvd\""
)]
pub struct Use {
    /// The device
    #[arg(add = ArgValueCompleter::new(drives))]
    pub address: Address,
    /// Together with others: nobody can take the disc away meanwhile
    #[arg(long)]
    pub shared: bool,
    /// How long; until it is released if left out
    #[arg(long = "for", value_parser = value::duration, value_name = "TIME")]
    pub lifetime: Option<Duration>,
    /// Wait for it if somebody else has it
    #[arg(short, long)]
    pub wait: bool,
    /// Command to run meanwhile
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

/// Give a device back
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium release dvd\n  atrium release drives/dvd --take-back\n  atrium release drives/dvd --lease 0199e2a4-5b1c-7d3e-8f90-a1b2c3d4e5f6"
)]
pub struct Release {
    /// The device
    #[arg(add = ArgValueCompleter::new(drives))]
    pub address: Address,
    /// Take it back from whoever holds it; for those who manage it
    #[arg(long)]
    pub take_back: bool,
    /// Take back only this lease, or this place in the queue, as `atrium devices DEVICE` shows it to those who manage it
    #[arg(long, value_parser = lease_id, value_name = "ID", conflicts_with = "take_back")]
    pub lease: Option<uuid::Uuid>,
}

/// Ask whoever holds a device to let you have it
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium request dvd\n  atrium request acme/anna-pc/drives/dvd \"only for five minutes\""
)]
pub struct Request {
    /// The device
    #[arg(add = ArgValueCompleter::new(devices))]
    pub address: Address,
    /// What to tell them; at most 500 bytes
    #[arg(value_name = "TEXT")]
    pub text: Vec<String>,
}

/// Which sides of the paper.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// One side only
    #[value(name = "one-sided", alias = "one")]
    One,
    /// Both, turned like a book
    #[value(name = "two-sided-long-edge", alias = "long")]
    Long,
    /// Both, turned like a calendar
    #[value(name = "two-sided-short-edge", alias = "short")]
    Short,
}

impl Sides {
    /// As IPP writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::One => "one-sided",
            Self::Long => "two-sided-long-edge",
            Self::Short => "two-sided-short-edge",
        }
    }
}

/// Print files
///
/// Returns when the printer's machine has the document safely on disk; `atrium jobs` shows what becomes of it. If the
/// connection breaks, the same document is sent again and printed once.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium print plan.pdf --at reception\n  atrium print a.pdf b.pdf --at laser --copies 2 --sides long --mono\n  atrium print letter.pdf --pin\n  atrium print plan.pdf --via-server laser.anna-pc\n  pdfseparate -f 1 -l 1 a.pdf /dev/stdout | atrium print - --at laser --name \"page one\""
)]
pub struct Print {
    /// Files; - is standard input
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// The printer; may be left out if there is only one
    #[arg(long, value_name = "PRINTER", add = ArgValueCompleter::new(printers))]
    pub at: Option<Address>,
    /// A printer of the office, through its central server; `atrium jobs --server-queue` shows what becomes of it
    #[arg(long, value_name = "PRINTER", conflicts_with = "at")]
    pub via_server: Option<String>,
    /// How many times; at most 999
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=999), value_name = "N")]
    pub copies: u32,
    /// On which sides; as the printer is set if left out
    #[arg(long, value_enum, value_name = "SIDES")]
    pub sides: Option<Sides>,
    /// Without colour
    #[arg(long)]
    pub mono: bool,
    /// Paper: a3, a4, a5, letter, legal or a name like iso_a4_210x297mm; as the printer is set if left out
    #[arg(long, value_parser = media, value_name = "MEDIA")]
    pub media: Option<String>,
    /// Only these pages, for example 1-3,7
    #[arg(long, value_parser = page_ranges, value_name = "PAGES")]
    pub pages: Option<String>,
    /// 1 to 100; higher is earlier, 50 is usual
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    pub priority: Option<u32>,
    /// Wait in the queue until `atrium jobs release`
    #[arg(long)]
    pub hold: bool,
    /// Print only when somebody says a PIN at `atrium jobs release` (`release-at-server`); it is asked for now
    #[arg(long)]
    pub pin: bool,
    /// The PIN from a file; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "pin")]
    pub pin_file: Option<PathBuf>,
    /// The job's name; the file's if left out
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// Media type, such as application/pdf; found out from the content if left out
    #[arg(long, value_parser = media_type, value_name = "MIME")]
    pub format: Option<String>,
}

/// Show print jobs; hold, release, cancel them or change their order
///
/// Yours on all printers; of a printer that you manage, everyone's.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  atrium jobs\n  atrium jobs laser --all\n  atrium jobs cancel laser#12\n  atrium jobs release acme/anna-pc/printers/laser#12"
)]
pub struct Jobs {
    #[command(subcommand)]
    pub action: Option<JobsAction>,
    /// Only of this printer
    #[arg(add = ArgValueCompleter::new(printers))]
    pub printer: Option<Address>,
    /// Those that have ended as well
    #[arg(short, long)]
    pub all: bool,
    /// Jobs at the office's central server instead
    #[arg(long = "server-queue", visible_alias = "at-server")]
    pub at_server: bool,
}

/// What to do with jobs.
#[derive(Subcommand, Debug)]
pub enum JobsAction {
    /// Show a job in full
    #[command(after_help = "Example:\n  atrium jobs show laser#12")]
    Show {
        /// PRINTER#NUMBER, as listed
        job: JobRef,
    },
    /// Take back jobs at the office's central server
    #[command(after_help = "Example:\n  atrium jobs cancel-at-server 0199e2a4-5b1c-7d3e-8f90-a1b2c3d4e5f6")]
    CancelAtServer {
        /// Ids, as `atrium jobs --server-queue` lists them
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<String>,
    },
    /// Do not print jobs at the office's central server until they are released
    #[command(after_help = "Example:\n  atrium jobs hold-at-server 0199e2a4-5b1c-7d3e-8f90-a1b2c3d4e5f6")]
    HoldAtServer {
        /// Ids, as `atrium jobs --server-queue` lists them
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<String>,
    },
    /// Print jobs that are held at the office's central server; the PIN is asked for if one has any
    #[command(
        after_help = "Examples:\n  atrium jobs release-at-server 0199e2a4-5b1c-7d3e-8f90-a1b2c3d4e5f6\n  atrium jobs release-at-server 0199e2a4-5b1c-7d3e-8f90-a1b2c3d4e5f6 --pin-file pin.txt"
    )]
    ReleaseAtServer {
        /// Ids, as `atrium jobs --server-queue` lists them
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<String>,
        /// The PIN from a file; - is standard input
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        pin_file: Option<PathBuf>,
    },
    /// Print a job of the office's central server earlier or later
    #[command(after_help = "Example:\n  atrium jobs priority-at-server 0199e2a4-5b1c-7d3e-8f90-a1b2c3d4e5f6 90")]
    PriorityAtServer {
        /// Its id, as `atrium jobs --server-queue` lists it
        job: String,
        /// 1 to 100; higher is earlier
        #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
        priority: u32,
    },
    /// Do not print them until they are released
    #[command(after_help = "Example:\n  atrium jobs hold laser#12")]
    Hold {
        /// PRINTER#NUMBER, as listed
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<JobRef>,
    },
    /// Print jobs that are held; the PIN is asked for if one has any
    #[command(
        after_help = "Examples:\n  atrium jobs release laser#12\n  atrium jobs release laser#12 --pin-file pin.txt"
    )]
    Release {
        /// PRINTER#NUMBER, as listed
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<JobRef>,
        /// The PIN from a file; - is standard input
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        pin_file: Option<PathBuf>,
    },
    /// Do not print them at all
    #[command(after_help = "Examples:\n  atrium jobs cancel laser#12\n  atrium jobs cancel laser#12 laser#13")]
    Cancel {
        /// PRINTER#NUMBER, as listed
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<JobRef>,
    },
    /// Print a job earlier or later
    #[command(after_help = "Example:\n  atrium jobs priority laser#12 90")]
    Priority {
        /// PRINTER#NUMBER, as listed
        job: JobRef,
        /// 1 to 100; higher is earlier
        #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
        priority: u32,
    },
}

/// Pause and resume printers, and limit what people print
///
/// For those who manage the printer. Its settings are changed with `atrium share printers/NAME`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium printer pause laser\n  atrium printer resume laser\n  atrium printer quota laser --sheets 200 --period 30d"
)]
pub struct Printer {
    #[command(subcommand)]
    pub action: PrinterAction,
}

/// What to do with a printer.
#[derive(Subcommand, Debug)]
pub enum PrinterAction {
    /// Begin no more jobs; new ones wait
    #[command(after_help = "Example:\n  atrium printer pause laser")]
    Pause {
        /// The printer
        #[arg(add = ArgValueCompleter::new(printers))]
        printer: Address,
    },
    /// Go on with the queue
    #[command(after_help = "Example:\n  atrium printer resume laser")]
    Resume {
        /// The printer
        #[arg(add = ArgValueCompleter::new(printers))]
        printer: Address,
    },
    /// Set how much each person may print in a period
    #[command(
        after_help = "Examples:\n  atrium printer quota laser --sheets 200 --period 30d\n  atrium printer quota laser --sheets none --bytes 500MiB"
    )]
    Quota(PrinterQuota),
}

/// What each person may print.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct PrinterQuota {
    /// The printer
    #[arg(add = ArgValueCompleter::new(printers))]
    pub printer: Address,
    /// Sheets; none means no limit
    #[arg(long, value_parser = sheets, value_name = "N", group = "change")]
    pub sheets: Option<u64>,
    /// Bytes of documents; none means no limit
    #[arg(long, value_parser = value::size, value_name = "SIZE", group = "change")]
    pub bytes: Option<u64>,
    /// Length of a period; 30d if it was never set
    #[arg(long, value_parser = value::duration, value_name = "TIME", group = "change")]
    pub period: Option<Duration>,
}

/// Use discs in drives of any machine: copy one, offer it to programs, open the tray
///
/// Files of a disc are read with `atrium ls`, `cat` and `get`, like those of a share: acme/anna-pc/drives/dvd/docs/a.pdf.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium ls acme/anna-pc/drives/dvd\n  atrium disc rip dvd film.iso\n  atrium disc export dvd --http\n  atrium disc eject dvd"
)]
pub struct Disc {
    #[command(subcommand)]
    pub action: DiscAction,
}

/// What to do with a disc.
#[derive(Subcommand, Debug)]
pub enum DiscAction {
    /// Open the tray
    ///
    /// Others who read the disc are told that it was taken out. While somebody holds the drive, only they can.
    #[command(after_help = "Example:\n  atrium disc eject dvd")]
    Eject {
        /// The drive
        #[arg(add = ArgValueCompleter::new(drives))]
        drive: Address,
    },
    /// Close the tray
    #[command(after_help = "Example:\n  atrium disc close dvd")]
    Close {
        /// The drive
        #[arg(add = ArgValueCompleter::new(drives))]
        drive: Address,
    },
    /// Put an image into a simulated drive of this machine
    #[command(after_help = "Example:\n  atrium disc insert drives/dvd film.iso")]
    Insert {
        /// The drive
        #[arg(add = ArgValueCompleter::new(drives))]
        drive: Address,
        /// The image
        #[arg(value_hint = ValueHint::FilePath)]
        image: PathBuf,
    },
    /// Copy a whole disc into a file
    ///
    /// The same command goes on where it stopped. Sectors that cannot be read are zeros in the file and are listed in
    /// FILE.map; the exit code is then 3, and the same command tries them again.
    #[command(
        after_help = "Examples:\n  atrium disc rip dvd film.iso\n  atrium disc rip acme/anna-pc/drives/dvd film.iso --retries 10"
    )]
    Rip {
        /// The drive
        #[arg(add = ArgValueCompleter::new(drives))]
        drive: Address,
        /// The file here
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Try bad sectors again so often
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
        retries: Option<u32>,
    },
    /// Offer a disc to programs of this machine, or of others over TLS, until Ctrl-C
    ///
    /// The addresses are written to standard output. Without an option, on loopback by NBD and by HTTP. With --listen and
    /// --tls, whoever has the directory reads the disc, from any machine that reaches the address: copy it there, and use
    /// the address that was written, with the directory's path there. Its keys are worth nothing when the export has ended.
    #[command(
        after_help = "Examples:\n  atrium disc export dvd --http\n  atrium disc export dvd --nbd\n  atrium disc export dvd --nbd-socket /tmp/dvd.sock\n  atrium disc export dvd --listen 0.0.0.0:10809 --tls dvd-keys\n  nbdcopy 'nbds://192.168.1.5:10809/?tls-certificates=/home/bert/dvd-keys' dvd.iso"
    )]
    Export {
        /// The drive
        #[arg(add = ArgValueCompleter::new(drives))]
        drive: Address,
        /// As a block device (NBD) on loopback, for nbdcopy, qemu, nbd-client
        #[arg(long)]
        nbd: bool,
        /// The same on a Unix socket
        #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
        nbd_socket: Option<PathBuf>,
        /// The image and its files by HTTP on loopback, for players and browsers
        #[arg(long)]
        http: bool,
        /// As a block device (NBD) on this address, for programs of other machines as well; port 0 takes any, 10809 if left
        /// out
        #[arg(long, value_parser = listen, value_name = "ADDRESS[:PORT]")]
        listen: Option<SocketAddr>,
        /// With --listen: over TLS; the keys for the other side are put into this directory, which is made if missing
        #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath, requires = "listen")]
        tls: Option<PathBuf>,
        /// With --listen: without TLS; whoever reaches the address reads the disc
        #[arg(long, requires = "listen", conflicts_with = "tls")]
        plain: bool,
    },
}

/// Borrow disk space of other machines, and keep second copies there
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium space borrow acme/anna-pc/disks/big 20GiB --for 8h --label video\n  atrium space put video raw.mov\n  atrium space list\n  atrium space return video --yes\n  atrium space mirror plans acme/anna-pc/disks/big"
)]
pub struct Space {
    #[command(subcommand)]
    pub action: SpaceAction,
}

/// What to do with space.
#[derive(Subcommand, Debug)]
pub enum SpaceAction {
    /// Borrow space for a time; then everything in it is wiped
    #[command(after_help = "Example:\n  atrium space borrow big 20GiB --for 8h --label video")]
    Borrow {
        /// The disk
        #[arg(add = ArgValueCompleter::new(disks))]
        disk: Address,
        /// So much at most
        #[arg(value_parser = value::size)]
        size: u64,
        /// How long; at most 30d
        #[arg(long = "for", value_parser = value::duration, default_value = "4h", value_name = "TIME")]
        lifetime: Duration,
        /// What it is for; it can be named by this
        #[arg(long, default_value = "", value_name = "TEXT")]
        label: String,
    },
    /// List what this machine has borrowed
    #[command(after_help = "Examples:\n  atrium space list\n  atrium space list --lent --json")]
    List {
        /// What others have borrowed here, instead
        #[arg(long)]
        lent: bool,
    },
    /// Put a file into borrowed space; goes on where it stopped
    #[command(after_help = "Examples:\n  atrium space put video raw.mov\n  atrium space put video raw.mov take-1.mov")]
    Put {
        /// Its label, its id, or a unique beginning of it
        #[arg(add = ArgValueCompleter::new(spaces))]
        space: String,
        /// The file here
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Its name there; the file's if left out
        name: Option<String>,
    },
    /// Get a file from borrowed space, verified; goes on where it stopped
    #[command(after_help = "Examples:\n  atrium space get video raw.mov\n  atrium space get video raw.mov here.mov")]
    Get {
        /// Its label, its id, or a unique beginning of it
        #[arg(add = ArgValueCompleter::new(spaces))]
        space: String,
        /// Its name there
        name: String,
        /// Where to here; by its name into the current directory if left out
        #[arg(value_hint = ValueHint::AnyPath)]
        file: Option<PathBuf>,
        /// Replace a file here that differs
        #[arg(short = 'f', long)]
        overwrite: bool,
    },
    /// List what is in borrowed space
    #[command(after_help = "Example:\n  atrium space ls video")]
    Ls {
        /// Its label, its id, or a unique beginning of it
        #[arg(add = ArgValueCompleter::new(spaces))]
        space: String,
    },
    /// Remove a file from borrowed space, for good
    #[command(after_help = "Example:\n  atrium space rm video raw.mov")]
    Rm {
        /// Its label, its id, or a unique beginning of it
        #[arg(add = ArgValueCompleter::new(spaces))]
        space: String,
        /// Their names there
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Keep borrowed space longer, from now on
    #[command(after_help = "Example:\n  atrium space renew video --for 4h")]
    Renew {
        /// Its label, its id, or a unique beginning of it
        #[arg(add = ArgValueCompleter::new(spaces))]
        space: String,
        /// How long; at most 30d
        #[arg(long = "for", value_parser = value::duration, default_value = "4h", value_name = "TIME")]
        lifetime: Duration,
    },
    /// Give space back; everything in it is wiped
    #[command(after_help = "Example:\n  atrium space return video --yes")]
    Return {
        /// Its label, its id, or a unique beginning of it
        #[arg(add = ArgValueCompleter::new(spaces))]
        space: String,
        #[command(flatten)]
        yes: Confirm,
    },
    /// Keep a second copy of one of this machine's shares on another machine's disk
    ///
    /// It is encrypted here; the other machine cannot read it, and nothing in it is overwritten. The same again sends what
    /// is new, and lets go what is no longer in the share. From then on this machine asks from time to time for proof that
    /// the copy is whole, and sends again what is not; `atrium space mirrors` shows when that was. When the other machine
    /// wants its disk back, the copy moves to the disk that --next names, else back to this machine, until this command is
    /// given with another disk.
    #[command(
        after_help = "Examples:\n  atrium space mirror plans acme/anna-pc/disks/big --size 50GiB --retention 90d\n  atrium space mirror plans acme/anna-pc/disks/big --next acme/carl-pc/disks/old"
    )]
    Mirror {
        /// The share's name or its folder
        #[arg(value_hint = ValueHint::DirPath)]
        share: String,
        /// The disk
        #[arg(add = ArgValueCompleter::new(disks))]
        disk: Address,
        /// At most; twice what the share has now if left out
        #[arg(long, value_parser = value::size, value_name = "SIZE")]
        size: Option<u64>,
        /// What was deleted in the share stays for so long; 30d if left out
        #[arg(long, value_parser = value::duration, value_name = "TIME")]
        retention: Option<Duration>,
        /// The disk to which the copy moves by itself when the first one's machine leaves
        #[arg(long, value_name = "DISK", add = ArgValueCompleter::new(disks))]
        next: Option<Address>,
    },
    /// List the second copies of this machine's shares: where they are, and when that was proven last
    #[command(after_help = "Examples:\n  atrium space mirrors\n  atrium space mirrors --json")]
    Mirrors,
    /// Get a mirrored share back into a folder; nothing there is replaced
    #[command(after_help = "Example:\n  atrium space restore plans ~/Plans-again")]
    Restore {
        /// The share's name, as it was mirrored
        share: String,
        /// The folder; made if missing
        #[arg(value_hint = ValueHint::DirPath)]
        directory: PathBuf,
        /// Which copy; the newest if left out
        #[arg(long, value_name = "N")]
        generation: Option<u64>,
        /// On another machine than the one that made it: a file with the recovery key that `space mirror` showed
        #[arg(long, value_name = "FILE", requires = "disk", value_hint = ValueHint::FilePath)]
        recovery_key_file: Option<PathBuf>,
        /// With a recovery key: the disk that has the copy
        #[arg(long, value_name = "DISK", requires = "recovery_key_file")]
        disk: Option<String>,
    },
}
