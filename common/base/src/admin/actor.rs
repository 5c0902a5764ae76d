//! Who did an admin action: takes a uid that the kernel vouches for; gives it with the user's name where the system knows one.

use nix::unistd::{Uid, User};
use serde_json::Value;

/// Whoever called over the admin socket, or ran a command where nothing runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    pub uid: u32,
    pub user: Option<String>,
}

impl Actor {
    /// Asks the system for the name, which may have to ask a directory: not on a runtime that serves.
    pub fn of(uid: u32) -> Self {
        // A system that cannot say it now leaves the number, which is what counts.
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        Self { uid, user }
    }

    /// Whoever runs this process.
    pub fn here() -> Self {
        Self::of(rustix::process::getuid().as_raw())
    }

    /// Adds who it was to what an audit line tells.
    pub fn sign(&self, detail: &mut Value) {
        detail["uid"] = self.uid.into();
        if let Some(user) = &self.user {
            detail["by"] = user.as_str().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_its_user_where_there_is_one() {
        let mut line = serde_json::json!({ "action": "reload" });
        Actor::of(0).sign(&mut line);
        assert_eq!(line, serde_json::json!({ "action": "reload", "uid": 0, "by": "root" }));
        let mut line = serde_json::json!({});
        Actor::of(3_999_999_999).sign(&mut line);
        assert_eq!(line, serde_json::json!({ "uid": 3_999_999_999_u32 }));
        assert_eq!(Actor::here().uid, rustix::process::getuid().as_raw());
    }
}
