//! Version 1 of the advert's bytes: a DAG-CBOR map with one- to three-letter keys, because an
//! advert must stay below a kilobyte. Changing anything here needs a new version number and a new
//! signing domain.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use super::{Advert, AdvertRejected, ServiceOffer};
use crate::id::{InstanceId, NetworkName, PeerId};

const VERSION: u64 = 1;

/// As written. Names are the wire's, and explained at [`Advert`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct V1<'a> {
    v: u64,
    net: Cow<'a, NetworkName>,
    #[serde(rename = "p", with = "serde_bytes")]
    peer: Vec<u8>,
    #[serde(rename = "b")]
    boot: u64,
    #[serde(rename = "i")]
    instance: u64,
    #[serde(rename = "n", default, skip_serializing_if = "is_zero")]
    part: u16,
    #[serde(rename = "pl")]
    plugin: Cow<'a, str>,
    #[serde(rename = "ver")]
    version: Cow<'a, semver::Version>,
    #[serde(rename = "s")]
    services: Vec<V1Service<'a>>,
    #[serde(rename = "l")]
    labels: Cow<'a, BTreeMap<String, String>>,
    #[serde(rename = "iso")]
    isolation: Cow<'a, str>,
    #[serde(rename = "ld")]
    load: u8,
    #[serde(rename = "pr", default, skip_serializing_if = "Option::is_none")]
    price: Option<u64>,
    #[serde(rename = "q")]
    seq: u64,
    #[serde(rename = "t")]
    issued: u64,
    #[serde(rename = "x")]
    expires: u64,
    #[serde(rename = "gone", default, skip_serializing_if = "is_false")]
    withdrawn: bool,
}

/// A pair `[name, hash]`.
#[derive(Serialize, Deserialize)]
struct V1Service<'a>(Cow<'a, crate::service::ServiceName>, serde_bytes::ByteArray<32>);

/// Read first, on failure, to tell a newer format from nonsense.
#[derive(Deserialize)]
struct AnyVersion {
    v: u64,
}

pub(super) fn encode(advert: &Advert) -> Vec<u8> {
    let services = advert.services.iter();
    let form = V1 {
        v: VERSION,
        net: Cow::Borrowed(&advert.network),
        peer: advert.peer.to_bytes(),
        boot: advert.boot,
        instance: advert.instance.0,
        part: advert.part,
        plugin: Cow::Borrowed(&advert.plugin),
        version: Cow::Borrowed(&advert.version),
        services: services
            .map(|one| V1Service(Cow::Borrowed(&one.name), one.schema.into()))
            .collect(),
        labels: Cow::Borrowed(&advert.labels),
        isolation: Cow::Borrowed(&advert.isolation),
        load: advert.load,
        price: advert.price,
        seq: advert.seq,
        issued: advert.issued,
        expires: advert.expires,
        withdrawn: advert.withdrawn,
    };
    serde_ipld_dagcbor::to_vec(&form)
        .expect("text, bytes and whole numbers always have a CBOR form")
}

pub(super) fn decode(body: &[u8]) -> Result<Advert, AdvertRejected> {
    let form: V1<'_> = serde_ipld_dagcbor::from_slice(body).map_err(|_| not_version_1(body))?;
    if form.v != VERSION {
        return Err(AdvertRejected::UnknownFormat { version: form.v });
    }
    let services = form.services.into_iter();
    Ok(Advert {
        network: form.net.into_owned(),
        peer: PeerId::from_bytes(&form.peer).map_err(|_| AdvertRejected::Malformed)?,
        boot: form.boot,
        instance: InstanceId(form.instance),
        part: form.part,
        plugin: form.plugin.into_owned(),
        version: form.version.into_owned(),
        services: services
            .map(|one| ServiceOffer { name: one.0.into_owned(), schema: one.1.into_array() })
            .collect(),
        labels: form.labels.into_owned(),
        isolation: form.isolation.into_owned(),
        load: form.load,
        price: form.price,
        seq: form.seq,
        issued: form.issued,
        expires: form.expires,
        withdrawn: form.withdrawn,
    })
}

fn not_version_1(body: &[u8]) -> AdvertRejected {
    match serde_ipld_dagcbor::from_slice(body) {
        Ok(AnyVersion { v }) if v != VERSION => AdvertRejected::UnknownFormat { version: v },
        _ => AdvertRejected::Malformed,
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !*flag
}
