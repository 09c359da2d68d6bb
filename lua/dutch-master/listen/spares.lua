--- spares.lua: how many lanes a listener needs so that others who close sockets in its group (strangers, see
-- census.lua) disturb nobody. The kernel's program names a member by its index, and when a member closes, the last one
-- moves into its place: were that a lane in use, its connections would go elsewhere until the program is replaced, some
-- to a stranger that is just being closed. So every lane in use has an index below the number of our lanes. While a
-- stranger is there, the last member then is none of those, whatever strangers come and go in whatever order and
-- moment: nobody needs to see it. Where indexes are too high, lanes that nobody has follow at the end. Pure.

local Spares = {}

-- A process that opens thousands of sockets is not followed: there are 1024 lanes.
local MAX_SPARES = 64

--- The number of lanes that is needed.
-- @param lanes each with state, steered and socket:index()
function Spares.needed(lanes)
    local used, needed = 0, 0
    for _, lane in ipairs(lanes) do
        if lane.state ~= 'free' or lane.steered then
            used, needed = used + 1, math.max(needed, lane.socket:index() + 1)
        end
    end
    return math.min(needed, used + MAX_SPARES)
end

return Spares
