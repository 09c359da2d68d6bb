-- The listening sockets of a cluster: for now one shared socket for each address.
local M = {} M.__index = M
function M.new(o) o.byname = {} o.listeners = {} return setmetatable(o, M) end
function M:open(list) return self:update(list) end
function M:update(list)
    for _, a in ipairs(list) do
        if not self.byname[a.text] then
            local l, msg = self.platform.listen(a, { backlog = self.backlog })
            if not l then return nil, msg end
            self.byname[a.text] = l
            table.insert(self.listeners, { l = l, name = a.name, text = a.text, lane = l:lane() })
        end
    end
    return true
end
function M:query(id, req, reply)
    local text = req.path and 'unix:' .. req.path or (req.address and (req.address:find(':') and '[' .. req.address .. ']' or req.address) or '') .. ':' .. tostring(req.port)
    local e = self.byname[text]
    if not e then
        local a = assert(self.platform.address(text))
        local l, msg, code = self.platform.listen(a, { backlog = self.backlog })
        if not l then self.log:error(msg) return reply(nil, code) end
        self.byname[text] = l; e = l
        self.q = self.q or {} ; self.q[text] = l:lane()
    end
    reply(self.q[text]:fd())
end
function M:take() local fds, names = {}, {} for i, e in ipairs(self.listeners) do fds[i] = e.lane:fd() names[i] = { name = e.name, address = e.text } end return fds, names end
function M:join() end
function M:leave(_, done) done() end
function M:drop() end
function M:want() end
function M:snapshot() return {} end
function M:close() for _, l in pairs(self.byname) do l:close() end end
return M
