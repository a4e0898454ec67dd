//! What a process prints: every line in a file, the newest in memory, and a bell for who waits.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use tokio::sync::watch;

/// Lines kept in memory for each process. A chatty node prints a few hundred; the files keep all.
pub const LINES_KEPT_MAX: usize = 20_000;

/// Bytes of one line that are kept in memory; the file keeps all.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Where a line was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// One line as it was printed, without its end.
#[derive(Debug, Clone)]
pub struct Line {
    /// Where it was printed.
    pub channel: Channel,
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<Line>,
    /// How many lines were printed before the first one that is kept.
    forgotten: usize,
}

/// The lines of one process, shared between the threads that read it and those who ask.
#[derive(Clone)]
pub struct Output {
    kept: Arc<Mutex<Kept>>,
    bell: watch::Sender<usize>,
}

impl Output {
    pub(crate) fn new() -> Self {
        Self { kept: Arc::default(), bell: watch::Sender::new(0) }
    }

    /// Reads `pipe` to its end on a thread of its own, into `file` and into memory.
    pub(crate) fn follow(
        &self,
        channel: Channel,
        pipe: impl Read + Send + 'static,
        file: &Path,
    ) -> Result<JoinHandle<()>> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(file)
            .with_context(|| format!("cannot keep output in {}", file.display()))?;
        let output = self.clone();
        let thread = std::thread::Builder::new().name("output".into());
        Ok(thread.spawn(move || output.read(channel, pipe, file))?)
    }

    fn read(&self, channel: Channel, pipe: impl Read, mut file: File) {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while matches!(pipe.read_until(b'\n', &mut bytes), Ok(length) if length > 0) {
            // A full disk must not stop the process whose output this is.
            let _ = file.write_all(&bytes);
            let end = bytes.len().min(LINE_BYTES_MAX);
            let text = String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned();
            self.keep(Line { channel, text });
            bytes.clear();
        }
    }

    fn keep(&self, line: Line) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.lines.len() == LINES_KEPT_MAX {
            kept.lines.pop_front();
            kept.forgotten += 1;
        }
        kept.lines.push_back(line);
        drop(kept);
        self.bell.send_modify(|count| *count += 1);
    }

    /// How many lines have been printed so far: a mark to search from.
    pub fn mark(&self) -> usize {
        *self.bell.borrow()
    }

    /// The last `count` lines of both channels, oldest first.
    pub fn tail(&self, count: usize) -> Vec<Line> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.lines.iter().skip(kept.lines.len().saturating_sub(count)).cloned().collect()
    }

    /// Everything that is kept, as one text.
    pub fn text(&self) -> String {
        let lines = self.tail(LINES_KEPT_MAX);
        lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Waits until a line printed after the first `mark` lines makes `wanted` give a value.
    pub async fn find<T>(
        &self,
        mark: usize,
        within: Duration,
        mut wanted: impl FnMut(&Line) -> Option<T>,
    ) -> Result<T> {
        let mut bell = self.bell.subscribe();
        let mut next = mark;
        let search = async {
            loop {
                bell.borrow_and_update();
                if let Some(found) = self.search(&mut next, &mut wanted) {
                    return Ok(found);
                }
                bell.changed().await.map_err(|_| anyhow!("its output has ended"))?;
            }
        };
        tokio::time::timeout(within, search)
            .await
            .map_err(|_| anyhow!("no such line within {within:?}"))?
    }

    /// The first wanted line from `next` on; moves `next` behind what was looked at.
    fn search<T>(
        &self,
        next: &mut usize,
        wanted: &mut impl FnMut(&Line) -> Option<T>,
    ) -> Option<T> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = next.saturating_sub(kept.forgotten);
        *next = kept.forgotten + kept.lines.len();
        kept.lines.iter().skip(skip).find_map(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_kept_in_memory_and_in_the_file_and_wake_who_waits() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("out.log");
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let output = Output::new();
        let thread = output.follow(Channel::Out, reader, &file).expect("starts");
        let waiting = output.find(0, Duration::from_secs(10), |line| {
            line.text.strip_prefix("wanted ").map(str::to_owned)
        });
        let write = async {
            writer.write_all(b"first\n\xff\xfe\nwanted yes\n").expect("written");
            drop(writer);
        };
        let (found, ()) = tokio::join!(waiting, write);
        assert_eq!(found.expect("found"), "yes");
        thread.join().expect("ends with the pipe");
        assert_eq!(output.mark(), 3);
        let written = std::fs::read(&file).expect("kept");
        assert_eq!(written, b"first\n\xff\xfe\nwanted yes\n");
    }
}
