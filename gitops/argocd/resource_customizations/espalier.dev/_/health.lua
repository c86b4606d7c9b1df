-- Every kind of espalier.dev follows kstatus: observedGeneration, and the conditions Ready, Reconciling and
-- Stalled; a TrainingRun also has Suspended. Messages are the conditions' own.
local health = { status = "Progressing", message = "Waiting for the operator to observe the resource" }
if obj.status == nil or obj.status.observedGeneration == nil or obj.status.observedGeneration < 0 then
  return health
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  health.message = "Waiting for generation " .. obj.metadata.generation .. " to be observed"
  return health
end

local conditions = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  conditions[condition.type] = condition
end
for _, rule in ipairs({
  { "Stalled", "Degraded" },
  { "Suspended", "Suspended" },
  { "Reconciling", "Progressing" },
  { "Ready", "Healthy" },
}) do
  local condition = conditions[rule[1]]
  if condition ~= nil and condition.status == "True" then
    health.status = rule[2]
    health.message = condition.reason .. ": " .. (condition.message or "")
    return health
  end
end
if conditions.Ready ~= nil then
  health.message = conditions.Ready.reason .. ": " .. (conditions.Ready.message or "")
end
return health
