//! Lines of an exported audit log, as somebody on another host is given them.
use enforcer::store::chain::{AuditLine, Head, Start, Verifier};

pub fn body(input: &[u8]) {
    let mut verifier = Verifier::new(Start::Part, super::text(input).parse::<Head>().ok());
    let mut last: Option<AuditLine> = None;
    for bytes in input.split(|byte| *byte == b'\n') {
        let Ok(line) = serde_json::from_slice::<AuditLine>(bytes) else { continue };
        let again: AuditLine = serde_json::from_slice(&serde_json::to_vec(&line).unwrap()).unwrap();
        assert_eq!(again, line);
        let findings = verifier.take(&line);
        let follows =
            last.is_none_or(|last| line.line.checked_sub(1) == Some(last.line) && line.before == last.chain);
        if findings.is_empty() && follows && line.chain.is_some() {
            assert_eq!(line.chain, Some(line.link()));
            let other = AuditLine { at: line.at ^ 1, ..line.clone() };
            assert_ne!(other.chain, Some(other.link()));
        }
        last = Some(line);
    }
    verifier.end(None, 0);
}
