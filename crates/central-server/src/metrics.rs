//! Numbers for monitoring, in OpenMetrics text. Labels are methods of the contract and gRPC codes, so their number is
//! bounded; never a name of a user, a file or an address.

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;
use tonic::Code;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The label of calls to methods that do not exist.
pub const UNKNOWN_METHOD: &str = "unknown";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMethod {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTask {
    task: &'static str,
}

/// What is asked for when the numbers are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readings {
    /// Open connections, those on the administration socket included.
    pub connections: u64,
    /// Last durable revision of the store.
    pub revision: u64,
    /// Bytes in segment files.
    pub stored_bytes: u64,
    /// Chunks in the index.
    pub chunks: u64,
    /// Free bytes of the data file system.
    pub disk_free_bytes: u64,
    /// Print jobs that have not ended.
    pub print_jobs: u64,
    /// Bytes of their documents.
    pub print_spool_bytes: u64,
    /// Whether nothing is wrong.
    pub healthy: bool,
    /// Problems that upkeep has found and that are not mended.
    pub problems: u64,
}

/// All numbers.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    calls: Family<Outcome, Counter>,
    durations: Family<OfMethod, Histogram>,
    in_flight: Gauge,
    sent: Counter,
    received: Counter,
    refused_connections: Counter,
    failed_handshakes: Counter,
    panics: Counter,
    task_runs: Family<OfTask, Counter>,
    task_failures: Family<OfTask, Counter>,
    print_ended: Family<OfState, Counter>,
    print_jobs: Gauge,
    print_spool_bytes: Gauge,
    connections: Gauge,
    revision: Gauge,
    stored_bytes: Gauge,
    chunks: Gauge,
    disk_free_bytes: Gauge,
    healthy: Gauge,
    problems: Gauge,
}

/// 0.5 ms to about 2 minutes in steps of four: calls from a look-up to a long transfer.
fn duration_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 4.0, 10))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("atrium");
        let calls = Family::<Outcome, Counter>::default();
        let durations = Family::<OfMethod, Histogram>::new_with_constructor(duration_histogram);
        let task_runs = Family::<OfTask, Counter>::default();
        let task_failures = Family::<OfTask, Counter>::default();
        let metrics = Self {
            calls,
            durations,
            in_flight: Gauge::default(),
            sent: Counter::default(),
            received: Counter::default(),
            refused_connections: Counter::default(),
            failed_handshakes: Counter::default(),
            panics: Counter::default(),
            task_runs,
            task_failures,
            print_ended: Family::default(),
            print_jobs: Gauge::default(),
            print_spool_bytes: Gauge::default(),
            connections: Gauge::default(),
            revision: Gauge::default(),
            stored_bytes: Gauge::default(),
            chunks: Gauge::default(),
            disk_free_bytes: Gauge::default(),
            healthy: Gauge::default(),
            problems: Gauge::default(),
            registry: Mutex::new(Registry::default()),
        };
        let r = &mut registry;
        r.register("build", "Version of the program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        r.register("rpc", "Finished calls by method and code", metrics.calls.clone());
        let seconds = || Unit::Seconds;
        r.register_with_unit("rpc_duration", "Time from request to the end", seconds(), metrics.durations.clone());
        r.register("rpc_in_flight", "Calls that are going on", metrics.in_flight.clone());
        r.register_with_unit("rpc_sent", "Bytes of response bodies", Unit::Bytes, metrics.sent.clone());
        r.register_with_unit("rpc_received", "Bytes of request bodies", Unit::Bytes, metrics.received.clone());
        r.register("connections_refused", "Connections beyond the limit", metrics.refused_connections.clone());
        r.register("tls_handshakes_failed", "Handshakes that failed", metrics.failed_handshakes.clone());
        r.register("panics", "Defects that ended a call", metrics.panics.clone());
        r.register("task_runs", "Passes of background tasks", metrics.task_runs.clone());
        r.register("task_failures", "Failed passes of background tasks", metrics.task_failures.clone());
        r.register("connections", "Open connections", metrics.connections.clone());
        r.register("store_revision", "Last durable revision", metrics.revision.clone());
        r.register_with_unit("chunk_stored", "Size of segment files", Unit::Bytes, metrics.stored_bytes.clone());
        r.register("chunks", "Chunks in the index", metrics.chunks.clone());
        r.register_with_unit("disk_free", "Free space for data", Unit::Bytes, metrics.disk_free_bytes.clone());
        r.register("print_jobs_ended", "Print jobs by how they ended", metrics.print_ended.clone());
        r.register("print_jobs", "Print jobs that have not ended", metrics.print_jobs.clone());
        r.register_with_unit("print_spool", "Documents that wait", Unit::Bytes, metrics.print_spool_bytes.clone());
        r.register("healthy", "1 if nothing is wrong", metrics.healthy.clone());
        r.register("problems", "Problems that are not mended", metrics.problems.clone());
        *metrics.registry.lock() = registry;
        metrics
    }
}

impl Metrics {
    /// A call begins.
    pub fn call_began(&self) {
        self.in_flight.inc();
    }

    /// A call has ended.
    pub fn call_ended(&self, method: &'static str, code: Code, took: Duration) {
        self.in_flight.dec();
        self.calls.get_or_create(&Outcome { method, code: code_word(code) }).inc();
        self.durations.get_or_create(&OfMethod { method }).observe(took.as_secs_f64());
    }

    /// Bytes of a response went out.
    pub fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }

    /// Bytes of a request came in.
    pub fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }

    /// A handler panicked.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// A background task made a pass.
    pub fn task_ran(&self, task: &'static str, well: bool) {
        self.task_runs.get_or_create(&OfTask { task }).inc();
        if !well {
            self.task_failures.get_or_create(&OfTask { task }).inc();
        }
    }

    /// Takes over what the acceptor has counted since the start.
    pub fn connections_seen(&self, refused: u64, failed_handshakes: u64) {
        catch_up(&self.refused_connections, refused);
        catch_up(&self.failed_handshakes, failed_handshakes);
    }

    /// Takes over how many print jobs were completed, canceled and aborted since the start.
    pub fn print_jobs_seen(&self, [completed, canceled, aborted]: [u64; 3]) {
        for (state, total) in [("completed", completed), ("canceled", canceled), ("aborted", aborted)] {
            catch_up(&self.print_ended.get_or_create(&OfState { state }), total);
        }
    }

    /// Everything as text.
    pub fn render(&self, now: &Readings) -> String {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.connections.set(signed(now.connections));
        self.revision.set(signed(now.revision));
        self.stored_bytes.set(signed(now.stored_bytes));
        self.chunks.set(signed(now.chunks));
        self.disk_free_bytes.set(signed(now.disk_free_bytes));
        self.print_jobs.set(signed(now.print_jobs));
        self.print_spool_bytes.set(signed(now.print_spool_bytes));
        self.healthy.set(i64::from(now.healthy));
        self.problems.set(signed(now.problems));
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry.lock());
        text
    }
}

fn catch_up(counter: &Counter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// The code as its name in the gRPC specification.
pub fn code_word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_in_the_text() {
        let metrics = Metrics::default();
        metrics.call_began();
        metrics.call_ended("/a/B", Code::NotFound, Duration::from_millis(3));
        metrics.sent(100);
        metrics.task_ran("snapshot", false);
        metrics.connections_seen(2, 3);
        metrics.connections_seen(2, 4);
        metrics.print_jobs_seen([5, 1, 0]);
        let text = metrics.render(&Readings {
            connections: 7,
            healthy: true,
            problems: 2,
            print_jobs: 4,
            ..Readings::default()
        });
        for line in [
            "atrium_rpc_total{method=\"/a/B\",code=\"NOT_FOUND\"} 1",
            "atrium_rpc_duration_seconds_count{method=\"/a/B\"} 1",
            "atrium_rpc_in_flight 0",
            "atrium_rpc_sent_bytes_total 100",
            "atrium_task_failures_total{task=\"snapshot\"} 1",
            "atrium_connections_refused_total 2",
            "atrium_tls_handshakes_failed_total 4",
            "atrium_connections 7",
            "atrium_print_jobs_ended_total{state=\"completed\"} 5",
            "atrium_print_jobs 4",
            "atrium_print_spool_bytes 0",
            "atrium_healthy 1",
            "atrium_problems 2",
            "atrium_build_info{version=\"",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
