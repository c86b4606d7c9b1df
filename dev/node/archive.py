"""Writes one docker-archive with the images that kubeadm and our own manifests expect on a node.

Each image is a static binary (for kube-proxy: on top of the iptables files) and nothing else.
Called by dev/node-image.sh: archive.py OUTPUT KUBERNETES_IMAGES..., with the paths of the binaries,
of kube-proxy's base layer and of busybox as JSON on standard input.
"""

import hashlib
import io
import json
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Image:
    """An image to write: `files` maps a path in the image to a file here."""

    name: str
    files: dict[str, Path]
    entrypoint: list[str]
    base: Path | None = None


def layer_of(files: dict[str, Path]) -> bytes:
    """Return an uncompressed tar layer, the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for target, source in sorted(files.items()):
            info = tarfile.TarInfo(target.lstrip("/"))
            info.size, info.mode = source.stat().st_size, 0o755
            with source.open("rb") as content:
                tar.addfile(info, content)
    return buffer.getvalue()


def images(names: list[str], bin_dir: Path, proxy_root: Path, busybox: Path) -> list[Image]:
    """Map each image that kubeadm wants to our binaries, and add those of our own manifests."""
    volume_tools = ("sh", "mkdir", "rm", "ls", "cat", "chmod")
    wanted = [
        Image(
            "docker.io/rancher/local-path-provisioner:espalier",
            {"/usr/bin/local-path-provisioner": bin_dir / "local-path-provisioner"},
            [],
        ),
        Image(
            "registry.k8s.io/networking/kube-network-policies:espalier",
            {"/usr/bin/kube-network-policies": bin_dir / "kube-network-policies"},
            [],
        ),
        Image(
            "docker.io/library/busybox:espalier",
            {"/bin/busybox": busybox} | {f"/bin/{tool}": busybox for tool in volume_tools},
            [],
        ),
    ]
    for name in names:
        short = name.rsplit("/", 1)[-1].split(":")[0]
        if short == "pause":
            wanted.append(
                Image(name, {"/bin/busybox": busybox}, ["/bin/busybox", "sleep", "infinity"])
            )
        elif short == "coredns":
            wanted.append(Image(name, {"/coredns": bin_dir / short}, ["/coredns"]))
        else:
            base = proxy_root if short == "kube-proxy" else None
            wanted.append(Image(name, {f"/usr/local/bin/{short}": bin_dir / short}, [], base))
    return wanted


def write(output: Path, wanted: list[Image]) -> None:
    """Write all images into one archive that `ctr images import` reads."""
    manifest = []
    with tarfile.open(output, "w") as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for image in wanted:
            layers = [image.base.read_bytes()] if image.base else []
            layers.append(layer_of(image.files))
            digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
            config = {
                "architecture": "amd64",
                "os": "linux",
                "created": EPOCH,
                "config": {
                    "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                    "Entrypoint": image.entrypoint or None,
                },
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{d}" for d in digests]},
                "history": [{"created": EPOCH} for _ in layers],
            }
            raw = json.dumps(config).encode()
            config_name = f"{hashlib.sha256(raw).hexdigest()}.json"
            add(config_name, raw)
            for digest, layer in zip(digests, layers, strict=True):
                add(f"{digest}/layer.tar", layer)
            manifest.append(
                {
                    "Config": config_name,
                    "RepoTags": [image.name],
                    "Layers": [f"{digest}/layer.tar" for digest in digests],
                }
            )
        add("manifest.json", json.dumps(manifest).encode())


if __name__ == "__main__":
    paths = {key: Path(value) for key, value in json.load(sys.stdin).items()}
    write(
        Path(sys.argv[1]),
        images(sys.argv[2:], paths["bin"], paths["proxy_root"], paths["busybox"]),
    )
