//! Inputs to begin with, made by the code that writes what a target reads: a fuzzer alone does not find its way through
//! lengths, marks and digests.

use common::bulk::{Encoded, Rope};

/// Writes the inputs into the directory that `ATRIUM_SEEDS` names, under the digests of what they are; without it, does
/// nothing. A target does this before the fuzzer reads its inputs.
///
/// # Panics
/// If they cannot be written.
pub fn plant(inputs: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(directory) = std::env::var_os("ATRIUM_SEEDS") else { return };
    let directory = std::path::PathBuf::from(directory);
    std::fs::create_dir_all(&directory).expect("a directory for inputs");
    for input in inputs() {
        let name = format!("seed-{}", &blake3::hash(&input).to_hex()[..16]);
        std::fs::write(directory.join(name), input).expect("an input");
    }
}

/// A message of a content stream without the five bytes that gRPC puts before it.
pub fn body(message: &Encoded) -> Vec<u8> {
    let all: Rope = message.frames().cloned().collect();
    all.to_bytes()[5..].to_vec()
}

/// Lines of text.
pub fn texts<const N: usize>(lines: [&str; N]) -> Vec<Vec<u8>> {
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}
