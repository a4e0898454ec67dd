//! The DHT's records: provider records only, all in memory under hard caps, written behind.
//!
//! The swarm's task calls this in the middle of its work, so nothing here touches a disk; what
//! changed is collected by [`Records::take_unwritten`] and written by another task. Expiry is a
//! matter of the wall clock, so that a restart neither lengthens nor shortens a record's life.
//!
//! Value records are refused: nothing of ours needs them, and strangers would store what they
//! like. This peer's own provider records are kept apart and never written: whoever offers
//! something announces it anew at each start.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet, hash_map},
    iter,
    time::{Duration, Instant, SystemTime},
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore},
    },
};
use protocol::limits::PROVIDER_TTL_SECONDS;

use super::address::{self, ADDRESS_BYTES_MAX};

/// Provider records of others, over all keys. At about 400 bytes each this is 7 MB.
pub(super) const RECORDS_MAX: usize = 16_384;

/// Provider records of others under one key. A reply with all of them stays below the packet
/// limit; a service with more providers is found through the ones that are listed.
pub(super) const PER_KEY_MAX: usize = 64;

/// Provider records of one other peer: one for each service and major version it offers.
pub(super) const PER_PROVIDER_MAX: usize = 1_024;

/// Provider records of this peer.
pub(super) const OWN_MAX: usize = 4_096;

/// Addresses kept with one record.
pub(super) const ADDRESSES_MAX: usize = 8;

/// Keys are hashes.
pub(super) const KEY_BYTES: usize = 32;

/// Names a record: its key and its provider.
pub(super) type RecordId = ([u8; KEY_BYTES], PeerId);

/// A provider record of another peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) provider: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
    /// When it expires, in Unix milliseconds.
    pub(super) expires: u64,
}

/// The DHT's records.
pub(super) struct Records {
    local: PeerId,
    providers: HashMap<[u8; KEY_BYTES], Vec<Stored>>,
    per_provider: HashMap<PeerId, usize>,
    total: usize,
    own: HashMap<RecordKey, ProviderRecord>,
    /// Records of others that differ from what was last written.
    unwritten: HashSet<RecordId>,
}

impl Records {
    pub(super) fn new(local: PeerId) -> Self {
        Self {
            local,
            providers: HashMap::new(),
            per_provider: HashMap::new(),
            total: 0,
            own: HashMap::new(),
            unwritten: HashSet::new(),
        }
    }

    /// Takes back a record that was written before a restart, unless it has expired.
    pub(super) fn restore(&mut self, key: [u8; KEY_BYTES], record: Stored, now: u64) {
        let id = (key, record.provider);
        if record.expires > now && self.insert(key, record).is_ok() {
            self.unwritten.remove(&id);
        }
    }

    /// Drops what has expired.
    pub(super) fn expire(&mut self, now: u64) {
        let expired: Vec<RecordId> = self
            .providers
            .iter()
            .flat_map(|(key, stored)| stored.iter().map(move |record| (key, record)))
            .filter(|(_, record)| record.expires <= now)
            .map(|(key, record)| (*key, record.provider))
            .collect();
        for (key, provider) in expired {
            self.remove_stored(&key, &provider);
        }
    }

    /// What has to be written: each record that changed, `None` where it is gone.
    pub(super) fn take_unwritten(&mut self) -> Vec<(RecordId, Option<Stored>)> {
        let changed = std::mem::take(&mut self.unwritten);
        let find = |(key, provider): &RecordId| {
            self.providers.get(key)?.iter().find(|record| record.provider == *provider).cloned()
        };
        changed.into_iter().map(|id| (id, find(&id))).collect()
    }

    /// The keys that this peer provides.
    pub(super) fn own_keys(&self) -> Vec<RecordKey> {
        self.own.keys().cloned().collect()
    }

    /// Provider records of others held now.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.total
    }

    fn insert(&mut self, key: [u8; KEY_BYTES], record: Stored) -> Result<(), Error> {
        let id = (key, record.provider);
        // The writer is stuck: hold what there is rather than grow without end.
        if self.unwritten.len() >= 2 * RECORDS_MAX && !self.unwritten.contains(&id) {
            return Err(Error::MaxProvidedKeys);
        }
        let of_key = self.providers.entry(key).or_default();
        if let Some(known) = of_key.iter_mut().find(|known| known.provider == record.provider) {
            *known = record;
            self.unwritten.insert(id);
            return Ok(());
        }
        let held = self.per_provider.get(&record.provider).copied().unwrap_or(0);
        if self.total >= RECORDS_MAX || of_key.len() >= PER_KEY_MAX || held >= PER_PROVIDER_MAX {
            if of_key.is_empty() {
                self.providers.remove(&key);
            }
            return Err(Error::MaxProvidedKeys);
        }
        of_key.push(record);
        *self.per_provider.entry(id.1).or_default() += 1;
        self.total += 1;
        self.unwritten.insert(id);
        Ok(())
    }

    fn remove_stored(&mut self, key: &[u8; KEY_BYTES], provider: &PeerId) {
        let Some(of_key) = self.providers.get_mut(key) else { return };
        let before = of_key.len();
        of_key.retain(|record| record.provider != *provider);
        let removed = before - of_key.len();
        if of_key.is_empty() {
            self.providers.remove(key);
        }
        if removed == 0 {
            return;
        }
        self.total -= removed;
        self.unwritten.insert((*key, *provider));
        if let hash_map::Entry::Occupied(mut held) = self.per_provider.entry(*provider) {
            *held.get_mut() -= removed;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Map<
        hash_map::Values<'a, RecordKey, ProviderRecord>,
        fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>,
    >;

    fn get(&self, _key: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _record: Record) -> Result<(), Error> {
        Err(Error::ValueTooLarge)
    }

    fn remove(&mut self, _key: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<(), Error> {
        if record.provider == self.local {
            if self.own.len() >= OWN_MAX && !self.own.contains_key(&record.key) {
                return Err(Error::MaxProvidedKeys);
            }
            self.own.insert(record.key.clone(), record);
            return Ok(());
        }
        let key = key_bytes(&record.key).ok_or(Error::ValueTooLarge)?;
        let life_max = Duration::from_secs(PROVIDER_TTL_SECONDS);
        let life = record.expires.map(|expires| expires.saturating_duration_since(Instant::now()));
        let life = life.unwrap_or(life_max).min(life_max);
        let sound = |address: &Multiaddr| {
            address.len() <= ADDRESS_BYTES_MAX
                && address::ip(address).is_none_or(|ip| !ip.is_unspecified())
        };
        let addresses = record.addresses.into_iter().filter(sound).take(ADDRESSES_MAX).collect();
        let expires = unix_millis().saturating_add(life.as_millis() as u64);
        self.insert(key, Stored { provider: record.provider, addresses, expires })
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let now = (Instant::now(), unix_millis());
        let of_key = key_bytes(key).and_then(|bytes| self.providers.get(&bytes));
        let others = of_key.into_iter().flatten().filter(|record| record.expires > now.1);
        let others = others.map(|record| ProviderRecord {
            key: key.clone(),
            provider: record.provider,
            expires: Some(now.0 + Duration::from_millis(record.expires - now.1)),
            addresses: record.addresses.clone(),
        });
        self.own.get(key).cloned().into_iter().chain(others).collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.own.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.local {
            self.own.remove(key);
        } else if let Some(key) = key_bytes(key) {
            self.remove_stored(&key, provider);
        }
    }
}

/// The key, if it is as long as ours are.
pub(super) fn key_bytes(key: &RecordKey) -> Option<[u8; KEY_BYTES]> {
    key.as_ref().try_into().ok()
}

/// The wall clock, in Unix milliseconds.
pub(super) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: u32, provider: PeerId) -> ProviderRecord {
        let mut bytes = [0; KEY_BYTES];
        bytes[..4].copy_from_slice(&key.to_le_bytes());
        let address = "/ip4/127.0.0.1/tcp/1".parse().expect("a multiaddr");
        ProviderRecord::new(bytes.to_vec(), provider, vec![address])
    }

    #[test]
    fn one_stranger_fills_its_own_share_and_no_more() {
        let mut records = Records::new(PeerId::random());
        let stranger = PeerId::random();
        for key in 0..5_000 {
            let _ = records.add_provider(record(key, stranger));
        }
        assert_eq!(records.len(), PER_PROVIDER_MAX);
        assert!(records.add_provider(record(9, PeerId::random())).is_ok());
    }

    #[test]
    fn many_strangers_fill_the_store_and_no_more() {
        let mut records = Records::new(PeerId::random());
        for provider in 0..100 {
            let stranger = PeerId::random();
            for key in 0..1_000 {
                let _ = records.add_provider(record(provider * 1_000 + key, stranger));
            }
        }
        assert_eq!(records.len(), RECORDS_MAX);
        assert!(records.unwritten.len() <= 2 * RECORDS_MAX);
    }

    #[test]
    fn one_key_lists_a_bounded_number_of_providers() {
        let mut records = Records::new(PeerId::random());
        for _ in 0..200 {
            let _ = records.add_provider(record(1, PeerId::random()));
        }
        assert_eq!(records.providers(&record(1, PeerId::random()).key).len(), PER_KEY_MAX);
    }

    #[test]
    fn keys_that_are_no_hashes_and_values_are_refused() {
        let mut records = Records::new(PeerId::random());
        let odd = ProviderRecord::new(vec![1; 31], PeerId::random(), Vec::new());
        assert!(records.add_provider(odd).is_err());
        assert!(records.put(Record::new(vec![1; 32], vec![1])).is_err());
    }

    #[test]
    fn own_records_are_listed_first_and_never_written() {
        let local = PeerId::random();
        let mut records = Records::new(local);
        records.add_provider(record(1, PeerId::random())).expect("room");
        records.add_provider(record(1, local)).expect("room");
        let listed = records.providers(&record(1, local).key);
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0].provider, local);
        assert_eq!(records.provided().count(), 1);
        assert_eq!(records.take_unwritten().len(), 1);
        records.remove_provider(&record(1, local).key, &local);
        assert_eq!(records.provided().count(), 0);
    }

    #[test]
    fn expired_records_are_not_listed_not_restored_and_dropped() {
        let mut records = Records::new(PeerId::random());
        let now = unix_millis();
        let stored = |expires| Stored { provider: PeerId::random(), addresses: vec![], expires };
        records.restore([1; 32], stored(now - 1), now);
        assert_eq!(records.len(), 0);
        records.restore([1; 32], stored(now + 60_000), now);
        assert_eq!(records.len(), 1);
        assert!(records.take_unwritten().is_empty(), "what was restored is already written");
        records.expire(now + 60_001);
        assert_eq!(records.len(), 0);
        assert_eq!(records.take_unwritten().len(), 1);
        assert!(records.per_provider.is_empty());
    }

    #[test]
    fn a_record_lives_no_longer_than_the_network_allows() {
        let mut records = Records::new(PeerId::random());
        let mut greedy = record(1, PeerId::random());
        greedy.expires = Some(Instant::now() + Duration::from_secs(1_000_000));
        records.add_provider(greedy.clone()).expect("room");
        let expires = records.providers(&greedy.key)[0].expires.expect("it expires");
        assert!(expires <= Instant::now() + Duration::from_secs(PROVIDER_TTL_SECONDS));
    }
}
