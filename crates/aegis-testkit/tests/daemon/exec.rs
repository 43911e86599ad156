//! Commands beside the instance's own.

use aegis_api::{ErrorCode, ExecRequest, LogSource};
use aegis_client::{Action, LogQuery};
use aegis_types::{InstanceState, StopReason};
use futures::future::join_all;

use crate::support::{Host, exec, texts};

#[tokio::test]
async fn two_hundred_in_a_row() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    for n in 0..200 {
        let outcome = host.exec(&id, &["sh", "-c", &format!("echo {n}; exit {}", n % 7)]).await;
        assert_eq!((outcome.stdout, outcome.done.exit_code), (format!("{n}\n").into_bytes(), n % 7));
    }
    assert_eq!(host.info(&id).await.active_execs, 0);
    host.end().await;
}

#[tokio::test]
async fn twenty_at_a_time() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    let all = (0..20).map(|n| {
        let script = format!("seq 1 2000; echo {n} >&2; exit {n}");
        let (host, id) = (&host, &id);
        async move { host.exec(id, &["sh", "-c", &script]).await }
    });
    let expected: String = (1..=2000).map(|n| format!("{n}\n")).collect();
    for (n, outcome) in join_all(all).await.into_iter().enumerate() {
        assert!(outcome.stdout == expected.as_bytes());
        assert_eq!(outcome.stderr, format!("{n}\n").as_bytes());
        assert_eq!(usize::from(outcome.done.exit_code), n);
    }
    host.end().await;
}

#[tokio::test]
async fn environment_and_directory_are_laid_over_those_of_the_instance() {
    let host = Host::start().await;
    let mut instance = host.instance("web", &["sleep", "100000"]);
    instance.env.extend([("A", "1"), ("B", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    let id = host.create(&instance).await;
    let request = ExecRequest {
        env: [("B".to_owned(), "3".to_owned())].into(),
        workdir: Some("/usr".to_owned()),
        ..exec(&["sh", "-c", "echo $A $B; pwd"])
    };
    // Still booting, most likely: it is waited for.
    assert_eq!(host.exec_request(&id, &request).await.stdout, b"1 3\n/usr\n");
    host.end().await;
}

#[tokio::test]
async fn ends_are_reported_like_in_a_shell() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    let cases: [(&[&str], u8, bool); 5] = [
        (&["sh", "-c", "exit 42"], 42, false),
        (&["sh", "-c", "kill -TERM $$"], 143, false),
        (&["sh", "-c", "kill -KILL $$"], 137, false),
        (&["no-such-command"], 127, true),
        (&["/etc"], 126, true),
    ];
    for (command, code, failed) in cases {
        let done = host.exec(&id, command).await.done;
        assert_eq!((done.exit_code, done.error.is_some()), (code, failed), "{command:?}: {:?}", done.error);
    }
    let bad_directory = ExecRequest { workdir: Some("/no/such".to_owned()), ..exec(&["true"]) };
    let done = host.exec_request(&id, &bad_directory).await.done;
    assert!(done.exit_code == 126 && done.error.unwrap().contains("/no/such"));
    host.end().await;
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    let request =
        ExecRequest { timeout_ms: Some(300), ..exec(&["sh", "-c", "echo begun; sleep 100000; echo late"]) };
    let outcome = host.exec_request(&id, &request).await;
    assert_eq!((outcome.stdout.as_slice(), outcome.done.exit_code), (&b"begun\n"[..], 124));
    assert!(outcome.done.error.is_some());
    let sleepers = host.home.processes().into_iter().filter(|(_, command)| command.starts_with("sleep "));
    assert_eq!(sleepers.count(), 1, "the one of the instance");
    host.end().await;
}

#[tokio::test]
async fn a_megabyte_of_binary_output_arrives_byte_for_byte() {
    let host = Host::start().await;
    let path = host.home.scratch().join("noise");
    let noise: Vec<u8> = (0..1_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    std::fs::write(&path, &noise).unwrap();
    let id = host.sleeper("web").await;
    assert!(host.exec(&id, &["cat", path.to_str().unwrap()]).await.stdout == noise);
    host.end().await;
}

#[tokio::test]
async fn output_is_kept_in_the_log_under_its_id() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    host.exec(&id, &["echo", "other"]).await;
    let outcome = host.exec(&id, &["sh", "-c", "echo one; echo two >&2"]).await;
    let query = LogQuery { exec_id: Some(outcome.exec_id.clone()), ..LogQuery::default() };
    let mut entries = host.query(&id, query).await;
    entries.sort_by(|a, b| a.line.cmp(&b.line));
    assert_eq!(texts(&entries), ["one", "two"]);
    assert!(
        entries.iter().all(|e| e.source == LogSource::Exec && e.exec_id.as_ref() == Some(&outcome.exec_id))
    );
    host.end().await;
}

#[tokio::test]
async fn a_paused_instance_is_woken() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    host.client.action("web", Action::Pause).await.unwrap();
    assert_eq!(host.info(&id).await.state, InstanceState::Paused);
    assert_eq!(host.exec(&id, &["echo", "awake"]).await.stdout, b"awake\n");
    assert_eq!(host.info(&id).await.state, InstanceState::Running);
    host.end().await;
}

#[tokio::test]
async fn a_stopped_instance_is_woken_unless_its_command_ended() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    host.client.action("web", Action::Stop).await.unwrap();
    assert_eq!(host.info(&id).await.stop_reason, Some(StopReason::Requested));
    assert_eq!(host.exec(&id, &["echo", "awake"]).await.stdout, b"awake\n");
    assert_eq!(host.info(&id).await.state, InstanceState::Running);

    let ended = host.sh("ended", "true").await;
    host.stopped(&ended).await;
    assert_eq!(host.exec_refused(&ended).await, (409, ErrorCode::WrongState));
    assert_eq!(host.info(&ended).await.state, InstanceState::Stopped);
    host.end().await;
}

#[tokio::test]
async fn a_disabled_instance_is_not_woken() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    host.client.action("web", Action::Disable).await.unwrap();
    assert_eq!(host.exec_refused(&id).await, (409, ErrorCode::Disabled));
    assert_eq!(host.info(&id).await.state, InstanceState::Stopped);
    host.end().await;
}

#[tokio::test]
async fn a_command_whose_vm_is_stopped_is_reported_as_lost() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    let mut running = host.begin_exec(&id, &["sh", "-c", "echo begun; sleep 100000"]).await;
    assert_eq!(running.line().await, "begun");
    assert_eq!(host.info(&id).await.active_execs, 1);
    host.client.delete("web").await.unwrap();
    let done = running.finish().await.done;
    assert!(done.exit_code == 125 && done.error.is_some(), "{done:?}");
    host.end().await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_nothing() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    let path = host.home.scratch().join("done");
    let script = format!("echo begun; seq 1 100000; touch {}", path.display());
    let mut running = host.begin_exec(&id, &["sh", "-c", &script]).await;
    assert_eq!(running.line().await, "begun");
    drop(running);
    crate::support::within(async {
        while !path.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    host.end().await;
}
