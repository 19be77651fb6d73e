//! The measurements: programs whose rows become one list.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::steps::{cargo, target};

/// From the command to the last packet; measured by a program of `tests`.
const ENDS: &str = "ends";
/// The web gateway beside nginx; measured by a program of `tests`.
const WEB: &str = "web";
/// Several gateways; measured by a program of `tests`.
const CLUSTER: &str = "cluster";
/// The groups of `enforcer/benches/dataplane`.
const DATAPLANE: [&str; 4] = ["honest", "drops", "tables", "stops"];

/// Builds, optimized, and measures. `only`: empty for everything.
///
/// # Errors
/// An unknown name, and whatever cannot be built or measured.
pub fn bench(only: &[String], rounds: Option<u32>, json: Option<&Path>) -> Result<()> {
    let is_known = |name: &str| [ENDS, WEB, CLUSTER].contains(&name) || DATAPLANE.contains(&name);
    if let Some(unknown) = only.iter().find(|name| !is_known(name)) {
        bail!("{unknown} is not measured: there are {ENDS}, {WEB}, {CLUSTER}, {}", DATAPLANE.join(", "));
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|one| one == name);
    let mut parts = Vec::new();
    let mut options = |name: &str| {
        let part = target().join(format!("bench-{name}.json"));
        let mut options = vec!["--json".to_owned(), part.display().to_string()];
        parts.push(part);
        if let Some(rounds) = rounds {
            options.extend(["--rounds".to_owned(), rounds.to_string()]);
        }
        options
    };
    for (name, program) in [(ENDS, "bench"), (WEB, "bench_web"), (CLUSTER, "bench_cluster")] {
        if wanted(name) {
            let build = ["build", "--release", "-p", "enforcer", "-p", "enforcer-tests"];
            cargo(build.into_iter().chain(["--bin", "enforcer", "--bin", program]))?;
            let run = ["run", "--release", "--quiet", "-p", "enforcer-tests", "--bin", program, "--"];
            cargo(run.map(str::to_owned).into_iter().chain(options(name)))?;
        }
    }
    let groups: Vec<_> = DATAPLANE.into_iter().filter(|name| wanted(name)).map(str::to_owned).collect();
    if !groups.is_empty() {
        let run = ["bench", "--quiet", "-p", "enforcer", "--features", "bench", "--bench", "dataplane", "--"];
        cargo(run.map(str::to_owned).into_iter().chain(groups).chain(options("dataplane")))?;
    }
    match json {
        Some(file) => together(&parts, file),
        None => Ok(()),
    }
}

/// Writes the rows of all parts into one list.
fn together(parts: &[PathBuf], file: &Path) -> Result<()> {
    let mut rows: Vec<Value> = Vec::new();
    for part in parts {
        let text = fs::read_to_string(part).with_context(|| part.display().to_string())?;
        rows.extend(serde_json::from_str::<Vec<Value>>(&text).with_context(|| part.display().to_string())?);
    }
    let text = serde_json::to_string_pretty(&rows).context("the rows")?;
    fs::write(file, text + "\n").with_context(|| file.display().to_string())
}
