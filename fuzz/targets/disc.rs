//! File systems of discs. The input is a list of patches of an empty disc: sector, length, bytes.
#![no_main]

use bytes::Bytes;
use device::nbd::source::{BlockSource, check_range};
use device::optical::Disc;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;

struct Memory(Vec<u8>);

impl BlockSource for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, common::error::Result<Bytes>> {
        check_range(offset, len.into(), self.size_bytes()).unwrap();
        let bytes = Bytes::copy_from_slice(&self.0[offset as usize..][..len as usize]);
        Box::pin(async move { Ok(bytes) })
    }
}

/// Both bytes orders of a number, as ISO 9660 writes it.
fn both(number: u32) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

/// A directory record of ISO 9660.
fn record(name: &[u8], sector: u32, len: u32, directory: bool, system: &[u8]) -> Vec<u8> {
    let mut raw = vec![0, 0];
    raw.extend_from_slice(
        &[both(sector), both(len), vec![120, 1, 2, 3, 4, 5, 0, u8::from(directory) * 2, 0, 0]].concat(),
    );
    raw.extend_from_slice(&[1, 0, 0, 1, name.len() as u8]);
    raw.extend_from_slice(name);
    raw.resize(raw.len() + 1 - name.len() % 2, 0);
    raw.extend_from_slice(system);
    raw.resize(raw.len().next_multiple_of(2), 0);
    raw[0] = raw.len() as u8;
    raw
}

/// A volume descriptor of ISO 9660; `escape` is what makes it one of Joliet.
fn volume(kind: u8, escape: &[u8], root: u32) -> Vec<u8> {
    let mut raw = vec![0; 190];
    raw[0] = kind;
    raw[1..7].copy_from_slice(b"CD001\x01");
    raw[88..88 + escape.len()].copy_from_slice(escape);
    raw[128..130].copy_from_slice(&2048_u16.to_le_bytes());
    raw[156..190].copy_from_slice(&record(&[0], root, 2048, true, b""));
    raw
}

/// A descriptor of UDF with these bytes at these places, and its tag.
fn tagged(tag: u16, len: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut raw = vec![0; len];
    for (at, bytes) in parts {
        raw[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    raw[..2].copy_from_slice(&tag.to_le_bytes());
    raw[4] = raw[..16].iter().fold(0, |sum: u8, b| sum.wrapping_add(*b));
    raw
}

/// A patch: what is at a sector.
fn patch(sector: u16, bytes: &[u8]) -> Vec<u8> {
    [&sector.to_be_bytes()[..], &(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// Discs with a directory and a file in it, in each of the formats.
fn inputs() -> Vec<Vec<u8>> {
    let own = b"SP\x07\x01\xbe\xef\x00PX\x0c\x01\xed\x41\0\0\0\0\x41\xed";
    let mut more = b"NM\x0a\x01\x01a file".to_vec();
    more.extend_from_slice(b"CE\x1c\x01");
    more.extend_from_slice(&[both(21), both(100), both(23)].concat());
    let continued = b"NM\x0a\x01\x00 more.SL\x0d\x01\0\x08\0\0\x04some";
    let folder = [
        record(&[0], 20, 2048, true, own),
        record(&[1], 20, 2048, true, b""),
        record(b"A.;1", 23, 5, false, &more),
        record(b"DIR", 20, 2048, true, b"NM\x08\x01\0dir"),
    ]
    .concat();
    let wide = [record(&[0], 22, 2048, true, b""), record(b"\0a\0b", 23, 5, false, b"")].concat();
    let iso = [
        patch(16, &volume(1, b"", 20)),
        patch(17, &volume(2, b"%/E", 22)),
        patch(18, b"\xffCD001\x01"),
        patch(20, &folder),
        patch(21, &[&[0; 100][..], continued].concat()),
        patch(22, &wide),
        patch(23, b"hello"),
    ]
    .concat();
    let number = u32::to_le_bytes;
    // A long descriptor of pieces: length, block, partition 0.
    let long = |len: u32, block: u32| [number(len), number(block), [0; 4], [0; 4]].concat();
    let file = |tag: u16, kind: u8, form: u8, size: u32, list: &[u8]| {
        let (sizes, start) = if tag == 261 { (168, 176) } else { (208, 216) };
        let parts: [(usize, &[u8]); 5] =
            [(27, &[kind]), (34, &[form]), (56, &number(size)), (sizes + 4, &number(list.len() as u32)), (start, list)];
        tagged(tag, start + list.len(), &parts)
    };
    let name = |block: u32, name: &[u8]| {
        let len = (38 + name.len()).next_multiple_of(4);
        tagged(257, len, &[(19, &[name.len() as u8]), (20, &long(2048, block)), (38, name)])
    };
    let names = [name(2, b"\x08a.txt"), name(3, b"\x10\x65\xe5")].concat();
    let map = [1, 6, 1, 0, 0, 0];
    let udf = [
        patch(
            256,
            &tagged(2, 32, &[(16, &number(4 * 2048)), (20, &number(32)), (24, &number(4 * 2048)), (28, &number(32))]),
        ),
        patch(32, &tagged(5, 200, &[(188, &number(300)), (192, &number(100))])),
        patch(33, &tagged(6, 446, &[(212, &number(2048)), (248, &long(2048, 0)), (264, &number(6)), (440, &map)])),
        patch(34, &tagged(8, 16, &[])),
        patch(300, &tagged(256, 416, &[(400, &long(2048, 1))])),
        patch(301, &file(261, 4, 3, names.len() as u32, &names)),
        patch(302, &file(261, 5, 0, 5000, &[number(5000), number(10)].concat())),
        patch(303, &file(266, 5, 1, 3000, &[long(2048, 12), long(952, 14)].concat())),
        patch(310, b"hello"),
    ]
    .concat();
    vec![iso.clone(), udf.clone(), [iso, udf].concat()]
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    let mut image = vec![0; 600 * 2048];
    let mut rest = data;
    while let [sector_high, sector_low, len_high, len_low, tail @ ..] = rest {
        let at = usize::from(u16::from_be_bytes([*sector_high, *sector_low]) % 600) * 2048;
        let len = usize::from(u16::from_be_bytes([*len_high, *len_low]) % 2049).min(tail.len());
        image[at..at + len].copy_from_slice(&tail[..len]);
        rest = &tail[len..];
    }
    let work = async {
        let Ok(mut disc) = Disc::open(Arc::new(Memory(image))).await else { return };
        for tree in disc.trees() {
            disc.use_tree(tree).unwrap();
            for (path, _) in disc.walk("", 1000).await.unwrap_or_default().into_iter().take(100) {
                if let Ok(file) = disc.open_file(&path).await {
                    let len = file.size_bytes().min(4096) as u32;
                    let _ = file.read(file.size_bytes() - u64::from(len), len).await;
                }
            }
        }
    };
    work.now_or_never().expect("nothing waits for a disc in memory");
});
