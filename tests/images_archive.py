"""Makes what `docker save` makes: DIRECTORY as the only layer of an image, in the file ARCHIVE."""

import hashlib
import io
import json
import sys
import tarfile

directory, archive = sys.argv[1:]
layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w") as tar:
    # Apptainer's own files, and the links to them, are not for others to bring along.
    def foreign(entry):
        return None if ".singularity.d" in entry.name + entry.linkname else entry

    tar.add(directory, arcname=".", filter=foreign)
layer = layer.getvalue()
digest = hashlib.sha256(layer).hexdigest()
config = json.dumps({
    "architecture": "amd64",
    "os": "linux",
    "config": {},
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
}).encode()
name = hashlib.sha256(config).hexdigest()
manifest = json.dumps([{
    "Config": f"{name}.json",
    "RepoTags": ["image:latest"],
    "Layers": [f"{digest}/layer.tar"],
}]).encode()
with tarfile.open(archive, "w") as tar:
    for path, content in {f"{name}.json": config, f"{digest}/layer.tar": layer, "manifest.json": manifest}.items():
        entry = tarfile.TarInfo(path)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
