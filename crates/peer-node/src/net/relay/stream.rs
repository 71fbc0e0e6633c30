//! One end of a passed-on connection as a stream of bytes.

use super::hub::{Passage, Pipe};
use bytes::{Buf, Bytes};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

/// Bytes copied into one message.
const PIECE: usize = 128 * 1024;

/// Reads what the other end sent, writes to it.
pub(in crate::net) struct RelayStream {
    incoming: mpsc::Receiver<Bytes>,
    rest: Bytes,
    outgoing: PollSender<Bytes>,
    _passage: Arc<Passage>,
}

impl From<Pipe> for RelayStream {
    fn from(pipe: Pipe) -> Self {
        let Pipe { from_other, to_other, passage } = pipe;
        Self { incoming: from_other, rest: Bytes::new(), outgoing: PollSender::new(to_other), _passage: passage }
    }
}

impl AsyncRead for RelayStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.incoming.poll_recv(cx)) {
                Some(bytes) => self.rest = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        let now = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..now]);
        self.rest.advance(now);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RelayStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the relayed connection has ended");
        ready!(self.outgoing.poll_reserve(cx)).map_err(gone)?;
        let now = buf.len().min(PIECE);
        self.outgoing.send_item(Bytes::copy_from_slice(&buf[..now])).map_err(gone)?;
        Poll::Ready(Ok(now))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}
