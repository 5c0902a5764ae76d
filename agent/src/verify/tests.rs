//! What a proof was made for, against what the relay asks for. Tokens and proofs themselves are judged by `postern_gate`, whose tests
//! they have; a relay that lies with them is in the end-to-end tests.

use super::*;

fn verify(kind: ServiceKind, urls: &[&str]) -> Verify {
    Verify {
        kind,
        issuers: None,
        audience: None,
        urls: urls.iter().map(|url| url.parse().unwrap()).collect(),
    }
}

fn told(verify: &Verify, said: (&str, &str), asked: (&str, &str, bool)) -> &'static str {
    let service = "billing".parse().unwrap();
    let asked = Call { service: &service, method: asked.0, path: asked.1, is_upgrade: asked.2 };
    let credential = Credential {
        scheme: "DPoP",
        token: "t",
        proof: Some("p"),
        method: said.0,
        public_uri: said.1,
        certificate_sha256: None,
    };
    match is_for(verify, &asked, &credential) {
        Ok(()) => "good",
        Err(Refused::NoUrls) => "no urls",
        Err(Refused::OtherAddress) => "other address",
        Err(Refused::OtherRequest) => "other request",
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_proof_is_for_one_method_and_path_of_this_service() {
    let at_host = verify(ServiceKind::Http, &["https://billing.example.com/"]);
    let at_path = verify(ServiceKind::Http, &["https://relay.example.com/billing/"]);
    for (verify, said, asked, is) in [
        (&at_host, ("GET", "https://billing.example.com/v1/x"), ("GET", "/v1/x", false), "good"),
        (&at_host, ("GET", "https://billing.example.com:443/v1/x"), ("GET", "/v1/x", false), "good"),
        (&at_host, ("GET", "https://billing.example.com/v1/%7eada/../x"), ("GET", "/v1/x", false), "good"),
        (&at_host, ("GET", "https://billing.example.com"), ("GET", "/", false), "good"),
        (&at_host, ("POST", "https://billing.example.com/v1/x"), ("GET", "/v1/x", false), "other request"),
        (&at_host, ("HEAD", "https://billing.example.com/v1/x"), ("GET", "/v1/x", false), "other request"),
        (&at_host, ("GET", "https://billing.example.com/v1/x"), ("GET", "/v1/y", false), "other request"),
        (&at_host, ("GET", "https://billing.example.com/v1/x"), ("GET", "/V1/x", false), "other request"),
        (&at_host, ("GET", "https://billing.example.com:444/v1/x"), ("GET", "/v1/x", false), "other address"),
        (&at_host, ("GET", "http://billing.example.com/v1/x"), ("GET", "/v1/x", false), "other address"),
        (&at_host, ("GET", "https://wiki.example.com/v1/x"), ("GET", "/v1/x", false), "other address"),
        (&at_host, ("GET", "nonsense"), ("GET", "/v1/x", false), "other address"),
        (&at_host, ("CONNECT", "https://billing.example.com/live"), ("GET", "/live", true), "good"),
        (&at_host, ("GET", "https://billing.example.com/live"), ("GET", "/live", true), "good"),
        (&at_host, ("CONNECT", "https://billing.example.com/live"), ("GET", "/live", false), "other request"),
        (&at_host, ("POST", "https://billing.example.com/live"), ("GET", "/live", true), "other request"),
        (&at_host, ("GET", "https://billing.example.com/live"), ("POST", "/live", true), "other request"),
        (&at_path, ("GET", "https://relay.example.com/billing/v1/x"), ("GET", "/v1/x", false), "good"),
        (&at_path, ("GET", "https://relay.example.com/wiki/v1/x"), ("GET", "/v1/x", false), "other address"),
        (&at_path, ("GET", "https://relay.example.com/billing2/v1"), ("GET", "/v1", false), "other address"),
        (
            &at_path,
            ("GET", "https://relay.example.com/billing/v1/x"),
            ("GET", "/billing/v1/x", false),
            "other request",
        ),
    ] {
        assert_eq!(told(verify, said, asked), is, "{said:?} {asked:?}");
    }
    let none = verify(ServiceKind::Http, &[]);
    assert_eq!(told(&none, ("GET", "https://billing.example.com/"), ("GET", "/", false)), "no urls");
}

#[test]
fn a_tcp_service_has_one_address() {
    let tcp = verify(ServiceKind::Tcp, &["https://relay.example.com/.postern/tcp/db"]);
    let asked = (CONNECT, "", false);
    assert_eq!(told(&tcp, ("GET", "https://relay.example.com/.postern/tcp/db"), asked), "good");
    assert_eq!(told(&tcp, ("CONNECT", "https://relay.example.com/.postern/tcp/db"), asked), "good");
    assert_eq!(told(&tcp, ("POST", "https://relay.example.com/.postern/tcp/db"), asked), "other address");
    assert_eq!(told(&tcp, ("GET", "https://relay.example.com/.postern/tcp/other"), asked), "other address");
}
