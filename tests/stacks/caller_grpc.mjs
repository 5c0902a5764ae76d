// A gRPC caller on npm @grpc/grpc-js; jobs and reports are those of caller_grpc.py (see there).
import fs from 'node:fs';
import grpc from '@grpc/grpc-js';
import { now, sleep } from './clock.mjs';

const job = JSON.parse(process.argv[2]);
const base = new URL(job.base);
const LIMIT = 20_000;

function dial() {
  const options = { 'grpc.max_receive_message_length': 16 << 20 };
  if (base.protocol === 'http:') return new grpc.Client(base.host, grpc.credentials.createInsecure(), options);
  options['grpc.ssl_target_name_override'] = base.hostname;
  options['grpc.default_authority'] = base.host;
  return new grpc.Client(`127.0.0.1:${base.port}`, grpc.credentials.createSsl(fs.readFileSync(job.ca)), options);
}

const client = dial();
const asIs = (bytes) => bytes;
const path = (method) => `/stacks.Stacks/${method}`;
const limited = (ms = LIMIT) => ({ deadline: new Date(Date.now() + ms) });

function metadata(more = []) {
  const given = new grpc.Metadata();
  given.add('x-case', job.id);
  for (const [name, value] of more) given.add(name, value);
  if (job.token) given.add('authorization', `Bearer ${job.token}`);
  return given;
}

function pairs(given) {
  const list = [];
  for (const name of Object.keys(given?.getMap() ?? {})) {
    for (const value of given.get(name)) list.push([name, Buffer.isBuffer(value) ? [...value] : value]);
  }
  return list;
}

// One answer: { answer?, code, details, initial, trailing }.
function one(method, message, { given = metadata(), options = limited(), hold = () => {} } = {}) {
  return new Promise((done) => {
    const report = { initial: [] };
    let answer;
    const call = client.makeUnaryRequest(path(method), asIs, asIs, message, given, options, (_error, value) => (answer = value));
    hold(call);
    call.on('metadata', (fields) => (report.initial = pairs(fields)));
    call.on('status', ({ code, details, metadata: trailing }) => {
      setImmediate(() => done({ ...report, answer, code, details, trailing: pairs(trailing) }));
    });
  });
}

const ended = (call) =>
  new Promise((done) => {
    call.on('error', () => {});
    call.on('status', ({ code, metadata: trailing }) => setImmediate(() => done({ code, trailing: pairs(trailing) })));
  });

const seen = async (id = job.id) => JSON.parse((await one('Seen', Buffer.from(id))).answer);

async function untilNoted(name) {
  const end = now() + 10_000;
  for (;;) {
    const told = await seen();
    if (name in told || now() > end) return told;
    await sleep(5);
  }
}

const jobs = {
  async unary() {
    const message = Buffer.alloc(3_000_000);
    for (let i = 0; i < message.length; i += 1) message[i] = (i * 31) & 0xff;
    const more = [['x-many', 'one'], ['x-many', 'two'], ['x-binary-bin', Buffer.from([0, 1, 255])]];
    const { answer, ...report } = await one('Unary', message, { given: metadata(more) });
    const told = await seen();
    const empty = await one('Unary', Buffer.alloc(0));
    return { ...report, same: message.equals(answer ?? Buffer.alloc(0)), empty: empty.answer?.length === 0, seen: told };
  },

  async down() {
    await seen();
    const call = client.makeServerStreamRequest(path('Down'), asIs, asIs, Buffer.from('20 20'), metadata(), limited());
    const late = [];
    call.on('data', (message) => late.push(now() - Number(message)));
    return { late, code: (await ended(call)).code };
  },

  async up() {
    let answer = '';
    const call = client.makeClientStreamRequest(path('Up'), asIs, asIs, metadata(), limited(), (_error, value) => (answer = value));
    const done = ended(call);
    for (let i = 0; i < 1000; i += 1) call.write(Buffer.alloc(1000));
    call.end();
    await done;
    return { answer: answer?.toString() };
  },

  async both() {
    // So that the first message does not wait for the connection.
    await seen();
    const call = client.makeBidiStreamRequest(path('Both'), asIs, asIs, metadata(), limited());
    const done = ended(call);
    const [trips, words] = [[], []];
    let sent;
    const send = () => {
      if (words.length === 20) return call.end();
      sent = now();
      return call.write(Buffer.from(String(words.length)));
    };
    call.on('data', (message) => {
      trips.push(now() - sent);
      words.push(message.toString());
      send();
    });
    send();
    return { trips, words, ...(await done) };
  },

  async errors() {
    const found = [];
    for (let code = 1; code <= 16; code += 1) found.push(await one('Fail', Buffer.from(String(code))));
    found.push(await one('NoSuchMethod', Buffer.alloc(0)));
    return { found };
  },

  denied: () => one('Unary', Buffer.alloc(0), { given: new grpc.Metadata() }),

  async deadline() {
    const started = now();
    const { code } = await one('Slow', Buffer.alloc(0), { options: limited(400) });
    return { code, took: now() - started, started, seen: await untilNoted('cancelled') };
  },

  async cancelUnary() {
    let call;
    const done = one('Slow', Buffer.alloc(0), { hold: (held) => (call = held) });
    await untilNoted('began');
    const left = now();
    call.cancel();
    await done;
    const told = await untilNoted('cancelled');
    return { first: null, after: told.cancelled - left };
  },

  async cancelStream() {
    const call = client.makeServerStreamRequest(path('SlowDown'), asIs, asIs, Buffer.alloc(0), metadata(), limited());
    const done = ended(call);
    const first = await new Promise((heard) => call.on('data', heard));
    await untilNoted('began');
    const left = now();
    call.cancel();
    await done;
    const told = await untilNoted('cancelled');
    return { first: first.toString(), after: told.cancelled - left };
  },
};

const report = {};
const { id } = job;
for (const name of job.jobs) {
  job.id = `${id}-${name}`;
  report[name] = await jobs[name]();
}
process.stdout.write(`${JSON.stringify(report)}\n`, () => process.exit(0));
