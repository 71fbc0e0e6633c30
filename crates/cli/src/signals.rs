//! Who deals with Ctrl-C.
//!
//! At a terminal it goes to this program and to the command that it has started alike. While a command of the user's runs,
//! it is that command's: it may know what to do with it, and this program ends when the command has ended.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Commands of the user that run now.
static CHILDREN: AtomicUsize = AtomicUsize::new(0);

/// While it lives, Ctrl-C is left to the command that runs.
#[derive(Debug)]
pub struct LeftToChild(());

impl LeftToChild {
    /// From now on.
    pub fn begin() -> Self {
        CHILDREN.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for LeftToChild {
    fn drop(&mut self) {
        CHILDREN.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether Ctrl-C is somebody else's now.
pub fn is_left_to_child() -> bool {
    CHILDREN.load(Ordering::SeqCst) > 0
}
