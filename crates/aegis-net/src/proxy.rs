//! Reaching the internet through a host's proxy, by `CONNECT` (RFC 9110, section 9.3.6).

use std::io;
use std::net::{IpAddr, SocketAddr};

use aegis_types::Proxies;
use base64::Engine as _;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest answer of a proxy before the connection begins, in bytes.
const ANSWER_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
const HTTP_PORT: u16 = 80;

/// When which proxy is used.
pub(crate) struct Proxy {
    http: Option<Way>,
    https: Option<Way>,
    direct: Vec<Direct>,
}

/// One proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// Host and port.
    authority: String,
    /// Value of `Proxy-Authorization`.
    authorization: Option<String>,
}

/// What is reached without.
enum Direct {
    Everything,
    Network(IpNet),
    /// A name and everything below it.
    Name(String),
}

impl Proxy {
    pub(crate) fn new(proxies: &Proxies) -> Self {
        let way = |which: &str, text: &Option<String>| {
            let text = text.as_deref().map(str::trim).filter(|text| !text.is_empty())?;
            let way = Way::parse(text);
            if way.is_none() {
                tracing::warn!("{which} is not used: only proxies of the form `http://host:port` are");
            }
            way
        };
        let no = proxies.no.as_deref().unwrap_or_default();
        let direct = no.split([',', ' ']).map(str::trim).filter(|part| !part.is_empty()).map(Direct::parse);
        Self {
            http: way("HTTP_PROXY", &proxies.http),
            https: way("HTTPS_PROXY", &proxies.https),
            direct: direct.collect(),
        }
    }

    /// The proxy for a destination, if one is to be used.
    pub(crate) fn way(&self, to: SocketAddr, name: Option<&str>) -> Option<&Way> {
        let way = if to.port() == HTTP_PORT { self.http.as_ref() } else { self.https.as_ref() };
        let direct = self.direct.iter().any(|direct| match direct {
            Direct::Everything => true,
            Direct::Network(network) => network.contains(&to.ip()),
            Direct::Name(own) => {
                let below = |name: &str| {
                    name.strip_suffix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                };
                name.is_some_and(below)
            }
        });
        way.filter(|_| !direct)
    }
}

impl Direct {
    fn parse(text: &str) -> Self {
        if text == "*" {
            return Self::Everything;
        }
        let network = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        match network {
            Some(network) => Self::Network(network),
            None => Self::Name(text.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase()),
        }
    }
}

impl Way {
    fn parse(text: &str) -> Option<Self> {
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return None,
            None => text,
        };
        let rest = rest.split('/').next()?;
        let (user, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, rest),
        };
        let has_port = authority.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        });
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:{HTTP_PORT}") };
        let encode = |user: &str| {
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(percent_decoded(user)))
        };
        Some(Self { authority, authorization: user.map(encode) })
    }

    /// A connection to `to` through this proxy, which is told the name where there is one.
    pub(crate) async fn connect(&self, to: SocketAddr, name: Option<&str>) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.authority).await?;
        let target = name.map_or_else(|| to.to_string(), |name| format!("{name}:{}", to.port()));
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(authorization) = &self.authorization {
            request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let status = answer(&mut stream).await?;
        if (200..300).contains(&status) {
            return Ok(stream);
        }
        let message = format!("the proxy {} answered {status}", self.authority);
        Err(io::Error::new(io::ErrorKind::ConnectionRefused, message))
    }
}

/// The status of the answer. What follows it belongs to the connection: not one byte more is read.
async fn answer(stream: &mut TcpStream) -> io::Result<u16> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        if bytes.len() >= ANSWER_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer of the proxy is too long"));
        }
        bytes.push(stream.read_u8().await?);
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    match (parsed, response.code) {
        (httparse::Status::Complete(_), Some(code)) => Ok(code),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the proxy does not speak HTTP")),
    }
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |b: &u8| char::from(*b).to_digit(16);
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) if hex(high).is_some() && hex(low).is_some() => {
                let value = hex(high).unwrap_or_default() * 16 + hex(low).unwrap_or_default();
                decoded.push(u8::try_from(value).unwrap_or_default());
                rest = tail;
            }
            _ => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::net::TcpListener;

    fn proxies(https: &str, no: &str) -> Proxy {
        Proxy::new(&Proxies { http: None, https: Some(https.to_owned()), no: Some(no.to_owned()) })
    }

    #[test]
    fn proxies_are_read_as_programs_do() {
        let way = |text| Way::parse(text).map(|way| (way.authority, way.authorization));
        assert_eq!(way("http://proxy:3128/"), Some(("proxy:3128".to_owned(), None)));
        assert_eq!(way("proxy"), Some(("proxy:80".to_owned(), None)));
        assert_eq!(way("http://[::1]:8080"), Some(("[::1]:8080".to_owned(), None)));
        assert_eq!(way("http://[::1]"), Some(("[::1]:80".to_owned(), None)));
        assert_eq!(
            way("http://u:p%40ss@proxy:1"),
            Some(("proxy:1".to_owned(), Some("Basic dTpwQHNz".to_owned())))
        );
        assert_eq!(way("socks5://proxy:1"), None);
    }

    #[test]
    fn what_is_excluded_is_reached_directly() {
        let proxy = proxies("http://p:1", "example.com, .corp 10.0.0.0/8,192.0.2.7");
        let used = |to: &str, name| proxy.way(to.parse().unwrap(), name).is_some();
        assert!(used("1.1.1.1:443", None) && used("1.1.1.1:22", Some("badexample.com")));
        assert!(!used("1.1.1.1:443", Some("example.com")) && !used("1.1.1.1:443", Some("a.example.com")));
        assert!(!used("1.1.1.1:443", Some("x.corp")) && !used("10.1.1.1:443", None));
        assert!(!used("192.0.2.7:443", None));
        assert!(!used("1.1.1.1:80", None), "there is no proxy for that");
        assert!(proxies("http://p:1", "*").way("1.1.1.1:443".parse().unwrap(), None).is_none());
    }

    #[tokio::test]
    async fn a_connection_begins_after_the_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Way::parse(&format!("http://u:p@{}", listener.local_addr().unwrap())).unwrap();
        let server = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in
                ["HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello", "HTTP/1.1 403 Forbidden\r\n\r\n", "SSH\r\n\r\n"]
            {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                requests.push(String::from_utf8(request[..length].to_vec()).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        let to: SocketAddr = "192.0.2.1:443".parse().unwrap();
        let mut stream = way.connect(to, Some("a.example")).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        let refused = way.connect(to, None).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(way.connect(to, None).await.is_err());
        let requests = server.await.unwrap();
        assert!(requests[0].starts_with("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n"));
        assert!(requests[0].contains("Proxy-Authorization: Basic dTpw\r\n"));
        assert!(requests[1].starts_with("CONNECT 192.0.2.1:443 "));
    }
}
