//! Settings of the peer-node.
