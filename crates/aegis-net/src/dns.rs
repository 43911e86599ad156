//! The name server of the guest: decides by name, asks the host's name servers, remembers which address was said for
//! which name. Answers of the host's servers are passed on as they are, with their times to live.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use crate::address::GATEWAY;
use crate::policy::{Refusal, decide_answer, decide_name};
use crate::shared::Shared;

/// The name of the gateway, by which the guest reaches ports of the host.
pub const HOST_NAME: &str = "host.aegis.internal";
/// Time to live of its address, in seconds.
const HOST_TTL: u32 = 60;
/// For each server and try.
const TRY_DEADLINE: Duration = Duration::from_secs(2);
/// How often the list of servers is gone through.
const ROUNDS: usize = 2;
const TCP_DEADLINE: Duration = Duration::from_secs(5);
/// Between two queries on one TCP connection (RFC 7766, section 6.2.3).
const IDLE_DEADLINE: Duration = Duration::from_secs(30);
const MESSAGE_MAX: usize = 65_535;

/// How the guest asked, which decides how long an answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Answers queries.
pub(crate) struct Resolver {
    shared: Arc<Shared>,
}

impl Resolver {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The answer to a query; `None` for what is no query.
    pub(crate) async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let message = Message::from_vec(bytes).ok()?;
        let [question] = &message.queries[..] else { return None };
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        if message.metadata.op_code != OpCode::Query || question.query_class() != DNSClass::IN {
            return reply(&message, ResponseCode::NotImp, &[]);
        }
        let name = text(question.name());
        if name == HOST_NAME {
            let exists = question.query_type() == RecordType::A && !self.shared.host_ports.is_empty();
            let answer = Record::from_rdata(question.name().clone(), HOST_TTL, RData::A(A(GATEWAY)));
            return reply(
                &message,
                ResponseCode::NoError,
                if exists { std::slice::from_ref(&answer) } else { &[] },
            );
        }
        let policy = self.shared.policy();
        let about = reversed(&name).map_or(Ok(()), |address| decide_answer(&policy, address));
        if let Err(refusal) = decide_name(&policy, &name).and(about) {
            self.note(&name, Some(&refusal));
            return reply(&message, ResponseCode::Refused, &[]);
        }
        if question.query_type() == RecordType::AAAA {
            // The name may exist; there is no IPv6 here to reach it by.
            return reply(&message, ResponseCode::NoError, &[]);
        }
        match self.ask(bytes, question, transport).await {
            Some((raw, answer)) => {
                let mut addresses = answer.answers.iter().filter_map(|record| match record.data {
                    RData::A(A(address)) => Some(address),
                    _ => None,
                });
                // A public name must not mean something of ours (DNS rebinding), nor tell what is there.
                if let Some(refusal) = addresses.find_map(|address| decide_answer(&policy, address).err()) {
                    self.note(&name, Some(&refusal));
                    return reply(&message, ResponseCode::NoError, &[]);
                }
                self.learn(&name, &answer);
                self.note(&name, None);
                Some(raw)
            }
            None => reply(&message, ResponseCode::ServFail, &[]),
        }
    }

    fn note(&self, name: &str, refusal: Option<&Refusal>) {
        self.shared.journal().note("dns", name.to_owned(), None, refusal.map(Refusal::to_string));
    }

    fn learn(&self, name: &str, answer: &Message) {
        let mut names = self.shared.names();
        for record in &answer.answers {
            if let RData::A(A(address)) = record.data {
                names.learn(name, address, Duration::from_secs(record.ttl.into()), Instant::now());
            }
        }
    }

    /// The answer of the first server that gives one, with the identifier of the guest's query.
    async fn ask(&self, query: &[u8], question: &Query, transport: Transport) -> Option<(Vec<u8>, Message)> {
        for server in self.shared.name_servers.iter().cycle().take(ROUNDS * self.shared.name_servers.len()) {
            match self.ask_one(*server, query, question, transport).await {
                Ok(answered) => return Some(answered),
                Err(error) => tracing::debug!(%error, %server, "a name server did not answer"),
            }
        }
        None
    }

    async fn ask_one(
        &self,
        server: SocketAddr,
        query: &[u8],
        question: &Query,
        transport: Transport,
    ) -> io::Result<(Vec<u8>, Message)> {
        // Ours is not the guest's: whoever sees one must not be able to answer for the other.
        let id = getrandom::u32().map_err(io::Error::other)?.to_be_bytes();
        let ours = [&id[..2], &query[2..]].concat();
        let is_answer = |bytes: &[u8]| {
            let answer = Message::from_vec(bytes).ok()?;
            let fits = bytes[..2] == id[..2]
                && answer.metadata.message_type == MessageType::Response
                && answer.queries == [question.clone()];
            fits.then_some(answer)
        };
        let asked = match transport {
            Transport::Udp => {
                timeout(TRY_DEADLINE, over_udp(self.shared.dialer.datagrams(server)?, &ours, is_answer)).await
            }
            Transport::Tcp => timeout(TCP_DEADLINE, self.over_tcp(server, &ours, is_answer)).await,
        };
        let (mut raw, answer) = asked??;
        raw[..2].copy_from_slice(&query[..2]);
        Ok((raw, answer))
    }

    async fn over_tcp(
        &self,
        server: SocketAddr,
        query: &[u8],
        is_answer: impl Fn(&[u8]) -> Option<Message>,
    ) -> io::Result<(Vec<u8>, Message)> {
        let mut stream = self.shared.dialer.connect(server, None).await?;
        write_message(&mut stream, query).await?;
        let raw = read_message(&mut stream).await?;
        let answer = is_answer(&raw).ok_or(io::ErrorKind::InvalidData)?;
        Ok((raw, answer))
    }

    /// Answers the queries on one TCP connection of the guest until it ends.
    pub(crate) async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        while let Ok(Ok(query)) = timeout(IDLE_DEADLINE, read_message(&mut stream)).await {
            let Some(answer) = self.answer(&query, Transport::Tcp).await else { return };
            if write_message(&mut stream, &answer).await.is_err() {
                return;
            }
        }
    }
}

async fn over_udp(
    socket: UdpSocket,
    query: &[u8],
    is_answer: impl Fn(&[u8]) -> Option<Message>,
) -> io::Result<(Vec<u8>, Message)> {
    socket.send(query).await?;
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else may come from somebody who guesses.
        if let Some(answer) = is_answer(&buffer[..length]) {
            return Ok((buffer[..length].to_vec(), answer));
        }
    }
}

async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    if message.len() < 2 { Err(io::ErrorKind::InvalidData.into()) } else { Ok(message) }
}

async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}

/// The address whose name is asked for (RFC 1035, section 3.5).
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let octets: Vec<u8> = name
        .strip_suffix(".in-addr.arpa")?
        .split('.')
        .rev()
        .map(|octet| octet.parse().ok())
        .collect::<Option<_>>()?;
    Some(<[u8; 4]>::try_from(octets).ok()?.into())
}

/// The name in lower case, without a dot at the end.
fn text(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn reply(query: &Message, code: ResponseCode, answers: &[Record]) -> Option<Vec<u8>> {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_queries(query.queries.iter().cloned());
    message.add_answers(answers.iter().cloned());
    message.to_vec().ok()
}

/// Only for the address that a test expects.
#[cfg(test)]
pub(crate) fn address_query(id: u16, name: &str) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a name of a test");
    message.add_query(Query::query(name, RecordType::A));
    message.to_vec().expect("a query serialises")
}

/// The addresses of an answer and its code, for tests.
#[cfg(test)]
pub(crate) fn addresses(answer: &[u8]) -> (ResponseCode, Vec<std::net::Ipv4Addr>) {
    let message = Message::from_vec(answer).expect("an answer");
    let found = message.answers.iter().filter_map(|record| match record.data {
        RData::A(A(address)) => Some(address),
        _ => None,
    });
    (message.metadata.response_code, found.collect())
}
