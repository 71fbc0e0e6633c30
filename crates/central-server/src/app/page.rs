//! Pages of lists. A token names the list it belongs to and the last item of the page before; it is opaque to callers.
//!
//! A token gives no rights: whatever it says, the next page is read from the same list under the same checks.

use common::error::{Error, Reason, Result};

/// Items of a page if the caller does not say.
pub const DEFAULT_SIZE: usize = 100;
/// Most items of a page; who asks for more gets as many.
pub const MAX_SIZE: usize = 1_000;
/// Longest position in bytes.
const MAX_POSITION: usize = 1_024;

/// Items of a page for a caller's wish.
pub fn size(wish: u32) -> usize {
    match wish {
        0 => DEFAULT_SIZE,
        n => (n as usize).min(MAX_SIZE),
    }
}

/// Which list, with which filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 8]);

/// The fingerprint of a list.
pub fn fingerprint(list: &str, filters: &[&str]) -> Fingerprint {
    let mut hasher = blake3::Hasher::new_derive_key("atrium 2026 page token");
    for part in std::iter::once(&list).chain(filters) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut out = [0; 8];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    Fingerprint(out)
}

/// Where a page ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken {
    position: Vec<u8>,
}

impl PageToken {
    /// Reads a caller's token; `None` for the first page.
    ///
    /// # Errors
    /// `PAGE_TOKEN_INVALID` for one of another list.
    pub fn read(text: &str, list: Fingerprint) -> Result<Option<Self>> {
        if text.is_empty() {
            return Ok(None);
        }
        let bytes = if text.len() <= 2 * (8 + MAX_POSITION) { unhex(text) } else { None };
        match bytes {
            Some(bytes) if bytes.len() >= 8 && bytes[..8] == list.0 => Ok(Some(Self { position: bytes[8..].to_vec() })),
            _ => Err(invalid()),
        }
    }

    /// The token for a page that ended at this position.
    pub fn at(list: Fingerprint, position: &[u8]) -> String {
        let bytes = list.0.iter().chain(position);
        bytes.map(|b| format!("{b:02x}")).collect()
    }

    /// The token for a page that ended at this number.
    pub fn at_number(list: Fingerprint, number: u64) -> String {
        Self::at(list, &number.to_be_bytes())
    }

    /// The position.
    pub fn position(&self) -> &[u8] {
        &self.position
    }

    /// The position as a number.
    ///
    /// # Errors
    /// `PAGE_TOKEN_INVALID`.
    pub fn number(&self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.position[..].try_into().map_err(|_| invalid())?))
    }

    /// The position as text.
    ///
    /// # Errors
    /// `PAGE_TOKEN_INVALID`.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.position).map_err(|_| invalid())
    }
}

fn invalid() -> Error {
    Error::new(Reason::PageTokenInvalid, "the page token does not belong to this list").with("field", "page_token")
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_fit_only_their_list() {
        let list = fingerprint("users", &["a", "b"]);
        let token = PageToken::at(list, b"anna");
        assert_eq!(PageToken::read(&token, list).unwrap().unwrap().text().unwrap(), "anna");
        assert!(PageToken::read("", list).unwrap().is_none());
        for other in [fingerprint("groups", &["a", "b"]), fingerprint("users", &["ab", ""])] {
            assert!(PageToken::read(&token, other).unwrap_err().is(Reason::PageTokenInvalid));
        }
        for bad in ["x", "00", "ää", &token[1..], &"0".repeat(4000), "+1+1+1+1+1+1+1+1"] {
            assert!(PageToken::read(bad, list).unwrap_err().is(Reason::PageTokenInvalid), "{bad}");
        }
        assert_eq!(PageToken::read(&PageToken::at_number(list, 7), list).unwrap().unwrap().number().unwrap(), 7);
        assert!(PageToken::read(&token, list).unwrap().unwrap().number().is_err());
    }

    #[test]
    fn sizes_have_a_default_and_a_bound() {
        assert_eq!((size(0), size(1), size(1_000), size(5_000)), (100, 1, 1_000, 1_000));
    }
}
