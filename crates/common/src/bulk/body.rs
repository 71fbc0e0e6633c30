//! Sending messages as an HTTP body: a queue bounded in bytes between a producer and the connection.

use super::message::Encoded;
use crate::error::{Error, Reason, Result};
use crate::status::to_status;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;
use tonic::{Code, Status};

/// Which end of the call a body belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A request: ends without trailers; an error resets the stream.
    Client,
    /// A response: ends with trailers that carry the status.
    Server,
}

/// Makes a sender and the body it feeds. At most `limit` bytes wait in between (one message may be larger). A sender
/// that has waited for `idle` because the other side takes nothing gives up, and what waits is dropped.
pub fn channel(side: Side, limit: usize, idle: Duration) -> (MessageSender, MessageBody) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State { queue: VecDeque::new(), bytes: 0, end: None, reader: None, gone: false }),
        space: Notify::new(),
        limit,
        idle,
    });
    (MessageSender(shared.clone()), MessageBody { shared, frames: VecDeque::new(), side, done: false })
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    space: Notify,
    limit: usize,
    idle: Duration,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Encoded>,
    bytes: usize,
    end: Option<Result<()>>,
    reader: Option<Waker>,
    /// The body was dropped: the call is over.
    gone: bool,
}

/// The producer's end. Dropping it without [`MessageSender::finish`] ends the call with an error.
#[derive(Debug)]
pub struct MessageSender(Arc<Shared>);

impl MessageSender {
    /// Queues a message, waiting for room.
    ///
    /// # Errors
    /// `CANCELLED` if the other side has ended the call, `IDLE_TIMEOUT` if it takes nothing.
    pub async fn send(&mut self, message: Encoded) -> Result<()> {
        let mut message = Some(message);
        loop {
            // One sender and `notify_one`: a notice that comes before the wait is kept.
            if self.offer(&mut message)? {
                return Ok(());
            }
            if tokio::time::timeout(self.0.idle, self.0.space.notified()).await.is_err() {
                let error = || {
                    Error::new(Reason::IdleTimeout, "the other side takes nothing any more")
                        .with("idle_s", self.0.idle.as_secs())
                };
                let mut state = self.0.state.lock();
                state.queue.clear();
                state.bytes = 0;
                state.end = Some(Err(error()));
                return Err(error());
            }
        }
    }

    /// Queues a message from a blocking thread of a runtime, waiting for room.
    ///
    /// # Errors
    /// As [`MessageSender::send`].
    pub fn send_blocking(&mut self, message: Encoded) -> Result<()> {
        let mut message = Some(message);
        if self.offer(&mut message)? {
            return Ok(());
        }
        match message {
            Some(message) => tokio::runtime::Handle::current().block_on(self.send(message)),
            None => Ok(()),
        }
    }

    /// Ends the call: well, or with the status of an error.
    pub fn finish(self, result: Result<()>) {
        self.end(result);
    }

    fn offer(&self, message: &mut Option<Encoded>) -> Result<bool> {
        let mut state = self.0.state.lock();
        if state.gone || state.end.is_some() {
            return Err(Error::new(Reason::Cancelled, "the other side has ended the call"));
        }
        let Some(len) = message.as_ref().map(Encoded::len) else { return Ok(true) };
        if state.bytes > 0 && state.bytes + len > self.0.limit {
            return Ok(false);
        }
        state.bytes += len;
        state.queue.extend(message.take());
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
        Ok(true)
    }

    fn end(&self, result: Result<()>) {
        let mut state = self.0.state.lock();
        state.end.get_or_insert(result);
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }
}

impl Drop for MessageSender {
    fn drop(&mut self) {
        self.end(Err(Error::internal("the sender of the stream ended without a word")));
    }
}

/// The connection's end: an HTTP body of gRPC messages whose frames are the queued ones, untouched.
#[derive(Debug)]
pub struct MessageBody {
    shared: Arc<Shared>,
    frames: VecDeque<Bytes>,
    side: Side,
    done: bool,
}

impl MessageBody {
    fn take_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<()>>> {
        let mut state = self.shared.state.lock();
        if let Some(message) = state.queue.pop_front() {
            state.bytes -= message.len();
            self.frames = message.frames;
            drop(state);
            self.shared.space.notify_one();
            return Poll::Ready(None);
        }
        match state.end.take() {
            Some(end) => {
                state.end = Some(Ok(()));
                Poll::Ready(Some(end))
            }
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Body for MessageBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            if self.done {
                return Poll::Ready(None);
            }
            let end = match self.take_message(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => continue,
                Poll::Ready(Some(end)) => end,
            };
            self.done = true;
            return match (self.side, end) {
                (Side::Client, Ok(())) => Poll::Ready(None),
                (Side::Client, Err(error)) => Poll::Ready(Some(Err(to_status(&error)))),
                (Side::Server, end) => Poll::Ready(Some(Ok(Frame::trailers(trailers(end))))),
            };
        }
    }
}

impl Drop for MessageBody {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.gone = true;
        state.queue.clear();
        state.bytes = 0;
        drop(state);
        self.shared.space.notify_one();
    }
}

/// The trailers that tell of a result.
pub(super) fn trailers(result: Result<()>) -> HeaderMap {
    let status = match result {
        Ok(()) => Status::new(Code::Ok, ""),
        Err(error) => to_status(&error),
    };
    let mut map = HeaderMap::new();
    if status.add_header(&mut map).is_err() {
        map.insert("grpc-status", http::HeaderValue::from(Code::Internal as i32));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::super::Rope;
    use super::super::message::MessageBuilder;
    use super::*;
    use crate::status::from_headers;
    use http_body_util::BodyExt;

    const IDLE: Duration = Duration::from_secs(60);

    fn message(len: usize) -> Encoded {
        let mut builder = MessageBuilder::new();
        builder.payload(Rope::from(vec![1; len]));
        builder.finish()
    }

    #[tokio::test]
    async fn payloads_pass_untouched_and_a_response_ends_with_its_status() {
        let (mut sender, body) = channel(Side::Server, 1 << 20, IDLE);
        let payload = Bytes::from(vec![3; 20_000]);
        let mut builder = MessageBuilder::new();
        builder.small(b"head");
        builder.payload(payload.clone().into());
        sender.send(builder.finish()).await.unwrap();
        sender.finish(Err(Error::new(Reason::ShuttingDown, "bye")));
        let mut body = Box::pin(body);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 9);
        let sent = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(sent.as_ptr(), payload.as_ptr(), "not copied");
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(from_headers(&trailers).unwrap().code(), Code::Unavailable);
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_full_queue_waits_then_gives_up() {
        let (mut sender, body) = channel(Side::Server, 1000, Duration::from_millis(20));
        sender.send(message(5000)).await.unwrap();
        let error = sender.send(message(10)).await.unwrap_err();
        assert!(error.is(Reason::IdleTimeout));
        assert!(sender.send(message(1)).await.is_err());
        let mut body = Box::pin(body);
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(from_headers(&trailers).unwrap().code(), Code::DeadlineExceeded, "what waited was dropped");
    }

    #[tokio::test]
    async fn a_slow_reader_slows_the_sender_down() {
        let (mut sender, body) = channel(Side::Server, 1000, IDLE);
        let reading = tokio::spawn(async move { body.collect().await.unwrap().to_bytes().len() });
        for _ in 0..100 {
            sender.send(message(700)).await.unwrap();
        }
        sender.finish(Ok(()));
        assert_eq!(reading.await.unwrap(), 100 * 705);
    }

    #[tokio::test]
    async fn a_sender_learns_that_the_call_is_over() {
        let (mut sender, body) = channel(Side::Client, 1000, IDLE);
        drop(body);
        assert!(sender.send(message(10)).await.unwrap_err().is(Reason::Cancelled));
    }

    #[tokio::test]
    async fn a_sender_that_vanishes_is_an_error_not_an_end() {
        let (sender, body) = channel(Side::Server, 1000, IDLE);
        drop(sender);
        let collected = body.collect().await.unwrap();
        assert_eq!(from_headers(collected.trailers().unwrap()).unwrap().code(), Code::Internal);
        let (sender, body) = channel(Side::Client, 1000, IDLE);
        drop(sender);
        assert!(body.collect().await.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn blocking_threads_may_send() {
        let (mut sender, body) = channel(Side::Server, 1000, IDLE);
        let reading = tokio::spawn(async move { body.collect().await.unwrap().to_bytes().len() });
        tokio::task::spawn_blocking(move || {
            (0..50).for_each(|_| sender.send_blocking(message(700)).unwrap());
            sender.finish(Ok(()));
        })
        .await
        .unwrap();
        assert_eq!(reading.await.unwrap(), 50 * 705);
    }
}
