//! Agents that are killed and started again, again and again: the first connection after readiness is as good as any.

use mesh_lab::PodSpec;

use crate::world::*;

const PORT: u16 = 7600;
/// Kills of each node's agent.
const ROUNDS: usize = 5;

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
    for round in 0..rounds {
        for node in ["n1", "n2"] {
            // Both agents have tunnels open to each other, of which one side is about to die.
            for (from, to) in [(&client, &server), (&server, &client)] {
                for _ in 0..3 {
                    let report = from.connect(at(to, PORT), "before").unwrap();
                    assert_eq!(report.received, "before", "round {round}, before {node}: {report:?}");
                }
            }
            mesh.mesh.agent(node).unwrap().crash();
            let options = mesh.options.clone();
            let Cluster { mesh: running, ground } = &mut mesh;
            running.restart(&ground.world, node, &options).unwrap();
            let ways = if round % 2 == 0 { [(&client, &server), (&server, &client)] } else { [(&server, &client), (&client, &server)] };
            for (from, to) in ways {
                let report = from.connect(at(to, PORT), "after").unwrap();
                assert_eq!(report.received, "after", "round {round}, {node} restarted, {} to {}: {report:?}", from.name(), to.name());
            }
        }
    }
}
