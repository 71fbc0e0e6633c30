//! Names that people give to offices, machines, units, persons and groups. Checked where they come in, from people and
//! from records alike.

use common::enrol::check_display_name;
use common::error::{Error, Reason, Result};
use common::model::{EntryName, fold};

/// Longest name of an office, person or group, in characters.
const MAX_CHARS: usize = 64;
/// Most segments of a unit.
const MAX_UNIT_SEGMENTS: usize = 8;
/// Longest unit, in bytes.
const MAX_UNIT_BYTES: usize = 255;
/// Means all members where a person could stand.
pub const EVERYONE: &str = "everyone";

fn wrong(field: &str, problem: &str) -> Error {
    Error::new(Reason::FieldInvalid, format!("{field} {problem}")).with("field", field)
}

fn check_name(name: &str, field: &str) -> Result<()> {
    let chars = name.chars().take(MAX_CHARS + 1).count();
    if chars == 0 || chars > MAX_CHARS {
        return Err(wrong(field, "has not 1 to 64 characters"));
    }
    if name.trim() != name || name == "*" || name.contains('~') || EntryName::new(name).is_err() {
        return Err(wrong(field, "has blanks around it, a '/', a '~' or characters that no name may have"));
    }
    Ok(())
}

/// Checks an office's name: 1 to 64 characters that may stand in an address.
///
/// # Errors
/// FIELD_INVALID.
pub fn check_office(name: &str) -> Result<()> {
    check_name(name, "office")
}

/// Checks a machine's name.
///
/// # Errors
/// FIELD_INVALID.
pub fn check_machine(name: &str) -> Result<()> {
    check_display_name(name)?;
    check_name(name, "display_name")
}

/// Checks the name of a person or of a group: also no ':' and not "everyone", so that receivers can be told apart.
///
/// # Errors
/// FIELD_INVALID.
pub fn check_principal(name: &str, field: &str) -> Result<()> {
    check_name(name, field)?;
    if name.contains(':') || fold(name) == EVERYONE {
        return Err(wrong(field, "is \"everyone\" or has a ':'"));
    }
    Ok(())
}

/// Checks a unit: empty, or up to 8 names with '/' between them.
///
/// # Errors
/// FIELD_INVALID.
pub fn check_unit(unit: &str) -> Result<()> {
    if unit.is_empty() {
        return Ok(());
    }
    if unit.len() > MAX_UNIT_BYTES || unit.split('/').count() > MAX_UNIT_SEGMENTS {
        return Err(wrong("unit", "is longer than 255 bytes or has more than 8 parts"));
    }
    unit.split('/').try_for_each(|segment| check_name(segment, "unit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        for bad in ["", " a", "a ", "a/b", "..", "*", "a~1", "a\nb", "\u{202e}gpj", &"x".repeat(65)] {
            assert!(check_office(bad).is_err(), "{bad:?}");
            assert!(check_machine(bad).is_err(), "{bad:?}");
            assert!(check_principal(bad, "person").is_err(), "{bad:?}");
        }
        assert!(check_principal("Everyone", "person").is_err());
        assert!(check_principal("group:x", "person").is_err());
        for good in ["acme", "Müller & Söhne", "anna-pc", "日本"] {
            check_office(good).unwrap();
            check_machine(good).unwrap();
            check_principal(good, "group").unwrap();
        }
    }

    #[test]
    fn units_are_paths_of_names() {
        for good in ["", "sales", "sales/berlin", "a/b/c/d/e/f/g/h"] {
            check_unit(good).unwrap();
        }
        for bad in ["/", "a/", "/a", "a//b", "a/../b", "a/b/c/d/e/f/g/h/i", "*"] {
            assert!(check_unit(bad).is_err(), "{bad:?}");
        }
    }
}
