//! A real server on a free port, and callers of every kind.

use crate::fixture::{PASSWORD, attempt, local, new_user};
use bytes::{Buf, BufMut, Bytes};
use central_server::app::answers::Once;
use central_server::app::{accounts, enrolment, sessions};
use central_server::{Running, Settings};
use common::enrol::{Code, Joiner};
use common::error::{Error, Reason};
use common::identity::DeviceKey;
use common::model::Role;
use common::rpc::{ConnectOptions, OfficeChannel, OfficeConnection};
use common::settings::ByteSize;
use common::shutdown::Shutdown;
use common::tls::DeviceCredentials;
use std::sync::Arc;
use std::time::Duration;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

pub struct TestServer {
    pub running: Running,
    pub directory: tempfile::TempDir,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::in_directory(directory, change).await
    }

    pub async fn in_directory(directory: tempfile::TempDir, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings(directory.path());
        change(&mut settings);
        let shutdown = Shutdown::new(settings.server.drain.get());
        let running = central_server::start(settings, shutdown).await.unwrap();
        Self { running, directory }
    }

    /// Stops it; the directory stays.
    pub async fn stop(self) -> tempfile::TempDir {
        self.running.stop();
        self.running.wait().await.unwrap();
        self.directory
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions::new(self.running.addr.to_string(), self.running.ca_pem())
    }

    /// With neither person nor device.
    pub fn anonymous(&self) -> OfficeConnection {
        OfficeConnection::lazy(&self.options()).unwrap()
    }

    /// On the administration socket.
    pub fn local(&self) -> OfficeConnection {
        OfficeConnection::unix(&self.running.admin_socket, Reason::ServerUnreachable).unwrap()
    }

    /// Makes a user and signs in. Gives the token.
    pub async fn token(&self, name: &str, role: Role) -> String {
        let app = self.running.app();
        accounts::create(app, &local(), new_user(name, role, PASSWORD), Once::always()).await.unwrap();
        sessions::login(app, attempt(name, PASSWORD, "192.0.2.1")).await.unwrap().token
    }

    /// A new user of this role, signed in.
    pub async fn user(&self, name: &str, role: Role) -> OfficeConnection {
        let token = self.token(name, role).await;
        self.with_token(&token)
    }

    /// Calls under this token.
    pub fn with_token(&self, token: &str) -> OfficeConnection {
        OfficeConnection::lazy(&self.options().token(token.to_owned())).unwrap()
    }

    /// A machine that has just joined.
    pub async fn join(&self) -> DeviceCredentials {
        let app = self.running.app();
        let invite = enrolment::invite(app, &local(), Duration::ZERO, "test").await.unwrap();
        let code: Code = invite.code.parse().unwrap();
        let key = DeviceKey::generate();
        let (joiner, message) = Joiner::start(&code);
        let begun = enrolment::begin(app, &code.nameplate(), &message, None).await.unwrap();
        let request = key.certificate_request().unwrap();
        let spki = app.office.tls.spki_sha256().unwrap();
        let (proof, confirmation) = joiner.confirm(&begun.spake_message, &spki, &request, "pc").unwrap();
        let admitted = enrolment::finish(app, &begun.exchange_id, &confirmation, &request, "pc", None).await.unwrap();
        proof.check_office(&admitted.confirmation, &admitted.answer).unwrap();
        DeviceCredentials { key: Arc::new(key), certificate_pem: admitted.answer.certificate_pem }
    }

    /// Calls from this machine.
    pub fn device(&self, device: &DeviceCredentials) -> OfficeConnection {
        OfficeConnection::lazy(&self.options().device(device.clone())).unwrap()
    }

    /// What the web listener answers: status line and body.
    pub async fn web(&self, path: &str) -> (String, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.running.metrics_addr.unwrap()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

/// Settings of a server in this directory, with cheap password hashes.
pub fn settings(directory: &std::path::Path) -> Settings {
    let mut settings = Settings::in_directory(&directory.join("data"));
    settings.sessions.hash_memory = ByteSize::kib(8);
    settings.sessions.hash_passes = 1;
    settings
}

/// Messages as the bytes they are.
#[derive(Clone, Default)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Calls any method with one empty message, and waits for its first answer or its end.
pub async fn call_raw(channel: OfficeChannel, path: &str) -> Result<Option<Bytes>, Error> {
    call_with(channel, Request::new(()), path).await
}

/// The same with metadata.
pub async fn call_with(channel: OfficeChannel, request: Request<()>, path: &str) -> Result<Option<Bytes>, Error> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| Error::internal(e.to_string()))?;
    let request = request.map(|()| tokio_stream::once(Bytes::new()));
    let path = path.parse().unwrap();
    let response = client.streaming(request, path, RawCodec).await.map_err(Error::from)?;
    response.into_inner().message().await.map_err(Error::from)
}
