//! Where in the DHT a service is found.

use protocol::{id::NetworkName, service::ServiceName};
use sha2::{Digest, Sha256};

/// What separates our keys from everyone else's on a DHT that is shared.
const APP: &str = "blackhole";

/// The shard every provider uses and every lookup asks.
///
/// One key holds as many providers as the DHT's nodes keep for it (20 in libp2p). That bounds how
/// many are found *through the DHT*, not how many there are: whoever finds one provider learns of
/// the others by gossip. The shard is part of the key so that popular services can be spread over
/// several without a new kind of key.
pub const SHARD: u16 = 0;

/// The key of `service` in `network`: sha2-256 over app, network, service name, major version and
/// shard, each text preceded by its length so that no two sets of them run together.
pub fn provider_key(network: &NetworkName, service: &ServiceName, shard: u16) -> [u8; 32] {
    let mut hash = Sha256::new();
    for text in [APP, network.as_str(), service.as_str()] {
        let length = u32::try_from(text.len()).expect("names are far shorter than 4 GiB");
        hash.update(length.to_be_bytes());
        hash.update(text);
    }
    hash.update(service.major().to_be_bytes());
    hash.update(shard.to_be_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(network: &str, service: &str, shard: u16) -> [u8; 32] {
        provider_key(&network.parse().expect("name"), &service.parse().expect("name"), shard)
    }

    #[test]
    fn every_part_of_a_key_counts() {
        let one = key("local", "demo.v1.Counter", 0);
        assert_eq!(one, key("local", "demo.v1.Counter", 0));
        assert_ne!(one, key("other", "demo.v1.Counter", 0));
        assert_ne!(one, key("local", "demo.v2.Counter", 0));
        assert_ne!(one, key("local", "demo.v1.Counter", 1));
        assert_ne!(key("a", "bc", 0), key("ab", "c", 0), "names do not run together");
    }

    #[test]
    fn keys_never_change_between_versions() {
        let pinned = [
            0x0515_581a_f02e_2570,
            0x073c_f8a6_0738_9f20,
            0xa6d3_0461_6106_e579,
            0x9028_89b2_8d62_5ca0,
        ];
        let words: Vec<u64> = key("local", "demo.v1.Counter", 0)
            .chunks(8)
            .map(|chunk| u64::from_be_bytes(chunk.try_into().expect("eight bytes")))
            .collect();
        assert_eq!(words, pinned);
    }
}
