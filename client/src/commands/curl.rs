//! `curl`: runs the system's curl on a service through a forward of its own, a unix socket in a private directory. curl never sees a
//! token; a refusal by Postern is explained and decides the exit code, otherwise curl's own does. Dropped, it ends curl and removes the
//! directory.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use postern_base::sync::lock;
use tokio::process::Command;
use url::Url;

use super::Context;
use super::forward::{code, means, public};
use crate::failure::{Exit, Failure};
use crate::forward::http::Service;
use crate::forward::{Entrance, Forward, Serves};
use crate::output::Output;
use crate::relay_api::address::{AddressError, Target};

pub(super) async fn run(context: &Context, mut args: Vec<OsString>, out: &Output) -> Result<u8, Failure> {
    let usage = |message: String| {
        Failure::new(Exit::Usage, message)
            .fix("end with SERVICE/PATH, such as: postern curl -X DELETE billing/v1/invoices/7")
    };
    let last = args.pop().and_then(|last| last.into_string().ok());
    let last = last.ok_or_else(|| usage("the last argument is not text".into()))?;
    let target: Target = last.parse().map_err(|e: AddressError| usage(e.to_string()))?;
    let (url, audience) = find(context, &target).await?;
    let means = means(context, out)?;
    let service = means.http(target.service.clone(), url, audience);
    let service = Arc::new(Service { refused: Some(Mutex::new(None)), ..service });
    let failed = |e: std::io::Error| Failure::new(Exit::Other, e.to_string()).fix("make TMPDIR writable");
    let private = tempfile::Builder::new()
        .prefix("postern-")
        .permissions(PermissionsExt::from_mode(0o700))
        .tempdir()
        .map_err(failed)?;
    let socket = private.path().join("s");
    let entrance = Entrance::unix(&socket).await.map_err(failed)?;
    let local = format!("http://{}", target.service);
    let serves = Serves::Http { service: service.clone(), local: local.into() };
    let forward = Forward { serves, entrance, once: false };
    let mut command = Command::new("curl");
    // First come ours, so that what is typed can be seen to be added; a proxy would get what is meant for the socket.
    command.arg("--unix-socket").arg(&socket).args(["--noproxy", "*"]).args(&args);
    command.arg(format!("http://{target}")).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| {
        Failure::new(Exit::Other, format!("curl cannot be run: {e}"))
            .fix("install curl, or use: postern forward")
    })?;
    let status = tokio::select! {
        status = child.wait() => status.map_err(failed)?,
        never = means.leases.keep() => match never {},
        () = forward.serve() => return Err(Failure::new(Exit::Other, "the forward ended before curl did")),
    };
    let refused = service.refused.as_ref().and_then(|r| lock(r).take());
    let Some(refused) = refused else { return Ok(code(status)) };
    let call = format!("{} {target}", refused.method);
    let failure = refused.problem.about(&target.service).explain(Some(&call), &context.relay.url.to_string());
    out.fresh_line();
    out.failure(&failure);
    // What is no refusal of access (a malformed request, a limit) is for curl to judge.
    Ok(if failure.exit == Exit::Other { code(status) } else { failure.exit.code() })
}

/// Where the service is called, and its own audience. One that is not listed is called where services are by default, so that the relay
/// itself says why it refuses.
async fn find(context: &Context, target: &Target) -> Result<(Url, Option<String>), Failure> {
    let relay = &context.relay;
    let catalogue = context.ask(|pass| async move { relay.services(&pass).await }).await?;
    match catalogue.services.iter().find(|service| service.name == target.service) {
        Some(found) if found.kind.raw() == "tcp" => {
            Err(Failure::new(Exit::Other, format!("{} is a tcp service: curl speaks HTTP", found.name))
                .fix(format!("postern forward {0}, or postern connect {0}", found.name)))
        }
        Some(found) => public(context, found),
        None => Ok((relay.url.service_by_default(&target.service), None)),
    }
}
