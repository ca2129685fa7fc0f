//! Agents that are killed and started again, again and again: the first connection after readiness is as good as any.

use mesh_lab::peer::RepeatReport;
use mesh_lab::process::wait_until;
use mesh_lab::{Pod, PodSpec};

use crate::world::*;

const PORT: u16 = 7600;
/// Kills of each node's agent, unless the environment says otherwise.
const ROUNDS: usize = 4;

#[test]
fn the_first_connection_after_a_restart_succeeds() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
    ];
    let mut mesh = ground("restarts", &pods).start();
    let [client, server] = ["client", "server"].map(|name| mesh.pod(name));
    let _servers = [client.serve("echo", PORT).unwrap(), server.serve("echo", PORT).unwrap()];
    let rounds = std::env::var("NODEMESH_TEST_RESTARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    let ways: [(&Pod, &Pod); 2] = [(&client, &server), (&server, &client)];
    for round in 0..rounds {
        for node in ["n1", "n2"] {
            // Both agents have tunnels open to each other and dial more of them all the time, while one side dies.
            let busy = ways.map(|(from, to)| {
                from.spawn_peer(&["repeat", &at(to, PORT).to_string(), "--interval", "1", "--seconds", "600", "--timeout", "2"]).unwrap()
            });
            wait_until("both connect", LIMIT, || busy.iter().all(|client| client.ticks() > 20)).unwrap();
            // Every other time nobody connects while the agent is away, so that what was open before is found by the first who does.
            let mut busy = Some(busy);
            if round % 2 == 1 {
                busy = None;
            }
            mesh.mesh.agent(node).unwrap().crash();
            let options = mesh.options.clone();
            let Cluster { mesh: running, ground } = &mut mesh;
            running.restart(&ground.world, node, &options).unwrap();
            for (from, to) in if round % 4 < 2 { ways } else { [ways[1], ways[0]] } {
                let report = from.connect(at(to, PORT), "after").unwrap();
                assert_eq!(report.received, "after", "round {round}, {node} restarted, {} to {}: {report:?}", from.name(), to.name());
            }
            // From here on none fails.
            let more = ways.map(|(from, to)| from.spawn_peer(&["repeat", &at(to, PORT).to_string(), "--interval", "1", "--seconds", "1"]));
            for client in more {
                let report: RepeatReport = client.unwrap().finish(LIMIT).unwrap();
                assert_eq!(report.failures, [""; 0], "round {round}, {node} restarted");
            }
            drop(busy);
        }
    }
}
