//! Events of the kernel about a drive: a disc came, or somebody pressed the button. They are hints; what has happened is
//! asked of the drive itself, so that a forged or lost event does nothing worse than a look too many or a late one.

use crate::optical::drive::Wake;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The multicast group of the kernel's own events.
const KERNEL_EVENTS: u32 = 1;
/// The kernel's events fit into 8 KiB.
const LONGEST: usize = 16 << 10;

/// A thread that listens until it is dropped.
pub(super) struct Listener(Arc<AtomicBool>);

impl Listener {
    /// Calls `wake` at each event of the block device of this name.
    pub(super) fn start(device: &str, wake: Wake) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let protocol = Some(netlink::KOBJECT_UEVENT);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
        // So often the thread looks if it is still needed.
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(1)))?;
        let ended = Arc::new(AtomicBool::new(false));
        let (device, end) = (device.to_owned(), ended.clone());
        std::thread::Builder::new().name(format!("events-{device}")).spawn(move || {
            listen(&socket, &device, &end, &wake);
        })?;
        Ok(Self(ended))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn listen(socket: &OwnedFd, device: &str, ended: &AtomicBool, wake: &Wake) {
    let mut buffer = vec![0; LONGEST];
    while !ended.load(Ordering::Relaxed) {
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, len)) if concerns(&buffer[..len.min(LONGEST)], device) => wake(),
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // Events were lost because there were too many: one of them may have been ours.
            Err(rustix::io::Errno::NOBUFS) => wake(),
            Err(error) => return tracing::info!(%error, "events of drives can no longer be listened to"),
        }
    }
}

/// An event is a header and `KEY=VALUE` lines, each ended by a zero byte.
fn concerns(event: &[u8], device: &str) -> bool {
    let mut lines = event.split(|b| *b == 0);
    lines.any(|line| line.strip_prefix(b"DEVNAME=").is_some_and(|name| name == device.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_of_the_device_count() {
        let event = b"change@/devices/x/block/sr0\0ACTION=change\0SUBSYSTEM=block\0DEVNAME=sr0\0DISK_MEDIA_CHANGE=1\0";
        assert!(concerns(event, "sr0"));
        assert!(!concerns(event, "sr"));
        assert!(!concerns(event, "sr1"));
        assert!(!concerns(b"", "sr0"));
    }
}
