//! A place for one link that is made when it is needed and made anew when it is lost.

use parking_lot::RwLock;
use tokio::sync::Mutex;

use crate::Link;

/// The link of one target. Owns no stream and no driver: whoever opens the link drives it.
#[derive(Default)]
pub struct Reconnecting {
    link: RwLock<Option<Link>>,
    opening: Mutex<()>,
}

impl Reconnecting {
    /// The link, if there is one that takes calls.
    pub fn current(&self) -> Option<Link> {
        self.link.read().as_ref().filter(|link| !link.is_closed()).cloned()
    }

    /// The link, made by `open` where there is none. Of many who want it at once one opens it.
    pub async fn get<E>(&self, open: impl Future<Output = Result<Link, E>>) -> Result<Link, E> {
        if let Some(link) = self.current() {
            return Ok(link);
        }
        let _alone = self.opening.lock().await;
        if let Some(link) = self.current() {
            return Ok(link);
        }
        let link = open.await?;
        *self.link.write() = Some(link.clone());
        Ok(link)
    }

    /// Lets the link go; it ends after its last call.
    pub fn close(&self) {
        *self.link.write() = None;
    }
}
