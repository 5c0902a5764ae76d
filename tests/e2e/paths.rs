//! What policy saw is what is sent: every way to write a path differently is either the same canonical path or refused.

use anyhow::{Result, ensure};
use postern_tests::http::raw;
use postern_tests::stand::{Extra, Stand, say};

/// What becomes of a target.
enum Fate {
    /// The upstream gets exactly this.
    Sent(&'static str),
    Refused(u16),
}
use Fate::{Refused, Sent};

const TARGETS: &[(&str, Fate)] = &[
    ("/echo/a/b", Sent("/a/b")),
    ("/echo", Sent("/")),
    ("/echo/", Sent("/")),
    ("/echo/a/", Sent("/a/")),
    ("/echo/%61", Sent("/a")),
    ("/echo/%7Euser", Sent("/~user")),
    ("/echo/%e4%b8%ad", Sent("/%E4%B8%AD")),
    ("/echo/a%20b", Sent("/a%20b")),
    ("/echo/a/./b", Sent("/a/b")),
    ("/echo/a/../b", Sent("/b")),
    ("/echo/a/%2e%2e/b", Sent("/b")),
    ("/echo/a/.%2E/b", Sent("/b")),
    ("/echo/a?x=%2F..%00;\\", Sent("/a?x=%2F..%00;\\")),
    ("/echo/a?", Sent("/a?")),
    ("/%65cho/a", Sent("/a")),
    ("/billing/../echo/a", Sent("/a")),
    ("/ECHO/a", Refused(404)),
    ("/echo2/a", Refused(404)),
    ("/echo/../nowhere/a", Refused(404)),
    ("/echo/../../../../echo/a", Sent("/a")),
    // Everything that some server somewhere reads as a slash, a dot segment or an end.
    ("/echo/a%2Fb", Refused(400)),
    ("/echo/a%2fb", Refused(400)),
    ("/echo/a%5Cb", Refused(400)),
    ("/echo/a\\b", Refused(400)),
    ("/echo/a%00b", Refused(400)),
    ("/echo/a%252e%252e/b", Refused(400)),
    ("/echo/a%252Fb", Refused(400)),
    ("/echo//a", Refused(400)),
    ("//echo/a", Refused(400)),
    ("/echo/a//", Refused(400)),
    ("/echo/a;b", Refused(400)),
    ("/echo/..;/b", Refused(400)),
    ("/echo/%0d%0aX-A:b", Refused(400)),
    ("/echo/%7f", Refused(400)),
    ("/echo/%zz", Refused(400)),
    ("/echo/%4", Refused(400)),
    ("/echo/%", Refused(400)),
    ("/echo/%ff%fe", Refused(400)),
    ("/echo/%c0%ae%c0%ae/b", Refused(400)),
    ("/echo/é", Refused(400)),
    ("echo/a", Refused(400)),
    ("*", Refused(400)),
    // Ways around the rule that denies /debug.
    ("/echo/debug", Refused(403)),
    ("/echo/debug/", Refused(403)),
    ("/echo/debug/x", Refused(403)),
    ("/echo/DEBUG/x", Refused(403)),
    ("/echo/%64ebug/x", Refused(403)),
    ("/echo/%44ebug/x", Refused(403)),
    ("/echo/a/../debug/x", Refused(403)),
    ("/echo/./debug/x", Refused(403)),
    ("/echo/a/%2e%2e/debug", Refused(403)),
    ("/echo/debug%2Fx", Refused(400)),
    ("/echo//debug/x", Refused(400)),
    // Ways around the prefix: another service's rules apply.
    ("/echo/../billing/v1/customers", Refused(403)),
    ("/echo/%2e%2e/billing/v1/customers", Refused(403)),
    ("/billing/v1/invoices/../customers", Refused(403)),
    ("/billing/v1/invoices/%2e%2e/%2e%2e/v1/customers", Refused(403)),
];

#[tokio::test]
async fn what_policy_saw_is_what_is_sent() -> Result<()> {
    let stand = Stand::start_with(Extra {
        limits: "failed_auth = \"1000/s per address\"".to_owned(),
        ..Extra::default()
    })
    .await?;
    let token = stand.issuer.token("ada").await?;
    let mut wrong = Vec::new();
    for (target, fate) in TARGETS {
        let before = stand.echo.seen().len();
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n",
            stand.port
        );
        let answer = raw::exchange(stand.port, stand.pki.roots()?, head.as_bytes()).await?;
        let sent: Vec<String> = stand.echo.seen().into_iter().skip(before).map(|seen| seen.target).collect();
        say(&format!("{target}: {} {sent:?}", answer.status));
        let right = match fate {
            Sent(expected) => answer.status == 200 && sent == [*expected],
            Refused(status) => answer.status == *status && sent.is_empty(),
        };
        if !right {
            wrong.push(format!("{target}: {} {sent:?}", answer.status));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(stand.nginx.seen().is_empty(), "{:?}", stand.nginx.seen());
    stand.passed();
    Ok(())
}
