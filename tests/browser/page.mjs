// A web page served from another port tries everything a page can to reach a running forward, in Chromium.
//
// Usage: node page.mjs FORWARD_URL PROFILE_DIR. Prints one JSON line: what each attempt saw, and what the page's own visit to the
// forward saw (which must work, or the attempts prove nothing).
import http from 'node:http';
import { chromium } from 'playwright-core';

const [forward, profile] = process.argv.slice(2);
const EXECUTABLES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

const attempts = async (target) => {
  const outcome = {};
  const attempt = async (name, run) => {
    try {
      outcome[name] = String(await run());
    } catch (error) {
      outcome[name] = `failed: ${error.message ?? error}`;
    }
  };
  const loaded = (element, name) =>
    new Promise((resolve) => {
      element.onload = () => resolve('loaded');
      element.onerror = () => resolve('failed: to load');
      element.src = `${target}/page-${name}`;
      document.body.append(element);
      setTimeout(() => resolve('failed: in time'), 3000);
    });
  await attempt('cors', async () => (await fetch(`${target}/page-cors`)).status);
  await attempt('no-cors', async () => (await fetch(`${target}/page-no-cors`, { mode: 'no-cors' })).type);
  await attempt('credentials', async () => (await fetch(`${target}/page-credentials`, { credentials: 'include' })).status);
  await attempt('post', async () => (await fetch(`${target}/page-post`, { method: 'POST', mode: 'no-cors', body: 'x' })).type);
  await attempt('put', async () => (await fetch(`${target}/page-put`, { method: 'PUT', headers: { 'x-y': 'z' } })).status);
  await attempt('beacon', () => navigator.sendBeacon(`${target}/page-beacon`, 'x'));
  await attempt('image', () => loaded(new Image(), 'image'));
  await attempt('script', () => loaded(document.createElement('script'), 'script'));
  await attempt('frame', () => loaded(document.createElement('iframe'), 'frame'));
  await attempt('socket', () => new Promise((resolve) => {
    const socket = new WebSocket(`${target.replace('http', 'ws')}/page-socket`);
    socket.onopen = () => resolve('open');
    socket.onerror = () => resolve('failed: to open');
  }));
  await attempt('form', () => new Promise((resolve) => {
    const frame = document.createElement('iframe');
    frame.name = 'target';
    const form = document.createElement('form');
    Object.assign(form, { method: 'post', action: `${target}/page-form`, target: 'target' });
    frame.onload = () => setTimeout(() => resolve('submitted'), 200);
    document.body.append(frame, form);
    form.submit();
    setTimeout(() => resolve('submitted, no answer'), 3000);
  }));
  return outcome;
};

const server = http.createServer((req, res) => {
  res.writeHead(200, { 'content-type': 'text/html' });
  res.end('<!doctype html><title>Elsewhere</title><body></body>');
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));

const fs = await import('node:fs');
const context = await chromium.launchPersistentContext(profile, {
  executablePath: EXECUTABLES.find((path) => fs.existsSync(path)),
  headless: true,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
const results = {};
for (const origin of [`http://127.0.0.1:${server.address().port}`, `http://localhost:${server.address().port}`]) {
  const page = await context.newPage();
  await page.goto(origin);
  results[origin] = await page.evaluate(attempts, forward);
  await page.close();
}
// A link on such a page, clicked: a navigation that another site began.
const linked = await context.newPage();
await linked.goto(`http://127.0.0.1:${server.address().port}`);
await linked.evaluate((target) => { location.href = `${target}/page-link`; }, forward);
await linked.waitForURL(`${forward}/**`, { timeout: 5000 }).catch(() => {});
// Typed into the address bar: what a forward is for.
const typed = await context.newPage();
const answer = await typed.goto(`${forward}/typed`);
results.typed = { status: answer.status(), text: await typed.evaluate(() => document.body.innerText) };
results.sameOrigin = await typed.evaluate(async () => (await fetch('/same-origin')).status);
console.log(JSON.stringify(results));
await context.close();
server.close();
