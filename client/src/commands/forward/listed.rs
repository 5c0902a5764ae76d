//! Takes a service's name and what the relay lists; gives the service, and where it is called. Refuses what nobody may use here, with the
//! relay's own word on why.

use postern_base::id::ServiceName;
use url::Url;

use super::Context;
use crate::failure::{Exit, Failure};
use crate::relay_api::address::{AddressError, Target};
use crate::relay_api::problem::deny_fix;
use crate::relay_api::{self, Catalogue};

/// Where a listed service is called, and its own audience.
pub(in crate::commands) fn public(
    context: &Context,
    found: &relay_api::Service,
) -> Result<(Url, Option<String>), Failure> {
    let published = found.url.as_deref().ok_or_else(|| {
        Failure::new(Exit::Other, format!("{} has no address of its own: its host is a pattern", found.name))
            .fix("ask whoever runs the relay for a host or a path of its own")
    })?;
    let url = context.relay.url.service_at(&found.name, published).map_err(|error: AddressError| {
        Failure::new(Exit::Config, error.to_string()).fix("ask whoever runs the relay to check its `url`")
    })?;
    Ok((url, found.resource.clone()))
}

/// The catalogue's entry, or why there is none that is of use: no such service, or nothing there that one may do.
pub(in crate::commands) async fn listed<'a>(
    context: &Context,
    catalogue: &'a Catalogue,
    name: &ServiceName,
) -> Result<&'a relay_api::Service, Failure> {
    let found = catalogue.services.iter().find(|service| service.name == *name);
    let (method, path) = match found {
        Some(found) => match found.kind.raw() {
            "http" => return Ok(found),
            "tcp" if !found.may.is_empty() => return Ok(found),
            "tcp" => ("CONNECT", ""),
            _ => {
                return Err(Failure::new(Exit::Other, format!("{name} is a {} service", found.kind))
                    .fix("a newer postern may know how to forward it"));
            }
        },
        None => ("GET", "/"),
    };
    let relay = &context.relay;
    let target = Target { service: name.clone(), path: path.into() };
    let root = &target;
    let explained = context.ask(|pass| async move { relay.explain(&pass, method, root).await }).await?;
    let mut failure = Failure::new(Exit::Denied, format!("there is nothing that you may do at {name}"));
    if let Some(closest) = &explained.closest {
        failure = failure.detail(closest.line());
    }
    Err(failure.fix(deny_fix(explained.closest.as_ref(), None)))
}
