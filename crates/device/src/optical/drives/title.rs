//! The name of a volume, from the first MiB of a disc.

/// Longest title that is shown, in characters.
const MAX_CHARS: usize = 64;

/// The name in the Joliet or primary descriptor of ISO 9660, or of the logical volume of UDF. Control characters and what
/// turns the direction of writing are left out.
pub(super) fn of(start: &[u8]) -> Option<String> {
    iso(start).or_else(|| udf(start)).map(|t| clean(&t)).filter(|t| !t.is_empty())
}

fn sector(start: &[u8], number: u64) -> Option<&[u8]> {
    let at = usize::try_from(number).ok()?.checked_mul(2048)?;
    start.get(at..at.checked_add(2048)?)
}

fn iso(start: &[u8]) -> Option<String> {
    let mut primary = None;
    // Descriptors stand one after another from sector 16 on.
    for number in 16..32 {
        let Some(found) = sector(start, number).filter(|s| &s[1..6] == b"CD001") else { break };
        match found[0] {
            1 if primary.is_none() => primary = Some(String::from_utf8_lossy(&found[40..72]).into_owned()),
            2 if matches!(&found[88..91], b"%/@" | b"%/C" | b"%/E") => {
                let units = found[40..72].chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]]));
                let name: String = char::decode_utf16(units).map(|c| c.unwrap_or('\u{fffd}')).collect();
                if !clean(&name).is_empty() {
                    // Sixteen letters fit; the primary name may go on.
                    let longer = primary.as_ref().filter(|p| clean(p).starts_with(&clean(&name)));
                    return Some(longer.cloned().unwrap_or(name));
                }
            }
            255 => break,
            _ => {}
        }
    }
    primary
}

fn udf(start: &[u8]) -> Option<String> {
    let anchor = sector(start, 256).filter(|s| s[0] == 2 && s[1] == 0)?;
    let len = u64::from(u32::from_le_bytes(anchor[16..20].try_into().ok()?)) / 2048;
    let first = u64::from(u32::from_le_bytes(anchor[20..24].try_into().ok()?));
    for number in (first..first + len.min(64)).filter_map(|n| sector(start, n)) {
        if number[0] == 6 && number[1] == 0 {
            return Some(dstring(&number[84..212]));
        }
    }
    None
}

/// A string of OSTA compressed Unicode in a field whose last byte is the length.
fn dstring(field: &[u8]) -> String {
    let len = field.last().map_or(0, |l| usize::from(*l)).min(field.len() - 1);
    match field[..len].split_first() {
        Some((8, text)) => text.iter().map(|b| char::from(*b)).collect(),
        Some((16, text)) => {
            let units = text.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]]));
            char::decode_utf16(units).map(|c| c.unwrap_or('\u{fffd}')).collect()
        }
        _ => String::new(),
    }
}

fn clean(text: &str) -> String {
    let shown =
        |c: &char| !c.is_control() && !matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}');
    text.chars().filter(shown).take(MAX_CHARS).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primary_name_is_trimmed_and_cleaned() {
        let mut disc = vec![0; 40 * 2048];
        disc[16 * 2048] = 1;
        disc[16 * 2048 + 1..16 * 2048 + 6].copy_from_slice(b"CD001");
        disc[16 * 2048 + 40..16 * 2048 + 72].copy_from_slice(b"HOLI\x07DAYS_2019                  ");
        assert_eq!(of(&disc).as_deref(), Some("HOLIDAYS_2019"));
        disc[16 * 2048 + 40..16 * 2048 + 72].fill(b' ');
        assert_eq!(of(&disc), None);
    }

    #[test]
    fn a_udf_name_is_found_through_the_anchor() {
        let mut disc = vec![0; 1 << 20];
        disc[256 * 2048] = 2;
        disc[256 * 2048 + 16..256 * 2048 + 20].copy_from_slice(&(16_u32 * 2048).to_le_bytes());
        disc[256 * 2048 + 20..256 * 2048 + 24].copy_from_slice(&32_u32.to_le_bytes());
        let volume = 34 * 2048;
        disc[volume] = 6;
        disc[volume + 84..volume + 84 + 6].copy_from_slice(b"\x08Films");
        disc[volume + 211] = 6;
        assert_eq!(of(&disc).as_deref(), Some("Films"));
    }

    #[test]
    fn anything_may_stand_there() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&vec![0xff; 1 << 20]), None);
        let mut disc = vec![0; 1 << 20];
        disc[256 * 2048] = 2;
        disc[256 * 2048 + 16..256 * 2048 + 24].fill(0xff);
        assert_eq!(of(&disc), None);
    }
}
