#!/bin/bash
# usage: privileged.bash ROOTFS JOB PROGRAM [ARG]…   (as root, in the execution point)
#
# Runs PROGRAM in a file system of its own as `docker run --privileged` does: as root, with what capabilities this
# root has, with its own processes, and with the directory JOB at the same path, where it starts. /images and
# /cvmfs are bound, too.
set -euo pipefail

# shellcheck disable=SC2016  # expanded by the inner shell
exec unshare --mount --pid --ipc --uts --fork --kill-child bash -euc '
  root=$1 job=$2
  shift 2
  mount --make-rprivate /
  mount --bind "$root" "$root"
  mkdir -p "$root"/{proc,sys,dev,tmp,images,cvmfs,.old,.ep,"$job"}
  cp /bin/busybox "$root/.ep/busybox"
  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  mount --rbind /dev "$root/dev"
  for file in /etc/hosts /etc/resolv.conf; do
    : >>"$root$file"
    mount --bind "$file" "$root$file"
  done
  for place in /images /cvmfs "$job"; do mount --rbind "$place" "$root$place"; done
  cd "$root"
  pivot_root . .old
  /.ep/busybox umount -l /.old
  /.ep/busybox rm -r /.old /.ep
  cd "$job"
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
  export PATH HOME
  exec "$@"
' privileged "$@"
