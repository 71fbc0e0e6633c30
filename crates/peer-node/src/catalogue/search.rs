//! Search over all nodes.

use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right, fold};
use common::status::from_status;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use proto::peer::v1 as wire;
use proto::peer::v1::NodeProblem;
use proto::peer::v1::catalogue_service_client::CatalogueServiceClient;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::access::{Node, unknown_share};
use super::entry::Entry;
use super::index::IndexHandle;
use super::names::{self, ANY, Claim, Standing};
use super::resolve::{self, ASKED, Item, Reading};
use super::{Catalogue, blocking};
use crate::model::ShareId;

/// A part of what a search finds.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Matches, the best of each node first.
    pub items: Vec<Item>,
    /// Nodes that did not answer.
    pub problems: Vec<NodeProblem>,
}

impl Catalogue {
    /// Searches the shares of all nodes at once, for paths that have all of the words. What is found comes node by node;
    /// a node that does not answer in time is a problem, and what is remembered of it is searched instead. At most
    /// `limit` items in all.
    ///
    /// # Errors
    /// FIELD_INVALID if there are no words or too many; PATH_INVALID, NAME_INVALID.
    pub fn find(&self, words: &str, below: &str, limit: usize) -> Result<mpsc::Receiver<Found>> {
        let folded = names::words(words)?;
        let below = names::parse(below)?;
        let (tell, told) = mpsc::channel(8);
        let (this, words) = (self.clone(), words.to_owned());
        self.0.shutdown.spawn_until(async move {
            let mut work = Vec::new();
            for node in this.node_claims() {
                let rest = match names::standing(&node, &below) {
                    Standing::Apart => continue,
                    Standing::Above(_) => Vec::new(),
                    Standing::At(rest) => rest,
                };
                work.push(this.find_at(node, rest, words.clone(), folded.clone(), limit));
            }
            let mut found = stream::iter(work).buffer_unordered(ASKED);
            let mut left = limit;
            while let Some(mut part) = found.next().await {
                part.items.truncate(left);
                left -= part.items.len();
                if tell.send(part).await.is_err() || left == 0 {
                    return;
                }
            }
        });
        Ok(told)
    }

    fn find_at(
        &self,
        node: Claim<Node>,
        rest: Vec<String>,
        words: String,
        folded: Vec<String>,
        limit: usize,
    ) -> BoxFuture<'static, Found> {
        let this = self.clone();
        Box::pin(async move { this.search_node(&node, &rest, &words, &folded, limit).await })
    }

    async fn search_node(
        &self,
        node: &Claim<Node>,
        rest: &[String],
        words: &str,
        folded: &[String],
        limit: usize,
    ) -> Found {
        let mut found = Found::default();
        let (shares, problem) = self.shown_shares(node).await;
        found.problems.extend(problem);
        let device = node.what.device;
        let there = shares.iter().any(|s| matches!(s.what.reading, Reading::There(..)));
        let mut matches: Vec<(u8, Item)> = Vec::new();
        if there {
            match timeout(self.0.settings.patience, self.search_remote(device, words, limit)).await {
                Ok(Ok(all)) => {
                    for (share, entry) in all {
                        let shown = shares.iter().find(|s| s.what.share.record.share() == share);
                        // Only what has the words in it and is in a share that the node has told of.
                        if let (Some(shown), Some(rank)) = (shown, names::rank(&entry.path, folded)) {
                            matches.push((rank, shown.what.entry_item(&entry)));
                        }
                    }
                }
                Ok(Err(error)) => found.problems.push(resolve::problem(&node.shown(), &error)),
                Err(_) => {
                    let error = Error::new(Reason::DeadlineExceeded, "the search took too long there");
                    found.problems.push(resolve::problem(&node.shown(), &error));
                }
            }
        }
        for shown in &shares {
            if let Reading::Here(index) | Reading::Kept(index) = &shown.what.reading
                && shown.what.share.right >= Right::Read
            {
                let (index, folded) = (index.clone(), folded.to_vec());
                let local = blocking(move || search_index(&index, &folded, limit)).await;
                for (rank, entry) in local.map(|l| l.0).unwrap_or_default() {
                    matches.push((rank, shown.what.entry_item(&entry)));
                }
            }
        }
        matches.retain(|(_, item)| is_within(item, node, rest));
        matches.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| names::order(&a.1.address, &b.1.address)));
        matches.truncate(limit);
        found.items = matches.into_iter().map(|m| m.1).collect();
        found
    }

    async fn search_remote(&self, device: DeviceId, words: &str, limit: usize) -> Result<Vec<(ShareId, Entry)>> {
        let mut client = CatalogueServiceClient::new(self.0.peers.channel(device).await?);
        let request = wire::SearchRequest { words: words.to_owned(), limit: limit.clamp(1, 1_000) as u32 };
        let answer = client.search(request).await.map_err(|s| from_status(&s))?.into_inner();
        let read = |found: wire::search_response::Match| {
            let share = ShareId::from_slice(&found.share_id).ok_or_else(unknown_share)?;
            let entry = found.entry.ok_or_else(|| Error::new(Reason::PeerMisbehaves, "a match has no entry"))?;
            Ok((share, Entry::brief_from_wire(entry)?))
        };
        answer.matches.into_iter().take(1_000).map(read).collect()
    }
}

/// Is a match below what remains of an address at its node?
fn is_within(item: &Item, node: &Claim<Node>, rest: &[String]) -> bool {
    let Some(inside) = item.address.strip_prefix(&node.shown()).and_then(|r| r.strip_prefix('/')) else { return false };
    let parts: Vec<&str> = inside.split('/').collect();
    rest.len() <= parts.len()
        && rest
            .iter()
            .zip(parts)
            .enumerate()
            .all(|(at, (typed, part))| typed == ANY || typed == part || (at == 0 && fold(typed) == fold(part)))
}

/// Matches in one index, the best first, and whether there are more.
pub(super) fn search_index(index: &IndexHandle, words: &[String], limit: usize) -> Result<(Vec<(u8, Entry)>, bool)> {
    // So many are looked at to find the best of them.
    let most = limit.saturating_mul(4).clamp(1_000, 20_000);
    let begin = std::time::Instant::now();
    let give_up = || begin.elapsed() > std::time::Duration::from_secs(2);
    let (found, mut more) = index.search(&|path| names::rank(path, words).is_some(), most, &give_up)?;
    let mut ranked: Vec<(u8, Entry)> =
        found.into_iter().filter_map(|e| Some((names::rank(&e.path, words)?, e))).collect();
    ranked.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| names::order(&a.1.path, &b.1.path)));
    more |= ranked.len() > limit;
    ranked.truncate(limit);
    Ok((ranked, more))
}
