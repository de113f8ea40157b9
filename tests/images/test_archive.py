from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from runner.engine.images.archive import Image, archive, make_image
from runner.engine.images.layer import Entry, Layer, write_layer
from runner.model.canonical import sha256


def image(kind: str, *layers: Layer) -> Image:
    return make_image(
        kind,
        [(layer, "a step") for layer in layers],
        platform="linux/amd64",
        created=1_700_000_000,
        user="1:1",
        workdir="/work",
        labels={"rolebox.image": kind},
    )


def blobs(images: list[Image]) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(archive(images)))) as tar:
        names = [info.name for info in tar if info.isreg()]
        assert len(names) == len(set(names)), "a blob is sent once"
        return {name: stream.read() for name in names if (stream := tar.extractfile(name))}


def test_one_stream_is_both_an_oci_layout_and_a_docker_archive(tmp_path: Path) -> None:
    shared = write_layer(tmp_path / "a", [Entry("a", b"1" * 1000)], mtime=0)
    own = write_layer(tmp_path / "b", [Entry("b", b"2")], mtime=0)
    images = [image("base", shared), image("agent", shared, own)]
    files = blobs(images)
    for name, data in files.items():
        if name.startswith("blobs/"):
            assert sha256(data) == name.removeprefix("blobs/").replace("/", ":")
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}

    def blob(digest: str) -> Any:
        return json.loads(files["blobs/" + digest.replace(":", "/")])

    index = json.loads(files["index.json"])["manifests"]
    assert [entry["digest"] for entry in index] == [one.manifest_digest for one in images]
    docker = json.loads(files["manifest.json"])
    for one, entry, listed in zip(images, docker, index, strict=True):
        assert sha256(files[entry["Config"]]) == one.id
        diff_ids = json.loads(files[entry["Config"]])["rootfs"]["diff_ids"]
        assert [sha256(files[layer]) for layer in entry["Layers"]] == diff_ids
        manifest = blob(listed["digest"])
        assert manifest["config"]["digest"] == one.id
        assert [layer["digest"] for layer in manifest["layers"]] == diff_ids
        assert entry["RepoTags"] == [one.tag]
        assert one.id.removeprefix("sha256:").startswith(one.tag.split(":")[1])


def test_no_image_has_an_entry_point_and_the_time_is_the_given_one(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "a", [Entry("a", b"")], mtime=0)
    config = json.loads(image("agent", layer).config)
    assert config["created"] == "2023-11-14T22:13:20Z"
    assert not {"Entrypoint", "Cmd"} & config["config"].keys()
    assert config["config"]["User"] == "1:1"


def test_the_same_layers_give_the_same_ids_and_a_label_changes_them(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "a", [Entry("a", b"")], mtime=0)
    assert image("agent", layer) == image("agent", layer)
    assert image("agent", layer).id != image("base", layer).id
