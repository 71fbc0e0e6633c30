//! Pages with links, and the texts of paths.

use crate::optical::files::{Listing, NodeKind};
use std::fmt::Write;

/// The first page.
pub(super) fn index(title: &str, files: bool) -> String {
    let title = if title.is_empty() { "Disc".to_owned() } else { html(title) };
    let link = if files { "<p><a href=\"/files/\">Files</a></p>" } else { "" };
    format!(
        "<!doctype html><meta charset=\"utf-8\"><title>{title}</title><h1>{title}</h1>{link}\
         <p><a href=\"/disc.iso\">Image</a></p>\n"
    )
}

/// The page of a directory.
pub(super) fn directory(path: &str, listing: &Listing) -> String {
    let title = if path.is_empty() { "Files".to_owned() } else { html(path) };
    let mut out = format!("<!doctype html><meta charset=\"utf-8\"><title>{title}</title><h1>{title}</h1><ul>\n");
    for node in &listing.nodes {
        let slash = if node.kind == NodeKind::Directory { "/" } else { "" };
        let (whole, name) =
            (if path.is_empty() { node.name.clone() } else { format!("{path}/{}", node.name) }, html(&node.name));
        let _ = match node.kind {
            NodeKind::File | NodeKind::Directory => {
                writeln!(
                    out,
                    "<li><a href=\"/files/{}{slash}\">{name}{slash}</a> {}</li>",
                    escape(&whole),
                    node.size_bytes
                )
            }
            _ => writeln!(out, "<li>{name}</li>"),
        };
    }
    out.push_str("</ul>\n");
    if listing.skipped > 0 {
        let _ = writeln!(out, "<p>{} more with names that cannot be shown</p>", listing.skipped);
    }
    out
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Percent-encodes all but what needs none in a path.
fn escape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Undoes it; nothing for what is no text.
pub(super) fn unescape(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let digit = |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16));
        out.push((digit(0)? * 16 + digit(1)?) as u8);
        rest = &tail[2..];
    }
    String::from_utf8(out).ok()
}

/// The media type of a file by its name: those that players ask for. All else is bytes, above all what a browser would run.
pub(super) fn content_type(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map_or("", |(_, e)| e).to_ascii_lowercase();
    match ending.as_str() {
        "mp4" | "m4v" => "video/mp4",
        "mkv" => "video/x-matroska",
        "webm" => "video/webm",
        "vob" | "mpg" | "mpeg" => "video/mpeg",
        "m2ts" | "ts" => "video/mp2t",
        "avi" => "video/x-msvideo",
        "mp3" => "audio/mpeg",
        "flac" => "audio/flac",
        "ogg" | "opus" => "audio/ogg",
        "wav" => "audio/wav",
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "pdf" => "application/pdf",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optical::files::Node;

    #[test]
    fn paths_come_back_from_their_links() {
        for path in ["a b/ä.txt", "100%", "x?y#z", "日本"] {
            assert_eq!(unescape(&escape(path)).as_deref(), Some(path));
        }
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_cannot_write_html() {
        let node =
            Node { name: "<img src=x onerror='1'>".into(), kind: NodeKind::File, size_bytes: 1, modified_ms: None };
        let page = directory("\"><script>", &Listing { nodes: vec![node], skipped: 2 });
        assert!(!page.contains("<img") && !page.contains("<script") && page.contains("2 more"));
    }
}
