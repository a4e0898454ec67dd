//! Any bytes, read as one side of a link.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    protocol::frame::fuzz(bytes);
});
