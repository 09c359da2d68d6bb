local addresses = require 'dutch-master.script.addresses'

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

    it('have a TCP port, or none', function()
        local function port(text)
            return addresses.tcp_port { text = text }
        end
        assert.same({ '80', '80', '443' }, { port ':80', port '127.0.0.1:80', port '[::1]:443' })
        assert.is_nil(port 'udp::53')
        assert.is_nil(port 'unix:/run/a:80')
    end)
end)
