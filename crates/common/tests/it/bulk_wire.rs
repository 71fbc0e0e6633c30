//! The messages are the ones of the proto files: compared with the generated codec in both directions.

use atrium_common::bulk::{
    DownloadEncoder, Encoded, Part, Rope, UploadEncoder, decode_download, decode_upload, fuzz_download, fuzz_upload,
};
use atrium_common::error::{Error, Reason};
use atrium_common::model::{ChunkId, ChunkRef, UploadId};
use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use proto::v1::{self, download_part::Part as WirePart};

/// The message inside of a frame sequence, its prefix checked.
fn content(message: &Encoded) -> Vec<u8> {
    let all: Vec<u8> = message.frames().flat_map(|f| f.to_vec()).collect();
    assert_eq!(all.len(), message.len());
    assert_eq!(all[0], 0);
    assert_eq!(u32::from_be_bytes(all[1..5].try_into().unwrap()) as usize, all.len() - 5);
    all[5..].to_vec()
}

fn cut(data: &[u8], cuts: &[usize]) -> Rope {
    let mut rope = Rope::new();
    let mut rest = Bytes::copy_from_slice(data);
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        rope.push(rest.split_to((*cut).clamp(1, rest.len())));
    }
    rope
}

fn bytes_of(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect()
}

/// Sizes around the limits of copying and of length encodings.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..300, 8190usize..8196, 16380usize..16390, 30_000usize..40_000]
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![usize::MAX]),
        prop::collection::vec(1usize..20_000, 1..5),
        prop::collection::vec(1usize..40, 1..5)
    ]
}

fn entry(name: &str, size: u64) -> v1::Entry {
    v1::Entry {
        path: Some(v1::Path { root: "home".into(), path: name.into() }),
        uid: "u".into(),
        kind: 1,
        size_bytes: size,
        mode: 0o640,
        version: 3,
        manifest_digest: Bytes::from_static(&[9; 32]),
        display_name: name.into(),
        ..Default::default()
    }
}

#[test]
fn large_payloads_are_frames_of_their_own_and_not_copied() {
    let data = Bytes::from(bytes_of(300_000, 1));
    let mut encoder = UploadEncoder::new(UploadId::generate());
    assert!(encoder.push(ChunkId::of(&data), data.clone().into()).is_none());
    let message = encoder.flush().unwrap();
    assert!(message.frames().any(|f| f.as_ptr() == data.as_ptr() && f.len() == data.len()));

    let mut encoder = DownloadEncoder::new(0);
    encoder.data(0, 0, &data.clone().into());
    encoder.flush();
    assert!(encoder.pop().unwrap().frames().any(|f| f.as_ptr() == data.as_ptr()));

    let wire = v1::UploadChunksRequest {
        upload_id: String::new(),
        chunks: vec![v1::ChunkData { digest: ChunkId::of(&data).0.to_vec().into(), data }],
    };
    let wire = Bytes::from(wire.encode_to_vec());
    let decoded = decode_upload(&wire.clone().into()).unwrap();
    let piece = &decoded.chunks[0].1.pieces()[0];
    assert!(wire.as_ptr_range().contains(&piece.as_ptr()), "a slice of what arrived");
}

#[test]
fn uploads_are_packed_within_the_limits() {
    let sizes = [4 << 20, 1, 4 << 20, 1 << 20, 700_000, 4 << 20].into_iter().chain([10; 3000]);
    let mut encoder = UploadEncoder::new(UploadId::generate());
    let mut messages = Vec::new();
    let mut sent = Vec::new();
    for (n, size) in sizes.enumerate() {
        let data = Bytes::from(vec![n as u8; size]);
        let id = ChunkId([n as u8; 32]);
        sent.push((id, size));
        messages.extend(encoder.push(id, data.into()));
    }
    messages.extend(encoder.flush());
    assert!(encoder.flush().is_none());
    let mut got = Vec::new();
    for (n, message) in messages.iter().enumerate() {
        let decoded = decode_upload(&content(message).into()).unwrap();
        assert_eq!(decoded.upload.is_some(), n == 0);
        got.extend(decoded.chunks.iter().map(|(id, data)| (*id, data.len())));
    }
    assert_eq!(got, sent);
    let mut empty = UploadEncoder::new(UploadId::generate());
    assert!(decode_upload(&content(&empty.flush().unwrap()).into()).unwrap().upload.is_some());
}

#[test]
fn what_breaks_the_limits_is_refused() {
    let chunk =
        |digest: usize, data: usize| v1::ChunkData { digest: vec![1; digest].into(), data: vec![2; data].into() };
    let upload = |id: &str, chunks| v1::UploadChunksRequest { upload_id: id.into(), chunks };
    let cases = [
        (upload("not a uuid", vec![]), Reason::UploadInvalid),
        (upload(&"x".repeat(100_000), vec![]), Reason::UploadInvalid),
        (upload("", vec![chunk(31, 5)]), Reason::FieldInvalid),
        (upload("", vec![chunk(33, 5)]), Reason::FieldInvalid),
        (upload("", vec![chunk(32, 0)]), Reason::FieldInvalid),
        (upload("", vec![chunk(32, (4 << 20) + 1)]), Reason::FieldInvalid),
        (upload("", vec![chunk(32, 3 << 20), chunk(32, 2 << 20)]), Reason::MessageTooLarge),
        (upload("", vec![chunk(32, 1); 4097]), Reason::MessageTooLarge),
    ];
    for (message, reason) in cases {
        let error = decode_upload(&message.encode_to_vec().into()).unwrap_err();
        assert!(error.is(reason), "{error:?}");
    }
    let part = |part| v1::DownloadResponse { parts: vec![v1::DownloadPart { item: 0, part: Some(part) }] };
    let data = |offset_bytes, len| part(WirePart::Data(v1::DataBlock { offset_bytes, data: vec![0; len].into() }));
    let chunks = |chunks| part(WirePart::Header(v1::DownloadHeader { entry: None, chunks }));
    let wire_chunk = |digest: usize, length_bytes| v1::Chunk { digest: vec![1; digest].into(), length_bytes };
    let cases = [
        (data(0, 0), Reason::FieldInvalid),
        (data(0, (1 << 20) + 1), Reason::FieldInvalid),
        (data(u64::MAX, 1), Reason::FieldInvalid),
        (chunks(vec![wire_chunk(5, 5)]), Reason::FieldInvalid),
        (chunks(vec![wire_chunk(32, 0)]), Reason::FieldInvalid),
        (chunks(vec![wire_chunk(32, 5 << 20)]), Reason::FieldInvalid),
        (chunks(vec![wire_chunk(32, 1); 65_537]), Reason::MessageTooLarge),
        (v1::DownloadResponse { parts: vec![v1::DownloadPart::default(); 20_000] }, Reason::MessageTooLarge),
        (part(WirePart::Trailer(v1::DownloadTrailer::default())), Reason::FieldInvalid),
    ];
    for (message, reason) in cases {
        let error = decode_download(&message.encode_to_vec().into()).unwrap_err();
        assert!(error.is(reason), "{error:?}");
    }
}

/// Found by fuzzing: two halves of a header, each malformed, that are well-formed together; and a malformed header that is
/// followed by another kind. The generated decoder refuses both.
#[test]
fn each_of_several_kinds_in_a_part_must_be_whole() {
    let halves = [0x0a, 8, 0x12, 1, 0x0a, 8, 0x35, 0x12, 1, 0];
    let hidden = [0x0a, 7, 0x12, 1, 0x0a, 0x1a, 2, 8, 1];
    for bytes in [&halves[..], &hidden[..]] {
        assert!(v1::DownloadResponse::decode(bytes).is_err(), "{bytes:x?}");
        assert!(decode_download(&Bytes::copy_from_slice(bytes).into()).is_err(), "{bytes:x?}");
    }
}

#[test]
fn a_long_manifest_takes_several_headers() {
    let chunks: Vec<ChunkRef> =
        (0..40_000u32).map(|n| ChunkRef { id: ChunkId::of(&n.to_le_bytes()), len: n + 1 }).collect();
    let mut encoder = DownloadEncoder::new(0);
    encoder.header(2, &entry("a", 1), &chunks);
    encoder.flush();
    let mut got = Vec::new();
    let mut entries = 0;
    while let Some(message) = encoder.pop() {
        assert!(message.len() < 2 << 20);
        for part in decode_download(&content(&message).into()).unwrap() {
            let Part::Header { entry, chunks } = part.part else { panic!("only headers were sent") };
            assert_eq!(part.item, 2);
            entries += usize::from(entry.is_some());
            got.extend(chunks);
        }
    }
    assert_eq!((entries, got), (1, chunks));
}

proptest! {
    #[test]
    fn uploads_are_read_by_the_generated_decoder(sizes in prop::collection::vec(size(), 0..6)) {
        let upload = UploadId::generate();
        let mut encoder = UploadEncoder::new(upload);
        let chunks: Vec<_> = sizes.iter().enumerate().map(|(i, n)| Bytes::from(bytes_of(*n, i as u8))).collect();
        for chunk in &chunks {
            prop_assert!(encoder.push(ChunkId::of(chunk), chunk.clone().into()).is_none());
        }
        let message = content(&encoder.flush().unwrap());
        let generated = v1::UploadChunksRequest::decode(&message[..]).unwrap();
        prop_assert_eq!(generated.encode_to_vec(), message, "byte for byte what the generated encoder makes");
        prop_assert_eq!(generated.upload_id, upload.to_string());
        prop_assert_eq!(generated.chunks.into_iter().map(|c| c.data).collect::<Vec<_>>(), chunks);
    }

    #[test]
    fn generated_uploads_are_read(sizes in prop::collection::vec(size(), 0..6), cuts in cuts(), named: bool) {
        let upload = UploadId::generate();
        let chunks: Vec<_> = sizes.iter().enumerate().map(|(i, n)| bytes_of(*n, i as u8)).collect();
        let generated = v1::UploadChunksRequest {
            upload_id: if named { upload.to_string() } else { String::new() },
            chunks: chunks.iter().map(|c| v1::ChunkData { digest: ChunkId::of(c).0.to_vec().into(), data: c.clone().into() }).collect(),
        };
        let decoded = decode_upload(&cut(&generated.encode_to_vec(), &cuts)).unwrap();
        prop_assert_eq!(decoded.upload, named.then_some(upload));
        prop_assert_eq!(decoded.chunks.len(), chunks.len());
        for ((id, data), chunk) in decoded.chunks.iter().zip(&chunks) {
            prop_assert_eq!(*id, ChunkId::of(chunk));
            prop_assert_eq!(&data.to_bytes()[..], &chunk[..]);
        }
    }

    #[test]
    fn downloads_are_read_by_the_generated_decoder_and_ours(
        sizes in prop::collection::vec(size(), 1..5),
        offset in prop_oneof![Just(0u64), any::<u32>().prop_map(u64::from)],
        cuts in cuts(),
    ) {
        let mut encoder = DownloadEncoder::new(MIN_BLOCK_FOR_TESTS);
        let chunk = ChunkRef { id: ChunkId([7; 32]), len: 77 };
        for (i, n) in sizes.iter().enumerate() {
            let item = i as u32;
            encoder.header(item, &entry("ä.txt", *n as u64), &[chunk, chunk]);
            encoder.data(item, offset, &cut(&bytes_of(*n, i as u8), &[10_000]));
            if i % 2 == 0 {
                encoder.trailer(item, &[5; 32], *n as u64);
            } else {
                encoder.failed(item, &Error::new(Reason::ChunkDamaged, "hit"));
            }
        }
        encoder.flush();
        let message = content(&encoder.pop().unwrap());
        prop_assert!(encoder.pop().is_none());
        let generated = v1::DownloadResponse::decode(&message[..]).unwrap();
        prop_assert_eq!(generated.encode_to_vec(), message.clone(), "byte for byte what the generated encoder makes");

        let ours = decode_download(&cut(&message, &cuts)).unwrap();
        prop_assert_eq!(ours.len(), generated.parts.len());
        let mut contents = vec![Vec::new(); sizes.len()];
        for part in ours {
            let content = &mut contents[part.item as usize];
            match part.part {
                Part::Header { entry, chunks } => {
                    prop_assert_eq!(entry.unwrap().display_name, "ä.txt");
                    prop_assert_eq!(chunks, vec![chunk, chunk]);
                }
                Part::Data { offset: at, data } => {
                    prop_assert_eq!(at, offset + content.len() as u64);
                    content.extend_from_slice(&data.to_bytes());
                }
                Part::Trailer { manifest_digest, sent_bytes } => {
                    prop_assert_eq!((manifest_digest, sent_bytes), ([5; 32], content.len() as u64));
                }
                Part::Failed(error) => prop_assert!(error.is(Reason::ChunkDamaged)),
            }
        }
        for (i, n) in sizes.iter().enumerate() {
            prop_assert_eq!(&contents[i], &bytes_of(*n, i as u8));
        }
    }

    /// Valid messages with bytes changed, doubled and cut off: never a panic, and never another reading than the
    /// generated decoder's.
    #[test]
    fn damaged_messages_are_read_as_the_generated_decoder_reads_them(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        keep in any::<prop::sample::Index>(),
        twice: bool,
    ) {
        let mut download = DownloadEncoder::new(0);
        let chunk = ChunkRef { id: ChunkId([7; 32]), len: 77 };
        download.header(1, &entry("x", 5), &[chunk]);
        download.data(1, 3, &Rope::from(vec![1, 2, 3, 4, 5]));
        download.trailer(1, &[1; 32], 5);
        download.failed(2, &Error::new(Reason::Locked, "a"));
        download.flush();
        let mut upload = UploadEncoder::new(UploadId::generate());
        upload.push(ChunkId([1; 32]), Rope::from(vec![1, 2]));
        for message in [content(&download.pop().unwrap()), content(&upload.flush().unwrap())] {
            let mut message = if twice { message.repeat(2) } else { message };
            for (at, value) in &flips {
                let at = at.index(message.len());
                message[at] ^= value;
            }
            message.truncate(keep.index(2 * message.len()) + 1);
            fuzz_download(&message);
            fuzz_upload(&message);
        }
    }

    #[test]
    fn any_bytes_are_survived(data in prop::collection::vec(prop_oneof![0u8..40, any::<u8>()], 0..80)) {
        fuzz_download(&data);
        fuzz_upload(&data);
    }
}

const MIN_BLOCK_FOR_TESTS: usize = 16 * 1024;
