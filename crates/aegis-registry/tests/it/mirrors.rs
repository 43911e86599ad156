//! Mirrors are tried in order, and the registry after them.

use aegis_registry::{CredentialStore, Mirror, Problem};

use crate::access::{basic, password};
use crate::content::*;
use crate::server::{Reply, Server};

fn client(registry: &Server, mirrors: &[&Server]) -> Client {
    let mirrors = mirrors.iter().map(|mirror| Mirror::parse(&mirror.url("/")).unwrap()).collect();
    Client::with(|options, _| {
        options.mirrors.insert(registry.host(), mirrors);
    })
}

fn image() -> Content {
    let mut content = Content::default();
    content.image(Some("t"), "amd64", &[b"layer"]);
    content
}

#[tokio::test]
async fn the_first_mirror_that_has_it_serves_it() {
    let (empty, full, registry) =
        (Content::default().serve().await, image().serve().await, image().serve().await);
    let client = client(&registry, &[&empty, &full]);
    let resolved = client.resolve(&registry, ":t").await.unwrap();
    client.fetch(&registry, &resolved.layers[0]).await.unwrap();
    assert!(registry.requests().is_empty());
    assert!(!empty.requests().is_empty() && !full.requests().is_empty());
}

#[tokio::test]
async fn the_registry_serves_what_mirrors_do_not() {
    let broken = Server::start(|_, _| Reply::new(500)).await;
    let denying = Server::start(|_, _| Reply::new(403)).await;
    let lying = Server::start(|request, _| {
        if request.target.contains("/blobs/") { Reply::ok("lies!") } else { image().answer(request) }
    })
    .await;
    let registry = image().serve().await;
    let client = client(&registry, &[&broken, &denying, &lying]);
    let resolved = client.resolve(&registry, ":t").await.unwrap();
    client.fetch(&registry, &resolved.layers[0]).await.unwrap();
    assert_eq!(std::fs::read(client.complete()).unwrap(), b"layer");
    // A mirror is asked twice at most.
    assert!(broken.requests_for("manifests/t").len() == 2, "{:?}", broken.requests());
}

#[tokio::test]
async fn a_mirror_may_be_below_a_path() {
    let content = image();
    let mirror = Server::start(move |request, _| {
        let mut request = request.clone();
        request.target = request.target.strip_prefix("/below").unwrap_or("/nowhere").to_owned();
        content.answer(&request)
    })
    .await;
    let registry = Content::default().serve().await;
    let client = Client::with(|options, _| {
        options.mirrors.insert(registry.host(), vec![Mirror::parse(&mirror.url("/below")).unwrap()]);
    });
    client.resolve(&registry, ":t").await.unwrap();
}

#[tokio::test]
async fn an_error_lists_all_that_were_tried() {
    let empty = Content::default().serve().await;
    let registry = Server::start(|_, _| Reply::new(403)).await;
    let error = client(&registry, &[&empty]).resolve(&registry, ":t").await.unwrap_err();
    let said = text(&error);
    let mirror = format!("nor from mirror {} (it is not there (404): manifest unknown)", empty.host());
    assert!(said.contains(&mirror) && said.contains("access was denied"), "{said}");
    assert!(matches!(problem(Err::<(), _>(error)), Problem::Denied { .. }));
}

#[tokio::test]
async fn a_mirror_never_gets_the_credentials_of_the_registry() {
    let asking = Server::start(|_, _| Reply::new(401).header("www-authenticate", r#"Basic realm="r""#)).await;
    let content = image();
    let registry = Server::start(move |request, _| match request.authorization() {
        Some(value) if value == basic("me", "pw") => content.answer(request),
        _ => Reply::new(401).header("www-authenticate", r#"Basic realm="r""#),
    })
    .await;
    let client = client(&registry, &[&asking]);
    let store = CredentialStore::new(client.dir.path().join("credentials.json"));
    store.put(&registry.host(), password("me", "pw")).unwrap();
    client.resolve(&registry, ":t").await.unwrap();
    assert!(asking.requests().iter().all(|request| request.authorization().is_none()));
    // One that the user has logged in to gets its own.
    store.put(&asking.host(), password("mirror", "pw")).unwrap();
    client.resolve(&registry, ":t").await.unwrap();
    let sent: Vec<_> =
        asking.requests().iter().filter_map(|r| r.authorization().map(str::to_owned)).collect();
    assert!(!sent.is_empty() && sent.iter().all(|value| *value == basic("mirror", "pw")), "{sent:?}");
}

#[tokio::test]
async fn a_layer_is_continued_from_another_place() {
    let data = bytes(3, 200_000);
    let mut content = Content::default();
    content.blob(&data);
    let sent = data.clone();
    let cutting = Server::start(move |request, before| match (&*request.target, before) {
        (target, 0) if target.contains("/blobs/") => {
            Reply::new(200).with(crate::server::Body::Cut(sent.clone(), 100_000))
        }
        _ => Reply::new(500),
    })
    .await;
    let registry = content.serve().await;
    let client = client(&registry, &[&cutting]);
    client.fetch(&registry, &layer(&data)).await.unwrap();
    assert_eq!(std::fs::read(client.complete()).unwrap(), data);
    assert!(range(registry.requests_for("/blobs/")[0].header("range").unwrap()) > 0);
}
