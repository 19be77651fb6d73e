//! `enforcer setup`: what the enforcer needs in the configuration of others, shown, made, and taken back.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use super::output;
use crate::config::{Config, Server};
use crate::exit::Code;
use crate::ocserv::{self, setup};
use crate::web::safe_file::Folder;

/// Where ocserv looks by itself.
const FILES: [&str; 2] = ["/etc/ocserv/ocserv.conf", "/etc/ocserv.conf"];
/// Where the packages put the gate.
const GATE: &str = "/usr/sbin/enforcer-gate";
/// No configuration is longer.
const LONGEST: u64 = 4 << 20;

#[derive(Debug, Clone, clap::Subcommand)]
pub enum Setup {
    /// The gate in ocserv.conf: shown, made (--apply), or taken back (--undo)
    #[command(
        after_help = "Without --apply and --undo nothing is changed. The lines come to the top of the file, between two marks; \
                      what stood in their way becomes a comment, so that --undo gives the file back byte for byte. ocserv has to \
                      be restarted afterwards: with a reload it keeps its scripts.\n\nA connect-script of your own goes to \
                      [ocserv] next-script in the enforcer's configuration first: the gate runs it after it lets a client \
                      in.\n\nExamples:\n  enforcer setup ocserv\n  enforcer setup ocserv --apply && systemctl restart ocserv\n  \
                      enforcer setup ocserv --undo && systemctl restart ocserv"
    )]
    Ocserv(Ocserv),
}

#[derive(Debug, Clone, clap::Args)]
pub struct Ocserv {
    /// Make the change
    #[arg(long, conflicts_with = "undo")]
    pub apply: bool,
    /// Take it back
    #[arg(long)]
    pub undo: bool,
    /// ocserv's configuration [default: [ocserv] config, else /etc/ocserv/ocserv.conf]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Which server of the enforcer's configuration it is, where there are several
    #[arg(long, value_name = "NAME")]
    pub server: Option<String>,
    /// The gate, as ocserv sees it [default: enforcer-gate beside this program, else /usr/sbin/enforcer-gate]
    #[arg(long, value_name = "FILE")]
    pub gate: Option<PathBuf>,
}

/// As `--json` prints it.
#[derive(Debug, Serialize)]
struct Shown {
    file: String,
    /// `to do`, `in place`, `applied`, `undone`, `not there`
    state: &'static str,
    added: Vec<String>,
    removed: Vec<String>,
    /// What has to be mended before it can be made.
    problems: Vec<String>,
    notes: Vec<String>,
}

pub(super) fn run(what: &Setup, config: &Config, json: bool) -> anyhow::Result<Code> {
    let Setup::Ocserv(asked) = what;
    let server = server(asked, config)?;
    let file = file(asked, server)?;
    let text = read(&file)?;
    if asked.undo {
        return undo(&file, &text, json);
    }
    let before = setup::in_force(&text);
    let gate = gate(asked, &before);
    let mut shown = Shown {
        file: file.display().to_string(),
        state: "in place",
        added: Vec::new(),
        removed: Vec::new(),
        problems: problems(&before, &gate, server),
        notes: notes(&before),
    };
    let about = || format!("{} cannot be changed", file.display());
    if let Some(change) = setup::apply(&text, &gate).with_context(about)? {
        if asked.apply {
            anyhow::ensure!(
                shown.problems.is_empty(),
                "{} was not changed: {}",
                file.display(),
                shown.problems.join("; ")
            );
            Folder::lock(&file)?.replace(&change.text)?;
        }
        (shown.added, shown.removed) = (change.added, change.removed);
        shown.state = if asked.apply { "applied" } else { "to do" };
    }
    output::print(json, &shown, text_of)?;
    Ok(if shown.state == "in place" && !shown.problems.is_empty() { Code::Error } else { Code::Done })
}

fn undo(file: &Path, text: &[u8], json: bool) -> anyhow::Result<Code> {
    let before = setup::undo(text).with_context(|| format!("{} cannot be changed", file.display()))?;
    if let Some(before) = &before {
        Folder::lock(file)?.replace(before)?;
    }
    let shown = Shown {
        file: file.display().to_string(),
        state: if before.is_some() { "undone" } else { "not there" },
        added: Vec::new(),
        removed: Vec::new(),
        problems: Vec::new(),
        notes: Vec::new(),
    };
    output::print(json, &shown, text_of)?;
    Ok(if before.is_some() { Code::Done } else { Code::Nothing })
}

fn server<'c>(asked: &Ocserv, config: &'c Config) -> anyhow::Result<&'c Server> {
    let mut all = config.ocserv.iter();
    let names = || config.ocserv.iter().map(|server| server.name.as_str()).collect::<Vec<_>>().join(", ");
    match (&asked.server, config.ocserv.iter().count()) {
        (Some(name), _) => all.find(|server| server.name == *name).with_context(|| {
            format!("there is no server {name:?} in the configuration: there are {}", names())
        }),
        (None, 1) => all.next().context("there is no server in the configuration"),
        (None, _) => anyhow::bail!("there are several servers: --server names one of {}", names()),
    }
}

fn file(asked: &Ocserv, server: &Server) -> anyhow::Result<PathBuf> {
    let named = asked.file.clone().or_else(|| server.config.clone());
    let usual = || FILES.map(PathBuf::from).into_iter().find(|file| file.exists());
    named.or_else(usual).with_context(|| {
        format!("ocserv's configuration was not found: tried {}; --file names it", FILES.join(", "))
    })
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let about = || format!("cannot read {}", file.display());
    let mut text = Vec::new();
    std::fs::File::open(file)
        .with_context(about)?
        .take(LONGEST + 1)
        .read_to_end(&mut text)
        .with_context(about)?;
    anyhow::ensure!(
        text.len() as u64 <= LONGEST,
        "{} is no ocserv.conf: it has more than 4 MiB",
        file.display()
    );
    Ok(text)
}

/// What is named, what is there already, what lies beside this program, or the package's.
fn gate(asked: &Ocserv, before: &setup::InForce) -> PathBuf {
    let there = || before.connect.clone().filter(|script| ocserv::is_gate_here(script));
    let beside = || {
        let this = std::env::current_exe().ok()?;
        Some(this.with_file_name("enforcer-gate")).filter(|gate| gate.exists())
    };
    asked.gate.clone().or_else(there).or_else(beside).unwrap_or_else(|| PathBuf::from(GATE))
}

fn problems(before: &setup::InForce, gate: &Path, server: &Server) -> Vec<String> {
    let mut problems = Vec::new();
    if !ocserv::is_gate_here(gate) {
        problems.push(format!(
            "{} is no link to the enforcer that can be run, and every login would be refused: `ln -s enforcer {}`, or --gate \
             names another one",
            gate.display(),
            gate.display()
        ));
    } else if before.firewall && !ocserv::is_shell_script_here(gate) {
        problems.push(format!(
            "with restrict-user-to-routes or -ports ocserv hands {} to /bin/sh, and every login would be refused: --gate has to \
             name a file enforcer-gate of two lines, `#!/bin/sh` and `exec enforcer gate`",
            gate.display()
        ));
    }
    let scripts = [
        ("connect-script", "next-script", &before.connect, &server.next_script),
        ("disconnect-script", "next-disconnect-script", &before.disconnect, &server.next_disconnect_script),
    ];
    for (key, next, script, configured) in scripts {
        let Some(own) = script.as_deref().filter(|script| !ocserv::is_gate_here(script)) else { continue };
        if configured.as_deref() != Some(own) {
            problems.push(format!(
                "your {key} {own} would not run any more: put {next} = {own:?} below [ocserv] in the enforcer's configuration",
                own = own.display()
            ));
        }
    }
    problems
}

fn notes(before: &setup::InForce) -> Vec<String> {
    let vhosts = (!before.vhosts.is_empty()).then(|| {
        format!(
            "the virtual hosts {} name scripts of their own: ocserv 1.1.6 and 1.3 ignore them, 1.5 does not start with them",
            before.vhosts.join(", ")
        )
    });
    vhosts.into_iter().collect()
}

fn text_of(shown: &Shown) -> String {
    let file = output::safe(&shown.file);
    let mut text = match shown.state {
        "in place" => format!("{file} names the gate: there is nothing to change.\n"),
        "to do" => format!("{file}, in its global part:\n"),
        "applied" => format!("{file} was changed:\n"),
        "undone" => format!("{file} is as it was before.\n"),
        _ => format!("Nothing of the enforcer's is in {file}.\n"),
    };
    for (sign, lines) in [('-', &shown.removed), ('+', &shown.added)] {
        for line in lines {
            text.push_str(&format!("  {sign} {}\n", output::safe(line)));
        }
    }
    for problem in &shown.problems {
        text.push_str(&format!("First: {}\n", output::safe(problem)));
    }
    for note in &shown.notes {
        text.push_str(&format!("Note: {}\n", output::safe(note)));
    }
    text.push_str(match shown.state {
        "to do" if shown.problems.is_empty() => {
            "Nothing was changed. `enforcer setup ocserv --apply` makes the change; then restart ocserv.\n"
        }
        "to do" => "Nothing was changed.\n",
        "applied" => {
            "Restart ocserv now (a reload keeps its scripts). `enforcer check` says whether the gate is at its door.\n"
        }
        "undone" => "Restart ocserv now: until then it runs the gate.\n",
        _ => "",
    });
    text
}
