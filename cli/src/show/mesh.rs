//! Services, providers and peers.

use std::fmt::Write;

use protocol::proto::admin::{
    Candidate, Connection, ExplainResponse, Peer, Provider, RegistryQueryResponse, Service,
};
use serde_json::{Value, json};

use super::{labels, number_or_null, or_dash, short_peer, text_or_null};
use crate::{
    terminal::{Table, Tone, clean, paint},
    units::{count, round_trip, span},
};

/// Every service with its providers.
pub fn services(services: &[Service], colour: bool) -> String {
    if services.is_empty() {
        return "no services known; load a plugin with `blackhole plugin load`, or join peers that \
                have some"
            .into();
    }
    let headings = ["SERVICE", "PROVIDER", "PLUGIN", "VERSION", "WHERE", "LOAD", "RTT"];
    let mut table = Table::new(colour, &headings).right(5).right(6);
    for service in services {
        if service.providers.is_empty() {
            let absent = [or_dash(""), or_dash(""), or_dash(""), "nobody".into()];
            let [provider, plugin, version, whereabouts] = absent.map(|text| (text, None));
            let (load, rtt) = ((or_dash(""), None), (or_dash(""), None));
            let name = (service.name.clone(), Some(Tone::Strong));
            table.row([name, provider, plugin, version, whereabouts, load, rtt]);
        }
        for (index, provider) in service.providers.iter().enumerate() {
            let name = if index == 0 { service.name.as_str() } else { "" };
            table.row([
                (name.into(), Some(Tone::Strong)),
                (peer(provider), None),
                (or_dash(&provider.plugin), None),
                (or_dash(&provider.version), None),
                whereabouts(provider),
                (format!("{}%", provider.load_percent), None),
                (round_trip(provider.rtt_us), None),
            ]);
        }
    }
    table.text()
}

/// Every service as JSON.
pub fn services_document(services: &[Service]) -> Value {
    let services = services.iter().map(|service| {
        let providers: Vec<Value> = service.providers.iter().map(provider_document).collect();
        json!({"name": service.name, "providers": providers})
    });
    json!({"services": services.collect::<Vec<_>>()})
}

pub(super) fn peer(provider: &Provider) -> String {
    let id = short_peer(&provider.peer_id);
    if provider.peer_name.is_empty() { id } else { format!("{} ({id})", provider.peer_name) }
}

pub(super) fn whereabouts(provider: &Provider) -> (String, Option<Tone>) {
    match (provider.local, provider.connected) {
        (true, _) => ("here".into(), Some(Tone::Good)),
        (false, true) => (or_dash(&provider.transport), None),
        (false, false) => ("not connected".into(), Some(Tone::Dim)),
    }
}

pub(super) fn provider_document(provider: &Provider) -> Value {
    json!({
        "peer_id": provider.peer_id,
        "peer_name": text_or_null(&provider.peer_name),
        "plugin": text_or_null(&provider.plugin),
        "version": text_or_null(&provider.version),
        "instance": text_or_null(&provider.instance),
        "local": provider.local,
        "connected": provider.connected,
        "transport": text_or_null(&provider.transport),
        "expires_in_ms": number_or_null(provider.expires_in_ms),
        "load_percent": provider.load_percent,
        "rtt_us": number_or_null(provider.rtt_us),
        "labels": provider.labels,
    })
}

/// The peers this node is connected to.
pub fn peers(peers: &[Peer], colour: bool) -> String {
    if peers.is_empty() {
        return "no peers connected; name one with `blackhole start --bootstrap MULTIADDR`".into();
    }
    let headings = ["PEER", "AGENT", "RTT", "VIA", "DIR", "AGE", "ADDRESS", "SERVICES"];
    let mut table = Table::new(colour, &headings).right(2);
    for peer in peers {
        let services = or_dash(&peer.services.join(", "));
        let none = Connection::default();
        let connections = if peer.connections.is_empty() {
            std::slice::from_ref(&none)
        } else {
            &peer.connections[..]
        };
        for (index, connection) in connections.iter().enumerate() {
            let first = |text: String| if index == 0 { text } else { String::new() };
            table.row([
                (first(peer.peer_id.clone()), Some(Tone::Strong)),
                (first(or_dash(&peer.agent)), None),
                (first(round_trip(peer.rtt_us)), None),
                (or_dash(&connection.transport), None),
                (or_dash(&connection.direction), None),
                (span(connection.age_ms), None),
                (or_dash(&connection.address), Some(Tone::Dim)),
                (first(services.clone()), None),
            ]);
        }
    }
    table.text()
}

/// The peers as JSON.
pub fn peers_document(peers: &[Peer]) -> Value {
    let peers = peers.iter().map(|peer| {
        let connections = peer.connections.iter().map(|connection| {
            json!({
                "address": connection.address,
                "transport": connection.transport,
                "direction": connection.direction,
                "age_ms": connection.age_ms,
            })
        });
        json!({
            "peer_id": peer.peer_id,
            "agent": text_or_null(&peer.agent),
            "rtt_us": number_or_null(peer.rtt_us),
            "services": peer.services,
            "connections": connections.collect::<Vec<_>>(),
        })
    });
    json!({"peers": peers.collect::<Vec<_>>()})
}

/// Who offers one service.
pub fn query(service: &str, found: &RegistryQueryResponse, colour: bool) -> String {
    let mut text = String::new();
    if found.known.is_empty() {
        let _ = write!(text, "no advert of {service} is held here");
    } else {
        let headings = ["PEER", "NAME", "PLUGIN", "VERSION", "WHERE", "EXPIRES", "LABELS"];
        let mut table = Table::new(colour, &headings);
        for provider in &found.known {
            let expires = match provider.expires_in_ms {
                0 => or_dash(""),
                millis => format!("in {}", span(millis)),
            };
            table.row([
                (provider.peer_id.clone(), Some(Tone::Strong)),
                (or_dash(&provider.peer_name), None),
                (or_dash(&provider.plugin), None),
                (or_dash(&provider.version), None),
                whereabouts(provider),
                (expires, None),
                (or_dash(&labels(&provider.labels)), None),
            ]);
        }
        text.push_str(&table.text());
    }
    let named = match found.in_dht.len() {
        0 => "nobody".to_owned(),
        number => count(number, "peer"),
    };
    let _ = write!(text, "\n\nthe DHT names {named} (asked for {})", span(found.lookup_ms));
    for peer in &found.in_dht {
        let _ = write!(text, "\n  {}", clean(peer));
    }
    text
}

/// Who offers one service, as JSON.
pub fn query_document(service: &str, found: &RegistryQueryResponse) -> Value {
    json!({
        "service": service,
        "known": found.known.iter().map(provider_document).collect::<Vec<_>>(),
        "in_dht": found.in_dht,
        "lookup_ms": found.lookup_ms,
    })
}

/// What would be chosen, and why.
pub fn explain(answer: &ExplainResponse, colour: bool) -> String {
    let verdict = paint(colour, Tone::Strong, &clean(&answer.verdict));
    if answer.candidates.is_empty() {
        return verdict;
    }
    let headings = ["", "PROVIDER", "PLUGIN", "VERSION", "WHERE", "LOAD", "RTT", "WHY"];
    let mut table = Table::new(colour, &headings).right(0).right(5).right(6);
    for (index, candidate) in answer.candidates.iter().enumerate() {
        let (mark, tone) = if candidate.eligible {
            (format!("{}", index + 1), None)
        } else {
            ("no".into(), Some(Tone::Bad))
        };
        let unknown = Provider::default();
        let provider = candidate.provider.as_ref().unwrap_or(&unknown);
        table.row([
            (mark, tone),
            (peer(provider), None),
            (or_dash(&provider.plugin), None),
            (or_dash(&provider.version), None),
            whereabouts(provider),
            (format!("{}%", provider.load_percent), None),
            (round_trip(provider.rtt_us), None),
            (candidate.why.clone(), None),
        ]);
    }
    format!("{verdict}\n\n{}", table.text())
}

/// What would be chosen, as JSON.
pub fn explain_document(service: &str, answer: &ExplainResponse) -> Value {
    let candidate = |candidate: &Candidate| {
        json!({
            "provider": candidate.provider.as_ref().map(provider_document),
            "eligible": candidate.eligible,
            "why": candidate.why,
        })
    };
    json!({
        "service": service,
        "verdict": answer.verdict,
        "candidates": answer.candidates.iter().map(candidate).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Provider {
        Provider {
            peer_id: "12D3KooWLocal000aaaaaaaa".into(),
            peer_name: "alpha".into(),
            plugin: "counter".into(),
            version: "1.0.0".into(),
            local: true,
            ..Provider::default()
        }
    }

    fn there() -> Provider {
        Provider {
            peer_id: "12D3KooWRemote00bbbbbbbb".into(),
            plugin: "counter".into(),
            version: "1.1.0".into(),
            connected: true,
            transport: "quic".into(),
            expires_in_ms: 42_000,
            load_percent: 50,
            rtt_us: 850,
            labels: [("region".to_owned(), "eu".to_owned())].into(),
            ..Provider::default()
        }
    }

    #[test]
    fn an_empty_mesh_says_how_to_fill_it() {
        assert!(services(&[], false).contains("blackhole plugin load"));
        assert!(peers(&[], false).contains("--bootstrap"));
    }

    #[test]
    fn a_service_is_named_once_and_its_providers_below() {
        let list = [Service { name: "demo.v1.Counter".into(), providers: vec![here(), there()] }];
        let expected = "\
SERVICE          PROVIDER           PLUGIN   VERSION  WHERE  LOAD    RTT
demo.v1.Counter  alpha (…aaaaaaaa)  counter  1.0.0    here     0%      -
                 …bbbbbbbb          counter  1.1.0    quic    50%  850µs";
        assert_eq!(services(&list, false), expected);
        let document = services_document(&list);
        let second = &document["services"][0]["providers"][1];
        assert_eq!(second["rtt_us"], 850);
        assert_eq!(second["peer_name"], Value::Null);
        assert_eq!(second["labels"]["region"], "eu");
    }

    #[test]
    fn a_peer_has_one_line_for_each_connection() {
        let connection = |transport: &str| Connection {
            address: format!("/ip4/192.0.2.1/{transport}"),
            transport: transport.into(),
            direction: "out".into(),
            age_ms: 5000,
        };
        let list = [Peer {
            peer_id: "12D3KooWB".into(),
            agent: "blackhole/0.1".into(),
            connections: vec![connection("tcp"), connection("quic")],
            ..Peer::default()
        }];
        let expected = "\
PEER       AGENT          RTT  VIA   DIR  AGE  ADDRESS              SERVICES
12D3KooWB  blackhole/0.1    -  tcp   out  5s   /ip4/192.0.2.1/tcp   -
                               quic  out  5s   /ip4/192.0.2.1/quic";
        assert_eq!(peers(&list, false), expected);
    }

    #[test]
    fn a_query_shows_adverts_and_the_dht_apart() {
        let found = RegistryQueryResponse {
            known: vec![there()],
            in_dht: vec!["12D3KooWRemote00bbbbbbbb".into()],
            lookup_ms: 12,
        };
        let text = query("demo.v1.Counter", &found, false);
        assert!(text.contains("in 42s") && text.contains("region=eu"), "{text}");
        assert!(text.contains("the DHT names 1 peer (asked for 12ms)\n  12D3KooWRemote"), "{text}");
        let nobody = query("demo.v1.Counter", &RegistryQueryResponse::default(), false);
        assert!(nobody.starts_with("no advert of demo.v1.Counter is held here"), "{nobody}");
    }

    #[test]
    fn an_explanation_begins_with_the_verdict() {
        let answer = ExplainResponse {
            verdict: "the plugin of this node is chosen".into(),
            candidates: vec![
                Candidate { provider: Some(here()), eligible: true, why: "local".into() },
                Candidate { provider: Some(there()), eligible: false, why: "suspect".into() },
            ],
        };
        let text = explain(&answer, false);
        assert!(text.starts_with("the plugin of this node is chosen\n\n"), "{text}");
        let last = text.lines().last().expect("lines");
        assert!(last.starts_with("no  …bbbbbbbb") && last.ends_with("suspect"), "{last}");
    }
}
