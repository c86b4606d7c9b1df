-- Removed, not false: the field is as Git has it again.
obj.spec.suspend = nil
return obj
