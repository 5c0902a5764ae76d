//! What a call of the admin API means to the command that made it: takes what came back; gives the answer, nothing where nothing runs, or
//! the failure that the command ends with.

use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Exit, Failure};
use crate::admin::ClientError;

/// `broken` is the exit code where something runs and does not answer as it should.
///
/// # Errors
/// The server refused, does not answer as it should, or is not for this user.
pub fn answer<T: DeserializeOwned>(
    called: Result<Value, ClientError>,
    broken: Exit,
) -> Result<Option<T>, Failure> {
    match called {
        Ok(value) => Ok(Some(serde_json::from_value(value)?)),
        Err(ClientError::NotRunning) => Ok(None),
        Err(ClientError::Refused { status, error, details }) => {
            let exit = match status {
                StatusCode::UNPROCESSABLE_ENTITY => Exit::Config,
                StatusCode::NOT_FOUND => Exit::NoSuchService,
                StatusCode::UNAUTHORIZED => Exit::Login,
                _ => Exit::Failed,
            };
            Err(Failure { exit, lines: std::iter::once(error).chain(details).collect() })
        }
        Err(e @ ClientError::NotAllowed { .. }) => Err(Failure::new(Exit::Failed, e.to_string())),
        Err(e @ ClientError::Broken(_)) => Err(Failure::new(broken, e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_exit_code() {
        let refused = |status| {
            Err(ClientError::Refused { status, error: "no".to_owned(), details: vec!["a".to_owned()] })
        };
        for (called, exit) in [
            (refused(StatusCode::UNPROCESSABLE_ENTITY), Exit::Config),
            (refused(StatusCode::NOT_FOUND), Exit::NoSuchService),
            (refused(StatusCode::UNAUTHORIZED), Exit::Login),
            (refused(StatusCode::NOT_IMPLEMENTED), Exit::Failed),
            (Err(ClientError::Broken("half".to_owned())), Exit::Unreachable),
        ] {
            assert_eq!(answer::<u8>(called, Exit::Unreachable).unwrap_err().exit, exit);
        }
        assert_eq!(answer::<u8>(Err(ClientError::NotRunning), Exit::Failed).unwrap(), None);
        assert_eq!(answer(Ok(7.into()), Exit::Failed).unwrap(), Some(7));
        assert!(answer::<u8>(Ok("seven".into()), Exit::Failed).is_err());
    }
}
