//! What a person wants to know of the cluster.

use anyhow::Result;

use super::cgroups::Hierarchies;
use super::client::ask;
use super::layout::{self, CONTROL_NAMESPACE, NODE_CGROUP, Node};
use super::state::State;

/// Prints it; false if a part of the cluster is not well.
pub fn print() -> Result<bool> {
    let Some(state) = State::load()? else {
        println!("there is no cluster");
        return Ok(false);
    };
    print!("{}", programs(&state, |program| program.process.alive()));
    for question in [["get", "nodes", "-o", "wide"].as_slice(), &["get", "pods", "--all-namespaces", "-o", "wide"]] {
        println!();
        match ask(question) {
            Ok(answer) => print!("{answer}"),
            Err(error) => println!("the API server does not answer: {error:#}"),
        }
    }
    println!("\n{}", places(&state));
    if !state.complete {
        println!("\nits start did not end: `cargo xtask cluster up` starts anew, `down` removes it");
    }
    Ok(state.runs())
}

fn programs(state: &State, alive: impl Fn(&super::state::Program) -> bool) -> String {
    let mut text = format!("{:<26} {:>8}  {:<8} {}\n", "PROGRAM", "PID", "STATE", "LOG");
    for program in &state.programs {
        let word = if alive(program) { "running" } else { "ended" };
        let log = layout::log(&program.name);
        text += &format!("{:<26} {:>8}  {word:<8} {}\n", program.name, program.process.pid(), log.display());
    }
    text
}

/// What must be known to use it.
pub fn places(state: &State) -> String {
    format!(
        "kubectl         cargo xtask cluster kubectl …   (or {})\n\
         KUBECONFIG      {}\n\
         reached from    network namespace {CONTROL_NAMESPACE}: cargo xtask cluster exec PROGRAM …\n\
         on a node       cargo xtask cluster enter n1 PROGRAM …\n\
         images          cargo xtask cluster load FILE.tar: on every node, and served for every registry's name\n\
         {}",
        layout::kubectl().display(),
        layout::kubeconfig("admin").display(),
        agent_places(&state.hierarchies)
    )
}

/// Where an agent on a node finds its node's pods.
fn agent_places(hierarchies: &Hierarchies) -> String {
    let example = Node(1);
    format!(
        "a node's agent  cgroup v2 of the node: {NODE_CGROUP} (on the machine: {} for {}); pods: {NODE_CGROUP}/kubepods\n\
         \x20               bpffs of the node: /sys/fs/bpf; CNI: /etc/cni/net.d, /opt/cni/bin; own to each node as well: /run, /var/lib/nodemesh",
        hierarchies.node(example).display(),
        example.name()
    )
}

#[cfg(test)]
mod tests {
    use super::{places, programs};
    use crate::cluster::cgroups::Hierarchies;
    use crate::cluster::state::{Program, State};
    use mesh_lab::record::ProcessId;

    #[test]
    fn tells_what_ended() {
        let mut state = State::new(2, Hierarchies { unified: "/sys/fs/cgroup".into(), legacy: Vec::new() }, Vec::new());
        let process = ProcessId::of(std::process::id()).unwrap();
        for name in ["etcd", "kubelet-n1"] {
            state.programs.push(Program { name: name.to_owned(), process });
        }
        let text = programs(&state, |program| program.name == "etcd");
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(line("etcd").contains("running"));
        assert!(line("kubelet-n1").contains("ended"));
        assert!(places(&state).contains("/sys/fs/cgroup/node1"));
    }
}
