//! How many pages a document has, for quotas and accounting, and what kind of document it is.
//!
//! The documents come from anybody: every counter is bounded, takes time linear in its input and does not recurse. A
//! document that cannot be counted is none that cannot be printed; it counts as one page until the printer reports more.

pub mod pdf;
pub mod raster;

/// Largest file that is looked into; beyond that nobody counts.
pub const MAX_COUNTED: u64 = 256 << 20;

/// The media type that the first bytes of a document show.
pub fn detect(head: &[u8]) -> Option<&'static str> {
    let early = &head[..head.len().min(1024)];
    if head.starts_with(b"RaS2") {
        Some("image/pwg-raster")
    } else if head.starts_with(b"UNIRAST\0") {
        Some("image/urf")
    } else if head.starts_with(&[0xff, 0xd8, 0xff]) {
        Some("image/jpeg")
    } else if early.windows(5).any(|w| w == b"%PDF-") {
        Some("application/pdf")
    } else if head.starts_with(b"%!") {
        Some("application/postscript")
    } else if head.starts_with(b"\x89PNG\r\n\x1a\n") {
        Some("image/png")
    } else {
        None
    }
}

/// True if a document that begins so can be of this media type; types that this build does not know are believed.
pub fn plausible(format: &str, head: &[u8]) -> bool {
    let known = ["application/pdf", "image/jpeg", "image/pwg-raster", "image/urf"];
    !known.contains(&format) || detect(head) == Some(format)
}

/// Pages of a whole document, if they can be counted.
pub fn count(format: &str, bytes: &[u8]) -> Option<u32> {
    match format {
        "image/jpeg" | "image/png" => Some(1),
        "application/pdf" => pdf::count(bytes),
        "image/pwg-raster" => raster::count_pwg(bytes),
        "image/urf" => raster::count_urf(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_their_first_bytes() {
        assert_eq!(detect(b"%PDF-1.7\n"), Some("application/pdf"));
        assert_eq!(detect(b"\xef\xbb\xbf%PDF-1.4"), Some("application/pdf"));
        assert_eq!(detect(b"UNIRAST\0\0\0\0\x01"), Some("image/urf"));
        assert_eq!(detect(b""), None);
        assert!(!plausible("application/pdf", b"#!/bin/sh") && plausible("text/plain", b"hello"));
    }
}
