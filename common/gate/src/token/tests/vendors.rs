//! Tokens of the shapes that well-known providers give, judged by the very files that deploy/examples keeps for them. Their keys come
//! from a file in place of the provider's address; everything else is what an operator would run.

mod asked;

use std::fmt::Write;
use std::path::Path;

use super::*;
use crate::token::settings::{IssuerFile, JwksFile};

#[derive(serde::Deserialize)]
struct Example {
    issuers: Vec<IssuerFile>,
}

/// The issuer of `deploy/examples/issuers/<vendor>.toml`.
fn example(vendor: &str) -> IssuerFile {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../deploy/examples/issuers/{vendor}.toml"));
    let example: Example = toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let [issuer] = example.issuers.try_into().unwrap();
    issuer
}

/// An issuer as its example has it, and its key.
struct Vendor {
    issuers: Issuers,
    signer: Signer,
    header: Value,
    claims: Value,
    _dir: tempfile::TempDir,
}

impl Vendor {
    /// `keyless` members are not in the provider's key set; `header` and `claims` are those of a good token.
    fn new(vendor: &str, keyless: &[&str], header: Value, claims: Value) -> Self {
        let signer = Signer::new(Algorithm::Rs256, "k1");
        let mut jwk = signer.jwk();
        for member in keyless {
            jwk.as_object_mut().unwrap().remove(*member);
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        // As published: among keys for encryption, and of kinds that nobody here takes.
        let others = [
            json!({ "kty": "RSA", "use": "enc", "kid": "e", "n": "AQAB", "e": "AQAB" }),
            json!({ "kty": "oct", "k": "AA" }),
        ];
        std::fs::write(&file, json!({ "keys": [others[0], others[1], jwk] }).to_string()).unwrap();
        let jwks = JwksFile { file: Some(file), ..JwksFile::default() };
        let settings = IssuerFile { jwks: Some(jwks), ..example(vendor) }.settings(dir.path()).unwrap();
        assert!(
            claims["iss"] == settings.issuer || vendor == "entra-v1",
            "the file and the token name the same issuer"
        );
        let issuers = Issuers::new(vec![settings]).unwrap();
        let times = json!({ "iat": NOW, "exp": NOW + 300 });
        Self { issuers, signer, header, claims: with(claims, &times), _dir: dir }
    }

    async fn judge(&self, header: &Value, claims: &Value) -> Result<Arc<Principal>, &'static str> {
        let token =
            self.signer.token_with(&with(self.header.clone(), header), &with(self.claims.clone(), claims));
        let presented = Presented::bearer(&token);
        self.issuers.authenticate(&presented, Accept::default(), now()).await.map_err(|e| e.code())
    }

    /// The good token with these changes proves this.
    async fn proves(&self, claims: Value, expected: &str) {
        let caller = self.judge(&json!({}), &claims).await;
        assert_eq!(caller.as_ref().map(|caller| said_of(caller)), Ok(expected.to_owned()), "{claims}");
    }

    /// The good token with these changes is refused. A null removes.
    async fn refuses(&self, wrong: &[(Value, Value, &str)]) {
        for (header, claims, code) in wrong {
            let caller = self.judge(header, claims).await;
            assert_eq!(caller.as_ref().map(|caller| said_of(caller)), Err(code), "{header} {claims}");
        }
    }
}

/// All that a policy sees of a caller.
fn said_of(caller: &Principal) -> String {
    let mut said = format!("{} as {}", caller.subject(), caller.user());
    write!(said, " by {}", caller.client().unwrap_or("nobody")).unwrap();
    for (name, values) in
        [("scopes", caller.scopes()), ("roles", caller.token_roles()), ("groups", caller.groups())]
    {
        if !values.is_empty() {
            write!(said, ", {name} {}", values.join("|")).unwrap();
        }
    }
    said
}

#[tokio::test]
async fn keycloak() {
    let iss = "https://id.example.com/realms/corp";
    let claims = json!({
        "iss": iss, "sub": "f:1:ada", "typ": "Bearer", "azp": "postern-cli", "aud": ["https://relay.example.com", "account"],
        "jti": "onrtac:1", "sid": "s", "acr": "1", "auth_time": NOW, "allowed-origins": ["/*"], "scope": "openid profile email",
        "realm_access": { "roles": ["offline_access", "clerk"] },
        "resource_access": { "postern": { "roles": ["reader"] }, "account": { "roles": ["view-profile"] } },
        "preferred_username": "ada", "email": "ada@example.com", "email_verified": true, "groups": ["/finance", "/a/b"],
    });
    let vendor = Vendor::new("keycloak", &[], json!({ "kid": "k1", "typ": "JWT" }), claims);
    let all = "f:1:ada as ada by postern-cli, scopes openid|profile|email, roles offline_access|clerk|reader, groups /finance|/a/b";
    vendor.proves(json!({}), all).await;
    // A lightweight token, and a machine's.
    let light =
        json!({ "realm_access": null, "resource_access": null, "groups": null, "preferred_username": null });
    vendor.proves(light, "f:1:ada as f:1:ada by postern-cli, scopes openid|profile|email").await;
    let machine = json!({
        "azp": "batch", "client_id": "batch", "preferred_username": "service-account-batch", "groups": null, "scope": "profile",
        "resource_access": null, "auth_time": null,
    });
    vendor
        .proves(
            machine,
            "f:1:ada as service-account-batch by batch, scopes profile, roles offline_access|clerk",
        )
        .await;
    let id_token = json!({
        "typ": "ID", "aud": "postern-cli", "at_hash": "h", "scope": null, "realm_access": null, "resource_access": null,
    });
    vendor
        .refuses(&[
            (json!({}), id_token.clone(), "id_token"),
            (
                json!({}),
                with(id_token, &json!({ "at_hash": null, "aud": "https://relay.example.com" })),
                "id_token",
            ),
            (json!({}), json!({ "nonce": "n" }), "id_token"),
            (json!({}), json!({ "typ": "Refresh", "aud": iss }), "id_token"),
            (json!({}), json!({ "typ": "Offline" }), "id_token"),
            (json!({}), json!({ "typ": "Logout" }), "id_token"),
            (json!({}), json!({ "typ": null }), "required_claim"),
            (json!({}), json!({ "aud": "account" }), "wrong_audience"),
            (json!({}), json!({ "iss": "https://id.example.com/realms/other" }), "unknown_issuer"),
            (json!({ "typ": "logout+jwt" }), json!({}), "wrong_type"),
            // Bound to a key, and sent as if it were not.
            (
                json!({}),
                json!({ "typ": "DPoP", "cnf": { "jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" } }),
                "bound_as_bearer",
            ),
            // Signed with the realm's secret, as refresh tokens are.
            (json!({ "alg": "HS512" }), json!({}), "algorithm"),
        ])
        .await;
}

#[tokio::test]
async fn okta() {
    let iss = "https://example.okta.com/oauth2/default";
    let claims = json!({
        "ver": 1, "jti": "AT.1", "iss": iss, "aud": "https://relay.example.com", "cid": "0oaexamplecli", "uid": "00u1",
        "scp": ["openid", "offline_access", "invoices:read"], "auth_time": NOW, "sub": "ada@example.com", "groups": ["finance", "Everyone"],
    });
    let vendor = Vendor::new("okta", &[], json!({ "kid": "k1" }), claims);
    let all = "ada@example.com as ada@example.com by 0oaexamplecli, scopes openid|offline_access|invoices:read, groups finance|Everyone";
    vendor.proves(json!({}), all).await;
    let machine = json!({ "sub": "0oabatch", "cid": "0oabatch", "uid": null, "groups": null, "scp": ["invoices:read"], "auth_time": null });
    vendor.proves(machine, "0oabatch as 0oabatch by 0oabatch, scopes invoices:read").await;
    let id_token = json!({
        "jti": "ID.1", "aud": "0oaexamplecli", "cid": null, "uid": null, "scp": null, "amr": ["pwd"], "idp": "00o1",
        "preferred_username": "ada@example.com", "name": "Ada", "nonce": "n", "at_hash": "h",
    });
    let bare = with(id_token.clone(), &json!({ "nonce": null, "at_hash": null }));
    vendor
        .refuses(&[
            (json!({}), id_token, "id_token"),
            (json!({}), bare.clone(), "id_token"),
            (json!({}), with(bare, &json!({ "aud": "https://relay.example.com" })), "id_token"),
            // The org's own authorization server.
            (
                json!({ "typ": "application/okta-internal-at+jwt" }),
                json!({ "iss": "https://example.okta.com" }),
                "unknown_issuer",
            ),
            (json!({ "typ": "application/okta-internal-at+jwt" }), json!({}), "wrong_type"),
            (json!({}), json!({ "aud": "api://default" }), "wrong_audience"),
        ])
        .await;
}

#[tokio::test]
async fn auth0() {
    let iss = "https://example.eu.auth0.com/";
    let claims = json!({
        "iss": iss, "sub": "auth0|1", "aud": ["https://relay.example.com", format!("{iss}userinfo")], "azp": "auth0examplecli",
        "scope": "openid profile offline_access", "permissions": ["read:invoices"], "https://example.com/roles": ["clerk"],
    });
    let vendor = Vendor::new("auth0", &[], json!({ "kid": "k1", "typ": "JWT" }), claims);
    let all = "auth0|1 as auth0|1 by auth0examplecli, scopes openid|profile|offline_access, roles clerk|read:invoices";
    vendor.proves(json!({}), all).await;
    // The API's profile for RFC 9068, and a machine.
    let rfc = json!({ "azp": null, "client_id": "auth0examplecli", "jti": "1" });
    let caller = vendor.judge(&json!({ "typ": "at+jwt" }), &rfc).await.unwrap();
    assert_eq!(said_of(&caller), all);
    let machine = json!({
        "sub": "m2m@clients", "azp": "m2m", "gty": "client-credentials", "aud": "https://relay.example.com", "scope": "read:invoices",
        "https://example.com/roles": null,
    });
    vendor
        .proves(machine, "m2m@clients as m2m@clients by m2m, scopes read:invoices, roles read:invoices")
        .await;
    let id_token = json!({ "aud": "auth0examplecli", "azp": null, "scope": null, "permissions": null, "sid": "s", "name": "Ada" });
    vendor
        .refuses(&[
            (json!({}), with(id_token.clone(), &json!({ "nonce": "n" })), "id_token"),
            (json!({}), id_token, "id_token"),
            (json!({}), json!({ "aud": format!("{iss}userinfo") }), "wrong_audience"),
            (json!({}), json!({ "iss": iss.trim_end_matches('/') }), "unknown_issuer"),
        ])
        .await;
    // No audience was asked for: an encrypted token, opaque to all but Auth0, dots and all.
    for (opaque, code) in [
        ("eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..aXY.Y2lwaGVydGV4dA.dGFn", "algorithm"),
        ("2YotnFZFEjr1zCsicMWpAAAAAAAAAAAA", "malformed"),
    ] {
        let refusal = vendor.issuers.authenticate(&Presented::bearer(opaque), Accept::default(), now()).await;
        assert_eq!(refusal.unwrap_err().code(), code);
    }
}

const TENANT: &str = "11111111-2222-3333-4444-555555555555";
const GROUP: &str = "cccccccc-1111-2222-3333-444444444444";

#[tokio::test]
async fn entra_v2() {
    let api = "aaaaaaaa-1111-2222-3333-444444444444";
    let claims = json!({
        "aud": api, "iss": format!("https://login.microsoftonline.com/{TENANT}/v2.0"), "nbf": NOW, "aio": "x", "azp": "bbbb",
        "azpacr": "0", "name": "Ada", "oid": "o1", "preferred_username": "ada@example.com", "rh": "0.x", "scp": "invoices.read user",
        "sub": "pairwise", "tid": TENANT, "uti": "u", "ver": "2.0", "groups": [GROUP], "roles": ["Clerk"],
    });
    // Its key set names no algorithm.
    let vendor = Vendor::new("entra-v2", &["alg"], json!({ "kid": "k1", "typ": "JWT" }), claims);
    let all = format!(
        "pairwise as ada@example.com by bbbb, scopes invoices.read|user, roles Clerk, groups {GROUP}"
    );
    vendor.proves(json!({}), &all).await;
    let machine = json!({ "scp": null, "name": null, "preferred_username": null, "groups": null, "azpacr": "1", "idtyp": "app", "sub": "o2" });
    vendor.proves(machine, "o2 as o2 by bbbb, roles Clerk").await;
    let id_token = json!({ "aud": "bbbb", "azp": null, "azpacr": null, "scp": null, "groups": null });
    let overage = json!({
        "groups": null, "_claim_names": { "groups": "src1" },
        "_claim_sources": { "src1": { "endpoint": "https://graph.windows.net/t/users/o1/getMemberObjects" } },
    });
    vendor
        .refuses(&[
            // Too many groups to send is not the same as none.
            (json!({}), overage, "claim_elsewhere"),
            (json!({}), json!({ "groups": null, "hasgroups": true }), "claim_elsewhere"),
            (json!({}), id_token.clone(), "id_token"),
            (json!({}), with(id_token, &json!({ "aud": api })), "id_token"),
            // For Microsoft Graph: its header has a nonce that its signature knows otherwise.
            (json!({}), json!({ "aud": "00000003-0000-0000-c000-000000000000" }), "wrong_audience"),
            // Another tenant, and the other version.
            (json!({}), json!({ "iss": "https://login.microsoftonline.com/99999999-2222-3333-4444-555555555555/v2.0" }), "unknown_issuer"),
            (json!({}), json!({ "iss": format!("https://sts.windows.net/{TENANT}/") }), "unknown_issuer"),
            // A proof of possession token of the old kind.
            (json!({ "typ": "pop" }), json!({}), "wrong_type"),
        ])
        .await;
}

#[tokio::test]
async fn entra_v1() {
    let claims = json!({
        "aud": "api://aaaaaaaa-1111-2222-3333-444444444444", "iss": format!("https://sts.windows.net/{TENANT}/"), "nbf": NOW, "acr": "1",
        "aio": "x", "amr": ["pwd", "mfa"], "appid": "bbbb", "appidacr": "0", "ipaddr": "192.0.2.1", "name": "Ada", "oid": "o1",
        "scp": "invoices.read", "sub": "pairwise", "tid": TENANT, "unique_name": "ada@example.com", "upn": "ada@example.com",
        "uti": "u", "ver": "1.0", "groups": [GROUP],
    });
    let vendor = Vendor::new("entra-v1", &["alg"], json!({ "kid": "k1", "typ": "JWT", "x5t": "k1" }), claims);
    let all = format!("pairwise as ada@example.com by bbbb, scopes invoices.read, groups {GROUP}");
    vendor.proves(json!({}), &all).await;
    // The same person's token of version 2 comes from the same issuer.
    let second = json!({
        "iss": format!("https://login.microsoftonline.com/{TENANT}/v2.0"), "aud": "aaaaaaaa-1111-2222-3333-444444444444", "ver": "2.0",
        "appid": null, "azp": "bbbb", "upn": null, "preferred_username": "ada@example.com",
    });
    vendor.proves(second.clone(), &all).await;
    let caller = vendor.judge(&json!({}), &second).await.unwrap();
    assert_eq!(caller.iss(), format!("https://sts.windows.net/{TENANT}/"), "one issuer, one identity");
    vendor
        .proves(
            json!({ "scp": null, "upn": null, "groups": null, "roles": ["Clerk"], "idtyp": "app" }),
            "pairwise as pairwise by bbbb, roles Clerk",
        )
        .await;
    let id_token = json!({ "aud": "bbbb", "appid": null, "scp": null });
    vendor
        .refuses(&[
            (json!({}), json!({ "groups": null, "_claim_names": { "groups": "src1" } }), "claim_elsewhere"),
            (json!({}), id_token, "id_token"),
            (json!({}), json!({ "aud": "https://graph.microsoft.com" }), "wrong_audience"),
        ])
        .await;
}

#[tokio::test]
async fn cognito() {
    let iss = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_EXAMPLE";
    let claims = json!({
        "sub": "u1", "cognito:groups": ["finance"], "iss": iss, "version": 2, "client_id": "1examplecli", "origin_jti": "o", "event_id": "e",
        "token_use": "access", "scope": "openid invoices/read", "auth_time": NOW, "jti": "j", "username": "ada",
    });
    let vendor = Vendor::new("cognito", &[], json!({ "kid": "k1" }), claims);
    vendor.proves(json!({}), "u1 as ada by 1examplecli, scopes openid|invoices/read, groups finance").await;
    vendor
        .proves(
            json!({ "cognito:groups": null, "username": null }),
            "u1 as u1 by 1examplecli, scopes openid|invoices/read",
        )
        .await;
    let id_token = json!({
        "token_use": "id", "aud": "1examplecli", "client_id": null, "scope": null, "username": null, "cognito:username": "ada",
        "at_hash": "h", "cognito:roles": ["arn:aws:iam::1:role/x"],
    });
    vendor
        .refuses(&[
            (json!({}), id_token.clone(), "id_token"),
            (json!({}), with(id_token, &json!({ "at_hash": null })), "id_token"),
            (json!({}), json!({ "token_use": null }), "required_claim"),
            (json!({}), json!({ "client_id": "anothercli" }), "wrong_audience"),
            (json!({}), json!({ "client_id": null }), "missing_claim"),
            // Once the pool is set up for audiences, the client does not stand for it any more.
            (json!({}), json!({ "aud": "https://other.example.com" }), "wrong_audience"),
        ])
        .await;
}
