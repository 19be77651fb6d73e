//! Durations in the settings.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// The longest one: a timer of a year fits every clock.
const MOST: u64 = 365 * 86_400_000;

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).map_err(de::Error::custom)
}

/// A number and its unit: `500ms`, `90s`, `15min`, `2h`, `1d`.
fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration: write 500ms, 90s, 15min, 2h or 1d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit = match text[digits..].trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    match number.checked_mul(unit) {
        Some(time @ 1..=MOST) => Ok(Duration::from_millis(time)),
        _ => Err(format!("{text:?} is not between 1ms and a year")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_or_refused() {
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("15min"), Ok(Duration::from_secs(900)));
        for bad in ["", "s", "5", "0s", "-1s", "5 weeks", "99999999999d", "1é"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
