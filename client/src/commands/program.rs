//! Takes the options and variables by which a program names itself and its proof; gives the two, or, for one command, a session that is
//! kept nowhere. Refuses a program without a name, or with no proof.

use postern_base::http_client::HttpClient;
use tokio_util::task::TaskTracker;

use super::{Context, login};
use crate::cli::login::{Identity, Program};
use crate::failure::{Exit, Failure};
use crate::login::{Wanted, Way};
use crate::output::Output;
use crate::relay_api::Relay;
use crate::session::machine::Machine;
use crate::session::vault::Vault;
use crate::settings::Settings;

/// The client that the program is, and how it proves that; `None` where a person is to log in.
pub(super) fn machine(args: &Identity, settings: &Settings) -> Result<Option<(String, Machine)>, Failure> {
    if !args.client_credentials {
        return Ok(None);
    }
    let id = args.client_id.as_ref().or(settings.client_id.as_ref()).ok_or_else(|| {
        Failure::new(Exit::Usage, "which client is this program?")
            .fix("name it with --client-id, or in POSTERN_CLIENT_ID")
    })?;
    let files = [
        (&args.client_secret_file, Machine::SecretFile as fn(_) -> _),
        (&args.client_key, Machine::Key),
        (&args.token_file, Machine::TokenFile),
        // What is typed goes first.
        (&settings.client_secret_file, Machine::SecretFile),
    ];
    let found = files.into_iter().find_map(|(path, kind)| path.as_ref().map(|path| (path, kind)));
    let (path, kind) = found.ok_or_else(|| {
        Failure::new(Exit::Usage, format!("nothing proves that this program is {id}"))
            .fix("add --client-secret-file, --client-key or --token-file, or set POSTERN_CLIENT_SECRET_FILE")
    })?;
    // The session is renewed from wherever the next command is run.
    let path = std::path::absolute(path).map_err(|e| Failure::new(Exit::Usage, e.to_string()))?;
    Ok(Some((id.clone(), kind(path))))
}

/// What a command needs that acts as a program: a session of its own, which ends with it.
pub(super) async fn context(
    settings: Settings,
    program: &Program,
    renewals: &TaskTracker,
    out: &Output,
) -> Result<Context, Failure> {
    if settings.token.is_some() {
        return Err(Failure::new(Exit::Config, "POSTERN_TOKEN is set: client credentials would not be used")
            .fix("unset POSTERN_TOKEN, or leave --client-credentials out"));
    }
    let vault = Vault::new(&settings);
    let relay = vault.account(settings.profile.as_ref(), settings.relay.as_ref())?.relay;
    let machine = machine(&program.client, &settings)?;
    let wanted = Wanted {
        relay: &relay,
        issuer: program.issuer.as_deref(),
        way: Way::PrintedAddress,
        insist: true,
        scopes: &program.scopes,
        force: false,
        machine: machine.as_ref(),
    };
    let http: HttpClient = settings.http()?;
    let mut session = login::log_in(&wanted, None, &http, out).await?;
    login::introduce(&Relay::new(relay.clone(), http), &mut session).await?;
    Context::of(settings, session, renewals, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::settings;

    #[test]
    fn what_is_typed_goes_before_what_is_set_and_paths_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        let mut args = Identity { client_credentials: true, ..Identity::default() };
        let missing = |args: &Identity, settings: &Settings| machine(args, settings).unwrap_err();
        assert!(missing(&args, &settings).fix.unwrap().contains("--client-id"));
        settings.client_id = Some("set".into());
        let failure = missing(&args, &settings);
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.fix.unwrap().contains("--client-secret-file"));
        settings.client_secret_file = Some("/run/secret".into());
        let found = machine(&args, &settings).unwrap().unwrap();
        assert_eq!(found, ("set".to_owned(), Machine::SecretFile("/run/secret".into())));
        args.client_id = Some("typed".into());
        args.client_key = Some("key.pem".into());
        let (id, found) = machine(&args, &settings).unwrap().unwrap();
        assert!(id == "typed" && found == Machine::Key(std::path::absolute("key.pem").unwrap()), "{found:?}");
        args.client_credentials = false;
        assert_eq!(machine(&args, &settings).unwrap(), None);
    }
}
