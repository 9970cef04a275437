#!/bin/bash
# start.sh ARCHITECTURE FOLDER... -- PROGRAM ARGUMENT...
#
# Runs a program in a root that is made of the folders, as that of an image is of its layers. One of another
# architecture runs in QEMU, which needs nothing of the machine's kernel.
set -euo pipefail
architecture=$1
shift
root=$(mktemp -d)
while [[ $1 != -- ]]; do
  cp -a "$1/." "$root"
  shift
done
shift
emulator=()
if [[ $architecture != "$(dpkg --print-architecture)" ]]; then
  case $architecture in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) echo "no emulator is known for $architecture" >&2 && exit 1 ;;
  esac
  cp "/usr/bin/qemu-$machine-static" "$root/emulator"
  emulator=(/emulator)
fi
chroot "$root" "${emulator[@]}" "$@"
rm -rf "$root"
