//! Where keys come from: the documents of an issuer, an address, a file.

use super::*;

#[tokio::test]
async fn keys_are_found_by_any_of_the_documents() {
    let key = signer("k");
    let openid = FakeIssuer::with_keys(&[&key]).await;
    assert_eq!(kids(keyring(&openid.url, "").keys(at(0.0)).await.as_ref()), ["k"]);

    // HTML with status 200 where the OpenID document would be, and an issuer with a path.
    let oauth = FakeIssuer::start().await;
    let issuer = format!("{}/realms/corp", oauth.url);
    oauth.publish(&[&key]);
    oauth.page("/realms/corp/.well-known/openid-configuration", 200, "<html>hello</html>");
    let document = json!({ "issuer": issuer, "jwks_uri": format!("{}/keys", oauth.url) }).to_string();
    oauth.page("/.well-known/oauth-authorization-server/realms/corp", 200, &document);
    assert_eq!(kids(keyring(&issuer, "").keys(at(0.0)).await.as_ref()), ["k"]);

    let bare = FakeIssuer::start().await;
    bare.publish(&[&key]);
    let uri = format!("jwks = {{ uri = \"{}/keys\" }}", bare.url);
    assert_eq!(kids(keyring(&bare.url, &uri).keys(at(0.0)).await.as_ref()), ["k"]);
    assert_eq!(bare.asked(DOCUMENT), 0);
}

#[tokio::test]
async fn discovery_asks_whom_it_may() {
    const OAUTH: &str = "/.well-known/oauth-authorization-server";
    let key = signer("k");
    // What the documents say; `//` in an endpoint's path is kept.
    let document = |url: &str| json!({ "issuer": url, "jwks_uri": format!("{url}//keys") }).to_string();
    for (discovery, openid, oauth, asked, found) in [
        ("auto", true, true, (1, 0), true),
        ("auto", false, true, (1, 1), true),
        ("auto", true, false, (1, 0), true),
        ("auto", false, false, (1, 1), false),
        ("oidc", true, true, (1, 0), true),
        ("oidc", false, true, (1, 0), false),
        ("oauth", true, true, (0, 1), true),
        ("oauth", true, false, (0, 1), false),
    ] {
        let issuer = FakeIssuer::start().await;
        // Where there is no document there is a page, as where a web application answers every address.
        for (there, path) in [(openid, DOCUMENT), (oauth, OAUTH)] {
            let page = if there {
                document(&issuer.url)
            } else {
                "<!doctype html><title>Welcome</title>".to_owned()
            };
            issuer.page(path, 200, &page);
        }
        issuer.page("//keys", 200, &json!({ "keys": [key.jwk()] }).to_string());
        let keyring = keyring(&issuer.url, &format!("discovery = \"{discovery}\""));
        let keys = keyring.keys(at(0.0)).await;
        assert_eq!(kids(keys.as_ref()) == ["k"], found, "{discovery} {openid} {oauth}");
        assert_eq!((issuer.asked(DOCUMENT), issuer.asked(OAUTH)), asked, "{discovery} {openid} {oauth}");
    }
}

#[tokio::test]
async fn an_issuer_may_call_itself_by_an_alias() {
    let issuer = FakeIssuer::start().await;
    let document = json!({ "issuer": "https://id.example.com", "jwks_uri": format!("{}/keys", issuer.url) });
    issuer.page(DOCUMENT, 200, &document.to_string());
    issuer.publish(&[&signer("k")]);
    assert!(keyring(&issuer.url, "").keys(at(0.0)).await.is_none());
    let keyring = keyring(&issuer.url, "also = \"https://id.example.com\"");
    assert_eq!(kids(keyring.keys(at(0.0)).await.as_ref()), ["k"]);
}

#[tokio::test]
async fn an_endpoint_that_one_document_lacks_is_in_the_other() {
    use crate::token::discovery::{Endpoint, client, endpoint};
    let issuer = FakeIssuer::start().await;
    let url = &issuer.url;
    issuer.page(DOCUMENT, 200, &json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }).to_string());
    let reach = settings(url, "").keys.reach;
    let ask = || async {
        endpoint(&client(&reach).unwrap(), &reach, Endpoint::Introspection).await.map_err(|e| e.to_string())
    };
    assert!(
        ask()
            .await
            .unwrap_err()
            .ends_with("names no introspection_endpoint: write its address in the configuration")
    );
    let document = json!({ "issuer": url, "introspection_endpoint": format!("{url}/introspect") });
    issuer.page("/.well-known/oauth-authorization-server", 200, &document.to_string());
    assert_eq!(ask().await.unwrap().path(), "/introspect");
}

#[tokio::test]
async fn keys_in_a_file_need_no_network_and_follow_it() {
    let (old, new) = (signer("old"), signer("new"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let publish = |key: &Signer| write(&json!({ "keys": [key.jwk()] }).to_string());
    publish(&old);
    let more = format!("discovery = \"off\"\njwks = {{ file = \"{}\", stale = \"1h\" }}", file.display());
    let keyring = keyring("https://id.example.com", &more);
    assert_eq!(kids(keyring.keys(at(0.0)).await.as_ref()), ["old"]);
    publish(&new);
    assert_eq!(kids(keyring.keys(at(0.9)).await.as_ref()), ["old"], "not with every request");
    assert_eq!(keyring.generation(at(1.1)), Some(1), "in the background");
    eventually("the file was read again", || keyring.generation(at(1.2)) == Some(2)).await;
    assert_eq!(kids(keyring.keys(at(1.2)).await.as_ref()), ["new"]);
    publish(&old);
    assert_eq!(kids(keyring.newest(at(2.3)).await.as_ref()), ["old"], "an unknown key looks at once");
    // Half written, or gone: what was known serves on, for as long as it may.
    write("{\"keys\":[");
    assert!(keyring.newest(at(10.0)).await.is_none());
    std::fs::remove_file(&file).unwrap();
    assert!(keyring.newest(at(20.0)).await.is_none());
    assert!(keyring.health().error.unwrap().contains("keys.json: cannot be read"));
    assert_eq!(kids(keyring.keys(at(3600.0)).await.as_ref()), ["old"]);
    assert!(keyring.keys(at(3700.0)).await.is_none());
    publish(&new);
    assert_eq!(kids(keyring.keys(at(3800.0)).await.as_ref()), ["new"]);
}

#[tokio::test]
async fn answers_that_are_not_what_they_should_be_bring_no_keys() {
    let key = signer("k");
    let good = json!({ "keys": [key.jwk()] }).to_string();
    for (document, keys, status, error) in [
        (json!({ "issuer": "URL/", "jwks_uri": "URL/keys" }), good.clone(), 200, "says it is issuer"),
        (
            json!({ "issuer": "https://other.example.com", "jwks_uri": "URL/keys" }),
            good.clone(),
            200,
            "says it is issuer",
        ),
        (json!({ "issuer": "URL" }), good.clone(), 200, "names no jwks_uri"),
        (json!({ "jwks_uri": "URL/keys" }), good.clone(), 200, "missing field `issuer`"),
        (
            json!({ "issuer": "URL", "jwks_uri": "http://id.example.com/keys" }),
            good.clone(),
            200,
            "only https is allowed",
        ),
        (
            json!({ "issuer": "URL", "jwks_uri": "https://10.0.0.1/keys" }),
            good.clone(),
            200,
            "private address",
        ),
        (json!({ "issuer": "URL", "jwks_uri": "nonsense" }), good.clone(), 200, "only https is allowed"),
        (json!({ "issuer": "URL", "jwks_uri": "URL/keys" }), good.clone(), 302, "answered 302 Found"),
        (json!({ "issuer": "URL", "jwks_uri": "URL/keys" }), good.clone(), 500, "answered 500"),
        (json!({ "issuer": "URL", "jwks_uri": "URL/keys" }), "{}".to_owned(), 200, "missing field `keys`"),
        (json!({ "issuer": "URL", "jwks_uri": "URL/keys" }), "{\"keys\":{}}".to_owned(), 200, "invalid type"),
        (json!({ "issuer": "URL", "jwks_uri": "URL/keys" }), " ".repeat(1 << 21), 200, "larger than"),
    ] {
        let issuer = FakeIssuer::start().await;
        issuer.page(DOCUMENT, 200, &document.to_string().replace("URL", &issuer.url));
        issuer.page("/keys", status, &keys);
        let keyring = keyring(&issuer.url, "");
        assert!(keyring.keys(at(0.0)).await.is_none(), "{document}");
        let said = keyring.health().error.unwrap();
        assert!(said.contains(error), "{document}: {said}");
        assert_eq!(issuer.asked("/elsewhere"), 0, "redirects are not followed");
    }
}
