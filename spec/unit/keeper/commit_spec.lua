local Commit = require 'dutch-master.keeper.commit'

describe('what waits for the state to be kept', function()
    local done, touched, errors, commit

    local function note(what)
        return function()
            done[#done + 1] = what
        end
    end

    before_each(function()
        done, touched, errors = {}, 0, {}
        commit = Commit.new { touch = function()
            touched = touched + 1
        end, on_error = function(traceback)
            errors[#errors + 1] = traceback
        end }
    end)

    it('goes out in its order, when the snapshot is written', function()
        commit:add(note 'a')
        commit:add(note 'b')
        assert.same({ {}, 2 }, { done, touched })
        commit:written()
        assert.same({ 'a', 'b' }, done)
        commit:written()
        assert.same({ 'a', 'b' }, done)
    end)

    it('lets others by only if nothing waits', function()
        commit:follow(note 'a')
        assert.same({ { 'a' }, 0 }, { done, touched })
        commit:add(note 'b')
        commit:follow(note 'c')
        assert.same({ 'a' }, done)
        commit:written()
        assert.same({ 'a', 'b', 'c' }, done)
    end)

    it('lets nobody by while it goes out', function()
        commit:add(function()
            commit:follow(note 'c')
            done[#done + 1] = 'a'
        end)
        commit:add(function()
            done[#done + 1] = 'b'
            commit:add(note 'next')
            commit:follow(note 'behind it')
        end)
        commit:written()
        assert.same({ 'a', 'b', 'c' }, done)
        commit:written()
        assert.same({ 'a', 'b', 'c', 'next', 'behind it' }, done)
    end)

    it('waits for the next snapshot if it comes while one goes out', function()
        commit:add(function()
            commit:add(note 'next')
        end)
        commit:written()
        assert.same({}, done)
        commit:written()
        assert.same({ 'next' }, done)
    end)

    it('goes out whatever becomes of what was before it', function()
        commit:add(function()
            error 'broken'
        end)
        commit:add(note 'a')
        commit:written()
        assert.same({ 'a' }, done)
        assert.truthy(errors[1]:find 'broken')
    end)

    it('waits for nothing where nobody keeps it, from the start or from then on', function()
        commit:add(note 'a')
        commit:alone()
        commit:add(note 'b')
        commit:follow(note 'c')
        commit:note()
        assert.same({ { 'a', 'b', 'c' }, 1 }, { done, touched })
        Commit.new({}):add(note 'd')
        assert.equal('d', done[4])
    end)
end)
