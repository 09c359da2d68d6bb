--- dutch-master top: a live view to leave open on a second screen.
local M = {
    name = 'top',
    talks = true,
    summary = 'a live view of the workers',
    description = 'A live view.',
    run = function(ctx)
        ctx.err 'dutch-master: top needs a terminal\n'
        return 1
    end,
}
return M
