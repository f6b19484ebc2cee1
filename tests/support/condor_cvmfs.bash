#!/bin/bash
# usage: condor_cvmfs.bash CVMFS PILOT_IMAGE   (as the ordinary user, in the execution point)
#
# Fills a directory as OSG fills CVMFS: the image of the pilot, which has no Apptainer, an image for tasks, and
# OSG's Apptainer, played by a copy of this machine's. PILOT_IMAGE is the directory of condor_image.bash.
set -euo pipefail

cvmfs=$1 pilot=$2
umask 022
mkdir -p "$cvmfs"/{pilots.org,tasks.org}/new
tar -C "$pilot" -c --exclude=./usr/bin/apptainer --exclude=./usr/lib/x86_64-linux-gnu/apptainer --exclude=./etc/apptainer . |
  tar -C "$cvmfs/pilots.org/new" -x
cp -R /images/busybox/. "$cvmfs/tasks.org/new"

# It has its files beside it, as an installation that needs no root has them.
installed=$cvmfs/oasis.opensciencegrid.org/mis/apptainer/1.4
mkdir -p "$installed"/{bin,etc,lib/x86_64-linux-gnu,var/lib/apptainer/mnt/session}
cp /usr/bin/apptainer "$installed/bin/"
cp -R /usr/lib/x86_64-linux-gnu/apptainer "$installed/lib/x86_64-linux-gnu/"
dpkg -L apptainer | while read -r file; do
  if [[ -f $file && -r $file && $file == /etc/* ]]; then
    mkdir -p "$installed${file%/*}"
    cp "$file" "$installed$file"
  fi
done
# Debian's starter lies a directory deeper than Apptainer's own, and looks for these a directory deeper, too.
ln -s ../etc ../var "$installed/lib/"
ln -s 1.4 "$installed/../current"
for image in pilots.org/pilot tasks.org/busybox; do
  mv -T "$cvmfs/${image%/*}/new" "$cvmfs/$image"
done
