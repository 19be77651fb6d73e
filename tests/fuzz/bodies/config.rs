//! Our configuration: a configuration, or a sentence that says what is wrong. What is taken keeps its own rules.
use enforcer::config::Config;

pub fn body(input: &[u8]) {
    let text = super::text(input);
    match Config::parse(text) {
        Err(why) => assert!(!why.is_empty()),
        Ok(config) => {
            assert!(config.ocserv.iter().count() > 0);
            assert!(config.ocserv.iter().all(|server| !server.name.is_empty()));
            assert!(config.control.socket.is_absolute() && config.kernel.pin_path.is_absolute());
        }
    }
}
