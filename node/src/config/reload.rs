//! Which keys can change while spryd runs.
//!
//! One list, by what can't: a key that comes to be added can change only when somebody has said so here.

use super::Config;

impl Config {
    /// The keys in which `wanted` differs and that need a restart.
    pub fn needs_restart(&self, wanted: &Self) -> Vec<&'static str> {
        let changed = [
            ("state_dir", self.state_dir != wanted.state_dir),
            ("listen", self.listen != wanted.listen),
            ("control_socket", self.control_socket != wanted.control_socket),
            ("workers", self.workers != wanted.workers),
            ("transport", self.transport != wanted.transport),
            ("runtime_dir", self.runtime_dir != wanted.runtime_dir),
            ("uid_base", self.uid_base != wanted.uid_base),
            ("queue", self.queue != wanted.queue),
            ("upload", self.upload != wanted.upload),
            ("packages", self.packages != wanted.packages),
            ("secret_key_file", self.secret_key_file != wanted.secret_key_file),
            ("activations", self.activations != wanted.activations),
            ("node", self.memory_budget != wanted.memory_budget),
            ("keepalive", self.keepalive != wanted.keepalive),
            (
                "zygotes",
                (self.freeze, self.rewind) != (wanted.freeze, wanted.rewind)
                    || self.layers_memory != wanted.layers_memory,
            ),
            ("async", self.asynchronous != wanted.asynchronous),
            ("api_token_file", self.api_token_file != wanted.api_token_file),
            ("versions", self.versions != wanted.versions),
            ("scheduler", self.scheduler != wanted.scheduler),
            ("log.format", self.log_format != wanted.log_format),
            ("trace", self.trace != wanted.trace),
            // Another pair of files is read; encryption itself comes and goes with a restart.
            ("tls", self.tls.is_some() != wanted.tls.is_some()),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }

    /// This configuration with what can change from `wanted`.
    #[must_use]
    pub fn with_live_of(&self, wanted: Self) -> Self {
        Self {
            python: wanted.python,
            log_volume: wanted.log_volume,
            defaults: wanted.defaults,
            log_level: wanted.log_level,
            tls: if self.tls.is_some() && wanted.tls.is_some() { wanted.tls } else { self.tls.clone() },
            control: wanted.control,
            rate: wanted.rate,
            grace: wanted.grace,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::raw::RawConfig;
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str::<RawConfig>(text).expect("TOML").try_into().expect("valid")
    }

    /// Each key either is named as one that needs a restart, or takes effect; none is silently ignored.
    #[test]
    fn every_key_is_applied_or_named() {
        let before = config("workers = 1");
        let cases = [
            ("state_dir = \"/x\"", Some("state_dir")),
            ("listen = \"127.0.0.1:1\"", Some("listen")),
            ("control_socket = \"/x\"", Some("control_socket")),
            ("transport = \"broker\"", Some("transport")),
            ("runtime_dir = \"/x\"", Some("runtime_dir")),
            ("uid_base = 100000", Some("uid_base")),
            ("api_token_file = \"/x\"", Some("api_token_file")),
            ("[queue]\nnode = 7", Some("queue")),
            ("[upload]\nfiles = 7", Some("upload")),
            ("[packages]\nbuild = true", Some("packages")),
            ("[async]\ncalls = 7", Some("async")),
            ("secret_key_file = \"/x\"", Some("secret_key_file")),
            ("[activations]\ncount = 7", Some("activations")),
            ("[node]\nmemory_budget = \"1GiB\"", Some("node")),
            ("[keepalive]\npolicy = \"greedy-dual\"", Some("keepalive")),
            ("[versions]\nkeep = 7", Some("versions")),
            ("[scheduler]\npolicy = \"srpt+\"", Some("scheduler")),
            ("[zygotes]\nfreeze = \"off\"", Some("zygotes")),
            ("[zygotes]\nrewind = \"off\"", Some("zygotes")),
            ("[log]\nformat = \"json\"", Some("log.format")),
            ("[trace]\notlp = \"http://127.0.0.1/\"", Some("trace")),
            ("[tls]\ncertificate = \"/x\"\nkey = \"/y\"", Some("tls")),
            ("[python]\ninterpreter = \"/x\"", None),
            ("[logs]\nper_invocation = \"1KiB\"", None),
            ("[log]\nlevel = \"debug\"", None),
            ("[control]\nowner = \"7\"", None),
            ("[rate]\nper_second = 7.0", None),
            ("[shutdown]\ngrace = \"7s\"", None),
            ("[defaults.scale]\nmin = 1", None),
        ];
        for (text, key) in cases {
            let wanted = config(&format!("workers = 1\n{text}"));
            assert_ne!(before, wanted, "{text}");
            let named: Vec<_> = key.into_iter().filter(|key| *key != "state_dir").collect();
            let mut found = before.needs_restart(&wanted);
            if key == Some("state_dir") {
                // Its other files go with it.
                assert_eq!(found, ["state_dir", "secret_key_file", "api_token_file"]);
                continue;
            }
            found.sort_unstable();
            assert_eq!(found, named, "{text}");
            let after = before.with_live_of(wanted.clone());
            assert_eq!(after == wanted, key.is_none(), "{text}");
        }
        assert_eq!(before.needs_restart(&config("workers = 2")), ["workers"]);
        let schema = crate::schema::schema(crate::schema::File::Spryd);
        for key in schema["properties"].as_object().expect("keys").keys().filter(|key| *key != "workers") {
            let named = |text: &str| text.trim_start_matches('[').starts_with(key.as_str());
            assert!(cases.iter().any(|(text, _)| named(text)), "{key} is not among these");
        }
    }
}
