# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash disable=SC2016,SC2154

# devel/check --release=NAME: the tests on another release of Debian; a bash
# file to be sourced after lib.sh.
#
#   lock_release NAME       waits for another command that is at the same tree
#   has_release NAME        whether its tree is there and complete
#   make_release NAME PACKAGE...
#                           makes its tree, with what build needs as well
#   describe_release NAME   one line: what there is in it
#   run_in_release NAME COMMAND...
#                           runs a command there, in the source directory
#
# Everything runs in namespaces of its own, which end with this command,
# however it ends: no mount or process is left.

release_tree() {
  printf '%s\n' "$cache/releases/$1"
}

lock_release() {
  local lock
  mkdir -p "$cache/releases"
  exec {lock}>"$(release_tree "$1").lock"
  if ! flock --nonblock "$lock"; then
    say "waiting for another check on $1"
    flock "$lock"
  fi
}

# The packages that a tree was made with.
release_key() {
  { echo "$*" && declare -f need_to_build; } | sha256sum
}

has_release() {
  local stamp
  stamp=$(release_tree "$1")/complete
  shift
  [[ -f $stamp && $(<"$stamp") == "$(release_key "$@")" ]]
}

# Debian's mirror as this machine's apt knows it; nothing without one.
find_mirror() {
  local mirrors
  mapfile -t mirrors < <(
    apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" \
      "Origin: Debian" "Label: Debian" "Component: main"
  )
  printf '%s\n' "${mirrors[0]-}"
}

make_release() {
  local name=$1 tree mirror
  shift
  umask 022
  tree=$(release_tree "$name")
  mirror=$(find_mirror)
  if [[ -z $mirror ]]; then
    quietly apt-get apt-get -q update || true
    mirror=$(find_mirror)
  fi
  if [[ -z $mirror ]]; then
    say "this machine's apt has no mirror of Debian to take $name from"
    return 1
  fi
  # What is left of an earlier attempt, or made with other packages.
  rm -rf --one-file-system "$tree"
  if ! quietly debootstrap in_namespaces \
    debootstrap --variant=minbase "$name" "$tree" "$mirror"; then
    say "debootstrap could not make the tree (its words are above; is the" \
      "network there, and $name still on the mirror?)"
    return 1
  fi
  mkdir "$tree/src"
  mkdir -p "$builddir/release/$name"
  # Packages must start nothing, and the tree can be made again at any time.
  printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
  chmod +x "$tree/usr/sbin/policy-rc.d"
  echo force-unsafe-io >"$tree/etc/dpkg/dpkg.cfg.d/unsafe-io"
  # A release that is no longer looked after is not signed again.
  echo 'Acquire::Check-Valid-Until "false";' \
    >"$tree/etc/apt/apt.conf.d/check-valid-until"
  in_namespaces in_tree "$name" rw bash -c \
    'source devel/lib.sh; need_to_build "$@"; apt-get clean' \
    devel/check "$@" || return
  release_key "$@" >"$tree/complete"
}

describe_release() {
  local versions
  versions=$(dpkg-query --admindir="$(release_tree "$1")/var/lib/dpkg" \
    -W -f '${Package} ${Version}, ' ganeti python3 qemu-system-x86)
  say "$1: ${versions%, }"
}

run_in_release() {
  local name=$1
  shift
  rm -rf "$builddir/release/$name"
  mkdir -p "$builddir/release/$name"
  in_namespaces in_tree "$name" ro "$@"
}

# Runs a program or a function of this file.
in_namespaces() {
  setpriv --pdeathsig KILL \
    unshare --mount --pid --fork --kill-child --mount-proc "$BASH" -c '
      source "$0/devel/lib.sh"
      source "$0/devel/release.sh"
      "$@"
    ' "$top" "$@" </dev/null
}

# in_tree NAME rw|ro COMMAND...: only for in_namespaces, as it mounts.
in_tree() {
  local name=$1 access=$2 tree environment variable
  shift 2
  tree=$(release_tree "$name")
  mount --bind -o "$access" "$tree" "$tree"
  mount -t proc proc "$tree/proc"
  mount -t tmpfs -o mode=1777 tmpfs "$tree/tmp"
  mount -t tmpfs -o mode=0755 tmpfs "$tree/run"
  mount_devices "$tree/dev"
  mount --bind -o ro "$top" "$tree/src"
  mount --bind "$builddir/release/$name" "$tree/src/build"
  # The guest is the same everywhere.
  if [[ -d $cache/linux-guest ]]; then
    mkdir -p "$tree/run/cache/ganeti-kvmd/linux-guest"
    mount --bind -o ro "$cache/linux-guest" \
      "$tree/run/cache/ganeti-kvmd/linux-guest"
  fi
  environment=(
    HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin XDG_CACHE_HOME=/run/cache
  )
  for variable in http_proxy https_proxy no_proxy CHECK_TESTS; do
    if [[ -v $variable ]]; then
      environment+=("$variable=${!variable}")
    fi
  done
  # In a chroot there are no user namespaces, which some tests need.
  cd "$tree" || return
  pivot_root . .
  umount --lazy .
  cd /
  # This shell stays: as the first process it reaps those that lost theirs.
  env -i "${environment[@]}" /bin/bash -c 'cd /src; exec "$@"' bash "$@"
}

mount_devices() {
  local name
  mount -t tmpfs -o mode=0755 tmpfs "$1"
  for name in null zero full random urandom tty; do
    touch "$1/$name"
    mount --bind "/dev/$name" "$1/$name"
  done
  mkdir "$1/pts" "$1/shm"
  mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$1/pts"
  mount -t tmpfs -o mode=1777 tmpfs "$1/shm"
  ln -s pts/ptmx "$1/ptmx"
  ln -s /proc/self/fd "$1/fd"
  ln -s /proc/self/fd/0 "$1/stdin"
  ln -s /proc/self/fd/1 "$1/stdout"
  ln -s /proc/self/fd/2 "$1/stderr"
}
