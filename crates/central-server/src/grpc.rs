//! gRPC handlers: decode, call the application, encode.
