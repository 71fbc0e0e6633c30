//! Progress of a peer's transfer: a bar on a terminal, JSON lines with `--json`, nothing otherwise. On standard error.

use crate::output::Output;
use crate::output::format::{bytes, count, duration, safe};
use crate::output::schema::PeerTransfer;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// JSON lines come at most this often.
const EVERY: Duration = Duration::from_millis(250);

/// Shows one transfer.
pub(super) struct Display {
    out: Output,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Display {
    pub(super) fn new(out: &Output) -> Self {
        let bar = out.progress.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
            let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { out: out.clone(), bar, last_line: None }
    }

    pub(super) fn show(&mut self, t: &PeerTransfer, now: Instant) {
        if let Some(bar) = &self.bar {
            bar.set_length(t.total_bytes.max(1));
            bar.set_position(t.done_bytes.min(t.total_bytes.max(1)));
            bar.set_message(text(t));
        } else if self.out.json && self.last_line.is_none_or(|last| now - last >= EVERY) {
            self.last_line = Some(now);
            self.out.err_line(&crate::output::envelope_text(t));
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        // A bar that was left standing would be mixed up with an error message.
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How far it is, how fast, from how many, and how long still.
pub(super) fn text(t: &PeerTransfer) -> String {
    match t.state.as_str() {
        "listing" => return "looking up what there is".to_owned(),
        "waiting" => {
            let why = t.problem.as_ref().map_or_else(|| "nobody who has it is there".to_owned(), |p| safe(&p.why));
            return format!("{} of {}, waiting: {why}", bytes(t.done_bytes), bytes(t.total_bytes));
        }
        "paused" => return format!("{} of {}, paused", bytes(t.done_bytes), bytes(t.total_bytes)),
        _ => {}
    }
    let mut text = format!("{} of {}", bytes(t.done_bytes), bytes(t.total_bytes));
    if t.file_count > 1 {
        text.push_str(&format!(", {} of {} files", t.done_file_count, t.file_count));
    }
    let sources = t.sources.iter().filter(|s| s.bytes_per_second > 0).count() as u64;
    text.push_str(&format!(", {}/s from {}", bytes(t.bytes_per_second), count(sources, "source", "sources")));
    if let Some(left) = t.seconds_left {
        text.push_str(&format!(", {} left", duration(Duration::from_secs(left))));
    }
    if matches!(t.limit.as_str(), "cap" | "yield" | "disk") {
        text.push_str(&format!(" (held back by {})", reason(&t.limit)));
    }
    text
}

fn reason(limit: &str) -> &'static str {
    match limit {
        "cap" => "the limit that you have set",
        "yield" => "other traffic of this machine",
        _ => "the disk",
    }
}

/// A finished transfer in one line.
pub(super) fn summary(t: &PeerTransfer) -> String {
    let mut text = format!("got {}", count(t.file_count, "file", "files"));
    let took = duration(Duration::from_millis(t.elapsed_ms));
    text.push_str(&format!(", {} in {took}", bytes(t.total_bytes)));
    let from: Vec<String> = t
        .sources
        .iter()
        .filter(|s| s.received_bytes > 0)
        .map(|s| format!("{} {}", safe(&s.node_name), bytes(s.received_bytes)))
        .collect();
    match from.len() {
        0 if t.total_bytes > 0 => text.push_str(", all of it was here already"),
        0 => {}
        1..=4 => text.push_str(&format!(", from {}", from.join(", "))),
        n => text.push_str(&format!(", from {n} machines")),
    }
    if let Some(ratio) = t.floor_ratio {
        text.push_str(&format!("; {ratio:.2} times the least possible time"));
    }
    for bad in t.sources.iter().filter(|s| s.bad_chunk_count > 0) {
        let chunks = count(bad.bad_chunk_count, "damaged chunk", "damaged chunks");
        text.push_str(&format!("\n{} sent {chunks}, which came from others again", safe(&bad.node_name)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::schema::TransferSource;
    use proto::peer::v1 as wire;

    fn transfer(state: i32) -> PeerTransfer {
        let source = |name: &str, bad| wire::SourceProgress {
            node_name: name.into(),
            received_bytes: 1 << 20,
            rate: 1 << 19,
            bad_chunk_count: bad,
            way: "direct".into(),
        };
        PeerTransfer::from(wire::TransferProgress {
            state,
            total_bytes: 4 << 20,
            done_bytes: 2 << 20,
            file_count: 3,
            done_file_count: 1,
            rate: 1 << 20,
            sources: vec![source("acme/anna-pc", 0), source("acme/bert\u{1b}-pc", 2)],
            floor_ratio: 1.054,
            elapsed_ms: 2100,
            limit: "cap".into(),
            ..Default::default()
        })
    }

    #[test]
    fn a_running_transfer_tells_rate_sources_and_time_left() {
        let said = text(&transfer(2));
        for part in ["2.0 MiB of 4.0 MiB", "1 of 3 files", "1.0 MiB/s from 2 sources", "2 s left", "limit that you"] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
        assert!(text(&transfer(3)).contains("waiting"));
        assert!(text(&transfer(4)).contains("paused"));
    }

    #[test]
    fn a_finished_one_tells_where_from_and_who_was_wrong() {
        let said = summary(&transfer(5));
        for part in ["3 files", "4.0 MiB", "acme/anna-pc 1.0 MiB", "1.05 times", "bert?-pc sent 2 damaged chunks"] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
        let mut local = transfer(5);
        local.sources = Vec::<TransferSource>::new();
        assert!(summary(&local).contains("here already"));
    }
}
