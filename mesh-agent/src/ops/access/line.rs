//! A line's fields, in one list for both forms.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::super::metrics::labels::PeerInfo;
use super::{AccessFormat, AccessLine};

/// Longest value that is written; the rest of a longer one (a peer's words) is cut.
const MAX_VALUE: usize = 512;

const RFC3339_MILLIS: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// RFC 3339 in UTC with milliseconds.
pub(in crate::ops) fn timestamp(time: SystemTime) -> String {
    // The formatter fails only for years beyond four digits.
    OffsetDateTime::from(time).format(RFC3339_MILLIS).unwrap_or_default()
}

enum Value<'a> {
    Text(Cow<'a, str>),
    Number(u64),
}

type Field<'a> = (&'static str, Value<'a>);

fn fields<'a>(line: &AccessLine<'a>) -> Vec<Field<'a>> {
    let connection = line.connection;
    let labels = &connection.labels;
    let meaning = line.outcome.meaning();
    let (from_client, to_client) = line.bytes;
    let mut out = Vec::with_capacity(24);
    let mut put = |name, value: Option<Cow<'a, str>>| {
        if let Some(value) = value {
            out.push((name, Value::Text(value)));
        }
    };
    fn shown<'a>(value: Option<impl ToString>) -> Option<Cow<'a, str>> {
        value.map(|value| Cow::Owned(value.to_string()))
    }
    let workload = |peer: &PeerInfo| peer.workload.as_ref().map(|workload| format!("{}/{}", workload.namespace, workload.name));
    put("time", Some(timestamp(line.time).into()));
    put("direction", Some(connection.direction.as_str().into()));
    put("client", shown(Some(connection.client)));
    put("server", shown(connection.server));
    put("dialled", shown(connection.dialled.filter(|dialled| Some(*dialled) != connection.server)));
    put("source_workload", shown(workload(&labels.source)));
    put("source_identity", shown(labels.source.identity.as_ref()));
    put("destination_workload", shown(workload(&labels.destination)));
    put("destination_identity", shown(labels.destination.identity.as_ref()));
    put("service", shown(labels.service.as_ref().map(|service| &service.host).filter(|host| !host.is_empty())));
    out.push(("bytes_received", Value::Number(from_client)));
    out.push(("bytes_sent", Value::Number(to_client)));
    out.push(("duration_ms", Value::Number(u64::try_from(line.duration.as_millis()).unwrap_or(u64::MAX))));
    let mut put = |name, value: Option<Cow<'a, str>>| {
        if let Some(value) = value {
            out.push((name, Value::Text(value)));
        }
    };
    if let Some(request) = line.request {
        put("method", Some(Cow::Borrowed(&request.method)));
        put("path", Some(Cow::Borrowed(&request.path)));
        put("authority", Some(Cow::Borrowed(&request.authority)));
        put("protocol", Some(request.protocol.as_str().into()));
        put("status", shown(Some(request.status)));
        put("grpc_status", shown(request.grpc_status));
        put("route", request.route.as_deref().map(Cow::Borrowed));
        put("attempts", shown(Some(request.attempts)));
    }
    put("security", Some(labels.security.as_str().into()));
    put("upstream_tls", connection.upstream_tls.as_deref().map(Cow::Borrowed));
    put("outcome", Some(meaning.name.into()));
    put("flags", Some(meaning.flag.as_str().into()));
    put("reason", Some(line.outcome.to_string().into()));
    put("policy", shown(line.outcome.policy()));
    put("rate_limit", shown(line.outcome.rate_limit()));
    put("dry_run", shown(line.dry_run));
    put("trace_id", connection.trace_id.as_deref().map(Cow::Borrowed));
    out
}

pub(super) fn write(format: AccessFormat, line: &AccessLine<'_>) -> String {
    join(format, &fields(line))
}

/// The line that says how many were left out.
pub(super) fn suppressed(format: AccessFormat, time: SystemTime, denials: bool, count: u64) -> String {
    let class = if denials { "denials" } else { "others" };
    join(format, &[("time", Value::Text(timestamp(time).into())), ("suppressed", Value::Number(count)), ("of", Value::Text(class.into()))])
}

fn join(format: AccessFormat, fields: &[Field<'_>]) -> String {
    let mut out = String::with_capacity(640);
    for (index, (name, value)) in fields.iter().enumerate() {
        match format {
            AccessFormat::Json => {
                out.push_str(if index == 0 { "{\"" } else { ",\"" });
                out.push_str(name);
                out.push_str("\":");
            }
            // The time stands first and alone.
            AccessFormat::Text if index == 0 => {}
            AccessFormat::Text => {
                out.push(' ');
                out.push_str(name);
                out.push('=');
            }
        }
        match (value, format) {
            (Value::Number(number), _) => {
                let _ = write!(out, "{number}");
            }
            (Value::Text(text), AccessFormat::Json) => quote(&mut out, text),
            (Value::Text(text), AccessFormat::Text) if is_bare(text) => out.push_str(text),
            (Value::Text(text), AccessFormat::Text) => quote(&mut out, text),
        }
    }
    out.push_str(if format == AccessFormat::Json { "}\n" } else { "\n" });
    out
}

/// Whether a value can stand in a text line without quotes.
fn is_bare(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_VALUE && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'='))
}

/// A JSON string (RFC 8259, 7), with all control and line-breaking characters escaped, so that no peer can write a line of its own or
/// speak to a terminal.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for (index, c) in text.chars().enumerate() {
        if index == MAX_VALUE {
            out.push('…');
            break;
        }
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Line separators, and the marks that turn the direction of writing.
            c if c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
