#!/usr/bin/env bash
# Builds images/<name>/Dockerfile and pushes it to the local registry as localhost:5000/espalier/<name>:<content hash>.
#   dev/image.sh build NAME...   build and push what is not in the registry yet; prints the full references
#   dev/image.sh all             all of images/, and their references in $ESPALIER_CACHE/images.env
#   dev/image.sh archive DIRECTORY NAME...   build without a registry, and write each as DIRECTORY/NAME (an OCI layout)
# The same inputs give the same image: files and layers are dated to SOURCE_DATE_EPOCH, without it to 1980.
# FORM=gpu builds the engine, and what is made from it, for GPU nodes (images/engine/extras.gpu, packages.gpu); FORM=cpu is the default.
# ESPALIER_REGISTRY names another registry (log in with buildah first); the cluster must be able to pull from it.
# A Dockerfile's `ARG BASE=<name>` is another image of ours, built first, or `debian`, made by debootstrap.
# A context.sh beside it prints the build context (a model's directory); otherwise that is the repository root.
set -euo pipefail
. "$(dirname "$0")/common.sh"

export BUILDAH_ISOLATION=chroot
umask 022
dependencies=$cache/image-dependencies
uv_cache=${UV_CACHE_DIR:-$HOME/.cache/uv}
form=${FORM:-cpu}
# Zip archives know no earlier year.
epoch=${SOURCE_DATE_EPOCH:-315532800}
layouts=
case $form in cpu | gpu) ;; *) die "FORM is '$form': it must be cpu or gpu." ;; esac
declare -A reference

# The file images/NAME/KIND of the form that is built: KIND.gpu where there is one.
of_form() {
  local file=$root/images/$1/$2
  if [ "$form" != cpu ] && [ -e "$file.$form" ]; then echo "$file.$form"; else echo "$file"; fi
}

# Whether an image need not be built: where there is a registry, that has it.
is_built() {
  if [ -n "$layouts" ]; then buildah inspect --type image "$1" >/dev/null 2>&1; else in_registry "$1"; fi
}

# Whether a registry has REGISTRY/PATH:TAG. Where it cannot be asked plainly the answer is no, and a push skips what is there.
in_registry() {
  local path=${1#"$registry"/} scheme=https
  [ "$registry" != "$local_registry" ] || scheme=http
  curl -fsS -m 10 -o /dev/null -I "$scheme://$registry/v2/${path%:*}/manifests/${path##*:}" 2>/dev/null \
    -H 'Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json'
}

# Prints the requirements of images/NAME/extras, resolved, pinned and with hashes: the key of an image's heavy layer is
# this list and nothing else. Resolved once for what it depends on.
requirements() {
  local extras key file
  extras=$(cat "$(of_form "$1" extras)")
  key=$({ echo "$extras"; sed -n '/^\[project\]/,/^\[project.scripts\]/p' "$root/pyproject.toml"; } | hash_of constraints.txt constraints.hashes.txt dev/overrides.txt)
  file=$dependencies/resolved-$1-$key.txt
  if [ ! -e "$file" ]; then
    mkdir -p "$dependencies"
    rm -f "$dependencies/resolved-$1-"*
    # shellcheck disable=SC2046,SC2086  # one option per extra
    "$(uv)" pip compile -q --python-version 3.11 --no-header --no-annotate -c "$root/constraints.txt" --override "$root/dev/overrides.txt" \
      $(printf ' --extra %s' $extras) "$root/pyproject.toml" >"$file.resolved"
    hashed "$root/constraints.hashes.txt" <"$file.resolved" >"$file.new"
    mv "$file.new" "$file"
  fi
  cat "$file"
}

# What /run/dependencies holds in a build. Certificates and index settings of this machine reach the build this way only.
stage_dependencies() {
  local variable
  mkdir -p "$dependencies"
  requirements "$1" >"$dependencies/requirements.txt"
  cp "$root/dev/installers.txt" "$dependencies/installers.txt"
  cp "$root/images/install-dependencies.sh" "$dependencies/install"
  cp "$(uv)" "$dependencies/uv"
  {
    echo 'export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt'
    # uv does not read pip's name of the index.
    [ -z "${PIP_INDEX_URL:-}" ] || printf 'export UV_DEFAULT_INDEX=%q\n' "${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
    [ "$1" != engine ] || [ -z "${TORCH_INDEX:-}" ] || printf 'export UV_INDEX=%q\n' "$TORCH_INDEX"
    for variable in $(compgen -e | grep -E '^(UV_.*|HTTPS?_PROXY|NO_PROXY|https?_proxy|no_proxy)$'); do
      printf 'export %s=%q\n' "$variable" "${!variable}"
    done
  } >"$dependencies/environment"
}

# Debian with Python, from packages; libnuma1 and lscpu (util-linux) are what vLLM's CPU build looks for.
debian() {
  local packages=ca-certificates,python3,libnuma1,util-linux image
  image=localhost/espalier-debian:$({ echo "$packages $epoch"; declare -f build_debian without_traces; } | hash_of)
  if ! buildah inspect --type image "$image" >/dev/null 2>&1; then
    need_root "making the base image with debootstrap"
    apt_ensure debootstrap buildah
    step debian "installing Debian's Python for the base image (once)" build_debian "$packages" "$image"
  fi
  echo "$image"
}

build_debian() {
  local packages=$1 image=$2 work=$cache/debian.tmp
  rm -rf "$work"
  mkdir -p "$work"
  debian_root "$packages" "$work/rootfs"
  without_traces "$work/rootfs"
  tar -C "$work/rootfs" --sort=name --mtime="@$epoch" -cf "$work/rootfs.tar" .
  printf 'FROM scratch\nADD rootfs.tar /\n' >"$work/Dockerfile"
  rm -rf "$work/rootfs"
  buildah bud -q --layers=false --timestamp "$epoch" -t "$image" "$work"
  rm -rf "$work"
}

# Takes away what tells when and where Debian was installed, and what nobody reads. Licences stay.
without_traces() {
  (
    cd "$1"
    find usr/share/doc -type f ! -name copyright -delete
    find usr/share/doc -type d -empty -delete
    rm -rf usr/share/man/* usr/share/locale/* usr/share/info/* var/log/* var/cache/debconf/* var/cache/ldconfig/* var/lib/dpkg/*-old
    rm -f etc/hostname etc/resolv.conf etc/machine-id etc/passwd- etc/shadow- etc/group- etc/gshadow-
  )
  # Python compares a compiled file with the date of its source, and dates are set to one: these are taken without a look.
  find "$1/usr" -name __pycache__ -prune -exec rm -rf {} +
  PYTHONHASHSEED=0 chroot "$1" python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.11 >&2
}

# The files of the repository that an image is made of: its own, and those that its Dockerfile copies.
sources() {
  local dockerfile=images/$1/Dockerfile
  cd "$root"
  {
    find "images/$1" -type f
    sed -n 's/^COPY \(.*\) [^ ]*$/\1/p' "$dockerfile" | grep -v -- '--' | tr ' ' '\n' | xargs -I{} find {} -type f ! -path '*/__pycache__/*'
    ! grep -q DEPENDENCIES "$dockerfile" || echo images/install-dependencies.sh
  } | sort -u
}

base_of() {
  local base
  base=$(sed -n 's/^ARG BASE=//p' "$root/images/$1/Dockerfile")
  if [ "$1" = engine ] && [ -n "${ENGINE_BASE:-}" ]; then
    echo "$ENGINE_BASE"
  elif [ "$base" = debian ]; then
    debian
  else
    build "$base"
    echo "${reference[$base]}"
  fi
}

# build NAME: sets reference[NAME], building its base first and skipping what the registry has.
build() {
  local name=$1 base context=$root context_key='' key dependencies_key='' packages files
  [ -z "${reference[$name]:-}" ] || return 0
  [ -f "$root/images/$name/Dockerfile" ] || die "there is no images/$name/Dockerfile; images: $(cd "$root/images" && echo */Dockerfile | sed 's#/Dockerfile##g')."
  base=$(base_of "$name")
  if [ -x "$root/images/$name/context.sh" ]; then
    context=$("$root/images/$name/context.sh")
    context_key=${context##*/}
  fi
  [ ! -e "$root/images/$name/extras" ] || dependencies_key=$(requirements "$name" | hash_of images/install-dependencies.sh)
  mapfile -t files < <(sources "$name")
  packages=$(cat "$(of_form "$name" packages)" 2>/dev/null || true)
  key=$(echo "$base $dependencies_key $context_key $epoch${packages:+ $packages}" | hash_of "${files[@]}")
  reference[$name]=$registry/espalier/$name:$key
  if is_built "${reference[$name]}"; then return; fi
  step "image-$name" "building image $name" build_and_push "$name" "$base" "$context" "$dependencies_key" "$packages"
}

build_and_push() {
  local name=$1 base=$2 context=$3 dependencies_key=$4 packages=$5 image=${reference[$1]} tls=--tls-verify=true
  mkdir -p "$dependencies" "$uv_cache"
  [ -z "$dependencies_key" ] || stage_dependencies "$name"
  [ "$registry" != "$local_registry" ] || tls=--tls-verify=false
  buildah bud -q --layers --timestamp "$epoch" $tls --build-arg BASE="$base" --build-arg DEPENDENCIES="$dependencies_key" \
    ${packages:+--build-arg PACKAGES="$packages" --build-arg TORCHDYNAMO_DISABLE=0} \
    -v "$dependencies:/run/dependencies:ro" -v "$uv_cache:/run/uv-cache" -v /etc/ssl/certs:/etc/ssl/certs:ro \
    -f "$root/images/$name/Dockerfile" -t "$image" "$context"
  [ -z "$layouts" ] || return 0
  # buildah compresses whatever it sends to a registry; this costs the least of what it knows (gzip: three times as much).
  buildah push -q $tls --compression-format zstd --compression-level 1 "$image" "docker://$image"
}

# Drops our earlier images from the build host: the current ones, of which `all` knows each, are the cache of the next build.
prune() {
  local stale
  stale=$(buildah images --format '{{.Name}}:{{.Tag}}' | grep "^$registry/espalier/" | grep -vxF "$(cut -d= -f2 "$1")" || true)
  # shellcheck disable=SC2086  # a list of names
  [ -z "$stale" ] || buildah rmi $stale >/dev/null 2>&1 || true
}

case ${1:-} in
build | push | all)
  apt_ensure buildah curl
  builds_images
  "$root/dev/registry.sh" up {lock_fd}>&-
  # The gateway's page is a part of its package.
  "$root/dev/console.sh" {lock_fd}>&- >/dev/null
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
  prune "$cache/images.env"
  ;;
archive)
  [ $# -gt 2 ] || die "usage: dev/image.sh archive DIRECTORY NAME..."
  apt_ensure buildah
  builds_images
  "$root/dev/console.sh" {lock_fd}>&- >/dev/null
  # A manifest names its base: a name that is the same everywhere.
  layouts=$2 registry=localhost
  mkdir -p "$layouts"
  for name in "${@:3}"; do
    build "$name"
    rm -rf "${layouts:?}/$name"
    buildah push -q "${reference[$name]}" "oci:$layouts/$name:$name"
    echo "$name ${reference[$name]} $(sed -n 's/.*"digest":"\(sha256:[0-9a-f]*\)".*/\1/p' "$layouts/$name/index.json")"
  done
  ;;
*) die "usage: dev/image.sh build NAME... | all | archive DIRECTORY NAME..." ;;
esac
