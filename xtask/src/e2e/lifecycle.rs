//! Install, replacement, crash, removal.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::bed::{Bed, DEMO, MESH, curl, curl_until};
use super::view::{in_the_clear, lives, mutual, nodes};
use super::walk::{HELLO, URL};
use crate::cluster;

pub fn install(bed: &mut Bed) -> Result<String> {
    if Bed::is_installed()? {
        bed.told(&["uninstall", "--purge"])?;
    }
    let took = bed.install()?;
    let pods = cluster::ask(&["-n", MESH, "get", "pods", "-o", "wide", "--no-headers"])?;
    Ok(format!("{:.1} s until ready\n{}", took.as_secs_f64(), pods.trim()))
}

pub fn check(bed: &mut Bed) -> Result<String> {
    bed.told(&["check"])
}

/// Calls one after the other until told to end: how many, and what went wrong with those that failed.
fn calls(stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<Result<(usize, Vec<String>)>> {
    let stop = stop.clone();
    std::thread::spawn(move || {
        let (mut made, mut failed) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            made += 1;
            let answer = curl(DEMO, "client", URL)?;
            if !answer.ok || !answer.text.contains(HELLO) {
                failed.push(answer.text.trim().to_owned());
            }
        }
        Ok((made, failed))
    })
}

/// Does something while calls go on, all of which must be answered: how many there were, and what was done.
pub(super) fn under_traffic<T>(act: impl FnOnce() -> Result<T>) -> Result<(usize, T)> {
    let stop = Arc::new(AtomicBool::new(false));
    let caller = calls(&stop);
    let done = act();
    std::thread::sleep(Duration::from_secs(2));
    stop.store(true, Ordering::Relaxed);
    let (made, failed) = caller.join().map_err(|_| anyhow::anyhow!("the caller panicked"))??;
    let done = done?;
    match failed.first() {
        Some(first) => bail!("{} of {made} calls failed, the first: {first}", failed.len()),
        None => Ok((made, done)),
    }
}

pub fn upgrade(_: &mut Bed) -> Result<String> {
    let (made, _) = under_traffic(|| {
        cluster::ask(&["-n", MESH, "rollout", "restart", "daemonset/mesh-agent"])?;
        cluster::ask(&["-n", MESH, "rollout", "status", "daemonset/mesh-agent", "--timeout=120s"])
    })?;
    // The agents are new and so are their counters.
    if in_the_clear(DEMO)? > 0.0 {
        bail!("a call arrived in the clear");
    }
    Ok(format!("{made} calls meanwhile, all answered"))
}

/// The roots that the certificates of all nodes lead to, and those that are believed with them.
fn roots(bed: &Bed) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let all: Vec<serde_json::Value> = serde_json::from_str(&bed.told(&["certs", "-o", "json"])?).context("meshctl certs")?;
    let word = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let leads = all.iter().filter_map(|certificate| certificate.get("root").and_then(word)).collect();
    let trusted = all
        .iter()
        .flat_map(|certificate| certificate.get("trusted").and_then(serde_json::Value::as_array).into_iter().flatten())
        .filter_map(word)
        .collect();
    Ok((leads, trusted))
}

pub fn rotate(bed: &mut Bed) -> Result<String> {
    let (before, _) = roots(bed)?;
    match bed.told(&["certs", "rotate", "revoke"]) {
        Err(error) if format!("{error:#}").contains("revoke does not follow: the rotation is idle") => {}
        other => bail!("a step out of its order: {other:?}"),
    }
    let start = Instant::now();
    let (made, said) = under_traffic(|| bed.told(&["certs", "rotate"]))?;
    let took = start.elapsed();
    let (leads, trusted) = roots(bed)?;
    if leads.len() != 1 || !leads.is_disjoint(&before) || trusted != leads {
        bail!("certificates led to {before:?}; now to {leads:?}, and {trusted:?} are trusted");
    }
    if in_the_clear(DEMO)? > 0.0 {
        bail!("a call arrived in the clear");
    }
    Ok(format!("{made} calls meanwhile, all answered; {:.0} s\n{said}", took.as_secs_f64()))
}

pub fn crash(_: &mut Bed) -> Result<String> {
    let node = cluster::ask(&["-n", DEMO, "get", "pod", "client", "-o", "jsonpath={.spec.nodeName}"])?;
    let killed = cluster::kill_agent(&node).context("killing the agent")?;
    let start = Instant::now();
    let mut refused = 0;
    loop {
        let answer = curl(DEMO, "client", URL)?;
        if answer.ok {
            break;
        }
        refused += 1;
        if start.elapsed() > super::bed::LIMIT {
            bail!("{node}: no agent after {:.0} s: {}", start.elapsed().as_secs_f64(), answer.text.trim());
        }
    }
    if in_the_clear(DEMO)? > 0.0 {
        bail!("a call arrived in the clear");
    }
    Ok(format!(
        "process {killed} of {node}: {refused} calls refused, then answered by mutual TLS after {:.1} s",
        start.elapsed().as_secs_f64()
    ))
}

pub fn uninstall(bed: &mut Bed) -> Result<String> {
    let said = bed.told(&["uninstall", "--purge"])?;
    for node in nodes()? {
        let look = "ls -A /sys/fs/bpf | grep -v debug$; ls -A /run/nodemesh 2>/dev/null | grep -v '^$'; grep -l '\"mesh-cni\"' /etc/cni/net.d/* 2>/dev/null; ls /opt/cni/bin/mesh-cni 2>/dev/null; \
                    for n in /run/netns/*; do nsenter --net=$n ip rule 2>/dev/null | grep 0x6e6d; done; true";
        let output = cluster::on(&node, "sh")?.args(["-c", look]).output().context("looking at a node")?;
        let left = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !left.is_empty() {
            bail!("{node} still has:\n{left}");
        }
    }
    curl_until(DEMO, "client", URL, |answer| answer.ok && answer.text.contains(HELLO))?;
    Ok(said)
}

pub fn again(bed: &mut Bed) -> Result<String> {
    let lived = lives(DEMO)?;
    cluster::ask(&["label", "--overwrite", "namespace", DEMO, "nodemesh.dev/mesh=enabled"])?;
    let installed = bed.install()?;
    let start = Instant::now();
    while mutual(DEMO)? < 1.0 {
        if start.elapsed() > super::bed::LIMIT {
            bail!("no call by mutual TLS {} s after the install", start.elapsed().as_secs());
        }
        curl(DEMO, "client", URL)?;
    }
    let took = start.elapsed();
    if in_the_clear(DEMO)? > 0.0 || lives(DEMO)? != lived {
        bail!("a call arrived in the clear, or a pod was restarted");
    }
    bed.told(&["uninstall", "--purge"])?;
    Ok(format!("ready after {:.1} s, by mutual TLS {:.1} s later", installed.as_secs_f64(), took.as_secs_f64()))
}
