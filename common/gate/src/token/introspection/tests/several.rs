//! Several issuers that are asked: an opaque token goes to the one that its service names, and to no other.

use postern_base::id::IssuerName;
use serde_json::json;

use super::*;

async fn two() -> ([FakeIssuer; 2], Issuers) {
    let fakes = [FakeIssuer::start().await, FakeIssuer::start().await];
    let both = ["corp", "partners"].iter().zip(&fakes).map(|(name, fake)| {
        answers(fake, &json!({ "sub": name }));
        let mut settings = settings(&fake.url, &table("auto", &format!("endpoint = \"{}{ASK}\"", fake.url)));
        settings.name = name.parse().unwrap();
        settings
    });
    let issuers = Issuers::new(both.collect()).unwrap();
    (fakes, issuers)
}

async fn subject(issuers: &Issuers, token: &str, names: Option<&[&str]>) -> Result<String, &'static str> {
    let names: Option<Vec<IssuerName>> =
        names.map(|names| names.iter().map(|name| name.parse().unwrap()).collect());
    let accept = Accept { audience: None, issuers: names.as_deref() };
    let judged = issuers.authenticate(&Presented::bearer(token), accept, now()).await;
    judged.map(|principal| principal.subject().to_owned()).map_err(|e| e.code())
}

#[tokio::test]
async fn an_opaque_token_goes_to_one_issuer_only() {
    let ([corp, partners], issuers) = two().await;
    for _ in 0..2 {
        assert_eq!(subject(&issuers, "a", Some(&["corp"])).await.unwrap(), "corp");
        assert_eq!(subject(&issuers, "b", Some(&["partners"])).await.unwrap(), "partners");
    }
    assert_eq!((corp.asked(ASK), partners.asked(ASK)), (1, 1));
    // Where it is not clear whose it is, nobody is asked.
    for names in [None, Some(&["corp", "partners"][..]), Some(&[])] {
        assert_eq!(subject(&issuers, "c", names).await, Err("opaque_token"), "{names:?}");
    }
    assert_eq!((corp.asked(ASK), partners.asked(ASK)), (1, 1));
    // What one of them says counts for its services alone, in both directions.
    answers(&corp, &json!({ "active": false }));
    assert_eq!(subject(&issuers, "d", Some(&["corp"])).await, Err("inactive"));
    assert_eq!(subject(&issuers, "d", Some(&["partners"])).await.unwrap(), "partners");
    assert_eq!(subject(&issuers, "d", Some(&["corp"])).await, Err("inactive"));
    assert_eq!(subject(&issuers, "a", Some(&["partners"])).await.unwrap(), "partners");
}

#[tokio::test]
async fn an_opaque_token_that_was_good_is_not_for_where_nobody_is_asked() {
    let ([corp, _partners], issuers) = two().await;
    assert_eq!(subject(&issuers, "a", Some(&["corp"])).await.unwrap(), "corp");
    assert_eq!(subject(&issuers, "a", Some(&[])).await, Err("opaque_token"));
    assert_eq!(subject(&issuers, "a", Some(&["corp"])).await.unwrap(), "corp");
    assert!(corp.asked(ASK) <= 2);
}
