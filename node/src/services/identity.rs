//! The identity service: makes identities, signs with them, verifies signatures of any.
//!
//! Keys live in the service's state directory and outlive it. An identity that was told was on
//! disk before.

use std::{io, path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use protocol::{
    id::{NodeKey, PeerId},
    proto::{
        DESCRIPTORS,
        identity::{
            CreateRequest, IdentityRecord, ListRequest, ListResponse, LookupRequest, SignRequest,
            SignResponse, VerifyRequest, VerifyResponse,
            identity_server::{Identity, IdentityServer},
        },
    },
};
use sdk::{Answer, Plugin};
use tonic::{Request, Response, Status};

use super::keys::{KeyError, Keys};

/// The service as a plugin.
///
/// Fails where what it keeps cannot be read.
pub fn plugin(state: Option<PathBuf>) -> io::Result<Plugin> {
    let keys = Keys::open(state.map(|state| state.join("identities")))?;
    if !keys.is_durable() {
        eprintln!("it was given no place for state: identities end with this process");
    }
    Ok(Plugin::new("identity", env!("CARGO_PKG_VERSION"))
        .description("Makes identities, signs with them, verifies signatures of any.")
        .descriptors(DESCRIPTORS)
        .service(IdentityServer::new(Identities(Arc::new(Mutex::new(keys))))))
}

struct Identities(Arc<Mutex<Keys>>);

impl Identities {
    fn key(&self, name: &str) -> Result<NodeKey, Status> {
        let found = self.0.lock().get(name).cloned();
        found.ok_or_else(|| Status::not_found(format!("there is no identity {name} on this node")))
    }
}

impl From<KeyError> for Status {
    fn from(error: KeyError) -> Self {
        let text = error.to_string();
        match error {
            KeyError::Name => Self::invalid_argument(text),
            KeyError::Taken(_) => Self::already_exists(text),
            KeyError::Full => Self::resource_exhausted(text),
            KeyError::Disk(_) => Self::unavailable(text),
        }
    }
}

#[tonic::async_trait]
impl Identity for Identities {
    async fn create(&self, request: Request<CreateRequest>) -> Answer<IdentityRecord> {
        let name = request.into_inner().name;
        let keys = Arc::clone(&self.0);
        // It waits for the disk.
        let made = tokio::task::spawn_blocking(move || {
            let key = NodeKey::from_seed(rand::random());
            let record = record(&name, &key);
            keys.lock().add(&name, key).map(|()| record)
        });
        let made = made.await.map_err(|_| Status::cancelled("the service is ending"))?;
        Ok(Response::new(made?))
    }

    async fn lookup(&self, request: Request<LookupRequest>) -> Answer<IdentityRecord> {
        let name = request.into_inner().name;
        Ok(Response::new(record(&name, &self.key(&name)?)))
    }

    async fn list(&self, _: Request<ListRequest>) -> Answer<ListResponse> {
        let keys = self.0.lock();
        let identities = keys.all().map(|(name, key)| record(name, key)).collect();
        Ok(Response::new(ListResponse { identities }))
    }

    async fn sign(&self, request: Request<SignRequest>) -> Answer<SignResponse> {
        let SignRequest { name, message } = request.into_inner();
        let key = self.key(&name)?;
        let signature = key.sign(&message).to_vec().into();
        Ok(Response::new(SignResponse { signature, id: key.peer_id().to_string() }))
    }

    async fn verify(&self, request: Request<VerifyRequest>) -> Answer<VerifyResponse> {
        let VerifyRequest { id, message, signature } = request.into_inner();
        let id: PeerId =
            id.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let valid = id.verify(&message, &signature);
        Ok(Response::new(VerifyResponse { valid }))
    }
}

fn record(name: &str, key: &NodeKey) -> IdentityRecord {
    let public_key = key.peer_id().verifying_key().map(|key| key.as_bytes().to_vec());
    IdentityRecord {
        name: name.into(),
        id: key.peer_id().to_string(),
        public_key: public_key.unwrap_or_default().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_an_identity_signs_verifies_and_nothing_else_does() {
        let keys = Keys::open(None).expect("nothing to read");
        let identities = Identities(Arc::new(Mutex::new(keys)));
        let create = || Request::new(CreateRequest { name: "ada".into() });
        let made = identities.create(create()).await.expect("made").into_inner();
        assert_eq!(
            identities.create(create()).await.expect_err("taken").code(),
            tonic::Code::AlreadyExists
        );
        let sign = SignRequest { name: "ada".into(), message: "hello".into() };
        let signed = identities.sign(Request::new(sign)).await.expect("signed").into_inner();
        let verify = |message: &'static str| {
            Request::new(VerifyRequest {
                id: made.id.clone(),
                message: message.into(),
                signature: signed.signature.clone(),
            })
        };
        assert!(identities.verify(verify("hello")).await.expect("asked").into_inner().valid);
        assert!(!identities.verify(verify("hallo")).await.expect("asked").into_inner().valid);
    }
}
