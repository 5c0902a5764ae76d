//! Good proofs, once each; nonces; what came before the start; a full memory.

mod hostile;

use std::cell::Cell;

use serde_json::{Value, json};

use super::*;
use crate::token::tests::support::{NOW, Signer, at, now, with};

const URI: &str = "https://relay.example.com/billing/v1/invoices/7";
const TOKEN: &str = "the.access.token";

fn hash(token: &str) -> [u8; 32] {
    digest::digest(&SHA256, token.as_bytes()).as_ref().try_into().unwrap()
}

fn proofs(nonce: NonceUse) -> Proofs {
    let settings = DpopFile { algorithms: None, nonce }.settings().unwrap();
    Proofs::new(settings, at(-100.0))
}

/// A caller's key.
struct Prover {
    signer: Signer,
    next: Cell<u32>,
}

impl Prover {
    fn new(algorithm: Algorithm) -> Self {
        Self { signer: Signer::new(algorithm, "caller"), next: Cell::new(0) }
    }

    fn header(&self) -> Value {
        let jwk = with(self.signer.jwk(), &json!({ "kid": null, "alg": null, "use": null }));
        json!({ "typ": "dpop+jwt", "jwk": jwk })
    }

    /// Claims of a good proof, each with a `jti` of its own.
    fn claims(&self) -> Value {
        self.next.set(self.next.get() + 1);
        let ath = URL_SAFE_NO_PAD.encode(hash(TOKEN));
        json!({ "jti": format!("proof-{}", self.next.get()), "htm": "GET", "htu": URI, "iat": NOW, "ath": ath })
    }

    fn proof(&self, header: &Value, claims: &Value) -> String {
        self.signer.token_with(&with(self.header(), header), &with(self.claims(), claims))
    }

    fn claiming(&self, claims: &Value) -> String {
        self.proof(&json!({}), claims)
    }

    fn headed(&self, header: &Value) -> String {
        self.proof(header, &json!({}))
    }

    fn thumbprint(&self) -> [u8; 32] {
        let jwt = self.claiming(&json!({}));
        Signed::parse(&jwt, &[self.signer_algorithm()]).ok().map(|signed| signed.thumbprint).unwrap()
    }

    fn signer_algorithm(&self) -> Algorithm {
        Algorithm::named(self.signer.jwk()["alg"].as_str().unwrap()).unwrap()
    }

    /// What becomes of a proof that came with this caller's token.
    fn judge(&self, proofs: &Proofs, jwt: &str, now: SystemTime) -> &'static str {
        let proof = Proof { jwt, method: "GET", uri: URI };
        let judged = proofs.judge(&proof, &self.thumbprint(), &hash(TOKEN), now);
        judged.err().map_or("taken", |error| error.code())
    }
}

#[test]
fn the_rfcs_own_example_is_taken_once() {
    // RFC 9449, 7.1 and 6.1: token, proof and thumbprint as printed there.
    let jwt = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0\
               RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMj\
               U2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm\
               90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFF\
               byJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA";
    let jkt =
        URL_SAFE_NO_PAD.decode("0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I").unwrap().try_into().unwrap();
    let (token, then) =
        (hash("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"), Duration::from_secs(1_562_262_618));
    let then = SystemTime::UNIX_EPOCH + then;
    let proofs = Proofs::new(ProofSettings::without_nonces(), then - Duration::from_secs(1));
    let proof = Proof { jwt, method: "GET", uri: "https://resource.example.org/protectedresource" };
    assert_eq!(proofs.judge(&proof, &jkt, &hash(TOKEN), then), Err(ProofError::Token.into()));
    assert_eq!(proofs.judge(&proof, &jkt, &token, then), Ok(()));
    assert_eq!(proofs.judge(&proof, &jkt, &token, then), Err(ProofError::Replayed.into()));
}

#[test]
fn good_proofs_of_every_algorithm_are_taken_once() {
    let proofs = proofs(NonceUse::Optional);
    for algorithm in [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256, Algorithm::Ps256] {
        let caller = Prover::new(algorithm);
        let proof = caller.claiming(&json!({}));
        assert_eq!(caller.judge(&proofs, &proof, now()), "taken", "{algorithm}");
        for later in [0.0, 1.0, 59.0, 60.0] {
            assert_eq!(caller.judge(&proofs, &proof, at(later)), "proof_replayed", "{algorithm} {later}");
        }
        assert_eq!(caller.judge(&proofs, &proof, at(61.0)), "proof_stale", "{algorithm}");
    }
    let caller = Prover::new(Algorithm::Es256);
    for good in [
        caller.claiming(&json!({ "iat": NOW - 60 })),
        caller.claiming(&json!({ "iat": NOW + 30 })),
        caller.claiming(&json!({ "iat": 1_799_999_990.5 })),
        caller.claiming(&json!({ "htu": format!("{URI}?page=2#top") })),
        caller.claiming(&json!({ "htu": "HTTPS://RELAY.example.com:443/billing/v1/x/../invoices/%37" })),
        caller.claiming(&json!({ "nonce": "somebody else's", "exp": 1, "more": [1] })),
        caller
            .headed(&json!({ "kid": "mine", "jku": "https://evil.example", "x5u": "https://evil.example" })),
        caller.headed(
            &json!({ "jwk": with(caller.signer.jwk(), &json!({ "ext": true, "key_ops": ["verify"] })) }),
        ),
    ] {
        assert_eq!(caller.judge(&proofs, &good, now()), "taken", "{good}");
    }
}

#[test]
fn nonces_are_asked_for_and_taken_where_they_are_required() {
    let (caller, proofs) = (Prover::new(Algorithm::Es256), proofs(NonceUse::Required));
    let nonced = |nonce: Value| caller.claiming(&json!({ "nonce": nonce }));
    let nonce = proofs.nonce(now()).unwrap();
    for bad in [json!(null), json!(""), json!("made up"), json!([nonce]), json!(format!("{nonce}A"))] {
        assert_eq!(caller.judge(&proofs, &nonced(bad.clone()), now()), "proof_nonce", "{bad}");
    }
    let proof = nonced(json!(nonce));
    assert_eq!(caller.judge(&proofs, &proof, now()), "taken");
    assert_eq!(
        caller.judge(&proofs, &proof, now()),
        "proof_replayed",
        "a nonce is for many proofs, each for once"
    );
    let later = |seconds: u64| caller.claiming(&json!({ "nonce": nonce, "iat": NOW + seconds }));
    assert_eq!(caller.judge(&proofs, &later(119), at(119.0)), "taken");
    assert_eq!(caller.judge(&proofs, &later(120), at(120.0)), "proof_nonce", "it is over");
    // Only the owner of the key learns that a nonce is wanted.
    let thief = Prover::new(Algorithm::Es256);
    let forged = thief.headed(&json!({ "jwk": caller.header()["jwk"] }));
    assert_eq!(caller.judge(&proofs, &forged, now()), "proof_bad_signature");
}

#[test]
fn what_may_have_come_before_the_start_is_not_taken_again() {
    let caller = Prover::new(Algorithm::Es256);
    let (before, after) = (json!({ "iat": NOW - 1 }), json!({ "iat": NOW + 1 }));
    let settings = DpopFile::default().settings().unwrap();
    let relay = Proofs::new(settings.clone(), at(0.9));
    // A caller's clock may be 30 s ahead, and date after the start what it sent before.
    for made in [-1, 0, 1, 29, 30] {
        let claims = json!({ "iat": i64::try_from(NOW).unwrap() + made });
        assert_eq!(caller.judge(&relay, &caller.claiming(&claims), at(1.0)), "proof_nonce", "{made}");
    }
    assert_eq!(caller.judge(&relay, &caller.claiming(&json!({ "iat": NOW + 31 })), at(1.0)), "taken");
    let nonce = relay.nonce(at(1.0)).unwrap();
    let shown = caller.claiming(&json!({ "iat": NOW - 1, "nonce": nonce }));
    assert_eq!(caller.judge(&relay, &shown, at(1.0)), "taken", "its nonce shows that it was made for us");
    assert!(relay.nonce(at(90.0)).is_some());
    assert_eq!(relay.nonce(at(91.0)), None, "nothing from before the start is good any more");
    // An agent cannot ask for a nonce.
    let agent = Proofs::new(ProofSettings::without_nonces(), now());
    assert_eq!(caller.judge(&agent, &caller.claiming(&before), now()), "proof_older");
    assert_eq!(
        caller.judge(&agent, &caller.claiming(&json!({})), now()),
        "proof_older",
        "of the second of the start"
    );
    assert_eq!(caller.judge(&agent, &caller.claiming(&after), now()), "taken");
    assert_eq!(agent.nonce(now()), None);
    // A reload forgets nothing.
    let proof = caller.claiming(&json!({ "iat": NOW + 1, "nonce": nonce }));
    assert_eq!(caller.judge(&relay, &proof, at(2.0)), "taken");
    let reloaded = relay.with(ProofSettings { nonce: NonceUse::Required, ..settings });
    assert_eq!(reloaded.nonce(at(2.0)), relay.nonce(at(2.0)));
    assert_eq!(caller.judge(&relay.with(ProofSettings::without_nonces()), &proof, at(2.0)), "proof_replayed");
}

#[test]
fn a_full_memory_is_our_fault_and_no_leave() {
    let caller = Prover::new(Algorithm::EdDsa);
    let proofs = Proofs::remembering(ProofSettings::without_nonces(), 64, at(-100.0));
    let mut full = 0;
    for _ in 0..300 {
        let proof = caller.claiming(&json!({}));
        match caller.judge(&proofs, &proof, now()) {
            "taken" => assert_eq!(caller.judge(&proofs, &proof, now()), "proof_replayed"),
            code => {
                assert_eq!(code, "proofs_full");
                full += 1;
            }
        }
    }
    assert!((300 - 64..300).contains(&full), "{full}");
    assert!(TokenError::from(ProofError::Full).is_unavailable());
}
