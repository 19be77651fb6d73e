//! What happened, step by step, for people and as data.

use std::fmt::Write as _;

use serde::Serialize;

use crate::clock::Moment;

/// One thing that happened, or was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Milliseconds from the command; none for what is no point in time.
    pub ms: Option<f64>,
    pub what: String,
    pub found: String,
    /// It went as promised.
    pub ok: bool,
}

/// One run: a server, a command, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Act {
    pub title: String,
    pub steps: Vec<Step>,
    #[serde(skip)]
    zero: Option<Moment>,
}

impl Act {
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), steps: Vec::new(), zero: None }
    }

    /// Times count from here.
    pub fn zero(&mut self, at: Moment) {
        self.zero = Some(at);
    }

    pub fn step(&mut self, at: Option<Moment>, what: &str, found: impl Into<String>, ok: bool) {
        let ms = at.zip(self.zero).map(|(at, zero)| at.millis_since(zero));
        self.steps.push(Step { ms, what: what.to_owned(), found: found.into(), ok });
    }

    pub fn ok(&self) -> bool {
        self.steps.iter().all(|step| step.ok)
    }

    /// Aligned columns: time, what, what was found; a mark where it went otherwise than promised.
    pub fn table(&self) -> String {
        let wide = self.steps.iter().map(|step| step.what.len()).max().unwrap_or(0);
        let mut text = format!("{}\n", self.title);
        for step in &self.steps {
            let time = step.ms.map_or_else(|| " ".repeat(12), |ms| format!("{ms:>+9.1} ms"));
            let mark = if step.ok { "" } else { "   <-- NOT AS PROMISED" };
            // writing to a String cannot fail
            let _ = writeln!(text, "{time}  {:wide$}  {}{mark}", step.what, step.found);
        }
        text
    }
}
