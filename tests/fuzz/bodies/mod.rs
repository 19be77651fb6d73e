//! What each fuzz target does with its bytes, apart from libFuzzer: so that an ordinary test on a stable compiler can do
//! the same with the seeds and with changed copies of them (`tests/tests/fuzz_seeds.rs`).

pub mod audit;
pub mod cluster;
pub mod config;
pub mod conntrack;
pub mod control;
pub mod cookies;
pub mod occtl;
pub mod ocserv_conf;
pub mod orders;
pub mod packet;
pub mod record;
pub mod words;

/// As much of the input as is text.
fn text(input: &[u8]) -> &str {
    let valid = match std::str::from_utf8(input) {
        Ok(_) => input.len(),
        Err(error) => error.valid_up_to(),
    };
    std::str::from_utf8(&input[..valid]).unwrap_or_default()
}
