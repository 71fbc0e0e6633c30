//! Calls through the pipeline, over services that misbehave.

use super::*;
use futures_util::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio_util::sync::CancellationToken;

type Answer = Pin<Box<dyn Future<Output = Response<tonic::body::Body>> + Send>>;

/// Answers as a function says, in the place of the health service, which needs no credentials.
#[derive(Clone)]
struct Service(Arc<dyn Fn() -> Answer + Send + Sync>);

impl tonic::server::NamedService for Service {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl tower::Service<Request<tonic::body::Body>> for Service {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
        let answer = (self.0)();
        Box::pin(async move { Ok(answer.await) })
    }
}

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

fn pipeline(answer: impl Fn() -> Answer + Send + Sync + 'static) -> Pipeline {
    let routes = Routes::new(Service(Arc::new(answer)));
    Pipeline::new(routes, 8, Duration::from_millis(50), Arc::new(Metrics::default()))
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::post(path).header("content-type", "application/grpc").body(Empty::new()).expect("a request")
}

/// Data and the outcome of a call.
async fn outcome(pipeline: &Pipeline, path: &str) -> (Vec<u8>, Error) {
    let response = pipeline.call(&Peer::default(), request(path)).await;
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.expect("a body never fails");
    let headers = collected.trailers().cloned().unwrap_or(parts.headers);
    let status = from_headers(&headers).expect("a status");
    (collected.to_bytes().to_vec(), from_status(&status))
}

fn streaming(
    frames: impl futures_util::Stream<Item = Result<Frame<Bytes>, tonic::Status>> + Send + 'static,
) -> Response<tonic::body::Body> {
    Response::new(tonic::body::Body::new(StreamBody::new(frames)))
}

#[tokio::test]
async fn a_panic_ends_its_own_call_with_internal() {
    let pipeline = pipeline(|| panic!("a defect, on purpose"));
    for _ in 0..2 {
        let (data, error) = outcome(&pipeline, CHECK).await;
        assert!(data.is_empty() && error.is(Reason::Internal) && error.request_id().is_some(), "{error:?}");
    }
}

#[tokio::test]
async fn a_panic_in_a_stream_ends_the_stream_with_internal() {
    let pipeline = pipeline(|| {
        let first = Ok(Frame::data(Bytes::from_static(&[0, 0, 0, 0, 0])));
        let frames = futures_util::stream::once(std::future::ready(first))
            .chain(futures_util::stream::once(async { panic!("a defect, on purpose") }));
        Box::pin(std::future::ready(streaming(frames)))
    });
    let (data, error) = outcome(&pipeline, WATCH).await;
    assert_eq!(data, [0; 5]);
    assert!(error.is(Reason::Internal), "{error:?}");
}

#[tokio::test]
async fn a_call_that_is_no_stream_ends_at_the_servers_own_limit() {
    let pipeline = pipeline(|| Box::pin(std::future::pending()));
    let (_, error) = outcome(&pipeline, CHECK).await;
    assert!(error.is(Reason::DeadlineExceeded), "{error:?}");
}

#[tokio::test]
async fn a_stream_is_cut_between_messages_only() {
    let half_sent = CancellationToken::new();
    let go_on = CancellationToken::new();
    let (told, wait) = (half_sent.clone(), go_on.clone());
    let pipeline = pipeline(move || {
        let (told, wait) = (told.clone(), wait.clone());
        let frames = futures_util::stream::unfold(0, move |step| {
            let (told, wait) = (told.clone(), wait.clone());
            async move {
                let data: &'static [u8] = match step {
                    // A message of two bytes in two frames, and the beginning of a next one.
                    0 => &[0, 0, 0, 0, 2, 1],
                    1 => {
                        told.cancel();
                        wait.cancelled().await;
                        &[2]
                    }
                    _ => &[0, 0, 0, 0, 1, 9],
                };
                Some((Ok(Frame::data(Bytes::from_static(data))), step + 1))
            }
        });
        Box::pin(std::future::ready(streaming(frames)))
    });
    let calling = tokio::spawn({
        let pipeline = pipeline.clone();
        async move { outcome(&pipeline, WATCH).await }
    });
    half_sent.cancelled().await;
    pipeline.cut();
    go_on.cancel();
    let (data, error) = calling.await.expect("no panic");
    assert_eq!(data, [0, 0, 0, 0, 2, 1, 2]);
    assert!(error.is(Reason::ShuttingDown), "{error:?}");
}

#[tokio::test]
async fn a_body_without_a_status_is_a_defect_and_says_so() {
    let pipeline = pipeline(|| {
        let body = tonic::body::Body::new(Full::new(Bytes::from_static(&[0; 5])));
        Box::pin(std::future::ready(Response::new(body)))
    });
    let (_, error) = outcome(&pipeline, CHECK).await;
    assert!(error.is(Reason::Internal), "{error:?}");
}

#[tokio::test]
async fn until_the_stores_are_open_only_health_answers() {
    let pipeline = pipeline(|| Box::pin(std::future::ready(tonic::Status::ok("").into_http())));
    let (_, error) = outcome(&pipeline, "/atrium.v1.AdminService/GetServerInfo").await;
    assert!(error.is(Reason::Starting) && error.retry_delay().is_some(), "{error:?}");
    let response = pipeline.call(&Peer::default(), request(CHECK)).await;
    assert_eq!(response.headers()["grpc-status"], "0");
    assert!(response.headers().contains_key("x-request-id"));
}
