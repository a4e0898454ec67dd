//! An AutoNAT server that does not dial where it is told into private networks.
//!
//! A stranger who asks to be dialled back names the address. Without this guard it could have this
//! peer knock at doors inside the operator's own network. Only addresses of the public internet
//! are dialled; a network that is private anyway needs no such test, since its listen addresses
//! are taken as they are.

use std::{
    collections::HashSet,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    autonat::v2::server,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        behaviour::{ConnectionEstablished, DialFailure},
    },
};

use super::address;

/// The guarded server.
#[derive(Default)]
pub(super) struct ReachabilityServer {
    inner: server::Behaviour,
    /// Dials that the server asked for and that are under way; bounded by the limit on pending
    /// connections.
    dials: HashSet<ConnectionId>,
}

/// A dial that the guard refused.
#[derive(Debug, thiserror::Error)]
#[error("a reachability test named {0}, which is not an address of the public internet")]
struct NotPublic(Multiaddr);

impl NetworkBehaviour for ReachabilityServer {
    type ConnectionHandler = <server::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = server::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if self.dials.contains(&id)
            && let Some(private) = addresses.iter().find(|address| !address::is_global(address))
        {
            return Err(ConnectionDenied::new(NotPublic(private.clone())));
        }
        self.inner.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::DialFailure(DialFailure { connection_id, .. })
            | FromSwarm::ConnectionEstablished(ConnectionEstablished { connection_id, .. }) => {
                self.dials.remove(&connection_id);
            }
            _ => {}
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<server::Event, THandlerInEvent<Self>>> {
        let action = self.inner.poll(cx);
        if let Poll::Ready(ToSwarm::Dial { opts }) = &action {
            self.dials.insert(opts.connection_id());
        }
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_cannot_have_private_addresses_dialled() {
        let mut server = ReachabilityServer::default();
        let (ours, theirs) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        server.dials.insert(theirs);
        let peer = Some(PeerId::random());
        for (address, allowed) in [
            ("/ip4/127.0.0.1/tcp/22", false),
            ("/ip4/192.168.1.1/tcp/80", false),
            ("/ip6/::1/tcp/22", false),
            ("/dns4/localhost/tcp/22", false),
            ("/ip4/8.8.8.8/tcp/4001", true),
        ] {
            let address: Multiaddr = address.parse().expect("a multiaddr");
            let addresses = std::slice::from_ref(&address);
            let mut dial = |id| {
                let role = Endpoint::Dialer;
                server.handle_pending_outbound_connection(id, peer, addresses, role).is_ok()
            };
            assert_eq!(dial(theirs), allowed, "{address}");
            assert!(dial(ours), "this peer's own dials are its own business");
        }
    }
}
