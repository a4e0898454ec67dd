//! Whatever bytes come as a manifest: no panic, and what is accepted keeps its rules.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use protocol::manifest::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let start_timeout = Duration::from_secs(30);
    match Manifest::parse(bytes, start_timeout) {
        Ok(manifest) => {
            let timeout = manifest.start_timeout.unwrap_or(start_timeout);
            let gives_up = manifest.restart.give_up_after(timeout) < manifest.restart.window;
            let never = manifest.restart.when == protocol::manifest::RestartWhen::Never;
            assert!(gives_up || never);
            assert!(!manifest.name.as_str().contains('/'));
        }
        Err(error) => assert!(!error.mistakes.is_empty()),
    }
});
