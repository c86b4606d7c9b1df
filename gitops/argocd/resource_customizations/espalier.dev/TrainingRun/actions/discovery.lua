-- Safe under self-heal: Git leaves spec.suspend out, so Argo CD does not compare it. Where Git states it, a sync
-- takes the action back.
local ended = false
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  if condition.type == "Succeeded" and condition.status ~= "Unknown" then
    ended = true
  end
end
local suspended = obj.spec.suspend == true
local actions = {}
actions["suspend"] = { ["disabled"] = ended or suspended }
actions["resume"] = { ["disabled"] = ended or not suspended }
return actions
