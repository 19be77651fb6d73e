//! STUB
use crate::session::*;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
pub struct Settings {
    pub directory: PathBuf,
    pub audit_days: u32,
    pub audit_rows: u32,
}
pub struct Loaded {
    pub gateway: String,
    pub boot_id: Option<String>,
    pub wall: u64,
    pub next_number: u64,
    pub records: Vec<Record>,
    pub lifted: Vec<u64>,
    pub sessions: Vec<SessionRecord>,
    pub unwritable: Option<String>,
    pub fresh: bool,
}
pub struct Outcome {
    pub tickets: RangeInclusive<u64>,
    pub result: Result<(), String>,
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct OpenError;
impl OpenError {
    pub fn is_repairable(&self) -> bool {
        false
    }
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Full;
pub struct Store;
pub struct Writer;
pub struct Salvaged {
    pub records: Vec<Record>,
    pub lost: usize,
}
pub fn open(_: &Settings) -> Result<(Store, Loaded), OpenError> {
    Err(OpenError)
}
pub fn check(_: &Settings) -> Result<Option<usize>, OpenError> {
    Err(OpenError)
}
pub fn put_aside(_: &Path) -> Result<PathBuf, OpenError> {
    Err(OpenError)
}
pub fn salvage(_: &Path) -> Salvaged {
    Salvaged { records: vec![], lost: 0 }
}
impl Store {
    pub fn start(self, _: impl Fn(Outcome) + Send + 'static) -> Writer {
        Writer
    }
}
impl Writer {
    pub fn write(&self, _: u64, _: Write) -> Result<(), Full> {
        Ok(())
    }
    pub fn stop(self) {}
}
