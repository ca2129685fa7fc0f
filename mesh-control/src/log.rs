//! The log, on standard error.

use std::io;
use std::str::FromStr;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Form of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("is neither text nor json".into()),
        }
    }
}

/// Checks a filter: a level, or a list of `target=level`.
///
/// Stricter than the library, which takes an unknown word for the name of a target and silently shows only that.
pub fn check(filter: &str) -> Result<(), String> {
    for directive in filter.split(',').map(str::trim) {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if !["off", "error", "warn", "info", "debug", "trace"].iter().any(|known| level.eq_ignore_ascii_case(known)) {
            return Err(format!("\"{level}\" is no level; write off, error, warn, info, debug or trace, or a list of <target>=<level>"));
        }
    }
    EnvFilter::builder().parse(filter).map(drop).map_err(|error| error.to_string())
}

/// Sets up the log of the process. Once.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter =
        EnvFilter::builder().parse(format!("{},{filter}", mesh_sources::kube::LOG_DIRECTIVES)).map_err(|error| error.to_string())?;
    let registry = tracing_subscriber::registry().with(filter);
    let text = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let done = match format {
        LogFormat::Text => registry.with(text.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))).try_init(),
        LogFormat::Json => registry.with(text.json().flatten_event(true)).try_init(),
    };
    done.map_err(|error| error.to_string())
}
