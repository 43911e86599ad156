//! Tokens of the Docker kind: how one is asked for, and how long it is kept.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aegis_types::SecretBytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::credentials::Credential;
use crate::endpoint::{check, host_of, is_loopback};
use crate::error::Problem;
use crate::http::{Ask, Http};
use crate::text::printable;

/// Of the answer of a token service.
const ANSWER_BYTES_MAX: u64 = 256 << 10;
/// Of one token. Servers refuse longer header lines.
const TOKEN_BYTES_MAX: usize = 64 << 10;
const BEARER: &[u8] = b"Bearer ";
/// Credentials that need no token are looked up again after so long, as they may have changed or been forgotten.
const LOOKUP_MAX: Duration = Duration::from_secs(300);
/// What a token that says nothing is good for, by Docker's specification.
const LIFETIME_DEFAULT: Duration = Duration::from_secs(60);
/// A token that says it lives longer is renewed nevertheless: who may read what changes.
const LIFETIME_MAX: Duration = Duration::from_secs(3600);
/// A token is not used so shortly before its end.
const MARGIN: Duration = Duration::from_secs(10);
/// Tokens that are kept. One pull needs one for each endpoint.
const TOKENS_MAX: usize = 256;

/// What a registry let us in with, for requests to come.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<Key, Authorization>>);

/// The origin that it is for, and what it is good for there.
pub(crate) type Key = (String, String);

/// The value of an `Authorization` header.
#[derive(Debug, Clone)]
pub(crate) struct Authorization {
    value: SecretBytes,
    /// Whether credentials of a user are behind it.
    pub(crate) logged_in: bool,
    until: Instant,
}

impl Authorization {
    fn new(value: SecretBytes, logged_in: bool, lifetime: Duration) -> Self {
        Self { value, logged_in, until: Instant::now() + lifetime }
    }

    /// User name and password.
    pub(crate) fn basic(username: &str, password: &SecretBytes) -> Self {
        let mut plain = Zeroizing::new(format!("{username}:").into_bytes());
        plain.extend_from_slice(password.expose());
        let value = SecretBytes::from(format!("Basic {}", *Zeroizing::new(STANDARD.encode(&*plain))));
        Self::new(value, true, LOOKUP_MAX)
    }

    pub(crate) fn bearer(token: &SecretBytes, logged_in: bool, lifetime: Duration) -> Self {
        // With its final size: a buffer that grows leaves what it held behind.
        let mut value = Vec::with_capacity(BEARER.len() + token.expose().len());
        value.extend_from_slice(BEARER);
        value.extend_from_slice(token.expose());
        Self::new(SecretBytes::new(value), logged_in, lifetime)
    }

    /// A token that the user has, and that goes to the registry as it is.
    pub(crate) fn registry_token(token: &SecretBytes) -> Self {
        Self::bearer(token, true, LOOKUP_MAX)
    }

    pub(crate) fn header(&self) -> Result<HeaderValue, Problem> {
        let mut value = HeaderValue::from_bytes(self.value.expose())
            .map_err(|_| Problem::Malformed("the token has characters that no token has".to_owned()))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl Tokens {
    pub(crate) fn get(&self, key: &Key) -> Option<Authorization> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(key).filter(|kept| Instant::now() < kept.until).cloned()
    }

    pub(crate) fn put(&self, key: Key, authorization: Authorization) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS_MAX {
            let now = Instant::now();
            tokens.retain(|_, kept| now < kept.until);
        }
        if tokens.len() >= TOKENS_MAX {
            tokens.clear(); // each can be had again
        }
        tokens.insert(key, authorization);
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn remove(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<SecretBytes>,
    access_token: Option<SecretBytes>,
    /// In seconds; some services write other things than whole numbers.
    expires_in: Option<serde_json::Value>,
}

/// Asks the token service that a registry at `registry` names for a token of this scope; without one, for a token that
/// shows who we are.
pub(crate) async fn request(
    http: &Http,
    registry: &Url,
    realm: &str,
    service: Option<&str>,
    scope: Option<&str>,
    credential: Option<&Credential>,
) -> Result<Authorization, Problem> {
    let realm = checked_realm(registry, realm)?;
    let logged_in = credential.is_some();
    let mut ask;
    let form;
    match credential {
        Some(Credential::IdentityToken(token)) => {
            form = refresh_form(token, service, scope)?;
            ask = Ask::new(realm.clone());
            ask.form = Some(&form);
        }
        _ => {
            let mut url = realm.clone();
            let mut pairs = url.query_pairs_mut();
            pairs.extend_pairs(
                [("service", service), ("scope", scope)].iter().filter_map(|(k, v)| Some((k, (*v)?))),
            );
            if let Some(Credential::Password { username, .. }) = credential {
                pairs.append_pair("account", username);
            }
            drop(pairs);
            ask = Ask::new(url);
            if let Some(Credential::Password { username, password }) = credential {
                ask.authorization = Some(Authorization::basic(username, password).header()?);
            }
        }
    }
    let response = http.send(ask).await?;
    if !response.status().is_success() {
        return Err(http.refusal(response, logged_in).await);
    }
    let body = http.body(response, ANSWER_BYTES_MAX).await?;
    let host = host_of(&realm);
    parse(&body, logged_in)
        .ok_or_else(|| Problem::Malformed(format!("the token service {host} gave no usable token")))
}

/// The token service decides what becomes of credentials: it must be reached safely.
fn checked_realm(registry: &Url, realm: &str) -> Result<Url, Problem> {
    let refuse = |url: String, why| Err(Problem::Unsafe { url, why });
    let Ok(url) = Url::parse(realm) else {
        return refuse(printable(realm), "the address of its token service, which is none");
    };
    match check(&url, is_loopback(registry)) {
        Ok(()) => Ok(url),
        Err(why) => refuse(host_of(&url), why),
    }
}

/// Exchanges a refresh token (RFC 6749, 6) as Docker's token specification has it.
fn refresh_form(
    token: &SecretBytes,
    service: Option<&str>,
    scope: Option<&str>,
) -> Result<Zeroizing<String>, Problem> {
    let token = token
        .expose_text()
        .ok_or_else(|| Problem::Malformed("the stored identity token is no text".to_owned()))?;
    // The encoding of a form is that of a query.
    let mut url = Url::parse("https://form.invalid/").expect("a valid address");
    url.query_pairs_mut().extend_pairs([
        ("grant_type", "refresh_token"),
        ("service", service.unwrap_or_default()),
        ("client_id", "aegis"),
        ("scope", scope.unwrap_or_default()),
        ("refresh_token", token),
    ]);
    Ok(Zeroizing::new(url.query().unwrap_or_default().to_owned()))
}

fn parse(body: &[u8], logged_in: bool) -> Option<Authorization> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token =
        [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.expose().is_empty())?;
    // What is a header is decided here, so that no odd token is kept.
    if token.expose().len() > TOKEN_BYTES_MAX || !token.expose().iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let lifetime = answer.expires_in.and_then(|value| value.as_f64()).filter(|seconds| *seconds > 0.0);
    let lifetime = lifetime
        .map_or(LIFETIME_DEFAULT, |seconds| Duration::from_secs_f64(seconds.min(LIFETIME_MAX.as_secs_f64())));
    Some(Authorization::bearer(&token, logged_in, lifetime.saturating_sub(MARGIN)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn tokens_of_both_names_are_read() {
        for body in [
            r#"{"token": "t"}"#,
            r#"{"access_token": "t", "expires_in": 300}"#,
            r#"{"token": "", "access_token": "t"}"#,
        ] {
            assert_eq!(parse(body.as_bytes(), false).unwrap().header().unwrap(), "Bearer t", "{body}");
        }
        let long = format!(r#"{{"token": "{}"}}"#, "t".repeat(TOKEN_BYTES_MAX + 1));
        for bad in ["", "{}", "[]", r#"{"token": 5}"#, r#"{"token": "a\nb"}"#, r#"{"token": "a b"}"#, &long] {
            assert!(parse(bad.as_bytes(), false).is_none(), "{bad:.60}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_end_before_they_say() {
        let tokens = Tokens::default();
        let key = || ("https://a.b".to_owned(), "s".to_owned());
        for (body, seconds) in [
            (r#"{"token": "t"}"#, 50),
            (r#"{"token": "t", "expires_in": 100}"#, 90),
            (r#"{"token": "t", "expires_in": 1e300}"#, 3590),
            (r#"{"token": "t", "expires_in": -1}"#, 50),
            (r#"{"token": "t", "expires_in": "soon"}"#, 50),
        ] {
            tokens.put(key(), parse(body.as_bytes(), false).unwrap());
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert!(tokens.get(&key()).is_some(), "{body}");
            tokio::time::advance(Duration::from_secs(2)).await;
            assert!(tokens.get(&key()).is_none(), "{body}");
        }
    }

    #[test]
    fn tokens_are_not_piled_up() {
        let tokens = Tokens::default();
        for i in 0..2 * TOKENS_MAX {
            tokens.put((i.to_string(), String::new()), Authorization::basic("u", &SecretBytes::default()));
        }
        assert!(tokens.0.lock().unwrap().len() <= TOKENS_MAX);
    }

    #[test]
    fn a_password_is_never_shown() {
        let authorization = Authorization::basic("user", &SecretBytes::from("hunter2".to_owned()));
        let header = authorization.header().unwrap();
        assert_eq!(header, "Basic dXNlcjpodW50ZXIy");
        assert!(!format!("{authorization:?} {header:?}").contains("dXNlc"));
    }

    #[test]
    fn a_token_service_is_reached_safely() {
        let far = Url::parse("https://reg.example/").unwrap();
        let near = Url::parse("http://127.0.0.1:5000/").unwrap();
        assert!(checked_realm(&far, "https://auth.example/token").is_ok());
        assert!(checked_realm(&near, "http://localhost:1/token").is_ok());
        for (registry, realm) in [
            (&far, "http://auth.example/token"),
            (&far, "http://127.0.0.1/token"),
            (&far, "https://127.0.0.1/token"),
            (&far, "https://u:p@auth.example/token"),
            (&far, "/token"),
            (&far, "file:///etc/passwd"),
            (&near, "http://auth.example/token"),
        ] {
            assert!(checked_realm(registry, realm).is_err(), "{realm}");
        }
    }

    #[test]
    fn a_form_is_encoded() {
        let form =
            refresh_form(&SecretBytes::from("a&b=c d".to_owned()), Some("s"), Some("repository:a/b:pull"))
                .unwrap();
        assert!(form.ends_with("scope=repository%3Aa%2Fb%3Apull&refresh_token=a%26b%3Dc+d"), "{}", *form);
    }
}
