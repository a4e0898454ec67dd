//! The contracts of the first-party plugins, for the plugins themselves and for whoever calls
//! them from Rust. The programs are in `echo/`, `counter/`, `kv/` and `misfit/`, each with its
//! `.proto` and its manifest.

#![forbid(unsafe_code)]

/// `demo.v1`: messages, clients and servers of all four.
#[allow(missing_docs, unused_qualifications, clippy::pedantic)]
pub mod demo {
    tonic::include_proto!("demo.v1");

    /// Describes everything above, as reflection serves it.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptors");
}
