#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Read as _;

use aegis_proto::saved::{SAVED_FILE, TAKEN_FILE};
use aegis_types::{DiskSize, ImageName, Mib, Policy, Vcpus};
use jiff::Timestamp;

use super::*;
use crate::launcher::files;
use crate::saved::tests::leave;
use crate::templates::tests::{Fixture, KEPT};
use crate::workspaces::Workspaces;
use aegis_config::Environment;

const MIB: u64 = 128;

fn plan(f: &Fixture) -> Plan {
    let memories = Arc::new(Memories::new(f.home.clone()));
    let networks = Arc::new(Networks::new(f.home.clone(), &Environment::from_fn(|_| None)));
    let workspaces = Arc::new(Workspaces::new(f.home.clone()));
    Plan { machines: Arc::clone(&f.machines), memories, templates: f.templates(KEPT), networks, workspaces }
}

fn spec(policy: Policy) -> InstanceSpec {
    InstanceSpec {
        id: InstanceId::from_unix_nanos(1),
        handle: None,
        image: ImageName::parse("base").unwrap(),
        command: vec!["secret-command".to_owned()],
        env: [("KEY".to_owned(), "secret-value".to_owned())].into(),
        workdir: None,
        user: None,
        tty: false,
        stdin: false,
        oci_defaults: false,
        memory: Mib::new(MIB).unwrap(),
        disk: DiskSize::DEFAULT,
        vcpus: Vcpus::DEFAULT,
        policy,
        parent: None,
        mounts: Vec::new(),
        auto_workspace: false,
        created_at: Timestamp::UNIX_EPOCH,
    }
}

fn persistent() -> InstanceSpec {
    spec(Policy::default())
}

/// The two kinds of instances whose memory is never on the disk.
fn fleeting() -> [InstanceSpec; 2] {
    [
        spec(Policy { ephemeral: true, ..Policy::default() }),
        spec(Policy { no_hibernate: true, ..Policy::default() }),
    ]
}

fn prepare(plan: &Plan, spec: &InstanceSpec) -> Prepared {
    plan.prepare(spec, &VmId::from_random(2), Accelerator::Tcg).unwrap()
}

/// It is a copy of the template's, and as long as was asked for.
fn assert_disk(f: &Fixture, spec: &InstanceSpec) {
    let disk = fs::File::open(disk::path(&f.home, &spec.id)).unwrap();
    assert_eq!(disk.metadata().unwrap().len(), spec.disk.bytes());
    let mut start = [0; 4];
    (&disk).read_exact(&mut start).unwrap();
    assert_eq!(&start, b"disk");
}

fn disk_length(f: &Fixture, spec: &InstanceSpec) -> u64 {
    fs::metadata(disk::path(&f.home, &spec.id)).unwrap().len()
}

#[test]
fn a_saved_vm_is_gone_on_from_once() {
    let f = Fixture::new();
    let (plan, spec) = (plan(&f), persistent());
    // Its first start, and then it is saved.
    let first = prepare(&plan, &spec);
    assert!(matches!(first.source, Source::Kernel { template_wanted: true }) && first.notes.is_empty());
    assert!(first.config.restore.is_none());
    let dir = f.home.memory_dir(&spec.id);
    let saved = leave(&dir, &first.config.machine, spec.memory);

    let second = prepare(&plan, &spec);
    assert!(matches!(second.source, Source::Saved) && second.notes.is_empty());
    assert_eq!(second.config.vm.ram, Ram::File { path: dir.join(RAM_FILE) });
    let expected =
        Restore { state: dir.join(STATE_FILE), kind: StartKind::Restore, boot_id: Some(saved.boot_id) };
    assert_eq!(second.config.restore, Some(expected));
    assert!(!dir.join(SAVED_FILE).exists() && dir.join(RAM_FILE).exists() && dir.join(STATE_FILE).exists());

    // As the worker does.
    fs::remove_file(dir.join(TAKEN_FILE)).unwrap();
    let third = prepare(&plan, &spec);
    assert!(matches!(third.source, Source::Kernel { template_wanted: false }), "it has a disk");
    assert!(third.config.restore.is_none() && third.notes.is_empty());
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "nothing of the memory is left");
}

#[test]
fn a_saved_vm_that_does_not_fit_is_told_and_never_seen_again() {
    let f = Fixture::new();
    let (plan, spec) = (plan(&f), persistent());
    prepare(&plan, &spec);
    let dir = f.home.memory_dir(&spec.id);
    leave(&dir, "another machine", spec.memory);
    let prepared = prepare(&plan, &spec);
    assert!(matches!(prepared.source, Source::Kernel { template_wanted: false }));
    let note = "the saved memory cannot be used: the VMM, the image or the machine has changed since; \
                booting from the disk instead";
    assert_eq!(prepared.notes, [note]);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn a_persistent_instance_gets_copies_of_a_template() {
    let f = Fixture::new();
    let (_, template) = f.leave(MIB);
    let (plan, spec) = (plan(&f), persistent());
    let prepared = prepare(&plan, &spec);
    assert!(matches!(prepared.source, Source::Template { memory: None, .. }), "{:?}", prepared.notes);
    let ram = f.home.memory_dir(&spec.id).join(RAM_FILE);
    assert_eq!(prepared.config.vm.ram, Ram::File { path: ram.clone() });
    assert!(fs::read(&ram).unwrap() == fs::read(template.join(RAM_FILE)).unwrap());
    assert_disk(&f, &spec);
    let restore = prepared.config.restore.unwrap();
    assert_eq!((restore.kind, restore.boot_id), (StartKind::Template, None));
    assert_eq!(restore.state, template.join(STATE_FILE));
    // It has a disk now, which no template knows.
    let again = prepare(&plan, &spec);
    assert!(matches!(again.source, Source::Kernel { template_wanted: false }));
}

#[tokio::test]
async fn memory_that_must_not_be_on_the_disk_is_a_view_of_the_template() {
    for spec in fleeting() {
        let f = Fixture::new();
        let (_, template) = f.leave(MIB);
        let plan = plan(&f);
        let prepared = prepare(&plan, &spec);
        assert!(matches!(prepared.source, Source::Template { memory: Some(_), .. }), "{:?}", prepared.notes);
        assert_eq!(prepared.config.vm.ram, Ram::Template);
        assert_eq!(prepared.config.restore.unwrap().state, template.join(STATE_FILE));
        assert!(!f.home.memory_dir(&spec.id).exists());
        assert_disk(&f, &spec);
        plan.templates.shutdown().await;
    }
}

#[test]
fn without_a_template_memory_that_must_not_be_on_the_disk_is_anonymous() {
    for spec in fleeting() {
        let f = Fixture::new();
        let prepared = prepare(&plan(&f), &spec);
        assert!(matches!(prepared.source, Source::Kernel { template_wanted: true }));
        assert_eq!((&prepared.config.vm.ram, &prepared.config.restore), (&Ram::Anonymous, &None));
        assert!(!f.home.memory_dir(&spec.id).exists());
    }
}

#[test]
fn a_template_that_was_damaged_is_told_and_the_vm_boots() {
    let f = Fixture::new();
    let (_, template) = f.leave(MIB);
    let (plan, spec) = (plan(&f), persistent());
    fs::write(template.join(STATE_FILE), "DEVICES").unwrap();
    let prepared = prepare(&plan, &spec);
    assert!(matches!(prepared.source, Source::Kernel { template_wanted: true }));
    let note = "the template cannot be used: the state of its devices is damaged; booting instead";
    assert_eq!(prepared.notes, [note]);
    assert!(!template.exists() && prepared.config.restore.is_none());
    assert_eq!(fs::read_dir(f.home.memory_dir(&spec.id)).unwrap().count(), 0);
}

#[test]
fn a_clone_that_fails_halfway_leaves_nothing_that_a_boot_would_see() {
    let f = Fixture::new();
    let (_, template) = f.leave(MIB);
    let (plan, spec) = (plan(&f), persistent());
    // The copy of the disk cannot be made; a later one of the empty disk can.
    let fresh = f.home.instance_dir(&spec.id).join("upper.ext4.new");
    files::make_dir(&fresh).unwrap();
    let Err(failed) = plan.prepare(&spec, &VmId::from_random(2), Accelerator::Tcg) else { panic!("a disk") };
    assert!(failed.message.starts_with("cannot create the disk "), "{failed}");
    assert!(!disk::exists(&f.home, &spec.id) && template.exists());
    fs::remove_dir(&fresh).unwrap();
    let prepared = prepare(&plan, &spec);
    assert!(matches!(prepared.source, Source::Template { .. }), "{:?}", prepared.notes);
}

#[test]
fn instances_of_every_size_are_copies_of_a_template() {
    let f = Fixture::new();
    // Made for instances with the default; whatever is larger is grown from it, and the guest is told.
    f.leave_with_disk(MIB, DiskSize::DEFAULT);
    f.leave_with_disk(MIB, DiskSize::MIN);
    let plan = plan(&f);
    for (n, mib, grown) in
        [(1, 10 << 10, false), (2, 20 << 10, true), (3, (10 << 10) - 1, true), (4, 300, true), (5, 64, false)]
    {
        let (id, disk) = (InstanceId::from_unix_nanos(n), DiskSize::new(mib).unwrap());
        let spec = InstanceSpec { id, disk, ..persistent() };
        let prepared = prepare(&plan, &spec);
        assert!(matches!(prepared.source, Source::Template { .. }), "{mib}: {:?}", prepared.notes);
        assert_eq!(disk_length(&f, &spec), disk.bytes());
        let told: Vec<_> = prepared.config.vm.disks.iter().map(|disk| disk.grown_to).collect();
        assert_eq!(told, [None, grown.then(|| disk.bytes())], "{mib}");
    }
}

#[test]
fn a_disk_grows_when_its_instance_boots_and_not_when_it_goes_on_from_its_memory() {
    let f = Fixture::new();
    let (plan, spec) = (plan(&f), persistent());
    let first = prepare(&plan, &spec);
    let dir = f.home.memory_dir(&spec.id);
    leave(&dir, &first.config.machine, spec.memory);
    let larger = InstanceSpec { disk: DiskSize::new(20 << 10).unwrap(), ..spec.clone() };
    let woken = prepare(&plan, &larger);
    assert!(matches!(woken.source, Source::Saved) && woken.config.vm.disks[1].grown_to.is_none());
    assert_eq!(disk_length(&f, &spec), spec.disk.bytes());
    fs::remove_file(dir.join(TAKEN_FILE)).unwrap();
    prepare(&plan, &larger);
    assert_eq!(disk_length(&f, &spec), larger.disk.bytes());
    // Never back.
    prepare(&plan, &spec);
    assert_eq!(disk_length(&f, &spec), larger.disk.bytes());
}

#[test]
fn an_empty_disk_that_is_too_long_is_not_used() {
    let f = Fixture::new();
    let empty = f.machines.assets.path(Asset::DiskTemplate).unwrap();
    fs::File::options().write(true).open(&empty).unwrap().set_len(DiskSize::DEFAULT.bytes()).unwrap();
    let spec = InstanceSpec { disk: DiskSize::new(300).unwrap(), ..persistent() };
    let Err(failed) = plan(&f).prepare(&spec, &VmId::from_random(2), Accelerator::Tcg) else {
        panic!("a disk")
    };
    assert!(failed.message.contains("is larger than 300 MiB"), "{failed}");
    assert!(!disk::exists(&f.home, &spec.id));
}

#[test]
fn machine_ids_are_stable_and_differ() {
    let id = |n| machine_id(&InstanceId::from_unix_nanos(n));
    assert_eq!(id(1), id(1));
    assert_ne!(id(1), id(2));
    assert!(id(1).len() == 32 && id(1).bytes().all(|b| b.is_ascii_hexdigit()));
}
