//! The server's certificate on disk, and its renewal without a restart.

use super::ca::{OfficeCa, ServerCertificate, ServerKey};
use super::server::ServerTls;
use crate::clock::SharedClock;
use crate::error::Result;
use crate::identity::write_public;
use crate::shutdown::Shutdown;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const KEY: &str = "server.key";
const CERTIFICATE: &str = "server.pem";

/// The clock may jump and the machine may sleep, so the time of renewal is looked at anew this often.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// When a certificate is to be renewed: after two thirds of its life.
pub fn renew_at_ms(not_before_ms: u64, not_after_ms: u64) -> u64 {
    let life = not_after_ms.saturating_sub(not_before_ms);
    not_before_ms.saturating_add(life / 3 * 2)
}

/// When a certificate is to be renewed: after this share of its life, in percent.
pub fn renew_after_ms(not_before_ms: u64, not_after_ms: u64, percent: u32) -> u64 {
    let life = not_after_ms.saturating_sub(not_before_ms);
    not_before_ms.saturating_add((life / 100).saturating_mul(percent.into()))
}

/// `server.key` and `server.pem` in a directory, kept valid.
#[derive(Debug)]
pub struct ServerIdentity {
    directory: PathBuf,
    ca: Arc<OfficeCa>,
    names: Vec<String>,
}

impl ServerIdentity {
    /// For a server that is reached under these names and addresses.
    pub fn new(directory: impl Into<PathBuf>, ca: Arc<OfficeCa>, names: Vec<String>) -> Self {
        Self { directory: directory.into(), ca, names }
    }

    /// The certificate that is there, or a new one if there is none, it is due, it lacks one of the names, or another
    /// CA signed it. The key stays the same as long as its file does.
    pub fn certificate(&self, now_ms: u64) -> Result<ServerCertificate> {
        let key_file = self.directory.join(KEY);
        let key = if key_file.try_exists()? {
            ServerKey::load(&key_file)?
        } else {
            let key = ServerKey::generate()?;
            key.save(&key_file)?;
            key
        };
        // A certificate that cannot be read is no loss: another one is made.
        let present = std::fs::read_to_string(self.directory.join(CERTIFICATE))
            .ok()
            .and_then(|pem| ServerCertificate::from_pem(&pem, key.clone()).ok());
        if let Some(present) = present
            && self.is_good(&present, now_ms)?
        {
            return Ok(present);
        }
        let fresh = self.ca.issue_server(&self.names, &key, now_ms)?;
        write_public(&self.directory.join(CERTIFICATE), fresh.pem().as_bytes())?;
        tracing::info!(not_after_ms = fresh.not_after_ms(), "new server certificate");
        Ok(fresh)
    }

    fn is_good(&self, certificate: &ServerCertificate, now_ms: u64) -> Result<bool> {
        let due = renew_at_ms(certificate.not_before_ms(), certificate.not_after_ms());
        // One from the future was made when the clock was wrong.
        let in_life = certificate.not_before_ms() <= now_ms && now_ms < due;
        Ok(in_life && certificate.serves(&self.ca, &self.names)?)
    }

    /// Renews the certificate whenever it is due, until shutdown. A failure is logged and tried again an hour later;
    /// there are thirty days for it.
    pub async fn keep_fresh(self, tls: ServerTls, clock: SharedClock, shutdown: Shutdown) {
        let this = Arc::new(self);
        loop {
            let (identity, now_ms) = (this.clone(), clock.now_ms());
            // Reads and writes files.
            let looked = tokio::task::spawn_blocking(move || identity.certificate(now_ms)).await;
            let failed = |e| Err(crate::error::Error::internal("the renewal failed").caused_by(e));
            match looked.unwrap_or_else(failed) {
                Ok(certificate) => {
                    if let Err(error) = tls.set_certificate(&certificate) {
                        tracing::error!(?error, "the server certificate could not be exchanged");
                    }
                }
                Err(error) => tracing::error!(?error, "the server certificate could not be renewed"),
            }
            if shutdown.token().run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_after_a_share_of_the_life() {
        assert_eq!((renew_at_ms(100, 1_000), renew_after_ms(100, 1_100, 66)), (700, 760));
        // An end before the beginning is a certificate that is due at once.
        assert_eq!((renew_at_ms(1_100, 100), renew_after_ms(1_100, 100, 66)), (1_100, 1_100));
        assert_eq!(renew_after_ms(u64::MAX - 10, u64::MAX, u32::MAX), u64::MAX - 10);
    }
}
