//! One id per call: in the caller's errors, in the response's metadata and in the log.

use http::HeaderMap;
use std::sync::Arc;
use uuid::Uuid;

/// The header that carries it both ways.
pub const HEADER: &str = "x-request-id";
/// Longest id that is taken over.
const MAX_LEN: usize = 64;

/// The id that the caller chose if it is usable, else a new one. Only letters, digits, '-', '_' and '.' pass, since the
/// id is written to the log and sent back.
pub fn of(headers: &HeaderMap) -> Arc<str> {
    headers
        .get(HEADER)
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=MAX_LEN).contains(&id.len()))
        .filter(|id| id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')))
        .map_or_else(|| Uuid::now_v7().to_string().into(), Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn with(value: &[u8]) -> Arc<str> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_bytes(value).expect("a header value"));
        of(&headers)
    }

    #[test]
    fn a_good_id_is_kept_and_anything_else_replaced() {
        assert_eq!(&*with(b"build-7.2_a"), "build-7.2_a");
        assert_eq!(with(&[b'a'; 64]).len(), 64);
        for bad in [&b""[..], b"a b", b"x\"y", b"\xff", b"a/../b", &[b'a'; 65]] {
            assert!(Uuid::try_parse(&with(bad)).is_ok());
        }
        assert_ne!(of(&HeaderMap::new()), of(&HeaderMap::new()));
    }
}
