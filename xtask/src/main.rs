//! `cargo xtask`: what is done to this workspace. Needs nothing but a Rust toolchain to build.

mod bench;
mod packages;
mod setup;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::steps::{cargo, heading};

/// Builds, shows and tests the enforcer.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what building and testing need and this machine lacks
    Setup,
    /// Builds the daemon (after setup), with its links enforcer-gate and occtl
    Build,
    /// Ends a real VPN session before your eyes (after setup and build); `demo web`: sessions of web applications; `demo
    /// cluster`: three gateways
    Demo {
        /// `vpn`; `web`: a browser that two people use, behind nginx and behind the enforcer; or `cluster`: a user goes from
        /// one gateway to another, is revoked on a third one, and etcd is away
        #[arg(value_parser = ["vpn", "web", "cluster"], default_value = "vpn")]
        what: String,
        /// The same as data
        #[arg(long)]
        json: bool,
    },
    /// Measures: sessions beside stock ocserv, packets and tables beside other firewalls, the web gateway beside nginx, several
    /// gateways beside a loop over stock ones (after setup)
    Bench {
        /// Only these of `ends`, `web`, `cluster`, `honest`, `drops`, `tables`, `stops`
        only: Vec<String>,
        /// In so many rounds (default: what each of them has)
        #[arg(long)]
        rounds: Option<u32>,
        /// Every row as an object of one list
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Format, lints and every test (after setup)
    Test {
        /// Passed on to `cargo test`, such as `-p enforcer-tests --test stops`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        only: Vec<String>,
    },
    /// Builds the daemon and runs it with these arguments
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Format and lints alone
    Lint,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::setup()?,
        Task::Build => {
            setup::setup()?;
            let binary = build()?;
            println!("{}", binary.display());
        }
        Task::Demo { what, json } => {
            setup::setup()?;
            build()?;
            let program = match what.as_str() {
                "web" => "demo_web",
                "cluster" => "demo_cluster",
                _ => "demo",
            };
            // built apart from running, so that the compiler's output does not mix with the demo's
            cargo(["build", "--quiet", "-p", "enforcer-tests", "--bin", program])?;
            let mut demo = steps::command(steps::target().join("debug").join(program))?;
            if json {
                demo.arg("--json");
            }
            return steps::exit_code(&mut demo);
        }
        Task::Bench { only, rounds, json } => {
            setup::setup()?;
            if packages::is_debian() {
                let missing = packages::missing(&packages::MEASURED)?;
                if !missing.is_empty() {
                    packages::install(&missing)?;
                }
            }
            bench::bench(&only, rounds, json.as_deref())?;
        }
        Task::Test { only } => {
            setup::setup()?;
            lint()?;
            heading("build");
            build()?;
            heading("test");
            let chosen = if only.is_empty() { vec!["--workspace".to_owned()] } else { only };
            let mut arguments = vec!["test".to_owned(), "--no-fail-fast".to_owned()];
            arguments.extend(chosen);
            // the end-to-end tests wait more than they compute
            if !arguments.iter().any(|argument| argument == "--") {
                arguments.extend(["--", "--test-threads", "4"].map(str::to_owned));
            }
            cargo(arguments)?;
            heading("all tests passed");
        }
        Task::Run { arguments } => {
            let binary = build()?;
            let mut run = steps::command(binary)?;
            run.arg("run").args(arguments);
            return steps::exit_code(&mut run);
        }
        Task::Lint => lint()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn lint() -> Result<()> {
    heading("format");
    cargo(["fmt", "--all", "--check"])?;
    heading("lints");
    cargo(["clippy", "--workspace", "--all-targets", "--features", "enforcer/bench", "--", "-D", "warnings"])
}

/// Builds the daemon; links its other names beside it.
fn build() -> Result<PathBuf> {
    cargo(["build", "-p", "enforcer"])?;
    let folder = steps::target().join("debug");
    for name in ["enforcer-gate", "occtl"] {
        let link = folder.join(name);
        if link.symlink_metadata().is_err() {
            std::os::unix::fs::symlink("enforcer", &link).with_context(|| format!("{}", link.display()))?;
        }
    }
    Ok(folder.join("enforcer"))
}
