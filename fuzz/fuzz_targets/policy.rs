//! Authorization policies: what is compiled decides of requests and connections as the specification reads, for the policies and requests
//! that the fuzzer's bytes stand for.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use mesh_model::policy::http::{DryRunDenial, HttpPolicy};
use mesh_model::policy::{SetInterner, compile};
use mesh_model::testing::{DryRun, Verdict, judge, judge_request, request_case};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Bytes from which a small case can be made; where they end, everything that follows is the first of its kind.
const ENOUGH: usize = 64;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if bytes.len() < ENOUGH {
        return Corpus::Reject;
    }
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::PassThrough, bytes));
    let Ok(tree) = request_case().new_tree(&mut runner) else { return Corpus::Reject };
    let case = tree.current();
    // There is none where nothing is asked of requests: each is then judged as its connection.
    let policy = HttpPolicy::compile(&case.policies);
    let connections = compile(&case.policies, &mut SetInterner::default());
    for request in &case.requests {
        let connection = connections.decide(&request.flow.facts(), request.flow.identity.as_ref());
        assert_eq!(connection.allowed, judge(&case.policies, &request.flow).allowed, "{:?}\n{:#?}", request.flow, case.policies);
        let specified = judge_request(&case.policies, request);
        let Some(policy) = &policy else {
            assert_eq!(connection.allowed, specified.allowed, "{request:?}\n{:#?}", case.policies);
            continue;
        };
        let decision = policy.decide(&request.facts());
        let verdict = Verdict {
            allowed: decision.allowed,
            policy: decision.policy.cloned(),
            dry_run: decision.dry_run.map(|denial| match denial {
                DryRunDenial::Policy(policy) => DryRun::Policy(policy.clone()),
                DryRunDenial::NoneAllows => DryRun::NoneAllows,
            }),
            audited: decision.audited.cloned(),
        };
        assert_eq!(verdict, specified, "{request:?}\n{:#?}", case.policies);
        // A connection that nobody parses may do no more than each request on it.
        assert!(!connection.allowed || decision.allowed, "{request:?}\n{:#?}", case.policies);
    }
    Corpus::Keep
});
