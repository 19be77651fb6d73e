#![no_main]

#[path = "../bodies/mod.rs"]
#[allow(dead_code, reason = "the others' bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|input: &[u8]| bodies::audit::body(input));
