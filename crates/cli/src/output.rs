//! What goes to standard output and standard error.
//!
//! Standard output carries what was asked for, as text or as JSON. Standard error carries errors, hints, warnings and
//! progress. Every JSON object has `"schema": 1` and a `"kind"`; its fields are listed in [`schema`].

mod convert;
pub mod format;
pub mod schema;

use crate::args::{ColorWhen, Global};
use crate::exit::Exit;
use common::error::{Error, Kind, Reason, Result};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};

/// Number of the JSON contract. Fields are added under the same number, never changed or taken away.
pub const SCHEMA: u64 = 1;

/// Where a command writes to.
#[derive(Clone, Debug)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
    /// Nothing but errors and what was asked for.
    pub quiet: bool,
    /// Technical causes too.
    pub verbose: bool,
    /// Questions are allowed.
    pub interactive: bool,
    /// Colour on standard output.
    pub color: bool,
    /// Colour on standard error.
    pub color_err: bool,
    /// Standard error is a terminal that shows moving bars.
    pub progress: bool,
}

impl Output {
    /// From the options, the environment and the terminal.
    pub fn new(global: &Global) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let no_color = dumb || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let (out, err) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let wants = |terminal: bool| match global.color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => terminal && !no_color,
        };
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            interactive: !global.no_input && std::io::stdin().is_terminal() && err,
            color: wants(out) && !global.json,
            color_err: wants(err) && !global.json,
            progress: err && !dumb && !global.quiet && !global.json,
        }
    }

    /// Writes one line of what was asked for.
    ///
    /// # Errors
    /// If standard output cannot be written; quietly if its reader has gone.
    pub fn line(&self, text: &str) -> Result<()> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Writes bytes of what was asked for.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn raw(&self, bytes: &[u8]) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => reader_gone(),
            _ => Error::new(Reason::IoFailed, "standard output cannot be written").caused_by(error),
        })
    }

    /// Writes one JSON object on a line of its own.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn json<T: schema::Object>(&self, object: &T) -> Result<()> {
        self.line(&envelope_text(object))
    }

    /// One object: as JSON, or as the text that `human` makes.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn object<T: schema::Object>(&self, object: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json {
            return self.json(object);
        }
        let text = human(object);
        if text.is_empty() { Ok(()) } else { self.line(&text) }
    }

    /// Tells what a command has changed, in one line.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn changed<T: schema::Object>(&self, object: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
        match (self.json, self.quiet) {
            (true, _) => self.json(object),
            (false, true) => Ok(()),
            (false, false) => self.line(&human(object)),
        }
    }

    /// A list that is written as it comes.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn list<'a, T: schema::Object>(&'a self, head: &[(&str, Value)]) -> Result<List<'a, T>> {
        if self.json {
            let mut text = format!("{{\"schema\":{SCHEMA},\"kind\":\"{}_list\"", T::KIND);
            for (key, value) in head {
                text.push_str(&format!(",{}:{value}", Value::from(*key)));
            }
            text.push_str(",\"items\":[");
            self.raw(text.as_bytes())?;
        }
        Ok(List { out: self, count: 0, kind: std::marker::PhantomData })
    }

    /// A remark on standard error; not with `--quiet`, not with `--json`.
    pub fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            self.err_line(text);
        }
    }

    /// The next command that makes sense; only for people at a terminal.
    pub fn hint(&self, text: &str) {
        if self.progress {
            self.err_line(&self.dim(&format!("next: {text}")));
        }
    }

    /// A warning on standard error.
    pub fn warn(&self, text: &str) {
        if self.json {
            self.err_line(&json!({"schema": SCHEMA, "kind": "warning", "message": text}).to_string());
        } else {
            self.err_line(&format!("{} {text}", self.paint_err("warning:", "33;1")));
        }
    }

    /// An error: what, why, what to do, and under which request the server has logged it.
    pub fn error(&self, error: &Error) {
        if is_reader_gone(error) {
            return;
        }
        if self.json {
            return self.err_line(&envelope_text(&schema::Failure::of(error)));
        }
        self.err_line(&format!("{} {}", self.paint_err("error:", "31;1"), error.message()));
        self.err_line(&format!("{} {}", self.paint_err("why:", "1"), error.why()));
        self.err_line(&format!("{} {}", self.paint_err("fix:", "32;1"), error.fix()));
        if let Some(delay) = error.retry_delay() {
            self.err_line(&format!("{} in {}", self.paint_err("again:", "1"), format::duration(delay)));
        }
        if let Some(id) = error.request_id() {
            self.err_line(&format!("{} {id}", self.paint_err("request:", "1")));
        }
        if self.verbose {
            self.err_line(&format!("{} {error:?}", self.paint_err("cause:", "1")));
        }
    }

    /// A failure of one file of several; in JSON it is part of the result.
    pub fn file_failure(&self, failure: &schema::FileFailure) {
        if self.json {
            return;
        }
        let e = &failure.error;
        self.err_line(&format!("{} {}: {}", self.paint_err("error:", "31;1"), failure.path, e.message));
        self.err_line(&format!("{} {}", self.paint_err("why:", "1"), e.why));
        self.err_line(&format!("{} {}", self.paint_err("fix:", "32;1"), e.fix));
        if let Some(id) = &e.request_id {
            self.err_line(&format!("{} {id}", self.paint_err("request:", "1")));
        }
    }

    /// Writes one line to standard error; a standard error that is gone is nobody's loss.
    pub fn err_line(&self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Bold on standard output.
    pub fn bold(&self, text: &str) -> String {
        paint(text, "1", self.color)
    }

    /// A colour on standard output, by the number of its escape sequence.
    pub fn paint(&self, text: &str, code: &str) -> String {
        paint(text, code, self.color)
    }

    fn paint_err(&self, text: &str, code: &str) -> String {
        paint(text, code, self.color_err)
    }

    fn dim(&self, text: &str) -> String {
        paint(text, "2", self.color_err)
    }
}

fn paint(text: &str, code: &str, on: bool) -> String {
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// An object with `schema` and `kind` in front.
pub fn envelope<T: schema::Object>(object: &T) -> Value {
    let mut map = serde_json::Map::new();
    map.insert("schema".into(), SCHEMA.into());
    map.insert("kind".into(), T::KIND.into());
    if let Ok(Value::Object(fields)) = serde_json::to_value(object) {
        map.extend(fields);
    }
    Value::Object(map)
}

/// The same as text on one line, `schema` and `kind` first and the fields in their order.
pub fn envelope_text<T: schema::Object>(object: &T) -> String {
    let fields = serde_json::to_string(object).unwrap_or_default();
    let fields = fields.strip_prefix('{').unwrap_or("}");
    let separator = if fields == "}" { "" } else { "," };
    format!("{{\"schema\":{SCHEMA},\"kind\":\"{}\"{separator}{fields}", T::KIND)
}

/// A list in the making.
#[derive(Debug)]
pub struct List<'a, T> {
    out: &'a Output,
    count: u64,
    kind: std::marker::PhantomData<T>,
}

impl<T: schema::Object + Serialize> List<'_, T> {
    /// Writes the next item.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn item(&mut self, item: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
        self.count += 1;
        if !self.out.json {
            return self.out.line(human(item).trim_end());
        }
        let text = serde_json::to_string(item).map_err(|e| Error::internal("JSON").caused_by(e))?;
        let separator = if self.count > 1 { ",\n" } else { "\n" };
        self.out.raw(format!("{separator}{text}").as_bytes())
    }

    /// Ends the list; `empty` is said in text if nothing was written.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn end(self, empty: &str) -> Result<u64> {
        if self.out.json {
            self.out.raw(b"]}\n")?;
        } else if self.count == 0 {
            self.out.note(empty);
        }
        Ok(self.count)
    }
}

/// The reader of our output has closed it (`atrium ls | head`): no failure, nothing to say.
fn reader_gone() -> Error {
    Error::new(Reason::Cancelled, "standard output was closed").with("reader", "gone")
}

/// Whether the command ended because nobody reads its output any more.
pub fn is_reader_gone(error: &Error) -> bool {
    error.is(Reason::Cancelled) && error.detail("reader") == Some("gone")
}

/// The exit code of a command's result.
pub fn exit_of(result: &Result<Exit>) -> Exit {
    match result {
        Ok(exit) => *exit,
        Err(error) if is_reader_gone(error) => Exit::Ok,
        Err(error) => Exit::of(error),
    }
}

/// A mistake in the command line that the parser cannot see.
pub fn usage(message: impl Into<String>, fix: impl Into<String>) -> Error {
    Error::remote(
        Kind::InvalidArgument,
        "USAGE".into(),
        message.into(),
        "the command line asks for something that cannot be done".into(),
        fix.into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_value_of_an_object_are_the_same() {
        let failure = schema::Failure::of(&Error::new(Reason::Internal, "a \"quoted\" message"));
        let text = envelope_text(&failure);
        assert!(text.starts_with("{\"schema\":1,\"kind\":\"error\",\"reason\":"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), envelope(&failure));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        assert_eq!(exit_of(&Err(reader_gone())), Exit::Ok);
        assert_eq!(exit_of(&Err(Error::new(Reason::Cancelled, "x"))), Exit::Cancelled);
        assert_eq!(exit_of(&Err(usage("x", "y"))), Exit::Usage);
    }

    #[test]
    fn every_error_of_the_catalogue_shows_why_and_fix() {
        for reason in Reason::ALL {
            let value = envelope(&schema::Failure::of(&Error::new(*reason, "m").under_request("r1")));
            assert_eq!(value["schema"], 1);
            assert_eq!(value["kind"], "error");
            assert_eq!(value["reason"], reason.word());
            for field in ["message", "why", "fix", "request_id"] {
                assert!(value[field].as_str().is_some_and(|t| !t.is_empty()), "{field} of {}", reason.word());
            }
            assert!(value["exit_code"].as_u64().is_some_and(|c| c > 0));
        }
    }
}
