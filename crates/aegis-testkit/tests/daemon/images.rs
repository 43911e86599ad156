//! Images from a registry: pulled, joined, given up, resumed, kept, removed.

use std::os::unix::fs::PermissionsExt as _;

use aegis_api::{ErrorCode, PruneImages, PullEvent, PullImage, RegistryLogin};
use aegis_client::PullEvents;
use aegis_testkit::{TestImage, TestRegistry, layer};
use aegis_types::{Digest, ImageName, PullPolicy, SecretBytes};

use crate::support::{Host, refusal, within};

/// A layer that cannot be made small.
fn noise(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let bytes: Vec<u8> = (0..400_000).map(|_| next()).collect();
    layer(&[("noise", &bytes)])
}

async fn begin(host: &Host, name: &ImageName) -> PullEvents {
    let pull = PullImage { name: name.clone(), policy: None };
    within(host.client.pull(&pull)).await.unwrap()
}

/// The last event.
async fn finish(mut events: PullEvents) -> PullEvent {
    loop {
        let event = within(events.next()).await.unwrap();
        if matches!(event, PullEvent::Ready { .. } | PullEvent::Failed { .. }) {
            return event;
        }
    }
}

async fn pull(host: &Host, name: &ImageName) -> PullEvent {
    finish(begin(host, name).await).await
}

#[track_caller]
fn ready(event: PullEvent) -> (String, bool) {
    match event {
        PullEvent::Ready { image, changed } => (image.digest, changed),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn failed(event: PullEvent) -> String {
    match event {
        PullEvent::Failed { error } => {
            assert_eq!(error.code, ErrorCode::PullFailed);
            format!(
                "{}: {} ({})",
                error.error,
                error.cause.unwrap_or_default(),
                error.hint.unwrap_or_default()
            )
        }
        other => panic!("{other:?}"),
    }
}

async fn downloading(events: &mut PullEvents) {
    loop {
        match within(events.next()).await.unwrap() {
            PullEvent::Downloading { total_bytes, .. } if total_bytes > 0 => return,
            PullEvent::Resolving | PullEvent::Downloading { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_image_is_pulled_once_and_its_tag_is_looked_up_again() {
    let (host, registry) = (Host::start().await, TestRegistry::start().await);
    let image = TestImage { env: vec!["A=1".to_owned()], ..TestImage::default() };
    let layers = [layer(&[("etc/", b""), ("etc/one", b"1")]), layer(&[("etc/two", b"2")])];
    let (manifest, blobs) = registry.put("team/tools:1", &image, &layers);
    let name = registry.name("team/tools:1");
    let (digest, changed) = ready(pull(&host, &name).await);
    assert!(changed);
    let info = within(host.client.image(&name)).await.unwrap();
    assert_eq!((&info.summary.digest, info.summary.manifest.as_ref()), (&digest, Some(&manifest)));
    assert_eq!((info.layers.len(), info.config.env["A"].as_str()), (2, "1"));
    let listed = within(host.client.images()).await.unwrap();
    assert!(listed.iter().any(|image| image.name == name && image.manifest.as_ref() == Some(&manifest)));
    // Nothing new: the registry is asked for the manifest alone.
    assert_eq!(ready(pull(&host, &name).await), (digest.clone(), false));
    assert_eq!(registry.asked_for(&blobs[0]), 1);
    // Another name of the same manifest needs no layer.
    let pinned = registry.name(&format!("team/tools@{manifest}"));
    assert_eq!(ready(pull(&host, &pinned).await).0, digest);
    assert_eq!(registry.asked_for(&blobs[0]), 1);
    // The tag moves. What both images have is not downloaded again.
    let other = layer(&[("etc/three", b"3")]);
    registry.put("team/tools:1", &image, &[layers[0].clone(), other]);
    let (moved, changed) = ready(pull(&host, &name).await);
    assert!(changed && moved != digest);
    assert_eq!(registry.asked_for(&blobs[0]), 1);
    let missing = PullImage { name, policy: Some(PullPolicy::Missing) };
    let before = registry.requests().len();
    assert_eq!(ready(finish(within(host.client.pull(&missing)).await.unwrap()).await), (moved, false));
    assert_eq!(registry.requests().len(), before);
    host.end().await;
}

#[tokio::test]
async fn who_wants_an_image_that_is_on_its_way_joins_the_pull() {
    let (host, registry) = (Host::start().await, TestRegistry::start().await);
    let (_, blobs) = registry.put("big:1", &TestImage::default(), &[noise(1)]);
    let name = registry.name("big:1");
    registry.hold();
    let (mut one, mut other) = (begin(&host, &name).await, begin(&host, &name).await);
    downloading(&mut one).await;
    downloading(&mut other).await;
    within(registry.sends(1)).await;
    // The one who began it does not want it any more; the other does.
    drop(one);
    registry.release();
    assert!(ready(finish(other).await).1);
    assert_eq!(registry.asked_for(&blobs[0]), 1);
    host.end().await;
}

#[tokio::test]
async fn a_download_that_was_cut_or_given_up_goes_on_where_it_was() {
    let (host, registry) = (Host::start().await, TestRegistry::start().await);
    let (_, blobs) = registry.put("big:1", &TestImage::default(), &[noise(2)]);
    registry.cut(&blobs[0], 300_000);
    ready(pull(&host, &registry.name("big:1")).await);
    let ranges = |blob: &Digest| {
        let requests = registry.requests();
        requests.iter().filter(|r| r.contains(blob.as_str()) && r.contains("bytes=")).count()
    };
    assert_eq!((registry.asked_for(&blobs[0]), ranges(&blobs[0])), (2, 1), "{:?}", registry.requests());

    let (_, blobs) = registry.put("big:2", &TestImage::default(), &[noise(3)]);
    let name = registry.name("big:2");
    registry.hold();
    let mut events = begin(&host, &name).await;
    downloading(&mut events).await;
    within(registry.sends(1)).await;
    let store = host.home.home().images();
    let part = store.join("blobs").join(format!("sha256_{}.part", blobs[0].hex()));
    within(async {
        while part.metadata().map_or(0, |meta| meta.len()) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    // Nobody wants it any more.
    drop(events);
    within(registry.sends(0)).await;
    assert!(part.exists());
    registry.release();
    ready(pull(&host, &name).await);
    assert_eq!(ranges(&blobs[0]), 1, "{:?}", registry.requests());
    assert!(!part.exists());
    host.end().await;
}

#[tokio::test]
async fn what_cannot_be_pulled_says_why_and_leaves_nothing() {
    let (host, registry) = (Host::start().await, TestRegistry::start().await);
    let unknown = registry.name("unknown:1");
    let why = failed(pull(&host, &unknown).await);
    assert!(why.starts_with(&format!("cannot pull image `{unknown}`: ")) && why.contains("404"), "{why}");
    // Not what a layer can be.
    registry.put("bad:1", &TestImage::default(), &[b"no tar".to_vec()]);
    let why = failed(pull(&host, &registry.name("bad:1")).await);
    assert!(why.contains("cannot apply layer 1 of 1"), "{why}");
    let missing = PullImage { name: unknown.clone(), policy: Some(PullPolicy::Never) };
    let refused = refusal(within(host.client.pull(&missing)).await.err().unwrap());
    assert_eq!(refused, (404, ErrorCode::ImageNotFound));
    let name = unknown.clone();
    let stopped = registry.down().await;
    let why = failed(pull(&host, &name).await);
    assert!(why.contains("no connection"), "{why}");
    drop(stopped);
    let names = within(host.client.images()).await.unwrap();
    assert_eq!(names.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["base"]);
    host.end().await;
}

#[tokio::test]
async fn a_mirror_is_asked_instead_of_its_registry() {
    let registry = TestRegistry::start().await;
    let mirrors = format!("docker.io=http://{}", registry.host());
    let host = Host::start_with(|options| options.settings.mirrors.value = mirrors.parse().unwrap()).await;
    registry.put("library/tools:1", &TestImage::default(), &[layer(&[("a", b"a")])]);
    let name = ImageName::parse("docker.io/library/tools:1").unwrap();
    assert_eq!(name.as_str(), "tools:1");
    ready(pull(&host, &name).await);
    assert!(registry.requests().iter().all(|request| request.starts_with("GET /v2/library/tools/")));
    host.end().await;
}

#[tokio::test]
async fn a_login_is_checked_kept_and_shown_to_nobody() {
    let (mut host, registry) = (Host::start().await, TestRegistry::start().await);
    registry.put("private:1", &TestImage::default(), &[layer(&[("a", b"a")])]);
    registry.require("me", "hunter2-password");
    let name = registry.name("private:1");
    let why = failed(pull(&host, &name).await);
    assert!(why.contains("aegis registry login"), "{why}");
    let login = |password: &str| RegistryLogin {
        registry: registry.host(),
        username: "me".to_owned(),
        password: SecretBytes::from(password.to_owned()),
    };
    let refused = refusal(within(host.client.login(&login("wrong-password"))).await.err().unwrap());
    assert_eq!(refused, (403, ErrorCode::LoginFailed));
    assert_eq!(within(host.client.registries()).await.unwrap(), []);
    let kept = within(host.client.login(&login("hunter2-password"))).await.unwrap();
    assert_eq!((kept.registry.as_str(), kept.username.as_deref()), (registry.host().as_str(), Some("me")));
    ready(pull(&host, &name).await);
    // The next daemon has it as well.
    host.down().await;
    host.up().await;
    assert_eq!(within(host.client.registries()).await.unwrap(), [kept]);
    let file = host.home.home().registries();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&file).unwrap().contains("hunter2-password"));
    let database = std::fs::read(host.home.home().database()).unwrap();
    assert!(!String::from_utf8_lossy(&database).contains("hunter2-password"));
    ready(pull(&host, &name).await);
    within(host.client.logout(&registry.host())).await.unwrap();
    // What the registry let us in with is forgotten as well.
    failed(pull(&host, &name).await);
    let refused = refusal(within(host.client.logout(&registry.host())).await.err().unwrap());
    assert_eq!(refused, (404, ErrorCode::NotLoggedIn));
    registry.put("private:2", &TestImage::default(), &[layer(&[("a", b"b")])]);
    failed(pull(&host, &registry.name("private:2")).await);
    host.end().await;
}

#[tokio::test]
async fn an_image_is_saved_and_loaded_again() {
    let (host, registry) = (Host::start().await, TestRegistry::start().await);
    let image = TestImage { cmd: vec!["true".to_owned()], ..TestImage::default() };
    registry.put("tools:1", &image, &[layer(&[("a", b"a")])]);
    let name = registry.name("tools:1");
    let (digest, _) = ready(pull(&host, &name).await);
    let mut archive = Vec::new();
    let mut saved = within(host.client.save(&name)).await.unwrap();
    while let Some(piece) = within(saved.next()).await.unwrap() {
        archive.extend_from_slice(&piece);
    }
    within(host.client.delete_image(&name, false)).await.unwrap();
    let refused = refusal(within(host.client.save(&name)).await.err().unwrap());
    assert_eq!(refused, (404, ErrorCode::ImageNotFound));
    let archive = std::io::Cursor::new(archive);
    let loaded = within(host.client.load(None, archive.clone())).await.unwrap();
    assert_eq!((&loaded[0].name, &loaded[0].digest), (&name, &digest));
    let other = ImageName::parse("other:2").unwrap();
    let loaded = within(host.client.load(Some(&other), archive)).await.unwrap();
    assert_eq!((&loaded[0].name, &loaded[0].digest), (&other, &digest));
    let config = within(host.client.image(&other)).await.unwrap().config;
    assert_eq!(config.cmd, ["true"]);
    let refused = within(host.client.load(None, std::io::Cursor::new(b"no archive".to_vec()))).await;
    assert_eq!(refusal(refused.err().unwrap()), (400, ErrorCode::InvalidRequest));
    let base = ImageName::parse("base").unwrap();
    let refused = refusal(within(host.client.save(&base)).await.err().unwrap());
    assert_eq!(refused, (400, ErrorCode::InvalidRequest));
    host.end().await;
}

#[tokio::test]
async fn what_nobody_needs_is_pruned() {
    let (host, registry) = (Host::start().await, TestRegistry::start().await);
    for (tag, seed) in [("big:1", 4), ("big:2", 5)] {
        registry.put(tag, &TestImage::default(), &[noise(seed)]);
        ready(pull(&host, &registry.name(tag)).await);
    }
    let usage = within(host.client.image_usage()).await.unwrap();
    assert_eq!(usage.images.len(), 2);
    assert!(usage.layers_bytes > 800_000 && usage.images.iter().all(|image| !image.used), "{usage:?}");
    // They have names.
    let pruned = within(host.client.prune_images(&PruneImages::default())).await.unwrap();
    assert_eq!((pruned.images, pruned.names.len()), (0, 0));
    let young = PruneImages { all: true, older_than: Some("1d".to_owned()) };
    assert_eq!(within(host.client.prune_images(&young)).await.unwrap().names, []);
    let all = PruneImages { all: true, older_than: None };
    let pruned = within(host.client.prune_images(&all)).await.unwrap();
    assert_eq!((pruned.images, pruned.names.len()), (2, 2));
    assert!(pruned.freed_bytes > 1_600_000, "{pruned:?}");
    let usage = within(host.client.image_usage()).await.unwrap();
    assert_eq!((usage.images_bytes, usage.layers_bytes), (0, 0));
    let soon = PruneImages { all: true, older_than: Some("soon".to_owned()) };
    let refused = refusal(within(host.client.prune_images(&soon)).await.err().unwrap());
    assert_eq!(refused, (400, ErrorCode::InvalidRequest));
    host.end().await;
}
