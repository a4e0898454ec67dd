//! Where the executables under test are.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Names the directory with the executables, where they are not beside the running program.
pub const BIN_DIR_VARIABLE: &str = "BH_BIN_DIR";

/// The directory with `bh-peer` and the plugins: `BH_BIN_DIR`, or where cargo put them: beside
/// this program, or one level above it for test programs (which live in `deps/`).
pub fn directory() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(BIN_DIR_VARIABLE) {
        return Ok(PathBuf::from(dir));
    }
    let this = env::current_exe().context("cannot tell where this program is")?;
    let mut places = this.ancestors().skip(1).take(2);
    places.find(|dir| dir.join("bh-peer").is_file()).map(Path::to_owned).with_context(|| {
        format!(
            "there is no bh-peer near {}: run `cargo build --workspace` first, or set {}",
            this.display(),
            BIN_DIR_VARIABLE
        )
    })
}

/// The executable `name`, which must exist.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    if !path.is_file() {
        bail!("{} is not built: run `cargo build --workspace` first", path.display());
    }
    Ok(path)
}

/// The root of the repository, from where this crate was compiled.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
