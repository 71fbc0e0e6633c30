//! Files and directories.

use super::place::{AnyPath, AnyPlace, ShareTarget, WithArg, yes_no};
use super::value::{self, RemotePath, RootArg, Whom};
use crate::complete::remote_paths;
use clap::{Args, Subcommand, ValueHint};
use clap_complete::engine::ArgValueCompleter;
use common::model::Right;
use std::path::PathBuf;
use std::time::Duration;

/// List directories and files
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium ls\n  atrium ls -l home:notes\n  atrium ls -R public:plans --json\n  atrium ls acme\n  atrium ls -l \"acme/*/anna-pc/plans\"\n  atrium ls acme/anna-pc/drives/dvd/docs"
)]
pub struct Ls {
    /// Where: a place on the server, or the address of something that machines share, in which * stands for any one name.
    /// Without it, your private directory, the public ones and the office are listed
    #[arg(add = ArgValueCompleter::new(remote_paths))]
    pub place: Option<AnyPlace>,
    /// Size, time, version and author; of shares, right and holders
    #[arg(short, long)]
    pub long: bool,
    /// Everything below as well
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// Put files or whole directories on the server
///
/// A file goes into a directory that is there. A directory becomes the place that is named; with '/' at its end, it goes
/// into it. What is there already becomes an old version. A transfer that was cut off goes on where it stopped when the
/// same command is given again. With the server away, a file is handed to the agent, which uploads it later.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium put report.pdf home:\n  atrium put report.pdf public:plans/2026.pdf\n  atrium put photos/ home:pictures/ --dry-run\n  tar c notes | atrium put - home:backup/notes.tar --parents"
)]
pub struct Put {
    /// Files and directories of this machine; - is standard input. The last one is the place on the server
    #[arg(required = true, num_args = 1.., value_hint = ValueHint::AnyPath)]
    pub sources: Vec<PathBuf>,
    /// Where to on the server
    #[arg(required = true, add = ArgValueCompleter::new(remote_paths))]
    pub destination: RemotePath,
    /// Make missing parent directories
    #[arg(short, long)]
    pub parents: bool,
    /// Refuse if a file is there already
    #[arg(long, conflicts_with = "if_version")]
    pub no_overwrite: bool,
    /// Refuse unless exactly this version is there
    #[arg(long, value_name = "N")]
    pub if_version: Option<u64>,
    /// Hand the file to the agent at once and do not wait
    #[arg(long, conflicts_with_all = ["no_queue", "dry_run"])]
    pub queue: bool,
    /// Fail if the server is away, instead of handing the file to the agent
    #[arg(long)]
    pub no_queue: bool,
    /// Show what would be put, put nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// Get files or whole directories from the server or from other machines
///
/// A file goes into a directory that is here. A directory becomes the place that is named; with '/' at its end, it goes
/// into it. A file is in place only when it is whole and verified; until then it grows as the hidden .NAME.atrium-part,
/// from which the same command goes on after an interruption. Files that are here already and unchanged are passed over.
///
/// An address such as acme/anna-pc/plans/a.pdf is got by this machine's peer from all machines that have it. Of several
/// addresses the last word is the place here. Ctrl-C pauses the transfer; the same command goes on with it. What is on a
/// disc (acme/anna-pc/drives/dvd/docs/a.pdf) comes from the drive's machine.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium get home:notes/a.txt\n  atrium get public:plans plans-copy\n  atrium get home:a.txt home:b.txt target/\n  atrium get home:a.txt --version 2 old-a.txt\n  atrium get acme/anna-pc/plans/a.pdf\n  atrium get acme/anna-pc/plans acme/bert-pc/photos target/ --detach\n  atrium get acme/anna-pc/drives/dvd/docs docs/"
)]
pub struct Get {
    /// Places on the server, then the place here (the current directory if left out)
    #[arg(required = true, num_args = 1.., value_name = "SOURCE|DESTINATION", add = ArgValueCompleter::new(remote_paths))]
    pub paths: Vec<String>,
    /// An old version of a file
    #[arg(long = "version", value_name = "N")]
    pub version_number: Option<u64>,
    /// Replace files here that differ
    #[arg(short = 'f', long)]
    pub overwrite: bool,
    /// Do not ask the agent's cache
    #[arg(long)]
    pub no_cache: bool,
    /// Of addresses: return at once; `atrium transfers` shows how far it is
    #[arg(long)]
    pub detach: bool,
}

/// Write files to standard output
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium cat home:notes/a.txt\n  atrium cat home:notes/a.txt --version 1\n  atrium cat acme/anna-pc/plans/a.txt\n  atrium cat drives/dvd/readme.txt"
)]
pub struct Cat {
    /// Files on the server or of other machines
    #[arg(required = true, add = ArgValueCompleter::new(remote_paths))]
    pub paths: Vec<AnyPath>,
    /// An old version
    #[arg(long = "version", value_name = "N")]
    pub version_number: Option<u64>,
    /// Do not ask the agent's cache
    #[arg(long)]
    pub no_cache: bool,
}

/// Make directories
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium mkdir home:notes\n  atrium mkdir -p home:projects/2026/plans")]
pub struct Mkdir {
    /// Where
    #[arg(required = true, add = ArgValueCompleter::new(remote_paths))]
    pub paths: Vec<RemotePath>,
    /// Make missing parents; no error if it is there
    #[arg(short, long)]
    pub parents: bool,
}

/// Move or rename files and directories
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium mv home:a.txt home:b.txt\n  atrium mv home:a.txt home:b.txt public:plans/")]
pub struct Mv {
    /// What, and last where to
    #[arg(required = true, num_args = 1.., add = ArgValueCompleter::new(remote_paths))]
    pub sources: Vec<RemotePath>,
    /// New place; with a '/' at the end, or if it is a directory, into it
    #[arg(required = true, add = ArgValueCompleter::new(remote_paths))]
    pub destination: RemotePath,
    /// Replace a file that is there; it goes to the trash
    #[arg(short = 'f', long)]
    pub overwrite: bool,
}

/// Copy files and directories on the server, without moving bytes
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium cp home:a.txt home:b.txt\n  atrium cp public:plans/2025 public:plans/2026")]
pub struct Cp {
    /// What, and last where to
    #[arg(required = true, num_args = 1.., add = ArgValueCompleter::new(remote_paths))]
    pub sources: Vec<RemotePath>,
    /// New place; with a '/' at the end, or if it is a directory, into it
    #[arg(required = true, add = ArgValueCompleter::new(remote_paths))]
    pub destination: RemotePath,
}

/// Move files and directories to the trash
///
/// `atrium restore PATH` brings them back.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium rm home:old.txt\n  atrium rm -r home:old-project --dry-run")]
pub struct Rm {
    /// What
    #[arg(required = true, add = ArgValueCompleter::new(remote_paths))]
    pub paths: Vec<RemotePath>,
    /// Directories with everything in them
    #[arg(short, long)]
    pub recursive: bool,
    /// Show what would go, remove nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// Bring back what was deleted, or look into the trash
#[derive(Args, Debug)]
#[command(
    visible_alias = "trash",
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  atrium restore home:old.txt\n  atrium restore home:old.txt --to home:old-again.txt\n  atrium restore list home:\n  atrium restore purge home: --yes"
)]
pub struct Restore {
    #[command(subcommand)]
    pub action: Option<RestoreAction>,
    /// What was there: the newest deleted entry of this path comes back
    #[arg(required = true, add = ArgValueCompleter::new(remote_paths))]
    pub path: Option<RemotePath>,
    /// Exactly this one, from `atrium restore list`
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Another place than the old one
    #[arg(long, value_name = "PATH", add = ArgValueCompleter::new(remote_paths))]
    pub to: Option<RemotePath>,
}

/// What to do with the trash.
#[derive(Subcommand, Debug)]
pub enum RestoreAction {
    /// List the trash of a directory, newest first
    #[command(after_help = "Examples:\n  atrium restore list\n  atrium restore list public:plans --json")]
    List {
        /// Which private or public directory
        #[arg(default_value = "home:", add = ArgValueCompleter::new(remote_paths))]
        root: RootArg,
    },
    /// Delete from the trash for good
    #[command(
        after_help = "Examples:\n  atrium restore purge home: --id 0192f3a0-7c1e-7b52-9a43-5d0c9f0b7f11\n  atrium restore purge home: --yes"
    )]
    Purge {
        /// Which private or public directory
        #[arg(add = ArgValueCompleter::new(remote_paths))]
        root: RootArg,
        /// Only this one; everything if left out
        #[arg(long, value_name = "ID")]
        id: Option<String>,
        #[command(flatten)]
        yes: super::Confirm,
    },
}

/// List, get or restore old versions of a file
#[derive(Args, Debug)]
#[command(
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  atrium versions home:a.txt\n  atrium versions get home:a.txt --version 2 old-a.txt\n  atrium versions restore home:a.txt --version 2"
)]
pub struct Versions {
    #[command(subcommand)]
    pub action: Option<VersionsAction>,
    /// The file
    #[arg(required = true, add = ArgValueCompleter::new(remote_paths))]
    pub path: Option<RemotePath>,
}

/// What to do with versions.
#[derive(Subcommand, Debug)]
pub enum VersionsAction {
    /// Make an old version the current one; the present one becomes an old version
    #[command(after_help = "Example:\n  atrium versions restore home:a.txt --version 2")]
    Restore {
        /// The file
        #[arg(add = ArgValueCompleter::new(remote_paths))]
        path: RemotePath,
        /// Number from the list
        #[arg(long = "version", value_name = "N")]
        version_number: u64,
    },
    /// Get an old version
    #[command(after_help = "Example:\n  atrium versions get home:a.txt --version 2 old-a.txt")]
    Get {
        /// The file
        #[arg(add = ArgValueCompleter::new(remote_paths))]
        path: RemotePath,
        /// Number from the list
        #[arg(long = "version", value_name = "N")]
        version_number: u64,
        /// Where to here; by its name into the current directory if left out
        #[arg(value_hint = ValueHint::AnyPath)]
        destination: Option<PathBuf>,
        /// Replace a file here that differs
        #[arg(short = 'f', long)]
        overwrite: bool,
    },
}

/// Check a file out: only you can change it until you unlock it
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  atrium lock public:plans/hall.dwg --for 2d --note \"new staircase\"")]
pub struct Lock {
    /// Files
    #[arg(required = true, add = ArgValueCompleter::new(remote_paths))]
    pub paths: Vec<RemotePath>,
    /// How long; at most 30d
    #[arg(long = "for", value_parser = value::duration, default_value = "8h", value_name = "TIME")]
    pub lifetime: Duration,
    /// What for; others see it
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub note: String,
}

/// Give a checked-out file back
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium unlock public:plans/hall.dwg\n  atrium unlock public:plans/hall.dwg --force"
)]
pub struct Unlock {
    /// Files
    #[arg(required = true, add = ArgValueCompleter::new(remote_paths))]
    pub paths: Vec<RemotePath>,
    /// Break somebody else's lock; for those who manage the directory. It goes into the audit log
    #[arg(long)]
    pub force: bool,
}

/// Share a folder or a device of this machine, or show or change who may use a public directory
///
/// A folder is shared in place: nothing is copied, and what changes in it is seen by the others within seconds. Given
/// again, the command changes what it names and leaves the rest. Files that match a line of .atriumignore at the top of
/// the folder, or --ignore, are not shared. Links out of the folder are not followed.
///
/// A printer, drive or disk is named printers/NAME, drives/NAME or disks/NAME and needs to be told what it is: --output,
/// --device or --image, --folder and --size. A folder of such a name is written ./printers/NAME.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium share ~/Plans --with anna --with group:sales=write\n  atrium share ~/Plans --with everyone --name hall --ignore \"*.bak\"\n  atrium share ~/Team --with group:sales --write --two-way\n  atrium share ~/Plans --revoke anna\n  atrium share public:plans\n  atrium share public:plans --with anna --with group:sales --right write\n  atrium share printers/laser --output cups:HP-LaserJet --with everyone --duplex --location \"second floor\"\n  atrium share drives/dvd --device /dev/sr0 --with everyone --with anna=write\n  atrium share disks/big --folder /srv/lent --size 100GiB --per-person 10GiB --with group:sales"
)]
pub struct Share {
    /// A folder, a device (printers/NAME, drives/NAME, disks/NAME), or a public directory of the server (public:NAME)
    #[arg(value_hint = ValueHint::DirPath, value_name = "FOLDER|DEVICE|public:NAME", add = ArgValueCompleter::new(remote_paths))]
    pub target: ShareTarget,
    /// Who: anna, group:sales, device:ID or everyone; with =RIGHT for another right; may be given several times
    #[arg(long, value_name = "WHO[=RIGHT]")]
    pub with: Vec<WithArg>,
    /// What they may do: see, read, write or manage; read if left out, write for printers and disks
    #[arg(long, value_parser = value::right, value_name = "RIGHT", requires = "with")]
    pub right: Option<Right>,
    /// They may write; the same as --right write
    #[arg(long, requires = "with", conflicts_with = "right")]
    pub write: bool,
    /// Take the right away from: anna, group:sales, device:ID or everyone
    #[arg(long, value_name = "WHO")]
    pub revoke: Vec<Whom>,
    /// Of a folder: the share's name; made from the folder's if left out
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Of a folder: whether those who may write change it on copies of their own (`atrium mirror`)
    #[arg(long, value_parser = yes_no, num_args = 0..=1, require_equals = true, default_missing_value = "yes", value_name = "yes|no")]
    pub two_way: Option<bool>,
    /// Of a folder: files that are not shared, in the syntax of gitignore; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub ignore: Vec<String>,
    #[command(flatten)]
    pub device: super::DeviceOptions,
}

impl Share {
    /// The right that is meant where none was said with the name.
    pub fn right_or(&self, usual: Right) -> Right {
        if self.write { Right::Write } else { self.right.unwrap_or(usual) }
    }
}

/// Tell what someone may do, and which rule decides
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium why public:plans\n  atrium why public:plans/x.pdf bert\n  atrium why acme/server/public/plans"
)]
pub struct Why {
    /// The place, also by its address in an office of peers
    #[arg(add = ArgValueCompleter::new(remote_paths))]
    pub path: AnyPath,
    /// Whose rights; your own if left out. Others' need the right to manage
    pub user: Option<String>,
}

/// Keep a directory here and one on the server the same, in both directions
///
/// Changed on both sides: both versions are kept, yours as "name (conflict anna 2026-11-22).ext", listed by `atrium
/// conflicts` and ended by `atrium conflicts keep`. What is deleted on one side goes to the trash of the other: on the server to its trash, here to
/// .atrium-trash in the directory.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium sync ~/Plans public:plans\n  atrium sync ~/Notes home:notes --watch\n  atrium sync ~/Notes home:notes --dry-run"
)]
pub struct Sync {
    /// Directory of this machine
    #[arg(value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Directory on the server; made if missing
    #[arg(add = ArgValueCompleter::new(remote_paths))]
    pub remote: RemotePath,
    /// Keep going: follow changes on both sides until Ctrl-C
    #[arg(short, long, conflicts_with = "dry_run")]
    pub watch: bool,
    /// With --watch: how often to look through everything here, besides being told of changes by the file system; 5m if
    /// left out, or 5s where the file system does not tell
    #[arg(long, value_parser = value::duration, value_name = "TIME", requires = "watch")]
    pub interval: Option<Duration>,
    /// Show what would be done, do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub yes: super::Confirm,
}

/// List conflicts that syncing has kept, or end them
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  atrium conflicts\n  atrium conflicts ~/Plans --json\n  atrium conflicts keep mine ~/Plans/hall.dwg"
)]
pub struct Conflicts {
    #[command(subcommand)]
    pub action: Option<ConflictsAction>,
    /// Only of this directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub directory: Option<PathBuf>,
}

/// What to do with conflicts.
#[derive(Subcommand, Debug)]
pub enum ConflictsAction {
    /// Decide which version stays under the file's name
    ///
    /// mine: the version from this machine; theirs: the one from the server; both: each under the name that it has. The
    /// version that goes is in .atrium-trash of the synchronised directory. The next run of `atrium sync`, or the one that
    /// watches, brings it to the server, where it goes to the trash as well.
    #[command(
        after_help = "Examples:\n  atrium conflicts keep mine ~/Plans/hall.dwg\n  atrium conflicts keep both ~/Plans/*"
    )]
    Keep {
        /// Which version stays
        which: Keep,
        /// Files here: the file itself, or its other version
        #[arg(required = true, value_hint = ValueHint::FilePath)]
        paths: Vec<PathBuf>,
    },
}

/// Which version of a file stays.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The version from this machine
    Mine,
    /// The version from the server
    Theirs,
    /// Both, each under the name that it has
    Both,
}

/// Show changes as they happen
///
/// Goes on across restarts of the server without missing a change.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium watch\n  atrium watch public:plans home: --json\n  atrium watch --cursor 1742 --count 10"
)]
pub struct Watch {
    /// Private and public directories; all that you may read if left out
    #[arg(add = ArgValueCompleter::new(remote_paths))]
    pub roots: Vec<RootArg>,
    /// Begin after this cursor, from an earlier --json output; from now on if left out
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub cursor: u64,
    /// Stop after this many changes
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// List uploads that the agent has yet to do, or take one back
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium queue\n  atrium queue cancel 0192f3a0-7c1e-7b52-9a43-5d0c9f0b7f11")]
pub struct Queue {
    #[command(subcommand)]
    pub action: Option<QueueAction>,
}

/// What to do with the queue.
#[derive(Subcommand, Debug)]
pub enum QueueAction {
    /// List waiting uploads, oldest first
    #[command(after_help = "Example:\n  atrium queue list --json")]
    List,
    /// Take an upload out of the queue
    #[command(after_help = "Example:\n  atrium queue cancel 0192f3a0-7c1e-7b52-9a43-5d0c9f0b7f11")]
    Cancel {
        /// From the list
        id: String,
    },
}

/// Look after the agent's cache
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  atrium cache clear")]
pub struct Cache {
    #[command(subcommand)]
    pub action: CacheAction,
}

/// What to do with the cache.
#[derive(Subcommand, Debug)]
pub enum CacheAction {
    /// Empty it; nothing is lost, files are fetched again when needed
    #[command(after_help = "Example:\n  atrium cache clear")]
    Clear,
}
