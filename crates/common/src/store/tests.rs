//! Tests that need an engine of their own making.
