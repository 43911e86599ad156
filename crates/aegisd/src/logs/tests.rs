#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SMALL: Bounds = Bounds { records: 8, bytes: 4096 };
const PLENTY: u64 = 1 << 30;

fn id(n: u64) -> InstanceId {
    InstanceId::from_unix_nanos(n)
}

fn open(dir: &Path, bounds: Bounds, file_max: u64) -> Arc<LogStore> {
    Arc::new(
        LogStore::with_bounds(dir, &[id(1)], bounds, Rotation { bytes_max: file_max, files: 2 }, ()).unwrap(),
    )
}

fn line(n: usize) -> LogEntry {
    LogEntry::system(Timestamp::UNIX_EPOCH, id(1), LogStream::Stdout, format!("line {n}"))
}

async fn append(store: &LogStore, lines: std::ops::Range<usize>) {
    for n in lines {
        store.append(line(n)).await;
    }
}

/// What a reader sees: numbers of lines, and how many it was told to have missed.
#[derive(Default)]
struct Seen {
    lines: Vec<usize>,
    missed: usize,
}

impl Seen {
    fn add(&mut self, entries: Vec<LogEntry>) {
        for entry in entries {
            if let Some(n) = entry.line.strip_prefix("line ") {
                self.lines.push(n.parse().unwrap());
            } else {
                let count = entry.line.split(' ').next().unwrap();
                assert!(entry.line.contains("log lines are missing"), "{}", entry.line);
                self.missed += count.parse::<usize>().unwrap();
            }
        }
    }
}

async fn read_all(reader: &mut Reader, seen: &mut Seen) {
    loop {
        let entries = reader.read().await;
        if entries.is_empty() {
            return;
        }
        seen.add(entries);
    }
}

fn output(seq: u64) -> LogLine {
    LogLine { seq, time_unix_ns: 5, stream: OutputStream::Stdout, partial: false, bytes: b"x".to_vec() }
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Read(usize),
    Flush,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![
            (1usize..40).prop_map(Step::Append),
            (1usize..4).prop_map(Step::Read),
            Just(Step::Flush),
            Just(Step::Restart),
        ],
        1..30,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_reader_sees_every_line_once_and_in_order_or_is_told_how_many_it_missed(
        steps in steps(),
        file_max in prop_oneof![Just(PLENTY), 300u64..5000],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = open(dir.path(), SMALL, file_max);
            let mut appended = 0;
            let mut reader = store.read(&id(1)).unwrap();
            let mut seen = Seen::default();
            // The first line makes what is missing later a gap for this reader, whatever happens.
            append(&store, 0..1).await;
            appended += 1;
            seen.add(reader.read().await);
            for step in steps {
                match step {
                    Step::Append(count) => {
                        append(&store, appended..appended + count).await;
                        appended += count;
                    }
                    Step::Read(times) => for _ in 0..times { seen.add(reader.read().await) },
                    Step::Flush => store.sync(false).await,
                    Step::Restart => {
                        read_all(&mut reader, &mut seen).await;
                        store.close().await;
                        store = open(dir.path(), SMALL, file_max);
                        let mut fresh = store.read(&id(1)).unwrap();
                        let mut history = Seen::default();
                        read_all(&mut fresh, &mut history).await;
                        // The files hold the newest lines without a gap.
                        let first = history.lines.first().copied().unwrap_or(appended);
                        assert_eq!(history.lines, (first..appended).collect::<Vec<_>>());
                        assert!(history.missed == 0 && (file_max != PLENTY || first == 0));
                        reader = fresh;
                    }
                }
            }
            read_all(&mut reader, &mut seen).await;
            prop_assert!(seen.lines.windows(2).all(|pair| pair[0] < pair[1]), "in order, once: {:?}", seen.lines);
            prop_assert_eq!(seen.lines.len() + seen.missed, appended);
            prop_assert!(seen.lines.last() == Some(&(appended - 1)));
            if file_max == PLENTY {
                prop_assert_eq!(seen.missed, 0);
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_follower_beside_the_writer_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), SMALL, PLENTY);
    let mut reader = store.read(&id(1)).unwrap();
    let follower = tokio::spawn(async move {
        let mut seen = Seen::default();
        loop {
            read_all(&mut reader, &mut seen).await;
            if !reader.wait().await {
                return seen;
            }
        }
    });
    append(&store, 0..2000).await;
    store.close().await;
    let seen = tokio::time::timeout(Duration::from_secs(60), follower).await.unwrap().unwrap();
    assert_eq!(seen.lines, (0..2000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_removed_log_ends_its_followers_and_never_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), SMALL, PLENTY);
    append(&store, 0..2).await;
    let mut reader = store.read(&id(1)).unwrap();
    let mut seen = Seen::default();
    read_all(&mut reader, &mut seen).await;
    let follower = tokio::spawn(async move { reader.wait().await });
    store.remove(&id(1)).await.unwrap();
    assert!(!tokio::time::timeout(Duration::from_secs(60), follower).await.unwrap().unwrap());
    append(&store, 2..3).await;
    store.sync(false).await;
    store.remove(&id(1)).await.unwrap();
    assert!(store.read(&id(1)).is_none());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_last_line_of_a_vm_is_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (old, vm) = (VmId::from_random(1), VmId::from_random(2));
    let store = open(dir.path(), SMALL, PLENTY);
    assert_eq!(store.last_seq(&id(1), &vm).await, 0);
    for (of, seq) in [(&old, 9), (&vm, 1), (&vm, 2)] {
        store.output(&id(1), of, output(seq)).await;
    }
    append(&store, 0..50).await;
    assert_eq!((store.last_seq(&id(1), &vm).await, store.last_seq(&id(1), &old).await), (2, 0));
    store.close().await;
    let store = open(dir.path(), SMALL, PLENTY);
    assert_eq!(store.last_seq(&id(1), &vm).await, 2);
    store.output(&id(1), &vm, output(3)).await;
    assert_eq!(store.last_seq(&id(1), &vm).await, 3);
}

#[tokio::test]
async fn a_record_cut_by_a_crash_is_dropped_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), SMALL, PLENTY);
    append(&store, 0..3).await;
    store.close().await;
    let path = dir.path().join("inst-1.ndjson");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    let store = open(dir.path(), SMALL, PLENTY);
    append(&store, 10..11).await;
    store.close().await;
    let store = open(dir.path(), SMALL, PLENTY);
    let mut seen = Seen::default();
    read_all(&mut store.read(&id(1)).unwrap(), &mut seen).await;
    assert_eq!((seen.lines, seen.missed), (vec![0, 1, 10], 0));
}

#[tokio::test]
async fn a_file_that_cannot_be_written_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("inst-2.ndjson")).unwrap();
    let store = open(dir.path(), SMALL, PLENTY);
    store.create(id(2)).await;
    let entry = |n| LogEntry { instance_id: id(2), ..line(n) };
    let mut reader = store.read(&id(2)).unwrap();
    for n in 0..20 {
        store.append(entry(n)).await;
    }
    store.sync(false).await;
    let mut seen = Seen::default();
    read_all(&mut reader, &mut seen).await;
    assert_eq!(seen.lines, (12..20).collect::<Vec<_>>());
}

#[test]
fn files_of_unknown_instances_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["inst-1.ndjson", "inst-2.ndjson", "inst-2.ndjson.1", "inst-2.console.log", "notes"] {
        fs::write(dir.path().join(name), b"").unwrap();
    }
    let _store = open(dir.path(), SMALL, PLENTY);
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["inst-1.ndjson", "notes"]);
}
