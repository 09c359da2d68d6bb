return { name = 'one', slow = false, broken = false }
