//! Running an office.

use super::PasswordSource;
use super::value::{self, GrantArg, QuotaTarget, RootArg, Whom};
use crate::complete::remote_paths;
use clap::{ArgAction, Args, Subcommand, ValueHint};
use clap_complete::engine::ArgValueCompleter;
use common::model::Role;
use std::path::PathBuf;
use std::time::Duration;

/// Agreement to something that cannot be undone.
#[derive(Args, Debug, Clone, Copy)]
pub struct Confirm {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// Run the office: people, groups, quotas, machines, audit, backup
///
/// On the server machine, root needs no sign-in: the server's own socket is used if there is no agent.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium admin users add anna --display-name \"Anna Berg\"\n  atrium admin invite\n  atrium admin status --json"
)]
pub struct Admin {
    #[command(subcommand)]
    pub area: AdminArea,
}

/// What to look after.
#[derive(Subcommand, Debug)]
pub enum AdminArea {
    /// People
    #[command(after_help = "Examples:\n  atrium admin users list\n  atrium admin users add anna --role admin")]
    Users {
        #[command(subcommand)]
        action: UsersAction,
    },
    /// Groups of people
    #[command(
        after_help = "Examples:\n  atrium admin groups list\n  atrium admin groups add sales --member anna --member bert"
    )]
    Groups {
        #[command(subcommand)]
        action: GroupsAction,
    },
    /// Show or set how much a private or public directory may hold
    #[command(
        after_help = "Examples:\n  atrium admin quota anna\n  atrium admin quota anna 50GiB\n  atrium admin quota public:plans none"
    )]
    Quota {
        /// User name, or public:NAME
        target: QuotaTarget,
        /// New limit, for example 50GiB; none means no limit. Shows the present one if left out
        #[arg(value_parser = value::size)]
        limit: Option<u64>,
    },
    /// Public directories
    #[command(
        after_help = "Examples:\n  atrium admin directories list\n  atrium admin directories add public:plans --grant everyone=read"
    )]
    Directories {
        #[command(subcommand)]
        action: DirectoriesAction,
    },
    /// Make a one-time code by which a machine joins
    #[command(
        after_help = "Examples:\n  atrium admin invite\n  atrium admin invite --for 1h --purpose \"bert's new laptop\""
    )]
    Invite {
        /// How long the code lives; at most 1d
        #[arg(long = "for", value_parser = value::duration, default_value = "15m", value_name = "TIME")]
        lifetime: Duration,
        /// What for, shown in the list
        #[arg(long, default_value = "", value_name = "TEXT")]
        purpose: String,
    },
    /// Codes that live
    #[command(after_help = "Examples:\n  atrium admin invites list\n  atrium admin invites delete 7")]
    Invites {
        #[command(subcommand)]
        action: InvitesAction,
    },
    /// Member machines
    #[command(after_help = "Examples:\n  atrium admin devices list\n  atrium admin devices revoke 3f9a2b7c --yes")]
    Devices {
        #[command(subcommand)]
        action: DevicesAction,
    },
    /// Printers that machines offer to the whole office through the server
    #[command(
        after_help = "Examples:\n  atrium admin printers list\n  atrium admin printers grant laser everyone=write\n  atrium admin printers quota anna --sheets 200"
    )]
    Printers {
        #[command(subcommand)]
        action: PrintersAction,
    },
    /// The audit log
    #[command(after_help = "Examples:\n  atrium admin audit list --newest --limit 20\n  atrium admin audit verify")]
    Audit {
        #[command(subcommand)]
        action: AuditAction,
    },
    /// Write a consistent backup to a directory of the server machine
    ///
    /// Works while people work. Only on the server machine, over the server's own socket. A later backup into the same
    /// directory copies only what is new.
    #[command(after_help = "Example:\n  sudo atrium admin backup /srv/backup/atrium")]
    Backup {
        /// Absolute directory of the server machine; made if missing
        #[arg(value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
    /// Make a data directory of a backup, on the server machine
    ///
    /// Runs `central-server restore`, which is looked for beside this program and in PATH; it also checks everything. Start
    /// the server on the new directory afterwards.
    #[command(
        after_help = "Examples:\n  sudo systemctl stop central-server\n  sudo atrium admin restore /srv/backup/atrium /var/lib/atrium-restored\n  sudo atrium admin restore /srv/backup/atrium /srv/atrium -- --config /etc/atrium/central-server.toml"
    )]
    Restore {
        /// Directory with the backup
        #[arg(value_hint = ValueHint::DirPath)]
        from: PathBuf,
        /// Directory to make
        #[arg(value_hint = ValueHint::DirPath)]
        to: PathBuf,
        /// Further arguments for `central-server restore`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Read everything that is stored and compare it with its digests
    #[command(after_help = "Examples:\n  atrium admin scrub\n  atrium admin scrub --rate 50MiB")]
    Scrub {
        /// Bytes per second to read at most
        #[arg(long, value_parser = value::size, default_value = "none", value_name = "SIZE")]
        rate: u64,
    },
    /// Free the space of content that nothing refers to any more
    #[command(after_help = "Example:\n  atrium admin reclaim")]
    Reclaim,
    /// Sizes, counts and health of the server
    ///
    /// Exit code 11 if something is not as it should be.
    #[command(after_help = "Examples:\n  atrium admin status\n  atrium admin status --json")]
    Status,
}

/// People.
#[derive(Subcommand, Debug)]
pub enum UsersAction {
    /// List all
    #[command(after_help = "Example:\n  atrium admin users list --json")]
    List,
    /// Show one
    #[command(after_help = "Example:\n  atrium admin users show anna")]
    Show {
        /// User name
        name: String,
    },
    /// Add a person with a private directory
    #[command(
        after_help = "Examples:\n  atrium admin users add anna --display-name \"Anna Berg\" --quota 50GiB\n  atrium admin users add bert --password-file bert.txt --role auditor"
    )]
    Add {
        /// User name: lower-case letters, digits, '.', '_' and '-'; never given twice
        name: String,
        /// Name for people
        #[arg(long, default_value = "", value_name = "TEXT")]
        display_name: String,
        /// guest, member, auditor or admin
        #[arg(long, value_parser = value::role, default_value = "member", value_name = "ROLE")]
        role: Role,
        /// Limit of the private directory
        #[arg(long, value_parser = value::size, default_value = "none", value_name = "SIZE")]
        quota: u64,
        #[command(flatten)]
        password: PasswordSource,
        /// No password yet: the person cannot sign in until one is set
        #[arg(long, conflicts_with = "password_file")]
        no_password: bool,
    },
    /// Change name, role, quota, or shut the account
    #[command(
        after_help = "Examples:\n  atrium admin users set anna --role admin\n  atrium admin users set bert --disable"
    )]
    Set(UserSet),
    /// Set a new password
    #[command(after_help = "Example:\n  atrium admin users password anna")]
    Password {
        /// User name
        name: String,
        #[command(flatten)]
        password: PasswordSource,
    },
    /// Disable a person for good; the name is never given again
    #[command(after_help = "Example:\n  atrium admin users delete bert --yes")]
    Delete {
        /// User name
        name: String,
        #[command(flatten)]
        yes: Confirm,
    },
}

/// Changes of a person's account.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct UserSet {
    /// User name
    pub name: String,
    /// Name for people
    #[arg(long, value_name = "TEXT", group = "change")]
    pub display_name: Option<String>,
    /// guest, member, auditor or admin
    #[arg(long, value_parser = value::role, value_name = "ROLE", group = "change")]
    pub role: Option<Role>,
    /// Limit of the private directory
    #[arg(long, value_parser = value::size, value_name = "SIZE", group = "change")]
    pub quota: Option<u64>,
    /// No sign-in any more; sessions end
    #[arg(long, action = ArgAction::SetTrue, conflicts_with = "enable", group = "change")]
    pub disable: bool,
    /// Sign-in again
    #[arg(long, action = ArgAction::SetTrue, group = "change")]
    pub enable: bool,
}

/// Groups.
#[derive(Subcommand, Debug)]
pub enum GroupsAction {
    /// List all
    #[command(after_help = "Example:\n  atrium admin groups list")]
    List,
    /// Show one with its members
    #[command(after_help = "Example:\n  atrium admin groups show sales")]
    Show {
        /// Group name
        name: String,
    },
    /// Add a group
    #[command(after_help = "Example:\n  atrium admin groups add sales --display-name Sales --member anna")]
    Add {
        /// Group name
        name: String,
        /// Name for people
        #[arg(long, default_value = "", value_name = "TEXT")]
        display_name: String,
        /// First member; may be given several times
        #[arg(long = "member", value_name = "USER")]
        members: Vec<String>,
    },
    /// Add and remove members
    #[command(after_help = "Example:\n  atrium admin groups set sales --add bert --remove anna", group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// Group name
        name: String,
        /// User to add; may be given several times
        #[arg(long = "add", value_name = "USER", group = "change")]
        add: Vec<String>,
        /// User to remove; may be given several times
        #[arg(long = "remove", value_name = "USER", group = "change")]
        remove: Vec<String>,
    },
    /// Remove a group; its rights stop to count at once
    #[command(after_help = "Example:\n  atrium admin groups delete sales --yes")]
    Delete {
        /// Group name
        name: String,
        #[command(flatten)]
        yes: Confirm,
    },
}

/// Public directories.
#[derive(Subcommand, Debug)]
pub enum DirectoriesAction {
    /// List all that you may see
    #[command(after_help = "Example:\n  atrium admin directories list")]
    List,
    /// Add a public directory
    #[command(
        after_help = "Example:\n  atrium admin directories add public:plans --grant group:sales=write --grant everyone=read --quota 1TiB"
    )]
    Add {
        /// public:NAME
        directory: RootArg,
        /// WHO=RIGHT, for example anna=manage; may be given several times
        #[arg(long = "grant", value_name = "WHO=RIGHT")]
        grants: Vec<GrantArg>,
        /// Limit
        #[arg(long, value_parser = value::size, default_value = "none", value_name = "SIZE")]
        quota: u64,
        /// Let names stand side by side that differ only in letter case
        #[arg(long)]
        case_sensitive: bool,
    },
    /// Delete a public directory
    #[command(
        after_help = "Examples:\n  atrium admin directories delete public:plans\n  atrium admin directories delete public:plans --force --yes"
    )]
    Delete {
        /// public:NAME
        #[arg(add = ArgValueCompleter::new(remote_paths))]
        directory: RootArg,
        /// Also with content, old versions and trash, which are gone for good then
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        yes: Confirm,
    },
}

/// Invites.
#[derive(Subcommand, Debug)]
pub enum InvitesAction {
    /// List codes that live, by their public part
    #[command(after_help = "Example:\n  atrium admin invites list")]
    List,
    /// Take a code back
    #[command(after_help = "Example:\n  atrium admin invites delete 7")]
    Delete {
        /// Public part of the code: the number before the first '-'
        nameplate: String,
    },
}

/// Devices.
#[derive(Subcommand, Debug)]
pub enum DevicesAction {
    /// List all
    #[command(after_help = "Example:\n  atrium admin devices list")]
    List,
    /// Cut a machine off at once
    #[command(after_help = "Example:\n  atrium admin devices revoke 3f9a2b7c --yes")]
    Revoke {
        /// Device id, or its first 8 digits or more
        id: String,
        #[command(flatten)]
        yes: Confirm,
    },
}

/// Printers.
#[derive(Subcommand, Debug)]
pub enum PrintersAction {
    /// List all
    #[command(after_help = "Example:\n  atrium admin printers list")]
    List,
    /// List everybody's jobs, the newest first
    #[command(after_help = "Examples:\n  atrium admin printers jobs\n  atrium admin printers jobs laser --ended")]
    Jobs {
        /// Of this printer; of all if left out
        printer: Option<String>,
        /// Ended ones too
        #[arg(long)]
        ended: bool,
    },
    /// Give a right: write to print, manage for all jobs
    #[command(
        after_help = "Examples:\n  atrium admin printers grant laser everyone=write\n  atrium admin printers grant laser anna=manage"
    )]
    Grant {
        /// Name of the printer
        printer: String,
        /// Who may do what: anna=write, group:sales=write, everyone=see
        grant: GrantArg,
    },
    /// Take a right away
    #[command(after_help = "Example:\n  atrium admin printers revoke laser everyone")]
    Revoke {
        /// Name of the printer
        printer: String,
        /// Whose: anna, group:sales, everyone
        whom: Whom,
    },
    /// Forget a printer with its rights; its jobs are canceled
    ///
    /// Its machine offers it anew, with no rights for anybody, unless it is told otherwise there.
    #[command(after_help = "Example:\n  atrium admin printers remove laser --yes")]
    Remove {
        /// Name of the printer
        printer: String,
        #[command(flatten)]
        yes: Confirm,
    },
    /// Give a printer's name and jobs to another machine
    ///
    /// Jobs that the old machine had taken are printed by the new one; they say that they may be printed twice.
    #[command(
        after_help = "Example:\n  atrium admin printers move laser 3f9a2b7c81d04e5f3f9a2b7c81d04e5f3f9a2b7c81d04e5f3f9a2b7c81d04e5f"
    )]
    Move {
        /// Name of the printer
        printer: String,
        /// Device id of the machine, as `atrium admin devices list --json` shows it
        device: String,
        #[command(flatten)]
        yes: Confirm,
    },
    /// Set how much a person may print, or everybody who has no quota of their own
    #[command(
        after_help = "Examples:\n  atrium admin printers quota --sheets 500\n  atrium admin printers quota anna --sheets 50 --period week\n  atrium admin printers quota anna"
    )]
    Quota {
        /// User name; everybody without a quota of their own if left out
        user: Option<String>,
        /// Sheets in a period; 0 means no limit
        #[arg(long, default_value_t = 0, value_name = "N")]
        sheets: u64,
        /// Bytes of documents in a period, for example 1GiB; none means no limit
        #[arg(long = "bytes", value_parser = value::size, default_value = "none", value_name = "SIZE")]
        size: u64,
        /// How long a period is
        #[arg(long, value_enum, default_value_t = value::PrintPeriodArg::Month, value_name = "PERIOD")]
        period: value::PrintPeriodArg,
    },
    /// List quotas
    #[command(after_help = "Example:\n  atrium admin printers quotas")]
    Quotas,
    /// List what people printed
    #[command(
        after_help = "Examples:\n  atrium admin printers accounts\n  atrium admin printers accounts --days 365 --json"
    )]
    Accounts {
        /// So many days, today included
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
        days: u32,
    },
}

/// The audit log.
#[derive(Subcommand, Debug)]
pub enum AuditAction {
    /// List records, oldest first
    #[command(
        after_help = "Examples:\n  atrium admin audit list --newest --limit 20\n  atrium admin audit list --actor user:anna --action login"
    )]
    List {
        /// Only by this one: user:anna, device:ID, local, anonymous
        #[arg(long, default_value = "", value_name = "ACTOR")]
        actor: String,
        /// Only this action, for example login or right.grant
        #[arg(long, default_value = "", value_name = "ACTION")]
        action: String,
        /// Newest first
        #[arg(long)]
        newest: bool,
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Check that no record was changed or taken out
    #[command(after_help = "Example:\n  atrium admin audit verify")]
    Verify,
}
