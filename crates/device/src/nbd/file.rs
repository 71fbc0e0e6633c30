//! An image file as a block source: for disk images under an exclusive lease, and for tests.
//!
//! Writes go straight to the file; a flush is `fdatasync`. A crash leaves what the system had written out, as with any
//! disk without a battery: whatever a flush or a durable write acknowledged is there.

use super::source::{BlockSource, Extent, MAX_READ, check_range};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use futures_util::future::BoxFuture;
use rustix::fs::{FallocateFlags, SeekFrom};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Most extents that one question is answered with.
const MAX_EXTENTS: usize = 256;

/// See the module.
pub struct FileSource {
    file: Arc<File>,
    size: u64,
    writable: bool,
}

impl FileSource {
    /// Opens a file; its size is fixed from then on.
    ///
    /// # Errors
    /// IO_FAILED.
    pub fn open(path: &Path, writable: bool) -> Result<Self> {
        let file = File::options().read(true).write(writable).open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(Error::new(Reason::IoFailed, "an image must be a regular file"));
        }
        Ok(Self { file: Arc::new(file), size: meta.len(), writable })
    }

    /// Runs something on a blocking thread.
    fn run<T: Send + 'static>(
        &self,
        checked: Result<()>,
        work: impl FnOnce(&File) -> std::io::Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        let file = self.file.clone();
        Box::pin(async move {
            checked?;
            match tokio::task::spawn_blocking(move || work(&file)).await {
                Ok(result) => Ok(result?),
                Err(error) => Err(Error::internal("a thread for an image file ended").caused_by(error)),
            }
        })
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if !self.writable {
            return Err(super::source::read_only());
        }
        check_range(offset, len, self.size)
    }
}

impl BlockSource for FileSource {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Bytes>> {
        let checked = if len > MAX_READ {
            Err(Error::new(Reason::FieldInvalid, "more than 32 MiB at once"))
        } else {
            check_range(offset, len.into(), self.size)
        };
        self.run(checked, move |file| {
            let mut data = vec![0; len as usize];
            file.read_exact_at(&mut data, offset)?;
            Ok(Bytes::from(data))
        })
    }

    fn extents(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<Vec<Extent>>> {
        let checked = check_range(offset, len, self.size);
        self.run(checked, move |file| Ok(extents(file, offset, offset + len)))
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn write(&self, offset: u64, data: Bytes, durable: bool) -> BoxFuture<'_, Result<()>> {
        let checked = self.check_write(offset, data.len() as u64);
        self.run(checked, move |file| {
            file.write_all_at(&data, offset)?;
            if durable { file.sync_data() } else { Ok(()) }
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool, durable: bool) -> BoxFuture<'_, Result<()>> {
        let checked = self.check_write(offset, len);
        self.run(checked, move |file| {
            let flags = if keep_space { FallocateFlags::ZERO_RANGE } else { FallocateFlags::PUNCH_HOLE };
            zero(file, flags, offset, len)?;
            if durable { file.sync_data() } else { Ok(()) }
        })
    }

    fn trim(&self, offset: u64, len: u64, durable: bool) -> BoxFuture<'_, Result<()>> {
        self.write_zeroes(offset, len, false, durable)
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.run(Ok(()), File::sync_data)
    }
}

fn zero(file: &File, flags: FallocateFlags, offset: u64, len: u64) -> std::io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, flags | FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) => Ok(()),
        // A file system that knows no holes.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let zeroes = vec![0; len.min(1 << 20) as usize];
            let mut done = 0;
            while done < len {
                let piece = (len - done).min(zeroes.len() as u64);
                file.write_all_at(&zeroes[..piece as usize], offset + done)?;
                done += piece;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Data and holes of a range, as the file system tells; data where it does not.
fn extents(file: &File, mut at: u64, end: u64) -> Vec<Extent> {
    let mut out = Vec::new();
    while at < end && out.len() < MAX_EXTENTS {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            Err(rustix::io::Errno::NXIO) => end,
            Err(_) => at,
        };
        if data > at {
            out.push(Extent::hole(data - at));
            at = data;
            continue;
        }
        let hole = rustix::fs::seek(file, SeekFrom::Hole(at)).map_or(end, |hole| hole.min(end));
        let hole = if hole > at { hole } else { end };
        out.push(Extent::data(hole - at));
        at = hole;
    }
    out
}
