//! Joining, signing in, looking after the connection.

use clap::{Args, Subcommand, ValueHint};
use std::path::PathBuf;

/// Join this machine to an office with a one-time code
///
/// An administrator makes the code with `atrium admin invite`. It is asked for without showing it; scripts give it in a
/// file. Needs root or the agent's own user.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sudo atrium join files.office.example:7443\n  sudo atrium join 192.0.2.10:7443 --code-file code.txt --name anna-pc"
)]
pub struct Join {
    /// The central server, HOST:PORT; the port may be left out
    pub address: String,
    /// File with the code; - is standard input
    #[arg(long, value_hint = ValueHint::FilePath, value_name = "FILE")]
    pub code_file: Option<PathBuf>,
    /// What this machine is called; the host name if left out
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
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
/// With an agent, the agent keeps the session. With --server, a session file that only you can read is written below
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
