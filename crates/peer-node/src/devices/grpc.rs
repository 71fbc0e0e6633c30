//! `DeviceService`, at both of its ends.
//!
//! For other nodes: the caller is the device at the other end of the connection, and `device` names one of this machine.
//! On the local socket: the caller is this machine, `device` is an address, and a call about another machine's device is
//! passed on to that machine, message by message, with its answers and errors unchanged.

use super::Devices;
use super::address::{self, Target};
use super::remote::{Client, MESSAGE_MAX};
use crate::net::NodeIdentity;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::status::to_status;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use http::Extensions;
use proto::peer::v1 as wire;
use proto::peer::v1::device_service_server::{DeviceService, DeviceServiceServer};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long a caller may send nothing in the middle of a call: whoever is gone keeps no place for ever.
const SILENCE: Duration = Duration::from_secs(120);

/// Where calls come from.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// Other nodes, known by their connections.
    Nodes(fn(&Extensions) -> Option<DeviceId>),
    /// The person of this machine.
    Local,
}

/// The device at the other end of a node's connection.
pub fn by_connection(extensions: &Extensions) -> Option<DeviceId> {
    extensions.get::<NodeIdentity>().map(|identity| identity.device)
}

/// The service.
#[derive(Clone)]
pub struct DeviceGrpc {
    devices: Devices,
    side: Side,
}

/// Messages of a call's answer.
pub type Answers<T> = BoxStream<'static, Result<T, Status>>;
/// Messages of a call.
pub type Asked<T> = BoxStream<'static, Result<T>>;

/// Which machine a call is for.
enum Aim {
    /// This one: the device's name here.
    Here(String),
    /// Another one.
    There(Box<Client>, String),
}

fn reply<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|e| to_status(&e))
}

/// A stream of this machine's answers.
fn answers<T: Send + 'static>(result: Result<Asked<T>>) -> Result<Response<Answers<T>>, Status> {
    reply(result.map(|messages| messages.map_err(|e| to_status(&e)).boxed()))
}

/// A stream of another machine's answers.
fn passed<T: Send + 'static>(answer: Result<Response<Streaming<T>>, Status>) -> Result<Response<Answers<T>>, Status> {
    Ok(Response::new(answer?.into_inner().boxed()))
}

fn missing_header<T>() -> Result<T, Status> {
    Err(to_status(&Error::new(Reason::FieldInvalid, "the first message has no header")))
}

impl DeviceGrpc {
    /// The service, for a tonic router.
    pub fn service(devices: Devices, side: Side) -> DeviceServiceServer<Self> {
        DeviceServiceServer::new(Self { devices, side })
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    fn caller(&self, extensions: &Extensions) -> Result<DeviceId, Status> {
        let device = match self.side {
            Side::Local => Some(self.devices.me()),
            Side::Nodes(identify) => identify(extensions),
        };
        let unknown = || Error::new(Reason::DeviceRequired, "the caller has not shown a key");
        let device = device.ok_or_else(unknown).map_err(|e| to_status(&e))?;
        self.devices.check_member(&device).map_err(|e| to_status(&e))?;
        Ok(device)
    }

    async fn aim(&self, caller: &DeviceId, device: &str) -> Result<Aim, Status> {
        let aimed = async {
            if let Side::Nodes(_) = self.side {
                let (kind, name) = address::local(device)?;
                return Ok(Aim::Here(self.devices.written(caller, kind, &name)));
            }
            let target: Target = self.devices.find(device).await?;
            if !target.below.is_empty() {
                return Err(super::access::unknown(device));
            }
            let name = target.local_name();
            if target.node == self.devices.me() {
                return Ok(Aim::Here(name));
            }
            Ok(Aim::There(Box::new(self.devices.client(target.node).await?), name))
        };
        aimed.await.map_err(|e: Error| to_status(&e))
    }

    /// A call that is a stream, done here or passed on.
    async fn streamed<M: Streamed, R>(
        &self,
        request: Request<Streaming<M>>,
        here: impl FnOnce(Devices, DeviceId, M::Header, Asked<M::Part>) -> BoxFuture<'static, Result<R>> + Send,
        there: impl FnOnce(Client, ReceiverStream<M>) -> BoxFuture<'static, Result<Response<R>, Status>> + Send,
    ) -> Result<Response<R>, Status> {
        let caller = self.caller(request.extensions())?;
        let (mut header, rest) = begin(request.into_inner()).await?;
        match self.aim(&caller, M::device(&mut header)).await? {
            Aim::Here(name) => {
                *M::device(&mut header) = name;
                reply(here(self.devices.clone(), caller, header, rest).await)
            }
            Aim::There(client, name) => {
                *M::device(&mut header) = name;
                pass_on(M::of_header(header), rest, |messages| there(*client, messages)).await
            }
        }
    }
}

/// A message of a call that begins with a header and goes on with parts.
trait Streamed: Send + Sized + 'static {
    type Header: Send + 'static;
    type Part: Send + 'static;
    /// The header, if it is one.
    fn header(self) -> Option<Self::Header>;
    /// The part, if it is one.
    fn part(self) -> Option<Self::Part>;
    fn of_header(header: Self::Header) -> Self;
    fn of_part(part: Self::Part) -> Self;
    /// The device that the call is about.
    fn device(header: &mut Self::Header) -> &mut String;
}

macro_rules! streamed {
    ($($Message:ident in $module:ident: $Header:ident, then $Part:ty, by $whole:pat => $part:expr, $wrap:expr;)*) => {$(
        impl Streamed for wire::$Message {
            type Header = wire::$Header;
            type Part = $Part;
            fn header(self) -> Option<Self::Header> {
                match self.part {
                    Some(wire::$module::Part::Header(header)) => Some(header),
                    _ => None,
                }
            }
            fn part(self) -> Option<Self::Part> {
                match self.part {
                    Some($whole) => Some($part),
                    _ => None,
                }
            }
            fn of_header(header: Self::Header) -> Self {
                Self { part: Some(wire::$module::Part::Header(header)) }
            }
            fn of_part(part: Self::Part) -> Self {
                Self { part: Some($wrap(part)) }
            }
            fn device(header: &mut Self::Header) -> &mut String {
                &mut header.device
            }
        }
    )*};
}

streamed! {
    PrintRequest in print_request: PrintHeader, then Bytes,
        by wire::print_request::Part::Data(data) => data, wire::print_request::Part::Data;
    PutObjectRequest in put_object_request: PutObjectHeader, then Bytes,
        by wire::put_object_request::Part::Data(data) => data, wire::put_object_request::Part::Data;
    PutSealedRequest in put_sealed_request: PutSealedHeader, then wire::put_sealed_request::Part,
        by part => part, std::convert::identity;
}

/// Splits the header off a stream of a call.
async fn begin<M: Streamed>(mut messages: Streaming<M>) -> Result<(M::Header, Asked<M::Part>), Status> {
    let Some(first) = messages.message().await? else { return missing_header() };
    let Some(header) = first.header() else { return missing_header() };
    let silent = || Error::new(Reason::DeadlineExceeded, "nothing came for two minutes");
    let rest = stream::unfold(Some(messages), move |messages| async move {
        let mut messages = messages?;
        match tokio::time::timeout(SILENCE, messages.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(message))) => Some((Ok(message), Some(messages))),
            Ok(Some(Err(status))) => Some((Err(common::status::from_status(&status)), None)),
            Err(_) => Some((Err(silent()), None)),
        }
    });
    Ok((header, rest.map(|m| m.and_then(|m| m.part().ok_or_else(wrong_part))).boxed()))
}

/// Sends a call's messages on to another node. If they break off, the call there breaks off too: a part must never look
/// like the whole.
async fn pass_on<M: Streamed, R>(
    first: M,
    mut rest: Asked<M::Part>,
    call: impl FnOnce(ReceiverStream<M>) -> BoxFuture<'static, Result<Response<R>, Status>> + Send,
) -> Result<Response<R>, Status> {
    let (to, messages) = mpsc::channel(2);
    let mut answer = call(ReceiverStream::new(messages));
    let pump = async move {
        let mut next = Some(Ok(first));
        while let Some(message) = next {
            match message {
                Ok(message) => {
                    if to.send(message).await.is_err() {
                        return None;
                    }
                }
                // The way is kept open: its end would say that this was all.
                Err(error) => return Some((error, to)),
            }
            next = rest.next().await.map(|part| part.map(M::of_part));
        }
        None
    };
    tokio::select! {
        biased;
        broken = pump => match broken {
            Some((error, to)) => {
                drop(answer);
                drop(to);
                Err(to_status(&error))
            }
            None => answer.await,
        },
        answer = &mut answer => answer,
    }
}

fn wrong_part() -> Error {
    Error::new(Reason::FieldInvalid, "a message after the first one has no data")
}

macro_rules! device_service {
    (
        unary { $($one:ident($One:ident) -> $Answer:ident;)* }
        streaming { $($many:ident($Many:ident) -> $Item:ident as $Stream:ident;)* }
        $($rest:tt)*
    ) => {
        #[tonic::async_trait]
        impl DeviceService for DeviceGrpc {
            $(async fn $one(&self, request: Request<wire::$One>) -> Result<Response<wire::$Answer>, Status> {
                let caller = self.caller(request.extensions())?;
                let mut request = request.into_inner();
                match self.aim(&caller, &request.device).await? {
                    Aim::Here(name) => {
                        request.device = name;
                        reply(self.devices.$one(&caller, request).await)
                    }
                    Aim::There(mut client, name) => {
                        request.device = name;
                        client.$one(request).await
                    }
                }
            })*
            $(type $Stream = Answers<wire::$Item>;
            async fn $many(&self, request: Request<wire::$Many>) -> Result<Response<Self::$Stream>, Status> {
                let caller = self.caller(request.extensions())?;
                let mut request = request.into_inner();
                match self.aim(&caller, &request.device).await? {
                    Aim::Here(name) => {
                        request.device = name;
                        answers(self.devices.$many(&caller, request).await)
                    }
                    Aim::There(mut client, name) => {
                        request.device = name;
                        passed(client.$many(request).await)
                    }
                }
            })*
            $($rest)*
        }
    };
}

device_service! {
    unary {
        acquire_lease(AcquireLeaseRequest) -> Lease;
        renew_lease(RenewLeaseRequest) -> Lease;
        release_lease(ReleaseLeaseRequest) -> ReleaseLeaseResponse;
        request_device(RequestDeviceRequest) -> RequestDeviceResponse;
        list_print_jobs(ListPrintJobsRequest) -> ListPrintJobsResponse;
        control_print_job(ControlPrintJobRequest) -> PrintJob;
        control_printer(ControlPrinterRequest) -> Device;
        list_disc(ListDiscRequest) -> ListDiscResponse;
        borrow_space(BorrowSpaceRequest) -> Space;
        renew_space(RenewSpaceRequest) -> Space;
        return_space(ReturnSpaceRequest) -> ReturnSpaceResponse;
        list_spaces(ListSpacesRequest) -> ListSpacesResponse;
        list_objects(ListObjectsRequest) -> ListObjectsResponse;
        delete_object(DeleteObjectRequest) -> DeleteObjectResponse;
        list_missing(ListMissingRequest) -> ListMissingResponse;
        list_sealed(ListSealedRequest) -> ListSealedResponse;
        commit_generation(CommitGenerationRequest) -> CommitGenerationResponse;
        list_generations(ListGenerationsRequest) -> ListGenerationsResponse;
        retire_sealed(RetireSealedRequest) -> RetireSealedResponse;
        prove_objects(ProveObjectsRequest) -> ProveObjectsResponse;
    }
    streaming {
        read_disc(ReadDiscRequest) -> ReadDiscResponse as ReadDiscStream;
        read_disc_file(ReadDiscFileRequest) -> ReadDiscFileResponse as ReadDiscFileStream;
        get_object(GetObjectRequest) -> GetObjectResponse as GetObjectStream;
        get_sealed(GetSealedRequest) -> GetSealedResponse as GetSealedStream;
    }

    async fn list_devices(
        &self,
        request: Request<wire::ListDevicesRequest>,
    ) -> Result<Response<wire::ListDevicesResponse>, Status> {
        let caller = self.caller(request.extensions())?;
        reply(Ok(self.devices.list_for(&caller)))
    }

    type WatchDevicesStream = Answers<wire::ListDevicesResponse>;

    async fn watch_devices(
        &self,
        request: Request<wire::WatchDevicesRequest>,
    ) -> Result<Response<Self::WatchDevicesStream>, Status> {
        let caller = self.caller(request.extensions())?;
        answers(self.devices.watch_for(caller))
    }

    async fn read_kept_block(
        &self,
        request: Request<wire::ReadKeptBlockRequest>,
    ) -> Result<Response<wire::ReadKeptBlockResponse>, Status> {
        self.caller(request.extensions())?;
        reply(self.devices.read_kept_block(request.into_inner()).await)
    }

    async fn print(&self, request: Request<Streaming<wire::PrintRequest>>) -> Result<Response<wire::PrintJob>, Status> {
        let here = |d: Devices, caller, header, rest| async move { d.print(&caller, header, rest).await }.boxed();
        self.streamed(request, here, |mut client, m| async move { client.print(m).await }.boxed()).await
    }

    async fn put_object(
        &self,
        request: Request<Streaming<wire::PutObjectRequest>>,
    ) -> Result<Response<wire::SpaceObject>, Status> {
        let here = |d: Devices, caller, header, rest| async move { d.put_object(&caller, header, rest).await }.boxed();
        self.streamed(request, here, |mut client, m| async move { client.put_object(m).await }.boxed()).await
    }

    async fn put_sealed(
        &self,
        request: Request<Streaming<wire::PutSealedRequest>>,
    ) -> Result<Response<wire::PutSealedResponse>, Status> {
        let here = |d: Devices, caller, header, rest| async move { d.put_sealed(&caller, header, rest).await }.boxed();
        self.streamed(request, here, |mut client, m| async move { client.put_sealed(m).await }.boxed()).await
    }

    async fn control_drive(
        &self,
        request: Request<wire::ControlDriveRequest>,
    ) -> Result<Response<wire::Device>, Status> {
        let caller = self.caller(request.extensions())?;
        let mut r = request.into_inner();
        if matches!(self.side, Side::Local) && r.fencing_token == 0 {
            // The lease that this machine holds, if it does.
            let target = self.devices.find(&r.device).await.map_err(|e| to_status(&e))?;
            if let Some(lease) = self.devices.held(&target) {
                (r.fencing_token, r.lease_id) = (lease.fencing_token, lease.lease_id);
            }
        }
        match self.aim(&caller, &r.device).await? {
            Aim::Here(name) => {
                r.device = name;
                reply(self.devices.control_drive(&caller, r).await)
            }
            Aim::There(mut client, name) => {
                r.device = name;
                client.control_drive(r).await
            }
        }
    }
}
