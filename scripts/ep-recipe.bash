# shellcheck shell=bash
# What an execution point and the test images are made of. Sourced by scripts/ep, which says where they
# are kept and how they are entered; knows nothing of either. The cache key is a hash of this file, so a
# change here makes new ones. Every builder is called as `build_… DIRECTORY MIRROR`.

# Only Apptainer comes from the suite sid: that is where Debian has it.
SUITE=trixie
APPTAINER_SUITE=sid
PACKAGES=(
  apptainer condor rabbitmq-server python3 python3-venv busybox-static
  ca-certificates chromium hostname iproute2 mount nftables openssl procps squashfuse strace sudo tini
)
IMAGE_PACKAGES=(base-files bash coreutils dash libc-bin libc6 python3)
PEERS=('oms-mqclient[rabbitmq]==2.7.1' 'htcondor<25')
# The pilot that ours replaces; says of itself that it needs a Python older than the EP's, and works with it.
PYTHON_PILOT=(--ignore-requires-python 'ewms-pilot[rabbitmq]==1.0.5' 'oms-mqclient[rabbitmq]==2.7.1' 'htcondor<25')
ORDINARY_USER=physicist

build_root() {
  local root=$1 mirror=$2
  # sid's index may be older than it says it may be.
  # shellcheck disable=SC2016  # $1 is expanded by mmdebstrap's hook
  mmdebstrap --quiet --mode=root --variant=apt \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --setup-hook='mkdir -p "$1/etc/apt/preferences.d" && printf "%s\n" \
      "Package: *" "Pin: release n='"$APPTAINER_SUITE"'" "Pin-Priority: 50" "" \
      "Package: apptainer" "Pin: release n='"$APPTAINER_SUITE"'" "Pin-Priority: 600" \
      > "$1/etc/apt/preferences.d/apptainer"' \
    --include="$(IFS=,; echo "${PACKAGES[*]}")" \
    "$SUITE" "$root" "deb $mirror $SUITE main" "deb $mirror $APPTAINER_SUITE main"

  chroot "$root" useradd --create-home --shell /bin/bash "$ORDINARY_USER"
  echo "$ORDINARY_USER ALL=(ALL) NOPASSWD: ALL" >"$root/etc/sudoers.d/ep"

  # The real producers and consumers.
  install_python "$root" /opt/peers "${PEERS[@]}"
  mkdir "$root/opt/python-pilot"
  : >"$root/etc/resolv.conf"

  cat >"$root/etc/rabbitmq/rabbitmq-env.conf" <<<'NODENAME=rabbit@localhost'
  cat >"$root/etc/rabbitmq/rabbitmq.conf" <<<'listeners.tcp.local = 127.0.0.1:5672'
  # Open to all: only this machine's loopback reaches it.
  cat >"$root/etc/condor/config.d/ep" <<'END'
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
use ROLE : CentralManager, Submit, Execute
use FEATURE : PartitionableSlot
use SECURITY : USER_BASED
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_ADMINISTRATOR = *
ALLOW_ADVERTISE_STARTD = *
ALLOW_ADVERTISE_SCHEDD = *
ALLOW_ADVERTISE_MASTER = *
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
UPDATE_INTERVAL = 5
UID_DOMAIN = ep
FILESYSTEM_DOMAIN = ep
TRUST_UID_DOMAIN = True
SINGULARITY = /usr/bin/apptainer
SINGULARITY_BIND_EXPR = "/images"
END
  cat >"$root/usr/local/sbin/ep-start" <<'END'
#!/bin/bash
# usage: ep-start rabbitmq|condor   (as root; returns when the service answers)
set -euo pipefail
case ${1-} in
rabbitmq)
  rabbitmq-server -detached
  # The node's name is registered a moment after the server process appears.
  for _ in {1..60}; do
    rabbitmqctl --quiet --timeout 60 await_startup >/dev/null 2>&1 && exit 0
    sleep 0.5
  done
  ;;
condor)
  condor_master
  for _ in {1..120}; do
    [[ -n $(condor_status -af Name 2>/dev/null) ]] && exit 0
    sleep 0.5
  done
  ;;
*) sed -n 2p "$0" >&2 && exit 2 ;;
esac
echo "ep-start: $1 did not come up" >&2
exit 1
END
  chmod 755 "$root/usr/local/sbin/ep-start"
  rm -rf --one-file-system "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists
}

# install_python ROOT VENV REQUIREMENT…: PyPI is reached as the machine's own pip reaches it. Leaves what it
# mounts to the caller's mount namespace, and the root without a resolver.
install_python() {
  local root=$1 venv=$2 bundle=/etc/ssl/certs/ca-certificates.crt file settings
  shift 2
  for file in /etc/resolv.conf /etc/pip.conf "$bundle"; do
    if [[ -s $file ]]; then
      touch "$root$file"
      mount --bind "$(realpath "$file")" "$root$file"
    fi
  done
  mapfile -t settings < <(env | grep -iE '^(PIP_(INDEX|EXTRA|TRUSTED|TIMEOUT|DEFAULT)|[a-z]+_PROXY=)' || true)
  # shellcheck disable=SC2016  # expanded in the root
  env -i PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 "${settings[@]}" PIP_CERT="$bundle" \
    chroot "$root" sh -euc '
      venv=$1
      shift
      python3 -m venv "$venv"
      "$venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --retries 5 "$@"
    ' pip "$venv" "$@"
  for file in /etc/resolv.conf /etc/pip.conf "$bundle"; do
    if mountpoint -q "$root$file"; then umount "$root$file"; fi
  done
}

# Only for measuring against it, so that other runs do not wait for it. Mounted where it will be used, because a
# virtual environment knows its own path.
build_python_pilot() {
  local out=$1 root=$2
  mount --bind "$out" "$root/opt/python-pilot"
  install_python "$root" /opt/python-pilot "${PYTHON_PILOT[@]}"
}

# As images converted from Docker have it: the arguments are the command.
write_runscript() {
  mkdir -p "$1/.singularity.d"
  printf '#!/bin/sh\nexec "$@"\n' >"$1/.singularity.d/runscript"
  chmod 755 "$1/.singularity.d/runscript"
}

# Packages are only unpacked, from a tar so that every file belongs to whoever builds it: what a slim
# image looks like.
build_python_image() {
  local image=$1 mirror=$2 mode=root
  mkdir -p "$image"
  [[ $(id -u) == 0 ]] || mode=unshare
  mmdebstrap --quiet --mode=$mode --variant=extract --aptopt='Acquire::Retries "3"' \
    --include="$(IFS=,; echo "${IMAGE_PACKAGES[*]}")" --format=tar \
    "$SUITE" - "deb $mirror $SUITE main" |
    tar -x -C "$image" --no-same-owner --exclude='./dev/*' --exclude='./usr/share/doc/*' \
      --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./var/lib/apt/*'
  echo 'root:x:0:0:root:/root:/bin/sh' >"$image/etc/passwd"
  echo 'root:x:0:' >"$image/etc/group"
  write_runscript "$image"
}

# Runs in the EP as the ordinary user, because only Apptainer writes images as Apptainer's are.
build_busybox_images() {
  local out=$1 tree applet
  tree=$(mktemp -d)
  mkdir -p "$tree"/{bin,dev,etc,home,proc,root,sys,tmp,usr,var/tmp}
  cp /bin/busybox "$tree/bin/"
  for applet in $(/bin/busybox --list); do
    [[ $applet == busybox ]] || ln -s busybox "$tree/bin/$applet"
  done
  ln -s ../bin "$tree/usr/bin"
  echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
  echo 'root:x:0:' >"$tree/etc/group"
  write_runscript "$tree"
  apptainer --quiet build --fix-perms --sandbox "$out/busybox" "$tree"
  apptainer --quiet build "$out/busybox.sif" "$tree"
}

