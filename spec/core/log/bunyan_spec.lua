-- npm's bunyan command must pretty-print our records; spec/support/install-node installs it.
local core = require 'dutch-master.core'
local cjson = require 'cjson'
local log = require 'dutch-master.log.logger'
local sys = require 'spec.support.sys'

local BUNYAN = os.getenv 'DUTCH_MASTER_BUNYAN' or 'spec/.cache/packages/node_modules/.bin/bunyan'

describe('bunyan', function()
    local dir, remove, path

    before_each(function()
        dir, remove = sys.temp_dir()
        path = dir .. '/log'
    end)

    after_each(function()
        remove()
    end)

    -- Writes records through a real sink and gives back what bunyan makes of them.
    local function through_bunyan(options, write)
        local platform = {
            sink = core.sink,
            wall = function()
                return 1700000000.25
            end,
            pid = function()
                return 4711
            end,
            hostname = function()
                return 'web1'
            end,
            environ = function()
                return {}
            end,
        }
        local logger = assert(log.new { platform = platform, name = 'my-app', level = 'trace', path = path })
        write(logger)
        logger:close()
        local pipe = io.popen(('%s --no-color %s < %s 2>&1'):format(BUNYAN, options, path))
        local text = pipe:read('*a')
        pipe:close()
        return text
    end

    local function is_missing()
        if core.stat(BUNYAN) then return false end
        pending('needs bunyan: run spec/support/install-node')
        return true
    end

    it('prints records in its long form', function()
        if is_missing() then return end
        local text = through_bunyan('', function(logger)
            logger:child({ workerId = 3, workerPid = 4712, generation = 1 }):info 'Worker listening'
            logger:warn({ code = 1, signal = cjson.null, stderr = 'one\ntwo' }, 'Worker disconnection was unexpected')
            logger:trace 'T'
            logger:debug 'D'
            logger:error 'E'
            logger:fatal 'F'
        end)
        assert.truthy(text:find('[2023-11-14T22:13:20.250Z]  INFO: my-app/4711 on web1: Worker listening '
            .. '(workerId=3, workerPid=4712, generation=1)\n', 1, true))
        assert.truthy(text:find(' WARN: my-app/4711 on web1: Worker disconnection was unexpected '
            .. '(code=1, signal=null)\n', 1, true))
        assert.truthy(text:find('stderr: one\n', 1, true))
        for _, line in ipairs { 'TRACE: my-app/4711 on web1: T\n', 'DEBUG: my-app/4711 on web1: D\n',
            'ERROR: my-app/4711 on web1: E\n', 'FATAL: my-app/4711 on web1: F\n' } do
            assert.truthy(text:find(line, 1, true))
        end
    end)

    it('takes every record for one, whatever its text holds', function()
        if is_missing() then return end
        local bytes = {}
        for i = 0, 255 do
            bytes[#bytes + 1] = string.char(i)
        end
        local evil = table.concat(bytes)
        local text = through_bunyan('-o json-0', function(logger)
            for _ = 1, 10 do
                logger:info({ [evil] = evil, level = 60, list = { evil } }, evil)
            end
            logger:info({ huge = ('x'):rep(1e6) }, ('y'):rep(1e6))
        end)
        local count = 0
        for line in text:gmatch('[^\n]+') do
            local record = cjson.decode(line)
            assert.equal('my-app', record.name)
            assert.equal(30, record.level)
            count = count + 1
        end
        assert.equal(11, count)
    end)

    it('filters by level and by field', function()
        if is_missing() then return end
        local text = through_bunyan("-l warn -c 'this.workerId == 2' -o short", function(logger)
            for id = 1, 3 do
                logger:info({ workerId = id }, 'Worker exited')
                logger:warn({ workerId = id }, 'Worker disconnected unexpectedly while starting')
            end
        end)
        assert.equal(1, select(2, text:gsub('\n', '\n')))
        assert.truthy(text:find('WARN my-app: Worker disconnected unexpectedly while starting (workerId=2)', 1, true))
    end)
end)
