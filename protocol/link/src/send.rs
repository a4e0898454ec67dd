//! Bursts of a call as frames: as few as can say it.

use bytes::Bytes;
use http::HeaderMap;
use protocol::{
    failure::{Failure, Reason},
    frame::{CallId, MetadataTooLarge},
    ports::CallHead,
};
use tokio::time::Instant;

use crate::{
    core::{Call, Head, Over},
    outbound::Burst,
    wire::Out,
};

/// Writes one burst of a call, with its head if that was not sent yet.
pub(crate) fn send(
    out: &mut Out,
    id: CallId,
    call: &mut Call,
    burst: Burst,
    now: Instant,
    answering: bool,
) -> Option<Over> {
    let sent = match call.head.take() {
        Some(Head::Open(head)) => send_open(out, id, call, &head, burst, now),
        Some(Head::Reply(metadata)) => send_reply(out, id, &metadata, burst),
        None if answering => send_answer(out, id, burst),
        None => send_request(out, id, call, burst),
    };
    sent.unwrap_or_else(|error| {
        let failure = Failure::failed(Reason::TooLarge, error.to_string());
        if answering {
            out.encode(Bytes::new(), |encoder, buffer| encoder.fail(buffer, id, &failure));
            return Some(Over::Told);
        }
        if call.opened_at.is_some() {
            out.encode(Bytes::new(), |encoder, buffer| encoder.cancel(buffer, id));
        }
        Some(Over::Failed(failure))
    })
}

type Sent = Result<Option<Over>, MetadataTooLarge>;

fn send_open(
    out: &mut Out,
    id: CallId,
    call: &mut Call,
    head: &CallHead,
    burst: Burst,
    now: Instant,
) -> Sent {
    let Burst { data, ending } = burst;
    if let Some(Err(failure)) = ending {
        return Ok(Some(Over::Failed(failure)));
    }
    let end = matches!(ending, Some(Ok(None)));
    let time_left = call.deadline.map(|at| at.saturating_duration_since(now));
    let data_bytes = data.len();
    out.encode(data, |encoder, buffer| {
        encoder.open(buffer, id, &head.path, time_left, &head.metadata, data_bytes, end)
    })?;
    call.opened_at = Some(out.queued());
    if end {
        call.outbound = None;
        return Ok(None);
    }
    send_request(out, id, call, Burst { data: Bytes::new(), ending })
}

fn send_request(out: &mut Out, id: CallId, call: &mut Call, burst: Burst) -> Sent {
    let Burst { data, ending } = burst;
    let end = matches!(ending, Some(Ok(None)));
    let data_bytes = data.len();
    if data_bytes > 0 {
        out.encode(data, |encoder, buffer| encoder.data(buffer, id, data_bytes, end));
    }
    match ending {
        None => return Ok(None),
        Some(Ok(None)) if data_bytes > 0 => {}
        Some(Ok(trailers)) => {
            let trailers = trailers.unwrap_or_default();
            out.encode(Bytes::new(), |encoder, buffer| encoder.half_close(buffer, id, &trailers))?;
        }
        Some(Err(failure)) => {
            out.encode(Bytes::new(), |encoder, buffer| encoder.cancel(buffer, id));
            return Ok(Some(Over::Failed(failure)));
        }
    }
    call.outbound = None;
    Ok(None)
}

fn send_reply(out: &mut Out, id: CallId, metadata: &HeaderMap, burst: Burst) -> Sent {
    let Burst { data, ending } = burst;
    let data_bytes = data.len();
    match ending {
        // Nothing was said yet: the failure is all there is to say.
        Some(Err(failure)) if data_bytes == 0 => {
            out.encode(Bytes::new(), |encoder, buffer| encoder.fail(buffer, id, &failure));
            Ok(Some(Over::Told))
        }
        Some(Ok(trailers)) => {
            let trailers = trailers.unwrap_or_default();
            out.encode(data, |encoder, buffer| {
                encoder.headers(buffer, id, metadata, data_bytes, Some(&trailers))
            })?;
            Ok(Some(Over::Told))
        }
        ending => {
            out.encode(data, |encoder, buffer| {
                encoder.headers(buffer, id, metadata, data_bytes, None)
            })?;
            send_answer(out, id, Burst { data: Bytes::new(), ending })
        }
    }
}

fn send_answer(out: &mut Out, id: CallId, burst: Burst) -> Sent {
    let Burst { data, ending } = burst;
    let data_bytes = data.len();
    if data_bytes > 0 {
        out.encode(data, |encoder, buffer| encoder.data(buffer, id, data_bytes, false));
    }
    match ending {
        None => return Ok(None),
        Some(Ok(trailers)) => {
            let trailers = trailers.unwrap_or_default();
            out.encode(Bytes::new(), |encoder, buffer| encoder.end(buffer, id, &trailers))?;
        }
        Some(Err(failure)) => {
            out.encode(Bytes::new(), |encoder, buffer| encoder.fail(buffer, id, &failure));
        }
    }
    Ok(Some(Over::Told))
}
