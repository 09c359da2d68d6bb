local preload = require 'dutch-master.launch.node_preload'

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

    it('finds nothing where it is nowhere', function()
        assert.is_nil(preload.find(platform('/usr/bin/dutch-master', {}), {}))
    end)
end)

describe('preload.readable_by', function()
    local files
    local fake = { stat = function(path) return files[path] end }

    local function entry(mode, uid, gid)
        return { mode = tonumber(mode, 8), uid = uid or 0, gid = gid or 0 }
    end

    local function readable(account)
        return preload.readable_by(fake, '/opt/dm/drain.cjs', account)
    end

    before_each(function()
        files = { ['/'] = entry '755', ['/opt'] = entry '755', ['/opt/dm'] = entry '755',
            ['/opt/dm/drain.cjs'] = entry '644' }
    end)

    it('is true for a file of everybody in directories of everybody', function()
        assert.is_true(readable { uid = 33, gid = 33 })
    end)

    it('is false when the file, or a directory anywhere above it, is closed', function()
        for path, mode in pairs { ['/opt/dm/drain.cjs'] = '640', ['/opt/dm'] = '750', ['/opt'] = '744', ['/'] = '700' } do
            local before = files[path]
            files[path] = entry(mode)
            assert.is_false(readable { uid = 33, gid = 33 }, path)
            assert.is_true(readable { uid = 0, gid = 0 })
            files[path] = before
        end
        files['/opt/dm/drain.cjs'] = nil
        assert.is_false(readable { uid = 33, gid = 33 })
    end)

    it('goes by the owner first, then by the groups', function()
        files['/opt/dm'] = entry('710', 0, 7)
        assert.is_true(readable { uid = 33, gid = 7 })
        assert.is_true(readable { uid = 33, gid = 33, groups = { 33, 7 } })
        assert.is_false(readable { uid = 33, gid = 33, groups = { 33, 8 } })
        files['/opt/dm'] = entry('077', 33, 33)
        assert.is_false(readable { uid = 33, gid = 33 })
    end)
end)
