// The upstream of most cells: Node's own http (HTTP/1.1) and http2 (h2c) servers with the same handlers, and npm ws for WebSocket.
// Everything that arrives is noted under the request's X-Case; the control server on a port of its own tells it:
//
//   GET  /seen/CASE     what arrived, with times of the clock that all programs here share
//   POST /go/CASE       lets a handler go on that waits for it
//
// Prints `ready http=… h2c=… control=…`. The handlers are described where they stand.
import http from 'node:http';
import http2 from 'node:http2';
import WebSocket, { WebSocketServer } from 'ws';
import { now, sleep } from './clock.mjs';
import { Digest, chunk } from './pattern.mjs';
import { converse } from './upstream_ws.mjs';

const BIG_HEADERS = 256 * 1024;
const cases = new Map();

function noted(id) {
  if (!cases.has(id)) {
    const seen = { began: null, bytes: 0, pieces: [], accepted: 0 };
    let go;
    const gone = new Promise((done) => (go = done));
    cases.set(id, { seen, go, gone });
  }
  return cases.get(id);
}

// Reads a body to its end; `piece` is called for each part as it arrives.
async function read(req, seen, piece = () => {}) {
  const digest = new Digest();
  for await (const data of req) {
    digest.feed(data);
    seen.bytes = digest.bytes;
    await piece(data);
  }
  // Node's http2 ends the body of a stream that was reset as if it were whole, and says only then that it was reset.
  await sleep(0);
  if (req.stream?.aborted) throw new Error('aborted');
  Object.assign(seen, digest.report(), { ended: now(), trailers: pairs(req.rawTrailers ?? []) });
  return seen;
}

function pairs(raw) {
  const list = [];
  for (let i = 0; i < raw.length; i += 2) list.push([raw[i].toLowerCase(), raw[i + 1]]);
  return list;
}

// Resolves when the kernel has the piece; fails when the other side is gone.
const write = (res, data) =>
  new Promise((done, fail) => {
    if (res.destroyed || res.closed) fail(new Error('the caller is gone'));
    else res.write(data, (error) => (error ? fail(error) : done()));
  });

const handlers = {
  // Reads everything and says what it saw.
  async echo(req, res, { seen }) {
    await read(req, seen);
    const body = JSON.stringify(seen);
    res.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) });
    res.end(req.method === 'HEAD' ? undefined : body);
  },

  // /status/204 and /status/304: no body, with the fields that such answers may have.
  async status(req, res, { seen }, url) {
    await read(req, seen);
    res.writeHead(Number(url.pathname.split('/')[2]), { etag: '"v1"', 'cache-control': 'max-age=60' });
    res.end();
  },

  // ?size=N: answers with repeated fields in a known order, and a field of N bytes in pieces of 1 KiB under names of their own.
  async fields(req, res, { seen }, url) {
    await read(req, seen);
    const raw = ['Set-Cookie', 'a=1; Path=/', 'Set-Cookie', 'b=2; Path=/', 'Set-Cookie', 'c=3; HttpOnly'];
    for (const value of ['first', 'second, with a comma', 'third', 'first']) raw.push('X-Many', value);
    const size = Number(url.searchParams.get('size') ?? 0);
    for (let i = 0; i < size / 1024; i += 1) raw.push(`X-Big-${i}`, String(i % 10).repeat(1024));
    if (url.searchParams.has('one')) raw.push('X-One', 'y'.repeat(Number(url.searchParams.get('one'))));
    // Node's http2 takes lists only as an object of arrays.
    if (res.stream) {
      const fields = {};
      for (const [name, value] of pairs(raw)) (fields[name] ??= []).push(value);
      res.writeHead(200, fields);
    } else {
      res.writeHead(200, raw);
    }
    res.end('fields');
  },

  // Trailers both ways: an answer that ends with a digest of the request.
  async trailers(req, res, { seen }) {
    res.writeHead(200, { trailer: 'X-Digest, X-Many', 'content-type': 'text/plain' });
    await write(res, 'before ');
    await read(req, seen);
    await write(res, 'after');
    res.addTrailers({ 'X-Digest': seen.sha256, 'X-Many': `${seen.bytes} bytes` });
    res.end();
  },

  // ?events=N&gap=MS: server-sent events, each with the time at which it was sent.
  async events(req, res, { seen }, url) {
    const gap = Number(url.searchParams.get('gap'));
    const total = Number(url.searchParams.get('events'));
    res.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    for (let i = 0; i < total; i += 1) {
      await write(res, `id: ${i}\nevent: tick\ndata: ${now()}\n\n`);
      await sleep(gap);
    }
    seen.sent = total;
    res.end();
  },

  // Sends each piece of the request back at once, and its own word after the end.
  async duplex(req, res, { seen }) {
    res.writeHead(200, { 'content-type': 'application/octet-stream' });
    res.flushHeaders?.();
    await read(req, seen, (data) => write(res, data));
    res.end('.');
  },

  // After the request's end: ten pieces, 50 ms apart.
  async after(req, res, { seen }) {
    res.writeHead(200, { 'content-type': 'application/octet-stream' });
    res.flushHeaders?.();
    await read(req, seen);
    for (let i = 0; i < 10; i += 1) {
      await write(res, `${i}`);
      await sleep(50);
    }
    res.end();
  },

  // Answers in full before the request has ended.
  async early(req, res) {
    res.writeHead(200, { 'content-type': 'text/plain' });
    res.end('enough');
  },

  // Notes each piece of the request with its time.
  async pieces(req, res, { seen }) {
    await read(req, seen, (data) => seen.pieces.push([now(), data.toString()]));
    res.end('got it');
  },

  // Never answers.
  async hold() {
    await new Promise(() => {});
  },

  // Answers until nobody listens.
  async drip(req, res) {
    res.writeHead(200, { 'content-type': 'application/octet-stream' });
    for (;;) {
      await write(res, 'x'.repeat(100));
      await sleep(20);
    }
  },

  // Breaks off in the middle of an answer: what came must not look whole.
  async broken(req, res) {
    res.writeHead(200, { 'content-type': 'application/octet-stream' });
    await write(res, chunk(0, 50_000));
    await sleep(50);
    (res.stream ?? res.socket).destroy(res.stream && new Error('broken'));
  },

  // Reads what comes for as long as it comes.
  async swallow(req, res, { seen }) {
    await read(req, seen);
    res.end('swallowed');
  },

  // ?bytes=N: an answer of N bytes; what the kernel has taken so far is noted.
  async download(req, res, { seen }, url) {
    const total = Number(url.searchParams.get('bytes'));
    res.writeHead(200, { 'content-type': 'application/octet-stream' });
    for (let sent = 0; sent < total; ) {
      const data = chunk(sent, total - sent);
      await write(res, data);
      sent += data.length;
      seen.accepted = sent;
    }
    res.end();
  },

  // ?wait: reads nothing until told to go on, then everything.
  async upload(req, res, { seen, gone }, url) {
    if (url.searchParams.has('wait')) await gone;
    await read(req, seen);
    res.writeHead(200, { 'content-type': 'application/json' });
    res.end(JSON.stringify({ bytes: seen.bytes, sha256: seen.sha256 }));
  },
};

function serve(req, res) {
  const url = new URL(req.url, 'http://upstream');
  const entry = noted(req.headers['x-case'] ?? '');
  const { seen } = entry;
  Object.assign(seen, {
    began: now(),
    method: req.method,
    url: req.url,
    version: req.httpVersion,
    fields: pairs(req.rawHeaders),
  });
  req.on('aborted', () => (seen.cancelled ??= now()));
  res.on('close', () => {
    if (!res.writableEnded) seen.cancelled ??= now();
    seen.closed = now();
  });
  const handler = handlers[url.pathname.split('/')[1]];
  if (!handler) {
    res.writeHead(404).end();
    return;
  }
  handler(req, res, entry, url).catch((error) => {
    seen.error = String(error);
  });
}

function control(req, res) {
  const [, verb, id] = req.url.split('/');
  const entry = noted(decodeURIComponent(id ?? ''));
  if (verb === 'go') entry.go();
  res.writeHead(200, { 'content-type': 'application/json' });
  res.end(JSON.stringify(entry.seen));
}

const listen = (server) =>
  new Promise((done) => server.listen(0, '127.0.0.1', () => done(`127.0.0.1:${server.address().port}`)));

const h1 = http.createServer({ maxHeaderSize: BIG_HEADERS, requestTimeout: 0 }, serve);
const h2c = http2.createServer(
  {
    settings: { maxHeaderListSize: BIG_HEADERS, enableConnectProtocol: true },
    maxHeaderListPairs: 2000,
    maxSendHeaderBlockLength: BIG_HEADERS,
  },
  serve,
);
// A stream that is reset is noted above; it must not end the server.
h2c.on('sessionError', () => {});
// RFC 8441, only to try the caller without Postern: agents speak HTTP/1.1 to WebSocket upstreams.
h2c.on('connect', (req, { stream }) => {
  const { seen } = noted(req.headers['x-case'] ?? '');
  Object.assign(seen, { began: now(), url: req.url, fields: pairs(req.rawHeaders) });
  if (req.url.startsWith('/refuse')) {
    stream.respond({ ':status': 403, 'x-reason': 'closed shop' });
    stream.end('no.\n');
    return;
  }
  stream.respond({ ':status': 200, 'sec-websocket-protocol': 'chat.v1' });
  stream.setNoDelay = () => {};
  const peer = new WebSocket(null, undefined, { autoPong: true, closeTimeout: 5000 });
  peer.setSocket(stream, Buffer.alloc(0), { maxPayload: 8 << 20, allowSynchronousEvents: true });
  converse(peer, seen);
});
const sockets = new WebSocketServer({
  noServer: true,
  maxPayload: 8 << 20,
  handleProtocols: (offered) => (offered.has('chat.v1') ? 'chat.v1' : false),
});
h1.on('upgrade', (req, socket, head) => {
  const { seen } = noted(req.headers['x-case'] ?? '');
  Object.assign(seen, { began: now(), url: req.url, fields: pairs(req.rawHeaders) });
  if (req.url.startsWith('/refuse')) {
    socket.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nX-Reason: closed shop\r\n\r\nno.\n');
    return;
  }
  sockets.handleUpgrade(req, socket, head, (peer) => converse(peer, seen));
});

const addresses = await Promise.all([h1, h2c, http.createServer(control)].map(listen));
console.log(`ready http=${addresses[0]} h2c=${addresses[1]} control=${addresses[2]}`);
