//! What a service manager does for a program, without one: holds its sockets, so that they outlive it (socket activation), and hears what
//! it says of itself (`sd_notify`).

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use crate::wait;

/// Where the program's sockets are while they wait for it: out of the way of 3 and 4, where it looks for them.
const ASIDE: i32 = 100;

/// The sockets of a relay: TCP and UDP, one port.
#[derive(Debug)]
pub struct Sockets {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Sockets {
    pub fn bind(port: u16) -> Result<Self> {
        let address = (Ipv4Addr::LOCALHOST, port);
        Ok(Self { tcp: TcpListener::bind(address)?, udp: UdpSocket::bind(address)? })
    }

    /// The same command with the sockets handed over, as systemd does it. What is given back with it must live until it was started.
    pub fn hand_to(&self, command: &Command) -> Result<(Command, [OwnedFd; 2])> {
        let aside = [self.tcp.as_fd(), self.udp.as_fd()].map(|socket| fcntl_dupfd_cloexec(socket, ASIDE));
        let [tcp, udp] = aside;
        let aside = [tcp?, udp?];
        for socket in &aside {
            fcntl_setfd(socket, FdFlags::empty())?;
        }
        let mut wrapped = Command::new("bash");
        let script = format!(
            "exec 3<&{0} 4<&{1} {0}<&- {1}<&-; export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\"",
            aside[0].as_raw_fd(),
            aside[1].as_raw_fd(),
        );
        wrapped.args(["-c", &script, "bash"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        Ok((wrapped, aside))
    }
}

/// The manager's ear.
#[derive(Debug)]
pub struct Ear {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Ear {
    /// Listens at a path, which the program is given as `NOTIFY_SOCKET`.
    pub fn open(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, heard: Vec::new() })
    }

    /// Waits for a message with this in it; gives all messages up to there and forgets them.
    pub async fn wait(&mut self, needle: &str) -> Result<Vec<String>> {
        let what = format!("the service manager hears {needle}");
        wait::until(&what, Duration::from_secs(10), async || {
            let mut message = [0; 1024];
            while let Ok(length) = self.socket.recv(&mut message) {
                self.heard.push(String::from_utf8_lossy(&message[..length]).into_owned());
            }
            let at = self.heard.iter().position(|message| message.contains(needle))?;
            Some(self.heard.drain(..=at).collect())
        })
        .await
    }
}
