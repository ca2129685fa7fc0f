//! Which process belongs to which pod, by the name of its cgroup. Pure.
//!
//! The kubelet names a pod's cgroup after the pod's UID: `…/pod<uid>/…` with the cgroupfs driver, `…-pod<uid>.slice/…` with systemd's,
//! where underscores stand for the dashes (Kubernetes, `pkg/kubelet/cm`). Container runtimes put every process of the pod below it.

/// The UID of the pod to which a process belongs; `cgroups` is the text of its `/proc/PID/cgroup`.
pub fn pod_of(cgroups: &str) -> Option<String> {
    // A line a hierarchy: number, controllers, path (cgroups(7)). The path may hold colons.
    cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).flat_map(|path| path.split('/')).find_map(pod_of_component)
}

fn pod_of_component(component: &str) -> Option<String> {
    let name = component.strip_suffix(".slice").unwrap_or(component);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.starts_with("kubepods").then(|| name.rsplit_once("-pod")).flatten()?.1,
    };
    let uid = uid.replace('_', "-");
    is_uid(&uid).then_some(uid)
}

/// A UUID, or the 32 hexadecimal digits by which the kubelet names a pod of its own manifests.
fn is_uid(text: &str) -> bool {
    let hex = |part: &str, length: usize| part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let groups: Vec<&str> = text.split('-').collect();
    match groups.as_slice() {
        [whole] => hex(whole, 32),
        [a, b, c, d, e] => hex(a, 8) && hex(b, 4) && hex(c, 4) && hex(d, 4) && hex(e, 12),
        _ => false,
    }
}

/// Moment at which a process started, in ticks since the machine did; `stat` is the text of its `/proc/PID/stat`. Of a pod's processes the
/// one that started first is the sandbox's own, which has the pod's network namespace whatever the others have made of theirs.
pub fn started(stat: &str) -> Option<u64> {
    // The command's name stands in parentheses and may hold anything; the start is field 22 (proc_pid_stat(5)).
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests;
