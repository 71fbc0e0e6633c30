//! `atrium.v1.PrintService`.

mod convert;
mod streams;

use super::directory::{grant, principal};
use super::file::convert::invalid;
use super::file::{close, key, open};
use crate::app::answers::Once;
use crate::app::caller::Caller;
use crate::app::print::submit::{self, Begun};
use crate::app::print::{Job, accounts, jobs, owner, printers};
use crate::app::{App, records};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::status::{from_status, to_status};
use convert::{encode_job, encode_owned, encode_printer};
use prost::Message;
use proto::v1;
use proto::v1::print_service_server::PrintService;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Most printers that a machine names.
const KEEP_MAX: usize = 64;
/// Largest piece of a document.
const DATA_MAX: usize = 1 << 20;

/// Serves print queues.
#[derive(Clone)]
pub struct Print {
    app: App,
}

impl Print {
    /// The queues of this office.
    pub fn new(app: App) -> Self {
        Self { app }
    }

    async fn printers(&self, caller: Caller, request: v1::ListPrintersRequest) -> Result<v1::ListPrintersResponse> {
        let (found, next) = printers::list(&self.app, &caller, request.page_size, &request.page_token).await?;
        Ok(v1::ListPrintersResponse { printers: found.iter().map(encode_printer).collect(), next_page_token: next })
    }

    async fn submit(&self, caller: Caller, mut stream: Streaming<v1::PrintRequest>) -> Result<v1::PrintJob> {
        use v1::print_request::Part;
        let header = match self.receive(&mut stream).await? {
            Some(Part::Header(header)) => header,
            _ => return Err(invalid("header", "the first message has no header")),
        };
        // Of a PIN nothing is kept but its salted hash.
        let said = v1::PrintHeader { pin: String::new(), ..header.clone() };
        let key = key(&caller, "Print", &header.request_id, &said)?;
        let new = convert::new_job(header)?;
        let mut submission = match submit::begin(&self.app, &caller, new, key.as_ref()).await? {
            Begun::New(submission) => submission,
            Begun::Repeated(first) => return records::decode(first),
        };
        while let Some(part) = self.receive(&mut stream).await? {
            let Part::Data(data) = part else { return Err(invalid("header", "there is a second header")) };
            if data.is_empty() || data.len() > DATA_MAX {
                return Err(invalid("data", "a piece has not 1 byte to 1 MiB"));
            }
            submission = crate::app::entries::blocking(move || {
                submission.write(&data)?;
                Ok(submission)
            })
            .await?;
        }
        let once = Once::new(key, |job: &Job| Bytes::from(encode_job(job).encode_to_vec()));
        submission.finish(once).await?.into(|job| encode_job(&job), records::decode)
    }

    /// The next message, or none at the end.
    async fn receive(&self, stream: &mut Streaming<v1::PrintRequest>) -> Result<Option<v1::print_request::Part>> {
        let idle = self.app.settings.files.transfer_idle.get();
        let message = tokio::time::timeout(idle, stream.message())
            .await
            .map_err(|_| Error::new(Reason::IdleTimeout, "nothing came of the document for too long"))?
            .map_err(|status| from_status(&status))?;
        match message {
            None => Ok(None),
            Some(v1::PrintRequest { part: Some(part) }) => Ok(Some(part)),
            Some(_) => Err(invalid("part", "a message is empty")),
        }
    }

    async fn list_jobs(&self, caller: Caller, request: v1::ListPrintJobsRequest) -> Result<v1::ListPrintJobsResponse> {
        let query = jobs::Query {
            printer: request.printer,
            everyone: request.everyone,
            ended: request.ended,
            page_size: request.page_size,
            page_token: request.page_token,
        };
        let (found, next_page_token) = jobs::list(&self.app, &caller, query).await?;
        Ok(v1::ListPrintJobsResponse { jobs: found.iter().map(encode_job).collect(), next_page_token })
    }

    async fn register(
        &self,
        caller: Caller,
        request: v1::RegisterPrinterRequest,
    ) -> Result<v1::RegisterPrinterResponse> {
        let shown = printers::register(&self.app, &caller, convert::offer(request)?).await?;
        let mut printer = encode_printer(&shown);
        // What the person at the machine may do is another question.
        printer.my_right = 0;
        Ok(v1::RegisterPrinterResponse { printer: Some(printer), renew_seconds: crate::app::print::RENEW_SECONDS })
    }

    async fn claim(&self, caller: Caller, request: v1::ClaimPrintJobRequest) -> Result<v1::PrintJob> {
        let spool = convert::uuid(&request.spool_id, "spool_id")?;
        let id = convert::uuid(&request.id, "id")?;
        Ok(encode_owned(&owner::claim(&self.app, &caller, id, spool).await?))
    }

    async fn update(&self, caller: Caller, request: v1::UpdatePrintJobRequest) -> Result<v1::PrintJob> {
        let id = convert::uuid(&request.id, "id")?;
        Ok(encode_owned(&owner::update(&self.app, &caller, id, convert::report(request)?).await?))
    }

    async fn set_quota(&self, caller: Caller, request: v1::SetPrintQuotaRequest) -> Result<v1::PrintQuota> {
        let quota = convert::quota(request.quota)?;
        Ok(convert::encode_quota(&accounts::set_quota(&self.app, &caller, quota).await?))
    }

    async fn accounts(
        &self,
        caller: Caller,
        request: v1::ListPrintAccountsRequest,
    ) -> Result<v1::ListPrintAccountsResponse> {
        let days = (request.first_day, request.last_day);
        let (found, next_page_token) =
            accounts::list(&self.app, &caller, days, request.page_size, &request.page_token).await?;
        let accounts = found.into_iter().map(|a| v1::list_print_accounts_response::Account {
            user: a.user,
            job_count: a.jobs,
            sheets: a.sheets,
            size_bytes: a.bytes,
        });
        Ok(v1::ListPrintAccountsResponse { accounts: accounts.collect(), next_page_token })
    }
}

#[tonic::async_trait]
impl PrintService for Print {
    type WatchPrintJobsStream = ReceiverStream<Result<v1::WatchPrintJobsResponse, Status>>;
    type FetchPrintDocumentStream = ReceiverStream<Result<v1::FetchPrintDocumentResponse, Status>>;

    async fn list_printers(
        &self,
        request: Request<v1::ListPrintersRequest>,
    ) -> Result<Response<v1::ListPrintersResponse>, Status> {
        let (caller, request) = open(request);
        close(self.printers(caller, request).await)
    }

    async fn print(&self, request: Request<Streaming<v1::PrintRequest>>) -> Result<Response<v1::PrintJob>, Status> {
        let (caller, stream) = open(request);
        close(self.submit(caller, stream).await)
    }

    async fn list_print_jobs(
        &self,
        request: Request<v1::ListPrintJobsRequest>,
    ) -> Result<Response<v1::ListPrintJobsResponse>, Status> {
        let (caller, request) = open(request);
        close(self.list_jobs(caller, request).await)
    }

    async fn get_print_job(&self, request: Request<v1::GetPrintJobRequest>) -> Result<Response<v1::PrintJob>, Status> {
        let (caller, request) = open(request);
        let job = convert::uuid(&request.id, "id").and_then(|id| jobs::get(&self.app, &caller, id));
        close(job.map(|job| encode_job(&job)))
    }

    async fn cancel_print_job(
        &self,
        request: Request<v1::CancelPrintJobRequest>,
    ) -> Result<Response<v1::PrintJob>, Status> {
        let (caller, request) = open(request);
        let id = convert::uuid(&request.id, "id").map_err(|e| to_status(&e))?;
        close(jobs::cancel(&self.app, &caller, id).await.map(|job| encode_job(&job)))
    }

    async fn hold_print_job(
        &self,
        request: Request<v1::HoldPrintJobRequest>,
    ) -> Result<Response<v1::PrintJob>, Status> {
        let (caller, request) = open(request);
        let id = convert::uuid(&request.id, "id").map_err(|e| to_status(&e))?;
        close(jobs::hold(&self.app, &caller, id).await.map(|job| encode_job(&job)))
    }

    async fn release_print_job(
        &self,
        request: Request<v1::ReleasePrintJobRequest>,
    ) -> Result<Response<v1::PrintJob>, Status> {
        let (caller, request) = open(request);
        let id = convert::uuid(&request.id, "id").map_err(|e| to_status(&e))?;
        let pin = (!request.pin.is_empty()).then_some(request.pin);
        close(jobs::release(&self.app, &caller, id, pin).await.map(|job| encode_job(&job)))
    }

    async fn set_print_job_priority(
        &self,
        request: Request<v1::SetPrintJobPriorityRequest>,
    ) -> Result<Response<v1::PrintJob>, Status> {
        let (caller, request) = open(request);
        let id = convert::uuid(&request.id, "id").map_err(|e| to_status(&e))?;
        let priority = convert::priority(request.priority).map_err(|e| to_status(&e))?;
        close(jobs::set_priority(&self.app, &caller, id, priority).await.map(|job| encode_job(&job)))
    }

    async fn register_printer(
        &self,
        request: Request<v1::RegisterPrinterRequest>,
    ) -> Result<Response<v1::RegisterPrinterResponse>, Status> {
        let (caller, request) = open(request);
        close(self.register(caller, request).await)
    }

    async fn withdraw_printer(
        &self,
        request: Request<v1::WithdrawPrinterRequest>,
    ) -> Result<Response<v1::WithdrawPrinterResponse>, Status> {
        let (caller, request) = open(request);
        let done = printers::withdraw(&self.app, &caller, &request.name).await;
        close(done.map(|()| v1::WithdrawPrinterResponse {}))
    }

    async fn withdraw_other_printers(
        &self,
        request: Request<v1::WithdrawOtherPrintersRequest>,
    ) -> Result<Response<v1::WithdrawOtherPrintersResponse>, Status> {
        let (caller, request) = open(request);
        if request.keep.len() > KEEP_MAX {
            return Err(to_status(&invalid("keep", "a machine has no more than 64 printers")));
        }
        let done = printers::withdraw_others(&self.app, &caller, &request.keep).await;
        close(done.map(|withdrawn| v1::WithdrawOtherPrintersResponse { withdrawn }))
    }

    async fn watch_print_jobs(
        &self,
        request: Request<v1::WatchPrintJobsRequest>,
    ) -> Result<Response<Self::WatchPrintJobsStream>, Status> {
        let (caller, _) = open(request);
        close(owner::Watcher::open(self.app.clone(), &caller).map(|w| streams::watch(w, self.app.shutdown.clone())))
    }

    async fn claim_print_job(
        &self,
        request: Request<v1::ClaimPrintJobRequest>,
    ) -> Result<Response<v1::PrintJob>, Status> {
        let (caller, request) = open(request);
        close(self.claim(caller, request).await)
    }

    async fn fetch_print_document(
        &self,
        request: Request<v1::FetchPrintDocumentRequest>,
    ) -> Result<Response<Self::FetchPrintDocumentStream>, Status> {
        let (caller, request) = open(request);
        let id = convert::uuid(&request.id, "id").map_err(|e| to_status(&e))?;
        let document = owner::document(&self.app, &caller, id, request.attempt, request.offset_bytes).await;
        close(document.map(|d| streams::document(d, self.app.settings.files.transfer_idle.get())))
    }

    async fn update_print_job(
        &self,
        request: Request<v1::UpdatePrintJobRequest>,
    ) -> Result<Response<v1::PrintJob>, Status> {
        let (caller, request) = open(request);
        close(self.update(caller, request).await)
    }

    async fn grant_printer(&self, request: Request<v1::GrantPrinterRequest>) -> Result<Response<v1::Printer>, Status> {
        let (caller, request) = open(request);
        let (to, right) = grant(request.grant).map_err(|e| to_status(&e))?;
        let done = printers::grant(&self.app, &caller, &request.printer, to, right).await;
        close(done.map(|p| encode_printer(&p)))
    }

    async fn revoke_printer(
        &self,
        request: Request<v1::RevokePrinterRequest>,
    ) -> Result<Response<v1::Printer>, Status> {
        let (caller, request) = open(request);
        let from = principal(request.principal).map_err(|e| to_status(&e))?;
        let done = printers::revoke(&self.app, &caller, &request.printer, from).await;
        close(done.map(|p| encode_printer(&p)))
    }

    async fn remove_printer(
        &self,
        request: Request<v1::RemovePrinterRequest>,
    ) -> Result<Response<v1::RemovePrinterResponse>, Status> {
        let (caller, request) = open(request);
        let done = printers::remove(&self.app, &caller, &request.name).await;
        close(done.map(|()| v1::RemovePrinterResponse {}))
    }

    async fn move_printer(&self, request: Request<v1::MovePrinterRequest>) -> Result<Response<v1::Printer>, Status> {
        let (caller, request) = open(request);
        let done = printers::move_to(&self.app, &caller, &request.name, &request.device_id).await;
        close(done.map(|p| encode_printer(&p)))
    }

    async fn set_print_quota(
        &self,
        request: Request<v1::SetPrintQuotaRequest>,
    ) -> Result<Response<v1::PrintQuota>, Status> {
        let (caller, request) = open(request);
        close(self.set_quota(caller, request).await)
    }

    async fn list_print_quotas(
        &self,
        request: Request<v1::ListPrintQuotasRequest>,
    ) -> Result<Response<v1::ListPrintQuotasResponse>, Status> {
        let (caller, request) = open(request);
        let page = accounts::quotas(&self.app, &caller, request.page_size, &request.page_token).await;
        close(page.map(|(found, next_page_token)| v1::ListPrintQuotasResponse {
            quotas: found.iter().map(convert::encode_quota).collect(),
            next_page_token,
        }))
    }

    async fn list_print_accounts(
        &self,
        request: Request<v1::ListPrintAccountsRequest>,
    ) -> Result<Response<v1::ListPrintAccountsResponse>, Status> {
        let (caller, request) = open(request);
        close(self.accounts(caller, request).await)
    }
}
