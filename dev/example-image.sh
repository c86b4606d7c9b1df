#!/usr/bin/env bash
# example-image.sh DIRECTORY...: builds the Dockerfile of an example (such as examples/environments/guess) and pushes it to the
# local registry as localhost:5000/examples/<name>:<content hash>; prints the full references. As a user would with docker
# build, but that the base is ours with pip, since Docker's registry may be out of reach. BASE names another one.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || die "usage: dev/example-image.sh DIRECTORY..."
export BUILDAH_ISOLATION=chroot
pip_conf=$cache/pip.conf

# What pip needs to know of this machine; nothing of it stays in an image.
write_pip_conf() {
  printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\nbreak-system-packages = true\n' >"$pip_conf"
  [ -z "${PIP_INDEX_URL:-}" ] || printf 'index-url = %s\n' "$PIP_INDEX_URL" >>"$pip_conf"
}

build() {
  buildah bud -q --layers --tls-verify=false --build-arg BASE="$2" \
    -v "$pip_conf:/etc/pip.conf:ro" -v /etc/ssl/certs:/etc/ssl/certs:ro -t "$1" "$3"
}

push() {
  local tls=--tls-verify=true
  [ "$registry" != "$local_registry" ] || tls=--tls-verify=false
  buildah push -q $tls --compression-format zstd --compression-level 1 "$1" "docker://$1"
}

base=${BASE:-}
if [ -z "$base" ]; then
  python=$("$root/dev/image.sh" build python)
  base=localhost/espalier-slim:$(echo "$python" | hash_of dev/slim/Dockerfile)
fi
apt_ensure buildah
builds_images
write_pip_conf
if [ -z "${BASE:-}" ] && ! buildah inspect --type image "$base" >/dev/null 2>&1; then
  step slim "building the base of examples (once)" build "$base" "$python" "$root/dev/slim"
fi
for directory in "$@"; do
  directory=${directory%/} name=$(basename "$directory")
  [ -f "$directory/Dockerfile" ] || die "there is no $directory/Dockerfile."
  image=$registry/examples/$name:$({ echo "$base"; find "$directory" -type f ! -path '*/__pycache__/*' | sort | xargs sha256sum; } | sha256sum | cut -c1-12)
  if ! buildah inspect --type image "$image" >/dev/null 2>&1; then
    step "example-$name" "building image $name" build "$image" "$base" "$directory"
  fi
  step "push-$name" "pushing image $name" push "$image"
  echo "$image"
done
