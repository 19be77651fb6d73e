//! Dates of cookies, read as browsers read them (RFC 6265 5.1.1): anything that has a time, a day, a month and a year.

use std::ops::RangeInclusive;

/// Seconds since 1970, below 0 before it. None where a browser would not take it for a date.
pub fn parse(text: &[u8]) -> Option<i64> {
    let (mut time, mut day, mut month, mut year) = (None, None, None, None);
    for token in text.split(|&byte| is_delimiter(byte)).filter(|token| !token.is_empty()) {
        // each token is the first of these that it can be, and that was not there yet
        if time.is_none()
            && let Some(found) = read_time(token)
        {
            time = Some(found);
        } else if day.is_none()
            && let Some((found, _)) = number(token, 1..=2)
        {
            day = Some(found);
        } else if month.is_none()
            && let Some(found) = read_month(token)
        {
            month = Some(found);
        } else if year.is_none()
            && let Some((found, _)) = number(token, 2..=4)
        {
            year = Some(found);
        }
    }
    let ((hour, minute, second), day, month) = (time?, day?, month?);
    let year = match year? {
        year @ 70..=99 => year + 1900,
        year @ 0..=69 => year + 2000,
        year => year,
    };
    if year < 1601 || hour > 23 || minute > 59 || second > 59 || day < 1 || day > days_of(month, year) {
        return None;
    }
    Some(days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn is_delimiter(byte: u8) -> bool {
    matches!(byte, 0x09 | 0x20..=0x2f | 0x3b..=0x40 | 0x5b..=0x60 | 0x7b..=0x7e)
}

/// So many digits at the start, and no digit after them: the number, and what comes after.
fn number(token: &[u8], digits: RangeInclusive<usize>) -> Option<(i64, &[u8])> {
    let length = token.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !digits.contains(&length) {
        return None;
    }
    let (number, rest) = token.split_at_checked(length)?;
    Some((number.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')), rest))
}

fn read_time(token: &[u8]) -> Option<(i64, i64, i64)> {
    let (hour, rest) = number(token, 1..=2)?;
    let (minute, rest) = number(rest.strip_prefix(b":")?, 1..=2)?;
    let (second, _) = number(rest.strip_prefix(b":")?, 1..=2)?;
    Some((hour, minute, second))
}

/// 1 to 12.
fn read_month(token: &[u8]) -> Option<i64> {
    const MONTHS: &[u8] = b"janfebmaraprmayjunjulaugsepoctnovdec";
    let name = token.get(..3)?.to_ascii_lowercase();
    let at = MONTHS.chunks(3).position(|month| month == name)?;
    i64::try_from(at + 1).ok()
}

fn days_of(month: i64, year: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// By the calendar of today, in years that begin in March, so that a leap day is the last of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719_468 days from the first of March of the year 0 to 1970
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_as_servers_write_them() {
        let known = 784_111_777;
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "06 nov 1994 8:49:37",
            "1994 Nov 06 08:49:37",
            "08:49:37x 6th November 1994!",
            "Sun,,06/NOV/1994;;08:49:37",
        ] {
            assert_eq!(parse(text.as_bytes()), Some(known), "{text}");
        }
        assert_eq!(parse(b"Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(parse(b"Thu, 01-Jan-1970 00:00:01 GMT"), Some(1));
        assert_eq!(parse(b"Fri, 31 Dec 9999 23:59:59 GMT"), Some(253_402_300_799));
        assert_eq!(parse(b"Mon, 01 Jan 1601 00:00:00 GMT"), Some(-11_644_473_600));
        assert_eq!(parse(b"Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
    }

    #[test]
    fn what_is_no_date() {
        for text in [
            "",
            "0",
            "-1",
            "session",
            "Thu, 29 Feb 2023 12:00:00 GMT",
            "31 Apr 2024 00:00:00",
            "32 Jan 2024 00:00:00",
            "0 Jan 2024 00:00:00",
            "01 Jan 1600 00:00:00",
            "01 Jan 2024 24:00:00",
            "01 Jan 2024 00:60:00",
            "01 Jan 2024 00:00:60",
            "01 Jan 2024 00:00",
            "01 Foo 2024 00:00:00",
            "01 Jan 12345 00:00:00",
            "001 Jan 2024 00:00:00",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    /// Two digits of a year are of 1970 to 2069.
    #[test]
    fn short_years() {
        assert_eq!(parse(b"01 Jan 70 00:00:00"), Some(0));
        assert_eq!(parse(b"01 Jan 69 00:00:00"), Some(3_124_224_000));
    }

    #[test]
    fn every_day_follows_the_one_before_it() {
        let mut last = days_since_1970(1970, 1, 1) - 1;
        assert_eq!(last, -1);
        for year in 1970..2110 {
            for month in 1..=12 {
                for day in 1..=days_of(month, year) {
                    let this = days_since_1970(year, month, day);
                    assert_eq!(this, last + 1, "{year}-{month}-{day}");
                    last = this;
                }
            }
        }
    }
}
