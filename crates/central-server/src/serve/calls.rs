//! The calls of a connection, run by the task of the connection itself.
//!
//! A call that only looks something up takes less time than handing it to another thread and back, and a response that is
//! written from there makes both threads wait for each other at the connection's state. So calls are no tasks of their
//! own: whatever is ready is run, then all their responses are written at once. Answers of the store that come together
//! wake one task instead of many. What takes long (disk, hashing, passwords) is on blocking threads anyway, and a client
//! that wants more than one core has more than one connection.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;
use parking_lot::Mutex;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Times that what calls have answered is written before other tasks get their turn.
const TURNS: usize = 16;

/// Takes the calls that a connection begins. As many as the connection lets in at a time.
#[derive(Clone, Default)]
pub(super) struct Begun(Arc<Mutex<Vec<Call>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Begun {
    fn execute(&self, call: F) {
        // No one needs to be woken: it is the connection that begins calls, and `drive` looks here after each of its turns.
        self.0.lock().push(Box::pin(call));
    }
}

/// Drives a connection that begins its calls in `begun`, until it ends. Calls that go on then are dropped; nobody is there
/// to hear their answers.
pub(super) async fn drive<C: Future>(mut connection: Pin<&mut C>, begun: &Begun) -> C::Output {
    let mut calls = FuturesUnordered::new();
    poll_fn(move |cx| {
        for _ in 0..TURNS {
            if let Poll::Ready(outcome) = connection.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            calls.extend(std::mem::take(&mut *begun.0.lock()));
            let mut ended = false;
            while let Poll::Ready(Some(())) = calls.poll_next_unpin(cx) {
                ended = true;
            }
            if !ended {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use tokio::sync::{mpsc, oneshot};

    #[tokio::test]
    async fn calls_run_while_the_connection_waits_and_wake_it_for_their_answers() {
        let begun = Begun::default();
        let (answers, mut answered) = mpsc::unbounded_channel();
        let (go, gate) = oneshot::channel();
        let begin = begun.clone();
        let connection = async move {
            let first = answers.clone();
            begin.execute(async move {
                gate.await.expect("gate");
                first.send("waited").expect("answer");
            });
            begin.execute(async move { answers.send("at once").expect("answer") });
            let mut seen = vec![answered.recv().await.expect("an answer")];
            go.send(()).expect("the call waits");
            seen.push(answered.recv().await.expect("an answer"));
            seen
        };
        assert_eq!(drive(pin!(connection), &begun).await, ["at once", "waited"]);
    }

    #[tokio::test]
    async fn calls_end_with_their_connection() {
        let begun = Begun::default();
        let (held, dropped) = oneshot::channel::<()>();
        begun.execute(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        let mut turns = 0;
        let connection = poll_fn(|cx| {
            turns += 1;
            if turns > 1 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        drive(pin!(connection), &begun).await;
        assert!(dropped.await.is_err(), "nobody is left to answer");
    }

    #[tokio::test]
    async fn calls_that_end_all_the_time_let_others_run() {
        let begun = Begun::default();
        let (stop, mut stopped) = oneshot::channel();
        let other = tokio::spawn(async move { stop.send(()).expect("the connection goes on") });
        let begin = begun.clone();
        let connection = poll_fn(move |cx| {
            begin.execute(async {});
            Pin::new(&mut stopped).poll(cx).map(|said| said.expect("said"))
        });
        drive(pin!(connection), &begun).await;
        other.await.expect("it ran");
    }
}
