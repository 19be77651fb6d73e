//! The rows of the result, for people and as data.

use std::fmt;
use std::fs;

/// Several contenders, measured in turns.
pub struct Row {
    pub case: String,
    pub unit: &'static str,
    pub ours: Series,
    pub peers: Vec<(String, Series)>,
    pub limits: Vec<(String, Series)>,
    /// Of which of them `ratio` is spoken.
    pub against: &'static str,
}

pub type Series = Vec<f64>;

/// The middle of what was measured, or another part of it (0.99).
pub fn quantile(series: &[f64], part: f64) -> f64 {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

pub fn median(series: &[f64]) -> f64 {
    quantile(series, 0.5)
}

impl Row {
    fn others(&self) -> impl Iterator<Item = &(String, Series)> {
        self.peers.iter().chain(&self.limits)
    }

    fn ratio(&self) -> Option<f64> {
        let (_, other) = self.others().find(|(name, _)| name == self.against)?;
        Some(median(&self.ours) / median(other))
    }

    pub fn data(&self) -> serde_json::Value {
        let of = |all: &[(String, Series)]| -> serde_json::Map<_, _> {
            all.iter().map(|(name, series)| (name.clone(), median(series).into())).collect()
        };
        serde_json::json!({
            "case": self.case, "unit": self.unit, "ours": median(&self.ours), "peers": of(&self.peers),
            "limits": of(&self.limits), "against": self.against, "ratio": self.ratio(), "rounds": self.ours.len(),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |value: f64| if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") };
        write!(f, "{} ({}): ours {}", self.case, self.unit, width(median(&self.ours)))?;
        for (name, series) in self.others() {
            write!(f, ", {name} {}", width(median(series)))?;
        }
        match self.ratio() {
            Some(ratio) => write!(f, "; {ratio:.2} of {}", self.against),
            None => Ok(()),
        }
    }
}

/// On what this was measured, and beside how much else.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let models: Vec<_> = info.lines().filter_map(|line| line.strip_prefix("model name\t: ")).collect();
    format!(
        "{} x {}, Linux {}, load {}",
        models.len(),
        models.first().unwrap_or(&"?"),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").trim()
    )
}
