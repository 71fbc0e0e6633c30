//! Tests of devices through their public interface.

extern crate atrium_device as device;

mod discs;
mod nbd;
mod rip;
