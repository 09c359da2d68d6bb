--- knock.lua: one connection of the master's own to one worker alone, through the public port: a rule of the steering
-- leads it to that worker's lane. It is hung up before its rule is gone: nothing of it may reach another worker.

local Knock = {}
Knock.__index = Knock

--- Until the next one when too many other workers are being asked (EAGAIN), ms.
Knock.BUSY_MS = 20

--- @param options {platform, rotation, id (the worker's), text (what is said), shut (whether that is all),
--   on_data = function(data), on_end = function(reason or nil)}
-- @return it; or nil, why, code
function Knock.new(options)
    local rotation = options.rotation
    local dial, why = options.platform.dial(rotation.address.text, {
        on_data = options.on_data, on_end = options.on_end,
    })
    if not dial then
        return nil, why
    end
    local self = setmetatable({ dial = dial, rotation = rotation, id = options.id }, Knock)
    local ok, code
    ok, why, code = rotation:probe(options.id, dial:port())
    if ok then
        ok, why = dial:start(options.text, options.shut)
    end
    if not ok then
        self:close()
        return nil, why, code
    end
    return self
end

--- Whether a process has it; nil where the kernel does not say.
function Knock:accepted()
    return self.dial:accepted()
end

--- Whether nothing waits for the worker any more: somebody has it, or it came to another queue.
function Knock:is_taken()
    return self.rotation:waiting(self.id) == 0
end

--- Its end, when it was answered. @return whether nobody else can have answered
function Knock:answered()
    self.dial:close()
    return self.rotation:probed(self.id)
end

--- Its end.
function Knock:close()
    self.dial:close()
    self.rotation:unprobe(self.id)
end

return Knock
