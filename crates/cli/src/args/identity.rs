//! Joining, signing in, looking after the connection.

use clap::{Args, Subcommand, ValueHint};
use std::path::PathBuf;

/// Join this machine to an office with a one-time code
///
/// Any member of an office of peers makes the code with `atrium invite`; in the same network the code alone is enough, and
/// across the Internet the member's address is named too. For a central server an administrator makes it with `atrium
/// admin invite`; the server's address is named, and root or the agent's own user is needed. Without a code on the command
/// line it is asked for without showing it; scripts give it in a file.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium join 7-amber-lion-canal\n  atrium join 192.0.2.7:7444 7-amber-lion-canal --person bert\n  sudo atrium join files.office.example:7443\n  sudo atrium join 192.0.2.10:7443 --code-file code.txt --name anna-pc"
)]
pub struct Join {
    /// HOST or HOST:PORT of a member or of the central server, and the code, in any order
    #[arg(num_args = 0..=2, value_name = "ADDRESS|CODE")]
    pub words: Vec<String>,
    /// File with the code; - is standard input
    #[arg(long, value_hint = ValueHint::FilePath, value_name = "FILE")]
    pub code_file: Option<PathBuf>,
    /// What this machine is called; the host name if left out
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Of an office of peers: whose machine this is; your user name if left out. The invite may say otherwise
    #[arg(long, value_name = "NAME")]
    pub person: Option<String>,
}

/// Where a password comes from.
#[derive(Args, Debug, Default)]
pub struct PasswordSource {
    /// File with the password; - is standard input. Without it, the password is asked for
    #[arg(long, value_hint = ValueHint::FilePath, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// Sign in
///
/// With an agent, the agent keeps the session. On a machine that has only a peer, the peer keeps it: for the central server
/// of its office, whose directories `atrium ls` shows beside the shares. With --server, a session file that only you can read is written below
/// $XDG_STATE_HOME/atrium.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium login anna\n  atrium login anna --password-file -\n  atrium login anna --server files.office.example:7443 --ca office.pem"
)]
pub struct Login {
    /// Your user name in the office
    pub user: String,
    #[command(flatten)]
    pub password: PasswordSource,
}

/// Sign out
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  atrium logout")]
pub struct Logout {}

/// Tell who you are to the server
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium whoami\n  atrium whoami --json")]
pub struct Whoami {}

/// Change your own password
///
/// All other sessions of yours end.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  atrium password\n  atrium password --old-password-file old.txt --new-password-file new.txt"
)]
pub struct Password {
    /// File with the present password; - is standard input
    #[arg(long, value_hint = ValueHint::FilePath, value_name = "FILE")]
    pub old_password_file: Option<PathBuf>,
    /// File with the new password
    #[arg(long, value_hint = ValueHint::FilePath, value_name = "FILE")]
    pub new_password_file: Option<PathBuf>,
}

/// List sessions, or end one
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  atrium sessions\n  atrium sessions --user bert\n  atrium sessions revoke 0192f3a0-7c1e-7b52-9a43-5d0c9f0b7f11"
)]
pub struct Sessions {
    #[command(subcommand)]
    pub action: Option<SessionsAction>,
    /// Another user's sessions, for administrators
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
}

/// What to do with sessions.
#[derive(Subcommand, Debug)]
pub enum SessionsAction {
    /// End a session
    #[command(after_help = "Example:\n  atrium sessions revoke 0192f3a0-7c1e-7b52-9a43-5d0c9f0b7f11")]
    Revoke {
        /// From the list
        id: String,
    },
}

/// Show whether all is well, and what to do if not
///
/// Exit code 11 if something is not as it should be.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium status\n  atrium status --json")]
pub struct Status {}

/// Test the way to the server, step by step
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  atrium doctor\n  atrium doctor --deep\n  atrium doctor --bundle report.json")]
pub struct Doctor {
    /// Also write a small file to the private directory, read it back and remove it
    #[arg(long)]
    pub deep: bool,
    /// Write a report for support; names of people, machines and addresses are replaced
    #[arg(long, value_hint = ValueHint::FilePath, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
}
