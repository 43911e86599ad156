//! Images of instances: pulled when they are needed, kept as long as they are, and what they say about processes.

use std::time::Duration;

use aegis_api::{
    CreateInstance, ErrorCode, InstanceInfo, LogSource, PruneImages, PullEvent, PullImage, SetSecret,
};
use aegis_client::Action;
use aegis_testkit::{TestImage, TestRegistry, layer};
use aegis_types::{ImageName, InstanceId, InstanceState, PullPolicy, SecretBytes, SecretName, StopReason};
use aegisd::DaemonOptions;

use crate::support::{Host, exec, refusal, texts, within, words};

fn pulling(options: &mut DaemonOptions) {
    options.settings.pull.value = PullPolicy::Missing;
}

fn with(host: &Host, handle: &str, image: &ImageName, command: &[&str]) -> CreateInstance {
    CreateInstance { image_ref: Some(image.clone()), ..host.instance(handle, command) }
}

/// An instance of this image that runs until it is stopped.
async fn sleeper(host: &Host, handle: &str, image: &ImageName) -> InstanceId {
    let id = host.create(&with(host, handle, image, &["sleep", "100000"])).await;
    host.reach(&id, InstanceState::Running).await;
    id
}

async fn refresh(host: &Host, image: &ImageName) -> bool {
    let mut events =
        within(host.client.pull(&PullImage { name: image.clone(), policy: None })).await.unwrap();
    loop {
        match within(events.next()).await.unwrap() {
            PullEvent::Ready { changed, .. } => return changed,
            PullEvent::Failed { error } => panic!("{error:?}"),
            _ => {}
        }
    }
}

/// What AegisVM said about the instance.
async fn said(host: &Host, id: &InstanceId) -> Vec<String> {
    let mut entries = host.log(id).await;
    entries.retain(|entry| entry.source == LogSource::System);
    texts(&entries).iter().map(|&line| line.to_owned()).collect()
}

/// A failed start and why.
async fn failed(host: &Host, id: &InstanceId) -> String {
    let info = host.stopped(id).await;
    assert_eq!(info.stop_reason, Some(StopReason::BootFailed), "{info:?}");
    info.last_error.unwrap()
}

fn digest(info: &InstanceInfo) -> &str {
    info.image_digest.as_deref().expect("it has booted")
}

#[tokio::test]
async fn an_instance_of_an_unknown_image_waits_for_the_pull_and_tells_of_it() {
    let (host, registry) = (Host::start_with(pulling).await, TestRegistry::start().await);
    let layers: Vec<_> = (0..6).map(|i| layer(&[(&format!("file{i}"), &[i; 1000])])).collect();
    let (manifest, blobs) = registry.put("team/tools:1", &TestImage::default(), &layers);
    let name = registry.name("team/tools:1");
    registry.hold();
    let id = host.create(&with(&host, "web", &name, &["sleep", "100000"])).await;
    // Three at a time.
    within(registry.sends(3)).await;
    let info = host.info(&id).await;
    assert_eq!((info.state, info.image_digest), (InstanceState::Starting, None));
    // Somebody else wants the same.
    let other = host.create(&with(&host, "other", &name, &["sleep", "100000"])).await;
    within(async {
        while !said(&host, &other).await.iter().any(|line| line.starts_with("image downloading: ")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    registry.release();
    let info = host.reach(&id, InstanceState::Running).await;
    assert_eq!((info.image_ref, info.image_manifest), (name.clone(), Some(manifest)));
    host.reach(&other, InstanceState::Running).await;
    for id in [&id, &other] {
        let said = said(&host, id).await;
        assert_eq!(said.last().unwrap(), &format!("image ready: {name}"), "{said:?}");
        let downloading = format!("image downloading: {name} (0.0 MiB of ");
        assert!(said.iter().any(|line| line.starts_with(&downloading)), "{said:?}");
    }
    assert!(said(&host, &id).await.contains(&format!("image resolving: {name}")));
    assert!(blobs.iter().all(|blob| registry.asked_for(blob) == 1));
    // What is there is not talked about.
    let third = sleeper(&host, "third", &name).await;
    assert_eq!(said(&host, &third).await, Vec::<String>::new());
    host.end().await;
}

#[tokio::test]
async fn a_start_that_waits_for_a_pull_can_be_given_up() {
    let (host, registry) = (Host::start_with(pulling).await, TestRegistry::start().await);
    registry.put("slow:1", &TestImage::default(), &[layer(&[("a", &[7; 100_000])])]);
    let name = registry.name("slow:1");
    registry.hold();
    let id = host.create(&with(&host, "web", &name, &["sleep", "100000"])).await;
    within(registry.sends(1)).await;
    within(host.client.action("web", Action::Stop)).await.unwrap();
    assert_eq!(host.info(&id).await.stop_reason, Some(StopReason::Requested));
    within(registry.sends(0)).await;
    within(host.client.action("web", Action::Start)).await.unwrap();
    within(registry.sends(1)).await;
    within(host.client.delete("web")).await.unwrap();
    within(registry.sends(0)).await;
    assert!(within(host.client.images()).await.unwrap().iter().all(|image| image.name != name));
    host.end().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_a_failed_boot_that_says_why() {
    let (host, registry) = (Host::start_with(pulling).await, TestRegistry::start().await);
    let name = registry.name("unknown:1");
    let id = host.create(&with(&host, "web", &name, &["true"])).await;
    let why = failed(&host, &id).await;
    assert!(why.starts_with(&format!("cannot pull image `{name}`: ")) && why.contains("404"), "{why}");
    assert!(said(&host, &id).await.iter().any(|line| line.starts_with("hint: check the name")));
    // It is there now.
    registry.put("unknown:1", &TestImage::default(), &[layer(&[("a", b"a")])]);
    within(host.client.action("web", Action::Start)).await.unwrap();
    assert_eq!(host.stopped(&id).await.exit_code, Some(0));
    let never = CreateInstance {
        pull: Some(PullPolicy::Never),
        ..with(&host, "never", &registry.name("unknown:2"), &["true"])
    };
    let refused = refusal(within(host.client.create(&never)).await.err().unwrap());
    assert_eq!(refused, (404, ErrorCode::ImageNotFound));
    host.end().await;
}

#[tokio::test]
async fn what_was_pulled_is_used_without_a_registry() {
    let (host, registry) = (Host::start_with(pulling).await, TestRegistry::start().await);
    registry.put("tools:1", &TestImage::default(), &[layer(&[("a", b"a")])]);
    let name = registry.name("tools:1");
    assert!(refresh(&host, &name).await);
    let stopped = registry.down().await;
    sleeper(&host, "web", &name).await;
    // The built-in image was never at a registry.
    let always = |handle, image: &ImageName| CreateInstance {
        pull: Some(PullPolicy::Always),
        ..with(&host, handle, image, &["true"])
    };
    let id = host.create(&always("base", &ImageName::parse("base").unwrap())).await;
    assert_eq!(host.stopped(&id).await.exit_code, Some(0));
    let id = host.create(&always("always", &name)).await;
    assert!(failed(&host, &id).await.contains("no connection"));
    // Asked once: what it has got then it keeps.
    let registry = within(stopped.up()).await;
    registry.put("tools:1", &TestImage::default(), &[layer(&[("a", b"new")])]);
    within(host.client.action("always", Action::Start)).await.unwrap();
    let first = host.stopped(&id).await;
    assert_eq!(first.exit_code, Some(0));
    registry.put("tools:1", &TestImage::default(), &[layer(&[("a", b"newer")])]);
    within(host.client.action("always", Action::Start)).await.unwrap();
    let again = host.stopped(&id).await;
    assert_eq!((again.exit_code, digest(&again)), (Some(0), digest(&first)));
    host.end().await;
}

#[tokio::test]
async fn an_instance_keeps_its_image_when_the_tag_moves_and_the_image_goes_with_its_last_user() {
    let (mut host, registry) = (Host::start_with(pulling).await, TestRegistry::start().await);
    registry.put("tools:1", &TestImage::default(), &[layer(&[("a", &[1; 300_000])])]);
    let name = registry.name("tools:1");
    let id = sleeper(&host, "web", &name).await;
    let old = digest(&host.info(&id).await).to_owned();
    registry.put("tools:1", &TestImage::default(), &[layer(&[("a", &[2; 300_000])])]);
    assert!(refresh(&host, &name).await);
    let new = within(host.client.image(&name)).await.unwrap().summary.digest;
    assert_ne!(new, old);
    assert_eq!(within(host.client.image(&name)).await.unwrap().used_by, []);
    // Also under the next daemon, and after everything that nobody needs was removed.
    host.down().await;
    host.up().await;
    let all = PruneImages { all: true, older_than: None };
    assert_eq!(within(host.client.prune_images(&all)).await.unwrap().names, std::slice::from_ref(&name));
    within(host.client.action("web", Action::Start)).await.unwrap();
    let info = host.reach(&id, InstanceState::Running).await;
    assert_eq!(digest(&info), old);
    let usage = within(host.client.image_usage()).await.unwrap();
    assert!(usage.unnamed_bytes > 0 && usage.images.is_empty(), "{usage:?}");
    within(host.client.delete("web")).await.unwrap();
    within(async {
        while within(host.client.image_usage()).await.unwrap().images_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    host.end().await;
}

#[tokio::test]
async fn an_image_in_use_loses_its_name_only_by_force() {
    let (host, registry) = (Host::start_with(pulling).await, TestRegistry::start().await);
    registry.put("tools:1", &TestImage::default(), &[layer(&[("a", &[1; 300_000])])]);
    let name = registry.name("tools:1");
    let id = sleeper(&host, "web", &name).await;
    assert_eq!(within(host.client.image(&name)).await.unwrap().used_by, std::slice::from_ref(&id));
    let refused = refusal(within(host.client.delete_image(&name, false)).await.err().unwrap());
    assert_eq!(refused, (409, ErrorCode::ImageInUse));
    assert_eq!(within(host.client.delete_image(&name, true)).await.unwrap().freed_bytes, 0);
    let refused = refusal(within(host.client.delete_image(&name, true)).await.err().unwrap());
    assert_eq!(refused, (404, ErrorCode::ImageNotFound));
    within(host.client.action("web", Action::Restart)).await.unwrap();
    host.reach(&id, InstanceState::Running).await;
    let base = ImageName::parse("base").unwrap();
    let refused = refusal(within(host.client.delete_image(&base, true)).await.err().unwrap());
    assert_eq!(refused, (400, ErrorCode::InvalidRequest));
    host.end().await;
}

#[tokio::test]
async fn an_image_that_was_lost_is_pulled_again_by_its_manifest() {
    let (host, registry) = (Host::start_with(pulling).await, TestRegistry::start().await);
    registry.put("tools:1", &TestImage::default(), &[layer(&[("a", b"old")])]);
    let name = registry.name("tools:1");
    let id = sleeper(&host, "web", &name).await;
    let old = digest(&host.info(&id).await).to_owned();
    within(host.client.action("web", Action::Stop)).await.unwrap();
    registry.put("tools:1", &TestImage::default(), &[layer(&[("a", b"new")])]);
    let store = host.home.home().images();
    std::fs::remove_dir_all(store.join(old.replace(':', "_"))).unwrap();
    within(host.client.action("web", Action::Start)).await.unwrap();
    assert_eq!(digest(&host.reach(&id, InstanceState::Running).await), old);
    // Nobody has it any more.
    within(host.client.action("web", Action::Stop)).await.unwrap();
    let stopped = registry.down().await;
    std::fs::remove_dir_all(store.join(old.replace(':', "_"))).unwrap();
    within(host.client.action("web", Action::Start)).await.unwrap();
    let why = failed(&host, &id).await;
    assert!(why.contains("that its disk belongs to is gone") && why.contains(&old), "{why}");
    drop(stopped);
    host.end().await;
}

#[tokio::test]
async fn the_environment_of_an_image_is_below_everything_else_and_never_stored() {
    let (host, registry) = (Host::start_with(pulling).await, TestRegistry::start().await);
    let image = |a: &str| TestImage {
        env: [&format!("A={a}"), "B=image", "C=image", "D=image", "LANG=image"].map(|s| s.to_string()).into(),
        // Without `oci_defaults` nothing of this counts.
        entrypoint: words(&["/no/such/program"]),
        workdir: Some("/no/such/directory".to_owned()),
        ..TestImage::default()
    };
    registry.put("tools:1", &image("image"), &[layer(&[("a", b"a")])]);
    let name = registry.name("tools:1");
    let value = SetSecret { value: SecretBytes::from("secret".to_owned()) };
    for secret in ["B", "C"] {
        within(host.client.set_secret(&SecretName::parse(secret).unwrap(), &value)).await.unwrap();
    }
    let mut instance = with(&host, "web", &name, &["sleep", "100000"]);
    instance.secrets = ["B", "C"].map(|text| text.parse().unwrap()).into();
    instance.env.insert("C".to_owned(), "env".to_owned());
    let id = host.create(&instance).await;
    host.reach(&id, InstanceState::Running).await;
    let print = ["sh", "-c", "echo $A $B $C $D $LANG"];
    assert_eq!(host.exec(&id, &print).await.stdout, b"image secret env image image\n");
    let mut over = exec(&print);
    over.env.insert("D".to_owned(), "exec".to_owned());
    assert_eq!(host.exec_request(&id, &over).await.stdout, b"image secret env exec image\n");
    let info = host.info(&id).await;
    assert!(info.env_keys.contains(&"C".to_owned()) && !info.env_keys.contains(&"A".to_owned()));
    // An instance has its image, and so its environment; a new one has the new one.
    registry.put("tools:1", &image("moved"), &[layer(&[("a", b"a")])]);
    refresh(&host, &name).await;
    within(host.client.action("web", Action::Restart)).await.unwrap();
    host.reach(&id, InstanceState::Running).await;
    assert_eq!(host.exec(&id, &print).await.stdout, b"image secret env image image\n");
    let id = sleeper(&host, "new", &name).await;
    assert_eq!(host.exec(&id, &print).await.stdout, b"moved image image image image\n");
    host.end().await;
}

#[tokio::test]
async fn an_image_says_what_to_run_and_where_when_it_is_asked() {
    let (host, registry) = (Host::start_with(pulling).await, TestRegistry::start().await);
    let image = TestImage {
        entrypoint: words(&["echo", "entry"]),
        cmd: words(&["cmd"]),
        workdir: Some("/tmp".to_owned()),
        ..TestImage::default()
    };
    registry.put("says:1", &image, &[layer(&[("a", b"a")])]);
    let name = registry.name("says:1");
    let output = async |instance: CreateInstance| {
        let id = host.create(&instance).await;
        let info = host.stopped(&id).await;
        assert_eq!(info.exit_code, Some(0), "{info:?}");
        let log = host.log(&id).await;
        String::from_utf8(crate::support::output(&log)).unwrap()
    };
    // It is not there yet: what it says is not known when the instance is created.
    assert_eq!(output(with(&host, "none", &name, &[])).await, "entry cmd\n");
    let defaults = |handle, command: &[&str]| CreateInstance {
        oci_defaults: true,
        ..with(&host, handle, &name, command)
    };
    assert_eq!(output(defaults("asked", &[])).await, "entry cmd\n");
    assert_eq!(output(defaults("with", &["one", "two"])).await, "entry one two\n");
    assert_eq!(output(with(&host, "plain", &name, &["echo", "plain"])).await, "plain\n");
    let image = TestImage { entrypoint: words(&["pwd"]), ..image };
    registry.put("where:1", &TestImage { cmd: Vec::new(), ..image }, &[layer(&[("a", b"a")])]);
    let place = with(&host, "place", &registry.name("where:1"), &[]);
    assert_eq!(output(place.clone()).await, "/tmp\n");
    let elsewhere = CreateInstance { workdir: Some("/".to_owned()), ..place };
    let elsewhere = CreateInstance { handle: Some(aegis_types::Handle::parse("else").unwrap()), ..elsewhere };
    assert_eq!(output(elsewhere).await, "/\n");
    // Nobody says what to run.
    registry.put("silent:1", &TestImage::default(), &[layer(&[("a", b"a")])]);
    let silent = registry.name("silent:1");
    let id = host.create(&with(&host, "silent", &silent, &[])).await;
    assert!(failed(&host, &id).await.contains("does not say what to run"));
    let refused = within(host.client.create(&with(&host, "again", &silent, &[]))).await;
    assert_eq!(refusal(refused.err().unwrap()), (400, ErrorCode::InvalidRequest));
    host.end().await;
}
