#!/bin/bash
# unpack.sh ARCHITECTURE ROOT BESIDE PACKAGE...
#
# Unpacks Debian's packages, and what they depend on, into the folder ROOT. Nothing is installed: no script of a
# package runs, so that the architecture may be another one and nothing is written that tells one build from the
# next (logs, caches, dates of accounts). What the folder BESIDE holds already is left out; it may be "".
# `var/lib/dpkg/status.d` names what is there, where scanners of images look for it. Needs `apt-get update` first.
set -euo pipefail
architecture=$1 root=$2 beside=$3
shift 3

# What packages ask for only so that their scripts can run.
unused=" adduser debconf libaudit-common libaudit1 libbz2-1.0 libcap-ng0 libcrypt1 libdb5.3 libpam-modules libpam-modules-bin
 libpam0g libpcre2-8-0 libselinux1 libsemanage-common libsemanage2 libsepol2 mawk passwd "
# No program here reads manuals, another's language or character set, or is debugged with what is in the image.
unread=(usr/share/{base-files,doc-base,gcc,gdb,info,lintian,locale,man} "usr/lib/*/gconv")

work=$(mktemp -d)
cd "$work"
: > installed
apt=(apt-get -qq -o Dir::State::status="$work/installed" -o APT::Sandbox::User=root
  -o APT::Architecture="$architecture" -o APT::Architectures="$architecture")
"${apt[@]}" install --simulate --no-install-recommends "$@" | sed -nE 's/^Inst (\S+) \((\S+) .*/\1=\2/p' > needed
wanted=()
while IFS== read -r name version; do
  [[ ${unused//$'\n'/} == *" $name "* || (-n $beside && -e $beside/var/lib/dpkg/status.d/$name) ]] ||
    wanted+=("$name=$version")
done < needed
"${apt[@]}" download "${wanted[@]}"

list=$root/var/lib/dpkg/status.d
mkdir -p "$list"
for file in *.deb; do
  name=$(dpkg-deb --field "$file" Package)
  dpkg-deb --extract "$file" "$root"
  dpkg-deb --field "$file" > "$list/$name"
  dpkg-deb --info "$file" md5sums > "$list/$name.md5sums"
done
cd "$root"
# shellcheck disable=SC2086  (patterns)
for each in "${unread[@]}"; do rm -rf ./$each; done
# Of documentation, the licences stay.
[[ ! -d usr/share/doc ]] || find usr/share/doc -mindepth 2 ! -type d ! -name copyright -delete
find . -type d -empty -path './usr/share/*' -delete
rm -rf "$work"
