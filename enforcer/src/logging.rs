//! The log of the processes that stay: to standard error, for the journal.

/// `ENFORCER_LOG` says how much, as `tracing_subscriber`'s filter; `info` if it says nothing.
pub(crate) fn start() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ENFORCER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_log::LogTracer::init();
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .finish();
    let _ = tracing::subscriber::set_global_default(logger);
}
