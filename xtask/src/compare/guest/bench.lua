-- Loops over numbers, tables and strings, each hot enough to be compiled.

local count = tonumber(arg[1])
local checksum = 0

local function escape_time(x, y)
    local a, b = 0, 0
    for step = 1, 50 do
        a, b = a * a - b * b + x, 2 * a * b + y
        if a * a + b * b > 4 then return step end
    end
    return 50
end

local function primes(limit)
    local composite, found = {}, 0
    for number = 2, limit do
        if not composite[number] then
            found = found + 1
            for multiple = number * number, limit, number do composite[multiple] = true end
        end
    end
    return found
end

local function rotate(text)
    local parts = {}
    for at = 1, #text do parts[#text - at + 1] = string.char(text:byte(at) % 26 + 97) end
    return table.concat(parts)
end

local text = "abcdefghijklmnopqrstuvwxyz"
for round = 1, count do
    for x = -20, 9 do checksum = checksum + escape_time(x / 10, round % 10 / 10) end
    checksum = checksum + primes(500)
    text = rotate(text)
end
print(checksum, text)
