#!/bin/bash
# usage: condor_image.bash DIRECTORY PILOT   (as the ordinary user, in the execution point)
#
# The pilot's image as HTCondor takes it, as a directory and as a file: DIRECTORY/pilot and
# DIRECTORY/ewms-pilot.sif. Like what ewms-pilot.def makes, of this machine's own files instead of a
# mirror's packages, which can't be reached from here; the binary comes with the job.
set -euo pipefail

tree=$(mktemp -d "$1/making-XXXXXX")
mkdir -p "$tree"/{dev,etc,home,proc,root,run,sys,tmp,usr/bin,usr/lib,usr/lib64,usr/sbin,var/tmp,var/lib/apptainer/mnt/session,cvmfs,images}
for link in bin lib lib64 sbin; do ln -s "usr/$link" "$tree/$link"; done

programs=(/usr/bin/{bash,cat,chmod,env,mkdir,sleep,apptainer} /usr/lib/x86_64-linux-gnu/apptainer/bin/starter)
ln -s bash "$tree/usr/bin/sh"
# ldconfig and what it reads: with it Apptainer searches for the libraries of GPUs.
files=(/etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache /usr/sbin/ldconfig "${programs[@]}")
# The pilot that is tested needs more libraries than the one that is released.
for program in "${programs[@]}" "$2"; do
  mapfile -t -O "${#files[@]}" files < <(ldd "$program" | grep -oE '/[^ ]+\.so[^ ]*' | xargs realpath -s)
done
mapfile -t -O "${#files[@]}" files < <(dpkg -L apptainer | while read -r file; do
  if [[ -f $file && -r $file && $file != /usr/share/* ]]; then echo "$file"; fi
done)
for file in "${files[@]}"; do
  # /lib is /usr/lib, on both sides.
  target=$tree$(realpath "${file%/*}")
  mkdir -p "$target"
  cp -uL "$file" "$target/"
done

# HTCondor takes for an image what Apptainer has built: the directory shows it by this.
cp -R /images/busybox/.singularity.d "$tree/"
chmod 755 "$tree"
mv -T "$tree" "$1/pilot"
apptainer --quiet build --mksquashfs-args '-noI -noD -noF -noX' "$1/ewms-pilot.sif" "$1/pilot"
