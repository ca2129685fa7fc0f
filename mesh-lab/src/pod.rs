//! A pod: a network namespace with one interface, and a cgroup.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cgroup::Cgroup;
use crate::netns;
use crate::node::Node;
use crate::process::{Finished, Place, Process};

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    namespace: String,
    name: String,
    service_account: String,
    labels: BTreeMap<String, String>,
    host: Option<u8>,
    ipv4_only: bool,
}

impl PodSpec {
    /// A pod with the namespace's default service account and the label `app` set to its name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: "default".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            host: None,
            ipv4_only: false,
        }
    }

    /// Runs as this service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Bears this label too.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Takes this number in the node's range (2 to 254) instead of the next one; for an address that is used again.
    #[must_use]
    pub fn host(mut self, number: u8) -> Self {
        self.host = Some(number);
        self
    }

    /// Has no IPv6 address.
    #[must_use]
    pub fn ipv4_only(mut self) -> Self {
        self.ipv4_only = true;
        self
    }

    pub(crate) fn host_number(&self) -> Option<u8> {
        self.host
    }
}

/// A pod on a node. A handle: the world owns what is behind it.
#[derive(Clone, Debug)]
pub struct Pod {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: Node,
    spec: PodSpec,
    host: u8,
    uid: String,
    netns: String,
    interface: String,
    cgroup: Cgroup,
    spawned: AtomicU64,
}

impl Pod {
    pub(crate) fn create(node: &Node, spec: PodSpec, host: u8) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (of, index) = (&node.shared, node.shared.index);
        let cgroup = of.cgroup.child(&format!("pods/{}_{}_{number}", spec.namespace, spec.name))?;
        // A name of the same pod made again must not meet the namespace that is still being taken down.
        let plain = of.world.namespace_name(&spec.name);
        let part = if netns::path(&plain).exists() { format!("{}-{number}", spec.name) } else { spec.name.clone() };
        let netns = of.world.add_namespace(&part)?;
        let interface = format!("pod{number}");
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("link add eth0 type veth peer name {interface} netns {}", of.namespace),
            format!("addr add 10.10.{index}.{host}/24 dev eth0"),
        ];
        if !spec.ipv4_only {
            lines.push(format!("addr add fd00:10:{index:x}::{host:x}/64 dev eth0 nodad"));
        }
        lines.push("link set eth0 up".to_owned());
        lines.push(format!("route add default via 10.10.{index}.1"));
        if !spec.ipv4_only {
            lines.push(format!("route add ::/0 via fd00:10:{index:x}::1"));
        }
        netns::ip(Some(&netns), &lines)?;
        netns::ip(Some(&of.namespace), &[format!("link set {interface} master pods0 up")])?;
        let uid = format!("{}-{number:04}", of.world.namespace_name(&spec.name));
        let shared = Shared { node: node.clone(), spec, host, uid, netns, interface, cgroup, spawned: AtomicU64::new(0) };
        let pod = Self { shared: Arc::new(shared) };
        of.world.note_pod(&pod.full_name(), Some(pod.place()))?;
        Ok(pod)
    }

    /// Its Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.shared.spec.namespace
    }

    /// Its own name.
    pub fn name(&self) -> &str {
        &self.shared.spec.name
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace(), self.name())
    }

    /// Its service account.
    pub fn service_account(&self) -> &str {
        &self.shared.spec.service_account
    }

    /// Its labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.shared.spec.labels
    }

    /// Its identity in the trust domain `cluster.local`.
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace(), self.service_account())
    }

    /// Its Kubernetes UID, never used again.
    pub fn uid(&self) -> &str {
        &self.shared.uid
    }

    /// Its node.
    pub fn node(&self) -> &Node {
        &self.shared.node
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 10, self.shared.node.shared.index, self.shared.host)
    }

    /// Its IPv6 address; present unless it was made without.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        let index = u16::from(self.shared.node.shared.index);
        let host = u16::from(self.shared.host);
        (!self.shared.spec.ipv4_only).then(|| Ipv6Addr::new(0xfd00, 0x10, index, 0, 0, 0, 0, host))
    }

    /// All its addresses, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        std::iter::once(IpAddr::V4(self.ipv4())).chain(self.ipv6().map(IpAddr::V6)).collect()
    }

    /// The file of its network namespace.
    pub fn netns(&self) -> PathBuf {
        netns::path(&self.shared.netns)
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.shared.cgroup
    }

    /// Its namespace and cgroup.
    pub fn place(&self) -> Place {
        Place { netns: self.netns(), cgroup: self.shared.cgroup.path().to_owned() }
    }

    /// Runs a program in it to its end, at most for `limit`.
    ///
    /// # Errors
    /// It can't be started.
    pub fn exec(&self, words: &[&str], limit: Duration) -> Result<Finished> {
        self.place().exec(words, limit)
    }

    /// Starts a program in it that runs until the guard is dropped.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn(&self, words: &[&str]) -> Result<Process> {
        let number = self.shared.spawned.fetch_add(1, Ordering::Relaxed);
        let log = self.shared.node.shared.world.log_file(&format!("{}-{number}", self.uid()));
        self.place().spawn(words, &log, &[])
    }

    /// A name for a further log file of this pod.
    pub(crate) fn log_file(&self) -> PathBuf {
        let number = self.shared.spawned.fetch_add(1, Ordering::Relaxed);
        self.shared.node.shared.world.log_file(&format!("{}-{number}", self.uid()))
    }

    /// Runs a closure in its network namespace on a thread of its own; see [`netns::within`] for what that thread is not in.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn in_netns<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        netns::within(&self.netns(), work)
    }

    /// Writes kernel settings of its network namespace, as [`netns::sysctl`].
    ///
    /// # Errors
    /// Names the setting that the kernel refused.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        netns::sysctl(&self.netns(), settings)
    }

    /// Takes its interface away, as when a pod is torn down under its connections.
    ///
    /// # Errors
    /// It is gone already.
    pub fn unplug(&self) -> Result<()> {
        netns::ip(Some(&self.shared.node.shared.namespace), &[format!("link del {}", self.shared.interface)])
    }

    /// Removes it: processes, interface, namespace, cgroup. Its manifest is the caller's to remove.
    ///
    /// # Errors
    /// Something is still in use.
    pub fn remove(self) -> Result<()> {
        self.shared.cgroup.remove()?;
        // A namespace lives as long as any socket in it does, and the agent holds some: the address must not stay with it.
        self.unplug().with_context(|| format!("removing pod {}", self.name()))?;
        self.shared.node.shared.world.remove_namespace(&self.shared.netns)?;
        self.shared.node.shared.world.note_pod(&self.full_name(), None)?;
        self.shared.node.forget_pod(self.uid());
        Ok(())
    }
}
