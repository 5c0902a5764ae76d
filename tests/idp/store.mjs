// What the issuer remembers (sessions, codes, grants, refresh tokens), in memory and shared by every generation of the Provider.

const entries = new Map();
const grants = new Map();

function put(key, payload, ttl) {
  entries.set(key, { payload, expires: ttl ? Date.now() + ttl * 1000 : Infinity });
}

function take(key) {
  const entry = entries.get(key);
  return entry && entry.expires >= Date.now() ? entry.payload : undefined;
}

export class Store {
  constructor(model) {
    this.model = model;
  }

  key(id) {
    return `${this.model}:${id}`;
  }

  async upsert(id, payload, ttl) {
    const key = this.key(id);
    put(key, payload, ttl);
    if (payload.uid) put(`uid:${payload.uid}`, key, ttl);
    if (payload.userCode) put(`code:${payload.userCode}`, key, ttl);
    if (payload.grantId) {
      if (!grants.has(payload.grantId)) grants.set(payload.grantId, new Set());
      grants.get(payload.grantId).add(key);
    }
  }

  async find(id) {
    return take(this.key(id));
  }

  async findByUid(uid) {
    return take(take(`uid:${uid}`));
  }

  async findByUserCode(code) {
    return take(take(`code:${code}`));
  }

  async consume(id) {
    const payload = take(this.key(id));
    if (payload) payload.consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    entries.delete(this.key(id));
  }

  async revokeByGrantId(grantId) {
    for (const key of grants.get(grantId) ?? []) entries.delete(key);
    grants.delete(grantId);
  }
}
