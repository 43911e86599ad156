//! The memory that VMs of this host may have together. A VM that would not fit waits until others, least recently used
//! first, are hibernated for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aegis_types::{InstanceId, InstanceState, Mib};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use crate::driver::{Reply, Request};
use crate::instance::Instance;
use crate::manager::Shared;
use crate::step::Ask;

/// Time for room to be made.
const ROOM_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks for somebody who has become idle; an end of a VM is noticed at once.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// See the module.
pub(crate) struct Budget {
    /// In MiB; `None`: no bound.
    limit: Option<u64>,
    held: Mutex<HashMap<InstanceId, u64>>,
    freed: Notify,
    /// One at a time makes room, in the order in which they came.
    turn: tokio::sync::Mutex<()>,
}

/// Memory that is counted for a VM until this is dropped.
pub(crate) struct Room {
    budget: Arc<Budget>,
    id: InstanceId,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.held().remove(&self.id);
        self.budget.freed.notify_one();
    }
}

impl Budget {
    pub(crate) fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: Mutex::default(),
            freed: Notify::new(),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// Limit and use in MiB.
    pub(crate) fn figures(&self) -> (Option<u64>, u64) {
        (self.limit, self.held().values().sum())
    }

    /// Counts a VM that is there already.
    pub(crate) fn hold(self: &Arc<Self>, id: &InstanceId, memory: Mib) -> Room {
        self.held().insert(id.clone(), u64::from(memory));
        Room { budget: Arc::clone(self), id: id.clone() }
    }

    fn try_hold(self: &Arc<Self>, id: &InstanceId, memory: Mib) -> Option<Room> {
        let mut held = self.held();
        let used: u64 = held.values().sum();
        if self.limit.is_some_and(|limit| used + u64::from(memory) > limit) {
            return None;
        }
        held.insert(id.clone(), u64::from(memory));
        drop(held);
        Some(Room { budget: Arc::clone(self), id: id.clone() })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<InstanceId, u64>> {
        // The map is consistent between statements.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Makes room for a VM, hibernating others if need be.
    ///
    /// # Errors
    /// What is in the way, for people.
    pub(crate) async fn make_room(&self, id: &InstanceId, memory: Mib) -> Result<Room, String> {
        let budget = &self.budget;
        if let Some(limit) = budget.limit.filter(|&limit| u64::from(memory) > limit) {
            return Err(format!("it needs {memory}, and all VMs together may have {limit} MiB"));
        }
        let deadline = Instant::now() + ROOM_TIMEOUT;
        let full = || {
            let (limit, used) = budget.figures();
            format!(
                "it needs {memory}, other VMs that are in use have {used} of {} MiB, and none became idle within {} s",
                limit.unwrap_or_default(),
                ROOM_TIMEOUT.as_secs()
            )
        };
        let _turn = timeout_at(deadline, budget.turn.lock()).await.map_err(|_| full())?;
        loop {
            if let Some(room) = budget.try_hold(id, memory) {
                return Ok(room);
            }
            if Instant::now() >= deadline {
                return Err(full());
            }
            if !self.evict_one(id).await {
                tokio::select! {
                    () = budget.freed.notified() => {}
                    () = sleep(LOOK_EVERY) => {}
                }
            }
        }
    }

    /// Hibernates the idle VM that was used least recently; false if there is none.
    async fn evict_one(&self, except: &InstanceId) -> bool {
        let mut idle: Vec<_> = self
            .instances()
            .into_iter()
            .filter(|instance| instance.spec.id != *except)
            .filter_map(|instance| {
                let status = instance.status();
                let resident = matches!(status.state, InstanceState::Running | InstanceState::Paused);
                (status.evictable && resident).then_some((status.last_active_at, instance))
            })
            .collect();
        idle.sort_by_key(|(last_active_at, _)| *last_active_at);
        for (_, instance) in idle {
            if evict(&instance).await {
                tracing::info!(instance = %instance.spec.id, "hibernated to make room for another VM");
                return true;
            }
        }
        false
    }
}

/// It may have become busy, or be on its way already.
async fn evict(instance: &Instance) -> bool {
    let (reply, answer) = oneshot::channel();
    let request = Request::Ask { ask: Ask::Evict, reply: Reply::Done(reply) };
    instance.requests.send(request).await.is_ok() && matches!(answer.await, Ok(Ok(())))
}
