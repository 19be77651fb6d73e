//! Which paths mean the same to everybody.

/// Whether a path has no `.` or `..` segment, however it is written. What has one means one place to us and another
/// one to an origin that resolves it first: a request for `/app/%2e%2e/admin` would go by the rules of `/app`.
/// Browsers resolve such segments before they ask.
pub(in super::super) fn is_plain(path: &str) -> bool {
    // most paths have none of the bytes that could make one
    let bytes = path.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'.' | b'%' | b'\\')) {
        return true;
    }
    let mut dots = 0;
    let mut others = false;
    let mut rest = bytes;
    while let Some((byte, after)) = next(rest) {
        rest = after;
        match byte {
            b'/' | b'\\' => {
                if !others && (1..=2).contains(&dots) {
                    return false;
                }
                (dots, others) = (0, false);
            }
            b'.' => dots += 1,
            // what follows a semicolon is cut off by some origins: `..;/` is then `../`
            b';' if !others && (1..=2).contains(&dots) => return false,
            _ => others = true,
        }
    }
    others || !(1..=2).contains(&dots)
}

/// The next byte, decoded where it is written as `%2e`, and what is behind it.
fn next(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if *first == b'%'
        && let [high, low, rest @ ..] = rest
        && let (Some(high), Some(low)) = (hex(*high), hex(*low))
    {
        return Some((high << 4 | low, rest));
    }
    Some((*first, rest))
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_that_lead_elsewhere_are_found_however_they_are_written() {
        for bad in [
            "/..",
            "/.",
            "/../",
            "/a/../b",
            "/a/./b",
            "/%2e%2e/b",
            "/%2E./b",
            "/.%2e",
            "/a%2f..%2fb",
            "/a/..%5cb",
            "/..\\b",
            "/..;/b",
            "/.;x/b",
            "..",
        ] {
            assert!(!is_plain(bad), "{bad}");
        }
        for good in [
            "/",
            "/a",
            "/a.b",
            "/.well-known/x",
            "/..a",
            "/...",
            "/a..",
            "/%2e%2e%2e",
            "/a%2Fb",
            "/%",
            "/%zz",
            "/%2",
            "/a;..",
            "/é.",
        ] {
            assert!(is_plain(good), "{good}");
        }
    }
}
