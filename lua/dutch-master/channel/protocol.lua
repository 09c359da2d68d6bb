-- The master's side of Node's cluster protocol: one JSON value per line. Pure: text in, event out, and back.
-- Lua workers speak the same protocol, so this is the only wire format between the master and a worker.
--
-- A line from a worker is not trusted: whatever it says, decode answers an event or nil and a reason, never throws, and
-- never lets a field through whose type was not checked. What Node itself would ignore comes back as
-- {kind = 'unknown'}; what would crash or confuse a Node primary comes back as nil, reason.
local cjson = require('cjson').new()
local addresses = require 'dutch-master.addresses'
local measured = require 'dutch-master.channel.measured'

local M = {}

-- Deeper values than this are refused. Values that go on to a script are limited further there.
M.MAX_DEPTH = 64
M.null = cjson.null

cjson.decode_max_depth(M.MAX_DEPTH)
cjson.decode_invalid_numbers(false)
cjson.encode_keep_buffer(false) -- one huge message would otherwise stay allocated for ever

local MAX_INTEGER = 2 ^ 53
local MAX_PATH = 4096 -- what Linux takes for a path; the socket's own limit is for who binds to say

local function is_integer(value, min, max)
    return type(value) == 'number' and value >= min and value <= max and value % 1 == 0
end

local function present(value)
    if value == cjson.null then
        return nil
    end
    return value
end

-- Node's addressType -> the type this program speaks of.
local TYPES = { [4] = 'tcp4', [6] = 'tcp6', [-1] = 'unix', udp4 = 'udp4', udp6 = 'udp6' }

-- An abstract address arrives as '<cwd>/\0name', because Node resolves it like a file.
local function repair_path(path)
    local name = path:match('%z(.*)$')
    return name and '@' .. name or path
end

local function text_of(socket)
    if socket.fd then
        return nil
    elseif socket.type == 'unix' then
        return 'unix:' .. socket.path
    end
    local prefix = socket.stream and '' or 'udp:'
    return prefix .. (socket.address and addresses.before_port(socket.address) or '') .. ':' .. socket.port
end

-- What tells one listen of a worker from another, and is the same in all workers: the n-th listen(0) of each
-- worker is the same port, an explicit address is itself.
local function name_of(socket)
    if socket.fd then
        return ('fd:%d#%d'):format(socket.fd, socket.index)
    elseif socket.type == 'unix' then
        return 'unix:' .. socket.path
    end
    local name = ('%s:%s:%d'):format(socket.type, socket.address or '*', socket.port)
    if socket.ipv6only then
        name = name .. '/v6'
    end
    if socket.port == 0 or socket.reuse_address then
        name = name .. '#' .. socket.index
    end
    return name
end

-- The description of a socket in queryServer and listening. nil, reason.
local function socket_of(message, what)
    local address, port = present(message.address), present(message.port)
    local address_type, fd = present(message.addressType), present(message.fd)
    local index, flags = present(message.index) or 0, present(message.flags) or 0
    local backlog = present(message.backlog)
    local kind = TYPES[address_type]
    if address_type ~= nil and not kind then
        return nil, what .. ' with an unknown addressType'
    elseif fd ~= nil and not is_integer(fd, -1, 2 ^ 31 - 1) then
        return nil, what .. ' with a bad fd'
    elseif not kind and (fd or -1) < 0 then
        return nil, what .. ' with neither addressType nor fd'
    elseif not is_integer(index, 0, MAX_INTEGER) or not is_integer(flags, 0, 2 ^ 31 - 1) then
        return nil, what .. ' with a bad index or flags'
    elseif address ~= nil and (type(address) ~= 'string' or #address > MAX_PATH) then
        return nil, what .. ' with a bad address'
    end
    if kind == nil or (fd ~= nil and fd >= 0) then
        return { type = 'fd', fd = fd, index = index, stream = address_type ~= 'udp4' and address_type ~= 'udp6',
            port = is_integer(port, 0, 65535) and port or 0 }
    end
    local socket = { type = kind, index = index, stream = kind:sub(1, 3) ~= 'udp' }
    socket.backlog = is_integer(backlog, 1, 2 ^ 31 - 1) and backlog or nil
    if kind == 'unix' then
        if not address or address == '' then
            return nil, what .. ' of a path without the path'
        end
        socket.path = repair_path(address)
        socket.readable_all = message.readableAll == true
        socket.writable_all = message.writableAll == true
        return socket
    end
    if not is_integer(port == nil and 0 or port, 0, 65535) then
        return nil, what .. ' with a bad port'
    elseif address and address:find('[^%w%.:%%_%-]') then
        return nil, what .. ' with a bad address'
    end
    socket.address, socket.port = address, port or 0
    -- Without an address Node means: the unspecified one, IPv6 with IPv4 in it where there is IPv6.
    socket.ipv6only = flags % 2 == 1
    socket.dual = socket.stream and not socket.ipv6only and (address == nil or address == '::')
    socket.reuse_address = not socket.stream and math.floor(flags / 4) % 2 == 1
    return socket
end

local function with_socket(kind)
    return function(message, seq)
        local socket, reason = socket_of(message, message.act)
        if not socket then
            return nil, reason
        end
        local data = present(message.data)
        if data ~= nil and type(data) ~= 'table' then
            return nil, message.act .. ' with bad data'
        end
        socket.name, socket.text = name_of(socket), text_of(socket)
        return { kind = kind, seq = seq, socket = socket, data = data }
    end
end

-- act -> function(message, seq) -> event | nil, reason
local ACTS = {
    online = function()
        return { kind = 'online' }
    end,
    queryServer = function(message, seq)
        if not seq then
            return nil, 'queryServer without a seq'
        end
        return with_socket('query')(message, seq)
    end,
    listening = function(message, seq)
        local event, reason = with_socket('listening')(message, seq)
        if event then
            -- Node's servers always do; a Lua worker says so if nobody there takes connections from us.
            event.takes_connections = message.handOver ~= false
        end
        return event, reason
    end,
    close = function(message)
        if type(message.key) ~= 'string' then
            return nil, 'close without a key'
        end
        return { kind = 'close', key = message.key }
    end,
    exitedAfterDisconnect = function(_, seq)
        if not seq then
            return nil, 'exitedAfterDisconnect without a seq'
        end
        return { kind = 'leaving', seq = seq }
    end,
}

local function decode_cluster(message)
    local seq = present(message.seq)
    if seq ~= nil and not is_integer(seq, 0, MAX_INTEGER) then
        return nil, 'a bad seq'
    end
    local ack = present(message.ack)
    if ack ~= nil then
        if not is_integer(ack, 0, MAX_INTEGER) then
            return nil, 'a bad ack'
        end
        return { kind = 'ack', ack = ack, accepted = message.accepted == true }
    end
    local act = ACTS[message.act]
    if not act then
        return { kind = 'unknown' }
    end
    return act(message, seq)
end

local function with_key(kind)
    return function(message)
        if type(message.key) ~= 'string' then
            return nil, 'a ' .. message.cmd .. ' without a key'
        end
        return { kind = kind, key = message.key }
    end
end

local function constant(kind)
    return function()
        return { kind = kind }
    end
end

local COMMANDS = {
    NODE_CLUSTER = decode_cluster,
    NODE_HANDLE_ACK = constant 'handle_ack',
    NODE_HANDLE_NACK = constant 'handle_nack',
    NODE_SOCKET_NOTIFY_CLOSE = with_key 'notify_close',
    NODE_SOCKET_GET_COUNT = with_key 'get_count',
    NODE_DUTCH_READY = constant 'ready',
    NODE_DUTCH_ADDS_MODES = constant 'adds_modes',
    NODE_DUTCH_HERE = function(message)
        return { kind = 'here', by = present(message.by) }
    end,
    NODE_DUTCH_METRICS = function(message)
        return { kind = 'metrics', measured = measured.read(message) }
    end,
    -- A worker listens with a socket that it made itself.
    NODE_DUTCH_OWN = function(message)
        local address, port, path = present(message.address), present(message.port), present(message.path)
        if path ~= nil then
            if type(path) ~= 'string' or path == '' or #path > MAX_PATH then
                return nil, 'a bad NODE_DUTCH_OWN'
            end
            return { kind = 'own', socket = { own = true, type = 'unix', stream = true, path = path,
                name = 'own:unix:' .. path, text = 'unix:' .. path } }
        elseif type(address) ~= 'string' or #address > 64 or not is_integer(port, 0, 65535) then
            return nil, 'a bad NODE_DUTCH_OWN'
        end
        local text = addresses.before_port(address) .. ':' .. port
        return { kind = 'own', socket = { own = true, type = 'tcp4', stream = true, address = address, port = port,
            name = 'own:' .. text, text = text } }
    end,
    NODE_DUTCH_LOAD = function(message)
        local held, busy = message.held, present(message.busy) or 0
        if not is_integer(held, 0, MAX_INTEGER) or not is_integer(busy, 0, 1000) then
            return nil, 'a bad NODE_DUTCH_LOAD'
        end
        return { kind = 'load', held = held, busy = busy }
    end,
}

-- Node's rule for what the app never sees: a cmd that begins with NODE_ and goes on.
local function is_internal(value)
    return type(value) == 'table' and type(value.cmd) == 'string' and #value.cmd > 5 and value.cmd:sub(1, 5) == 'NODE_'
end

-- A descriptor comes with the line. Unless it is a connection that is given back it is closed unseen, and the message
-- around it still counts.
function COMMANDS.NODE_HANDLE(message)
    local inner = message.msg
    if is_internal(inner) and inner.cmd == 'NODE_DUTCH_RETURN' and type(inner.key) == 'string' then
        return { kind = 'returned', key = inner.key, again = inner.again == true }
    elseif inner == nil or is_internal(inner) then
        return { kind = 'handle' }
    end
    local ok, text = pcall(cjson.encode, inner)
    if not ok then -- 1e400 is a number to read, and none to write
        return { kind = 'handle' }
    end
    return { kind = 'handle', has_value = true, value = inner, text = text }
end

--- One line, without its newline -> event, or nil and what is wrong with it.
--- Events, by kind: online; query {seq, socket, data}; listening {socket,
---   takes_connections}; close {key}; leaving {seq};
---   ack {ack, accepted}; handle {has_value, value, text}; returned {key, again}; handle_ack; handle_nack;
---   notify_close {key}; get_count {key}; ready; adds_modes; here {by}; own {socket}; load {held, busy};
---   metrics {measured}; message {value, text}; unknown.
--- A socket has name, text (an address as core.address reads it), type, stream, address, port, path, fd, index,
--- backlog, dual, ipv6only, reuse_address, readable_all, writable_all.
function M.decode(line)
    if type(line) ~= 'string' then
        return nil, 'not text'
    end
    local ok, value = pcall(cjson.decode, line)
    if not ok then
        return nil, 'not JSON: ' .. tostring(value):sub(1, 200)
    end
    if not is_internal(value) then
        return { kind = 'message', value = value, text = line }
    end
    local command = COMMANDS[value.cmd]
    if not command then
        return { kind = 'unknown' }
    end
    return command(value)
end

local ERRNO = {
    EPERM = 1, ENOENT = 2, EIO = 5, EBADF = 9, ENOMEM = 12, EACCES = 13, EEXIST = 17, ENOTDIR = 20, EISDIR = 21,
    EINVAL = 22, ENFILE = 23, EMFILE = 24, ENOSPC = 28, EROFS = 30, ENAMETOOLONG = 36, ELOOP = 40, ENOTSOCK = 88,
    EPROTONOSUPPORT = 93, ENOTSUP = 95, EOPNOTSUPP = 95, EAFNOSUPPORT = 97, EADDRINUSE = 98, EADDRNOTAVAIL = 99,
    ENOBUFS = 105,
}

--- The negative number Node wants for the name of an error; EINVAL for a name it does not know.
function M.errno(code)
    return -(ERRNO[code] or ERRNO.EINVAL)
end

local encode = {}
M.encode = encode

local function line(message)
    return (cjson.encode(message))
end

-- A wrapper that a descriptor travels in. 'net.Native' does for TCP, unix and UDP alike, on every version.
local function handle(inner)
    return line { cmd = 'NODE_HANDLE', type = 'net.Native', msg = inner }
end

--- Answer to a query; goes with the socket. data must be what the query brought, or another of its shape.
function encode.reply(seq, key, data)
    return handle { cmd = 'NODE_CLUSTER', ack = seq, errno = 0, key = key, data = data or cjson.null }
end

--- Refusal of a query. A stream's goes without a descriptor.
function encode.refusal(seq, key, code, data)
    return line { cmd = 'NODE_CLUSTER', ack = seq, errno = M.errno(code), key = key, data = data or cjson.null }
end

--- Refusal of a datagram query: must go with some descriptor, a Node worker dies without one.
function encode.refusal_with_fd(seq, key, code, data)
    return handle { cmd = 'NODE_CLUSTER', ack = seq, errno = M.errno(code), key = key, data = data or cjson.null }
end

--- One accepted connection; goes with its socket.
function encode.newconn(seq, key)
    return handle { cmd = 'NODE_CLUSTER', act = 'newconn', key = key, seq = seq }
end

encode.DISCONNECT = line { cmd = 'NODE_CLUSTER', act = 'disconnect' }

--- Ack of exitedAfterDisconnect.
function encode.ack(seq)
    return line { cmd = 'NODE_CLUSTER', ack = seq }
end

encode.HANDLE_ACK = line { cmd = 'NODE_HANDLE_ACK' }

function encode.all_closed(key)
    return line { cmd = 'NODE_SOCKET_ALL_CLOSED', key = key }
end

function encode.count(key, count)
    return line { cmd = 'NODE_SOCKET_COUNT', key = key, count = count }
end

--- Ours alone, ignored by whoever does not know it: connections should begin to leave.
encode.DRAIN = line { cmd = 'NODE_DUTCH_DRAIN' }

--- Asks for an answer with the same number, and for what may be lost of the worker's lines before it.
function encode.again(by)
    return line { cmd = 'NODE_DUTCH_AGAIN', by = by }
end

--- A message for the app, in JSON. nil, reason when it is none, or one Node would take for its own.
function encode.message(text)
    local ok, value = pcall(cjson.decode, text)
    if not ok then
        return nil, tostring(value)
    elseif is_internal(value) then
        return nil, 'a message whose cmd begins with NODE_ is Node\'s own'
    end
    return (text:gsub('%s*\n%s*', ' ')) -- between two values: in a string it would be escaped
end

return M
