//! Printers: queue, durable spool, outputs, accounting, and the IPP service of each.
//!
//! [`Printers`] are all printers of a node. Whoever wants to print goes through it, whether by IPP ([`service`]) or by the
//! node's own gRPC; it decides nothing about rights itself except who owns a job: callers say whether they may manage.
//!
//! ```text
//!   model     printers, jobs, tickets, who prints        queue     what happens to jobs, decided without IO
//!   journal   durable records with group commit          pages     pages of PDF, JPEG, PWG and Apple raster
//!   quota     allowances and use                         output    folder, CUPS queue, IPP printer
//!   printers  all of it running                          upload    documents on their way into the spool
//!   service   IPP for everybody in the local network     dnssd     announced so that print dialogs show it
//! ```
//!
//! # What is on disk
//!
//! ```text
//!   DIR/lock                 held while a process uses the directory
//!   DIR/journal              printers, jobs, use, small documents (see the `journal` module)
//!   DIR/spool/UUID           documents of more than 64 KiB, until their job is over
//!   DIR/accounting.jsonl     one line for each job that is over; only ever appended to
//! ```
//!
//! # What a crash leaves
//!
//! A job is answered when its documents and its record are on disk; before that it may be there or not. A job that was
//! with an output is given to the same output again, which first looks whether it has it. Files in `spool` that no job
//! names are removed on opening.

pub mod dnssd;
pub mod fault;
pub mod model;
pub mod output;
pub mod pages;
pub mod printers;
pub mod queue;
pub mod quota;
pub mod service;
pub mod upload;

mod journal;

pub use fault::Faults;
pub use model::{
    Allowance, Capabilities, Class, Destination, Hold, Job, JobId, JobState, OutputConfig, Period, PrinterConfig,
    QueueLimits, Quotas, Right, Sides, Ticket, Who,
};
pub use printers::{Change, JobRequest, Options, PrinterState, PrinterView, Printers, Verb};
pub use queue::{Changes, Condition};
pub use upload::{Compression, DocumentRequest, Upload};
