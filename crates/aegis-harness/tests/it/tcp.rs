//! Connections to servers in the guest: here they are the test's own, on loopback.

use std::io::ErrorKind;
use std::time::Duration;

use aegis_link::tcp::{ConnectError, Connection, connected, request};
use aegis_link::{Carrier, Stream};
use aegis_proto::service::Service;
use aegis_types::GuestPort;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};

use crate::vm::{Host, Vm, within};

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);

async fn listen() -> (TcpListener, GuestPort) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = GuestPort::new(listener.local_addr().unwrap().port()).unwrap();
    (listener, port)
}

/// A port that nobody listens on as long as the socket lives.
fn reserve(address: &str) -> (TcpSocket, GuestPort) {
    let address = format!("{address}:0").parse().unwrap();
    let socket = if matches!(address, std::net::SocketAddr::V4(_)) {
        TcpSocket::new_v4().unwrap()
    } else {
        TcpSocket::new_v6().unwrap()
    };
    socket.bind(address).unwrap();
    let port = GuestPort::new(socket.local_addr().unwrap().port()).unwrap();
    (socket, port)
}

async fn dial(host: &Host, port: GuestPort, wait: Duration) -> Result<Connection<Stream>, ConnectError> {
    let stream = within(host.link.open_with(Service::Tcp, &request(port, wait))).await.unwrap();
    within(connected(stream)).await
}

/// As a host that sends its request when the stream is open.
async fn connect<S: Carrier>(
    mut stream: S,
    port: GuestPort,
    wait: Duration,
) -> Result<Connection<S>, ConnectError> {
    stream.write_all(&request(port, wait)).await.unwrap();
    connected(stream).await
}

async fn pair(host: &Host) -> (Connection<Stream>, TcpStream) {
    let (listener, port) = listen().await;
    let connection = dial(host, port, NOW).await.unwrap();
    (connection, within(listener.accept()).await.unwrap().0)
}

/// The same over a socket that is copied to the stream and back, as it is between daemon and worker.
async fn pair_through_worker(host: &Host) -> (Connection<UnixStream>, TcpStream) {
    let (listener, port) = listen().await;
    let mut stream = within(host.link.open(Service::Tcp)).await.unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut far, &mut stream).await });
    let connection = within(connect(near, port, NOW)).await.unwrap();
    (connection, within(listener.accept()).await.unwrap().0)
}

async fn assert_reset(server: &mut TcpStream) {
    let read = within(server.read_to_end(&mut Vec::new())).await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_alone() {
    let vm = Vm::new();
    let host = vm.link().await;
    let (mut connection, mut server) = pair(&host).await;
    // The server speaks first, and more than fits into any buffer on the way.
    let banner = vec![7; 5_000_000];
    let send = async {
        server.write_all(&banner).await.unwrap();
        server.shutdown().await.unwrap();
        server
    };
    let mut received = Vec::new();
    let (mut server, _) = within(async { tokio::join!(send, connection.read_to_end(&mut received)) }).await;
    assert!(received == banner);
    // The other direction is open still.
    let request = vec![9; 3_000_000];
    let send = async {
        connection.write_all(&request).await.unwrap();
        connection.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let ((), read) = within(async { tokio::join!(send, server.read_to_end(&mut received)) }).await;
    read.unwrap();
    assert!(received == request);
}

#[tokio::test]
async fn the_host_may_finish_first() {
    let vm = Vm::new();
    let host = vm.link().await;
    let (mut connection, mut server) = pair(&host).await;
    connection.write_all(b"question").await.unwrap();
    connection.shutdown().await.unwrap();
    let mut received = String::new();
    within(server.read_to_string(&mut received)).await.unwrap();
    server.write_all(b"answer").await.unwrap();
    drop(server);
    received.clear();
    within(connection.read_to_string(&mut received)).await.unwrap();
    assert_eq!(received, "answer");
}

#[tokio::test]
async fn a_server_that_listens_later_is_waited_for() {
    let vm = Vm::new();
    let host = vm.link().await;
    for address in ["127.0.0.1", "[::1]"] {
        let (socket, port) = reserve(address);
        let dialling = dial(&host, port, LONG);
        tokio::pin!(dialling);
        // Far longer than a single try takes.
        let early = tokio::time::timeout(Duration::from_millis(50), &mut dialling).await;
        assert!(early.is_err(), "nobody listens on {address}");
        let listener = socket.listen(1).unwrap();
        let mut connection = dialling.await.unwrap();
        let (mut server, _) = within(listener.accept()).await.unwrap();
        server.write_all(b"x").await.unwrap();
        assert_eq!(within(connection.read_u8()).await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn a_port_without_server_is_refused_when_the_time_is_up() {
    let vm = Vm::new();
    let host = vm.link().await;
    let (_socket, port) = reserve("127.0.0.1");
    for wait in [NOW, Duration::from_millis(60)] {
        match dial(&host, port, wait).await {
            Err(ConnectError::Refused(why)) => assert!(why.contains(&port.to_string()), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_server_whose_host_vanished_gets_a_reset() {
    let vm = Vm::new();
    let host = vm.link().await;
    let (connection, mut server) = pair(&host).await;
    drop(connection);
    assert_reset(&mut server).await;
}

#[tokio::test]
async fn a_host_that_vanishes_after_its_end_is_noticed() {
    let vm = Vm::new();
    let host = vm.link().await;
    let (mut connection, mut server) = pair(&host).await;
    connection.shutdown().await.unwrap();
    assert_eq!(within(server.read(&mut [0])).await.unwrap(), 0);
    drop(connection);
    // The end was the host's; what comes now shows only when the server writes.
    let written = within(async {
        loop {
            if let Err(error) = server.write_all(&[0; 4096]).await {
                return error;
            }
        }
    });
    assert!(matches!(written.await.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
}

#[tokio::test]
async fn a_link_that_ends_resets_what_went_over_it() {
    let vm = Vm::new();
    let host = vm.link().await;
    let (_connection, mut server) = pair(&host).await;
    host.link.close();
    assert_reset(&mut server).await;
}

#[tokio::test]
async fn a_reset_by_the_server_is_no_end() {
    let vm = Vm::new();
    let host = vm.link().await;
    let (mut connection, server) = pair(&host).await;
    server.set_zero_linger().unwrap();
    drop(server);
    let read = within(connection.read_to_end(&mut Vec::new())).await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_after_the_hosts_end_is_no_end_either() {
    let vm = Vm::new();
    let host = vm.link().await;
    let (mut connection, mut server) = pair(&host).await;
    connection.shutdown().await.unwrap();
    assert_eq!(within(server.read(&mut [0])).await.unwrap(), 0);
    server.write_all(b"half an ans").await.unwrap();
    let mut received = vec![0; 11];
    within(connection.read_exact(&mut received)).await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    assert!(within(connection.read_to_end(&mut received)).await.is_err());
}

#[tokio::test]
async fn ends_and_cuts_pass_through_the_worker() {
    let vm = Vm::new();
    let host = vm.link().await;
    let (mut connection, mut server) = pair_through_worker(&host).await;
    connection.write_all(b"question").await.unwrap();
    connection.shutdown().await.unwrap();
    let mut received = String::new();
    within(server.read_to_string(&mut received)).await.unwrap();
    server.write_all(b"answer").await.unwrap();
    drop(server);
    within(connection.read_to_string(&mut received)).await.unwrap();
    assert_eq!(received, "questionanswer");

    let (connection, mut server) = pair_through_worker(&host).await;
    drop(connection);
    assert_reset(&mut server).await;

    let (mut connection, server) = pair_through_worker(&host).await;
    connection.shutdown().await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    assert!(within(connection.read_to_end(&mut Vec::new())).await.is_err());

    let (mut connection, mut server) = pair_through_worker(&host).await;
    host.link.close();
    assert!(within(connection.read_to_end(&mut Vec::new())).await.is_err());
    assert_reset(&mut server).await;
}

#[tokio::test]
async fn connections_that_are_over_leave_room_for_others() {
    let vm = Vm::new();
    let host = vm.link().await;
    // More than the multiplexer has streams, each abandoned by the host after its end, with the server still sending.
    for number in 0..300 {
        let (mut connection, mut server): (Box<dyn Carrier>, _) = if number % 2 == 0 {
            let (connection, server) = pair(&host).await;
            (Box::new(connection), server)
        } else {
            let (connection, server) = pair_through_worker(&host).await;
            (Box::new(connection), server)
        };
        connection.shutdown().await.unwrap();
        server.write_all(b"event").await.unwrap();
        within(connection.read_exact(&mut [0; 5])).await.unwrap();
        drop(connection);
        within(async { while server.write_all(&[0; 4096]).await.is_ok() {} }).await;
    }
    host.status().await;
}

#[tokio::test]
async fn a_waiting_connection_ends_with_its_stream() {
    let vm = Vm::new();
    let host = vm.link().await;
    let (socket, port) = reserve("127.0.0.1");
    for _ in 0..200 {
        let stream = within(host.link.open(Service::Tcp)).await.unwrap();
        let dialling = connect(stream, port, LONG);
        let early = tokio::time::timeout(Duration::from_millis(1), dialling).await;
        assert!(early.is_err());
    }
    // None of them is left: the first connection is the one that is asked for now.
    let listener = socket.listen(1).unwrap();
    let mut connection = dial(&host, port, LONG).await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    server.write_all(b"x").await.unwrap();
    assert_eq!(within(connection.read_u8()).await.unwrap(), b'x');
}

#[tokio::test]
async fn a_stream_that_asks_for_no_connection_ends_alone() {
    let vm = Vm::new();
    let host = vm.link().await;
    for bytes in [&b"\x00\xff\xff\xff\xff"[..], b"\x01\0\0\0\x02{}", b"\x00\0\0\0\x0b{\"port\":0}x"] {
        let mut stream = within(host.link.open(Service::Tcp)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = within(stream.read_to_end(&mut answer)).await;
        assert_eq!(answer, b"");
    }
    host.status().await;
}
