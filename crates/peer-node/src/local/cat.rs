//! The content of one file, in order, to whoever asks on this machine.
//!
//! Chunks are asked for in groups, from the owner first, else from other members that may read the share; every chunk is
//! verified before it is given on, and one that is absent or wrong is asked for elsewhere. Nothing is kept on disk. At
//! most three groups are in memory: one being given, one waiting, one being fetched.

use super::Parts;
use crate::catalogue::Resolved;
use crate::model::{Content, Scope};
use common::bulk::fetch;
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef, DeviceId, Right};
use common::status::to_status;
use futures_util::StreamExt;
use proto::peer::v1 as peer;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tonic::Status;

/// Bytes that are asked for at a time.
const GROUP_BYTES: u64 = 8 << 20;
/// Chunks that are.
const GROUP_CHUNKS: usize = 256;
/// Bytes in one answer, as the contract has it.
const ANSWER: usize = 1 << 20;
/// Answers that wait for their reader.
const WAITING: usize = 8;
/// Members that are asked for a chunk.
const ASKED: usize = 16;

type Answers = mpsc::Sender<Result<peer::CatResponse, Status>>;

impl Parts {
    pub(super) async fn cat(
        self: &Arc<Self>,
        address: &str,
    ) -> Result<mpsc::Receiver<Result<peer::CatResponse, Status>>> {
        self.in_office()?;
        if let Some(tree) = self.server_tree(address).await? {
            return self.cat_of_server(tree);
        }
        let resolved = self.catalogue.resolve(address).await?;
        if resolved.entry.as_ref().is_none_or(|e| !e.is_file()) {
            return Err(Error::new(Reason::IsADirectory, format!("{address} is no file"))
                .fix_is(format!("look into it: atrium ls {address}")));
        }
        let (answers, receiver) = mpsc::channel(WAITING);
        if resolved.owner == self.network.me() {
            let path = self.catalogue.local_path(&resolved.record.share(), &resolved.path)?;
            tokio::spawn(async move { tell(&answers, own(path, &answers).await).await });
            return Ok(receiver);
        }
        let tree = self.catalogue.tree(&resolved).await?;
        let content = tree.into_iter().find_map(|file| file.content).ok_or_else(|| {
            Error::new(Reason::LocalFileChanged, "the file is being changed at this moment")
                .fix_is("try again in a moment")
        })?;
        let sources = self.sources(&resolved);
        let parts = self.clone();
        tokio::spawn(async move {
            let scope = Scope::Share(resolved.record.share());
            tell(&answers, parts.give(&scope, &content, &sources, &answers).await).await;
        });
        Ok(receiver)
    }

    /// A file on the server, from it or from a member that has it.
    fn cat_of_server(
        self: &Arc<Self>,
        tree: crate::hybrid::ServerTree,
    ) -> Result<mpsc::Receiver<Result<peer::CatResponse, Status>>> {
        let (group, sources) = Self::only_file(tree)?;
        let (answers, receiver) = mpsc::channel(WAITING);
        let parts = self.clone();
        tokio::spawn(async move {
            for file in &group.files {
                tell(&answers, parts.give(&group.scope, &file.content, &sources, &answers).await).await;
            }
        });
        Ok(receiver)
    }

    /// Who may have the chunks of a share: its owner, those with a copy, then connected members that may read it.
    pub(super) fn sources(&self, resolved: &Resolved) -> Vec<DeviceId> {
        let (share, me) = (resolved.record.share(), self.network.me());
        let mut sources = vec![resolved.owner];
        let others = self.catalogue.copies_of(&share).into_iter().chain(self.network.neighbours());
        for device in others {
            let may = self.catalogue.right(&share, &device).is_some_and(|r| r >= Right::Read);
            if may && device != me && !sources.contains(&device) {
                sources.push(device);
            }
        }
        sources
    }

    async fn give(&self, scope: &Scope, content: &Content, sources: &[DeviceId], answers: &Answers) -> Result<()> {
        let groups = groups(&content.chunks);
        let fetched = groups.into_iter().map(|group| self.group(scope, group, sources));
        // One ahead of the one that is being given.
        let mut fetched = std::pin::pin!(futures_util::stream::iter(fetched).buffered(2));
        while let Some(chunks) = fetched.next().await {
            for chunk in chunks? {
                for at in (0..chunk.len()).step_by(ANSWER) {
                    let data = chunk.slice(at..chunk.len().min(at + ANSWER));
                    if answers.send(Ok(peer::CatResponse { data })).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// The chunks of a group, in order.
    async fn group(&self, scope: &Scope, group: Vec<ChunkRef>, sources: &[DeviceId]) -> Result<Vec<bytes::Bytes>> {
        let mut found: Vec<Option<bytes::Bytes>> = vec![None; group.len()];
        let mut failure = None;
        for device in sources.iter().take(ASKED) {
            let missing: Vec<usize> = (0..group.len()).filter(|i| found[*i].is_none()).collect();
            if missing.is_empty() {
                break;
            }
            if let Err(error) = self.ask(*device, scope, &group, &missing, &mut found).await {
                tracing::debug!(?device, %error, "a source of a file that is read did not give its chunks");
                failure = Some(error);
            }
        }
        let all: Option<Vec<bytes::Bytes>> = found.into_iter().collect();
        all.ok_or_else(|| {
            failure.unwrap_or_else(|| {
                Error::new(Reason::PeerUnreachable, "nobody who is there has this part of the file")
                    .why_is("the owner is away or has changed the file, and the others do not have all of it")
                    .fix_is("try again when the owner is back")
            })
        })
    }

    /// Asks one device for the missing chunks; what is absent or wrong stays missing.
    async fn ask(
        &self,
        device: DeviceId,
        scope: &Scope,
        group: &[ChunkRef],
        missing: &[usize],
        found: &mut [Option<bytes::Bytes>],
    ) -> Result<()> {
        let link = self.peers.link(device).await?;
        let channel = link.bulk.first().cloned().unwrap_or(link.control);
        let digests: Vec<u8> = missing.iter().flat_map(|i| group[*i].id.as_bytes().iter().copied()).collect();
        let mut stream =
            fetch(channel, &peer::FetchRequest { scope: Some(scope.wire()), digests: digests.into() }).await?;
        let mut coming: Vec<Vec<u8>> = vec![Vec::new(); missing.len()];
        while let Some(parts) = stream.next().await? {
            for part in parts.into_iter().filter(|p| !p.absent) {
                let at = part.index as usize;
                let (Some(buffer), Some(wanted)) = (coming.get_mut(at), missing.get(at).map(|i| &group[*i])) else {
                    continue;
                };
                if part.offset as usize != buffer.len() || buffer.len() + part.data.len() > wanted.len as usize {
                    return Err(Error::new(Reason::ChunkDigestMismatch, "parts of a chunk came out of order"));
                }
                buffer.extend_from_slice(&part.data.to_bytes());
                if buffer.len() == wanted.len as usize {
                    let whole = std::mem::take(buffer);
                    if ChunkId::of(&whole) == wanted.id {
                        found[missing[at]] = Some(whole.into());
                    } else {
                        tracing::warn!(?device, "a chunk from this device was wrong");
                    }
                }
            }
        }
        Ok(())
    }
}

/// Runs of chunks that are asked for together.
fn groups(chunks: &[ChunkRef]) -> Vec<Vec<ChunkRef>> {
    let mut groups: Vec<Vec<ChunkRef>> = Vec::new();
    let mut bytes = 0;
    for chunk in chunks {
        let len = u64::from(chunk.len);
        match groups.last_mut() {
            Some(group) if bytes + len <= GROUP_BYTES && group.len() < GROUP_CHUNKS => {
                bytes += len;
                group.push(*chunk);
            }
            _ => {
                bytes = len;
                groups.push(vec![*chunk]);
            }
        }
    }
    groups
}

/// A file of this machine's own share.
async fn own(path: PathBuf, answers: &Answers) -> Result<()> {
    let mut file = tokio::fs::File::open(path).await?;
    loop {
        let mut buffer = bytes::BytesMut::with_capacity(ANSWER);
        if file.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        if answers.send(Ok(peer::CatResponse { data: buffer.freeze() })).await.is_err() {
            return Ok(());
        }
    }
}

async fn tell(answers: &Answers, result: Result<()>) {
    if let Err(error) = result {
        // A reader that has gone needs no reason.
        let _ = answers.send(Err(to_status(&error))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_bounded_and_keep_the_order() {
        let chunk = |i: u32, len| ChunkRef { id: ChunkId::of(&i.to_le_bytes()), len };
        let large: Vec<ChunkRef> = (0..9).map(|i| chunk(i, 3 << 20)).collect();
        let cut = groups(&large);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2, 2, 1]);
        assert_eq!(cut.concat(), large);
        let small: Vec<ChunkRef> = (0..600).map(|i| chunk(i, 10)).collect();
        assert_eq!(groups(&small).iter().map(Vec::len).collect::<Vec<_>>(), [256, 256, 88]);
        assert!(groups(&[]).is_empty());
    }
}
