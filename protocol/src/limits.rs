//! Every bound in one place, with its reason, proved against its neighbours at compile time.

/// A service name or method name: protobuf sets no bound; 255 fits one length byte.
pub const SERVICE_NAME_BYTES_MAX: usize = 255;

/// One gRPC message carried by the mesh. Larger ones are refused with `RESOURCE_EXHAUSTED`:
/// streams exist for them. Twice what most gRPC libraries accept by default.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// All metadata of one call in one direction. gRPC libraries default to 8 KiB; binary trailers
/// with status details need more.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;

/// How long a call may take when its caller set no deadline, in seconds, while it makes no
/// progress. A caller's own deadline always counts instead.
pub const CALL_IDLE_SECONDS_MAX: u64 = 300;

/// How long a call waits for the DHT when nobody is known to offer its service, in milliseconds.
/// Callers of a name that nobody offers wait this long once; the answer is remembered.
pub const LOOKUP_MILLIS_MAX: u64 = 2_000;

/// How long "nobody offers this" is remembered, in milliseconds. An advert ends it at once.
pub const ABSENT_MILLIS: u64 = 5_000;

/// One advert, signed and encoded. Gossip stays under 1 KiB so that it never needs IDONTWANT.
pub const ADVERT_BYTES_MAX: usize = 1_000;

/// Services that one advert may name; more are announced in further adverts.
pub const ADVERT_SERVICES_MAX: usize = 16;

/// How long an advert is valid, in milliseconds.
pub const ADVERT_TTL_MILLIS: u64 = 60_000;

/// How often an unchanged advert is issued anew, in milliseconds, before jitter.
pub const ADVERT_REFRESH_MILLIS: u64 = 10_000;

/// How far two peers' clocks may differ, in milliseconds, before adverts are refused as issued in
/// the future.
pub const CLOCK_SKEW_MILLIS_MAX: u64 = 30_000;

/// Adverts of others that a peer remembers. At [`ADVERT_BYTES_MAX`] each this is 10 MB.
pub const ADVERTS_KEPT_MAX: usize = 10_000;

/// Adverts that one peer may have at once: one stranger cannot fill the table.
pub const ADVERTS_PER_PEER_MAX: usize = 1_024;

/// How long a provider record lives in the DHT, in seconds.
pub const PROVIDER_TTL_SECONDS: u64 = 30 * 60;

/// A descriptor set of one plugin, as fetched from it or its peer.
pub const DESCRIPTORS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Figures of its own that one plugin has: each is a line on its node's metrics page.
pub const FIGURES_MAX: usize = 64;

/// A plugin manifest file.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024;

// An advert must be refreshed several times before it expires, or one lost message hides a
// provider.
const _: () = assert!(ADVERT_REFRESH_MILLIS * 4 <= ADVERT_TTL_MILLIS);
// A refused clock must not outlive the advert it refuses.
const _: () = assert!(CLOCK_SKEW_MILLIS_MAX < ADVERT_TTL_MILLIS);
const _: () = assert!(ADVERTS_PER_PEER_MAX < ADVERTS_KEPT_MAX);
