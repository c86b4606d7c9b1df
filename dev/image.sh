#!/usr/bin/env bash
# Builds images/<name>/Dockerfile and pushes it to the local registry as localhost:5000/espalier/<name>:<content hash>.
#   dev/image.sh build NAME...   build and push what is not in the registry yet; prints the full references
#   dev/image.sh all             all of images/, and their references in $ESPALIER_CACHE/images.env
#   dev/image.sh prune           drop what earlier builds left in the build host's storage
# A Dockerfile's `ARG BASE=<name>` is another image of ours, built first, or `debian`, made by debootstrap.
# A context.sh beside it prints the build context (a model's directory); otherwise that is the repository root.
set -euo pipefail
. "$(dirname "$0")/common.sh"

export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=overlay
dependencies=$cache/image-dependencies
declare -A reference

in_registry() {
  curl -fsS -o /dev/null -I "http://$registry/v2/${1#"$registry"/}" 2>/dev/null \
    -H 'Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json'
}
manifest_of() { local path=${1#"$registry"/}; echo "$registry/${path%:*}/manifests/${path##*:}"; }

# The dependencies that pyproject.toml declares, without the settings of tools, and the pins: the key of a heavy layer.
declared() { sed -n '/^\[project\]/,/^\[project.scripts\]/{/^\[project.scripts\]/!p}' "$root/pyproject.toml"; }

# What /run/dependencies holds in a build. Certificates and index settings of this machine reach the build this way only.
stage_dependencies() {
  local variable
  mkdir -p "$dependencies"
  declared >"$dependencies/pyproject.toml"
  cp "$root/constraints.txt" "$root/dev/overrides.txt" "$dependencies/"
  cp "$root/images/install-dependencies.sh" "$dependencies/install"
  ln -f "$(uv)" "$dependencies/uv" 2>/dev/null || cp "$(uv)" "$dependencies/uv"
  {
    echo 'export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt'
    # uv does not read pip's name of the index.
    [ -z "${PIP_INDEX_URL:-}" ] || printf 'export UV_DEFAULT_INDEX=%q\n' "${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
    for variable in $(compgen -e | grep -E '^(UV_.*|HTTPS?_PROXY|NO_PROXY|https?_proxy|no_proxy)$'); do
      printf 'export %s=%q\n' "$variable" "${!variable}"
    done
  } >"$dependencies/environment"
}
dependencies_key() { declared | hash_of constraints.txt dev/overrides.txt images/install-dependencies.sh; }

# Debian with Python, from packages; libnuma1 and lscpu (util-linux) are what vLLM's CPU build looks for.
debian() {
  local packages=ca-certificates,python3,libnuma1,util-linux image work=$cache/debian.tmp
  image=localhost/espalier-debian:$(echo "$packages" | hash_of)
  if ! buildah inspect --type image "$image" >/dev/null 2>&1; then
    need_root "making the base image with debootstrap"
    apt_ensure debootstrap buildah
    say "installing Debian's Python for the base image (once, about a minute)"
    rm -rf "$work"
    mkdir -p "$work"
    debootstrap --variant=minbase --include="$packages" bookworm "$work/rootfs" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$cache/debootstrap.log" 2>&1 ||
      die "debootstrap failed: see $cache/debootstrap.log."
    (cd "$work/rootfs" && rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/man/* usr/share/locale/* usr/share/info/*)
    tar -C "$work/rootfs" -cf "$work/rootfs.tar" .
    printf 'FROM scratch\nADD rootfs.tar /\n' >"$work/Dockerfile"
    rm -rf "$work/rootfs"
    buildah bud -q --layers=false -t "$image" "$work" >/dev/null
    rm -rf "$work"
  fi
  echo "$image"
}

# The files that an image of the application is made of.
sources() {
  (cd "$root" && { find "images/$1" -type f; echo images/metadata.py; echo pyproject.toml; } &&
    { ! grep -q '^COPY operator/' "images/$1/Dockerfile" || find operator/espalier -type f ! -path '*/__pycache__/*'; }) | sort
}

# build NAME: sets reference[NAME], building its base first and skipping what the registry has.
build() {
  local name=$1 base context key files
  [ -z "${reference[$name]:-}" ] || return 0
  [ -f "$root/images/$name/Dockerfile" ] || die "there is no images/$name/Dockerfile; images: $(cd "$root/images" && ls -d */ | tr -d '/\n' ' ')."
  base=$(sed -n 's/^ARG BASE=//p' "$root/images/$name/Dockerfile")
  if [ "$base" = debian ]; then
    base=$(debian)
  else
    build "$base"
    base=${reference[$base]}
  fi
  context=$root
  [ ! -x "$root/images/$name/context.sh" ] || context=$("$root/images/$name/context.sh")
  mapfile -t files < <(sources "$name")
  key=$({ echo "$base ${BUILD_ARGS:-}"; [ "$context" = "$root" ] || echo "${context##*/}"; ! grep -q DEPENDENCIES "$root/images/$name/Dockerfile" || dependencies_key; } | hash_of "${files[@]}")
  reference[$name]=$registry/espalier/$name:$key
  if in_registry "$(manifest_of "${reference[$name]}")"; then return; fi
  say "building $name"
  stage_dependencies
  mkdir -p "$cache/uv-cache"
  # shellcheck disable=SC2086  # BUILD_ARGS is a list of options, such as "--build-arg ROLLOUT=rollout-gpu"
  buildah bud -q --layers --pull-never --build-arg BASE="$base" --build-arg DEPENDENCIES="$(dependencies_key)" ${BUILD_ARGS:-} \
    -v "$dependencies:/run/dependencies:ro" -v "${UV_CACHE_DIR:-$HOME/.cache/uv}:/run/uv-cache" -v /etc/ssl/certs:/etc/ssl/certs:ro \
    -f "$root/images/$name/Dockerfile" -t "${reference[$name]}" "$context" >"$cache/image-$name.log" 2>&1 ||
    die "cannot build image $name: see $cache/image-$name.log."
  buildah push -q --tls-verify=false "${reference[$name]}" "docker://${reference[$name]}" >>"$cache/image-$name.log" 2>&1 ||
    die "cannot push image $name to $registry: see $cache/image-$name.log."
}

# Earlier versions of our images; the current ones are the layer cache of the next build.
prune() {
  local name keep=()
  for name in "${!reference[@]}"; do keep+=(-e "${reference[$name]}"); done
  buildah images --format '{{.Name}}:{{.Tag}}' | grep "^$registry/espalier/" | grep -vxF "${keep[@]}" | xargs -r buildah rmi >/dev/null 2>&1 || true
}

case ${1:-} in
build | push | all)
  apt_ensure buildah
  only_one image
  "$root/dev/registry.sh" up {lock_fd}>&-
  ;;&
build | push)
  [ $# -gt 1 ] || die "usage: dev/image.sh $1 NAME..."
  for name in "${@:2}"; do build "$name"; echo "${reference[$name]}"; done
  ;;
all)
  for name in $(cd "$root/images" && for file in */Dockerfile; do dirname "$file"; done); do
    build "$name"
    echo "ESPALIER_IMAGE_$(echo "$name" | tr 'a-z-' 'A-Z_')=${reference[$name]}"
  done | tee "$cache/images.env.new"
  mv "$cache/images.env.new" "$cache/images.env"
  ;;
*) die "usage: dev/image.sh build NAME... | all" ;;
esac
