-- Where a log may be written: its directory may be the workers' user's. (SECURITY.md)

local core = require 'dutch-master.core'
local sys = require 'spec.support.sys'

local NOBODY = 65534

describe('a file that is appended to', function()
    if sys.C.geteuid() ~= 0 then
        it('follows links as the kernel does, without root', function()
            pending 'only root could be led anywhere'
        end)
        return
    end

    local dir, remove, own

    before_each(function()
        dir, remove = sys.temp_dir()
        sys.C.chmod(dir, tonumber('755', 8))
        own = dir .. '/own'
        sys.C.mkdir(own, tonumber('755', 8))
        sys.C.chown(own, NOBODY, NOBODY)
        sys.write_file(dir .. '/secret', '')
    end)

    after_each(function()
        remove()
    end)

    local function open(path)
        local fd, _, code = core.open_append(path)
        if fd then
            core.close_fd(fd)
        end
        return fd and 'opened' or code
    end

    it('is made, and opened again, in anybody\'s directory', function()
        for _ = 1, 2 do
            assert.equal('opened', open(own .. '/log'))
            assert.equal('opened', open(dir .. '/log'))
        end
        assert.equal(0, core.stat(own .. '/log').uid)
    end)

    it('is not what a symbolic link of theirs leads to, wherever it is in the path', function()
        sys.C.symlink(dir .. '/secret', own .. '/log')
        assert.equal('ELOOP', open(own .. '/log'))
        sys.C.symlink(dir .. '/new', own .. '/other')
        assert.equal('ELOOP', open(own .. '/other'))
        assert.is_nil(core.stat(dir .. '/new'))
        sys.C.symlink(dir, own .. '/logs')
        assert.equal('ELOOP', open(own .. '/logs/secret'))
        sys.C.symlink(own .. '/logs', dir .. '/through') -- root's link to theirs
        assert.equal('ELOOP', open(dir .. '/through/secret'))
        local sink, _, code = core.sink(own .. '/log')
        assert.same({ nil, 'ELOOP' }, { sink, code })
    end)

    it('is what the script\'s owner says by a link: the script could say the same', function()
        sys.C.symlink(dir .. '/secret', own .. '/log')
        sys.C.lchown(own .. '/log', NOBODY, NOBODY)
        sys.C.chmod(own, tonumber('775', 8))
        assert.equal('ELOOP', open(own .. '/log'))
        core.trust_owner_of(own)
        assert.equal('opened', open(own .. '/log'))
        core.trust_owner_of '/'
        assert.equal('ELOOP', open(own .. '/log'))
    end)

    it('is not what somebody has given a second name in a directory of theirs', function()
        sys.C.link(dir .. '/secret', own .. '/log')
        assert.equal('EMLINK', open(own .. '/log'))
        assert.equal('opened', open(dir .. '/secret')) -- its own place
    end)

    it('is what a symbolic link of root\'s leads to, in places that are root\'s', function()
        sys.C.symlink(dir .. '/secret', dir .. '/log')
        sys.C.symlink('log', dir .. '/relative')
        sys.C.symlink(dir, dir .. '/logs')
        for _, path in ipairs { '/log', '/relative', '/logs/log', '/logs/relative', '/logs/new' } do
            assert.equal('opened', open(dir .. path), path)
        end
        local file = assert(io.open(dir .. '/secret'))
        sys.C.symlink('/proc/self/fd/' .. require('posix.stdio').fileno(file), dir .. '/stdout') -- as /dev/stdout is
        assert.equal('opened', open(dir .. '/stdout'))
        file:close()
    end)
end)
