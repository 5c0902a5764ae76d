// The OpenID provider that the end-to-end tests log in to: npm oidc-provider with two people, ada and bob, on loopback.
//
// Environment: PORT (0 picks one), TLS_CERT and TLS_KEY (PEM files; without them it speaks http), RESOURCE (audience of the main
// resource), AT_TTL and REFRESH_TTL in seconds. With TLS also MTLS_PORT, where it asks for a client certificate, TLS_CA (the authority
// that such certificates are from) and CLIENT_KEYS (JSON: the public JWKS of clients by their ids). Prints `ready ISSUER` once it answers.
//
// A login is completed without a person: whoever follows the redirects sends `x-test-user: ada` (see provider.mjs, interact).
// POST /__test/rotate?mode=overlap|hard      new signing keys, the old ones kept or dropped
// POST /__test/fault?path=/jwks&status=500&delay=100&count=3   answers so, that often; without status and delay: no longer
// POST /__test/live?accessTtl=1&slowDown=2&interval=1&dpopNonce=1&opaque=1&dpop=0   see provider.mjs, live
// POST /__test/stand-in?vendor=okta          from now on it is like that one: see vendors.mjs; its path lies below this one's address
// GET  /__test/hits                          requests by path, and token requests by grant type
import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { rotate } from './keys.mjs';
import { build, interact, live, tokenCalls } from './provider.mjs';
import { vendors } from './vendors.mjs';

const { PORT = '0', MTLS_PORT = '0', TLS_CERT, TLS_KEY, TLS_CA } = process.env;

let issuer;
let vendor;
let mtlsOrigin;
let provider;
let handler;
const faults = new Map();
const hits = {};

function rebuild() {
  provider = build(issuer + (vendor?.path ?? ''), mtlsOrigin, vendor);
  handler = provider.callback();
}

function reply(res, status, body) {
  res.writeHead(status, { 'content-type': 'application/json' });
  res.end(JSON.stringify(body));
}

function control(url, res) {
  const query = url.searchParams;
  switch (url.pathname) {
    case '/__test/rotate': {
      const kids = rotate(query.get('mode'));
      rebuild();
      return reply(res, 200, { kids });
    }
    case '/__test/fault': {
      const fault = {
        status: Number(query.get('status') ?? 0),
        delay: Number(query.get('delay') ?? 0),
        count: Number(query.get('count') ?? Infinity),
      };
      if (fault.status || fault.delay) faults.set(query.get('path'), fault);
      else faults.delete(query.get('path'));
      return reply(res, 200, { faults: faults.size });
    }
    case '/__test/live':
      for (const name of Object.keys(live)) if (query.has(name)) live[name] = Number(query.get(name));
      // What it says of itself.
      if (query.has('dpop')) rebuild();
      return reply(res, 200, live);
    case '/__test/stand-in':
      if (!Object.hasOwn(vendors, query.get('vendor'))) return reply(res, 404, { error: 'no such vendor' });
      vendor = vendors[query.get('vendor')];
      rebuild();
      return reply(res, 200, { issuer: provider.issuer });
    case '/__test/hits':
      return reply(res, 200, { paths: hits, grants: tokenCalls });
    default:
      return reply(res, 404, { error: `no such control: ${url.pathname}` });
  }
}

async function serve(req, res) {
  const url = new URL(req.url, issuer);
  if (url.pathname.startsWith('/__test/')) return control(url, res);
  hits[url.pathname] = (hits[url.pathname] ?? 0) + 1;
  const fault = faults.get(url.pathname);
  if (fault && fault.count > 0) {
    fault.count -= 1;
    if (fault.delay) await new Promise((resolve) => setTimeout(resolve, fault.delay));
    if (fault.status) return reply(res, fault.status, { error: 'server_error' });
  }
  if (url.pathname.startsWith('/interaction/')) return interact(provider, req, res);
  const below = vendor?.path.replace(/\/$/, '');
  if (below && url.pathname.startsWith(`${below}/`)) {
    // The library tells by this where it is mounted.
    req.originalUrl = req.url;
    req.url = req.url.slice(below.length);
  }
  return handler(req, res);
}

function listener(req, res) {
  serve(req, res).catch((error) => {
    console.error(req.method, req.url, error);
    if (!res.headersSent) reply(res, 500, { error: String(error) });
  });
}

const listening = (server, port) =>
  new Promise((resolve) => server.listen(Number(port), '127.0.0.1', () => resolve(server.address().port)));

if (TLS_CERT && TLS_KEY) {
  const own = { cert: fs.readFileSync(TLS_CERT), key: fs.readFileSync(TLS_KEY) };
  issuer = `https://127.0.0.1:${await listening(https.createServer(own, listener), PORT)}`;
  // Whether a certificate is good enough is each client's own affair: some are registered by hash.
  const asks = { ...own, requestCert: true, rejectUnauthorized: false, ca: TLS_CA && fs.readFileSync(TLS_CA) };
  mtlsOrigin = `https://127.0.0.1:${await listening(https.createServer(asks, listener), MTLS_PORT)}`;
} else {
  issuer = `http://127.0.0.1:${await listening(http.createServer(listener), PORT)}`;
}
rebuild();
console.log(`ready ${issuer}`);
