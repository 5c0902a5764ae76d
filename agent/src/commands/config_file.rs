//! `config check`, `config schema`, `config example`.

use postern_base::config::{ConfigError, Problem};
use postern_base::secret::SecretRef;

use super::Context;
use crate::cli::Config;
use crate::config::{self, AgentFile, Loaded};
use crate::settings::Service;
use crate::upstream;
use postern_base::console::{self, Done};

pub(super) fn run(context: &Context, command: &Config) -> Done {
    match command {
        Config::Check => check(context),
        Config::Schema => Ok(console::json(&schemars::schema_for!(AgentFile))?),
        Config::Example => Ok(console::raw(config::EXAMPLE.as_bytes())?),
    }
}

/// What calls will need beyond what every command reads: files that are there and can be used. Secrets from the environment or from
/// systemd are the service's alone, and not to be had here.
pub(super) fn usable(context: &Context, loaded: Loaded) -> Result<Loaded, Vec<ConfigError>> {
    let problems: Vec<_> =
        loaded.settings.services.values().filter_map(|service| obstacle(service)).collect();
    if problems.is_empty() { Ok(loaded) } else { Err(context.located(problems)) }
}

fn obstacle(service: &Service) -> Option<Problem> {
    let tls = service.tls.as_ref().and_then(|tls| upstream::tls::config(service, tls).err());
    let problem = match tls {
        Some(e) => Problem::new(&e.key, e.reason),
        None => service.inject.iter().find_map(|(name, secret)| match secret {
            SecretRef::File(_) => {
                Some(Problem::new("", secret.load().err()?.to_string()).under(name).under("inject"))
            }
            SecretRef::Env(_) | SecretRef::Credential(_) => None,
        })?,
    };
    Some(problem.under(&service.name).under("services"))
}

fn check(context: &Context) -> Done {
    let found = config::load(&context.config).and_then(|loaded| usable(context, loaded)).map(|loaded| {
        let (file, services) = (context.config.display(), loaded.settings.services.len());
        (format!("{file} is good: {services} service(s)"), loaded.warnings)
    });
    context.output.checked(found, |errors| context.invalid(errors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_base::console::{Exit, Output};

    #[test]
    fn missing_files_and_impossible_ports_are_found_in_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let output = Output { json: false, quiet: true, verbose: 0 };
        let context = Context { config: dir.path().join("agent.toml"), output };
        let write = |service: &str| {
            let text = format!("version = 1\nrelay = \"relay.example.com\"\nstate = \"s\"\n{service}\n");
            std::fs::write(&context.config, text).unwrap();
        };
        write("[services.wiki]\nupstream = \"http://127.0.0.1:65536\"");
        let failure = check(&context).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert!(failure.lines.concat().contains("65535"), "{failure:?}");
        write("[services.wiki]\nupstream = \"https://[::1]\"\ntls = { ca = \"ca.pem\" }");
        let failure = check(&context).unwrap_err();
        assert!(failure.exit == Exit::Config && failure.lines.concat().contains("ca.pem"), "{failure:?}");
        std::fs::write(dir.path().join("ca.pem"), "").unwrap();
        let failure = check(&context).unwrap_err();
        assert!(failure.lines.concat().contains("no certificate in it"), "{failure:?}");
        let params = rcgen::CertificateParams::default();
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        check(&context).unwrap();
        write("[services.wiki]\nupstream = \"http://[::1]\"\ninject = { X-Key = { file = \"key\" } }");
        let failure = check(&context).unwrap_err();
        assert!(failure.lines.concat().contains("inject"), "{failure:?}");
        write("[services.wiki]\nupstream = \"http://[::1]\"\ninject = { X-Key = { credential = \"key\" } }");
        check(&context).unwrap();
    }
}
