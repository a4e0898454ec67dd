//! What is kept of what plugins say, and what is not.

use super::*;

#[test]
fn a_filter_wants_what_all_its_parts_want() {
    let logs = Logs::new("node", "plugin", 10);
    logs.line(
        LogStream::Stdout,
        1,
        r#"{"level":"warn","message":"slow","disk":"sda"}"#,
        Instant::now(),
    );
    let record = Arc::clone(&logs.tail(0)[0]);
    let takes = |filter: LogFilter| filter.takes(&record);
    assert!(takes(LogFilter::default()));
    assert!(takes(LogFilter { level: "info".into(), ..LogFilter::default() }));
    assert!(!takes(LogFilter { level: "error".into(), ..LogFilter::default() }));
    assert!(takes(LogFilter { contains: "sda".into(), ..LogFilter::default() }));
    assert!(!takes(LogFilter { contains: "sdb".into(), ..LogFilter::default() }));
    assert!(!takes(LogFilter { stream: "stderr".into(), ..LogFilter::default() }));
    let later = Some("2999-01-01T00:00:00.000Z".into());
    assert!(!takes(LogFilter { since: later, ..LogFilter::default() }));
}

fn logs(records_max: usize) -> Logs {
    Logs::new("node-1", "echo", records_max)
}

fn say(logs: &Logs, line: &str) -> Arc<LogRecord> {
    logs.line(LogStream::Stderr, 7, line, Instant::now());
    logs.tail(1).remove(0)
}

#[test]
fn a_json_line_gives_level_message_and_fields_but_not_who_spoke() {
    let record = say(
        &logs(10),
        r#"{"level":"WARN","message":"slow","service":"forged","pid":1,"fields":{"ms":45},"id":"x"}"#,
    );
    assert_eq!((record.level.as_str(), record.message.as_str()), ("warn", "slow"));
    assert_eq!((record.service.as_str(), record.pid), ("echo", 7));
    assert_eq!(record.fields["ms"], 45);
    assert_eq!(record.fields["id"], "x");
}

#[test]
fn any_other_line_is_wrapped() {
    for line in ["Traceback (most recent call last):", "{not json", "{\"a\":1}", "[1]"] {
        let record = say(&logs(10), line);
        assert_eq!(record.message, line);
        assert_eq!(record.level, "info");
    }
}

#[test]
fn long_lines_and_many_fields_are_bounded_in_bytes_and_the_newest_stays() {
    let kept = |line: &str| {
        let logs = logs(10_000);
        for _ in 0..1_000 {
            // Not said by the plugin, so that no rate is in the way.
            let Said { level, message, fields } = understand(line);
            let mut ring = logs.inner.ring.lock();
            logs.push(&mut ring, LogStream::Stderr, 7, level, message, fields);
        }
        let ring = logs.inner.ring.lock();
        assert!(ring.bytes <= KEPT_BYTES_MAX, "{}", ring.bytes);
        assert_eq!(ring.bytes, ring.records.iter().map(|it| weight(it)).sum::<usize>());
        assert_eq!(ring.lost as usize, 1_000 - ring.records.len());
        ring.records.len()
    };
    assert_eq!(
        kept("a usual line of some eighty characters, as servers say them all day long"),
        1_000
    );
    assert_eq!(kept(&"x".repeat(LINE_BYTES_MAX)), KEPT_BYTES_MAX / LINE_BYTES_MAX);
    let fields: Vec<String> = (0..1_000).map(|n| format!("\"k{n}\":1")).collect();
    let small = kept(&format!("{{\"message\":\"m\",{}}}", fields.join(",")));
    assert!((1..50).contains(&small), "{small}");
}

#[test]
fn the_ring_is_bounded_and_counts_what_it_drops() {
    let logs = logs(3);
    for n in 0..5 {
        say(&logs, &format!("line {n}"));
    }
    let kept: Vec<_> = logs.tail(0).iter().map(|record| record.message.clone()).collect();
    assert_eq!(kept, ["line 2", "line 3", "line 4"]);
    assert_eq!(logs.lost(), 2);
}

#[test]
fn a_flood_is_counted_and_told_once_it_ends() {
    let logs = logs(10_000);
    let start = Instant::now();
    for _ in 0..50_000 {
        logs.line(LogStream::Stdout, 7, "flood", start);
    }
    assert_eq!(logs.tail(0).len(), LINES_BURST as usize);
    logs.line(LogStream::Stdout, 7, "calm", start + Duration::from_secs(1));
    let tail = logs.tail(2);
    assert!(tail[0].message.starts_with("48000 lines dropped"), "{}", tail[0].message);
    assert_eq!(tail[1].message, "calm");
}

#[test]
fn a_follower_misses_nothing_and_sees_nothing_twice() {
    let logs = logs(10);
    say(&logs, "before");
    let (tail, mut live) = logs.follow(0);
    say(&logs, "after");
    assert_eq!(tail.len(), 1);
    assert_eq!(live.try_recv().expect("sent").message, "after");
    assert!(live.try_recv().is_err());
}

#[test]
fn lines_are_cut_at_their_bound_wherever_the_reads_fall() {
    let mut text = "a".repeat(LINE_BYTES_MAX + 10);
    text.push_str("\nb\r\n\nc");
    for step in [1, 7, 1_000, text.len()] {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for chunk in text.as_bytes().chunks(step) {
            lines.feed(chunk, |line| seen.push(line.to_owned()));
        }
        lines.finish(|line| seen.push(line.to_owned()));
        assert_eq!(seen.len(), 3, "step {step}");
        assert!(seen[0].ends_with("(cut at 16384 bytes)"));
        assert_eq!(seen[1..], ["b", "c"]);
    }
}

#[test]
fn a_record_is_written_in_the_papers_shape() {
    let record = say(&logs(1), "hello");
    let json = serde_json::to_value(&*record).expect("plain data");
    for key in ["timestamp", "node_id", "service", "pid", "level", "message", "fields"] {
        assert!(json.get(key).is_some(), "{key}");
    }
    assert!(record.timestamp.ends_with('Z'), "{}", record.timestamp);
}

#[tokio::test]
async fn a_stream_is_read_at_its_pace_and_to_its_end() {
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let pipe = pipe::Receiver::from_owned_fd(reader.into()).expect("registered");
    let logs = Logs::new("node", "plugin", 10);
    let read = capture(pipe, logs.clone(), LogStream::Stderr, Arc::default(), Floods::default());
    let read = tokio::spawn(read);
    let begun = Instant::now();
    let written = tokio::task::spawn_blocking(move || {
        let line = [[b'x'; 1_023].as_slice(), b"\n"].concat();
        let mut written = 0;
        while begun.elapsed() < Duration::from_millis(500) {
            io::Write::write_all(&mut writer, &line).expect("it is read");
            written += line.len();
        }
        written
    });
    let written = written.await.expect("it ends");
    let pipe_bytes = 64.0 * 1024.0 + READ_BYTES as f64;
    let most =
        READ_BYTES_BURST + pipe_bytes + READ_BYTES_PER_SECOND * begun.elapsed().as_secs_f64();
    assert!(written as f64 <= most, "{written} bytes were taken, at most {most}");
    read.await.expect("the end of the pipe is seen");
    let lost = logs.lost();
    let kept = logs.tail(0).iter().filter(|it| it.stream == LogStream::Stderr).count() as u64;
    assert!(lost + kept >= written as u64 / 1_024, "{lost} + {kept} of {written} bytes");
}

#[tokio::test]
async fn floods_share_what_is_read_of_all_of_them() {
    const STREAMS: usize = 8;
    let floods = Floods::default();
    let begun = Instant::now();
    let written = (0..STREAMS).map(|_| {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let pipe = pipe::Receiver::from_owned_fd(reader.into()).expect("registered");
        let logs = Logs::new("node", "plugin", 10);
        let read = capture(pipe, logs, LogStream::Stdout, Arc::default(), floods.clone());
        let read = tokio::spawn(read);
        tokio::task::spawn_blocking(move || {
            let bytes = [b'x'; 4_096];
            let mut written = 0;
            while begun.elapsed() < Duration::from_secs(2) && !read.is_finished() {
                io::Write::write_all(&mut writer, &bytes).expect("it is read");
                written += bytes.len();
            }
            written
        })
    });
    let written: Vec<_> = written.collect();
    let mut all = 0.0;
    for one in written {
        all += one.await.expect("it ends") as f64;
    }
    let first = STREAMS as f64 * (READ_BYTES_BURST + 64.0 * 1024.0 + 2.0 * READ_BYTES as f64);
    let shared = FLOODS_BYTES_BURST + FLOODS_BYTES_PER_SECOND * begun.elapsed().as_secs_f64();
    assert!(all <= first + shared, "{all} bytes were taken, at most {}", first + shared);
    assert!(all >= first / 2.0, "{all} bytes were taken");
}
