//! Messages of the contract to values of the model and back. What arrives is checked here, once; inside, a path or a
//! chunk is always valid.
//!
//! Page tokens are not here: who gives them out is the only one who reads them.

use crate::error::{Error, Reason, Result};
use crate::model::{ChunkId, ChunkRef, EntryPath, MAX_CHUNK_BYTES, Right, Role};
use prost_types::Timestamp;
use proto::v1;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 0001-01-01T00:00:00Z, the earliest timestamp of the contract.
pub const MIN_SECONDS: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z, the latest.
pub const MAX_SECONDS: i64 = 253_402_300_799;

/// A path; `field` is how the request calls it.
///
/// # Errors
/// `FIELD_INVALID` if it is not set, `PATH_INVALID`, `NAME_INVALID`.
pub fn path_from(path: Option<&v1::Path>, field: &str) -> Result<EntryPath> {
    let path = path.ok_or_else(|| invalid(field, "is not set"))?;
    EntryPath::new(&path.root, &path.path).map_err(|e| e.with("field", field))
}

/// A path as message.
pub fn path_to(path: &EntryPath) -> v1::Path {
    v1::Path { root: path.root.to_string(), path: path.relative() }
}

/// One chunk of a manifest.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn chunk_from(chunk: &v1::Chunk) -> Result<ChunkRef> {
    let id = ChunkId::from_slice(&chunk.digest).ok_or_else(|| invalid("chunks.digest", "has not 32 bytes"))?;
    match chunk.length_bytes {
        len if len >= 1 && len as usize <= MAX_CHUNK_BYTES => Ok(ChunkRef { id, len }),
        _ => Err(invalid("chunks.length_bytes", "is not 1 to 4,194,304")),
    }
}

/// The chunks of a request, at most so many.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn chunks_from(chunks: &[v1::Chunk], most: usize) -> Result<Vec<ChunkRef>> {
    if chunks.len() > most {
        return Err(invalid("chunks", &format!("has more than {most} entries")));
    }
    chunks.iter().map(chunk_from).collect()
}

/// A chunk of a manifest as message.
pub fn chunk_to(chunk: &ChunkRef) -> v1::Chunk {
    v1::Chunk { digest: bytes::Bytes::copy_from_slice(chunk.id.as_bytes()), length_bytes: chunk.len }
}

/// Chunks as messages.
pub fn chunks_to(chunks: &[ChunkRef]) -> Vec<v1::Chunk> {
    chunks.iter().map(chunk_to).collect()
}

/// A timestamp from milliseconds since 1970. Times after the year 9999 become its last second.
pub fn timestamp_from_ms(ms: u64) -> Timestamp {
    let seconds = i64::try_from(ms / 1000).map_or(MAX_SECONDS, |s| s.min(MAX_SECONDS));
    Timestamp { seconds, nanos: (ms % 1000) as i32 * 1_000_000 }
}

/// The same; none for 0, which stands for a time that is not known or has not come.
pub fn timestamp_if_known(ms: u64) -> Option<Timestamp> {
    (ms > 0).then(|| timestamp_from_ms(ms))
}

/// Milliseconds since 1970, rounded down.
///
/// # Errors
/// `FIELD_INVALID` if it is before 1970, after 9999, or its nanoseconds are out of range.
pub fn ms_from_timestamp(time: &Timestamp, field: &str) -> Result<u64> {
    check_timestamp(time, field)?;
    let seconds = u64::try_from(time.seconds).map_err(|_| invalid(field, "is before 1970"))?;
    Ok(seconds * 1000 + time.nanos as u64 / 1_000_000)
}

/// The range check of the contract: years 1 to 9999, 0 to 999,999,999 nanoseconds.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn check_timestamp(time: &Timestamp, field: &str) -> Result<()> {
    if !(MIN_SECONDS..=MAX_SECONDS).contains(&time.seconds) {
        return Err(invalid(field, "is not between the years 1 and 9999"));
    }
    if !(0..1_000_000_000).contains(&time.nanos) {
        return Err(invalid(field, "has nanoseconds that are not 0 to 999,999,999"));
    }
    Ok(())
}

/// A timestamp from a file's time, to the nanosecond; times outside of the contract's years are brought into them.
pub fn timestamp_from_system(time: SystemTime) -> Timestamp {
    let (seconds, nanos) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |s| -s);
            match before.subsec_nanos() {
                0 => (seconds, 0),
                nanos => (seconds.saturating_sub(1), 1_000_000_000 - nanos),
            }
        }
    };
    // Below 2^30: the cast is exact.
    Timestamp { seconds: seconds.clamp(MIN_SECONDS, MAX_SECONDS), nanos: nanos as i32 }
}

/// A file's time from a timestamp.
///
/// # Errors
/// `FIELD_INVALID` if it is out of the contract's range or this system's.
pub fn system_from_timestamp(time: &Timestamp, field: &str) -> Result<SystemTime> {
    check_timestamp(time, field)?;
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds >= 0 { UNIX_EPOCH.checked_add(seconds) } else { UNIX_EPOCH.checked_sub(seconds) };
    whole
        .and_then(|t| t.checked_add(Duration::from_nanos(time.nanos as u64)))
        .ok_or_else(|| invalid(field, "cannot be kept by this system"))
}

/// A right; 0 and unknown numbers are refused.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn right_from(number: i32, field: &str) -> Result<Right> {
    Right::from_number(number).ok_or_else(|| invalid(field, "is not SEE, READ, WRITE or MANAGE"))
}

/// A right as the wire's enum.
pub fn right_to(right: Right) -> v1::Right {
    match right {
        Right::See => v1::Right::See,
        Right::Read => v1::Right::Read,
        Right::Write => v1::Right::Write,
        Right::Manage => v1::Right::Manage,
    }
}

/// A role; 0 and unknown numbers are refused.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn role_from(number: i32, field: &str) -> Result<Role> {
    Role::from_number(number).ok_or_else(|| invalid(field, "is not GUEST, MEMBER, AUDITOR or ADMIN"))
}

/// A role as the wire's enum.
pub fn role_to(role: Role) -> v1::Role {
    match role {
        Role::Guest => v1::Role::Guest,
        Role::Member => v1::Role::Member,
        Role::Auditor => v1::Role::Auditor,
        Role::Admin => v1::Role::Admin,
    }
}

fn invalid(field: &str, problem: &str) -> Error {
    Error::new(Reason::FieldInvalid, format!("{field} {problem}")).with("field", field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_checked_and_keep_their_text() {
        let message = v1::Path { root: "public/plans".into(), path: "a/b.txt".into() };
        let path = path_from(Some(&message), "path").unwrap();
        assert_eq!(path_to(&path), message);
        assert!(path_from(None, "source").unwrap_err().is(Reason::FieldInvalid));
        let hostile = v1::Path { root: "home".into(), path: "a/../b".into() };
        let error = path_from(Some(&hostile), "source").unwrap_err();
        assert_eq!((error.reason(), error.detail("field")), ("NAME_INVALID", Some("source")));
    }

    #[test]
    fn chunks_are_checked() {
        let good = v1::Chunk { digest: vec![1; 32].into(), length_bytes: 4 << 20 };
        assert_eq!(chunks_to(&chunks_from(&[good.clone(), good.clone()], 2).unwrap()), [good.clone(), good.clone()]);
        assert!(chunks_from(&[good.clone(), good.clone()], 1).unwrap_err().is(Reason::FieldInvalid));
        for bad in [
            v1::Chunk { digest: vec![1; 31].into(), ..good.clone() },
            v1::Chunk { length_bytes: 0, ..good.clone() },
            v1::Chunk { length_bytes: (4 << 20) + 1, ..good },
        ] {
            assert!(chunk_from(&bad).unwrap_err().is(Reason::FieldInvalid));
        }
    }

    #[test]
    fn impossible_times_are_refused_or_brought_into_range() {
        for (seconds, nanos) in [(MIN_SECONDS - 1, 0), (MAX_SECONDS + 1, 0), (0, -1), (0, 1_000_000_000), (i64::MIN, 5)]
        {
            assert!(check_timestamp(&Timestamp { seconds, nanos }, "t").is_err());
            assert!(system_from_timestamp(&Timestamp { seconds, nanos }, "t").is_err());
        }
        assert!(ms_from_timestamp(&Timestamp { seconds: -1, nanos: 0 }, "t").is_err());
        assert_eq!(timestamp_from_ms(u64::MAX).seconds, MAX_SECONDS);
        assert_eq!((timestamp_if_known(0), timestamp_if_known(1)), (None, Some(timestamp_from_ms(1))));
        let far = UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(timestamp_from_system(far).seconds, MAX_SECONDS);
    }

    #[test]
    fn rights_and_roles_keep_their_numbers() {
        for right in [Right::See, Right::Read, Right::Write, Right::Manage] {
            assert_eq!(right_from(right_to(right) as i32, "r").unwrap(), right);
        }
        for role in [Role::Guest, Role::Member, Role::Auditor, Role::Admin] {
            assert_eq!(role_from(role_to(role) as i32, "r").unwrap(), role);
        }
        assert!(right_from(0, "r").is_err() && right_from(5, "r").is_err() && role_from(-1, "r").is_err());
    }

    proptest! {
        #[test]
        fn times_keep_their_value(ms in 0u64..250_000_000_000_000, seconds in MIN_SECONDS..=MAX_SECONDS, nanos in 0..1_000_000_000) {
            prop_assert_eq!(ms_from_timestamp(&timestamp_from_ms(ms), "t").unwrap(), ms);
            let time = Timestamp { seconds, nanos };
            let system = system_from_timestamp(&time, "t").unwrap();
            prop_assert_eq!(timestamp_from_system(system), time);
        }
    }
}
