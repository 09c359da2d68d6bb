local listening = require 'dutch-master.cluster.listening'

local function tcp(port, address)
    return { name = ('tcp:%s:%d'):format(address or '*', port), type = 'tcp4', stream = true, port = port, address = address,
        text = ('%s:%d'):format(address or '', port) }
end

local function unix(path)
    return { name = 'unix:' .. path, type = 'unix', stream = true, port = 0, path = path, text = 'unix:' .. path }
end

local function names(list)
    return listening.text(list)
end

describe('where workers listen', function()
    it('is wanted where all of them do', function()
        local common = listening.common { { tcp(80), tcp(9100), unix '/a' }, { tcp(9100), unix '/a', tcp(80) }, { unix '/a', tcp(80) } }
        assert.equal(':80, unix:/a', names(common))
        assert.equal('', names(listening.common {}))
        assert.equal('', names(listening.common { {}, { tcp(80) } }))
    end)

    it('is told apart from random ports, also with one worker', function()
        assert.equal(':3000, :9100', names(listening.common { { tcp(3000), tcp(40001), tcp(9100) } }))
        assert.equal(':40001', names(listening.common { { tcp(40001), tcp(40002) } }))
        assert.equal(':3000', names(listening.common { { tcp(3000), tcp(40001) }, { tcp(40007), tcp(3000) } }))
    end)

    it('is missed unless an address, or one that includes it, is there', function()
        local wanted = { tcp(80, '127.0.0.1'), tcp(81), unix '/a' }
        assert.equal('127.0.0.1:80, :81, unix:/a', names(listening.missing(wanted, {})))
        assert.equal(':81', names(listening.missing(wanted, { tcp(80), unix '/a', tcp(81, '127.0.0.1') })))
        assert.equal('', names(listening.missing(wanted, { tcp(80), unix '/a', tcp(81, '::') })))
        assert.equal('127.0.0.1:80', names(listening.missing({ tcp(80, '127.0.0.1') }, { tcp(80, '127.0.0.2') })))
    end)

    it('is one worker\'s own where its process id, or chance, says so', function()
        assert.is_true(listening.is_private(unix '/tmp/tsx-0/4711.pipe', 4711))
        assert.is_false(listening.is_private(unix '/tmp/tsx-0/4711.pipe', 471))
        assert.is_false(listening.is_private(unix '/tmp/4711/app', 711))
        assert.is_true(listening.is_private({ name = 'udp4:*:0#0', stream = false, port = 999 }, 1))
        assert.is_false(listening.is_private({ name = 'udp4:*:53', stream = false, port = 53 }, 1))
        assert.is_false(listening.is_private(tcp(4711), 4711))
    end)
end)
