//! Renewals on their way to the streams they are for: takes what the relay says on a control stream, gives each open stream the latest
//! credential said for it. Nothing is judged here; a renewal for a stream that waits for none is dropped.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use postern_base::sync::lock;
use postern_wire::head::OwnedCredential;
use tokio::sync::watch;

type Latest = watch::Sender<Option<OwnedCredential>>;

/// The open streams that take renewals, by request id: as many as there are streams.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<String, Latest>>);

/// One stream's place among them, until it is dropped.
#[derive(Debug)]
pub struct Lease<'a> {
    leases: &'a Leases,
    request_id: String,
    /// The sender's other half too, by which the place is known again.
    latest: Latest,
    renewed: watch::Receiver<Option<OwnedCredential>>,
}

impl Leases {
    /// For a stream that was opened with a credential. A relay that names two alike renews the later one.
    pub fn open(&self, request_id: &str) -> Lease<'_> {
        let (latest, renewed) = watch::channel(None);
        self.lock().insert(request_id.to_owned(), latest.clone());
        Lease { leases: self, request_id: request_id.to_owned(), latest, renewed }
    }

    /// The relay says that a caller showed a fresh token.
    pub(crate) fn renew(&self, request_id: &str, credential: OwnedCredential) {
        if let Some(latest) = self.lock().get(request_id) {
            latest.send_replace(Some(credential));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Latest>> {
        // Every change is one insertion or removal.
        lock(&self.0)
    }
}

impl Lease<'_> {
    /// The next credential. Where several came meanwhile, the last; never, once another stream took the id.
    pub async fn renewed(&mut self) -> OwnedCredential {
        loop {
            // It cannot fail: a sender is here.
            let _ = self.renewed.changed().await;
            if let Some(credential) = self.renewed.borrow_and_update().clone() {
                return credential;
            }
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut leases = self.leases.lock();
        if leases.get(&self.request_id).is_some_and(|latest| latest.same_channel(&self.latest)) {
            leases.remove(&self.request_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(token: &str) -> OwnedCredential {
        OwnedCredential {
            scheme: "Bearer".to_owned(),
            token: token.to_owned(),
            proof: None,
            method: "GET".to_owned(),
            public_uri: "https://relay.example.com/x".to_owned(),
            certificate_sha256: None,
        }
    }

    #[tokio::test]
    async fn a_stream_gets_the_last_credential_said_for_it_and_for_no_other() {
        let leases = Leases::default();
        leases.renew("a", credential("for nobody"));
        let mut lease = leases.open("a");
        let other = leases.open("b");
        leases.renew("b", credential("b"));
        leases.renew("a", credential("1"));
        leases.renew("a", credential("2"));
        assert_eq!(lease.renewed().await.token, "2");

        // A later stream of the same id keeps its place when the first one ends.
        let mut later = leases.open("a");
        drop(lease);
        leases.renew("a", credential("3"));
        assert_eq!(later.renewed().await.token, "3");
        drop((later, other));
        assert!(leases.lock().is_empty());
    }
}
