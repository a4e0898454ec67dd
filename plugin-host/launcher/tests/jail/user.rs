//! The same tests once more as an ordinary user, where this run is root.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use crate::world::{LAUNCHER, launcher};

/// `nobody`, on every system.
const NOBODY: &str = "65534";

#[test]
fn every_claim_holds_for_an_ordinary_user_too() {
    if !rustix::process::getuid().is_root() {
        // Then the others have just shown it.
        return;
    }
    let place = tempfile::tempdir().expect("made");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).expect("open to all");
    let copy = |from: &std::path::Path, name: &str| {
        let to = place.path().join(name);
        fs::copy(from, &to).expect("copied");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("executable");
        to
    };
    let launcher = copy(&launcher(), "bh-launcher");
    let this = copy(&std::env::current_exe().expect("known"), "jail");
    let output = Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .arg(this)
        .env(LAUNCHER, launcher)
        .env("TMPDIR", place.path())
        .env("HOME", place.path())
        .current_dir(place.path())
        .stdin(Stdio::null())
        .output()
        .expect("setpriv of util-linux");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "as an ordinary user:\n{said}");
    let passed = said.lines().filter(|line| line.ends_with("... ok")).count();
    assert!(passed > 20, "it ran them all:\n{said}");
}
