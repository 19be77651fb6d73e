//! Up to where everything of etcd's is in force here, as a row of `meta` has it.

use super::row::{BadRow, integer, odd};
use crate::session::KnownEtcd;

/// The cluster's id as 16 hexadecimal digits (it takes all 64 bits, which no column does), a blank, the revision.
///
/// Refuses a revision above 2^63 - 1: etcd has none.
pub(super) fn known_text(known: &KnownEtcd) -> Result<String, BadRow> {
    integer("revision", known.revision)?;
    Ok(format!("{:016x} {}", known.cluster, known.revision))
}

pub(super) fn known_of(text: &str) -> Result<KnownEtcd, BadRow> {
    let read = || {
        let (cluster, revision) = text.split_once(' ')?;
        Some(KnownEtcd { cluster: u64::from_str_radix(cluster, 16).ok()?, revision: revision.parse().ok()? })
    };
    // exactly as it is written
    let known = read().filter(|known| known_text(known).is_ok_and(|written| written == text));
    known.ok_or_else(|| odd("value", text, "an etcd's id of 16 hexadecimal digits, and a revision"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_an_etcd_is_read_as_it_was_written_and_in_no_other_way() {
        for (cluster, revision, text) in [
            (0, 0, "0000000000000000 0"),
            (u64::MAX, 4_711, "ffffffffffffffff 4711"),
            (1, i64::MAX as u64, "0000000000000001 9223372036854775807"),
        ] {
            let known = KnownEtcd { cluster, revision };
            assert_eq!(known_text(&known).unwrap(), text);
            assert_eq!(known_of(text).unwrap(), known);
        }
        let huge = KnownEtcd { cluster: 1, revision: 1 << 63 };
        assert!(matches!(known_text(&huge), Err(BadRow::TooLarge { column: "revision", .. })));
        for bad in [
            "",
            "0000000000000001",
            "0000000000000001 ",
            "1 5",
            "000000000000000A 5",
            "+000000000000001 5",
            "0000000000000001 05",
            "0000000000000001 +5",
            "0000000000000001  5",
            "0000000000000001 5 ",
            "0000000000000001 9223372036854775808",
        ] {
            assert!(known_of(bad).is_err(), "{bad:?}");
        }
    }
}
