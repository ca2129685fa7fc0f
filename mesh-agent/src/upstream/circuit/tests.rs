use proptest::prelude::*;

use super::*;

fn pool(limit: u32) -> ConnectionPool {
    ConnectionPool {
        max_connections: Some(limit),
        max_pending_requests: Some(limit),
        max_requests: Some(limit),
        max_retries: Some(limit),
        ..ConnectionPool::default()
    }
}

#[test]
fn each_resource_has_its_own_limit() {
    let circuit = Circuit::new(&ConnectionPool { max_pending_requests: Some(0), max_retries: Some(1), ..ConnectionPool::default() });
    assert_eq!(circuit.try_pending().unwrap_err(), Overflow { resource: Resource::Pending });
    let retry = circuit.try_retry().unwrap();
    assert_eq!(circuit.try_retry().unwrap_err().resource, Resource::Retries);
    drop(retry);
    let _retry = circuit.try_retry().unwrap();
    let _many: Vec<_> = (0..1000).map(|_| (circuit.try_connection().unwrap(), circuit.try_request().unwrap())).collect();
    let [connections, pending, requests, retries] = circuit.open();
    assert_eq!(connections, Usage { resource: Resource::Connections, open: 1000, remaining: None, tripped: false, refused: 0 });
    assert_eq!(pending, Usage { resource: Resource::Pending, open: 0, remaining: Some(0), tripped: true, refused: 1 });
    assert_eq!(requests.open, 1000);
    assert_eq!(retries, Usage { resource: Resource::Retries, open: 1, remaining: Some(0), tripped: true, refused: 1 });
}

#[test]
fn lower_limits_leave_what_is_open() {
    let circuit = Circuit::new(&pool(3));
    let mut held: Vec<_> = (0..3).map(|_| circuit.try_request().unwrap()).collect();
    circuit.set_limits(&pool(1));
    assert_eq!(circuit.open()[2].remaining, Some(0));
    held.truncate(1);
    assert!(circuit.try_request().is_err());
    held.clear();
    assert!(circuit.try_request().is_ok());
}

#[test]
fn threads_never_pass_the_limit() {
    let circuit = Circuit::new(&pool(7));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let guard = circuit.clone().try_connection();
                    assert!(circuit.open()[0].open <= 7);
                    drop(guard);
                }
            });
        }
    });
    assert_eq!(circuit.open()[0].open, 0);
}

proptest! {
    #[test]
    fn counts_what_is_held(limit in 0u32..10, steps in prop::collection::vec(any::<bool>(), 0..60)) {
        let circuit = Circuit::new(&pool(limit));
        let (mut held, mut refused) = (Vec::new(), 0);
        for take in steps {
            if take {
                match circuit.try_connection() {
                    Ok(guard) => held.push(guard),
                    Err(_) => {
                        refused += 1;
                        prop_assert_eq!(held.len(), limit as usize);
                    }
                }
            } else {
                held.pop();
            }
            let usage = circuit.open()[0];
            prop_assert_eq!(usage.open, held.len() as u64);
            prop_assert_eq!(usage.remaining, Some(u64::from(limit) - usage.open));
            prop_assert_eq!(usage.tripped, usage.open == u64::from(limit));
            prop_assert_eq!(usage.refused, refused);
        }
    }
}
