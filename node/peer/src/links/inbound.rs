//! Links that others opened to this peer, and the lanes beside them.
//!
//! What a stream is shows in its first bytes. A link is served until it ends or is drained for a
//! newer one; a lane is handed to its link. Everything is counted for each peer, so that none takes
//! the places of others.

use std::{sync::Arc, time::Duration};

use link::{Arrival, CALLS_MAX, LinkSettings, PREFACE_WITHIN, Seat, Share, Unread};
use protocol::{
    id::PeerId,
    ports::{Caller, Invoke},
};
use tokio::{sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{OpenStream, Pool, State};

/// Calls of one peer in progress here, on all the links it opened: as many as one link has, so that
/// who opens more of them gets no more done.
pub const CALLS_PER_PEER_MAX: usize = CALLS_MAX;

/// Links that all peers together may have opened to this one.
const INBOUND_MAX: usize = 1_024;

/// Links that one peer may have opened to this one and that take calls. It needs one; more arise
/// when its connection broke without this side's knowing. The newest are the ones it uses, so the
/// oldest is drained for a new one.
pub(super) const INBOUND_PER_PEER_MAX: usize = 4;

/// Links of one peer that are being drained; while there are so many it gets no new one.
pub(super) const DRAINING_PER_PEER_MAX: usize = 4;

/// Streams of one peer that have not said yet what they are.
pub(super) const ARRIVING_PER_PEER_MAX: usize = 8;

/// How long the calls of a link that is drained in favour of a newer one may still take.
const DRAIN_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(INBOUND_PER_PEER_MAX + DRAINING_PER_PEER_MAX < INBOUND_MAX);

pub(super) struct Inbound<S> {
    number: u64,
    drain: CancellationToken,
    /// The same for all links of one peer.
    share: Arc<Share>,
    /// The way to its seat for a lane, until one has come.
    lane: Option<oneshot::Sender<Unread<S>>>,
}

/// A link that has its place.
struct Admitted<S> {
    number: u64,
    drain: CancellationToken,
    share: Arc<Share>,
    seat: Seat<S>,
}

impl<O: OpenStream> Pool<O> {
    /// Finds out what `stream` is, and serves it or hands it to the link it belongs to.
    pub(super) fn take(
        self: &Arc<Self>,
        peer: PeerId,
        stream: O::Stream,
        handler: Arc<dyn Invoke>,
    ) {
        if !self.state.lock().arrive(peer) {
            tracing::debug!(%peer, "refused a stream: too many of the peer's say nothing");
            return;
        }
        let pool = self.clone();
        self.tasks.spawn(async move {
            let arrival = tokio::select! {
                arrival = timeout(PREFACE_WITHIN, link::arrival(stream)) => arrival,
                () = pool.drain.cancelled() => return,
            };
            pool.state.lock().arrived(peer);
            match arrival {
                Ok(Ok(Arrival::Link(stream))) => pool.serve(peer, stream, handler).await,
                Ok(Ok(Arrival::Lane { number, stream })) => {
                    let seat = pool.state.lock().seat(peer, number);
                    if seat.is_none_or(|seat| seat.send(stream).is_err()) {
                        tracing::debug!(%peer, number, "refused a lane: no link takes it");
                    }
                }
                Ok(Err(_)) | Err(_) => tracing::debug!(%peer, "a stream said nothing"),
            }
        });
    }

    /// One inbound link, to its end.
    async fn serve(
        self: Arc<Self>,
        peer: PeerId,
        stream: Unread<O::Stream>,
        handler: Arc<dyn Invoke>,
    ) {
        let Some(Admitted { number, drain, share, seat }) = self.admit(peer) else {
            tracing::debug!(%peer, "refused a link: the peer has too many");
            return;
        };
        let settings =
            LinkSettings { peer: Some(peer), share: Some(share), ..LinkSettings::default() };
        let drained = drain.clone().cancelled_owned();
        let caller = Caller::Peer(peer);
        let served = link::serve_with_lane(stream, seat, settings, caller, handler, drained);
        let patience = async {
            drain.cancelled().await;
            tokio::time::sleep(DRAIN_MAX).await;
        };
        tokio::select! {
            end = served => tracing::debug!(%peer, %end, "an inbound link ended"),
            () = patience => tracing::debug!(%peer, "an inbound link was not drained in time"),
            () = self.stop.cancelled() => {}
        }
        self.dismiss(peer, number);
    }

    /// A place for one more link of `peer`, if there is one.
    fn admit(&self, peer: PeerId) -> Option<Admitted<O::Stream>> {
        let mut state = self.state.lock();
        let links = state.inbound.get(&peer).map_or(&[][..], Vec::as_slice);
        let taking: Vec<_> = links.iter().filter(|link| !link.drain.is_cancelled()).collect();
        let draining = links.len() - taking.len();
        let full = state.inbound_count >= INBOUND_MAX || self.drain.is_cancelled();
        if full || draining >= DRAINING_PER_PEER_MAX {
            return None;
        }
        if taking.len() >= INBOUND_PER_PEER_MAX
            && let Some(oldest) = taking.first()
        {
            oldest.drain.cancel();
        }
        let shared = links.first().map(|link| Arc::clone(&link.share));
        let share = shared.unwrap_or_else(|| Share::new(CALLS_PER_PEER_MAX));
        state.next += 1;
        state.inbound_count += 1;
        let (number, drain) = (state.next, self.drain.child_token());
        let (seat, way) = Seat::new(number);
        let admitted = Admitted { number, drain: drain.clone(), share: Arc::clone(&share), seat };
        let inbound = Inbound { number, drain, share, lane: Some(way) };
        state.inbound.entry(peer).or_default().push(inbound);
        Some(admitted)
    }

    fn dismiss(&self, peer: PeerId, number: u64) {
        let mut state = self.state.lock();
        let Some(links) = state.inbound.get_mut(&peer) else { return };
        let before = links.len();
        links.retain(|link| link.number != number);
        let gone = before - links.len();
        if links.is_empty() {
            state.inbound.remove(&peer);
        }
        state.inbound_count -= gone;
    }
}

impl<S> State<S> {
    /// Counts a stream of `peer` that has not said yet what it is. False if there are too many.
    fn arrive(&mut self, peer: PeerId) -> bool {
        let arriving = self.arriving.entry(peer).or_default();
        let room = *arriving < ARRIVING_PER_PEER_MAX;
        *arriving += usize::from(room);
        room
    }

    /// It has.
    fn arrived(&mut self, peer: PeerId) {
        if let Some(arriving) = self.arriving.get_mut(&peer) {
            *arriving -= 1;
            if *arriving == 0 {
                self.arriving.remove(&peer);
            }
        }
    }

    /// The way to the seat for a lane of one of the links that `peer` opened.
    fn seat(&mut self, peer: PeerId, number: u64) -> Option<oneshot::Sender<Unread<S>>> {
        let links = self.inbound.get_mut(&peer)?;
        links.iter_mut().find(|link| link.number == number)?.lane.take()
    }
}
