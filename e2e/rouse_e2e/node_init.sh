#!/bin/bash
# PID 1 of a node's namespaces: joins the node's cgroups, makes the node's own file system view and
# becomes the Python program that runs the node (node.py). Started by real.py.
set -euo pipefail
state=$1 name=$2 address=$3 python=$4 phase=${5:-join}

if [ "$phase" = join ]; then
  # /proc is still the machine's here. "0" is "the writer" in any pid namespace.
  while read -r _ path; do echo 0 > "$path/cgroup.procs"; done < "$state/cgroups"
  exec unshare --cgroup --mount --propagation private -- "$0" "$state" "$name" "$address" "$python" mounts
fi

hostname "$name"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
if [ "$(cut -d' ' -f1 "$state/cgroups")" = unified ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  # No processes beside controllers: leave the root of this subtree before it gets any.
  mkdir /sys/fs/cgroup/init
  echo 0 > /sys/fs/cgroup/init/cgroup.procs
  for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control || true
  done
else
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  while read -r controller _; do
    options=$controller
    [ "$controller" != systemd ] || options=none,name=systemd
    mkdir "/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/$controller"
  done < "$state/cgroups"
fi

# Nothing that the node writes lands in the machine's own folders.
for folder in /run /dev/shm /var/lib /var/log; do
  mount -t tmpfs -o mode=755 tmpfs "$folder"
done
chmod 1777 /dev/shm
for folder in /var/lib/containerd /var/lib/kubelet /var/lib/cni /var/log/pods /var/log/containers; do
  mkdir -p "$folder" "$state/root$folder"
  mount --bind "$state/root$folder" "$folder"
done
# Values the kubelet insists on. They are the whole machine's, so show it files instead.
for pair in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=$state/root/sysctl/${pair%%=*}
  mkdir -p "${file%/*}"
  echo "${pair##*=}" > "$file"
  mount --bind "$file" "/proc/sys/${pair%%=*}"
done
# There is no way out of this network: no resolver of the machine's, only the node's own names.
printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" > "$state/root/hosts"
: > "$state/root/resolv.conf"
mount --bind "$state/root/hosts" /etc/hosts
mount --bind "$state/root/resolv.conf" "$(readlink -f /etc/resolv.conf || echo /etc/resolv.conf)" || true
mount --make-rshared /
exec "$python" -m rouse_e2e.node "$state"
