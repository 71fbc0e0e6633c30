//! Writes the documents that are made from code, or checks that they are current.
//! `generate-docs write|check`, from the top of the repository.

use common::error::{Kind, Reason};
use std::fmt::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let write = match std::env::args().nth(1).as_deref() {
        Some("write") => true,
        Some("check") => false,
        _ => {
            eprintln!("usage: generate-docs write|check");
            return ExitCode::from(2);
        }
    };
    let mut stale = false;
    for (path, text) in [("docs/errors.md", errors()), ("docs/config.md", settings())] {
        if write {
            if let Err(error) = std::fs::write(path, text) {
                eprintln!("error: {path}: {error}");
                return ExitCode::FAILURE;
            }
        } else if std::fs::read_to_string(path).unwrap_or_default() != text {
            eprintln!("error: {path} is not current\nfix: make fix-generated");
            stale = true;
        }
    }
    if stale { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn code(kind: Kind) -> &'static str {
    match kind {
        Kind::InvalidArgument => "INVALID_ARGUMENT",
        Kind::Unauthenticated => "UNAUTHENTICATED",
        Kind::PermissionDenied => "PERMISSION_DENIED",
        Kind::NotFound => "NOT_FOUND",
        Kind::AlreadyExists => "ALREADY_EXISTS",
        Kind::FailedPrecondition => "FAILED_PRECONDITION",
        Kind::Aborted => "ABORTED",
        Kind::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Kind::Unavailable => "UNAVAILABLE",
        Kind::DataLoss => "DATA_LOSS",
        Kind::OutOfRange => "OUT_OF_RANGE",
        Kind::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Kind::Cancelled => "CANCELLED",
        Kind::Unimplemented => "UNIMPLEMENTED",
        Kind::Internal => "INTERNAL",
    }
}

fn errors() -> String {
    let mut out = String::from(
        "# Errors\n\n\
         Made from `crates/common/src/error.rs` by `make fix-generated`.\n\n\
         A failed call carries a gRPC code and, in the standard `grpc-status-details-bin`, a `google.rpc.ErrorInfo` with\n\
         the reason below (domain `atrium`), an `atrium.v1.ErrorHelp` with why, fix and the request id under which the\n\
         server logged it, and a `google.rpc.RetryInfo` where waiting helps. Reasons are stable; new ones may appear.\n\n\
         | reason | gRPC code | why | fix |\n| --- | --- | --- | --- |\n",
    );
    for reason in Reason::ALL {
        let _ =
            writeln!(out, "| `{}` | {} | {} | {} |", reason.word(), code(reason.kind()), reason.why(), reason.fix());
    }
    out
}

fn settings() -> String {
    let mut out = String::from(
        "# Settings\n\n\
         Made from `deploy/config/` by `make fix-generated`; tests keep those files equal to the defaults in the code.\n\n\
         Later layers win: defaults, the file given by `--config`, environment variables (`ATRIUM_SECTION__KEY`, for\n\
         example `ATRIUM_GRPC__LISTEN`), flags. Keys that do not exist are refused. `--check-config` lists all mistakes,\n\
         `--print-config` shows every value and where it came from.\n",
    );
    for program in ["central-server", "client-agent", "peer-node"] {
        let text = std::fs::read_to_string(format!("deploy/config/{program}.toml")).unwrap_or_default();
        let _ = write!(out, "\n## {program}\n\n```toml\n{}```\n", text);
    }
    out
}
