// One way to call over Node's http/https (h1) and http2 (h2): `open` begins a request, the body is written by the caller.
//
// A job: { protocol: "h1" | "h2", base: URL, ca: file, token, id, control: "host:port" }. Every host name leads to loopback.
import fs from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';
import https from 'node:https';
import { until } from './clock.mjs';

const BIG_HEADERS = 256 * 1024;

function lookup(_name, options, done) {
  if (options.all) done(null, [{ address: '127.0.0.1', family: 4 }]);
  else done(null, '127.0.0.1', 4);
}

export function pairs(raw) {
  const list = [];
  for (let i = 0; i < raw.length; i += 2) list.push([raw[i].toLowerCase(), raw[i + 1]]);
  return list;
}

export function tlsOptions(job) {
  return job.ca ? { ca: fs.readFileSync(job.ca), servername: new URL(job.base).hostname, lookup } : { lookup };
}

function headersOf(job, fields) {
  const headers = { 'x-case': job.id, ...fields };
  if (job.token) headers.authorization = `Bearer ${job.token}`;
  return headers;
}

// An HTTP/2 connection for several requests.
export function connect(job) {
  const session = http2.connect(job.base, {
    ...tlsOptions(job),
    maxHeaderListPairs: 2000,
    settings: { maxHeaderListSize: BIG_HEADERS },
    maxSendHeaderBlockLength: BIG_HEADERS,
  });
  session.on('error', () => {});
  return session;
}

// Begins a request without a body unless `body` is set; then the caller writes to `req` and ends it. `answer` resolves with the head.
export function open(job, method, path, { fields = {}, body = false, trailers = null, session = null } = {}) {
  const headers = headersOf(job, fields);
  const call = { continued: false, trailers: [], error: null };
  const settle = (resolve, reject, req) => {
    req.on('continue', () => {
      call.continued = true;
      call.onContinue?.();
    });
    req.on('error', (error) => {
      call.error = error.code ?? String(error);
      reject(error);
    });
  };
  if (job.protocol === 'h1') {
    const url = new URL(path, job.base);
    const module = url.protocol === 'https:' ? https : http;
    const agent = new module.Agent({ keepAlive: false });
    const options = { method, headers, agent, maxHeaderSize: BIG_HEADERS, ...tlsOptions(job) };
    call.req = module.request(url, options);
    call.destroy = () => call.req.destroy();
    call.answer = new Promise((resolve, reject) => {
      settle(resolve, reject, call.req);
      call.req.on('response', (res) => {
        res.on('end', () => (call.trailers = pairs(res.rawTrailers)));
        resolve({ status: res.statusCode, version: res.httpVersion, fields: pairs(res.rawHeaders), body: res });
      });
    });
    if (trailers) call.req.addTrailers(trailers);
    if (body) call.req.flushHeaders();
    else call.req.end();
    return call;
  }
  const own = session ?? connect(job);
  const leaving = new AbortController();
  call.session = own;
  call.req = own.request(
    { ':method': method, ':path': path, ...headers },
    { endStream: !body, waitForTrailers: Boolean(trailers), signal: leaving.signal },
  );
  // Not close(NGHTTP2_CANCEL): that first ends the body, as if it were whole.
  call.destroy = () => leaving.abort();
  if (trailers) call.req.on('wantTrailers', () => call.req.sendTrailers(trailers));
  call.answer = new Promise((resolve, reject) => {
    settle(resolve, reject, call.req);
    own.on('error', reject);
    call.req.on('trailers', (_fields, _flags, raw) => (call.trailers = pairs(raw)));
    call.req.on('response', (_fields, _flags, raw) => {
      const fields = pairs(raw);
      const status = Number(fields.find(([name]) => name === ':status')[1]);
      resolve({ status, version: '2.0', fields: fields.filter(([name]) => !name.startsWith(':')), body: call.req });
    });
  });
  call.req.on('close', () => {
    if (!session) own.close();
  });
  return call;
}

// What the upstream noted, asked on its own control port: this does not go through Postern.
export async function seen(job, id = job.id, verb = 'seen') {
  const answer = await fetch(`http://${job.control}/${verb}/${encodeURIComponent(id)}`);
  return answer.json();
}

export const untilSeen = (job, what, probe, id = job.id) =>
  until(`the upstream noted: ${what}`, async () => {
    const noted = await seen(job, id);
    return probe(noted) ? noted : null;
  });
