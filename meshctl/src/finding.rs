//! What `meshctl check` finds: how bad, about what, what is wrong, and what mends it.

use serde::Serialize;

use crate::output::{Cell, Colour, Table};

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work, or will not.
    Error,
    /// It works, but not as somebody wanted, or not for long.
    Warning,
    /// Nothing is wrong; there could be more.
    Info,
}

/// A finding.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: kind and name.
    pub object: String,
    /// What is wrong.
    pub message: String,
    /// What mends it.
    pub mend: String,
}

impl Finding {
    /// Something that does not work.
    pub fn error(object: impl Into<String>, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding { severity: Severity::Error, object: object.into(), message: message.into(), mend: mend.into() }
    }

    /// Something that works, but.
    pub fn warning(object: impl Into<String>, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding { severity: Severity::Warning, ..Finding::error(object, message, mend) }
    }

    /// Something that could be had.
    pub fn info(object: impl Into<String>, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding { severity: Severity::Info, ..Finding::error(object, message, mend) }
    }
}

/// The worst first, each once.
pub fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort();
    findings.dedup();
    findings
}

/// Whether one of them is an error.
pub fn fatal(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

/// For a person.
pub fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(["SEVERITY", "OBJECT", "WHAT", "MEND"]);
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => Cell::coloured("error", Colour::Red),
            Severity::Warning => Cell::coloured("warning", Colour::Yellow),
            Severity::Info => "info".into(),
        };
        table.row([severity, finding.object.as_str().into(), finding.message.as_str().into(), finding.mend.as_str().into()]);
    }
    table
}
