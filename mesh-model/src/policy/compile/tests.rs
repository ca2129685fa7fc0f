use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::policy::Scope;
use crate::testing::{self, DryRun, Flow, Verdict};

fn named(n: u32, compiled: &CompiledPolicy) -> Option<NamespacedName> {
    compiled.name(n).cloned()
}

fn verdict_of(compiled: &CompiledPolicy, flow: &Flow) -> Verdict {
    let decision = compiled.decide(&flow.facts(), flow.identity.as_ref());
    Verdict {
        allowed: decision.allowed,
        policy: named(decision.policy, compiled),
        dry_run: match decision.dry_run {
            0 => None,
            verdict::NO_POLICY => Some(DryRun::NoneAllows),
            n => named(n, compiled).map(DryRun::Policy),
        },
        audited: named(compiled.audited(&flow.facts(), flow.identity.as_ref()), compiled),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn program_and_specification_agree(case in testing::case()) {
        let compiled = compile(&case.policies, &mut SetInterner::default());
        for flow in &case.flows {
            prop_assert_eq!(verdict_of(&compiled, flow), testing::judge(&case.policies, flow), "{:?}\n{:#?}", flow, compiled);
        }
    }

    /// The kernel asks a table of (set, identity); filled by the patterns it must decide as they do.
    #[test]
    fn table_of_members_decides_as_patterns_do(case in testing::case()) {
        let compiled = compile(&case.policies, &mut SetInterner::default());
        for flow in &case.flows {
            let members: HashMap<u32, bool> = compiled.sets.iter()
                .map(|(set, patterns)| (*set, flow.identity.as_ref().is_some_and(|i| patterns.matches(i))))
                .collect();
            let decision = verdict::decide(&compiled.header, &compiled.ops, &flow.facts(), |set| members[&set]);
            prop_assert_eq!(decision, compiled.decide(&flow.facts(), flow.identity.as_ref()));
        }
    }
}

/// The property above would hold for cases that all decide alike; they must not.
#[test]
fn random_cases_decide_every_way() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut kinds, mut total) = (HashMap::<&str, u32>::new(), 0);
    for _ in 0..800 {
        let case = testing::case().new_tree(&mut runner).unwrap().current();
        for flow in &case.flows {
            let verdict = testing::judge(&case.policies, flow);
            let kind = match (verdict.allowed, verdict.policy.is_some()) {
                (true, true) => "allowed by a policy",
                (true, false) => "allowed for want of policies",
                (false, true) => "denied by a policy",
                (false, false) => "denied since nothing allows",
            };
            *kinds.entry(kind).or_default() += 1;
            *kinds.entry("dry run denies").or_default() += u32::from(matches!(verdict.dry_run, Some(DryRun::Policy(_))));
            *kinds.entry("dry run allows nothing").or_default() += u32::from(matches!(verdict.dry_run, Some(DryRun::NoneAllows)));
            *kinds.entry("audited").or_default() += u32::from(verdict.audited.is_some());
            total += 1;
        }
    }
    assert_eq!(kinds.len(), 7, "{kinds:?}");
    for (kind, count) in &kinds {
        assert!(count * 100 > total, "less than 1 in 100 {kind}: {kinds:?}");
    }
}

fn policy(action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    let name = NamespacedName { namespace: "a".into(), name: "p".into() };
    AuthorizationPolicy { name, action, dry_run: false, scope: Scope::Namespace, rules, refused: None }
}

fn compiled(policies: Vec<AuthorizationPolicy>) -> CompiledPolicy {
    let policies = policies.into_iter().map(Arc::new).collect();
    compile(&EffectivePolicies { trust_domain: TrustDomain::default(), policies }, &mut SetInterner::default())
}

fn flow(identity: Option<&str>, source: &str, port: u16) -> Flow {
    Flow {
        identity: identity.map(|text| text.parse().unwrap()),
        source: source.parse().unwrap(),
        destination: "10.9.9.9".parse().unwrap(),
        port,
    }
}

fn allowed(policies: Vec<AuthorizationPolicy>, flow: &Flow) -> bool {
    compiled(policies).decide(&flow.facts(), flow.identity.as_ref()).allowed
}

const ALICE: &str = "spiffe://cluster.local/ns/a/sa/alice";

#[test]
fn no_rules_match_nothing_and_an_empty_rule_everything() {
    let flow = flow(Some(ALICE), "10.0.0.1", 80);
    assert!(allowed(vec![], &flow));
    assert!(!allowed(vec![policy(Action::Allow, vec![])], &flow));
    assert!(allowed(vec![policy(Action::Allow, vec![Rule::default()])], &flow));
    assert!(allowed(vec![policy(Action::Deny, vec![])], &flow));
    assert!(!allowed(vec![policy(Action::Deny, vec![Rule::default()]), policy(Action::Allow, vec![Rule::default()])], &flow));
}

#[test]
fn http_fields_never_allow_and_do_not_narrow_a_denial() {
    let operation = Operation { methods: vec![StringMatch::Exact("POST".into())], ports: vec![80], ..Operation::default() };
    let rule = Rule { to: vec![operation], ..Rule::default() };
    let (to_80, to_81) = (flow(Some(ALICE), "10.0.0.1", 80), flow(Some(ALICE), "10.0.0.1", 81));
    assert!(!allowed(vec![policy(Action::Allow, vec![rule.clone()])], &to_80));
    assert!(!allowed(vec![policy(Action::Deny, vec![rule.clone()])], &to_80));
    assert!(allowed(vec![policy(Action::Deny, vec![rule])], &to_81));
}

#[test]
fn what_is_not_understood_denies_and_names_itself() {
    let refused = AuthorizationPolicy { refused: Some("why".into()), ..policy(Action::Allow, vec![]) };
    let program = compiled(vec![policy(Action::Allow, vec![Rule::default()]), refused.clone()]);
    let flow = flow(Some(ALICE), "10.0.0.1", 80);
    let decision = program.decide(&flow.facts(), flow.identity.as_ref());
    assert!(!decision.allowed);
    assert_eq!(decision.policy, 2);
    // In dry run it is not enforced, and an audit can deny nobody.
    assert!(allowed(vec![AuthorizationPolicy { dry_run: true, ..refused.clone() }], &flow));
    assert!(allowed(vec![AuthorizationPolicy { action: Action::Audit, ..refused }], &flow));
}

#[test]
fn absent_identity_matches_no_positive_field_and_every_negative_one() {
    let absent = flow(None, "10.0.0.1", 80);
    let from = |source| vec![policy(Action::Allow, vec![Rule { from: vec![source], ..Rule::default() }])];
    assert!(!allowed(from(Source { principals: vec![StringMatch::Present], ..Source::default() }), &absent));
    assert!(allowed(from(Source { not_principals: vec![StringMatch::Present], ..Source::default() }), &absent));
    let both =
        Source { namespaces: vec![StringMatch::Present], not_principals: vec![StringMatch::Suffix("bob".into())], ..Source::default() };
    assert!(!allowed(from(both.clone()), &absent));
    assert!(allowed(from(both), &flow(Some(ALICE), "10.0.0.1", 80)));
}

#[test]
fn a_range_of_ipv6_holds_no_ipv4_address() {
    let blocks = |list: &[&str]| {
        let ip_blocks = list.iter().map(|text| text.parse().unwrap()).collect();
        vec![policy(Action::Allow, vec![Rule { from: vec![Source { ip_blocks, ..Source::default() }], ..Rule::default() }])]
    };
    let (v4, v6) = (flow(None, "10.0.0.1", 80), flow(None, "2001:db8::1", 80));
    assert!(!allowed(blocks(&["::/0"]), &v4));
    assert!(allowed(blocks(&["::/0"]), &v6));
    assert!(!allowed(blocks(&["0.0.0.0/0"]), &v6));
    assert!(allowed(blocks(&["0.0.0.0/0"]), &v4));
    let everything = blocks(&["0.0.0.0/0", "::/0"]);
    assert_eq!(compiled(everything.clone()).ops.len(), 2, "no need to cut");
    assert!(allowed(everything.clone(), &v4) && allowed(everything, &v6));
}

#[test]
fn cluster_local_is_the_own_domain_only_where_that_is_stricter() {
    let with = |action, source: Source| {
        let policies = vec![Arc::new(policy(action, vec![Rule { from: vec![source], ..Rule::default() }]))];
        compile(&EffectivePolicies { trust_domain: "prod.example".parse().unwrap(), policies }, &mut SetInterner::default())
    };
    let flow = flow(Some("spiffe://prod.example/ns/a/sa/alice"), "10.0.0.1", 80);
    let allowed = |program: CompiledPolicy| program.decide(&flow.facts(), flow.identity.as_ref()).allowed;
    let named = || vec![StringMatch::Exact("cluster.local/ns/a/sa/alice".into())];
    assert!(!allowed(with(Action::Deny, Source { principals: named(), ..Source::default() })));
    assert!(!allowed(with(Action::Allow, Source { principals: named(), ..Source::default() })));
    assert!(!allowed(with(Action::Allow, Source { not_principals: named(), ..Source::default() })));
    assert!(!allowed(with(Action::Deny, Source { not_principals: named(), ..Source::default() })));
}

#[test]
fn equal_policies_compile_to_equal_programs() {
    let rule = |names: [&str; 2]| Rule {
        from: vec![Source { namespaces: names.iter().map(|n| n.parse().unwrap()).collect(), ..Source::default() }],
        ..Rule::default()
    };
    let mut interner = SetInterner::default();
    let mut program = |names| {
        let policies = vec![Arc::new(policy(Action::Allow, vec![rule(names)]))];
        compile(&EffectivePolicies { trust_domain: TrustDomain::default(), policies }, &mut interner)
    };
    assert_eq!(program(["x", "y"]), program(["y", "x"]));
    assert_ne!(program(["x", "y"]), program(["x", "z"]));
}
