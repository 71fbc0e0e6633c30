//! From the greeting to the choice of an export.

use super::{End, Export, Server, Tls, transmission};
use crate::nbd::options::{self, Malformed, Opt};
use crate::nbd::wire;
use bytes::Bytes;
use common::error::{Error, Kind, Reason};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// Most exports that a list shows.
const MAX_LISTED: usize = 1000;

/// What a client has chosen so far. STARTTLS forgets it.
#[derive(Clone, Default, Debug)]
pub(super) struct Session {
    encrypted: bool,
    no_zeroes: bool,
    /// Structured replies.
    pub(super) structured: bool,
    /// The export for which `base:allocation` was chosen.
    meta: Option<String>,
}

/// How a negotiation on one stream ended.
enum Outcome {
    /// This export, with these settings.
    Go(Box<Export>, Session, bool),
    /// TLS begins now.
    StartTls(Arc<rustls::ServerConfig>, Session),
    /// Nothing more.
    End(End),
}

/// What answering one option leads to.
enum Step {
    Stay,
    Leave(Outcome),
}

/// Serves a connection.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Send + Unpin>(server: &Server, mut stream: S) -> End {
    let deadline = Instant::now() + server.config.handshake;
    let first = tokio::select! {
        () = server.stop.cancelled() => return End::Stopped,
        first = timeout_at(deadline, greet_and_negotiate(server, &mut stream)) => first,
    };
    match first {
        Err(_) => End::TooSlow,
        Ok(Outcome::End(end)) => end,
        Ok(Outcome::Go(export, session, meta)) => transmission::run(server, stream, *export, session, meta).await,
        Ok(Outcome::StartTls(config, session)) => {
            let acceptor = tokio_rustls::TlsAcceptor::from(config);
            let second = tokio::select! {
                () = server.stop.cancelled() => return End::Stopped,
                second = timeout_at(deadline, async {
                    let mut stream = acceptor.accept(stream).await.ok()?;
                    Some((negotiate(server, &mut stream, session).await, stream))
                }) => second,
            };
            match second {
                Err(_) => End::TooSlow,
                Ok(None) => End::Violation("TLS"),
                Ok(Some((Outcome::Go(export, session, meta), stream))) => {
                    transmission::run(server, stream, *export, session, meta).await
                }
                Ok(Some((Outcome::End(end), _))) => end,
                Ok(Some((Outcome::StartTls(..), _))) => End::Violation("TLS twice"),
            }
        }
    }
}

async fn greet_and_negotiate<S: AsyncRead + AsyncWrite + Unpin>(server: &Server, stream: &mut S) -> Outcome {
    let mut hello = [0; 18];
    hello[..8].copy_from_slice(&wire::NBD_MAGIC.to_be_bytes());
    hello[8..16].copy_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
    hello[16..].copy_from_slice(&(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES).to_be_bytes());
    let mut flags = [0; 4];
    if stream.write_all(&hello).await.is_err() || stream.flush().await.is_err() {
        return Outcome::End(End::Broken);
    }
    if stream.read_exact(&mut flags).await.is_err() {
        return Outcome::End(End::Closed);
    }
    let flags = u32::from_be_bytes(flags);
    let known = u32::from(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
    if flags & !known != 0 || flags & u32::from(wire::FLAG_FIXED_NEWSTYLE) == 0 {
        return Outcome::End(End::Violation("client flags"));
    }
    let session = Session { no_zeroes: flags & u32::from(wire::FLAG_NO_ZEROES) != 0, ..Session::default() };
    negotiate(server, stream, session).await
}

async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(server: &Server, stream: &mut S, session: Session) -> Outcome {
    let mut talk = Talk { server, stream, session };
    for _ in 0..options::MAX_OPTIONS {
        match talk.option().await {
            Ok(Step::Stay) => {}
            Ok(Step::Leave(outcome)) => return outcome,
            Err(end) => return Outcome::End(end),
        }
    }
    Outcome::End(End::Violation("too many options"))
}

/// A negotiation on one stream.
struct Talk<'a, S> {
    server: &'a Server,
    stream: &'a mut S,
    session: Session,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<'_, S> {
    /// Reads and answers one option.
    async fn option(&mut self) -> Result<Step, End> {
        let mut header = [0; wire::OPTION_LEN];
        self.stream.read_exact(&mut header).await.map_err(|_| End::Closed)?;
        if wire::be64(&header, 0) != wire::OPTION_MAGIC {
            return Err(End::Violation("option magic"));
        }
        let (option, len) = (wire::be32(&header, 8), wire::be32(&header, 12));
        if len > options::MAX_OPTION_SKIPPED {
            return Err(End::Violation("option length"));
        }
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).await.map_err(|_| End::Broken)?;
        if len > options::MAX_OPTION {
            return self.refuse(option, wire::REP_ERR_TOO_BIG, "the option is too long").await;
        }
        if self.must_encrypt() && !matches!(option, wire::OPT_ABORT | wire::OPT_STARTTLS) {
            return self.refuse(option, wire::REP_ERR_TLS_REQD, "this server talks TLS only").await;
        }
        match options::decode(option, &data) {
            Ok(opt) => self.answer(option, opt).await,
            Err(Malformed(kind)) => self.refuse(option, kind, "the option is malformed").await,
        }
    }

    fn must_encrypt(&self) -> bool {
        matches!(self.server.config.tls, Tls::Required(_)) && !self.session.encrypted
    }

    async fn answer(&mut self, option: u32, opt: Opt) -> Result<Step, End> {
        match opt {
            Opt::Abort => {
                // The client may have closed already.
                let _ = self.send(&[wire::option_reply(option, wire::REP_ACK, &[])]).await;
                Err(End::Disconnected)
            }
            Opt::Unknown(_) => self.refuse(option, wire::REP_ERR_UNSUP, "this option is not known here").await,
            Opt::StructuredReply => {
                self.session.structured = true;
                self.send(&[wire::option_reply(option, wire::REP_ACK, &[])]).await
            }
            Opt::StartTls => self.start_tls(option).await,
            Opt::List => match self.server.exports.list().await {
                Ok(mut entries) => {
                    entries.truncate(MAX_LISTED);
                    self.send(&options::list_replies(&entries)).await
                }
                Err(error) => self.refuse_for(option, &error).await,
            },
            Opt::Meta { set: true, .. } if !self.session.structured => {
                self.refuse(option, wire::REP_ERR_INVALID, "structured replies come first").await
            }
            Opt::Meta { name, set, base } => self.meta(option, name, set, base).await,
            Opt::Info { name, go, facts } => self.info(option, &name, go, &facts).await,
            Opt::ExportName(name) => self.export_name(&name).await,
        }
    }

    async fn start_tls(&mut self, option: u32) -> Result<Step, End> {
        let config = match &self.server.config.tls {
            _ if self.session.encrypted => {
                return self.refuse(option, wire::REP_ERR_INVALID, "the connection is encrypted already").await;
            }
            Tls::Off => return self.refuse(option, wire::REP_ERR_POLICY, "this server does not talk TLS").await,
            Tls::Optional(config) | Tls::Required(config) => config.clone(),
        };
        self.send(&[wire::option_reply(option, wire::REP_ACK, &[])]).await?;
        // What was said in the clear may have been said by anybody.
        let session = Session { encrypted: true, no_zeroes: self.session.no_zeroes, ..Session::default() };
        Ok(Step::Leave(Outcome::StartTls(config, session)))
    }

    async fn meta(&mut self, option: u32, name: String, set: bool, base: bool) -> Result<Step, End> {
        if set {
            self.session.meta = None;
        }
        if let Err(error) = self.server.exports.open(&name).await {
            return self.refuse_for(option, &error).await;
        }
        if set && base {
            self.session.meta = Some(name);
        }
        self.send(&options::meta_replies(set, base)).await
    }

    async fn info(&mut self, option: u32, name: &str, go: bool, facts: &[u16]) -> Result<Step, End> {
        let export = match self.server.exports.open(name).await {
            Ok(export) => export,
            Err(error) => return self.refuse_for(option, &error).await,
        };
        let flags = export.flags(self.session.structured);
        let size = export.source.size_bytes();
        self.send(&options::info_replies(option, &export.entry, size, flags, facts)).await?;
        if !go {
            return Ok(Step::Stay);
        }
        Ok(Step::Leave(self.go(export, name)))
    }

    async fn export_name(&mut self, name: &str) -> Result<Step, End> {
        // The old way has no reply for a refusal.
        let Ok(export) = self.server.exports.open(name).await else {
            return Err(End::Violation("unknown export by the old option"));
        };
        let flags = export.flags(self.session.structured);
        let mut reply = options::size_and_flags(export.source.size_bytes(), flags).to_vec();
        if !self.session.no_zeroes {
            reply.resize(reply.len() + 124, 0);
        }
        self.send(&[reply.into()]).await?;
        Ok(Step::Leave(self.go(export, name)))
    }

    fn go(&mut self, export: Export, name: &str) -> Outcome {
        let meta = self.session.structured && self.session.meta.as_deref() == Some(name);
        Outcome::Go(Box::new(export), std::mem::take(&mut self.session), meta)
    }

    async fn refuse_for(&mut self, option: u32, error: &Error) -> Result<Step, End> {
        let absent = error.is(Reason::NoMedium) || error.is(Reason::TrayOpen);
        let kind = match error.kind() {
            Kind::NotFound => wire::REP_ERR_UNKNOWN,
            _ if absent => wire::REP_ERR_UNKNOWN,
            Kind::PermissionDenied | Kind::Unauthenticated => wire::REP_ERR_POLICY,
            _ if error.is(Reason::ShuttingDown) => wire::REP_ERR_SHUTDOWN,
            _ => wire::REP_ERR_UNKNOWN,
        };
        self.refuse(option, kind, &format!("{}: {}", error.reason(), error.message())).await
    }

    async fn refuse(&mut self, option: u32, kind: u32, text: &str) -> Result<Step, End> {
        // A malformed or unencrypted EXPORT_NAME cannot be refused in words.
        if option == wire::OPT_EXPORT_NAME {
            return Err(End::Violation("EXPORT_NAME refused"));
        }
        self.send(&[options::refusal(option, kind, text)]).await
    }

    async fn send(&mut self, replies: &[Bytes]) -> Result<Step, End> {
        let all = replies.concat();
        self.stream.write_all(&all).await.map_err(|_| End::Broken)?;
        self.stream.flush().await.map_err(|_| End::Broken)?;
        Ok(Step::Stay)
    }
}
