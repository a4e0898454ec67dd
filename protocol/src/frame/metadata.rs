//! Blocks of metadata, and the tables in which names and paths are interned.
//!
//! A reference to an interned thing is an integer: 0 says that the thing follows in full, 1 that
//! it follows in full and is the next entry of the table, and n + 2 that it is entry n. The sender
//! decides what to intern; the receiver's table has the same order because a link is ordered.
//! Tables only grow, up to their bound.

use std::{collections::HashMap, hash::Hash};

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    FrameError, METADATA_ENTRIES_MAX, NAME_INTERNED_BYTES_MAX, NAMES_INTERNED_MAX,
    wire::{Cursor, put_varint},
};
use crate::limits::METADATA_BYTES_MAX;

/// Names that every link knows from its start, in the order of their index. Part of version 1:
/// the order never changes.
pub(super) const NAMES: [&str; 20] = [
    "content-type",
    "te",
    "user-agent",
    "grpc-encoding",
    "grpc-accept-encoding",
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "authorization",
    "accept-encoding",
    "content-length",
    "date",
    "server",
    "traceparent",
    "tracestate",
    "baggage",
    "x-request-id",
    "grpc-tags-bin",
    "grpc-trace-bin",
    "grpc-previous-rpc-attempts",
];

/// Values that every link knows, in the order of their index. Part of version 1.
const VALUES: [&str; 8] = [
    "application/grpc",
    "application/grpc+proto",
    "trailers",
    "0",
    "identity",
    "gzip",
    "identity, deflate, gzip",
    "gzip, deflate",
];

/// How a reference says that the thing follows in full.
const IN_FULL: usize = 0;
/// How a reference says that the thing follows in full and is the table's next entry.
const DEFINED: usize = 1;
/// What is added to an index to make a reference.
const INDEX_BASE: usize = 2;

/// The sender's table.
pub(super) struct Interned<T> {
    indices: HashMap<T, usize>,
    entries_max: usize,
}

impl<T: Hash + Eq + Clone> Interned<T> {
    pub(super) fn new(seeds: impl Iterator<Item = T>, entries_max: usize) -> Self {
        Self { indices: seeds.zip(0..).collect(), entries_max }
    }

    /// Writes a reference to `thing`, and `text` in full where there is no entry for it yet.
    pub(super) fn put(&mut self, out: &mut BytesMut, thing: &T, text: &[u8], bytes_max: usize) {
        if let Some(index) = self.indices.get(thing) {
            return put_varint(out, (index + INDEX_BASE) as u64);
        }
        if text.len() <= bytes_max && self.indices.len() < self.entries_max {
            self.indices.insert(thing.clone(), self.indices.len());
            put_varint(out, DEFINED as u64);
        } else {
            put_varint(out, IN_FULL as u64);
        }
        put_varint(out, text.len() as u64);
        out.put_slice(text);
    }
}

/// The receiver's table.
pub(super) struct Learned<T> {
    entries: Vec<T>,
    entries_max: usize,
}

impl<T: Clone> Learned<T> {
    pub(super) fn new(seeds: impl Iterator<Item = T>, entries_max: usize) -> Self {
        Self { entries: seeds.collect(), entries_max }
    }

    /// Reads a reference, and where the thing follows in full, reads it with `parse`.
    pub(super) fn take(
        &mut self,
        from: &mut Cursor<'_>,
        bytes_max: usize,
        parse: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<T, FrameError> {
        let reference = from.size()?;
        if let Some(index) = reference.checked_sub(INDEX_BASE) {
            let known = self.entries.get(index).cloned();
            return known.ok_or_else(|| from.malformed("a reference to nothing"));
        }
        let bytes = from.size()?;
        let text = from.take(bytes)?;
        let thing = parse(text).ok_or_else(|| from.malformed("a name that is none"))?;
        if reference == DEFINED {
            if self.entries.len() >= self.entries_max || bytes > bytes_max {
                return Err(from.malformed("one name too many, or too long, to keep"));
            }
            self.entries.push(thing.clone());
        }
        Ok(thing)
    }
}

pub(super) type InternedNames = Interned<HeaderName>;
pub(super) type LearnedNames = Learned<HeaderName>;

fn seeds() -> impl Iterator<Item = HeaderName> {
    NAMES.into_iter().map(HeaderName::from_static)
}

pub(super) fn interned_names() -> InternedNames {
    Interned::new(seeds(), NAMES_INTERNED_MAX)
}

pub(super) fn learned_names() -> LearnedNames {
    Learned::new(seeds(), NAMES_INTERNED_MAX)
}

/// The size of `metadata` as its limit counts it: bytes of names and values.
pub(super) fn bytes_of(metadata: &HeaderMap) -> usize {
    metadata.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// Writes `metadata`, which must be within the limits.
pub(super) fn put_block(out: &mut BytesMut, names: &mut InternedNames, metadata: &HeaderMap) {
    put_varint(out, metadata.len() as u64);
    for (name, value) in metadata {
        names.put(out, name, name.as_str().as_bytes(), NAME_INTERNED_BYTES_MAX);
        // A value's length doubled, or the index of a known value doubled and one.
        let known = VALUES.iter().position(|known| known.as_bytes() == value.as_bytes());
        if let Some(index) = known {
            put_varint(out, (index as u64) << 1 | 1);
        } else {
            put_varint(out, (value.len() as u64) << 1);
            out.put_slice(value.as_bytes());
        }
    }
}

/// Reads a block.
pub(super) fn take_block(
    from: &mut Cursor<'_>,
    names: &mut LearnedNames,
) -> Result<HeaderMap, FrameError> {
    let entries = from.size()?;
    if entries == 0 {
        return Ok(HeaderMap::new());
    }
    // An entry takes two bytes or more, so this also bounds what is allocated by what was sent.
    if entries > METADATA_ENTRIES_MAX || entries * 2 > from.rest().len() {
        return Err(from.malformed("more metadata than allowed"));
    }
    let mut metadata = HeaderMap::with_capacity(entries);
    let mut bytes = 0;
    for _ in 0..entries {
        let lowercase = |text: &[u8]| HeaderName::from_lowercase(text).ok();
        let name = names.take(from, NAME_INTERNED_BYTES_MAX, lowercase)?;
        let value = take_value(from)?;
        bytes += name.as_str().len() + value.len();
        if bytes > METADATA_BYTES_MAX {
            return Err(from.malformed("more metadata than allowed"));
        }
        metadata.append(name, value);
    }
    Ok(metadata)
}

fn take_value(from: &mut Cursor<'_>) -> Result<HeaderValue, FrameError> {
    let reference = from.size()?;
    if reference & 1 == 1 {
        let known = VALUES.get(reference >> 1).copied();
        let known = known.ok_or_else(|| from.malformed("a reference to nothing"))?;
        return Ok(HeaderValue::from_static(known));
    }
    let text = from.take(reference >> 1)?;
    HeaderValue::from_bytes(text).map_err(|_| from.malformed("a value that is none"))
}
