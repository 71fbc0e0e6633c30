//! Pages of PWG raster (PWG 5102.4) and Apple raster files: one header a page, then lines in a run-length code.

/// A page's header in PWG raster.
const PWG_HEADER: usize = 1796;
/// A page's header in Apple raster.
const URF_HEADER: usize = 32;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Pages of a PWG raster file; `None` if it is not one, or is damaged.
pub fn count_pwg(bytes: &[u8]) -> Option<u32> {
    let mut rest = bytes.strip_prefix(b"RaS2")?;
    let mut pages = 0;
    while !rest.is_empty() {
        let header = rest.get(..PWG_HEADER)?;
        // cupsHeight, cupsBitsPerPixel, cupsBytesPerLine.
        let (lines, bits, line) = (word(header, 376)?, word(header, 388)?, word(header, 392)?);
        let unit = (bits as usize).div_ceil(8).max(1);
        rest = skip_lines(&rest[PWG_HEADER..], lines, line as usize, unit, false)?;
        pages += 1;
    }
    Some(pages)
}

/// Pages of an Apple raster file; `None` if it is not one, or is damaged.
pub fn count_urf(bytes: &[u8]) -> Option<u32> {
    let mut rest = bytes.strip_prefix(b"UNIRAST\0")?.get(4..)?;
    let mut pages = 0;
    while !rest.is_empty() {
        let header = rest.get(..URF_HEADER)?;
        let unit = usize::from(header[0]).div_ceil(8).max(1);
        let (width, lines) = (word(header, 12)?, word(header, 16)?);
        rest = skip_lines(&rest[URF_HEADER..], lines, (width as usize).checked_mul(unit)?, unit, true)?;
        pages += 1;
    }
    Some(pages)
}

/// What is left after so many lines of so many bytes. `blank_ends`: in Apple raster, code 128 fills the rest of a line.
fn skip_lines(mut rest: &[u8], lines: u32, line: usize, unit: usize, blank_ends: bool) -> Option<&[u8]> {
    let mut left = lines;
    while left > 0 {
        // The number of repetitions of the line, then runs. Each line takes at least a byte: linear.
        let (&repeats, after) = rest.split_first()?;
        rest = after;
        left = left.saturating_sub(u32::from(repeats) + 1);
        let mut filled = 0;
        while filled < line {
            let (&code, after) = rest.split_first()?;
            let (units, taken) = match code {
                128 if blank_ends => break_line(&mut filled, line),
                0..=127 => (usize::from(code) + 1, 1),
                // 128 in PWG raster is not used; read as 257 - 128 like libcups does.
                _ => (257 - usize::from(code), 257 - usize::from(code)),
            };
            rest = after.get(taken * unit..)?;
            filled = filled.saturating_add(units * unit);
        }
    }
    Some(rest)
}

fn break_line(filled: &mut usize, line: usize) -> (usize, usize) {
    *filled = line;
    (0, 0)
}

/// A raster file of so many white pages, for tests, examples and demonstrations: `width` × `height` grey dots at 150 dpi.
pub fn white_pwg(pages: u32, width: u32, height: u32) -> Vec<u8> {
    let mut out = b"RaS2".to_vec();
    for _ in 0..pages {
        let mut header = vec![0; PWG_HEADER];
        header[..10].copy_from_slice(b"PwgRaster\0");
        let mut put = |at: usize, value: u32| header[at..at + 4].copy_from_slice(&value.to_be_bytes());
        put(276, 150); // HWResolution
        put(280, 150);
        put(340, 1); // NumCopies
        put(352, width * 72 / 150); // PageSize
        put(356, height * 72 / 150);
        put(372, width);
        put(376, height);
        put(384, 8); // bits per colour
        put(388, 8); // bits per pixel
        put(392, width); // bytes per line
        put(400, 18); // sGray
        put(420, 1); // colours
        put(452, pages); // TotalPageCount
        put(456, 1); // CrossFeedTransform
        put(460, 1);
        out.extend_from_slice(&header);
        let mut left = height;
        while left > 0 {
            let lines = left.min(256);
            left -= lines;
            out.push((lines - 1) as u8);
            let mut dots = width;
            while dots > 0 {
                let run = dots.min(128);
                dots -= run;
                out.extend_from_slice(&[(run - 1) as u8, 0xff]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_of_pwg_are_counted() {
        assert_eq!(count_pwg(&white_pwg(3, 1240, 1754)), Some(3));
        assert_eq!(count_pwg(b"RaS2"), Some(0));
        let whole = white_pwg(2, 100, 300);
        assert_eq!(count_pwg(&whole[..whole.len() - 1]), None, "a page that ends early is no page");
    }

    #[test]
    fn pages_of_urf_are_counted() {
        let mut file = b"UNIRAST\0\0\0\0\x02".to_vec();
        for _ in 0..2 {
            let mut header = [0; URF_HEADER];
            header[0] = 24;
            header[12..16].copy_from_slice(&10u32.to_be_bytes());
            header[16..20].copy_from_slice(&20u32.to_be_bytes());
            file.extend_from_slice(&header);
            // 10 lines of one run, then 10 lines that end after 3 literal dots.
            file.extend_from_slice(&[9, 9, 1, 2, 3]);
            file.extend_from_slice(&[9, 254, 1, 1, 1, 2, 2, 2, 3, 3, 3, 128]);
        }
        assert_eq!(count_urf(&file), Some(2));
        assert_eq!(count_urf(&file[..file.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut pwg = b"RaS2".to_vec();
            pwg.extend_from_slice(&bytes);
            let _ = count_pwg(&pwg);
            let mut urf = b"UNIRAST\0".to_vec();
            urf.extend_from_slice(&bytes);
            let _ = count_urf(&urf);
        }
    }
}
