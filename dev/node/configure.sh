#!/bin/sh
# Runs inside the node image's build, after the files of kind's base image are in place: what kind's own Dockerfile
# does, with Debian's containerd, runc and CNI plugins instead of kind's builds of them.
set -eu
chmod 0755 /kind/bin/*.sh /usr/local/bin/entrypoint
mkdir -p /etc/kubernetes/manifests /opt/cni /kind/manifests /etc/cni/net.d

# systemd in a container: no default wants, no kernel log, no global binfmt registration.
find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete
rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
  /lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/basic.target.wants/* \
  /lib/systemd/system/sockets.target.wants/*udev* /lib/systemd/system/sockets.target.wants/*initctl*
echo "ReadKMsg=no" >>/etc/systemd/journald.conf
ln -sf "$(command -v systemd || echo /lib/systemd/systemd)" /sbin/init
systemctl enable kubelet.service containerd.service undo-mount-hacks.service load-images.service
systemctl mask systemd-binfmt.service

# Debian's paths, where kind's files look for them.
ln -sf /usr/bin/containerd /usr/bin/ctr /usr/local/bin/
ln -sf /usr/sbin/runc /usr/local/sbin/runc
ln -sfn /usr/lib/cni /opt/cni/bin

# Limits above the host's and a negative OOM score need CAP_SYS_RESOURCE, which a nested node may lack.
sed -i -e '/^LimitNPROC=/d' -e '/^LimitCORE=/d' -e '/^LimitNOFILE=/d' -e '/^OOMScoreAdjust=/d' /etc/systemd/system/containerd.service
sed -i -e 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' \
  -e 's/tolerate_missing_hugepages_controller/tolerate_missing_hugetlb_controller/' \
  -e "s|^  sandbox_image = .*|  sandbox_image = \"$(cat /kind/pause)\"|" /etc/containerd/config.toml

ctr oci spec |
  jq '.hooks.createContainer[.hooks.createContainer | length] |= . + {"path": "/kind/bin/mount-product-files.sh"} | del(.process.rlimits)' \
    >/etc/containerd/cri-base.json

rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc/* /usr/share/man/*
