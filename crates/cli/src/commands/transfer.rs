//! `put`, `get` and `cat`.

mod cached;
mod get;
mod put;
mod sources;

pub(super) use get::{cat, get};
pub(super) use put::{empty, failure, finish, put};

use crate::bytes::stream;
use crate::connect::Office;
use common::error::{Error, Reason, Result};
use common::flow::{Expect, NoProgress, PutOptions, put_file};
use common::model::{EntryName, EntryPath};

/// Puts a small file into a directory of the server, reads it back and compares: the deep test of `doctor`.
pub(super) async fn write_and_read_back(office: &Office, directory: &EntryPath) -> Result<()> {
    let content: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let local = tempfile::NamedTempFile::new()?;
    std::fs::write(local.path(), &content)?;
    let target = directory.child(EntryName::new("test")?);
    let options = PutOptions { expect: Expect::Absent, ..PutOptions::default() };
    put_file(&office.connection, local.path(), &target, &options, &NoProgress).await?;
    let mut back = Vec::with_capacity(content.len());
    stream(office, &target, 0, |data| {
        back.extend_from_slice(data);
        Ok(())
    })
    .await?;
    if back == content {
        return Ok(());
    }
    Err(Error::new(Reason::ChunkDamaged, "what came back is not what was written")
        .fix_is("look at the server's log and run `atrium admin scrub`"))
}
