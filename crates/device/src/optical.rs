//! Optical drives: state, media generations, reading, files, ripping.
