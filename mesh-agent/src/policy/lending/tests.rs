use std::sync::Arc;

use mesh_control::budgets::ledger::{Asked, BudgetId, LIFETIME, Ledger};
use mesh_model::limit::{LimitScope, RateLimit, Sharing};
use mesh_model::policy::Scope;
use mesh_model::service::NamespacedName;

use super::*;
use crate::route::limit::Bucket;

const SECOND: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(250);

fn name(name: &str) -> NamespacedName {
    NamespacedName { namespace: "shop".into(), name: name.into() }
}

/// Ten milliseconds, in which the simulation moves.
const STEP: Duration = Duration::from_millis(10);

/// One agent, as the task of the agent drives its budget.
struct Agent {
    holding: Holding,
    meter: Meter,
    bucket: Bucket,
    turn: u64,
    due: Instant,
    begun: Instant,
    asked: u64,
    passed: u64,
}

/// Agents of nodes with as many pods each, and mesh-control, under one budget.
struct World {
    now: Instant,
    requests: u32,
    ledger: Option<Ledger>,
    sharing: Sharing,
    agents: Vec<Agent>,
    dice: u64,
    burst: u32,
    /// Requests come one after the other, none of them more than a third of their distance too early or too late.
    even: bool,
}

impl World {
    fn new(requests: u32, ready: &[u32]) -> World {
        let now = Instant::now();
        let limit =
            RateLimit { name: name("l"), targets: Scope::Namespace, entries: Vec::new(), limits: Vec::new(), scope: LimitScope::Service };
        let nodes = ready.iter().enumerate().map(|(index, ready)| (node(index), *ready)).collect();
        let sharing = Sharing { limit: Arc::new(limit), ready: ready.iter().sum(), nodes };
        let agents = (0..ready.len()).map(|index| {
            let mut holding = Holding::new(sharing.fair(&node(index)));
            let (per, burst) = part(SECOND, requests, holding.parts(now));
            let (meter, bucket) = (Meter::new(requests, SECOND), Bucket::new(requests, per, burst));
            Agent { holding, meter, bucket, turn: 0, due: now, begun: now, asked: 0, passed: 0 }
        });
        let agents = agents.collect();
        World { now, requests, ledger: Some(Ledger::new(now)), sharing, agents, dice: 0x9e37_79b9_7f4a_7c15, burst: requests, even: false }
    }

    /// Chance, the same each time (xorshift).
    fn chance(&mut self) -> f64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Lets time pass with so many requests a second to each agent, by chance. Returns what was let through by each.
    fn run(&mut self, time: Duration, rates: &[f64]) -> Vec<u64> {
        let before: Vec<u64> = self.agents.iter().map(|agent| agent.passed).collect();
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            let now = self.now;
            let id = BudgetId { limit: name("l"), index: 0, service: name("web") };
            for (index, rate) in rates.iter().enumerate() {
                if self.even {
                    let late = 1.0 / 3.0 * self.chance();
                    let agent = &mut self.agents[index];
                    let begun = now.duration_since(agent.begun).as_secs_f64();
                    while (agent.asked as f64 + late) / rate <= begun {
                        agent.asked += 1;
                        agent.passed += u64::from(agent.bucket.take(now, 1).is_ok());
                    }
                    continue;
                }
                let mut expected = rate * STEP.as_secs_f64();
                while expected > 0.0 {
                    if self.chance() < expected.min(0.5) {
                        let agent = &mut self.agents[index];
                        agent.asked += 1;
                        agent.passed += u64::from(agent.bucket.take(now, 1).is_ok());
                    }
                    expected -= 0.5;
                }
            }
            for (index, agent) in self.agents.iter_mut().enumerate() {
                if now < agent.due {
                    continue;
                }
                agent.due = now + LOOK;
                agent.meter.read(now, agent.bucket.asked());
                agent.turn += 1;
                let asked = Asked {
                    session: 1,
                    turn: agent.turn,
                    answered: agent.turn - 1,
                    demand: agent.meter.demand(self.requests, SECOND),
                    holds: agent.holding.parts(now),
                };
                let loan = self.ledger.as_mut().and_then(|ledger| ledger.ask(now, &id, &node(index), &self.sharing, asked));
                if let Some(loan) = loan {
                    agent.holding.lend(Lent::answered(loan.parts, now, now, LIFETIME, LOOK));
                }
                let (per, burst) = part(SECOND, self.burst, agent.holding.parts(now));
                agent.bucket.recast(now, per, burst, beyond(self.burst, burst));
            }
            let all: u64 = self.agents.iter_mut().map(|agent| u64::from(agent.holding.parts(now))).sum();
            assert!(all <= u64::from(WHOLE), "together they hold {all}");
        }
        self.agents.iter().zip(before).map(|(agent, before)| agent.passed - before).collect()
    }
}

fn node(index: usize) -> Arc<str> {
    format!("n{index}").into()
}

/// Of `requests` a second, within a twentieth over ten seconds.
fn within(passed: &[u64], requests: u32) {
    let (all, budget) = (passed.iter().sum::<u64>() as f64, f64::from(requests) * 10.0);
    assert!((all - budget).abs() <= budget / 20.0, "{passed:?} of {budget}");
}

const TEN: Duration = Duration::from_secs(10);

#[test]
fn a_budget_is_held_whoever_is_asked() {
    for (rates, ready) in [
        (vec![180.0, 20.0], vec![1, 1]),
        (vec![300.0, 0.0], vec![1, 1]),
        (vec![150.0, 150.0], vec![1, 3]),
        (vec![40.0, 300.0, 5.0, 0.0], vec![2, 1, 1, 5]),
    ] {
        let mut world = World::new(100, &ready);
        world.run(TEN, &rates);
        for _ in 0..3 {
            within(&world.run(TEN, &rates), 100);
        }
    }
}

#[test]
fn a_small_burst_is_enough_for_what_comes_evenly() {
    for rates in [[90.0, 6.0], [90.0, 8.0], [90.0, 14.0]] {
        let mut world = World::new(40, &[1, 1]);
        (world.even, world.burst) = (true, 4);
        world.run(TEN, &rates);
        let before = world.agents[1].asked;
        let passed = world.run(TEN * 10, &rates);
        let asked = world.agents[1].asked - before;
        assert!(passed[1] * 100 >= asked * 99, "{passed:?}, of the second of {asked}");
        let all = passed.iter().sum::<u64>();
        assert!((3800..=4040).contains(&all), "{passed:?}");
    }
}

#[test]
fn whoever_asks_for_less_than_its_share_gets_all_of_it() {
    let mut world = World::new(100, &[1, 1]);
    world.run(TEN, &[300.0, 20.0]);
    let asked = world.agents[1].asked;
    let passed = world.run(TEN * 3, &[300.0, 20.0])[1];
    let asked = world.agents[1].asked - asked;
    assert!(passed * 100 >= asked * 90, "{passed} of {asked}");
}

#[test]
fn whoever_begins_to_ask_for_little_has_it_within_two_seconds() {
    for (requests, rate) in [(20, 2.0), (40, 8.0)] {
        let mut world = World::new(requests, &[1, 1]);
        (world.even, world.burst) = (true, 4);
        let much = f64::from(requests) * 3.0;
        world.run(TEN * 2, &[much, 0.0]);
        world.agents[1].begun = world.now;
        let passed = world.run(TEN, &[much, rate])[1];
        assert!(passed as f64 >= rate * 8.0, "{passed} of {}", rate * 10.0);
    }
}

#[test]
fn load_that_turns_round_is_followed_within_seconds() {
    let mut world = World::new(100, &[1, 1]);
    for turn in 0..4 {
        let rates = if turn % 2 == 0 { [250.0, 5.0] } else { [5.0, 250.0] };
        let turning = world.run(Duration::from_secs(5), &rates).iter().sum::<u64>();
        assert!(turning <= 500 + 100, "no more than the budget and its burst while shares move: {turning}");
        within(&world.run(TEN, &rates), 100);
    }
}

#[test]
fn without_mesh_control_each_has_its_fair_share_and_with_it_they_share_again() {
    let mut world = World::new(100, &[1, 1]);
    world.run(TEN * 2, &[300.0, 10.0]);
    world.ledger = None;
    let lapsing = world.run(TEN, &[300.0, 10.0]).iter().sum::<u64>();
    assert!(lapsing <= 1000 + 100, "never more than there is: {lapsing}");
    let apart = world.run(TEN, &[300.0, 300.0]);
    for passed in &apart {
        assert!((475..=560).contains(passed), "of its half and what it had saved: {apart:?}");
    }
    assert!(world.agents.iter().all(|agent| agent.holding.lapsed() == 1));
    world.ledger = Some(Ledger::new(world.now));
    world.run(TEN, &[300.0, 10.0]);
    within(&world.run(TEN, &[300.0, 10.0]), 100);
    // Another replica leads, and knows nothing of what the first has lent.
    world.ledger = Some(Ledger::new(world.now));
    let taking_over = world.run(TEN, &[300.0, 10.0]).iter().sum::<u64>();
    assert!((600..=1100).contains(&taking_over), "{taking_over}");
    within(&world.run(TEN, &[300.0, 10.0]), 100);
}

#[test]
fn a_limit_that_lets_few_through_is_shared_as_well() {
    let mut world = World::new(2, &[1, 1]);
    world.run(TEN * 6, &[10.0, 0.2]);
    let passed = world.run(TEN * 6, &[10.0, 0.2]);
    assert!((108..=126).contains(&passed.iter().sum::<u64>()), "{passed:?}");
}

#[test]
fn a_part_is_whole_and_never_nothing() {
    assert_eq!(part(SECOND, 10, WHOLE), (SECOND, 10));
    assert_eq!(part(SECOND, 10, WHOLE / 2), (SECOND * 2, 5));
    assert_eq!(part(SECOND, 3, 333_333), (Duration::from_nanos(3_000_003_001), 1));
    assert_eq!(part(SECOND, 9, 1_000), (SECOND * 1000, 1));
    assert_eq!(part(SECOND * 86_400, 7, 0), (SECOND * 86_400 * WHOLE, 1));
    assert_eq!(part(SECOND, u32::MAX, WHOLE).1, u32::MAX);
}

#[test]
fn demand_is_measured_over_the_time_of_ten() {
    let (mut meter, start) = (Meter::new(100, SECOND), Instant::now());
    meter.read(start, 0);
    assert_eq!(meter.demand(100, SECOND), 0);
    for second in 1..=20_u32 {
        meter.read(start + SECOND * second, u64::from(second) * 30);
    }
    assert!((295_000..=302_000).contains(&meter.demand(100, SECOND)), "{}", meter.demand(100, SECOND));
    meter.read(start + SECOND * 20, 10_000);
    assert!(meter.demand(100, SECOND) <= 302_000, "no time has passed");
}

#[test]
fn who_asks_for_a_little_more_is_taken_to_need_a_little_more() {
    let start = Instant::now();
    let demand = |rate: u64| {
        let mut meter = Meter::new(40, SECOND);
        for tens in 0..=6 {
            meter.read(start + TEN * tens, u64::from(tens) * rate);
        }
        meter.demand(40, SECOND)
    };
    let demands: Vec<u64> = (1..400).map(demand).collect();
    let steps = demands.windows(2).map(|pair| pair[1] as i64 - pair[0] as i64);
    // A tenth of one a second is 2500 parts of 40 a second.
    assert!(steps.clone().all(|step| (0..=4000).contains(&step)), "{:?}", steps.collect::<Vec<_>>());
}

#[test]
fn a_loan_that_lapses_gives_back_before_it_takes() {
    let (fair, now) = (Fair { here: 1, of: 2 }, Instant::now());
    let lend = |parts| {
        let mut holding = Holding::new(fair);
        holding.lend(Lent::answered(parts, now, now, SECOND * 3, LOOK));
        holding
    };
    let (lapse, over) = (now + SECOND * 3 - LOOK, now + SECOND * 6);
    let mut much = lend(900_000);
    assert_eq!([now, lapse, over].map(|at| much.parts(at)), [900_000, 500_000, 500_000]);
    let mut little = lend(100_000);
    assert_eq!([now, lapse, over - STEP, over].map(|at| little.parts(at)), [100_000, 100_000, 100_000, 500_000]);
    assert_eq!((little.lapsed(), little.since(now)), (1, None));
}
