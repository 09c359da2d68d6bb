-- control.lua: random bytes, random JSON and half-good requests against the control socket's server, with a cluster
-- that answers late, never or twice. A request gets at most one answer, a JSON object of ours; nothing throws.
-- usage: build/dm-spec spec/fuzz/control.lua [SECONDS] [SEED]

local cjson = require 'cjson.safe'
local control = require 'dutch-master.control.server'
local uv = require 'luv'

local seconds, seed = tonumber(arg[1]) or 5, tonumber(arg[2]) or os.time()
math.randomseed(seed)
print('seed ' .. seed)
local random = math.random

local VERBS = { 'status', 'restart', 'reload', 'plan', 'stop', 'scale', 'events', 'why', 'ping', 'format', '' }
local KEYS = { 'v', 'id', 'verb', 'wait', 'workers', 'by', 'last', 'follow', 'worker', 'x' }

local function value(depth)
    local kind = random(9)
    if kind == 1 then
        return VERBS[random(#VERBS)]
    elseif kind == 2 then
        return random(-5, 5)
    elseif kind == 3 then
        return (random() - 0.5) * 10 ^ random(0, 300)
    elseif kind == 4 then
        return random(2) == 1
    elseif kind == 5 then
        return cjson.null
    elseif kind == 6 and depth < 5 then
        local list = {}
        for i = 1, random(0, 3) do
            list[i] = value(depth + 1)
        end
        return list
    elseif kind == 7 and depth < 5 then
        local object = {}
        for _ = 1, random(0, 3) do
            object[KEYS[random(#KEYS)]] = value(depth + 1)
        end
        return object
    elseif kind == 8 then
        return ('\0\27"\\\255'):sub(1, random(5)):rep(random(0, 20))
    end
    return 1
end

local function line()
    local kind = random(10)
    if kind == 1 then
        local bytes = {}
        for i = 1, random(0, 60) do
            bytes[i] = string.char(random(0, 255))
        end
        return (table.concat(bytes):gsub('\n', ''))
    elseif kind == 2 then
        return (random(2) == 1 and '[' or '{"a":'):rep(random(1, 2000))
    end
    local request = { v = random(20) == 1 and value(0) or 1, id = value(0), verb = VERBS[random(#VERBS)] }
    for _ = 1, random(0, 4) do
        request[KEYS[random(3, #KEYS)]] = value(0)
    end
    local text = cjson.encode(request) or '{}'
    return random(20) == 1 and text:sub(1, random(#text)) or text
end

-- Answers of the cluster that are still to come; some come twice, some never.
local later = {}

local function soon(fn)
    for _ = 1, random(3) - 1 do
        later[#later + 1] = fn
    end
end

local cluster = { wanted = 2 }
function cluster.snapshot()
    return { workers = {}, slots = {}, wanted = 2, state = 'steady', generation = 1 }
end
function cluster.restart(_, request)
    if random(4) == 1 then
        return nil, 'refused', 'EBUSY'
    end
    soon(function() request.on_progress { done = 1, total = 2, worker = 3 } end)
    soon(function() request.on_verdict { result = 'done', generation = 1 } end)
end
function cluster.stop(_, request)
    soon(function() request.on_stopped(0) end)
end
function cluster.scale()
    if random(2) == 1 then
        return nil, 'refused'
    end
    return true
end
function cluster.reload(_, _, done)
    soon(function()
        if random(2) == 1 then
            return done(nil, { message = 'bad' })
        end
        done { changes = {} }
    end)
end
function cluster.preview(_, done)
    cluster.reload(nil, nil, done)
end
function cluster.why()
    return { exits = {} }
end

local platform = {}
local accept, tick
function platform.who(pid, uid)
    return { pid = pid, uid = uid }
end
function platform.timer(fn)
    return { start = function() tick = fn end, stop = function() end, close = function() end }
end
function platform.serve(_, options)
    accept = options.on_client
    return { close = function() end }
end

local followers = {}
local failures = 0
local log = { recent = function() return { { msg = 'x' } } end }
function log.subscribe(_, fn)
    followers[fn] = true
    return function()
        followers[fn] = nil
    end
end
function log.lost()
    return 0
end
function log.error(_, fields)
    failures = failures + 1
    print('failed: ' .. cjson.encode(fields))
end

local claim = { paths = { '/x' }, look = function() return {} end }
assert(control.new({ platform = platform, cluster = cluster, log = log, claim = claim,
    output = { lines = 0, bytes = 0, limit = 1 } }):open())

local function new_client()
    local conn = { finals = 0, requests = 0 }
    function conn.on_line(_, fn) conn.feed = fn end
    function conn.on_close(_, fn) conn.gone = fn end
    function conn.pid() return 1 end
    function conn.uid() return 1 end
    function conn.close() conn.closed = true end
    function conn.hold() end
    function conn.write(_, text)
        assert(not conn.closed, 'written to a closed connection')
        local answer = assert(cjson.decode(text), text)
        assert(answer.v == 1 and select(2, text:gsub('\n', '')) == 1, text)
        if answer.ok ~= nil then
            conn.finals = conn.finals + 1
            assert(conn.finals <= conn.requests, 'more answers than requests')
        end
    end
    accept(conn)
    return conn
end

local clients, requests = {}, 0
local ends = uv.hrtime() + seconds * 1e9
while uv.hrtime() < ends do
    local i = random(8)
    local conn = clients[i]
    if not conn or conn.closed then
        clients[i] = new_client()
    elseif random(50) == 1 then
        conn.closed = true
        conn.gone()
    else
        local text = line()
        conn.requests, requests = conn.requests + 1, requests + 1
        conn.feed(text)
    end
    while random(2) == 1 and tick do
        local fn = tick
        tick = nil
        fn()
    end
    while later[1] and random(3) == 1 do
        table.remove(later, random(#later))()
    end
    local follower = next(followers)
    if follower then
        follower { msg = 'record' }
    end
end
for _, conn in pairs(clients) do
    if not conn.closed then
        conn.gone()
    end
end
assert(next(followers) == nil, 'a client that has gone still follows')
print(('%d requests, %d failures'):format(requests, failures))
os.exit(failures == 0 and 0 or 1)
