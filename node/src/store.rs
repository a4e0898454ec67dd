//! RocksDB behind [`protocol::ports::Store`]: one database, one key space for each owner.
//!
//! Every write is synced before it is acknowledged. Refuses a database that does not open: it is
//! never replaced by an empty one in silence.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use protocol::ports::{Store, StoreError};
use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};

/// The node's database.
#[derive(Clone)]
pub struct Database {
    db: Arc<DB>,
}

/// Memory for unwritten changes: records are small and few.
const WRITE_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Open table files; each costs a descriptor.
const OPEN_FILES_MAX: i32 = 64;

impl Database {
    /// Opens or creates the database in `dir`.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_paranoid_checks(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_keep_log_file_num(2);
        options.set_max_background_jobs(2);
        options.set_compression_type(rocksdb::DBCompressionType::Lz4);
        let db = DB::open(&options, dir)
            .map_err(|cause| OpenError { path: dir.into(), cause: cause.to_string() })?;
        Ok(Self { db: Arc::new(db) })
    }

    /// The key space of one owner.
    pub fn space(&self, owner: &'static str) -> Arc<dyn Store> {
        Arc::new(Space { db: Arc::clone(&self.db), owner })
    }

    /// Writes and reads back one entry: the database works.
    pub fn check(&self) -> Result<(), StoreError> {
        let space = self.space("check");
        space.write(vec![(b"probe".to_vec(), Some(b"1".to_vec()))])?;
        space.get(b"probe").map(|_| ())
    }
}

/// The database does not open.
#[derive(Debug, thiserror::Error)]
#[error(
    "the store in {path} does not open: {cause}. Nothing was changed. Restore the directory from a backup; or move it away and start with an empty one (identity.key stays)"
)]
pub struct OpenError {
    path: PathBuf,
    cause: String,
}

struct Space {
    db: Arc<DB>,
    owner: &'static str,
}

impl Space {
    fn key(&self, key: &[u8]) -> Vec<u8> {
        [self.owner.as_bytes(), b"/", key].concat()
    }
}

impl Store for Space {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get(self.key(key)).map_err(|cause| failed("read", &cause))
    }

    fn write(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.put(self.key(&key), value),
                None => batch.delete(self.key(&key)),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(|cause| failed("write", &cause))
    }

    fn scan(
        &self,
        prefix: &[u8],
        entries_max: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        let from = self.key(prefix);
        let skip = self.owner.len() + 1;
        let mut found = Vec::new();
        for entry in self.db.iterator(IteratorMode::From(&from, Direction::Forward)) {
            let (key, value) = entry.map_err(|cause| failed("read", &cause))?;
            if !key.starts_with(&from) || found.len() == entries_max {
                break;
            }
            found.push((key[skip..].to_vec(), value.into_vec()));
        }
        Ok(found)
    }
}

fn failed(action: &'static str, cause: &rocksdb::Error) -> StoreError {
    StoreError { action, cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_do_not_see_each_other_and_survive_reopening() {
        let dir = tempfile::tempdir().expect("temporary directory");
        {
            let database = Database::open(dir.path()).expect("fresh");
            let put = |key: &[u8]| vec![(key.to_vec(), Some(b"v".to_vec()))];
            database.space("a").write(put(b"x/1")).expect("written");
            database.space("a").write(put(b"x/2")).expect("written");
            database.space("b").write(put(b"x/3")).expect("written");
        }
        let database = Database::open(dir.path()).expect("again");
        let keys = |owner| {
            let found = database.space(owner).scan(b"x/", 10).expect("scanned");
            found.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert_eq!(keys("a"), [b"x/1".to_vec(), b"x/2".to_vec()]);
        assert_eq!(keys("b"), [b"x/3".to_vec()]);
        assert_eq!(database.space("a").scan(b"x/", 1).expect("scanned").len(), 1);
    }

    #[test]
    fn a_damaged_database_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().expect("temporary directory");
        drop(Database::open(dir.path()).expect("fresh"));
        std::fs::write(dir.path().join("CURRENT"), b"garbage").expect("damaged");
        let error = Database::open(dir.path()).err().expect("refused").to_string();
        assert!(error.contains("does not open") && error.contains("backup"), "{error}");
        let current = std::fs::read(dir.path().join("CURRENT")).expect("still there");
        assert_eq!(current, b"garbage");
    }
}
