//! Atrium's peer as a library: two or more machines, a cable or a Wi-Fi router, and nothing else.
//!
//! Every node requests and responds. What it decides is in plain functions of (state, event, now) that do no IO and run
//! under seeded simulation; what it does is around them.
//!
//! ```text
//!   atrium (CLI) ── unix socket ──▶ local      what the person of this machine asks
//!                                     │
//!        ┌──────────┬─────────────────┼───────────────┬─────────────┐
//!        ▼          ▼                 ▼               ▼             ▼
//!     office     presence         catalogue        transfer      mailbox
//!   who belongs  who is there   what is shared   moving chunks   store and re-send
//!        └──────────┴───────▶ net ◀──┴───────────────┴─────────────┘
//!                     connections by device id: direct or relayed, TLS 1.3, both sides identified
//! ```
//!
//! `hybrid` brings in the central server of the office, if there is one; `twoway` keeps the copies of two-way shares
//! equal; `node` puts all of it together. Modules know each other by the handles in their top-level file only.

pub mod catalogue;
pub mod devices;
pub mod hybrid;
pub mod local;
pub mod mailbox;
pub mod model;
pub mod net;
pub mod node;
pub mod office;
pub mod presence;
pub mod settings;
pub mod source;
pub mod transfer;
pub mod twoway;
