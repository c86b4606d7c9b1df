#!/usr/bin/env bash
# Builds all that a release has into out/release ($OUT): images, the list of what each is made of (CycloneDX), the chart with
# the images' digests, the plugin of kubectl, the section of the changelog, and SHA256SUMS of them all.
#   dev/release.sh build VERSION   from the commit that is checked out; VERSION is pyproject.toml's
#   dev/release.sh check VERSION   twice, each with caches of its own, and says which files differ and in what
#   dev/release.sh push VERSION    copies the images that were built, and the chart, to ESPALIER_REGISTRY: the same bytes
# ESPALIER_REGISTRY  where the images will be: written into the chart (without it, the chart names digests alone)
# URL                where the plugin's archives will be (https://…): written into krew's manifest
# UNRELEASED=yes     takes the section "Unreleased (VERSION)" of the changelog, to try a release before it is one; `check` does
# IMAGES             the images to build; all that the chart names by default
# FORM=gpu           as in dev/image.sh
# Two builds of one commit give the same sums: everything is dated to the commit, sorted, and owned by nobody.
set -euo pipefail
. "$(dirname "$0")/common.sh"
umask 022
read -ra images <<<"${IMAGES:-operator trainer rollout runner}"
version=${2:-}
out=${OUT:-$root/out/release}
python=$root/.venv/bin/python

usage() { die "usage: dev/release.sh build VERSION | check VERSION | push VERSION"; }

# Everything that would make a release which is not what its commit says.
preflight() {
  local told chart
  told=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
  chart=$(sed -n 's/^\(version\|appVersion\): //p' "$root/charts/espalier/Chart.yaml" | sort -u)
  [ "$version" = "$told" ] || die "VERSION is '$version', and pyproject.toml says $told: give VERSION=$told, or change it there and in charts/espalier/Chart.yaml."
  [ "$version" = "$chart" ] || die "VERSION is '$version', and charts/espalier/Chart.yaml says ${chart//$'\n'/ and }: set version and appVersion there to it."
  [ -n "$(changelog)" ] || die "CHANGELOG.md has no section of $version: write '## $version' over what it changes, in place of 'Unreleased'."
  need_url "${URL:-}"
  [ -z "$(git -C "$root" status --porcelain)" ] ||
    die "the checkout has changes that no commit has: commit or stash them, 'git status' lists them."
  need_root "building images"
}

# The section of the changelog, without its title.
changelog() {
  awk -v version="$version" -v early="${UNRELEASED:-no}" \
    '/^## / { inside = $2 == version || (early == "yes" && $2 == "Unreleased" && $3 == "(" version ")"); next } inside' "$root/CHANGELOG.md"
}

# packed ARCHIVE DIRECTORY: a tar whose bytes follow from what the directory holds.
packed() { tar -C "$2" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu -cf "$1" .; }

# image NAME REFERENCE DIGEST: its archive, and what it is made of.
image() {
  local name=$1 reference=$2 digest=$3 container root_directory failed=
  packed "$out/espalier-$name-$version.oci.tar" "$work/images/$name"
  rm -rf "${work:?}/images/$name"
  container=$(buildah from --pull-never "$reference")
  root_directory=$(buildah mount "$container")
  (cd "$root" && "$python" -m dev.bom "$root_directory" --name "$name" --version "$version" --digest "$digest" \
    --made "$SOURCE_DATE_EPOCH" --output "$out/espalier-$name-$version.cdx.json") || failed=yes
  buildah rm "$container" >/dev/null
  [ -z "$failed" ] || die "image $name is not released: see above."
}

# The chart as it is, but for the images and their digests.
chart() {
  local digests
  mapfile -t digests < <(awk '{ print $1 "=" $3 }' "$work/built")
  "$python" "$root/dev/release_chart.py" "$version" "$SOURCE_DATE_EPOCH" "$out" "${digests[@]}" --registry "${ESPALIER_REGISTRY:-}"
}

build() {
  local name
  preflight
  SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct)
  export SOURCE_DATE_EPOCH
  work=$(mktemp -d "$cache/release.XXXXXX")
  # shellcheck disable=SC2064  # this build's directory
  trap "rm -rf '$work'" EXIT
  rm -rf "$out"
  mkdir -p "$out"
  "$root/dev/image.sh" archive "$work/images" "${images[@]}" >"$work/built"
  builds_images
  # shellcheck disable=SC2064  # this build's directory
  trap "rm -rf '$work'; remove_working" EXIT
  while read -r name reference digest; do image "$name" "$reference" "$digest" </dev/null; done <"$work/built"
  chart
  OUT=$work/krew "$root/dev/krew.sh" "$URL"
  mv "$work/krew/espalier.yaml" "$out/kubectl-espalier-krew.yaml"
  mv "$work"/krew/*.tar.gz "$out/"
  changelog >"$out/CHANGELOG-$version.md"
  (cd "$out" && sha256sum -- * >"$work/sums" && mv "$work/sums" SHA256SUMS)
  say "$out has $(wc -l <"$out/SHA256SUMS") files of $version: $(du -sh "$out" | cut -f1)"
}

# What differs between two directories of a release; of archives also which of their files.
differences() {
  local file
  for file in $(cd "$1" && ls); do
    cmp -s "$1/$file" "$2/$file" && continue
    echo "$file"
    { difference "$1/$file" "$2/$file" || true; } | sed 's/^/  /' # 1 is what `diff` ends with where it finds any
  done
}

difference() {
  case $1 in
  *.oci.tar) "$python" "$root/dev/layer_differences.py" "$1" "$2" ;;
  *.tgz | *.tar.gz) diff <(tar -tvzf "$1") <(tar -tvzf "$2") ;;
  *) diff "$1" "$2" | head -n 20 ;;
  esac
}

# Removes a cache, its images too.
discard() {
  umount "$1/containers/overlay" 2>/dev/null || true
  rm -rf "$1"
}

check() {
  local turn place
  export UNRELEASED=yes
  preflight
  mkdir -p "$cache/debs"
  for turn in 1 2; do
    place=$cache/release-check-$turn
    discard "$place"
    mkdir -p "$place"
    # Downloads are the same whoever keeps them; nothing that was built or compiled is.
    ln -s "$bin" "$place/bin"
    ln -s "$cache/debs" "$place/debs"
    OUT=$out-$turn ESPALIER_CACHE=$place UV_NO_CACHE=1 "$0" build "$version"
    discard "$place"
  done
  differences "$out-1" "$out-2" >"$out-differences.txt"
  [ ! -s "$out-differences.txt" ] || { cat "$out-differences.txt"; die "two builds of $version differ in the files above."; }
  say "two builds of $version have the same sums"
}

# The digest that the registry gives must be the one that the chart names.
push() {
  local name digest given told
  [ -n "${ESPALIER_REGISTRY:-}" ] || die "ESPALIER_REGISTRY is not set: name the registry to push to, and log in to it first."
  (cd "$out" && sha256sum --quiet -c SHA256SUMS) || die "$out is not what was built: run 'make release VERSION=$version' again."
  apt_ensure skopeo
  "$root/dev/tools.sh" helm
  for name in "${images[@]}"; do
    digest=$("$bin/helm" show values "$out/espalier-$version.tgz" | sed -n "/^imageDigests:/,/^[a-z]/s/^  $name: \"\(.*\)\"/\1/p")
    skopeo copy -q --preserve-digests --digestfile "$cache/pushed" "oci-archive:$out/espalier-$name-$version.oci.tar" \
      "docker://$ESPALIER_REGISTRY/espalier/$name:$version"
    given=$(cat "$cache/pushed")
    [ "$given" = "$digest" ] || die "the registry has $name as $given, and the chart names $digest."
    echo "$ESPALIER_REGISTRY/espalier/$name@$given"
  done
  told=$("$bin/helm" push "$out/espalier-$version.tgz" "oci://$ESPALIER_REGISTRY/espalier/charts" 2>&1) || die "the chart was not pushed: $told"
  sed -n "s#^Digest: #$ESPALIER_REGISTRY/espalier/charts/espalier@#p" <<<"$told"
}

case ${1:-} in
build | check | push)
  [ $# = 2 ] || usage
  "$1"
  ;;
*) usage ;;
esac
