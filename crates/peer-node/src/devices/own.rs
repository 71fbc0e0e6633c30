//! What only this machine's person may do: share and unshare devices, see all of them, keep leases, read the audit.

use super::book::Entry;
use super::remote::is_below;
use super::uses::{Told, Wish};
use super::{Devices, access};
use common::error::{Error, Reason, Result};
use common::status::to_status;
use device::audit::{Line, Outcome, Query, Record};
use device::model::Kind;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use proto::peer::v1 as wire;
use proto::peer::v1::local_device_service_server::{LocalDeviceService, LocalDeviceServiceServer};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;
use tonic::{Request, Response, Status};

/// Most lines of the audit in one answer.
const AUDIT_MAX: u32 = 1_000;

/// The service of the local socket.
#[derive(Clone)]
pub struct OwnGrpc(Devices);

type Answers<T> = BoxStream<'static, Result<T, Status>>;

fn reply<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|e| to_status(&e))
}

/// Answers of work that goes on while the call does; errors in words.
fn told<T: Send + 'static>(result: Result<BoxStream<'static, Result<T>>>) -> Result<Response<Answers<T>>, Status> {
    reply(result.map(|messages| messages.map(|m| m.map_err(|e| to_status(&e))).boxed()))
}

impl OwnGrpc {
    /// The service, for a tonic router.
    pub fn service(devices: Devices) -> LocalDeviceServiceServer<Self> {
        LocalDeviceServiceServer::new(Self(devices))
    }
}

impl Devices {
    /// All devices that this person may see.
    async fn list_all(&self, r: wire::ListAllDevicesRequest) -> wire::ListAllDevicesResponse {
        let near = |below: &str, shown: &str| is_below(shown, below) || is_below(below, shown);
        let below = r.below.clone();
        let asked = self.0.remote.all(move |c| near(&below, &c.shown()));
        let (mut devices, problems) = asked.await;
        devices.extend(self.list_for(&self.me()).devices);
        devices.retain(|d| (r.kind == 0 || d.kind == r.kind) && near(&r.below, &d.address));
        devices.sort_by(|a, b| crate::catalogue::names::order(&a.address, &b.address));
        wire::ListAllDevicesResponse { devices, problems }
    }

    /// Shares a device, or changes one. It works, or it is not shared and everything is as before.
    ///
    /// # Errors
    /// NOT_JOINED, NAME_INVALID, RESOURCE_INVALID, RESOURCE_REMOTE, STORE_LIMIT; those of the kind.
    pub async fn share(&self, share: wire::ShareDeviceRequest) -> Result<wire::LocalDevice> {
        if self.0.roster.office().is_none() {
            return Err(Error::new(Reason::NotJoined, "nothing can be shared yet"));
        }
        self.check_member(&self.me())?;
        let mut entry = Entry::new(share)?;
        let _one_at_a_time = self.0.managing.lock().await;
        let before = self.0.book.get(entry.kind, &entry.name);
        if let Some(before) = &before {
            // The same name in other letters is the same device, and goes on to be written as it was.
            entry.name.clone_from(&before.name);
            entry.share.name.clone_from(&before.name);
        }
        super::trust::settle(&mut entry, before.as_deref()).await?;
        let entry = Arc::new(entry);
        let mut done = self.open_device(&entry, before.as_deref()).await;
        let opened = done.is_ok();
        if opened {
            done = self.0.book.put(entry.clone()).await;
        }
        if let Err(error) = done {
            self.undo_share(&entry, before.as_deref(), opened).await;
            return Err(error);
        }
        self.stay(&entry.local_name()).await?;
        self.refresh_groups(&entry).await;
        self.note_own(&entry, "share").await?;
        self.open_doors().await;
        self.changed();
        Ok(self.own_device(&entry))
    }

    /// Everything as it was before a share that failed.
    async fn undo_share(&self, entry: &Entry, before: Option<&Entry>, opened: bool) {
        let undone = match before {
            // A drive that was not replaced yet goes on as it is.
            Some(before) if opened && before.kind == Kind::Drive => self.open_device(before, Some(entry)).await,
            Some(before) => self.open_device(before, Some(before)).await,
            // What was lent in the folder by an earlier share stays there.
            None if entry.kind == Kind::Disk => {
                self.0.lenders.lock().remove(&entry.local_name());
                Ok(())
            }
            None => self.close_device(entry, true, true).await,
        };
        if let Err(error) = undone {
            let problem = super::remote::own_problem(&entry.local_name(), &error);
            if before.is_some() {
                self.0.problems.lock().insert(entry.local_name(), problem);
            }
        }
    }

    /// Shares it no more.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN; RESOURCE_BUSY while something of others is in it and it is not forced, while second copies are on
    /// it and they are not to be wiped `now`, and for a printer that is in a group.
    pub async fn unshare(&self, name: &str, force: bool, now: bool) -> Result<()> {
        let entry = self.own_entry(name).await?;
        self.unshare_entry(&entry, force, now).await
    }

    /// A device of this machine by its address or name.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, RESOURCE_REMOTE, ADDRESS_AMBIGUOUS.
    pub(super) async fn own_entry(&self, name: &str) -> Result<Arc<Entry>> {
        let target = self.find(name).await?;
        if !target.below.is_empty() {
            return Err(access::unknown(name));
        }
        if target.node != self.me() {
            return Err(
                Error::new(Reason::ResourceRemote, format!("{name} is another machine's")).fix_is("unshare it there")
            );
        }
        self.0.book.get(target.kind, &target.name).ok_or_else(|| access::unknown(name))
    }

    pub(super) async fn unshare_entry(&self, entry: &Entry, force: bool, now: bool) -> Result<()> {
        let _one_at_a_time = self.0.managing.lock().await;
        // As it is by now.
        let entry = self.0.book.get(entry.kind, &entry.name).ok_or_else(|| access::unknown(&entry.local_name()))?;
        if let Some(group) = self.group_with(&entry) {
            return Err(Error::new(Reason::ResourceBusy, format!("{} prints on it", group.local_name()))
                .fix_is("share the group without it, or unshare the group first"));
        }
        self.close_device(&entry, force, now).await?;
        self.0.book.remove(entry.kind, &entry.name).await?;
        self.note_own(&entry, "unshare").await?;
        self.open_doors().await;
        self.changed();
        Ok(())
    }

    async fn note_own(&self, entry: &Entry, verb: &'static str) -> Result<()> {
        let who = access::caller(&*self.0.roster, &self.me())?;
        self.0.audit.write(Line::granted(&who, &entry.local_name(), verb)).await
    }

    fn own_device(&self, entry: &Entry) -> wire::LocalDevice {
        self.own_device_at(&self.node_name(), entry)
    }

    fn own_device_at(&self, node: &str, entry: &Entry) -> wire::LocalDevice {
        let device = self.describe_at(node, entry, &self.me(), common::model::Right::Manage);
        wire::LocalDevice { device: Some(device), share: Some(entry.share.clone()), problems: self.problems_of(entry) }
    }

    /// The newest lines of the audit.
    async fn read_audit(&self, r: wire::ReadDeviceAuditRequest) -> Result<wire::ReadDeviceAuditResponse> {
        let audit = self.0.audit.clone();
        audit.flush().await?;
        let work = move || {
            let query = Query { page_size: r.limit.min(AUDIT_MAX), newest_first: true, ..Query::default() };
            let page = audit.list(&query)?;
            let verified = if r.verify { Some(audit.verify()?) } else { None };
            Ok::<_, Error>((page, verified))
        };
        let done = tokio::task::spawn_blocking(work).await;
        let (page, verified) = done.map_err(|e| Error::internal("reading the audit").caused_by(e))??;
        let bad = verified.as_ref().and_then(|v| v.first_bad);
        let problem = bad.map(|at| wire::NodeProblem {
            reason: Reason::StoreCorrupt.word().to_owned(),
            message: format!("the audit is broken at record {at}"),
            why: "a record was changed, removed or added by something else than this program".to_owned(),
            fix: "treat what it says from there on as not proven; find out who wrote to the state directory".to_owned(),
        });
        Ok(wire::ReadDeviceAuditResponse {
            records: page.records.into_iter().map(wire_record).collect(),
            verified: verified.is_some() && bad.is_none(),
            problem,
        })
    }

    /// Takes a lease; what watchers are told, as a stream.
    async fn use_device(&self, r: wire::UseDeviceRequest) -> Result<BoxStream<'static, Result<wire::Lease>>> {
        let target = self.find(&r.device).await?;
        let mode = match r.mode() {
            wire::LeaseMode::Unspecified => wire::LeaseMode::Exclusive,
            mode => mode,
        };
        let wish = Wish {
            mode,
            purpose: String::new(),
            wait: r.wait,
            seconds: (r.seconds > 0).then(|| Duration::from_secs(r.seconds)),
        };
        let (states, end) = self.begin_use(target, wish).await?;
        Ok(lease_stream(states, end.drop_guard(), r.watch).boxed())
    }
}

/// The states of a lease: until it is held, or while the call lasts. A call that ends before ends the wish too.
fn lease_stream(
    states: watch::Receiver<Told>,
    guard: DropGuard,
    watch: bool,
) -> impl stream::Stream<Item = Result<wire::Lease>> + Send {
    stream::unfold(Some((states, guard, true)), move |state| async move {
        let (mut states, guard, first) = state?;
        if !first && states.changed().await.is_err() {
            return None;
        }
        let now = states.borrow_and_update().clone()?;
        match now {
            Ok(lease) if !watch && lease.state() == wire::LeaseState::Held => {
                guard.disarm();
                Some((Ok(lease), None))
            }
            Ok(lease) => Some((Ok(lease), Some((states, guard, false)))),
            Err(status) => Some((Err(common::status::from_status(&status)), None)),
        }
    })
}

fn wire_record(r: Record) -> wire::DeviceAuditRecord {
    wire::DeviceAuditRecord {
        sequence: r.sequence,
        time_ms: r.time_ms,
        person: r.who.person,
        machine: r.who.machine,
        device_id: r.who.device,
        resource: r.resource,
        verb: if r.outcome == Outcome::Ended { format!("{} ended", r.verb) } else { r.verb },
        granted: r.outcome != Outcome::Refused,
        reason: r.reason,
        repeated_count: u64::from(r.count.saturating_sub(1)),
    }
}

#[tonic::async_trait]
impl LocalDeviceService for OwnGrpc {
    async fn list_all_devices(
        &self,
        request: Request<wire::ListAllDevicesRequest>,
    ) -> Result<Response<wire::ListAllDevicesResponse>, Status> {
        reply(Ok(self.0.list_all(request.into_inner()).await))
    }

    async fn share_device(
        &self,
        request: Request<wire::ShareDeviceRequest>,
    ) -> Result<Response<wire::LocalDevice>, Status> {
        reply(self.0.share(request.into_inner()).await)
    }

    async fn unshare_device(
        &self,
        request: Request<wire::UnshareDeviceRequest>,
    ) -> Result<Response<wire::UnshareDeviceResponse>, Status> {
        let r = request.into_inner();
        reply(self.0.unshare(&r.device, r.force, r.now).await.map(|()| wire::UnshareDeviceResponse {}))
    }

    async fn list_own_devices(
        &self,
        _: Request<wire::ListOwnDevicesRequest>,
    ) -> Result<Response<wire::ListOwnDevicesResponse>, Status> {
        let node = self.0.node_name();
        let devices = self.0.0.book.all().iter().map(|e| self.0.own_device_at(&node, e)).collect();
        reply(Ok(wire::ListOwnDevicesResponse { devices }))
    }

    async fn read_device_audit(
        &self,
        request: Request<wire::ReadDeviceAuditRequest>,
    ) -> Result<Response<wire::ReadDeviceAuditResponse>, Status> {
        reply(self.0.read_audit(request.into_inner()).await)
    }

    type UseDeviceStream = Answers<wire::Lease>;

    async fn use_device(
        &self,
        request: Request<wire::UseDeviceRequest>,
    ) -> Result<Response<Self::UseDeviceStream>, Status> {
        told(self.0.use_device(request.into_inner()).await)
    }

    async fn release_device(
        &self,
        request: Request<wire::ReleaseDeviceRequest>,
    ) -> Result<Response<wire::ReleaseDeviceResponse>, Status> {
        let r = request.into_inner();
        let released = async {
            let target = self.0.find(&r.device).await?;
            match r.take_back {
                _ if !r.lease_id.is_empty() => self.0.give_back(&target, r.lease_id).await,
                true => self.0.give_back(&target, bytes::Bytes::new()).await,
                false => self.0.end_use(&target).await,
            }
        };
        reply(released.await.map(|()| wire::ReleaseDeviceResponse {}))
    }

    async fn list_jobs(
        &self,
        request: Request<wire::ListJobsRequest>,
    ) -> Result<Response<wire::ListJobsResponse>, Status> {
        reply(Ok(self.0.jobs_everywhere(request.get_ref().ended).await))
    }

    type RipDiscStream = Answers<wire::RipDiscResponse>;

    async fn rip_disc(&self, request: Request<wire::RipDiscRequest>) -> Result<Response<Self::RipDiscStream>, Status> {
        told(self.0.rip(request.into_inner()).await)
    }

    type ExportDiscStream = Answers<wire::ExportDiscResponse>;

    async fn export_disc(
        &self,
        request: Request<wire::ExportDiscRequest>,
    ) -> Result<Response<Self::ExportDiscStream>, Status> {
        told(self.0.export(request.into_inner()).await)
    }

    async fn list_borrowed(
        &self,
        request: Request<wire::ListBorrowedRequest>,
    ) -> Result<Response<wire::ListBorrowedResponse>, Status> {
        reply(Ok(self.0.spaces_everywhere(request.get_ref().lent).await))
    }

    type LeaveDiskStream = Answers<wire::LeaveProgress>;

    async fn leave_disk(
        &self,
        request: Request<wire::LeaveDiskRequest>,
    ) -> Result<Response<Self::LeaveDiskStream>, Status> {
        told(self.0.leave_disk(request.into_inner()).await)
    }

    async fn list_mirrors(
        &self,
        _: Request<wire::ListMirrorsRequest>,
    ) -> Result<Response<wire::ListMirrorsResponse>, Status> {
        reply(Ok(self.0.list_mirrors().await))
    }

    type MirrorToStream = Answers<wire::MirrorProgress>;

    async fn mirror_to(
        &self,
        request: Request<wire::MirrorToRequest>,
    ) -> Result<Response<Self::MirrorToStream>, Status> {
        told(self.0.mirror_to(request.into_inner()).await)
    }

    type RestoreMirrorStream = Answers<wire::MirrorProgress>;

    async fn restore_mirror(
        &self,
        request: Request<wire::RestoreMirrorRequest>,
    ) -> Result<Response<Self::RestoreMirrorStream>, Status> {
        told(self.0.restore_mirror(request.into_inner()).await)
    }
}
