//! Verbs of an office of peers: they ask this machine's own peer, which does the rest.

pub(super) mod browse;
pub(super) mod conflicts;
pub(super) mod convert;
pub(super) mod fetch;
pub(super) mod join;
pub(super) mod mailbox;
pub(super) mod members;
pub(super) mod office;
mod progress;
pub(super) mod shares;
pub(super) mod state;
pub(super) mod transfers;

use super::Context;
use crate::connect;
use crate::output::schema::Problem;
use crate::peer::{self, Peer};
use common::error::{Error, Kind, Reason, Result};
use proto::peer::v1 as wire;
use std::path::{Path, PathBuf};

impl Context {
    /// This machine's peer.
    ///
    /// # Errors
    /// `PEER_NOT_RUNNING`.
    pub fn peer(&self) -> Result<Peer> {
        peer::peer(&self.global)
    }

    /// Whether there is a peer and nothing that leads to a central server: commands that look at both leave the server
    /// out then.
    pub fn only_peer(&self) -> bool {
        let named = self.global.server.is_some() || self.global.agent.is_some();
        let agent = connect::agent_socket(&self.global).exists();
        !named && !agent && connect::wants_agent(&self.global) && peer::is_there(&self.global)
    }
}

/// A problem that a peer names, as an error.
pub(super) fn error_of(problem: wire::NodeProblem) -> Error {
    let known = Reason::ALL.iter().find(|r| r.word() == problem.reason);
    let kind = known.map_or(Kind::Internal, |r| r.kind());
    Error::remote(kind, problem.reason, problem.message, problem.why, problem.fix)
}

impl From<wire::NodeProblem> for Problem {
    fn from(p: wire::NodeProblem) -> Self {
        Self { reason: p.reason, message: p.message, why: p.why, fix: p.fix }
    }
}

/// As the peer wants it: it does not know the directory in which the command was given.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(std::path::absolute(path)?)
}

/// The same as text.
///
/// # Errors
/// `PATH_INVALID` if the path is not UTF-8, which the contract cannot carry.
pub(super) fn absolute_text(path: &Path) -> Result<String> {
    let path = absolute(path)?;
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(Reason::PathInvalid, format!("{} cannot be named", path.display()))
            .why_is("its name is not UTF-8")
            .fix_is("rename it")
    })
}

/// Tells which machines did not answer.
pub(super) fn warn_of(c: &Context, problems: Vec<wire::NodeProblem>) {
    for p in problems {
        c.out.warn(&crate::output::format::safe(&format!("{}: {}", p.message, p.why)));
    }
}
