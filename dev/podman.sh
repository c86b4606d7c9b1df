# Configures podman for nested nodes, in a file of our own and not in /etc. Sourced after common.sh.
# netavark: with CNI the nodes cannot resolve each other. runc: crun refuses hybrid cgroups.

export CONTAINERS_CONF=$cache/containers.conf KIND_EXPERIMENTAL_PROVIDER=podman KIND_EXPERIMENTAL_PODMAN_NETWORK=espalier

# CAP_SYS_RESOURCE is bit 24: without it the limits and OOM scores that podman asks for are refused.
has_sys_resource() { (((0x$(awk '/^CapEff/ {print $2}' /proc/self/status) >> 24) & 1)); }

write_containers_conf() {
  local runtime=/usr/sbin/runc
  has_sys_resource || runtime=$root/dev/node/runc-without-limits.sh
  cat >"$CONTAINERS_CONF.$$" <<CONF
[network]
network_backend = "netavark"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "espalier"
[engine.runtimes]
espalier = ["$runtime"]
CONF
  mv "$CONTAINERS_CONF.$$" "$CONTAINERS_CONF"
}
write_containers_conf
