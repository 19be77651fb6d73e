//! Keys and values of etcd: the first line is a key, the rest its value.
use enforcer::cluster::{Prefix, record};

pub fn body(input: &[u8]) {
    let prefix = Prefix::new("/enforcer/v1/").unwrap();
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    let (key, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(read) = prefix.read(key) else { return };
    // one spelling, so no two keys are one record
    assert_eq!(prefix.write(&read).unwrap(), key);
    match record::read(&read, value) {
        Ok((meaning, odd)) => {
            assert!(value.len() <= record::MAX_VALUE);
            assert!(odd.is_none_or(|odd| odd.len() < 512 && !odd.chars().any(char::is_control)));
            // what is taken would be taken as it is written, and nothing of it is odd
            let written = record::write(&read, &meaning).unwrap();
            assert_eq!(record::read(&read, &written), Ok((meaning, None)));
        }
        Err(why) => {
            let why = why.to_string();
            assert!(!why.is_empty() && why.len() < 512 && !why.chars().any(char::is_control));
        }
    }
}
