//! Contents of files to and from the server, by [`common::flow`]: several files at a time, results in order.

use crate::connect::Office;
use crate::progress::Meter;
use common::chunk::Chunker;
use common::error::{Error, Result};
use common::flow::{self, GetOptions, NoProgress, PutOptions};
use common::model::{EntryPath, manifest_digest};
use common::retry::RetryPolicy;
use futures_util::StreamExt;
use proto::v1;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

pub use common::flow::{Expect, GetTreeOptions, PutTreeOptions, TreeSummary};

/// Files under way at a time: enough that small ones share the server's group commits.
const AT_A_TIME: usize = 8;

/// A file to put.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Here.
    pub source: PathBuf,
    /// There.
    pub target: EntryPath,
    /// What must be there.
    pub expect: Expect,
    /// Make missing directories.
    pub make_parents: bool,
    /// Permission bits, if not the file's own.
    pub mode: Option<u32>,
    /// How often to try again.
    pub retry: RetryPolicy,
}

/// A file to get; it replaces what is at the target.
#[derive(Debug, Clone)]
pub struct Download {
    /// There.
    pub source: EntryPath,
    /// Version; 0 is the current one.
    pub version: u64,
    /// Here.
    pub target: PathBuf,
}

/// Puts files. Each has its own result.
pub async fn upload(office: &Office, uploads: &[Upload], meter: &Meter) -> Vec<Result<v1::Entry>> {
    let work = uploads.iter().map(|u| async move {
        let options = PutOptions {
            expect: u.expect,
            make_parents: u.make_parents,
            mode: u.mode,
            retry: u.retry,
            ..PutOptions::default()
        };
        flow::put_file(&office.connection, &u.source, &u.target, &options, &meter.part()).await
    });
    futures_util::stream::iter(work).buffered(AT_A_TIME).collect().await
}

/// Gets files. Each has its own result.
pub async fn download(office: &Office, downloads: &[Download], meter: &Meter) -> Vec<Result<v1::Entry>> {
    let work = downloads.iter().map(|d| async move {
        let options = GetOptions { version: d.version, ..GetOptions::default() };
        flow::get_file(&office.connection, &d.source, &d.target, &options, &meter.part()).await
    });
    futures_util::stream::iter(work).buffered(AT_A_TIME).collect().await
}

/// Puts everything below a directory.
///
/// # Errors
/// What concerns the tree as a whole.
pub async fn upload_tree(
    office: &Office,
    local: &Path,
    target: &EntryPath,
    options: &PutTreeOptions,
    meter: &Meter,
) -> Result<TreeSummary> {
    flow::put_tree(&office.connection, local, target, options, &meter.part()).await
}

/// Gets everything below a directory.
///
/// # Errors
/// What concerns the tree as a whole.
pub async fn download_tree(
    office: &Office,
    source: &EntryPath,
    local: &Path,
    options: &GetTreeOptions,
    meter: &Meter,
) -> Result<TreeSummary> {
    flow::get_tree(&office.connection, source, local, options, &meter.part()).await
}

/// Digest of the manifest that a file's content has. Blocking.
///
/// # Errors
/// It cannot be read.
pub fn content_digest(file: File) -> std::io::Result<[u8; 32]> {
    let chunks = Chunker::new(file).map(|piece| piece.map(|p| p.chunk)).collect::<std::io::Result<Vec<_>>>()?;
    Ok(manifest_digest(&chunks))
}

/// Reads a file from beginning to end and gives each piece to `sink`, every chunk verified before. Goes on where it broke
/// off, in the same version.
///
/// # Errors
/// What the server said, what `sink` said.
pub async fn stream(
    office: &Office,
    path: &EntryPath,
    version: u64,
    sink: impl FnMut(&[u8]) -> Result<()> + Send + Unpin,
) -> Result<()> {
    let options = GetOptions { version, ..GetOptions::default() };
    let mut writer = SinkWriter { sink, failed: None };
    let result = flow::read_file(&office.connection, path, &options, &mut writer, &NoProgress).await;
    // What the sink said explains more than that writing failed.
    match writer.failed {
        Some(error) => Err(error),
        None => result,
    }
}

/// Gives what is written to a function.
struct SinkWriter<S> {
    sink: S,
    failed: Option<Error>,
}

impl<S: FnMut(&[u8]) -> Result<()> + Unpin> AsyncWrite for SinkWriter<S> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        match (this.sink)(data) {
            Ok(()) => Poll::Ready(Ok(data.len())),
            Err(error) => {
                let text = error.to_string();
                this.failed.get_or_insert(error);
                Poll::Ready(Err(std::io::Error::other(text)))
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
