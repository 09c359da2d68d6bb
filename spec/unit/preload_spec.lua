local preload = require 'dutch-master.preload'

local function platform(executable, files)
    return {
        executable = function()
            return executable
        end,
        realpath = function(path)
            return path:gsub('/[^/]+/%.%./', '/'), nil
        end,
        access = function(path, mode)
            assert.equal('r', mode)
            return files[path] or nil
        end,
    }
end

describe('preload.find', function()
    it('finds the file beside the binary of a build tree', function()
        assert.equal('/src/build/drain.cjs',
                     preload.find(platform('/src/build/dutch-master', { ['/src/build/drain.cjs'] = true }), {}))
    end)

    it('finds it in share of the prefix it was installed to', function()
        local files = { ['/opt/dm/bin/../share/dutch-master/drain.cjs'] = true }
        local found = preload.find(platform('/opt/dm/bin/dutch-master', files), {})
        assert.equal('/opt/dm/share/dutch-master/drain.cjs', found)
    end)

    it('takes the one of the source tree first when Lua comes from there', function()
        local files = { ['/src/build/drain.cjs'] = true, ['/src/lua/node/drain.cjs'] = true }
        assert.equal('/src/lua/node/drain.cjs',
                     preload.find(platform('/src/build/dutch-master', files), { DUTCH_MASTER_LUA = '/src/lua' }))
    end)

    it('says where it looked when it is nowhere', function()
        local path, tried = preload.find(platform('/usr/bin/dutch-master', {}), {})
        assert.is_nil(path)
        assert.same({ '/usr/bin/drain.cjs', '/usr/bin/../share/dutch-master/drain.cjs' }, tried)
    end)
end)
