//! Any bytes, read as a request and as a reply of the registry.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    dht_registry::wire::exercise(bytes);
});
