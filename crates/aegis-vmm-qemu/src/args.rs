//! The command line of QEMU: a pure function of the spec.

use std::ffi::OsString;
use std::os::fd::RawFd;

use aegis_types::{Accelerator, Disk, DiskFormat, Ram, VmSpec};
use serde_json::{Value, json};

/// Name of the guest's serial port that carries the link.
const PORT: &str = "aegis.ctl";

/// Name of the one for the messages of mounted directories.
const FILES_PORT: &str = "aegis.fs";

/// Serial number of the disk with the content of their files.
const CONTENT_DISK: &str = "aegis.content";

/// Hardware address of the network device.
const MAC: &str = "02:ae:61:00:00:02";

/// Name of the memory.
const MEMORY: &str = "ram0";

/// Descriptors that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fds {
    /// Listening socket of the guest link: QEMU accepts a new connection whenever the last one has ended.
    pub(crate) link: RawFd,
    /// One end of the QMP connection.
    pub(crate) qmp: RawFd,
    /// One end of the stream for mounted directories.
    pub(crate) files: RawFd,
    /// One end of the stream from which the disk with the content of their files is read.
    pub(crate) content: RawFd,
    /// One end of the network.
    pub(crate) ethernet: RawFd,
    /// Memory of a template, for [`Ram::Template`].
    pub(crate) template: Option<RawFd>,
}

/// What the CPUs begin with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Begin {
    /// The kernel. It is told the rate of the host's time-stamp counter, where it has to be told.
    Boot {
        /// The rate.
        tsc_khz: Option<u64>,
    },
    /// Nothing, until a saved state was loaded.
    Incoming,
}

/// Arguments for this VM. A machine that is restored has to be the one that was saved: beyond where its memory comes
/// from and what is on its kernel's command line, nothing may depend on how it begins.
pub(crate) fn arguments(spec: &VmSpec, fds: Fds, begin: Begin) -> Vec<OsString> {
    let mut args = Arguments(Vec::new());
    // First, so that people recognise the process.
    args.option("-name", Some(spec.vm_id.as_str()));
    args.option("-no-user-config", None);
    args.option("-nodefaults", None);
    args.option("-display", Some("none"));
    // A reset ends the VM: a guest that panics must not boot again behind the daemon's back.
    args.option("-no-reboot", None);
    let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    args.option("-sandbox", Some(sandbox));
    // Memory of several VMs is not merged: a guest could time the merges to read its neighbours.
    let machine = "microvm,acpi=on,isa-serial=on,rtc=on,pit=on,pic=on,mem-merge=off,dump-guest-core=off";
    args.option("-machine", Some(&format!("{machine},memory-backend={MEMORY}")));
    args.option("-object", Some(&memory(spec, fds.template).to_string()));
    args.option("-accel", Some(spec.accelerator.as_str()));
    args.option("-cpu", Some(cpu(spec.accelerator)));
    args.option("-m", Some(&format!("{}M", spec.memory.get())));
    args.option("-smp", Some(&spec.vcpus.get().to_string()));
    args.path("-kernel", spec.kernel.as_os_str());
    args.path("-initrd", spec.initramfs.as_os_str());
    args.option("-append", Some(&kernel_command_line(spec.accelerator, begin)));
    args.option("-chardev", Some(&format!("socket,id=qmp,fd={}", fds.qmp)));
    args.option("-mon", Some("chardev=qmp,mode=control"));
    args.option("-chardev", Some("stdio,id=console,signal=off"));
    args.option("-serial", Some("chardev:console"));
    args.option("-chardev", Some(&format!("socket,id=link,fd={},server=on,wait=off", fds.link)));
    args.option("-device", Some("virtio-serial-device,max_ports=3"));
    args.option("-device", Some(&format!("virtserialport,chardev=link,name={PORT}")));
    args.option("-chardev", Some(&format!("socket,id=files,fd={}", fds.files)));
    args.option("-device", Some(&format!("virtserialport,chardev=files,name={FILES_PORT}")));
    args.option("-netdev", Some(&format!("stream,id=net,addr.type=fd,addr.str={}", fds.ethernet)));
    // The same for all, as a template's is part of its state; the guest gives itself its own. A restored guest need not
    // tell a switch where it is, which would be the first thing it does.
    args.option("-device", Some(&format!("virtio-net-device,netdev=net,mac={MAC},guest_announce=off")));
    args.option("-object", Some("rng-builtin,id=rng"));
    // Limited, because every byte costs the host a system call: 64 KiB each second.
    args.option("-device", Some("virtio-rng-device,rng=rng,max-bytes=65536,period=1000"));
    for (index, disk) in spec.disks.iter().enumerate() {
        args.disk(index, disk);
    }
    args.content_disk(fds.content);
    if let Begin::Incoming = begin {
        // Told later which one, because a setting of the loader comes first.
        args.option("-incoming", Some("defer"));
    }
    args.0
}

/// Nodes of the disks that have grown since a state was saved, and their lengths in bytes.
pub(crate) fn grown_disks(spec: &VmSpec) -> Vec<(String, u64)> {
    let disks = spec.disks.iter().enumerate();
    disks.filter_map(|(index, disk)| Some((disk_node(index), disk.grown_to?))).collect()
}

fn disk_node(index: usize) -> String {
    format!("disk{index}")
}

/// The memory of the guest. Whatever it comes from has the same name, because saved state is found by name.
fn memory(spec: &VmSpec, template: Option<RawFd>) -> Value {
    let file = |path: &str, share: bool| json!({"qom-type": "memory-backend-file", "mem-path": path, "share": share});
    let mut memory = match (&spec.ram, template) {
        (Ram::File { path }, _) => file(&path.to_string_lossy(), true),
        // QEMU opens it for writing even for a private mapping; the seals are what keeps it as it is.
        (Ram::Template, Some(fd)) => file(&format!("/proc/self/fd/{fd}"), false),
        (Ram::Template, None) | (Ram::Anonymous, _) => json!({"qom-type": "memory-backend-ram"}),
    };
    memory["id"] = json!(MEMORY);
    memory["size"] = json!(u64::from(spec.memory.get()) << 20);
    memory
}

/// What the guest is told of its CPUs.
fn cpu(accelerator: Accelerator) -> &'static str {
    match accelerator {
        // "Enhanced REP MOVSB" is a promise that copying by bytes is fast. Emulated, each byte costs as much as a word would:
        // without it the guest's kernel copies and clears memory by words.
        Accelerator::Tcg => "max,-erms",
        Accelerator::Kvm | Accelerator::Hvf => "max",
    }
}

fn kernel_command_line(accelerator: Accelerator, begin: Begin) -> String {
    // `panic=-1` and `reboot=t` turn every end of the kernel into a reset, which ends QEMU.
    // Of the security modules those that programs of the guest use themselves: the others have no policy here, and cost
    // something in every system call.
    let mut line =
        "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests random.trust_cpu=on lsm=landlock,yama"
            .to_owned();
    if accelerator == Accelerator::Tcg {
        // The check counts emulated timer interrupts in real time, and fails on a busy host.
        line.push_str(" no_timer_check");
        // Emulated CPUs do not speculate. What runs on them becomes branches of the VMM, which the guest's kernel cannot
        // guard; what it does about them makes every indirect call four times as long.
        line.push_str(" mitigations=off");
        // Accounts for each switch between processes.
        line.push_str(" psi=0");
    }
    if let Begin::Boot { tsc_khz: Some(khz) } = begin {
        line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable"));
    }
    line
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn option(&mut self, name: &str, value: Option<&str>) {
        self.0.push(name.into());
        self.0.extend(value.map(OsString::from));
    }

    fn path(&mut self, name: &str, path: &std::ffi::OsStr) {
        self.0.push(name.into());
        self.0.push(path.to_owned());
    }

    /// A block device. The nodes are given as JSON: there a path may contain any character.
    fn disk(&mut self, index: usize, disk: &Disk) {
        let driver = match disk.format {
            DiskFormat::Raw => "raw",
        };
        // What the guest discards is given back to the host; `auto` locking refuses two writers of one file.
        let file = json!({
            "driver": "file", "node-name": format!("file{index}"), "filename": disk.path.to_string_lossy(),
            "read-only": disk.read_only, "auto-read-only": false, "aio": "threads", "locking": "auto",
            "discard": "unmap", "cache": {"direct": false, "no-flush": false},
        });
        let format = json!({
            "driver": driver, "node-name": disk_node(index), "file": format!("file{index}"),
            "read-only": disk.read_only, "auto-read-only": false, "discard": "unmap",
        });
        self.option("-blockdev", Some(&file.to_string()));
        self.option("-blockdev", Some(&format.to_string()));
        // Written as JSON as well, because a serial number is only promised to be ASCII. A full host disk is an
        // error of the guest, not a reason to halt it: nobody would let it go on.
        let device = json!({
            "driver": "virtio-blk-device", "drive": disk_node(index), "serial": disk.serial,
            "werror": "report", "rerror": "report",
        });
        self.option("-device", Some(&device.to_string()));
    }

    /// The disk of which somebody at the other end of a stream answers for each read: NBD.
    fn content_disk(&mut self, fd: RawFd) {
        let node = json!({
            "driver": "nbd", "node-name": "content", "server": {"type": "fd", "str": fd.to_string()}, "read-only": true,
        });
        self.option("-blockdev", Some(&node.to_string()));
        // Two reads that follow each other are not one: each answer begins with its length.
        let device = json!({
            "driver": "virtio-blk-device", "drive": "content", "serial": CONTENT_DISK, "request-merging": false,
            "rerror": "report",
        });
        self.option("-device", Some(&device.to_string()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use aegis_types::{Mib, Ram, Vcpus, VmId};

    fn spec(accelerator: Accelerator) -> VmSpec {
        let disk = |path: &str, serial: &str, read_only| Disk {
            path: path.into(),
            format: DiskFormat::Raw,
            serial: serial.into(),
            read_only,
            grown_to: None,
        };
        VmSpec {
            vm_id: VmId::from_random(1),
            vmm_path: "/usr/bin/qemu-system-x86_64".into(),
            accelerator,
            kernel: "/lib/aegis/vmlinux".into(),
            initramfs: "/lib/aegis/initramfs.cpio".into(),
            memory: Mib::new(256).unwrap(),
            vcpus: Vcpus::new(2).unwrap(),
            disks: vec![disk("/images/a,b.erofs", "root", true), disk("/inst/upper.ext4", "upper", false)],
            ram: Ram::default(),
            runtime_dir: "/run/x".into(),
        }
    }

    const FDS: Fds = Fds { link: 7, qmp: 9, files: 13, content: 15, ethernet: 11, template: None };

    fn lines(args: Vec<OsString>) -> String {
        args.into_iter().map(|a| a.into_string().unwrap()).collect::<Vec<_>>().join("\n")
    }

    fn line(accelerator: Accelerator, tsc_khz: Option<u64>) -> String {
        lines(arguments(&spec(accelerator), FDS, Begin::Boot { tsc_khz }))
    }

    /// Every JSON argument.
    fn objects(line: &str) -> Vec<Value> {
        line.lines().filter(|l| l.starts_with('{')).map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn the_machine_is_as_documented() {
        let line = line(Accelerator::Tcg, Some(2_600_000));
        for part in [
            "-sandbox\non,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny\n",
            "-machine\nmicrovm,acpi=on,isa-serial=on,rtc=on,pit=on,pic=on,",
            "-accel\ntcg\n-cpu\nmax,-erms\n-m\n256M\n-smp\n2\n-kernel\n/lib/aegis/vmlinux\n-initrd\n/lib/aegis/initramfs.cpio\n",
            " no_timer_check mitigations=off psi=0 tsc_early_khz=2600000 tsc=reliable\n",
            "-chardev\nsocket,id=qmp,fd=9\n-mon\nchardev=qmp,mode=control\n",
            "-chardev\nsocket,id=link,fd=7,server=on,wait=off\n",
            "-device\nvirtserialport,chardev=link,name=aegis.ctl\n",
            "-chardev\nsocket,id=files,fd=13\n-device\nvirtserialport,chardev=files,name=aegis.fs\n",
        ] {
            assert!(line.contains(part), "{part:?} not in {line}");
        }
    }

    #[test]
    fn a_guest_under_kvm_is_not_told_the_clock_rate_and_guards_its_branches() {
        let line = line(Accelerator::Kvm, None);
        assert!(line.contains("-accel\nkvm\n") && !line.contains("tsc"), "{line}");
        assert!(!line.contains("mitigations"), "{line}");
    }

    #[test]
    fn disk_formats_are_stated_and_paths_are_quoted() {
        let line = line(Accelerator::Tcg, None);
        let objects = objects(&line).split_off(1);
        assert_eq!(objects.len(), 8);
        assert_eq!(
            (&objects[0]["filename"], &objects[0]["read-only"]),
            (&json!("/images/a,b.erofs"), &json!(true))
        );
        assert_eq!((&objects[1]["driver"], &objects[1]["file"]), (&json!("raw"), &json!("file0")));
        assert_eq!((&objects[2]["drive"], &objects[2]["serial"]), (&json!("disk0"), &json!("root")));
        assert_eq!((&objects[3]["read-only"], &objects[3]["discard"]), (&json!(false), &json!("unmap")));
        assert_eq!(&objects[4]["read-only"], &json!(false));
        assert_eq!(&objects[5]["serial"], &json!("upper"));
        assert_eq!(objects[6]["server"], json!({"type": "fd", "str": "15"}));
        assert_eq!(
            (&objects[7]["serial"], &objects[7]["request-merging"]),
            (&json!("aegis.content"), &json!(false))
        );
    }

    #[test]
    fn machines_differ_in_their_memory_only() {
        let path = "/home/a,b=\"c\"/ram";
        let with = |ram: Ram, template, begin| {
            lines(arguments(&VmSpec { ram, ..spec(Accelerator::Tcg) }, Fds { template, ..FDS }, begin))
        };
        let boot = Begin::Boot { tsc_khz: None };
        let anonymous = with(Ram::Anonymous, None, boot);
        let file = with(Ram::File { path: path.into() }, None, boot);
        let template = with(Ram::Template, Some(5), boot);
        let size = 256 << 20;
        assert_eq!(
            objects(&anonymous)[0],
            json!({"qom-type": "memory-backend-ram", "id": "ram0", "size": size})
        );
        assert_eq!(
            objects(&file)[0],
            json!({"qom-type": "memory-backend-file", "id": "ram0", "size": size, "mem-path": path, "share": true})
        );
        assert_eq!(
            objects(&template)[0],
            json!({"qom-type": "memory-backend-file", "id": "ram0", "size": size, "mem-path": "/proc/self/fd/5", "share": false})
        );
        let rest = |line: &str| {
            line.lines().filter(|l| !l.contains("qom-type")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(rest(&anonymous), rest(&file));
        assert_eq!(rest(&anonymous), rest(&template));
        assert!(anonymous.contains(",mem-merge=off,dump-guest-core=off,memory-backend=ram0\n"));
        let restored = with(Ram::File { path: path.into() }, None, Begin::Incoming);
        assert_eq!(restored, format!("{file}\n-incoming\ndefer"));
    }
}
