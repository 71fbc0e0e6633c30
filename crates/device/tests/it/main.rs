//! Tests of devices through their public interface.
