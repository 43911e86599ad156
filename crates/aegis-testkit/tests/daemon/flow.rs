//! Readers that do not keep up.

use aegis_api::LogSource;
use aegis_types::{InstanceState, StopReason};

use crate::support::{Host, output};

#[tokio::test]
async fn a_slow_follower_holds_nobody_up_and_misses_nothing_that_is_stored() {
    let host = Host::start().await;
    let id = host.sh("web", "seq 1 30000").await;
    let mut slow = host.follow(&id).await;
    let first = slow.next().await.unwrap();
    assert_eq!(first.line, "1");
    // It does not read meanwhile; the instance ends all the same, and another follower is not held up.
    let info = host.stopped(&id).await;
    assert_eq!(info.stop_reason, Some(StopReason::Exited));
    let expected: String = (1..=30_000).map(|n| format!("{n}\n")).collect();
    assert!(output(&host.follow(&id).await.until_exit().await) == expected.as_bytes());
    let mut entries = vec![first];
    entries.extend(slow.until_exit().await);
    assert!(output(&entries) == expected.as_bytes());
    host.end().await;
}

#[tokio::test]
async fn whatever_is_missing_of_a_flood_is_told() {
    let host = Host::start().await;
    let count = 200_000;
    let id = host.sh("web", &format!("seq 1 {count}")).await;
    let mut slow = host.follow(&id).await;
    let mut entries = vec![slow.next().await.unwrap()];
    host.stopped(&id).await;
    entries.extend(slow.until_exit().await);
    entries.pop();
    let (mut last, mut explained) = (0, false);
    let mut begun = String::new();
    for entry in &entries {
        if entry.source == LogSource::System {
            // Lost in the guest's buffer, or here; perhaps the rest of a line whose beginning was read.
            let told = entry.line.contains("log lines are missing here")
                || entry.line.contains("lines of output were lost");
            assert!(told, "{}", entry.line);
            (explained, begun) = (true, String::new());
            continue;
        }
        begun.push_str(&entry.line);
        if entry.partial {
            continue;
        }
        let number: u32 = std::mem::take(&mut begun).parse().unwrap();
        assert!(number == last + 1 || explained, "{last} is followed by {number}");
        (last, explained) = (number, false);
    }
    assert_eq!(last, count);
    host.end().await;
}

#[tokio::test]
async fn an_exec_client_that_does_not_read_holds_back_its_command_only() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    let mut flood = host.begin_exec(&id, &["yes", "0123456789012345678901234567890123456789"]).await;
    assert_eq!(flood.line().await.len(), 40);
    // Every queue between the command and us is full sooner or later; others find their way.
    for _ in 0..20 {
        assert_eq!(host.exec(&id, &["echo", "hi"]).await.stdout, b"hi\n");
    }
    assert_eq!(host.info(&id).await.active_execs, 1);
    drop(flood);
    host.client.action("web", aegis_client::Action::Stop).await.unwrap();
    assert_eq!(host.info(&id).await.state, InstanceState::Stopped);
    host.end().await;
}
