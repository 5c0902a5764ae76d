// A browser whose one proxy is `postern proxy` opens services by their names, and nothing else.
//
// Usage: node socks.mjs PROXY PROFILE_DIR. Prints one JSON line: what each visit saw.
import fs from 'node:fs';
import { chromium } from 'playwright-core';

const [proxy, profile] = process.argv.slice(2);
const EXECUTABLES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

const context = await chromium.launchPersistentContext(profile, {
  executablePath: EXECUTABLES.find((path) => fs.existsSync(path)),
  headless: true,
  proxy: { server: proxy },
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
const page = await context.newPage();
const seen = {};
const answer = await page.goto('http://echo/typed');
seen.typed = { status: answer.status(), text: await page.evaluate(() => document.body.innerText) };
seen.fetched = await page.evaluate(async () => (await fetch('/fetched', { method: 'POST', body: 'x' })).status);
const attempt = (url) => page.evaluate(async (url) => {
  try {
    return String((await fetch(url, { method: 'POST', mode: 'no-cors', body: 'x' })).type);
  } catch (error) {
    return `failed: ${error.message}`;
  }
}, url);
seen.otherService = await attempt('http://app.example.com/from-echo');
const visit = async (url) => {
  const other = await context.newPage();
  try {
    return String((await other.goto(url)).status());
  } catch (error) {
    return `failed: ${error.message.split('\n')[0]}`;
  } finally {
    await other.close();
  }
};
seen.host = await visit('http://app.example.com/own-host');
seen.elsewhere = await visit('http://www.example.com/');
console.log(JSON.stringify(seen));
await context.close();
