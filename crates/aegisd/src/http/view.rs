//! Instances as the API shows them. Pure.

use std::sync::Arc;
use std::time::Duration;

use aegis_api::{Endpoint, InstanceInfo, InstanceSummary, NetStatus};
use aegis_lifecycle::record::InstanceSpec;
use aegis_lifecycle::{Instance, Status};
use aegis_proto::worker::Confinement;
use aegis_types::{Accelerator, InstanceState, WantedSecrets};

use crate::exposes::Exposes;
use crate::images::Pin;

/// Lists show running, starting, paused, hibernated and stopped instances in this order, and disabled ones last.
fn rank(status: &Status) -> u8 {
    match (status.enabled, status.state) {
        (false, _) => 5,
        (true, InstanceState::Running) => 0,
        (true, InstanceState::Starting) => 1,
        (true, InstanceState::Paused) => 2,
        (true, InstanceState::Hibernated) => 3,
        (true, InstanceState::Stopped) => 4,
    }
}

/// Instances of this state, or all, in the order of lists.
pub(super) fn listed(
    instances: Vec<Instance>,
    state: Option<InstanceState>,
    exposes: &Exposes,
) -> Vec<InstanceSummary> {
    let of = |instance: &Instance| exposes.endpoints(&instance.spec().id);
    sorted(instances, state).iter().map(|(i, status)| summary(i.spec(), status, of(i))).collect()
}

/// Clients that know only `stopped` see what is hibernated as a kind of it.
fn is_in(state: InstanceState, wanted: InstanceState) -> bool {
    state == wanted || (wanted, state) == (InstanceState::Stopped, InstanceState::Hibernated)
}

/// Instances of this state, or all, with what is observed of them, in the order of lists.
pub(super) fn sorted(instances: Vec<Instance>, state: Option<InstanceState>) -> Vec<(Instance, Status)> {
    let with_status = instances.into_iter().map(|instance| {
        let status = instance.status();
        (instance, status)
    });
    let mut chosen: Vec<(Instance, Status)> =
        with_status.filter(|(_, status)| state.is_none_or(|state| is_in(status.state, state))).collect();
    chosen.sort_by(|(a, a_status), (b, b_status)| {
        let key = |instance: &Instance, status| (rank(status), instance.spec().created_at);
        key(a, a_status).cmp(&key(b, b_status)).then_with(|| a.spec().id.cmp(&b.spec().id))
    });
    chosen
}

fn summary(spec: &InstanceSpec, status: &Status, endpoints: Vec<Endpoint>) -> InstanceSummary {
    InstanceSummary {
        id: spec.id.clone(),
        handle: spec.handle.clone(),
        state: status.state,
        enabled: status.enabled,
        command: spec.command.clone(),
        image_ref: spec.image.clone(),
        created_at: spec.created_at,
        updated_at: status.updated_at,
        stopped_at: status.stopped.as_ref().map(|stop| stop.at),
        last_active_at: status.last_active_at,
        active_connections: status.users.connections,
        endpoints,
    }
}

/// Everything about an instance. `accelerator` is what VMs get.
pub(super) fn info(
    instance: &Instance,
    endpoints: Vec<Endpoint>,
    net: NetStatus,
    wanted: WantedSecrets,
    image: Option<Pin>,
    accelerator: Option<Accelerator>,
) -> InstanceInfo {
    let status = instance.status();
    let (spec, rules) = (Arc::clone(&status.spec), &status.rules);
    let (stopped_at, stop_reason, exit_code, last_error) = match status.stopped {
        Some(stop) => (Some(stop.at), Some(stop.reason), stop.exit_code, stop.error),
        None => (None, None, None, None),
    };
    let accelerator = accelerator.filter(|_| status.vm.is_some());
    let (lease_held, lease_reason, lease_expires_at) = match status.lease {
        Some(lease) => (true, lease.reason, Some(lease.expires_at)),
        None => (false, None, None),
    };
    let (ready, confinement) = status.vm.map_or((None, None), |vm| (vm.ready, vm.confinement));
    InstanceInfo {
        id: spec.id.clone(),
        handle: spec.handle.clone(),
        state: status.state,
        enabled: status.enabled,
        command: spec.command.clone(),
        image_ref: spec.image.clone(),
        image_digest: image.as_ref().map(|image| image.digest.clone()),
        image_manifest: image.and_then(|image| image.manifest),
        oci_defaults: spec.oci_defaults,
        memory_mb: spec.memory,
        disk_mb: spec.disk,
        vcpus: spec.vcpus,
        env_keys: spec.env.keys().cloned().collect(),
        secret_keys: wanted.variables,
        secret_files: wanted.files,
        workdir: spec.workdir.clone(),
        user: spec.user.clone(),
        tty: spec.tty,
        stdin: spec.stdin,
        net,
        workspace: spec.mounts.first().map(|mount| mount.host.clone()),
        auto_workspace: spec.auto_workspace,
        mounts: spec.mounts.clone(),
        parent_id: spec.parent.clone(),
        created_at: spec.created_at,
        updated_at: status.updated_at,
        last_active_at: status.last_active_at,
        stopped_at,
        stop_reason,
        exit_code,
        last_error,
        boot_ms: ready.as_ref().map(|ready| ready.boot_ms),
        start_ms: ready.as_ref().map(|ready| ready.boot_ms),
        start_kind: ready.as_ref().map(|ready| ready.start),
        harness_version: ready.map(|ready| ready.harness_version),
        accelerator,
        confinement: confinement.as_ref().map(confinement_text),
        active_execs: status.users.execs,
        active_connections: status.users.connections,
        attached: status.users.attached,
        expose_ports: endpoints.iter().map(|endpoint| endpoint.guest_port).collect(),
        endpoints,
        pause_after_ms: rules.pause_after.map(milliseconds),
        hibernate_after_ms: rules.hibernate_after.map(milliseconds),
        never_pause: spec.policy.never_pause,
        no_hibernate: spec.policy.no_hibernate,
        max_lifetime_ms: spec.policy.max_lifetime.map(milliseconds),
        restart: spec.policy.restart,
        idle_policy: spec.policy.idle,
        ephemeral: spec.policy.ephemeral,
        lease_held,
        lease_reason,
        lease_expires_at,
        hibernated_at: stopped_at.filter(|_| status.state == InstanceState::Hibernated),
        wakes: status.counters.wakes,
        restarts: status.counters.restarts,
        crashes: status.counters.crashes.into(),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn confinement_text(confinement: &Confinement) -> String {
    let parts = [
        (confinement.landlock_abi > 0).then(|| format!("landlock (ABI {})", confinement.landlock_abi)),
        confinement.seccomp.then(|| "seccomp".to_owned()),
        confinement.no_new_privs.then(|| "no_new_privs".to_owned()),
        confinement.cgroup.is_some().then(|| "cgroup".to_owned()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confinement_reads_as_a_list() {
        let mut confinement =
            Confinement { landlock_abi: 3, seccomp: true, no_new_privs: true, cgroup: None };
        assert_eq!(confinement_text(&confinement), "landlock (ABI 3), seccomp, no_new_privs");
        confinement = Confinement { landlock_abi: 0, seccomp: false, no_new_privs: false, cgroup: None };
        assert_eq!(confinement_text(&confinement), "none");
    }
}
