#!/usr/bin/env bash
# Runs the host's tests of limits in a virtual machine that has control groups of version 2 only.
#
#   scripts/limits-in-vm.sh [TEST…]        such as limits, supervision [default: limits]
#
# Needs root for apt, and brings what is missing: qemu, busybox, Debian's kernel. The machine is
# emulated, because not every machine can nest virtual ones: a minute or two for each test program.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/blackhole/target}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tests=("${@:-limits}")

need() { command -v "$1" >/dev/null || missing+=("$2"); }
missing=()
need qemu-system-x86_64 qemu-system-x86
need cpio cpio
need mkfs.ext4 e2fsprogs
busybox --list 2>/dev/null | grep -qx switch_root || missing+=(busybox-static)
if ((${#missing[@]})); then
  apt-get update -qq
  apt-get install -qqy --no-install-recommends "${missing[@]}"
fi

kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
(cd "$work" && apt-get download -qq "$kernel" && dpkg -x "$kernel"_*.deb kernel)

# The programs, what they are linked against, and the little that their plugins run.
export CARGO_TARGET_DIR=$target
cargo test --locked --workspace --no-run --message-format=json >"$work/built.json"
root=$work/root
mkdir -p "$root"/{bin,etc,t/deps,t/examples,usr/bin}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in cat chmod env grep id ip ls mkdir mount poweroff seq sh sleep true umount; do
  ln -s busybox "$root/bin/$applet"
done
ln -s /bin/env "$root/usr/bin/env"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
cp "$target/debug/examples/probe" "$root/t/examples/"
for test in "${tests[@]}"; do
  program=$(python3 - "$test" "$work/built.json" <<'PY'
import json, sys
for line in open(sys.argv[2]):
    made = json.loads(line)
    if made.get("executable") and made["target"]["name"] == sys.argv[1] and "test" in made["target"]["kind"]:
        print(made["executable"])
PY
  )
  [ -n "$program" ] || { echo "there is no test program $test" >&2; exit 2; }
  cp "$program" "$root/t/deps/$test"
done
strip "$root"/t/deps/* "$root/t/examples/probe"
for program in "$root"/t/deps/* "$root/t/examples/probe"; do
  ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
    install -D "$(readlink -f "$library")" "$root$library"
  done
done

# The root must be a file system that can be pivoted from and that has id-mapped mounts.
cat >"$root/init" <<'SH'
#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /n /dev
$b mount -t devtmpfs dev /dev
$b mount -t ext4 /dev/nvme0n1 /n
for each in bin etc lib lib64 t usr init2; do [ -e /$each ] && $b cp -a /$each /n/; done
cd /n
$b mkdir -p proc sys dev tmp run
exec $b switch_root /n /init2
SH
cat >"$root/init2" <<'SH'
#!/bin/sh
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
chmod 1777 /tmp
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up
echo "Linux $(cat /proc/sys/kernel/osrelease), controllers: $(cat /sys/fs/cgroup/cgroup.controllers)"
# As a service has it: a group of its own below the root.
mkdir /sys/fs/cgroup/service
echo 1 >/sys/fs/cgroup/service/cgroup.procs
failed=0
for test in /t/deps/*; do $test --test-threads 2 2>&1 || failed=1; done
echo "ended with $failed"
poweroff -f
SH
chmod +x "$root/init" "$root/init2"
(cd "$root" && find . | cpio -o -H newc --quiet) >"$work/initrd"
truncate -s 1G "$work/disk"
mkfs.ext4 -q -F "$work/disk"

timeout 1200 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 4096 -smp 2 -nographic -no-reboot \
  -drive "file=$work/disk,if=none,id=disk,format=raw" -device nvme,drive=disk,serial=1 \
  -kernel "$work"/kernel/boot/vmlinuz-* -initrd "$work/initrd" \
  -append "console=ttyS0 panic=1 quiet" | tee "$work/said"
grep -aq '^ended with 0' "$work/said"
