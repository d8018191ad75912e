#!/usr/bin/env bash
# Follow the README in a Debian bookworm that has nothing: does what it names suffice?
#
#   tools/fresh_root.sh [--keep FOLDER] [--users "reader root"] [all]
#
# As root, on a Debian or Ubuntu with debootstrap and network. It
#   1. makes a minimal root (debootstrap --variant=minbase) in FOLDER, or a temporary one;
#   2. installs there what README.md (else docs/installing.md) names after `apt install`, nothing else;
#   3. as each of the users, copies the tree into their home without what is built, and runs
#        make build, which creates .venv with pip and compiles the package,
#        make bench   one op of the quick run,
#        make test    one file of the tests;
#      with `all`, `make bench` and `make test` in full: an hour and more.
# It also checks that, before these packages are there, `make build` asks for them by name.
# It is not part of CI: it downloads about 1 GB and writes 3 GB for each user, and takes 15 minutes
# for each on two free cores. With --keep the root stays, with the log of its last command in
# FOLDER/fresh_root.log, and a second run goes on in it. Without it, nothing stays.
# HOST_FOLDERS (default: none) names folders of this machine, separated by spaces, that pip reads: they are
# seen there as well, read-only.
set -euo pipefail
given=("$@")

root='' users='reader root' bench='--quick --only half_step.update_' tests=tests/ops/test_half_step.py
while [ $# -gt 0 ]; do
  case $1 in
    --keep | --users)
      [ -n "${2:-}" ] || { echo "fresh_root: expected a value after $1" >&2; exit 2; }
      if [ "$1" = --keep ]; then root=$(realpath -m -- "$2"); else users=$2; fi
      shift 2 ;;
    all) bench='' tests=''; shift ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "fresh_root: expected --keep FOLDER, --users NAMES or all, got $1" >&2; exit 2 ;;
  esac
done

say() { echo "-- $*"; }
fail() { echo "fresh_root: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "needs root, for debootstrap and chroot"
command -v debootstrap > /dev/null || fail "needs debootstrap: apt install debootstrap"
[ "$root" != / ] || fail "--keep: expected a folder of its own, got /"
# The mounts below are seen by this process and its children alone, and are gone when they end.
[ "${FRESH_ROOT_APART:-}" = "$$" ] \
  || FRESH_ROOT_APART=$$ exec unshare --mount --propagation private bash "${BASH_SOURCE[0]}" "${given[@]}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
packages=$(grep -hoE 'apt(-get)? install [a-z0-9+. -]+' README.md docs/installing.md | head -1 | sed -E 's/.*install( -y)? //') || true
[ -n "$packages" ] || fail "neither README.md nor docs/installing.md names packages after 'apt install'"

remove=''
if [ -z "$root" ]; then
  root=$(mktemp -d)
  remove=$root
fi
log=$root/fresh_root.log
# leave: at any end. A folder is removed only when nothing is mounted in it: `rm` would empty a HOST_FOLDER.
mounted=()
leave() {
  for place in "${mounted[@]}"; do
    if mountpoint -q "$place"; then umount --lazy "$place" || true; fi
  done
  [ -n "$remove" ] || return 0
  if grep -qF " $remove/" /proc/self/mounts; then
    echo "fresh_root: $remove stays, because something is still mounted in it" >&2
  else
    rm -rf --one-file-system "$remove"
  fi
}
trap leave EXIT

[ ! -e "$root/debootstrap" ] || fail "$root: an unfinished root; remove it first"
if [ ! -e "$root/etc/debian_version" ]; then
  [ -z "$(ls -A "$root" 2> /dev/null)" ] || fail "--keep: expected a new or empty folder, or a root, got $root"
  say "a minimal Debian in $root"
  mkdir -p "$root"
  debootstrap --variant=minbase bookworm "$root" > "$log" 2>&1 || { tail "$log"; fail debootstrap; }
fi
# show FOLDER [OPTION]: a folder of this machine, in the root.
show() {
  mkdir -p "$root/$1"
  mounted=("$root/$1" "${mounted[@]}")  # first, so that an interruption unmounts it
  mount --bind "/$1" "$root/$1"
  [ -z "${2:-}" ] || mount -o "remount,bind,$2" "$root/$1"
}
for place in proc dev dev/shm; do show "$place"; done
read -r -a folders <<< "${HOST_FOLDERS:-}"
for place in "${folders[@]}"; do show "${place#/}" ro; done
# connect: how this machine reaches the network: names, certificates, pip's index.
connect() {
  for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
    if [ -e "$file" ]; then install -D --mode 644 "$file" "$root$file"; fi
  done
}
connect

# inside USER COMMAND: in the root, with a plain environment, pip's settings and the proxies.
settings=()
while IFS= read -r -d '' one; do
  case $one in
    PIP_*=* | [a-z]*_proxy=* | [A-Z]*_PROXY=*) settings+=("$one") ;;
  esac
done < <(env -0)
inside() {
  env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME="$(home "$1")" LANG=C.UTF-8 \
    "${settings[@]}" \
    chroot --userspec="$1" "$root" bash -euo pipefail -c "cd; $2"
}
home() { if [ "$1" = root ]; then echo /root; else echo "/home/$1"; fi; }

# clone USER: the tree as git sees it, owned by the user.
clone() {
  local folder
  folder=$root$(home "$1")/revdeq-kernels
  if [ ! -e "$folder/Makefile" ]; then
    .ci/copy_tree.sh "$folder"
    chroot "$root" chown -R "$1:" "$(home "$1")/revdeq-kernels"
  fi
}

for user in $users; do
  chroot "$root" id "$user" > /dev/null 2>&1 || chroot "$root" useradd --create-home --shell /bin/bash "$user"
done

if ! chroot "$root" bash -c 'command -v g++' > /dev/null; then
  say "without the packages, make asks for them by name"
  inside root 'apt-get update -qq; apt-get install -qq -y --no-install-recommends make python3' > "$log" 2>&1 \
    || { tail "$log"; fail "apt-get"; }
  clone root
  ! inside root 'make -C revdeq-kernels build' > "$log" 2>&1 || fail "make build passed without a compiler"
  for package in python3-venv python3-dev g++; do
    grep -q "apt install.* $package" "$log" || { cat "$log"; fail "make build did not name $package"; }
  done
fi

say "apt-get install $packages"
inside root "apt-get update -qq; apt-get install -qq -y --no-install-recommends $packages" > "$log" 2>&1 \
  || { tail "$log"; fail "apt-get install $packages"; }
connect  # a package may have brought certificates of its own

for user in $users; do
  clone "$user"
  for target in build "bench ARGS='$bench'" "test ARGS='$tests'"; do
    say "$user: make $target"
    begin=$SECONDS
    inside "$user" "make -C revdeq-kernels $target" 2>&1 | tee "$log" | tail -25
    say "$user: make $target passed, $((SECONDS - begin)) s"
  done
  inside "$user" 'du -sh revdeq-kernels/.venv'
done
say "passed in $SECONDS s"
