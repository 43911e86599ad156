//! Commands of instances: output and exit codes.

use aegis_api::{CreateInstance, LogSource, LogStream};
use aegis_client::LogQuery;
use aegis_types::StopReason;

use crate::support::{Host, output, texts};

#[tokio::test]
async fn a_log_is_followed_from_the_boot_to_the_exit_line() {
    let host = Host::start().await;
    let id = host.sh("web", "echo hello; echo world").await;
    let mut log = host.follow(&id).await;
    let entries = log.until_exit().await;
    assert_eq!(texts(&entries), ["hello", "world", "process exited (code=0)"]);
    assert!(entries.iter().all(|entry| entry.instance_id == id && entry.stream == LogStream::Stdout));
    assert_eq!(entries[0].source, LogSource::Server);
    let info = host.stopped(&id).await;
    assert_eq!(
        (info.stop_reason, info.exit_code, info.last_error),
        (Some(StopReason::Exited), Some(0), None)
    );
    assert!(info.enabled && info.stopped_at.is_some());
    host.client.delete("web").await.unwrap();
    assert_eq!(log.rest().await, []);
    host.end().await;
}

#[tokio::test]
async fn exit_codes_are_passed_on() {
    let host = Host::start().await;
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("exit 255", 255), ("kill -KILL $$", 137)] {
        let id = host.sh(&format!("code-{code}"), script).await;
        let info = host.stopped(&id).await;
        assert_eq!((info.stop_reason, info.exit_code), (Some(StopReason::Exited), Some(code)), "{script}");
        assert_eq!(texts(&host.log(&id).await), [format!("process exited (code={code})")]);
    }
    host.end().await;
}

#[tokio::test]
async fn a_command_that_is_not_there_ends_like_in_a_shell() {
    let host = Host::start().await;
    for (command, code) in [("no-such-command", 127), ("/no/such/command", 127), ("/etc", 126)] {
        let id = host.create(&host.instance("web", &[command])).await;
        let info = host.stopped(&id).await;
        assert_eq!((info.stop_reason, info.exit_code), (Some(StopReason::Exited), Some(code)), "{command}");
        let why = info.last_error.unwrap();
        assert!(why.contains(command), "{why}");
        assert_eq!(texts(&host.log(&id).await), [why, format!("process exited (code={code})")]);
        host.client.delete("web").await.unwrap();
    }
    host.end().await;
}

#[tokio::test]
async fn standard_output_and_error_are_told_apart() {
    let host = Host::start().await;
    let id = host.sh("web", "echo out; echo err >&2").await;
    let entries = host.follow(&id).await.until_exit().await;
    let of = |stream| {
        let entries =
            entries.iter().filter(|entry| entry.source == LogSource::Server && entry.stream == stream);
        entries.map(|entry| entry.line.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (of(LogStream::Stdout), of(LogStream::Stderr)),
        (vec!["out".to_owned()], vec!["err".to_owned()])
    );
    host.end().await;
}

#[tokio::test]
async fn a_megabyte_without_newline_arrives_whole() {
    let host = Host::start().await;
    let id = host.sh("web", "head -c 1048576 /dev/zero | tr '\\0' x").await;
    let output = output(&host.follow(&id).await.until_exit().await);
    assert!(output.len() == 1 << 20 && output.iter().all(|&byte| byte == b'x'), "{} bytes", output.len());
    host.end().await;
}

#[tokio::test]
async fn binary_output_arrives_byte_for_byte() {
    let host = Host::start().await;
    let path = host.home.scratch().join("noise");
    let mut noise = Vec::new();
    for n in 0..200_000_u32 {
        noise.extend(n.wrapping_mul(2_654_435_761).to_be_bytes());
    }
    std::fs::write(&path, &noise).unwrap();
    let id = host.create(&host.instance("web", &["cat", path.to_str().unwrap()])).await;
    assert!(output(&host.follow(&id).await.until_exit().await) == noise);
    // What is stored is the same as what was followed.
    assert!(output(&host.log(&id).await) == noise);
    host.end().await;
}

#[tokio::test]
async fn environment_and_working_directory_reach_the_command() {
    let host = Host::start().await;
    let mut instance = host.instance("web", &["sh", "-c", "echo $A/$HOME; pwd; hostname >/dev/null"]);
    instance.env.insert("A".to_owned(), "b c".to_owned());
    let instance = CreateInstance { workdir: Some("/usr".to_owned()), ..instance };
    let id = host.create(&instance).await;
    let entries = host.follow(&id).await.until_exit().await;
    assert_eq!(texts(&entries)[..2], ["b c//root", "/usr"]);
    let info = host.info(&id).await;
    assert!(info.env_keys.contains(&"A".to_owned()));
    assert_eq!(info.workdir.as_deref(), Some("/usr"));
    host.end().await;
}

#[tokio::test]
async fn a_prompt_is_seen_before_its_line_ends() {
    let host = Host::start().await;
    let id = host.sh("web", "printf 'name? '; sleep 100000").await;
    let entry = host.follow(&id).await.next().await.unwrap();
    assert_eq!((entry.line.as_str(), entry.partial), ("name? ", true));
    host.end().await;
}

#[tokio::test]
async fn logs_are_cut_to_what_was_asked_for() {
    let host = Host::start().await;
    let id = host.sh("web", "seq 1 9").await;
    host.stopped(&id).await;
    let all = host.log(&id).await;
    assert_eq!(all.len(), 10);
    let tail = host.query(&id, LogQuery { tail: Some(3), ..LogQuery::default() }).await;
    assert_eq!(texts(&tail), ["8", "9", "process exited (code=0)"]);
    let since = LogQuery { since: Some(all[9].ts), ..LogQuery::default() };
    assert_eq!(host.query(&id, since).await, []);
    let nothing = LogQuery { exec_id: Some("exec-1".to_owned()), ..LogQuery::default() };
    assert_eq!(host.query(&id, nothing).await, []);
    host.end().await;
}
