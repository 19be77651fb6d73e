//! Exit codes: the same for every command, and documented in `--help` and the README.

use std::process::ExitCode;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Done in every layer.
    Done,
    Error,
    Usage,
    /// Nothing matched.
    Nothing,
    /// Done in part: the receipt says where not.
    Partial,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(match code {
            Code::Done => 0,
            Code::Error => 1,
            Code::Usage => 2,
            Code::Nothing => 3,
            Code::Partial => 4,
        })
    }
}
