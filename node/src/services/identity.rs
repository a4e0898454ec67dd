//! The identity service: makes identities, signs with them, verifies signatures of any.
//!
//! Keys live as long as the process: a later version keeps them in the node's store.

use std::collections::BTreeMap;

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

/// Identities that one node holds; each is a name and 32 bytes.
const IDENTITIES_MAX: usize = 100_000;

/// Characters of a name.
const NAME_CHARS_MAX: usize = 64;

/// The service as a plugin.
pub fn plugin() -> Plugin {
    Plugin::new("identity", env!("CARGO_PKG_VERSION"))
        .description("Makes identities, signs with them, verifies signatures of any.")
        .descriptors(DESCRIPTORS)
        .service(IdentityServer::new(Identities::default()))
}

#[derive(Default)]
struct Identities(Mutex<BTreeMap<String, NodeKey>>);

impl Identities {
    fn key(&self, name: &str) -> Result<NodeKey, Status> {
        let found = self.0.lock().get(name).cloned();
        found.ok_or_else(|| Status::not_found(format!("there is no identity {name} on this node")))
    }
}

#[tonic::async_trait]
impl Identity for Identities {
    async fn create(&self, request: Request<CreateRequest>) -> Answer<IdentityRecord> {
        let name = request.into_inner().name;
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
            let text = format!("a name has 1 to {NAME_CHARS_MAX} characters");
            return Err(Status::invalid_argument(text));
        }
        let mut identities = self.0.lock();
        if identities.contains_key(&name) {
            return Err(Status::already_exists(format!("there is an identity {name} already")));
        }
        if identities.len() >= IDENTITIES_MAX {
            let text = format!("this node holds {IDENTITIES_MAX} identities, and no more");
            return Err(Status::resource_exhausted(text));
        }
        let key = NodeKey::from_seed(rand::random());
        let record = record(&name, &key);
        identities.insert(name, key);
        Ok(Response::new(record))
    }

    async fn lookup(&self, request: Request<LookupRequest>) -> Answer<IdentityRecord> {
        let name = request.into_inner().name;
        Ok(Response::new(record(&name, &self.key(&name)?)))
    }

    async fn list(&self, _: Request<ListRequest>) -> Answer<ListResponse> {
        let identities = self.0.lock();
        let identities = identities.iter().map(|(name, key)| record(name, key)).collect();
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
        let identities = Identities::default();
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
