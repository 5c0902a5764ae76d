// A person's browser during `postern login`: opens the address that it is given in Chromium, and picks the person on the issuer's page.
//
// Usage: node login.mjs PROFILE_DIR PERSON ADDRESS. On the development issuer's page PERSON's button is pressed; the test issuer knows the
// person by a field of every request. Prints one JSON line: where the browser came to, and what it shows there.
import fs from 'node:fs';
import { chromium } from 'playwright-core';

const [profile, person, address] = process.argv.slice(2);
const EXECUTABLES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

const context = await chromium.launchPersistentContext(profile, {
  executablePath: EXECUTABLES.find((path) => fs.existsSync(path)),
  headless: true,
  ignoreHTTPSErrors: true,
  extraHTTPHeaders: { 'x-test-user': person },
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
const page = await context.newPage();
await page.goto(address);
const button = page.locator(`button[name="person"][value="${person}"]`);
if (await button.count()) await button.click();
await page.waitForURL(/\/callback\/|\/device$/, { timeout: 15000 });
const { host, pathname } = new URL(page.url());
console.log(JSON.stringify({ host, pathname, text: await page.evaluate(() => document.body.innerText) }));
await context.close();
