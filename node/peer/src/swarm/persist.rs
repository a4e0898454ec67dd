//! What outlives the process: provider records and known peers, written behind the swarm's back.
//!
//! The swarm's task collects changes and hands them over when the writer has room; the writer is a
//! thread that may block. What is read back is not trusted: an entry that does not decode is left
//! out, since all of this is a cache of what the network knows anyway.

use std::sync::Arc;

use libp2p::PeerId;
use multiaddr::Multiaddr;
use protocol::ports::{Store, StoreError};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    book::{self, Known},
    records::{self, KEY_BYTES, RECORDS_MAX, RecordId, Stored},
};

/// Provider records: this, the key, the provider's id.
const RECORD_PREFIX: &[u8] = b"kad/";

/// Known peers: this, the peer's id.
const BOOK_PREFIX: &[u8] = b"book/";

/// Batches that wait for the writer. One is being written, one waits; further changes stay with
/// the swarm's task, which merges them.
const BATCHES_MAX: usize = 1;

/// Keys and values to write; `None` deletes.
pub(super) type Batch = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// What was written before a restart.
#[derive(Debug, Default)]
pub(super) struct Restored {
    pub(super) records: Vec<([u8; KEY_BYTES], Stored)>,
    /// Peers, where they were, and when they were last met in Unix milliseconds.
    pub(super) peers: Vec<(PeerId, Vec<Multiaddr>, u64)>,
}

/// Reads everything back. Blocks.
pub(super) fn restore(store: &dyn Store) -> Result<Restored, StoreError> {
    let mut restored = Restored::default();
    for (key, value) in store.scan(RECORD_PREFIX, RECORDS_MAX)? {
        if let Some((key, record)) = read_record(&key, &value) {
            restored.records.push((key, record));
        }
    }
    for (key, value) in store.scan(BOOK_PREFIX, book::PEERS_MAX)? {
        if let Some(peer) = read_peer(&key, &value) {
            restored.peers.push(peer);
        }
    }
    Ok(restored)
}

/// A thread that writes what is sent to it, until the sender is dropped.
pub(super) fn writer(store: Arc<dyn Store>) -> (mpsc::Sender<Batch>, JoinHandle<()>) {
    let (sender, mut batches) = mpsc::channel::<Batch>(BATCHES_MAX);
    let task = tokio::task::spawn_blocking(move || {
        while let Some(batch) = batches.blocking_recv() {
            if let Err(error) = store.write(batch) {
                tracing::warn!(%error, "what the network told could not be kept");
            }
        }
    });
    (sender, task)
}

/// The change that writes, or deletes, a provider record.
pub(super) fn record_change(
    (key, provider): RecordId,
    record: Option<Stored>,
) -> (Vec<u8>, Option<Vec<u8>>) {
    let name = [RECORD_PREFIX, &key, &provider.to_bytes()].concat();
    (name, record.map(|record| encode(record.expires, &record.addresses)))
}

/// The change that writes, or deletes, a known peer.
pub(super) fn book_change(peer: PeerId, known: Option<Known>) -> (Vec<u8>, Option<Vec<u8>>) {
    let name = [BOOK_PREFIX, &peer.to_bytes()].concat();
    (name, known.map(|known| encode(known.met.unwrap_or(0), &known.addresses)))
}

fn read_record(name: &[u8], value: &[u8]) -> Option<([u8; KEY_BYTES], Stored)> {
    let (key, provider) = name.strip_prefix(RECORD_PREFIX)?.split_at_checked(KEY_BYTES)?;
    let provider = PeerId::from_bytes(provider).ok()?;
    let (expires, addresses) = decode(value, records::ADDRESSES_MAX)?;
    Some((key.try_into().ok()?, Stored { provider, addresses, expires }))
}

fn read_peer(name: &[u8], value: &[u8]) -> Option<(PeerId, Vec<Multiaddr>, u64)> {
    let peer = PeerId::from_bytes(name.strip_prefix(BOOK_PREFIX)?).ok()?;
    let (met, addresses) = decode(value, book::ADDRESSES_MAX)?;
    Some((peer, addresses, met))
}

/// A time as eight bytes, little end first, then each address after its length in two bytes.
fn encode(time: u64, addresses: &[Multiaddr]) -> Vec<u8> {
    let mut bytes = time.to_le_bytes().to_vec();
    for address in addresses {
        bytes.extend_from_slice(&(address.len() as u16).to_le_bytes());
        bytes.extend_from_slice(address.as_ref());
    }
    bytes
}

fn decode(bytes: &[u8], addresses_max: usize) -> Option<(u64, Vec<Multiaddr>)> {
    let (time, mut rest) = bytes.split_first_chunk::<8>()?;
    let mut addresses = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (address, after) = after.split_at_checked(u16::from_le_bytes(*length).into())?;
        if addresses.len() == addresses_max {
            return None;
        }
        addresses.push(Multiaddr::try_from(address.to_vec()).ok()?);
        rest = after;
    }
    Some((u64::from_le_bytes(*time), addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let address: Multiaddr = "/ip4/127.0.0.1/udp/9/quic-v1".parse().expect("a multiaddr");
        let provider = PeerId::random();
        let stored = Stored { provider, addresses: vec![address.clone(); 3], expires: 77 };
        let (name, value) = record_change(([5; KEY_BYTES], provider), Some(stored.clone()));
        assert_eq!(read_record(&name, &value.expect("a value")), Some(([5; KEY_BYTES], stored)));

        let value = encode(8, std::slice::from_ref(&address));
        let name = [BOOK_PREFIX, &provider.to_bytes()].concat();
        assert_eq!(read_peer(&name, &value), Some((provider, vec![address], 8)));
    }

    #[test]
    fn damaged_entries_are_left_out() {
        for bytes in [&[][..], &[1; 7], &[0, 0, 0, 0, 0, 0, 0, 0, 9], &[0xff; 40]] {
            assert_eq!(decode(bytes, 8), None, "{bytes:?}");
        }
        assert_eq!(read_record(b"kad/short", &[0; 8]), None);
        assert_eq!(read_peer(b"book/not an id", &[0; 8]), None);
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/9".parse().expect("a multiaddr");
        assert_eq!(decode(&encode(1, &vec![address; 9]), 8), None, "more addresses than allowed");
    }
}
