//! Through the agent: reading by its cache, and handing it files that it puts later.

use super::sources::Source;
use crate::connect::Agent;
use crate::output::format::timestamp_ms;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::EntryPath;
use common::status::from_status;
use proto::agent::v1 as agent;
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_stream::wrappers::ReceiverStream;

/// Larger files do not go through the cache: they would push everything else out of it, and they come faster from the
/// server directly, over several connections and without the way through the agent.
pub const CACHED_MAX: u64 = 8 << 20;
/// Data of one message.
const BLOCK: usize = 256 * 1024;
/// Messages that wait between the disk and the agent.
const WAITING: usize = 8;

/// Reads a file through the agent's cache and gives each piece to `sink`.
///
/// # Errors
/// What the agent said, what `sink` said; `IO_FAILED` if fewer or more bytes came than announced.
pub async fn fetch(
    agent: &Agent,
    path: &EntryPath,
    mut sink: impl FnMut(Bytes) -> Result<()>,
) -> Result<agent::FetchHeader> {
    let request = agent::FetchRequest { root: path.root.to_string(), path: path.relative(), cache_only: false };
    let answer = agent.bulk_client().fetch(request).await.map_err(|s| from_status(&s))?;
    let mut stream = answer.into_inner();
    let mut header = None;
    let mut got = 0u64;
    while let Some(message) = stream.message().await.map_err(|s| from_status(&s))? {
        match (message.part, &header) {
            (Some(agent::fetch_response::Part::Header(first)), None) => header = Some(first),
            (Some(agent::fetch_response::Part::Data(data)), Some(_)) => {
                got += data.len() as u64;
                sink(data)?;
            }
            _ => return Err(Error::new(Reason::MessageMalformed, "the agent's answer is out of order")),
        }
    }
    match header {
        Some(header) if header.size_bytes == got => Ok(header),
        Some(header) => {
            Err(Error::new(Reason::IoFailed, format!("only {got} of {} bytes of {path} came", header.size_bytes))
                .why_is("the agent's answer broke off")
                .fix_is("try again"))
        }
        None => Err(Error::new(Reason::MessageMalformed, "the agent's answer is empty")),
    }
}

/// What must be on the server when the agent puts a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expectation {
    /// Nothing.
    pub absent: bool,
    /// This version; 0 means any.
    pub version: u64,
}

/// Hands a file to the agent, which puts it when it can; when this returns, the agent has it safely on disk.
///
/// # Errors
/// What the agent said; `IO_FAILED` if the file cannot be read or changes meanwhile.
pub async fn queue(agent: &Agent, source: &Source, expect: Expectation) -> Result<String> {
    let file = std::fs::File::open(&source.local).map_err(|e| unreadable(&source.local, &e))?;
    let modified_ms = source.modified.and_then(|t: SystemTime| t.duration_since(UNIX_EPOCH).ok());
    let header = agent::QueueUploadHeader {
        root: source.target.root.to_string(),
        path: source.target.relative(),
        size_bytes: source.size,
        modify_time: modified_ms.map(|d| timestamp_ms(u64::try_from(d.as_millis()).unwrap_or(0))),
        mode: source.mode,
        expect_absent: expect.absent,
        expect_version: expect.version,
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(WAITING);
    let size = source.size;
    let reader = tokio::task::spawn_blocking(move || -> Result<u64> {
        let message = |part| agent::QueueUploadRequest { part: Some(part) };
        let gone = |_| Error::new(Reason::Cancelled, "the agent ended the upload");
        sender.blocking_send(message(agent::queue_upload_request::Part::Header(header))).map_err(gone)?;
        // Not a byte more than announced, even if the file grows.
        let mut file = file.take(size);
        let mut sent = 0u64;
        loop {
            let mut block = vec![0u8; BLOCK];
            let n = file.read(&mut block)?;
            if n == 0 {
                return Ok(sent);
            }
            block.truncate(n);
            sent += n as u64;
            let part = agent::queue_upload_request::Part::Data(block.into());
            sender.blocking_send(message(part)).map_err(gone)?;
        }
    });
    let answer = agent.bulk_client().queue_upload(ReceiverStream::new(receiver)).await;
    let sent = reader.await.map_err(|e| Error::internal("the reading thread ended").caused_by(e))?;
    match (answer, sent) {
        (Ok(answer), Ok(sent)) if sent == size => Ok(answer.into_inner().id),
        (Ok(_), Ok(_)) => Err(Error::new(Reason::IoFailed, format!("{} has become shorter", source.local.display()))
            .why_is("somebody changed it while it was read")
            .fix_is("put it again")),
        (Err(status), _) => Err(from_status(&status)),
        (Ok(_), Err(error)) => Err(error),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(Reason::IoFailed, format!("{} cannot be read", path.display()))
        .why_is(error.to_string())
        .fix_is("check the rights of the file")
}
