//! A world: the fabric, the nodes on it, and the end of all of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::cgroup::{Cgroup, mount_point};
use crate::manifests::Manifests;
use crate::node::Node;
use crate::process::Place;
use crate::record::{self, BPFFS, Kept, ProcessId, Record};
use crate::{netns, packages};

/// The name of the fabric's place, and of the one beside the nodes that the control plane runs in.
const FABRIC: &str = "fabric";
const CONTROL: &str = "control";

/// Nodes, pods and programs on a machine of their own, so to say. Dropping it removes every trace.
#[derive(Debug)]
pub struct World {
    inner: Arc<Inner>,
    guardian: Option<Child>,
    keep: bool,
}

/// What nodes and pods share with their world.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) id: String,
    pub(crate) directory: PathBuf,
    pub(crate) cgroup: Cgroup,
    record: Mutex<Record>,
    nodes: Mutex<Vec<Node>>,
}

impl Inner {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A namespace's full name on this machine.
    pub(crate) fn namespace_name(&self, part: &str) -> String {
        format!("{}-{part}", self.id)
    }

    /// Makes a namespace with its loopback up; it is written down first.
    pub(crate) fn add_namespace(&self, part: &str) -> Result<String> {
        let name = self.namespace_name(part);
        {
            let mut record = self.record();
            record.namespaces.insert(name.clone());
            record.save()?;
        }
        netns::ip(None, &[format!("netns add {name}")])?;
        // Addresses are usable at once: nobody else can hold them.
        let settings = [
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_ra", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
        ];
        netns::sysctl(&netns::path(&name), &settings)?;
        Ok(name)
    }

    /// Writes down where a pod is, or that it is gone.
    pub(crate) fn note_pod(&self, name: &str, place: Option<Place>) -> Result<()> {
        let mut record = self.record();
        match place {
            Some(place) => record.pods.insert(name.to_owned(), place),
            None => record.pods.remove(name),
        };
        record.save()
    }

    pub(crate) fn remove_namespace(&self, name: &str) -> Result<()> {
        netns::remove(&[name.to_owned()])?;
        let mut record = self.record();
        record.namespaces.remove(name);
        record.save()
    }

    /// A file of the world for what `name` writes.
    pub(crate) fn log_file(&self, name: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{}.log", name.replace('/', "_")))
    }
}

impl World {
    /// Makes an empty world. `name` is the readable part of its names (letters, digits, dashes).
    ///
    /// # Errors
    /// Not root, no cgroup v2, or a kernel object can't be made; the message names it.
    pub fn new(name: &str) -> Result<Self> {
        static SWEPT: Once = Once::new();
        if !nix::unistd::geteuid().is_root() {
            return Err(anyhow!("worlds need root: they are made of network namespaces, cgroups and kernel programs"));
        }
        packages::ensure(&["iproute2", "util-linux", "tcpdump"])?;
        let mut swept = Ok(Vec::new());
        SWEPT.call_once(|| swept = record::sweep(Kept::Leave));
        swept.context("removing worlds of crashed runs")?;

        let id = format!("{name}-{:04x}", random()?);
        let cgroup_path = mount_point()?.join(format!("nodemesh-lab-{id}"));
        let owner = ProcessId::of(std::process::id());
        let record = Record {
            id: id.clone(),
            owner,
            cgroup: cgroup_path.clone(),
            namespaces: std::collections::BTreeSet::new(),
            pins: std::collections::BTreeSet::new(),
            pods: std::collections::BTreeMap::new(),
        };
        let directory = record.directory();
        {
            let _lock = record::lock()?;
            record.save()?;
            record::provide_bpffs()?;
        }
        let inner = Inner {
            id,
            directory: directory.clone(),
            cgroup: Cgroup::create(cgroup_path)?,
            record: Mutex::new(record),
            nodes: Mutex::new(Vec::new()),
        };
        // From here on Drop cleans up what was made, also when a later step fails.
        let mut world = Self { inner: Arc::new(inner), guardian: None, keep: false };
        world.guardian = Some(guardian(&directory)?);
        for part in ["logs", "manifests", "tokens", "captures"] {
            std::fs::create_dir_all(directory.join(part)).with_context(|| format!("making {part} in {}", directory.display()))?;
        }
        world.make_fabric()?;
        Ok(world)
    }

    fn make_fabric(&self) -> Result<()> {
        let fabric = self.inner.add_namespace(FABRIC)?;
        let control = self.inner.add_namespace(CONTROL)?;
        self.inner.cgroup.child(FABRIC)?;
        self.inner.cgroup.child(CONTROL)?;
        netns::ip(
            Some(&fabric),
            &[
                "link set lo up".to_owned(),
                "link add fabric type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
                "link set fabric up".to_owned(),
            ],
        )?;
        netns::ip(
            Some(&control),
            &[
                "link set lo up".to_owned(),
                format!("link add eth0 type veth peer name control netns {fabric}"),
                format!("addr add {}/24 dev eth0", self.control_address()),
                "addr add fd00:31::fe/64 dev eth0 nodad".to_owned(),
                "link set eth0 up".to_owned(),
            ],
        )?;
        netns::ip(Some(&fabric), &["link set control master fabric up".to_owned()])
    }

    /// Its name on this machine, unique.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// Its directory: logs, manifests, captures, the record of what exists. Gone with it.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// Adds a node, the first being number 1.
    ///
    /// # Errors
    /// A kernel object can't be made, or there are sixteen already.
    pub fn add_node(&self, name: &str) -> Result<Node> {
        let index = self.inner.nodes().len() + 1;
        let node = Node::create(Arc::clone(&self.inner), name, u8::try_from(index).context("too many nodes")?)?;
        self.inner.nodes().push(node.clone());
        Ok(node)
    }

    /// Its nodes in the order of their making.
    pub fn nodes(&self) -> Vec<Node> {
        self.inner.nodes().clone()
    }

    /// The link between the nodes: a namespace with the bridge that joins them. What crosses nodes is seen here.
    pub fn fabric(&self) -> Place {
        self.place(FABRIC)
    }

    /// A place on the fabric that is no node; the control plane runs here.
    pub fn control_plane(&self) -> Place {
        self.place(CONTROL)
    }

    /// The IPv4 address of [`Self::control_plane`], reachable from every node.
    pub fn control_address(&self) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::new(172, 31, 0, 254)
    }

    fn place(&self, part: &str) -> Place {
        Place { netns: netns::path(&self.inner.namespace_name(part)), cgroup: self.inner.cgroup.path().join(part) }
    }

    /// The directory of Kubernetes objects that the world's agents follow.
    pub fn manifests(&self) -> Manifests {
        Manifests::new(self.inner.directory.join("manifests"))
    }

    /// A file in the world's directory for what the named program writes.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.inner.log_file(name)
    }

    /// Tells the world of an agent's instance name, so that its pins go with the world. Call before the agent starts.
    ///
    /// # Errors
    /// The record can't be written.
    pub fn own_instance(&self, instance: &str) -> Result<()> {
        let mut record = self.inner.record();
        record.pins.insert(Path::new(BPFFS).join("nodemesh").join(instance));
        record.save()
    }

    /// Leaves everything running when this value goes; `sweep(Kept::Remove(…))` removes it later.
    ///
    /// # Errors
    /// The record can't be written; then the world is removed as ever.
    pub fn keep(mut self) -> Result<()> {
        {
            let mut record = self.inner.record();
            record.owner = None;
            record.save()?;
        }
        self.keep = true;
        Ok(())
    }

    /// Removes the world and says what could not be removed.
    ///
    /// # Errors
    /// Something is left; its record too, so that a sweep takes it up again.
    pub fn remove(mut self) -> Result<()> {
        self.keep = true;
        self.tear_down()
    }

    fn tear_down(&mut self) -> Result<()> {
        let record = self.inner.record();
        record.tear_down()?;
        let _lock = record::lock()?;
        record.forget()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.tear_down()
        {
            eprintln!("mesh-lab: {error:#}");
        }
        if let Some(mut guardian) = self.guardian.take() {
            // It ends when its standard input closes.
            drop(guardian.stdin.take());
            let _ = guardian.wait();
        }
    }
}

/// Starts the process that removes the world should this one die without doing so.
fn guardian(directory: &Path) -> Result<Child> {
    use std::os::unix::process::CommandExt as _;
    let binary = crate::peer::binary()?;
    Command::new(&binary)
        .arg("guard")
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", binary.display()))
}

/// The guardian's work: waits until the owner is gone, then removes its world unless it was kept or removed.
///
/// # Errors
/// Something can't be removed.
pub fn guard(directory: &Path) -> Result<()> {
    let mut nothing = Vec::new();
    // The owner never writes: this returns when the last copy of the pipe's other end is closed.
    let _ = std::io::Read::read_to_end(&mut std::io::stdin(), &mut nothing);
    // The owner may be closing its files and not be gone yet.
    std::thread::sleep(Duration::from_millis(50));
    let _lock = record::lock()?;
    if !directory.join("world.json").exists() {
        return Ok(());
    }
    let record = Record::load(directory)?;
    if record.owner.is_some() {
        record.tear_down()?;
        record.forget()?;
    }
    Ok(())
}

fn random() -> Result<u16> {
    let mut bytes = [0; 2];
    let mut source = std::fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut bytes).context("reading /dev/urandom")?;
    Ok(u16::from_ne_bytes(bytes))
}
