//! Compiles the service's contract, and keeps the descriptors that reflection serves.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=greeter.proto");
    let files = protox::compile(["greeter.proto"], ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    Ok(tonic_prost_build::configure().compile_fds(files)?)
}
