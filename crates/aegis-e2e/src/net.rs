//! Clients of exposed ports and of the API socket.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::PATIENCE;

/// A connection to a public port that gives up after [`PATIENCE`].
pub fn connect(port: u16) -> io::Result<TcpStream> {
    connect_to((Ipv4Addr::LOCALHOST, port).into())
}

/// The same on the IPv6 loopback address.
pub fn connect_v6(port: u16) -> io::Result<TcpStream> {
    connect_to((Ipv6Addr::LOCALHOST, port).into())
}

fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Says something to a public port, closes that half, and returns everything that comes back.
pub fn ask(port: u16, question: &str) -> io::Result<String> {
    let mut stream = connect(port)?;
    stream.write_all(question.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Status and body of `GET PATH` on the API socket of a home.
pub fn get(home: &Path, path: &str) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(home.join("aegisd.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer_parts(&answer)
}

/// Splits an HTTP answer into status and what follows the header.
pub fn answer_parts(answer: &str) -> io::Result<(u16, String)> {
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    match (status, answer.split_once("\r\n\r\n")) {
        (Some(status), Some((_, body))) => Ok((status, body.to_owned())),
        _ => Err(io::Error::other(format!("no HTTP answer: {answer:?}"))),
    }
}
