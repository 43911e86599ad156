//! A daemon that dies at any of its calls to the outside, before or after the call took effect, and the next one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aegis_proto::logs::LogLine;
use aegis_types::{InstanceId, InstanceState, Policy, RestartPolicy, VmId};
use async_trait::async_trait;
use tokio::sync::Notify;

use crate::ports::{
    Adoption, LaunchError, Launched, Launcher, LogSink, Registry, RegistryError, SystemMessage,
};
use crate::record::{InstanceSpec, Record};
use crate::testing::{Port, World, alive, with_policy};
use crate::{Defaults, Denied, ExecError, Limits, Manager, Ports};

/// Counts calls down to the death of a daemon; from then on its calls never return.
struct Fate {
    left: AtomicUsize,
    died: Notify,
}

impl Fate {
    async fn tempt(&self) {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if !matches!(left, Ok(2..)) {
            self.died.notify_one();
            std::future::pending().await
        }
    }
}

struct Mortal {
    port: Port,
    fate: Arc<Fate>,
}

impl Mortal {
    async fn during<T>(&self, call: impl Future<Output = T>) -> T {
        self.fate.tempt().await;
        let result = call.await;
        self.fate.tempt().await;
        result
    }
}

#[async_trait]
impl Launcher for Mortal {
    async fn launch(&self, spec: &InstanceSpec, vm: &VmId) -> Result<Launched, LaunchError> {
        self.during(self.port.launch(spec, vm)).await
    }
    async fn has_saved(&self, id: &InstanceId) -> bool {
        self.during(self.port.has_saved(id)).await
    }
    async fn discard_saved(&self, id: &InstanceId) {
        self.during(self.port.discard_saved(id)).await;
    }
    async fn adopt(&self, id: &InstanceId) -> Adoption {
        self.during(self.port.adopt(id)).await
    }
    async fn clean_up(&self, id: &InstanceId) {
        self.during(self.port.clean_up(id)).await;
    }
    async fn remove(&self, spec: &InstanceSpec) -> io::Result<()> {
        self.during(self.port.remove(spec)).await
    }
}

#[async_trait]
impl Registry for Mortal {
    async fn save(&self, record: &Record) -> Result<(), RegistryError> {
        self.during(self.port.save(record)).await
    }
    async fn delete(&self, id: &InstanceId) -> Result<(), RegistryError> {
        self.during(self.port.delete(id)).await
    }
}

#[async_trait]
impl LogSink for Mortal {
    async fn output(&self, id: &InstanceId, vm: &VmId, line: LogLine) {
        self.during(self.port.output(id, vm, line)).await;
    }
    async fn system(&self, id: &InstanceId, message: SystemMessage) {
        self.during(self.port.system(id, message)).await;
    }
    async fn last_seq(&self, id: &InstanceId, vm: &VmId) -> u64 {
        self.during(self.port.last_seq(id, vm)).await
    }
}

fn mortal_daemon(world: &Arc<World>, calls: usize) -> (Manager, Arc<Fate>) {
    let fate = Arc::new(Fate { left: AtomicUsize::new(calls), died: Notify::new() });
    let mortal = || Arc::new(Mortal { port: world.port(), fate: Arc::clone(&fate) });
    let ports =
        Ports { launcher: mortal(), injector: Arc::new(world.port()), registry: mortal(), logs: mortal() };
    let defaults =
        Defaults { pause_after: Duration::from_secs(60), hibernate_after: Duration::from_secs(300) };
    (Manager::new(ports, Limits { defaults, ram_budget: None }), fate)
}

fn exec() -> aegis_proto::exec::Start {
    super::exec::start("echo")
}

/// Everything that can happen to an instance, one after the other.
async fn live(manager: Manager) {
    let policy = Policy { restart: RestartPolicy::OnFailure, ..Policy::default() };
    let instance = manager.create(with_policy(1, "web", policy)).await.unwrap();
    drop(instance.exec(exec()).await.unwrap());
    instance.hibernate().await.unwrap();
    drop(instance.exec(exec()).await.unwrap());
    World::until_state(&instance, InstanceState::Hibernated).await;
    instance.resume().await.unwrap();
    instance.pause().await.unwrap();
    instance.hibernate().await.unwrap();
    instance.restart().await.unwrap();
    drop(instance.exec(exec()).await.unwrap());
    instance.hibernate().await.unwrap();
    instance.stop().await.unwrap();
    drop(instance.exec(exec()).await.unwrap());
    let (hibernated, stopped) = tokio::join!(instance.hibernate(), instance.disable());
    assert!(stopped.is_ok(), "{hibernated:?}");
    instance.start().await.unwrap();
    World::until_state(&instance, InstanceState::Running).await;
    instance.hibernate().await.unwrap();
    instance.delete().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn wherever_a_daemon_dies_the_next_one_finds_a_consistent_instance() {
    let mut calls = 1;
    loop {
        let (world, _) = World::new();
        let (manager, fate) = mortal_daemon(&world, calls);
        let mut life = tokio::spawn(live(manager));
        tokio::select! {
            () = fate.died.notified() => {}
            lived = &mut life => {
                lived.unwrap();
                assert!(calls > 60, "a life of {calls} calls is suspiciously short");
                return;
            }
        }
        life.abort();
        // What was asked of workers is carried out without the daemon.
        tokio::time::sleep(Duration::from_secs(1)).await;
        check_next_daemon(&world, calls).await;
        calls += 1;
    }
}

async fn check_next_daemon(world: &Arc<World>, calls: usize) {
    let at = format!("after {calls} calls");
    let Some(record) = world.record(1) else {
        assert!(world.guests.lock().unwrap().iter().all(|g| !g.is_alive()), "{at}: a VM without a record");
        return;
    };
    let id = record.spec.id.clone();
    let guests = world.guests_of(&id);
    assert!(guests.iter().filter(|g| g.is_alive()).count() <= 1, "{at}: two VMs");
    let found = match guests.last() {
        Some(guest) if guest.is_alive() => alive(guest),
        Some(guest) => Adoption::Gone(guest.state.borrow().exited.clone()),
        None => Adoption::None,
    };
    world.adoption.lock().unwrap().insert(id.clone(), found);
    let manager = world.manager(None);
    manager.restore(vec![record.clone()]).await;
    let instance = manager.find("web").unwrap();
    let status = instance.status();
    let hibernated = status.state == InstanceState::Hibernated;
    assert_eq!(hibernated, world.saved(&id).is_some() && status.vm.is_none(), "{at}: {status:?}");
    if record.enabled {
        match instance.exec(exec()).await {
            Ok(session) => drop(session),
            Err(ExecError::Denied(Denied::CommandEnded { .. })) => {}
            Err(error) => panic!("{at}: {error} {status:?}"),
        }
    } else {
        assert!(matches!(instance.exec(exec()).await, Err(ExecError::Denied(Denied::Disabled))), "{at}");
    }
    assert!(world.guests_of(&id).iter().filter(|g| g.is_alive()).count() <= 1, "{at}: two VMs");
    instance.delete().await.unwrap();
    assert!(world.guests_of(&id).iter().all(|g| !g.is_alive()), "{at}: a VM outlives its instance");
    assert!(world.record(1).is_none(), "{at}");
    manager.shutdown(Duration::ZERO, false).await;
}
