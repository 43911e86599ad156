//! Templates that are made beside the instances of a daemon, and get in nobody's way.

use std::fs;
use std::time::Duration;

use aegis_testkit::Guest;
use aegis_types::{InstanceId, InstanceState};

use crate::support::{Host, within};

const POLL: Duration = Duration::from_millis(1);

/// A daemon that makes templates, an instance that it was started for, and a build that does not get on.
async fn building() -> (Host, InstanceId) {
    let host =
        Host::start_with(|options| options.settings.templates.value = aegis_config::TemplatesSetting::Auto)
            .await;
    // The name of the guest in every build.
    host.home.script("template", &[Guest::Silent]);
    let id = host.sleeper("web").await;
    let begun = async {
        while !run_entries(&host).iter().any(|name| name.starts_with("template-")) {
            tokio::time::sleep(POLL).await;
        }
    };
    within(begun).await;
    (host, id)
}

fn run_entries(host: &Host) -> Vec<String> {
    entries(&host.home.home().run())
}

fn entries(dir: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn a_daemon_that_ends_gives_up_a_template_under_way() {
    let (mut host, id) = building().await;
    assert_eq!(host.exec(&id, &["echo", "meanwhile"]).await.stdout, b"meanwhile\n");
    host.down().await;
    host.nothing_runs().await;
    assert!(run_entries(&host).is_empty() && entries(&host.home.home().templates()).is_empty());
}

#[tokio::test]
async fn what_a_crash_left_of_a_template_is_ended_and_removed_and_instances_go_on() {
    let (mut host, id) = building().await;
    host.crash().await;
    host.up().await;
    assert_eq!(run_entries(&host), [id.as_str()]);
    assert!(entries(&host.home.home().templates()).is_empty());
    assert_eq!(host.info(&id).await.state, InstanceState::Running);
    assert_eq!(host.exec(&id, &["echo", "on"]).await.stdout, b"on\n");
    host.end().await;
}

#[tokio::test]
async fn a_vmm_that_cannot_save_makes_no_template_and_instances_boot() {
    let mut host =
        Host::start_with(|options| options.settings.templates.value = aegis_config::TemplatesSetting::Auto)
            .await;
    for handle in ["one", "two"] {
        let id = host.sleeper(handle).await;
        assert_eq!(host.exec(&id, &["echo", "up"]).await.stdout, b"up\n");
    }
    host.down().await;
    assert!(run_entries(&host).is_empty() && entries(&host.home.home().templates()).is_empty());
    host.up().await;
    host.end().await;
}
