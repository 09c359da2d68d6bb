local suggest = require 'dutch-master.suggest'

describe('suggest', function()
    it('finds the name that was meant', function()
        local names = { 'numWorkers', 'worker', 'stopTimeout', 'killTimeout', 'cpus' }
        assert.equal('numWorkers', suggest.nearest('numWrokers', names))
        assert.equal('numWorkers', suggest.nearest('num_workers', names))
        assert.equal('numWorkers', suggest.nearest('numworker', names))
        assert.equal('worker', suggest.nearest('workr', names))
        assert.equal('stopTimeout', suggest.nearest('stoptimeout', names))
        assert.is_nil(suggest.nearest('banana', names))
        assert.is_nil(suggest.nearest(('x'):rep(1e5), names))
        assert.is_nil(suggest.nearest(7, names))
    end)

    it('knows verbs and options of the command line', function()
        assert.equal('restart', suggest.nearest('retsart', { 'status', 'restart', 'stop' }))
        assert.equal('--timeout', suggest.nearest('--timout', { '--json', '--timeout' }))
        assert.is_nil(suggest.nearest('', {}))
    end)
end)
