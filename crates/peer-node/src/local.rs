//! What programs of this machine ask: atrium.peer.v1.NodeService on a Unix socket.
