//! TLS: with whom, and that it is not lost.

use std::sync::Arc;

use aegis_registry::Problem;
use aegis_types::Proxies;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use crate::access::password;
use crate::content::*;
use crate::server::{Reply, Request, Server};

/// A server with a certificate of its own, which is given as PEM.
async fn server(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> (Server, String) {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let own = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    (Server::start_with(answer, Some(TlsAcceptor::from(Arc::new(config)))).await, own.cert.pem())
}

fn trusting(pem: String) -> Client {
    Client::with(|options, dir| {
        let path = dir.join("roots.pem");
        std::fs::write(&path, pem).unwrap();
        options.extra_roots = Some(path);
    })
}

#[tokio::test]
async fn a_registry_on_this_machine_may_have_tls() {
    let mut content = Content::default();
    content.image(Some("t"), "amd64", &[b"layer"]);
    let (server, pem) = server(move |request, _| content.answer(request)).await;
    let client = trusting(pem);
    let resolved = client.resolve(&server, ":t").await.unwrap();
    client.fetch(&server, &resolved.layers[0]).await.unwrap();
}

#[tokio::test]
async fn an_unknown_certificate_is_no_reason_to_go_on_without_tls() {
    let (server, _) = server(|_, _| Reply::ok("{}")).await;
    let error = Client::new().resolve(&server, ":t").await.unwrap_err();
    let said = text(&error);
    assert!(said.contains("the certificate of 127.0.0.1"), "{said}");
    assert!(matches!(problem(Err::<(), _>(error)), Problem::Certificate { .. }));
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn tls_is_not_lost_by_a_redirect_or_a_token_service() {
    let plain = Content::default().serve().await;
    let location = plain.url("/x");
    let (redirecting, pem) = server(move |_, _| Reply::redirect(&location)).await;
    let problem_of_redirect = problem(trusting(pem).resolve(&redirecting, ":t").await);
    assert!(matches!(problem_of_redirect, Problem::Unsafe { .. }), "{problem_of_redirect:?}");
    // A token service on this machine may be plain, as the registry is near, too.
    let realm = plain.url("/token");
    let (asking, pem) =
        server(move |_, _| Reply::new(401).header("www-authenticate", &format!(r#"Bearer realm="{realm}""#)))
            .await;
    let problem = problem(trusting(pem).resolve(&asking, ":t").await);
    assert!(matches!(problem, Problem::NotFound { .. }), "{problem:?}");
    assert!(plain.requests().iter().all(|request| request.target.starts_with("/token")));
}

#[tokio::test]
async fn bad_roots_are_named() {
    for pem in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let server = Content::default().serve().await;
        let error = trusting(pem.to_owned()).resolve(&server, ":t").await.unwrap_err();
        assert!(text(&error).contains("roots.pem"), "{}", text(&error));
    }
}

#[tokio::test]
async fn this_machine_is_reached_without_the_proxy() {
    let proxy = Server::start(|_, _| Reply::new(500)).await;
    let mut content = Content::default();
    content.image(Some("t"), "amd64", &[]);
    let registry = content.serve().await;
    let client = Client::with(|options, _| {
        let address = Some(proxy.url("/"));
        options.proxies = Proxies { http: address.clone(), https: address, no: None };
    });
    client.resolve(&registry, ":t").await.unwrap();
    assert!(proxy.requests().is_empty());
}

#[tokio::test]
async fn others_are_reached_through_the_proxy() {
    let proxy = Server::start(|_, _| Reply::new(403)).await;
    let through = |no: Option<&str>| {
        Client::with(|options, _| {
            options.proxies = Proxies { http: None, https: Some(proxy.url("/")), no: no.map(str::to_owned) };
            options.retries.attempts_max = 1;
        })
    };
    // A name that no name server knows: only the proxy can tell.
    let name = aegis_types::ImageName::parse("registry.invalid/r:t").unwrap();
    let result = through(None).registry.resolve(&name, "amd64").await;
    assert!(matches!(problem(result), Problem::Connect { .. }));
    let seen = proxy.requests();
    assert_eq!((seen.len(), &*seen[0].method, &*seen[0].target), (1, "CONNECT", "registry.invalid:443"));
    let result =
        through(Some(".invalid")).registry.check_login("registry.invalid", &password("a", "b")).await;
    assert!(matches!(problem(result), Problem::Connect { .. }));
    assert_eq!(proxy.requests().len(), 1);
}

#[tokio::test]
async fn an_address_that_is_no_proxy_is_not_repeated() {
    let server = Content::default().serve().await;
    let client = Client::with(|options, _| {
        options.proxies.https = Some("http://user:hunter2@:bad:".to_owned());
    });
    let error = client.resolve(&server, ":t").await.unwrap_err();
    let said = text(&error);
    assert!(said.contains("HTTPS_PROXY") && !format!("{said}{error:?}").contains("hunter2"), "{said}");
}
