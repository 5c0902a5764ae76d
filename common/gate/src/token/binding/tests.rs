//! Which token goes with which proof, and with which it does not.

use serde_json::json;

use super::*;
use crate::token::tests::support::{FakeIssuer, NOW, Signer, at, good_claims, now, settings, with};
use crate::token::{Accept, Algorithm, DpopFile, Issuers, ProofSettings};

const URI: &str = "https://relay.example.com/billing";

fn thumbprint(jwk: &Value) -> [u8; 32] {
    let text = |name: &str| jwk[name].as_str().unwrap();
    let members =
        format!(r#"{{"crv":"{}","kty":"EC","x":"{}","y":"{}"}}"#, text("crv"), text("x"), text("y"));
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, members.as_bytes()).as_ref().try_into().unwrap()
}

fn encoded(hash: [u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(hash)
}

async fn judge(
    issuers: &Issuers,
    scheme: Scheme,
    token: &str,
    proof: Option<&str>,
    certificate: Option<[u8; 32]>,
) -> Result<Option<Binding>, &'static str> {
    let proof = proof.map(|jwt| Proof { jwt, method: "GET", uri: URI });
    let presented = Presented { scheme, token, proof, certificate };
    let judged = issuers.authenticate(&presented, Accept::default(), now()).await;
    judged.map(|caller| caller.binding().copied()).map_err(|error| error.code())
}

fn proof(key: &Signer, token: &str, jti: &str) -> String {
    let ath = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let claims = json!({
        "jti": jti, "htm": "GET", "htu": URI, "iat": NOW, "ath": URL_SAFE_NO_PAD.encode(ath),
    });
    key.token_with(&json!({ "typ": "dpop+jwt", "jwk": key.jwk() }), &claims)
}

#[test]
fn a_claim_names_one_key_or_none() {
    let of =
        |cnf: Value| Binding::of(json!({ "cnf": cnf }).as_object().unwrap()).map_err(|error| error.code());
    assert_eq!(Binding::of(json!({}).as_object().unwrap()), Ok(None));
    assert_eq!(of(json!({ "jkt": encoded([7; 32]) })), Ok(Some(Binding::Key([7; 32]))));
    assert_eq!(of(json!({ "x5t#S256": encoded([8; 32]) })), Ok(Some(Binding::Certificate([8; 32]))));
    for (cnf, expected) in [
        (json!(null), "bad_claim"),
        (json!("jkt"), "bad_claim"),
        (json!([{ "jkt": encoded([7; 32]) }]), "bad_claim"),
        (json!({ "jkt": null }), "bound_token"),
        (json!({ "jkt": "" }), "bound_token"),
        (json!({ "jkt": "QUJD" }), "bound_token"),
        (json!({ "jkt": format!("{}=", encoded([7; 32])) }), "bound_token"),
        (json!({ "x5t#S256": [1] }), "bound_token"),
        (json!({ "x5t#S256": "QUJD" }), "bound_token"),
        (json!({}), "bound_token"),
        (json!({ "jkt": encoded([7; 32]), "x5t#S256": encoded([7; 32]) }), "bound_token"),
        (json!({ "jkt": encoded([7; 32]), "new": 1 }), "bound_token"),
        (json!({ "x5t": "QUJD" }), "bound_token"),
        (json!({ "jwk": { "kty": "oct", "k": "QUJD" } }), "bound_token"),
        (json!({ "kid": "k" }), "bound_token"),
        (json!({ "jku": "https://evil.example", "kid": "k" }), "bound_token"),
    ] {
        assert_eq!(of(cnf.clone()), Err(expected), "{cnf}");
    }
}

#[tokio::test]
async fn tokens_go_with_what_they_are_bound_to() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let (key, other) = (Signer::new(Algorithm::Es256, "a"), Signer::new(Algorithm::Es256, "b"));
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let new = || Issuers::new(vec![settings(&issuer.url, "")]).unwrap();
    let issuers = new().taking_proofs(DpopFile::default().settings().unwrap(), at(-100.0));
    let token = |cnf: Value| signer.token(&with(good_claims(&issuer.url), &json!({ "cnf": cnf })));
    let plain = token(json!(null));
    let bound = token(json!({ "jkt": encoded(thumbprint(&key.jwk())) }));
    let tls = token(json!({ "x5t#S256": encoded([9; 32]) }));
    let unknown = token(json!({ "jwk": key.jwk() }));
    let (ours, theirs) = (proof(&key, &bound, "1"), proof(&other, &bound, "1"));
    let elsewhere = proof(&key, &plain, "2");
    let (bearer, dpop) = (Scheme::Bearer, Scheme::Dpop);
    let (mine, wrong) = (Some([9; 32]), Some([8; 32]));
    for (scheme, token, proof, certificate, expected) in [
        (bearer, &plain, None, None, Ok(None)),
        // What is not asked for does no harm.
        (bearer, &plain, Some(&ours), mine, Ok(None)),
        (dpop, &plain, Some(&elsewhere), None, Err("not_dpop_bound")),
        (dpop, &plain, None, None, Err("not_dpop_bound")),
        (bearer, &bound, None, None, Err("bound_as_bearer")),
        (bearer, &bound, Some(&ours), None, Err("bound_as_bearer")),
        (bearer, &bound, None, mine, Err("bound_as_bearer")),
        (dpop, &bound, None, None, Err("proof_missing")),
        (dpop, &bound, Some(&theirs), None, Err("wrong_key")),
        (dpop, &bound, Some(&elsewhere), None, Err("proof_token")),
        (dpop, &bound, Some(&ours), None, Ok(Some(Binding::Key(thumbprint(&key.jwk()))))),
        (dpop, &bound, Some(&ours), None, Err("proof_replayed")),
        (bearer, &tls, None, mine, Ok(Some(Binding::Certificate([9; 32])))),
        (bearer, &tls, None, mine, Ok(Some(Binding::Certificate([9; 32])))),
        (bearer, &tls, None, wrong, Err("wrong_certificate")),
        (bearer, &tls, None, None, Err("no_certificate")),
        (dpop, &tls, Some(&ours), mine, Err("not_dpop_bound")),
        (bearer, &unknown, None, mine, Err("bound_token")),
        (dpop, &unknown, Some(&ours), None, Err("bound_token")),
    ] {
        let found = judge(&issuers, scheme, token, proof.map(String::as_str), certificate).await;
        assert_eq!(found, expected, "{scheme:?} {token} {proof:?} {certificate:?}");
    }
    // A reload remembers what came; an agent has a memory of its own; without either nothing bound to a key is taken.
    let reloaded = issuers.rebuild(vec![settings(&issuer.url, "")]).unwrap();
    assert_eq!(judge(&reloaded, dpop, &bound, Some(&ours), None).await, Err("proof_replayed"));
    let agent = new().taking_proofs(ProofSettings::without_nonces(), at(-100.0));
    assert!(judge(&agent, dpop, &bound, Some(&ours), None).await.is_ok());
    assert_eq!(judge(&agent, dpop, &bound, Some(&ours), None).await, Err("proof_replayed"));
    let fresh = proof(&key, &bound, "3");
    assert_eq!(judge(&new(), dpop, &bound, Some(&fresh), None).await, Err("bound_token"));
    assert_eq!(judge(&new(), bearer, &bound, None, None).await, Err("bound_as_bearer"));
}

#[tokio::test]
async fn a_proof_is_not_spent_on_a_refusal() {
    let (signer, key) = (Signer::new(Algorithm::Es256, "k"), Signer::new(Algorithm::Es256, "a"));
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let issuers = Issuers::new(vec![settings(&issuer.url, "")]).unwrap();
    let issuers = issuers.taking_proofs(DpopFile::default().settings().unwrap(), at(-100.0));
    let cnf = json!({ "cnf": { "jkt": encoded(thumbprint(&key.jwk())) } });
    let token = signer.token(&with(good_claims(&issuer.url), &cnf));
    let jwt = proof(&key, &token, "1");
    let shown = Some(Proof { jwt: &jwt, method: "GET", uri: URI });
    let presented = Presented { scheme: Scheme::Dpop, token: &token, proof: shown, certificate: None };
    let billing = ["billing".to_owned()];
    let elsewhere = Accept { audience: Some(&billing), issuers: None };
    let refused = issuers.authenticate(&presented, elsewhere, now()).await;
    assert_eq!(refused.unwrap_err(), TokenError::WrongAudience);
    let caller = issuers.authenticate(&presented, Accept::default(), now()).await.unwrap();
    // What is judged again without being sent again needs no proof.
    assert_eq!(issuers.accepts(&caller, Accept::default()), Ok(()));
    assert_eq!(issuers.accepts(&caller, elsewhere), Err(TokenError::WrongAudience));
    let partners = ["partners".parse().unwrap()];
    let others = Accept { audience: None, issuers: Some(&partners) };
    assert!(matches!(issuers.accepts(&caller, others), Err(TokenError::IssuerNotAccepted(_))));
}

#[tokio::test]
async fn an_issuer_may_demand_that_its_tokens_are_bound() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let demanding = settings(&issuer.url, "sender_constrained = \"required\"");
    let issuers = Issuers::new(vec![demanding]).unwrap();
    let tls = json!({ "cnf": { "x5t#S256": encoded([9; 32]) } });
    let (plain, bound) = (good_claims(&issuer.url), with(good_claims(&issuer.url), &tls));
    for (claims, certificate, expected) in [
        (&plain, None, Some("not_bound")),
        (&plain, Some([9; 32]), Some("not_bound")),
        (&bound, Some([8; 32]), Some("wrong_certificate")),
        (&bound, Some([9; 32]), None),
    ] {
        let token = signer.token(claims);
        let presented = Presented { certificate, ..Presented::bearer(&token) };
        let judged = issuers.authenticate(&presented, Accept::default(), now()).await;
        assert_eq!(judged.err().map(|error| error.code()), expected);
    }
}
