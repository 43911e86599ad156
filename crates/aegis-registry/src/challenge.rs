//! `WWW-Authenticate`: what a registry wants to see before it answers.

use http_auth::ChallengeRef;
use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Bytes of all challenges of one answer that are looked at.
const BYTES_MAX: usize = 8 << 10;

/// How a registry wants requests to be authorized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token of this service.
    Bearer { realm: String, service: Option<String> },
    /// User name and password.
    Basic,
}

/// The best challenge of an answer: tokens before passwords, the first one of each kind. What cannot be read is passed
/// over; `None` if nothing is left.
///
/// The scope that a registry asks for is not looked at: a client that wants to read a repository knows its scope, and
/// a registry has no say in what else it shall get a token for.
pub(crate) fn best(headers: &HeaderMap) -> Option<Challenge> {
    let mut left = BYTES_MAX;
    let mut basic = false;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        let Some(rest) = left.checked_sub(text.len()) else { break };
        left = rest;
        // The parser stops at the first error.
        for challenge in ChallengeParser::new(text).map_while(Result::ok) {
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter(&challenge, "realm")
            {
                return Some(Challenge::Bearer { realm, service: parameter(&challenge, "service") });
            }
            basic |= challenge.scheme.eq_ignore_ascii_case("basic");
        }
    }
    basic.then_some(Challenge::Basic)
}

fn parameter(challenge: &ChallengeRef<'_>, name: &str) -> Option<String> {
    let (_, value) = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    Some(value.to_unescaped())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    fn best_of(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        best(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
    }

    #[test]
    fn challenges_of_registries_are_read() {
        for (value, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push",error="invalid_token""#,
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (r#"bearer REALM="https://a/t""#, bearer("https://a/t", None)),
            (r#"Bearer realm="https://a/\"q", service=plain"#, bearer("https://a/\"q", Some("plain"))),
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            (r#"Basic realm="x", Bearer realm="https://a/t""#, bearer("https://a/t", None)),
            (r#"Digest realm="x", nonce="y""#, None),
            (r#"Bearer service="no realm""#, None),
            ("Bearer", None),
            ("", None),
            (r#"Basic realm="x", Bearer realm="cut"#, Some(Challenge::Basic)),
        ] {
            assert_eq!(best_of(&[value]), expected, "{value}");
        }
    }

    #[test]
    fn several_headers_are_one_list() {
        assert_eq!(best_of(&[r#"Basic realm="x""#, "\t=", r#"Bearer realm="r""#]), bearer("r", None));
        assert_eq!(best_of(&[]), None);
    }

    #[test]
    fn too_long_a_challenge_is_not_read() {
        let long = format!(r#"Bearer realm="{}""#, "r".repeat(BYTES_MAX));
        assert_eq!(best_of(&[&long]), None);
        assert_eq!(best_of(&[r#"Basic realm="x""#, &long]), Some(Challenge::Basic));
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(text in r#"((Bearer|Basic|[a-z]{1,3})?[ ,="\\a-z\t]{0,8}(realm|service)?[=",\\ a-z]{0,8}){0,6}"#) {
            if let Ok(value) = HeaderValue::from_str(&text) {
                let mut headers = HeaderMap::new();
                headers.insert(WWW_AUTHENTICATE, value);
                let _ = best(&headers);
            }
        }

        #[test]
        fn a_quoted_realm_comes_through(realm in r#"[ -~]{0,40}"#) {
            let quoted = realm.replace('\\', r"\\").replace('"', r#"\""#);
            prop_assert_eq!(best_of(&[&format!(r#"Bearer realm="{quoted}",service="s""#)]), bearer(&realm, Some("s")));
        }
    }
}
