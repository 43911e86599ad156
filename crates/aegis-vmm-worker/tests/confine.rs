//! What a confined thread can still do. One test, because some of the limits are those of the whole process.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

use aegis_proto::worker::{Restore, WorkerConfig};
use aegis_types::{
    Accelerator, Disk, DiskFormat, InstanceId, Mib, Mount, NetSetup, Ram, StartKind, Vcpus, VmId, VmSpec,
};
use aegis_vmm_worker::confine;

fn config(dir: &Path) -> WorkerConfig {
    let disk = |name: &str, read_only| Disk {
        path: dir.join(name),
        format: DiskFormat::Raw,
        serial: name.to_owned(),
        read_only,
        grown_to: None,
    };
    WorkerConfig {
        instance_id: InstanceId::from_unix_nanos(1),
        vm: VmSpec {
            vm_id: VmId::from_random(1),
            vmm_path: "/bin/true".into(),
            accelerator: Accelerator::Tcg,
            kernel: dir.join("kernel"),
            initramfs: dir.join("missing"),
            memory: Mib::DEFAULT,
            vcpus: Vcpus::DEFAULT,
            disks: vec![disk("image", true), disk("upper", false)],
            ram: Ram::File { path: dir.join("memory/ram") },
            runtime_dir: dir.join("run"),
        },
        hostname: "web".to_owned(),
        machine_id: "0".repeat(32),
        boot_timeout_ms: 1,
        boot_attempts: 1,
        restore: Some(Restore { state: dir.join("state"), kind: StartKind::Template, boot_id: None }),
        machine: String::new(),
        template: false,
        net: None,
        mounts: Vec::new(),
    }
}

fn denied<T>(outcome: io::Result<T>) -> bool {
    outcome.is_err_and(|e| e.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn a_confined_thread_reaches_its_vm_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    for name in ["kernel", "image", "upper", "state", "secret"] {
        fs::write(dir.join(name), name).unwrap();
    }
    fs::create_dir(dir.join("run")).unwrap();
    fs::create_dir(dir.join("memory")).unwrap();
    let config = config(&dir);
    let confined_dir = dir.clone();
    // The layers apply to the calling thread: the rest of this process stays as it is.
    let confined = std::thread::spawn(move || {
        let dir = confined_dir;
        let (confinement, _scope) = confine::apply(&config.vm, config.restore.as_ref(), None, &config.mounts);

        // What a VM needs works.
        assert_eq!(fs::read_to_string(dir.join("kernel")).unwrap(), "kernel");
        assert_eq!(fs::read_to_string(dir.join("image")).unwrap(), "image");
        assert!(File::options().read(true).write(true).open(dir.join("upper")).is_ok());
        fs::write(dir.join("run/a"), "a").unwrap();
        fs::rename(dir.join("run/a"), dir.join("run/b")).unwrap();
        assert_eq!(fs::read_to_string(dir.join("state")).unwrap(), "state");
        fs::write(dir.join("memory/ram"), "").unwrap();
        fs::rename(dir.join("memory/ram"), dir.join("memory/saved.json")).unwrap();
        let _listener = UnixListener::bind(dir.join("run/socket")).unwrap();
        assert!(UnixStream::connect(dir.join("run/socket")).is_ok());
        fs::remove_file(dir.join("run/socket")).unwrap();
        assert!(File::options().read(true).write(true).open("/dev/null").is_ok());
        assert!(Command::new("/bin/true").status().unwrap().success());

        assert!(confinement.no_new_privs);
        if confinement.landlock_abi > 0 {
            assert!(denied(fs::read(dir.join("secret"))));
            assert!(denied(fs::read("/etc/passwd")));
            assert!(denied(fs::write(dir.join("new"), "")));
            assert!(denied(File::options().write(true).open(dir.join("image"))));
            assert!(denied(File::options().write(true).open(dir.join("kernel"))));
            assert!(denied(File::options().write(true).open(dir.join("state"))));
            fs::copy("/bin/true", dir.join("run/program")).unwrap();
            assert!(denied(Command::new(dir.join("run/program")).status()));
        }
        if confinement.seccomp {
            assert!(denied(TcpStream::connect("127.0.0.1:9")));
            let namespaces = Command::new("unshare").args(["--user", "/bin/true"]).output();
            assert!(namespaces.is_err() || !namespaces.unwrap().status.success());
        }
    });
    confined.join().unwrap();
    only_the_network_has_sockets(&dir);
    only_its_server_reaches_what_is_mounted(&dir);
    // Only that thread was confined.
    assert!(fs::read("/etc/passwd").is_ok());
}

/// As the worker does it: the thread of the network is started in between.
fn only_the_network_has_sockets(dir: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let net = NetSetup { log_dir: dir.join("log"), ..NetSetup::default() };
    fs::create_dir(&net.log_dir).unwrap();
    let (config, dir) = (config(dir), dir.to_owned());
    let worker = std::thread::spawn(move || {
        let (confinement, _scope) = confine::apply(&config.vm, None, Some(&net), &[]);
        let (offline, go) = mpsc::channel::<()>();
        let network = std::thread::spawn(move || {
            // The other thread has given everything up by then.
            go.recv().unwrap();
            TcpStream::connect(address).unwrap();
            fs::write(net.log_dir.join("log"), "x").unwrap();
            confinement.landlock_abi == 0 || denied(fs::read(dir.join("secret")))
        });
        confine::go_offline();
        offline.send(()).unwrap();
        assert!(network.join().unwrap(), "it is confined in everything else");
        if confinement.seccomp {
            assert!(denied(TcpStream::connect(address)));
            assert!(denied(UdpSocket::bind("127.0.0.1:0")));
            let program =
                format!("import socket; socket.create_connection(('127.0.0.1', {}))", address.port());
            let child = Command::new("python3").args(["-c", &program]).output().unwrap();
            assert!(!child.status.success(), "what it starts has no sockets either");
        }
        assert!(UnixStream::pair().is_ok());
    });
    worker.join().unwrap();
}

/// As the worker does it: the thread that serves the mounts is started in between.
fn only_its_server_reaches_what_is_mounted(dir: &Path) {
    for name in ["shared", "reference"] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("file"), name).unwrap();
    }
    let mount = |name: &str, read_only| Mount {
        host: dir.join(name),
        guest: format!("/{name}").parse().unwrap(),
        read_only,
    };
    let config = WorkerConfig {
        mounts: vec![mount("shared", false), mount("reference", true)],
        restore: None,
        ..config(dir)
    };
    let dir = dir.to_owned();
    let worker = std::thread::spawn(move || {
        let (confinement, scope) = confine::apply(&config.vm, None, None, &config.mounts);
        let (left, go) = mpsc::channel::<()>();
        let landlock = confinement.landlock_abi > 0;
        let serves = dir.clone();
        let server = std::thread::spawn(move || {
            // The other thread has given them up by then.
            go.recv().unwrap();
            fs::write(serves.join("shared/new"), "x").unwrap();
            fs::rename(serves.join("shared/new"), serves.join("shared/file")).unwrap();
            assert_eq!(fs::read_to_string(serves.join("reference/file")).unwrap(), "reference");
            if landlock {
                assert!(denied(fs::write(serves.join("reference/file"), "x")), "it is read-only");
                assert!(denied(fs::read(serves.join("secret"))));
                fs::copy("/bin/true", serves.join("shared/program")).unwrap();
                assert!(denied(Command::new(serves.join("shared/program")).status()));
            }
        });
        confine::leave_mounts(&config.vm, None, None, scope.as_ref());
        left.send(()).unwrap();
        server.join().unwrap();
        if landlock {
            for name in ["shared/file", "reference/file"] {
                assert!(denied(fs::read(dir.join(name))), "the VMM would reach {name}");
                let child = Command::new("cat").arg(dir.join(name)).output().unwrap();
                assert!(!child.status.success() && child.stdout.is_empty());
            }
        }
        // What a VM needs still works.
        fs::write(dir.join("run/after"), "").unwrap();
    });
    worker.join().unwrap();
}
