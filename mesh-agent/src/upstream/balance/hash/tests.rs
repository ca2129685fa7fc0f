use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn members(weights: &[u32]) -> Vec<Member> {
    let address = |index: usize| SocketAddr::from(([10, 0, u8::try_from(index / 250).unwrap(), u8::try_from(index % 250).unwrap()], 8080));
    weights.iter().enumerate().map(|(index, weight)| Member { index, address: address(index), weight: *weight }).collect()
}

fn key(number: u64) -> u64 {
    hash(&number.to_be_bytes())
}

type Lookup = Box<dyn Fn(u64, &dyn Fn(usize) -> bool) -> Option<usize>>;

fn lookup(members: &[Member], maglev: bool) -> Lookup {
    if maglev {
        let table = Maglev::new(members, 65537);
        Box::new(move |key, eligible| table.get(key, eligible))
    } else {
        let ring = Ring::new(members, 8192);
        Box::new(move |key, eligible| ring.get(key, eligible))
    }
}

fn all(_: usize) -> bool {
    true
}

/// These numbers are in every agent there is: a change of them moves all sessions of a cluster during an upgrade.
#[test]
fn the_hash_is_the_same_for_ever() {
    assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
    assert_eq!(hash(b"user-1"), 0xc499_b5f8_a721_df58);
    assert_eq!(hash_ip("10.0.0.1".parse().unwrap()), hash(&[10, 0, 0, 1]));
    assert_eq!(hash_ip("::ffff:10.0.0.1".parse().unwrap()), hash(&[10, 0, 0, 1]));
    let picked: Vec<_> = (0..8).map(|number| lookup(&members(&[1; 5]), false)(key(number), &all).unwrap()).collect();
    assert_eq!(picked, [3, 4, 3, 2, 1, 3, 4, 4]);
    let picked: Vec<_> = (0..8).map(|number| lookup(&members(&[1; 5]), true)(key(number), &all).unwrap()).collect();
    assert_eq!(picked, [3, 0, 1, 4, 0, 1, 1, 0]);
}

#[test]
fn the_order_of_the_list_does_not_matter() {
    let mut turned = members(&[1, 5, 2, 7]);
    turned.reverse();
    for maglev in [false, true] {
        let (one, other) = (lookup(&members(&[1, 5, 2, 7]), maglev), lookup(&turned, maglev));
        assert!((0..2000).all(|number| one(key(number), &all) == other(key(number), &all)));
    }
}

#[test]
fn nobody_and_nobody_usable() {
    for maglev in [false, true] {
        assert_eq!(lookup(&[], maglev)(7, &all), None);
        assert_eq!(lookup(&members(&[1, 1, 1]), maglev)(7, &|_| false), None);
        assert_eq!(lookup(&members(&[1, 1, 1]), maglev)(u64::MAX, &|index| index == 2), Some(2));
    }
}

#[test]
fn sizes_are_bounded_and_prime() {
    assert_eq!(next_prime(65537), 65537);
    assert_eq!(next_prime(65536), 65537);
    assert_eq!(next_prime(0), 2);
    let ring = Ring::new(&members(&[1, u32::MAX]), 1024);
    assert!(ring.places.len() <= 2 * usize::try_from(LARGEST_GROWTH).unwrap() + 2);
    assert!((1024..4096).contains(&Ring::new(&members(&[3; 10]), 1024).places.len()));
}

#[test]
fn an_unusable_endpoints_keys_spread() {
    for maglev in [false, true] {
        let get = lookup(&members(&[1; 10]), maglev);
        let mut counts = HashMap::new();
        for number in 0..20_000 {
            let (before, after) = (get(key(number), &all).unwrap(), get(key(number), &|index| index != 3).unwrap());
            if before == 3 {
                *counts.entry(after).or_insert(0) += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert_eq!(counts.len(), 9);
        assert!(counts.values().all(|count| *count < 600), "{counts:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn few_keys_move_when_one_goes(count in 3usize..40, gone in 0usize..40, maglev in any::<bool>()) {
        let before = members(&vec![1; count]);
        let gone = gone % count;
        let after: Vec<_> = before.iter().copied().filter(|member| member.index != gone).collect();
        let (before, after) = (lookup(&before, maglev), lookup(&after, maglev));
        let keys = 4000;
        let (mut lost, mut moved) = (0, 0);
        for number in 0..keys {
            match (before(key(number), &all).unwrap(), after(key(number), &all).unwrap()) {
                (one, other) if one == gone => {
                    lost += 1;
                    prop_assert_ne!(other, gone);
                }
                (one, other) => moved += usize::from(one != other),
            }
        }
        let share = 4000 / count;
        prop_assert!(lost < share * 2 + 40, "{lost} of {count}");
        // Those of the ring move only where its number of places doubles; Maglev moves a few at any change.
        let doubles = !maglev && 8192usize.div_ceil(count).next_power_of_two() != 8192usize.div_ceil(count - 1).next_power_of_two();
        let limit = if doubles { keys as usize * 6 / 10 } else if maglev { share + 80 } else { 0 };
        prop_assert!(moved <= limit, "{moved} of {count}, {doubles}");
    }

    #[test]
    fn shares_follow_the_weights(weights in prop::collection::vec(1u32..10, 2..10), maglev in any::<bool>()) {
        let get = lookup(&members(&weights), maglev);
        let mut counts = vec![0f64; weights.len()];
        for number in 0..20_000 {
            counts[get(key(number), &all).unwrap()] += 1.0;
        }
        let sum: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(&weights) {
            let expected = 20_000.0 * f64::from(*weight) / f64::from(sum);
            prop_assert!((count - expected).abs() < expected * 0.3 + 60.0, "{counts:?} {weights:?}");
        }
    }
}
