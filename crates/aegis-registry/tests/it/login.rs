//! `check_login`.

use aegis_registry::{Credential, Problem};
use aegis_types::SecretBytes;

use crate::access::{basic, password};
use crate::content::*;
use crate::server::{Reply, Server};

async fn checked(server: &Server, credential: &Credential) -> Result<(), Problem> {
    match Client::new().registry.check_login(&server.host(), credential).await {
        Ok(()) => Ok(()),
        Err(error) => Err(problem(Err::<(), _>(error))),
    }
}

#[tokio::test]
async fn a_password_is_checked_by_the_registry() {
    let server = Server::start(|request, _| match request.authorization() {
        Some(value) if value == basic("me", "right") => Reply::ok("{}"),
        _ => Reply::new(401).header("www-authenticate", r#"Basic realm="r""#),
    })
    .await;
    checked(&server, &password("me", "right")).await.unwrap();
    let denied = checked(&server, &password("me", "wrong")).await.unwrap_err();
    assert!(matches!(denied, Problem::Denied { status: 401, logged_in: true, .. }), "{denied:?}");
    let token = Credential::IdentityToken(SecretBytes::from("t".to_owned()));
    assert!(checked(&server, &token).await.unwrap_err().to_string().contains("passwords only"));
}

#[tokio::test]
async fn a_password_is_checked_by_the_token_service() {
    let service = Server::start(|request, _| match request.authorization() {
        Some(value) if value == basic("me", "right") => Reply::ok(r#"{"token": "t"}"#),
        _ => Reply::new(401),
    })
    .await;
    let challenge = format!(r#"Bearer realm="{}",service="s""#, service.url("/token"));
    let server = Server::start(move |request, _| match request.authorization() {
        Some("Bearer t") => Reply::ok("{}"),
        _ => Reply::new(401).header("www-authenticate", &challenge),
    })
    .await;
    checked(&server, &password("me", "right")).await.unwrap();
    assert_eq!(service.requests()[0].target, "/token?service=s&account=me");
    let denied = checked(&server, &password("me", "wrong")).await.unwrap_err();
    assert!(matches!(denied, Problem::Denied { status: 401, logged_in: true, .. }), "{denied:?}");
    let token = Credential::RegistryToken(SecretBytes::from("t".to_owned()));
    checked(&server, &token).await.unwrap();
}

#[tokio::test]
async fn a_registry_for_everybody_accepts_everything() {
    let server = Content::default().serve().await;
    checked(&server, &password("me", "pw")).await.unwrap();
    assert!(server.requests().iter().all(|request| request.authorization().is_none()));
}

#[tokio::test]
async fn what_is_no_registry_is_no_login() {
    let server = Server::start(|_, _| Reply::new(404)).await;
    assert!(matches!(checked(&server, &password("me", "pw")).await, Err(Problem::NotFound { .. })));
    let server = Server::start(|_, _| Reply::new(401).header("www-authenticate", "Negotiate")).await;
    assert!(matches!(checked(&server, &password("me", "pw")).await, Err(Problem::Malformed(_))));
    assert!(Client::new().registry.check_login("no host", &password("me", "pw")).await.is_err());
}
