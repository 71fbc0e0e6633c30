//! Disks: lent space that expires, and mirror places.
