use super::*;
use crate::token::tests::support::{NOW, at, good_claims, now, settings, with};
use serde_json::json;

const ISSUER: &str = "https://id.example.com";

fn judged(changes: &Value, typ: Option<&str>, more: &str) -> Result<Proved, TokenError> {
    let Value::Object(claims) = with(good_claims(ISSUER), changes) else { unreachable!() };
    judge(claims, Said::InToken(typ), &settings(ISSUER, more), TokenId([0; 8]), now())
}

fn code(changes: &Value) -> &'static str {
    judged(changes, Some("at+jwt"), "").err().map_or("accepted", |e| e.code())
}

#[test]
fn a_good_token_proves_who_and_what() {
    let changes = json!({ "roles": ["r"], "groups": "g h,i", "acr": "mfa", "auth_time": NOW - 10, "aud": ["x", "postern"] });
    let proved = judged(&changes, Some("at+jwt"), "").unwrap();
    assert_eq!((proved.iss.as_str(), proved.subject.as_str(), proved.user.as_str()), (ISSUER, "ada", "ada"));
    assert_eq!(proved.client.as_deref(), Some("cli"));
    assert_eq!(proved.audience, ["x", "postern"]);
    assert_eq!(
        (proved.scopes.as_slice(), proved.token_roles.as_slice()),
        (["a".to_owned(), "b".to_owned()].as_slice(), ["r".to_owned()].as_slice())
    );
    assert_eq!(proved.groups, ["g h", "i"]);
    assert_eq!(
        (proved.acr.as_deref(), proved.auth_time, proved.expires),
        (Some("mfa"), Some(NOW - 10), NOW + 300)
    );
    assert_eq!(proved.claims["aud"], json!(["x", "postern"]));
}

#[test]
fn times_are_checked_to_the_second() {
    for (changes, expected) in [
        (json!({ "exp": NOW - 29 }), "accepted"),
        (json!({ "exp": NOW - 30 }), "expired"),
        (json!({ "exp": 0 }), "expired"),
        (json!({ "exp": 1_800_000_010.5 }), "accepted"),
        (json!({ "exp": null }), "missing_claim"),
        (json!({ "exp": "2000000000" }), "bad_claim"),
        (json!({ "exp": -1 }), "bad_claim"),
        (json!({ "exp": true }), "bad_claim"),
        (json!({ "exp": [NOW + 300] }), "bad_claim"),
        (json!({ "exp": u64::MAX }), "bad_claim"),
        (json!({ "exp": 1e300 }), "bad_claim"),
        (json!({ "exp": 9_007_199_254_740_991_u64 }), "lives_too_long"),
        (json!({ "nbf": NOW + 30 }), "accepted"),
        (json!({ "nbf": NOW + 31 }), "not_yet_valid"),
        (json!({ "nbf": "now" }), "bad_claim"),
        (json!({ "iat": NOW + 30 }), "accepted"),
        (json!({ "iat": NOW + 31 }), "issued_in_future"),
        (json!({ "iat": 1_800_000_031.5 }), "issued_in_future"),
        (json!({ "iat": {} }), "bad_claim"),
        (json!({ "iat": NOW, "exp": NOW + 86_400 }), "accepted"),
        (json!({ "iat": NOW, "exp": NOW + 86_401 }), "lives_too_long"),
        (json!({ "iat": NOW - 86_400, "exp": NOW + 1 }), "lives_too_long"),
        (json!({ "iat": null, "exp": NOW + 86_400 }), "accepted"),
        (json!({ "iat": null, "exp": NOW + 86_401 }), "lives_too_long"),
    ] {
        assert_eq!(code(&changes), expected, "{changes}");
    }
    assert!(!is_expired(NOW, Duration::ZERO, at(-0.001)) && is_expired(NOW, Duration::ZERO, now()));
}

#[test]
fn claims_of_the_wrong_type_are_refused() {
    for (changes, expected) in [
        (json!({ "sub": null }), "missing_claim"),
        (json!({ "sub": "" }), "bad_claim"),
        (json!({ "sub": 7 }), "bad_claim"),
        (json!({ "sub": ["ada"] }), "bad_claim"),
        (json!({ "aud": null }), "missing_claim"),
        (json!({ "aud": 7 }), "bad_claim"),
        (json!({ "aud": { "postern": true } }), "bad_claim"),
        (json!({ "aud": ["postern", 7] }), "bad_claim"),
        (json!({ "scope": 7 }), "bad_claim"),
        (json!({ "scope": ["a", ["b"]] }), "bad_claim"),
        (json!({ "roles": { "a": 1 } }), "bad_claim"),
        (json!({ "groups": [null] }), "bad_claim"),
        (json!({ "client_id": ["cli"] }), "bad_claim"),
        (json!({ "client_id": "" }), "bad_claim"),
        (json!({ "acr": 2 }), "bad_claim"),
        (json!({ "auth_time": "yesterday" }), "bad_claim"),
        (json!({ "token_use": 1 }), "bad_claim"),
        (json!({ "cnf": { "jkt": "x" } }), "bound_token"),
        (json!({ "cnf": { "kid": "x" } }), "bound_token"),
    ] {
        assert_eq!(code(&changes), expected, "{changes}");
    }
    let nulls = r#"{"iss":"i","sub":"ada","aud":"postern","exp":1800000300,"nbf":null,"iat":null,"roles":null,"acr":null}"#;
    let claims = serde_json::from_str(nulls).unwrap();
    assert!(
        judge(claims, Said::InToken(Some("at+jwt")), &settings(ISSUER, ""), TokenId([0; 8]), now()).is_ok()
    );
}

#[test]
fn claims_are_found_where_the_issuer_keeps_them() {
    let more = r#"
        scope_from = ["scope", "scp"]
        roles_from = ["realm_access.roles", "https://example.com/roles"]
        client_from = ["cid", "azp"]
        user_from = "preferred_username"
    "#;
    let changes = json!({
        "client_id": null, "azp": "web", "scope": "a,b  c", "scp": ["d"], "preferred_username": "ada@example.com",
        "realm_access": { "roles": ["clerk"] }, "https://example.com/roles": "x, y z",
    });
    let proved = judged(&changes, Some("at+jwt"), more).unwrap();
    assert_eq!(proved.scopes, ["a", "b", "c", "d"]);
    assert_eq!(proved.token_roles, ["clerk", "x", "y z"]);
    assert_eq!((proved.client.as_deref(), proved.user.as_str()), (Some("web"), "ada@example.com"));
    let machine = judged(&json!({}), Some("at+jwt"), more).unwrap();
    assert_eq!((machine.user.as_str(), machine.token_roles.len()), ("ada", 0));
    let wrong = judged(&json!({ "realm_access": ["clerk"] }), Some("at+jwt"), more);
    assert_eq!(wrong.unwrap_err(), TokenError::BadClaim("roles"));
}

#[test]
fn lists_come_as_arrays_or_with_separators() {
    for (roles, expected) in [
        (json!(["a b", "c,d"]), vec!["a b", "c,d"]),
        (json!("a b"), vec!["a", "b"]),
        (json!("a b,c"), vec!["a b", "c"]),
        (json!(" a ,, b, "), vec!["a", "b"]),
        (json!(""), vec![]),
        (json!([]), vec![]),
    ] {
        let proved = judged(&json!({ "roles": roles, "groups": roles }), Some("at+jwt"), "").unwrap();
        assert_eq!(proved.token_roles, expected, "{roles}");
        assert_eq!(proved.groups, expected, "{roles}");
    }
    let scopes = judged(&json!({ "scope": "a b,c  d" }), Some("at+jwt"), "").unwrap().scopes;
    assert_eq!(scopes, ["a", "b", "c", "d"]);
}

#[test]
fn subject_and_audience_may_be_elsewhere() {
    let more = "subject_from = [\"oid\", \"sub\"]\naudience_claim = [\"aud\", \"client_id\"]";
    let with_oid = judged(&json!({ "oid": "7", "sub": null }), Some("at+jwt"), more).unwrap();
    assert_eq!((with_oid.subject.as_str(), with_oid.user.as_str()), ("7", "7"));
    assert_eq!(judged(&json!({}), Some("at+jwt"), more).unwrap().subject, "ada");
    assert_eq!(judged(&json!({ "sub": null }), Some("at+jwt"), more).unwrap_err().code(), "missing_claim");
    assert_eq!(judged(&json!({ "oid": 7 }), Some("at+jwt"), more).unwrap_err().code(), "bad_claim");
    assert_eq!(judged(&json!({ "aud": null }), Some("at+jwt"), more).unwrap().audience, ["cli"]);
    assert_eq!(judged(&json!({ "aud": [] }), Some("at+jwt"), more).unwrap().audience, [""; 0], "it is there");
    let none = judged(&json!({ "aud": null, "client_id": null }), Some("at+jwt"), more);
    assert_eq!(none.unwrap_err().code(), "missing_claim");
}

#[test]
fn required_and_forbidden_claims_and_clients() {
    let more = r#"
        clients = ["cli", "web"]
        require = { kind = ["a", "b"], ver = 2, "x.ok" = true }
        forbid = ["act", "x.no"]
    "#;
    let good = json!({ "kind": "a", "ver": 2, "x": { "ok": true } });
    for (changes, expected) in [
        (json!({}), "accepted"),
        (json!({ "kind": ["z", "b"] }), "accepted"),
        (json!({ "client_id": "web" }), "accepted"),
        (json!({ "act": null }), "accepted"),
        (json!({ "kind": null }), "required_claim"),
        (json!({ "kind": "A" }), "required_claim"),
        (json!({ "kind": ["z"] }), "required_claim"),
        (json!({ "kind": { "a": "a" } }), "required_claim"),
        (json!({ "ver": "2" }), "required_claim"),
        (json!({ "x": { "ok": "true" } }), "required_claim"),
        (json!({ "x": 1 }), "bad_claim"),
        (json!({ "act": {} }), "forbidden_claim"),
        (json!({ "x": { "ok": true, "no": false } }), "forbidden_claim"),
        (json!({ "client_id": "evil" }), "client_not_accepted"),
        (json!({ "client_id": "evil", "azp": "cli" }), "client_not_accepted"),
        (json!({ "client_id": null }), "client_not_accepted"),
    ] {
        let mut all = good.clone();
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let judged = judged(&all, Some("at+jwt"), more);
        assert_eq!(judged.err().map_or("accepted", |e| e.code()), expected, "{changes}");
    }
}

#[test]
fn what_an_issuer_answers_is_judged_alike() {
    let judged = |changes: Value| {
        let Value::Object(claims) = with(good_claims(ISSUER), &changes) else { unreachable!() };
        judge(claims, Said::WhenAsked, &settings(ISSUER, ""), TokenId([0; 8]), now())
    };
    let code = |changes| judged(changes).err().map_or("accepted", |e| e.code());
    // No word of a type, a scope or a client is needed: the issuer says that it is good for its audience.
    assert_eq!(code(json!({ "scope": null, "client_id": null, "iat": null })), "accepted");
    let dates =
        json!({ "exp": (NOW + 60).to_string(), "iat": NOW.to_string(), "auth_time": NOW.to_string() });
    let proved = judged(dates).unwrap();
    assert_eq!((proved.expires, proved.auth_time), (NOW + 60, Some(NOW)), "numbers as text");
    for (changes, expected) in [
        (json!({ "exp": (NOW - 60).to_string() }), "expired"),
        (json!({ "exp": "-5" }), "bad_claim"),
        (json!({ "exp": "1e9" }), "bad_claim"),
        (json!({ "exp": null }), "missing_claim"),
        (json!({ "sub": null }), "missing_claim"),
        (json!({ "aud": null }), "missing_claim"),
        (json!({ "token_type": "Bearer" }), "accepted"),
        (json!({ "token_type": "DPoP", "typ": "DPoP" }), "accepted"),
        (json!({ "token_type": "access_token", "token_use": "access_token" }), "accepted"),
        (json!({ "typ": "application/at+jwt" }), "accepted"),
        (json!({ "token_type": "refresh_token" }), "id_token"),
        (json!({ "token_use": "refresh_token" }), "id_token"),
        (json!({ "typ": "Refresh" }), "id_token"),
        (json!({ "typ": "ID" }), "id_token"),
        (json!({ "at_hash": "h" }), "id_token"),
        (json!({ "token_type": 1 }), "bad_claim"),
    ] {
        assert_eq!(code(changes.clone()), expected, "{changes}");
    }
}

#[test]
fn an_address_counts_only_when_verified() {
    let user = |changes| judged(&changes, Some("at+jwt"), "user_from = \"email\"").map(|proved| proved.user);
    assert_eq!(user(json!({ "email": "a@example.com", "email_verified": true })).unwrap(), "a@example.com");
    for unverified in [json!(false), json!("true"), json!(1), json!(null)] {
        let refusal = user(json!({ "email": "a@example.com", "email_verified": unverified })).unwrap_err();
        assert_eq!(refusal, TokenError::UnverifiedEmail);
    }
    assert_eq!(user(json!({ "email_verified": true })).unwrap(), "ada", "a machine has none");
    let several = |changes| {
        judged(&changes, Some("at+jwt"), "user_from = [\"upn\", \"email\"]").map(|proved| proved.user)
    };
    assert_eq!(several(json!({ "upn": "u", "email": "a@example.com" })).unwrap(), "u");
    assert_eq!(several(json!({ "email": "a@example.com" })).unwrap_err(), TokenError::UnverifiedEmail);
}

#[test]
fn too_many_groups_to_send_are_not_no_groups() {
    let elsewhere = json!({ "_claim_names": { "groups": "src1" }, "_claim_sources": { "src1": {} } });
    assert_eq!(code(&elsewhere), "claim_elsewhere");
    assert_eq!(code(&with(elsewhere, &json!({ "groups": ["a"] }))), "accepted");
    assert_eq!(code(&json!({ "_claim_names": { "photo": "src1" } })), "accepted");
    // Entra, where even the pointer would have been too long.
    assert_eq!(code(&json!({ "hasgroups": true })), "claim_elsewhere");
    assert_eq!(code(&json!({ "hasgroups": false })), "accepted");
    let ungrouped = judged(&json!({ "hasgroups": true }), Some("at+jwt"), "groups_from = []");
    assert!(ungrouped.unwrap().groups.is_empty(), "nobody asks for them");
}

#[test]
fn id_tokens_are_refused_whatever_the_entry_says() {
    let login = "token_type = [\"at+jwt\", \"JWT\", \"\"]\nlogin = { client_id = \"postern-cli\" }";
    let bare = json!({ "client_id": null, "scope": null });
    for (typ, changes, accepted) in [
        // Tell-tale claims, even under the right type.
        ("at+jwt", json!({ "nonce": "n" }), false),
        ("at+jwt", json!({ "at_hash": "h" }), false),
        ("at+jwt", json!({ "c_hash": "h" }), false),
        ("at+jwt", json!({ "s_hash": "h" }), false),
        ("at+jwt", json!({ "token_use": "id" }), false),
        ("at+jwt", bare.clone(), true),
        ("application/AT+JWT", bare.clone(), true),
        // A plain type: something must show that it is an access token.
        ("JWT", json!({}), true),
        ("JWT", bare.clone(), false),
        ("", bare.clone(), false),
        ("JWT", json!({ "scope": null, "client_id": null, "token_use": "access" }), true),
        ("JWT", json!({ "scope": null, "client_id": null, "scp": ["a"] }), true),
        ("JWT", json!({ "scope": null, "client_id": null, "typ": "Bearer" }), true),
        ("JWT", json!({ "scope": null, "client_id": null, "typ": "DPoP" }), true),
        ("JWT", json!({ "typ": "ID" }), false),
        ("JWT", json!({ "typ": "Refresh" }), false),
        ("JWT", json!({ "typ": "Logout" }), false),
        // Or it names its client, and is not meant for it.
        ("JWT", json!({ "scope": null }), true),
        ("JWT", json!({ "scope": null, "client_id": "postern" }), false),
        ("JWT", json!({ "scope": null, "azp": "postern" }), false),
        ("JWT", json!({ "scope": null, "aud": ["postern", "cli"] }), false),
        ("JWT", json!({ "scope": null, "aud": ["postern", "postern-cli"] }), false),
        ("", json!({ "scope": null, "client_id": null, "azp": "web", "aud": ["postern", "api"] }), true),
    ] {
        let judged = judged(&changes, (!typ.is_empty()).then_some(typ), login);
        assert_eq!(judged.is_ok(), accepted, "{typ} {changes}");
        if let Err(refusal) = judged {
            assert_eq!(refusal, TokenError::IdToken, "{typ} {changes}");
        }
    }
}
