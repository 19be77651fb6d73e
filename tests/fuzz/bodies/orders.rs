//! Command lines, and the orders of `revoke --from`, which are in the same words. It only reads them.
//!
//! Slower than the others by far: the parser is built anew for each input.
use clap::Parser as _;
use enforcer::cli::{Cli, Command, Revoke};

pub fn body(input: &[u8]) {
    let text = super::text(input);
    let words = text.split_whitespace().take(16);
    let Ok(cli) = Cli::try_parse_from(std::iter::once("enforcer").chain(words)) else { return };
    if let Command::Revoke { what: Some(Revoke::Address { stands, .. }), .. } = cli.command {
        assert!(stands.stands.is_none_or(|stands| stands.as_secs() > 0));
    }
}
