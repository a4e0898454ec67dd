//! Compiles the plugins' contracts, and keeps the descriptors that reflection serves.

use prost::Message;

const CONTRACTS: [&str; 5] = [
    "echo/echo.proto",
    "echo/probe.proto",
    "counter/counter.proto",
    "kv/kv.proto",
    "misfit/misfit.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for contract in CONTRACTS {
        println!("cargo::rerun-if-changed={contract}");
    }
    let files = protox::compile(CONTRACTS, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    Ok(tonic_prost_build::configure().compile_fds(files)?)
}
