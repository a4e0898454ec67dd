//! Names to addresses, as this machine resolves them. Bounded: the system's resolver takes a
//! thread for as long as it waits, and the node needs its threads.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs, UdpSocket},
    sync::Arc,
    time::Duration,
};

use protocol::manifest::permission::HostName;
use tokio::{sync::Semaphore, time::timeout};

/// Look-ups of all plugins of a host at once; each takes a thread of the runtime's 512.
const LOOKUPS_MAX: usize = 32;

/// How long a look-up may take, its turn included.
const PATIENCE: Duration = Duration::from_secs(10);

/// The look-ups of one host. Clones share the bound.
#[derive(Clone)]
pub(crate) struct Lookups {
    all: Arc<Semaphore>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }
}

impl Lookups {
    /// The addresses of `name`; `own` is the share of whoever asks.
    pub(super) async fn addresses(
        &self,
        name: &HostName,
        own: &Arc<Semaphore>,
    ) -> io::Result<Vec<IpAddr>> {
        let found = async {
            let closed = |_| io::Error::other("look-ups have ended");
            let own = Arc::clone(own).acquire_owned().await.map_err(closed)?;
            let all = Arc::clone(&self.all).acquire_owned().await.map_err(closed)?;
            // With a final dot it is the whole name: the machine's search domains stay out.
            let question = format!("{name}.");
            let name = name.clone();
            let answer = tokio::task::spawn_blocking(move || {
                // Held while the thread is: whoever asked may have gone.
                let _held = (own, all);
                (question.as_str(), 0_u16)
                    .to_socket_addrs()
                    .or_else(|_| (name.as_str(), 0_u16).to_socket_addrs())
                    .map(|addresses| addresses.map(|address| address.ip()).collect::<Vec<_>>())
            });
            answer.await.map_err(io::Error::other)?
        };
        let mut found = timeout(PATIENCE, found).await.map_err(|_| io::ErrorKind::TimedOut)??;
        found.dedup();
        Ok(found)
    }
}

/// True where `address` is this machine's own: then a socket can be bound to it.
pub(super) fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_addresses_are_known_as_such() {
        assert!(is_own(IpAddr::from([127, 0, 0, 1])));
        assert!(!is_own(IpAddr::from([192, 0, 2, 1])));
    }

    #[tokio::test]
    async fn names_are_looked_up_as_the_machine_does() {
        let own = Arc::new(Semaphore::new(1));
        let name = "localhost".parse().expect("a name");
        let found = Lookups::default().addresses(&name, &own).await.expect("in /etc/hosts");
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty(), "{found:?}");
    }
}
