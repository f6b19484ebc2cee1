#!/bin/bash
# usage: oci_image.bash DIRECTORY PILOT   (as root, in the execution point)
#
# Builds condor/Dockerfile without a daemon, on a base that is made on the spot, for a mirror can't be reached from
# here: DIRECTORY/rootfs is the image's file system, DIRECTORY/unpacked the copy of it that CVMFS has, and
# DIRECTORY/entrypoint what it starts.
set -euo pipefail

directory=$1 pilot=$2 support=$(dirname "$(realpath "$0")")
builder=/opt/oci-builder
work=$(mktemp -d "$directory/building-XXXXXX")
chmod 755 "$work"

# The builder's libraries, where all processes that it starts find them.
ln -sf "$builder"/usr/lib/x86_64-linux-gnu/*.so* /usr/lib/x86_64-linux-gnu/
# No container gets a network here, but the builder wants a program that would make one. Root may not raise limits.
mkdir "$work/helpers"
ln -s /bin/true "$work/helpers/netavark"
cat >"$work/containers.conf" <<CONF
[engine]
helper_binaries_dir = ["$work/helpers"]
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
CONF
export CONTAINERS_CONF=$work/containers.conf CONTAINERS_REGISTRIES_CONF=$builder/etc/containers/registries.conf HOME=$work
buildah() {
  local verb=$1
  shift
  "$builder/usr/bin/buildah" --root "$work/storage" --runroot "$work/run" --storage-driver vfs \
    "$verb" "$@"
}
policy=(--signature-policy "$builder/etc/containers/policy.json")

# A base with Apptainer, a shell and what Apptainer needs.
owner=$(stat -c %U "$directory")
install -d -o "$owner" "$work/base"
sudo -u "$owner" env HOME="$work/base" "$support/condor_image.bash" "$work/base" "$pilot"
rm -rf "$work/base/pilot/.singularity.d"
container=$(buildah from "${policy[@]}" scratch)
buildah copy --quiet "$container" "$work/base/pilot" / >&2
buildah commit --quiet "${policy[@]}" "$container" localhost/base >&2

# As a release archive unpacks.
mkdir -p "$work/release/condor"
cp "$support"/../../condor/* "$work/release/condor/"
cp "$pilot" "$work/release/ewms-pilot"
buildah build --quiet "${policy[@]}" --isolation chroot --layers=false --pull=never --build-arg base=localhost/base \
  --file "$work/release/condor/Dockerfile" --tag localhost/ewms-pilot "$work/release" >&2
buildah push --quiet "${policy[@]}" localhost/ewms-pilot "oci:$work/image" >&2

container=$(buildah from "${policy[@]}" --pull=never localhost/ewms-pilot)
# shellcheck disable=SC2016  # the builder's own placeholder
buildah inspect --format '{{range .OCIv1.Config.Entrypoint}}{{println .}}{{end}}' "$container" >"$directory/entrypoint"
cp -a "$(buildah mount "$container")" "$directory/rootfs"
chmod -R a+rX "$work/image"
sudo -u "$owner" env HOME="$work/base" apptainer --quiet build --sandbox "$directory/unpacked" "oci:$work/image" >&2
rm -rf "$work"
