//! Mappings read field by field, so that a mistake in one takes no other with it. For kinds whose JSON is protobuf's: a number may be
//! written as text, null and the empty value say nothing.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::{Input, UNKNOWN_FIELD, created, typed};
use crate::problem::{FieldPath, Finding};

/// A mapping of which each field is taken once; what is left over at the end is not known.
pub(super) struct Fields<'v> {
    pub(super) at: FieldPath,
    left: BTreeMap<&'v str, &'v Value>,
}

impl<'v> Fields<'v> {
    /// `None`, with an error, if it is no mapping.
    pub(super) fn of(input: &mut Input<'_>, at: FieldPath, value: &'v Value) -> Option<Self> {
        match value {
            Value::Object(fields) => Some(Fields { at, left: fields.iter().map(|(key, value)| (key.as_str(), value)).collect() }),
            _ => {
                input.error(at, "is not a mapping; write its fields below it");
                None
            }
        }
    }

    /// The value of a field, unless it says nothing.
    pub(super) fn take(&mut self, key: &str) -> Option<(FieldPath, &'v Value)> {
        self.left.remove(key).filter(|value| !value.is_null()).map(|value| (self.at.key(key), value))
    }

    /// Whether a field that has not been taken says something.
    pub(super) fn has(&self, key: &str) -> bool {
        self.left.get(key).is_some_and(|value| !value.is_null())
    }

    pub(super) fn map(&mut self, input: &mut Input<'_>, key: &str) -> Option<Fields<'v>> {
        let (at, value) = self.take(key)?;
        Fields::of(input, at, value)
    }

    pub(super) fn list(&mut self, input: &mut Input<'_>, key: &str) -> Vec<(FieldPath, &'v Value)> {
        match self.take(key) {
            None => Vec::new(),
            Some((at, Value::Array(list))) => list.iter().enumerate().map(|(i, value)| (at.index(i), value)).collect(),
            Some((at, _)) => {
                input.error(at, "is not a list; write its items below it, each with a dash");
                Vec::new()
            }
        }
    }

    /// The items of a list that are mappings; the others are errors.
    pub(super) fn maps(&mut self, input: &mut Input<'_>, key: &str) -> Vec<Fields<'v>> {
        self.list(input, key).into_iter().filter_map(|(at, value)| Fields::of(input, at, value)).collect()
    }

    /// `None` if it is empty, too.
    pub(super) fn text(&mut self, input: &mut Input<'_>, key: &str) -> Option<&'v str> {
        let (at, value) = self.take(key)?;
        text(input, at, value).filter(|text| !text.is_empty())
    }

    pub(super) fn texts(&mut self, input: &mut Input<'_>, key: &str) -> Vec<(FieldPath, &'v str)> {
        let list = self.list(input, key);
        list.into_iter().filter_map(|(at, value)| text(input, at.clone(), value).map(|text| (at, text))).collect()
    }

    /// A mapping of texts, such as labels. `None`, with an error, if it is none.
    pub(super) fn labels(&mut self, input: &mut Input<'_>, key: &str) -> Option<BTreeMap<String, String>> {
        let Some(map) = self.take(key) else { return Some(BTreeMap::new()) };
        let map = Fields::of(input, map.0, map.1)?;
        let mut labels = BTreeMap::new();
        let count = map.left.len();
        for (key, value) in map.left {
            if let Some(text) = text(input, map.at.key(key), value) {
                labels.insert(key.to_owned(), text.to_owned());
            }
        }
        (labels.len() == count).then_some(labels)
    }

    pub(super) fn boolean(&mut self, input: &mut Input<'_>, key: &str) -> Option<bool> {
        match self.take(key)? {
            (_, Value::Bool(value)) => Some(*value),
            (at, other) => {
                input.error(at, format!("{other} is neither true nor false; write one of them without quotes"));
                None
            }
        }
    }

    /// A whole number of a range.
    pub(super) fn number<T: TryFrom<u64>>(&mut self, input: &mut Input<'_>, key: &str, range: RangeInclusive<u64>) -> Option<T> {
        let (at, value) = self.take(key)?;
        let read = match value {
            Value::Number(number) => number.as_u64().or_else(|| whole(number.as_f64()?)),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let read = read.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        if read.is_none() {
            input.error(at, format!("{value} is not a whole number from {} to {}", range.start(), range.end()));
        }
        read
    }

    /// As [`Fields::number`], 0 saying nothing.
    pub(super) fn bound(&mut self, input: &mut Input<'_>, key: &str) -> Option<u32> {
        self.number(input, key, 0..=i32::MAX as u64).filter(|bound| *bound > 0)
    }

    pub(super) fn decimal(&mut self, input: &mut Input<'_>, key: &str, range: RangeInclusive<f64>) -> Option<f64> {
        let (at, value) = self.take(key)?;
        let read = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let read = read.filter(|number| range.contains(number));
        if read.is_none() {
            input.error(at, format!("{value} is not a number from {} to {}", range.start(), range.end()));
        }
        read
    }

    pub(super) fn duration(&mut self, input: &mut Input<'_>, key: &str) -> Option<Duration> {
        let (at, value) = self.take(key)?;
        let read = match value {
            Value::String(text) => duration(text),
            other => Err(not_a_duration(&other.to_string())),
        };
        read.map_err(|message| input.error(at, message)).ok()
    }

    /// As [`Fields::duration`], 0 being an error.
    pub(super) fn positive(&mut self, input: &mut Input<'_>, key: &str) -> Option<Duration> {
        let read = self.duration(input, key)?;
        if read.is_zero() {
            input.error(self.at.key(key), "is no time at all; write a duration of at least 1ms, or leave it out");
            return None;
        }
        Some(read)
    }

    /// Says of a field that it is not done, if it is there.
    pub(super) fn unsupported(&mut self, input: &mut Input<'_>, key: &str, message: &str) {
        if let Some((at, _)) = self.take(key) {
            input.warn(at, message);
        }
    }

    /// Says of what has not been taken that it is not known.
    pub(super) fn rest(self, input: &mut Input<'_>) {
        for key in self.left.into_keys() {
            input.warn(self.at.key(key), UNKNOWN_FIELD);
        }
    }
}

fn text<'v>(input: &mut Input<'_>, at: FieldPath, value: &'v Value) -> Option<&'v str> {
    let text = value.as_str();
    if text.is_none() {
        input.error(at, format!("{value} is not a text; write it in quotes"));
    }
    text
}

fn whole(number: f64) -> Option<u64> {
    // Numbers up to 2^53 are exact.
    (number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number)).then_some(number as u64)
}

/// The object's `spec` and when it was made. `None`, with an error, if there is no `spec`.
pub(super) fn spec<'v>(input: &mut Input<'v>) -> Option<(Fields<'v>, Option<i64>)> {
    let mut object = Fields::of(input, FieldPath::default(), input.object)?;
    let mut age = None;
    if let Some((at, metadata)) = object.take("metadata") {
        match typed::<ObjectMeta>(metadata) {
            Ok((metadata, unknown)) => {
                age = created(&metadata);
                for field in unknown {
                    input.warn(field.below(&at), UNKNOWN_FIELD);
                }
            }
            Err(finding) => input.findings.push(Finding { field: finding.field.below(&at), ..finding }),
        }
    }
    for known in ["apiVersion", "kind", "status"] {
        object.take(known);
    }
    let spec = match object.take("spec") {
        Some((at, spec)) => Fields::of(input, at, spec),
        None => {
            input.error(FieldPath::of("spec"), "is missing");
            None
        }
    };
    object.rest(input);
    Some((spec?, age))
}

/// Longest that protobuf's Duration knows, in seconds: 10 000 years.
const LONGEST: u128 = 315_576_000_000;

/// A duration as protobuf (`1.5s`) or Go (`1m30s`, `100ms`) writes it.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| not_a_duration(&format!("\"{text}\"")))
}

fn not_a_duration(text: &str) -> String {
    format!("{text} is not a duration; write a number with its unit, such as 5s, 0.5s, 100ms or 1m30s")
}

fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut nanoseconds: u128 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (whole, after) = rest.split_at(digits(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        // The longer names first, as `m` begins `ms` too.
        let units: [(&str, u128); 8] = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        let (unit, after) = units.iter().find_map(|(name, unit)| Some((*unit, after.strip_prefix(name)?)))?;
        if whole.len() + fraction.len() == 0 || whole.len() > 15 {
            return None;
        }
        let value = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
        // What is finer than a nanosecond of an hour is of no matter.
        let fraction = fraction.get(..fraction.len().min(15))?;
        let parts = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        nanoseconds = nanoseconds.checked_add(value(whole)?.checked_mul(unit)?)?.checked_add(value(fraction)? * unit / parts)?;
        rest = after;
    }
    if text.is_empty() || nanoseconds > LONGEST * 1_000_000_000 {
        return None;
    }
    Some(Duration::new(u64::try_from(nanoseconds / 1_000_000_000).ok()?, u32::try_from(nanoseconds % 1_000_000_000).ok()?))
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}
