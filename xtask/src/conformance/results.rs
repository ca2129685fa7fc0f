//! Results of the suite's tests, from the lines that Go's test programs write, and what follows from them.

use std::collections::BTreeMap;
use std::fmt;

/// How a test ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Well.
    Passed,
    /// Badly.
    Failed,
    /// It did not run.
    Skipped,
}

/// A test's line.
#[derive(Clone, PartialEq, Debug)]
pub struct TestResult {
    /// How it ended.
    pub outcome: Outcome,
    /// Seconds.
    pub seconds: f64,
}

/// The suite's tests by name: the lines `--- PASS: TestMesh/<name> (1.23s)`, without the tests within tests. A test that failed once
/// has failed.
pub fn parse(text: &str) -> BTreeMap<String, TestResult> {
    let mut found: BTreeMap<String, TestResult> = BTreeMap::new();
    for (name, result) in text.lines().filter_map(line) {
        match found.get(&name) {
            Some(earlier) if earlier.outcome == Outcome::Failed => {}
            _ => {
                found.insert(name, result);
            }
        }
    }
    found
}

fn line(line: &str) -> Option<(String, TestResult)> {
    let (word, rest) = line.trim().strip_prefix("--- ")?.split_once(": ")?;
    let outcome = match word {
        "PASS" => Outcome::Passed,
        "FAIL" => Outcome::Failed,
        "SKIP" => Outcome::Skipped,
        _ => return None,
    };
    let (path, time) = rest.rsplit_once(" (")?;
    let (_, name) = path.split_once('/')?;
    let seconds = time.strip_suffix("s)")?.parse().ok()?;
    (!name.contains('/')).then(|| (name.to_owned(), TestResult { outcome, seconds }))
}

/// A line that tells a person how far the suite is: a test that was asked for begins or ends, or another fails.
pub fn is_progress(text: &str, asked: &[&str]) -> bool {
    let begun = text.trim().strip_prefix("=== RUN ").and_then(|path| path.split_once('/'));
    let begins = begun.is_some_and(|(_, name)| asked.contains(&name));
    begins || line(text).is_some_and(|(name, result)| asked.contains(&name.as_str()) || result.outcome == Outcome::Failed)
}

/// Whether the run is good, test by test.
#[derive(Debug)]
pub struct Judgement {
    rows: Vec<(String, Option<TestResult>)>,
    suite_passed: bool,
}

impl Judgement {
    /// From what was asked for, what ran, and the suite's own verdict. A test that failed without having been asked for counts too.
    pub fn new(asked: &[&str], results: &BTreeMap<String, TestResult>, suite_passed: bool) -> Self {
        let mut rows: Vec<(String, Option<TestResult>)> = asked.iter().map(|&name| (name.to_owned(), results.get(name).cloned())).collect();
        for (name, result) in results {
            if result.outcome == Outcome::Failed && !asked.contains(&name.as_str()) {
                rows.push((name.clone(), Some(result.clone())));
            }
        }
        Self { rows, suite_passed }
    }

    fn passed(&self) -> usize {
        self.rows.iter().filter(|(_, result)| result.as_ref().is_some_and(|result| result.outcome == Outcome::Passed)).count()
    }

    /// The suite passed, something was asked for, and all of it passed.
    pub fn good(&self) -> bool {
        self.suite_passed && !self.rows.is_empty() && self.passed() == self.rows.len()
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, result) in &self.rows {
            match result {
                Some(TestResult { outcome, seconds }) => {
                    let word = match outcome {
                        Outcome::Passed => "passed",
                        Outcome::Failed => "FAILED",
                        Outcome::Skipped => "SKIPPED",
                    };
                    writeln!(f, "{name:<44} {word:<8} {seconds:>7.1} s")?;
                }
                None => writeln!(f, "{name:<44} DID NOT RUN")?,
            }
        }
        let suite = if self.suite_passed { "passed" } else { "failed" };
        writeln!(f, "{} of {} passed; the suite itself {suite}", self.passed(), self.rows.len())
    }
}

#[cfg(test)]
mod tests {
    use super::{Judgement, Outcome, is_progress, parse};

    const TEXT: &str = "\
=== RUN   TestMesh
=== RUN   TestMesh/MeshBasic
    mesh-basic.go:40: 2026-09-01: something (1.0s)
=== RUN   TestMesh/MeshBasic/GET_on_the_Service
--- PASS: TestMesh (12.50s)
    --- PASS: TestMesh/MeshBasic (3.25s)
        --- FAIL: TestMesh/MeshBasic/GET_on_the_Service (0.10s)
    --- SKIP: TestMesh/GatewayX (0.00s)
    --- FAIL: TestMesh/MeshPorts (30.00s)
PASS
";

    #[test]
    fn reads_the_suites_tests_and_not_those_within_them() {
        let found = parse(TEXT);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["GatewayX", "MeshBasic", "MeshPorts"]);
        assert_eq!(found["MeshBasic"].outcome, Outcome::Passed);
        assert!((found["MeshBasic"].seconds - 3.25).abs() < 1e-9);
        assert_eq!(found["GatewayX"].outcome, Outcome::Skipped);
        assert_eq!(found["MeshPorts"].outcome, Outcome::Failed);
    }

    #[test]
    fn a_failure_is_not_made_good_by_a_later_line() {
        let found = parse("--- FAIL: T/A (0.1s)\n--- PASS: T/A (0.1s)\n");
        assert_eq!(found["A"].outcome, Outcome::Failed);
    }

    #[test]
    fn good_is_only_what_passed_in_the_suites_eyes_and_line_by_line() {
        let found = parse("--- PASS: T/MeshBasic (1.0s)\n--- SKIP: T/MeshPorts (0.0s)\n");
        assert!(Judgement::new(&["MeshBasic"], &found, true).good());
        assert!(!Judgement::new(&["MeshBasic"], &found, false).good(), "the suite failed");
        assert!(!Judgement::new(&["MeshBasic", "MeshPorts"], &found, true).good(), "one was skipped");
        assert!(!Judgement::new(&["MeshBasic", "MeshFrontend"], &found, true).good(), "one did not run");
        assert!(!Judgement::new(&[], &found, true).good(), "nothing was asked for");
        let failed = parse("--- PASS: T/MeshBasic (1.0s)\n--- FAIL: T/Other (0.0s)\n");
        assert!(!Judgement::new(&["MeshBasic"], &failed, true).good(), "another failed");
    }

    #[test]
    fn shows_the_tests_that_were_asked_for_and_failures() {
        let shown = |asked: &[&str]| TEXT.lines().filter(|line| is_progress(line, asked)).map(str::trim).collect::<Vec<_>>();
        let failure = "--- FAIL: TestMesh/MeshPorts (30.00s)";
        assert_eq!(shown(&["MeshBasic"]), ["=== RUN   TestMesh/MeshBasic", "--- PASS: TestMesh/MeshBasic (3.25s)", failure]);
        assert_eq!(shown(&["GatewayX"]), ["--- SKIP: TestMesh/GatewayX (0.00s)", failure]);
    }
}
