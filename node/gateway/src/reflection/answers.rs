//! Questions about interfaces, and where their answers come from.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use parking_lot::Mutex;
use protocol::{failure::Failure, limits::DESCRIPTORS_BYTES_MAX, service::ServiceName};

use super::index::Index;
use crate::{
    bounds::{INDEXES_KEPT_MAX, REFLECTION_ANSWER, REFLECTION_FETCHES_MAX},
    catalog::Catalog,
};

/// gRPC's `INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;
/// gRPC's `NOT_FOUND`.
const NOT_FOUND: i32 = 5;

/// What a client asks.
#[derive(Debug, Clone)]
pub(super) enum Question {
    /// The file of this name.
    File(String),
    /// The file that defines this service, method, message, field, enum …
    Symbol(String),
    /// The file that extends a message with a field.
    Extension {
        /// The message.
        of: String,
        /// The field's number.
        number: i32,
    },
    /// The fields with which a message is extended.
    ExtensionNumbers(String),
    /// All services.
    Services,
    /// A request without a question.
    Nothing,
}

/// What it gets.
#[derive(Debug)]
pub(super) enum Answer {
    /// The file asked for, and after it all that it depends on.
    Files(Vec<Bytes>),
    /// Field numbers, ascending.
    ExtensionNumbers {
        /// The extended message.
        of: String,
        /// Its extensions.
        numbers: Vec<i32>,
    },
    /// Full names, ascending.
    Services(Vec<String>),
    /// gRPC's code and a sentence.
    Error {
        /// The code.
        code: i32,
        /// The sentence.
        message: String,
    },
}

/// All interfaces of the mesh, and indexes of those that were asked about.
pub(super) struct Library {
    catalog: Arc<dyn Catalog>,
    /// The interfaces of the services that the gateway itself answers.
    own: Arc<Index>,
    indexes: Mutex<HashMap<ServiceName, Kept>>,
}

/// An index, valid as long as the service's descriptors are the ones it was made of.
struct Kept {
    set: Bytes,
    index: Arc<Index>,
    used: Instant,
}

impl Library {
    pub(super) fn new(catalog: Arc<dyn Catalog>) -> Self {
        let mut own = Index::default();
        for set in [
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            own.add(Bytes::from_static(set)).expect("descriptors made by the compiler");
        }
        Self { catalog, own: Arc::new(own), indexes: Mutex::default() }
    }

    fn services(&self) -> Vec<String> {
        let own = [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ];
        let mesh = self.catalog.services().into_iter().map(String::from);
        mesh.chain(own.map(String::from)).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The index of `service`'s descriptors.
    async fn index(&self, service: &ServiceName, due: Instant) -> Result<Arc<Index>, Failure> {
        let set = self.catalog.descriptors(service.clone(), due).await?;
        if let Some(kept) = self.indexes.lock().get_mut(service)
            && kept.set == set
        {
            kept.used = Instant::now();
            return Ok(Arc::clone(&kept.index));
        }
        let malformed = |what: String| {
            let message = format!("the descriptors of {service} cannot be used: {what}");
            Failure::failed(protocol::failure::Reason::Malformed, message)
        };
        if set.len() > DESCRIPTORS_BYTES_MAX {
            return Err(malformed(format!("they have {} bytes", set.len())));
        }
        let index = Index::read(set.clone()).map_err(|error| malformed(error.to_string()))?;
        let index = Arc::new(index);
        self.keep(service, Kept { set, index: Arc::clone(&index), used: Instant::now() });
        Ok(index)
    }

    fn keep(&self, service: &ServiceName, kept: Kept) {
        let mut indexes = self.indexes.lock();
        if indexes.len() >= INDEXES_KEPT_MAX && !indexes.contains_key(service) {
            let oldest = indexes.iter().min_by_key(|(_, kept)| kept.used);
            if let Some(oldest) = oldest.map(|(service, _)| service.clone()) {
                indexes.remove(&oldest);
            }
        }
        indexes.insert(service.clone(), kept);
    }
}

/// One client's stream of questions.
pub(super) struct Conversation {
    library: Arc<Library>,
    /// The sets it has touched, the latest last. At most [`INDEXES_KEPT_MAX`].
    touched: Vec<Arc<Index>>,
}

impl Conversation {
    pub(super) fn new(library: Arc<Library>) -> Self {
        Self { library, touched: Vec::new() }
    }

    pub(super) async fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Services => Answer::Services(self.library.services()),
            Question::File(name) => {
                let found = self.search(None, |index| index.file(&name)).await;
                files(found, || format!("no service of the mesh has a file {name}"))
            }
            Question::Symbol(symbol) => {
                let symbol = symbol.trim_start_matches('.').to_owned();
                let found = self.search(Some(&symbol), |index| index.symbol(&symbol)).await;
                files(found, || format!("no service of the mesh defines {symbol}"))
            }
            Question::Extension { of, number } => {
                let of = of.trim_start_matches('.').to_owned();
                let found = self.search(Some(&of), |index| index.extension(&of, number)).await;
                files(found, || format!("nothing extends {of} with field {number}"))
            }
            Question::ExtensionNumbers(of) => self.extension_numbers(of).await,
            Question::Nothing => {
                let message = "the request asks nothing".into();
                Answer::Error { code: INVALID_ARGUMENT, message }
            }
        }
    }

    async fn extension_numbers(&mut self, of: String) -> Answer {
        let of = of.trim_start_matches('.').to_owned();
        let found = self.search(Some(&of), |index| index.symbol(&of)).await;
        if !matches!(&found, Ok(found) if !found.is_empty()) {
            return files(found, || format!("no service of the mesh defines {of}"));
        }
        let indexes = self.touched.iter().chain([&self.library.own]);
        let numbers = indexes
            .filter(|index| index.defines(&of))
            .flat_map(|index| index.extension_numbers(&of))
            .collect::<BTreeSet<_>>();
        Answer::ExtensionNumbers { of, numbers: numbers.into_iter().collect() }
    }

    /// What `find` finds: in the gateway's own files, in the sets touched before, then in those of
    /// the services whose names are nearest to `symbol`. Fails where nothing was found and a set
    /// could not be fetched.
    async fn search(
        &mut self,
        symbol: Option<&str>,
        find: impl Fn(&Index) -> Vec<Bytes>,
    ) -> Result<Vec<Bytes>, Failure> {
        let due = Instant::now() + REFLECTION_ANSWER;
        let found = find(&self.library.own);
        if !found.is_empty() {
            return Ok(found);
        }
        let named = symbol.and_then(|symbol| self.service_of(symbol));
        if named.is_none() {
            let mut touched = self.touched.iter().rev().map(|index| find(index));
            if let Some(found) = touched.find(|found| !found.is_empty()) {
                return Ok(found);
            }
        }
        let mut failed = None;
        for service in named.map_or_else(|| self.nearest(symbol), |named| vec![named]) {
            match self.library.index(&service, due).await {
                Ok(index) => {
                    let found = find(&index);
                    if !found.is_empty() {
                        self.touch(index);
                        return Ok(found);
                    }
                }
                Err(failure) => failed = failed.or(Some(failure)),
            }
            if Instant::now() >= due {
                break;
            }
        }
        failed.map_or(Ok(Vec::new()), Err)
    }

    /// The offered service that `symbol` is, or is a method of.
    fn service_of(&self, symbol: &str) -> Option<ServiceName> {
        let parent = symbol.rsplit_once('.').map(|(parent, _)| parent);
        let mut names = [Some(symbol), parent].into_iter().flatten();
        names.find_map(|name| {
            name.parse().ok().filter(|service| self.library.catalog.is_offered(service))
        })
    }

    /// Services in whose descriptors `symbol` may be, those first that share most of its package.
    fn nearest(&self, symbol: Option<&str>) -> Vec<ServiceName> {
        let mut services = self.library.catalog.services();
        let shared = |service: &ServiceName| {
            let symbol = symbol.unwrap_or_default().split('.');
            symbol.zip(service.as_str().split('.')).take_while(|(a, b)| a == b).count()
        };
        services.sort_by(|a, b| shared(b).cmp(&shared(a)).then_with(|| a.cmp(b)));
        services.truncate(REFLECTION_FETCHES_MAX);
        services
    }

    fn touch(&mut self, index: Arc<Index>) {
        self.touched.retain(|touched| !Arc::ptr_eq(touched, &index));
        if self.touched.len() == INDEXES_KEPT_MAX {
            self.touched.remove(0);
        }
        self.touched.push(index);
    }
}

fn files(found: Result<Vec<Bytes>, Failure>, otherwise: impl FnOnce() -> String) -> Answer {
    match found {
        Ok(files) if files.is_empty() => Answer::Error { code: NOT_FOUND, message: otherwise() },
        Ok(files) => Answer::Files(files),
        // Codes are small.
        Err(failure) => {
            Answer::Error { code: failure.grpc_code() as i32, message: failure.to_string() }
        }
    }
}
