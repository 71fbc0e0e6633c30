//! What people type. One struct per verb; the reference in `docs/cli.md`, the man pages and the completions are made
//! from these definitions.

#![expect(missing_docs, reason = "a comment on a flattened field would become help text of its command")]

mod admin;
pub mod device_value;
mod devices;
mod files;
mod identity;
mod peers;
pub mod place;
pub mod value;

pub use admin::*;
pub use devices::*;
pub use files::*;
pub use identity::*;
pub use peers::*;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;
use std::time::Duration;

/// The office's files, on a central server and on each other's machines, from the command line.
///
/// Places on the server are written home:notes/a.txt (your private directory) and public:plans/x.pdf (the public
/// directory "plans"). What machines share with each other has hierarchical addresses like
/// acme/sales/anna-pc/plans/x.pdf: office, unit, machine, share, path. Their printers, drives and disks are below
/// acme/sales/anna-pc/printers, drives and disks.
#[derive(Parser, Debug)]
#[command(
    name = "atrium",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  atrium status\n  atrium ls home:\n  atrium put report.pdf public:plans/\n  atrium get acme/anna-pc/plans/x.pdf"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Write JSON instead of text, with times in UTC; progress becomes JSON lines on stderr
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but errors and what was asked for
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Add the technical cause to errors
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Colour in the output; NO_COLOR and TERM=dumb switch it off too
    #[arg(long, global = true, value_enum, default_value_t = ColorWhen::Auto, value_name = "WHEN")]
    pub color: ColorWhen,
    /// Never ask; fail where a question would be
    #[arg(long, global = true)]
    pub no_input: bool,
    /// Give up after this time, for example 30s or 5m; without it, transfers may take as long as they need
    #[arg(long, global = true, value_parser = value::duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// Socket of this machine's agent
    #[arg(long, global = true, env = "ATRIUM_AGENT_SOCKET", value_hint = ValueHint::FilePath, value_name = "SOCKET")]
    pub agent: Option<PathBuf>,
    /// Socket of this machine's peer
    #[arg(long, global = true, env = "ATRIUM_PEER_SOCKET", value_hint = ValueHint::FilePath, value_name = "SOCKET")]
    pub peer: Option<PathBuf>,
    /// Talk to this server without an agent: HOST:PORT, or unix:/PATH of the server's own socket
    #[arg(long, global = true, env = "ATRIUM_SERVER", value_name = "SERVER")]
    pub server: Option<String>,
    /// The office's certificate (PEM) to verify the server by
    #[arg(long, global = true, env = "ATRIUM_CA", value_hint = ValueHint::FilePath, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// File with a session token
    #[arg(long, global = true, env = "ATRIUM_TOKEN_FILE", value_hint = ValueHint::FilePath, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// When to use colour.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColorWhen {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    Init(Init),
    Invite(Invite),
    Join(Join),
    Peers(Peers),
    Members(Members),
    Office(Office),
    Login(Login),
    Logout(Logout),
    Whoami(Whoami),
    Password(Password),
    Sessions(Sessions),
    Status(Status),
    Doctor(Doctor),
    Ls(Ls),
    Put(Put),
    Get(Get),
    Cat(Cat),
    Find(Find),
    Mkdir(Mkdir),
    Mv(Mv),
    Cp(Cp),
    Rm(Rm),
    Restore(Restore),
    Versions(Versions),
    Lock(Lock),
    Unlock(Unlock),
    Share(Share),
    Unshare(Unshare),
    Shares(Shares),
    Mirror(Mirror),
    Why(Why),
    Sync(Sync),
    Conflicts(Conflicts),
    Watch(Watch),
    Transfers(Transfers),
    Limit(Limit),
    Send(Send),
    Inbox(Inbox),
    Outbox(Outbox),
    Devices(Devices),
    Use(Use),
    Release(Release),
    Request(Request),
    Print(Print),
    Jobs(Jobs),
    Printer(Printer),
    Disc(Disc),
    Space(Space),
    Queue(Queue),
    Cache(Cache),
    Admin(Admin),
    Completions(Completions),
    #[command(hide = true)]
    Generate(Generate),
}

/// Print a completion script for a shell
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium completions bash > ~/.local/share/bash-completion/completions/atrium\n  atrium completions fish > ~/.config/fish/completions/atrium.fish\n\nCompletion of places on the server as well: add `source <(COMPLETE=bash atrium)` to ~/.bashrc."
)]
pub struct Completions {
    /// Which shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Write the documents that are made from the parser
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  atrium generate docs docs/cli.md")]
pub struct Generate {
    #[command(subcommand)]
    pub what: GenerateWhat,
}

/// What to write.
#[derive(Subcommand, Debug)]
pub enum GenerateWhat {
    /// The reference of all commands, as Markdown
    #[command(after_help = "Example:\n  atrium generate docs docs/cli.md")]
    Docs {
        /// Where to; standard output if left out
        file: Option<PathBuf>,
        /// Write nothing; fail if the file differs from what would be written
        #[arg(long, requires = "file")]
        check: bool,
    },
    /// Man pages
    #[command(after_help = "Example:\n  atrium generate man target/man")]
    Man {
        /// Directory; made if missing
        directory: PathBuf,
    },
    /// Completion scripts for bash, zsh and fish
    #[command(after_help = "Example:\n  atrium generate completions target/completions")]
    Completions {
        /// Directory; made if missing
        directory: PathBuf,
    },
}
