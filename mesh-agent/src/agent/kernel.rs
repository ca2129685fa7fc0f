//! The one writer of the kernel's maps.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aya_log::EbpfLogger;
use mesh_common::names::map;
use mesh_common::workload::{
    SETTINGS_DENY_UNKNOWN, SETTINGS_INCOMPLETE, SETTINGS_LOG_DIRECT, SETTINGS_READY, SETTINGS_REGISTRY_ONLY, Settings,
};
use mesh_model::settings::{OutboundTraffic, UnknownPods};
use mesh_model::snapshot::Snapshot;

use crate::capture::accept::{OUTBOUND_PORT, TUNNEL_PORT};
use crate::capture::cgroup::{self, CgroupError, View};
use crate::capture::load::{LoadError, Programs, remove_other_versions};
use crate::capture::maps::{self, Maps, WriteError};
use crate::capture::sync::{KernelState, diff};
use crate::config::Config;
use crate::ops::metrics::MapSample;
use crate::sys::netns::NetNs;

/// Why the kernel's side cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Loading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A map.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The node's own namespace.
    #[error("the node's network namespace: {0}")]
    HostNetns(std::io::Error),
}

/// Between two looks into the kernel programs' own log, which is seldom written to.
const LOG_EVERY: Duration = Duration::from_millis(500);

/// Programs, maps, and what the maps hold.
pub struct Kernel {
    programs: Programs,
    maps: Maps,
    state: KernelState,
    capacities: Vec<(&'static str, u64)>,
    fill: Arc<ArcSwap<Vec<MapSample>>>,
    settings: Settings,
    cgroup_root: PathBuf,
    attached: bool,
    adopted: bool,
}

impl Kernel {
    /// Loads the programs, which proves that the kernel takes them. What an earlier agent left is opened and not touched: it may still be
    /// at work.
    pub fn load(config: &Config, pods_cgroup: &std::path::Path) -> Result<Self, KernelError> {
        let mut programs = Programs::load(&config.bpf_object, &config.bpffs, &config.instance)?;
        let maps = Maps::take(programs.ebpf())?;
        let mounts = cgroup::mounts(&cgroup::read("/proc/self/mountinfo")?);
        let (mount, view) = (cgroup::mount_of(pods_cgroup, &mounts)?, View::of_this_process()?);
        let own = cgroup::own(&cgroup::read("/proc/self/cgroup")?, mount, view)?;
        cgroup::check_own(&own, pods_cgroup, mount)?;
        let settings = Settings {
            host_netns: NetNs::current().map_err(KernelError::HostNetns)?.cookie(),
            agent_cgroup: cgroup::id(&own)?,
            former_agent_cgroup: 0,
            pods_cgroup: cgroup::id(pods_cgroup)?,
            pods_level: cgroup::level(pods_cgroup, mount, view)?,
            flags: 0,
            outbound_port: u32::from(OUTBOUND_PORT),
            tunnel_port: u32::from(TUNNEL_PORT),
        };
        let (state, cgroup_root) = (KernelState::default(), config.cgroup_root.clone());
        let capacities = maps::capacities(programs.pins());
        let fill = Arc::default();
        Ok(Kernel { programs, maps, state, capacities, fill, settings, cgroup_root, attached: false, adopted: false })
    }

    /// Becomes the maps' writer and reads what an earlier agent left, which stays in force. `beside`: that agent lives, and finishes its
    /// connections.
    pub fn take_over(&mut self, beside: bool) -> Result<(), KernelError> {
        self.state = self.maps.read();
        self.adopted = !self.state.pods.is_empty();
        let found = self.maps.settings()?;
        self.settings.flags = found.flags;
        if beside && found.agent_cgroup != self.settings.agent_cgroup {
            self.settings.former_agent_cgroup = found.agent_cgroup;
        }
        // From here on this process's sockets are the agent's, also for programs that an earlier agent left.
        self.maps.set_settings(&self.settings)?;
        self.programs.forget_orphans();
        Ok(())
    }

    /// The agent before this one is gone: whoever may be in its cgroup is not the mesh.
    pub fn forget_former(&mut self) -> Result<(), WriteError> {
        let settings = Settings { former_agent_cgroup: 0, ..self.settings };
        self.maps.set_settings(&settings)?;
        self.settings = settings;
        Ok(())
    }

    /// Whether an earlier agent's state is in force.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Where everything is pinned.
    pub fn pins(&self) -> &std::path::Path {
        self.programs.pins()
    }

    /// How full the maps are, whenever it is looked at.
    pub fn fill(&self) -> Arc<ArcSwap<Vec<MapSample>>> {
        self.fill.clone()
    }

    /// What the maps hold.
    pub fn state(&self) -> &KernelState {
        &self.state
    }

    /// Starts handing the kernel programs' own log lines to ours. A lack of it stops nothing.
    pub fn start_log(&mut self) {
        match EbpfLogger::init(self.programs.ebpf()) {
            Ok(mut logger) => {
                tokio::task::spawn_local(async move {
                    let mut look = tokio::time::interval(LOG_EVERY);
                    loop {
                        look.tick().await;
                        logger.flush();
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "the kernel programs' log cannot be read"),
        }
    }

    /// Brings the maps to `want`, then (the first time) attaches the programs. With `report_ends` the kernel reports each connection that
    /// ends, without it refusals only. A write that fails is reported and tried again at the next call; all others are done.
    pub fn apply(&mut self, snapshot: &Snapshot, report_ends: bool, want: KernelState) -> Result<usize, KernelError> {
        let mut flags = SETTINGS_READY;
        if snapshot.settings().unknown_pods == UnknownPods::Deny {
            flags |= SETTINGS_DENY_UNKNOWN;
        }
        if snapshot.settings().outbound_traffic == OutboundTraffic::RegistryOnly {
            flags |= SETTINGS_REGISTRY_ONLY;
        }
        if report_ends {
            flags |= SETTINGS_LOG_DIRECT;
        }
        // What was incomplete stays so until all of it could be written.
        self.set_flags(flags | self.settings.flags & SETTINGS_INCOMPLETE)?;
        let changes = diff(&self.state, &want);
        let mut failed = None;
        let mut incomplete = 0;
        for change in &changes {
            if let Err(error) = self.maps.apply(change) {
                if matches!(error.map, map::PODS | map::WORKLOADS | map::SERVICES) {
                    incomplete = SETTINGS_INCOMPLETE;
                }
                failed.get_or_insert(error);
            }
        }
        self.set_flags(flags | incomplete)?;
        // One that cannot be written must not keep the others out. After a failure only reading back tells what is there.
        self.state = if failed.is_none() { want } else { self.maps.read() };
        let sample = |&(map, capacity): &(&'static str, u64)| MapSample { map, entries: self.state.entries(map), capacity };
        self.fill.store(Arc::new(self.capacities.iter().map(sample).collect()));
        if !self.attached {
            self.programs.attach_cgroup(&self.cgroup_root)?;
            remove_other_versions(self.programs.pins());
            self.attached = true;
        }
        match failed {
            None => Ok(changes.len()),
            Some(error) => Err(error.into()),
        }
    }

    fn set_flags(&mut self, flags: u32) -> Result<(), WriteError> {
        if self.settings.flags != flags {
            self.maps.set_settings(&Settings { flags, ..self.settings })?;
            self.settings.flags = flags;
        }
        Ok(())
    }

    /// Captures what arrives in a pod's namespace. Until [`Kernel::steer`] all of it but tunnels is dropped.
    pub fn attach(&mut self, netns: &NetNs) -> Result<(), LoadError> {
        self.programs.attach_netns(netns)
    }

    /// Leaves a pod's namespace alone again.
    pub fn detach(&mut self, cookie: u64) {
        self.programs.detach_netns(cookie);
    }

    /// Removes what is left of namespaces that are gone.
    pub fn forget_orphans(&mut self) {
        self.programs.forget_orphans();
    }

    /// Namespaces that are captured, also by an earlier agent.
    pub fn attached_netns(&self) -> Vec<u64> {
        self.programs.attached_netns()
    }

    /// Tells the programs that what `listener` accepts is the agent's.
    pub fn own(&mut self, listener: &std::net::TcpListener) -> Result<(), WriteError> {
        self.maps.own(listener)
    }

    /// Hands plaintext that arrives for `address` to `listener`.
    pub fn steer(&mut self, address: std::net::IpAddr, listener: &std::net::TcpListener) -> Result<(), WriteError> {
        self.maps.steer(address.into(), listener)
    }

    /// Takes that back.
    pub fn unsteer(&mut self, address: std::net::IpAddr) -> Result<(), WriteError> {
        self.maps.unsteer(address.into())
    }
}
