//! Boots that go wrong.

use std::time::Duration;

use aegis_api::ErrorCode;
use aegis_client::Action;
use aegis_config::Setting;
use aegis_testkit::Guest;
use aegis_types::{InstanceState, StopReason};

use crate::support::{Host, texts};

#[tokio::test]
async fn a_boot_that_fails_twice_says_why_and_shows_the_console() {
    let host = Host::start().await;
    let dies = |words: &str| Guest::Dies(words.to_owned());
    host.home.script("web", &[dies("first"), dies("no memory")]);
    let id = host.create(&host.instance("web", &["true"])).await;
    let info = host.stopped(&id).await;
    assert_eq!((info.stop_reason, info.exit_code), (Some(StopReason::BootFailed), None));
    assert!(info.last_error.unwrap().contains("no memory"));
    assert!(info.enabled);
    let log = host.log(&id).await;
    assert_eq!(texts(&log), ["boot failed: the VMM ended: no memory", "console: console of boot 2"]);
    assert_eq!(host.client.console("web").await.unwrap().as_ref(), b"console of boot 2\n");
    host.nothing_runs().await;
    // It is not booted again by accident, only when asked for.
    assert_eq!(host.exec_refused(&id).await, (503, ErrorCode::BootFailed));
    host.home.script("web", &[Guest::Normal]);
    host.client.action("web", Action::Start).await.unwrap();
    let info = host.stopped(&id).await;
    assert_eq!(
        (info.stop_reason, info.exit_code, info.last_error),
        (Some(StopReason::Exited), Some(0), None)
    );
    host.end().await;
}

#[tokio::test]
async fn a_guest_that_never_answers_is_given_up() {
    let host = Host::start_with(|options| {
        options.settings.boot_timeout = Setting::default_value(Duration::from_millis(300));
    })
    .await;
    host.home.script("web", &[Guest::Silent]);
    let id = host.create(&host.instance("web", &["true"])).await;
    let info = host.stopped(&id).await;
    assert_eq!(info.stop_reason, Some(StopReason::BootFailed));
    let why = info.last_error.unwrap();
    assert!(why.contains("the harness did not answer within 0.3 s"), "{why}");
    assert!(texts(&host.log(&id).await).contains(&"console: console of boot 2"));
    host.end().await;
}

#[tokio::test]
async fn a_boot_that_works_at_the_second_attempt_is_told() {
    let host = Host::start().await;
    host.home.script("web", &[Guest::Dies("cosmic ray".to_owned()), Guest::Normal]);
    let id = host.sleeper("web").await;
    assert_eq!(texts(&host.log(&id).await), ["the VM came up only at attempt 2"]);
    host.end().await;
}

#[tokio::test]
async fn a_missing_file_of_the_installation_is_named_with_what_to_do() {
    let host = Host::start().await;
    let kernel = host.home.assets().kernel.unwrap();
    std::fs::rename(&kernel, kernel.with_extension("away")).unwrap();
    let id = host.create(&host.instance("web", &["true"])).await;
    let info = host.stopped(&id).await;
    assert_eq!(info.stop_reason, Some(StopReason::BootFailed));
    assert!(info.last_error.unwrap().contains(kernel.to_str().unwrap()));
    let log = host.log(&id).await;
    assert!(texts(&log)[1].starts_with("hint: "), "{:?}", texts(&log));
    assert!(!host.home.home().run_dir(&id).exists());
    // A repaired installation works at once.
    std::fs::rename(kernel.with_extension("away"), &kernel).unwrap();
    host.client.action("web", Action::Start).await.unwrap();
    assert_eq!(host.stopped(&id).await.exit_code, Some(0));
    host.end().await;
}

#[tokio::test]
async fn the_console_of_a_live_vm_is_shown() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    host.home.vm(&id).print("oops\u{1b}[31m").await.unwrap();
    let console = host.client.console("web").await.unwrap();
    assert_eq!(String::from_utf8_lossy(&console), "console of boot 1\noops [31m\n");
    assert_eq!(host.info(&id).await.state, InstanceState::Running);
    host.end().await;
}
