--- A platform for the specs of the command line: a file system of names, sockets that are tables, output kept.

local M = {}

--- `world`: { files = {path = true | stat table}, environ = {}, tty = bool, columns =, cwd =,
--             sockets = {path = function(line, conn)} }
function M.new(world)
    world = world or {}
    local self = { out = {}, err = {}, stopped = nil, timers = {}, clock = 0 }
    local p = { version = '9.9.9' }
    function p.environ()
        return world.environ or {}
    end
    function p.cwd()
        return world.cwd or '/srv/app'
    end
    function p.stat(path)
        if path:sub(1, 1) ~= '/' then
            path = p.cwd() .. '/' .. path
        end
        local file = world.files and world.files[path]
        if not file then
            return nil, 'no such file or directory', 'ENOENT'
        end
        return file == true and { type = 'file', uid = 1000 } or file
    end
    function p.getuser(uid)
        return { name = 'user' .. uid }
    end
    function p.uid()
        return 1000
    end
    function p.runtime_dir()
        return '/run/user/1000/dutch-master'
    end
    function p.write_stdout(text)
        if world.deaf then
            return nil, 'broken pipe', 'EPIPE'
        end
        self.out[#self.out + 1] = text
        return true
    end
    function p.write_stderr(text)
        self.err[#self.err + 1] = text
    end
    function p.no_signals()
    end
    function p.isatty()
        return world.tty or false
    end
    function p.tty_size()
        return world.columns or 80, 24
    end
    function p.read_file() end

    function p.pid()
        return 4711
    end
    function p.now()
        return self.clock
    end
    function p.stop(code)
        self.stopped = code
    end
    function p.timer(fn)
        local timer = {}
        function timer.start(_, ms)
            timer.due = self.clock + ms
        end
        function timer.stop()
            timer.due = nil
        end
        timer.close = timer.stop
        function timer.fire()
            timer.due = nil
            fn()
        end
        self.timers[#self.timers + 1] = timer
        return timer
    end
    function p.connect(path)
        local answer = world.sockets and world.sockets[path]
        if not answer then
            return nil, 'connection refused', 'ECONNREFUSED'
        end
        local conn = {}
        function conn.pid()
            return 4711
        end
        function conn.uid()
            return world.peer_uid or 1000
        end
        function conn.write(_, line)
            conn.sent = (conn.sent or '') .. line
            answer(line, conn)
        end
        function conn.on_line(_, fn)
            conn.receive = fn
        end
        function conn.on_close(_, fn)
            conn.lose = fn
        end
        function conn.close()
        end
        return conn
    end
    function self.text()
        return table.concat(self.out)
    end
    function self.errors()
        return table.concat(self.err)
    end
    --- Runs what is due within `ms`.
    function self.advance(ms)
        self.clock = self.clock + ms
        for _, timer in ipairs(self.timers) do
            if timer.due and timer.due <= self.clock then
                timer.fire()
            end
        end
    end
    self.platform = p
    return self
end

--- words -> argv
function M.argv(...)
    local argv = { [0] = 'dutch-master', ... }
    return argv
end

return M
