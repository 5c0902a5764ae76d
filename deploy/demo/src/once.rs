//! Takes a stage on which everything runs; gives the main job done by the real programs, each step told with what was seen; ends at the
//! first step that does not hold. The calls need nothing that a bare machine may lack: this binary is the HTTP client, too.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{Method, Request, Response};
use postern_base::http_client::{HttpClient, HttpClientOptions};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::children::{Children, unexpected};
use crate::stage::Stage;
use crate::{guide, mark, say};

/// A login is a handful of requests and one polling interval of the development issuer.
const LOGIN: Duration = Duration::from_secs(30);
/// The client's exit code for "denied by policy".
const DENIED: i32 = 5;

/// Plays the main job through.
///
/// # Errors
/// Names the step that did not hold.
pub(crate) async fn story(stage: &Stage, children: &mut Children) -> anyhow::Result<()> {
    let ca = std::fs::read(stage.ca()).context("reading the relay's certificate")?;
    let http = HttpClient::new(HttpClientOptions { extra_roots_pem: Some(ca), ..Default::default() })?;
    let mut play = Play { stage, children, http };
    report("issuer, invoice API, relay and agent are up", Ok("each answers that it is ready".into()))?;
    report("a call without a token is refused", play.call_without_token().await)?;
    report("postern login --device, approved as ada", play.login("ada").await)?;
    report("postern ls", play.list().await)?;
    report("ada, a clerk: GET billing/v1/invoices is allowed", play.allowed_call().await)?;
    report("ada: DELETE billing/v1/invoices/7 is denied", play.denied_call().await)?;
    report("postern can DELETE billing/v1/invoices/7", play.dry_run().await)?;
    report("postern forward, used by a program that knows nothing of tokens", play.forward().await)?;
    report("postern login --device, approved as bob", play.login("bob").await)?;
    report("bob, in no group: GET billing/v1/invoices is denied", play.other_person().await)
}

fn report(step: &str, seen: anyhow::Result<String>) -> anyhow::Result<()> {
    let (good, told) = match seen {
        Ok(seen) => (true, seen),
        Err(e) => (false, format!("{e:#}")),
    };
    say(&format!("{} {step}", mark(good)));
    told.lines().for_each(|line| say(&format!("    {line}")));
    ensure!(good, "this step did not hold: {step}");
    Ok(())
}

struct Play<'a> {
    stage: &'a Stage,
    children: &'a mut Children,
    http: HttpClient,
}

impl Play<'_> {
    async fn call_without_token(&self) -> anyhow::Result<String> {
        let answer = self.call(Method::GET, &self.billing("invoices"), None).await?;
        let challenge = answer.headers().get(WWW_AUTHENTICATE).map_or(Ok(""), |value| value.to_str())?;
        ensure!(answer.status() == 401 && challenge.contains("resource_metadata="), told(&answer));
        Ok(format!("401, WWW-Authenticate: {challenge}"))
    }

    /// Starts the login and does at the issuer what a person would do in a browser: enter the code, press the button.
    async fn login(&self, person: &str) -> anyhow::Result<String> {
        let mut command = self.postern("--as", person);
        command.args(["login", "--device"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut client = command.spawn()?;
        let mut lines = BufReader::new(client.stderr.take().context("stderr is a pipe")?).lines();
        let mut said = String::new();
        let login = async {
            let mut approved = None;
            while let Some(line) = lines.next_line().await? {
                said.push_str(&line);
                said.push('\n');
                if let (None, Some(code)) = (&approved, user_code(&line)) {
                    self.approve(code, person).await.with_context(|| format!("approving the code {code}"))?;
                    approved = Some(code.to_owned());
                }
            }
            let status = client.wait().await?;
            if !status.success() {
                return Err(unexpected(status, said.as_bytes()));
            }
            Ok(approved)
        };
        let approved = timeout(LOGIN, login).await.with_context(|| format!("not done in {LOGIN:?}"))??;
        match approved {
            Some(code) => {
                Ok(format!("code {code} approved; {}", said.lines().last().unwrap_or_default().trim()))
            }
            None => bail!("no code was shown: {said}"),
        }
    }

    async fn approve(&self, code: &str, person: &str) -> anyhow::Result<()> {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("user_code", code)
            .append_pair("person", person)
            .finish();
        let request = Request::post(format!("{}/device", self.stage.issuer_url()))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::from(form))?;
        let answer = self.http.send(request).await?;
        ensure!(answer.status() == 200, told(&answer));
        Ok(())
    }

    async fn list(&self) -> anyhow::Result<String> {
        let table = Children::succeed(self.postern("--as", "ada"), ["ls"]).await?;
        let billing = table.lines().find(|line| line.contains("billing")).unwrap_or_default();
        ensure!(
            billing.contains("/v1/invoices") && billing.contains("up"),
            "billing is not there or not up:\n{table}"
        );
        Ok(table)
    }

    async fn allowed_call(&self) -> anyhow::Result<String> {
        let token = self.token("ada").await?;
        let answer = self.call(Method::GET, &self.billing("invoices"), Some(&token)).await?;
        invoices_for_ada(&answer)
    }

    async fn denied_call(&self) -> anyhow::Result<String> {
        let token = self.token("ada").await?;
        let answer = self.call(Method::DELETE, &self.billing("invoices/7"), Some(&token)).await?;
        let problem = denial(&answer)?;
        // Asked past the relay: what was refused has not happened.
        let invoice =
            self.call(Method::GET, &format!("{}/v1/invoices/7", self.stage.invoices_url()), None).await?;
        ensure!(invoice.status() == 200, "the invoice is gone: {}", told(&invoice));
        Ok(format!("{problem}\nthe invoice is still there"))
    }

    async fn dry_run(&self) -> anyhow::Result<String> {
        let args = ["can", "DELETE", "billing/v1/invoices/7"];
        let output = Children::finish(self.postern("--as", "ada"), args).await?;
        if output.status.code() != Some(DENIED) {
            return Err(unexpected(output.status, &output.stderr));
        }
        let told = [output.stdout, output.stderr].concat();
        Ok(format!("exit {DENIED}\n{}", String::from_utf8_lossy(&told).trim()))
    }

    async fn forward(&mut self) -> anyhow::Result<String> {
        let port = self.stage.forward_port();
        let url = format!("http://127.0.0.1:{port}/v1/invoices");
        let mut command = self.postern("--tied", "ada");
        command.arg("forward").arg(format!("{port}:billing"));
        self.children.start("forward", command)?;
        self.children.ready(&url).await?;
        let seen = invoices_for_ada(&self.call(Method::GET, &url, None).await?)?;
        self.children.stop_newest(std::future::pending()).await;
        Ok(format!("GET {url}: {seen}"))
    }

    async fn other_person(&self) -> anyhow::Result<String> {
        let token = self.token("bob").await?;
        denial(&self.call(Method::GET, &self.billing("invoices"), Some(&token)).await?)
    }

    async fn token(&self, person: &str) -> anyhow::Result<String> {
        Children::succeed(self.postern("--as", person), ["token"]).await.context("postern token")
    }

    /// The client, with a configuration and sessions of this person's own.
    fn postern(&self, flag: &str, person: &str) -> Command {
        let mut command = self.children.command(flag, "postern");
        command.envs(guide::environment(self.stage, person));
        command
    }

    fn billing(&self, rest: &str) -> String {
        format!("{}/billing/v1/{rest}", self.stage.relay_url())
    }

    async fn call(&self, method: Method, url: &str, token: Option<&str>) -> anyhow::Result<Response<Bytes>> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        Ok(self.http.send(request.body(Bytes::new())?).await?)
    }
}

/// 200, the invoices, and ada as the one whom the upstream believes to serve.
fn invoices_for_ada(answer: &Response<Bytes>) -> anyhow::Result<String> {
    ensure!(answer.status() == 200, told(answer));
    let body: Value = serde_json::from_slice(answer.body())?;
    let count = body["invoices"].as_array().map_or(0, Vec::len);
    ensure!(count > 0 && body["caller"]["subject"] == "ada", told(answer));
    Ok(format!("200, {count} invoices; the API saw the caller {}", body["caller"]))
}

/// 403 with a problem document that says why.
fn denial(answer: &Response<Bytes>) -> anyhow::Result<String> {
    ensure!(answer.status() == 403, told(answer));
    let problem: Value = serde_json::from_slice(answer.body())?;
    let (Some(detail), Some(decision)) = (problem["detail"].as_str(), problem["decision_id"].as_str()) else {
        bail!("the refusal does not say why: {}", told(answer));
    };
    Ok(format!("403, {detail} [decision {decision}]"))
}

fn told(answer: &Response<Bytes>) -> String {
    format!("{}: {}", answer.status(), String::from_utf8_lossy(answer.body()).trim())
}

/// The first word that looks like a code of the development issuer: `WDJB-MJHT`.
fn user_code(line: &str) -> Option<&str> {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').find(|word| {
        let half = |text: &str| text.len() == 4 && text.bytes().all(|b| b.is_ascii_uppercase());
        word.split_once('-').is_some_and(|(left, right)| half(left) && half(right))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_in_what_the_client_says() {
        assert_eq!(user_code("! Code: WDJB-MJHT   (check that you started this login)"), Some("WDJB-MJHT"));
        assert_eq!(user_code("Open http://127.0.0.1:1/device?user_code=WDJB-MJHT"), Some("WDJB-MJHT"));
        assert_eq!(user_code("Waiting; self-test XXXX-YYYYY WDJ-MJHT"), None);
    }

    #[test]
    fn a_refusal_must_say_why() {
        let answer = |status: u16, body: &'static str| {
            Response::builder().status(status).body(Bytes::from(body)).unwrap()
        };
        assert!(denial(&answer(403, r#"{"detail":"no rule","decision_id":"01J"}"#)).is_ok());
        assert!(denial(&answer(403, r#"{"detail":"no rule"}"#)).is_err());
        assert!(denial(&answer(200, r#"{"detail":"no rule","decision_id":"01J"}"#)).is_err());
    }

    #[test]
    fn a_list_for_someone_else_is_not_ada_s() {
        let answer = |body: &'static str| Response::new(Bytes::from(body));
        assert!(invoices_for_ada(&answer(r#"{"invoices":[{}],"caller":{"subject":"ada"}}"#)).is_ok());
        assert!(invoices_for_ada(&answer(r#"{"invoices":[{}],"caller":{"subject":null}}"#)).is_err());
        assert!(invoices_for_ada(&answer(r#"{"invoices":[],"caller":{"subject":"ada"}}"#)).is_err());
    }
}
