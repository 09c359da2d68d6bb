local addresses = require 'dutch-master.addresses'

local function pack(...)
    return { n = select('#', ...), ... }
end

describe('addresses', function()
    it('are what listen takes', function()
        for _, text in ipairs { '127.0.0.1:8000', ':8000', '*:80', 'localhost:1', '[::]:8000', '[fe80::1%eth0]:80',
            'unix:/run/a.sock', 'unix:@name', 'udp::53', 'udp:127.0.0.1:53', ':0', ':65535' } do
            assert.is_true(addresses.is_one(text), text)
        end
    end)

    it('are nothing else', function()
        for _, text in ipairs { '', '8000', ':65536', ':', '256.0.0.1:80', '1.2.3:80', 'example.org:80', '::1:80',
            'unix:relative', 'unix:', 'udp:unix:/a', ' :80', ':80\n' } do
            assert.is_false(addresses.is_one(text), text)
        end
        assert.is_false(addresses.is_one(8000))
    end)

    it('are recognized where somebody meant one', function()
        for text, hint in pairs { ['8000'] = 'write ":8000"', [':65536'] = 'the highest port is 65535',
            localhost = 'the port is missing', ['example.org:80'] = 'names of hosts are not looked up',
            ['::1:80'] = 'write "[::1]:80"', ['unix:relative'] = 'the path of a unix socket is absolute',
            ['udp:unix:/a'] = 'a unix socket is no udp socket', ['/run/a.sock'] = 'write "unix:/run/a.sock"' } do
            assert.equal(hint, addresses.hint(text), text)
        end
        assert.is_nil(addresses.hint '')
        assert.is_nil(addresses.hint ' :80')
        assert.is_nil(addresses.hint(8000))
        assert.is_nil(addresses.hint '256.0.0.1:80')
    end)

    it('have a TCP port, or none', function()
        local function port(text)
            return addresses.tcp_port { text = text }
        end
        assert.same({ '80', '80', '443' }, { port ':80', port '127.0.0.1:80', port '[::1]:443' })
        assert.is_nil(port 'udp::53')
        assert.is_nil(port 'unix:/run/a:80')
    end)

    it('are of a kind, which a user of them takes or does not', function()
        for text, want in pairs { [':80'] = 'any ', ['*:80'] = 'star *', ['localhost:80'] = 'localhost localhost',
            ['127.0.0.1:80'] = 'ipv4 127.0.0.1', ['1.2.3:80'] = 'digits 1.2.3', ['256.0.0.1:80'] = 'digits 256.0.0.1',
            ['[::1]:80'] = 'ipv6 ::1', ['[fe80::1%eth0]:80'] = 'scoped fe80::1%eth0', ['a-b.org:80'] = 'name a-b.org',
            ['unix:/a'] = 'path /a', ['unix:@a'] = 'abstract @a', ['unix:a/b'] = 'relative a/b' } do
            local kind, rest = want:match '^(%S+) (.*)$'
            local found = addresses.read(text, { [kind] = true })
            assert.same({ kind = kind, udp = false, host = not found.path and rest or nil, path = found.path and rest,
                port = not found.path and 80 or nil }, found)
            assert.is_nil(addresses.read(text, {}))
            assert.is_nil(addresses.read('udp:' .. text, { [kind] = true }))
            found = addresses.read('udp:' .. text, { [kind] = true, udp = true })
            assert.equal(not text:find '^unix:' or nil, found and found.udp)
        end
        assert.same({ n = 2, nil, 'port' }, pack(addresses.read(':65536', { any = true })))
        assert.is_nil((select(2, addresses.read('*:65536', { any = true }))))
    end)

    it('have an IPv6 host in brackets', function()
        assert.same({ '[::1]', '127.0.0.1', '' },
            { addresses.before_port '::1', addresses.before_port '127.0.0.1', addresses.before_port '' })
    end)
end)
