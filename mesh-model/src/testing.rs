//! For property tests over policies: random cases, and a second evaluator to hold the compiled programs against.

pub mod generate;
pub mod reference;
pub mod request;

pub use generate::{Case, case};
pub use reference::{DryRun, Flow, Verdict, judge, judge_request};
pub use request::{Request, RequestCase, request_case};
