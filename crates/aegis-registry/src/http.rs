//! Requests: redirects, time limits, bodies with a bound.

use std::error::Error as StdError;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use aegis_types::Proxies;
use bytes::Bytes;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, NoProxy, Proxy, Response, StatusCode, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::time::timeout;

use crate::endpoint::{host_of, is_loopback, redirected};
use crate::error::Problem;
use crate::options::{Options, Timeouts};
use crate::retry::retry_after;
use crate::text::printable;

const USER_AGENT: &str = concat!("aegis/", env!("CARGO_PKG_VERSION"));
const REDIRECTS_MAX: usize = 5;
/// Of the body of an answer that is an error.
const ERROR_BYTES_MAX: u64 = 16 << 10;

/// The clients for this machine and for the rest of the world.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    /// Reaches this machine, never through a proxy.
    near: Client,
    far: Client,
    timeouts: Timeouts,
    has_system_roots: bool,
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) url: Url,
    /// Goes to the origin of `url` alone.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) accept: Option<&'static str>,
    /// Only what is behind this many bytes.
    pub(crate) skip: u64,
    /// A form to be posted. Redirects of it are not followed.
    pub(crate) form: Option<&'a str>,
}

impl<'a> Ask<'a> {
    pub(crate) fn new(url: Url) -> Self {
        Self { url, authorization: None, accept: None, skip: 0, form: None }
    }
}

impl Http {
    /// Reads the certificates of the system, which takes some time: call it where one may block.
    pub(crate) fn new(options: &Options) -> Result<Self, Problem> {
        let failed = |what: &str, e: &dyn StdError| Problem::SetUp(format!("{what}: {}", innermost(e)));
        let (roots, has_system_roots) = roots(options.extra_roots.as_deref())?;
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| failed("TLS", &e))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = || {
            Client::builder()
                .user_agent(USER_AGENT)
                .redirect(redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .no_proxy()
                .connect_timeout(options.timeouts.connect)
                .tls_backend_preconfigured(tls.clone())
        };
        // Whatever a name server says of `localhost`, plain HTTP stays on this machine.
        let loopback: [SocketAddr; 2] = [(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()];
        let near =
            client().resolve_to_addrs("localhost", &loopback).build().map_err(|e| failed("HTTP", &e))?;
        let mut far = client().https_only(true);
        if let Some(proxy) = proxy(&options.proxies)? {
            far = far.proxy(proxy);
        }
        let far = far.build().map_err(|e| failed("HTTP", &e))?;
        Ok(Self { near, far, timeouts: options.timeouts.clone(), has_system_roots })
    }

    /// Asks, follows redirects, and gives the head of the last answer, whatever its status.
    pub(crate) async fn send(&self, ask: Ask<'_>) -> Result<Response, Problem> {
        let Ask { mut url, mut authorization, accept, skip, form } = ask;
        for _ in 0..=REDIRECTS_MAX {
            let client = if is_loopback(&url) { &self.near } else { &self.far };
            let mut request = match form {
                Some(form) => client
                    .post(url.clone())
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form.to_owned()),
                None => client.get(url.clone()),
            };
            // A layer is verified and stored as it was pushed.
            request = request.header(ACCEPT_ENCODING, "identity");
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if skip > 0 {
                request = request.header(RANGE, format!("bytes={skip}-"));
            }
            if let Some(authorization) = &authorization {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let answer = timeout(self.timeouts.answer, request.send()).await;
            let response = answer
                .map_err(|_| self.timeout(&url))?
                .map_err(|e| failure(&url, e, self.has_system_roots))?;
            let Some(location) = location(&response).filter(|_| form.is_none()) else { return Ok(response) };
            let next = redirected(&url, location?).map_err(|(url, why)| Problem::Unsafe { url, why })?;
            if next.origin() != url.origin() {
                authorization = None;
            }
            url = next;
        }
        Err(Problem::Redirects { max: REDIRECTS_MAX })
    }

    /// The whole body of an answer, if it is not larger than this.
    pub(crate) async fn body(&self, mut response: Response, max: u64) -> Result<Bytes, Problem> {
        let url = response.url().clone();
        if response.content_length().is_some_and(|length| length > max) {
            return Err(Problem::TooLarge { max });
        }
        let read = async {
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|e| interrupted(&url, e))? {
                if (body.len() + chunk.len()) as u64 > max {
                    return Err(Problem::TooLarge { max });
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Bytes::from(body))
        };
        timeout(self.timeouts.answer, read).await.map_err(|_| self.timeout(&url))?
    }

    /// Makes the problem of an answer that is no success. Whether credentials were sent is the caller's knowledge.
    pub(crate) async fn refusal(&self, response: Response, logged_in: bool) -> Problem {
        let status = response.status();
        let retry_after = retry_after(response.headers(), SystemTime::now());
        // An error that says too much, or breaks off, is still that error.
        let said = self.body(response, ERROR_BYTES_MAX).await.ok().and_then(|body| message(&body));
        match status {
            StatusCode::NOT_FOUND => Problem::NotFound { said },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Problem::Denied { status: status.as_u16(), logged_in, said, lookup: None }
            }
            StatusCode::TOO_MANY_REQUESTS => Problem::RateLimited { retry_after, said },
            status => Problem::Status { status: status.as_u16(), retry_after, said },
        }
    }

    fn timeout(&self, url: &Url) -> Problem {
        Problem::Timeout { host: host_of(url), within: self.timeouts.answer }
    }
}

/// Where an answer redirects to, if it does.
fn location(response: &Response) -> Option<Result<&str, Problem>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    Some(location.ok_or_else(|| Problem::Malformed("a redirect without a place".to_owned())))
}

/// The authorities of the system and those of the file, and whether the system has any.
fn roots(extra: Option<&Path>) -> Result<(RootCertStore, bool), Problem> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "certificates of the system left out");
    }
    let (accepted, _) = roots.add_parsable_certificates(system.certs);
    if let Some(path) = extra {
        let file = |source| Problem::File { action: "read certificates from", path: path.to_owned(), source };
        let invalid = |why: &str| file(io::Error::new(ErrorKind::InvalidData, why));
        let bytes = std::fs::read(path).map_err(file)?;
        let mut found = false;
        for certificate in CertificateDer::pem_slice_iter(&bytes) {
            let certificate = certificate.map_err(|_| invalid("it is not PEM"))?;
            roots.add(certificate).map_err(|_| invalid("a certificate is damaged"))?;
            found = true;
        }
        if !found {
            return Err(invalid("there is no certificate in it"));
        }
    }
    Ok((roots, accepted > 0))
}

fn proxy(proxies: &Proxies) -> Result<Option<Proxy>, Problem> {
    // Plain HTTP stays on this machine, so the proxy for it has no use here.
    let Some(address) = proxies.https.as_deref().filter(|address| !address.trim().is_empty()) else {
        return Ok(None);
    };
    // The address may contain a password, and so may the error.
    let proxy = Proxy::https(address.trim())
        .map_err(|_| Problem::SetUp("the value of HTTPS_PROXY is no address of a proxy".to_owned()))?;
    Ok(Some(proxy.no_proxy(proxies.no.as_deref().and_then(NoProxy::from_string))))
}

/// The problem of a request without an answer.
fn failure(url: &Url, error: reqwest::Error, has_system_roots: bool) -> Problem {
    // Addresses of storages carry signatures, which are passwords for a while.
    let (error, host) = (error.without_url(), host_of(url));
    match tls_error(&error) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            Problem::Certificate { host, system_roots: has_system_roots, source: error }
        }
        _ if error.is_connect() => Problem::Connect { host, source: error },
        _ => Problem::Interrupted { host, source: error },
    }
}

pub(crate) fn interrupted(url: &Url, error: reqwest::Error) -> Problem {
    Problem::Interrupted { host: host_of(url), source: error.without_url() }
}

/// Whether a connection failed because the other side does not speak TLS: it sent something else, hung up, or waits
/// for more.
pub(crate) fn is_without_tls(problem: &Problem) -> bool {
    let Problem::Connect { source, .. } = problem else { return false };
    if source.is_timeout() || matches!(tls_error(source), Some(rustls::Error::InvalidMessage(_))) {
        return true;
    }
    let ended = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    causes(source).filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| ended.contains(&e.kind()))
}

fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|e| e.downcast_ref::<rustls::Error>())
}

/// The error and everything below it. An I/O error hides what it was made of from `source`.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let below = |e: &'a (dyn StdError + 'static)| -> Option<&'a (dyn StdError + 'static)> {
        match e.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => e.source(),
        }
    };
    // No chain of errors is that long; a cycle would be.
    std::iter::successors(Some(error), move |e| below(*e)).take(32)
}

fn innermost(error: &dyn StdError) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    printable(&error.to_string())
}

/// The first message of an error of the distribution specification, made printable.
fn message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Entry>,
        /// Token services use one of these.
        #[serde(default, alias = "message", alias = "error_description")]
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let parsed: Errors = serde_json::from_slice(body).ok()?;
    let first = parsed.errors.into_iter().next();
    let text = first.map(|e| if e.message.is_empty() { e.code } else { e.message }).or(parsed.details)?;
    (!text.is_empty()).then(|| printable(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_registries_are_read() {
        let said = |text: &str| message(text.as_bytes());
        let denied = r#"{"errors": [{"code": "DENIED", "message": "no\nway", "detail": {"x": 1}}]}"#;
        assert_eq!(said(denied).as_deref(), Some(r"no\nway"));
        assert_eq!(said(r#"{"errors": [{"code": "DENIED"}]}"#).as_deref(), Some("DENIED"));
        assert_eq!(said(r#"{"details": "wrong password"}"#).as_deref(), Some("wrong password"));
        for nothing in ["", "<html>", "{}", r#"{"errors": []}"#, r#"{"errors": 5}"#, "[1]", "null"] {
            assert_eq!(said(nothing), None, "{nothing}");
        }
    }
}
