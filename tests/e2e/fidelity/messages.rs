//! What a message is made of: methods, fields, trailers, statuses, ranges, lengths. Both ends say what they saw.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::process::Output;
use serde_json::{Value, json};

use super::Protocol;
use super::place::{NGINX, NODE, NODE_H2C, Place, values};

/// The upstreams of Node, on HTTP/1.1 and on HTTP/2.
const HOSTS: [&str; 2] = [NODE, NODE_H2C];

/// A request of Node's; its report.
async fn plain(place: &mut Place, protocol: Protocol, host: &str, mut job: Value) -> Result<(Value, Value)> {
    job["job"] = json!("plain");
    let (report, case) = place.call("caller.mjs", protocol, host, job).await?;
    ensure!(report["error"].is_null(), "{host}: {report}");
    let seen = place.seen(host, &case).await?;
    Ok((report, seen))
}

/// Heads of answers as curl prints them, and bodies.
fn status_lines(output: &Output) -> Vec<&str> {
    output.stdout.lines().filter(|line| line.starts_with("HTTP/")).collect()
}

fn header(output: &Output, name: &str) -> Option<String> {
    let lines = output.stdout.lines().filter_map(|line| line.split_once(": "));
    lines
        .into_iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().to_owned())
}

pub(super) async fn head(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let job = json!({ "method": "HEAD", "path": "/status/200" });
        let (report, seen) = plain(place, protocol, host, job).await?;
        ensure!(report["status"] == 200 && report["bytes"] == 0, "{report}");
        ensure!(
            seen["method"] == "HEAD" && values(&report["fields"], "etag") == ["\"v1\""],
            "{report} {seen}"
        );
        let (report, _) = plain(place, protocol, host, json!({ "method": "HEAD", "path": "/echo" })).await?;
        let length: u32 = values(&report["fields"], "content-length").concat().parse()?;
        ensure!(length > 100 && report["bytes"] == 0, "{report}");
    }
    let output =
        place.curl(protocol, "", &["-I", &format!("{}/files/1k", place.at(NGINX))]).await?.expect_code(0)?;
    ensure!(header(&output, "content-length").as_deref() == Some("1024"), "{}", output.stdout);
    Ok(())
}

pub(super) async fn without_body(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        for status in [204, 304] {
            let job = json!({ "method": "GET", "path": format!("/status/{status}") });
            let (report, _) = plain(place, protocol, host, job).await?;
            let fields = &report["fields"];
            ensure!(report["status"] == status && report["bytes"] == 0, "{report}");
            ensure!(
                values(fields, "etag") == ["\"v1\""] && values(fields, "cache-control").len() == 1,
                "{report}"
            );
            ensure!(values(fields, "transfer-encoding").is_empty(), "{report}");
            ensure!(values(fields, "content-length").is_empty(), "{report}");
        }
    }
    // Three requests on one connection: what has no body leaves nothing behind that the next answer could be taken for.
    let at = place.at(NODE);
    let urls = ["/status/204", "/status/304", "/echo"].map(|path| format!("{at}{path}"));
    let args = ["-w", "\nconnections %{num_connects} status %{http_code}\n", &urls[0], &urls[1], &urls[2]];
    let output = place.curl(protocol, "", &args).await?.expect_code(0)?;
    let told: Vec<&str> = output.stdout.lines().filter(|line| line.starts_with("connections")).collect();
    let expected = ["connections 1 status 204", "connections 0 status 304", "connections 0 status 200"];
    ensure!(told == expected, "{}", output.stdout);
    // What nginx finds not modified.
    let url = format!("{}/files/1k", place.at(NGINX));
    let whole = place.curl(protocol, "", &["-D", "-", "-o", "/dev/null", &url]).await?.expect_code(0)?;
    let etag = header(&whole, "etag").unwrap_or_default();
    let again = place
        .curl(protocol, "", &["-D", "-", "-H", &format!("If-None-Match: {etag}"), &url])
        .await?
        .expect_code(0)?;
    ensure!(
        status_lines(&again)[0].contains(" 304") && header(&again, "etag") == Some(etag),
        "{}",
        again.stdout
    );
    Ok(())
}

pub(super) async fn ranges(place: &mut Place, protocol: Protocol) -> Result<()> {
    let all = std::fs::read(place.upload())?;
    let path = place.stand.path("nginx/html/files/letters");
    let letters: String = ('a'..='z').cycle().take(2600).collect();
    std::fs::write(path, &letters)?;
    let url = format!("{}/files/letters", place.at(NGINX));
    let get = async |args: &[&str]| place.curl(protocol, "", &[&["-D", "-"], args, &[&url]].concat()).await;

    let one = get(&["-r", "100-125"]).await?.expect_code(0)?;
    ensure!(status_lines(&one)[0].contains(" 206"), "{}", one.stdout);
    ensure!(header(&one, "content-range").as_deref() == Some("bytes 100-125/2600"), "{}", one.stdout);
    ensure!(one.stdout.ends_with(&letters[100..126]), "{}", one.stdout);
    let last = get(&["-r", "-3"]).await?.expect_code(0)?;
    ensure!(last.stdout.ends_with("\r\nxyz"), "{}", last.stdout);
    let several = get(&["-r", "0-2,26-30"]).await?.expect_code(0)?;
    let kind = header(&several, "content-type").unwrap_or_default();
    ensure!(kind.starts_with("multipart/byteranges; boundary="), "{}", several.stdout);
    for part in ["bytes 0-2/2600\r\n\r\nabc\r\n", "bytes 26-30/2600\r\n\r\nabcde\r\n"] {
        ensure!(several.stdout.contains(part), "{}", several.stdout);
    }
    let beyond = get(&["-r", "2600-"]).await?.expect_code(0)?;
    ensure!(status_lines(&beyond)[0].contains(" 416"), "{}", beyond.stdout);
    ensure!(header(&beyond, "content-range").as_deref() == Some("bytes */2600"), "{}", beyond.stdout);
    let changed = get(&["-r", "0-2", "-H", "If-Range: \"other\""]).await?.expect_code(0)?;
    ensure!(
        status_lines(&changed)[0].contains(" 200") && changed.stdout.ends_with(&letters),
        "{}",
        changed.stdout
    );

    // A download that goes on where it was broken off.
    let part = place.stand.path("part");
    std::fs::write(&part, &all[..1_000_000])?;
    let part_name = part.to_string_lossy().into_owned();
    let url = format!("{}/files/upload", place.at(NGINX));
    place.curl(protocol, "", &["-C", "-", "-o", &part_name, &url]).await?.expect_code(0)?;
    ensure!(std::fs::read(&part)? == all, "the continued download differs");
    Ok(())
}

pub(super) async fn methods(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        for (method, text) in [("PROPFIND", "<propfind/>"), ("REPORT", "which?"), ("PURGE", "")] {
            let job = json!({ "method": method, "path": "/echo", "text": text, "fields": { "depth": "1" } });
            let (report, seen) = plain(place, protocol, host, job).await?;
            ensure!(
                report["status"] == 200 && seen["method"] == method,
                "{method} at {host}: {report} {seen}"
            );
            ensure!(seen["bytes"] == text.len() && values(&seen["fields"], "depth") == ["1"], "{seen}");
        }
    }
    // Node's HTTP/1.1 knows only the methods that are registered; its HTTP/2 and nginx take any.
    let (report, seen) =
        plain(place, protocol, NODE_H2C, json!({ "method": "BREW", "path": "/echo" })).await?;
    ensure!(report["status"] == 200 && seen["method"] == "BREW", "{report} {seen}");
    let path = format!("/pot-{}", protocol.short());
    let output = place
        .curl(protocol, "", &["-X", "BREW", &format!("{}{path}", place.at(NGINX))])
        .await?
        .expect_code(0)?;
    let told: Value = serde_json::from_str(&output.stdout)?;
    ensure!(told["method"] == "BREW", "{told}");
    ensure!(place.stand.nginx.wait_seen(&path).await?["method"] == "BREW");
    Ok(())
}

pub(super) async fn repeated(place: &mut Place, protocol: Protocol) -> Result<()> {
    let sent = ["first", "second, with a comma", "third", "first"];
    let cookies = ["a=1; Path=/", "b=2; Path=/", "c=3; HttpOnly"];
    for host in HOSTS {
        let fields = json!({ "x-many": sent, "x-other": ["one", "two"] });
        let job = json!({ "method": "GET", "path": "/fields", "fields": fields });
        let (report, seen) = plain(place, protocol, host, job).await?;
        ensure!(values(&seen["fields"], "x-many") == sent, "{host}: {seen}");
        ensure!(values(&seen["fields"], "x-other") == ["one", "two"], "{host}: {seen}");
        ensure!(values(&report["fields"], "x-many") == sent, "{host}: {report}");
        ensure!(values(&report["fields"], "set-cookie") == cookies, "{host}: {report}");
    }
    Ok(())
}

pub(super) async fn large_heads(place: &mut Place, protocol: Protocol) -> Result<()> {
    const KIB: usize = 1024;
    for host in HOSTS {
        let many: serde_json::Map<_, _> =
            (0..60).map(|i| (format!("x-big-{i}"), json!((i % 10).to_string().repeat(KIB)))).collect();
        let one = json!({ "x-one": "z".repeat(60 * KIB) });
        for (fields, what) in [(Value::Object(many), "many fields"), (one, "one field")] {
            // What is around them makes it 64 KiB and some.
            let mut fields = fields;
            fields["x-filler"] = json!("f".repeat(4 * KIB));
            let query = if what == "one field" { "one=65536" } else { "size=65536" };
            let job = json!({ "method": "GET", "path": format!("/fields?{query}"), "fields": fields });
            let (report, seen) = plain(place, protocol, host, job).await?;
            ensure!(report["status"] == 200, "{what} to {host}: {report:.300}");
            for (name, value) in fields.as_object().into_iter().flatten() {
                ensure!(
                    values(&seen["fields"], name) == [value.as_str().unwrap_or_default()],
                    "{host}: {name}"
                );
            }
            if what == "one field" {
                ensure!(values(&report["fields"], "x-one").concat().len() == 64 * KIB, "{host}");
            } else {
                let came = (0..64).filter(|i| {
                    let digit = (i % 10).to_string();
                    values(&report["fields"], &format!("x-big-{i}")) == [digit.repeat(KIB)]
                });
                ensure!(came.count() == 64, "{host}");
            }
        }
    }
    Ok(())
}

pub(super) async fn expect(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let job = json!({ "method": "POST", "path": "/echo", "bytes": 300_000, "expect": true });
        if protocol == Protocol::Http1 {
            let (report, seen) = plain(place, protocol, host, job.clone()).await?;
            ensure!(report["status"] == 200 && report["continued"] == true, "{host}: {report}");
            ensure!(seen["bytes"] == 300_000, "{host}: {seen}");
        }
        let mut denied = job;
        denied["token"] = Value::Null;
        let (report, seen) = plain(place, protocol, host, denied).await?;
        ensure!(report["status"] == 401 && report["continued"] == false, "{host}: {report}");
        ensure!(seen["began"].is_null(), "{host}: it arrived: {seen}");
    }
    let case = place.case();
    if protocol == Protocol::Http2 {
        // hyper sends no 100 over HTTP/2 (see the table): whoever waits for it must do without, as nghttp does after a while.
        let upload = place.upload().to_string_lossy().into_owned();
        let output = place.nghttp(NODE, &case, "/echo", &["--expect-continue", "-d", &upload]).await?;
        ensure!(!output.stdout.contains(":status: 100"), "hyper sends 100 now: say so in the table");
        ensure!(place.seen(NODE, &case).await?["bytes"] == 3_000_000, "{}", output.stdout);
        return Ok(());
    }
    let url = format!("{}/echo", place.at(NODE));
    let told = "status %{http_code} sent %{size_upload}\n";
    let args = [
        "-H",
        "Expect: 100-continue",
        "--expect100-timeout",
        "30",
        "-o",
        "/dev/null",
        "-w",
        told,
        "-T",
        "-",
        &url,
    ];
    let start = Instant::now();
    let output = place.curl(protocol, &case, &args).await?.expect_code(0)?;
    // curl counts what it wrote, chunk sizes included.
    ensure!(output.stdout.starts_with("status 200 sent 3000"), "{}", output.stdout);
    ensure!(place.seen(NODE, &case).await?["bytes"] == 3_000_000, "the upload");
    ensure!(start.elapsed() < Duration::from_secs(10), "curl waited in vain for 100: {:?}", start.elapsed());
    let output = place.curl_without_token(protocol, &case, &args).await?.expect_code(0)?;
    ensure!(output.stdout == "status 401 sent 0\n", "{}", output.stdout);
    Ok(())
}

pub(super) async fn unknown_length(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let job = json!({ "method": "POST", "path": "/echo", "bytes": 5_000_000 });
        let (report, seen) = plain(place, protocol, host, job).await?;
        ensure!(report["status"] == 200 && seen["bytes"] == 5_000_000, "{host}: {report} {seen}");
        ensure!(values(&seen["fields"], "content-length").is_empty(), "{host}: {seen}");
        let case = place.case();
        let url = format!("{}/upload", place.at(host));
        let output = place.curl(protocol, &case, &["-X", "POST", "-T", "-", &url]).await?.expect_code(0)?;
        let told: Value = serde_json::from_str(&output.stdout)?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &std::fs::read(place.upload())?);
        let hex = digest.as_ref().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        ensure!(told["bytes"] == 3_000_000 && told["sha256"] == hex, "{host}: {told}");
        let seen = place.seen(host, &case).await?;
        ensure!(values(&seen["fields"], "content-length").is_empty(), "{host}: {seen}");
    }
    Ok(())
}

pub(super) async fn request_trailers(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let fields = json!({ "trailer": "x-sum, x-more" });
        let trailers = json!({ "x-sum": "abc", "x-more": "d, e" });
        let job = json!({ "method": "POST", "path": "/echo", "text": "hello", "fields": fields, "trailers": trailers });
        let (report, seen) = plain(place, protocol, host, job).await?;
        ensure!(report["status"] == 200 && seen["bytes"] == 5, "{host}: {report} {seen}");
        ensure!(values(&seen["trailers"], "x-sum") == ["abc"], "{host}: {seen}");
        ensure!(values(&seen["trailers"], "x-more") == ["d, e"], "{host}: {seen}");
        // nghttp says how long its upload is, and HTTP/1.1 has no trailers after a body of known length.
        if protocol == Protocol::Http2 && host == NODE_H2C {
            let case = place.case();
            let upload = place.upload().to_string_lossy().into_owned();
            let args = ["-H", "trailer: x-sum", "--trailer", "x-sum: abc", "-d", &upload];
            place.nghttp(host, &case, "/echo", &args).await?;
            let seen = place.seen(host, &case).await?;
            ensure!(values(&seen["trailers"], "x-sum") == ["abc"], "nghttp, {host}: {seen}");
        }
    }
    Ok(())
}

pub(super) async fn response_trailers(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let fields = json!({ "te": "trailers" });
        let job = json!({ "method": "POST", "path": "/trailers", "text": "hello", "fields": fields });
        let (report, seen) = plain(place, protocol, host, job).await?;
        ensure!(report["status"] == 200 && report["text"] == "before after", "{host}: {report}");
        let digest = seen["sha256"].as_str().unwrap_or_default();
        ensure!(values(&report["trailers"], "x-digest") == [digest], "{host}: {report}");
        ensure!(values(&report["trailers"], "x-many") == ["5 bytes"], "{host}: {report}");
    }
    Ok(())
}
