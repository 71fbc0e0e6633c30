//! A document on its way into the spool.
//!
//! Up to [`INLINE`] bytes are kept in memory and go into the journal with the job's record: one sync for everything, shared
//! by all jobs that come at the same time. Longer ones go to a file of the spool, which is synced, and its directory too,
//! before the record is written. Every bound is checked while bytes come in, so that what is refused is refused early.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use bytes::Bytes;
use common::error::{Error, Reason, Result};
use tokio::sync::OwnedSemaphorePermit;

use super::model::{Document, Job, JobId, Who, clean};
use super::pages;
use super::printers::{JobRequest, Printers, RecordError, core_access, stopped_upload};

/// Documents up to this length lie in the journal.
pub const INLINE: usize = 64 * 1024;
/// Bytes that are written to a file at a time.
const PART: usize = 512 * 1024;
/// Compressed bytes that are unfolded at a time: bounds what a bomb takes before it is noticed.
const UNFOLD: usize = 4096;
/// After so many bytes, the disk's free space is looked at again.
const LOOK: u64 = 16 << 20;

/// How a document is compressed on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 1951.
    Deflate,
}

/// A document that comes.
#[derive(Clone, Debug, Default)]
pub struct DocumentRequest {
    /// Its name, for people.
    pub name: String,
    /// Its media type; found out from its first bytes if it is missing or `application/octet-stream`.
    pub format: Option<String>,
    /// How it is compressed.
    pub compression: Compression,
}

impl DocumentRequest {
    pub(super) fn known_format(&self) -> Option<&str> {
        self.format.as_deref().filter(|f| *f != "application/octet-stream")
    }
}

/// Within which a document stays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of a job.
    pub(super) most: u64,
    /// Bytes that its owner's quota leaves.
    pub(super) quota_bytes: Option<u64>,
}

/// A document that is coming in. Dropping it forgets it.
pub struct Upload {
    printers: Printers,
    printer: String,
    who: Who,
    /// A new job, or the one that gets the document and whether it is the last.
    job: Option<JobRequest>,
    into: Option<(JobId, bool)>,
    document: DocumentRequest,
    bounds: Bounds,
    unfold: Unfold,
    head: Vec<u8>,
    buffer: Vec<u8>,
    file: Option<Spooled>,
    received: u64,
    looked: u64,
    _permit: OwnedSemaphorePermit,
}

enum Unfold {
    None,
    Gzip(flate2::write::GzDecoder<Vec<u8>>),
    Deflate(flate2::write::DeflateDecoder<Vec<u8>>),
}

/// A file of the spool; removed unless a job has it.
struct Spooled {
    name: String,
    path: std::path::PathBuf,
    file: std::sync::Arc<File>,
    written: u64,
    kept: bool,
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Upload {
    pub(super) fn begin(
        printers: &Printers,
        printer: &str,
        who: Who,
        job: Option<JobRequest>,
        document: DocumentRequest,
        bounds: Bounds,
    ) -> Result<Self> {
        let permit = std::sync::Arc::clone(core_access(printers).uploads()).try_acquire_owned();
        let permit =
            permit.map_err(|_| Error::new(Reason::Overloaded, "too many documents are coming in at the moment"))?;
        let unfold = match document.compression {
            Compression::None => Unfold::None,
            Compression::Gzip => Unfold::Gzip(flate2::write::GzDecoder::new(Vec::new())),
            Compression::Deflate => Unfold::Deflate(flate2::write::DeflateDecoder::new(Vec::new())),
        };
        let upload = Self {
            printers: printers.clone(),
            printer: printer.to_owned(),
            who,
            job,
            into: None,
            document,
            bounds,
            unfold,
            head: Vec::new(),
            buffer: Vec::new(),
            file: None,
            received: 0,
            looked: 0,
            _permit: permit,
        };
        upload.check_disk()?;
        Ok(upload)
    }

    pub(super) fn into_job(mut self, job: JobId, last: bool) -> Self {
        self.into = Some((job, last));
        self
    }

    /// Bytes of the document so far, unfolded.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `QUEUE_LIMIT`, `PRINT_QUOTA_EXCEEDED`, `DISK_FULL`, `PRINT_FORMAT_UNKNOWN` as soon as it is clear; then the upload is of
    /// no more use.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if matches!(self.unfold, Unfold::None) {
            return self.take(bytes).await;
        }
        for part in bytes.chunks(UNFOLD) {
            let unfolded = self.unfold.part(part)?;
            self.take(&unfolded).await?;
        }
        Ok(())
    }

    async fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.received += bytes.len() as u64;
        if self.received > self.bounds.most {
            return Err(super::printers::too_large(self.bounds.most));
        }
        if self.bounds.quota_bytes.is_some_and(|left| self.received > left) {
            return Err(Error::new(Reason::PrintQuotaExceeded, "the document is larger than what the quota leaves"));
        }
        if self.head.len() < 1024 {
            let missing = (1024 - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..missing]);
            if let Some(format) = self.document.known_format()
                && self.head.len() >= 1024
                && !pages::plausible(format, &self.head)
            {
                return Err(not_such(format));
            }
        }
        if self.received - self.looked > LOOK {
            self.looked = self.received;
            self.check_disk()?;
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PART || (self.file.is_none() && self.buffer.len() > INLINE) {
            self.flush().await?;
        }
        Ok(())
    }

    /// The document is whole: puts it and its job on disk and gives the job.
    ///
    /// # Errors
    /// As [`Upload::write`]; nothing is left of the document then.
    pub async fn finish(mut self) -> Result<Job> {
        let rest = std::mem::replace(&mut self.unfold, Unfold::None).end()?;
        self.take(&rest).await?;
        if self.received == 0 && self.into.is_none() {
            return Err(Error::new(Reason::FieldInvalid, "the document is empty"));
        }
        let format = match self.document.known_format() {
            Some(format) if pages::plausible(format, &self.head) => format.to_owned(),
            Some(format) => return Err(not_such(format)),
            None => pages::detect(&self.head)
                .ok_or_else(|| Error::new(Reason::PrintFormatUnknown, "nobody knows what kind of document this is"))?
                .to_owned(),
        };
        let (pages, inline) = self.settle(&format).await?;
        let name = clean(&self.document.name, 255);
        let file = self.file.as_ref().map(|f| f.name.clone());
        let document = Document { name, format, bytes: self.received, pages, file, canceled: false };
        let access = core_access(&self.printers);
        let (job, ticket, fresh) = match (self.job.take(), self.into) {
            (Some(request), _) => access.submit(&self.printer, &self.who, request, document, inline)?,
            (None, Some((id, last))) => {
                let (job, ticket) = access.add(&self.printer, id, document, inline, last)?;
                (job, ticket, false)
            }
            (None, None) => return Err(Error::internal("an upload without a job")),
        };
        // From here on the job has the file, whether or not somebody still waits for the answer.
        let path = self.file.as_mut().and_then(|file| {
            // A repeated request has its document from the first time; this one is not kept.
            file.kept = job.documents.iter().any(|d| d.file.as_ref() == Some(&file.name));
            file.kept.then(|| file.path.clone())
        });
        let new = fresh;
        let recorded = access.record(self.printer.clone(), job.id, new, ticket).await;
        if let (Err(RecordError::NotThere(_)), Some(path)) = (&recorded, path) {
            let _ = std::fs::remove_file(path);
        }
        recorded.map_err(RecordError::into_inner)?;
        Ok(job)
    }

    /// Brings the bytes to where they stay and counts pages.
    async fn settle(&mut self, format: &str) -> Result<(Option<u32>, Option<Bytes>)> {
        if self.file.is_none() {
            // A small one can unfold to a large one: it waits for its turn and keeps nobody else from running.
            let access = core_access(&self.printers);
            let _one = access.counting().await;
            let content = Bytes::from(std::mem::take(&mut self.buffer));
            let (counted, format) = (content.clone(), format.to_owned());
            let count = tokio::task::spawn_blocking(move || pages::count(&format, &counted));
            return Ok((count.await.map_err(stopped_upload)?, Some(content)));
        }
        self.flush().await?;
        let Some(spooled) = &self.file else { return Err(Error::internal("a spool file is missing")) };
        let access = core_access(&self.printers);
        let (file, length, faults) = (std::sync::Arc::clone(&spooled.file), spooled.written, access.faults());
        let dir = spooled.path.parent().map(std::path::Path::to_owned);
        let sync = tokio::task::spawn_blocking(move || -> Result<()> {
            faults.at("spool-sync")?;
            file.sync_all()?;
            dir.map_or(Ok(()), |dir| super::journal::sync_dir(&dir))?;
            Ok(())
        });
        sync.await.map_err(stopped_upload)??;
        if length > pages::MAX_COUNTED {
            return Ok((None, None));
        }
        let _one = access.counting().await;
        let (file, format) = (std::sync::Arc::clone(&spooled.file), format.to_owned());
        let count = tokio::task::spawn_blocking(move || -> Result<Option<u32>> {
            if matches!(format.as_str(), "image/jpeg" | "image/png") {
                return Ok(Some(1));
            }
            let mut content = vec![0; length as usize];
            file.read_exact_at(&mut content, 0)?;
            Ok(pages::count(&format, &content))
        });
        Ok((count.await.map_err(stopped_upload)??, None))
    }

    async fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let part = std::mem::take(&mut self.buffer);
        let access = core_access(&self.printers);
        let faults = access.faults();
        let mut spooled = match self.file.take() {
            Some(file) => file,
            None => {
                let name = uuid::Uuid::new_v4().simple().to_string();
                let path = access.spool_file(&name);
                let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
                Spooled { name, path, file: std::sync::Arc::new(file), written: 0, kept: false }
            }
        };
        let (file, at, length) = (std::sync::Arc::clone(&spooled.file), spooled.written, part.len() as u64);
        let write = tokio::task::spawn_blocking(move || -> Result<()> {
            faults.at("spool-write")?;
            file.write_all_at(&part, at)?;
            Ok(())
        });
        write.await.map_err(stopped_upload)??;
        spooled.written += length;
        self.file = Some(spooled);
        Ok(())
    }

    fn check_disk(&self) -> Result<()> {
        let access = core_access(&self.printers);
        let Ok(disk) = rustix::fs::statvfs(access.spool_file(".")) else { return Ok(()) };
        if disk.f_bavail.saturating_mul(disk.f_frsize) < access.reserve_bytes() {
            return Err(super::journal::Failure::Full.into());
        }
        Ok(())
    }
}

impl Unfold {
    fn part(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let (result, out) = match self {
            Self::None => return Ok(bytes.to_vec()),
            Self::Gzip(decoder) => (decoder.write_all(bytes), decoder.get_mut()),
            Self::Deflate(decoder) => (decoder.write_all(bytes), decoder.get_mut()),
        };
        result.map_err(bad_compression)?;
        Ok(std::mem::take(out))
    }

    fn end(self) -> Result<Vec<u8>> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Gzip(decoder) => decoder.finish().map_err(bad_compression),
            Self::Deflate(decoder) => decoder.finish().map_err(bad_compression),
        }
    }
}

fn bad_compression(error: std::io::Error) -> Error {
    Error::new(Reason::FieldInvalid, "the compressed document is damaged").with("field", "compression").caused_by(error)
}

fn not_such(format: &str) -> Error {
    Error::new(Reason::PrintFormatUnknown, format!("the document is said to be {} and is not", clean(format, 100)))
        .with("field", "document-format")
}
