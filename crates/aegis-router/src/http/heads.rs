//! What changes in the head of a message on its way through.
//!
//! Each side of the router is a connection of its own, so headers that are about a connection stay on it (RFC 9110,
//! section 7.6.1); how the body is delimited is decided anew from what is known of its length.

use std::net::IpAddr;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request;
use hyper::{Uri, Version};

use super::choice::INSTANCE;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The protocol that the sender wants to speak, or speaks from now on.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if wanted { headers.get(UPGRADE).cloned() } else { None }
}

/// Makes the head of a client's request that of ours.
pub(super) fn of_request(head: &mut request::Parts, peer: IpAddr) {
    let upgrade = upgrade(&head.headers);
    let trailers = tokens(&head.headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let host = match head.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => head.headers.get(HOST).cloned(),
    };
    strip(&mut head.headers);
    head.headers.remove(&INSTANCE);
    // The body is asked for when the server is there to take it, which is what the client waits for.
    head.headers.remove(EXPECT);
    if trailers {
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    put_upgrade(&mut head.headers, upgrade);
    let host = host.unwrap_or(HeaderValue::from_static("localhost"));
    append(&mut head.headers, FORWARDED_FOR, &peer.to_canonical().to_string());
    // A proxy in front of us knows better.
    head.headers.entry(FORWARDED_HOST).or_insert(host.clone());
    head.headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    head.headers.insert(HOST, host);
    head.uri = head.uri.path_and_query().cloned().map_or(Uri::from_static("/"), Uri::from);
    head.version = Version::HTTP_11;
    head.extensions.clear();
}

/// Makes the headers of a server's answer those of ours.
pub(super) fn of_response(headers: &mut HeaderMap, upgraded: bool) {
    let upgrade = if upgraded { upgrade(headers) } else { None };
    strip(headers);
    put_upgrade(headers, upgrade);
}

fn put_upgrade(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Removes what is about one connection.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        tokens(headers, &CONNECTION).filter_map(|token| token.parse().ok()).collect();
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    let known = [
        CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static("http2-settings"),
    ];
    for name in named.iter().chain(&known) {
        // A length is about the message, whatever a sender says.
        if name != CONTENT_LENGTH {
            headers.remove(name);
        }
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    let before = tokens(headers, &name).map(str::to_owned);
    let all: Vec<String> = before.chain([value.to_owned()]).collect();
    if let Ok(value) = HeaderValue::from_str(&all.join(", ")) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::net::Ipv4Addr;

    use hyper::Request;
    use proptest::prelude::*;

    use super::*;

    fn forwarded(uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let builder = headers.iter().fold(Request::get(uri), |b, &(name, value)| b.header(name, value));
        let mut head = builder.body(()).unwrap().into_parts().0;
        of_request(&mut head, Ipv4Addr::LOCALHOST.into());
        head
    }

    fn text(head: &request::Parts) -> Vec<String> {
        let mut lines: Vec<String> =
            head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    #[test]
    fn headers_about_the_connection_stay_behind() {
        let head = forwarded(
            "/a?b",
            &[
                ("host", "web.localhost:8099"),
                ("x-aegis-instance", "web"),
                ("connection", "close, X-Mine"),
                ("connection", "content-length"),
                ("x-mine", "1"),
                ("keep-alive", "1"),
                ("te", "trailers, deflate"),
                ("expect", "100-continue"),
                ("upgrade", "websocket"),
                ("content-length", "3"),
                ("accept", "*/*"),
            ],
        );
        assert_eq!(head.uri, "/a?b");
        assert_eq!(
            text(&head),
            [
                "accept: */*",
                "content-length: 3",
                "host: web.localhost:8099",
                "te: trailers",
                "x-forwarded-for: 127.0.0.1",
                "x-forwarded-host: web.localhost:8099",
                "x-forwarded-proto: http",
            ]
        );
    }

    #[test]
    fn an_upgrade_is_passed_on() {
        let head = forwarded("/", &[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(head.headers[CONNECTION], "upgrade");
        assert_eq!(head.headers[UPGRADE], "websocket");
    }

    #[test]
    fn what_a_proxy_in_front_says_is_kept() {
        let head = forwarded(
            "http://web.localhost/x",
            &[
                ("host", "other"),
                ("x-forwarded-for", "192.0.2.1"),
                ("x-forwarded-for", "192.0.2.2"),
                ("x-forwarded-host", "example.org"),
                ("x-forwarded-proto", "https"),
            ],
        );
        assert_eq!(head.uri, "/x");
        assert_eq!(
            text(&head),
            [
                "host: web.localhost",
                "x-forwarded-for: 192.0.2.1, 192.0.2.2, 127.0.0.1",
                "x-forwarded-host: example.org",
                "x-forwarded-proto: https",
            ]
        );
    }

    #[test]
    fn a_length_beside_chunks_is_no_length() {
        let head = forwarded("/", &[("transfer-encoding", "chunked"), ("content-length", "3")]);
        assert!(!head.headers.contains_key(CONTENT_LENGTH));
    }

    proptest! {
        #[test]
        fn nothing_panics(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 5)) {
            let mut head = forwarded("/", &[]);
            for (name, value) in [CONNECTION, UPGRADE, TE, HOST, FORWARDED_FOR].into_iter().zip(values) {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    head.headers.append(name, value);
                }
            }
            of_request(&mut head, Ipv4Addr::LOCALHOST.into());
            of_response(&mut head.headers, true);
        }
    }
}
