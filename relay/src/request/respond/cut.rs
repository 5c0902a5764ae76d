//! The rows of the table for what is locked, or was cut before its answer began.

use http::StatusCode;

use super::table::Row;
use crate::session::Cut;

pub(super) fn row(cut: Cut) -> Row {
    let (status, title, detail) = match cut {
        Cut::Locked(lock) => (
            StatusCode::UNAUTHORIZED,
            "Locked",
            format!(
                "this token, user, client or issuer is refused here; ask the relay's operator about lock {lock}"
            ),
        ),
        Cut::Withheld(lock) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "Locked by the operator",
            format!("the relay's operator has locked the way to this service: ask about lock {lock}"),
        ),
        Cut::Expired => (
            StatusCode::UNAUTHORIZED,
            "The token expired meanwhile",
            "the token expired while the answer was waited for, and its grace is over: use a fresh one"
                .to_owned(),
        ),
        Cut::Reloaded => (
            StatusCode::FORBIDDEN,
            "Policy changed meanwhile",
            "the rules were changed while the answer was waited for, and do not let you do this any more"
                .to_owned(),
        ),
        Cut::Inactive => (
            StatusCode::UNAUTHORIZED,
            "The token is not good any more",
            "its issuer has taken the token back: use a fresh one".to_owned(),
        ),
        Cut::Unasked => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The token cannot be checked now",
            "its issuer was to be asked about the token again and did not answer: try again".to_owned(),
        ),
    };
    let retry_after = match cut {
        // Somebody has to act first.
        Cut::Withheld(_) => Some(60),
        Cut::Unasked => Some(2),
        Cut::Locked(_) | Cut::Expired | Cut::Reloaded | Cut::Inactive => None,
    };
    Row { status, kind: cut.reason(), title, detail, hop: None, retry_after }
}

/// Why the token is not good, for the challenge.
pub(super) fn invalid_token(cut: Cut) -> Option<&'static str> {
    match cut {
        Cut::Locked(_) => Some("locked"),
        Cut::Expired => Some("expired"),
        Cut::Inactive => Some("not active any more"),
        Cut::Withheld(_) | Cut::Reloaded | Cut::Unasked => None,
    }
}
