# shellcheck shell=bash
# Sourced: tools that a clean Debian lacks. Installs nothing that is there, and nothing without root.

# need COMMAND PACKAGE…: sees to it that COMMAND is there; a sentence on stderr and status 1 if it can't.
need() {
  local command=$1
  shift
  command -v "$command" >/dev/null && return
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "${0##*/}: needs $command; on Debian: apt-get install $*" >&2
    return 1
  fi
  echo "${0##*/}: installing $*" >&2
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "$@")
  # A fresh machine has no package lists, an old one has stale ones.
  "${install[@]}" </dev/null >/dev/null 2>&1 && return
  apt-get -qq update </dev/null >&2
  "${install[@]}" </dev/null >/dev/null
}
