//! Offices without a server: who belongs to them, what is shared, what is sent.

use super::Confirm;
use super::place::{Address, yes_no};
use super::value;
use crate::complete::remote_paths;
use clap::{Args, Subcommand, ValueHint};
use clap_complete::engine::ArgValueCompleter;
use std::path::PathBuf;
use std::time::Duration;

/// Found an office without a server; this machine becomes its first member
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium init acme\n  atrium init acme --person anna --unit sales --name anna-pc")]
pub struct Init {
    /// The office's name: 1 to 64 characters without '/'
    pub office: String,
    /// Whose machine this is; your user name if left out
    #[arg(long, value_name = "NAME")]
    pub person: Option<String>,
    /// Its part of the hierarchy, for example sales or sales/berlin
    #[arg(long, value_name = "UNIT")]
    pub unit: Option<String>,
    /// What this machine is called; the host name if left out
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// Make a one-time code by which another machine joins the office
///
/// The code is written to standard output; on standard error stands what to type at the other machine. One wrong guess
/// burns the code. A central server's codes are made with `atrium admin invite`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium invite\n  atrium invite --for bert --may-invite\n  atrium invite --lifetime 1h --unit sales"
)]
pub struct Invite {
    /// The person that the new machine is for; the machine says if left out
    #[arg(long = "for", value_name = "PERSON")]
    pub person: Option<String>,
    /// How long the code lives; at most 1d
    #[arg(long, value_parser = value::duration, default_value = "15m", value_name = "TIME")]
    pub lifetime: Duration,
    /// The new member may invite others
    #[arg(long)]
    pub may_invite: bool,
    /// The new member may change and revoke members and groups
    #[arg(long)]
    pub may_manage: bool,
    /// The machine's part of the hierarchy, for example sales
    #[arg(long, value_name = "UNIT")]
    pub unit: Option<String>,
}

/// Show the machines of the office that are there, and why others cannot be reached
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium peers\n  atrium peers --json")]
pub struct Peers {}

/// List the members of the office, change or revoke them; groups of people
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium members\n  atrium members set bert-pc --may-invite yes\n  atrium members revoke bert-pc --yes\n  atrium members groups"
)]
pub struct Members {
    #[command(subcommand)]
    pub action: Option<MembersAction>,
}

/// What to do with members.
#[derive(Subcommand, Debug)]
pub enum MembersAction {
    /// List all
    #[command(after_help = "Example:\n  atrium members list --json")]
    List,
    /// Change a member's rights, person, unit or name
    #[command(
        after_help = "Examples:\n  atrium members set bert-pc --may-invite yes\n  atrium members set bert-pc --unit sales/berlin"
    )]
    Set(MemberSet),
    /// Cut a machine off for ever; other members notice within seconds
    ///
    /// The machine can come back only with a new key and a new invite.
    #[command(after_help = "Example:\n  atrium members revoke bert-pc --reason \"lost on the train\" --yes")]
    Revoke {
        /// Device id, its first 8 digits or more, or the machine's name
        member: String,
        /// Why, for the others
        #[arg(long, default_value = "", value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        yes: Confirm,
    },
    /// Groups of people, for shares
    #[command(
        after_help = "Examples:\n  atrium members groups\n  atrium members groups set sales --add anna --add bert\n  atrium members groups delete sales --yes"
    )]
    Groups {
        #[command(subcommand)]
        action: Option<PeerGroupsAction>,
    },
}

/// Changes of a member.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct MemberSet {
    /// Device id, its first 8 digits or more, or the machine's name
    pub member: String,
    /// Whether it may invite others
    #[arg(long, value_parser = yes_no, value_name = "yes|no", group = "change")]
    pub may_invite: Option<bool>,
    /// Whether it may change and revoke members and groups
    #[arg(long, value_parser = yes_no, value_name = "yes|no", group = "change")]
    pub may_manage: Option<bool>,
    /// Whose machine it is
    #[arg(long, value_name = "NAME", group = "change")]
    pub person: Option<String>,
    /// Its part of the hierarchy; "" for none
    #[arg(long, value_name = "UNIT", group = "change")]
    pub unit: Option<String>,
    /// What it is called
    #[arg(long, value_name = "NAME", group = "change")]
    pub name: Option<String>,
}

/// Groups of people.
#[derive(Subcommand, Debug)]
pub enum PeerGroupsAction {
    /// List all
    #[command(after_help = "Example:\n  atrium members groups list")]
    List,
    /// Add people to a group and remove them; makes the group if it is new
    #[command(after_help = "Example:\n  atrium members groups set sales --add bert --remove anna", group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// Group name
        name: String,
        /// Person to add; may be given several times
        #[arg(long = "add", value_name = "PERSON", group = "change")]
        add: Vec<String>,
        /// Person to remove; may be given several times
        #[arg(long = "remove", value_name = "PERSON", group = "change")]
        remove: Vec<String>,
    },
    /// Remove a group; its rights stop to count at once
    #[command(after_help = "Example:\n  atrium members groups delete sales --yes")]
    Delete {
        /// Group name
        name: String,
        #[command(flatten)]
        yes: Confirm,
    },
}

/// Share a folder or a device no longer; files stay where they are
///
/// A printer with jobs that wait, and a disk with something in it, are kept unless it is forced.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium unshare ~/Plans\n  atrium unshare plans\n  atrium unshare printers/laser\n  atrium unshare disks/big\n  atrium unshare disks/big --force"
)]
pub struct Unshare {
    /// The share's name or its folder, or a device: printers/NAME, drives/NAME, disks/NAME
    #[arg(value_hint = ValueHint::DirPath)]
    pub share: String,
    /// Of a device: although something is in it; jobs are cancelled, borrowed space is wiped
    #[arg(long)]
    pub force: bool,
    /// Of a disk: do not let second copies of shares leave first, but wipe them, although their owners may have no other
    #[arg(long)]
    pub now: bool,
}

/// List what this machine shares: folders, copies of others' two-way shares, and devices
///
/// With --json, devices are in the field `devices`, as objects of the kind own_device.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium shares\n  atrium shares --json")]
pub struct Shares {}

/// Keep a copy of another machine's two-way share in a folder here
///
/// Changes travel in both directions. What was changed at both ends at the same time is kept twice and listed by `atrium
/// conflicts`. `atrium unshare FOLDER` ends it.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  atrium mirror acme/sales/anna-pc/plans ~/Plans")]
pub struct Mirror {
    /// The share's address
    #[arg(add = ArgValueCompleter::new(remote_paths))]
    pub address: Address,
    /// The folder; made if missing
    #[arg(value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
}

/// Search names in all shares of all machines that you may read, and on the office's server
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium find hall plan\n  atrium find invoice --below acme/sales --limit 20")]
pub struct Find {
    /// Words, all of which must be in the path; letter case does not count
    #[arg(required = true, num_args = 1..)]
    pub words: Vec<String>,
    /// Only below this address
    #[arg(long, value_name = "ADDRESS", add = ArgValueCompleter::new(remote_paths))]
    pub below: Option<Address>,
    /// At most this many; at most 10000
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    pub limit: u32,
    /// Size, time and holders
    #[arg(short, long)]
    pub long: bool,
}

/// Show what this machine is fetching; pause, resume or cancel it
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium transfers\n  atrium transfers watch 0192f3a0\n  atrium transfers pause 0192f3a0"
)]
pub struct Transfers {
    #[command(subcommand)]
    pub action: Option<TransfersAction>,
}

/// What to do with transfers.
#[derive(Subcommand, Debug)]
pub enum TransfersAction {
    /// List those under way and those that ended today
    #[command(after_help = "Example:\n  atrium transfers list --json")]
    List,
    /// Follow one until it ends
    #[command(after_help = "Example:\n  atrium transfers watch 0192f3a0")]
    Watch {
        /// Its id, or a unique beginning of it
        id: String,
    },
    /// Stop one for now
    #[command(after_help = "Example:\n  atrium transfers pause 0192f3a0")]
    Pause {
        /// Its id, or a unique beginning of it
        id: String,
    },
    /// Go on with one
    #[command(after_help = "Example:\n  atrium transfers resume 0192f3a0")]
    Resume {
        /// Its id, or a unique beginning of it
        id: String,
    },
    /// Give one up; files that are whole stay
    #[command(after_help = "Example:\n  atrium transfers cancel 0192f3a0")]
    Cancel {
        /// Its id, or a unique beginning of it
        id: String,
    },
}

/// Show or set how much bandwidth transfers may take
///
/// Without limits they take what is there and give way to this machine's other traffic. Each option that is left out
/// stays as it is.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium limit\n  atrium limit --upload 5MB --download none\n  atrium limit --schedule \"mon-fri 08:00-18:00\"\n  atrium limit --schedule always --yield no"
)]
pub struct Limit {
    /// Most bytes a second to others; none means no limit
    #[arg(long, value_parser = value::size, value_name = "SIZE")]
    pub upload: Option<u64>,
    /// Most bytes a second from others; none means no limit
    #[arg(long, value_parser = value::size, value_name = "SIZE")]
    pub download: Option<u64>,
    /// When the limits hold, for example "mon-fri 08:00-18:00"; always means at all times
    #[arg(long, value_name = "TIMES")]
    pub schedule: Option<String>,
    /// Whether to stay out of the way of this machine's other traffic
    #[arg(long = "yield", value_parser = yes_no, value_name = "yes|no")]
    pub yields: Option<bool>,
}

/// Send a file, a folder or standard input to people of the office
///
/// It arrives even if the other machine is off now. The command returns as soon as the parcel is safe in the outbox.
/// Nothing is ever deleted or replaced at the other end.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium send report.pdf anna\n  atrium send photos/ bert group:sales --note \"from the fair\"\n  atrium send a.pdf b.pdf --to anna --to bert-pc --wait\n  tar c notes | atrium send - anna --name notes.tar"
)]
pub struct Send {
    /// A file, a folder or - for standard input, then the receivers: people, machines, group:NAME or everyone. With --to,
    /// all of them are files and folders
    #[arg(required = true, num_args = 1.., value_name = "FILE|TO", value_hint = ValueHint::AnyPath)]
    pub words: Vec<String>,
    /// Receiver; may be given several times
    #[arg(long, value_name = "WHO")]
    pub to: Vec<String>,
    /// A word to the receivers
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub note: String,
    /// Name of what comes from standard input
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Wait until it has arrived everywhere or was refused
    #[arg(short, long)]
    pub wait: bool,
}

/// Show parcels that came in; take or refuse those that wait, and say who may send without asking
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium inbox\n  atrium inbox accept 0192f3a0 --always\n  atrium inbox refuse 0192f3a0\n  atrium inbox rules --accept anna --ask-above 1GiB"
)]
pub struct Inbox {
    #[command(subcommand)]
    pub action: Option<InboxAction>,
}

/// What to do with the inbox.
#[derive(Subcommand, Debug)]
pub enum InboxAction {
    /// List parcels, newest first
    #[command(after_help = "Example:\n  atrium inbox list --json")]
    List,
    /// Take a parcel that waits
    #[command(
        after_help = "Examples:\n  atrium inbox accept 0192f3a0\n  atrium inbox accept 0192f3a0 --into ~/Downloads"
    )]
    Accept {
        /// Its id, or a unique beginning of it
        id: String,
        /// From now on take everything from this person
        #[arg(long)]
        always: bool,
        /// Put it into this directory instead of the inbox
        #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
        into: Option<PathBuf>,
    },
    /// Refuse a parcel that waits; the sender is told
    #[command(after_help = "Example:\n  atrium inbox refuse 0192f3a0")]
    Refuse {
        /// Its id, or a unique beginning of it
        id: String,
    },
    /// Show or change who may send without asking
    #[command(
        after_help = "Examples:\n  atrium inbox rules\n  atrium inbox rules --accept anna --accept bert\n  atrium inbox rules --accept-all yes --ask-above 1GiB"
    )]
    Rules(InboxRules),
}

/// Changes of the rules.
#[derive(Args, Debug)]
pub struct InboxRules {
    /// Take parcels of this person without asking; may be given several times
    #[arg(long, value_name = "PERSON")]
    pub accept: Vec<String>,
    /// Refuse parcels of this person; may be given several times
    #[arg(long, value_name = "PERSON")]
    pub refuse: Vec<String>,
    /// Ask again before taking parcels of this person; may be given several times
    #[arg(long, value_name = "PERSON")]
    pub ask: Vec<String>,
    /// Whether everyone in the office may send without asking
    #[arg(long, value_parser = yes_no, value_name = "yes|no")]
    pub accept_all: Option<bool>,
    /// Parcels larger than this always ask; none means no limit
    #[arg(long, value_parser = value::size, value_name = "SIZE")]
    pub ask_above: Option<u64>,
    /// Where parcels go
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub directory: Option<PathBuf>,
}

/// Show parcels that were sent and whether they have arrived; take one back
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium outbox\n  atrium outbox cancel 0192f3a0")]
pub struct Outbox {
    #[command(subcommand)]
    pub action: Option<OutboxAction>,
}

/// What to do with the outbox.
#[derive(Subcommand, Debug)]
pub enum OutboxAction {
    /// List parcels, newest first
    #[command(after_help = "Example:\n  atrium outbox list --json")]
    List,
    /// Take a parcel back from those who do not have it yet
    #[command(after_help = "Example:\n  atrium outbox cancel 0192f3a0")]
    Cancel {
        /// Its id, or a unique beginning of it
        id: String,
    },
}

/// Look after an office of peers as a whole
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  atrium office attach files.office.example:7443 --ca office.pem --token-file token")]
pub struct Office {
    #[command(subcommand)]
    pub action: OfficeAction,
}

/// What to do with the office.
#[derive(Subcommand, Debug)]
pub enum OfficeAction {
    /// Give the office a central server; names, members and shares stay
    ///
    /// Every member joins it by itself, with the key that it has, as soon as it is connected with this machine. People sign
    /// in with `atrium login NAME`. What they may see on the server appears beside the shares: `atrium ls acme/server`. Big
    /// files leave the server about once, however many machines fetch them; the machines give each other the rest, also
    /// when the server is away. Giving the same command again goes on where it was interrupted.
    ///
    /// You must be an administrator of that server: sign in there first (`atrium login NAME --server HOST:PORT --ca FILE`),
    /// or give a session token with --token-file.
    #[command(
        after_help = "Examples:\n  atrium login admin --server files.office.example:7443 --ca office.pem\n  atrium office attach files.office.example:7443\n  atrium office attach files.office.example:7443 --ca office.pem --token-file token --json"
    )]
    Attach {
        /// The central server, HOST:PORT
        address: String,
    },
}
