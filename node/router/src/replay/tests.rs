use futures::{FutureExt, stream};
use http_body_util::{BodyExt, StreamBody};
use proptest::{collection::vec, prelude::*};

use super::*;

/// These bodies are never pending.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("it is ready")
}

fn body(chunks: Vec<Vec<u8>>) -> Body {
    let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
    Body::new(StreamBody::new(stream::iter(frames)))
}

fn replay(chunks: Vec<Vec<u8>>) -> Replay {
    Replay::new(body(chunks), Progress::new(), &Spare::new())
}

fn next(attempt: &mut Body) -> Option<Result<Bytes, Failure>> {
    let frame = now(attempt.frame())?;
    Some(frame.map(|frame| frame.into_data().expect("requests have no trailers")))
}

fn rest(attempt: Body) -> Bytes {
    now(attempt.collect()).expect("it reads to its end").to_bytes()
}

proptest! {
    #[test]
    fn every_attempt_says_the_whole_request(
        chunks in vec(vec(any::<u8>(), 0..50), 0..20),
        given_up_after in vec(0..25_usize, 0..4),
    ) {
        let whole = chunks.concat();
        let replay = replay(chunks);
        for chunks_read in given_up_after {
            let mut attempt = replay.attempt().expect("little was sent");
            let mut said = Vec::new();
            for _ in 0..chunks_read {
                let Some(chunk) = next(&mut attempt) else { break };
                said.extend(chunk.expect("no failure"));
            }
            prop_assert!(whole.starts_with(&said));
        }
        let last = replay.attempt().expect("little was sent");
        replay.settle();
        prop_assert_eq!(rest(last), whole);
    }

    #[test]
    fn past_the_bound_the_attempt_goes_on_and_there_is_no_other(
        chunk_bytes in 1..40_000_usize,
    ) {
        let count = (REPLAY_BYTES_MAX / chunk_bytes).min(REPLAY_CHUNKS_MAX) + 1;
        let replay = replay(vec![vec![7; chunk_bytes]; count + 3]);
        let mut attempt = replay.attempt().expect("nothing was sent");
        for _ in 0..count {
            prop_assert!(replay.can_repeat());
            next(&mut attempt).expect("a chunk").expect("no failure");
        }
        prop_assert!(!replay.can_repeat());
        prop_assert!(replay.attempt().is_none());
        prop_assert_eq!(rest(attempt).len(), chunk_bytes * 3);
    }
}

#[test]
fn what_is_kept_of_all_large_requests_together_is_bounded_and_given_back() {
    let spare = Spare::new();
    let read = |bytes: usize| {
        let large = body(vec![vec![7; bytes / 64]; 64]);
        let replay = Replay::new(large, Progress::new(), &spare);
        rest(replay.attempt().expect("nothing was sent"));
        replay
    };
    let each = REPLAY_BYTES_MAX - REPLAY_BYTES_OWN;
    let mut large: Vec<_> = (0..=SPARE_BYTES / each).map(|_| read(REPLAY_BYTES_MAX)).collect();
    assert!(!large.pop().expect("the last").can_repeat());
    assert!(large.iter().all(Replay::can_repeat));
    assert!(read(REPLAY_BYTES_OWN).can_repeat(), "a small one needs none of it");
    large.pop();
    assert!(read(REPLAY_BYTES_MAX).can_repeat(), "what the ended one had is there again");
    drop(large);
    assert_eq!(spare.0.load(Ordering::Relaxed), SPARE_BYTES);
}

#[test]
fn an_attempt_that_was_given_up_takes_nothing_from_the_next() {
    let replay = replay(vec![vec![1], vec![2], vec![3]]);
    let mut old = replay.attempt().expect("nothing was sent");
    next(&mut old).expect("a chunk").expect("no failure");
    let new = replay.attempt().expect("little was sent");
    assert!(next(&mut old).expect("an answer").is_err());
    assert_eq!(rest(new), [1, 2, 3].as_slice());
}

#[test]
fn an_empty_request_is_known_to_be_empty() {
    let replay = replay(Vec::new());
    let mut attempt = replay.attempt().expect("nothing was sent");
    assert!(now(attempt.frame()).is_none());
    assert!(attempt.is_end_stream());
}

#[test]
fn a_failure_of_the_caller_ends_the_request() {
    let frames = [
        Ok(Frame::data(Bytes::from_static(b"a"))),
        Err(Failure::unknown(Reason::Cancelled, "the caller went away")),
    ];
    let body = Body::new(StreamBody::new(stream::iter(frames)));
    let replay = Replay::new(body, Progress::new(), &Spare::new());
    let mut attempt = replay.attempt().expect("nothing was sent");
    assert!(next(&mut attempt).expect("a chunk").is_ok());
    assert!(next(&mut attempt).expect("a failure").is_err());
    assert!(next(&mut attempt).is_none());
}
