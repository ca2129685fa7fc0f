use std::collections::BTreeMap;

use mesh_model::limit::{LimitScope, RateLimit};
use mesh_model::policy::Scope;
use proptest::prelude::*;

use super::*;

fn name(name: &str) -> NamespacedName {
    NamespacedName { namespace: "shop".into(), name: name.into() }
}

fn id() -> BudgetId {
    BudgetId { limit: name("l"), index: 0, service: name("web") }
}

fn node(index: usize) -> Arc<str> {
    format!("n{index}").into()
}

fn sharing(ready: &[u32], strangers: u32) -> Sharing {
    let limit =
        RateLimit { name: name("l"), targets: Scope::Namespace, entries: Vec::new(), limits: Vec::new(), scope: LimitScope::Service };
    let nodes: BTreeMap<Arc<str>, u32> = ready.iter().enumerate().map(|(index, ready)| (node(index), *ready)).collect();
    Sharing { limit: Arc::new(limit), ready: ready.iter().sum::<u32>() + strangers, nodes }
}

/// A ledger that is calm at the returned moment.
fn calm() -> (Ledger, Instant) {
    let start = Instant::now();
    (Ledger::new(start), start + Duration::from_secs(10))
}

fn asked(turn: u64, demand: u64, holds: u32) -> Asked {
    Asked { session: 1, turn, answered: turn - 1, demand, holds }
}

#[test]
fn a_share_grows_only_when_the_other_has_confirmed_that_it_gave_back() {
    let (mut ledger, now) = calm();
    let two = sharing(&[1, 1], 0);
    let mut ask = |index: usize, asked: Asked| ledger.ask(now, &id(), &node(index), &two, asked).unwrap();
    // The other has not asked: it has its fair share.
    assert_eq!(ask(0, asked(1, 2_000_000, 500_000)).parts, 500_000);
    let idle = ask(1, asked(1, 0, 500_000));
    assert_eq!((idle.parts, idle.again), (5_000, SOON), "all but what it keeps for its next requests");
    assert_eq!(ask(0, asked(2, 2_000_000, 500_000)).parts, 500_000, "the answer may have been lost");
    assert_eq!(ask(1, asked(2, 0, 5_000)).parts, 5_000);
    assert_eq!(ask(0, asked(3, 2_000_000, 500_000)).parts, 995_000);
    // Turned round.
    assert_eq!(ask(1, asked(3, 2_000_000, 5_000)).parts, 5_000);
    assert_eq!(ask(0, asked(4, 0, 995_000)).parts, 5_000);
    assert_eq!(ask(1, asked(4, 2_000_000, 5_000)).parts, 5_000);
    assert_eq!(ask(0, asked(5, 0, 5_000)).parts, 5_000);
    assert_eq!(ask(1, asked(5, 2_000_000, 5_000)).parts, 995_000);
}

#[test]
fn whoever_falls_silent_counts_with_its_fair_share_once_its_loan_has_lapsed() {
    let (mut ledger, now) = calm();
    let two = sharing(&[1, 1], 0);
    let mut ask = |at: Instant, index: usize, turn: u64, demand: u64, holds: u32| {
        ledger.ask(at, &id(), &node(index), &two, asked(turn, demand, holds)).unwrap().parts
    };
    assert_eq!(ask(now, 0, 1, 2_000_000, 500_000), 500_000);
    assert_eq!(ask(now, 1, 1, 0, 500_000), 5_000);
    assert_eq!(ask(now, 1, 2, 0, 5_000), 5_000);
    assert_eq!(ask(now, 0, 2, 2_000_000, 500_000), 995_000);
    assert_eq!(ask(now + LIFETIME - Duration::from_millis(1), 0, 3, 2_000_000, 995_000), 995_000);
    assert_eq!(ask(now + LIFETIME, 0, 4, 2_000_000, 995_000), 500_000);
}

#[test]
fn one_that_begins_to_lead_takes_back_and_does_not_give() {
    let start = Instant::now();
    let (mut ledger, two) = (Ledger::new(start), sharing(&[1, 1], 0));
    let mut ask = |at: Instant, index: usize, turn, demand, holds| {
        ledger.ask(at, &id(), &node(index), &two, asked(turn, demand, holds)).unwrap().parts
    };
    assert_eq!(ask(start, 0, 1, 2_000_000, 990_000), 500_000, "lent by another, which is heard of no more");
    assert_eq!(ask(start, 1, 1, 2_000_000, 10_000), 10_000);
    let later = start + LIFETIME + Duration::from_secs(1);
    assert_eq!(ask(later, 0, 2, 0, 500_000), 500_000, "nobody else has asked for more");
    assert_eq!(ask(later, 1, 2, 2_000_000, 10_000), 500_000);
    assert_eq!(ask(later, 0, 3, 0, 500_000), 5_000);
    assert_eq!(ask(later, 1, 3, 2_000_000, 500_000), 500_000, "the answer may have been lost");
    assert_eq!(ask(later, 0, 4, 0, 5_000), 5_000);
    assert_eq!(ask(later, 1, 4, 2_000_000, 500_000), 995_000);
}

#[test]
fn a_late_request_is_not_heard_and_an_agent_that_begins_anew_is() {
    let (mut ledger, now) = calm();
    let two = sharing(&[1, 1], 0);
    let mut ask = |asked| ledger.ask(now, &id(), &node(0), &two, asked).map(|loan| loan.parts);
    assert_eq!(ask(asked(5, 2_000_000, 500_000)), Some(500_000));
    assert_eq!(ask(asked(5, 0, 1)), None);
    assert_eq!(ask(asked(4, 0, 1)), None);
    assert_eq!(ask(Asked { session: 2, turn: 1, answered: 0, demand: 2_000_000, holds: 500_000 }), Some(500_000));
}

#[test]
fn endpoints_that_nobody_counts_for_keep_their_part() {
    let (mut ledger, now) = calm();
    assert_eq!(ledger.ask(now, &id(), &node(0), &sharing(&[1], 1), asked(1, 2_000_000, 500_000)).unwrap().parts, 500_000);
    assert_eq!(ledger.lent(now).map(|(_, parts)| parts).sum::<u64>(), 500_000);
    ledger.sweep(now + LIFETIME);
    assert_eq!(ledger.lent(now).count(), 0);
}

#[test]
fn nodes_that_come_take_nothing_from_those_that_are_ready_until_they_are() {
    let (mut ledger, mut now) = calm();
    // Two that are ready, both asked for more than there is, and eight that come at once.
    let two = sharing(&[1, 1], 0);
    let ten = sharing(&[1, 1, 0, 0, 0, 0, 0, 0, 0, 0], 0);
    let mut agents: Vec<Agent> = (0..10).map(|index| Agent::new(ten.fair(&node(index)).parts())).collect();
    for _ in 0..4 {
        for (index, agent) in agents.iter_mut().enumerate().take(2) {
            agent.ask(&mut ledger, now, &node(index), &two, 3_000_000, false);
        }
    }
    for round in 0..20 {
        now += SOON;
        // Half of the time those that come ask first, and some of their answers are lost.
        let mut order: Vec<usize> = (0..10).collect();
        if round % 2 == 0 {
            order.reverse();
        }
        for index in order {
            let demand = if index < 2 { 3_000_000 } else { 0 };
            agents[index].ask(&mut ledger, now, &node(index), &ten, demand, index >= 2 && (round + index) % 3 == 0);
        }
        let (old, new) = agents.split_at(2);
        assert!(old.iter().all(|agent| agent.holds(now) >= 480_000), "{round}: {old:?}");
        let lent: u32 = new.iter().filter_map(|agent| agent.lent).map(|(parts, _)| parts).sum();
        assert!(old.iter().map(|agent| agent.holds(now)).sum::<u32>() + lent <= WHOLE, "{round}: {agents:?}");
    }
    // Once they are ready they have their shares.
    let ready = sharing(&[1; 10], 0);
    agents.iter_mut().for_each(|agent| agent.fair = 100_000);
    for _ in 0..20 {
        now += SOON;
        for (index, agent) in agents.iter_mut().enumerate() {
            agent.ask(&mut ledger, now, &node(index), &ready, 3_000_000, false);
        }
    }
    assert!(agents.iter().all(|agent| agent.holds(now) + 10 >= 100_000), "{agents:?}");
}

#[test]
fn one_that_is_not_ready_does_not_halve_the_one_that_is() {
    let (mut ledger, now) = calm();
    let both = sharing(&[1, 0], 0);
    assert_eq!(ledger.ask(now, &id(), &node(0), &both, asked(1, 2_000_000, WHOLE)).unwrap().parts, WHOLE);
    assert_eq!(ledger.ask(now, &id(), &node(1), &both, asked(1, 0, 500_000)).unwrap().parts, 0, "until there is something to lend");
    assert_eq!(ledger.ask(now, &id(), &node(0), &both, asked(2, 2_000_000, WHOLE)).unwrap().parts, 995_000);
    assert_eq!(ledger.ask(now, &id(), &node(0), &both, asked(3, 2_000_000, 995_000)).unwrap().parts, 995_000);
    assert_eq!(ledger.ask(now, &id(), &node(1), &both, asked(2, 0, 0)).unwrap().parts, 5_000);
}

/// What one says that lies: the most, of a life of its own each time.
fn lie(session: u64) -> Asked {
    Asked { session, turn: 1, answered: 0, demand: u64::MAX, holds: u32::MAX }
}

#[test]
fn whoever_says_that_it_holds_everything_is_believed_its_fair_share() {
    let (mut ledger, now) = calm();
    let two = sharing(&[1, 1], 0);
    for session in 1..20 {
        assert!(ledger.ask(now, &id(), &node(0), &two, lie(session)).unwrap().parts <= 500_000);
        assert_eq!(ledger.ask(now, &id(), &node(1), &two, asked(session, 2_000_000, 500_000)).unwrap().parts, 500_000);
    }
}

#[test]
fn what_was_lent_once_cannot_be_claimed_for_ever() {
    let (mut ledger, start) = calm();
    let two = sharing(&[1, 1], 0);
    let (mut honest, mut now) = (Agent::new(500_000), start);
    for turn in 1..=3 {
        honest.ask(&mut ledger, now, &node(1), &two, 0, false);
        ledger.ask(now, &id(), &node(0), &two, asked(turn, 2_000_000, 500_000)).unwrap();
    }
    assert_eq!(ledger.ask(now, &id(), &node(0), &two, asked(4, 2_000_000, 995_000)).unwrap().parts, 995_000);
    let end = start + LIFETIME;
    for session in 10.. {
        now += SOON;
        honest.ask(&mut ledger, now, &node(1), &two, 2_000_000, false);
        ledger.ask(now, &id(), &node(0), &two, lie(session)).unwrap();
        if now >= end {
            break;
        }
        assert_eq!(honest.holds(now), 5_000, "it may still hold it");
    }
    assert_eq!(honest.holds(now), 500_000);
}

#[test]
fn what_is_claimed_of_a_time_before_the_ledger_is_believed_no_longer_than_it_can_be_true() {
    let start = Instant::now();
    let (mut ledger, two) = (Ledger::new(start), sharing(&[1, 1], 0));
    let late = ledger.calm - Duration::from_millis(1);
    assert_eq!(ledger.ask(late, &id(), &node(0), &two, lie(1)).unwrap().parts, 500_000);
    assert_eq!(ledger.ask(ledger.calm, &id(), &node(1), &two, asked(1, 2_000_000, 500_000)).unwrap().parts, 500_000);
}

proptest! {
    /// One says whatever it likes: the others together never hold more than it was not lent, and each comes to its fair share.
    #[test]
    fn a_liar_takes_no_more_than_it_was_lent(
        ready in prop::collection::vec(1u32..4, 2..5),
        strangers in 0u32..2,
        steps in prop::collection::vec((0usize..5, 0u64..900, 0u64..3_000_000, any::<bool>(), lies()), 1..150),
        anew in any::<bool>(),
    ) {
        let (mut ledger, mut now) = calm();
        let shared = sharing(&ready, strangers);
        let mut agents: Vec<Agent> = (0..ready.len()).map(|index| Agent::new(shared.fair(&node(index)).parts())).collect();
        // The first.
        let mut lent = (0, now);
        for (index, wait, demand, lost, lie) in steps {
            now += Duration::from_millis(wait);
            match index % ready.len() {
                0 => if let Some(loan) = ledger.ask(now, &id(), &node(0), &shared, lie) {
                    lent = (loan.parts, now + LIFETIME);
                },
                index => agents[index].ask(&mut ledger, now, &node(index), &shared, demand, lost),
            }
            let honest: u64 = agents.iter().skip(1).map(|agent| u64::from(agent.holds(now))).sum();
            let all = honest + if now < lent.1 { u64::from(lent.0) } else { 0 };
            prop_assert!(all <= u64::from(WHOLE), "{all}");
        }
        // Sessions that were not heard of before.
        const LATER: u64 = 1 << 32;
        let end = now + LIFETIME + SOON * 6;
        for step in 0_u64.. {
            now += SOON;
            let (session, turn) = if anew { (LATER + step, 1) } else { (LATER, step + 1) };
            ledger.ask(now, &id(), &node(0), &shared, Asked { session, turn, ..lie(0) });
            for (index, agent) in agents.iter_mut().enumerate().skip(1) {
                agent.ask(&mut ledger, now, &node(index), &shared, 3_000_000, false);
            }
            if now >= end {
                break;
            }
        }
        for agent in agents.iter().skip(1) {
            prop_assert!(agent.holds(now) + 10 >= agent.fair, "{agent:?}");
        }
    }

    /// Agents ask at any time, answers get lost, demands jump: what all may hold is never more than there is, and whoever has asked a few
    /// times undisturbed has what is fair.
    #[test]
    fn never_more_than_the_whole_and_nobody_starves(
        ready in prop::collection::vec(1u32..4, 1..5),
        strangers in 0u32..2,
        steps in prop::collection::vec((0usize..5, 0u64..900, 0u64..3_000_000, any::<bool>()), 1..150),
    ) {
        let (mut ledger, mut now) = calm();
        let shared = sharing(&ready, strangers);
        let mut agents: Vec<Agent> = (0..ready.len()).map(|index| Agent::new(shared.fair(&node(index)).parts())).collect();
        for (index, wait, demand, lost) in steps {
            now += Duration::from_millis(wait);
            let index = index % ready.len();
            agents[index].ask(&mut ledger, now, &node(index), &shared, demand, lost);
            let all: u64 = agents.iter().map(|agent| u64::from(agent.holds(now))).sum();
            prop_assert!(all <= u64::from(WHOLE), "{all}");
        }
        for _ in 0..4 {
            for (index, agent) in agents.iter_mut().enumerate() {
                agent.ask(&mut ledger, now, &node(index), &shared, 3_000_000, false);
            }
        }
        for agent in &agents {
            prop_assert!(agent.holds(now) + 10 >= agent.fair, "{agent:?}");
        }
    }
}

/// Anything that may be said.
fn lies() -> impl Strategy<Value = Asked> {
    let demand = prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)];
    let holds = prop_oneof![any::<u32>(), 0..=WHOLE, Just(u32::MAX)];
    let said = (0u64..3, prop_oneof![0u64..200, any::<u64>()], prop_oneof![0u64..200, any::<u64>()], demand, holds);
    said.prop_map(|(session, turn, answered, demand, holds)| Asked { session, turn, answered, demand, holds })
}

/// What an agent does, as the module's head says.
#[derive(Debug)]
struct Agent {
    fair: u32,
    turn: u64,
    answered: u64,
    lent: Option<(u32, Instant)>,
}

impl Agent {
    fn new(fair: u32) -> Agent {
        Agent { fair, turn: 0, answered: 0, lent: None }
    }

    fn holds(&self, now: Instant) -> u32 {
        match self.lent {
            Some((parts, until)) if now < until => parts,
            Some((parts, until)) if now < until + LIFETIME => parts.min(self.fair),
            _ => self.fair,
        }
    }

    fn ask(&mut self, ledger: &mut Ledger, now: Instant, node: &Arc<str>, sharing: &Sharing, demand: u64, lost: bool) {
        self.turn += 1;
        let asked = Asked { session: 1, turn: self.turn, answered: self.answered, demand, holds: self.holds(now) };
        let loan = ledger.ask(now, &id(), node, sharing, asked).unwrap();
        if !lost {
            self.answered = self.turn;
            self.lent = Some((loan.parts, now + LIFETIME));
        }
    }
}

#[test]
fn whoever_does_not_get_its_answers_counts_with_its_fair_share_before_it_takes_it() {
    let (mut ledger, start) = calm();
    let two = sharing(&[1, 1], 0);
    let (mut idle, mut busy) = (Agent::new(500_000), Agent::new(500_000));
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    for second in 0..3 {
        idle.ask(&mut ledger, at(second), &node(0), &two, 0, false);
        busy.ask(&mut ledger, at(second), &node(1), &two, 3_000_000, false);
    }
    assert_eq!((idle.holds(at(2)), busy.holds(at(2))), (5_000, 995_000));
    // It asks on, and hears nothing.
    for second in 3..14 {
        idle.ask(&mut ledger, at(second), &node(0), &two, 0, true);
        busy.ask(&mut ledger, at(second), &node(1), &two, 3_000_000, false);
        assert!(idle.holds(at(second)) + busy.holds(at(second)) <= WHOLE);
    }
    assert_eq!((idle.holds(at(13)), busy.holds(at(13))), (500_000, 500_000));
}
