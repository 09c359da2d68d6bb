describe('layers', function()
    it('compile', function() assert.is_string(require('dutch-master.core').version) end)
end)
