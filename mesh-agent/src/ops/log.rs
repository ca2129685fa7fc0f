//! The diagnostic log: text or JSON on standard error, with a filter that can be changed while running.

use std::io;
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// Form of the diagnostic log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = LogError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(LogError::Format(s.chars().take(64).collect())),
        }
    }
}

/// Why the log can't be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a format.
    #[error("log format \"{0}\" is not one of: text, json")]
    Format(String),
    /// Not a filter.
    #[error("log level \"{given}\" is not one of: {LEVELS}, nor a list of <target>=<level>: {why}")]
    Filter {
        /// What was given.
        given: String,
        /// What the parser says.
        why: String,
    },
    /// There is a subscriber already.
    #[error("the log is set up already")]
    AlreadySet,
    /// The subscriber is gone.
    #[error("the log can't be changed any more: {0}")]
    Gone(String),
}

/// The levels that are valid.
pub const LEVELS: &str = "off, error, warn, info, debug, trace";

type Apply = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

/// Changes the filter of the running log. Clones change the same.
#[derive(Clone)]
pub struct LogControl {
    apply: Arc<Apply>,
    current: Arc<Mutex<String>>,
}

impl LogControl {
    /// From what applies a filter; [`init`] makes the one for the process.
    pub fn new(current: impl Into<String>, apply: impl Fn(EnvFilter) -> Result<(), String> + Send + Sync + 'static) -> LogControl {
        LogControl { apply: Arc::new(apply), current: Arc::new(Mutex::new(current.into())) }
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.current.lock().clone()
    }

    /// Puts another filter in force: a level, or a list of `target=level`.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse(filter)?;
        let mut current = self.current.lock();
        (self.apply)(parsed).map_err(LogError::Gone)?;
        *current = filter.to_owned();
        Ok(())
    }
}

/// Stricter than the library, which takes an unknown word for the name of a target and silently shows only that.
fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let refuse = |why: String| LogError::Filter { given: filter.chars().take(200).collect(), why };
    if filter.len() > 2000 {
        return Err(refuse("it is longer than 2000 bytes".into()));
    }
    // The library takes blanks for part of a name.
    let directives: Vec<&str> = filter.split(',').map(str::trim).collect();
    let is_level =
        |word: &str| word.eq_ignore_ascii_case("off") || word.parse::<tracing::Level>().is_ok_and(|_| word.parse::<u8>().is_err());
    for directive in directives.iter().copied() {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if !is_level(level) {
            return Err(refuse(format!("\"{}\" is no level", level.chars().take(64).collect::<String>())));
        }
    }
    let all = format!("{},{}", mesh_sources::kube::LOG_DIRECTIVES, directives.join(","));
    EnvFilter::builder().parse(all).map_err(|error| refuse(error.to_string()))
}

/// Sets up the log of the process, on standard error. Once.
pub fn init(format: LogFormat, filter: &str) -> Result<LogControl, LogError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(layer);
    let text = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let done = match format {
        LogFormat::Text => registry.with(text.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))).try_init(),
        LogFormat::Json => registry.with(text.json().flatten_event(true)).try_init(),
    };
    done.map_err(|_| LogError::AlreadySet)?;
    Ok(LogControl::new(filter, move |filter| handle.reload(filter).map_err(|error| error.to_string())))
}

#[cfg(test)]
mod tests;
