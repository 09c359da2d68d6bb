local addresses = require 'dutch-master.addresses'
local core = require 'dutch-master.core'

describe('core.address', function()
    local function fields(text)
        local a, message = core.address(text)
        assert(a, message)
        return a.family, a.type, a.host or a.path, a.port, a.dual, a.text
    end

    it('reads what the README names', function()
        assert.same({ 'inet', 'stream', '127.0.0.1', 80, false, '127.0.0.1:80' }, { fields '127.0.0.1:80' })
        assert.same({ 'inet6', 'stream', '::', 8000, true, ':8000' }, { fields ':8000' })
        assert.same({ 'inet6', 'stream', '::', 8000, true, ':8000' }, { fields '*:8000' })
        assert.same({ 'inet6', 'stream', '::1', 80, false, '[::1]:80' }, { fields '[::1]:80' })
        assert.same({ 'inet6', 'stream', '::', 80, false, '[::]:80' }, { fields '[::]:80' })
        assert.same({ 'inet', 'dgram', '127.0.0.1', 53, false, 'udp:127.0.0.1:53' }, { fields 'udp:127.0.0.1:53' })
        assert.same({ 'inet6', 'dgram', '::', 53, true, 'udp::53' }, { fields 'udp::53' })
        assert.same({ 'inet', 'stream', '127.0.0.1', 80, false, '127.0.0.1:80' }, { fields 'localhost:80' })
        local a = core.address 'unix:/run/app.sock'
        assert.same({ family = 'unix', type = 'stream', path = '/run/app.sock', text = 'unix:/run/app.sock' }, a)
        assert.equal('@app', core.address('unix:@app').path)
        assert.equal('dgram', core.address('unixgram:/run/app.sock').type)
        assert.equal('[::1%lo]:80', core.address('[::1%lo]:80').text)
    end)

    it('gives text that it reads to the same address', function()
        for _, text in ipairs { '10.0.0.1:1', ':0', '[fe80::1]:65535', 'udp::53', 'unix:@x', 'unix:/a/b' } do
            assert.equal(text, core.address(text).text)
            assert.same(core.address(text), core.address(core.address(text).text))
        end
    end)

    it('and `listen` of the script know one grammar', function()
        local both = { '127.0.0.1:8000', ':8000', '*:80', 'localhost:1', '[::]:8000', '[fe80::1%lo]:80', '[::1]:0',
            'unix:/run/a.sock', 'unix:@name', 'udp::53', 'udp:127.0.0.1:53', 'udp:[::1]:53', ':65535' }
        local neither = { '', '8000', ':65536', ':', '256.0.0.1:80', '1.2.3:80', 'example.org:80', '::1:80', '[80]:80',
            'unix:relative', 'unix:', 'unix:/', 'unix:@', 'udp:unix:/a', ' :80', '[127.0.0.1]:80' }
        for _, text in ipairs(both) do
            assert.same({ true, true }, { core.address(text) ~= nil, addresses.is_one(text) }, text)
        end
        for _, text in ipairs(neither) do
            assert.same({ false, false }, { core.address(text) ~= nil, addresses.is_one(text) }, text)
        end
    end)

    it('refuses everything else, saying why', function()
        for text, why in pairs {
            [''] = 'expected host:port', ['8000'] = 'expected host:port', ['127.0.0.1:'] = 'port from 0 to 65535',
            ['127.0.0.1:65536'] = 'port from 0', ['127.0.0.1:-1'] = 'port from 0', ['127.0.0.1:+1'] = 'port from 0',
            ['127.0.0.1: 1'] = 'port from 0', ['127.0.0.1:0x50'] = 'port from 0', ['::1:80'] = 'brackets',
            ['[127.0.0.1]:80'] = 'only an IPv6', ['example.com:80'] = 'not looked up',
            ['256.0.0.1:80'] = 'not looked up',
            ['[::g]:80'] = 'not an IPv4 or IPv6',  ['unix:'] = 'expected a path', ['unix:run/x'] = 'absolute',
            ['unix:@' .. ('x'):rep(107)] = '107 bytes', ['unix:/' .. ('x'):rep(1023)] = '1023 bytes',
            [('9'):rep(500) .. ':80'] = 'expected host:port',
        } do
            local a, message, code = core.address(text)
            assert.is_nil(a)
            assert.matches(why, message, 1, true)
            assert.truthy(code == 'EINVAL' or code == 'ENAMETOOLONG')
        end
        assert.truthy(core.address('unix:/' .. ('x'):rep(1022)))
        assert.has_error(function()
            core.address()
        end)
    end)
end)
