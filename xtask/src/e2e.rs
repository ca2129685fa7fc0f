//! `cargo xtask test --cluster`: the mesh on a real Kubernetes, from its install to its removal, as its users meet it.
//!
//! The steps stand on one another: what the first installs the last one removes. What is asserted is what a person would see: answers of
//! programs in pods, metrics and access logs of the nodes, what `meshctl` says.

mod authority;
pub mod bed;
mod crowd;
mod enrolment;
mod gamma;
mod http;
mod lifecycle;
mod pods;
mod policy;
mod trouble;
pub mod view;
mod walk;

use anyhow::Result;

use crate::command;
use crate::demo::console::Console;
use bed::Bed;

/// A step: does it, and says what was seen.
type Step = fn(&mut Bed) -> Result<String>;

/// All steps by name, in order.
const ALL: &[(&str, Step)] = &[
    ("the chart installs and every node's agent is ready", lifecycle::install),
    ("meshctl check finds nothing wrong", lifecycle::check),
    ("before enrolment a pod reads hello-world on the other node, without the mesh", walk::before),
    ("a label enrols running pods: the same call is mutual TLS, nothing was restarted", walk::enrol),
    ("meshctl status and certs tell of both pods", walk::seen),
    ("the authority signs for a node's own agent, and for no other token", authority::refuses),
    ("an AuthorizationPolicy denies the call on both nodes, and the log names it", walk::deny),
    ("a wrong policy denies what it selects and says which field is wrong", policy::not_understood),
    ("under STRICT a pod outside the mesh is refused; one inside is not", policy::strict),
    ("probes by HTTP, TCP, gRPC and command pass under STRICT", pods::probes),
    ("a pod that leaves the namespace's mesh by its own label is left alone", enrolment::opted_out),
    ("a pod on the host's network is never captured", pods::host_network),
    ("a headless Service is reached by a pod's own name, by mutual TLS", pods::headless),
    ("IPv6 is by mutual TLS too, where the cluster has it", pods::dual_stack),
    ("Services and DNS outside the mesh work from within, and the other way round", enrolment::unmeshed),
    ("a Job's first connection is in the mesh, and what the Job had is freed at its end", pods::job),
    ("a nonsense label is said, and its pod is not in the clear", enrolment::nonsense),
    ("an HTTPRoute routes, redirects and answers, and its status says what it lacks", http::routed),
    ("a rolling restart of a server under load, with Istio's own breaker in force: no call fails", http::rolling),
    ("requests are denied by their path on the server's node, and meshctl explains by which policy", http::judged),
    ("routes: each request has the rule that the standard gives it", gamma::matching),
    ("routes: of several the older one's rule, then the first by name", gamma::precedence),
    ("routes: every part of a redirection's Location", gamma::redirects),
    ("routes: servers see paths and hosts as they are rewritten", gamma::rewrites),
    ("routes: headers of requests and answers are changed for rules and backends", gamma::filters),
    ("routes: weights hold; 500 for what is not there, 503 without endpoints", gamma::backends),
    ("routes: timeouts of requests and attempts", gamma::timeouts),
    ("routes: failures are tried again as often as is said, and in time", gamma::retries),
    ("routes: mirrors get as many copies as is said", gamma::mirrors),
    ("routes: CORS for the origins that are allowed, and no others", gamma::cors),
    ("routes: a session stays with its server", gamma::sessions),
    ("routes: a GRPCRoute tells calls apart", gamma::grpc),
    ("routes: producer's and consumer's for one Service at once", gamma::groups),
    ("routes: the status says for each parent what became of them, and of the newest generation", gamma::statuses),
    ("routes: a VirtualService and the subsets of a DestinationRule", gamma::subsets),
    ("routes: faults are injected where they are asked for, and nowhere else", gamma::faults),
    ("routes: near servers first, far ones by share or when none is near", gamma::locality),
    ("routes: Istio's own breaker trips, keeps a server out for 30 s and lets it back in", gamma::breaker),
    ("routes: two nodes keep one budget within 5 %, asked unevenly, and keep to it while who lends it goes", gamma::lending),
    ("routes: all of them go", gamma::forget),
    ("agents are replaced while calls go on: none fails, none is in the clear", lifecycle::upgrade),
    ("the mesh's root is rotated while calls go on: none fails, none is in the clear", lifecycle::rotate),
    ("an agent is killed: nothing passes in the clear, and a new one goes on", lifecycle::crash),
    ("an agent that may not read the cluster says so, lets nothing through, and recovers", trouble::forbidden),
    ("an agent that starts without an API server says so, and recovers", trouble::no_api_server),
    ("a pod that starts while its agent is away waits, its events say for what, and then it is in the mesh", crowd::without_agent),
    ("pods that start one after the other are in the mesh from their start", crowd::one_by_one),
    ("two hundred pods start at once, and each is in the mesh from its start", crowd::many),
    ("a thousand more pods on other nodes reach every agent and its kernel", crowd::thousand),
    ("a label taken away lets running pods leave: the same call is without the mesh", walk::leave),
    ("uninstalled: no program, pin, rule or plug-in is left, and the call still works", lifecycle::uninstall),
    ("installed over a namespace that bears its label already, its running pods are in the mesh at once", lifecycle::again),
];

/// So many steps at the beginning are the ground of all others.
const GROUND: usize = 4;

/// What came of the steps.
pub struct Totals {
    /// Those that held.
    pub passed: u64,
    /// Those that did not.
    pub failed: u64,
}

/// Runs the steps whose names contain the filter, which then must not need what others set up. The cluster is started if it does not run.
///
/// # Errors
/// The cluster or what is to be installed cannot be had.
pub fn run(filter: Option<&str>) -> Result<Totals> {
    command::need_root("the cluster")?;
    let mut bed = Bed::prepare()?;
    let mut console = Console::new();
    println!();
    for (number, (name, step)) in ALL.iter().enumerate() {
        if filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        console.step(name, || step(&mut bed));
        // Nothing that follows could say anything.
        if console.counts().1 > 0 && number < GROUND {
            for (name, _) in ALL.iter().skip(number + 1) {
                console.skipped(name);
            }
            break;
        }
    }
    bed.clean();
    let (passed, failed) = console.counts();
    Ok(Totals { passed, failed })
}
