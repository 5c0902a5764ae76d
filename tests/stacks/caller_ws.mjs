// A WebSocket caller: npm ws as it is over HTTP/1.1 (RFC 6455); over HTTP/2 (RFC 8441) Node's http2 for the extended CONNECT and
// ws's own Sender and Receiver for the frames. Takes a job as JSON in its argument, prints what it saw as one line of JSON.
import { EventEmitter, once } from 'node:events';
import WebSocket, { Receiver, Sender } from 'ws';
import { now } from './clock.mjs';
import { connect, pairs, tlsOptions, untilSeen } from './transport.mjs';

const PROTOCOLS = ['chat.v9', 'chat.v1'];

function overHttp1(job, path) {
  const headers = { 'x-case': job.id, ...(job.token ? { authorization: `Bearer ${job.token}` } : {}) };
  const url = new URL(path, job.base.replace(/^http/, 'ws'));
  const peer = new WebSocket(url, PROTOCOLS, { headers, ...tlsOptions(job) });
  peer.on('error', () => {});
  return new Promise((done, fail) => {
    peer.on('open', () => done(peer));
    peer.on('unexpected-response', (_req, res) => {
      let text = '';
      res.on('data', (data) => (text += data));
      res.on('end', () => fail(Object.assign(new Error('refused'), { status: res.statusCode, text, fields: pairs(res.rawHeaders) })));
    });
    peer.on('error', fail);
  });
}

// The same interface over an HTTP/2 stream.
class Http2Peer extends EventEmitter {
  constructor(session, stream, protocol) {
    super();
    Object.assign(this, { session, stream, protocol, extensions: '', code: 1006, reason: '' });
    this.sender = new Sender(stream);
    const receiver = new Receiver({ isServer: false });
    receiver.on('message', (data, isBinary) => this.emit('message', data, isBinary));
    receiver.on('ping', (data) => this.#send('pong', data));
    receiver.on('pong', (data) => this.emit('pong', data));
    receiver.on('conclude', (code, reason) => {
      Object.assign(this, { code, reason });
      this.#finish(code, reason);
    });
    receiver.on('error', (error) => this.emit('error', error));
    stream.on('error', () => {});
    stream.on('data', (data) => receiver.write(data));
    stream.on('end', () => this.#over());
    stream.on('close', () => this.#over());
  }

  // The upstream's half has ended: nothing more can come.
  #over() {
    if (this.over) return;
    this.over = true;
    this.stream.end();
    this.session.close();
    this.emit('close', this.code, this.reason);
  }

  #send(kind, data) {
    this.sender[kind](data, true);
  }

  #finish(code, reason) {
    if (!this.closing) this.sender.close(code === 1005 ? undefined : code, reason, true);
    this.closing = true;
    this.stream.end();
  }

  send(data, { fin = true } = {}) {
    const binary = typeof data !== 'string';
    this.sender.send(Buffer.from(data), { binary, fin, mask: true, compress: false });
  }

  ping(data) {
    this.#send('ping', data);
  }

  close(code, reason) {
    this.closing = true;
    this.sender.close(code, reason, true);
  }

  terminate() {
    this.stream.destroy(new Error('this caller vanishes'));
  }
}

async function overHttp2(job, path) {
  const session = connect(job);
  const [settings] = await once(session, 'remoteSettings');
  if (!settings.enableConnectProtocol) throw new Error('the relay does not offer the extended CONNECT of RFC 8441');
  const { protocol: scheme, host } = new URL(job.base);
  const stream = session.request({
    ':method': 'CONNECT',
    ':protocol': 'websocket',
    ':scheme': scheme.slice(0, -1),
    ':authority': host,
    ':path': path,
    'sec-websocket-version': '13',
    'sec-websocket-protocol': PROTOCOLS.join(', '),
    'x-case': job.id,
    ...(job.token ? { authorization: `Bearer ${job.token}` } : {}),
  }, { endStream: false });
  const [fields, , raw] = await once(stream, 'response');
  if (fields[':status'] !== 200) {
    let text = '';
    for await (const data of stream) text += data;
    session.destroy();
    throw Object.assign(new Error('refused'), { status: fields[':status'], text, fields: pairs(raw) });
  }
  return new Http2Peer(session, stream, fields['sec-websocket-protocol'] ?? '');
}

const dial = (job, path = '/socket') => (job.protocol === 'h2' ? overHttp2(job, path) : overHttp1(job, path));

// The next message that `pick` accepts.
const next = (peer, pick = () => true) =>
  new Promise((done, fail) => {
    const hear = (data, isBinary) => {
      if (!pick(data, isBinary)) return;
      peer.off('message', hear);
      done([data, isBinary]);
    };
    peer.on('message', hear);
    peer.on('close', (code) => fail(new Error(`closed with ${code}`)));
  });

const closing = (peer) => new Promise((done) => peer.on('close', (code, reason) => done({ code, reason: reason.toString() })));

const samples = () => {
  const binary = Buffer.alloc(300_000);
  for (let i = 0; i < binary.length; i += 1) binary[i] = (i * 7) & 0xff;
  return ['plain', 'Grüße, 世界 🌍', '', 'x'.repeat(70_000), Buffer.from([0, 1, 255]), binary];
};

const jobs = {
  // Text and binary of all sizes, ping and pong from both sides, then a close of ours.
  async talk(job) {
    const peer = await dial(job);
    const wrong = [];
    for (const sample of samples()) {
      const answer = next(peer);
      peer.send(sample);
      const [data, isBinary] = await answer;
      if (isBinary !== (typeof sample !== 'string') || !Buffer.from(sample).equals(data)) wrong.push(sample.length);
    }
    // A message in fragments is one message at the other end.
    const whole = next(peer);
    for (const part of ['in ', 'three ', 'parts']) peer.send(part, { fin: part === 'parts' });
    if (String((await whole)[0]) !== 'in three parts') wrong.push('fragments');
    const pong = once(peer, 'pong');
    peer.ping('are you there');
    const [ponged] = await pong;
    const heard = next(peer);
    peer.send('ping from-the-upstream');
    const [told] = await heard;
    const closed = closing(peer);
    peer.close(4001, 'enough, danke');
    const noted = await untilSeen(job, 'the close', (seen) => seen.code);
    const { protocol, extensions } = peer;
    return { protocol, extensions, wrong, pong: ponged.toString(), told: told.toString(), closed: await closed, noted };
  },

  // `count` messages each way at the same time.
  async flood(job) {
    const peer = await dial(job);
    let received = 0;
    let disorder = null;
    const all = new Promise((done) => {
      peer.on('message', (data, isBinary) => {
        if (!isBinary) return;
        if (data.readUInt32BE() !== received) disorder ??= received;
        received += 1;
        if (received === job.count) done();
      });
    });
    const flooded = next(peer, (data, isBinary) => !isBinary && data.toString().startsWith('flooded'));
    const started = now();
    peer.send(`flood ${job.count}`);
    for (let i = 0; i < job.count; i += 1) {
      const number = Buffer.alloc(4);
      number.writeUInt32BE(i);
      peer.send(number);
      // As a program would: what was sent may leave before the next lot.
      if (i % 500 === 499) await new Promise((done) => setImmediate(done));
    }
    const [said] = await flooded;
    await all;
    const took = now() - started;
    const closed = closing(peer);
    peer.close(1000, '');
    await closed;
    const noted = await untilSeen(job, 'the close', (seen) => seen.code);
    return { received, disorder, said: said.toString(), took, noted };
  },

  // The upstream closes with a code and a reason of its own.
  async closedByUpstream(job) {
    const peer = await dial(job);
    const closed = closing(peer);
    peer.send('close 4002 out of stock');
    return closed;
  },

  // The upstream drops the connection: no close frame, so the caller must not be told of one.
  async brokenByUpstream(job) {
    const peer = await dial(job);
    const closed = closing(peer);
    peer.send('break');
    return closed;
  },

  // This caller vanishes without a close; how long until the upstream knew.
  async vanish(job) {
    const peer = await dial(job);
    await untilSeen(job, 'the upgrade', (seen) => seen.began);
    const left = now();
    peer.terminate();
    const noted = await untilSeen(job, 'the end', (seen) => seen.closed);
    return { after: noted.closed - left, code: noted.code };
  },

  // The upstream refuses: its answer arrives as an ordinary one.
  async refused(job) {
    try {
      await dial(job, '/refuse');
    } catch ({ status, text, fields, message }) {
      return { status, text, fields, message };
    }
    throw new Error('it was let in');
  },
};

const job = JSON.parse(process.argv[2]);
process.on('uncaughtException', (error) => {
  console.error(error);
  process.exit(1);
});
const limit = setTimeout(() => {
  console.error('nothing came for 25 s');
  process.exit(1);
}, 25_000);
const report = await jobs[job.job](job);
clearTimeout(limit);
process.stdout.write(`${JSON.stringify(report)}\n`, () => process.exit(0));
