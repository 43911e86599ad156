//! Greeting, reconnecting, parking, and hosts that misbehave.

use std::time::Duration;

use aegis_harness::SessionEnd;
use aegis_harness::sys::Sys as _;
use aegis_harness::sys::fake::{Call, FakeSys};
use aegis_link::host::greet;
use aegis_link::rpc::{CallError, Client};
use aegis_proto::control::{CLOCK_SET, ClockSet, RUN, Run, SecretContent, Started};
use aegis_proto::hello::{GuestNetwork, Hello};
use aegis_proto::jsonrpc::METHOD_NOT_FOUND;
use aegis_proto::service::Service;
use aegis_types::SecretBytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::vm::{Host, Vm, hello, process, sh, within};

#[tokio::test]
async fn the_greeting_is_applied_before_it_is_answered() {
    let vm = Vm::new();
    let (carrier, _) = vm.connect();
    let (_link, welcome) = within(greet(carrier, Hello { generation: 9, ..hello() })).await.unwrap();
    assert_eq!((welcome.generation, welcome.nonce), (1, hello().nonce));
    let calls = vm.sys.calls();
    for applied in [
        Call::Entropy(32),
        Call::Clock(Duration::from_nanos(hello().time_unix_ns)),
        Call::Hostname("web".to_owned()),
    ] {
        assert!(calls.contains(&applied), "{applied:?} is not in {calls:?}");
    }
}

#[tokio::test]
async fn a_seed_that_is_no_seed_is_not_answered() {
    let vm = Vm::new();
    for seed in ["zz".repeat(32), "5".repeat(65)] {
        let (carrier, session) = vm.connect();
        assert!(within(greet(carrier, Hello { seed, ..hello() })).await.is_err());
        assert!(matches!(within(session).await.unwrap(), SessionEnd::NoLink(_)));
    }
    assert!(!vm.sys.calls().iter().any(|call| matches!(call, Call::Clock(_))));
}

#[tokio::test]
async fn bytes_of_an_earlier_session_are_skipped() {
    let vm = Vm::new();
    let (mut carrier, _) = vm.connect();
    carrier.write_all(&[0xff; 10_000]).await.unwrap();
    carrier.write_all(b"\n{\"aegis\":\"parked\"}\n{}\n").await.unwrap();
    let (host, _) = Host::greet(carrier).await;
    host.status().await;
}

#[tokio::test]
async fn a_host_may_greet_again_when_it_gets_no_answer() {
    let vm = Vm::new();
    let (mut carrier, _) = vm.connect();
    let greeting = aegis_proto::hello::Greeting::Hello(hello()).encode();
    for _ in 0..3 {
        carrier.write_all(b"\n").await.unwrap();
        carrier.write_all(&greeting).await.unwrap();
    }
    // The first one is answered, this fourth one and those between are skipped.
    let (host, _) = Host::greet(carrier).await;
    host.status().await;
}

#[tokio::test]
async fn a_reconnect_keeps_the_primary() {
    let vm = Vm::new();
    let host = vm.link().await;
    let pid = host.run(sh("echo up; sleep 1000")).await.unwrap().pid;
    drop(host);
    for _ in 0..20 {
        let (carrier, session) = vm.connect();
        let (host, _) = Host::greet(carrier).await;
        assert_eq!(host.status().await.primary_pid, Some(pid));
        assert_eq!(host.logs(0).await.lines(1).await, ["up"]);
        drop(host);
        assert!(matches!(within(session).await.unwrap(), SessionEnd::Closed));
    }
}

#[tokio::test]
async fn a_reconnect_gives_a_new_identity() {
    let vm = Vm::new();
    vm.link().await.run(sh("true")).await.unwrap();
    let (carrier, _) = vm.connect();
    let machine_id = "f".repeat(32);
    let greeting = Hello { hostname: "other".to_owned(), machine_id: machine_id.clone(), ..hello() };
    within(greet(carrier, greeting)).await.unwrap();
    assert_eq!(vm.sys.file("/etc/machine-id").unwrap(), format!("{machine_id}\n").as_bytes());
    assert_eq!(vm.sys.file("/etc/hostname").unwrap(), b"other\n");
}

#[tokio::test]
async fn a_template_is_nobody_until_it_is_greeted_again() {
    let vm = Vm::on(FakeSys::new());
    let port = vm.serve_port();
    let (link, _) = within(greet(port, Hello { template: true, ..hello() })).await.unwrap();
    // Parking waits for the root, so the files would be there.
    let carrier = within(link.park()).await.unwrap();
    let calls = vm.sys.calls();
    assert!(calls.contains(&Call::Entropy(32)) && calls.contains(&Call::LoopbackUp), "{calls:?}");
    assert!(calls.iter().any(|call| matches!(call, Call::Clock(_))));
    assert!(!calls.iter().any(|call| matches!(call, Call::Hostname(_))), "{calls:?}");
    // The files are there, and of nobody.
    assert_eq!(vm.sys.file("/etc/hostname").unwrap(), b"-\n");
    assert_eq!(vm.sys.file("/etc/machine-id").unwrap(), b"00000000000000000000000000000000\n");
    let (link, _) = within(greet(carrier, hello())).await.unwrap();
    assert!(vm.sys.calls().contains(&Call::Hostname("web".to_owned())));
    // No process runs before the files are there.
    let (control, _) = Client::new(within(link.open(Service::Control)).await.unwrap());
    let _: Started = within(
        control
            .call(RUN, &Run { process: sh("true"), secret_files: Vec::new(), streams: Default::default() }),
    )
    .await
    .unwrap();
    assert_eq!(vm.sys.file("/etc/hostname").unwrap(), b"web\n");
    assert_eq!(vm.sys.file("/etc/machine-id").unwrap(), format!("{}\n", hello().machine_id).as_bytes());
    assert!(String::from_utf8(vm.sys.file("/etc/hosts").unwrap()).unwrap().contains("\tweb\n"));
}

/// A guest that was a template with a disk of 64 MiB and is somebody with one of 300 MiB now, and what becomes of a command.
async fn cloned_with_a_longer_disk(sys: FakeSys) -> (Vm, Result<Started, CallError>) {
    let vm = Vm::on(sys.with_disk_bytes(&[64 << 20, 64 << 20, 64 << 20, 300 << 20]));
    let port = vm.serve_port();
    let (link, _) = within(greet(port, Hello { template: true, ..hello() })).await.unwrap();
    let carrier = within(link.park()).await.unwrap();
    let greeting = Hello { disk_bytes: Some(300 << 20), ..hello() };
    let (link, _) = within(greet(carrier, greeting)).await.unwrap();
    let (control, _) = Client::new(within(link.open(Service::Control)).await.unwrap());
    let started = within(
        control
            .call(RUN, &Run { process: sh("true"), secret_files: Vec::new(), streams: Default::default() }),
    )
    .await;
    (vm, started)
}

#[tokio::test]
async fn a_clone_with_a_longer_disk_fills_it_as_soon_as_it_sees_it() {
    let (vm, started) = cloned_with_a_longer_disk(FakeSys::new()).await;
    started.unwrap();
    let calls = vm.sys.calls();
    let grown: Vec<_> = calls.iter().filter(|call| matches!(call, Call::GrowDisk(_))).collect();
    assert_eq!(grown, [&Call::GrowDisk(64 << 20), &Call::GrowDisk(300 << 20)]);
    let at = |wanted: &Call| calls.iter().position(|call| call == wanted).unwrap();
    let written = Call::WriteFile("/etc/machine-id".into());
    // The template's own came before.
    assert!(calls.iter().rposition(|call| *call == written).is_some_and(|last| at(grown[1]) < last));
}

#[tokio::test]
async fn a_clone_whose_disk_stays_short_runs_nothing() {
    let (_vm, started) = cloned_with_a_longer_disk(FakeSys::new().with_broken_growth()).await;
    let Err(CallError::Rpc(error)) = started else { panic!("it must fail") };
    let message = "cannot grow the file system of the writable root disk to 314572800 bytes";
    assert!(error.message.contains(message), "{error}");
}

#[tokio::test]
async fn files_of_secrets_are_in_memory_before_the_command_runs() {
    let vm = Vm::on(FakeSys::new());
    let host = vm.link().await;
    assert!(host.status().await.secret_files);
    let file = SecretContent {
        path: "/run/secrets/token".parse().unwrap(),
        value: SecretBytes::new(b"\xff\x00value".to_vec()),
    };
    let run = Run { process: sh("true"), secret_files: vec![file], streams: Default::default() };
    let _: Started = within(host.control.call(RUN, &run)).await.unwrap();
    assert_eq!(vm.sys.file("/run/secrets/token").unwrap(), b"\xff\x00value");
    let mounts = || {
        let mount = Call::Mount { kind: "tmpfs".to_owned(), target: "/run/secrets".to_owned() };
        vm.sys.calls().into_iter().filter(|call| *call == mount).count()
    };
    assert_eq!(mounts(), 1);
    // What comes too late hides nothing.
    assert!(within(host.control.call::<_, Started>(RUN, &run)).await.is_err());
    assert_eq!(mounts(), 1);
}

#[tokio::test]
async fn a_command_whose_secrets_cannot_be_written_does_not_run() {
    let vm = Vm::on(FakeSys::new().with_broken_file("/run/secrets/token"));
    let host = vm.link().await;
    let file = SecretContent { path: "/run/secrets/token".parse().unwrap(), value: SecretBytes::default() };
    let run = Run { process: sh("true"), secret_files: vec![file], streams: Default::default() };
    match within(host.control.call::<_, Started>(RUN, &run)).await {
        Err(CallError::Rpc(error)) => assert!(error.message.contains("/run/secrets/token"), "{error:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(host.status().await.primary_pid, None);
}

fn network(mac: &str) -> GuestNetwork {
    GuestNetwork {
        mac: mac.to_owned(),
        address: [192, 168, 127, 2].into(),
        prefix: 24,
        gateway: [192, 168, 127, 1].into(),
        mtu: 65_520,
    }
}

/// What became of the network of a template when it was somebody, and its `resolv.conf`.
async fn network_of_a_clone(network_of_clone: Option<GuestNetwork>) -> (Vec<Call>, Option<Vec<u8>>) {
    let vm = Vm::on(FakeSys::new());
    let (port, session) = vm.connect();
    let template = Hello { template: true, network: Some(network("02:00:00:00:00:01")), ..hello() };
    let (link, _) = within(greet(port, template)).await.unwrap();
    let (control, _) = Client::new(within(link.open(Service::Control)).await.unwrap());
    let () = within(control.call(aegis_proto::control::PARK, &())).await.unwrap();
    link.close();
    within(session).await.unwrap();
    let (port, _) = vm.connect();
    let (link, _) = within(greet(port, Hello { network: network_of_clone, ..hello() })).await.unwrap();
    let (control, _) = Client::new(within(link.open(Service::Control)).await.unwrap());
    let run = Run { process: sh("true"), secret_files: Vec::new(), streams: Default::default() };
    let _: Started = within(control.call(RUN, &run)).await.unwrap();
    let is_about_network = |call: &Call| {
        matches!(call, Call::ConfigureNetwork(_) | Call::SetHardwareAddress(_) | Call::RemoveNetwork)
    };
    (vm.sys.calls().into_iter().filter(is_about_network).collect(), vm.sys.file("/etc/resolv.conf"))
}

#[tokio::test]
async fn a_clone_changes_what_differs_from_the_network_of_its_template() {
    let of_template = Call::ConfigureNetwork(network("02:00:00:00:00:01"));
    let (calls, resolver) = network_of_a_clone(Some(network("02:00:00:00:00:07"))).await;
    assert_eq!(calls, [of_template.clone(), Call::SetHardwareAddress("02:00:00:00:00:07".to_owned())]);
    assert_eq!(resolver.unwrap(), b"nameserver 192.168.127.1\n");
    let (calls, resolver) = network_of_a_clone(None).await;
    assert_eq!(calls, [of_template.clone(), Call::RemoveNetwork]);
    assert_eq!(resolver.unwrap(), b"");
    let other = GuestNetwork { mtu: 1500, ..network("02:00:00:00:00:07") };
    let (calls, _) = network_of_a_clone(Some(other.clone())).await;
    assert_eq!(calls, [of_template, Call::ConfigureNetwork(other)]);
}

#[tokio::test]
async fn the_network_is_set_up_before_anything_runs_and_once() {
    let vm = Vm::on(FakeSys::new());
    let (carrier, _) = vm.connect();
    let network = network("02:00:00:00:00:07");
    let greeting = Hello { network: Some(network.clone()), ..hello() };
    let (link, _) = within(greet(carrier, greeting.clone())).await.unwrap();
    let (control, _) = Client::new(within(link.open(Service::Control)).await.unwrap());
    let _: Started = within(
        control
            .call(RUN, &Run { process: sh("true"), secret_files: Vec::new(), streams: Default::default() }),
    )
    .await
    .unwrap();
    let configured =
        || vm.sys.calls().iter().filter(|call| matches!(call, Call::ConfigureNetwork(_))).count();
    assert!(vm.sys.calls().contains(&Call::ConfigureNetwork(network)));
    assert_eq!(vm.sys.file("/etc/resolv.conf").unwrap(), b"nameserver 192.168.127.1\n");
    // A guest that comes back from its rest has it already.
    drop((link, control));
    let (carrier, _) = vm.connect();
    within(greet(carrier, greeting)).await.unwrap();
    assert_eq!(configured(), 1);
}

#[tokio::test]
async fn a_guest_that_stays_who_it_is_is_not_written_again() {
    let vm = Vm::new();
    vm.link().await.run(sh("true")).await.unwrap();
    let writes = || vm.sys.calls().iter().filter(|call| matches!(call, Call::WriteFile(_))).count();
    let before = writes();
    // A process may have changed the file: it is its machine.
    vm.sys.write_file(std::path::Path::new("/etc/hostname"), b"mine\n").unwrap();
    vm.link().await.run(sh("true")).await.unwrap_err();
    assert_eq!((writes(), vm.sys.file("/etc/hostname").unwrap()), (before + 1, b"mine\n".to_vec()));
}

#[tokio::test]
async fn a_new_name_replaces_the_old_one_in_our_hosts_file_only() {
    for (edit, own) in [("", true), ("10.0.0.1\tdb\n", false)] {
        let written = format!("127.0.0.1\tlocalhost\n127.0.1.1\told\n::1\tlocalhost ip6-localhost\n{edit}");
        let vm = Vm::on(FakeSys::new().with_file("/etc/hosts", written.as_bytes()));
        vm.link().await.run(sh("true")).await.unwrap();
        let hosts = String::from_utf8(vm.sys.file("/etc/hosts").unwrap()).unwrap();
        assert_eq!(hosts.contains("\tweb\n"), own, "{hosts}");
    }
}

#[tokio::test]
async fn parking_writes_the_disks_and_waits_for_the_root() {
    let vm = Vm::on(FakeSys::new().with_modules(&["virtio_console.ko", "erofs.ko"]));
    let host = vm.link().await;
    let () = within(host.control.call(aegis_proto::control::PARK, &())).await.unwrap();
    let calls = vm.sys.calls();
    let at = |wanted: &Call| calls.iter().position(|call| call == wanted).unwrap();
    assert!(at(&Call::SwitchRoot("/aegis/root".to_owned())) < at(&Call::Sync));
    let broken = Vm::on(FakeSys::new().without_disks()).link().await;
    let refused = within(broken.control.call::<_, ()>(aegis_proto::control::PARK, &())).await;
    assert!(refused.unwrap_err().to_string().contains("no disk has the serial number"));
}

#[tokio::test]
async fn only_a_guest_without_a_command_keeps_the_files_of_others_in_memory() {
    for used in [false, true] {
        let vm = Vm::new();
        let host = vm.link().await;
        if used {
            host.run(sh("exit 0")).await.unwrap();
        }
        let () = within(host.control.call(aegis_proto::control::PARK, &())).await.unwrap();
        let cached = vm.sys.calls().iter().any(|call| matches!(call, Call::CacheFile(_)));
        assert_eq!(cached, !used);
    }
}

#[tokio::test]
async fn a_parked_guest_says_so_and_can_be_greeted_again() {
    let vm = Vm::new();
    let (port, session) = vm.connect();
    let (host, _) = Host::greet(port).await;
    let pid = host.run(sh("sleep 1000")).await.unwrap().pid;
    let () = within(host.control.call(aegis_proto::control::PARK, &())).await.unwrap();
    host.link.close();
    drop(host);
    assert!(matches!(within(session).await.unwrap(), SessionEnd::Parked));
    let (mut port, _) = vm.connect();
    let mut lines = [0; 20];
    within(port.read_exact(&mut lines)).await.unwrap();
    assert_eq!(&lines, b"\n{\"aegis\":\"parked\"}\n");
    let (host, _) = Host::greet(port).await;
    assert_eq!(host.status().await.primary_pid, Some(pid));
    drop(host);
    let (mut port, _) = vm.connect();
    port.write_all(b"x\n").await.unwrap();
    // No longer parked: the first thing on a new carrier is the answer to a greeting.
    let (host, _) = Host::greet(port).await;
    assert_eq!(host.status().await.primary_pid, Some(pid));
}

#[tokio::test]
async fn parking_over_one_port_works() {
    let vm = Vm::new();
    let host_end = vm.serve_port();
    let (host, _) = Host::greet(host_end).await;
    host.run(sh("sleep 1000")).await.unwrap();
    within(host.link.park()).await.unwrap();
}

#[tokio::test]
async fn a_broken_multiplexer_ends_the_link_and_nothing_else() {
    let vm = Vm::new();
    let (mut carrier, session) = vm.connect();
    let greeting = aegis_proto::hello::Greeting::Hello(hello());
    carrier.write_all(&greeting.encode()).await.unwrap();
    let mut welcome = Vec::new();
    while !welcome.ends_with(b"}\n") {
        welcome.push(within(carrier.read_u8()).await.unwrap());
    }
    carrier.write_all(&[0]).await.unwrap();
    carrier.write_all(&[0xff; 4096]).await.unwrap();
    assert!(matches!(within(session).await.unwrap(), SessionEnd::Closed));
    vm.link().await.status().await;
}

#[tokio::test]
async fn an_oversized_control_message_ends_its_stream_only() {
    let vm = Vm::new();
    let host = vm.link().await;
    let mut stream = within(host.link.open(Service::Control)).await.unwrap();
    let message = vec![b'x'; (1 << 20) + 2];
    // The guest may be gone before everything is written.
    let _ = within(stream.write_all(&message)).await;
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"");
    host.status().await;
}

#[tokio::test]
async fn unknown_methods_are_refused() {
    let vm = Vm::new();
    let host = vm.link().await;
    let error = within(host.control.call::<_, ()>("fly", &())).await.unwrap_err();
    assert!(matches!(error, aegis_link::rpc::CallError::Rpc(e) if e.code == METHOD_NOT_FOUND));
    host.status().await;
}

#[tokio::test]
async fn the_clock_can_be_corrected() {
    let vm = Vm::new();
    let host = vm.link().await;
    let () = within(host.control.call(CLOCK_SET, &ClockSet { time_unix_ns: 77 })).await.unwrap();
    assert!(vm.sys.calls().contains(&Call::Clock(Duration::from_nanos(77))));
    // Several control streams are served at once.
    let stream = within(host.link.open(Service::Control)).await.unwrap();
    let (second, _) = aegis_link::rpc::Client::new(stream);
    let status: aegis_proto::control::Status = within(second.call("status", &())).await.unwrap();
    assert_eq!(status.version, aegis_harness::VERSION);
    assert_eq!(host.output(process(&["true"])).await.status.code, 0);
}
