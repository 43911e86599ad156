#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use aegis_config::Home;
use aegis_proto::saved::{RAM_FILE, SAVED_FILE, STATE_FILE};
use aegis_types::DiskSize;

use super::*;
use crate::assets::{AssetFlags, Assets};
use crate::digests::Digests;
use crate::images::Images;
use crate::launcher::disk::DISK_FILE;
use crate::saved::tests::leave;

const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    pub(crate) home: Home,
    pub(crate) machines: Arc<Machines>,
}

impl Fixture {
    /// An installation whose worker ends at once.
    pub(crate) fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve(Some(dir.path().join("home"))).unwrap();
        home.ensure().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        let (worker, qemu) = (dir.path().join("false"), file("qemu"));
        std::os::unix::fs::symlink("/bin/false", &worker).unwrap();
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
        let flags = AssetFlags {
            kernel: Some(file("kernel")),
            initramfs: Some(file("initramfs")),
            base_image: Some(file("base")),
            disk_template: Some(file("disk")),
            qemu: Some(qemu),
            worker: Some(worker),
        };
        let assets = Arc::new(Assets::new(home.clone(), flags));
        let digests = Arc::new(Digests::open(&home));
        let images = Images::open(home.clone(), Arc::clone(&assets), Arc::clone(&digests)).unwrap();
        let machines = Machines {
            default_disk: DiskSize::DEFAULT,
            home: home.clone(),
            assets,
            images: Arc::new(images),
            digests,
            boot_timeout: Duration::from_secs(1),
        };
        Fixture { dir, home, machines: Arc::new(machines) }
    }

    /// As of a daemon that has just started.
    pub(crate) fn templates(&self, options: TemplateOptions) -> Arc<Templates> {
        let templates = Templates::new(Arc::clone(&self.machines), options);
        templates.load().unwrap();
        templates
    }

    pub(crate) fn machine(&self, mib: u64) -> Machine {
        let image = ImageName::parse("base").unwrap();
        let memory = Mib::new(mib).unwrap();
        let root = self.machines.images.find(&image).unwrap();
        self.machines.find(&image, root, memory, Vcpus::DEFAULT, DiskSize::DEFAULT, Accelerator::Tcg).unwrap()
    }

    /// What a build for a machine with this much memory leaves.
    pub(crate) fn leave(&self, mib: u64) -> (Machine, PathBuf) {
        self.leave_for(self.machine(mib), None)
    }

    /// The same with a disk of this size, for instances with such a one.
    pub(crate) fn leave_with_disk(&self, mib: u64, size: DiskSize) -> (Machine, PathBuf) {
        let mut machine = self.machine(mib);
        machine.template_disk = size;
        self.leave_for(machine, Some(size))
    }

    fn leave_for(&self, machine: Machine, disk: Option<DiskSize>) -> (Machine, PathBuf) {
        let mib = u64::from(machine.memory.get());
        let key = Key::of(&self.machines, &machine).unwrap();
        let dir = self.home.templates().join(key.as_str());
        files::make_dir(&dir).unwrap();
        leave(&dir, &machine.key, machine.memory);
        fs::write(dir.join(RAM_FILE), vec![1; 100 << 10]).unwrap();
        let ram = fs::File::options().write(true).open(dir.join(RAM_FILE)).unwrap();
        ram.set_len(mib << 20).unwrap();
        // So that its blocks are there to be counted.
        ram.sync_all().unwrap();
        fs::write(dir.join(DISK_FILE), "disk").unwrap();
        if let Some(size) = disk {
            let file = fs::File::options().write(true).open(dir.join(DISK_FILE)).unwrap();
            file.set_len(size.bytes()).unwrap();
        }
        Template::describe(&dir, &key, &machine).unwrap();
        (machine, dir)
    }

    fn age(dir: &std::path::Path, by: Duration) {
        let path = dir.join("template.json");
        let mut about: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        about["last_used_at"] = (Timestamp::now() - by).to_string().into();
        fs::write(path, about.to_string()).unwrap();
    }
}

/// Nothing is pruned.
pub(crate) const KEPT: TemplateOptions =
    TemplateOptions { enabled: true, age_max: FOREVER, bytes_max: u64::MAX };

#[test]
fn a_template_serves_exactly_its_machine() {
    let f = Fixture::new();
    let (machine, dir) = f.leave(128);
    let templates = f.templates(KEPT);
    let template = templates.find(&machine).unwrap().unwrap();
    assert_eq!(template.restore().state, dir.join(STATE_FILE));
    assert!(templates.find(&f.machine(256)).unwrap().is_none());
    assert!(f.templates(TemplateOptions { enabled: false, ..KEPT }).find(&machine).unwrap().is_none());
    // Another kernel, and its digest is known: the old template does not serve any more.
    fs::write(f.dir.path().join("kernel"), "another").unwrap();
    let key = Key::of(&f.machines, &machine).unwrap();
    assert_ne!(&key, template.key());
    assert!(templates.find(&machine).unwrap().is_none());
}

#[test]
fn a_damaged_template_is_told_and_removed() {
    type Damage = fn(&std::path::Path);
    let damages: [(Damage, &str); 5] = [
        (|dir| fs::write(dir.join(STATE_FILE), "DEVICES").unwrap(), "devices"),
        (|dir| fs::write(dir.join(RAM_FILE), "short").unwrap(), "has 5 bytes"),
        (|dir| fs::remove_file(dir.join(RAM_FILE)).unwrap(), "cannot read"),
        (|dir| fs::remove_file(dir.join(DISK_FILE)).unwrap(), "cannot read"),
        (|dir| fs::write(dir.join(DISK_FILE), "d").unwrap(), "disk is gone"),
    ];
    for (damage, said) in damages {
        let f = Fixture::new();
        let (machine, dir) = f.leave(128);
        let templates = f.templates(KEPT);
        damage(&dir);
        let why = templates.find(&machine).unwrap_err();
        assert!(why.contains(said), "{why}");
        assert!(!dir.exists() && templates.find(&machine).unwrap().is_none());
    }
}

#[test]
fn a_daemon_keeps_whole_templates_and_removes_what_builds_left() {
    let f = Fixture::new();
    let (machine, whole) = f.leave(128);
    let (_, damaged) = f.leave(256);
    fs::remove_file(damaged.join(SAVED_FILE)).unwrap();
    let building = f.home.templates().join(format!("{BUILDING}{}", "0".repeat(32)));
    let foreign = f.home.templates().join("notes");
    for dir in [&building, &foreign] {
        files::make_dir(dir).unwrap();
    }
    let templates = f.templates(KEPT);
    assert!(whole.exists() && foreign.exists() && !damaged.exists() && !building.exists());
    let list = templates.list();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].memory, &list[0].state), (machine.memory, &TemplateState::Ready));
    assert!(list[0].size_bytes > 0 && list[0].size_bytes < 128 << 20, "blocks, not lengths: {list:?}");
}

#[tokio::test]
async fn those_not_used_for_longest_are_pruned_first_and_those_in_use_never() {
    let f = Fixture::new();
    let sizes = [128, 192, 256, 320];
    let left: Vec<_> = sizes.iter().map(|&mib| f.leave(mib)).collect();
    for (hours, (_, dir)) in (1..).zip(&left) {
        Fixture::age(dir, Duration::from_secs(3600 * hours));
    }
    let there = || -> Vec<bool> { left.iter().map(|(_, dir)| dir.exists()).collect() };
    let templates = f.templates(KEPT);
    assert_eq!(templates.prune(FOREVER, u64::MAX), Pruned::default());
    let size = templates.list()[0].size_bytes;
    // By age, but one of them is being used, and used now.
    let used = templates.find(&left[3].0).unwrap().unwrap();
    assert_eq!(templates.prune(Duration::from_secs(9000), u64::MAX).removed, 1);
    assert_eq!(there(), [true, true, false, true]);
    // By size: the one that is used takes its part.
    assert_eq!(templates.prune(FOREVER, size * 2).removed, 1);
    assert_eq!(there(), [true, false, false, true]);
    assert_eq!(templates.prune(Duration::ZERO, 0).removed, 1);
    assert_eq!(there(), [false, false, false, true]);
    drop(used);
    assert_eq!(templates.prune(Duration::ZERO, 0).removed, 1);
    assert!(templates.list().is_empty());
}

#[test]
fn the_newest_template_is_not_pruned_for_its_size_by_itself() {
    let f = Fixture::new();
    let ((_, newest), (_, older)) = (f.leave(128), f.leave(256));
    Fixture::age(&older, Duration::from_secs(3600));
    f.templates(TemplateOptions { bytes_max: 1, ..KEPT });
    assert!(newest.exists() && !older.exists());
}

#[tokio::test]
async fn starts_share_one_copy_of_the_memory_until_it_is_not_used_for_a_while() {
    let f = Fixture::new();
    let (machine, dir) = f.leave(128);
    let templates = f.templates(KEPT);
    let template = templates.find(&machine).unwrap().unwrap();
    assert!(!templates.list()[0].loaded);
    let runtime = tokio::runtime::Handle::current();
    let copies: Vec<Arc<fs::File>> = std::thread::scope(|scope| {
        let (templates, template, runtime) = (&templates, &template, &runtime);
        let start = || {
            scope.spawn(move || {
                let _entered = runtime.enter();
                templates.sealed(template).unwrap()
            })
        };
        let starts: Vec<_> = (0..8).map(|_| start()).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(copies.iter().all(|copy| Arc::ptr_eq(copy, &copies[0])));
    assert!(templates.list()[0].loaded);
    // Still there without its file: until it is let go.
    fs::remove_file(dir.join(RAM_FILE)).unwrap();
    assert!(templates.sealed(&template).is_ok());
    assert!(template.unload(FOREVER).is_some() && template.is_loaded());
    assert_eq!(template.unload(Duration::ZERO), None);
    assert!(!template.is_loaded() && templates.sealed(&template).is_err());
    templates.shutdown().await;
}

#[tokio::test]
async fn a_build_that_fails_is_remembered_and_leaves_nothing() {
    let f = Fixture::new();
    let templates = f.templates(KEPT);
    let machine = f.machine(128);
    templates.want(machine.clone(), async { false });
    templates.want(machine.clone(), async { true });
    let failed = async {
        loop {
            let list = templates.list();
            if let [TemplateInfo { state: TemplateState::Failed(why), .. }] = &list[..] {
                return why.clone();
            }
            task::yield_now().await;
        }
    };
    let why = tokio::time::timeout(Duration::from_secs(60), failed).await.unwrap();
    assert!(!why.is_empty());
    // Not again by itself, but when somebody asks.
    let since = templates.list()[0].created_at;
    templates.want(machine.clone(), async { true });
    let image = machine.image.clone();
    let asked =
        templates.build_now(image, machine.memory, machine.vcpus, Accelerator::Tcg).await.unwrap_err();
    assert!(asked.message.starts_with("cannot make the template: "), "{asked}");
    templates.shutdown().await;
    let list = templates.list();
    assert!(list.len() == 1 && list[0].created_at > since, "{list:?}");
    assert_eq!(fs::read_dir(f.home.templates()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(f.home.run()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_template_that_does_not_serve_is_given_up() {
    let f = Fixture::new();
    let (machine, dir) = f.leave(128);
    let templates = f.templates(KEPT);
    let template = templates.find(&machine).unwrap().unwrap();
    templates.condemn(&template, &machine, "no answer".to_owned());
    assert!(!dir.exists() && templates.find(&machine).unwrap().is_none());
    let list = templates.list();
    assert!(
        matches!(&list[..], [TemplateInfo { state: TemplateState::Failed(why), .. }] if why.contains("no answer"))
    );
    // And not made again at once.
    templates.want(machine, async { true });
    templates.shutdown().await;
    assert!(!dir.exists());
}
