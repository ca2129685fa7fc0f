//! A node: a network namespace on the fabric, a bridge for its pods, a cgroup tree like a kubelet's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cgroup::Cgroup;
use crate::netns;
use crate::pod::{Pod, PodSpec};
use crate::process::{Finished, Place, Process};
use crate::world::Inner;

const MOST_NODES: u8 = 16;

/// A node of a world. A handle: the world owns what is behind it.
#[derive(Clone, Debug)]
pub struct Node {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) world: Arc<Inner>,
    pub(crate) name: String,
    pub(crate) index: u8,
    pub(crate) namespace: String,
    pub(crate) cgroup: Cgroup,
    next_host: AtomicU8,
    pods: Mutex<Vec<Pod>>,
}

impl Node {
    pub(crate) fn create(world: Arc<Inner>, name: &str, index: u8) -> Result<Self> {
        if index > MOST_NODES {
            bail!("a world has at most {MOST_NODES} nodes");
        }
        let cgroup = world.cgroup.child(name)?;
        cgroup.child("system/agent")?;
        cgroup.child("pods")?;
        let namespace = world.add_namespace(name)?;
        let fabric = world.namespace_name("fabric");
        let settings = [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ];
        netns::sysctl(&netns::path(&namespace), &settings)?;
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("link add fabric0 type veth peer name node{index} netns {fabric}"),
            // An address of its own: it would take the lowest of its ports', and change it under the pods' feet as pods come and go.
            format!("link add pods0 address 02:00:0a:0a:{index:02x}:01 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
            format!("addr add 172.31.0.{index}/24 dev fabric0"),
            format!("addr add fd00:31::{index:x}/64 dev fabric0 nodad"),
            format!("addr add 10.10.{index}.1/24 dev pods0"),
            format!("addr add fd00:10:{index:x}::1/64 dev pods0 nodad"),
            "link set fabric0 up".to_owned(),
            "link set pods0 up".to_owned(),
        ];
        for other in (1..=MOST_NODES).filter(|other| *other != index) {
            lines.push(format!("route add 10.10.{other}.0/24 via 172.31.0.{other}"));
            lines.push(format!("route add fd00:10:{other:x}::/64 via fd00:31::{other:x}"));
        }
        netns::ip(Some(&namespace), &lines)?;
        netns::ip(Some(&fabric), &[format!("link set node{index} master fabric up")])?;
        let shared =
            Shared { world, name: name.to_owned(), index, namespace, cgroup, next_host: AtomicU8::new(10), pods: Mutex::new(Vec::new()) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Its name, as in Kubernetes.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its addresses on the fabric.
    pub fn addresses(&self) -> [IpAddr; 2] {
        let index = u16::from(self.shared.index);
        [Ipv4Addr::new(172, 31, 0, self.shared.index).into(), Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, index).into()]
    }

    /// The ranges that its pods' addresses come from.
    pub fn pod_cidrs(&self) -> [String; 2] {
        [format!("10.10.{}.0/24", self.shared.index), format!("fd00:10:{:x}::/64", self.shared.index)]
    }

    /// The file of its network namespace.
    pub fn netns(&self) -> PathBuf {
        netns::path(&self.shared.namespace)
    }

    /// The root of its cgroups, as an agent's `--cgroup-root`.
    pub fn cgroup(&self) -> PathBuf {
        self.shared.cgroup.path().to_owned()
    }

    /// The cgroup that all its pods are below.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.shared.cgroup.path().join("pods")
    }

    /// Where a process of the host runs: the node's namespace, a cgroup outside the pods'.
    ///
    /// # Errors
    /// The cgroup can't be made.
    pub fn host(&self, name: &str) -> Result<Place> {
        let cgroup = self.shared.cgroup.child(&format!("system/{name}"))?;
        Ok(Place { netns: self.netns(), cgroup: cgroup.path().to_owned() })
    }

    /// Runs a host's program to its end.
    ///
    /// # Errors
    /// It can't be started.
    pub fn exec_host(&self, words: &[&str], limit: Duration) -> Result<Finished> {
        self.host("shell")?.exec(words, limit)
    }

    /// Starts a host's program, as the kubelet or a system service.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn_host(&self, name: &str, words: &[&str]) -> Result<Process> {
        self.host(name)?.spawn(words, &self.shared.world.log_file(&format!("{}-{name}", self.name())), &[])
    }

    /// Starts the mesh's agent of this node in its place.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn_agent(&self, words: &[&str], environment: &[(&str, &str)]) -> Result<Process> {
        self.spawn_agent_in("agent", words, environment)
    }

    /// As [`Self::spawn_agent`], in a cgroup of another name and with a log of its own: for an agent beside the first.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn_agent_in(&self, name: &str, words: &[&str], environment: &[(&str, &str)]) -> Result<Process> {
        self.host(name)?.spawn(words, &self.shared.world.log_file(&format!("{}-{name}", self.name())), environment)
    }

    /// Adds a pod.
    ///
    /// # Errors
    /// A kernel object can't be made, or the address is taken.
    pub fn add_pod(&self, spec: PodSpec) -> Result<Pod> {
        let host = match spec.host_number() {
            Some(host) => host,
            None => self.shared.next_host.fetch_add(1, Ordering::Relaxed),
        };
        let pod = Pod::create(self, spec, host)?;
        self.shared.pods.lock().unwrap_or_else(PoisonError::into_inner).push(pod.clone());
        Ok(pod)
    }

    /// Its pods in the order of their making.
    pub fn pods(&self) -> Vec<Pod> {
        self.shared.pods.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn forget_pod(&self, uid: &str) {
        self.shared.pods.lock().unwrap_or_else(PoisonError::into_inner).retain(|pod| pod.uid() != uid);
    }
}
