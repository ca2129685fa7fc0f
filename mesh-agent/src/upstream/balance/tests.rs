use std::cell::{Cell, RefCell};

use mesh_model::traffic::HashKey;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::*;

/// Endpoints by weight, region and zone.
fn candidates(list: &[(u32, &str, &str)]) -> Vec<Candidate> {
    (1u16..)
        .zip(list)
        .map(|(number, (weight, region, zone))| Candidate {
            address: SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 8080)),
            weight: *weight,
            locality: ((*region).into(), (*zone).into()),
            labels: BTreeMap::new(),
            since: None,
        })
        .collect()
}

fn plain(weights: &[u32]) -> Vec<Candidate> {
    candidates(&weights.iter().map(|weight| (*weight, "", "")).collect::<Vec<_>>())
}

fn here() -> LocalityName {
    LocalityName { region: "east".into(), zone: "a".into(), ..LocalityName::default() }
}

fn hashed(table: HashTable) -> Balancer {
    Balancer::Hash { key: HashKey::SourceIp, table }
}

fn everywhere(balancer: &Balancer, endpoints: Vec<Candidate>) -> Picker {
    Picker::new(balancer, &Locality::default(), None, &here(), endpoints, false)
}

/// What a test varies of a pick.
struct Picks<'a> {
    picker: &'a Picker,
    random: RefCell<StdRng>,
    now: Instant,
    down: Vec<usize>,
    tried: Vec<usize>,
    loads: Vec<Load>,
}

impl<'a> Picks<'a> {
    fn new(picker: &'a Picker) -> Picks<'a> {
        let random = RefCell::new(StdRng::seed_from_u64(7));
        Picks { picker, random, now: Instant::now(), down: Vec::new(), tried: Vec::new(), loads: Vec::new() }
    }

    fn pick(&self, hash: Option<u64>, dialled: Option<SocketAddr>) -> Option<Pick> {
        let load = |index| self.loads.get(index).copied().unwrap_or_default();
        let random = &mut || self.random.borrow_mut().next_u64();
        self.picker.pick(self.now, hash, dialled, random, &load, &|index| !self.down.contains(&index), &self.tried)
    }

    fn shares(&self, count: usize) -> Vec<f64> {
        let mut counts = vec![0.0; self.picker.endpoints.len()];
        for _ in 0..count {
            counts[self.pick(None, None).unwrap().index] += 1.0 / count as f64;
        }
        counts
    }
}

fn near(seen: &[f64], expected: &[f64]) {
    assert!(seen.iter().zip(expected).all(|(seen, expected)| (seen - expected).abs() < 0.02), "{seen:?} instead of {expected:?}");
}

fn all_balancers() -> [Balancer; 6] {
    let (ring, maglev) = (hashed(HashTable::Ring { minimum: 1024 }), hashed(HashTable::Maglev { size: 1009 }));
    [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random, Balancer::Passthrough, ring, maglev]
}

#[test]
fn nobody() {
    for balancer in all_balancers() {
        for weights in [&[][..], &[0, 0]] {
            let picker = everywhere(&balancer, plain(weights));
            assert_eq!(Picks::new(&picker).pick(Some(1), None), None);
        }
        let picker = everywhere(&balancer, plain(&[1, 2, 3]));
        let picks = Picks { down: vec![0, 1, 2], ..Picks::new(&picker) };
        assert_eq!((picks.pick(Some(1), None), picks.pick(None, None)), (None, None));
    }
}

#[test]
fn weights_and_health_with_every_balancer() {
    for balancer in all_balancers() {
        let picker = everywhere(&balancer, plain(&[1, 0, 3, 4, 2]));
        near(&Picks::new(&picker).shares(20_000), &[0.1, 0.0, 0.3, 0.4, 0.2]);
        near(&Picks { down: vec![3], ..Picks::new(&picker) }.shares(20_000), &[1.0 / 6.0, 0.0, 0.5, 0.0, 1.0 / 3.0]);
    }
}

#[test]
fn a_retry_goes_elsewhere_while_there_is_an_elsewhere() {
    for balancer in all_balancers() {
        let picker = everywhere(&balancer, plain(&[5, 5, 5]));
        let picks = Picks { tried: vec![0, 2], ..Picks::new(&picker) };
        assert!((0..200).all(|key| picks.pick(Some(hash::mix(key)), None).unwrap().index == 1));
        let picks = Picks { tried: vec![0, 1, 2], down: vec![0, 1], ..Picks::new(&picker) };
        assert_eq!(picks.pick(None, None).unwrap().index, 2);
    }
}

#[test]
fn passthrough_goes_where_it_was_dialled() {
    let endpoints = plain(&[1, 0, 1]);
    let dialled = endpoints[1].address;
    let picker = everywhere(&Balancer::Passthrough, endpoints);
    let picks = Picks { down: vec![1], ..Picks::new(&picker) };
    assert_eq!(picks.pick(None, Some(dialled)), Some(Pick { index: 1, priority: 0 }));
    assert_ne!(picks.pick(None, Some("10.96.0.1:80".parse().unwrap())).unwrap().index, 1);
}

#[test]
fn two_choices_prefer_the_less_loaded_and_the_faster() {
    let picker = everywhere(&Balancer::LeastRequest, plain(&[1, 1]));
    let load = |in_flight, ewma_micros| Load { in_flight, ewma_micros };
    for (loads, first) in [
        ([load(0, 0), load(5, 0)], 1.0),
        ([load(2, 10_000), load(2, 1000)], 0.0),
        ([load(3, 1000), load(0, 10_000)], 1.0),
        // Unknown is as fast as the other.
        ([load(0, 0), load(3, 1000)], 1.0),
        ([load(0, 1000), load(0, 1050)], 0.5),
        ([load(0, 1000), load(0, 3999)], 0.5),
        ([load(0, 1000), load(0, 4001)], 1.0),
    ] {
        near(&Picks { loads: loads.to_vec(), ..Picks::new(&picker) }.shares(5000), &[first, 1.0 - first]);
    }
}

/// Each request stays for as long as its endpoint takes: the slow ones end up with fewer, and no queue grows.
#[test]
fn two_choices_converge() {
    let picker = everywhere(&Balancer::LeastRequest, plain(&[1; 10]));
    let service: Vec<u64> = (0..10).map(|index| if index < 2 { 100 } else { 10 }).collect();
    let mut picks = Picks { loads: vec![Load::default(); 10], ..Picks::new(&picker) };
    let mut running: Vec<(u64, usize)> = Vec::new();
    let (mut counts, mut most) = ([0; 10], 0);
    for step in 0..20_000u64 {
        running.retain(|(end, index)| {
            let ends = *end <= step;
            picks.loads[*index].in_flight -= u32::from(ends);
            !ends
        });
        let index = picks.pick(None, None).unwrap().index;
        counts[index] += 1;
        picks.loads[index].in_flight += 1;
        picks.loads[index].ewma_micros = service[index] as u32 * 1000;
        running.push((step + service[index], index));
        most = most.max(picks.loads[index].in_flight);
    }
    assert!(counts[2..].iter().all(|count| *count > 1500), "{counts:?}");
    assert!(counts[..2].iter().all(|count| *count < 1000) && most < 12, "{counts:?} {most}");
}

/// A single slow answer, of a server that was just starting, takes an endpoint out for seconds and no longer, though it is not asked meanwhile.
#[test]
fn an_endpoint_that_was_slow_once_comes_back() {
    let picker = everywhere(&Balancer::LeastRequest, plain(&[1, 1]));
    let start = Instant::now();
    let known = [ewma::Ewma::new(start), ewma::Ewma::new(start)];
    known[0].observe(start, Duration::from_millis(200));
    known[1].observe(start, Duration::from_millis(2));
    let mut picks = Picks { loads: vec![Load::default(); 2], ..Picks::new(&picker) };
    // One request after the other, five a second.
    let mut picked = Vec::new();
    for step in 1..=150u32 {
        picks.now = start + Duration::from_millis(200) * step;
        for (load, known) in picks.loads.iter_mut().zip(&known) {
            load.ewma_micros = known.micros(picks.now);
        }
        let index = picks.pick(None, None).unwrap().index;
        known[index].observe(picks.now, Duration::from_millis(2));
        picked.push(index);
    }
    assert!(picked[..15].iter().all(|index| *index == 1), "avoided at first: {picked:?}");
    let again = picked.iter().position(|index| *index == 0).unwrap();
    assert!(again < 60, "asked again within twelve seconds: {again}");
    let share = picked[75..].iter().filter(|index| **index == 0).count();
    assert!((20..=55).contains(&share), "and then like the other: {share} of 75");
}

#[test]
fn a_new_endpoint_starts_slowly() {
    let now = Instant::now();
    let mut endpoints = plain(&[1, 1]);
    endpoints[1].since = Some(now);
    for (aggression, part) in [(1.0, 0.5), (2.0, 0.5f64.sqrt()), (0.5, 0.25), (f64::NAN, 0.5)] {
        let warmup = Warmup { duration: Duration::from_secs(60), minimum_percent: 10, aggression };
        for balancer in [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random] {
            let picker = Picker::new(&balancer, &Locality::default(), Some(&warmup), &here(), endpoints.clone(), false);
            let shares = |seconds| Picks { now: now + Duration::from_secs(seconds), ..Picks::new(&picker) }.shares(10_000)[1];
            assert!((shares(60) - 0.5).abs() < 0.02);
            assert!((shares(30) - part / (1.0 + part)).abs() < 0.02);
            let start = 0.1f64.max((1.0f64 / 60.0).powf(1.0 / aggression));
            assert!(aggression.is_nan() || (shares(0) - start / (1.0 + start)).abs() < 0.02);
        }
    }
}

fn zones() -> Vec<Candidate> {
    candidates(&[(1, "east", "a"), (1, "east", "a"), (1, "east", "b"), (1, "west", "a"), (1, "north", "a"), (0, "east", "a")])
}

#[test]
fn near_ones_first() {
    let locality = Locality { failover: vec![("east".into(), "west".into())], ..Locality::default() };
    let picker = Picker::new(&Balancer::LeastRequest, &locality, None, &here(), zones(), true);
    near(&Picks::new(&picker).shares(2000), &[0.5, 0.5, 0.0, 0.0, 0.0]);
    // One of two can take 70 %.
    near(&Picks { down: vec![0], ..Picks::new(&picker) }.shares(20_000), &[0.0, 0.7, 0.3, 0.0, 0.0]);
    let farther = |down: &[usize]| Picks { down: down.to_vec(), ..Picks::new(&picker) }.pick(None, None).unwrap();
    assert_eq!(farther(&[0, 1]), Pick { index: 2, priority: 1 });
    assert_eq!(farther(&[0, 1, 2]), Pick { index: 3, priority: 2 });
    assert_eq!(farther(&[0, 1, 2, 3]), Pick { index: 4, priority: 3 });
    // Tried near ones send a retry farther.
    assert_eq!(Picks { tried: vec![0, 1], ..Picks::new(&picker) }.pick(None, None).unwrap().index, 2);
}

#[test]
fn when_near_ones_are_preferred() {
    let shares = |enabled, outlier_on, from: LocalityName| {
        let picker = Picker::new(&Balancer::Random, &Locality { enabled, ..Locality::default() }, None, &from, zones(), outlier_on);
        Picks::new(&picker).shares(20_000)[4]
    };
    let (alike, near) = (0.2, 0.0);
    for (enabled, outlier_on, expected) in
        [(None, false, alike), (None, true, near), (Some(true), false, near), (Some(false), true, alike), (Some(true), true, near)]
    {
        assert!((shares(enabled, outlier_on, here()) - expected).abs() < 0.02, "{enabled:?} {outlier_on}");
    }
    assert!((shares(None, true, LocalityName::default()) - alike).abs() < 0.02);
}

#[test]
fn labels_before_places() {
    let mut endpoints = candidates(&[(1, "east", "a"), (1, "west", "a"), (1, "east", "b"), (1, "east", "a")]);
    for (endpoint, version) in endpoints.iter_mut().zip(["v1", "v2", "v2", "v1"]) {
        endpoint.labels.insert("version".into(), version.into());
    }
    let order = |labels: &[&str], from: &LocalityName| {
        let failover_priority = labels.iter().map(|label| Arc::from(*label)).collect();
        let locality = Locality { failover_priority, ..Locality::default() };
        let picker = Picker::new(&Balancer::Random, &locality, None, from, endpoints.clone(), true);
        picker.groups.iter().map(|group| group.members.clone()).collect::<Vec<_>>()
    };
    let from = LocalityName { labels: [("version".into(), "v2".into())].into(), ..here() };
    assert_eq!(order(&["version", "topology.kubernetes.io/region"], &from), [vec![2], vec![1], vec![0, 3]]);
    assert_eq!(order(&["version=v1", "topology.kubernetes.io/zone"], &from), [vec![0, 3], vec![1, 2]]);
    // Both lack it.
    assert_eq!(order(&["network"], &from), [vec![0, 1, 2, 3]]);
}

#[test]
fn of_a_clients_labels_those_are_decisive_that_the_policy_goes_by() {
    let labels = [("app", "a"), ("version", "v2"), (SUBZONE, "rack")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let keys = |locality: &Locality| decisive(locality, &labels).into_keys().collect::<Vec<_>>();
    assert!(keys(&Locality::default()).is_empty());
    let failover_priority: Vec<Arc<str>> = vec!["version".into(), "app=b".into(), "network".into()];
    let by_label = Locality { failover_priority, ..Locality::default() };
    assert_eq!(keys(&by_label), ["version"]);
    let distribute = vec![("*".into(), vec![("east".into(), 100)])];
    assert_eq!(keys(&Locality { distribute, ..Locality::default() }), [SUBZONE]);
    assert!(keys(&Locality { enabled: Some(false), ..by_label }).is_empty());
}

#[test]
fn percentages_are_exact() {
    let shares = vec![("east/b".into(), 20), ("east/a/*".into(), 70), ("west/*".into(), 10), ("south".into(), 50)];
    let locality = Locality { distribute: vec![("east/c".into(), Vec::new()), ("east/*".into(), shares)], ..Locality::default() };
    let counts =
        |picks: &Picks<'_>, count: usize| picks.shares(count).iter().map(|share| (share * count as f64).round()).collect::<Vec<_>>();
    let picker = Picker::new(&Balancer::RoundRobin, &locality, None, &here(), zones(), false);
    assert_eq!(counts(&Picks::new(&picker), 100), [35.0, 35.0, 20.0, 10.0, 0.0, 0.0]);
    assert_eq!(counts(&Picks { down: vec![3], ..Picks::new(&picker) }, 90), [35.0, 35.0, 20.0, 0.0, 0.0, 0.0]);
    // Half of a group can take 70 % of its share: 49 of 79.
    let half = Picks { down: vec![0], ..Picks::new(&picker) }.shares(20_000);
    near(&half, &[0.0, 49.0 / 79.0, 20.0 / 79.0, 10.0 / 79.0, 0.0]);
    // For a node that no entry is for.
    let elsewhere = LocalityName { region: "north".into(), ..LocalityName::default() };
    let picker = Picker::new(&Balancer::RoundRobin, &locality, None, &elsewhere, zones(), false);
    assert_eq!(counts(&Picks::new(&picker), 100), [20.0, 20.0, 20.0, 20.0, 20.0, 0.0]);
}

#[test]
fn a_key_stays_in_its_group() {
    let locality = Locality { distribute: vec![("*".into(), vec![("east/*".into(), 60), ("west/*".into(), 40)])], ..Locality::default() };
    for (locality, down) in [(locality, vec![]), (Locality::default(), vec![0])] {
        let picker = Picker::new(&hashed(HashTable::Ring { minimum: 1024 }), &locality, None, &here(), zones(), true);
        let picks = Picks { down, ..Picks::new(&picker) };
        let by_key = |_| (0..2000).map(|key| picks.pick(Some(hash::mix(key)), None).unwrap().index).collect::<Vec<_>>();
        let (one, other) = (by_key(0), by_key(1));
        assert_eq!(one, other);
        let far = one.iter().filter(|index| **index > 1).count();
        assert!((500..1300).contains(&far), "{far}");
    }
}

#[test]
fn nothing_is_asked_twice_in_vain() {
    let picker = everywhere(&Balancer::LeastRequest, plain(&[1; 1000]));
    let asked = Cell::new(0);
    let usable = |_| {
        asked.set(asked.get() + 1);
        true
    };
    let mut random = StdRng::seed_from_u64(1);
    picker.pick(Instant::now(), None, None, &mut || random.next_u64(), &|_| Load::default(), &usable, &[]).unwrap();
    assert!(asked.get() <= 4, "{}", asked.get());
}

proptest! {
    #[test]
    fn round_robin_is_exact(weights in prop::collection::vec(0u32..9, 1..8), periods in 1usize..4) {
        let picker = everywhere(&Balancer::RoundRobin, plain(&weights));
        let (picks, sum) = (Picks::new(&picker), weights.iter().sum::<u32>() as usize);
        let mut counts = vec![0; weights.len()];
        for _ in 0..periods * sum {
            counts[picks.pick(None, None).unwrap().index] += 1;
        }
        prop_assert!(counts.iter().zip(&weights).all(|(count, weight)| *count == *weight as usize * periods), "{counts:?}");
    }

    #[test]
    fn only_usable_ones_and_untried_ones_first(
        places in prop::collection::vec((0u32..3, 0usize..3, 0usize..2, any::<bool>(), any::<bool>()), 0..12),
        kind in 0usize..6,
        key in any::<Option<u64>>(),
        outlier_on in any::<bool>(),
    ) {
        let list: Vec<_> = places.iter().map(|(weight, region, zone, ..)| (*weight, ["east", "west", ""][*region], ["a", "b"][*zone])).collect();
        let picker = Picker::new(&all_balancers()[kind], &Locality::default(), None, &here(), candidates(&list), outlier_on);
        let which = |wanted: fn(&(u32, usize, usize, bool, bool)) -> bool| {
            places.iter().enumerate().filter(|(_, place)| wanted(place)).map(|(index, _)| index).collect::<Vec<_>>()
        };
        let picks = Picks { down: which(|place| place.3), tried: which(|place| place.4), ..Picks::new(&picker) };
        let (good, second) = (which(|place| place.0 > 0 && !place.3 && !place.4), which(|place| place.0 > 0 && !place.3 && place.4));
        match picks.pick(key, None) {
            Some(pick) => prop_assert!(if good.is_empty() { &second } else { &good }.contains(&pick.index), ""),
            None => prop_assert!(good.is_empty() && second.is_empty()),
        }
    }
}
