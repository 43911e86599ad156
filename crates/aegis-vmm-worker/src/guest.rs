//! What the worker itself says to the guest: the greeting, the clock, the shutdown.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aegis_link::LinkError;
use aegis_link::host::{self, HostLink};
use aegis_link::rpc::{self, CallError};
use aegis_proto::GENERATION;
use aegis_proto::control::{self, ClockSet, Shutdown};
use aegis_proto::hello::{GuestMount, GuestNetwork, Hello, Welcome};
use aegis_proto::service::Service;
use aegis_proto::worker::WorkerConfig;
use aegis_types::{MountPoint, NetMode};
use aegis_vmm::{Carrier, Vm, VmmError};
use serde::Serialize;

/// A guest that takes longer for a small call is stuck.
const CALL_DEADLINE: Duration = Duration::from_secs(3);
const NONCE_BYTES: usize = 16;
const SEED_BYTES: usize = 64;

/// The guest was not greeted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetError {
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the host has no random numbers")]
    Random(#[source] getrandom::Error),
}

/// A call to the guest failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error("there is no link")]
    NoLink,
    #[error("the guest did not answer within {} s", CALL_DEADLINE.as_secs())]
    Timeout,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Opens the link and greets the guest; waits as long as it takes.
pub(crate) async fn greet(vm: &dyn Vm, config: &WorkerConfig) -> Result<(HostLink, Welcome), GreetError> {
    greet_on(vm.connect().await?, config).await
}

/// Greets the guest at the other end of this connection; waits as long as it takes.
pub(crate) async fn greet_on(
    carrier: Box<dyn Carrier>,
    config: &WorkerConfig,
) -> Result<(HostLink, Welcome), GreetError> {
    let hello = hello(config).map_err(GreetError::Random)?;
    Ok(host::greet(carrier, hello).await?)
}

fn hello(config: &WorkerConfig) -> Result<Hello, getrandom::Error> {
    let mut nonce = [0; NONCE_BYTES];
    let mut seed = [0; SEED_BYTES];
    getrandom::fill(&mut nonce)?;
    getrandom::fill(&mut seed)?;
    Ok(Hello {
        generation: GENERATION,
        nonce: hex::encode(nonce),
        time_unix_ns: now_unix_ns(),
        seed: hex::encode(seed),
        hostname: config.hostname.clone(),
        machine_id: config.machine_id.clone(),
        template: config.template,
        network: network(config),
        mounts: mounts(config),
        disk_bytes: config.vm.disks.iter().find_map(|disk| disk.grown_to),
    })
}

/// A template has the mount that every guest has first. Nobody answers for it, so nothing is in it.
fn mounts(config: &WorkerConfig) -> Vec<GuestMount> {
    if config.template {
        return vec![GuestMount { target: MountPoint::workspace(), read_only: false }];
    }
    let mounts = config.mounts.iter();
    mounts.map(|mount| GuestMount { target: mount.guest.clone(), read_only: mount.read_only }).collect()
}

/// A template is set up for the network that nearly every guest has: it then lacks its own hardware address only.
fn network(config: &WorkerConfig) -> Option<GuestNetwork> {
    let online = config.net.as_ref().is_some_and(|setup| setup.policy.mode != NetMode::None);
    (online || config.template).then(|| GuestNetwork {
        mac: mac(&config.machine_id),
        address: aegis_net::GUEST,
        prefix: aegis_net::GUEST_NETWORK.prefix_len(),
        gateway: aegis_net::GATEWAY,
        mtu: aegis_net::MTU,
    })
}

/// A hardware address that goes with the machine-id: locally administered, unicast (IEEE 802, section 8.4).
fn mac(machine_id: &str) -> String {
    let digits: Vec<char> = machine_id.chars().chain(std::iter::repeat('0')).take(10).collect();
    digits.chunks(2).fold("02".to_owned(), |mac, byte| format!("{mac}:{}{}", byte[0], byte[1]))
}

pub(crate) fn now_unix_ns() -> u64 {
    // A host clock before 1970 or after 2554 is not worth an error: the guest then starts in 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or_default()
}

/// Calls on the link, over one control stream that is opened when it is first needed.
#[derive(Default)]
pub(crate) struct Guest {
    link: Option<HostLink>,
    client: Option<rpc::Client>,
}

impl Guest {
    /// Uses this link from now on.
    pub(crate) fn set_link(&mut self, link: Option<HostLink>) {
        *self = Self { link, client: None };
    }

    pub(crate) fn link(&self) -> Option<&HostLink> {
        self.link.as_ref()
    }

    pub(crate) async fn set_clock(&mut self) -> Result<(), GuestError> {
        self.call(control::CLOCK_SET, || ClockSet { time_unix_ns: now_unix_ns() }).await
    }

    pub(crate) async fn shut_down(&mut self, grace: Duration) -> Result<(), GuestError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.call(control::SHUTDOWN, || Shutdown { grace_ms }).await
    }

    async fn call<P: Serialize>(
        &mut self,
        method: &str,
        params: impl FnOnce() -> P,
    ) -> Result<(), GuestError> {
        let called = tokio::time::timeout(CALL_DEADLINE, async {
            let client = self.client().await?;
            // Made as late as possible, because a time is true only once.
            Ok(client.call(method, &params()).await?)
        })
        .await
        .unwrap_or(Err(GuestError::Timeout));
        if called.is_err() {
            // The stream may be what is broken: the next call tries another.
            self.client = None;
        }
        called
    }

    async fn client(&mut self) -> Result<rpc::Client, GuestError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let link = self.link.as_ref().ok_or(GuestError::NoLink)?;
        let (client, _notifications) = rpc::Client::new(link.open(Service::Control).await?);
        self.client = Some(client.clone());
        Ok(client)
    }
}
