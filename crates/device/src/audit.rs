//! Each grant and refusal of a device, in an append-only, hash-chained log.
