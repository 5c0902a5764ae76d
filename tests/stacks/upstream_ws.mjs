// What the npm ws server says to a WebSocket peer. Text messages that are commands:
//   close CODE REASON    closes with them
//   ping TEXT            sends a ping; once the pong is back, says `pong TEXT`
//   flood N              sends N numbered binary messages, and counts what comes meanwhile; says `flooded COUNT` after N have come
//   break                drops the connection without a close
// Everything else comes back as it came.
import { now } from './clock.mjs';

const FOUR = 4;

export function converse(peer, seen) {
  seen.protocol = peer.protocol;
  seen.extensions = peer.extensions;
  let flood = null;
  peer.on('pong', (data) => peer.send(`pong ${data}`));
  peer.on('ping', (data) => {
    seen.ping = data.toString();
  });
  peer.on('close', (code, reason) => {
    Object.assign(seen, { code, reason: reason.toString(), closed: now() });
  });
  peer.on('error', (error) => {
    seen.error = String(error);
  });
  peer.on('message', (data, isBinary) => {
    seen.messages = (seen.messages ?? 0) + 1;
    if (flood && isBinary && data.length === FOUR) {
      if (data.readUInt32BE() !== flood.next) seen.disorder ??= flood.next;
      flood.next += 1;
      if (flood.next === flood.total) peer.send(`flooded ${flood.next}`);
      return;
    }
    const [command, first, ...rest] = isBinary ? [] : data.toString().split(' ');
    switch (command) {
      case 'close':
        return peer.close(Number(first), rest.join(' '));
      case 'ping':
        return peer.ping(first);
      case 'break':
        return peer.terminate();
      case 'flood': {
        flood = { next: 0, total: Number(first) };
        for (let i = 0; i < flood.total; i += 1) {
          const number = Buffer.alloc(FOUR);
          number.writeUInt32BE(i);
          peer.send(number);
        }
        return undefined;
      }
      default:
        return peer.send(data, { binary: isBinary });
    }
  });
}
