//! Pages of a PDF file, without rendering it.
//!
//! The page tree is walked from the catalogue, because what hangs in no tree is not printed (old versions of pages stay in
//! files that were changed), and `/Count` is not believed, because it decides what somebody pays. Objects are found by
//! looking through the file for `N G obj`, not by its cross-reference table: damaged tables are common, and printers mend
//! them the same way. Objects in compressed object streams are found too, within [`MAX_INFLATED`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;
use std::ops::Range;

/// Bytes that all object streams of a file may unfold to.
pub const MAX_INFLATED: usize = 64 << 20;
/// Objects that are looked at: with [`MAX_INFLATED`] it bounds the memory, since a few bytes can unfold to many objects.
const MAX_OBJECTS: usize = 1_000_000;
/// Trailers that are looked at, from the last one back: files that were changed have one for each time.
const MAX_TRAILERS: usize = 64;

/// Where the body of an object lies: in the file (0) or in an unfolded object stream (from 1).
type Place = (usize, Range<usize>);

/// Pages of a PDF file; `None` if it has no page tree that can be followed.
pub fn count(file: &[u8]) -> Option<u32> {
    let mut sources = vec![std::borrow::Cow::Borrowed(file)];
    let mut objects: HashMap<u32, Place> = HashMap::new();
    let mut root = None;
    let mut catalogue = None;
    let mut inflated = 0;
    for (number, body) in object_bodies(file) {
        let dict = &file[body.clone()];
        let [kind, root_ref] = entries(dict, [b"Type", b"Root"]);
        match kind {
            Some(b"/ObjStm") => {
                if let Some(unfolded) = unfold(file, body.clone(), MAX_INFLATED - inflated) {
                    inflated += unfolded.len();
                    let source = sources.len();
                    for (inner, range) in object_stream(dict, &unfolded) {
                        if entries(&unfolded[range.clone()], [b"Type"]) == [Some(b"/Catalog".as_slice())] {
                            catalogue = Some(inner);
                        }
                        objects.insert(inner, (source, range));
                        if objects.len() > MAX_OBJECTS {
                            return None;
                        }
                    }
                    sources.push(unfolded.into());
                }
            }
            Some(b"/XRef") => root = root_ref.and_then(reference).or(root),
            Some(b"/Catalog") => catalogue = Some(number),
            _ => {}
        }
        objects.insert(number, (0, body));
        if objects.len() > MAX_OBJECTS {
            return None;
        }
    }
    let trailer = trailer_root(file);
    let body = |number: u32| objects.get(&number).map(|(source, range)| &sources[*source][range.clone()]);
    [trailer, root, catalogue].into_iter().flatten().find_map(|start| walk(start, &body))
}

/// Leaves of the page tree.
fn walk<'a>(root: u32, body: &impl Fn(u32) -> Option<&'a [u8]>) -> Option<u32> {
    let [pages] = entries(body(root)?, [b"Pages"]);
    let mut open = vec![reference(pages?)?];
    let mut seen = HashSet::new();
    // Lists of kids that are objects: one that many nodes share is read once, or few bytes would be much work.
    let mut lists = HashSet::new();
    let mut leaves = 0u32;
    while let Some(number) = open.pop() {
        // A page that two nodes list is printed twice by some programs and once by others; a loop ends here.
        if !seen.insert(number) {
            continue;
        }
        let Some(node) = body(number) else { continue };
        let [kind, kids] = entries(node, [b"Type", b"Kids"]);
        match kids {
            Some(kids) if kind != Some(b"/Page") => {
                let list = if kids.first() == Some(&b'[') {
                    Some(kids)
                } else {
                    reference(kids).filter(|number| lists.insert(*number)).and_then(body)
                };
                references(list.unwrap_or_default(), &mut open);
            }
            _ => leaves += 1,
        }
    }
    (leaves > 0).then_some(leaves)
}

/// Each `N G obj` of a file with the range up to the next one, in their order.
fn object_bodies(file: &[u8]) -> Vec<(u32, Range<usize>)> {
    let mut found: Vec<(u32, usize, usize)> = Vec::new();
    let mut at = 0;
    while let Some(next) = find(&file[at..], b"obj") {
        let start = at + next;
        at = start + 3;
        if let Some((number, begin)) = object_number(file, start) {
            found.push((number, begin, at));
            if found.len() > MAX_OBJECTS {
                break;
            }
        }
    }
    let ends: Vec<usize> = found.iter().skip(1).map(|f| f.1).chain([file.len()]).collect();
    found.into_iter().zip(ends).map(|((number, _, from), end)| (number, from..end)).collect()
}

/// The number before `G obj`, and where it begins.
fn object_number(file: &[u8], obj: usize) -> Option<(u32, usize)> {
    // Numbers are short: looking back is bounded.
    let head = &file[obj.saturating_sub(32)..obj];
    let head_at = obj - head.len();
    let trimmed = trim_end(head);
    let generation = digits_at_end(trimmed)?;
    let before = trim_end(&trimmed[..trimmed.len() - generation]);
    if before.len() == trimmed.len() - generation {
        return None;
    }
    let number = digits_at_end(before)?;
    let begin = before.len() - number;
    let text = std::str::from_utf8(&before[begin..]).ok()?;
    Some((text.parse().ok()?, head_at + begin))
}

fn trim_end(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|b| !is_space(*b)).map_or(0, |n| n + 1);
    &bytes[..end]
}

fn digits_at_end(bytes: &[u8]) -> Option<usize> {
    let digits = bytes.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    (1..=10).contains(&digits).then_some(digits)
}

/// The content of an object stream, if it is packed in the one common way.
fn unfold(file: &[u8], body: Range<usize>, most: usize) -> Option<Vec<u8>> {
    let bytes = &file[body];
    let [filter, parameters] = entries(bytes, [b"Filter", b"DecodeParms"]);
    let start = find(bytes, b"stream")? + 6;
    let data = bytes.get(start..)?;
    let data = data.strip_prefix(b"\r\n").or_else(|| data.strip_prefix(b"\n")).unwrap_or(data);
    match filter {
        None => {
            let end = find(data, b"endstream").unwrap_or(data.len());
            (end <= most).then(|| data[..end].to_vec())
        }
        Some(name) if find(name, b"/FlateDecode").is_some() && parameters.is_none() => {
            let mut out = Vec::new();
            let reader = flate2::read::ZlibDecoder::new(data);
            // What was unfolded before an error still counts: the end of many streams is damaged.
            let _ = reader.take(most as u64).read_to_end(&mut out);
            (!out.is_empty()).then_some(out)
        }
        Some(_) => None,
    }
}

/// Numbers and places of the objects of an unfolded object stream. They ascend (ISO 32000-1 section 7.5.7), so they do not
/// overlap: looking at each of them is looking at the stream once.
fn object_stream<'a>(dict: &[u8], unfolded: &'a [u8]) -> impl Iterator<Item = (u32, Range<usize>)> + use<'a> {
    let [count, first] = entries(dict, [b"N", b"First"]).map(|value| value.and_then(number));
    let (count, first) = (count.unwrap_or(0) as usize, first.unwrap_or(0) as usize);
    let mut numbers = unfolded
        .get(..first)
        .unwrap_or_default()
        .split(|b| is_space(*b))
        .filter(|w| !w.is_empty())
        .map_while(number)
        .take(count.saturating_mul(2));
    let mut pair = move || Some((numbers.next()?, first.saturating_add(numbers.next()? as usize)));
    let mut next = pair();
    std::iter::from_fn(move || {
        let (number, from) = next.take()?;
        next = pair();
        let end = next.map_or(unfolded.len(), |n| n.1);
        (from <= end && end <= unfolded.len()).then_some((number, from..end))
    })
}

fn trailer_root(file: &[u8]) -> Option<u32> {
    let mut last = VecDeque::new();
    let mut at = 0;
    while let Some(next) = find(&file[at..], b"trailer") {
        at += next + 7;
        last.push_back(at);
        if last.len() > MAX_TRAILERS {
            last.pop_front();
        }
    }
    // A trailer is short; looking further would make many of them quadratic.
    let window = |at: usize| &file[at..file.len().min(at + 4096)];
    last.into_iter().rev().find_map(|at| entries(window(at), [b"Root"])[0].and_then(reference))
}

/// Values of these keys in the first dictionary of `bytes`, as they are written.
fn entries<'a, const N: usize>(bytes: &'a [u8], keys: [&[u8]; N]) -> [Option<&'a [u8]>; N] {
    let mut found = [None; N];
    let mut lexer = Lexer { bytes, at: 0 };
    match lexer.next() {
        Some((Token::Open, at)) if bytes[at..].starts_with(b"<<") => {}
        _ => return found,
    }
    let mut depth = 1usize;
    let mut key: Option<&[u8]> = None;
    let mut from: Option<usize> = None;
    while let Some((token, at)) = lexer.next() {
        if depth == 1 {
            // A value ends where the next key or the dictionary ends; a name right after a key is its value.
            let ends = matches!(token, Token::Close | Token::Name) && (from.is_some() || key.is_none());
            if ends {
                if let (Some(name), Some(from)) = (key, from)
                    && let Some(place) = keys.iter().position(|k| *k == name)
                {
                    found[place] = Some(trim_end(&bytes[from..at]));
                }
                (key, from) = (None, None);
                if token == Token::Name {
                    key = bytes.get(at + 1..lexer.at);
                }
            } else if from.is_none() && key.is_some() {
                from = Some(at);
            }
        }
        match token {
            Token::Open => depth += 1,
            Token::Close => depth -= 1,
            Token::Name | Token::Other => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Name,
    Other,
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Lexer<'_> {
    /// The next token and where it begins; `at` is then where it ends.
    fn next(&mut self) -> Option<(Token, usize)> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            if is_space(byte) {
                self.at += 1;
            } else if byte == b'%' {
                self.at += self.bytes[self.at..].iter().position(|b| matches!(b, b'\r' | b'\n'))?;
            } else {
                break;
            }
        }
        let start = self.at;
        let rest = &self.bytes[start..];
        let (token, length) = match rest {
            [b'<', b'<', ..] => (Token::Open, 2),
            [b'>', b'>', ..] => (Token::Close, 2),
            [b'[' | b'{', ..] => (Token::Open, 1),
            [b']' | b'}', ..] => (Token::Close, 1),
            [b'(', ..] => (Token::Other, string_length(rest)),
            [b'<', ..] => (Token::Other, rest.iter().position(|b| *b == b'>').map_or(rest.len(), |n| n + 1)),
            [b'/', ..] => (Token::Name, 1 + regular(&rest[1..])),
            _ => (Token::Other, regular(rest).max(1)),
        };
        // The data of a stream is not made of tokens.
        if token == Token::Other && rest.starts_with(b"stream") {
            return None;
        }
        self.at += length;
        Some((token, start))
    }
}

fn string_length(bytes: &[u8]) -> usize {
    let mut depth = 0usize;
    let mut escaped = false;
    for (n, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'(' => depth += 1,
            b')' if depth == 1 => return n + 1,
            b')' => depth -= 1,
            _ => {}
        }
    }
    bytes.len()
}

fn regular(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| is_space(*b) || b"()<>[]{}/%".contains(b)).unwrap_or(bytes.len())
}

fn is_space(byte: u8) -> bool {
    matches!(byte, 0 | b'\t' | b'\n' | 12 | b'\r' | b' ')
}

fn number(bytes: &[u8]) -> Option<u32> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// The number of `N G R`.
fn reference(bytes: &[u8]) -> Option<u32> {
    let mut words = bytes.split(|b| is_space(*b)).filter(|w| !w.is_empty());
    let first = number(words.next()?)?;
    number(words.next()?)?;
    (words.next()? == b"R").then_some(first)
}

/// All `N G R` of an array.
fn references(bytes: &[u8], out: &mut Vec<u32>) {
    let mut last = [None, None];
    let words = bytes.split(|b| is_space(*b) || matches!(b, b'[' | b']')).filter(|w| !w.is_empty());
    for word in words {
        if word == b"R" {
            out.extend(last[0]);
            last = [None, None];
        } else {
            last = [last[1], number(word)];
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}

/// A PDF file of so many A4 pages, each with a line of text; for tests, examples and demonstrations.
pub fn sample(pages: u32, text: &str) -> Vec<u8> {
    let text: String = text.chars().filter(|c| c.is_ascii_alphanumeric() || " .,-:#".contains(*c)).collect();
    let mut out = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n".to_vec();
    let mut places = Vec::new();
    let mut object = |out: &mut Vec<u8>, body: String| {
        places.push(out.len());
        out.extend_from_slice(format!("{} 0 obj\n{body}\nendobj\n", places.len()).as_bytes());
    };
    let kids: Vec<String> = (0..pages).map(|n| format!("{} 0 R", 4 + 2 * n)).collect();
    object(&mut out, "<< /Type /Catalog /Pages 2 0 R >>".into());
    object(&mut out, format!("<< /Type /Pages /Kids [{}] /Count {pages} >>", kids.join(" ")));
    object(&mut out, "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".into());
    for page in 0..pages {
        let content = 5 + 2 * page;
        let resources = "/Resources << /Font << /F1 3 0 R >> >>";
        object(
            &mut out,
            format!("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] {resources} /Contents {content} 0 R >>"),
        );
        let stream = format!("BT /F1 18 Tf 72 770 Td ({text} {} of {pages}) Tj ET", page + 1);
        object(&mut out, format!("<< /Length {} >>\nstream\n{stream}\nendstream", stream.len()));
    }
    let table = out.len();
    out.extend_from_slice(format!("xref\n0 {}\n0000000000 65535 f \n", places.len() + 1).as_bytes());
    for place in &places {
        out.extend_from_slice(format!("{place:010} 00000 n \n").as_bytes());
    }
    let size = places.len() + 1;
    out.extend_from_slice(format!("trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n").as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_found_wherever_they_lie() {
        for before in 0..200 {
            let mut bytes = vec![b'o'; before];
            bytes.extend_from_slice(b"obj and more");
            assert_eq!(find(&bytes, b"obj"), Some(before));
            assert_eq!((find(&bytes, b"stream"), find(&bytes, b"more")), (None, Some(before + 8)));
            assert_eq!(find(&bytes[..before + 2], b"obj"), None);
        }
    }

    #[test]
    fn pages_of_plain_files_are_counted() {
        for pages in [1, 2, 117] {
            assert_eq!(count(&sample(pages, "Test")), Some(pages));
        }
        assert_eq!(count(b"%PDF-1.4\nnothing"), None);
    }

    #[test]
    fn a_changed_file_counts_by_its_last_version() {
        let mut file = sample(3, "Test");
        file.extend_from_slice(
            b"2 0 obj\n<< /Type /Pages /Kids [4 0 R] /Count 9 >>\nendobj\ntrailer\n<</Root 1 0 R>>\n",
        );
        assert_eq!(count(&file), Some(1), "what hangs in no tree is not printed, and /Count is not believed");
    }

    #[test]
    fn nested_trees_strings_and_loops_are_understood() {
        let file = b"%PDF-1.4
1 0 obj << /Type/Catalog /Title (a \\) /Pages 9 0 R >> (nested)) /Pages 2 0 R >> endobj
2 0 obj << /Type /Pages /Kids 5 0 R >> endobj
5 0 obj [ 3 0 R 4 0 R 2 0 R ] endobj
3 0 obj << /Kids[6 0 R 7 0 R 3 0 R]/Type/Pages >> endobj
4 0 obj << /Type /Page /Resources << /Kids [8 0 R] >> >> endobj
6 0 obj << /Type /Page >> endobj
7 0 obj << /Parent 3 0 R /Type /Page >> endobj
trailer << /Root 1 0 R >>";
        assert_eq!(count(file), Some(3));
    }

    fn packed(inner: &[(u32, &str)]) -> Vec<u8> {
        let mut head = String::new();
        let mut bodies = String::new();
        for (number, body) in inner {
            head.push_str(&format!("{number} {} ", bodies.len()));
            bodies.push_str(body);
            bodies.push('\n');
        }
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(format!("{head}{bodies}").as_bytes()).unwrap();
        let data = encoder.finish().unwrap();
        let mut file = b"%PDF-1.5\n".to_vec();
        let dict = format!(
            "10 0 obj\n<< /Type /ObjStm /N {} /First {} /Filter /FlateDecode /Length {} >>\nstream\n",
            inner.len(),
            head.len(),
            data.len()
        );
        file.extend_from_slice(dict.as_bytes());
        file.extend_from_slice(&data);
        file.extend_from_slice(
            b"\nendstream\nendobj\n11 0 obj\n<< /Type /XRef /Root 1 0 R >>\nstream\nx\nendstream\nendobj\n",
        );
        file
    }

    #[test]
    fn compressed_objects_are_found() {
        let file = packed(&[
            (1, "<</Type/Catalog/Pages 2 0 R>>"),
            (2, "<</Type/Pages/Kids[3 0 R 4 0 R]/Count 2>>"),
            (3, "<</Type/Page/Parent 2 0 R>>"),
            (4, "<</Type/Page/Parent 2 0 R>>"),
        ]);
        assert_eq!(count(&file), Some(2));
    }

    #[test]
    fn a_bomb_unfolds_to_a_bounded_size() {
        let body = format!("<</Type/Catalog/Pages 2 0 R>>{}", " ".repeat(MAX_INFLATED + 1000));
        let file = packed(&[(1, &body)]);
        assert!(file.len() < 200_000);
        assert_eq!(count(&file), None);
    }

    #[test]
    fn a_list_of_kids_that_many_nodes_share_is_read_once() {
        // Read by each of them, the references were as many as the nodes times the length of the list.
        let read = std::cell::Cell::new(0);
        let body = |number: u32| -> Option<&[u8]> {
            match number {
                1 => Some(b"<</Type/Catalog/Pages 2 0 R>>"),
                9 => {
                    read.set(read.get() + 1);
                    Some(b"[3 0 R 4 0 R 5 0 R 6 0 R]")
                }
                6 => Some(b"<</Type/Page>>"),
                _ => Some(b"<</Type/Pages/Kids 9 0 R>>"),
            }
        };
        assert_eq!((walk(1, &body), read.get()), (Some(1), 1));
    }

    #[test]
    fn objects_of_a_stream_do_not_overlap() {
        // Places that go forth and back gave every second object the rest of the stream, to be read again each time.
        let head = "1 0 2 900 3 0 4 900 5 0 6 900 ";
        let unfolded = format!("{head}{}", " ".repeat(1000));
        let dict = format!("<</N 6/First {}>>", head.len());
        let found: Vec<_> = object_stream(dict.as_bytes(), unfolded.as_bytes()).collect();
        assert_eq!(found, [(1, head.len()..head.len() + 900)]);
    }

    #[test]
    fn many_small_objects_are_refused_before_they_fill_the_memory() {
        // Digits unfold well, and an object takes more memory than the digits that name it.
        let head: String = (0..=MAX_OBJECTS).map(|number| format!("{number} 0 ")).collect();
        let file = format!("1 0 obj <</Type/ObjStm/N 9999999/First {}>> stream\n{head}endstream ", head.len());
        let tree =
            "2000001 0 obj <</Type/Catalog/Pages 2000002 0 R>> 2000002 0 obj <</Kids[2000003 0 R]>> 2000003 0 obj <<>>";
        assert_eq!(count(tree.as_bytes()), Some(1));
        assert_eq!(count((file + tree).as_bytes()), None);
    }

    #[test]
    fn only_the_last_trailers_are_looked_at() {
        let file = |more: usize| format!("trailer <</Root 7 0 R>>{}", " trailer <</Size 1>>".repeat(more));
        assert_eq!(trailer_root(file(MAX_TRAILERS - 1).as_bytes()), Some(7));
        assert_eq!(trailer_root(file(MAX_TRAILERS).as_bytes()), None);
    }

    proptest! {
        #[test]
        fn no_change_of_a_file_panics(at in any::<prop::sample::Index>(), with in prop::collection::vec(any::<u8>(), 0..30)) {
            let mut file = sample(2, "Test");
            let at = at.index(file.len());
            let end = (at + with.len()).min(file.len());
            file.splice(at..end, with);
            let _ = count(&file);
        }

        #[test]
        fn no_text_panics(text in "(<<|>>|\\[|\\]|/Type|/Kids|/Pages|1 0 obj|1 0 R|2 0 R|stream|trailer|/Root|\\(|\\)| ){0,80}") {
            let _ = count(text.as_bytes());
        }
    }
}
