//! The authority that objects of the cluster keep: taken over at the start, and when they change.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Serving, note_expiry};
use crate::ca::objects::ObjectError;
use crate::ca::{Keeper, Objects};
use crate::metrics::Metrics;
use crate::ready::Readiness;

/// Between two looks at the objects.
const LOOK: Duration = Duration::from_secs(10);
/// What is awaited, for readiness.
const WHAT: &str = "certificate authority";
/// First wait for an API server that does not answer yet; it doubles up to [`LOOK`].
const FIRST: Duration = Duration::from_millis(200);

/// Reads or makes the authority and publishes its roots: whoever is shown a certificate below them must be able to trust it. An API server
/// that does not answer yet is waited for; anything else that is wrong ends the process, which says what.
pub(super) async fn open(objects: &Objects, ready: &Readiness, now: SystemTime) -> Result<Keeper, ObjectError> {
    let mut wait = FIRST;
    loop {
        match take_over(objects, now).await {
            Ok(keeper) => {
                ready.done(WHAT);
                return Ok(keeper);
            }
            Err(error) if error.may_pass() => {
                ready.wait_for(WHAT, error.to_string());
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LOOK);
            }
            Err(error) => return Err(error),
        }
    }
}

async fn take_over(objects: &Objects, now: SystemTime) -> Result<Keeper, ObjectError> {
    let keeper = Keeper::given(objects.authority(now).await?, now)?;
    if let Some(trusted) = objects.published().await? {
        keeper.is_trusted_by(&trusted, now)?;
    }
    objects.publish(&keeper.current().roots_pem()).await?;
    Ok(keeper)
}

/// Follows the Secret. What is of no use, or would have certificates refused, changes nothing: the authority before stays in force.
pub(super) async fn follow(
    objects: Objects,
    keeper: Arc<Keeper>,
    serving: Arc<Serving>,
    metrics: Arc<Metrics>,
) -> (&'static str, Result<(), String>) {
    let mut roots_since = None;
    let mut complaint = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(error) = objects.rotate(SystemTime::now()).await {
            tracing::warn!(%error, "whether a rotation of the root is asked for is not known");
        }
        match look(&objects, &keeper, &serving, &mut roots_since).await {
            Ok(()) => complaint.clear(),
            Err(error) if error == complaint => {}
            Err(error) => {
                tracing::error!(%error, "the authority that the cluster keeps: what was read from it earlier stays in force");
                complaint = error;
            }
        }
        note_expiry(&metrics, &keeper, &serving);
    }
}

async fn look(objects: &Objects, keeper: &Keeper, serving: &Serving, roots_since: &mut Option<Instant>) -> Result<(), String> {
    let now = SystemTime::now();
    let found = objects.read().await.map_err(|error| error.to_string())?;
    let (given, rotation) = found.ok_or("its Secret is empty: put back what it held, or the next start fails")?;
    // Roots that were there when this process started may have been there for long: a rotation notes since when.
    let roots_since = roots_since.get_or_insert_with(|| {
        let start = Instant::now();
        rotation.age(now).and_then(|age| start.checked_sub(age)).unwrap_or(start)
    });
    // A replica whose authority is not that of the Secret must not tell agents what to trust.
    if keeper.is(&given) {
        return objects.publish(&keeper.current().roots_pem()).await.map(drop).map_err(|error| error.to_string());
    }
    // A replica that was cut off while others made steps of a rotation finds one that does not follow from where it stands. What those that
    // made it looked at before need not be looked at again; that agents trust it must be.
    let missed = rotation.activated(&given.signer.certificate);
    let next = Keeper::given(given, now).map_err(|error| error.to_string())?;
    if let Err(error) = keeper.may_give_way_to(&next, roots_since.elapsed(), now) {
        let published = objects.published().await.map_err(|error| error.to_string())?.unwrap_or_default();
        if !missed || next.is_trusted_by(&published, now).is_err() {
            return Err(error.to_string());
        }
        tracing::warn!("steps of the root's rotation were made while this replica could not follow; it goes on from where they lead");
    }
    let roots = next.current().roots_pem();
    if keeper.current().roots_pem() != roots {
        *roots_since = Instant::now();
    }
    objects.publish(&roots).await.map_err(|error| error.to_string())?;
    keeper.take(next);
    serving
        .renew(&keeper.current(), now)
        .map_err(|error| format!("the server's own certificate cannot be made below the new authority: {error}"))?;
    tracing::info!("another authority or other roots were put into the Secret, and are in force");
    Ok(())
}
