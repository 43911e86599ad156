//! What instances may reach, and what of the host's network their workers need to know.
//!
//! ```text
//! data/instances/<id>/network.json   the policy, written by the daemon alone
//! data/instances/<id>/net/           the log of decisions, written by the worker alone: see `aegis_net`
//! ```

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aegis_api::NetStatus;
use aegis_config::{Environment, Home};
use aegis_link::rpc::{CallError, Client};
use aegis_proto::worker::NET_POLICY;
use aegis_types::{InstanceId, NetPolicy, NetRule, NetSetup, Proxies};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::task;
use tokio::time::timeout;

use crate::launcher::files;
use crate::launcher::worker_client::connect;

const POLICY_FILE: &str = "network.json";
const LOG_DIR: &str = "net";
const RESOLVER: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;
/// Time for a worker to take a policy.
const TELL_DEADLINE: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Networks {
    home: Home,
    proxies: Proxies,
    /// Held while a policy is changed, so that no change is lost.
    changing: Mutex<()>,
}

/// A policy could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error(transparent)]
    Policy(#[from] aegis_types::InvalidNet),
    #[error("cannot read or write the policy")]
    File(#[source] io::Error),
    #[error("the policy is saved, but the worker did not take it: {0}")]
    Worker(String),
}

/// Where the log of an instance is.
pub(crate) fn log_dir(home: &Home, id: &InstanceId) -> PathBuf {
    home.instance_dir(id).join(LOG_DIR)
}

impl Networks {
    pub(crate) fn new(home: Home, environment: &Environment) -> Self {
        let proxies = environment.proxies();
        let resolved = |proxy: Option<String>| proxy.map(|text| with_address(&text));
        let proxies =
            Proxies { http: resolved(proxies.http), https: resolved(proxies.https), no: proxies.no };
        Self { home, proxies, changing: Mutex::default() }
    }

    fn path(&self, id: &InstanceId) -> PathBuf {
        self.home.instance_dir(id).join(POLICY_FILE)
    }

    /// Keeps what an instance may reach. Blocks.
    pub(crate) fn save(&self, id: &InstanceId, network: &NetStatus) -> io::Result<()> {
        let text = serde_json::to_vec(network)?;
        let directory = self.home.instance_dir(id);
        let saved = files::make_dir(&directory).and_then(|()| files::write_atomically(&self.path(id), &text));
        saved.map_err(|e| match e.kind() {
            ErrorKind::StorageFull => io::Error::new(ErrorKind::StorageFull, "the disk is full"),
            _ => e,
        })
    }

    /// Removes what was kept of an instance that was not created after all. Blocks.
    pub(crate) fn forget(&self, id: &InstanceId) {
        if let Err(error) = files::remove_dir(&self.home.instance_dir(id)) {
            tracing::warn!(%error, instance = %id, "the next start of the daemon removes what is left of it");
        }
    }

    /// What an instance may reach; one of before there were networks has the default. Blocks.
    pub(crate) fn load(&self, id: &InstanceId) -> io::Result<NetStatus> {
        match std::fs::read(self.path(id)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                io::Error::new(ErrorKind::InvalidData, format!("{POLICY_FILE} is damaged: {e}"))
            }),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(NetStatus::default()),
            Err(e) => Err(e),
        }
    }

    /// Everything that the worker of an instance has to know. Blocks.
    pub(crate) fn setup(&self, id: &InstanceId) -> io::Result<NetSetup> {
        let NetStatus { policy, host_ports } = self.load(id)?;
        let log_dir = log_dir(&self.home, id);
        files::make_dir(&log_dir)?;
        let name_servers = name_servers(Path::new(RESOLVER));
        Ok(NetSetup { policy, host_ports, name_servers, proxies: self.proxies.clone(), log_dir })
    }

    /// Adds a rule, for now and for later starts.
    pub(crate) async fn add_rule(
        self: &Arc<Self>,
        id: &InstanceId,
        allow: bool,
        rule: NetRule,
    ) -> Result<NetStatus, NetError> {
        let _changing = self.changing.lock().await;
        let (this, instance) = (Arc::clone(self), id.clone());
        let changed = task::spawn_blocking(move || {
            let mut network = this.load(&instance).map_err(NetError::File)?;
            network.policy.add(allow, &rule);
            network.policy = network.policy.checked()?;
            this.save(&instance, &network).map_err(NetError::File)?;
            Ok::<_, NetError>(network)
        });
        let network = changed.await.expect("changing a file does not panic")?;
        self.tell(id, &network.policy).await.map_err(NetError::Worker)?;
        Ok(network)
    }

    /// Tells the worker of a live VM. Without one there is nothing to do.
    async fn tell(&self, id: &InstanceId, policy: &NetPolicy) -> Result<(), String> {
        let Ok(control) = connect(&self.home.run_dir(id)).await else { return Ok(()) };
        let (rpc, _) = Client::new(control);
        match timeout(TELL_DEADLINE, rpc.call::<_, Value>(NET_POLICY, policy)).await {
            // One that has ended begins with the new policy.
            Ok(Ok(_) | Err(CallError::Closed(_))) => Ok(()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err(format!("no answer within {} s", TELL_DEADLINE.as_secs())),
        }
    }
}

/// The name servers of the host, as resolv.conf(5) says.
fn name_servers(path: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read(path).unwrap_or_default();
    match resolv_conf::Config::parse(&text) {
        Ok(config) => {
            let servers = config.nameservers.into_iter().map(IpAddr::from);
            servers.map(|address| SocketAddr::new(address, DNS_PORT)).collect()
        }
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "guests cannot resolve names");
            Vec::new()
        }
    }
}

/// The same proxy by its address: workers cannot resolve names.
fn with_address(proxy: &str) -> String {
    let (scheme, rest) =
        proxy.split_once("://").map_or(("", proxy), |(_, rest)| (&proxy[..proxy.len() - rest.len()], rest));
    let (user, authority) =
        rest.rsplit_once('@').map_or(("", rest), |(user, _)| rest.split_at(user.len() + 1));
    let authority = authority.split('/').next().unwrap_or_default();
    let with_port = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    match with_port.to_socket_addrs().ok().and_then(|mut found| found.next()) {
        Some(address) => format!("{scheme}{user}{address}"),
        // It is then said by whoever cannot use it.
        None => proxy.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn networks() -> (tempfile::TempDir, Arc<Networks>) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve(Some(dir.path().join("home"))).unwrap();
        home.ensure().unwrap();
        (dir, Arc::new(Networks::new(home, &Environment::from_fn(|_| None))))
    }

    #[tokio::test]
    async fn a_policy_is_kept_and_changed() {
        let (_dir, networks) = networks();
        let id = InstanceId::from_unix_nanos(1);
        assert_eq!(networks.load(&id).unwrap(), NetStatus::default());
        let policy = NetPolicy::parse(&["allow:a.example"]).unwrap();
        networks.save(&id, &NetStatus { policy, host_ports: Vec::new() }).unwrap();
        let rule: NetRule = "b.example:443".parse().unwrap();
        let changed = networks.add_rule(&id, true, rule).await.unwrap();
        assert_eq!(changed.policy.to_string(), "allow:a.example,b.example:443");
        assert_eq!(networks.load(&id).unwrap(), changed);
        let setup = networks.setup(&id).unwrap();
        assert!(setup.log_dir.is_dir() && setup.policy == changed.policy);
        std::fs::write(networks.path(&id), "{").unwrap();
        assert!(
            networks.setup(&id).unwrap_err().to_string().contains("damaged"),
            "never more than was allowed"
        );
    }

    #[test]
    fn the_hosts_name_servers_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "# x\nsearch a\nnameserver 127.0.0.53\nnameserver fd00::1\noptions edns0\n")
            .unwrap();
        assert_eq!(name_servers(&path), ["127.0.0.53:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
        assert!(name_servers(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn proxies_are_named_by_their_address() {
        assert_eq!(with_address("http://127.0.0.1:3128/"), "http://127.0.0.1:3128");
        assert_eq!(with_address("http://u:p@127.0.0.1"), "http://u:p@127.0.0.1:80");
        assert_eq!(with_address("127.0.0.1:1"), "127.0.0.1:1");
    }
}
