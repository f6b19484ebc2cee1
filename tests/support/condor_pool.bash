#!/bin/bash
# usage: condor_pool.bash   (as root, in the execution point; returns when both machines answer)
#
# A pool of two machines: this one, and `second`, which has a name, a file system and daemons of its own
# and lacks the images. Its CVMFS is the directory /srv/cvmfs, which tests fill. Nothing is done if it runs
# already.
set -euo pipefail

both_answer() { [[ $(condor_status -af Machine -constraint SlotTypeID==1 2>/dev/null | sort | xargs) == 'localhost second' ]]; }

if ! pgrep -x condor_master >/dev/null; then
  cat >/etc/condor/config.d/tests <<'END'
# Room for many pilots that mostly sleep.
NUM_CPUS = 32
MEMORY = 65536
RUNBENCHMARKS = False
# HTCondor finds this out with a SIF file that Debian's package lacks.
HasSIF = True
STARTD_ATTRS = $(STARTD_ATTRS) HasSIF
# Without cgroups memory is a matter of policy, as on many sites; looked at more often than there.
use POLICY : Hold_If_Memory_Exceeded
POLLING_INTERVAL = 1
STARTER_UPDATE_INTERVAL = 2
STARTER_INITIAL_UPDATE_INTERVAL = 1
# Python packages of another version than the schedd's can't use the file system to say who they are.
SEC_WRITE_AUTHENTICATION_METHODS = FS, CLAIMTOBE
# Three GPUs, without a driver.
use FEATURE : GPUs
GPU_DISCOVERY_EXTRA = -simulate:0,3 -extra
# The central file systems of container images and software: in every container, as on the grid.
SINGULARITY_BIND_EXPR = "/images /cvmfs"
END
  ep-start condor
  install -d -o "${SUDO_UID:-0}" /srv/cvmfs
  # Daemons that had no session in common with the first machine's: as strangers they are let in.
  # shellcheck disable=SC2016  # expanded by the inner shell
  unshare --mount --uts bash -euc '
    echo second >/proc/sys/kernel/hostname
    mount --make-rprivate /
    for place in /images /run/condor /run/lock /var/log/condor /var/lib/condor; do
      mount -t tmpfs -o mode=755 second "$place"
    done
    mount --bind /srv/cvmfs /cvmfs
    mkdir -p /run/lock/condor /var/lib/condor/execute
    chown condor: /run/condor /run/lock/condor /var/log/condor /var/lib/condor /var/lib/condor/execute
    printf "127.0.0.1 second localhost\n" >/run/hosts
    mount --bind /run/hosts /etc/hosts
    export _CONDOR_DAEMON_LIST=MASTER,STARTD _CONDOR_USE_SHARED_PORT=False _CONDOR_SEC_USE_FAMILY_SESSION=False
    condor_master
  ' </dev/null
fi

for _ in {1..120}; do
  if both_answer; then exit 0; fi
  sleep 0.25
done
condor_status >&2
echo "condor_pool.bash: the pool did not come up" >&2
exit 1
