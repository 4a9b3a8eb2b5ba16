# Run by guest.service: the command, its output and exit status to the host, and the end of the system, in order.
for port in /sys/class/virtio-ports/*; do
    case $(cat "$port/name") in
        spry.output) output=/dev/$(basename "$port") ;;
        spry.status) status=/dev/$(basename "$port") ;;
    esac
done
sh /spry/command > "$output" 2>&1 < /dev/null
echo $? > "$status"
systemctl reboot # which QEMU takes for its end
