//! `kv`: keeps values by key, in memory.

use std::{collections::BTreeMap, process::ExitCode, sync::Mutex};

use blackhole_plugins::demo::kv_server::{Kv, KvServer};
use blackhole_plugins::demo::{
    DESCRIPTORS, DeleteReply, DeleteRequest, Entry, FetchRequest, PutReply, PutRequest, ScanRequest,
};
use sdk::{Answer, Plugin, Stream};
use tonic::{Request, Response, Status};

/// Entries at once: callers choose the keys, and must not fill the memory with them.
const ENTRIES_MAX: usize = 10_000;

#[derive(Default)]
struct Store(Mutex<BTreeMap<String, Vec<u8>>>);

#[tonic::async_trait]
impl Kv for Store {
    type ScanStream = Stream<Entry>;

    async fn put(&self, request: Request<PutRequest>) -> Answer<PutReply> {
        let PutRequest { key, value } = request.into_inner();
        let mut entries = self.0.lock().expect("no method panics");
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(&key) {
            return Err(Status::resource_exhausted("full: delete something first"));
        }
        entries.insert(key, value);
        Ok(Response::new(PutReply {}))
    }

    async fn get(&self, request: Request<FetchRequest>) -> Answer<Entry> {
        let key = request.into_inner().key;
        match self.0.lock().expect("no method panics").get(&key).cloned() {
            Some(value) => Ok(Response::new(Entry { key, value })),
            None => Err(Status::not_found(format!("there is no {key:?}"))),
        }
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<DeleteReply> {
        let removed = self.0.lock().expect("no method panics").remove(&request.into_inner().key);
        Ok(Response::new(DeleteReply { existed: removed.is_some() }))
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Answer<Stream<Entry>> {
        let prefix = request.into_inner().prefix;
        let mut entries = self.0.lock().expect("no method panics").clone().split_off(&prefix);
        entries.retain(|key, _| key.starts_with(&prefix));
        let entries = entries.into_iter().map(|(key, value)| Ok(Entry { key, value }));
        Ok(Response::new(Box::pin(tokio_stream::iter(entries))))
    }
}

fn main() -> ExitCode {
    Plugin::new("kv", "1.0.0")
        .description("Keeps values by key, in memory")
        .descriptors(DESCRIPTORS)
        .service(KvServer::new(Store::default()))
        .run()
}
