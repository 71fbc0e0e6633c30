use super::*;
use proptest::prelude::*;
use tonic_types::StatusExt;

fn through_headers(error: &Error) -> Status {
    let mut headers = http::HeaderMap::new();
    to_status(error).add_header(&mut headers).unwrap();
    from_headers(&headers).unwrap()
}

#[test]
fn every_kind_has_its_own_code_and_comes_back() {
    for reason in Reason::ALL {
        let back = kind_of(code_of(reason.kind()));
        assert_eq!(back, reason.kind(), "{}", reason.word());
    }
    assert_eq!(kind_of(Code::Unknown), Kind::Internal);
}

#[test]
fn every_reason_keeps_its_words_over_the_wire() {
    for reason in Reason::ALL {
        let error = Error::new(*reason, "what failed: ünïcode 100 %").with("size", 17).under_request("r-1");
        let back = from_status(&through_headers(&error));
        assert!(back.is(*reason));
        assert_eq!(back.kind(), reason.kind());
        assert_eq!(back.message(), "what failed: ünïcode 100 %");
        assert_eq!((back.why(), back.fix()), (reason.why(), reason.fix()));
        assert_eq!((back.detail("size"), back.request_id()), (Some("17"), Some("r-1")));
    }
}

#[test]
fn standard_tools_can_read_the_details() {
    let error = Error::new(Reason::LoginRateLimited, "wait")
        .retry_after(Duration::from_millis(1500))
        .with("field", "password")
        .with("left", 0);
    let status = through_headers(&error);
    let details = status.check_error_details().unwrap();
    let info = details.error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("LOGIN_RATE_LIMITED", "atrium"));
    assert_eq!(info.metadata["left"], "0");
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(1500)));
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "password");
    assert_eq!(from_status(&status).retry_delay(), Some(Duration::from_millis(1500)));
}

#[test]
fn endless_texts_are_cut_at_a_character() {
    let long = "ä€".repeat(5_000);
    let mut error = Error::new(Reason::FieldInvalid, long.clone()).why_is(long.clone()).fix_is(long.clone());
    error = error.with("field", &long).retry_after(Duration::MAX).under_request(long.clone());
    for i in 0..100 {
        error = error.with(&format!("{i}{long}"), &long);
    }
    let status = through_headers(&error);
    assert!(status.details().len() < MAX_DETAILS_BYTES, "{}", status.details().len());
    let back = from_status(&status);
    assert!(long.starts_with(back.message()) && back.message().len() > 500);
    assert!(back.is(Reason::FieldInvalid) && long.starts_with(back.why()));
    assert!(!back.metadata().is_empty());
}

#[test]
fn causes_stay_at_home() {
    let error = Error::new(Reason::IoFailed, "could not read").caused_by("/secret/path");
    let status = to_status(&error);
    let text = format!("{status:?}{}", String::from_utf8_lossy(status.details()));
    assert!(!text.contains("secret"));
}

#[test]
fn plain_statuses_get_the_nearest_reason() {
    let cases = [
        (Status::unavailable("connection refused"), "SERVER_UNREACHABLE", Kind::Unavailable),
        (Status::cancelled("Timeout expired"), "DEADLINE_EXCEEDED", Kind::DeadlineExceeded),
        (Status::deadline_exceeded("late"), "DEADLINE_EXCEEDED", Kind::DeadlineExceeded),
        (Status::cancelled("stop"), "CANCELLED", Kind::Cancelled),
        (Status::unimplemented(""), "METHOD_UNKNOWN", Kind::Unimplemented),
        (Status::unknown("transport error"), "SERVER_UNREACHABLE", Kind::Unavailable),
        (Status::not_found("x"), "NOT_FOUND", Kind::NotFound),
        (Status::ok(""), "UNKNOWN", Kind::Internal),
        (
            Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is: 4 bytes"),
            "MESSAGE_TOO_LARGE",
            Kind::ResourceExhausted,
        ),
    ];
    for (status, reason, kind) in cases {
        let error = from_status(&status);
        assert_eq!((error.reason(), error.kind()), (reason, kind), "{status:?}");
        assert!(!error.message().is_empty() && !error.why().is_empty() && !error.fix().is_empty());
    }
}

#[test]
fn broken_connections_and_bad_certificates_are_told_apart() {
    let io = std::io::Error::other(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer));
    let mut status = Status::unknown("transport error");
    status.set_source(std::sync::Arc::new(io));
    assert!(from_status(&status).is(Reason::TlsFailed));
    let mut status = Status::internal("h2 protocol error");
    status.set_source(std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
    let error = from_status(&status);
    assert!(error.is(Reason::ServerUnreachable) && error.is_transient());
}

#[test]
fn other_domains_do_not_speak_for_us() {
    let status = Status::with_error_details(
        Code::NotFound,
        "gone",
        tonic_types::ErrorDetails::with_error_info("QUOTA_EXCEEDED", "example.com", [("a".to_owned(), "b".to_owned())]),
    );
    assert_eq!(from_status(&status).reason(), "NOT_FOUND");
}

#[test]
fn item_errors_keep_their_words() {
    let error = Error::new(Reason::Locked, "anna has it").why_is("since Monday");
    let back = from_item_error(&to_item_error(&error));
    assert!(back.is(Reason::Locked));
    assert_eq!((back.kind(), back.message(), back.why()), (Kind::FailedPrecondition, "anna has it", "since Monday"));
    let empty = from_item_error(&v1::ItemError::default());
    assert_eq!((empty.kind(), empty.reason()), (Kind::Internal, "INTERNAL"));
    assert!(from_item_error(&v1::ItemError { code: 99, reason: "NEW".into(), ..Default::default() }).reason() == "NEW");
}

#[test]
fn damaged_detail_headers_are_taken_for_absent() {
    let mut headers = http::HeaderMap::new();
    headers.insert("grpc-status", "5".parse().unwrap());
    headers.insert("grpc-message", "50%25 %zz%".parse().unwrap());
    headers.insert("grpc-status-details-bin", "!!!".parse().unwrap());
    let status = from_headers(&headers).unwrap();
    assert_eq!((status.code(), status.message(), status.details()), (Code::NotFound, "50% %zz%", &b""[..]));
    assert!(from_headers(&http::HeaderMap::new()).is_none());
}

proptest! {
    #[test]
    fn any_details_are_survived(data in prop::collection::vec(any::<u8>(), 0..512)) {
        fuzz_details(&data);
    }

    #[test]
    fn details_survive_base64(data in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut headers = http::HeaderMap::new();
        Status::with_details(Code::Aborted, "m", data.clone().into()).add_header(&mut headers).unwrap();
        let status = from_headers(&headers).unwrap();
        prop_assert_eq!(status.details(), &data[..]);
    }
}
