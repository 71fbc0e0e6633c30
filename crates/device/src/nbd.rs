//! The network block device protocol: export of read-only images.
