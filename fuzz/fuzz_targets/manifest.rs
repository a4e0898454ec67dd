//! Whatever bytes come as a manifest: no panic, and what is accepted keeps its rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::manifest::{Defaults, Manifest};

fuzz_target!(|bytes: &[u8]| {
    let defaults = Defaults::default();
    match Manifest::parse(bytes, &defaults) {
        Ok(manifest) => {
            let whole = Defaults {
                start_timeout: manifest.start_timeout.unwrap_or(defaults.start_timeout),
                restart: manifest.restart.over(&defaults.restart),
            };
            assert!(whole.give_up().is_ok());
            assert!(!manifest.name.as_str().contains('/'));
        }
        Err(error) => assert!(!error.mistakes.is_empty()),
    }
});
