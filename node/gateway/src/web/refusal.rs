//! Why a request of the web does not become a call, or does not go on being one.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use http::{HeaderMap, Response, header::CONTENT_TYPE};
use protocol::failure::{Failure, Reason};

use crate::rescue::{self, Refusal};

/// Either the request is wrong, or the mesh has failed.
#[derive(Debug, Clone)]
pub(super) enum No {
    Refused(Refusal),
    Failed(Failure),
}

impl No {
    /// What was sent cannot be read.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::Refused(Refusal::InvalidArgument(message.into()))
    }

    /// What was sent is more than is taken.
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::Failed(Failure::failed(Reason::TooLarge, message))
    }

    /// It in gRPC's words.
    pub(super) fn answer(&self) -> Response<Body> {
        match self {
            Self::Refused(refusal) => rescue::refuse(refusal),
            Self::Failed(failure) => rescue::answer(failure),
        }
    }

    /// The same, as the trailers of an answer that has begun.
    pub(super) fn trailers(&self) -> HeaderMap {
        let mut trailers = self.answer().into_parts().0.headers;
        trailers.remove(CONTENT_TYPE);
        trailers
    }
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Failure> for No {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Tells the way out what was found wrong on the way in: there it is answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Wrong(Arc<OnceLock<No>>);

impl Wrong {
    /// Keeps the first that was found, and tells what ends the call.
    pub(super) fn found(&self, no: No) -> Failure {
        let _ = self.0.set(no);
        Failure::unknown(Reason::Cancelled, "the caller's messages could not be read")
    }

    /// What was found.
    pub(super) fn get(&self) -> Option<&No> {
        self.0.get()
    }
}
