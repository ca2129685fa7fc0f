//! One budget for a Service whose pods are on two nodes (RateLimit, `scope: service`): lent by the replica of mesh-control that leads, to
//! where the requests are, and kept while that replica goes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::stage::{PRODUCER, pod, service, set};
use crate::cluster;
use crate::e2e::bed::{Bed, LIMIT, MESH, apply, exec, ready, web};
use crate::e2e::view::{metrics, nodes};

/// Requests a second that all pods of the Service take together.
const BUDGET: u32 = 40;
/// Requests a second that are made of either pod: the one gets more than all, the other less than its fair share.
const MUCH: u32 = 90;
const LITTLE: u32 = 8;
/// How far what is let through may be from the budget.
const WITHIN: f64 = 0.05;
/// Seconds of requests after which what is asked of each is known.
const SETTLED: u32 = 5;
/// When in that time it is looked at.
const LOOKED: Duration = Duration::from_secs(4);
/// The part of what is asked of the one with little that its share is then at least: it comes to all of it by and by.
const NEARLY: f64 = 0.85;
/// Measurements, of which one must show that the budget is used.
const TRIES: u32 = 4;
/// Seconds of a measurement.
const MEASURED: u32 = 10;
const OBJECT: &str = "e2e-routes/metered";

fn make(near: &str, far: &str) -> Result<()> {
    let objects = pod("much", near, "metered")
        + &pod("little", far, "metered")
        + &service("much", "{app: much}")
        + &service("little", "{app: little}")
        + &service("metered", "{set: metered}")
        + &web("loader", "")
        + &format!(
            "
apiVersion: nodemesh.dev/v1alpha1
kind: RateLimit
metadata: {{name: metered}}
spec:
  targetRefs: [{{kind: Service, name: metered}}]
  scope: service
  limits: [{{requests: {BUDGET}, unit: second, burst: 4}}]
"
        );
    apply(PRODUCER, &objects)?;
    ready(PRODUCER, &["much", "little", "loader"])?;
    cluster::ask(&["-n", PRODUCER, "wait", "--for=condition=Accepted", "--timeout=30s", "ratelimit", "metered"]).map(drop)
}

/// What came of requests to one pod.
struct Load {
    passed: u32,
    refused: u32,
    /// In which time, as the client's pod has it.
    seconds: f64,
}

impl Load {
    /// Requests a second that were made.
    fn asked(&self) -> f64 {
        f64::from(self.passed + self.refused) / self.seconds
    }
}

/// So many requests a second to one pod, for so many seconds.
fn load(server: &str, rate: u32, seconds: u32) -> Result<Load> {
    let script = format!(
        "date +%s.%N; curl -s -o /dev/null -w '%{{http_code}}\\n' --max-time 5 --rate {rate}/s 'http://{server}/[1-{}]'; date +%s.%N",
        rate * seconds
    );
    let answer = exec(PRODUCER, "loader", &["sh", "-c", &script])?;
    let mut lines = answer.text.lines();
    let (begun, ended) = (lines.next(), lines.next_back());
    let moment = |line: Option<&str>| line.and_then(|line| line.parse::<f64>().ok()).with_context(|| format!("no time in {}", answer.text));
    let seconds = moment(ended)? - moment(begun)?;
    let (mut passed, mut refused) = (0, 0);
    for line in lines {
        match line {
            "200" => passed += 1,
            "429" => refused += 1,
            other => bail!("a request of {server} was answered with {other}"),
        }
    }
    Ok(Load { passed, refused, seconds })
}

/// Requests of both pods at once, and what `meanwhile` gives.
fn uneven<T>(seconds: u32, meanwhile: impl FnOnce() -> Result<T>) -> Result<(Load, Load, T)> {
    thread::scope(|scope| {
        let much = scope.spawn(|| load("much", MUCH, seconds));
        let little = scope.spawn(|| load("little", LITTLE, seconds));
        let seen = meanwhile()?;
        let joined = |done: thread::Result<Result<Load>>| done.map_err(|_| anyhow!("a load panicked"))?;
        Ok((joined(much.join())?, joined(little.join())?, seen))
    })
}

/// How much of the budget was let through.
fn kept(much: &Load, little: &Load) -> Result<f64> {
    let seconds = much.seconds.max(little.seconds);
    let ratio = f64::from(much.passed + little.passed) / (f64::from(BUDGET) * seconds);
    if ratio > 1.0 + WITHIN {
        bail!("{} and {} were let through in {seconds:.1} s, {ratio:.3} of the budget", much.passed, little.passed);
    }
    Ok(ratio)
}

fn share(node: &str) -> Result<f64> {
    Ok(metrics(node)?.sum("nodemesh_rate_limit_share_ratio", &[("limit", OBJECT)]))
}

/// The pod of mesh-control that leads, as the Lease has it.
fn leader() -> Result<String> {
    let holder = cluster::ask(&["-n", MESH, "get", "lease", "mesh-control", "-o", "jsonpath={.spec.holderIdentity}"])?;
    let pods = cluster::ask(&[
        "-n",
        MESH,
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=mesh-control",
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ])?;
    let leads = pods.split_whitespace().find(|pod| holder.starts_with(&format!("{pod}_")));
    leads.map(str::to_owned).with_context(|| format!("the Lease is held by {holder:?}, which is none of {pods}"))
}

/// Makes uneven requests until the budget is where they are. It is looked at while both are made: on a slow machine one may end well before the
/// other, and neither comes to just as many a second as it should.
fn settle(near: &str, far: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let (most, least, (much, little)) = uneven(SETTLED, || {
            thread::sleep(LOOKED);
            Ok((share(near)?, share(far)?))
        })?;
        let asked = least.asked() / f64::from(BUDGET);
        if much > 0.7 && little < 0.3 && little >= asked * NEARLY {
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            let (most, least) = (most.asked(), least.asked());
            bail!("of the budget {near} holds {much} where {most:.1} a second are asked for, {far} {little} where {least:.1} are");
        }
    }
}

pub fn lending(bed: &mut Bed) -> Result<String> {
    set(bed)?;
    let nodes = nodes()?;
    let (near, far) = (nodes.first().context("a cluster without nodes")?, nodes.last().context("a cluster without nodes")?);
    make(near, far)?;
    settle(near, far)?;
    // On a busy machine a client may not ask for as much as it should: more than the budget is never let through, that it is can be tried again.
    let mut tries = 1;
    let (much, little, ratio) = loop {
        let (much, little, ()) = uneven(MEASURED, || Ok(()))?;
        let ratio = kept(&much, &little)?;
        if ratio >= 1.0 - WITHIN || tries == TRIES {
            break (much, little, ratio);
        }
        tries += 1;
    };
    if ratio < 1.0 - WITHIN {
        bail!("only {ratio:.3} of the budget was let through: {} of {near}, {} of {far}", much.passed, little.passed);
    }
    // Its share is what it asks for and little more, and its part of the burst one request: some that come too close upon another are refused.
    if little.passed < 2 * little.refused {
        bail!(
            "{} requests were let through and {} refused where less was asked for than the node's fair share",
            little.passed,
            little.refused
        );
    }

    // Another replica leads then. Until it lends, each node has its fair share; never is there more than the budget.
    let gone = leader()?;
    let loads = uneven(3 * MEASURED, || {
        thread::sleep(Duration::from_secs(2));
        cluster::ask(&["-n", MESH, "delete", "pod", &gone, "--wait=false"]).map(drop)
    });
    let (most, least, ()) = loads?;
    let without = kept(&most, &least)?;
    settle(near, far)?;
    let now = leader()?;
    if now == gone {
        bail!("{gone} leads still");
    }
    cluster::ask(&["-n", MESH, "rollout", "status", "deployment/mesh-control", "--timeout=60s"])?;
    cluster::ask(&["-n", PRODUCER, "delete", "ratelimit", "metered"])?;
    cluster::ask(&["-n", PRODUCER, "delete", "pod", "much", "little", "loader", "--wait=false"])?;
    Ok(format!(
        "{:.1} % of the budget ({} and {} in {:.1} s); while the leader went {:.1} %, then {now} lent",
        ratio * 100.0,
        much.passed,
        little.passed,
        much.seconds,
        without * 100.0
    ))
}
