# Chooses the container engine for the nodes: Docker with kind's stock image where both can be had,
# else podman with our own node image. Sourced after common.sh. Sets `engine` and defines node_image.

engine=podman
docker info >/dev/null 2>&1 && engine=docker
engine=${ESPALIER_ENGINE:-$engine}
network=espalier
# shellcheck disable=SC2034  # read by the scripts that source this file
registry_container=espalier-registry

case $engine in
docker)
  export KIND_EXPERIMENTAL_PROVIDER=docker KIND_EXPERIMENTAL_DOCKER_NETWORK=$network
  stock_image=$(kubernetes_version)
  stock_image=kindest/node:${stock_image%.*}.0
  if ! docker image inspect "$stock_image" >/dev/null 2>&1 && ! docker pull -q "$stock_image" >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || die "Docker runs but cannot pull $stock_image: load that image, or run this as root to build a node image for podman."
    engine=podman
  fi
  ;;
podman) ;;
*) die "ESPALIER_ENGINE is '$engine': it must be docker or podman." ;;
esac
# shellcheck source=dev/podman.sh
if [ "$engine" = podman ]; then . "$root/dev/podman.sh"; fi

node_image() { if [ "$engine" = docker ]; then echo "$stock_image"; else "$root/dev/node-image.sh" node; fi; }
# An image with the registry in it: Debian's is in the base of our node image, long before that has its binaries.
registry_image() { if [ "$engine" = docker ]; then echo registry:2; else "$root/dev/node-image.sh" base; fi; }

ensure_network() { "$engine" network inspect "$network" >/dev/null 2>&1 || "$engine" network create "$network" >/dev/null; }
running() { [ "$("$engine" inspect -f '{{.State.Running}}' "$1" 2>/dev/null)" = true ]; }
