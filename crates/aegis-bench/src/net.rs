//! `aegis bench net`: our network beside QEMU's own (slirp), in the same VM with the same guest program.
//!
//! Both are talked to through the gateway's address, which means the host's loopback interface in both. Slirp has packets of
//! 1500 bytes, so ours is measured with such ones as well, and then with its own.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aegis_config::{Asset, Home, locate};
use aegis_net::{GATEWAY, GUEST, GUEST_NETWORK, HostDialer, MTU, Network};
use aegis_proto::control::Process;
use aegis_proto::hello::GuestNetwork;
use aegis_types::{Accelerator, Disk, DiskFormat, GuestPort, NetSetup, VmSpec};
use aegis_vmm::{Start, Vmm as _};
use aegis_vmm_qemu::Qemu;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::report::{Report, Row};
use crate::stats::Sample;
use crate::{BenchError, bare, host};

/// Bytes of one transfer.
const BYTES: u64 = 50_000_000;
/// Slirp would try to reach it, so only ours is asked.
const DENIED_ADDRESS: &str = "10.0.0.1";
/// Packets of slirp.
const SLIRP_MTU: u16 = 1500;
/// Prints one line for each figure: its name and milliseconds.
const CLIENT: &str = include_str!("../guest/net.py");

const SLIRP: [&str; 3] =
    ["slirp, download of 50 MB", "slirp, upload of 50 MB", "slirp, connection to a port of the host"];
const SMALL: [&str; 3] = [
    "ours, packets of 1500 bytes, download of 50 MB",
    "ours, packets of 1500 bytes, upload of 50 MB",
    "ours, packets of 1500 bytes, connection to a port of the host",
];
const OURS: [&str; 3] =
    ["ours, download of 50 MB", "ours, upload of 50 MB", "ours, connection to a port of the host"];
const DENIED: &str = "ours, refusal of a denied address";
const KINDS: [&str; 3] = ["download", "upload", "connect"];

/// Measures every figure `runs` times in each VM.
pub(crate) async fn measure(runs: u32, kernel: Option<&Path>) -> Result<Report, BenchError> {
    let scratch = tempfile::tempdir().map_err(BenchError::io("make a directory"))?;
    let spec = machine(kernel, &scratch)?;
    let (port, _server) = serve().await?;
    let slirp = VmSpec { vmm_path: with_slirp(&spec.vmm_path, scratch.path())?, ..spec.clone() };
    let slirp = guest(&slirp, SLIRP_MTU, port, runs, None).await?;
    let setup =
        || NetSetup { host_ports: vec![port], log_dir: scratch.path().to_owned(), ..NetSetup::default() };
    let small = guest(&spec, SLIRP_MTU, port, runs, Some(setup())).await?;
    let ours = guest(&spec, MTU, port, runs, Some(setup())).await?;

    let mut rows = Vec::new();
    for (at, kind) in KINDS.iter().enumerate() {
        let floor = (SLIRP[at], &slirp[*kind]);
        rows.push(Row::new(SLIRP[at], &slirp[*kind], None));
        rows.push(Row::new(SMALL[at], &small[*kind], Some(floor)));
        rows.push(Row::new(OURS[at], &ours[*kind], Some(floor)));
    }
    rows.push(Row::new(DENIED, &ours["denied"], None));
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: host::machine(spec.accelerator, &spec.vmm_path, bare::file_name(&spec.kernel)),
        rows: rows.into_iter().flatten().collect(),
        counts: Vec::new(),
        disk: Vec::new(),
        memory: Vec::new(),
    })
}

/// A bare VM with the root file system of an instance.
fn machine(kernel: Option<&Path>, scratch: &TempDir) -> Result<VmSpec, BenchError> {
    let home = Home::resolve(None)?;
    let machine = bare::machine(Accelerator::Tcg, kernel, scratch.path())?;
    let upper = scratch.path().join("upper.ext4");
    let empty = locate(Asset::DiskTemplate, None, &home)?.path;
    crate::restore::copy_sparse(&empty, &upper).map_err(BenchError::io("copy an empty disk"))?;
    let disk = |path, serial: &str, read_only| Disk {
        path,
        format: DiskFormat::Raw,
        serial: serial.to_owned(),
        read_only,
        grown_to: None,
    };
    let root = locate(Asset::BaseImage, None, &home)?.path;
    let disks = vec![disk(root, "aegis-root", true), disk(upper, "aegis-upper", false)];
    Ok(VmSpec { disks, ..machine })
}

/// A program that is the VMM with slirp in place of a socket, and the same addresses.
fn with_slirp(vmm: &Path, dir: &Path) -> Result<PathBuf, BenchError> {
    let network = format!("user,id=net,net={GUEST_NETWORK},host={GATEWAY},dhcpstart={GUEST}");
    let script = format!(
        "#!/bin/sh\nfor a; do shift; case \"$a\" in stream,id=net,*) a='{network}';; esac; set -- \"$@\" \"$a\"; done\n\
         exec '{}' \"$@\"\n",
        vmm.display()
    );
    let path = dir.join("vmm-with-slirp");
    std::fs::write(&path, script).map_err(BenchError::io("write a script"))?;
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&path, mode).map_err(BenchError::io("write a script"))?;
    Ok(path)
}

/// The figures that the program in the guest prints, by their names.
async fn guest(
    spec: &VmSpec,
    mtu: u16,
    port: GuestPort,
    runs: u32,
    setup: Option<NetSetup>,
) -> Result<BTreeMap<String, Sample>, BenchError> {
    let network = GuestNetwork {
        mac: "02:00:00:00:00:01".to_owned(),
        address: GUEST,
        prefix: GUEST_NETWORK.prefix_len(),
        gateway: GATEWAY,
        mtu,
    };
    let denied = setup.as_ref().map(|_| DENIED_ADDRESS.to_owned());
    let numbers = [port.to_string(), BYTES.to_string(), runs.to_string()];
    let arguments = [GATEWAY.to_string()].into_iter().chain(numbers).chain(denied);
    let command = ["python3", "-SE", "-c", CLIENT].map(str::to_owned).into_iter().chain(arguments).collect();
    let process = Process { command, env: BTreeMap::new(), workdir: None, user: None };
    let vm = Qemu::new().boot(spec, Start::Boot).await?;
    bare::mount_nothing(vm.as_ref());
    let mut serving = JoinSet::new();
    if let Some(setup) = setup
        && let Some(link) = vm.ethernet()
    {
        let link = link.set_nonblocking(true).and_then(|()| UnixStream::from_std(link));
        let link = link.map_err(BenchError::io("serve the network"))?;
        let dialer = Arc::new(HostDialer::new(&setup.proxies));
        let (network, _control) = Network::new(setup, dialer);
        serving.spawn(network.run(link));
    }
    let output = bare::run(vm.as_ref(), network, process).await;
    vm.kill();
    vm.exited().await;
    let mut figures: BTreeMap<String, Sample> = BTreeMap::new();
    let output = output?;
    for line in output.lines() {
        let figure = line.split_once(' ').and_then(|(name, ms)| Some((name, ms.parse::<f64>().ok()?)));
        let Some((name, ms)) = figure else {
            return Err(BenchError::Failed(format!("the guest failed: {output}")));
        };
        figures.entry(name.to_owned()).or_default().add(Duration::from_secs_f64(ms / 1e3));
    }
    if KINDS.iter().all(|kind| figures.contains_key(*kind)) {
        Ok(figures)
    } else {
        Err(BenchError::Failed(format!("the guest failed: {output}")))
    }
}

/// Gives a client as many bytes as it asks for, then takes as many.
async fn serve() -> Result<(GuestPort, JoinSet<()>), BenchError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(BenchError::io("listen"))?;
    let port = listener.local_addr().map_err(BenchError::io("listen"))?.port();
    let port = GuestPort::new(port).map_err(|e| BenchError::Failed(e.to_string()))?;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut clients = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            clients.spawn(async move {
                // A client that goes away has seen what it wanted.
                let _ = answer(client).await;
            });
        }
    });
    Ok((port, server))
}

async fn answer(mut client: TcpStream) -> std::io::Result<()> {
    let (kind, bytes) = (client.read_u8().await?, client.read_u64().await?);
    let mut buffer = vec![0; 256 * 1024];
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let moved = match kind {
            b'd' => client.write(&buffer[..part]).await?,
            _ => client.read(&mut buffer[..part]).await?,
        };
        if moved == 0 {
            return Ok(());
        }
        left -= moved as u64;
    }
    // Says that all of it has arrived.
    client.write_u8(1).await?;
    client.shutdown().await
}
