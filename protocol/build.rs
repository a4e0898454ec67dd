//! Compiles the contracts in `proto/` without an installed `protoc`.

use std::{env, error::Error, fs, path::Path};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "blackhole/admin/v1/admin.proto",
        "blackhole/identity/v1/identity.proto",
        "blackhole/plugin/v1/lifecycle.proto",
        "blackhole/telemetry/v1/telemetry.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    let contracts = Path::new(&env::var("OUT_DIR")?).join("contracts.bin");
    fs::write(contracts, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
