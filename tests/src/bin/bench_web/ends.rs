//! How long a revocation takes in the web gateway: from the command to the end of a running download.

use std::thread;
use std::time::{Duration, Instant};

use enforcer_tests::portal::{ONE, Portal};
use enforcer_tests::process::{BOUND, eventually};

/// What is to be kept: the download is over by then, at most.
const TARGET_MS: f64 = 100.0;

/// Times after the start of the command, in milliseconds, of each round.
pub struct Ends {
    /// The download's connection is closed.
    closed: Vec<f64>,
    /// The command has answered.
    answered: Vec<f64>,
}

/// In each round alice logs in and downloads something without end, and her session is ended from the shell.
pub fn measure(rounds: usize) -> Ends {
    let portal = Portal::new("bench-web-ends");
    let mut ends = Ends { closed: Vec::new(), answered: Vec::new() };
    for _ in 0..rounds {
        let browser = portal.logged_in("alice");
        let mut download = browser.download(&format!("https://{ONE}/stream"));
        eventually("she downloads", BOUND, || (portal.one.streams() == 1).then_some(()));
        let begun = Instant::now();
        let ms = |begun: Instant| begun.elapsed().as_secs_f64() * 1e3;
        thread::scope(|scope| {
            let closed = scope.spawn(move || {
                while download.exited().is_none() {
                    thread::sleep(Duration::from_micros(200));
                }
                ms(begun)
            });
            portal.scene.enforcer.revoke("alice");
            ends.answered.push(ms(begun));
            ends.closed.extend(closed.join());
        });
        eventually("it is gone at the application", BOUND, || (portal.one.streams() == 0).then_some(()));
    }
    ends
}

fn sorted(series: &[f64]) -> Vec<f64> {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn part(series: &[f64], percent: usize) -> f64 {
    let sorted = sorted(series);
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

impl Ends {
    pub fn data(&self) -> Vec<serde_json::Value> {
        let row = |case: &str, series: &[f64], target: Option<f64>| {
            serde_json::json!({
                "case": case, "unit": "ms", "ours": part(series, 50), "p95": part(series, 95),
                "most": part(series, 100), "peers": {}, "rounds": series.len(), "target": target,
                "reached": target.map(|target| part(series, 100) <= target),
            })
        };
        vec![
            row("a download after the start of the command, closed", &self.closed, Some(TARGET_MS)),
            row("the command's answer", &self.answered, None),
        ]
    }
}

impl std::fmt::Display for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = |series: &[f64]| {
            let [median, late, most] = [50, 95, 100].map(|percent| part(series, percent));
            format!("median {median:.1}, 95 of 100 below {late:.1}, most {most:.1}")
        };
        let reached = if part(&self.closed, 100) <= TARGET_MS { "reached" } else { "NOT REACHED" };
        writeln!(
            f,
            "{} revocations, from the start of the command (ms): the download is closed {} (target: at most {TARGET_MS}, \
             {reached})",
            self.closed.len(),
            line(&self.closed)
        )?;
        write!(f, "the command has answered (ms): {}", line(&self.answered))
    }
}
