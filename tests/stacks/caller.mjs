// The caller of most cells: Node's own http and http2. Takes a job as JSON in its argument, prints what it saw as one line of JSON; an
// error ends it with 1. What the upstream noted meanwhile is the Rust side's to compare, but for what must be waited for.
import { now, sleep, until } from './clock.mjs';
import { Digest, chunk, expected } from './pattern.mjs';
import { open, seen, tlsOptions, untilSeen } from './transport.mjs';
import tls from 'node:tls';

// Nothing moves for this long: then it is held back.
const STILL = 400;

const write = (req, data) => new Promise((done, fail) => req.write(data, (error) => (error ? fail(error) : done())));

async function readAll(body, piece = () => {}) {
  const digest = new Digest();
  const parts = [];
  let error = null;
  try {
    for await (const data of body) {
      digest.feed(data);
      if (digest.bytes <= 65_536) parts.push(data);
      await piece(data);
    }
  } catch (e) {
    error = e.code ?? String(e);
  }
  return { ...digest.report(), text: Buffer.concat(parts).toString(), error };
}

// Sends `bytes` of the pattern and ends; `accepted(n)` hears what the kernel has taken.
async function sendPattern(req, bytes, accepted = () => {}) {
  for (let sent = 0; sent < bytes; ) {
    const data = chunk(sent, bytes - sent);
    await write(req, data);
    sent += data.length;
    accepted(sent);
  }
  req.end();
}

const jobs = {
  // { method, path, fields, text?, bytes?, trailers?, expect? }: one request, told in full.
  async plain(job) {
    const body = job.text !== undefined || job.bytes !== undefined;
    const fields = { ...job.fields, ...(job.expect ? { expect: '100-continue' } : {}) };
    const call = open(job, job.method, job.path, { fields, body, trailers: job.trailers });
    const send = async () => {
      if (job.text !== undefined) call.req.end(job.text);
      else await sendPattern(call.req, job.bytes);
    };
    if (body && job.expect) call.onContinue = () => send().catch(() => {});
    else if (body) await send();
    const { status, version, fields: answered, body: stream } = await call.answer;
    const read = await readAll(stream);
    call.req.destroy();
    return { status, version, fields: answered, ...read, trailers: call.trailers, continued: call.continued };
  },

  // Server-sent events: how long after its sending each arrived, in milliseconds, and the head.
  async events(job) {
    const started = now();
    const call = open(job, 'GET', job.path);
    const { status, fields, body } = await call.answer;
    const head = now() - started;
    const late = [];
    let text = '';
    const { error } = await readAll(body, (data) => {
      const at = now();
      text += data;
      for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
        late.push(at - Number(/^data: (.*)$/m.exec(text.slice(0, end))[1]));
        text = text.slice(end + 2);
      }
    });
    return { status, fields, head, late, error, rest: text };
  },

  // Sends a piece, waits for it to come back, and so on: how long each took.
  async duplex(job) {
    const call = open(job, 'POST', '/duplex', { body: true });
    const { status, body } = await call.answer;
    const trips = [];
    let came = '';
    const reading = readAll(body, (data) => (came += data));
    for (let i = 0; i < job.pieces; i += 1) {
      const start = now();
      const word = `piece ${i};`;
      await write(call.req, word);
      await until(`${word} comes back`, () => came.endsWith(word));
      trips.push(now() - start);
    }
    const start = now();
    call.req.end();
    const { text, error } = await reading;
    return { status, trips, end: now() - start, text, error };
  },

  // The request has ended, the answer goes on.
  async after(job) {
    const call = open(job, 'POST', '/after', { body: true });
    const { status, body } = await call.answer;
    await write(call.req, 'the request');
    call.req.end();
    return { status, ...(await readAll(body)) };
  },

  // The answer ends before the request does.
  async early(job) {
    const call = open(job, 'POST', '/early', { body: true });
    await write(call.req, 'a beginning');
    const { status, body } = await call.answer;
    const read = await readAll(body);
    const answered = { status, ...read, unfinished: !call.req.writableEnded };
    call.req.on('error', () => {});
    call.destroy();
    return answered;
  },

  // { ways: [{ path, whole, id, base }] }: each way to leave, told one after the other.
  async aborts(job) {
    const after = [];
    for (const way of job.ways) after.push((await jobs.abort({ ...job, ...way })).after);
    return { after };
  },

  // Leaves in the middle; how long until the upstream knew, in milliseconds.
  async abort(job) {
    const uploads = job.path === '/swallow';
    const call = open(job, uploads ? 'POST' : 'GET', job.path, { body: uploads });
    call.answer.catch(() => {});
    if (uploads) await write(call.req, 'a beginning');
    if (job.path === '/drip') {
      const { body } = await call.answer;
      body.on('error', () => {});
      body.resume();
    }
    await untilSeen(job, 'the request', (noted) => noted.began && (!uploads || noted.bytes > 0));
    const left = now();
    if (job.whole && call.session) call.session.destroy();
    else call.destroy();
    const noted = await untilSeen(job, 'the cancellation', (n) => n.cancelled);
    return { after: noted.cancelled - left };
  },

  // HTTP/1.1: says everything it has to say, then closes its own half of the connection.
  async half(job) {
    const url = new URL(job.base);
    const options = { ...tlsOptions(job), host: url.hostname, port: url.port, ALPNProtocols: ['http/1.1'], allowHalfOpen: true };
    const socket = tls.connect(options);
    socket.on('error', () => {});
    await new Promise((done) => socket.on('secureConnect', done));
    const head = `GET ${job.path} HTTP/1.1\r\nHost: ${url.host}\r\nX-Case: ${job.id}\r\nAuthorization: Bearer ${job.token}\r\n\r\n`;
    socket.write(head);
    await untilSeen(job, 'the request', (noted) => noted.began);
    const left = now();
    socket.end();
    const noted = await untilSeen(job, 'the cancellation', (n) => n.cancelled);
    socket.destroy();
    return { after: noted.cancelled - left };
  },

  // Reads nothing until the upstream is held back; then everything. `accepted` is what the upstream got rid of meanwhile.
  async slowReader(job) {
    const call = open(job, 'GET', `/download?bytes=${job.bytes}`);
    const { status, body } = await call.answer;
    let last = -1;
    let since = now();
    await until('the upstream is held back', async () => {
      const { accepted } = await seen(job);
      if (accepted !== last) [last, since] = [accepted, now()];
      return now() - since > STILL;
    });
    const { bytes, sha256, error } = await readAll(body);
    return { status, accepted: last, bytes, sha256, error, expected: expected(job.bytes) };
  },

  // The upstream reads nothing until this caller is held back. `accepted` is what it got rid of.
  async slowUpstream(job) {
    const call = open(job, 'POST', '/upload?wait', { body: true });
    call.answer.catch(() => {});
    let last = 0;
    let since = now();
    const sending = sendPattern(call.req, job.bytes, (sent) => ([last, since] = [sent, now()]));
    sending.catch(() => {});
    await until('this caller is held back', () => now() - since > STILL);
    const accepted = last;
    await seen(job, job.id, 'go');
    await sending;
    const { status, body } = await call.answer;
    const { text } = await readAll(body);
    return { status, accepted, ...JSON.parse(text), expected: expected(job.bytes) };
  },

  // A piece every `gap` ms, each with the time of its sending.
  async trickle(job) {
    const call = open(job, 'POST', '/pieces', { body: true });
    const sent = [];
    for (let i = 0; i < job.pieces; i += 1) {
      sent.push(now());
      await write(call.req, `[${i}]`);
      await sleep(job.gap);
    }
    call.req.end();
    const { status, body } = await call.answer;
    await readAll(body);
    const { pieces } = await seen(job);
    return { status, late: pieces.map(([at], i) => at - sent[i]), words: pieces.map(([, word]) => word) };
  },

  // `bytes` down.
  async down(job) {
    const call = open(job, 'GET', `/download?bytes=${job.bytes}`);
    const { status, body } = await call.answer;
    const digest = new Digest();
    for await (const data of body) digest.feed(data);
    return { status, ...digest.report(), expected: expected(job.bytes) };
  },

  // `bytes` up, without saying how many.
  async up(job) {
    const call = open(job, 'POST', '/upload', { body: true });
    await sendPattern(call.req, job.bytes);
    const { status, body } = await call.answer;
    const { text } = await readAll(body);
    return { status, ...JSON.parse(text), expected: expected(job.bytes) };
  },
};

const job = JSON.parse(process.argv[2]);
// Streams that are left on purpose may still complain.
process.on('uncaughtException', (error) => {
  console.error(error);
  process.exit(1);
});
const report = await jobs[job.job](job);
process.stdout.write(`${JSON.stringify(report)}\n`, () => process.exit(0));
