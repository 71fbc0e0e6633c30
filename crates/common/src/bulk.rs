//! Bulk bytes: `atrium.v1.TransferService`, and `Fetch` of `atrium.peer.v1.TransferService`, without copying the payload.
//!
//! On the wire this is exactly what the proto files say, so generated stubs in any language can be on the other end.
//! Generated code copies every byte twice: the encoder into its buffer, the decoder out of the frames. Here
//!
//! * a message is sent as a small frame of headers and then the payload [`bytes::Bytes`] as frames of their own
//!   ([`MessageBody`]); payloads up to [`COPY_BYTES`] are copied between the headers, which costs less than a frame;
//! * a message is received as a [`Rope`], the pieces as they came ([`MessageReader`]), and a [`Walker`] finds the fields
//!   without joining them.
//!
//! Receiving code holds no more than one message and one frame of a stream; sending code no more than the limit of its
//! queue. Nothing waits for ever: a stream on which nothing moves for the idle timeout ends with `IDLE_TIMEOUT`.
//!
//! Servers implement [`BulkHandler`] and mount [`BulkServer`] beside the generated services. Clients use [`UploadCall`]
//! and [`download()`]. The choice is explained in `docs/adr/0005-zero-copy-bulk-streams.md`.

mod body;
mod client;
mod download;
mod fetch;
mod message;
mod reader;
mod rope;
mod server;
mod upload;
mod walk;

pub use body::{MessageBody, MessageSender, Side, channel};
pub use client::{DownloadStream, FetchStream, GrpcChannel, UploadCall, download, fetch, upload_chunks};
pub use download::{
    DownloadEncoder, ItemPart, MAX_BLOCK, MAX_DOWNLOAD_MESSAGE, MAX_HEADER_CHUNKS, MAX_PARTS, MIN_BLOCK, Part,
    decode_download, fuzz_download,
};
pub use fetch::{
    FetchEncoder, FetchPart, MAX_FETCH_CHUNKS, MAX_FETCH_MESSAGE, MAX_FETCH_PARTS, decode_fetch, fuzz_fetch,
};
pub use message::{COPY_BYTES, Encoded};
pub use reader::MessageReader;
pub use rope::Rope;
pub use server::{
    BulkHandler, BulkServer, BulkSettings, DownloadSink, UploadStream, respond_error, respond_message, respond_stream,
};
pub use upload::{
    MAX_UPLOAD_CHUNKS, MAX_UPLOAD_DATA, MAX_UPLOAD_MESSAGE, UploadEncoder, UploadMessage, decode_upload, fuzz_upload,
};
pub use walk::{Walker, WireType, fuzz_walk};

use std::time::Duration;

/// The service's full name.
pub const SERVICE: &str = "atrium.v1.TransferService";
/// Path of the upload method.
pub const UPLOAD_PATH: &str = "/atrium.v1.TransferService/UploadChunks";
/// Path of the download method.
pub const DOWNLOAD_PATH: &str = "/atrium.v1.TransferService/Download";
/// Path of the method by which a node gives chunks to another one.
pub const FETCH_PATH: &str = "/atrium.peer.v1.TransferService/Fetch";
/// Nothing may stand still for longer.
pub const IDLE: Duration = Duration::from_secs(60);
/// Bytes that wait between a producer and its connection (one message may be larger): enough for the producer to run ahead,
/// little enough that what waits is still in the processor's cache when it is encrypted, and for hundreds of streams.
pub const QUEUE_BYTES: usize = 512 * 1024;

/// Cuts bytes into pieces whose sizes depend on the content, for fuzzing.
fn cut_for_tests(data: &[u8]) -> Rope {
    let mut rope = Rope::new();
    let mut rest = data;
    while let Some(first) = rest.first() {
        let (piece, more) = rest.split_at((usize::from(*first) % 61 + 1).min(rest.len()));
        rope.push(bytes::Bytes::copy_from_slice(piece));
        rest = more;
    }
    rope
}
