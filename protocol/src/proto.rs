//! The contracts in `proto/`, compiled: messages, clients and servers.

/// `blackhole.admin.v1`: what operators and the `blackhole` command ask of a node.
#[allow(missing_docs, unused_qualifications, clippy::pedantic)]
pub mod admin {
    tonic::include_proto!("blackhole.admin.v1");
}

/// `blackhole.identity.v1`: the built-in identity service.
#[allow(missing_docs, unused_qualifications, clippy::pedantic)]
pub mod identity {
    tonic::include_proto!("blackhole.identity.v1");
}

/// `blackhole.plugin.v1`: the optional control contract of a plugin.
#[allow(missing_docs, unused_qualifications, clippy::pedantic)]
pub mod plugin {
    tonic::include_proto!("blackhole.plugin.v1");
}

/// `blackhole.telemetry.v1`: the built-in telemetry service, and what the node tells it.
#[allow(missing_docs, unused_qualifications, clippy::pedantic)]
pub mod telemetry {
    tonic::include_proto!("blackhole.telemetry.v1");
}

/// All of them as one encoded `google.protobuf.FileDescriptorSet`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/contracts.bin"));
