//! What the relay says of itself at `/metrics` and `/readyz`.

use postern_base::observe::Observed;

use crate::relay::Relay;

impl Observed for Relay {
    fn metrics(&self) -> String {
        self.metrics().text(self.audit())
    }

    async fn obstacles(&self) -> String {
        if self.is_ready() { String::new() } else { "not ready\n".to_owned() }
    }
}
