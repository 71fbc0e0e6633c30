//! Leases of devices with fencing tokens, decided without IO.
