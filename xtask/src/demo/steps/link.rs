//! What was on the wire.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::demo::stage::Stage;

/// Packets under way when a capture ends.
const SETTLE: Duration = Duration::from_millis(300);

pub fn only_tls(stage: &mut Stage) -> Result<String> {
    let link = stage.link.take().context("the capture is over already")?.finish(SETTLE)?;
    let inside = stage.inside.take().context("the capture is over already")?.finish(SETTLE)?;
    // The same search in the web server's own namespace must find the page, or finding nothing on the link would mean nothing.
    if !inside.contains(stage.secrets.page.as_bytes()) {
        bail!("the search does not even find the page inside the server's pod");
    }
    for (secret, what) in
        [(&stage.secrets.page, "a page"), (&stage.secrets.value, "a value of the cache"), (&stage.secrets.greeting, "the greeting")]
    {
        if link.contains(secret.as_bytes()) {
            bail!("{what} crossed the link in the clear");
        }
    }
    // What an outsider sends is its own plaintext; it got nothing back, and that is all there may be.
    let outsider = stage.outsider.addresses();
    let foreign: Vec<_> = link.plaintext().into_iter().filter(|plain| !outsider.contains(&plain.from.ip())).collect();
    if !foreign.is_empty() {
        bail!("not TLS: {foreign:?}");
    }
    let between: Vec<_> = link.streams().filter(|(from, to, _)| !outsider.contains(&from.ip()) && !outsider.contains(&to.ip())).collect();
    let bytes: u64 = between.iter().map(|(_, _, stream)| stream.length()).sum();
    if between.is_empty() || bytes == 0 {
        bail!("nothing crossed the link at all");
    }
    let opened = link.opened().filter(|(from, _)| !outsider.contains(&from.ip()));
    let ports: BTreeSet<String> = opened.map(|(_, to)| to.port().to_string()).collect();
    Ok(format!(
        "{} packets, {} directions of connections, {} KiB, every byte inside a TLS record; ports {}\n\
         page, value and greeting: found 0 times on the link, and the page inside the server's pod",
        link.packets(),
        between.len(),
        bytes / 1024,
        ports.into_iter().collect::<Vec<_>>().join(", ")
    ))
}
