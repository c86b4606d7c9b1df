#!/bin/sh
# runc for machines without CAP_SYS_RESOURCE: removes the limits and OOM scores that podman's --privileged asks for
# from the bundle (create, run) or from the process file (exec), then becomes runc.
set -eu
previous=
for argument; do
  file=
  case $previous in
  --bundle | -b) file=$argument/config.json ;;
  --process | -p) file=$argument ;;
  esac
  if [ -n "$file" ] && [ -f "$file" ]; then
    jq 'del(.process.rlimits, .process.oomScoreAdj, .rlimits, .oomScoreAdj)' "$file" >"$file.new"
    cat "$file.new" >"$file"
    rm "$file.new"
  fi
  previous=$argument
done
exec runc "$@"
