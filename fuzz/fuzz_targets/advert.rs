//! Any bytes, read as a signed advert and as an advert's body.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    protocol::advert::exercise(bytes);
});
