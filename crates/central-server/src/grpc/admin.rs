//! `atrium.v1.AdminService`.

use super::access;
use crate::app::caller::Caller;
use crate::app::{App, admin, audit, backup, disk, reclaim};
use crate::serve::Shared;
use common::error::{Error, Reason, Result};
use common::status::to_status;
use common::wire::timestamp_if_known as timestamp;
use proto::v1;
use proto::v1::admin_service_server::AdminService;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Progress messages that wait; a caller that does not read slows the work down.
const WAITING: usize = 4;
/// Damaged chunks that are listed by name.
const DAMAGED_LISTED: usize = 1_000;

/// Information and upkeep.
#[derive(Clone)]
pub struct Admin {
    shared: Shared,
    /// One backup at a time: two would write the same files.
    backup: Arc<Semaphore>,
    /// One scrub at a time: two would only halve each other's rate.
    scrub: Arc<Semaphore>,
}

type Progress<T> = mpsc::Sender<Result<T, Status>>;

impl Admin {
    /// The service of this server.
    pub fn new(shared: Shared) -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Self { shared, backup: one(), scrub: one() }
    }

    fn app(&self) -> App {
        self.shared.app.clone()
    }

    /// Runs blocking work that tells its progress, as the stream of a response.
    fn streamed<T: Send + 'static>(
        work: impl FnOnce(&Progress<T>) -> Result<()> + Send + 'static,
    ) -> Response<ReceiverStream<Result<T, Status>>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        // Not waited for: it ends by itself when the caller is gone, since its next message finds nobody.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = work(&sender) {
                let _ = sender.blocking_send(Err(to_status(&error)));
            }
        });
        Response::new(ReceiverStream::new(receiver))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("upkeep ran into a defect").caused_by(e))?
}

fn turn(of: &Arc<Semaphore>, busy: &str) -> Result<OwnedSemaphorePermit> {
    of.clone().try_acquire_owned().map_err(|_| Error::new(Reason::Overloaded, busy))
}

fn gone() -> Error {
    Error::new(Reason::Cancelled, "the caller has gone away")
}

fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or_default()
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_server_info(
        &self,
        _: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        let app = &self.shared.app;
        Ok(Response::new(v1::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            min_client_version: admin::MIN_CLIENT_VERSION.to_owned(),
            features: admin::FEATURES.iter().map(|f| (*f).to_owned()).collect(),
            office: app.office.name.clone(),
            time: timestamp(app.clock.now_ms()),
        }))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        let app = self.app();
        let connected = self.shared.pipeline.streams().devices(access::WATCH);
        let status = blocking(move || {
            let _ = disk::look(&app);
            admin::status(&app)
        })
        .await?;
        let problems: Vec<_> = status.problems.into_iter().map(problem_message).collect();
        Ok(Response::new(v1::GetStatusResponse {
            healthy: problems.is_empty(),
            problems,
            user_count: status.user_count,
            device_count: status.device_count,
            connected_count: connected as u64,
            entry_count: status.entry_count,
            used_bytes: status.used_bytes,
            stored_bytes: status.stored_bytes,
            disk_free_bytes: status.disk_free_bytes,
            revision: status.revision,
            engine: status.engine.to_owned(),
            start_time: timestamp(status.start_ms),
            snapshot_time: timestamp(status.snapshot_ms),
        }))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let request = request.into_inner();
        let query = audit::Query {
            page_size: request.page_size,
            page_token: request.page_token,
            actor: request.actor,
            action: request.action,
            newest_first: request.newest_first,
        };
        let store = self.shared.app.store.clone();
        let page = blocking(move || audit::list(&store, &query)).await?;
        Ok(Response::new(v1::ListAuditResponse {
            records: page.records.into_iter().map(audit_message).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn verify_audit(
        &self,
        _: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        let store = self.shared.app.store.clone();
        let verified = blocking(move || audit::verify(&store)).await?;
        Ok(Response::new(v1::VerifyAuditResponse {
            record_count: verified.record_count,
            intact: verified.first_bad.is_none(),
            first_bad_sequence: verified.first_bad.unwrap_or(0),
            head: verified.head.to_vec().into(),
        }))
    }

    type BackupStream = ReceiverStream<Result<v1::BackupResponse, Status>>;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let (actor, app) = (caller(&request).actor(), self.app());
        let directory = PathBuf::from(request.into_inner().directory);
        let turn = turn(&self.backup, "a backup is being written already")?;
        let note = audit::Note {
            actor,
            action: "backup",
            subject: "server".to_owned(),
            success: true,
            detail: "begun".to_owned(),
        };
        audit::append(&app, note).await?;
        Ok(Self::streamed(move |sender| {
            let _turn = turn;
            let mut told = 0;
            let (manifest, last) = backup::write(&app, &directory, &mut |progress| {
                // Every 16 MiB; the copying does not stop for a caller who went away, so that the backup is whole.
                if progress.copied_bytes >= told + (16 << 20) {
                    told = progress.copied_bytes;
                    let message = v1::BackupResponse {
                        copied_bytes: progress.copied_bytes,
                        total_bytes: progress.total_bytes,
                        ..v1::BackupResponse::default()
                    };
                    let _ = sender.try_send(Ok(message));
                }
            })?;
            tracing::info!(revision = manifest.revision, bytes = last.total_bytes, "backup written");
            let message = v1::BackupResponse {
                copied_bytes: last.copied_bytes,
                total_bytes: last.total_bytes,
                done: true,
                revision: manifest.revision,
            };
            sender.blocking_send(Ok(message)).map_err(|_| gone())
        }))
    }

    type ScrubStream = ReceiverStream<Result<v1::ScrubResponse, Status>>;

    async fn scrub(&self, request: Request<v1::ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        let app = self.app();
        let rate = request.into_inner().rate_bytes_per_second;
        let turn = turn(&self.scrub, "the content is being checked already")?;
        Ok(Self::streamed(move |sender| {
            let _turn = turn;
            let message = |progress: &common::chunk::ScrubProgress| v1::ScrubResponse {
                chunk_count: progress.chunk_count,
                read_bytes: progress.read_bytes,
                total_bytes: progress.total_bytes,
                ..v1::ScrubResponse::default()
            };
            let report = reclaim::scrub(&app, rate, |progress| match sender.blocking_send(Ok(message(progress))) {
                Ok(()) if !app.shutdown.is_cancelled() => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            })?;
            if !report.complete {
                return Err(if app.shutdown.is_cancelled() { super::shutting_down() } else { gone() });
            }
            let damaged_files = reclaim::files_hit(&app, &report.damaged)?;
            let last = v1::ScrubResponse {
                damaged: report.damaged.iter().take(DAMAGED_LISTED).map(ToString::to_string).collect(),
                damaged_files,
                done: true,
                ..message(&report.progress)
            };
            sender.blocking_send(Ok(last)).map_err(|_| gone())
        }))
    }

    async fn reclaim_space(
        &self,
        _: Request<v1::ReclaimSpaceRequest>,
    ) -> Result<Response<v1::ReclaimSpaceResponse>, Status> {
        let report = reclaim::pass(&self.shared.app).await?;
        let unused = self.shared.app.chunks.stats().chunk_count.saturating_sub(report.marked);
        Ok(Response::new(v1::ReclaimSpaceResponse {
            // Chunks that are there and were not found referred to; an estimate, since a reference may count twice.
            candidate_count: unused,
            removed_count: report.removed_chunks,
            freed_bytes: report.freed_bytes,
        }))
    }
}

fn problem_message(problem: admin::Problem) -> v1::Problem {
    v1::Problem { reason: problem.reason.to_owned(), message: problem.message, why: problem.why, fix: problem.fix }
}

fn audit_message(record: audit::AuditRecord) -> v1::AuditRecord {
    v1::AuditRecord {
        sequence: record.sequence,
        time: timestamp(record.time_ms),
        actor: record.actor,
        action: record.action,
        subject: record.subject,
        success: record.success,
        detail: record.detail,
        hash: record.hash.to_vec().into(),
    }
}
