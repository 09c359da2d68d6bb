-- One worker's talk with its master, message by message, and at last in nonsense.
-- Longer than 400 lines: as long as the rules of lua/dutch-master/channel/conversation.lua, which hold together.

local conversation = require 'dutch-master.channel.conversation'
local cjson = require 'cjson'

-- A worker under test: what was sent to it (parsed), what policy was told, and queries that await an answer.
local function worker(extra)
    local w = { sent = {}, raw = {}, fds = {}, heard = {}, queries = {} }
    local opts = {
        worker_id = 7,
        channel = { send = function(_, line, fd)
            w.raw[#w.raw + 1] = line
            w.sent[#w.sent + 1] = cjson.decode(line)
            w.fds[#w.sent] = fd
            return true
        end },
        query = function(socket, reply)
            w.queries[#w.queries + 1] = { socket = socket, reply = reply }
        end,
    }
    for _, name in ipairs {
        'on_online', 'on_listening', 'on_ready', 'on_message', 'on_close_server', 'on_leaving', 'on_bad',
    } do
        opts[name] = function(value)
            w.heard[#w.heard + 1] = { name, value }
        end
    end
    for name, value in pairs(extra or {}) do
        opts[name] = value
    end
    w.conv = conversation.new(opts)
    function w.says(line)
        w.conv:line(line)
    end
    function w.last()
        return w.sent[#w.sent], w.fds[#w.sent]
    end
    function w.names()
        local names = {}
        for i, entry in ipairs(w.heard) do
            names[i] = entry[1]
        end
        return table.concat(names, ' ')
    end
    function w.asks(fields, seq)
        w.says(('{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,%s,"seq":%d}'):format(fields, seq or 1))
    end
    function w.listens(fields)
        w.says(('{"cmd":"NODE_CLUSTER","act":"listening","index":0,%s,"seq":2}'):format(fields))
    end
    -- A server from query to listening; answers its key.
    function w.opens(fields, fd)
        w.asks(fields)
        w.queries[#w.queries].reply(fd or 10)
        local key = w.last().msg.key
        w.listens(fields)
        return key
    end
    return w
end

local TCP = '"data":null,"address":null,"port":8000,"addressType":4'
local TCP2 = '"data":null,"address":null,"port":9000,"addressType":4'
local UDP = '"address":"0.0.0.0","port":53,"addressType":"udp4","fd":-1'

describe('a conversation', function()
    it('goes as in Node\'s transcript: online, query, answer, listening', function()
        local w = worker()
        w.says '{"cmd":"NODE_CLUSTER","act":"online","seq":0}'
        w.says('{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":8000,'
            .. '"addressType":4,"flags":0,"backlog":0,"seq":1}')
        assert.equal('tcp4:*:8000', w.queries[1].socket.name)
        assert.equal(0, #w.sent)
        w.queries[1].reply(12)
        local reply, fd = w.last()
        assert.equal('NODE_HANDLE', reply.cmd)
        assert.equal(1, reply.msg.ack)
        assert.equal(0, reply.msg.errno)
        assert.equal('7.1', reply.msg.key)
        assert.equal(12, fd)
        w.says '{"cmd":"NODE_HANDLE_ACK"}'
        w.says('{"cmd":"NODE_CLUSTER","act":"listening","index":0,"data":null,"address":null,"port":8000,'
            .. '"addressType":4,"flags":0,"backlog":0,"seq":2}')
        assert.equal('on_online on_listening', w.names())
        assert.same({ name = 'tcp4:*:8000', text = ':8000', type = 'tcp4', stream = true, port = 8000 }, w.heard[2][2])
        assert.equal(1, #w.sent)
        assert.equal(1, w.conv:open_sockets())
    end)

    it('tells the real port of a listen(0), and one listening for one socket only', function()
        local w = worker()
        w.asks('"address":null,"port":0,"addressType":4')
        w.queries[1].reply(5)
        w.listens('"address":null,"port":41234,"addressType":4')
        w.listens('"address":null,"port":41234,"addressType":4')
        assert.equal('on_listening', w.names())
        assert.equal(41234, w.heard[1][2].port)
        assert.equal('tcp4:*:0#0', w.heard[1][2].name)
        assert.equal(':41234', w.heard[1][2].text)
    end)

    it('hears nothing in a listening for a socket it never gave', function()
        local w = worker()
        w.listens(TCP)
        assert.equal('', w.names())
    end)

    it('tells datagram and path sockets apart', function()
        local w = worker()
        w.opens(UDP)
        w.opens('"address":"/run/a.sock","port":-1,"addressType":-1')
        w.opens('"address":"/app/\\u0000abs","port":-1,"addressType":-1')
        assert.is_false(w.heard[1][2].stream)
        assert.equal('/run/a.sock', w.heard[2][2].path)
        assert.equal('@abs', w.heard[3][2].path)
    end)

    it('gives keys that are never used twice', function()
        local w, seen = worker(), {}
        for i = 1, 20 do
            local key = w.opens(TCP)
            assert.is_nil(seen[key])
            seen[key] = true
            w.says(('{"cmd":"NODE_CLUSTER","act":"close","key":"%s","seq":%d}'):format(key, i + 5))
        end
        assert.equal(0, w.conv:open_sockets())
    end)

    it('refuses with the number Node knows, and the data it brought', function()
        local w = worker()
        w.asks('"data":{"ticketKeys":"aa"},"address":null,"port":443,"addressType":4', 4)
        w.queries[1].reply(nil, 'EACCES')
        local reply, fd = w.last()
        assert.equal('NODE_CLUSTER', reply.cmd)
        assert.equal(-13, reply.errno)
        assert.equal(4, reply.ack)
        assert.same({ ticketKeys = 'aa' }, reply.data)
        assert.is_nil(fd)
        assert.equal(0, w.conv:open_sockets())
        w.asks('"data":{"ticketKeys":"aa"},"address":null,"port":443,"addressType":4', 5)
        assert.equal(2, #w.queries)
    end)

    it('answers a query once', function()
        local w = worker()
        w.asks(TCP)
        w.queries[1].reply(5)
        w.queries[1].reply(5)
        w.queries[1].reply(nil, 'EACCES')
        assert.equal(1, #w.sent)
        assert.equal(1, w.conv:open_sockets())
    end)
end)

describe('a second listen to the same address', function()
    local function close(w, key)
        w.says(('{"cmd":"NODE_CLUSTER","act":"close","key":"%s","seq":9}'):format(key))
    end

    it('is EADDRINUSE while the first listens, and not after', function()
        local w = worker()
        local key = w.opens(TCP)
        w.asks(TCP, 3)
        assert.equal(-98, w.last().errno)
        assert.equal(3, w.last().ack)
        close(w, key)
        w.asks(TCP, 4)
        assert.equal(2, #w.queries)
    end)

    -- Node 19 and later let go of a server that was closed before the answer came; 18 and earlier listen all the same.
    it('waits for the fate of one that was answered or not, and says neither', function()
        for _, answered_first in ipairs { true, false } do
            for _, fate in ipairs { 'closed', 'announced', 'refused' } do
                local w = worker()
                w.asks(TCP, 1)
                if answered_first then
                    w.queries[1].reply(5)
                end
                w.asks(TCP, 2)
                w.asks(TCP2, 3)
                assert.equal(2, #w.queries) -- another address does not wait
                if fate == 'refused' then
                    w.queries[1].reply(nil, 'EACCES')
                elseif not answered_first then
                    w.queries[1].reply(5)
                end
                if fate == 'refused' and answered_first then
                    w.conv:closed() -- nothing to be seen: it was answered
                else
                    assert.equal(fate == 'refused' and 3 or 2, #w.queries)
                    local key = w.last().msg and w.last().msg.key
                    if fate == 'closed' then
                        close(w, key)
                        assert.equal(3, #w.queries)
                        w.queries[3].reply(6)
                        assert.equal(2, w.last().msg.ack)
                        w.asks(TCP, 4)
                        w.listens(TCP)
                        assert.equal(-98, w.last().errno) -- the second is there
                    elseif fate == 'announced' then
                        w.listens(TCP)
                        assert.same({ 2, -98 }, { w.last().ack, w.last().errno })
                    else
                        w.queries[3].reply(6)
                        assert.equal(2, w.last().msg.ack)
                    end
                end
            end
        end
    end)

    it('waits with few others, and not once the worker is to leave', function()
        local w = worker()
        w.asks(TCP, 1)
        w.queries[1].reply(5)
        local key = w.last().msg.key
        for seq = 2, 18 do
            w.asks(TCP, seq)
        end
        assert.same({ 18, -98 }, { w.last().ack, w.last().errno })
        local sent = #w.sent
        w.conv:disconnect()
        close(w, key)
        assert.same({ 1, sent + 1 }, { #w.queries, #w.sent })
    end)

    it('is another port, address, path or worker otherwise', function()
        local w = worker()
        for i, fields in ipairs {
            TCP, TCP2, '"address":"127.0.0.1","port":8000,"addressType":4', UDP,
            '"address":"/a","port":-1,"addressType":-1', '"address":"/b","port":-1,"addressType":-1',
        } do
            w.asks(fields, i)
        end
        assert.equal(6, #w.queries)
        local other = worker()
        other.asks(TCP)
        assert.equal(1, #other.queries)
    end)

    it('is not one for port 0, a shared datagram port or a descriptor', function()
        local w = worker()
        for _, fields in ipairs {
            '"address":null,"port":0,"addressType":4', '"fd":7',
            '"address":"0.0.0.0","port":5,"addressType":"udp4","flags":4',
        } do
            for index = 0, 1 do
                w.says(('{"cmd":"NODE_CLUSTER","act":"queryServer","index":%d,%s,"seq":1}'):format(index, fields))
            end
        end
        assert.equal(6, #w.queries)
        assert.are_not.equal(w.queries[1].socket.name, w.queries[2].socket.name)
    end)
end)

describe('a query of a path', function()
    it('says how its Node sets modes, as another master hears as well', function()
        local path = '"address":"/a","port":-1,"addressType":-1,"readableAll":true'
        local old, new, next_one = worker(), worker(), worker()
        old.says '{"cmd":"NODE_DUTCH_ADDS_MODES"}'
        next_one.conv:resume(cjson.decode(cjson.encode(old.conv:keep())))
        for i, w in ipairs { old, next_one, new } do
            w.asks(path)
            assert.equal(i < 3 or nil, w.queries[1].socket.adds_modes)
        end
    end)

    it('is refused as libuv and the kernel would', function()
        for code, errno in pairs { ENOENT = -13, EEXIST = -98, EPERM = -1 } do
            local w = worker()
            w.asks '"address":"/a","port":-1,"addressType":-1'
            w.queries[1].reply(nil, code)
            assert.equal(errno, w.last().errno)
        end
    end)
end)

describe('a datagram query', function()
    it('is refused with a spare descriptor, since a refusal without one kills the worker', function()
        local w = worker { spare_fd = function() return 33 end }
        w.asks(UDP)
        w.queries[1].reply(nil, 'EADDRINUSE')
        local reply, fd = w.last()
        assert.equal(33, fd)
        assert.equal('NODE_HANDLE', reply.cmd)
        assert.equal(-98, reply.msg.errno)
    end)

    it('stays unanswered when there is none', function()
        local w = worker()
        w.asks(UDP)
        w.queries[1].reply(nil, 'EADDRINUSE')
        assert.equal(0, #w.sent)
    end)
end)

describe('session ticket keys', function()
    local function ask(w, keys, port)
        w.asks(('"data":{"ticketKeys":"%s"},"address":null,"port":%d,"addressType":4'):format(keys, port or 443))
        w.queries[#w.queries].reply(5)
        local message = w.last().msg
        return message.data.ticketKeys, message.key
    end

    it('are the first worker\'s for all, over rolls, for each address', function()
        local tickets = conversation.tickets()
        assert.equal('aa', (ask(worker { tickets = tickets }, 'aa')))
        for i = 1, 5 do
            assert.equal('aa', (ask(worker { tickets = tickets }, 'random' .. i)))
        end
        assert.equal('cc', (ask(worker { tickets = tickets }, 'cc', 444)))
    end)

    it('are not taken for the app\'s own when a server listens again', function()
        local tickets = conversation.tickets()
        ask(worker { tickets = tickets }, 'aa')
        local w = worker { tickets = tickets }
        local keys, key = ask(w, 'bb')
        w.says(('{"cmd":"NODE_CLUSTER","act":"close","key":"%s","seq":9}'):format(key))
        assert.equal('aa', (ask(w, keys)))
        assert.equal('aa', (ask(worker { tickets = tickets }, 'cc')))
        assert.equal('aa', (ask(worker { tickets = tickets }, 'dd')))
    end)

    it('follow an app that sets and rotates its own', function()
        local tickets = conversation.tickets()
        for _, keys in ipairs { 'aa', 'aa', 'bb', 'bb', 'cc' } do
            assert.equal(keys, (ask(worker { tickets = tickets }, keys)))
        end
    end)

    it('survive nonsense', function()
        local w = worker()
        w.asks('"data":{"ticketKeys":5},"address":null,"port":443,"addressType":4')
        w.queries[1].reply(5)
        assert.same({ ticketKeys = 5 }, w.last().msg.data)
        w.asks('"data":{},"address":null,"port":444,"addressType":4')
        w.queries[2].reply(5)
        assert.same({}, w.last().msg.data)
    end)
end)

describe('the end of a conversation', function()
    it('asks to disconnect exactly once', function()
        local w = worker()
        assert.is_true(w.conv:disconnect())
        assert.is_false(w.conv:disconnect())
        assert.same({ cmd = 'NODE_CLUSTER', act = 'disconnect' }, w.last())
        assert.equal(1, #w.sent)
    end)

    it('never does after the worker has said that it leaves, nor after the end', function()
        local w = worker()
        w.says '{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":5}'
        assert.equal('on_leaving', w.names())
        assert.equal(0, #w.sent) -- until it is let go
        w.heard[1][2]()
        assert.same({ cmd = 'NODE_CLUSTER', ack = 5 }, w.last())
        assert.is_false(w.conv:disconnect())
        w.conv:closed()
        w.heard[1][2]()
        assert.equal(1, #w.sent)
        local gone = worker()
        gone.conv:closed()
        assert.is_false(gone.conv:disconnect())
        assert.equal(0, #gone.sent)
    end)

    it('acks exitedAfterDisconnect each time, after our disconnect too, and tells it once', function()
        local w = worker()
        w.conv:disconnect()
        w.says '{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":5}'
        w.says '{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":6}'
        assert.equal(6, w.last().ack)
        assert.equal('on_leaving', w.names())
    end)

    it('tells which servers were closed, and how many are left', function()
        local w = worker()
        local first, second = w.opens(TCP), w.opens(TCP2)
        w.conv:disconnect()
        w.says(('{"cmd":"NODE_CLUSTER","act":"close","key":"%s","seq":9}'):format(first))
        w.says(('{"cmd":"NODE_CLUSTER","act":"close","key":"%s","seq":9}'):format(second))
        w.says(('{"cmd":"NODE_CLUSTER","act":"close","key":"%s","seq":9}'):format(second))
        assert.equal('on_listening on_listening on_close_server on_close_server', w.names())
        assert.equal(1, w.heard[3][2].open)
        assert.equal(0, w.heard[4][2].open)
        assert.equal('tcp4:*:8000', w.heard[3][2].name)
    end)

    it('answers no query during it, not even one asked before', function()
        local w = worker()
        w.asks(TCP)
        w.conv:disconnect()
        w.asks(TCP2)
        w.queries[1].reply(5)
        assert.equal(1, #w.queries)
        assert.equal(1, #w.sent)
    end)

    it('lets messages of the app through during it', function()
        local w = worker()
        w.conv:disconnect()
        w.says '{"a":1}'
        assert.same({ 'on_message', { a = 1 } }, w.heard[1])
        assert.is_true(w.conv:message '1')
    end)

    it('tells connections to leave first, once', function()
        local w = worker()
        assert.is_true(w.conv:drain())
        assert.is_false(w.conv:drain())
        assert.same({ cmd = 'NODE_DUTCH_DRAIN' }, w.last())
        w.conv:disconnect()
        assert.is_false(w.conv:drain())
    end)
end)

describe('handles and internals', function()
    it('acks each handle, passes on what came with it', function()
        local w = worker()
        w.says '{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"take":"this"}}'
        assert.same({ cmd = 'NODE_HANDLE_ACK' }, w.last())
        assert.same({ 'on_message', { take = 'this' } }, w.heard[1])
        w.says '{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"cmd":"NODE_INTERNAL"}}'
        assert.equal(2, #w.sent)
        assert.equal(1, #w.heard)
    end)

    it('acks a connection that comes back when that is somebody\'s, at once', function()
        local steps = {}
        local w = worker { on_returned = function(fd, _, again)
            steps[#steps + 1] = ('%d placed%s'):format(fd, again and ' again' or '')
        end }
        w.conv.channel = { take_fd = function() return 60 end, send = function(_, line, fd, now)
            steps[#steps + 1] = { line, fd or 'no descriptor', now }
        end }
        w.says '{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_DUTCH_RETURN","key":"1.2"}}'
        assert.same({ '60 placed', { '{"cmd":"NODE_HANDLE_ACK"}', 'no descriptor', true } }, steps)
    end)

    it('never sends an ack that nobody waits for', function()
        local w = worker()
        for _, line in ipairs {
            '{"cmd":"NODE_HANDLE_ACK"}', '{"cmd":"NODE_HANDLE_NACK"}', '{"cmd":"NODE_CLUSTER","ack":1,"accepted":true}',
            '{"cmd":"NODE_X"}', '{"cmd":"NODE_CLUSTER","act":"later"}', '{"a":1}',
            '{"cmd":"NODE_CLUSTER","act":"close","key":"none"}',
        } do
            w.says(line)
        end
        assert.equal(0, #w.sent)
        assert.equal('on_message', w.names())
    end)

    it('answers for sockets that were sent about', function()
        local w = worker()
        w.says '{"cmd":"NODE_SOCKET_NOTIFY_CLOSE","key":"4:null:8000"}'
        assert.same({ cmd = 'NODE_SOCKET_ALL_CLOSED', key = '4:null:8000' }, w.last())
        w.says '{"cmd":"NODE_SOCKET_GET_COUNT","key":"k"}'
        assert.same({ cmd = 'NODE_SOCKET_COUNT', key = 'k', count = 0 }, w.last())
    end)

    it('hears a Lua worker\'s ready', function()
        local w = worker()
        w.says '{"cmd":"NODE_DUTCH_READY"}'
        assert.equal('on_ready', w.names())
    end)

    it('refuses to send what would kill the worker', function()
        local w = worker()
        assert.is_nil((w.conv:message '{"cmd":"NODE_CLUSTER","act":"disconnect"}'))
        assert.is_nil((w.conv:message '{'))
        assert.equal(0, #w.sent)
        w.conv:closed()
        assert.is_nil((w.conv:message '1'))
    end)
end)

describe('newconn', function()
    it('goes to an open server by its name, and its answer comes back', function()
        local w, got = worker(), {}
        local first, second = w.opens(TCP), w.opens(TCP2)
        local function done(accepted, ended)
            got[#got + 1] = ended and 'ended' or accepted
        end
        assert.is_true(w.conv:newconn(40, done))
        assert.equal(first, w.last().msg.key)
        assert.is_true(w.conv:newconn(41, done, 'tcp4:*:9000'))
        local sent, fd = w.last()
        assert.equal(second, sent.msg.key)
        assert.equal(41, fd)
        w.says(('{"cmd":"NODE_CLUSTER","ack":%d,"accepted":false,"seq":8}'):format(sent.msg.seq))
        w.says(('{"cmd":"NODE_CLUSTER","ack":%d,"accepted":true,"seq":8}'):format(sent.msg.seq))
        assert.same({ false }, got)
        w.conv:closed()
        assert.same({ false, 'ended' }, got)
        w.conv:closed()
        assert.equal(2, #got)
    end)

    it('is refused where it would kill the worker or never be served', function()
        local w = worker()
        local function never()
            error 'done was called'
        end
        assert.is_nil((w.conv:newconn(40, never)))
        w.opens(UDP)
        assert.is_nil((w.conv:newconn(40, never)))
        w.asks(TCP)
        w.queries[2].reply(5)
        assert.is_nil((w.conv:newconn(40, never)), 'not listening yet')
        w.listens(TCP)
        assert.is_nil((w.conv:newconn(40, never, 'tcp4:*:1')))
        w.conv:disconnect()
        assert.is_nil((w.conv:newconn(40, never)))
        w.conv:closed()
    end)

    it('is not for a server that says so when it listens', function()
        local w = worker()
        w.asks(TCP)
        w.queries[1].reply(5)
        assert.is_false(w.conv:takes())
        w.listens('"handOver":false,' .. TCP)
        assert.is_false(w.conv:takes())
        assert.is_nil((w.conv:newconn(40, error)))
        w.opens(TCP2)
        assert.is_true(w.conv:takes 'tcp4:*:9000')
        w.conv:closed()
        assert.is_false(w.conv:takes 'tcp4:*:9000')
    end)

    it('says when the line could not be sent', function()
        local w
        w = worker { channel = { send = function(_, line, fd)
            if fd == 40 then
                return nil, 'full', 'ENOBUFS'
            end
            w.sent[#w.sent + 1] = cjson.decode(line)
            return true
        end } }
        w.opens(TCP)
        local ok, _, code = w.conv:newconn(40, function()
            error 'done was called'
        end)
        assert.is_nil(ok)
        assert.equal('ENOBUFS', code)
        w.conv:closed()
    end)
end)

describe('junk', function()
    it('ends the conversation with a reason, and nothing after it counts', function()
        for _, line in ipairs {
            '', 'junk', '{"cmd":"NODE_CLUSTER","act":"queryServer"}', ('['):rep(10000), '\0\0',
            '{"cmd":"NODE_CLUSTER","ack":"x"}',
        } do
            local w = worker()
            w.says(line)
            assert.equal('on_bad', w.names())
            assert.is_string(w.heard[1][2])
            w.says '{"a":1}'
            w.says 'junk'
            w.asks(TCP)
            assert.equal('on_bad', w.names())
            assert.equal(0, #w.sent)
            assert.is_false(w.conv:disconnect())
        end
    end)

    it('cannot ask for sockets for ever', function()
        local w = worker()
        for port = 1, 2000 do
            w.asks(('"address":null,"port":%d,"addressType":4'):format(port), port)
        end
        assert.equal(1024, #w.queries)
        assert.equal('on_bad', w.names())
    end)

    -- Random lines, half of them near misses of real ones. DM_SEED repeats a run.
    it('never throws, never gives two sockets one key, never acks unasked (fuzz)', function()
        local seed = tonumber(os.getenv 'DM_SEED') or os.time()
        math.randomseed(seed)
        local function pick(list)
            return list[math.random(#list)]
        end
        local values = {
            'null', '0', '1', '-1', '4', '6', '8000', '65536', '1.5', '1e400', '""', '"x"', '"udp4"', '"udp6"',
            '"/a"', '"::"', '"/x\\u0000y"', 'true', 'false', '{}', '[]', '{"ticketKeys":"aa"}',
            '{"cmd":"NODE_CLUSTER"}', '"7.1"',
            '"7.2"', '[[[[]]]]',
        }
        local names = {
            'cmd', 'act', 'seq', 'ack', 'key', 'index', 'address', 'port', 'addressType', 'flags', 'fd', 'backlog',
            'data', 'accepted', 'type', 'msg', 'readableAll',
        }
        local acts = { 'online', 'queryServer', 'listening', 'close', 'exitedAfterDisconnect', 'disconnect', 'newconn' }
        local commands = {
            'NODE_CLUSTER', 'NODE_CLUSTER', 'NODE_CLUSTER', 'NODE_HANDLE', 'NODE_HANDLE_ACK', 'NODE_',
            'NODE_DUTCH_READY', 'NODE_DUTCH_HERE', 'NODE_SOCKET_NOTIFY_CLOSE', 'NODE_SOCKET_GET_COUNT', 'NODE_Y', 'app',
        }
        local function random_line()
            local fields = { ('"cmd":"%s"'):format(pick(commands)), ('"act":"%s"'):format(pick(acts)) }
            if math.random() < 0.6 then
                local kind = pick { '4', '6', '"udp4"' }
                fields[#fields + 1] = ('"seq":%d,"port":%d,"addressType":%s')
                    :format(math.random(9), math.random(3), kind)
            end
            for _ = 1, math.random(0, 3) do
                fields[#fields + 1] = ('"%s":%s'):format(pick(names), pick(values))
            end
            local line = '{' .. table.concat(fields, ',') .. '}'
            if math.random() < 0.05 then
                local at = math.random(#line)
                line = line:sub(1, at - 1) .. string.char(math.random(0, 255)) .. line:sub(at + 1)
            end
            return line
        end
        local said
        local ok, why = xpcall(function()
            for _ = 1, 300 do
                local w, open, handles, acks = worker(), {}, 0, 0
                for _ = 1, 60 do
                    said = random_line()
                    w.says(said)
                    handles = handles + (said:find '"cmd":"NODE_HANDLE"' and 1 or 0)
                    for i = #w.queries, 1, -1 do
                        if math.random() < 0.7 then
                            local asked = table.remove(w.queries, i)
                            asked.reply(math.random() < 0.8 and 5 or nil, 'EACCES')
                        end
                    end
                    if math.random() < 0.02 then
                        w.conv:disconnect()
                    end
                end
                local disconnects = 0
                for _, message in ipairs(w.sent) do
                    local key = message.msg and message.msg.key
                    assert(key == nil or not open[key], 'a key twice')
                    open[key or 0] = key and true
                    acks = acks + (message.cmd == 'NODE_HANDLE_ACK' and 1 or 0)
                    disconnects = disconnects + (message.act == 'disconnect' and 1 or 0)
                end
                assert(acks <= handles, 'an ack out of the blue')
                assert(disconnects <= 1, 'two disconnects')
                w.conv:closed()
            end
        end, debug.traceback)
        assert(ok, ('DM_SEED=%d, after %s: %s'):format(seed, tostring(said), tostring(why)))
    end)

    it('of random bytes never throws (fuzz)', function()
        local seed = tonumber(os.getenv 'DM_SEED') or os.time()
        math.randomseed(seed)
        local alphabet = '{}[]":,0123456789.eE+-\\nulltrefas NODE_CLUSTER\0\255'
        for _ = 1, 3000 do
            local bytes = {}
            for i = 1, math.random(0, 40) do
                local at = math.random(#alphabet)
                bytes[i] = alphabet:sub(at, at)
            end
            local line = table.concat(bytes)
            local ok, why = pcall(function()
                worker().says(line)
            end)
            assert(ok, ('DM_SEED=%d, %q: %s'):format(seed, line, tostring(why)))
        end
    end)
end)

describe('a talk that another master goes on with', function()
    it('answers what was asked and not answered, once, and gives no key that is open', function()
        local w = worker()
        local open = w.opens(TCP)
        w.asks('"data":null,"address":null,"port":8001,"addressType":4', 5)
        w.asks('"data":null,"address":null,"port":8001,"addressType":4', 6) -- waits for the fate of the first
        local kept = cjson.decode(cjson.encode(w.conv:keep()))
        local next_one = worker()
        next_one.conv:resume(kept)
        assert.equal(0, #next_one.queries)
        next_one.conv:answer_owed()
        next_one.conv:answer_owed()
        assert.equal(1, #next_one.queries)
        next_one.queries[1].reply(11)
        local answer, fd = next_one.last()
        local key = answer.msg.key
        assert.same({ 5, 11 }, { answer.msg.ack, fd })
        assert.not_equal(open, key)
        next_one.says(('{"cmd":"NODE_CLUSTER","act":"close","key":"%s","seq":9}'):format(key))
        assert.equal(2, #next_one.queries) -- its address is free
    end)

    -- What it reads of a worker that its former master may have read of, until that answers.
    describe('and asks a worker to begin again,', function()
        local RETURN = '{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_DUTCH_RETURN","key":"%s"%s}}'
        local w, came, next_fd

        local function resumed(former)
            local next_one = worker { on_returned = function(fd, socket, again)
                came[#came + 1] = { fd, socket.name, again or false }
            end }
            next_one.conv.channel.take_fd = function()
                next_fd = next_fd + 1
                return next_fd
            end
            next_one.conv:resume(cjson.decode(cjson.encode(former.conv:keep())))
            return next_one
        end

        local function returns(next_one, key, more)
            next_one.says(RETURN:format(key, more or ''))
        end

        before_each(function()
            came, next_fd = {}, 50
            w = worker()
        end)

        it('acks no handle before it does, and takes no connection', function()
            w.says '{"cmd":"NODE_DUTCH_HERE"}'
            local key = w.opens(TCP)
            local next_one = resumed(w)
            next_one.conv:ask_again(5)
            assert.same({ cmd = 'NODE_DUTCH_AGAIN', by = 5 }, next_one.last())
            returns(next_one, key)
            next_one.conv:skipped(true)
            next_one.says '{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"take":"this"}}'
            next_one.says '{"cmd":"NODE_DUTCH_HERE","by":4}' -- another master asked for that
            assert.equal(1, #next_one.sent)
            assert.same({ 'on_message', { take = 'this' } }, next_one.heard[1])
            assert.same({}, came)
            for _ = 1, 2 do
                next_one.says '{"cmd":"NODE_DUTCH_HERE","by":5}'
            end
            returns(next_one, key, ',"again":true')
            returns(next_one, key)
            assert.same({ { 51, 'tcp4:*:8000', true }, { 52, 'tcp4:*:8000', false } }, came)
            assert.same({ cmd = 'NODE_HANDLE_ACK' }, next_one.last())
            assert.equal(3, #next_one.sent)
        end)

        it('does not wait for what could not be asked', function()
            w.says '{"cmd":"NODE_DUTCH_HERE"}'
            local key = w.opens(TCP)
            local next_one = resumed(w)
            local send = next_one.conv.channel.send
            next_one.conv.channel.send = function() return nil, 'broken pipe', 'EPIPE' end
            next_one.conv:ask_again(5)
            next_one.conv.channel.send = send
            returns(next_one, key)
            assert.equal(1, #came)
        end)

        it('believes it once that it repeats something', function()
            w.says '{"cmd":"NODE_DUTCH_HERE"}'
            local key = w.opens(TCP)
            returns(resumed(w), key, ',"again":true') -- nobody asked
            local next_one = resumed(w)
            next_one.conv:ask_again(5)
            next_one.says '{"cmd":"NODE_DUTCH_HERE","by":5}'
            returns(next_one, key, ',"again":true')
            returns(next_one, key, ',"again":true')
            assert.same({ { 51, 'tcp4:*:8000', false }, { 52, 'tcp4:*:8000', true }, { 53, 'tcp4:*:8000', false } }, came)
        end)

        it('waits on where a third one follows', function()
            w.says '{"cmd":"NODE_DUTCH_HERE"}'
            local key = w.opens(TCP)
            local second = resumed(w)
            second.conv:ask_again(5)
            local third = resumed(second)
            returns(third, key)
            assert.same({}, third.sent)
            third.says '{"cmd":"NODE_DUTCH_HERE","by":5}'
            returns(third, key, ',"again":true')
            assert.equal(1, #came)
        end)

        it('if that knows how to', function()
            local key = w.opens(TCP)
            local next_one = resumed(w)
            next_one.conv:ask_again(5)
            assert.same({}, next_one.sent)
            returns(next_one, key)
            assert.same({ { cmd = 'NODE_HANDLE_ACK' } }, next_one.sent)
            assert.equal(1, #came)
        end)
    end)

    it('lets go of a worker that waits for that', function()
        local w, next_one = worker(), worker()
        w.says '{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":5}'
        next_one.conv:resume(cjson.decode(cjson.encode(w.conv:keep())))
        next_one.conv:answer_owed()
        next_one.conv:answer_owed()
        assert.same({ { cmd = 'NODE_CLUSTER', ack = 5 } }, next_one.sent)
    end)
end)
