//! The Internet Printing Protocol: codec (RFC 8010) and client.
