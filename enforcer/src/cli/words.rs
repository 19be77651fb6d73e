//! Small words of the command line: durations.

use std::time::Duration;

use crate::control::target::MAX_WAIT_MS;

/// A duration as systemd writes them (systemd.time(7)): `90s`, `15min`, `2h`, `1d`, `1h 30min`; a bare number is
/// seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad =
        || format!("{text:?} is not a duration: write 90s, 15min, 2h, 1d, or several together (1h30min)");
    let mut rest = text.trim();
    let mut seconds: u64 = 0;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "" | "s" | "sec" | "second" | "seconds" => 1,
            "m" | "min" | "minute" | "minutes" => 60,
            "h" | "hr" | "hour" | "hours" => 3_600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => return Err(bad()),
        };
        rest = rest[letters..].trim_start();
        seconds = number.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or_else(bad)?;
    }
    // beyond this the kernel's clock in nanoseconds would overflow
    if seconds == 0 || seconds > 100 * 365 * 86_400 {
        return Err(format!("{text:?}: a revocation stands for at least 1s and at most 100 years"));
    }
    Ok(Duration::from_secs(seconds))
}

/// How long to wait: a duration as above, or milliseconds (`500ms`); 1ms to 10min.
pub fn parse_wait(text: &str) -> Result<Duration, String> {
    let bad = || {
        format!("{text:?} is no time to wait: write 500ms, 10s or 2min, at most 10min (1ms is not to wait)")
    };
    let wait = match text.trim().strip_suffix("ms") {
        Some(number) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            Duration::from_millis(number.parse().map_err(|_| bad())?)
        }
        Some(_) => return Err(bad()),
        None => parse_duration(text).map_err(|_| bad())?,
    };
    if wait.is_zero() || wait > Duration::from_millis(MAX_WAIT_MS) {
        return Err(bad());
    }
    Ok(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_systemd_writes_them() {
        let seconds = |text| parse_duration(text).unwrap().as_secs();
        assert_eq!(seconds("90s"), 90);
        assert_eq!(seconds("15min"), 900);
        assert_eq!(seconds("2h"), 7_200);
        assert_eq!(seconds("1h 30min"), 5_400);
        assert_eq!(seconds("1d2h"), 93_600);
        assert_eq!(seconds("45"), 45);
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "0s", "h", "-1s", "1x", "99999999999999999999", "1.5h", "18446744073709551615w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wait_may_be_short_and_is_never_long() {
        let ms = |text| parse_wait(text).unwrap().as_millis();
        assert_eq!((ms("1ms"), ms("500ms"), ms("4"), ms("10min")), (1, 500, 4_000, 600_000));
        for text in
            ["", "0s", "0ms", "ms", "-1ms", "+1ms", "1.5s", "601s", "600001ms", "99999999999999999999ms"]
        {
            assert!(parse_wait(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = parse_duration(&text);
            let _ = parse_wait(&text);
        }
    }
}
