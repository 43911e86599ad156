//! Templates: VMs that were booted and parked, from which other VMs start in a fraction of the time.
//!
//! ```text
//! data/templates/<key>/             complete: appears by a rename
//! data/templates/.building-<key>/   a build under way; removed at the start of a daemon
//! run/template-<short key>/         the worker of a build
//! ```
//! A template is made in the background when a VM had to boot although one would have served, one at a time in the
//! whole daemon. What failed is not tried again by itself for a while.
//!
//! **Invariants:** nothing of an instance gets into a template: it is made of an image, an amount of memory and a number
//! of CPUs. Its memory never changes: VMs map a sealed copy privately, or get a copy of their own. One that is being
//! used is not pruned. It does not decide what a VM is started from; `launcher::prepare` does.

mod build;
mod key;
mod memory;
mod template;

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aegis_lifecycle::ports::LaunchError;
use aegis_types::{Accelerator, ImageName, Mib, Vcpus};
use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio::task;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::images::unavailable;
use crate::launcher::files;
use crate::launcher::machine::{Machine, Machines};
use build::BUILDING;
use key::Key;
pub(crate) use template::Template;

/// How long the memory of a template is kept without a start.
const MEMORY_KEPT: Duration = Duration::from_secs(10 * 60);
/// Time after a failed build before the next one that nobody asked for.
const RETRY_AFTER: Duration = Duration::from_secs(10 * 60);

/// What becomes of templates by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateOptions {
    /// VMs are started from templates, and templates are made when there is none.
    pub enabled: bool,
    /// Templates that were not used for this long are removed.
    pub age_max: Duration,
    /// Room on the disk that templates may take together, in bytes; those that were not used for longest go first.
    pub bytes_max: u64,
}

impl Default for TemplateOptions {
    fn default() -> Self {
        Self { enabled: true, age_max: Duration::from_secs(30 * 24 * 3600), bytes_max: 4 << 30 }
    }
}

/// The templates of one home.
pub(crate) struct Templates {
    machines: Arc<Machines>,
    options: TemplateOptions,
    state: Mutex<State>,
    /// One build at a time: they take all of a CPU.
    building: Semaphore,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    ready: HashMap<Key, Arc<Template>>,
    builds: HashMap<Key, Build>,
    failed: HashMap<Key, Failure>,
}

type Outcome = Result<(), String>;

struct Build {
    machine: Machine,
    since: Timestamp,
    outcome: watch::Receiver<Option<Outcome>>,
}

struct Failure {
    machine: Machine,
    at: Timestamp,
    when: Instant,
    error: String,
}

/// What is known of one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TemplateInfo {
    /// 32 hexadecimal digits.
    pub(crate) key: String,
    pub(crate) state: TemplateState,
    pub(crate) image: ImageName,
    pub(crate) image_digest: String,
    pub(crate) memory: Mib,
    pub(crate) vcpus: Vcpus,
    /// Length of its disk.
    pub(crate) disk_bytes: u64,
    pub(crate) accelerator: Accelerator,
    /// When it became ready, its build began, or that failed.
    pub(crate) created_at: Timestamp,
    /// Only of ready ones.
    pub(crate) last_used_at: Option<Timestamp>,
    /// On the disk.
    pub(crate) size_bytes: u64,
    /// Its memory is in memory, ready to be mapped.
    pub(crate) loaded: bool,
}

/// Part of [`TemplateInfo`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TemplateState {
    /// VMs can be started from it.
    Ready,
    /// It is being made, or waits for its turn.
    Building,
    /// It could not be made, and why.
    Failed(String),
}

/// What [`Templates::prune`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pruned {
    /// Templates that are gone.
    pub(crate) removed: usize,
    /// Room on the disk that they took.
    pub(crate) bytes: u64,
}

impl Templates {
    pub(crate) fn new(machines: Arc<Machines>, options: TemplateOptions) -> Arc<Self> {
        Arc::new(Self {
            machines,
            options,
            state: Mutex::default(),
            building: Semaphore::new(1),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this")
    }

    /// Finds the templates that earlier daemons made, removes what they left of others, and prunes. The workers of earlier
    /// builds are gone. Blocks.
    pub(crate) fn load(&self) -> std::io::Result<()> {
        let dir = self.machines.home.templates();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            let opened = match name.to_str().and_then(Key::parse) {
                Some(key) => Template::open(&path, &key).map(|template| (key, template)),
                None if name.as_encoded_bytes().starts_with(BUILDING.as_bytes()) => {
                    Err("its build was interrupted".to_owned())
                }
                // Not ours.
                None => continue,
            };
            match opened {
                Ok((key, template)) => {
                    self.state().ready.insert(key, Arc::new(template));
                }
                Err(why) => {
                    tracing::info!(path = %path.display(), why, "removing a template that cannot be used");
                    if let Err(error) = files::remove_dir(&path) {
                        tracing::warn!(%error, path = %path.display(), "cannot remove it");
                    }
                }
            }
        }
        self.prune_by_itself();
        Ok(())
    }

    /// The template for this machine, if there is one. Blocks, but only for a moment.
    ///
    /// # Errors
    /// There was one; it is damaged and was removed.
    pub(crate) fn find(self: &Arc<Self>, machine: &Machine) -> Result<Option<Arc<Template>>, String> {
        if !self.options.enabled {
            return Ok(None);
        }
        let Ok(Some(key)) = Key::at_once(&self.machines, machine) else { return Ok(None) };
        let Some(template) = self.state().ready.get(&key).cloned() else { return Ok(None) };
        match template.check() {
            Ok(()) => {
                template.touch();
                Ok(Some(template))
            }
            Err(e) => {
                self.remove(&template);
                Err(e.to_string())
            }
        }
    }

    /// The memory of a template, to be mapped by a VM. Blocks while it is read from the disk.
    pub(crate) fn sealed(self: &Arc<Self>, template: &Arc<Template>) -> std::io::Result<Arc<fs::File>> {
        let (file, fresh) = template.sealed()?;
        if fresh {
            self.tasks.spawn(unload_later(Arc::downgrade(template), self.cancel.clone()));
        }
        Ok(file)
    }

    /// A VM could not be started from this template and booted instead: it is not used again.
    pub(crate) fn condemn(&self, template: &Arc<Template>, machine: &Machine, why: String) {
        tracing::warn!(template = %template.key(), why, "removing a template from which a VM could not be started");
        self.remove(template);
        self.fail(template.key(), machine, format!("a VM could not be started from it: {why}"));
    }

    fn remove(&self, template: &Arc<Template>) {
        let mut state = self.state();
        // Not one that was made since.
        if state.ready.get(template.key()).is_some_and(|ready| Arc::ptr_eq(ready, template)) {
            state.ready.remove(template.key());
            if let Err(error) = files::remove_dir(template.dir()) {
                tracing::warn!(%error, path = %template.dir().display(), "cannot remove a template");
            }
        }
    }

    fn fail(&self, key: &Key, machine: &Machine, error: String) {
        let mut state = self.state();
        state.failed.retain(|_, failure| failure.when.elapsed() < RETRY_AFTER);
        let failure = Failure { machine: machine.clone(), at: Timestamp::now(), when: Instant::now(), error };
        state.failed.insert(key.clone(), failure);
    }

    /// Makes the template for this machine in the background, unless there is one, or it is being made, or could not be
    /// made a short time ago. Not before `wanted` says that it is worth it.
    pub(crate) fn want(
        self: &Arc<Self>,
        machine: Machine,
        wanted: impl Future<Output = bool> + Send + 'static,
    ) {
        if !self.options.enabled {
            return;
        }
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let worth_it = tokio::select! {
                worth_it = wanted => worth_it,
                () = this.cancel.cancelled() => false,
            };
            if !worth_it {
                return;
            }
            let Some(key) = this.key(&machine).await else { return };
            if this.state().failed.get(&key).is_some_and(|failure| failure.when.elapsed() < RETRY_AFTER) {
                return;
            }
            // Its failure is remembered, and told in the list.
            drop(this.ensure(key, machine).await);
        });
    }

    async fn key(&self, machine: &Machine) -> Option<Key> {
        let (machines, machine) = (Arc::clone(&self.machines), machine.clone());
        let key = task::spawn_blocking(move || Key::of(&machines, &machine)).await;
        key.expect("reading files does not panic")
            .inspect_err(|error| tracing::warn!(%error, "cannot tell which template would serve"))
            .ok()
    }

    /// Makes the template for these wishes, or waits for whoever makes it. One that is ready is left as it is.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(crate) async fn build_now(
        self: &Arc<Self>,
        image: ImageName,
        memory: Mib,
        vcpus: Vcpus,
        accelerator: Accelerator,
    ) -> Result<TemplateInfo, LaunchError> {
        let failed = |message: String, hint: &str| LaunchError { message, hint: Some(hint.to_owned()) };
        if !self.options.enabled {
            return Err(failed("templates are switched off".to_owned(), "set `templates = \"auto\"`"));
        }
        let machines = Arc::clone(&self.machines);
        let find = move || {
            let root = machines.images.find(&image).map_err(|e| unavailable(&e))?;
            machines.find(&image, root, memory, vcpus, machines.default_disk, accelerator)
        };
        let found = task::spawn_blocking(find).await;
        let machine = found.expect("looking at files does not panic")?;
        let key = self.key(&machine).await.ok_or_else(|| {
            failed("cannot read the guest's kernel or initramfs".to_owned(), "`aegis doctor` checks them")
        })?;
        let made = self.ensure(key.clone(), machine).await;
        made.map_err(|error| failed(format!("cannot make the template: {error}"), "see the log of aegisd"))?;
        let this = Arc::clone(self);
        let list = task::spawn_blocking(move || this.list()).await.expect("looking at files does not panic");
        let made = list.into_iter().find(|info| info.key == key.as_str());
        made.ok_or_else(|| failed("the template was removed at once".to_owned(), "is the disk full?"))
    }

    /// Returns when the template is ready, or why it is not.
    async fn ensure(self: &Arc<Self>, key: Key, machine: Machine) -> Outcome {
        let mut outcome = {
            let mut state = self.state();
            if state.ready.contains_key(&key) {
                return Ok(());
            }
            match state.builds.get(&key) {
                Some(build) => build.outcome.clone(),
                None => {
                    let (done, outcome) = watch::channel(None);
                    let build =
                        Build { machine: machine.clone(), since: Timestamp::now(), outcome: outcome.clone() };
                    state.builds.insert(key.clone(), build);
                    let this = Arc::clone(self);
                    // Not in the task of whoever asked: that one may lose interest.
                    self.tasks.spawn(async move {
                        let result = this.build(&key, &machine).await;
                        done.send_replace(Some(result));
                    });
                    outcome
                }
            }
        };
        let known = outcome.wait_for(Option::is_some).await;
        known
            .ok()
            .and_then(|outcome| outcome.clone())
            .unwrap_or_else(|| Err("aegisd is shutting down".to_owned()))
    }

    async fn build(self: &Arc<Self>, key: &Key, machine: &Machine) -> Outcome {
        let built = tokio::select! {
            // Before it begins: once there is a worker the build itself has to end it.
            biased;
            () = self.cancel.cancelled() => Err("aegisd is shutting down".to_owned()),
            turn = self.building.acquire() => {
                let _turn = turn.expect("the semaphore is never closed");
                tracing::info!(template = %key, image = %machine.image, memory = %machine.memory, "making a template");
                build::build(&self.machines, machine, key, &self.cancel).await
            }
        };
        let outcome = {
            let mut state = self.state();
            state.builds.remove(key);
            match built {
                Ok(template) => {
                    state.failed.remove(key);
                    state.ready.insert(key.clone(), Arc::new(template));
                    Ok(())
                }
                Err(error) => Err(error),
            }
        };
        match &outcome {
            Ok(()) => {
                let this = Arc::clone(self);
                let pruned = task::spawn_blocking(move || this.prune_by_itself());
                pruned.await.expect("removing files does not panic");
            }
            Err(error) if self.cancel.is_cancelled() => tracing::debug!(template = %key, error, "not made"),
            Err(error) => {
                tracing::warn!(template = %key, error, "cannot make a template");
                self.fail(key, machine, error.clone());
            }
        }
        outcome
    }

    /// All templates, those that were used last first. Blocks.
    pub(crate) fn list(&self) -> Vec<TemplateInfo> {
        let (ready, mut list) = {
            let state = self.state();
            let building = state
                .builds
                .iter()
                .map(|(key, build)| info(key, &build.machine, TemplateState::Building, build.since));
            let failed = state.failed.iter().filter(|(key, _)| !state.builds.contains_key(*key));
            let failed = failed.map(|(key, failure)| {
                info(key, &failure.machine, TemplateState::Failed(failure.error.clone()), failure.at)
            });
            let list: Vec<TemplateInfo> = building.chain(failed).collect();
            (state.ready.values().cloned().collect::<Vec<_>>(), list)
        };
        list.extend(ready.iter().map(|template| {
            let about = template.about().clone();
            TemplateInfo {
                key: about.key,
                state: TemplateState::Ready,
                image: about.image,
                image_digest: about.image_digest,
                memory: about.memory,
                vcpus: about.vcpus,
                disk_bytes: about.disk_bytes,
                accelerator: about.accelerator,
                created_at: about.created_at,
                last_used_at: Some(about.last_used_at),
                size_bytes: template.size(),
                loaded: template.is_loaded(),
            }
        }));
        list.sort_by_key(|info| std::cmp::Reverse(info.last_used_at.unwrap_or(info.created_at)));
        list
    }

    /// Removes templates that were not used for `age_max`, and then those that were not used for longest until the rest
    /// takes no more than `bytes_max`. One that is being used stays. Blocks.
    pub(crate) fn prune(&self, age_max: Duration, bytes_max: u64) -> Pruned {
        self.prune_except(age_max, bytes_max, 0)
    }

    /// The newest one stays however large it is: it would only be made again.
    fn prune_by_itself(&self) {
        let pruned = self.prune_except(self.options.age_max, self.options.bytes_max, 1);
        if pruned.removed > 0 {
            tracing::info!(removed = pruned.removed, bytes = pruned.bytes, "removed old templates");
        }
    }

    /// `kept` of them are removed for their age only.
    fn prune_except(&self, age_max: Duration, bytes_max: u64, kept: usize) -> Pruned {
        // Nobody can get hold of one while we look whether anybody has.
        let mut state = self.state();
        let mut all: Vec<(Timestamp, u64, Key)> = state
            .ready
            .iter()
            .map(|(key, template)| (template.about().last_used_at, template.size(), key.clone()))
            .collect();
        all.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let now = Timestamp::now();
        let (mut total, mut pruned) = (0u64, Pruned::default());
        for (index, (used, size, key)) in all.into_iter().enumerate() {
            let old = now.duration_since(used).unsigned_abs() >= age_max && now >= used;
            let too_much = index >= kept && total.saturating_add(size) > bytes_max;
            let in_use = state.ready.get(&key).is_none_or(|template| Arc::strong_count(template) > 1);
            if in_use || !(old || too_much) {
                total = total.saturating_add(size);
                continue;
            }
            let Some(template) = state.ready.remove(&key) else { continue };
            match files::remove_dir(template.dir()) {
                Ok(()) => {
                    pruned.removed += 1;
                    pruned.bytes += size;
                }
                Err(error) => {
                    tracing::warn!(%error, path = %template.dir().display(), "cannot remove a template");
                }
            }
        }
        pruned
    }

    /// Ends builds under way and returns when nothing of them is left. Templates that are there can be used on.
    pub(crate) async fn shutdown(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn info(key: &Key, machine: &Machine, state: TemplateState, at: Timestamp) -> TemplateInfo {
    TemplateInfo {
        key: key.as_str().to_owned(),
        state,
        image: machine.image.clone(),
        image_digest: machine.image_digest.clone(),
        memory: machine.memory,
        vcpus: machine.vcpus,
        disk_bytes: machine.template_disk.bytes(),
        accelerator: machine.accelerator,
        created_at: at,
        last_used_at: None,
        size_bytes: 0,
        loaded: false,
    }
}

/// Lets go of the memory of a template when no VM was started from it for a while.
async fn unload_later(template: std::sync::Weak<Template>, cancel: CancellationToken) {
    let mut wait = MEMORY_KEPT;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cancel.cancelled() => return,
        }
        let Some(template) = template.upgrade() else { return };
        // It may be reading the disk right now.
        let rest = task::spawn_blocking(move || template.unload(MEMORY_KEPT)).await;
        match rest.expect("closing a file does not panic") {
            Some(rest) => wait = rest,
            None => return,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
