//! Gateway API's durations (GEP-2257): a part of Go's, `1h30m`, `500ms`, without fractions and signs.

use std::time::Duration;

/// Numbers with units that a duration may have, and digits of each.
const PARTS: usize = 4;
const DIGITS: usize = 5;

/// Reads one; `0s` is zero, whatever that means where it stands.
pub(in crate::convert) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a duration; write e.g. 10s, 500ms or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    for _ in 0..PARTS {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > DIGITS {
            return Err(wrong());
        }
        let (number, after) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = after.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, after) = after.split_at(unit);
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return Err(wrong()),
        };
        rest = after;
        if rest.is_empty() {
            return Ok(total);
        }
    }
    Err(wrong())
}
