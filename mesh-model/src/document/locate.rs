//! On which line of a document a field stands.
//!
//! The parser tells a position only with an error. So the text is read once more along the path, and an error is raised on arrival.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::problem::{FieldPath, Segment};

/// 0-based line in `text` of the last part of `path` that is there; `None` for the empty path and for a text that is no YAML.
pub(super) fn line(text: &str, path: &FieldPath) -> Option<u32> {
    (1..=path.0.len()).rev().find_map(|length| {
        let part = path.0.get(..length)?;
        let error = Walk(part).deserialize(serde_yaml_ng::Deserializer::from_str(text)).err()?;
        error.to_string().contains(ARRIVED).then_some(())?;
        u32::try_from(error.location()?.line()).ok()?.checked_sub(1)
    })
}

/// 0-based line of the first text that is no comment.
pub(super) fn first_line(text: &str) -> Option<u32> {
    text.lines().zip(0u32..).find(|(line, _)| !matches!(line.trim_start().chars().next(), None | Some('#' | '%'))).map(|(_, n)| n)
}

const ARRIVED: &str = "\u{1}arrived\u{1}";

/// Goes along a path that is not empty.
#[derive(Clone, Copy)]
struct Walk<'a>(&'a [Segment]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Segment::Key(wanted), rest)) = self.0.split_first() else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        while let Some(found) = map.next_key_seed(Key { wanted, last: rest.is_empty() })? {
            if found {
                map.next_value_seed(Walk(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((Segment::Index(wanted), rest)) = self.0.split_first() else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        let mut index = 0;
        loop {
            let more = match (index == *wanted, rest.is_empty()) {
                (true, true) => list.next_element_seed(Arrive)?,
                (true, false) => list.next_element_seed(Walk(rest))?,
                (false, _) => list.next_element::<IgnoredAny>()?.map(drop),
            };
            if more.is_none() {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Compares a key; raises the error on the last one.
struct Key<'a> {
    wanted: &'a str,
    last: bool,
}

impl Key<'_> {
    fn compare<E: Error>(&self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.last => Err(E::custom(ARRIVED)),
            found => Ok(found),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        self.compare(key)
    }

    fn visit_u64<E: Error>(self, key: u64) -> Result<bool, E> {
        self.compare(&key.to_string())
    }

    fn visit_i64<E: Error>(self, key: i64) -> Result<bool, E> {
        self.compare(&key.to_string())
    }

    fn visit_bool<E: Error>(self, key: bool) -> Result<bool, E> {
        self.compare(if key { "true" } else { "false" })
    }
}

/// Raises the error.
struct Arrive;

impl<'de> DeserializeSeed<'de> for Arrive {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Arrive {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ARRIVED)
    }
}
