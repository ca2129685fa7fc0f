use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::testing::{CART, Do, TestIssuer, WEB, id};
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct Counts {
    issued: AtomicUsize,
    failed: AtomicUsize,
}

impl Observer for Arc<Counts> {
    fn issued(&self, _: &Certificate) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, _: &Identity, _: &RenewError) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
}

struct World {
    issuer: Arc<TestIssuer>,
    store: SecretStore,
    counts: Arc<Counts>,
    _driver: JoinSet<()>,
}

fn world(lifetime: Duration) -> World {
    let issuer = Arc::new(TestIssuer::new(lifetime));
    let counts = Arc::new(Counts::default());
    let (store, driver) = SecretStore::new(issuer.clone(), StoreSettings::default(), Box::new(counts.clone()), issuer.clock.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(driver.run());
    World { issuer, store, counts, _driver: tasks }
}

impl World {
    fn now(&self) -> std::time::SystemTime {
        self.issuer.clock.wall()
    }

    async fn ready(&self, identity: &str) -> Arc<Certificate> {
        let mut state = self.store.subscribe(&id(identity));
        let ready = state.wait_for(|state| matches!(state, CertState::Ready(_))).await.unwrap();
        ready.usable_at(self.now()).unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn issues_what_is_wanted_and_lets_go_what_is_not() {
    let world = world(HOUR);
    let mut watch = world.store.subscribe(&id(CART));
    assert!(matches!(*watch.borrow_and_update(), CertState::Unwanted));
    assert_eq!(world.store.current(&id(CART)).unwrap_err(), Unusable::Unwanted);
    world.store.ensure([id(CART), id(WEB)]);
    assert!(matches!(*watch.borrow_and_update(), CertState::Pending { last_error: None, .. }));
    assert_eq!(world.store.current(&id(CART)).unwrap_err(), Unusable::Pending);
    let (cart, web) = (world.ready(CART).await, world.ready(WEB).await);
    assert_eq!((cart.identity.to_string(), web.identity.to_string()), (CART.into(), WEB.into()));
    assert_ne!(cart.key.cert, web.key.cert);
    assert_eq!(
        world.store.certificates().iter().map(|info| (info.identity.as_str(), info.state)).collect::<Vec<_>>(),
        [(CART, "ready"), (WEB, "ready")]
    );
    world.store.ensure([id(WEB)]);
    assert!(matches!(*watch.borrow_and_update(), CertState::Unwanted));
    assert_eq!((world.store.certificates().len(), world.store.usable().len()), (1, 1));
    // Nobody looks at it any more: it is forgotten.
    drop(watch);
    world.store.ensure([id(WEB)]);
    assert_eq!(world.store.shared().entries.lock().len(), 1);
    tokio::time::sleep(10 * HOUR).await;
    assert_eq!(world.store.current(&id(CART)).unwrap_err(), Unusable::Unwanted);
    // It comes back with another key.
    world.store.ensure([id(CART), id(WEB)]);
    assert_ne!(world.ready(CART).await.key.cert, cart.key.cert);
}

#[tokio::test(start_paused = true)]
async fn one_issuance_serves_all_who_wait() {
    let world = world(HOUR);
    for _ in 0..5 {
        world.store.ensure([id(CART)]);
    }
    let waiting: Vec<_> = (0..20).map(|_| world.store.subscribe(&id(CART))).collect();
    let mut serials = Vec::new();
    for mut watch in waiting {
        let state = watch.wait_for(|state| matches!(state, CertState::Ready(_))).await.unwrap();
        serials.push(state.usable_at(world.now()).unwrap().serial.clone());
    }
    serials.dedup();
    assert_eq!((serials.len(), world.issuer.asked()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn renews_at_half_life_and_not_before() {
    let world = world(24 * HOUR);
    world.store.ensure([id(CART)]);
    let first = world.ready(CART).await;
    tokio::time::sleep(24 * HOUR * 44 / 100).await;
    assert_eq!(world.issuer.asked(), 1);
    tokio::time::sleep(24 * HOUR * 12 / 100).await;
    assert_eq!(world.issuer.asked(), 2);
    let second = world.ready(CART).await;
    assert!(second.not_after > first.not_after && second.serial != first.serial);
    assert_ne!(second.key.cert, first.key.cert);
    tokio::time::sleep(10 * 24 * HOUR).await;
    assert!((20..=25).contains(&world.issuer.asked()), "{}", world.issuer.asked());
    assert_eq!(world.counts.issued.load(Ordering::Relaxed), world.issuer.asked());
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_keeps_the_old_one_until_it_ends() {
    let world = world(HOUR);
    world.store.ensure([id(CART)]);
    let first = world.ready(CART).await;
    *world.issuer.then.lock() = Do::Refuse;
    let mut changes = world.store.changes();
    changes.mark_unchanged();
    tokio::time::sleep(HOUR * 9 / 10).await;
    assert!(world.counts.failed.load(Ordering::Relaxed) > 2);
    assert_eq!(world.store.current(&id(CART)).unwrap().serial, first.serial);
    assert!(!changes.has_changed().unwrap(), "nobody is woken for nothing");
    let info = world.store.certificates().remove(0);
    assert!(info.state == "ready" && info.failures > 2 && info.last_error.unwrap().contains("refuses"));
    let mut state = world.store.subscribe(&id(CART));
    state.wait_for(|state| matches!(state, CertState::Expired { .. })).await.unwrap();
    let late = world.now().duration_since(first.not_after).unwrap();
    assert!(late < SECOND, "{late:?}");
    assert!(matches!(world.store.current(&id(CART)), Err(Unusable::Expired(Some(why))) if why.contains("refuses")));
    assert_eq!(world.store.certificates()[0].state, "expired");
    tokio::time::sleep(HOUR).await;
    assert!(matches!(&*state.borrow(), CertState::Expired { since, .. } if *since == first.not_after));
    *world.issuer.then.lock() = Do::Issue;
    let begun = world.now();
    world.ready(CART).await;
    assert!(world.now().duration_since(begun).unwrap() <= 31 * SECOND);
    assert_eq!(world.store.certificates()[0].failures, 0);
}

#[tokio::test(start_paused = true)]
async fn failures_are_repeated_ever_more_slowly() {
    let world = world(HOUR);
    *world.issuer.then.lock() = Do::Refuse;
    world.store.ensure([id(CART)]);
    tokio::time::sleep(10 * SECOND).await;
    let early = world.issuer.asked();
    assert!((4..=8).contains(&early), "{early}");
    tokio::time::sleep(600 * SECOND).await;
    let later = world.issuer.asked() - early;
    assert!((20..=45).contains(&later), "{later}");
    let state = world.store.subscribe(&id(CART));
    assert!(matches!(&*state.borrow(), CertState::Pending { last_error: Some(why), .. } if why.contains("refuses")));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_for_us_is_not_used() {
    let world = world(HOUR);
    world.issuer.script.lock().extend([Do::Mistake, Do::Mistake]);
    world.store.ensure([id(CART)]);
    assert_eq!(world.ready(CART).await.identity, id(CART));
    assert_eq!((world.issuer.asked(), world.counts.failed.load(Ordering::Relaxed)), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_hangs_is_given_up() {
    let world = world(HOUR);
    world.issuer.script.lock().push_back(Do::Hang);
    world.store.ensure([id(CART)]);
    let mut state = world.store.subscribe(&id(CART));
    let begun = world.now();
    state.wait_for(|state| matches!(state, CertState::Pending { last_error: Some(_), .. })).await.unwrap();
    assert_eq!(world.now().duration_since(begun).unwrap().as_secs(), 20);
    world.ready(CART).await;
}

#[tokio::test(start_paused = true)]
async fn renewal_by_force() {
    let world = world(24 * HOUR);
    world.store.ensure([id(CART)]);
    assert!(!world.store.force_renew(&id(WEB)));
    let first = world.ready(CART).await;
    assert!(world.store.force_renew(&id(CART)));
    let mut changes = world.store.changes();
    changes.changed().await.unwrap();
    let second = world.ready(CART).await;
    assert_ne!(first.serial, second.serial);
    // Who asks without pause gets one a second.
    for _ in 0..100 {
        world.store.force_renew_all();
        tokio::time::sleep(SECOND / 10).await;
    }
    assert!((9..=13).contains(&(world.issuer.asked() - 2)), "{}", world.issuer.asked());
}

#[tokio::test(start_paused = true)]
async fn the_issuer_is_not_flooded() {
    let world = world(24 * HOUR);
    world.store.ensure((0..100).map(|i| id(&format!("spiffe://cluster.local/ns/shop/sa/a{i}"))));
    for i in 0..100 {
        world.ready(&format!("spiffe://cluster.local/ns/shop/sa/a{i}")).await;
    }
    assert_eq!((world.issuer.asked(), world.issuer.most.load(Ordering::Relaxed)), (100, 8));
    // The next time they don't come together.
    tokio::time::sleep(24 * HOUR * 50 / 100).await;
    assert!((130..=170).contains(&world.issuer.asked()), "{}", world.issuer.asked());
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_asking_gets_nothing() {
    let world = world(HOUR);
    world.issuer.script.lock().push_back(Do::Hang);
    world.store.ensure([id(CART)]);
    tokio::time::sleep(SECOND).await;
    world.store.ensure([]);
    world.store.ensure([id(CART)]);
    let begun = world.now();
    world.ready(CART).await;
    assert!(world.now().duration_since(begun).unwrap() < SECOND, "the new one does not wait for the old one's end");
    assert_eq!(world.counts.failed.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn short_lives_do_not_loop() {
    let world = world(5 * SECOND);
    world.store.ensure([id(CART)]);
    tokio::time::sleep(60 * SECOND).await;
    assert!((20..=30).contains(&world.issuer.asked()), "{}", world.issuer.asked());
    assert!(world.store.current(&id(CART)).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_puts_nothing_off() {
    let world = world(24 * HOUR);
    world.store.ensure([id(CART)]);
    let first = world.ready(CART).await;
    world.issuer.clock.ahead.store(-36_000, Ordering::Relaxed);
    tokio::time::sleep(14 * HOUR).await;
    assert_eq!(world.issuer.asked(), 2, "set back");
    // Set ahead, past the end: that is seen soon, and a new one is asked for.
    world.issuer.clock.ahead.store(90 * 3600, Ordering::Relaxed);
    assert!(matches!(world.store.current(&id(CART)), Err(Unusable::Expired(_))));
    tokio::time::sleep(31 * SECOND).await;
    assert_eq!(world.issuer.asked(), 3);
    assert!(world.ready(CART).await.not_after > first.not_after);
}
