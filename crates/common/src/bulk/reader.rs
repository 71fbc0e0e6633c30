//! Taking gRPC messages off an HTTP body without joining its frames.

use super::rope::Rope;
use super::walk::malformed;
use crate::error::{Error, Reason, Result};
use crate::status::from_status;
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// Pieces smaller than this are copied together, so that a sender of tiny frames cannot make a message of a million
/// pieces, each of which would keep its receive buffer.
const MIN_PIECE: usize = 2048;

/// How slow a sender may be, as multiple of the idle timeout for one whole message.
const MESSAGE_PATIENCE: u32 = 10;

/// Yields the length-prefixed messages of a gRPC body as ropes.
///
/// Memory: at most one message of the given limit and one frame.
#[derive(Debug)]
pub struct MessageReader<B> {
    body: B,
    limit: usize,
    idle: Duration,
    /// Rest of the last frame.
    rest: Bytes,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl<B> MessageReader<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Reads messages of at most `limit` bytes. Nothing may stand still for longer than `idle`, and no message may take
    /// longer than ten times as much.
    pub fn new(body: B, limit: usize, idle: Duration) -> Self {
        Self { body, limit, idle, rest: Bytes::new(), trailers: None, ended: false }
    }

    /// The next message; `None` at the end. After an error the stream is at its end.
    ///
    /// # Errors
    /// `MESSAGE_TOO_LARGE` before anything is buffered, `MESSAGE_MALFORMED` for compressed or unfinished ones,
    /// `IDLE_TIMEOUT`, and what broke the connection. Safe to drop only if the stream is given up.
    pub async fn next(&mut self) -> Result<Option<Rope>> {
        let message = self.read_message().await;
        if message.is_err() {
            self.ended = true;
            self.rest = Bytes::new();
        }
        message
    }

    /// The trailers, once [`MessageReader::next`] has returned `None`.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    async fn read_message(&mut self) -> Result<Option<Rope>> {
        let mut prefix = [0u8; 5];
        let mut have = 0;
        let mut deadline = None;
        while have < prefix.len() {
            if self.rest.is_empty() && !self.fill(deadline).await? {
                return if have == 0 { Ok(None) } else { Err(malformed("the stream ends within a message")) };
            }
            let take = self.rest.len().min(prefix.len() - have);
            self.rest.copy_to_slice(&mut prefix[have..have + take]);
            have += take;
            deadline.get_or_insert_with(|| Instant::now() + self.idle * MESSAGE_PATIENCE);
        }
        match prefix[0] {
            0 => {}
            1 => return Err(malformed("it is compressed, which this stream does not offer")),
            _ => return Err(malformed("its prefix is not one of gRPC")),
        }
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if len > self.limit {
            return Err(Error::new(
                Reason::MessageTooLarge,
                format!("a message of {len} bytes is larger than {} bytes", self.limit),
            ));
        }
        self.read_content(len, deadline).await.map(Some)
    }

    async fn read_content(&mut self, len: usize, deadline: Option<Instant>) -> Result<Rope> {
        let mut message = Rope::new();
        let mut small = BytesMut::new();
        let mut left = len;
        while left > 0 {
            if self.rest.is_empty() && !self.fill(deadline).await? {
                return Err(malformed("the stream ends within a message"));
            }
            let piece = self.rest.split_to(left.min(self.rest.len()));
            left -= piece.len();
            if piece.len() < MIN_PIECE && piece.len() < len {
                small.extend_from_slice(&piece);
            } else {
                message.push(small.split().freeze());
                message.push(piece);
            }
        }
        message.push(small.freeze());
        Ok(message)
    }

    /// Gets the next frame of data; false at the end.
    async fn fill(&mut self, deadline: Option<Instant>) -> Result<bool> {
        while self.rest.is_empty() {
            if self.ended {
                return Ok(false);
            }
            let idle = Instant::now() + self.idle;
            let until = deadline.map_or(idle, |d| d.min(idle));
            let frame = tokio::time::timeout_at(until, self.body.frame()).await.map_err(|_| {
                Error::new(Reason::IdleTimeout, "nothing arrived on the stream for too long")
                    .with("idle_s", self.idle.as_secs())
            })?;
            let Some(frame) = frame else {
                self.ended = true;
                return Ok(false);
            };
            let frame = frame.map_err(|e| from_status(&Status::from_error(e.into())))?;
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    self.ended = true;
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use proptest::prelude::*;

    type TestBody = StreamBody<tokio_stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Status>>>>;

    fn body(frames: Vec<Bytes>) -> TestBody {
        let frames: Vec<_> = frames.into_iter().map(|f| Ok(Frame::data(f))).collect();
        StreamBody::new(tokio_stream::iter(frames))
    }

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for m in messages {
            out.push(0);
            out.extend_from_slice(&(m.len() as u32).to_be_bytes());
            out.extend_from_slice(m);
        }
        out
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    const IDLE: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn what_no_reader_should_buffer_is_refused() {
        let cases: &[(&[u8], Reason)] = &[
            (&[0, 0xff, 0xff, 0xff, 0xff], Reason::MessageTooLarge),
            (&[0, 0, 0, 0, 101], Reason::MessageTooLarge),
            (&[1, 0, 0, 0, 1, 9], Reason::MessageMalformed),
            (&[7, 0, 0, 0, 1, 9], Reason::MessageMalformed),
            (&[0, 0, 0], Reason::MessageMalformed),
            (&[0, 0, 0, 0, 9, 1, 2], Reason::MessageMalformed),
        ];
        for (data, reason) in cases {
            let mut reader = MessageReader::new(body(vec![Bytes::copy_from_slice(data)]), 100, IDLE);
            let error = run(reader.next()).unwrap_err();
            assert!(error.is(*reason), "{data:?}: {error:?}");
            assert!(run(reader.next()).unwrap().is_none(), "ended after an error");
        }
    }

    #[test]
    fn silence_ends_the_stream() {
        let silent = StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, Status>>());
        let mut reader = MessageReader::new(silent, 100, SHORT);
        assert!(run(reader.next()).unwrap_err().is(Reason::IdleTimeout));
    }

    #[test]
    fn a_dripping_sender_cannot_hold_a_message_for_ever() {
        let error = run(async {
            let start = [Bytes::from_static(&[0, 0, 0x0f, 0, 0])];
            let drops = start.into_iter().chain(std::iter::repeat(Bytes::from_static(&[1])));
            let drops = tokio_stream::iter(drops.map(|b| Ok::<_, Status>(Frame::data(b))));
            let drip = tokio_stream::StreamExt::throttle(drops, Duration::from_millis(2));
            MessageReader::new(StreamBody::new(Box::pin(drip)), 1 << 20, SHORT).next().await
        });
        assert!(error.unwrap_err().is(Reason::IdleTimeout));
    }

    #[test]
    fn tiny_frames_do_not_make_many_pieces() {
        let data = framed(&[vec![7; 100_000]]);
        let frames = data.chunks(1).map(Bytes::copy_from_slice).collect();
        let mut reader = MessageReader::new(body(frames), 1 << 20, IDLE);
        let rope = run(reader.next()).unwrap().unwrap();
        assert_eq!((rope.len(), rope.pieces().len()), (100_000, 1));
    }

    #[test]
    fn trailers_are_kept() {
        let mut map = HeaderMap::new();
        map.insert("grpc-status", "0".parse().unwrap());
        let frames: Vec<Result<_, Status>> =
            vec![Ok(Frame::data(Bytes::from(framed(&[vec![1]])))), Ok(Frame::trailers(map))];
        let mut reader = MessageReader::new(StreamBody::new(tokio_stream::iter(frames)), 100, IDLE);
        assert_eq!(run(reader.next()).unwrap().unwrap().len(), 1);
        assert!(run(reader.next()).unwrap().is_none());
        assert_eq!(reader.trailers().unwrap()["grpc-status"], "0");
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_frames_are_cut(
            sizes in prop::collection::vec(0usize..6000, 0..6),
            cuts in prop::collection::vec(1usize..3000, 1..40),
        ) {
            let messages: Vec<Vec<u8>> = sizes.iter().map(|n| (0..*n).map(|i| (i * 7 + n) as u8).collect()).collect();
            let mut data = Bytes::from(framed(&messages));
            let mut frames = Vec::new();
            for cut in cuts.iter().cycle() {
                if data.is_empty() { break; }
                frames.push(data.split_to((*cut).min(data.len())));
            }
            let mut reader = MessageReader::new(body(frames), 6000, IDLE);
            for message in &messages {
                let rope = run(reader.next()).unwrap().unwrap();
                prop_assert_eq!(&rope.to_bytes()[..], &message[..]);
                prop_assert!(rope.pieces().len() <= 2 * rope.len() / MIN_PIECE + 2);
            }
            prop_assert!(run(reader.next()).unwrap().is_none());
        }
    }
}
