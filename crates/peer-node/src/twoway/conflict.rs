//! Names of conflict copies. A conflict copy is a file of the share like any other, so every copy has it and can end the
//! conflict; its name says what it is: `NAME.conflict-MACHINE-YYYYMMDD-HHMMSS.ext`.
//!
//! Machine and time are those of the version that lost, so that all who keep it give it the same name.

use super::trash::{civil, seconds_of_day};

/// Between the file's name and what was added.
const MARK: &str = ".conflict-";
/// Longest part of a machine's name.
const MACHINE_MAX: usize = 40;
/// Longest name of a file in bytes.
const NAME_MAX: usize = 255;

/// A conflict copy's name, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// The name that both versions had.
    pub name: String,
    /// Machine that made this version.
    pub machine: String,
    /// YYYYMMDD-HHMMSS, and a number where there are several.
    pub stamp: String,
}

/// Stem and extension; the extension has its dot. A name that begins with its only dot has none.
fn parts(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= 17 => name.split_at(at),
        _ => (name, ""),
    }
}

/// Cuts a text at a character, to at most so many bytes.
pub(super) fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn machine_part(machine: &str) -> String {
    let plain = machine.chars().map(|c| if c.is_alphanumeric() || c == '_' { c } else { '-' });
    let plain: String = plain.collect();
    let plain = cut(plain.trim_matches('-'), MACHINE_MAX);
    if plain.is_empty() { "unknown".to_owned() } else { plain.to_owned() }
}

fn with(name: &str, middle: &str) -> String {
    let (stem, ext) = parts(name);
    let stem = cut(stem, NAME_MAX.saturating_sub(middle.len() + ext.len()));
    format!("{stem}{middle}{ext}")
}

fn stamp(modify_time_ns: i64, number: u32) -> String {
    let seconds = modify_time_ns.div_euclid(1_000_000_000);
    let (year, month, day) = civil(seconds);
    let (h, m, s) = seconds_of_day(seconds);
    let number = if number > 1 { format!("-{number}") } else { String::new() };
    format!("{year:04}{month:02}{day:02}-{h:02}{m:02}{s:02}{number}")
}

/// The name under which a version that lost is kept. `number` counts from 1, where there are several of one second.
pub fn name_for(name: &str, machine: &str, modify_time_ns: i64, number: u32) -> String {
    // A conflict copy that loses itself does not get two marks.
    let base = parse(name).map_or_else(|| name.to_owned(), |p| p.name);
    with(&base, &format!("{MARK}{}-{}", machine_part(machine), stamp(modify_time_ns, number)))
}

/// The name of a conflict copy that stays as a file of its own.
pub fn plain_name(parsed: &Parsed, number: u32) -> String {
    let number = if number > 1 { format!("-{number}") } else { String::new() };
    with(&parsed.name, &format!(".{}-{}{number}", parsed.machine, parsed.stamp))
}

/// Takes the name of a conflict copy apart; `None` if it is not one.
pub fn parse(name: &str) -> Option<Parsed> {
    let at = name.rfind(MARK)?;
    let (stem, rest) = (&name[..at], &name[at + MARK.len()..]);
    // Dots are not in machine, date, time and number, so the first one begins the extension.
    let (middle, ext) = rest.find('.').map_or((rest, ""), |dot| rest.split_at(dot));
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    let pieces: Vec<&str> = middle.split('-').collect();
    let is_stamp = |at: usize| {
        at > 0
            && pieces.get(at).is_some_and(|date| digits(date, 8))
            && pieces.get(at + 1).is_some_and(|time| digits(time, 6))
    };
    let begin = match pieces.len() {
        n if n >= 3 && is_stamp(n - 2) => n - 2,
        n if n >= 4 && is_stamp(n - 3) && pieces[n - 1].bytes().all(|b| b.is_ascii_digit()) => n - 3,
        _ => return None,
    };
    let machine = pieces[..begin].join("-");
    if stem.is_empty() || machine.is_empty() {
        return None;
    }
    Some(Parsed { name: format!("{stem}{ext}"), machine, stamp: pieces[begin..].join("-") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: i64 = 1_763_852_940_000_000_000;

    #[test]
    fn names_say_whose_version_it_is_and_can_be_read_back() {
        assert_eq!(name_for("plan.odt", "bert-pc", TIME, 1), "plan.conflict-bert-pc-20251122-230900.odt");
        for (name, machine) in
            [("plan.odt", "bert-pc"), ("Makefile", "x"), (".bashrc", "a b/c"), ("a.b.tar", "日本"), ("x.", "..")]
        {
            for number in [1, 2, 17] {
                let copy = name_for(name, machine, TIME, number);
                let parsed = parse(&copy).unwrap_or_else(|| panic!("{copy}"));
                assert_eq!(parsed.name, name, "{copy}");
                assert!(parsed.stamp.starts_with("20251122-230900"));
                assert_eq!(parse(&plain_name(&parsed, 1)), None, "it is no conflict any longer");
            }
        }
    }

    #[test]
    fn a_conflict_copy_that_loses_is_one_of_the_first_name() {
        let once = name_for("plan.odt", "a", TIME, 1);
        assert_eq!(name_for(&once, "b", TIME + 1_000_000_000, 1), "plan.conflict-b-20251122-230901.odt");
    }

    #[test]
    fn names_fit_and_others_are_not_taken_for_conflicts() {
        let long = format!("{}.txt", "ü".repeat(125));
        let copy = name_for(&long, &"m".repeat(100), TIME, 3);
        assert!(copy.len() <= 255 && parse(&copy).is_some());
        for other in [
            "plan.conflict-odt",
            "a.conflict-20251122-230900",
            ".conflict-a-20251122-230900",
            "a.conflict-x-2025-1",
            "a",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
        assert!(name_for("x", "m", i64::MIN, 1).len() < 64);
    }
}
