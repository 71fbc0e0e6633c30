//! Settings in layers: defaults, then a TOML file, then the environment, then flags.
//!
//! A program's settings are one struct that implements [`Settings`]; its default value is also the list of all keys that
//! exist. Whatever names a key that does not exist is refused, in the file and in the environment, and everything that is
//! wrong is reported at once, each with the layer it came from (`FILE:LINE`, the variable's name, or the flag).
//!
//! * Environment: `ATRIUM_SECTION__KEY`, for example `ATRIUM_GRPC__LISTEN`. Lists are separated by commas.
//! * Sizes are written "64MiB" ([`ByteSize`]), durations "5s" ([`HumanDuration`]).
//! * Secrets are never values here: a setting names a file ([`SecretFile`]) that others cannot read.

mod load;
mod secret;
mod units;

pub use load::{Layer, Loaded, Problems, Settings, Sources};
pub use secret::{Secret, SecretFile};
pub use units::{ByteSize, HumanDuration};

/// Environment variables with our prefix that are no settings: what each is for.
pub const OTHER_VARIABLES: &[(&str, &str)] = &[
    ("ATRIUM_LOG", "log filter for one run, as in tracing's EnvFilter; wins over the setting log.level"),
    ("ATRIUM_CONFIG", "path of the settings file, where --config is not given"),
    ("ATRIUM_AGENT_SOCKET", "path of the agent's local socket, for the command line"),
    ("ATRIUM_PEER_SOCKET", "path of the peer's local socket, for the command line"),
    ("ATRIUM_SERVER", "server to talk to without an agent, for the command line"),
    ("ATRIUM_CA", "file with the office's certificate authority, for the command line"),
    ("ATRIUM_TOKEN_FILE", "file with a session token, for the command line"),
    ("ATRIUM_CRASH_ROUNDS", "number of rounds, for the crash tests; the programs that they start inherit it"),
];
