local protocol = require 'dutch-master.channel.protocol'
local cjson = require 'cjson'

local decode, encode = protocol.decode, protocol.encode

local function socket_of(line)
    local event, reason = decode(line)
    assert.is_nil(reason)
    return event.socket
end

local function query(fields)
    return '{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,' .. fields .. ',"seq":1}'
end

describe('protocol.decode', function()
    it('reads the start of a Node worker', function()
        assert.same({ kind = 'online' }, decode '{"cmd":"NODE_CLUSTER","act":"online","seq":0}')
        local event = decode('{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,'
            .. '"port":8000,"addressType":4,"flags":0,"backlog":0,"seq":1}')
        assert.equal('query', event.kind)
        assert.equal(1, event.seq)
        assert.is_nil(event.data)
        assert.same({
            type = 'tcp4', stream = true, index = 0, port = 8000, dual = true, ipv6only = false, reuse_address = false,
            name = 'tcp4:*:8000', text = ':8000',
        }, event.socket)
        event = decode('{"cmd":"NODE_CLUSTER","act":"listening","index":0,"data":null,"address":null,"port":8000,'
            .. '"addressType":4,"flags":0,"backlog":0,"seq":2}')
        assert.equal('listening', event.kind)
        assert.equal(8000, event.socket.port)
    end)

    it('reads every kind of listen', function()
        for fields, want in pairs {
            ['"address":"0.0.0.0","port":80,"addressType":4,"backlog":false'] =
                { type = 'tcp4', text = '0.0.0.0:80', dual = false },
            ['"address":"::1","port":80,"addressType":6,"backlog":false'] =
                { type = 'tcp6', text = '[::1]:80', dual = false },
            ['"address":"::","port":80,"addressType":6'] = { type = 'tcp6', text = '[::]:80', dual = true },
            ['"address":null,"port":80,"addressType":4,"flags":1'] =
                { text = ':80', dual = false, ipv6only = true, name = 'tcp4:*:80/v6' },
            ['"address":null,"port":80,"addressType":4,"backlog":77'] = { backlog = 77 },
            ['"address":null,"port":0,"addressType":4'] = { name = 'tcp4:*:0#0', port = 0 },
            ['"address":null,"port":8123,"addressType":null,"fd":7'] =
                { type = 'fd', fd = 7, name = 'fd:7#0', stream = true, port = 8123 },
            ['"address":"/run/app.sock","port":-1,"addressType":-1,"readableAll":true'] =
                { type = 'unix', path = '/run/app.sock', text = 'unix:/run/app.sock', readable_all = true,
                  writable_all = false, stream = true },
            ['"address":"/srv/app/\\u0000name","port":-1,"addressType":-1'] =
                { type = 'unix', path = '@name', text = 'unix:@name' },
            ['"address":"0.0.0.0","port":53,"addressType":"udp4","fd":-1'] =
                { type = 'udp4', stream = false, text = 'udp:0.0.0.0:53', reuse_address = false },
            ['"address":"::","port":53,"addressType":"udp6","flags":4'] =
                { type = 'udp6', text = 'udp:[::]:53', reuse_address = true, name = 'udp6::::53#0' },
            ['"address":"0.0.0.0","addressType":"udp4"'] = { port = 0, name = 'udp4:0.0.0.0:0#0' },
        } do
            local socket = socket_of(query(fields))
            for key, value in pairs(want) do
                assert.equal(value, socket[key], fields .. ' ' .. key)
            end
        end
    end)

    it('keeps the ticket keys', function()
        local event = decode('{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":{"ticketKeys":"ab"},'
            .. '"address":null,"port":443,"addressType":4,"seq":1}')
        assert.same({ ticketKeys = 'ab' }, event.data)
    end)

    it('reads the rest of the protocol', function()
        for line, want in pairs {
            ['{"cmd":"NODE_CLUSTER","act":"close","key":"7.1","seq":3}'] = { kind = 'close', key = '7.1' },
            ['{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":0}'] = { kind = 'leaving', seq = 0 },
            ['{"cmd":"NODE_CLUSTER","ack":0,"accepted":true,"seq":3}'] = { kind = 'ack', ack = 0, accepted = true },
            ['{"cmd":"NODE_CLUSTER","ack":4,"accepted":false}'] = { kind = 'ack', ack = 4, accepted = false },
            ['{"cmd":"NODE_CLUSTER","accepted":true,"seq":3}'] = { kind = 'unknown' },
            ['{"cmd":"NODE_CLUSTER","act":"newthing"}'] = { kind = 'unknown' },
            ['{"cmd":"NODE_CLUSTER"}'] = { kind = 'unknown' },
            ['{"cmd":"NODE_SOMETHING"}'] = { kind = 'unknown' },
            ['{"cmd":"NODE_HANDLE_ACK"}'] = { kind = 'handle_ack' },
            ['{"cmd":"NODE_HANDLE_NACK"}'] = { kind = 'handle_nack' },
            ['{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"a":1},"key":"k"}'] =
                { kind = 'handle', has_value = true, text = '{"a":1}', value = { a = 1 } },
            ['{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"cmd":"NODE_X"}}'] = { kind = 'handle' },
            ['{"cmd":"NODE_HANDLE"}'] = { kind = 'handle' },
            ['{"cmd":"NODE_SOCKET_NOTIFY_CLOSE","key":"4:null:80"}'] = { kind = 'notify_close', key = '4:null:80' },
            ['{"cmd":"NODE_SOCKET_GET_COUNT","key":"k"}'] = { kind = 'get_count', key = 'k' },
            ['{"cmd":"NODE_DUTCH_READY"}'] = { kind = 'ready' },
            ['{"cmd":"NODE_DUTCH_ADDS_MODES"}'] = { kind = 'adds_modes' },
            ['{"cmd":"NODE_DUTCH_LOAD","held":7,"busy":1000}'] = { kind = 'load', held = 7, busy = 1000 },
            ['{"cmd":"NODE_DUTCH_LOAD","held":0}'] = { kind = 'load', held = 0, busy = 0 },
            ['{"cmd":"NODE_DUTCH_OWN","address":"::1","port":80}'] = { kind = 'own', socket = { own = true, stream = true,
                type = 'tcp4', address = '::1', port = 80, name = 'own:[::1]:80', text = '[::1]:80' } },
            ['{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_DUTCH_RETURN","key":"1.2"}}'] =
                { kind = 'returned', key = '1.2', again = false },
            ['{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_DUTCH_RETURN","key":"1.2","again":true}}'] =
                { kind = 'returned', key = '1.2', again = true },
            ['{"cmd":"NODE_DUTCH_HERE"}'] = { kind = 'here' },
            ['{"cmd":"NODE_DUTCH_HERE","by":5}'] = { kind = 'here', by = 5 },
            ['{"cmd":"NODE_DUTCH_HERE","by":null}'] = { kind = 'here' },
            ['{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_DUTCH_RETURN","key":5}}'] = { kind = 'handle' },
        } do
            assert.same(want, decode(line), line)
        end
    end)

    it('takes any other value for a message of the app', function()
        for line, want in pairs {
            ['{"event":"request-restart"}'] = { event = 'request-restart' },
            ['"text"'] = 'text', ['5'] = 5, ['true'] = true, ['false'] = false, ['null'] = cjson.null,
            ['[1,2]'] = { 1, 2 }, ['{"cmd":"NODE_"}'] = { cmd = 'NODE_' }, ['{"cmd":"node_x"}'] = { cmd = 'node_x' },
            ['{"cmd":5}'] = { cmd = 5 }, ['{"a":null}'] = { a = cjson.null }, [' {"a":1}\r'] = { a = 1 },
        } do
            local event = decode(line)
            assert.equal('message', event.kind)
            assert.same(want, event.value)
        end
    end)

    it('says what is wrong with everything else', function()
        local deep = protocol.MAX_DEPTH + 1
        for line, want in pairs {
            [''] = 'not JSON', ['hello'] = 'not JSON', ['{"a":1'] = 'not JSON', ['{"a":1}{}'] = 'not JSON',
            ['\0'] = 'not JSON', ['{"a":nan}'] = 'not JSON', ['Infinity'] = 'not JSON',
            [('['):rep(deep) .. (']'):rep(deep)] = 'nested',
            ['{"cmd":"NODE_CLUSTER","act":"queryServer","port":1,"addressType":4}'] = 'without a seq',
            ['{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect"}'] = 'without a seq',
            ['{"cmd":"NODE_CLUSTER","act":"online","seq":"x"}'] = 'bad seq',
            ['{"cmd":"NODE_CLUSTER","act":"online","seq":-1}'] = 'bad seq',
            ['{"cmd":"NODE_CLUSTER","act":"online","seq":1.5}'] = 'bad seq',
            ['{"cmd":"NODE_CLUSTER","act":"online","seq":1e400}'] = 'bad seq',
            ['{"cmd":"NODE_CLUSTER","ack":{}}'] = 'bad ack',
            ['{"cmd":"NODE_CLUSTER","act":"close"}'] = 'without a key',
            ['{"cmd":"NODE_CLUSTER","act":"close","key":{}}'] = 'without a key',
            ['{"cmd":"NODE_SOCKET_NOTIFY_CLOSE"}'] = 'without a key',
            ['{"cmd":"NODE_DUTCH_LOAD"}'] = 'bad NODE_DUTCH_LOAD',
            ['{"cmd":"NODE_DUTCH_LOAD","held":-1}'] = 'bad NODE_DUTCH_LOAD',
            ['{"cmd":"NODE_DUTCH_LOAD","held":1e300}'] = 'bad NODE_DUTCH_LOAD',
            ['{"cmd":"NODE_DUTCH_LOAD","held":1,"busy":1001}'] = 'bad NODE_DUTCH_LOAD',
            ['{"cmd":"NODE_DUTCH_LOAD","held":"1"}'] = 'bad NODE_DUTCH_LOAD',
            ['{"cmd":"NODE_DUTCH_OWN"}'] = 'bad NODE_DUTCH_OWN',
            ['{"cmd":"NODE_DUTCH_OWN","address":"::","port":65536}'] = 'bad NODE_DUTCH_OWN',
            ['{"cmd":"NODE_DUTCH_OWN","path":""}'] = 'bad NODE_DUTCH_OWN',
            [query '"port":8000,"addressType":5'] = 'addressType',
            [query '"port":8000,"addressType":"udp5"'] = 'addressType',
            [query '"port":8000,"addressType":{}'] = 'addressType',
            [query '"port":8000'] = 'neither', [query '"port":8000,"fd":-1'] = 'neither',
            [query '"port":65536,"addressType":4'] = 'port', [query '"port":-1,"addressType":4'] = 'port',
            [query '"port":"80","addressType":4'] = 'port', [query '"port":1.5,"addressType":6'] = 'port',
            [query '"port":1e400,"addressType":6'] = 'port',
            [query '"port":80,"addressType":4,"address":7'] = 'address',
            [query '"port":80,"addressType":4,"address":"a b"'] = 'address',
            [query '"port":80,"addressType":4,"address":"x]:1"'] = 'address',
            [query('"port":-1,"addressType":-1,"address":"/' .. ('x'):rep(5000) .. '"')] = 'address',
            [query '"port":-1,"addressType":-1,"address":""'] = 'path', [query '"port":-1,"addressType":-1'] = 'path',
            [query '"fd":"7"'] = 'fd', [query '"fd":1e99'] = 'fd',
            [query '"port":80,"addressType":4,"flags":"x"'] = 'flags',
            ['{"cmd":"NODE_CLUSTER","act":"queryServer","index":"x","port":80,"addressType":4,"seq":1}'] = 'index',
            ['{"cmd":"NODE_CLUSTER","act":"queryServer","data":"x","port":80,"addressType":4,"seq":1}'] = 'data',
        } do
            local event, reason = decode(line)
            assert.is_nil(event, line:sub(1, 100))
            assert.truthy(reason:find(want, 1, true), line:sub(1, 100) .. ' -> ' .. reason)
            assert.is_true(#reason < 300)
        end
        assert.is_nil((decode(nil)))
    end)
end)

describe('protocol.encode', function()
    local function parsed(line)
        assert.is_nil(line:find('\n'))
        return cjson.decode(line)
    end

    it('writes what a Node primary writes', function()
        assert.same({
            cmd = 'NODE_HANDLE', type = 'net.Native',
            msg = { cmd = 'NODE_CLUSTER', ack = 1, errno = 0, key = '7.1', data = cjson.null },
        }, parsed(encode.reply(1, '7.1')))
        assert.same({ ticketKeys = 'ab' }, parsed(encode.reply(0, 'k', { ticketKeys = 'ab' })).msg.data)
        assert.same({ cmd = 'NODE_CLUSTER', ack = 3, errno = -98, key = 'k', data = { ticketKeys = 'ab' } },
                    parsed(encode.refusal(3, 'k', 'EADDRINUSE', { ticketKeys = 'ab' })))
        assert.equal(-13, parsed(encode.refusal_with_fd(3, 'k', 'EACCES')).msg.errno)
        assert.same({
            cmd = 'NODE_HANDLE', type = 'net.Native',
            msg = { cmd = 'NODE_CLUSTER', act = 'newconn', key = 'k', seq = 9 },
        }, parsed(encode.newconn(9, 'k')))
        assert.same({ cmd = 'NODE_CLUSTER', act = 'disconnect' }, parsed(encode.DISCONNECT))
        assert.same({ cmd = 'NODE_CLUSTER', ack = 0 }, parsed(encode.ack(0)))
        assert.same({ cmd = 'NODE_HANDLE_ACK' }, parsed(encode.HANDLE_ACK))
        assert.same({ cmd = 'NODE_SOCKET_ALL_CLOSED', key = 'k' }, parsed(encode.all_closed 'k'))
        assert.same({ cmd = 'NODE_SOCKET_COUNT', key = 'k', count = 0 }, parsed(encode.count('k', 0)))
        assert.same({ cmd = 'NODE_DUTCH_DRAIN' }, parsed(encode.DRAIN))
    end)

    it('knows errors by name, and calls the unknown EINVAL', function()
        assert.equal(-98, protocol.errno 'EADDRINUSE')
        assert.equal(-22, protocol.errno 'ENONSENSE')
        assert.equal(-22, protocol.errno(nil))
    end)

    it('takes any JSON as a message, on one line', function()
        for _, text in ipairs { '"a\\nb\\r\\n"', '5', '{ "a": [1,\n 2] }', '["x"]', 'null' } do
            local message = encode.message(text)
            assert.same(cjson.decode('[' .. text .. ']'), parsed('[' .. message .. ']'))
            assert.is_nil(message:find '\n')
        end
        assert.equal('false', encode.message 'false')
    end)

    it('refuses what is none, or would be taken for Node\'s own', function()
        for _, bad in ipairs { '', '{', '{"cmd":"NODE_CLUSTER"}' } do
            local text, reason = encode.message(bad)
            assert.is_nil(text)
            assert.is_string(reason)
        end
        assert.is_string((encode.message '{"cmd":"NODE_"}'))
    end)
end)
