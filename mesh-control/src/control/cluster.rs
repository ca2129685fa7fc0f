//! The authority that objects of the cluster keep: taken over at the start, and whenever they change.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;

use super::{Serving, note_expiry};
use crate::ca::objects::{ObjectError, patience};
use crate::ca::{Keeper, Objects};
use crate::metrics::Metrics;

/// How often it is made sure that agents still find the roots.
const LOOK: Duration = Duration::from_secs(60);

/// Reads or makes the authority and publishes its roots: whoever is shown a certificate below them must be able to trust it. An API server
/// that does not answer yet is waited for.
pub(super) async fn open(objects: &Objects, now: SystemTime) -> Result<Keeper, ObjectError> {
    let mut attempt = 0;
    loop {
        let opened = async {
            let keeper = Keeper::given(objects.authority(now).await?, now)?;
            objects.publish(&keeper.current().roots_pem()).await?;
            Ok::<_, ObjectError>(keeper)
        };
        match opened.await {
            Ok(keeper) => return Ok(keeper),
            // What it says is wrong stays wrong; the process ends with it, which the operator sees.
            Err(error @ (ObjectError::Hierarchy(_) | ObjectError::Restless(_))) => return Err(error),
            Err(error) => {
                let wait = patience(attempt);
                tracing::warn!(%error, ?wait, "the authority cannot be had from the cluster yet");
                tokio::time::sleep(wait).await;
                attempt += 1;
            }
        }
    }
}

/// Follows the Secret. An authority that is of no use changes nothing: the one before stays in force.
pub(super) async fn follow(
    objects: Objects,
    keeper: Arc<Keeper>,
    serving: Arc<Serving>,
    metrics: Arc<Metrics>,
) -> (&'static str, Result<(), String>) {
    let mut changes = std::pin::pin!(objects.changes());
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The Secret's last authority whose roots could not be published yet.
    let mut pending: Option<Keeper> = None;
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(Some(given))) if keeper.is(&given) => pending = None,
                Some(Ok(Some(given))) => match Keeper::given(given, SystemTime::now()) {
                    Ok(next) => pending = Some(next),
                    Err(error) => tracing::error!(%error, "the Secret's authority is of no use: the one before stays in force"),
                },
                Some(Ok(None)) => tracing::error!("the Secret of the authority is empty: what was read from it earlier stays in force"),
                Some(Err(error)) => tracing::error!(%error, "the Secret of the authority cannot be followed or used: what was read from it earlier stays in force"),
                None => return ("the follower of the authority", Err("the watch ended".into())),
            },
            _ = looks.tick() => {}
        }
        if let Err(error) = take(&objects, &keeper, &serving, &mut pending).await {
            tracing::error!(%error, "the roots cannot be published; tried again within {} s", LOOK.as_secs());
        }
        note_expiry(&metrics, &keeper, &serving);
    }
}

/// Publishes first, then signs below the new root.
async fn take(objects: &Objects, keeper: &Keeper, serving: &Serving, pending: &mut Option<Keeper>) -> Result<(), ObjectError> {
    let roots = pending.as_ref().unwrap_or(keeper).current().roots_pem();
    objects.publish(&roots).await?;
    let Some(next) = pending.take() else { return Ok(()) };
    keeper.take(next);
    if let Err(error) = serving.renew(&keeper.current(), SystemTime::now()) {
        tracing::error!(%error, "the server's own certificate cannot be made below the new authority");
    }
    tracing::info!("another authority was put into the Secret and is in force");
    Ok(())
}
