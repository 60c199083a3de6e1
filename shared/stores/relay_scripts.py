"""What the relay does in Redis, as Lua scripts: shard, record and byte count change together or not at all.

The counts are a hash: bytes by namespace, and those of all blobs, which have none, under the field `blobs`.
"""

SHARES = 8
"""A run may always hold this part of the relay's limit."""

# What is no number, or no hash, counts as nothing until the next recount.
COUNT = """
local function hash(key)
  local found = redis.pcall('HGETALL', key)
  if found.err then
    redis.call('DEL', key)
    return {}
  end
  return found
end
local limit = tonumber(redis.call('GET', KEYS[4]) or ARGV[4]) or tonumber(ARGV[4])
local used, shards, by = 0, 0, {}
local counts = hash(KEYS[3])
for i = 1, #counts, 2 do
  local bytes = tonumber(counts[i + 1]) or 0
  by[counts[i]] = bytes
  used = used + bytes
  if counts[i] ~= 'blobs' then shards = shards + bytes end
end
local size = string.len(ARGV[3])
local function set(field, bytes)
  if bytes > 0 then
    redis.call('HSET', KEYS[3], field, string.format('%.0f', bytes))
  else
    redis.call('HDEL', KEYS[3], field)
  end
end
"""

# KEYS: records, shard, counts, limit. ARGV: task id, record, shard, default limit, namespace.
PUT = f"""
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 'exists' end
{COUNT}
-- A relay without shards takes any shard, so that one larger than the limit does not wait for ever. A full
-- one takes a share of each other run, up to as much again, so that one that nobody collects stalls no other.
local mine = by[ARGV[5]] or 0
local has_share = (mine == 0 or mine + size <= limit / {SHARES}) and used + size <= 2 * limit
if shards > 0 and used + size > limit and not has_share then return 'full' end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
set(ARGV[5], mine + size)
return 'stored'
"""
# KEYS: records, shard, counts. ARGV: task id, namespace.
DISCARD = """
redis.call('HDEL', KEYS[1], ARGV[1])
local size = redis.call('STRLEN', KEYS[2])
redis.call('DEL', KEYS[2])
local left = (tonumber(redis.call('HGET', KEYS[3], ARGV[2]) or '0') or 0) - size
if left <= 0 or redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HDEL', KEYS[3], ARGV[2])
else
  redis.call('HSET', KEYS[3], ARGV[2], string.format('%.0f', left))
end
"""
# KEYS: blobs, blob, counts, limit. ARGV: digest, nothing, data, default limit.
PUT_BLOB = f"""
{COUNT}
local before = redis.call('STRLEN', KEYS[2])
if used - before + size > limit then return 'full' end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], size)
set('blobs', (by['blobs'] or 0) - before + size)
return 'stored'
"""
# KEYS: blobs, blob, counts. ARGV: digest.
DISCARD_BLOB = """
local size = redis.call('STRLEN', KEYS[2])
redis.call('DEL', KEYS[2])
redis.call('HDEL', KEYS[1], ARGV[1])
local left = (tonumber(redis.call('HGET', KEYS[3], 'blobs') or '0') or 0) - size
if left <= 0 or redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HDEL', KEYS[3], 'blobs')
else
  redis.call('HSET', KEYS[3], 'blobs', string.format('%.0f', left))
end
"""
# KEYS: counts, blobs. ARGV: namespaces to count beside those that are known.
RECOUNT = """
local function hash(key)
  local found = redis.pcall('HGETALL', key)
  if found.err then
    redis.call('DEL', key)
    return {}
  end
  return found
end
local names = {}
local counts = hash(KEYS[1])
for i = 1, #counts, 2 do names[counts[i]] = true end
for _, name in ipairs(ARGV) do names[name] = true end
names['blobs'] = nil
local total, blobs = 0, 0
local function write(field, bytes)
  total = total + bytes
  if bytes > 0 then
    redis.call('HSET', KEYS[1], field, string.format('%.0f', bytes))
  else
    redis.call('HDEL', KEYS[1], field)
  end
end
for name, _ in pairs(names) do
  local bytes = 0
  local ids = redis.pcall('HKEYS', 'bitfleet:records:' .. name)
  if not ids.err then
    for _, id in ipairs(ids) do
      local length = redis.pcall('STRLEN', 'bitfleet:shard:' .. name .. ':' .. id)
      if type(length) == 'number' then bytes = bytes + length end
    end
  end
  write(name, bytes)
end
local known = hash(KEYS[2])
for i = 1, #known, 2 do
  local length = redis.pcall('STRLEN', 'bitfleet:blob:' .. known[i])
  if type(length) == 'number' and length > 0 then
    blobs = blobs + length
  else
    redis.call('HDEL', KEYS[2], known[i])
  end
end
write('blobs', blobs)
return total
"""
