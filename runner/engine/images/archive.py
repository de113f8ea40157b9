"""Images as bytes: an OCI layout and a docker archive in one stream.

The stream holds `oci-layout`, `index.json` and `blobs/sha256/…`, and beside them
a `manifest.json` whose Config and Layers point into the blobs: engines from
20.10 on read the one or the other through `docker load`. Ids are known before
loading: the image id is the hash of the config (classic stores) or of the
manifest (containerd stores). Images in one stream share their layers.

Decision: written here, not by umoci and skopeo. Those two are root's and
Debian's to install, and give no more than the page below; `docker build` and
`docker import` stamp the hour into the id. Reopen if a layer has to be compressed
or pushed, which `docker push` does today.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from runner.engine.images.layer import Layer
from runner.model.canonical import canonical, sha256

CHUNK = 1 << 20
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Image:
    """An image that is written but not loaded.

    Attributes:
        id: Digest of the config, the image id on classic stores.
        manifest_digest: Digest of the manifest, the image id on containerd stores.
        tag: A name that holds its own id, so that it never floats.
    """

    kind: str
    architecture: str
    layers: tuple[Layer, ...]
    config: bytes
    manifest: bytes

    @property
    def id(self) -> str:
        return sha256(self.config)

    @property
    def manifest_digest(self) -> str:
        return sha256(self.manifest)

    @property
    def tag(self) -> str:
        return f"rolebox/{self.kind}:{self.id.removeprefix('sha256:')[:12]}"


def make_image(
    kind: str,
    layers: Sequence[tuple[Layer, str]],
    *,
    platform: str,
    created: int,
    user: str,
    workdir: str,
    labels: Mapping[str, str],
) -> Image:
    """Describe an image of layers, each with a line of history; no entry point, no command."""
    architecture = platform.removeprefix("linux/")
    date = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = canonical(
        {
            "architecture": architecture,
            "config": {
                "Env": [f"PATH={PATH}", "LANG=C.UTF-8"],
                "Labels": dict(labels),
                "User": user,
                "WorkingDir": workdir,
            },
            "created": date,
            "history": [{"created": date, "created_by": told} for _, told in layers],
            "os": "linux",
            "rootfs": {"diff_ids": [layer.diff_id for layer, _ in layers], "type": "layers"},
        }
    )
    manifest = canonical(
        {
            "config": {"digest": sha256(config), "mediaType": _CONFIG, "size": len(config)},
            "layers": [
                {"digest": layer.diff_id, "mediaType": _LAYER, "size": layer.size}
                for layer, _ in layers
            ],
            "mediaType": _MANIFEST,
            "schemaVersion": 2,
        }
    )
    return Image(kind, architecture, tuple(layer for layer, _ in layers), config, manifest)


def archive(images: Sequence[Image]) -> Iterator[bytes]:
    """Yield the stream for `docker load`; each blob once, layers read in chunks."""
    yield from _folder("blobs/")
    yield from _folder("blobs/sha256/")
    sent: set[str] = set()
    for image in images:
        for layer in image.layers:
            if layer.diff_id not in sent:
                sent.add(layer.diff_id)
                yield from _layer_blob(layer)
        for blob in (image.config, image.manifest):
            if sha256(blob) not in sent:
                sent.add(sha256(blob))
                yield from _file(_blob(sha256(blob)), blob)
    yield from _file("index.json", canonical(_index(images)))
    yield from _file("manifest.json", json.dumps(_docker_manifest(images)).encode())
    yield from _file("oci-layout", canonical({"imageLayoutVersion": "1.0.0"}))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _index(images: Iterable[Image]) -> dict[str, object]:
    return {
        "manifests": [
            {
                "annotations": {
                    "io.containerd.image.name": f"docker.io/{image.tag}",
                    "org.opencontainers.image.ref.name": image.tag.rsplit(":", 1)[1],
                },
                "digest": image.manifest_digest,
                "mediaType": _MANIFEST,
                "platform": {"architecture": image.architecture, "os": "linux"},
                "size": len(image.manifest),
            }
            for image in images
        ],
        "mediaType": _INDEX,
        "schemaVersion": 2,
    }


def _docker_manifest(images: Iterable[Image]) -> list[dict[str, object]]:
    return [
        {
            "Config": _blob(image.id),
            "Layers": [_blob(layer.diff_id) for layer in image.layers],
            "RepoTags": [image.tag],
        }
        for image in images
    ]


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return member.tobuf(tarfile.GNU_FORMAT)


def _folder(name: str) -> Iterator[bytes]:
    yield _header(name, 0, tarfile.DIRTYPE)


def _file(name: str, content: bytes) -> Iterator[bytes]:
    yield _header(name, len(content))
    yield content + _padding(len(content))


def _layer_blob(layer: Layer) -> Iterator[bytes]:
    yield _header(_blob(layer.diff_id), layer.size)
    with layer.path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk
    yield _padding(layer.size)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
