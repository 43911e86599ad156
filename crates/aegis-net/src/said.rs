//! The name that a client gives at the beginning of what it sends: the server name of a TLS ClientHello (RFC 6066,
//! section 3), or the host of an HTTP/1 request (RFC 9110, section 7.2).

use tls_parser::{
    SNIType, TlsExtension, TlsMessage, TlsMessageHandshake, parse_tls_extensions, parse_tls_plaintext,
};

/// More is not looked at before a decision.
pub(crate) const LOOK_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// First byte of a TLS record with a handshake.
const HANDSHAKE: u8 = 22;

/// What the first bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// They may still say a name.
    More,
    /// This name, in lower case and without a dot at the end.
    Name(String),
    /// They say none.
    Nothing,
}

/// Looks at the first bytes of a connection.
pub(crate) fn look(bytes: &[u8]) -> Said {
    let said = match bytes.first() {
        None => Said::More,
        Some(&HANDSHAKE) => in_tls(bytes),
        Some(first) if first.is_ascii_uppercase() => in_http(bytes),
        Some(_) => Said::Nothing,
    };
    if said == Said::More && bytes.len() >= LOOK_MAX { Said::Nothing } else { said }
}

fn in_tls(bytes: &[u8]) -> Said {
    // A ClientHello may be spread over several records: what is in them is put together.
    let (mut rest, mut hello, mut header) = (bytes, Vec::new(), None);
    while let [kind, major, minor, high, low, content @ ..] = rest {
        if *kind != HANDSHAKE || *major != 3 {
            return Said::Nothing;
        }
        header.get_or_insert([*kind, *major, *minor]);
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let complete = content.len() >= length;
        hello.extend_from_slice(&content[..length.min(content.len())]);
        if !complete {
            break;
        }
        rest = &content[length..];
    }
    let [1, a, b, c, ..] = hello[..] else {
        // Another handshake message than a ClientHello is not how a connection begins.
        return if hello.is_empty() || hello[0] == 1 { Said::More } else { Said::Nothing };
    };
    let length = 4 + usize::from(a) * 65536 + usize::from(b) * 256 + usize::from(c);
    if hello.len() < length {
        return Said::More;
    }
    hello.truncate(length);
    let (Some(header), Ok(size)) = (header, u16::try_from(length)) else { return Said::Nothing };
    let record = [&header[..], &size.to_be_bytes(), &hello].concat();
    server_name(&record).map_or(Said::Nothing, |name| host(&name))
}

fn server_name(record: &[u8]) -> Option<Vec<u8>> {
    let (_, plaintext) = parse_tls_plaintext(record).ok()?;
    let hello = plaintext.msg.iter().find_map(|message| match message {
        TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)) => Some(hello),
        _ => None,
    })?;
    let (_, extensions) = parse_tls_extensions(hello.ext?).ok()?;
    extensions.into_iter().find_map(|extension| match extension {
        TlsExtension::SNI(names) => {
            names.into_iter().find(|(kind, _)| *kind == SNIType::HostName).map(|(_, name)| name.to_vec())
        }
        _ => None,
    })
}

fn in_http(bytes: &[u8]) -> Said {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => Said::More,
        Ok(httparse::Status::Complete(_)) => {
            // A target with a host wins over the header (RFC 9112, section 3.2.2).
            let target = request.path.and_then(|path| path.split_once("://")).map(|(_, rest)| {
                rest.split(['/', '?', '#']).next().unwrap_or_default().rsplit('@').next().unwrap_or_default()
            });
            let header = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("host"));
            match target.map(str::as_bytes).or(header.map(|header| header.value)) {
                Some(value) => host(value.split(|&b| b == b':').next().unwrap_or_default()),
                None => Said::Nothing,
            }
        }
        Err(_) => Said::Nothing,
    }
}

fn host(name: &[u8]) -> Said {
    match std::str::from_utf8(name) {
        Ok(name) if !name.trim().is_empty() => {
            Said::Name(name.trim().trim_end_matches('.').to_ascii_lowercase())
        }
        _ => Said::Nothing,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    /// A ClientHello for this name (RFC 8446, section 4.1.2).
    pub(crate) fn client_hello(name: &str) -> Vec<u8> {
        let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
        let entry = [&[0][..], &sized(name.as_bytes())].concat();
        let extension = [&[0, 0][..], &sized(&sized(&entry))].concat();
        let body = [&[3, 3][..], &[7; 32], &[0], &sized(&[0x13, 1]), &[1, 0], &sized(&extension)].concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let handshake = [&[1][..], &length[1..], &body].concat();
        [&[22, 3, 1][..], &sized(&handshake)].concat()
    }

    #[test]
    fn the_server_name_of_tls_is_found_however_it_arrives() {
        let hello = client_hello("Api.Example.");
        assert_eq!(look(&hello), Said::Name("api.example".to_owned()));
        for cut in 1..hello.len() {
            assert_eq!(look(&hello[..cut]), Said::More, "{cut}");
        }
        // In records of ten bytes.
        let mut records = Vec::new();
        for part in hello[5..].chunks(10) {
            records.extend([22, 3, 1, 0, u8::try_from(part.len()).unwrap()]);
            records.extend(part);
        }
        assert_eq!(look(&records), Said::Name("api.example".to_owned()));
    }

    #[test]
    fn the_host_of_http_is_found() {
        for (request, name) in [
            ("GET / HTTP/1.1\r\nHost: A.example:8080\r\n\r\n", "a.example"),
            ("GET / HTTP/1.1\r\nX: y\r\nhOST:  b.example.\r\n\r\n", "b.example"),
            ("GET http://c.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n", "c.example"),
            ("GET http://u@d.example:1/x HTTP/1.1\r\nHost: a.example\r\n\r\n", "d.example"),
        ] {
            assert_eq!(look(request.as_bytes()), Said::Name(name.to_owned()), "{request}");
        }
        assert_eq!(look(b"GET / HTTP/1.1\r\nHos"), Said::More);
        assert_eq!(look(b"SSH-2.0-x\r\n"), Said::Nothing);
        assert_eq!(look(b"GET / HTTP/1.1\r\n\r\n"), Said::Nothing);
        assert_eq!(look(b"\0\x01"), Said::Nothing);
        assert_eq!(look(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Said::Nothing);
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), tls in any::<bool>()) {
            look(&bytes);
            let mut hello = client_hello("a.example");
            let at = bytes.len() % hello.len();
            hello.splice(at.., bytes.iter().copied());
            if tls {
                look(&hello);
            }
        }
    }

    #[test]
    fn no_more_than_the_limit_is_waited_for() {
        let mut endless = b"GET /".to_vec();
        endless.resize(LOOK_MAX, b'a');
        assert_eq!(look(&endless), Said::Nothing);
    }
}
