//! More than eighty kinds of hostile tokens, each sent through a relay over HTTP/1.1 and HTTP/2, beside a good one that the relay knows
//! well: every one is 401, none reaches the upstream, none makes the relay fetch what the token names. Other kinds, made from a real
//! provider's tokens, are in [`crate::tokens`]; the reason of each is held against the gate itself, in its own tests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use postern_tests::http::{Http, empty, request};
use postern_tests::issuer::{ProofKey, public_jwk, sign};
use postern_tests::mint::Mint;
use postern_tests::stand::{Extra, Stand, say};
use serde_json::{Value, json};

const LIFE: Duration = Duration::from_mins(5);

/// A kind's name, and the token.
type Kind = (String, String);

/// `base` with members changed, or taken away where the change is null.
fn with(base: &Value, changes: &Value) -> Value {
    let mut all = base.clone();
    for (name, value) in changes.as_object().into_iter().flatten() {
        match (value, all.as_object_mut()) {
            (Value::Null, Some(members)) => drop(members.remove(name)),
            _ => all[name] = value.clone(),
        }
    }
    all
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What the header says: algorithm, key, type, extensions. All properly signed by the issuer's own key.
fn headers(mint: &Mint, claims: &Value, evil: &str) -> Result<Vec<Kind>> {
    let changes = [
        json!({ "alg": "none" }),
        json!({ "alg": "nOnE" }),
        json!({ "alg": "es256" }),
        json!({ "alg": "ES256K" }),
        json!({ "alg": "ES384" }),
        json!({ "alg": "RS256" }),
        json!({ "alg": "HS256" }),
        json!({ "alg": "dir" }),
        json!({ "alg": "" }),
        json!({ "alg": null }),
        json!({ "alg": ["ES256"] }),
        json!({ "alg": { "ES256": true } }),
        json!({ "kid": "new" }),
        json!({ "kid": "" }),
        json!({ "kid": "MINT" }),
        json!({ "kid": 1 }),
        json!({ "kid": ["mint"] }),
        json!({ "kid": "../../etc/passwd" }),
        json!({ "kid": "' OR 1=1 --" }),
        json!({ "kid": "x", "jku": evil }),
        json!({ "kid": "x", "x5u": evil, "x5c": ["QUJD"] }),
        json!({ "crit": ["exp"], "exp": 1 }),
        json!({ "crit": [] }),
        json!({ "crit": "b64" }),
        json!({ "b64": false }),
        json!({ "b64": true }),
        json!({ "typ": null }),
        json!({ "typ": "" }),
        json!({ "typ": "JWT" }),
        json!({ "typ": "id_token" }),
        json!({ "typ": "at+jwt2" }),
        json!({ "typ": "at+jwt " }),
        json!({ "typ": "text/at+jwt" }),
        json!({ "typ": "dpop+jwt" }),
        json!({ "typ": "logout+jwt" }),
        json!({ "typ": "secevent+jwt" }),
        json!({ "typ": "token-introspection+jwt" }),
        json!({ "typ": "postern-assertion+jwt" }),
        json!({ "typ": 1 }),
    ];
    let kind =
        |change: &Value| Ok((format!("header {change}"), mint.sign(with(&Mint::header(), change), claims)?));
    changes.iter().map(kind).collect()
}

/// What the claims say: issuer, audience, time, person, purpose, binding.
fn claims(mint: &Mint, claims: &Value) -> Result<Vec<Kind>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let (iss, aud) = (mint.iss(), mint.audience());
    let changes = [
        json!({ "iss": null }),
        json!({ "iss": "" }),
        json!({ "iss": "corp" }),
        json!({ "iss": [iss] }),
        json!({ "iss": format!("{iss}/") }),
        json!({ "iss": format!("{iss} ") }),
        json!({ "iss": format!("{iss}#") }),
        json!({ "iss": iss.to_uppercase() }),
        json!({ "iss": iss.replace("127.0.0.1", "localhost") }),
        json!({ "iss": "https://id.example.com" }),
        json!({ "aud": null }),
        json!({ "aud": [] }),
        json!({ "aud": true }),
        json!({ "aud": "https://other.example.com" }),
        json!({ "aud": format!("{aud}/") }),
        json!({ "aud": format!("{aud},other") }),
        json!({ "aud": format!("{aud}.evil.example") }),
        json!({ "aud": [aud, 1] }),
        json!({ "aud": [[aud]] }),
        json!({ "aud": { aud: aud } }),
        json!({ "exp": null }),
        json!({ "exp": 0 }),
        json!({ "exp": -1 }),
        json!({ "exp": now - 40 }),
        json!({ "exp": "never" }),
        json!({ "exp": (now + 60).to_string() }),
        json!({ "exp": true }),
        json!({ "exp": 1e300 }),
        json!({ "exp": [now + 60] }),
        json!({ "exp": now + 864_000 }),
        json!({ "nbf": now + 3600 }),
        json!({ "nbf": "now" }),
        json!({ "iat": now - 864_000 }),
        json!({ "iat": now + 3600, "exp": now + 7200 }),
        json!({ "iat": {} }),
        json!({ "sub": null }),
        json!({ "sub": "" }),
        json!({ "sub": 0 }),
        json!({ "sub": { "name": "ada" } }),
        json!({ "client_id": ["postern-cli"] }),
        json!({ "scope": { "invoices:read": true } }),
        json!({ "groups": [{ "name": "finance" }] }),
        json!({ "acr": ["mfa"] }),
        json!({ "auth_time": "yesterday" }),
        json!({ "groups": null, "_claim_names": { "groups": "s" } }),
        json!({ "groups": null, "hasgroups": true }),
        json!({ "nonce": "n" }),
        json!({ "at_hash": "h" }),
        json!({ "c_hash": "h" }),
        json!({ "token_use": "id" }),
        json!({ "cnf": {} }),
        json!({ "cnf": "none" }),
        json!({ "cnf": { "kid": "mint" } }),
        json!({ "cnf": { "x5t#S256": "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0" } }),
        json!({ "cnf": { "jkt": ProofKey::generate()?.thumbprint() } }),
    ];
    let kind = |change: &Value| {
        let shown = change.to_string();
        Ok((format!("claims {shown}"), mint.sign(Mint::header(), with(claims, change))?))
    };
    changes.iter().map(kind).collect()
}

/// JSON that a lenient reader would take, properly signed.
fn texts(mint: &Mint, claims: &Value) -> Result<Vec<Kind>> {
    let (head, text) = (Mint::header().to_string(), claims.to_string());
    let first = |text: &str, more: &str| text.replacen('{', &format!("{{{more}"), 1);
    let deep = format!("\"a\":{}{},", "[".repeat(40), "]".repeat(40));
    let kinds = [
        ("header is a list", "[]".to_owned(), text.clone()),
        ("header is null", "null".to_owned(), text.clone()),
        ("algorithm twice", first(&head, r#""alg":"none","#), text.clone()),
        ("key twice", first(&head, r#""kid":"other","#), text.clone()),
        ("a mark before the header", format!("\u{feff}{head}"), text.clone()),
        ("more behind the header", format!("{head} x"), text.clone()),
        ("claims are a list", head.clone(), "[]".to_owned()),
        ("claims are text", head.clone(), "\"ada\"".to_owned()),
        ("claims are empty", head.clone(), String::new()),
        ("subject twice", head.clone(), first(&text, r#""sub":"root","#)),
        ("subject twice, once escaped", head.clone(), first(&text, r#""\u0073ub":"root","#)),
        ("half a character", head.clone(), text.replace("sub-of-ada", "\\ud800")),
        ("a zero in the subject", head.clone(), text.replace("sub-of-ada", "a\\u0000da")),
        ("a comment", head.clone(), first(&text, "/**/")),
        ("single quotes", head.clone(), text.replace('"', "'")),
        ("a comma too many", head.clone(), text.replace('}', ",}")),
        ("more behind the claims", head.clone(), format!("{text}{{}}")),
        ("too deep", head.clone(), first(&text, &deep)),
    ];
    kinds.into_iter().map(|(name, head, text)| Ok((name.to_owned(), mint.sign(head, text)?))).collect()
}

/// What is done to a good token's three parts, and other keys.
fn forms(mint: &Mint, good: &str, claims: &Value, evil: &str) -> Result<Vec<Kind>> {
    let parts: Vec<&str> = good.split('.').collect();
    let [head, body, signature] = parts[..] else { anyhow::bail!("not three parts") };
    let stranger = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let by_stranger = |change: Value, claims: &Value| sign(&stranger, with(&Mint::header(), &change), claims);
    let hmac = |secret: &[u8]| {
        let signed = format!("{}.{body}", encode(r#"{"alg":"HS256","kid":"mint","typ":"at+jwt"}"#));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        format!("{signed}.{}", encode(tag))
    };
    // Of the last letter of 64 bytes only two bits of six count.
    let (most, last) = signature.split_at(signature.len() - 1);
    let other_bits = format!("{most}{}", char::from(last.as_bytes()[0] + 1));
    let secret = mint.iss();
    let kinds = [
        ("garbage", "a.b.c".to_owned()),
        ("three empty parts", "..".to_owned()),
        ("opaque", "Vb3hWm0o2yT5kqgqS1n8uQ".to_owned()),
        ("two parts", format!("{head}.{body}")),
        ("no signature", format!("{head}.{body}.")),
        ("four parts", format!("{good}.{signature}")),
        ("dots doubled", good.replace('.', "..")),
        ("padding", format!("{head}.{body}.{signature}==")),
        ("the other alphabet", format!("{head}.{body}.{}+/", &signature[..84])),
        ("unused bits", format!("{head}.{body}.{other_bits}")),
        (
            "as JSON",
            json!({ "protected": head, "payload": body, "signature": signature })
                .to_string()
                .replace(',', ";"),
        ),
        ("encrypted", format!("{}..aXY.Y2lwaGVy.dGFn", encode(r#"{"alg":"dir","enc":"A256GCM"}"#))),
        ("signature cut", format!("{head}.{body}.{}", &signature[..84])),
        ("signature longer", format!("{head}.{body}.AA{signature}")),
        ("signature of zeros", format!("{head}.{body}.{}", encode([0; 64]))),
        ("signature of ones", format!("{head}.{body}.{}", encode([255; 64]))),
        ("signature is text", format!("{head}.{body}.{}", encode("not a signature"))),
        ("unsigned", format!("{}.{body}.", encode(r#"{"alg":"none","typ":"at+jwt"}"#))),
        (
            "another's claims",
            format!("{head}.{}.{signature}", encode(claims.to_string().replace("sub-of-ada", "root"))),
        ),
        ("longer than may be", format!("{good}{}", "A".repeat(8192))),
        ("HMAC by what is public", hmac(secret.as_bytes())),
        ("HMAC by nothing", hmac(b"\0")),
        ("a stranger's key", by_stranger(json!({}), claims)?),
        ("a stranger's key, unnamed", by_stranger(json!({ "kid": null }), claims)?),
        ("a stranger's key, brought along", by_stranger(json!({ "jwk": public_jwk(&stranger) }), claims)?),
        ("a stranger's key, to be fetched", by_stranger(json!({ "jku": evil }), claims)?),
        ("a stranger's certificate", by_stranger(json!({ "x5c": [STANDARD.encode("DER")] }), claims)?),
        ("a stranger's issuer", by_stranger(json!({}), &with(claims, &json!({ "iss": evil })))?),
    ];
    Ok(kinds.into_iter().map(|(name, token)| (name.to_owned(), token)).collect())
}

#[tokio::test]
async fn every_hostile_token_is_401_and_reaches_nothing() -> Result<()> {
    let limits = "failed_auth = \"100000/s per address\"".to_owned();
    let stand = Stand::start_with(Extra { limits, ..Extra::default() }).await?;
    let mint = Mint::publish(&stand)?;
    mint.replace(&stand).await?;
    let evil = format!("{}/files/evil/jwks", stand.nginx.url());
    let good_claims = mint.claims("ada", LIFE, &json!({}))?;
    let good = mint.sign(Mint::header(), &good_claims)?;
    // The relay has kept it as good before any of the others comes.
    stand.http.get(&stand.at("/echo/good"), Some(&good)).await?.expect_status(200)?;

    let mut kinds = headers(&mint, &good_claims, &evil)?;
    kinds.extend(claims(&mint, &good_claims)?);
    kinds.extend(texts(&mint, &good_claims)?);
    kinds.extend(forms(&mint, &good, &good_claims, &evil)?);
    let mut tokens: Vec<&String> = kinds.iter().map(|(_, token)| token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    say(&format!("{} kinds, {} of them different", kinds.len(), tokens.len()));
    ensure!(tokens.len() >= 80 && tokens.len() == kinds.len());

    let h2 = Http::h2(stand.pki.roots()?)?;
    let mut wrong = Vec::new();
    for (at, (name, token)) in kinds.iter().enumerate() {
        for http in [&stand.http, &h2] {
            let url = stand.at(&format!("/echo/hostile/{at}"));
            let answer = http.get(&url, Some(token)).await.with_context(|| name.clone())?;
            let challenge = answer.header("www-authenticate");
            if answer.status != 401 || !challenge.contains("error=\"invalid_token\"") {
                wrong.push(format!("{name}: {} {challenge} {}", answer.status, answer.text()));
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");

    say("what is no token by the form of the field is 400, before anybody looks at it");
    let ask =
        |value: String| request("GET", &stand.at("/echo/hostile/form"), None).header("authorization", value);
    for value in [format!("Bearer {good} "), format!("Bearer  {good}")] {
        // Blanks around the token are the field's, not the token's.
        let builder = request("GET", &stand.at("/echo/good"), None).header("authorization", value);
        stand.http.send(builder.body(empty())?).await?.expect_status(200)?;
    }
    for value in [
        format!("Bearer Bearer {good}"),
        format!("Bearer {good}, Bearer {good}"),
        format!("Bearer {good},{good}"),
        format!("Bearer {good}\t{good}"),
        format!("Bearer {}", good.replace('.', "\u{ff0e}")),
    ] {
        stand.http.send(ask(value).body(empty())?).await?.expect_status(400)?;
    }

    // All that arrived is the good one's, and of the provider's documents only those of the issuer that is configured.
    let arrived: Vec<String> = stand.echo.seen().into_iter().map(|seen| seen.target).collect();
    ensure!(arrived == ["/good", "/good", "/good"], "{arrived:?}");
    let fetched = stand.nginx.seen();
    ensure!(fetched.iter().all(|line| !line["uri"].to_string().contains("evil")), "{fetched:?}");
    stand.http.get(&stand.at("/echo/good"), Some(&good)).await?.expect_status(200)?;
    stand.passed();
    Ok(())
}
