-- How Argo CD tells how a ChatGateway is, from its conditions: a sync waits until it is Ready, and fails where somebody must mend it.
local seen = {}
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    seen[condition.type] = condition
  end
end

local ready, stalled, reconciling = seen["Ready"], seen["Stalled"], seen["Reconciling"]
if ready == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "The operator has not seen the newest specification yet" }
end
if stalled ~= nil and stalled.status == "True" then
  if stalled.reason == "Paused" then
    return { status = "Suspended", message = stalled.message }
  end
  return { status = "Degraded", message = stalled.message }
end
if ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
if ready.reason == "ScaledToZero" then
  -- As it was asked for: there is nothing to wait for.
  return { status = "Healthy", message = ready.message }
end
if reconciling ~= nil then
  return { status = "Progressing", message = reconciling.message }
end
return { status = "Progressing", message = ready.message }
