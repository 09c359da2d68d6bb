local tls = require 'dutch-master.cluster.tls'

describe('tls', function()
    it('greets in one record whose lengths are right', function()
        local hello = tls.HELLO
        assert.equal('\x16\3\1', hello:sub(1, 3))
        assert.equal(#hello - 5, hello:byte(4) * 256 + hello:byte(5))
        assert.equal(#hello - 9, hello:byte(8) * 256 + hello:byte(9))
    end)

    it('knows an answer in TLS', function()
        assert.equal('answered', tls.answer '\x16\3\3\0\x7a')
        assert.equal('refused', tls.answer '\x15\3\1\0\2\2\x28')
        for _, text in ipairs { '', '\x16', 'HTTP/1.1 400 Bad Request', '\x17\3\3' } do
            assert.is_nil(tls.answer(text), text)
        end
    end)
end)
