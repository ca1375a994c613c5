# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash disable=SC2034

# What the developer's commands share; a bash file to be sourced.
#
#   $top $builddir   the source tree and its build directory, absolute
#   $python          the interpreter that the build uses: the one that Ganeti's
#                    own scripts name, the distribution's until one is found
#   $cache           what may be kept for the next time, also by another clone
#   say, fail        one line; fail also ends the command with status 1
#   need_root        fails unless run by root
#   need_packages    installs the Debian packages that are missing
#   need_to_build    the same, with the packages that build needs
#   quietly          runs a command; its output is shown only when it fails
#   python_tools     installs packages for Python, and leaves their $tools
#   build            autogen, configure and make in $builddir, as far as needed

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
builddir=$top/build
cache=${XDG_CACHE_HOME:-${HOME:-$top}/.cache}/ganeti-kvmd
logdir=$builddir/log
this_command=devel/$(basename "$0")

# A root shell opened with a plain su has no sbin directories.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export LC_ALL=C.UTF-8

say() {
  printf '%s: %s\n' "${this_command#devel/}" "$*"
}

fail() {
  say "$@" >&2
  exit 1
}

need_root() {
  ((EUID == 0)) ||
    fail "must be run by root: try 'sudo $this_command'"
}

# The value of a variable in the configured Makefile; nothing without one.
configured() {
  if [[ -f $builddir/Makefile ]]; then
    sed -n "s/^$1 = //p" "$builddir/Makefile"
  fi
}

find_python() {
  python=$(configured PYTHON)
  if [[ ! -x $python ]]; then
    python=${PYTHON:-$("$top/autotools/find-python")}
  fi
}

find_python

# quietly NAME COMMAND...: the output goes to $logdir/NAME.log.
quietly() {
  local log=$logdir/$1.log status=0
  shift
  mkdir -p "$logdir"
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if ((status != 0)); then
    cat "$log" >&2
  fi
  return "$status"
}

missing_packages() {
  local package status
  for package in "$@"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>&1) || true
    if [[ $status != installed ]]; then
      printf '%s\n' "$package"
    fi
  done
}

apt_install() {
  local apt=(apt-get -q -y -o DPkg::Lock::Timeout=300)
  export DEBIAN_FRONTEND=noninteractive
  # Old package lists may still do, so only the installation decides.
  "${apt[@]}" update || true
  "${apt[@]}" install --no-install-recommends "$@"
}

need_packages() {
  local missing
  command -v apt-get >/dev/null ||
    fail "no apt-get on this machine; install by other means what Debian" \
      "calls: $*"
  mapfile -t missing < <(missing_packages "$@")
  if ((${#missing[@]} == 0)); then
    return
  fi
  ((EUID == 0)) ||
    fail "needs packages that only root can install; run" \
      "'sudo apt-get install ${missing[*]}' or 'sudo $this_command'"
  say "installing packages: ${missing[*]}"
  quietly apt-get apt_install "${missing[@]}" ||
    fail "apt-get could not install: ${missing[*]} (its words are above;" \
      "is the network there?)"
}

need_to_build() {
  need_packages autoconf automake make python3 python3-pyinotify \
    python3-pyparsing "$@"
  # Part of Python itself before 3.12.
  if [[ $("$python" -c '
import importlib.util
print(importlib.util.find_spec("asyncore"))') == None ]]; then
    need_packages python3-pyasyncore
  fi
}

# python_tools NAME REQUIREMENTS: $tools is an interpreter that has just what the
# file names. It is kept outside of the tree: for other clones of it, and for
# the day without a network.
python_tools() {
  local key directory
  key=$({ "$python" -VV && cat "$2"; } | sha256sum | cut -c 1-12)
  directory=$cache/$1-$key
  tools=$directory/bin/python
  if [[ -f $directory/complete ]]; then
    return
  fi
  rm -rf "$directory"
  mkdir -p "$cache"
  quietly venv "$python" -m venv "$directory" || return
  if ! quietly pip "$tools" -m pip install --no-deps --requirement "$2"; then
    say "pip could not install what is in ${2#"$top/"} (its words are above;" \
      "is the network there?)"
    return 1
  fi
  touch "$directory/complete"
}

# Whether the build directory was configured for this tree, this Ganeti and
# this interpreter; any of them may have come, gone or moved since.
is_configured() {
  [[ -x $builddir/config.status ]] &&
    [[ $(configured abs_builddir) == "$builddir" ]] &&
    [[ $(configured GANETI_DIR) == "$1" ]] &&
    [[ -x $(configured PYTHON) ]] &&
    [[ ${PYTHON:-$(configured PYTHON)} == "$(configured PYTHON)" ]]
}

build_steps() {
  local ganeti with=()
  if [[ ! -x $top/configure ]]; then
    "$top/autogen.sh"
  fi
  ganeti=$("$top/autotools/find-ganeti" || true)
  if ! is_configured "$ganeti"; then
    if [[ -z $ganeti ]]; then
      with=(--without-ganeti)
    fi
    (cd "$builddir" && "$top/configure" "${with[@]}")
  fi
  make -C "$builddir" all
}

build() {
  mkdir -p "$builddir"
  # Two commands may be started at once in the same tree.
  quietly build flock "$builddir" "$BASH" -c \
    "source '$top/devel/lib.sh'; build_steps" ||
    fail "the build failed; the reason is above"
  find_python
}
