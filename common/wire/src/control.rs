//! The control stream's messages. An existing variant never changes; a new one goes at the end and is sent only to a peer whose
//! `minor` knows it.

use std::time::Duration;

use bincode::{BorrowDecode, Encode};

use crate::head::OwnedCredential;

/// The minor version of the protocol that this build speaks.
pub const MINOR: u16 = 2;

/// What a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, BorrowDecode)]
pub enum ServiceKind {
    Http,
    Tcp,
}

/// A service as an agent offers it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct ServiceOffer {
    pub name: String,
    pub kind: ServiceKind,
    pub healthy: bool,
    /// Whether the agent decides again on the caller's own token.
    pub wants_caller_token: bool,
}

/// A service that the relay does not let this agent serve.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub struct ServiceRefusal {
    pub service: String,
    pub reason: String,
}

/// From agent to relay. The first one on a tunnel is `Hello`, within 10 s.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub enum AgentMessage {
    Hello {
        minor: u16,
        version: String,
        instance: String,
        services: Vec<ServiceOffer>,
    },
    Services(Vec<ServiceOffer>),
    Heartbeat {
        seq: u64,
    },
    /// A certificate request, DER, signed by the new key.
    Renew {
        csr: Vec<u8>,
    },
    Draining,
    /// What trying an upstream showed; the answer to [`RelayMessage::Probe`], which nobody asks before minor 2. Where the upstream is stays
    /// the agent's own knowledge: `detail` never says it.
    Probed {
        id: u64,
        reached: bool,
        detail: String,
        took_us: u64,
    },
}

/// From relay to agent. The answer to `Hello` is `Welcome` or `Refused`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode)]
pub enum RelayMessage {
    Welcome {
        minor: u16,
        relay: String,
        /// How often the agent is to send a heartbeat, in milliseconds.
        heartbeat_ms: u32,
        other_relays: Vec<String>,
        refused: Vec<ServiceRefusal>,
    },
    Refused {
        code: u16,
        reason: String,
        retry_after_ms: Option<u32>,
    },
    HeartbeatAck {
        seq: u64,
    },
    /// The new chain, DER, leaf first.
    Renewed {
        chain: Vec<Vec<u8>>,
    },
    RenewRefused {
        reason: String,
        retry_after_ms: u32,
    },
    Draining {
        reconnect_after_ms: u32,
    },
    Revoked,
    /// A live stream's caller showed a fresh token. For streams whose head carried a credential; from minor 1 on.
    Lease {
        request_id: String,
        credential: OwnedCredential,
    },
    /// How far the relay's audit log has come, for the agent to keep; from minor 1 on.
    ChainHead {
        sequence: u64,
        hash: [u8; 32],
    },
    /// This instance is suspended, until an operator resumes it: the tunnel ends; from minor 2 on.
    Suspended {
        reason: String,
    },
    /// Renew at once: the certificate authority changed; from minor 2 on.
    RenewNow,
    /// The relay's clock, in milliseconds since the epoch, for the agent to see how far its own is off; from minor 2 on.
    Time {
        unix_ms: u64,
    },
    /// Try the upstream of this service and say how it went; from minor 2 on.
    Probe {
        id: u64,
        service: String,
    },
}

impl RelayMessage {
    /// The first minor version whose peers know this message.
    pub fn since_minor(&self) -> u16 {
        match self {
            Self::Welcome { .. }
            | Self::Refused { .. }
            | Self::HeartbeatAck { .. }
            | Self::Renewed { .. }
            | Self::RenewRefused { .. }
            | Self::Draining { .. }
            | Self::Revoked => 0,
            Self::Lease { .. } | Self::ChainHead { .. } => 1,
            Self::Suspended { .. } | Self::RenewNow | Self::Time { .. } | Self::Probe { .. } => 2,
        }
    }
}

/// How soon a suspended agent asks again: it is back this soon after it was resumed, and asking costs its relay next to nothing.
pub const SUSPENDED_AGAIN: Duration = Duration::from_secs(15);

/// Why a relay refused a tunnel (`RelayMessage::Refused.code`).
pub mod refusal {
    /// The agent is not enrolled here, or was removed.
    pub const NOT_ENROLLED: u16 = 1;
    /// The relay is shutting down.
    pub const DRAINING: u16 = 2;
    /// The hello was malformed, late or said another instance than the certificate.
    pub const PROTOCOL: u16 = 3;
    /// The instance is suspended, until an operator resumes it.
    pub const SUSPENDED: u16 = 4;
    /// The certificate was issued by an authority that was replaced, and is not the one that this instance was given last.
    pub const REPLACED: u16 = 5;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{CONTROL_LIMIT, PREFIX, decode, encoded};

    fn golden<T: Encode>(message: &T, bytes: &[u8]) {
        assert_eq!(&encoded(message, CONTROL_LIMIT).unwrap()[PREFIX..], bytes);
    }

    #[test]
    fn bytes_on_the_wire_do_not_change() {
        let offer = ServiceOffer {
            name: "wiki".into(),
            kind: ServiceKind::Http,
            healthy: true,
            wants_caller_token: false,
        };
        golden(
            &AgentMessage::Hello {
                minor: 0,
                version: "1".into(),
                instance: "i".into(),
                services: vec![offer],
            },
            &[0, 0, 1, b'1', 1, b'i', 1, 4, b'w', b'i', b'k', b'i', 0, 1, 0],
        );
        golden(&AgentMessage::Services(vec![]), &[1, 0]);
        golden(&AgentMessage::Heartbeat { seq: 300 }, &[2, 251, 44, 1]);
        golden(&AgentMessage::Renew { csr: vec![9] }, &[3, 1, 9]);
        golden(&AgentMessage::Draining, &[4]);
        let probed = AgentMessage::Probed { id: 1, reached: true, detail: "d".into(), took_us: 300 };
        golden(&probed, &[5, 1, 1, 1, b'd', 251, 44, 1]);
        let refused = vec![ServiceRefusal { service: "s".into(), reason: "r".into() }];
        golden(
            &RelayMessage::Welcome {
                minor: 0,
                relay: "r".into(),
                heartbeat_ms: 5000,
                other_relays: vec![],
                refused,
            },
            &[0, 0, 1, b'r', 251, 0x88, 0x13, 0, 1, 1, b's', 1, b'r'],
        );
        golden(
            &RelayMessage::Refused { code: 1, reason: "no".into(), retry_after_ms: Some(7) },
            &[1, 1, 2, b'n', b'o', 1, 7],
        );
        golden(&RelayMessage::HeartbeatAck { seq: 1 }, &[2, 1]);
        golden(&RelayMessage::Renewed { chain: vec![vec![1, 2]] }, &[3, 1, 2, 1, 2]);
        golden(&RelayMessage::RenewRefused { reason: "x".into(), retry_after_ms: 1 }, &[4, 1, b'x', 1]);
        golden(&RelayMessage::Draining { reconnect_after_ms: 0 }, &[5, 0]);
        golden(&RelayMessage::Revoked, &[6]);
        let head = RelayMessage::ChainHead { sequence: 300, hash: [7; 32] };
        golden(&head, &[&[8, 251, 44, 1][..], &[7; 32]].concat());
        golden(&RelayMessage::Suspended { reason: "r".into() }, &[9, 1, b'r']);
        golden(&RelayMessage::RenewNow, &[10]);
        golden(&RelayMessage::Time { unix_ms: 300 }, &[11, 251, 44, 1]);
        golden(&RelayMessage::Probe { id: 2, service: "s".into() }, &[12, 2, 1, b's']);
    }

    #[test]
    fn a_lease_carries_a_credential_as_heads_do() {
        let credential = OwnedCredential {
            scheme: "DPoP".into(),
            token: "t".into(),
            proof: Some("p".into()),
            method: "GET".into(),
            public_uri: "u".into(),
            certificate_sha256: None,
        };
        let message = RelayMessage::Lease { request_id: "r".into(), credential: credential.clone() };
        let expected =
            [7, 1, b'r', 4, b'D', b'P', b'o', b'P', 1, b't', 1, 1, b'p', 3, b'G', b'E', b'T', 1, b'u', 0];
        golden(&message, &expected);
        golden(&credential.borrowed(), &expected[3..]);
        assert_eq!(credential.borrowed().owned(), credential);
        assert_eq!(format!("{credential:?}"), "Credential(…)");
    }

    #[test]
    fn unknown_variants_are_refused() {
        assert!(decode::<AgentMessage>(&[6]).is_err());
        assert!(decode::<RelayMessage>(&[13]).is_err());
        assert!(decode::<AgentMessage>(&[]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = decode::<AgentMessage>(&bytes);
            let _ = decode::<RelayMessage>(&bytes);
            let _ = decode::<crate::head::RequestHead<'_>>(&bytes);
            let _ = decode::<crate::head::ResponseHead<'_>>(&bytes);
            let _ = decode::<crate::join::JoinRequest>(&bytes);
            let _ = decode::<crate::join::JoinAnswer>(&bytes);
        }
    }
}
