//! Services as they are typed, and what they mean.

use postern_base::config::Source;

use super::*;

fn service(text: &str) -> Result<Service, String> {
    let source = Source::from_text("agent.toml", text);
    let file: ServiceFile = source.parse().map_err(|e| e.to_string())?;
    let name = "billing".parse().unwrap();
    Service::new(&name, &file, Path::new("/etc/postern")).map_err(|p| format!("{}: {p}", p.at.join(".")))
}

fn port(host: &str, port: u16) -> Address {
    Address::Port { host: host.to_owned(), port }
}

#[test]
fn each_kind_of_upstream_has_its_protocol_and_port() {
    let of = |upstream: &str| {
        let service = service(&format!("upstream = {upstream}")).unwrap();
        (service.protocol, service.tls.is_some(), service.addresses)
    };
    assert_eq!(of("\"http://wiki\""), (Protocol::Http1, false, vec![port("wiki", 80)]));
    assert_eq!(of("\"https://[::1]/\""), (Protocol::Http1, true, vec![port("::1", 443)]));
    assert_eq!(of("\"h2c://127.0.0.1:50051\""), (Protocol::Http2, false, vec![port("127.0.0.1", 50051)]));
    assert_eq!(of("\"h2://grpc.corp\""), (Protocol::Http2, true, vec![port("grpc.corp", 443)]));
    assert_eq!(of("\"tcp://10.0.5.20:5432\""), (Protocol::Tcp, false, vec![port("10.0.5.20", 5432)]));
    let socket = Address::Unix("/run/app.sock".into());
    assert_eq!(of("\"unix:/run/app.sock\""), (Protocol::Http1, false, vec![socket]));
    let two = vec![port("a", 8443), port("b", 8443)];
    assert_eq!(of("[\"https://a:8443\", \"https://b:8443\"]"), (Protocol::Http1, true, two));
}

#[test]
fn what_a_kind_does_not_know_is_refused_where_it_stands() {
    for (text, at, says) in [
        ("upstream = \"ftp://a\"", "upstream", "only http"),
        ("upstream = \"127.0.0.1:8080\"", "upstream", "write it like"),
        ("upstream = []", "upstream", "at least one"),
        ("upstream = \"http://a/path\"", "upstream", "only scheme, host and port"),
        ("upstream = \"http://u@a\"", "upstream", "only scheme, host and port"),
        ("upstream = \"http://a:65536\"", "upstream", "65535"),
        ("upstream = \"http://a:0\"", "upstream", "65535"),
        ("upstream = \"tcp://a\"", "upstream", "needs its port"),
        ("upstream = \"unix:app.sock\"", "upstream", "whole path"),
        ("upstream = [\"http://a\", \"nonsense\"]", "upstream.1", "write it like"),
        ("upstream = [\"http://a\", \"https://a\"]", "upstream", "one kind"),
        ("upstream = \"http://a\"\ntls = { ca = \"x\" }", "tls", "https://"),
        ("upstream = \"h2c://a\"\ntls = { min_version = \"1.3\" }", "tls", "h2://"),
        ("upstream = \"https://a\"\ntls = { cert = \"x\" }", "tls.cert", "needs key"),
        ("upstream = \"https://a\"\ntls = { key = \"x\" }", "tls.key", "needs cert"),
        ("upstream = \"https://a\"\ntls = { server_name = \"a b\" }", "tls.server_name", "DNS name"),
        ("upstream = \"http://a\"\nhost = \"a b\"", "host", "billing.corp"),
        ("upstream = \"http://a\"\nonly = [\"GET /a\", \"get /b\"]", "only.1", ""),
        ("upstream = \"http://a\"\ninject = { Connection = { env = \"X\" } }", "inject.Connection", "steers"),
        ("upstream = \"http://a\"\ninject = { X-HTTP_Method = { env = \"X\" } }", "inject.X-HTTP_Method", ""),
        ("upstream = \"http://a\"\ninject = { \"a b\" = { env = \"X\" } }", "inject.a b", "name of a header"),
        (
            "upstream = \"http://a\"\ninject = { A-B = { env = \"X\" }, a_b = { env = \"X\" } }",
            "inject.a_b",
            "twice",
        ),
        ("upstream = \"http://a\"\nhealth = { path = \"ping\" }", "health.path", "/ping"),
        ("upstream = \"http://a\"\nhealth = { every = \"0s\" }", "health.every", "10ms"),
        ("upstream = \"http://a\"\nhealth = { unhealthy_after = 0 }", "health.unhealthy_after", "at least 1"),
        ("upstream = \"http://a\"\nlimit = { concurrent = 0 }", "limit.concurrent", "at least 1"),
        ("upstream = \"http://a\"\nlimit = { idle = \"0s\" }", "limit.idle", "10ms"),
        ("upstream = \"tcp://a:1\"\nhost = \"a\"", "host", "belongs to HTTP"),
        ("upstream = \"tcp://a:1\"\nhealth = { path = \"/\" }", "health.path", "belongs to HTTP"),
        ("upstream = \"tcp://a:1\"\nlimit = { idle = \"1s\" }", "limit.idle", "belongs to HTTP"),
        ("upstream = \"tcp://a:1\"\ntls = { ca = \"x\" }", "tls", "https://"),
    ] {
        let refused = service(text).map(|service| format!("{service:?}")).unwrap_err();
        assert!(refused.starts_with(&format!("{at}: ")) && refused.contains(says), "{text}\n{refused}");
    }
    for unknown in ["min_version = \"1.1\"", "verify = false"] {
        assert!(service(&format!("upstream = \"https://a\"\ntls = {{ {unknown} }}")).is_err(), "{unknown}");
    }
}

#[test]
fn files_start_from_the_configurations_directory_and_defaults_are_filled_in() {
    let service = service(
        "upstream = \"https://a\"\nhost = \"billing.corp\"\ninject = { X-Key = { file = \"key\" } }\n\
         tls = { cert = \"c.pem\", key = \"/k.pem\", min_version = \"1.3\" }\nhealth = {}\n",
    )
    .unwrap();
    let tls = service.tls.unwrap();
    assert_eq!(tls.own, Some(("/etc/postern/c.pem".into(), "/k.pem".into())));
    assert_eq!(tls.min_version, TlsVersion::V13);
    assert_eq!(service.inject, [("x-key".parse().unwrap(), SecretRef::File("/etc/postern/key".into()))]);
    let origins = [("a", 443), ("billing.corp", 80), ("billing.corp", 443)];
    assert_eq!(service.origins, origins.map(|(host, port)| (host.to_owned(), port)));
    let health = service.health.unwrap();
    assert_eq!((health.every, health.unhealthy_after), (Duration::from_secs(10), 3));
    assert_eq!((service.limit.concurrent, service.limit.idle), (None, Duration::from_mins(5)));
}
