#!/bin/busybox sh
# The first process of a guest: mounts what a system has, runs /spry/command, says how it ended, powers off.
/bin/busybox --install -s
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

# A system of its own on a disk: it gets what was given, where it was on the host, and goes on from here.
if grep -q spry.system /proc/cmdline; then
    until [ -b /dev/nvme0n1 ]; do usleep 10000; done
    mount -t ext4 /dev/nvme0n1 /new
    rm -rf /new/spry
    find / -xdev -type f ! -path '/bin/*' ! -path '/init' ! -path '/etc/*' | while read -r file; do
        [ -e "/new$file" ] && continue
        mkdir -p "/new$(dirname "$file")"
        cp -p "$file" "/new$file"
    done
    : > /new/etc/tmpfiles.d/tmp.conf # what was given may lie below /tmp, which would be emptied
    units=/new/etc/systemd/system
    mkdir -p $units/multi-user.target.wants
    cp /spry/guest.service $units
    ln -sf ../guest.service $units/multi-user.target.wants
    mount --move /dev /new/dev
    umount /sys /proc
    exec switch_root /new /sbin/init
fi

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
chmod 1777 /tmp # not mounted over: what the guest was given may lie below it
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done

for port in /sys/class/virtio-ports/*; do
    case $(cat "$port/name") in
        spry.output) output=/dev/$(basename "$port") ;;
        spry.status) status=/dev/$(basename "$port") ;;
    esac
done

# A root that pivot_root takes: the kernel's first one can't be left.
mount --bind / /new
for place in proc sys dev tmp run; do
    mount --rbind "/$place" "/new/$place"
done
cd /new
mount --move . / # or descriptors of what lies in it would be shown with /new in front
chroot . /spry/command > "$output" 2>&1 < /dev/null
echo $? > "$status"
sync
poweroff -f
