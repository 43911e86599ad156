//! What a VM is started from: the memory that its instance saved, a template, or its kernel. Everything here blocks.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use aegis_config::Asset;
use aegis_lifecycle::ports::LaunchError;
use aegis_lifecycle::record::InstanceSpec;
use aegis_proto::saved::{RAM_FILE, STATE_FILE};
use aegis_proto::worker::{Restore, WorkerConfig};
use aegis_types::{Accelerator, InstanceId, Ram, StartKind, VmId};
use sha2::{Digest as _, Sha256};

use super::disk;
use super::machine::{BOOT_ATTEMPTS, Machine, Machines, missing};
use super::memory::{Memories, Taken};
use crate::digests::hex;
use crate::images::unavailable;
use crate::networks::Networks;
use crate::templates::{Template, Templates};
use crate::text::chain;
use crate::workspaces::Workspaces;

/// Decides.
pub(super) struct Plan {
    pub(super) machines: Arc<Machines>,
    pub(super) memories: Arc<Memories>,
    pub(super) templates: Arc<Templates>,
    pub(super) networks: Arc<Networks>,
    pub(super) workspaces: Arc<Workspaces>,
}

/// Everything that a worker is to be started with.
pub(super) struct Prepared {
    pub(super) machine: Machine,
    pub(super) config: WorkerConfig,
    /// For the instance's log.
    pub(super) notes: Vec<String>,
    pub(super) source: Source,
}

/// What the VM is started from.
pub(super) enum Source {
    /// Its own memory.
    Saved,
    /// A template, which must stay until the VM runs.
    Template {
        template: Arc<Template>,
        /// Its memory, unless the VM has a copy.
        memory: Option<Arc<File>>,
    },
    /// Its kernel.
    Kernel {
        /// A template would have served.
        template_wanted: bool,
    },
}

/// Memory and state for a [`WorkerConfig`].
struct Start {
    ram: Ram,
    restore: Option<Restore>,
    source: Source,
    /// See [`aegis_types::Disk::grown_to`].
    grown_to: Option<u64>,
}

impl Plan {
    /// Makes the disk if need be and says how to run the VM.
    pub(super) fn prepare(
        &self,
        spec: &InstanceSpec,
        vm: &VmId,
        accelerator: Accelerator,
    ) -> Result<Prepared, LaunchError> {
        let began = Instant::now();
        // First: nothing is used up for a VM that cannot start.
        self.workspaces.check(&spec.mounts).map_err(|e| LaunchError {
            message: format!("cannot mount a directory: {}", chain(&e)),
            hint: Some("put it back where it was, or delete the instance".to_owned()),
        })?;
        let root = self.machines.images.of(spec).map_err(|e| unavailable(&e))?;
        let machine =
            self.machines.find(&spec.image, root, spec.memory, spec.vcpus, spec.disk, accelerator)?;
        let found = began.elapsed();
        let mut notes = Vec::new();
        let start = match self.wake(spec, &machine, &mut notes)? {
            Some(start) => start,
            None => match self.try_template(spec, &machine, &mut notes) {
                Some(start) => start,
                None => self.boot(spec)?,
            },
        };
        let Start { ram, restore, source, grown_to } = start;
        let home = &self.machines.home;
        let hostname = spec.handle.as_ref().map_or(spec.id.as_str(), |handle| handle.as_str());
        let config = WorkerConfig {
            instance_id: spec.id.clone(),
            vm: machine.vm(vm, disk::path(home, &spec.id), grown_to, ram, home.run_dir(&spec.id)),
            hostname: hostname.to_owned(),
            machine_id: machine_id(&spec.id),
            boot_timeout_ms: self.machines.boot_timeout_ms(),
            boot_attempts: BOOT_ATTEMPTS,
            restore,
            machine: machine.key.clone(),
            template: false,
            net: Some(self.networks.setup(&spec.id).map_err(|e| LaunchError {
                message: format!("cannot set up the network: {e}"),
                hint: None,
            })?),
            mounts: spec.mounts.clone(),
        };
        let (find_us, all_us) = (found.as_micros(), began.elapsed().as_micros());
        tracing::debug!(instance = %spec.id, find_us, all_us, "prepared a VM");
        Ok(Prepared { machine, config, notes, source })
    }

    fn wake(
        &self,
        spec: &InstanceSpec,
        machine: &Machine,
        notes: &mut Vec<String>,
    ) -> Result<Option<Start>, LaunchError> {
        let taken = self.memories.take(&spec.id, &machine.key, spec.memory);
        let taken = taken.map_err(|e| memory_trouble("cannot take the saved memory out", &e))?;
        let why = match taken {
            Taken::None => return Ok(None),
            Taken::Unusable(why) => why,
            Taken::Saved(saved) => {
                let dir = self.machines.home.memory_dir(&spec.id);
                let restore = Restore {
                    state: dir.join(STATE_FILE),
                    kind: StartKind::Restore,
                    boot_id: Some(saved.boot_id),
                };
                let ram = Ram::File { path: dir.join(RAM_FILE) };
                // Its disk stays as long as its memory says, whatever was asked for since.
                let restore = Some(restore);
                return Ok(Some(Start { ram, restore, source: Source::Saved, grown_to: None }));
            }
        };
        notes.push(format!("the saved memory cannot be used: {why}; booting from the disk instead"));
        Ok(None)
    }

    /// Only a VM without a disk can be: the memory of a template knows its own disk.
    fn try_template(&self, spec: &InstanceSpec, machine: &Machine, notes: &mut Vec<String>) -> Option<Start> {
        if disk::exists(&self.machines.home, &spec.id) {
            return None;
        }
        let started = match self.templates.find(machine) {
            Ok(None) => return None,
            Ok(Some(template)) => self.clone_template(spec, template).map_err(|e| e.to_string()),
            Err(why) => Err(why),
        };
        match started {
            Ok(start) => Some(start),
            Err(why) => {
                notes.push(format!("the template cannot be used: {why}; booting instead"));
                None
            }
        }
    }

    fn clone_template(&self, spec: &InstanceSpec, template: Arc<Template>) -> io::Result<Start> {
        let began = Instant::now();
        let home = &self.machines.home;
        let (ram, memory) = if is_saved_on_disk(spec) {
            self.memories.make_empty(&spec.id)?;
            let path = home.memory_dir(&spec.id).join(RAM_FILE);
            template.copy_memory(&path)?;
            (Ram::File { path }, None)
        } else {
            (Ram::Template, Some(self.templates.sealed(&template)?))
        };
        let memory_us = began.elapsed().as_micros();
        // Last: once there is a disk the instance is never cloned again.
        let grown = disk::make(home, &spec.id, &template.disk(), spec.disk, spec.policy.ephemeral)?;
        let all_us = began.elapsed().as_micros();
        tracing::debug!(instance = %spec.id, template = %template.key(), memory_us, all_us, "cloned");
        let restore = Some(template.restore());
        let grown_to = grown.then(|| spec.disk.bytes());
        Ok(Start { ram, restore, source: Source::Template { template, memory }, grown_to })
    }

    fn boot(&self, spec: &InstanceSpec) -> Result<Start, LaunchError> {
        let home = &self.machines.home;
        let fresh = !disk::exists(home, &spec.id);
        let trouble = |action: &str, e: &io::Error| LaunchError {
            message: format!("cannot {action} the disk {}: {e}", disk::path(home, &spec.id).display()),
            hint: Some("`aegis doctor` shows how much space is left".to_owned()),
        };
        if fresh {
            let empty = self.machines.assets.path(Asset::DiskTemplate).map_err(missing)?;
            let made = disk::make(home, &spec.id, &empty, spec.disk, spec.policy.ephemeral);
            made.map_err(|e| trouble("create", &e))?;
        } else {
            disk::grow(home, &spec.id, spec.disk).map_err(|e| trouble("grow", &e))?;
        }
        let ram = if is_saved_on_disk(spec) {
            let made = self.memories.make_empty(&spec.id);
            made.map_err(|e| memory_trouble("cannot make room for the memory", &e))?;
            Ram::File { path: home.memory_dir(&spec.id).join(RAM_FILE) }
        } else {
            let removed = self.memories.discard(&spec.id);
            removed.map_err(|e| memory_trouble("cannot remove the memory of an earlier VM", &e))?;
            Ram::Anonymous
        };
        Ok(Start { ram, restore: None, source: Source::Kernel { template_wanted: fresh }, grown_to: None })
    }
}

/// Whether its memory may be on the disk, so that it can be hibernated.
fn is_saved_on_disk(spec: &InstanceSpec) -> bool {
    !spec.policy.ephemeral && !spec.policy.no_hibernate
}

fn memory_trouble(action: &str, e: &io::Error) -> LaunchError {
    LaunchError {
        message: format!("{action}: {e}"),
        hint: Some("`aegis doctor` shows how much space is left".to_owned()),
    }
}

/// 32 hexadecimal digits that stay the same for the life of the instance and differ from those of others.
fn machine_id(id: &InstanceId) -> String {
    hex(&Sha256::digest(format!("aegisvm machine-id {id}"))[..16])
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
