//! Connections by device id: TLS with both sides identified, direct or through a relay.
