//! Takes `login` as typed; gives how people log in with an issuer; refuses what leaves them no way.

use postern_base::config::Problem;

use super::file::{LoginFile, LoginFlow};
use super::list;

/// How people log in with an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginSettings {
    pub client_id: String,
    pub device_client_id: Option<String>,
    pub flows: Vec<LoginFlow>,
    /// None: openid, `offline_access` and all scopes that rules of this issuer name.
    pub scopes: Option<Vec<String>>,
    /// Whether tokens are asked for by `resource`.
    pub resource: bool,
    /// What is sent as `audience`.
    pub audience: Option<String>,
}

impl LoginFile {
    /// `self` is filled in. Problems are located from `login` on.
    pub(super) fn settings(self) -> Result<LoginSettings, Problem> {
        if self.client_id.is_empty() {
            return Err(Problem::new("client_id", "write the client's id at the issuer"));
        }
        let flows = list(self.flows);
        if flows.is_empty() {
            return Err(Problem::new("flows", "name pkce, device or both, or leave the key out"));
        }
        if self.device_client_id.is_some() && !flows.contains(&LoginFlow::Device) {
            return Err(Problem::new("device_client_id", "flows does not name device: leave it out"));
        }
        Ok(LoginSettings {
            client_id: self.client_id,
            device_client_id: self.device_client_id,
            flows,
            scopes: self.scopes,
            resource: self.resource.unwrap_or_default(),
            audience: self.audience,
        })
    }
}

impl LoginSettings {
    /// The client's id for a flow.
    pub fn client_id(&self, flow: LoginFlow) -> &str {
        match (flow, &self.device_client_id) {
            (LoginFlow::Device, Some(id)) => id,
            (LoginFlow::Device, None) | (LoginFlow::Pkce, _) => &self.client_id,
        }
    }
}
