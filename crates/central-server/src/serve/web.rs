//! `/metrics` and `/healthz` over HTTP, for monitoring. Read only, without access control: on loopback by default.

use super::Shared;
use crate::app::{disk, print};
use crate::metrics::{CONTENT_TYPE, Readings};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at a time; more wait in the kernel.
const CONNECTIONS: usize = 64;
/// A request that takes longer to arrive ends its connection, and so does a pause between two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(300);

/// Serves until told to stop.
pub(super) async fn serve(listener: TcpListener, shared: Shared, stop: CancellationToken) {
    let router = Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(shared);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let open = TaskTracker::new();
    while let Some(Ok(place)) = stop.run_until_cancelled(places.clone().acquire_owned()).await {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { break };
        let Ok((stream, _)) = accepted else {
            // Out of files: they come back when connections end.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let stop = stop.clone();
        open.spawn(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            let _ = stop.run_until_cancelled(tokio::time::timeout(LIFE, connection)).await;
            drop(place);
        });
    }
    open.close();
    open.wait().await;
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let text = shared.metrics.render(&readings(&shared));
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text)
}

/// 200 with "ok", or 503 with a line for each problem.
async fn healthz(State(shared): State<Shared>) -> impl IntoResponse {
    let problems = shared.app.health.problems();
    if problems.is_empty() && !shared.app.store.is_failed() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let lines = problems.iter().map(|p| format!("{}: {}\n", p.reason, p.message)).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

fn readings(shared: &Shared) -> Readings {
    let app = &shared.app;
    let stats = &shared.stats;
    let refused = stats.refused_full() + stats.refused_origin();
    let failed = stats.handshakes_failed() + stats.handshakes_timed_out() + stats.handshakes_dropped();
    shared.metrics.connections_seen(refused, failed);
    let chunks = app.chunks.stats();
    shared.metrics.print_jobs_seen(app.prints.ended_counts());
    // A store that cannot be read is told of by `healthy`.
    let waiting = print::records::totals(&app.store).unwrap_or_default();
    let problems = app.health.problems().len() as u64;
    Readings {
        connections: shared.connections(),
        revision: app.store.revision(),
        stored_bytes: chunks.stored_bytes,
        chunks: chunks.chunk_count,
        disk_free_bytes: disk::free_bytes(&app.settings.server.data_directory).unwrap_or(0),
        print_jobs: waiting.job_count,
        print_spool_bytes: waiting.size_bytes,
        healthy: problems == 0 && !app.store.is_failed(),
        problems,
    }
}
