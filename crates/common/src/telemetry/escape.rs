//! Keeps control characters out of a text log.

use std::io::{self, Write};

/// Writes log lines. The formatter hands over one whole event per `write`; its last line end is kept, every other control
/// character is written as `\u{..}`. With colour the formatter's own colour sequences pass; those inside of messages were
/// escaped by the formatter before.
#[derive(Debug)]
pub(super) struct EscapingWriter<W> {
    inner: W,
    colour: bool,
}

impl<W: Write> EscapingWriter<W> {
    pub(super) fn new(inner: W, colour: bool) -> Self {
        Self { inner, colour }
    }
}

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (line, end) = text.strip_suffix('\n').map_or((&*text, ""), |line| (line, "\n"));
        if line.chars().any(char::is_control) {
            let mut clean = escaped(line, self.colour);
            clean.push_str(end);
            self.inner.write_all(clean.as_bytes())?;
        } else {
            self.inner.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn escaped(line: &str, colour: bool) -> String {
    let mut out = String::with_capacity(line.len() + 16);
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        if let Some(sequence) = colour.then(|| colour_sequence(rest)).flatten() {
            out.push_str(sequence);
            rest = &rest[sequence.len()..];
            continue;
        }
        if c.is_control() && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// A leading "ESC [ digits m", which changes colours and nothing else.
fn colour_sequence(text: &str) -> Option<&str> {
    let body = text.strip_prefix("\u{1b}[")?;
    let end = body.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    (end <= 16 && body[end..].starts_with('m')).then(|| &text[..2 + end + 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(event: &str, colour: bool) -> String {
        let mut out = Vec::new();
        EscapingWriter::new(&mut out, colour).write_all(event.as_bytes()).expect("writes");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(written("plain ä\tline\n", false), "plain ä\tline\n");
        assert_eq!(written("name=a\nINFO forged\r\n", false), "name=a\\nINFO forged\\r\n");
        assert_eq!(written("\u{1b}[2Jx\u{9b}1m\u{7f}\n", false), "\\u{1b}[2Jx\\u{9b}1m\\u{7f}\n");
    }

    #[test]
    fn colours_pass_only_where_they_are_wanted() {
        assert_eq!(written("\u{1b}[32mINFO\u{1b}[0m x\n", true), "\u{1b}[32mINFO\u{1b}[0m x\n");
        assert_eq!(written("\u{1b}[32mINFO\n", false), "\\u{1b}[32mINFO\n");
        assert_eq!(written("\u{1b}[2J\u{1b}]0;x\u{7}\n", true), "\\u{1b}[2J\\u{1b}]0;x\\u{7}\n");
    }

    #[test]
    fn a_formatted_event_is_one_line_whatever_it_says() {
        use std::sync::{Arc, Mutex};
        use tracing_subscriber::layer::SubscriberExt;
        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, event: &[u8]) -> io::Result<usize> {
                self.0.lock().expect("lock").extend_from_slice(event);
                Ok(event.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || EscapingWriter::new(writer.clone(), false));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let name = "evil\n\u{1b}[31m2026 INFO forged";
            tracing::info!(%name, "renamed to {name}");
        });
        let text = String::from_utf8(kept.0.lock().expect("lock").clone()).expect("text");
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
