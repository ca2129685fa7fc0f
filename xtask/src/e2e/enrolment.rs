//! Who is in the mesh and who is not.

use anyhow::{Result, bail};

use super::bed::{Bed, DEMO, OUTSIDE, apply, curl, curl_until, exec, ready, service, web};
use super::policy::STRICT_URL;
use super::view::in_the_clear;
use super::walk::{HELLO, URL};
use crate::cluster;

pub fn opted_out(_: &mut Bed) -> Result<String> {
    apply(DEMO, &web("alone", ", nodemesh.dev/mesh: disabled"))?;
    ready(DEMO, &["alone"])?;
    let before = in_the_clear(DEMO)?;
    curl_until(DEMO, "alone", URL, |answer| answer.ok && answer.text.contains(HELLO))?;
    if curl(DEMO, "alone", STRICT_URL)?.ok {
        bail!("it was answered by a pod that accepts no plaintext");
    }
    if in_the_clear(DEMO)? <= before {
        bail!("its call was not counted as plaintext where it arrived");
    }
    cluster::ask(&["-n", DEMO, "delete", "pod", "alone"])?;
    Ok("it calls in the clear: answered where that is permitted, refused under STRICT".into())
}

pub fn unmeshed(_: &mut Bed) -> Result<String> {
    apply(OUTSIDE, &(web("web", "") + &service("web", "web", 80, "")))?;
    ready(OUTSIDE, &["web"])?;
    curl_until(DEMO, "client", "http://web.e2e-outside", |answer| answer.ok)?;
    let inward = curl(OUTSIDE, "tools", "http://hello-world.e2e-demo")?;
    if !inward.ok || !inward.text.contains(HELLO) {
        bail!("a pod outside is not answered, though the namespace is PERMISSIVE: {}", inward.text.trim());
    }
    let name = exec(DEMO, "client", &["getent", "ahosts", "kubernetes.default.svc.cluster.local"])?;
    if !name.ok {
        bail!("the cluster's DNS does not answer: {}", name.text.trim());
    }
    curl_until(OUTSIDE, "tools", "http://web", |answer| answer.ok)?;
    Ok("in both directions, beside the mesh, and names by DNS".into())
}

pub fn nonsense(bed: &mut Bed) -> Result<String> {
    apply(DEMO, &web("odd", ", nodemesh.dev/mesh: perhaps"))?;
    ready(DEMO, &["odd"])?;
    let before = in_the_clear(DEMO)?;
    let answer = curl(DEMO, "odd", URL)?;
    if in_the_clear(DEMO)? > before {
        bail!("its call arrived in the clear: {}", answer.text.trim());
    }
    let problems = bed.says(&["check"])?;
    cluster::ask(&["-n", DEMO, "delete", "pod", "odd"])?;
    let Some(line) = problems.lines().find(|line| line.contains("e2e-demo/odd") && line.contains("nodemesh.dev/mesh")) else {
        bail!("meshctl check names neither pod nor label:\n{problems}");
    };
    Ok(line.trim().to_owned())
}
