#!/bin/bash
# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

# First process of a node, in its own mount, network, UTS, IPC and PID
# namespaces inside those of its cluster: this machine as it is installed, but
# with none of its Ganeti's state, and free to be changed.
#
# usage: node.sh CLUSTER NODE DOMAIN ADDRESS/BITS [DIRECTORY...]
#
# The directories are shown as they are on the machine, to be read only.

set -euo pipefail

readonly cluster=$1 node=$2 domain=$3 address=$4
shift 4

readonly home=/sys/$node
readonly root=$home/root
mkdir -p "$root"

# Lay a writable layer over a file system of the machine.
overlay() {
  local place=$1
  local layer=$home/layers/${place//\//_}
  mkdir -p "$layer/upper" "$layer/work"
  mount -t overlay \
    -o "lowerdir=$place,upperdir=$layer/upper,workdir=$layer/work" \
    "$node" "$root$place"
}

overlay /
for place in /boot /etc /home /opt /usr /usr/local /var /var/lib; do
  if mountpoint -q "$place"; then
    overlay "$place"
  fi
done

empty() {
  local mode=$1 place=$2
  mkdir -p "$root$place"
  mount -t tmpfs -o "mode=$mode" "$node" "$root$place"
}

empty 0755 /run
mkdir -m 1777 "$root/run/lock"
empty 1777 /tmp
empty 0700 /root
empty 0755 /var/lib/ganeti
empty 0755 /var/log/ganeti
empty 0755 /mnt
empty 0755 /srv
mkdir "$root/srv/ganeti"
mount --bind /sys/shared "$root/srv/ganeti"

for place in "$@"; do
  mkdir -p "$root$place"
  mount --bind "$place" "$root$place"
  mount -o remount,bind,ro "$root$place"
done

# Devices: those that programs cannot do without; no disk, and not KVM, which
# is slow or hangs in a machine that is virtual itself.
empty 0755 /dev
for device in null zero full random urandom tty net/tun; do
  if [[ -e /dev/$device ]]; then
    mkdir -p "$(dirname "$root/dev/$device")"
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
  fi
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts \
  "$root/dev/pts"
mount -t tmpfs -o mode=1777 "$node" "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"

mount -t proc proc "$root/proc"
# Ganeti powercycles a node with it, and there is only one in the machine
if [[ -e /proc/sysrq-trigger ]]; then
  mount --bind /dev/null "$root/proc/sysrq-trigger"
fi
mount -t sysfs sysfs "$root/sys"

cd "$root"
pivot_root . mnt
umount --lazy /mnt

hostname "$node.$domain"
echo "$node.$domain" >/etc/hostname
# Nobody to ask, so that asking fails at once
rm -f /etc/resolv.conf
: >/etc/resolv.conf
printf '%s: files\n' passwd group shadow hosts >/etc/nsswitch.conf

ip link set lo up
ip link add br0 type bridge
ip address add "$address" dev br0
ip link set br0 up

# A secure shell daemon with a key of its own. It cannot be what keeps the node
# alive: a node that joins a cluster restarts it.
rm -f /etc/ssh/ssh_host_*
ssh-keygen -q -t rsa -b 2048 -N "" -f /etc/ssh/ssh_host_rsa_key
mkdir -m 0755 /run/sshd
mkdir -m 0700 /root/.ssh
cat >/etc/ssh/sshd_config <<EOF
ListenAddress ${address%/*}
HostKey /etc/ssh/ssh_host_rsa_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
UsePAM no
Subsystem sftp internal-sftp
EOF
/usr/sbin/sshd

echo ready
exec 0</dev/null 1>/dev/null 2>/dev/null
exec -a "ganeti-kvmd-node:$cluster/$node" tini -- sleep infinity
