#![allow(clippy::unwrap_used, reason = "tests")]

use aegis_types::InstanceId;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;

fn secrets(values: &[&str]) -> Vec<SecretBytes> {
    values.iter().map(|&value| SecretBytes::from(value.to_owned())).collect()
}

fn entry(bytes: &[u8], partial: bool) -> LogEntry {
    let id = InstanceId::from_unix_nanos(1);
    LogEntry::output(Timestamp::UNIX_EPOCH, id, LogSource::Server, LogStream::Stdout, bytes.to_vec(), partial)
}

fn origin(seq: u64) -> Option<Origin> {
    Some(Origin { vm: VmId::from_random(1), seq })
}

fn masker(values: &[&str]) -> Masker {
    let mut masker = Masker::default();
    masker.set(Mask::of(&secrets(values)));
    masker
}

/// What a log has of one line that comes in these pieces, and then ends.
fn line(values: &[&str], pieces: &[&[u8]]) -> Vec<u8> {
    let mut masker = masker(values);
    let mut stored = Vec::new();
    for (at, piece) in pieces.iter().enumerate() {
        let taken = masker.take(entry(piece, at + 1 < pieces.len()), origin(at as u64 + 1));
        stored.extend(taken.into_iter().flat_map(|(entry, _)| entry.bytes().into_owned()));
    }
    assert_eq!(stored.pop(), Some(b'\n'));
    stored
}

#[test]
fn values_are_masked_wherever_they_are() {
    let values = ["hunter22", "hunter22-long", "s3cret\nsecond line\r\nx"];
    for (text, expected) in [
        ("no secret", "no secret"),
        ("hunter2", "hunter2"),
        ("a hunter22 b", "a *** b"),
        ("hunter22-longhunter22", "******"),
        ("s3cret, second line and x", "***, *** and x"),
        // Of `hunter22`, alone and with a newline.
        ("aHVudGVyMjI= aHVudGVyMjIK", "***MjI= ***MjIK"),
    ] {
        assert_eq!(String::from_utf8(line(&values, &[text.as_bytes()])).unwrap(), expected);
    }
    assert_eq!(line(&["abcabc", "bcabca"], &[b"-abcabca-"]), b"-***-", "both, where they overlap");
    assert_eq!(line(&["hunter22"], &[b"\xff hunter22 \xfe"]), b"\xff *** \xfe");
    assert_eq!(line(&["short"], &[b"short"]), b"short");
    assert!(matches!(Mask::of(&secrets(&["", "a\nb"])), Mask::Nothing));
}

#[test]
fn a_value_in_two_pieces_is_masked() {
    for at in 1..8 {
        let text = b"x hunter22 y";
        assert_eq!(line(&["hunter22"], &[&text[..2 + at], &text[2 + at..]]), b"x *** y", "{at}");
    }
    let bytes: Vec<&[u8]> = b"x hunter22 y".chunks(1).collect();
    assert_eq!(line(&["hunter22"], &bytes), b"x *** y");
    // It was none after all.
    assert_eq!(line(&["hunter22"], &[b"x hunt", b"ing"]), b"x hunting");
    // The end of one may be the beginning of the next.
    assert_eq!(line(&["ababab"], &[b"ababab", b"ab."]), b"***.");
}

proptest! {
    #[test]
    fn pieces_are_masked_like_the_whole(
        text in "[ab]{0,60}",
        values in prop::collection::vec("[ab]{6,9}", 1..4),
        cuts in prop::collection::vec(1usize..9, 0..30),
    ) {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let patterns = Patterns::new(&secrets(&values)).unwrap();
        // Every byte that is not part of a value, and nothing else.
        let mut open: Vec<u8> = text.bytes().collect();
        for (from, until) in patterns.find(text.as_bytes(), 0).into_iter().rev() {
            open.drain(from..until);
        }
        let mut pieces = Vec::new();
        let mut rest = text.as_bytes();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        let mut shown = line(&values, &pieces);
        shown.retain(|&b| b != b'*');
        prop_assert_eq!(shown, open);
    }
}

#[test]
fn what_is_held_back_is_not_counted_as_stored() {
    let mut masker = masker(&["hunter22"]);
    let vm = VmId::from_random(1);
    let seq = |taken: Option<Counted>| taken.map(|(_, origin)| origin.unwrap().seq);
    assert_eq!(seq(masker.take(entry(b"x", true), origin(1))), Some(1));
    assert_eq!(seq(masker.take(entry(b"b hun", true), origin(2))), Some(1));
    assert_eq!(masker.newest(&vm), Some(2), "this daemon need not be told again");
    let error = LogEntry { stream: LogStream::Stderr, ..entry(b"c", false) };
    assert_eq!(seq(masker.take(error, origin(3))), Some(1), "of no stream");
    assert_eq!(seq(masker.take(entry(b"te", true), origin(4))), None);
    assert_eq!(seq(masker.take(entry(b"!", true), origin(5))), Some(5));
    assert_eq!(masker.newest(&VmId::from_random(2)), None);
}

#[test]
fn the_end_of_a_stream_brings_what_was_held_back() {
    let mut masker = masker(&["hunter22"]);
    let exec = LogEntry { exec_id: Some("exec-1".into()), source: LogSource::Exec, ..entry(b"x hu", true) };
    assert_eq!(masker.take(exec, None).unwrap().0.line, "x ");
    assert_eq!(masker.take(entry(b"hunt", true), origin(7)), None);
    let (entry, origin) = masker.flush(None).unwrap();
    assert_eq!((entry.line.as_str(), entry.partial, origin.unwrap().seq), ("hunt", true, 7));
    assert_eq!(masker.flush(None), None);
    let (entry, origin) = masker.flush(Some("exec-1")).unwrap();
    assert_eq!((entry.line.as_str(), entry.exec_id.as_deref(), origin), ("hu", Some("exec-1"), None));
}

#[test]
fn our_own_lines_are_masked_and_nothing_is_kept_where_values_are_not_known() {
    let system = |line: &str| {
        LogEntry::system(Timestamp::UNIX_EPOCH, InstanceId::from_unix_nanos(1), LogStream::Stderr, line)
    };
    let mut masker = masker(&["hunter22"]);
    let (entry_, _) = masker.take(system("cannot run `hunter22`"), None).unwrap();
    assert_eq!((entry_.line.as_str(), entry_.source), ("cannot run `***`", LogSource::System));
    masker.set(Mask::Everything);
    assert_eq!(masker.take(entry(b"anything", false), origin(1)).unwrap().0.line, "***");
    assert_eq!(
        masker.take(system("process exited (code=0)"), None).unwrap().0.line,
        "process exited (code=0)"
    );
}
