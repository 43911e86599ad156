//! How instances come to be known: by being created, or from what an earlier daemon left.

use std::sync::Arc;
use std::time::Duration;

use aegis_proto::worker::{Exited, Phase, WorkerStatus};
use aegis_types::{InstanceState, StopReason};
use jiff::Timestamp;
use tokio::time::timeout;

use crate::driver::{Driver, Live, fresh_vm_id};
use crate::instance::Instance;
use crate::manager::Shared;
use crate::ports::{Adoption, RegistryError, Worker};
use crate::record::{InstanceSpec, LastStop, Record};
use crate::step::{Found, Past, StopCause, created, restored};
use crate::text;

/// Time for a worker to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the end of a worker that did not answer to be noticed.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the guest of an adopted worker to say how far it is, before the daemon goes on without its answer.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Records a new instance; its driver is to be run.
pub(crate) async fn create(
    shared: &Arc<Shared>,
    spec: InstanceSpec,
) -> Result<(Instance, Driver), RegistryError> {
    let now = Timestamp::now();
    let record = Record {
        spec,
        enabled: true,
        live: true,
        updated_at: now,
        last_active_at: Some(now),
        life_began_at: Some(now),
        crashes: 0,
        last_stop: None,
    };
    shared.ports.registry.save(&record).await?;
    let rules = shared.rules(&record.spec);
    Ok(Driver::new(shared, record, created(rules, fresh_vm_id()), None))
}

/// Finds out what became of an instance and runs its driver.
pub(crate) async fn restore(shared: &Arc<Shared>, record: Record) {
    let (found, live) = look(shared, &record).await;
    let booting = matches!(found, Found::Alive { phase: Ok(Phase::Booting), .. });
    let past = Past {
        enabled: record.enabled,
        saved: live.is_none() && shared.ports.launcher.has_saved(&record.spec.id).await,
        life_left: life_left(&record),
        crashes: record.crashes,
    };
    let rules = shared.rules(&record.spec);
    let (instance, driver) = Driver::new(shared, record.clone(), restored(rules, past, found), live);
    let mut status = instance.watch();
    shared.insert(instance);
    shared.spawn(driver);
    // Only a VM that is attached to is `starting` here; it goes on by itself. One whose guest does not answer yet stays
    // so until it has booted.
    if !booting {
        let _ = timeout(ATTACH_TIMEOUT, status.wait_for(|s| s.state != InstanceState::Starting)).await;
    }
}

/// What is left of the longest life.
fn life_left(record: &Record) -> Option<Duration> {
    let longest = record.spec.policy.max_lifetime?;
    let began = record.life_began_at.unwrap_or(record.spec.created_at);
    let lived = Duration::try_from(Timestamp::now().duration_since(began)).unwrap_or_default();
    Some(longest.saturating_sub(lived))
}

async fn look(shared: &Shared, record: &Record) -> (Found, Option<Live>) {
    let launcher = &shared.ports.launcher;
    let id = &record.spec.id;
    if !record.live {
        return (Found::Recorded(cause_on_record(record.last_stop.as_ref())), None);
    }
    let exited = match launcher.adopt(id).await {
        Adoption::Alive { vm, worker } => match ask(worker.as_ref()).await {
            Asked::Ended(exited) => Some(exited),
            Asked::Answered(status) => {
                let about = status.as_ref().ok().cloned();
                let found = Found::Alive { vm: vm.clone(), phase: status.map(|s| s.phase) };
                let room = shared.budget.hold(id, record.spec.memory);
                return (found, Some(Live::adopted(vm, worker, about, room)));
            }
        },
        Adoption::Gone(exited) => exited,
        Adoption::None => None,
    };
    launcher.clean_up(id).await;
    (Found::Gone(exited), None)
}

/// How it went to ask a worker.
enum Asked {
    /// What it says, or why it could not be asked.
    Answered(Result<WorkerStatus, String>),
    /// It ended between being found and being asked, as one does that was saving its VM.
    Ended(Exited),
}

async fn ask(worker: &dyn Worker) -> Asked {
    let why = match timeout(STATUS_TIMEOUT, worker.status()).await {
        Ok(Ok(status)) => return Asked::Answered(Ok(status)),
        Ok(Err(e)) => text::chain(&e),
        Err(_) => format!("no answer within {} s", STATUS_TIMEOUT.as_secs()),
    };
    match timeout(END_TIMEOUT, worker.exited()).await {
        Ok(exited) => Asked::Ended(exited),
        Err(_) => Asked::Answered(Err(why)),
    }
}

fn cause_on_record(last: Option<&LastStop>) -> StopCause {
    match last {
        None => StopCause::plain(StopReason::NeverStarted),
        Some(LastStop { reason, exit_code, error, .. }) => {
            StopCause { reason: *reason, exit_code: *exit_code, error: error.clone() }
        }
    }
}
