//! Challenges, tokens, credentials, and where they go.

use std::sync::{Arc, OnceLock};

use aegis_registry::{Credential, CredentialStore, Problem};
use aegis_types::SecretBytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::content::*;
use crate::server::{Body, Reply, Request, Server};

pub(crate) fn password(username: &str, password: &str) -> Credential {
    let password = SecretBytes::from(password.to_owned());
    Credential::Password { username: username.to_owned(), password }
}

pub(crate) fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

fn image() -> Content {
    let mut content = Content::default();
    content.image(Some("t"), "amd64", &[b"layer"]);
    content
}

/// A registry that wants to see this header, and challenges else.
async fn guarded(challenge: String, wanted: &'static str) -> Server {
    let content = image();
    Server::start(move |request, _| match request.authorization() {
        Some(authorization) if authorization == wanted => content.answer(request),
        _ => Reply::new(401).header("www-authenticate", &challenge),
    })
    .await
}

/// A token service.
async fn tokens(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request, _| answer(request)).await
}

fn challenge(service: &Server) -> String {
    format!(
        r#"Bearer realm="{}",service="the service",scope="repository:other:pull,push""#,
        service.url("/token?x=y")
    )
}

/// A client with a login at this server.
fn logged_in(server: &Server, credential: Credential) -> Client {
    let host = server.host();
    Client::with(|options, _| options.credentials.put(&host, credential).unwrap())
}

#[tokio::test]
async fn a_token_is_got_once_for_what_is_read() {
    let service = tokens(|_| Reply::ok(r#"{"token": "t1", "expires_in": 300}"#)).await;
    let server = guarded(challenge(&service), "Bearer t1").await;
    let client = Client::new();
    let resolved = client.resolve(&server, ":t").await.unwrap();
    client.fetch(&server, &resolved.layers[0]).await.unwrap();
    client.resolve(&server, ":t").await.unwrap();
    let asked = service.requests();
    assert_eq!(asked.len(), 1, "{asked:?}");
    // Its own scope, whatever the registry would like.
    assert_eq!(asked[0].target, "/token?x=y&service=the+service&scope=repository%3Ar%3Apull");
    assert_eq!((asked[0].method.as_str(), asked[0].authorization()), ("GET", None));
    let refused =
        server.requests().iter().filter(|r| r.target != "/v2/" && r.authorization().is_none()).count();
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn a_password_goes_to_the_token_service_alone() {
    let service = tokens(|request| {
        assert_eq!(request.authorization(), Some(&*basic("me", "pw")));
        Reply::ok(r#"{"access_token": "t2"}"#)
    })
    .await;
    let server = guarded(challenge(&service), "Bearer t2").await;
    logged_in(&server, password("me", "pw")).resolve(&server, ":t").await.unwrap();
    assert_eq!(service.requests().len(), 1);
    assert!(service.requests()[0].target.ends_with("&account=me"));
    assert!(server.requests().iter().all(|r| r.authorization().is_none_or(|a| a == "Bearer t2")));
}

#[tokio::test]
async fn a_password_is_given_for_a_basic_challenge() {
    let expected: &'static str = basic("me", "pw").leak();
    let server = guarded(r#"Basic realm="r""#.to_owned(), expected).await;
    let client = logged_in(&server, password("me", "pw"));
    let resolved = client.resolve(&server, ":t").await.unwrap();
    client.fetch(&server, &resolved.layers[0]).await.unwrap();
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let service = tokens(|request| {
        assert_eq!(request.method, "POST");
        assert!(
            request.body.contains("grant_type=refresh_token") && request.body.contains("refresh_token=a%2Bb")
        );
        assert!(request.body.contains("scope=repository%3Ar%3Apull"));
        Reply::ok(r#"{"access_token": "t3"}"#)
    })
    .await;
    let server = guarded(challenge(&service), "Bearer t3").await;
    let token = Credential::IdentityToken(SecretBytes::from("a+b".to_owned()));
    logged_in(&server, token).resolve(&server, ":t").await.unwrap();
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn a_post_with_a_token_is_not_redirected() {
    let other = tokens(|_| Reply::ok(r#"{"access_token": "t"}"#)).await;
    let location = other.url("/");
    let service = tokens(move |_| Reply::redirect(&location)).await;
    let server = guarded(challenge(&service), "Bearer t").await;
    let token = Credential::IdentityToken(SecretBytes::from("secret".to_owned()));
    let problem = problem(logged_in(&server, token).resolve(&server, ":t").await);
    assert!(matches!(problem, Problem::Status { status: 307, .. }), "{problem:?}");
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_token_that_ended_is_renewed() {
    let current = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let issued = current.clone();
    let service = tokens(move |_| {
        let number = issued.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        Reply::ok(format!(r#"{{"token": "n{number}", "expires_in": 300}}"#))
    })
    .await;
    let (content, challenge) = (image(), challenge(&service));
    // Every token is good for two requests.
    let server = Server::start(move |request, before| match request.authorization() {
        Some(_) if before < 2 => content.answer(request),
        Some(authorization) if authorization != "Bearer n1" => content.answer(request),
        _ => Reply::new(401).header("www-authenticate", &challenge),
    })
    .await;
    let client = Client::new();
    for _ in 0..3 {
        client.resolve(&server, ":t").await.unwrap();
    }
    assert_eq!(service.requests().len(), 2);
}

#[tokio::test]
async fn a_login_takes_effect_at_once() {
    let service = tokens(|request| {
        let token = if request.authorization().is_some() { "mine" } else { "anonymous" };
        Reply::ok(format!(r#"{{"token": "{token}"}}"#))
    })
    .await;
    let server = guarded(challenge(&service), "Bearer mine").await;
    let client = Client::new();
    let denied = problem(client.resolve(&server, ":t").await);
    assert!(matches!(denied, Problem::Denied { status: 401, logged_in: false, .. }), "{denied:?}");
    let store = CredentialStore::new(client.dir.path().join("credentials.json"));
    store.put(&server.host(), password("me", "pw")).unwrap();
    client.resolve(&server, ":t").await.unwrap();
}

#[tokio::test]
async fn a_logout_takes_effect_when_tokens_are_forgotten() {
    let expected: &'static str = basic("me", "pw").leak();
    let server = guarded(r#"Basic realm="r""#.to_owned(), expected).await;
    let client = logged_in(&server, password("me", "pw"));
    client.resolve(&server, ":t").await.unwrap();
    let store = CredentialStore::new(client.dir.path().join("credentials.json"));
    assert!(store.remove(&server.host()).unwrap());
    client.registry.forget_tokens();
    let denied = problem(client.resolve(&server, ":t").await);
    assert!(matches!(denied, Problem::Denied { logged_in: false, .. }), "{denied:?}");
}

#[tokio::test]
async fn denials_say_what_to_do() {
    let content = image();
    let server = Server::start(move |request, _| {
        let said = br#"{"errors": [{"code": "DENIED", "message": "not yours"}]}"#;
        if request.target == "/v2/" {
            content.answer(request)
        } else {
            Reply::new(403).with(Body::Whole(said.to_vec()))
        }
    })
    .await;
    let error = Client::new().resolve(&server, ":t").await.unwrap_err();
    let said = text(&error);
    for part in ["access was denied without credentials (403): not yours", "aegis registry login 127.0.0.1:"]
    {
        assert!(said.contains(part), "{said}");
    }
    let service =
        tokens(|_| Reply::new(401).with(Body::Whole(br#"{"details": "incorrect password"}"#.to_vec()))).await;
    let server = guarded(challenge(&service), "Bearer x").await;
    let error = logged_in(&server, password("me", "hunter2")).resolve(&server, ":t").await.unwrap_err();
    let said = text(&error);
    assert!(said.contains("denied with the stored credentials (401): incorrect password"), "{said}");
    assert!(said.contains("log in again") && !format!("{said}{error:?}").contains("hunter2"), "{said}");
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn docker_logins_and_helpers_are_used() {
    let expected: &'static str = basic("docker", "pw").leak();
    let server = guarded(r#"Basic realm="r""#.to_owned(), expected).await;
    let host = server.host();
    let file = |json: String| {
        Client::with(move |options, dir| {
            let config = dir.join("config.json");
            std::fs::write(&config, json).unwrap();
            options.docker_config = Some(config);
            options.helper_path = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/helpers").into());
        })
    };
    let auth = STANDARD.encode("docker:pw");
    for json in [
        format!(r#"{{"auths": {{"{host}": {{"auth": "{auth}"}}}}}}"#),
        format!(r#"{{"auths": {{"http://{host}/v2/": {{"auth": "{auth}"}}}}}}"#),
        r#"{"credsStore": "fixed"}"#.to_owned(),
        format!(r#"{{"credsStore": "missing", "credHelpers": {{"{host}": "fixed"}}}}"#),
    ] {
        file(json.clone()).resolve(&server, ":t").await.unwrap_or_else(|e| panic!("{json}: {}", text(&e)));
    }
    let error = file(r#"{"credsStore": "missing"}"#.to_owned()).resolve(&server, ":t").await.unwrap_err();
    let said = text(&error);
    assert!(said.contains("credential helper `docker-credential-missing` is not installed"), "{said}");
}

#[tokio::test]
async fn a_helper_that_fails_does_not_keep_from_public_images() {
    let service = tokens(|_| Reply::ok(r#"{"token": "t"}"#)).await;
    let server = guarded(challenge(&service), "Bearer t").await;
    let client = Client::with(|options, dir| {
        let config = dir.join("config.json");
        std::fs::write(&config, "no JSON").unwrap();
        options.docker_config = Some(config);
    });
    client.resolve(&server, ":t").await.unwrap();
}

#[tokio::test]
async fn what_is_stored_elsewhere_gets_no_credentials() {
    let content = image();
    let storage = content.serve().await;
    let (base, expected) = (storage.url(""), basic("me", "pw"));
    let server = Server::start(move |request, _| {
        let known = request.authorization() == Some(&*expected);
        match request.target.strip_prefix("/v2/r/blobs/") {
            _ if !known => Reply::new(401).header("www-authenticate", r#"Basic realm="r""#),
            Some(_) => Reply::redirect(&format!("{base}{}", request.target)),
            None => content.answer(request),
        }
    })
    .await;
    let client = logged_in(&server, password("me", "pw"));
    let resolved = client.resolve(&server, ":t").await.unwrap();
    client.fetch(&server, &resolved.layers[0]).await.unwrap();
    let stored = storage.requests_for("blobs/");
    assert_eq!(stored.len(), 2);
    assert!(storage.requests().iter().all(|request| request.authorization().is_none()));
}

#[tokio::test]
async fn who_is_redirected_to_does_not_get_credentials_by_a_challenge() {
    let thief = tokens(|_| Reply::ok(r#"{"token": "t"}"#)).await;
    let stealing = challenge(&thief);
    let storage = Server::start(move |_, _| Reply::new(401).header("www-authenticate", &stealing)).await;
    let base = storage.url("");
    let server = Server::start(move |request, _| match &*request.target {
        "/v2/" => Reply::ok("{}"),
        target => Reply::redirect(&format!("{base}{target}")),
    })
    .await;
    let problem = problem(logged_in(&server, password("me", "pw")).resolve(&server, ":t").await);
    assert!(matches!(problem, Problem::Denied { status: 401, logged_in: false, .. }), "{problem:?}");
    assert!(!storage.requests().is_empty() && thief.requests().is_empty());
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start(|request, _| {
        if request.target == "/v2/" { Reply::ok("{}") } else { Reply::redirect(&request.target) }
    })
    .await;
    let looped = problem(Client::new().resolve(&server, ":t").await);
    assert!(matches!(looped, Problem::Redirects { .. }), "{looped:?}");
    for location in [
        "http://reg.example/x",
        "ftp://127.0.0.1/x",
        "http://0.0.0.0:1/x",
        "http://u:p@127.0.0.1/x",
        "http://",
    ] {
        let server =
            Server::start(
                move |request, _| {
                    if request.target == "/v2/" { Reply::ok("{}") } else { Reply::redirect(location) }
                },
            )
            .await;
        let problem = problem(Client::new().resolve(&server, ":t").await);
        assert!(matches!(problem, Problem::Unsafe { .. }), "{location}: {problem:?}");
    }
    let server = Server::start(|_, _| Reply::new(302)).await;
    let problem = problem(Client::new().resolve(&server, ":t").await);
    assert!(matches!(problem, Problem::Malformed(_)), "{problem:?}");
}

#[tokio::test]
async fn token_services_that_are_none_are_not_asked() {
    for realm in ["http://auth.example/token", "file:///etc/passwd", "/token", "http://me:pw@127.0.0.1/token"]
    {
        let server = guarded(format!(r#"Bearer realm="{realm}""#), "Bearer t").await;
        let problem = problem(logged_in(&server, password("me", "pw")).resolve(&server, ":t").await);
        assert!(matches!(problem, Problem::Unsafe { .. }), "{realm}: {problem:?}");
    }
}

#[tokio::test]
async fn tokens_that_are_none_are_refused() {
    let huge = format!(r#"{{"token": "{}"}}"#, "t".repeat(300_000));
    for answer in ["".to_owned(), "{}".to_owned(), r#"{"token": "a\r\nx: y"}"#.to_owned(), huge] {
        let body = answer.clone();
        let service = tokens(move |_| Reply::ok(body.clone())).await;
        let server = guarded(challenge(&service), "Bearer t").await;
        let problem = problem(Client::new().resolve(&server, ":t").await);
        assert!(
            matches!(problem, Problem::Malformed(_) | Problem::TooLarge { .. }),
            "{answer:.40}: {problem:?}"
        );
    }
}

#[tokio::test]
async fn a_weak_token_service_is_asked_again() {
    let service =
        Server::start(|_, before| if before == 0 { Reply::new(503) } else { Reply::ok(r#"{"token": "t"}"#) })
            .await;
    let server = guarded(challenge(&service), "Bearer t").await;
    Client::new().resolve(&server, ":t").await.unwrap();
}

#[tokio::test]
async fn an_endless_chain_of_challenges_ends() {
    let own = Arc::new(OnceLock::new());
    let realm = own.clone();
    // The token service is the registry, and challenges as well.
    let server = Server::start(move |_, _| {
        let realm: &String = realm.get().unwrap();
        Reply::new(401).header("www-authenticate", &format!(r#"Bearer realm="{realm}""#))
    })
    .await;
    own.set(server.url("/token")).unwrap();
    let problem = problem(Client::new().resolve(&server, ":t").await);
    assert!(matches!(problem, Problem::Denied { status: 401, .. }), "{problem:?}");
    assert!(server.requests().len() < 5);
}
