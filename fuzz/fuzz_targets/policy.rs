//! Authorization policies: what is compiled decides of requests and connections as the specification reads, for the policies and requests
//! that the fuzzer's bytes stand for.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use mesh_model::policy::http::{DryRunDenial, HttpPolicy};
use mesh_model::policy::{SetInterner, compile};
use mesh_model::testing::{DryRun, Verdict, judge, judge_request, request_case};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Follows the fuzzer's bytes, always the same: a generator that has no more of them would draw noughts, some for ever.
static TAIL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.take(16 << 10).flat_map(u64::to_le_bytes).collect()
});

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let drawn = [bytes, &TAIL].concat();
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::PassThrough, &drawn));
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
