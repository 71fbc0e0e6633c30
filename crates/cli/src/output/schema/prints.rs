//! Print queues of the server.

use super::{Description, Grant, JsonType, Object};
use serde::Serialize;

objects! {
    print_objects;
    /// A printer that the server offers: items of `admin printers list`.
    ServerPrinter "server_printer" {
        /// Unique name; `--via-server NAME` prints on it.
        name: String,
        /// For people.
        description: String,
        /// Where it stands.
        location: String,
        /// Name of the machine that it hangs on.
        machine: String,
        /// Device id of that machine.
        device_id: String,
        /// idle, processing, stopped or away.
        state: String,
        /// Why it is stopped; null if there is nothing to say.
        state_reason: Option<String>,
        /// Media types that it takes; empty means any.
        formats: Vec<String>,
        /// Prints in colour.
        color: bool,
        /// Prints on both sides.
        duplex: bool,
        /// Jobs that are not ended.
        job_count: u64,
        /// see, read, write or manage.
        my_right: Option<String>,
        /// Who may do what; only for those who manage it.
        grants: Vec<Grant>,
        /// When its machine last said how it is, RFC 3339.
        last_seen_time: Option<String>,
    }
    /// A print job at the server: result of `print --via-server NAME`, items of `jobs --server-queue`.
    ServerPrintJob "server_print_job" {
        /// Names it.
        id: String,
        /// The printer's name.
        printer: String,
        /// For people.
        name: String,
        /// Whose.
        user: String,
        /// pending, held, taken, processing, stopped, canceled, aborted or completed.
        state: String,
        /// Why; null if there is nothing to say.
        state_reason: Option<String>,
        /// Bytes of the document.
        size_bytes: u64,
        /// Sheets that were printed.
        sheets: u64,
        /// Whether it was given out again and may be on paper twice.
        may_be_printed_twice: bool,
        /// Whether somebody wants it canceled and the printer's machine has not answered yet.
        cancel_requested: bool,
        /// 1 to 100; higher is earlier.
        priority: u64,
        /// Whether it is held until its PIN is stated.
        needs_pin: bool,
        /// When it was handed over, RFC 3339.
        create_time: Option<String>,
        /// When it ended, RFC 3339.
        end_time: Option<String>,
    }
    /// What somebody may print: items of `admin printers quotas`.
    ServerPrintQuota "server_print_quota" {
        /// User name; empty for everybody who has no quota of their own.
        user: String,
        /// 0 means no limit.
        sheets: u64,
        /// 0 means no limit.
        size_bytes: u64,
        /// day, week or month.
        period: String,
    }
    /// What somebody printed: items of `admin printers accounts`.
    ServerPrintAccount "server_print_account" {
        /// User name.
        user: String,
        /// Jobs.
        job_count: u64,
        /// Sheets, and those that waiting jobs count as.
        sheets: u64,
        /// Bytes of documents.
        size_bytes: u64,
    }
}
