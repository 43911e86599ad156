//! The machine was started again: no process is left, and every file is.

use std::fs;
use std::net::TcpStream;

use aegis_api::{CreateInstance, ExposeRequest};
use aegis_client::Action;
use aegis_types::{GuestPort, InstanceState, Protocol};
use rustix::process::{Signal, kill_process};

use crate::support::{Host, within};

#[tokio::test]
async fn enabled_instances_are_woken_by_connections_and_disabled_ones_are_closed() {
    let mut host = Host::start().await;
    let mut ids = Vec::new();
    for name in ["on", "off"] {
        let port =
            ExposeRequest { port: GuestPort::new(9).unwrap(), public_port: None, protocol: Protocol::Tcp };
        let request = CreateInstance { exposes: vec![port], ..host.instance(name, &["sleep", "100000"]) };
        let id = host.create(&request).await;
        let info = host.reach(&id, InstanceState::Running).await;
        ids.push((id, info.endpoints[0].public_port.get()));
    }
    let [(on, on_port), (off, off_port)] = &ids[..] else { unreachable!() };
    host.client.action("off", Action::Disable).await.unwrap();
    host.crash().await;
    for (process, _) in host.home.processes() {
        let _ = kill_process(process, Signal::KILL);
    }
    host.nothing_runs().await;
    // Of another boot: sockets that nobody listens on, and process ids that mean nothing or somebody else.
    let run = host.home.home().run_dir(on);
    fs::create_dir_all(&run).unwrap();
    let worker = format!(r#"{{"pid":{},"start_time":1,"vm_id":"vm-1","generation":1}}"#, std::process::id());
    fs::write(run.join("worker.json"), worker).unwrap();
    fs::write(host.home.home().pid_file(), "1\n").unwrap();
    host.up().await;
    assert_eq!(host.info(on).await.state, InstanceState::Stopped);
    assert!(TcpStream::connect(("127.0.0.1", *off_port)).is_err(), "nobody may wake a disabled instance");
    let connection = within(tokio::net::TcpStream::connect(("127.0.0.1", *on_port))).await.unwrap();
    host.reach(on, InstanceState::Running).await;
    drop(connection);
    assert_eq!(host.info(off).await.state, InstanceState::Stopped);
    host.end().await;
}
