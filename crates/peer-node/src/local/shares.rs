//! Sharing folders, listing addresses, searching.

use super::Parts;
use crate::catalogue::{Item, ItemKind, LocalShare, NewShare, ShareChange};
use common::error::{Error, Reason, Result};
use proto::peer::v1 as peer;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

/// Items of a page unless the caller says.
const PAGE: u32 = 1_000;
/// Problems of a share that are told.
const PROBLEMS_MAX: usize = 100;
/// Most items of a page, and of a search.
const PAGE_MAX: u32 = 10_000;

/// The caller's path; the node's own working directory means nothing to it.
pub(super) fn absolute(path: &str, field: &str) -> Result<PathBuf> {
    match Path::new(path).is_absolute() {
        true => Ok(PathBuf::from(path)),
        false => Err(Error::new(Reason::FieldInvalid, format!("{field} is not an absolute path")).with("field", field)),
    }
}

pub(super) fn limited(wanted: u32) -> usize {
    let wanted = if wanted == 0 { PAGE } else { wanted.min(PAGE_MAX) };
    wanted as usize
}

fn timestamp_ns(ns: i64) -> prost_types::Timestamp {
    let (seconds, nanos) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    prost_types::Timestamp { seconds, nanos: nanos as i32 }
}

fn wire_item(i: Item) -> peer::Item {
    use peer::item::Kind;
    let kind = match i.kind {
        ItemKind::Unit => Kind::Unit,
        ItemKind::Node => Kind::Node,
        ItemKind::Share => Kind::Share,
        ItemKind::Directory => Kind::Directory,
        ItemKind::File => Kind::File,
    };
    peer::Item {
        kind: kind as i32,
        address: i.address,
        size_bytes: i.size_bytes,
        modify_time: i.modify_time_ns.map(timestamp_ns),
        right: i.right.map_or(0, |r| r as i32),
        holder_count: i.holder_count,
        online: i.online,
        disputed: i.disputed,
        person: i.person,
        manifest_digest: i
            .manifest_digest
            .map(|d| blake3::Hash::from_bytes(d).to_hex().to_string())
            .unwrap_or_default(),
    }
}

impl Parts {
    pub(super) fn wire_share(&self, s: LocalShare) -> peer::LocalShare {
        let terms = s.record.terms();
        let copy = self.twoway.status(&s.record.share()).unwrap_or_default();
        let problems = s.problems.into_iter().chain(copy.problems).take(PROBLEMS_MAX);
        peer::LocalShare {
            share_id: s.record.share().to_string(),
            name: s.record.name().to_owned(),
            address: s.address,
            path: s.path.to_string_lossy().into_owned(),
            grants: terms.grants.clone(),
            two_way: terms.two_way,
            mirror: s.mirror,
            file_count: s.head.file_count,
            total_bytes: s.head.total_bytes,
            // A scan that has just begun has seen nothing yet, and is none the less one.
            scanning_count: s.scanning.map_or(u64::from(!s.complete), |n| n.max(1)),
            conflict_count: u32::try_from(copy.conflicts).unwrap_or(u32::MAX),
            problems: problems.collect(),
            ignore_rules: terms.ignore_rules.clone(),
            missing_count: copy.missing,
        }
    }

    pub(super) async fn create_share(&self, r: peer::CreateShareRequest) -> Result<peer::LocalShare> {
        let new = NewShare {
            path: absolute(&r.path, "path")?,
            name: r.name,
            grants: r.grants,
            two_way: r.two_way,
            ignore_rules: r.ignore_rules,
        };
        Ok(self.wire_share(self.catalogue.share(new).await?))
    }

    pub(super) async fn update_share(&self, r: peer::UpdateShareRequest) -> Result<peer::LocalShare> {
        let change = ShareChange {
            set_grants: r.set_grants,
            remove_principals: r.remove_principals,
            ignore_rules: r.ignore_rules,
            two_way: r.two_way,
        };
        Ok(self.wire_share(self.catalogue.update(&r.share, change).await?))
    }

    pub(super) async fn remove_share(&self, r: peer::RemoveShareRequest) -> Result<peer::RemoveShareResponse> {
        match self.catalogue.local_share(&r.share)?.mirror {
            true => self.twoway.remove(&r.share).await?,
            false => self.catalogue.unshare(&r.share).await?,
        }
        Ok(peer::RemoveShareResponse {})
    }

    pub(super) fn list_local_shares(&self) -> peer::ListLocalSharesResponse {
        peer::ListLocalSharesResponse {
            shares: self.catalogue.local_shares().into_iter().map(|s| self.wire_share(s)).collect(),
        }
    }

    pub(super) async fn list(&self, r: peer::ListRequest) -> Result<peer::ListResponse> {
        self.in_office()?;
        if let Some(page) = self.list_server(&r).await? {
            return Ok(page);
        }
        let after = (!r.page_token.is_empty()).then_some(r.page_token.as_str());
        let page = self.catalogue.list(&r.address, r.recursive, after, limited(r.page_size)).await?;
        let page = peer::ListResponse {
            items: page.items.into_iter().map(wire_item).collect(),
            next_page_token: page.next.unwrap_or_default(),
            problems: page.problems,
        };
        Ok(self.beside_server(&r, page).await)
    }

    pub(super) fn find_entries(
        self: &Arc<Self>,
        r: &peer::FindRequest,
    ) -> Result<mpsc::Receiver<Result<peer::FindResponse, Status>>> {
        self.in_office()?;
        let (tell, told) = mpsc::channel(8);
        let limit = limited(r.limit);
        let (there, only) = self.search_server(r, limit, tell.clone())?;
        if only {
            return Ok(told);
        }
        let mut found = self.catalogue.find(&r.words, &r.below, limit)?;
        tokio::spawn(async move {
            while let Some(part) = found.recv().await {
                let items = part.items.into_iter().map(wire_item).collect();
                if tell.send(Ok(peer::FindResponse { items, problems: part.problems })).await.is_err() {
                    return;
                }
            }
            // What is on the server comes when it comes.
            if let Some(there) = there {
                let _ = there.await;
            }
        });
        Ok(told)
    }
}
