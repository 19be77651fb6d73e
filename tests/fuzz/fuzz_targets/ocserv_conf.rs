//! ocserv's configuration, as far as we read it: which scripts it names.
#![no_main]

use enforcer::ocserv::untrusted;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let scripts = untrusted::configuration(text);
    for script in [scripts.connect, scripts.disconnect].into_iter().flatten() {
        assert!(!script.as_os_str().is_empty());
    }
});
