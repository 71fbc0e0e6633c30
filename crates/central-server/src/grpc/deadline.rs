//! How long a call may take.
//!
//! A caller's `grpc-timeout` counts for the whole call, streams included. A call that is no stream ends after the
//! server's own limit at the latest. Both end with DEADLINE_EXCEEDED: tonic's own server would say CANCELLED, which
//! clients in other languages take for something else, and would stop counting at the response's headers.

use common::error::{Error, Reason, Result};
use http::HeaderMap;
use std::time::Duration;

/// The header, as in gRPC's HTTP/2 protocol.
const HEADER: &str = "grpc-timeout";

/// The time the caller gives the call, if it says so.
///
/// # Errors
/// `FIELD_INVALID` if the header is not one to eight digits and a unit.
pub fn of(headers: &HeaderMap) -> Result<Option<Duration>> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let wrong = || Error::new(Reason::FieldInvalid, "the header grpc-timeout is malformed").with("field", HEADER);
    let (unit, digits) = value.as_bytes().split_last().ok_or_else(wrong)?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    let number = digits.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
    Ok(Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(wrong()),
    }))
}

/// What a call gets whose time is over.
pub fn exceeded() -> Error {
    Error::new(Reason::DeadlineExceeded, "the call took longer than its deadline")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn with(value: &[u8]) -> Result<Option<Duration>> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_bytes(value).expect("a header value"));
        of(&headers)
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        assert_eq!(of(&HeaderMap::new()).expect("none"), None);
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
            ("2M", Duration::from_secs(120)),
            ("5S", Duration::from_secs(5)),
            ("100m", Duration::from_millis(100)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(with(text.as_bytes()).expect(text), Some(expected));
        }
        for bad in [&b""[..], b"S", b"5", b"123456789S", b"-1S", b"1.5S", b"1s", b"\xff\xff"] {
            assert!(with(bad).expect_err("refused").is(Reason::FieldInvalid), "{bad:?}");
        }
    }
}
