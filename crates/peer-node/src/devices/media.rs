//! Discs for this machine's person: copies of whole discs, and discs that programs of this machine open (NBD, HTTP).
//!
//! The disc may be in a drive here or at another machine; both are a [`BlockSource`]. An export lives as long as the call
//! that asked for it. It listens on loopback, on a Unix socket that only this user can open, or for programs of other
//! machines over TLS with keys of its own (`door`). When the disc is changed, an export goes on to answer, with errors, so
//! that no program reads two discs as one.

use super::Devices;
use super::address::Target;
use super::disc::{RemoteDisc, Shared};
use super::door;
use super::grpc::Asked;
use common::error::{Error, Reason, Result};
use common::model::Right;
use device::audit::Line;
use device::nbd::{BlockSource, Export, Server, ServerConfig, Tls};
use device::optical::files::Disc;
use device::optical::http::{Service, Shelf};
use device::optical::rip::{self, Options};
use futures_util::{StreamExt, stream};
use proto::peer::v1 as wire;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How often a rip tells how it goes.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// How often bad sectors are tried again unless the caller says.
const RETRIES: u32 = 3;
/// How often an export looks whether the disc is still in the drive.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A disc to read from.
pub(super) struct Opened {
    pub source: Arc<dyn BlockSource>,
    pub title: String,
    pub generation: u64,
    /// Set for another machine's disc.
    pub remote: Option<Arc<RemoteDisc>>,
}

impl Devices {
    /// What is in another machine's drive now.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, NO_MEDIUM, TRAY_OPEN, DEVICE_AWAY; PEER_UNREACHABLE and the like.
    pub(super) async fn remote_drive(&self, target: &Target) -> Result<wire::DriveDetail> {
        let claims = self.0.remote.claims();
        let claim = claims.iter().find(|c| c.what.device == target.node);
        let claim = claim.ok_or_else(|| Error::new(Reason::NotAMember, "the machine is no member any more"))?;
        let devices = self.0.remote.of(claim).await?;
        let name = common::model::fold(&target.name);
        let found = devices
            .into_iter()
            .find(|d| super::kind_of(d.kind) == Some(target.kind) && common::model::fold(&d.name) == name);
        let device = found.ok_or_else(|| super::access::unknown(&target.local_name()))?;
        if device.right < Right::Read as i32 {
            return Err(Error::new(Reason::AccessDenied, format!("you may not read {}", device.address)));
        }
        match (device.state.as_str(), device.detail) {
            ("ready", Some(wire::device::Detail::Drive(detail))) => Ok(detail),
            ("open", _) => Err(Error::new(Reason::TrayOpen, format!("{} is open", device.address))),
            ("away", _) => Err(Error::new(Reason::DeviceAway, format!("{} does not answer", device.address))),
            (_, Some(wire::device::Detail::Drive(_))) => {
                Err(Error::new(Reason::NoMedium, format!("there is no disc in {}", device.address)))
            }
            _ => Err(Error::new(Reason::ResourceInvalid, format!("{} is no drive", device.address))),
        }
    }

    /// The disc that an address means.
    pub(super) async fn open_disc(&self, address: &str) -> Result<Opened> {
        let target = self.find(address).await?;
        if target.node == self.me() {
            self.checked(&self.me(), &target.local_name(), Right::Read)?;
            let drive = self.own_drive(&target.local_name())?;
            let (_, detail) = super::drive::drive_words(&drive.state());
            let source = drive.source()?;
            let generation = BlockSource::generation(&source);
            return Ok(Opened { source: Arc::new(source), title: detail.title, generation, remote: None });
        }
        let detail = self.remote_drive(&target).await?;
        let disc = RemoteDisc::new(self.clone(), target, &detail)?;
        Ok(Opened {
            source: Arc::new(Shared(disc.clone())),
            title: detail.title,
            generation: detail.generation,
            remote: Some(disc),
        })
    }

    /// Copies a disc into a file.
    ///
    /// # Errors
    /// FIELD_INVALID, those of [`Devices::open_disc`]; what [`rip::rip`] ends with comes in the stream.
    pub(super) async fn rip(&self, r: wire::RipDiscRequest) -> Result<Asked<wire::RipDiscResponse>> {
        let image = PathBuf::from(&r.path);
        if !image.is_absolute() {
            return Err(Error::new(Reason::FieldInvalid, "the path is not absolute").with("field", "path"));
        }
        let opened = self.open_disc(&r.device).await?;
        let (tell, told) = mpsc::channel(4);
        let stop = self.0.shutdown.token().child_token();
        let guard = stop.clone().drop_guard();
        let retries = if r.retries == 0 { RETRIES } else { r.retries.min(100) };
        let options = Options { retries, stop, ..Options::default() };
        let names = self.clone();
        let work = async move {
            let (progress, mut states) = watch::channel(None::<rip::Progress>);
            let (source, title) = (opened.source.clone(), opened.title.clone());
            let remote = opened.remote.clone();
            let answer = move |p: rip::Progress| wire::RipDiscResponse {
                done_bytes: p.done_bytes,
                total_bytes: p.size_bytes,
                bad_sectors: p.bad_sectors,
                done: false,
                sources: names.sources_of(remote.as_deref()),
                title: title.clone(),
            };
            let ripping = rip::rip(source, &image, options, |p| {
                progress.send_replace(Some(p));
            });
            tokio::pin!(ripping);
            let mut every = tokio::time::interval(TELL_EVERY);
            loop {
                tokio::select! {
                    ended = &mut ripping => {
                        let last = states.borrow_and_update().to_owned();
                        let ended = ended.map(|outcome| wire::RipDiscResponse {
                            done_bytes: outcome.size_bytes,
                            total_bytes: outcome.size_bytes,
                            bad_sectors: outcome.bad_sectors,
                            done: true,
                            ..last.map(&answer).unwrap_or_default()
                        });
                        let _ = tell.send(ended).await;
                        return;
                    }
                    _ = every.tick() => {
                        let now = states.borrow_and_update().to_owned();
                        // Whoever has gone is noticed by the guard.
                        if let Some(now) = now { let _ = tell.try_send(Ok(answer(now))); }
                    }
                }
            }
        };
        self.0.shutdown.spawn(work);
        Ok(guarded(told, guard).boxed())
    }

    /// Bytes by the name of the machine that gave them.
    fn sources_of(&self, remote: Option<&RemoteDisc>) -> std::collections::HashMap<String, u64> {
        let Some(remote) = remote else { return Default::default() };
        let claims = self.0.remote.claims();
        let name =
            |device| claims.iter().find(|c| c.what.device == device).map_or_else(|| device.to_string(), |c| c.shown());
        remote.sources().into_iter().map(|(device, bytes)| (name(device), bytes)).collect()
    }

    /// Offers a disc to programs until the call ends.
    ///
    /// # Errors
    /// FIELD_INVALID if no way was named; TLS_REQUIRED; those of [`Devices::open_disc`]; RESOURCE_BUSY, IO_FAILED for the socket.
    pub(super) async fn export(&self, r: wire::ExportDiscRequest) -> Result<Asked<wire::ExportDiscResponse>> {
        let beyond = door::asked(&r)?;
        if r.nbd_socket.is_empty() && !r.nbd && !r.http && beyond.is_none() {
            return Err(Error::new(Reason::FieldInvalid, "neither NBD nor HTTP was asked for"));
        }
        let opened = self.open_disc(&r.device).await?;
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let mut uris = Vec::new();
        let export = Export::read_only("", opened.title.clone(), opened.source.clone());
        let exports = Arc::new(vec![export]);
        let server = Server::new(exports.clone(), ServerConfig::default());
        let mut servers = vec![server.clone()];
        let mut keys = None;
        if !r.nbd_socket.is_empty() {
            let path = Path::new(&r.nbd_socket);
            if !path.is_absolute() {
                return Err(Error::new(Reason::FieldInvalid, "the socket's path is not absolute"));
            }
            let listener = device::nbd::listen::bind_unix(path).await?;
            uris.push(format!("nbd+unix:///?socket={}", r.nbd_socket));
            let (server, stop, path) = (server.clone(), stop.clone(), path.to_owned());
            self.0.shutdown.spawn(async move {
                stop.run_until_cancelled(server.serve_unix(listener)).await;
                let _ = std::fs::remove_file(path);
            });
        }
        if r.nbd {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            uris.push(format!("nbd://{}", listener.local_addr()?));
            self.serve_nbd(server, listener, &stop);
        }
        if let Some(door) = beyond {
            let listener = listen(door.at).await?;
            let at = listener.local_addr()?;
            let mut config = ServerConfig::default();
            if door.tls {
                let made = tokio::task::spawn_blocking(move || door::keys(at)).await;
                let (tls, made) = made.map_err(|e| Error::internal("keys of an export").caused_by(e))??;
                config.tls = Tls::Required(tls);
                keys = Some(made);
            }
            let who = super::access::caller(&*self.0.roster, &self.me())?;
            let how = if door.tls { "over TLS" } else { "plain" };
            self.0.audit.note(Line::granted(&who, &r.device, "export").with_detail(format!("on {at}, {how}")));
            uris.push(door::uri(&door, at));
            let server = Server::new(exports, config);
            servers.push(server.clone());
            self.serve_nbd(server, listener, &stop);
        }
        if r.http {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            uris.push(format!("http://{}/", listener.local_addr()?));
            // A disc without files that can be read still has an image.
            let files = Disc::open(opened.source.clone()).await.ok().map(Arc::new);
            let shelf = Shelf { title: opened.title.clone(), image: opened.source.clone(), files };
            let (service, stop) = (Service::new(Arc::new(shelf), []), stop.clone());
            self.0.shutdown.spawn(async move { service.serve(listener, stop).await });
        }
        let (tell, told) = mpsc::channel(2);
        let _ = tell.send(Ok(wire::ExportDiscResponse { uris: uris.clone(), disc_changed: false, keys })).await;
        let (devices, ending) = (self.clone(), self.0.shutdown.token());
        self.0.shutdown.spawn(async move {
            let watched = devices.until_changed(&r.device, &opened);
            tokio::select! {
                () = stop.cancelled() => {}
                () = ending.cancelled() => {}
                () = watched => {
                    if let Some(remote) = &opened.remote {
                        remote.close();
                    }
                    let _ = tell.send(Ok(wire::ExportDiscResponse { uris, disc_changed: true, keys: None })).await;
                    tokio::select! { () = stop.cancelled() => {}, () = ending.cancelled() => {} }
                }
            }
            stop.cancel();
            for server in servers {
                server.stop().await;
            }
        });
        Ok(guarded(told, guard).boxed())
    }

    fn serve_nbd(&self, server: Server, listener: TcpListener, stop: &CancellationToken) {
        let stop = stop.clone();
        self.0.shutdown.spawn(async move {
            stop.run_until_cancelled(server.serve_tcp(listener)).await;
        });
    }

    /// Returns when the disc is no longer the one that was opened.
    async fn until_changed(&self, address: &str, opened: &Opened) {
        let mut failed = 0;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = match self.find(address).await {
                Ok(target) if target.node == self.me() => {
                    self.own_drive(&target.local_name()).map(|d| super::drive::drive_words(&d.state()).1.generation)
                }
                Ok(target) => self.remote_drive(&target).await.map(|d| d.generation),
                Err(error) => Err(error),
            };
            match now {
                Ok(generation) if generation == opened.generation => failed = 0,
                Ok(_) => return,
                // A machine that does not answer for a moment has not changed its disc.
                Err(error) if error.kind() == common::error::Kind::Unavailable && failed < 5 => failed += 1,
                Err(_) => return,
            }
        }
    }
}

async fn listen(at: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(at).await.map_err(|e| {
        Error::new(Reason::IoFailed, format!("nothing can listen on {at}"))
            .why_is(e.to_string())
            .fix_is("name an address of this machine and a port that is free; 0 takes any")
            .caused_by(e)
    })
}

/// The messages of a channel; dropping them ends what they come from.
fn guarded<T: Send + 'static>(
    told: mpsc::Receiver<Result<T>>,
    guard: DropGuard,
) -> impl stream::Stream<Item = Result<T>> + Send {
    stream::unfold((told, guard), |(mut told, guard)| async move { told.recv().await.map(|m| (m, (told, guard))) })
}
