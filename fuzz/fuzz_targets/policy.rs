//! Authorization policies: what is compiled decides of requests and connections as the specification reads. The fuzzer's bytes are seeds:
//! the first of the policies, each other of a request.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use mesh_model::policy::http::{DryRunDenial, HttpPolicy};
use mesh_model::policy::{SetInterner, compile};
use mesh_model::testing::request::request;
use mesh_model::testing::{DryRun, Request, RequestCase, Verdict, judge, judge_request, request_case};
use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Requests that are seeded one by one, beside those that come with the policies.
const MORE: usize = 32;
/// Bytes of a generator's seed.
const SEED: usize = 32;

thread_local! {
    // Made once: they are large.
    static CASES: BoxedStrategy<RequestCase> = request_case().boxed();
    static REQUESTS: BoxedStrategy<Request> = request().boxed();
}

/// What a generator makes of a seed.
fn made<S: Strategy>(strategy: &S, seed: &[u8]) -> Option<S::Value> {
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, seed));
    Some(strategy.new_tree(&mut runner).ok()?.current())
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let mut seeds = bytes.chunks_exact(SEED);
    let Some(case) = seeds.next().and_then(|seed| CASES.with(|cases| made(cases, seed))) else { return Corpus::Reject };
    let more = seeds.take(MORE).filter_map(|seed| REQUESTS.with(|requests| made(requests, seed)));
    let requests: Vec<_> = case.requests.iter().cloned().chain(more).collect();
    // There is none where nothing is asked of requests: each is then judged as its connection.
    let policy = HttpPolicy::compile(&case.policies);
    let connections = compile(&case.policies, &mut SetInterner::default());
    for request in &requests {
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
