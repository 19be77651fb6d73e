//! What the browser tests and those of OpenID Connect alone need besides packages: what drives Chromium and an identity
//! provider (from npm), and applications (from PyPI). Versions and hashes stand in `tests/browser` and `tests/oidc`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Job, logged};
use crate::steps::{root, target};

/// Folders of `tests` with a `package.json` and its lock: each is installed as `target/lab/web/NAME`.
const NODE: [&str; 2] = ["browser", "oidc"];
/// The file in a made folder that says what it was made with.
const MADE_WITH: &str = "made-with";

/// What is missing, as jobs.
pub fn missing() -> Result<Vec<(String, Job)>> {
    let mut jobs: Vec<(String, Job)> = Vec::new();
    for name in NODE {
        let with = read(&tests(name).join("package-lock.json"))?;
        if !is_made(name, &with) {
            jobs.push((format!("npm packages: {name}"), Box::new(move || npm(name, &with))));
        }
    }
    let with = read(&requirements())?;
    if !is_made("python", &with) {
        jobs.push(("Django and Jupyter".to_owned(), Box::new(move || python(&with))));
    }
    Ok(jobs)
}

fn tests(name: &str) -> PathBuf {
    root().join("tests").join(name)
}

fn requirements() -> PathBuf {
    tests("browser").join("requirements.txt")
}

fn made(name: &str) -> PathBuf {
    target().join("lab/web").join(name)
}

fn is_made(name: &str, with: &str) -> bool {
    fs::read_to_string(made(name).join(MADE_WITH)).is_ok_and(|made| made == with)
}

fn npm(name: &str, with: &str) -> Result<()> {
    let folder = fresh(name)?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(tests(name).join(file), folder.join(file))
            .with_context(|| format!("tests/{name}/{file}"))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&folder);
    logged(&format!("npm ci, tests {name}"), npm)?;
    finish(&folder, with)
}

fn python(with: &str) -> Result<()> {
    let folder = fresh("python")?;
    // Debian's own: another one on the PATH may be of any version
    let mut venv = Command::new("/usr/bin/python3");
    venv.args(["-m", "venv"]).arg(&folder);
    logged("python3 -m venv", venv)?;
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:"]);
    pip.args(["--require-hashes", "-r"]).arg(requirements());
    logged("pip install, Django and Jupyter", pip)?;
    finish(&folder, with)
}

/// An empty folder at its place: an interrupted or older one is made anew. (A Python environment cannot be moved.)
fn fresh(name: &str) -> Result<PathBuf> {
    let folder = made(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

fn finish(folder: &Path, with: &str) -> Result<()> {
    fs::write(folder.join(MADE_WITH), with).with_context(|| folder.display().to_string())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}
