//! Secrets from the API to commands, and to nowhere else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;

use aegis_api::{AuditEvent, CreateInstance, ErrorCode, InstanceSecrets, LogSource, SetSecret};
use aegis_client::{Action, ClientError, Creation};
use aegis_testkit::Guest;
use aegis_types::{InstanceState, SecretBytes, SecretName, StopReason};

use crate::support::{Gate, Host, exec, refusal, texts, within};

fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

async fn set(host: &Host, secret: &str, value: &str) {
    let value = SetSecret { value: SecretBytes::from(value.to_owned()) };
    within(host.client.set_secret(&name(secret), &value)).await.unwrap();
}

/// An instance that wants these secrets.
fn with(host: &Host, handle: &str, command: &[&str], secrets: &[&str]) -> CreateInstance {
    let secrets = secrets.iter().map(|text| text.parse().unwrap()).collect();
    CreateInstance { secrets, ..host.instance(handle, command) }
}

/// What a process in the instance has in these variables. An answer to an exec is for whoever asked.
async fn variables(host: &Host, id: &aegis_types::InstanceId, names: &str) -> String {
    let outcome = host.exec(id, &["sh", "-c", &format!("echo {names}")]).await;
    String::from_utf8(outcome.stdout).unwrap().trim_end().to_owned()
}

/// Files below the directory that contain the bytes.
fn files_with(dir: &Path, bytes: &[u8]) -> Vec<String> {
    // grep skips the holes of disks, which are gigabytes; it may complain of what is being removed.
    let found =
        Command::new("grep").args(["-rlF", "-e"]).arg(OsStr::from_bytes(bytes)).arg(dir).output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn secrets_are_looked_up_at_each_boot_and_lose_against_what_is_said_by_value() {
    let host = Host::start().await;
    for (secret, value) in [("A", "a-one"), ("B", "b-one"), ("C", "c-one"), ("db.pass", "pass-one")] {
        set(&host, secret, value).await;
    }
    let mut instance = with(&host, "web", &["sleep", "100000"], &["*", "X=secret.db.pass"]);
    instance.env.insert("B".to_owned(), "b-env".to_owned());
    let id = host.create(&instance).await;
    host.reach(&id, InstanceState::Running).await;
    let all = "$A $B $C $X";
    assert_eq!(variables(&host, &id, all).await, "a-one b-env c-one pass-one");
    let mut over = exec(&["sh", "-c", "echo $A $C"]);
    over.env.insert("A".to_owned(), "a-exec".to_owned());
    assert_eq!(host.exec_request(&id, &over).await.stdout, b"a-exec c-one\n");
    // The next boot has what is stored then.
    set(&host, "A", "a-two").await;
    within(host.client.delete_secret(&name("C"))).await.unwrap();
    assert_eq!(variables(&host, &id, all).await, "a-one b-env c-one pass-one");
    within(host.client.action("web", Action::Restart)).await.unwrap();
    host.reach(&id, InstanceState::Running).await;
    assert_eq!(variables(&host, &id, all).await, "a-two b-env pass-one");
    let info = host.info(&id).await;
    assert_eq!(
        info.secret_keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["*", "X=secret.db.pass"]
    );
    assert!(info.env_keys.contains(&"B".to_owned()));
    let audited = within(host.client.audit()).await.unwrap();
    let injected: Vec<_> = audited.iter().filter(|entry| entry.event == AuditEvent::Injected).collect();
    assert_eq!(injected.len(), 2);
    assert_eq!(injected[0].secrets, ["A", "B", "C", "X=secret.db.pass"]);
    assert_eq!(injected[1].secrets, ["A", "B", "X=secret.db.pass"]);
    assert!(injected.iter().all(|entry| entry.instance_id.as_ref() == Some(&id)));
    assert_ne!(injected[0].vm_id, injected[1].vm_id);
    host.end().await;
}

#[tokio::test]
async fn a_value_is_in_no_log_and_no_file_before_and_after_a_crash() {
    const VALUE: &str = "Tr0ub4dor-and-3";
    let mut host = Host::start().await;
    set(&host, "KEY", VALUE).await;
    let (first, second) = (Gate::new(&host.home, "first"), Gate::new(&host.home, "second"));
    let script = format!(
        "echo \"is $KEY.\"; printf '%s' \"${{KEY%-3}}\"; {}; printf '%s\\n' '-3 in two'; echo \"$KEY\" >&2; \
         printf '%s' \"${{KEY%dor-and-3}}\"; {}; echo 'dor-and-3 again'; echo \"$KEY\" | base64; echo end",
        first.wait(),
        second.wait()
    );
    let id = host.create(&with(&host, "web", &["sh", "-c", &script], &["KEY"])).await;
    let mut log = host.follow(&id).await;
    assert_eq!(log.lines(1).await, ["is ***."]);
    let shown = host.exec(&id, &["sh", "-c", "echo $KEY; echo no-such-$KEY >&2"]).await;
    assert_eq!(shown.stdout, format!("{VALUE}\n").as_bytes());
    first.open().await;
    loop {
        let entry = log.next().await.unwrap();
        if entry.source == LogSource::Server && entry.line.contains("in two") {
            assert_eq!(entry.line, "*** in two");
            break;
        }
    }
    // Another value is stored, and this one is still in the instance.
    set(&host, "KEY", "another value").await;
    host.crash().await;
    host.up().await;
    second.open().await;
    let entries = host.follow(&id).await.until_exit().await;
    let lines = texts(&entries);
    assert!(lines.contains(&"*** again") && lines.contains(&"end"), "{lines:?}");
    assert!(lines.iter().all(|line| !line.contains("Tr0ub4dor")), "{lines:?}");
    assert_eq!(entries.iter().filter(|entry| entry.line.contains("***")).count(), 7, "{lines:?}");
    host.stopped(&id).await;
    host.down().await;
    assert_eq!(files_with(host.home.home().root(), VALUE.as_bytes()), Vec::<String>::new());
    assert_eq!(files_with(host.home.home().root(), b"another value"), Vec::<String>::new());
    assert!(!files_with(&host.home.home().logs(), b"is ***.").is_empty(), "the search finds what is there");
}

#[tokio::test]
async fn a_secret_that_is_not_stored_is_an_error_or_a_warning_as_it_was_asked_for() {
    let host = Host::start().await;
    let refused = within(host.client.create(&with(&host, "bot", &["true"], &["KEY"]))).await.unwrap_err();
    match &refused {
        ClientError::Api { body, .. } => {
            assert_eq!(body.error, "instance `bot` needs secret `KEY`, which is not stored");
            let hint = "`aegis secret set KEY` reads the value from the terminal";
            assert_eq!((body.code, body.hint.as_deref()), (ErrorCode::SecretNotFound, Some(hint)));
        }
        other => panic!("{other:?}"),
    }
    assert!(within(host.client.list(None)).await.unwrap().is_empty(), "nothing was created");
    let optional = with(&host, "bot", &["sleep", "100000"], &["KEY?"]);
    let id = match within(host.client.create(&optional)).await.unwrap() {
        Creation::Created(created) => {
            assert_eq!(created.warnings, ["secret `KEY` is not stored: `KEY` is not set"]);
            created.id
        }
        other => panic!("{other:?}"),
    };
    host.reach(&id, InstanceState::Running).await;
    // From its next boot on it gets what it is given now.
    set(&host, "A", "value-of-a").await;
    set(&host, "B", "value-of-b").await;
    let assign = |keys: &[&str]| InstanceSecrets {
        secrets: keys.iter().map(|text| text.parse().unwrap()).collect(),
        secret_files: None,
    };
    let refused = within(host.client.assign_secrets("bot", &assign(&["A", "C"]))).await.unwrap_err();
    assert_eq!(refusal(refused), (404, ErrorCode::SecretNotFound));
    let assigned = within(host.client.assign_secrets("bot", &assign(&["A"]))).await.unwrap();
    assert!(assigned.restart_required && assigned.warnings.is_empty());
    assert_eq!(host.info(&id).await.secret_keys, assigned.secret_keys);
    assert_eq!(variables(&host, &id, "[$A]").await, "[]");
    within(host.client.action("bot", Action::Disable)).await.unwrap();
    let again = CreateInstance { command: Vec::new(), ..with(&host, "bot", &[], &["B"]) };
    match within(host.client.create(&CreateInstance { env: Default::default(), ..again })).await.unwrap() {
        Creation::Restarted(created) => assert!(created.warnings.is_empty(), "{:?}", created.warnings),
        other => panic!("{other:?}"),
    }
    host.reach(&id, InstanceState::Running).await;
    assert_eq!(variables(&host, &id, "$A $B").await, "value-of-a value-of-b");
    // Whoever wakes it learns what is missing.
    within(host.client.action("bot", Action::Stop)).await.unwrap();
    within(host.client.delete_secret(&name("A"))).await.unwrap();
    match within(host.client.exec("bot", &exec(&["true"]))).await.map(drop) {
        Err(ClientError::Api { body, .. }) => {
            let cause = body.cause.unwrap_or_default();
            assert!(body.code == ErrorCode::BootFailed && cause.contains("it needs secret `A`"), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    // The exec was answered before the failed boot had come to its end, and a start during a boot joins that boot.
    host.stopped(&id).await;
    let refused = within(host.client.action("bot", Action::Start)).await.unwrap_err();
    assert_eq!(refusal(refused), (404, ErrorCode::SecretNotFound));
    let log = host.log(&id).await;
    let hint = "hint: `aegis secret set A` reads the value from the terminal";
    assert!(texts(&log).contains(&hint), "{:?}", texts(&log));
    host.end().await;
}

#[tokio::test]
async fn without_its_key_the_daemon_runs_and_nothing_is_lost() {
    let mut host = Host::start().await;
    let key_file = host.home.home().master_key();
    assert!(!key_file.exists());
    set(&host, "KEY", "value-of-key").await;
    let gate = Gate::new(&host.home, "gate");
    let script = format!("{}; echo $KEY; sleep 100000", gate.wait());
    let id = host.create(&with(&host, "web", &["sh", "-c", &script], &["KEY"])).await;
    host.reach(&id, InstanceState::Running).await;
    host.crash().await;
    let key = fs::read(&key_file).unwrap();
    fs::write(&key_file, [7; 32]).unwrap();
    host.up().await;
    let locked = (503, ErrorCode::SecretsLocked);
    let value = SetSecret { value: SecretBytes::from("x".to_owned()) };
    assert_eq!(refusal(within(host.client.set_secret(&name("B"), &value)).await.unwrap_err()), locked);
    assert_eq!(refusal(within(host.client.reveal_secret(&name("KEY"))).await.unwrap_err()), locked);
    assert_eq!(refusal(within(host.client.delete_secret(&name("KEY"))).await.unwrap_err()), locked);
    assert_eq!(refusal(within(host.client.rotate_key()).await.unwrap_err()), locked);
    let wants = with(&host, "other", &["true"], &["KEY"]);
    assert_eq!(refusal(within(host.client.create(&wants)).await.unwrap_err()), locked);
    assert_eq!(refusal(within(host.client.action("web", Action::Restart)).await.unwrap_err()), locked);
    assert_eq!(within(host.client.secrets()).await.unwrap().len(), 1);
    // What lives goes on, but nobody knows what to keep out of its log.
    assert_eq!(host.info(&id).await.state, InstanceState::Running);
    gate.open().await;
    let mut log = host.follow(&id).await;
    while log.next().await.unwrap().line != "***" {}
    // Instances without secrets do not care.
    let plain = host.sh("plain", "echo hi").await;
    assert_eq!(host.follow(&plain).await.until_exit().await[0].line, "hi");
    assert_eq!(fs::read(&key_file).unwrap(), [7; 32]);
    fs::write(&key_file, &key).unwrap();
    let revealed = within(host.client.reveal_secret(&name("KEY"))).await.unwrap();
    assert_eq!(revealed.value.expose(), b"value-of-key");
    assert_eq!(within(host.client.rotate_key()).await.unwrap().secrets, 1);
    assert_ne!(fs::read(&key_file).unwrap(), key);
    host.crash().await;
    host.up().await;
    let revealed = within(host.client.reveal_secret(&name("KEY"))).await.unwrap();
    assert_eq!(revealed.value.expose(), b"value-of-key");
    assert_eq!(files_with(host.home.home().root(), b"value-of-key"), Vec::<String>::new());
    let events: Vec<AuditEvent> =
        within(host.client.audit()).await.unwrap().iter().map(|entry| entry.event).collect();
    use AuditEvent::{Injected, Revealed, Rotated, Set};
    assert_eq!(events, [Set, Injected, Revealed, Rotated, Revealed]);
    host.end().await;
}

#[tokio::test]
async fn values_have_bounds_and_names_a_grammar() {
    let host = Host::start().await;
    for bytes in [Vec::new(), vec![b'x'; (64 << 10) + 1]] {
        let value = SetSecret { value: SecretBytes::new(bytes) };
        let refused = within(host.client.set_secret(&name("KEY"), &value)).await.unwrap_err();
        assert_eq!(refusal(refused), (400, ErrorCode::InvalidRequest));
    }
    let any = SetSecret { value: SecretBytes::new(b"\xff\x00any".to_vec()) };
    // Names of paths of the API are names as well.
    for secret in ["rotate-key", "reveal"] {
        within(host.client.set_secret(&name(secret), &any)).await.unwrap();
        assert_eq!(within(host.client.reveal_secret(&name(secret))).await.unwrap().value, any.value);
        within(host.client.delete_secret(&name(secret))).await.unwrap();
        let refused = within(host.client.delete_secret(&name(secret))).await.unwrap_err();
        assert_eq!(refusal(refused), (404, ErrorCode::SecretNotFound));
    }
    within(host.client.set_secret(&name("BIN"), &any)).await.unwrap();
    let refused = within(host.client.create(&with(&host, "bot", &["true"], &["BIN"]))).await.unwrap_err();
    assert_eq!(refusal(refused), (400, ErrorCode::InvalidRequest));
    host.end().await;
}

#[tokio::test]
async fn a_harness_that_does_not_know_files_is_not_asked_to_start_the_command() {
    let host = Host::start().await;
    set(&host, "KEY", "value-of-key").await;
    // Its control service is that of an old harness.
    host.home.script("old", &[Guest::BreaksLogs]);
    let files = vec!["KEY:/run/secrets/key".parse().unwrap()];
    let instance = CreateInstance { secret_files: files, ..host.instance("old", &["true"]) };
    let id = host.create(&instance).await;
    let info = host.stopped(&id).await;
    let error = info.last_error.unwrap_or_default();
    assert_eq!(info.stop_reason, Some(StopReason::BootFailed), "{error}");
    assert!(error.contains("its harness (liar) is too old for files of secrets"), "{error}");
    host.end().await;
}
