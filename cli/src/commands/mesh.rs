//! `services`, `describe`, `peers`, `registry query`.

use protocol::{
    id::PeerId,
    proto::admin::{
        DescribeRequest, DescribeResponse, PeersRequest, RegistryQueryRequest, Service,
        ServicesRequest,
    },
    service::ServiceName,
};
use serde_json::json;

use crate::{
    admin::{Node, answer},
    args::Whither,
    failed::{Exit, Failed},
    proto_text,
    schema::{Schema, SchemaError},
    show,
    terminal::{Terminal, Tone, clean, paint},
};

/// The fewest characters of a peer id's end that name a peer: fewer are too easily shared.
const PEER_SUFFIX_MIN: usize = 6;

/// Lists the services of the mesh.
pub async fn services(node: &Node, terminal: &mut Terminal, json: bool) -> Result<Exit, Failed> {
    let services = known(node).await?;
    if json {
        terminal.json(&show::mesh::services_document(&services))?;
    } else {
        let text = show::mesh::services(&services, terminal.colour);
        terminal.print(&text)?;
    }
    Ok(Exit::Ok)
}

/// All services that are known.
pub async fn known(node: &Node) -> Result<Vec<Service>, Failed> {
    Ok(answer(node.admin().services(ServicesRequest {})).await?.services)
}

/// Lists the peers.
pub async fn peers(node: &Node, terminal: &mut Terminal, json: bool) -> Result<Exit, Failed> {
    let peers = answer(node.admin().peers(PeersRequest {})).await?.peers;
    if json {
        terminal.json(&show::mesh::peers_document(&peers))?;
    } else {
        let text = show::mesh::peers(&peers, terminal.colour);
        terminal.print(&text)?;
    }
    Ok(Exit::Ok)
}

/// Shows a service's interface.
pub async fn describe(
    name: &ServiceName,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let (schema, provider) = interface(name, node).await?;
    let service = schema.service(name).map_err(|error| undescribed(&error, name))?;
    if json {
        let mut document = proto_text::document(&service);
        document["provider"] = json!(provider);
        terminal.json(&document)?;
    } else {
        let from = format!("// as told by {}\n", clean(&provider));
        let from = paint(terminal.colour, Tone::Dim, &from);
        terminal.print(&format!("{from}{}", proto_text::text(&service)))?;
    }
    Ok(Exit::Ok)
}

/// A service's descriptors, and the peer they came from.
pub async fn interface(name: &ServiceName, node: &Node) -> Result<(Schema, String), Failed> {
    let request = DescribeRequest { service: name.to_string() };
    let described = answer(node.admin().describe(request)).await;
    let DescribeResponse { descriptor_set, provider } =
        described.map_err(|failed| match failed.code {
            Some("NOT_FOUND" | "UNAVAILABLE") => {
                failed.hint("`blackhole services` lists what the mesh offers")
            }
            _ => failed,
        })?;
    let schema = Schema::read(&descriptor_set).map_err(|error| undescribed(&error, name))?;
    Ok((schema, provider))
}

/// Descriptors that lack what was asked for.
pub fn undescribed(error: &SchemaError, service: &ServiceName) -> Failed {
    match error {
        SchemaError::NoMethod { .. } => Failed::not_found(error.to_string())
            .hint(format!("`blackhole describe {service}` shows its methods and messages")),
        SchemaError::NoService { .. } => Failed::not_found(error.to_string()).hint(
            "its provider has no reflection for it; any gRPC client with the .proto file at hand \
             can call it",
        ),
        SchemaError::Damaged { .. } => Failed::new(error.to_string()),
    }
}

/// Asks the registry who offers a service. That nobody does is exit code 4, and is printed.
pub async fn query(
    name: &ServiceName,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    terminal.progress("asking the DHT");
    let request = RegistryQueryRequest { service: name.to_string() };
    let found = answer(node.admin().registry_query(request)).await?;
    if json {
        terminal.json(&show::mesh::query_document(name.as_str(), &found))?;
    } else {
        let text = show::mesh::query(name.as_str(), &found, terminal.colour);
        terminal.print(&text)?;
    }
    let nobody = found.known.is_empty() && found.in_dht.is_empty();
    Ok(if nobody { Exit::NotFound } else { Exit::Ok })
}

/// The peer that `--peer` means: an id is taken as it is; the end of one, or a name, is looked for
/// among the service's providers.
pub async fn peer(
    whither: &Whither,
    service: &ServiceName,
    node: &Node,
) -> Result<Option<PeerId>, Failed> {
    let Some(wanted) = &whither.peer else { return Ok(None) };
    if let Ok(id) = wanted.parse::<PeerId>() {
        return Ok(Some(id));
    }
    let services = known(node).await?;
    let providers = services.iter().filter(|known| known.name == service.as_str());
    let ending = wanted.trim_start_matches('…');
    let mut meant: Vec<PeerId> = providers
        .flat_map(|service| &service.providers)
        .filter(|provider| {
            let long = ending.len() >= PEER_SUFFIX_MIN;
            provider.peer_name == *wanted || (long && provider.peer_id.ends_with(ending))
        })
        .filter_map(|provider| provider.peer_id.parse().ok())
        .collect();
    meant.sort();
    meant.dedup();
    let hint = "`blackhole services --json` shows the ids of all providers";
    match meant[..] {
        [] => {
            Err(Failed::not_found(format!("no provider of {service} is called `{wanted}`"))
                .hint(hint))
        }
        [one] => Ok(Some(one)),
        _ => Err(Failed::usage(format!("`{wanted}` means {} providers", meant.len())).hint(hint)),
    }
}
