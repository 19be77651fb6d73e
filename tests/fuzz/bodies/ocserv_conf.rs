//! ocserv's configuration, as far as we read it: which scripts it names.
use enforcer::ocserv::untrusted;

pub fn body(text: &[u8]) {
    let scripts = untrusted::configuration(text);
    for script in [scripts.connect, scripts.disconnect].into_iter().flatten() {
        assert!(!script.as_os_str().is_empty());
    }
}
