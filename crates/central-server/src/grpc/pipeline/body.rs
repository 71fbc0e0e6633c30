//! Bodies of calls: counted, bounded in time, ended with a status that says why.

use super::{ended_well, insert_id, log, stamp, write_status};
use crate::grpc::auth::StreamGuard;
use crate::grpc::deadline;
use crate::metrics::Metrics;
use bytes::Bytes;
use common::error::{Error, Reason};
use common::status::{code_of, from_status};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status};

/// What belongs to a call from its first to its last byte. Counts the call when it is dropped.
pub(super) struct CallGuard {
    metrics: Arc<Metrics>,
    method: &'static str,
    began: Instant,
    span: tracing::Span,
    pub(super) id: Arc<str>,
    pub(super) deadline: Option<Instant>,
    /// Either side sends a stream: the response takes its time, and its body does work of its own.
    pub(super) streaming: bool,
    /// Ends the stream before its time.
    pub(super) cut: Option<CancellationToken>,
    pub(super) stream: Option<StreamGuard>,
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// How it ended; a call without an end was given up by the caller.
    pub(super) code: Option<Code>,
}

impl CallGuard {
    pub(super) fn new(metrics: Arc<Metrics>, method: &'static str, id: Arc<str>, span: tracing::Span) -> Self {
        Self {
            metrics,
            method,
            began: Instant::now(),
            span,
            id,
            deadline: None,
            streaming: false,
            cut: None,
            stream: None,
            permit: None,
            code: None,
        }
    }

    fn cut_error(&self) -> Error {
        self.stream
            .as_ref()
            .and_then(StreamGuard::why)
            .unwrap_or_else(|| Error::new(Reason::ShuttingDown, "the server is shutting down"))
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.metrics.call_ended(self.method, self.code.unwrap_or(Code::Cancelled), self.began.elapsed());
    }
}

/// The body of a response.
pub struct CallBody {
    /// `None` once it has ended.
    live: Option<Box<Live>>,
}

struct Live {
    inner: tonic::body::Body,
    guard: CallGuard,
    sleep: Option<Pin<Box<Sleep>>>,
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    framing: Framing,
    /// Why it is to end at the next boundary of two messages.
    ending: Option<Error>,
}

impl CallBody {
    /// Nothing.
    pub(super) fn empty() -> Self {
        Self { live: None }
    }

    pub(super) fn new(inner: tonic::body::Body, guard: CallGuard) -> Self {
        if guard.code.is_some() && inner.is_end_stream() {
            return Self::empty();
        }
        // The one message of any other call is there already.
        let until = guard.deadline.filter(|_| guard.streaming);
        let sleep = until.map(|at| Box::pin(tokio::time::sleep_until(at)));
        let cut = guard.cut.clone().map(|token| Box::pin(token.cancelled_owned()));
        let live = Live { inner, guard, sleep, cut, framing: Framing::default(), ending: None };
        Self { live: Some(Box::new(live)) }
    }

    /// The last frame: the error as trailers.
    fn end_with(&mut self, error: Error) -> Frame<Bytes> {
        let mut trailers = HeaderMap::new();
        if let Some(mut live) = self.live.take() {
            live.guard.span.in_scope(|| log(&error));
            live.guard.code = Some(code_of(error.kind()));
            insert_id(&mut trailers, &live.guard.id);
            write_status(&mut trailers, error.under_request(&*live.guard.id));
        }
        Frame::trailers(trailers)
    }
}

impl Live {
    fn poll_ending(&mut self, cx: &mut Context<'_>) {
        if self.ending.is_some() {
            return;
        }
        if self.cut.as_mut().is_some_and(|cut| cut.as_mut().poll(cx).is_ready()) {
            self.ending = Some(self.guard.cut_error());
        } else if self.sleep.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
            self.ending = Some(deadline::exceeded());
        }
    }
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(live) = this.live.as_mut() else { return Poll::Ready(None) };
        let span = live.guard.span.clone();
        // Entered where something may be logged.
        let _entered = live.guard.streaming.then(|| span.enter());
        live.poll_ending(cx);
        if live.framing.at_boundary()
            && let Some(error) = live.ending.take()
        {
            return Poll::Ready(Some(Ok(this.end_with(error))));
        }
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(&mut live.inner).poll_frame(cx)));
        let Ok(polled) = polled else {
            live.guard.panicked();
            return Poll::Ready(Some(Ok(this.end_with(Error::internal("the call ran into a defect")))));
        };
        match ready!(polled) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    live.framing.pass(data);
                    live.guard.metrics.sent(data.len() as u64);
                    return Poll::Ready(Some(Ok(frame)));
                }
                let mut trailers = frame.into_trailers().unwrap_or_default();
                live.guard.code = match ended_well(&trailers) {
                    true => Some(Code::Ok),
                    false => span.in_scope(|| stamp(&mut trailers, &live.guard.id)),
                };
                insert_id(&mut trailers, &live.guard.id);
                this.live = None;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Some(Err(status)) => Poll::Ready(Some(Ok(this.end_with(from_status(&status))))),
            None if live.guard.code.is_some() => {
                this.live = None;
                Poll::Ready(None)
            }
            None => Poll::Ready(Some(Ok(this.end_with(Error::internal("the call ended without an outcome"))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.live.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.live.as_ref().map_or_else(|| SizeHint::with_exact(0), |_| SizeHint::default())
    }
}

impl CallGuard {
    fn panicked(&self) {
        self.metrics.panicked();
    }
}

/// Follows gRPC's message frames (one byte of flags, four of length, then the message), so that a stream is never ended
/// in the middle of one: a client would report the fragment instead of the status.
#[derive(Debug, Default)]
struct Framing {
    header: [u8; 5],
    in_header: usize,
    in_message: u64,
}

impl Framing {
    fn at_boundary(&self) -> bool {
        self.in_header == 0 && self.in_message == 0
    }

    fn pass(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.in_message > 0 {
                let taken = self.in_message.min(data.len() as u64);
                self.in_message -= taken;
                data = &data[taken as usize..];
                continue;
            }
            let taken = data.len().min(5 - self.in_header);
            self.header[self.in_header..self.in_header + taken].copy_from_slice(&data[..taken]);
            self.in_header += taken;
            data = &data[taken..];
            if self.in_header == 5 {
                let [_, length @ ..] = self.header;
                self.in_message = u32::from_be_bytes(length).into();
                self.in_header = 0;
            }
        }
    }
}

/// The body of a request, counted.
pub(super) struct RequestBody<B> {
    inner: B,
    metrics: Arc<Metrics>,
}

impl<B> RequestBody<B> {
    pub(super) fn new(inner: B, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.metrics.received(data.len() as u64);
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn boundaries_are_found_however_the_bytes_are_cut() {
        let mut framing = Framing::default();
        assert!(framing.at_boundary());
        framing.pass(&[0, 0, 0, 0, 3, 1, 2]);
        assert!(!framing.at_boundary());
        framing.pass(&[3]);
        assert!(framing.at_boundary());
        framing.pass(&[0, 0]);
        assert!(!framing.at_boundary());
        framing.pass(&[0, 0, 0]);
        assert!(framing.at_boundary(), "an empty message");
    }

    proptest! {
        #[test]
        fn whole_messages_end_at_a_boundary(
            lengths in prop::collection::vec(0usize..300, 0..8),
            cuts in prop::collection::vec(1usize..50, 1..10),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            for length in lengths {
                stream.push(0);
                stream.extend_from_slice(&(length as u32).to_be_bytes());
                stream.extend(std::iter::repeat_n(7, length));
                ends.push(stream.len());
            }
            let mut framing = Framing::default();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                let next = (at + cut).min(stream.len());
                framing.pass(&stream[at..next]);
                at = next;
                prop_assert_eq!(framing.at_boundary(), ends.contains(&at));
                if at == stream.len() {
                    break;
                }
            }
        }
    }
}
