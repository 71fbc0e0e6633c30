//! The central server of the office: bringing it in, and what is on it beside the shares.

use super::Parts;
use super::shares::limited;
use crate::catalogue::names;
use crate::hybrid::{Place, ServerFiles, ServerTree, server_address};
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use proto::peer::v1 as peer;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;

type Found = mpsc::Sender<Result<peer::FindResponse, Status>>;

impl Parts {
    pub(super) async fn attach_server(&self, r: peer::AttachServerRequest) -> Result<peer::AttachServerResponse> {
        self.in_office()?;
        let attached = self.hybrid.attach(&r.server, &r.ca_pem, &r.admin_token, &self.network).await?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(peer::AttachServerResponse {
            office: attached.office,
            joined_count: count(attached.joined),
            waiting_count: count(attached.waiting),
        })
    }

    pub(super) async fn sign_in(&self, r: peer::SignInRequest) -> Result<peer::SignInResponse> {
        self.in_office()?;
        let signed_in = self.hybrid.sign_in(r.user, r.password).await?;
        Ok(peer::SignInResponse { user: signed_in.user, expire_time: signed_in.expire_time })
    }

    /// A page of what is on the server, if that is what the address means, or if a list of everything has come to it.
    pub(super) async fn list_server(&self, r: &peer::ListRequest) -> Result<Option<peer::ListResponse>> {
        let (size, token) = (limited(r.page_size), r.page_token.as_str());
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        if let Some(place) = self.hybrid.place(&r.address)? {
            return self.hybrid.list(&place, r.recursive, token, size).await.map(Some);
        }
        let goes_on = r.recursive && self.hybrid.shown_at(&r.address) && self.hybrid.place(token)?.is_some();
        if !goes_on {
            return Ok(None);
        }
        Ok(Some(match self.hybrid.list(&Place::Top, true, token, size).await {
            Ok(page) => page,
            // The shares have been listed; that the server is away does not take that back.
            Err(error) => {
                peer::ListResponse { problems: vec![crate::hybrid::problem(&error)], ..peer::ListResponse::default() }
            }
        }))
    }

    /// Adds the server's directories to a list of the office; everything in them follows at the end of a list of everything.
    pub(super) async fn beside_server(
        &self,
        r: &peer::ListRequest,
        mut page: peer::ListResponse,
    ) -> peer::ListResponse {
        if !self.hybrid.shown_at(&r.address) {
            return page;
        }
        if r.recursive {
            if page.next_page_token.is_empty() {
                page.next_page_token = server_address(&self.office.view()).unwrap_or_default();
            }
            return page;
        }
        let (items, problem) = self.hybrid.top_items().await;
        if r.page_token.is_empty() {
            page.problems.extend(problem);
        }
        merge(&mut page, items, &r.page_token, limited(r.page_size));
        page
    }

    /// Searches the server too, if the search reaches it; true if it reaches nothing else.
    pub(super) fn search_server(
        self: &Arc<Self>,
        r: &peer::FindRequest,
        limit: usize,
        tell: Found,
    ) -> Result<(Option<JoinHandle<()>>, bool)> {
        let place = self.hybrid.place(&r.below)?;
        let only = place.is_some();
        let place = place.or_else(|| self.hybrid.shown_at(&r.below).then_some(Place::Top));
        let words = names::words(&r.words)?;
        let Some(place) = place else { return Ok((None, false)) };
        let parts = self.clone();
        let search = tokio::spawn(async move {
            let (items, problem) = parts.hybrid.find(&words, &place, limit).await;
            let found = peer::FindResponse { items, problems: problem.into_iter().collect() };
            // Nobody listens any more, or this is the end.
            let _ = tell.send(Ok(found)).await;
        });
        Ok((Some(search), only))
    }

    /// What an address on the server brings, if it is one.
    pub(super) async fn server_tree(&self, address: &str) -> Result<Option<ServerTree>> {
        let Some(place) = self.hybrid.place(address)? else { return Ok(None) };
        self.hybrid.tree(&place, &self.network.neighbours()).await.map(Some)
    }

    /// The only file of a tree, with those who may have it.
    pub(super) fn only_file(tree: ServerTree) -> Result<(ServerFiles, Vec<DeviceId>)> {
        let ServerTree { address, is_file, groups, sources, .. } = tree;
        match groups.into_iter().next().filter(|_| is_file) {
            Some(group) => Ok((group, sources)),
            None => Err(Error::new(Reason::IsADirectory, format!("{address} is no file"))
                .fix_is(format!("look into it: atrium ls {address}"))),
        }
    }
}

/// Puts more items into a page in their order; the page stays as long as it may be.
fn merge(page: &mut peer::ListResponse, more: Vec<peer::Item>, after: &str, limit: usize) {
    let ends = (!page.next_page_token.is_empty()).then(|| page.next_page_token.clone());
    let fits = |address: &str| {
        (after.is_empty() || names::order(address, after).is_gt())
            && ends.as_ref().is_none_or(|end| names::order(address, end).is_le())
    };
    page.items.extend(more.into_iter().filter(|i| fits(&i.address)));
    page.items.sort_by(|a, b| names::order(&a.address, &b.address));
    if page.items.len() > limit {
        page.items.truncate(limit);
        page.next_page_token = page.items.last().map(|i| i.address.clone()).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(address: &str) -> peer::Item {
        peer::Item { address: address.to_owned(), ..peer::Item::default() }
    }

    #[test]
    fn pages_of_two_lists_have_everything_once_and_in_order() {
        let nodes: Vec<String> = ["acme/anna", "acme/bert", "acme/tom", "acme/zoe"].map(str::to_owned).to_vec();
        let server = ["acme/server/home", "acme/server/public/a", "acme/server/public/b"];
        for limit in 1..9 {
            let (mut all, mut token) = (Vec::new(), String::new());
            loop {
                let rest: Vec<&String> = nodes.iter().filter(|n| token.is_empty() || **n > token).collect();
                let shown: Vec<peer::Item> = rest.iter().take(limit).map(|n| item(n)).collect();
                let next = if rest.len() > limit { shown.last().unwrap().address.clone() } else { String::new() };
                let mut page = peer::ListResponse { items: shown, next_page_token: next, problems: Vec::new() };
                merge(&mut page, server.map(item).to_vec(), &token, limit);
                assert!(page.items.len() <= limit);
                all.extend(page.items.into_iter().map(|i| i.address));
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
            let mut expected: Vec<String> = nodes.iter().cloned().chain(server.map(str::to_owned)).collect();
            expected.sort_by(|a, b| names::order(a, b));
            assert_eq!(all, expected, "pages of {limit}");
        }
    }
}
