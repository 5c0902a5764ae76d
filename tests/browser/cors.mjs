// Web pages that call a service across origins, in Chromium.
//
// Usage: node cors.mjs RELAY_URL TOKEN PORT PROFILE_DIR. The same page is served at http://127.0.0.1:PORT and http://localhost:PORT,
// of which the relay knows the first. Prints one JSON line: by origin, what each of its calls saw.
import fs from 'node:fs';
import http from 'node:http';
import { chromium } from 'playwright-core';

const [relay, token, port, profile] = process.argv.slice(2);
const EXECUTABLES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

const calls = async ([relay, token]) => {
  const outcome = {};
  const call = async (name, path, options = {}) => {
    const headers = { authorization: `Bearer ${token}`, ...options.headers };
    try {
      const answer = await fetch(`${relay}${path}`, { ...options, headers });
      const text = await answer.text();
      const fields = Object.fromEntries(answer.headers);
      outcome[name] = { status: answer.status, text, fields };
    } catch (error) {
      outcome[name] = { failed: String(error.message ?? error) };
    }
  };
  await call('get', '/app/cors-get');
  await call('put', '/app/cors-put', { method: 'PUT', body: '{}', headers: { 'content-type': 'application/json', 'x-mine': '1' } });
  await call('unknown method', '/app/cors-patch', { method: 'PATCH', body: 'x' });
  await call('denied', '/app/private/cors-denied');
  await call('bad token', '/app/cors-bad', { headers: { authorization: 'Bearer x.y.z' } });
  await call('no cors', '/closed/cors-closed');
  await call('credentials', '/app/cors-credentials', { credentials: 'include' });
  return outcome;
};

const server = http.createServer((req, res) => {
  res.writeHead(200, { 'content-type': 'text/html' });
  res.end('<!doctype html><title>Elsewhere</title><body></body>');
});
await new Promise((resolve) => server.listen(Number(port), '127.0.0.1', resolve));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: EXECUTABLES.find((path) => fs.existsSync(path)),
  headless: true,
  ignoreHTTPSErrors: true,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--host-resolver-rules=MAP localhost 127.0.0.1'],
});
const results = {};
for (const host of ['127.0.0.1', 'localhost']) {
  const page = await context.newPage();
  await page.goto(`http://${host}:${port}`);
  results[host] = await page.evaluate(calls, [relay, token]);
  await page.close();
}
console.log(JSON.stringify(results));
await context.close();
server.close();
