//! What is said of a file that is not as it should be.

use super::servers::Server;

/// serde's message, and for an unknown key the nearest known one.
pub(super) fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim();
    // an untagged enum hides what was wrong within: read the section on its own to learn it
    if message.contains("untagged enum")
        && let Some(inner) = explain_servers(text)
    {
        return inner;
    }
    let mut told = match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            // where a value is wrong the message does not say whose
            let words = text.lines().nth(line - 1).unwrap_or_default().trim();
            format!("line {line} ({words}): {message}")
        }
        None => message.to_owned(),
    };
    if let Some(nearest) = nearest_key(message) {
        told.push_str(&format!("; did you mean `{nearest}`?"));
    }
    told
}

fn explain_servers(text: &str) -> Option<String> {
    let file: toml::Table = toml::from_str(text).ok()?;
    let servers = match file.get("ocserv")? {
        toml::Value::Array(servers) => servers.clone(),
        one => vec![one.clone()],
    };
    let error = servers.into_iter().find_map(|server| server.try_into::<Server>().err())?;
    let message = error.message().trim().to_owned();
    let hint = nearest_key(&message).map(|key| format!("; did you mean `{key}`?")).unwrap_or_default();
    Some(format!("[ocserv]: {message}{hint}"))
}

/// The known key that is nearest to the unknown one, from serde's "unknown field `a`, expected one of `b`, `c`".
fn nearest_key(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown field").then(|| quoted.next())??;
    quoted.min_by_key(|known| strsim::damerau_levenshtein(unknown, known)).map(str::to_owned)
}
